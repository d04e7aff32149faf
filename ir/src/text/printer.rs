//! Printing modules; what is printed reads back as the same module.

use super::VERSION;
use super::lexer::quote;
use super::literals::{Literals, in_quotes};
use crate::cluster::{Cluster, DeviceGroup, DeviceKind, DeviceSpec, HostMemory, LinkLevel};
use crate::graph::{Graph, Node, Value};
use crate::id::{AxisId, NodeId, ValueId};
use crate::mesh::Mesh;
use crate::module::{Initializer, Level, Module, Program, TrainInfo, ViewStep, Weight};
use crate::op::{AttrValue, Attrs};
use crate::plan::{Arena, Chunk, Memory, Place, Predicted, ScheduleStep, Slots, Stage};
use crate::recipe::ScheduleKind;
use std::fmt::{self, Display, Formatter, Result, Write};

/// Names of the learning-rate schedules.
pub const SCHEDULES: [(ScheduleKind, &str); 4] = [
    (ScheduleKind::Constant, "constant"),
    (ScheduleKind::Linear, "linear"),
    (ScheduleKind::Cosine, "cosine"),
    (ScheduleKind::Wsd, "wsd"),
];

/// Words for whether labels are shifted.
pub const SHIFTS: [(Option<bool>, &str); 3] = [(None, "auto"), (Some(false), "false"), (Some(true), "true")];

/// The text of a module.
///
/// Nodes that stand in no body are left out, and with them what `grad=` and `fwd=` say of them.
pub fn print(module: &Module) -> String {
    let mut out = String::new();
    write_module(&mut out, module).expect("invariant: a string takes all text");
    out
}

fn write_module(out: &mut String, module: &Module) -> Result {
    writeln!(out, "gir {VERSION}")?;
    writeln!(out, "module @{} level={} {{", module_name(&module.name), module.level.name())?;
    if module.level >= Level::Sharded || module.mesh != Mesh::new(1, Vec::new()) {
        write_mesh(out, &module.mesh)?;
    }
    if let Some(cluster) = &module.cluster {
        write_cluster(out, cluster)?;
    }
    if let Some(train) = &module.train {
        write_train(out, train)?;
    }
    for Initializer { name, file, offset, ty, start } in &module.initializers {
        let start = start.map_or(String::new(), |s| format!(", mean={}, std={}", s.mean, s.std));
        writeln!(out, "  initializer {} = {{file={}, offset={offset}{start}}} {ty}", quote(name), quote(file))?;
    }
    let literals = Literals::of(module);
    for (index, numbers) in literals.iter().enumerate() {
        writeln!(out, "  literal {index} = {}", in_quotes(numbers))?;
    }
    write_program(out, module, &literals)?;
    if !is_whole(module) {
        for (index, stage) in module.stages.iter().enumerate() {
            writeln!(out, "  stage {index} at {} [{}]", stage.first_rank, axes(&stage.mesh))?;
        }
    }
    for (index, chunk) in module.chunks.iter().enumerate() {
        write_chunk(out, module, &literals, (index, chunk))?;
    }
    write_plan(out, module)?;
    out.write_str("}\n")
}

/// The bare name where it is one word, otherwise in quotes.
fn module_name(name: &str) -> String {
    let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if is_word { name.to_string() } else { quote(name) }
}

/// Whether the module has one stage, which is the whole mesh: then it needs no name.
fn is_whole(module: &Module) -> bool {
    module.stages.iter().all(|stage| stage.first_rank == 0 && stage.mesh == module.mesh) && module.stages.len() <= 1
}

fn axes(mesh: &Mesh) -> impl Display + '_ {
    list(mesh.axes(), |f, axis| {
        write!(f, "{}={}", axis.name, axis.size)?;
        axis.level.map_or(Ok(()), |level| write!(f, "@{level}"))
    })
}

fn write_mesh(out: &mut String, mesh: &Mesh) -> Result {
    write!(out, "  mesh [{}]", axes(mesh))?;
    if mesh.device() != DeviceKind::Cpu {
        write!(out, " of {}", mesh.device().name())?;
    }
    out.write_str("\n")
}

fn write_cluster(out: &mut String, cluster: &Cluster) -> Result {
    let DeviceSpec { kind, memory_bytes, f32_flops, bf16_flops, memory_bandwidth } = &cluster.device;
    write!(out, "  cluster {{name={}, kind=\"{}\", memory_bytes={memory_bytes}, ", quote(&cluster.name), kind.name())?;
    write!(out, "f32_flops={f32_flops:?}, bf16_flops={bf16_flops:?}, memory_bandwidth={memory_bandwidth:?}}}")?;
    for DeviceGroup { name, count, memory_bytes, speed } in &cluster.groups {
        let name = quote(name);
        write!(out, " group {{name={name}, count={count}, memory_bytes={memory_bytes}, speed={speed:?}}}")?;
    }
    if let Some(HostMemory { memory_bytes, bandwidth, latency_ns }) = &cluster.host {
        write!(out, " host {{memory_bytes={memory_bytes}, bandwidth={bandwidth:?}, latency_ns={latency_ns:?}}}")?;
    }
    for LinkLevel { name, size, bandwidth, latency_ns } in &cluster.levels {
        let name = quote(name);
        write!(out, " level {{name={name}, size={size}, bandwidth={bandwidth:?}, latency_ns={latency_ns:?}}}")?;
    }
    out.write_str("\n")
}

fn write_train(out: &mut String, train: &TrainInfo) -> Result {
    let schedule = SCHEDULES.iter().find(|s| s.0 == train.schedule.kind).map_or("?", |s| s.1);
    let shift = SHIFTS.iter().find(|s| s.0 == train.shift).map_or("?", |s| s.1);
    write!(out, "  train {{seed={}, shuffle={}, lr={:?}, ", train.seed, train.shuffle, train.lr)?;
    write!(out, "schedule=\"{schedule}\", warmup_steps={}, ", train.schedule.warmup_steps)?;
    write!(out, "total_steps={}, min_lr={:?}, ", train.schedule.total_steps, train.schedule.min_lr)?;
    write!(out, "global_batch={}, sequence={}, ", train.global_batch, train.sequence)?;
    writeln!(out, "labels={}, shift={shift}, ignore_index={}}}", quote(&train.labels), train.ignore_index)
}

fn write_plan(out: &mut String, module: &Module) -> Result {
    let is_plan = module.level == Level::Plan;
    for (index, stage) in module.stages.iter().enumerate() {
        let of = if is_whole(module) { String::new() } else { format!(" of {index}") };
        write_schedule(out, &of, stage)?;
    }
    for (index, stage) in module.stages.iter().enumerate().filter(|(_, s)| is_plan || s.arena != Arena::default()) {
        let of = if is_whole(module) { String::new() } else { format!(" of {index}") };
        let Arena { persistent, slots, transient, host, host_slots } = stage.arena;
        let some = |name: &str, bytes: u64| if bytes > 0 { format!("{name}={bytes}, ") } else { String::new() };
        let (slots, host) = (some("slots", slots), some("host", host) + &some("host_slots", host_slots));
        writeln!(out, "  arena{of} {{persistent={persistent}, {slots}{host}transient={transient}}}")?;
    }
    if is_plan || module.predicted != Predicted::default() {
        let Predicted { step_time_ns, gap_ppm } = module.predicted;
        writeln!(out, "  predicted {{step_time_ns={step_time_ns}, gap_ppm={gap_ppm}}}")?;
    }
    Ok(())
}

fn write_schedule(out: &mut String, of: &str, stage: &Stage) -> Result {
    if stage.schedule.is_empty() {
        return Ok(());
    }
    write!(out, "  schedule{of}")?;
    for ScheduleStep { phase, chunk, micro_batch } in &stage.schedule {
        write!(out, " {}{chunk}", phase.letter())?;
        if let Some(micro_batch) = micro_batch {
            write!(out, ".{micro_batch}")?;
        }
    }
    out.write_str("\n")
}

fn write_program(out: &mut String, module: &Module, literals: &Literals) -> Result {
    let program = &module.program;
    let text = GraphText::new(module, literals, &program.graph, program.body.iter().copied());
    out.write_str("  program {\n")?;
    for input in &program.inputs {
        writeln!(out, "    input %{} = {}: {}", text.name(input.value), quote(&input.name), text.tail(input.value))?;
    }
    for weight in &program.weights {
        let keyword = if weight.trainable { "weight" } else { "frozen" };
        let (name, source) = (text.name(weight.value), source(module, weight));
        writeln!(out, "    {keyword} %{name} = {source}: {}", text.tail(weight.value))?;
    }
    for state in &program.states {
        let (name, kind, weight) = (text.name(state.value), quote(&state.kind), text.name(state.weight));
        writeln!(out, "    state %{name} = {kind} of %{weight}: {}", text.tail(state.value))?;
    }
    for &node in &program.body {
        text.write_node(out, "    ", node)?;
    }
    write_results(out, program)?;
    out.write_str("  }\n")
}

fn write_results(out: &mut String, program: &Program) -> Result {
    let name = |value: ValueId| &program.graph.value(value).name;
    for &(old, new) in &program.updates {
        writeln!(out, "    update %{} = %{}", name(old), name(new))?;
    }
    for (output, value) in &program.outputs {
        writeln!(out, "    output {} %{}", quote(output), name(*value))?;
    }
    Ok(())
}

/// The initializer of a weight and the steps of its view.
fn source(module: &Module, weight: &Weight) -> String {
    let mut text = quote(&module.initializers[weight.initializer].name);
    for step in &weight.view {
        text.push_str(&match step {
            ViewStep::Reshape(shape) => format!(" | reshape{{shape=[{}]}}", list(shape, |f, d| d.fmt(f))),
            ViewStep::Transpose(perm) => format!(" | transpose{{perm=[{}]}}", list(perm, |f, d| d.fmt(f))),
            ViewStep::Slice { dim, start, len } => format!(" | slice{{dim={dim}, start={start}, len={len}}}"),
            ViewStep::Pad { dim, extent } => format!(" | pad{{dim={dim}, extent={extent}}}"),
        });
    }
    text
}

fn write_chunk(out: &mut String, module: &Module, literals: &Literals, (index, chunk): (usize, &Chunk)) -> Result {
    let mesh = module.mesh_of(chunk);
    let text = GraphText::new(module, literals, &chunk.graph, chunk.nodes().map(|(_, node)| node)).on(mesh);
    write!(out, "  chunk {index}")?;
    if !is_whole(module) {
        write!(out, " of {}", chunk.stage)?;
    }
    if chunk.slots != Slots::default() {
        let Slots { count, bytes, offset, host_bytes, host_offset } = chunk.slots;
        write!(out, " slots {{count={count}, bytes={bytes}, offset={offset}")?;
        if (host_bytes, host_offset) != (0, 0) {
            write!(out, ", host_bytes={host_bytes}, host_offset={host_offset}")?;
        }
        out.write_char('}')?;
    }
    out.write_str(" {\n")?;
    for resident in &chunk.residents {
        let (role, name) = (resident.role.name(), text.name(resident.value));
        let memory = if resident.memory == Memory::Host { "host " } else { "" };
        writeln!(out, "    resident {memory}{role} %{name}: {}", text.tail(resident.value))?;
    }
    for phase in chunk.phases.iter().filter(|p| !p.body.is_empty()) {
        writeln!(out, "    {} {{", phase.kind.name())?;
        for &node in &phase.body {
            text.write_node(out, "      ", node)?;
        }
        out.write_str("    }\n")?;
    }
    out.write_str("  }\n")
}

/// A graph with what is needed to print parts of it.
struct GraphText<'m> {
    module: &'m Module,
    mesh: &'m Mesh,
    literals: &'m Literals,
    graph: &'m Graph,
    /// For each node whether it stands in a body.
    is_printed: Vec<bool>,
}

impl<'m> GraphText<'m> {
    fn new(module: &'m Module, literals: &'m Literals, graph: &'m Graph, body: impl Iterator<Item = NodeId>) -> Self {
        let mut is_printed = vec![false; graph.n_nodes()];
        body.for_each(|node| is_printed[node.index()] = true);
        GraphText { module, mesh: &module.mesh, literals, graph, is_printed }
    }

    /// The same under the axes of another mesh.
    fn on(self, mesh: &'m Mesh) -> Self {
        GraphText { mesh, ..self }
    }

    fn name(&self, value: ValueId) -> &'m str {
        &self.graph.value(value).name
    }

    fn is_defined(&self, value: ValueId) -> bool {
        self.graph.producer(value).is_none_or(|node| self.is_printed[node.index()])
    }

    /// Type, placement and the rest of what is said behind a value.
    fn tail(&self, value: ValueId) -> impl Display {
        Shown(move |f: &mut Formatter<'_>| self.write_tail(f, self.graph.value(value)))
    }

    fn write_tail(&self, f: &mut Formatter<'_>, value: &Value) -> Result {
        write!(f, "{}", value.ty)?;
        if let Some(sharding) = &value.sharding {
            write!(f, "@{}", sharding.display(self.mesh))?;
        }
        if let Some(of) = value.of {
            write!(f, " of=%{}", self.module.program.graph.value(of).name)?;
        }
        if let Some(grad) = value.grad_of.filter(|&v| self.is_defined(v)) {
            write!(f, " grad=%{}", self.name(grad))?;
        }
        value.place.map_or(Ok(()), |place| write!(f, " at {}", place_text(place)))
    }

    fn write_node(&self, out: &mut String, indent: &str, id: NodeId) -> Result {
        let Node { op, args, results, .. } = self.graph.node(id);
        out.write_str(indent)?;
        let value = |f: &mut Formatter<'_>, v: &ValueId| write!(f, "%{}", self.name(*v));
        if !results.is_empty() {
            write!(out, "{} = ", list(results, value))?;
        }
        write!(out, "{}{}", op.mnemonic(), self.attrs(op.attrs()))?;
        if !args.is_empty() {
            write!(out, " {}", list(args, value))?;
        }
        if !results.is_empty() {
            write!(out, ": {}", list(results, |f, v| self.write_tail(f, self.graph.value(*v))))?;
        }
        self.write_node_tail(out, self.graph.node(id))
    }

    fn write_node_tail(&self, out: &mut String, node: &Node) -> Result {
        let forward = node.fwd.filter(|n| self.is_printed[n.index()]);
        if let Some(first) = forward.and_then(|n| self.graph.node(n).results.first()) {
            write!(out, " fwd=%{}", self.name(*first))?;
        }
        if let Some(layer) = node.layer {
            write!(out, " layer={layer}")?;
        }
        if let Some(place) = node.workspace {
            write!(out, " workspace={}", place_text(place))?;
        }
        out.write_str("\n")
    }

    fn attrs(&self, attrs: Attrs) -> impl Display {
        Shown(
            move |f: &mut Formatter<'_>| {
                if attrs.is_empty() { Ok(()) } else { write!(f, "{{{}}}", list(&attrs, |f, a| self.write_attr(f, a))) }
            },
        )
    }

    fn write_attr(&self, f: &mut Formatter<'_>, (key, value): &(&str, AttrValue)) -> Result {
        let axis = |f: &mut Formatter<'_>, axis: &AxisId| f.write_str(self.mesh.name(*axis));
        match value {
            AttrValue::Int(v) => write!(f, "{key}={v}"),
            AttrValue::Float(v) => write!(f, "{key}={v}"),
            AttrValue::Str(v) => write!(f, "{key}={}", quote(v)),
            AttrValue::Numbers(v) => match self.literals.index_of(v) {
                Some(index) => write!(f, "{key}=@{index}"),
                None => write!(f, "{key}={}", in_quotes(v)),
            },
            AttrValue::Ints(v) => write!(f, "{key}=[{}]", list(v, |f, d| d.fmt(f))),
            AttrValue::Axes(v) => write!(f, "{key}=[{}]", list(v, axis)),
            AttrValue::Flag => f.write_str(key),
            AttrValue::Word(v) => write!(f, "{key}={v}"),
        }
    }
}

fn place_text(place: Place) -> String {
    format!("{}+{}", place.region.name(), place.offset)
}

/// Items with commas between.
fn list<'a, T>(items: &'a [T], item: impl Fn(&mut Formatter<'_>, &T) -> Result + 'a) -> impl Display + 'a {
    Shown(move |f: &mut Formatter<'_>| {
        for (i, x) in items.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            item(f, x)?;
        }
        Ok(())
    })
}

/// What a function writes.
struct Shown<F>(F);

impl<F: Fn(&mut Formatter<'_>) -> Result> Display for Shown<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> Result {
        (self.0)(f)
    }
}
