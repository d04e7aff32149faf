//! Attention around a ring of ranks, and its gradient, give what one rank gives that holds everything.

use galvatron_ir::AxisId;
use galvatron_ir::ValueId;
use galvatron_ir::mesh::Sharding;
use galvatron_ir::module::ViewStep;
use galvatron_ir::op::Op;
use galvatron_ir::op::comm::ring_of;
use galvatron_ir::op::compute::{Attention, AttentionGrad, Cast};
use galvatron_ir::op::mem::Update;
use galvatron_ir::plan::PhaseKind::Step;
use galvatron_ir::plan::ResidentRole;
use galvatron_ir::types::{DType, Scalar};

use super::plan::{PlanBuilder, Samples, Stored, train};
use crate::comm::{CommKind, Stats};
use crate::exec::{RunOptions, Tensors};

const DATA: Samples = Samples { features: 1, classes: 2 };

/// An attention: its extents, and the shape of its mask.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: u64,
    sequence: u64,
    /// Keys and values, if there are not as many.
    keys: Option<u64>,
    heads: u64,
    kv_heads: u64,
    d: u64,
    dv: u64,
    causal: bool,
    /// Extents of batch and heads of a mask.
    mask: Option<[u64; 2]>,
    dtype: DType,
    zigzag: bool,
}

const CASE: Case = Case {
    batch: 2,
    sequence: 12,
    keys: None,
    heads: 4,
    kv_heads: 2,
    d: 8,
    dv: 5,
    causal: true,
    mask: None,
    dtype: DType::F32,
    zigzag: false,
};

impl Case {
    /// The operands of the gradient by name, with the dimension of the sequence.
    fn operands(&self) -> Vec<(&'static str, Vec<u64>)> {
        let Case { batch, sequence, heads, kv_heads, d, dv, .. } = *self;
        let keys = self.keys.unwrap_or(sequence);
        let mut all = vec![
            ("q", vec![batch, sequence, heads, d]),
            ("k", vec![batch, keys, kv_heads, d]),
            ("v", vec![batch, keys, kv_heads, dv]),
            ("do", vec![batch, sequence, heads, dv]),
        ];
        all.extend(self.mask.map(|[b, h]| ("mask", vec![b, h, sequence, keys])));
        all
    }
}

/// Output and gradients of an attention on `n` ranks, as parameters that are updated with them, and what the ranks sent.
fn results(case: &Case, n: u32) -> (Tensors, Vec<Stats>) {
    let axes = [AxisId(1)];
    let mut b = PlanBuilder::new(&[n], 1, 1);
    let sequence_of = |name: &str| match name {
        "lse" | "mask" => 2,
        _ => 1,
    };
    let placed = |name: &str, rank: usize| {
        let mut sharding = Sharding::replicated(rank);
        if n > 1 {
            sharding.dims[sequence_of(name)].extend(axes);
        }
        sharding
    };
    let resident = |b: &mut PlanBuilder, name: &str, shape: &[u64]| {
        let of = b.weight(name, &[shape.iter().product()], vec![ViewStep::Reshape(shape.to_vec())]);
        let placement = placed(name, shape.len()).display(&b.module.mesh);
        b.resident(ResidentRole::Parameter, of, &placement)
    };
    let narrow = |b: &mut PlanBuilder, value: ValueId, to: DType, name: &str| {
        let ty = b.chunk.graph.value(value).ty.clone();
        if ty.dtype == to {
            value
        } else {
            b.node_at(Step, Cast { to }.into(), &[value], &[placed(name, ty.rank())])[0]
        }
    };
    let mut args = Vec::new();
    for (name, shape) in case.operands() {
        let value = resident(&mut b, name, &shape);
        args.push(narrow(&mut b, value, case.dtype, name));
    }
    let (scale, causal) = (Scalar::new(0.4), case.causal);
    let op = |b: &PlanBuilder, dense: Op, args: &[ValueId]| {
        let ring = ring_of(&dense, &b.chunk.graph.types(args), &axes, case.zigzag);
        if n > 1 { ring.expect("there is a ring") } else { dense }
    };
    let mut read = args[..3].to_vec();
    read.extend(args.get(4));
    let forward = op(&b, Attention { scale, causal }.into(), &read);
    let out = b.node_at(Step, forward, &read, &[placed("o", 4), placed("lse", 3)]);
    let mut read = vec![args[0], args[1], args[2], out[0], out[1], args[3]];
    read.extend(args.get(4));
    let backward = op(&b, AttentionGrad { scale, causal }.into(), &read);
    let grads = b.node_at(Step, backward, &read, &[placed("dq", 4), placed("dk", 4), placed("dv", 4)]);
    for (name, value) in ["o", "lse", "dq", "dk", "dv"].into_iter().zip(out.into_iter().chain(grads)) {
        let shape = b.chunk.graph.value(value).ty.shape.clone();
        let value = narrow(&mut b, value, DType::F32, name);
        let target = resident(&mut b, name, &shape);
        b.node(Step, Update, &[target, value], &[]);
    }
    b.constant_loss();
    let options = RunOptions { collect: true, threads: Some(1), ..RunOptions::default() };
    let report = train(&b.finish(), &options, &DATA, &Stored::default()).0;
    let mut found = report.trained.unwrap().parameters;
    found.retain(|name, _| !case.operands().iter().any(|(operand, _)| operand == name));
    (found, report.traffic)
}

fn check(case: &Case, ranks: &[u32]) {
    let expected = results(case, 1).0;
    assert_eq!(expected.len(), 5);
    for &n in ranks {
        let (found, _) = results(case, n);
        for (name, tensor) in &expected {
            let tolerance = if case.dtype == DType::F32 { 3e-6 } else { 3e-2 };
            let largest = tensor.data.iter().fold(1.0f32, |max, v| max.max(v.abs()));
            for (e, f) in tensor.data.iter().zip(&found[name].data) {
                assert!((e - f).abs() <= tolerance * largest, "{case:?}, {n} ranks: {name} has {f}, not {e}");
            }
        }
    }
}

#[test]
fn rings_of_every_size_give_the_attention_of_one_rank() {
    check(&CASE, &[2, 3, 4, 6, 12]);
    check(&Case { causal: false, ..CASE }, &[2, 3, 4, 6, 12]);
    check(&Case { heads: 3, kv_heads: 3, dv: 8, ..CASE }, &[2, 3]);
}

#[test]
fn every_rank_reads_its_columns_of_a_mask() {
    for mask in [[1, 1], [2, 1], [1, 4], [2, 4]] {
        check(&Case { mask: Some(mask), ..CASE }, &[2, 3]);
        check(&Case { mask: Some(mask), causal: false, ..CASE }, &[2, 4]);
    }
}

/// Every rank computes a chunk of the front and one of the back; with an odd number of ranks one rank has neighbouring chunks.
#[test]
fn zigzags_give_the_attention_of_one_rank() {
    let zigzag = Case { zigzag: true, ..CASE };
    check(&zigzag, &[2, 3, 6]);
    check(&Case { sequence: 24, heads: 3, kv_heads: 3, dv: 8, ..zigzag }, &[4, 12]);
    for mask in [[1, 1], [2, 4]] {
        check(&Case { mask: Some(mask), ..zigzag }, &[2, 3]);
        check(&Case { mask: Some(mask), dtype: DType::Bf16, ..zigzag }, &[2, 3]);
    }
}

#[test]
fn without_a_causal_rule_keys_may_be_more_or_fewer() {
    for keys in [4, 8, 24] {
        check(&Case { keys: Some(keys), causal: false, ..CASE }, &[2, 4]);
        check(&Case { keys: Some(keys), causal: false, mask: Some([1, 4]), ..CASE }, &[2, 4]);
    }
}

/// What is summed over blocks is f32: the results are rounded once, whatever the ring's size.
#[test]
fn blocks_of_bf16_are_summed_in_f32() {
    for mask in [None, Some([1, 4])] {
        check(&Case { dtype: DType::Bf16, mask, ..CASE }, &[2, 3, 4]);
    }
}

/// Keys and values go n - 1 times forward, and again n - 1 times in the gradient with n times their gradients behind them.
#[test]
fn a_ring_sends_each_block_to_every_other_rank() {
    let case = Case { dv: 8, ..CASE };
    let block = case.batch * case.sequence / 4 * case.kv_heads * (case.d + case.dv) * 4;
    for stats in results(&case, 4).1 {
        assert_eq!(stats.of(CommKind::Send).sent_bytes, block * (3 + 3 + 4));
    }
}
