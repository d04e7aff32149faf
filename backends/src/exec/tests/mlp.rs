//! A two-layer network, trained under several plans, against a plain computation in f64.

use galvatron_ir::ValueId;
use galvatron_ir::mesh::ReshardStep;
use galvatron_ir::module::{Module, OptimizerState, ViewStep};
use galvatron_ir::op::comm::op_of_step;
use galvatron_ir::op::compute::{
    AddN, Binary, CountLabels, CrossEntropy, CrossEntropyGrad, Einsum, Full, SumSquares, Unary, UnaryGrad, UnaryKind,
};
use galvatron_ir::op::mem::{Accumulate, Load, RunScalar, Update};
use galvatron_ir::op::opt::Sgd;
use galvatron_ir::plan::PhaseKind::{self, Backward, Forward, Prologue, Reduce, Step};
use galvatron_ir::plan::ResidentRole;
use galvatron_ir::trace::TraceEvent;
use galvatron_ir::types::{Scalar, TensorType};
use galvatron_ir::{AxisId, op::Op};

use super::plain::{BATCH, C, DATA, H, K, Reference, turned};
use super::plan::{PlanBuilder, Stored, train};
use crate::exec::{Flow, RunOptions, StepReport, Trained, run};

/// How the network is parallelised.
#[derive(Clone, Copy)]
pub(super) struct Strategy {
    ranks: u32,
    micro_batches: u32,
    /// The second weight's optimizer works on shards of dimension 1.
    zero: bool,
}

fn einsum(spec: &str) -> Op {
    Einsum::new(spec).unwrap().into()
}

fn unary(kind: UnaryKind) -> Op {
    Unary { kind }.into()
}

fn comm(step: ReshardStep) -> Op {
    op_of_step(&step)
}

/// A placement with the dp axis left out on one rank.
fn text(strategy: Strategy, placement: &str) -> String {
    match strategy.ranks {
        1 => placement.replace("mb.a0", "mb").replace("+a0", "").replace("a0", "_"),
        _ => placement.into(),
    }
}

struct Network {
    b: PlanBuilder,
    strategy: Strategy,
}

impl Network {
    fn op(&mut self, phase: PhaseKind, op: impl Into<Op>, args: &[ValueId], placement: &str) -> ValueId {
        let placement = text(self.strategy, placement);
        self.b.one(phase, op, args, &placement)
    }

    fn load(&mut self, phase: PhaseKind, input: &str, ty: TensorType, placement: &str) -> ValueId {
        self.op(phase, Load { input: input.into(), ty }, &[], placement)
    }

    fn accumulator(&mut self, name: &str, shape: &[u64]) -> ValueId {
        let of = self.b.program(name, shape);
        let replicated = vec!["_"; shape.len()].join(",");
        let placement = text(self.strategy, &format!("[{replicated}]+a0"));
        self.b.resident(ResidentRole::Accumulator, of, &placement)
    }

    /// Sums over ranks, in the operand's place.
    fn all_reduce(&mut self, phase: PhaseKind, args: &[ValueId], placement: &str) -> Vec<ValueId> {
        if self.strategy.ranks == 1 {
            return args.to_vec();
        }
        let op = comm(ReshardStep::AllReduce { axes: vec![AxisId(1)] });
        let results = self.b.node(phase, op, args, &vec![placement; args.len()]);
        args.iter().zip(&results).for_each(|(&arg, &result)| self.b.over(result, arg));
        results
    }

    /// Resolves the gradients; norm and loss become outputs.
    fn reduce(&mut self, [g1, g2]: [ValueId; 2], sum: ValueId, count: ValueId) -> (ValueId, ValueId) {
        let mut squares = Vec::new();
        let (g1, g2) = if self.strategy.zero {
            let scatter = comm(ReshardStep::ReduceScatter { axes: vec![AxisId(1)], dim: 1 });
            let g2 = self.op(Reduce, scatter, &[g2], "[_,a0]");
            let part = self.op(Reduce, SumSquares, &[g2], "[]+a0");
            squares.push(self.all_reduce(Reduce, &[part], "[]")[0]);
            (self.all_reduce(Reduce, &[g1], "[_,_]")[0], g2)
        } else {
            let both = self.all_reduce(Reduce, &[g1, g2], "[_,_]");
            squares.push(self.op(Reduce, SumSquares, &[both[1]], "[]"));
            (both[0], both[1])
        };
        squares.push(self.op(Reduce, SumSquares, &[g1], "[]"));
        let total = self.op(Reduce, AddN, &squares, "[]");
        let norm = self.op(Reduce, unary(UnaryKind::Sqrt), &[total], "[]");
        self.b.over(norm, total);
        self.b.output("grad_norm", norm);
        let sum = self.all_reduce(Reduce, &[sum], "[]")[0];
        let loss = self.op(Reduce, Binary::DIV, &[sum, count], "[]");
        self.b.output("loss", loss);
        (g1, g2)
    }

    fn sgd(&mut self, args: &[ValueId; 4], placement: &str) -> Vec<ValueId> {
        let op = Sgd { momentum: Scalar::new(0.9), weight_decay: Scalar::new(0.01) };
        let placement = text(self.strategy, placement);
        self.b.node(Step, op, args, &[&placement, &placement])
    }

    fn update(&mut self, to: ValueId, from: ValueId) {
        self.b.node(Step, Update, &[to, from], &[]);
    }

    /// The step of a weight, and of its momentum.
    fn step(&mut self, w: ValueId, gradient: ValueId, momentum: ValueId, lr: ValueId) {
        let new = self.sgd(&[w, gradient, momentum, lr], "[_,_]");
        self.b.over(new[0], w);
        self.update(w, new[0]);
        self.update(momentum, new[1]);
    }

    /// The same on shards of dimension 1; the momentum is sharded, the parameter is not.
    fn zero_step(&mut self, w: ValueId, gradient: ValueId, momentum: ValueId, lr: ValueId) {
        let axes = || vec![AxisId(1)];
        let shard = self.op(Step, comm(ReshardStep::Shard { axes: axes(), dim: 1 }), &[w], "[_,a0]");
        let of = self.b.chunk.graph.value(w).of.unwrap();
        self.b.of(shard, of);
        let new = self.sgd(&[shard, gradient, momentum, lr], "[_,a0]");
        let whole = self.op(Step, comm(ReshardStep::AllGather { axes: axes(), dim: 1 }), &[new[0]], "[_,_]");
        self.update(w, whole);
        self.update(momentum, new[1]);
    }
}

fn state(b: &mut PlanBuilder, weight: ValueId, placement: &str) -> ValueId {
    let ty = b.module.program.graph.value(weight).ty.clone();
    let value = b.program("momentum", &ty.shape);
    b.module.program.states.push(OptimizerState { value, weight, kind: "momentum".into() });
    b.resident(ResidentRole::State, value, placement)
}

pub(super) fn plan(strategy: Strategy) -> Module {
    let spatial = if strategy.ranks == 1 { vec![] } else { vec![strategy.ranks] };
    let mut n = Network { b: PlanBuilder::new(&spatial, strategy.micro_batches, BATCH), strategy };
    let w1_of = n.b.weight("fc1.weight", &[H, K], vec![ViewStep::Transpose(vec![1, 0])]);
    let w2_of = n.b.weight("fc2.weight", &[H, C], vec![]);
    let w1 = n.b.resident(ResidentRole::Parameter, w1_of, "[_,_]");
    let w2 = n.b.resident(ResidentRole::Parameter, w2_of, "[_,_]");
    let m1 = state(&mut n.b, w1_of, "[_,_]");
    let m2 = state(&mut n.b, w2_of, if strategy.zero { "[_,a0]" } else { "[_,_]" });
    let (g1, g2) = (n.accumulator("g1", &[K, H]), n.accumulator("g2", &[H, C]));
    let sum = n.accumulator("sum", &[]);

    let labels = n.load(Prologue, "labels", TensorType::i64([BATCH]), "[a0]");
    let count = n.op(Prologue, CountLabels { ignore: -100 }, &[labels], "[]+a0");
    let count = n.all_reduce(Prologue, &[count], "[]")[0];

    let x = n.load(Forward, "x", TensorType::f32([BATCH, K]), "[mb.a0,_]");
    let labels = n.load(Forward, "labels", TensorType::i64([BATCH]), "[mb.a0]");
    let h = n.op(Forward, einsum("bk,kn->bn"), &[x, w1], "[mb.a0,_]");
    let a = n.op(Forward, unary(UnaryKind::Gelu), &[h], "[mb.a0,_]");
    let y = n.op(Forward, einsum("bk,kn->bn"), &[a, w2], "[mb.a0,_]");
    let placements = ["[]+mb.a0", "[mb.a0]"].map(|p| text(strategy, p));
    let losses = n.b.node(Forward, CrossEntropy { ignore: -100 }, &[y, labels], &[&placements[0], &placements[1]]);
    n.b.node(Forward, Accumulate, &[sum, losses[0]], &[]);

    let one = n.op(Backward, Full::f32(1.0), &[], "[]");
    let scale = n.op(Backward, Binary::DIV, &[one, count], "[]");
    let dy = n.op(Backward, CrossEntropyGrad { ignore: -100 }, &[y, labels, losses[1], scale], "[mb.a0,_]");
    n.b.over(dy, y);
    let dw2 = n.op(Backward, einsum("bk,bn->kn"), &[a, dy], "[_,_]+mb.a0");
    n.b.node(Backward, Accumulate, &[g2, dw2], &[]);
    let da = n.op(Backward, einsum("bn,kn->bk"), &[dy, w2], "[mb.a0,_]");
    let dh = n.op(Backward, UnaryGrad { kind: UnaryKind::Gelu }, &[h, da], "[mb.a0,_]");
    n.b.over(dh, h);
    let dw1 = n.op(Backward, einsum("bk,bn->kn"), &[x, dh], "[_,_]+mb.a0");
    n.b.node(Backward, Accumulate, &[g1, dw1], &[]);

    let (g1, g2) = n.reduce([g1, g2], sum, count);
    let lr = n.op(Step, RunScalar { name: "lr".into() }, &[], "[]");
    n.step(w1, g1, m1, lr);
    if strategy.zero {
        n.zero_step(w2, g2, m2, lr)
    } else {
        n.step(w2, g2, m2, lr)
    }
    n.b.finish()
}

fn assert_close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(g) - w).abs() < 3e-6, "element {i}: got {g}, want {w}");
    }
}

pub(super) const STRATEGIES: [Strategy; 5] = [
    Strategy { ranks: 1, micro_batches: 1, zero: false },
    Strategy { ranks: 1, micro_batches: 4, zero: false },
    Strategy { ranks: 2, micro_batches: 2, zero: false },
    Strategy { ranks: 2, micro_batches: 2, zero: true },
    Strategy { ranks: 4, micro_batches: 2, zero: true },
];

#[test]
fn every_plan_trains_like_f64() {
    for strategy in STRATEGIES {
        for threads in [1, 2 * strategy.ranks as usize] {
            let options = RunOptions {
                steps: 4,
                collect: true,
                dump_gradients: true,
                trace: true,
                threads: Some(threads),
                ..RunOptions::default()
            };
            let module = plan(strategy);
            let (end, reports) = train(&module, &options, &DATA, &Stored::default());
            let mut reference = Reference::new();
            let [d1, d2] = reference.gradients(1).1;
            for step in 1..=4 {
                let (loss, norm) = reference.step(step);
                let report = &reports[&step];
                assert!((report.loss - loss).abs() < 3e-6, "step {step}: {} and {loss}", report.loss);
                assert!((report.grad_norm.unwrap() - norm).abs() < 3e-6);
                assert_eq!(report.lr, if step == 1 { 0.05 } else { 0.1 });
                let arena = module.stages[0].arena;
                assert_eq!(report.peak_bytes, vec![arena.persistent + arena.transient; strategy.ranks as usize]);
            }
            let gradients = end.gradients.unwrap();
            assert_close(&gradients["fc1.weight"].data, &turned(&d1, H as usize));
            assert_close(&gradients["fc2.weight"].data, &d2);
            let trained = end.trained.unwrap();
            assert_close(&trained.parameters["fc1.weight"].data, &turned(&reference.w[0], H as usize));
            assert_close(&trained.parameters["fc2.weight"].data, &reference.w[1]);
            assert_close(&trained.states["fc2.weight.momentum"].data, &reference.m[1]);
            assert_eq!(trained.parameters["fc1.weight"].shape, [H, K]);
            let is_last = |e: &&TraceEvent| e.rank as u32 == strategy.ranks - 1 && e.step == 4;
            let ops: Vec<&str> = end.trace.iter().filter(is_last).map(|e| e.node_in(&module).op.mnemonic()).collect();
            assert!(ops.contains(&"einsum"), "{ops:?}");
        }
    }
}

#[test]
fn two_runs_give_the_same_bits() {
    let options = RunOptions { steps: 3, collect: true, ..RunOptions::default() };
    let outcome = || train(&plan(STRATEGIES[3]), &options, &DATA, &Stored::default()).0.trained;
    assert_eq!(outcome(), outcome());
}

/// A checkpoint belongs to the model: it continues under another plan as if nothing had happened.
#[test]
fn a_run_resumes_under_another_plan() {
    let options = |first_step, steps| RunOptions { first_step, steps, collect: true, ..RunOptions::default() };
    let (whole, _) = train(&plan(STRATEGIES[2]), &options(1, 5), &DATA, &Stored::default());
    let (half, _) = train(&plan(STRATEGIES[4]), &options(1, 2), &DATA, &Stored::default());
    let (rest, reports) =
        train(&plan(STRATEGIES[1]), &options(3, 3), &DATA, &Stored { trained: half.trained.unwrap() });
    assert_eq!(reports.keys().copied().collect::<Vec<_>>(), [3, 4, 5]);
    let (whole, rest): (Trained, Trained) = (whole.trained.unwrap(), rest.trained.unwrap());
    for (name, tensor) in whole.parameters.iter().chain(&whole.states) {
        let other = rest.parameters.get(name).or(rest.states.get(name)).unwrap();
        assert_close(&other.data, &tensor.data.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
    }
}

#[test]
fn the_observer_stops_a_run_and_sees_snapshots() {
    let options = RunOptions { steps: 9, collect: true, collect_every: 2, ..RunOptions::default() };
    let mut seen = Vec::new();
    let mut observer = |report: StepReport| {
        seen.push(report.trained);
        if report.step == 3 { Flow::Stop } else { Flow::Continue }
    };
    let module = plan(STRATEGIES[3]);
    let end = run(&module, &options, &DATA, &Stored::default(), &mut observer).unwrap();
    let to_two = RunOptions { steps: 2, collect: true, ..RunOptions::default() };
    let (two, _) = train(&module, &to_two, &DATA, &Stored::default());
    assert_eq!((end.steps, seen.len()), (3, 3));
    assert_eq!((&seen[0], &seen[1], &seen[2]), (&None, &two.trained, &None));
    assert_ne!(end.trained, two.trained);
}
