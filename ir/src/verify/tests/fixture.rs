//! A two-layer perceptron with a tied second weight, on two axes and two micro-batches: `a0` shards the batch (the second
//! weight's optimizer state too), `a1` the hidden layer.

use crate::id::{NodeId, ValueId};
use crate::mesh::{Mesh, Sharding};
use crate::module::{Initializer, Input, Level, Module, OptimizerState, Weight};
use crate::op::Op;
use crate::op::comm::{AllGather, AllReduce, ReduceScatter, Shard};
use crate::op::compute::{AddN, Binary, CountLabels, CrossEntropy, CrossEntropyGrad, Einsum, Full};
use crate::op::compute::{SumSquares, Unary, UnaryGrad, UnaryKind};
use crate::op::mem::{Accumulate, Load, RunScalar, Update};
use crate::op::opt::Sgd;
use crate::plan::lifetime::{Owner, lifetimes, reuses};
use crate::plan::{
    ALIGNMENT, Arena, Chunk, Memory, PhaseKind, Place, Region, Resident, ResidentRole, ScheduleStep, Stage,
};
use crate::types::{Scalar, TensorType};
use PhaseKind::{Backward, Forward, Prologue, Reduce, Step};

/// The good module at a level.
pub(super) fn mlp(level: Level) -> Module {
    let mut module = Module::new("mlp");
    module.level = level;
    training(&mut module);
    if level >= Level::Sharded {
        module.mesh = Mesh::from_levels(&[2, 2], 2);
        module.stages.push(Stage::new(0, module.mesh.clone()));
        module.chunks.push(Chunk::new());
        sharded(&mut module);
    }
    if level == Level::Plan {
        place(&mut module);
        module.stages[0].schedule = schedule(&[(0, Forward), (0, Backward), (1, Forward), (1, Backward)]);
    }
    module
}

/// A schedule with these micro-batches.
pub(super) fn schedule(micro_batches: &[(u32, PhaseKind)]) -> Vec<ScheduleStep> {
    let once = |phase| ScheduleStep { phase, chunk: 0, micro_batch: None };
    let each = micro_batches.iter().map(|&(m, phase)| ScheduleStep { phase, chunk: 0, micro_batch: Some(m) });
    [once(Prologue)].into_iter().chain(each).chain([once(Reduce), once(Step)]).collect()
}

/// A contraction.
pub(super) fn einsum(spec: &str) -> Op {
    Einsum::new(spec).unwrap().into()
}

/// A constant.
pub(super) fn full(shape: &[u64], value: f64) -> Op {
    Full { ty: TensorType::f32(shape), value: Scalar::new(value) }.into()
}

/// A load of an input of the program.
pub(super) fn load(m: &Module, name: &str) -> Op {
    Load { input: name.into(), ty: m.program.graph.value(program_value(m, name)).ty.clone() }.into()
}

fn training(m: &mut Module) {
    for (name, ty) in [("x", TensorType::f32([32, 4])), ("labels", TensorType::i64([32]))] {
        let value = m.program.graph.declare(name, ty);
        m.program.inputs.push(Input { name: name.into(), value });
    }
    for (name, state, shape) in [("w1", "m1", [4, 8]), ("w2", "m2", [8, 4])] {
        let ty = TensorType::f32(shape);
        let value = m.program.graph.declare(name, ty.clone());
        m.program.weights.push(Weight { value, initializer: m.initializers.len(), view: vec![], trainable: true });
        m.initializers.push(Initializer {
            name: name.into(),
            file: "w".into(),
            offset: 0,
            ty: ty.clone(),
            start: None,
        });
        let moment = m.program.graph.declare(state, ty);
        m.program.states.push(OptimizerState { value: moment, weight: value, kind: "momentum".into() });
    }
    let sgd = Sgd { momentum: Scalar::new(0.9), weight_decay: Scalar::new(0.0) };
    let nodes: [(&str, Op, &str); 25] = [
        ("h", einsum("bk,kn->bn"), "x w1"),
        ("a", Unary { kind: UnaryKind::Relu }.into(), "h"),
        ("y0", einsum("bk,kn->bn"), "a w2"),
        ("y1", einsum("bk,kn->bn"), "h w2"),
        ("y", Binary::ADD.into(), "y0 y1"),
        ("c", full(&[32, 4], 0.5), ""),
        ("z", Binary::SUB.into(), "y c"),
        ("s lse", CrossEntropy { ignore: -100 }.into(), "z labels"),
        ("n", CountLabels { ignore: -100 }.into(), "labels"),
        ("loss", Binary::DIV.into(), "s n"),
        ("one", full(&[], 1.0), ""),
        ("ds", Binary::DIV.into(), "one n"),
        ("dz", CrossEntropyGrad { ignore: -100 }.into(), "z labels lse ds"),
        ("dw2a", einsum("bk,bn->kn"), "a dz"),
        ("dw2b", einsum("bk,bn->kn"), "h dz"),
        ("dw2", AddN.into(), "dw2a dw2b"),
        ("da", einsum("bn,kn->bk"), "dz w2"),
        ("dha", UnaryGrad { kind: UnaryKind::Relu }.into(), "h da"),
        ("dh", Binary::ADD.into(), "dha da"),
        ("dw1", einsum("bk,bn->kn"), "x dh"),
        ("q1", SumSquares.into(), "dw1"),
        ("q2", SumSquares.into(), "dw2"),
        ("q", Binary::ADD.into(), "q1 q2"),
        ("norm", Unary { kind: UnaryKind::Sqrt }.into(), "q"),
        ("lr", RunScalar { name: "lr".into() }.into(), ""),
    ];
    for (names, op, args) in nodes {
        compute(m, names, op, args);
    }
    compute(m, "w1n m1n", sgd.into(), "w1 dw1 m1 lr");
    compute(m, "w2n m2n", sgd.into(), "w2 dw2 m2 lr");
    for (old, new) in [("w1", "w1n"), ("m1", "m1n"), ("w2", "w2n"), ("m2", "m2n")] {
        let update = (program_value(m, old), program_value(m, new));
        m.program.updates.push(update);
    }
    m.program.outputs = vec![("loss".into(), program_value(m, "loss")), ("grad_norm".into(), program_value(m, "norm"))];
}

/// Adds a node to the program.
fn compute(m: &mut Module, names: &str, op: Op, args: &str) {
    let args: Vec<ValueId> = args.split_whitespace().map(|a| program_value(m, a)).collect();
    let node = m.program.graph.add(op, &args).unwrap();
    m.program.body.push(node);
    let results = m.program.graph.node(node).results.clone();
    for (result, name) in results.into_iter().zip(names.split_whitespace()) {
        m.program.graph.rename(result, name);
    }
}

fn sharded(m: &mut Module) {
    use ResidentRole::{Accumulator, Parameter, State};
    for (role, name, sharding) in [
        (Parameter, "w1", "[_, a1]"),
        (Parameter, "w2", "[a1, _]"),
        (State, "m1", "[_, a1]"),
        (State, "m2", "[a1, a0]"),
        (Accumulator, "s.acc=s", "[]+a0"),
        (Accumulator, "g1=dw1", "[_, a1]+a0"),
        (Accumulator, "g2=dw2", "[a1, _]+a0"),
    ] {
        resident(m, role, name, sharding);
    }
    let (a0, a1) = (m.mesh.axis("a0").unwrap(), m.mesh.axis("a1").unwrap());
    let all_reduce = |axes: &[crate::AxisId]| -> Option<Op> { Some(AllReduce { axes: axes.to_vec() }.into()) };
    let labels = || Some(load(m, "labels"));
    let nodes: Vec<(PhaseKind, &str, Option<Op>, &str, &str)> = vec![
        (Prologue, "labels.p=labels", labels(), "", "[a0]"),
        (Prologue, "n.p=n", None, "labels.p", "[]+a0"),
        (Prologue, "n", all_reduce(&[a0]), "n.p", "[]"),
        (Forward, "x", Some(load(m, "x")), "", "[mb.a0, _]"),
        (Forward, "labels", labels(), "", "[mb.a0]"),
        (Forward, "h", None, "x w1", "[mb.a0, a1]"),
        (Forward, "a", None, "h", "[mb.a0, a1]"),
        (Forward, "y0", None, "a w2", "[mb.a0, _]+a1"),
        (Forward, "y1", None, "h w2", "[mb.a0, _]+a1"),
        (Forward, "y.p=y", None, "y0 y1", "[mb.a0, _]+a1"),
        (Forward, "y", all_reduce(&[a1]), "y.p", "[mb.a0, _]"),
        (Forward, "c", None, "", "[mb.a0, _]"),
        (Forward, "z", None, "y c", "[mb.a0, _]"),
        (Forward, "s lse", None, "z labels", "[]+mb.a0; [mb.a0]"),
        (Forward, "", Some(Accumulate.into()), "s.acc s", ""),
        (Backward, "one", None, "", "[]"),
        (Backward, "ds", None, "one n", "[]"),
        (Backward, "dz", None, "z labels lse ds", "[mb.a0, _]"),
        (Backward, "a.r=a", None, "h", "[mb.a0, a1]"),
        (Backward, "dw2a", None, "a.r dz", "[a1, _]+mb.a0"),
        (Backward, "dw2b", None, "h dz", "[a1, _]+mb.a0"),
        (Backward, "dw2", None, "dw2a dw2b", "[a1, _]+mb.a0"),
        (Backward, "", Some(Accumulate.into()), "g2 dw2", ""),
        (Backward, "da", None, "dz w2", "[mb.a0, a1]"),
        (Backward, "dha", None, "h da", "[mb.a0, a1]"),
        (Backward, "dh", None, "dha da", "[mb.a0, a1]"),
        (Backward, "dw1", None, "x dh", "[_, a1]+mb.a0"),
        (Backward, "", Some(Accumulate.into()), "g1 dw1", ""),
        (Reduce, "g1.r=dw1", all_reduce(&[a0]), "g1", "[_, a1]"),
        (Reduce, "g2.r=dw2", Some(ReduceScatter { axes: vec![a0], dim: 1 }.into()), "g2", "[a1, a0]"),
        (Reduce, "s.r=s", all_reduce(&[a0]), "s.acc", "[]"),
        (Reduce, "loss", None, "s.r n", "[]"),
        (Reduce, "q1.p=q1", None, "g1.r", "[]+a1"),
        (Reduce, "q1", all_reduce(&[a1]), "q1.p", "[]"),
        (Reduce, "q2.p=q2", None, "g2.r", "[]+a0.a1"),
        (Reduce, "q2", all_reduce(&[a0, a1]), "q2.p", "[]"),
        (Reduce, "q", None, "q1 q2", "[]"),
        (Reduce, "norm", None, "q", "[]"),
        (Step, "lr", None, "", "[]"),
        (Step, "w1n m1n", None, "w1 g1.r m1 lr", "[_, a1]; [_, a1]"),
        (Step, "", Some(Update.into()), "w1 w1n", ""),
        (Step, "", Some(Update.into()), "m1 m1n", ""),
        (Step, "w2.s=w2", Some(Shard { axes: vec![a0], dim: 1 }.into()), "w2", "[a1, a0]"),
        (Step, "w2n.s=w2n m2n", None, "w2.s g2.r m2 lr", "[a1, a0]; [a1, a0]"),
        (Step, "w2n", Some(AllGather { axes: vec![a0], dim: 1 }.into()), "w2n.s", "[a1, _]"),
        (Step, "", Some(Update.into()), "w2 w2n", ""),
        (Step, "", Some(Update.into()), "m2 m2n", ""),
    ];
    for (phase, names, op, args, shardings) in nodes {
        push(m, phase, names, op, args, shardings);
    }
}

/// Declares a resident `name` or `name=of`.
pub(super) fn resident(m: &mut Module, role: ResidentRole, name: &str, sharding: &str) {
    let (name, of) = name.split_once('=').unwrap_or((name, name));
    let of = program_value(m, of);
    let ty = m.program.graph.value(of).ty.clone();
    let value = m.chunks[0].graph.declare(name, ty);
    m.chunks[0].graph.value_mut(value).of = Some(of);
    m.chunks[0].graph.value_mut(value).sharding = Some(parse(&m.mesh, sharding));
    m.chunks[0].residents.push(Resident { value, role, memory: Memory::Device });
}

/// Adds a node to the end of a phase. Results are `name` or `name=of`; without an op it copies the program's.
pub(super) fn push(m: &mut Module, phase: PhaseKind, names: &str, op: Option<Op>, args: &str, shardings: &str) {
    let of: Vec<(&str, ValueId)> = names
        .split_whitespace()
        .map(|n| n.split_once('=').unwrap_or((n, n)))
        .map(|(n, of)| (n, program_value(m, of)))
        .collect();
    let graph = &m.program.graph;
    let op = op.unwrap_or_else(|| graph.node(graph.producer(of[0].1).unwrap()).op.clone());
    let args: Vec<ValueId> = args.split_whitespace().map(|a| value(m, a)).collect();
    let node = m.chunks[0].graph.add(op, &args).unwrap();
    m.chunks[0].phase_mut(phase).push(node);
    let results = m.chunks[0].graph.node(node).results.clone();
    for ((result, (name, of)), sharding) in results.into_iter().zip(of).zip(shardings.split("; ")) {
        m.chunks[0].graph.rename(result, name);
        m.chunks[0].graph.value_mut(result).of = Some(of);
        m.chunks[0].graph.value_mut(result).sharding = Some(parse(&m.mesh, sharding));
    }
}

/// The value of that name in the program.
pub(super) fn program_value(m: &Module, name: &str) -> ValueId {
    let graph = &m.program.graph;
    graph.value_ids().find(|&v| graph.value(v).name == name).expect(name)
}

/// The value of that name in the chunk.
pub(super) fn value(m: &Module, name: &str) -> ValueId {
    let graph = &m.chunks[0].graph;
    graph.value_ids().find(|&v| graph.value(v).name == name).expect(name)
}

/// The node of the chunk that computes the value of that name.
pub(super) fn node(m: &Module, name: &str) -> NodeId {
    m.chunks[0].graph.producer(value(m, name)).unwrap()
}

/// The node of the chunk that writes the resident of that name.
pub(super) fn writer(m: &Module, name: &str) -> NodeId {
    let resident = value(m, name);
    let writes = |n: &NodeId| {
        let node = m.chunks[0].graph.node(*n);
        matches!(node.op, Op::Accumulate(_) | Op::Update(_)) && node.args[0] == resident
    };
    m.chunks[0].nodes().map(|(_, n)| n).find(writes).unwrap()
}

/// Makes operand `i` of a node another value.
pub(super) fn read(m: &mut Module, node: NodeId, i: usize, name: &str) {
    let value = value(m, name);
    m.chunks[0].graph.node_mut(node).args[i] = value;
}

/// Removes a node from its phase.
pub(super) fn remove(m: &mut Module, node: NodeId) {
    for phase in &mut m.chunks[0].phases {
        phase.body.retain(|n| *n != node);
    }
}

/// Moves the last node of a phase before another one.
pub(super) fn move_last_before(m: &mut Module, phase: PhaseKind, before: NodeId) {
    let body = m.chunks[0].phase_mut(phase);
    let last = body.pop().unwrap();
    let at = body.iter().position(|n| *n == before).unwrap();
    body.insert(at, last);
}

/// Places the value of that name otherwise.
pub(super) fn replace(m: &mut Module, name: &str, sharding: &str) {
    let (value, sharding) = (value(m, name), parse(&m.mesh, sharding));
    m.chunks[0].graph.value_mut(value).sharding = Some(sharding);
}

/// Reads `[mb.a0, _]+a1`.
pub(super) fn parse(mesh: &Mesh, text: &str) -> Sharding {
    let axes = |text: &str| text.split('.').map(|n| mesh.axis(n).expect(n)).collect::<Vec<_>>();
    let (dims, partial) = text.strip_prefix('[').unwrap().split_once(']').unwrap();
    let dims = dims.split(", ").filter(|d| !d.is_empty()).map(|d| if d == "_" { vec![] } else { axes(d) }).collect();
    Sharding { dims, partial: partial.strip_prefix('+').map(axes).unwrap_or_default() }
}

/// Gives every buffer a place of its own, except those that may be written over another.
pub(super) fn place(m: &mut Module) {
    let chunk = &mut m.chunks[0];
    let buffers = lifetimes(chunk, &m.mesh);
    let reuses = reuses(chunk, &buffers);
    let mut places: Vec<Place> = Vec::new();
    let mut arena = Arena::default();
    for (i, buffer) in buffers.iter().enumerate() {
        let (region, end) = match buffer.owner {
            _ if buffer.region == Region::Host => (Region::Host, &mut arena.host),
            Owner::Resident(..) => (Region::Persistent, &mut arena.persistent),
            _ => (Region::Transient, &mut arena.transient),
        };
        let fresh = Place { region, offset: *end };
        let place = reuses.iter().find(|r| r.writer == i).map_or(fresh, |r| places[r.over]);
        if place == fresh {
            *end += buffer.bytes.next_multiple_of(ALIGNMENT);
        }
        places.push(place);
        for &value in &buffer.values {
            chunk.graph.value_mut(value).place = Some(place);
        }
        if let Owner::Workspace(node) = buffer.owner {
            chunk.graph.node_mut(node).workspace = Some(place);
        }
    }
    m.stages[0].arena = arena;
}
