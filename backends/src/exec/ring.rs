//! Attention whose keys and values travel around a ring, as block kernels between messages to the next rank and from the one before.
//!
//! A block is sent on before it is used, so that it travels meanwhile, and every rank passes on every block, also those that its
//! queries do not see. What a causal rule hides is left out here, rank by rank: the plan is the same for all.

mod chunks;
mod scratch;
mod steps;

use galvatron_ir::op::Op;
use galvatron_ir::op::comm::RingScratch;
use galvatron_ir::types::{DType, TensorType};

use super::exchange::{Buffers, Step};
use super::layout::Layout;
use super::rank::TAGS;
use crate::device::{AttentionBlock, BlockTask, BufferSpec, Device};
use chunks::{Ring, piece};
use scratch::Scratch;
use steps::Steps;

/// Tags of blocks, of their gradients and of chunks that change places.
const BLOCKS: u64 = TAGS;
const GRADIENTS: u64 = TAGS + 1;
const CHUNKS: u64 = TAGS + 2;

/// Which dimension is the sequence: of log-sum-exps and masks it is that of the queries.
const SEQUENCE: usize = 1;
const SEQUENCE_OF_ROWS: usize = 2;

/// Prepares a ring as steps in order.
///
/// # Errors
/// Why the node cannot be run.
pub(super) fn prepare(
    op: &Op,
    layout: &Layout<'_>,
    device: &dyn Device,
    buffers: Buffers<'_>,
) -> Result<Vec<Step>, String> {
    match op {
        Op::RingAttention(op) => {
            let ring = Ring::new(layout, &op.axes, (op.attention.scale.get(), op.attention.causal), op.zigzag);
            forward(&ring, device, buffers)
        }
        Op::RingAttentionGrad(op) => {
            let ring = Ring::new(layout, &op.axes, (op.attention.scale.get(), op.attention.causal), op.zigzag);
            backward(&ring, device, buffers)
        }
        _ => Err(format!("`{}` is no ring", op.mnemonic())),
    }
}

/// What a ring works on: operands and results with their chunks one after the other, and scratch.
struct Work {
    args: Vec<BufferSpec>,
    results: Vec<BufferSpec>,
    scratch: Scratch,
    /// Whether kernels work on f32 copies.
    is_wide: bool,
}

impl Work {
    fn new(ring: &Ring, buffers: Buffers<'_>, of: &RingScratch) -> Result<Work, String> {
        let scratch = Scratch::new(of, buffers.workspace)?;
        let is_wide = match buffers.args[0].ty.dtype {
            DType::F32 => false,
            DType::Bf16 => true,
            other => return Err(format!("rings are of f32 or of bf16, not of {other}")),
        };
        let (mut args, mut results) = (buffers.args.to_vec(), buffers.results.to_vec());
        if ring.zigzag {
            results = scratch.moved[args.len()..args.len() + results.len()].to_vec();
            args = scratch.moved[..args.len()].to_vec();
        }
        Ok(Work { args, results, scratch, is_wide })
    }

    /// The f32 copy number `index` of the scratch, or what it would be a copy of.
    fn wide_or(&self, index: usize, narrow: &BufferSpec) -> BufferSpec {
        self.scratch.wide.get(index).unwrap_or(narrow).clone()
    }
}

fn types(buffers: &[BufferSpec]) -> Vec<TensorType> {
    buffers.iter().map(|b| b.ty.clone()).collect()
}

/// Dimension of the sequence in the operands of a ring and of its gradient, and in their results.
fn sequence_dims(n: usize, rows: &[usize]) -> Vec<usize> {
    (0..n).map(|i| if rows.contains(&i) { SEQUENCE_OF_ROWS } else { SEQUENCE }).collect()
}

fn forward(ring: &Ring, device: &dyn Device, buffers: Buffers<'_>) -> Result<Vec<Step>, String> {
    let (arg_types, result_types) = (types(buffers.args), types(buffers.results));
    let (a, r) = (arg_types.iter().collect::<Vec<_>>(), result_types.iter().collect::<Vec<_>>());
    let work = Work::new(ring, buffers, &RingScratch::forward(&a, &r, (ring.n() as u64, ring.zigzag)))?;
    let mut steps = Steps::new(device, ring);
    steps.move_in(buffers.args, &sequence_dims(buffers.args.len(), &[3]), &work)?;
    let (q, o, lse) = (work.wide_or(0, &work.args[0]), work.wide_or(3, &work.results[0]), &work.results[1]);
    steps.convert(&work.args[0], &q)?;
    steps.fill(&o, 0.0)?;
    steps.fill(lse, f64::NEG_INFINITY)?;
    let keys = [work.wide_or(1, &work.args[1]), work.wide_or(2, &work.args[2])];
    let mut hand = [work.args[1].clone(), work.args[2].clone()];
    for round in 0..ring.n() {
        let is_last = round + 1 == ring.n();
        if !is_last {
            steps.send(BLOCKS, &hand);
        }
        let [k, v] = steps.load(&hand, &keys, work.is_wide && ring.sees_any(round))?;
        for (queries, seen, causal) in ring.tasks(round) {
            let mask = steps.columns(work.args.get(3), &work.scratch, (queries, ring.held(round)[seen]))?;
            let [q, o] = [&q, &o].map(|t| ring.piece(t, SEQUENCE, queries));
            let [k, v] = [&k, &v].map(|t| ring.piece(t, SEQUENCE, seen));
            let lse = ring.piece(lse, SEQUENCE_OF_ROWS, queries);
            let (scale, mask, task) = (ring.scale, mask.as_ref(), BlockTask::Forward);
            steps.block(&AttentionBlock { scale, causal, q: &q, k: &k, v: &v, mask, o: &o, lse: &lse, task })?;
        }
        if !is_last {
            hand = work.scratch.blocks[round % work.scratch.blocks.len()].clone();
            steps.receive(BLOCKS, &hand);
        }
    }
    steps.convert(&o, &work.results[0])?;
    steps.move_out(buffers.results, &sequence_dims(2, &[1]), &work)?;
    Ok(steps.finish())
}

fn backward(ring: &Ring, device: &dyn Device, buffers: Buffers<'_>) -> Result<Vec<Step>, String> {
    let (arg_types, result_types) = (types(buffers.args), types(buffers.results));
    let (a, r) = (arg_types.iter().collect::<Vec<_>>(), result_types.iter().collect::<Vec<_>>());
    let work = Work::new(ring, buffers, &RingScratch::backward(&a, &r, (ring.n() as u64, ring.zigzag)))?;
    let mut steps = Steps::new(device, ring);
    steps.move_in(buffers.args, &sequence_dims(buffers.args.len(), &[4, 6]), &work)?;
    let [q, o, grad] = [(0, 0), (3, 3), (4, 5)].map(|(copy, arg)| work.wide_or(copy, &work.args[arg]));
    let (lse, dq) = (&work.args[4], work.wide_or(5, &work.results[0]));
    let home = [work.wide_or(6, &work.results[1]), work.wide_or(7, &work.results[2])];
    let away = work.scratch.gradients.clone().expect("invariant: the gradient's ring has them");
    // They alternate, so that those of the rank's own block come home.
    let sums = |round: usize| if ring.n() == 1 || (ring.n() - round).is_multiple_of(2) { &home } else { &away };
    for (from, to) in [(&work.args[0], &q), (&work.args[3], &o), (&work.args[5], &grad)] {
        steps.convert(from, to)?;
    }
    for at in [&dq].into_iter().chain(sums(0)) {
        steps.fill(at, 0.0)?;
    }
    let keys = [work.wide_or(1, &work.args[1]), work.wide_or(2, &work.args[2])];
    let mut hand = [work.args[1].clone(), work.args[2].clone()];
    for round in 0..ring.n() {
        let is_last = round + 1 == ring.n();
        if !is_last {
            steps.send(BLOCKS, &hand);
        }
        if round > 0 {
            steps.receive(GRADIENTS, sums(round));
        }
        let [k, v] = steps.load(&hand, &keys, work.is_wide && ring.sees_any(round))?;
        for (queries, seen, causal) in ring.tasks(round) {
            let mask = steps.columns(work.args.get(6), &work.scratch, (queries, ring.held(round)[seen]))?;
            let [q, o, grad, dq] = [&q, &o, &grad, &dq].map(|t| ring.piece(t, SEQUENCE, queries));
            let [dk, dv] = sums(round).each_ref().map(|t| ring.piece(t, SEQUENCE, seen));
            let [k, v] = [&k, &v].map(|t| ring.piece(t, SEQUENCE, seen));
            let lse = ring.piece(lse, SEQUENCE_OF_ROWS, queries);
            let task = BlockTask::Backward { grad: &grad, dq: &dq, dk: &dk, dv: &dv };
            let (scale, mask) = (ring.scale, mask.as_ref());
            steps.block(&AttentionBlock { scale, causal, q: &q, k: &k, v: &v, mask, o: &o, lse: &lse, task })?;
        }
        if ring.n() > 1 {
            steps.send(GRADIENTS, sums(round));
        }
        if !is_last {
            hand = work.scratch.blocks[round % work.scratch.blocks.len()].clone();
            steps.receive(BLOCKS, &hand);
        }
    }
    if ring.n() > 1 {
        steps.receive(GRADIENTS, &home);
    }
    for (from, to) in [(&dq, &work.results[0]), (&home[0], &work.results[1]), (&home[1], &work.results[2])] {
        steps.convert(from, to)?;
    }
    steps.move_out(buffers.results, &sequence_dims(3, &[]), &work)?;
    Ok(steps.finish())
}
