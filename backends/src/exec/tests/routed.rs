//! A mixture of experts whose tokens travel, and its gradient, give what one rank gives that holds everything, however unevenly experts are
//! chosen.

use galvatron_ir::mesh::Sharding;
use galvatron_ir::module::ViewStep;
use galvatron_ir::op::Op;
use galvatron_ir::op::comm::{AllReduce, Shard, routed_of};
use galvatron_ir::op::compute::{Cast, Constant, Moe, MoeGrad, UnaryKind};
use galvatron_ir::op::mem::Update;
use galvatron_ir::plan::PhaseKind::Step;
use galvatron_ir::plan::ResidentRole;
use galvatron_ir::types::{DType, Scalar, TensorType};
use galvatron_ir::{AxisId, ValueId};

use super::plan::{PlanBuilder, Samples, Stored, train};
use crate::comm::{CommKind, Stats};
use crate::exec::{RunOptions, RunReport};

const DATA: Samples = Samples { features: 1, classes: 2 };

const A0: AxisId = AxisId(1);
const A1: AxisId = AxisId(2);

/// Tokens, their width, that inside of experts, and choices of a token.
const TOKENS: u64 = 12;
const H: u64 = 5;
const F: u64 = 6;
const K: u64 = 2;

/// Which experts a token chooses, of so many.
type Choose = fn(token: u64, choice: u64, experts: u64) -> u64;

/// A mixture on a mesh.
#[derive(Clone, Copy)]
struct Case {
    mesh: &'static [u32],
    /// Axes over which tokens are routed, and further axes of the experts.
    axes: &'static [AxisId],
    further: &'static [AxisId],
    experts: u64,
    choose: Choose,
    dtype: DType,
}

const CASE: Case = Case { mesh: &[2], axes: &[A0], further: &[], experts: 12, choose: evenly, dtype: DType::F32 };

fn evenly(token: u64, choice: u64, experts: u64) -> u64 {
    (token * 7 + choice * 5 + token / 3) % experts
}

/// Everyone chooses the last expert twice.
fn one_expert(_: u64, _: u64, experts: u64) -> u64 {
    experts - 1
}

/// Every token chooses among the experts of the first rank, of up to four.
fn one_rank(token: u64, choice: u64, _: u64) -> u64 {
    (token + choice) % 3
}

/// No token chooses an expert of another rank than its own, of two.
fn own_rank(token: u64, choice: u64, experts: u64) -> u64 {
    token / (TOKENS / 2) * (experts / 2) + (token + choice) % (experts / 2)
}

/// The operands of the gradient that are floats, by name.
fn operands(case: &Case) -> [(&'static str, Vec<u64>); 6] {
    let e = case.experts;
    [
        ("x", vec![TOKENS, H]),
        ("w", vec![TOKENS, K]),
        ("gate", vec![e, F, H]),
        ("up", vec![e, F, H]),
        ("down", vec![e, H, F]),
        ("dy", vec![TOKENS, H]),
    ]
}

/// Builds the plan of a case, or of the same mixture on one rank.
struct Build<'a> {
    case: &'a Case,
    is_one: bool,
    b: PlanBuilder,
}

impl Build<'_> {
    /// Tokens lie over the axes of the routes, experts over all.
    fn placed(&self, shape: &[u64]) -> Sharding {
        let mut sharding = Sharding::replicated(shape.len());
        if !self.is_one {
            sharding.dims[0].extend(self.case.axes);
            if shape.len() == 3 {
                sharding.dims[0].extend(self.case.further);
            }
        }
        sharding
    }

    fn resident(&mut self, name: &str, shape: &[u64]) -> ValueId {
        let of = self.b.weight(name, &[shape.iter().product()], vec![ViewStep::Reshape(shape.to_vec())]);
        let placement = self.placed(shape).display(&self.b.module.mesh).to_string();
        self.b.resident(ResidentRole::Parameter, of, &placement)
    }

    fn cast(&mut self, value: ValueId, to: DType) -> ValueId {
        let ty = self.b.chunk.graph.value(value).ty.clone();
        if ty.dtype == to {
            return value;
        }
        let placed = self.placed(&ty.shape);
        self.b.node_at(Step, Cast { to }.into(), &[value], &[placed])[0]
    }

    fn choices(&mut self) -> ValueId {
        let chosen = |n: u64| (self.case.choose)(n / K, n % K, self.case.experts);
        let values = (0..TOKENS * K).map(|n| Scalar::new(chosen(n) as f64)).collect();
        let ty = TensorType::i64([TOKENS, K]);
        let placed = self.placed(&ty.shape);
        let all = self.b.node_at(Step, Constant { ty, values }.into(), &[], &[Sharding::replicated(2)]);
        let shard = Shard { axes: self.case.axes.to_vec(), dim: 0 };
        if self.is_one { all[0] } else { self.b.node_at(Step, shard.into(), &all, &[placed])[0] }
    }

    /// Emits a mixture, or its gradient, and sums what is partial over further axes of the experts.
    fn mixture(&mut self, op: Op, args: &[ValueId]) -> Vec<ValueId> {
        let types = op.infer(&self.b.chunk.graph.types(args)).unwrap();
        let further = if self.is_one { &[][..] } else { self.case.further };
        let partial = |ty: &TensorType| if ty.rank() == 3 { Vec::new() } else { further.to_vec() };
        let placed: Vec<Sharding> =
            types.iter().map(|ty| Sharding { partial: partial(ty), ..self.placed(&ty.shape) }).collect();
        let op = if self.is_one { op } else { routed_of(&op, self.case.axes).expect("a mixture is routed") };
        let results = self.b.node_at(Step, op, args, &placed);
        let sum = |(value, placed): (ValueId, &Sharding)| match placed.is_partial() {
            true => {
                let (op, whole) = (AllReduce { axes: further.to_vec() }, placed.resolved());
                self.b.node_at(Step, op.into(), &[value], &[whole])[0]
            }
            false => value,
        };
        results.into_iter().zip(&placed).map(sum).collect()
    }
}

/// A run that leaves the result and the gradients in parameters of their names.
fn report(case: &Case, is_one: bool) -> RunReport {
    let b = PlanBuilder::new(if is_one { &[1] } else { case.mesh }, 1, 1);
    let mut build = Build { case, is_one, b };
    let mut args: Vec<ValueId> = Vec::new();
    for (name, shape) in operands(case) {
        let value = build.resident(name, &shape);
        args.push(build.cast(value, case.dtype));
    }
    let choices = build.choices();
    args.insert(2, choices);
    let (activation, experts) = (UnaryKind::Silu, case.experts);
    let mut results = build.mixture(Moe { activation, experts }.into(), &args[..6]);
    results.extend(build.mixture(MoeGrad { activation, experts }.into(), &args));
    for (name, value) in ["y", "dx", "dw", "dgate", "dup", "ddown"].into_iter().zip(results) {
        let value = build.cast(value, DType::F32);
        let shape = build.b.chunk.graph.value(value).ty.shape.clone();
        let target = build.resident(name, &shape);
        build.b.node(Step, Update, &[target, value], &[]);
    }
    build.b.constant_loss();
    let options = RunOptions { collect: true, threads: Some(1), ..RunOptions::default() };
    train(&build.b.finish(), &options, &DATA, &Stored::default()).0
}

/// Compares a case with one rank; returns what its ranks sent.
fn check(case: Case) -> Vec<Stats> {
    let (expected, found) = (report(&case, true), report(&case, false));
    let (expected, traffic) = (expected.trained.unwrap().parameters, found.traffic);
    let found = found.trained.unwrap().parameters;
    for name in ["y", "dx", "dw", "dgate", "dup", "ddown"] {
        let tolerance = if case.dtype == DType::F32 { 3e-6 } else { 3e-2 };
        let largest = expected[name].data.iter().fold(1.0f32, |max, v| max.max(v.abs()));
        for (e, f) in expected[name].data.iter().zip(&found[name].data) {
            assert!((e - f).abs() <= tolerance * largest, "mesh {:?}: {name} has {f}, not {e}", case.mesh);
        }
    }
    traffic
}

#[test]
fn tokens_that_travel_give_the_mixture_of_one_rank() {
    for mesh in [&[2][..], &[3], &[4], &[6], &[12]] {
        check(Case { mesh, ..CASE });
    }
}

#[test]
fn every_choice_is_computed_however_uneven_they_are() {
    for choose in [one_expert, one_rank] {
        for mesh in [&[2][..], &[3], &[4]] {
            check(Case { mesh, choose, ..CASE });
        }
    }
}

#[test]
fn axes_may_be_strided_and_several_and_experts_may_lie_over_more() {
    let square = Case { mesh: &[2, 3], ..CASE };
    check(square);
    check(Case { axes: &[A1], ..square });
    check(Case { axes: &[A0, A1], ..square });
    check(Case { axes: &[A1, A0], ..square });
    check(Case { further: &[A1], ..square });
    check(Case { axes: &[A1], further: &[A0], ..square });
    check(Case { axes: &[A1], further: &[A0], choose: one_expert, ..square });
}

/// What is summed over ranks is f32; messages are rounded.
#[test]
fn tokens_of_bf16_are_summed_in_f32() {
    for (mesh, choose) in [(&[2][..], evenly as Choose), (&[3], evenly), (&[2], one_expert)] {
        check(Case { mesh, choose, dtype: DType::Bf16, ..CASE });
    }
}

/// A token goes once to a rank with its choices, weights and row, in the gradient also that of its result, and comes back as a row, in the
/// gradient also with those of its weights. To a rank that nobody chose nothing is sent.
#[test]
fn only_what_was_chosen_is_sent() {
    let row = [K * 8 + K * 4 + H * 4, H * 4, K * 8 + K * 4 + 2 * H * 4, H * 4 + K * 4];
    let sent = |stats: &Stats| (stats.of(CommKind::Send).n_calls, stats.of(CommKind::Send).sent_bytes);
    let all = check(Case { choose: one_expert, ..CASE });
    let tokens = TOKENS / 2;
    assert_eq!(sent(&all[0]), (2, tokens * (row[0] + row[2])));
    assert_eq!(sent(&all[1]), (2, tokens * (row[1] + row[3])));
    for stats in check(Case { choose: own_rank, ..CASE }) {
        assert_eq!(sent(&stats), (0, 0));
    }
}
