//! Writes what a search decided as `strategy.toml`: the usual names, and `[[place]]` for what they do not determine.

use super::Compiled;
use crate::config::strategy::{self as file, Pinned, StrategyFile};
use galvatron_ir::mesh::Mesh;
use galvatron_ir::op::Op;
use galvatron_ir::{Module, NodeId};
use galvatron_passes::joint::JointKind;
use galvatron_passes::rules::rule_of;
use galvatron_passes::search::{
    BoundaryKind, ContextKind, ExpertKind, Found, Mode, Offload, RING, SegmentChoice, WHOLE, ZIGZAG,
};
use galvatron_passes::strategy::ScheduleKind;
use serde_spanned::Spanned;

/// The strategy file of what a search found in a compilation.
pub fn strategy_file(compiled: &Compiled, found: &Found) -> StrategyFile {
    let Compiled { module, segments, pad, .. } = compiled;
    let micro_batches = pin(u64::from(found.decision.micro_batches));
    let is_cut = found.decision.segments.iter().any(|choice| choice.tensor_degree() > 1);
    let pad = pad.and_then(pin).filter(|_| is_cut);
    let mut out = StrategyFile { micro_batches, pad, ..StrategyFile::default() };
    if let Some(stages) = &found.decision.stages {
        out.pp = pin(stages.n_stages);
        out.schedule = pin(schedule(stages.schedule));
        out.stage_layers = pin(stages.layers.clone());
        let each = stages.layers.len() as u32 / stages.n_stages;
        out.virtual_stages = pin(each).filter(|_| each > 1);
    }
    let has_layers = segments.iter().any(|s| s.is_layer);
    let mut layer = 0;
    for (segment, choice) in segments.iter().zip(&found.decision.segments) {
        let pins = pins_of_choice(module, choice);
        match (segment.is_layer, has_layers) {
            (true, _) => add_layer(&mut out.layers, layer, pins),
            (false, false) => out.pins = pins,
            (false, true) if layer == 0 => out.embedding = Some(pins),
            (false, true) => out.head = Some(pins),
        }
        layer += u32::from(segment.is_layer);
        if choice.tensor_degree() > 1 {
            out.place.extend(choice.nodes.iter().map(|&node| place(module, found, node, choice)));
        }
    }
    out
}

fn schedule(kind: ScheduleKind) -> file::PipelineSchedule {
    match kind {
        ScheduleKind::Gpipe => file::PipelineSchedule::Gpipe,
        ScheduleKind::OneForwardOneBackward => file::PipelineSchedule::OneForwardOneBackward,
        ScheduleKind::Interleaved => file::PipelineSchedule::Interleaved,
        ScheduleKind::ZeroBubble => file::PipelineSchedule::ZeroBubble,
        ScheduleKind::ZeroBubble2p => file::PipelineSchedule::ZeroBubble2p,
    }
}

fn pin<T>(value: T) -> Pinned<T> {
    Some(Spanned::new(0..0, value))
}

fn pins_of_choice(module: &Module, choice: &SegmentChoice) -> file::LayerPins {
    let sequence = match choice.boundary {
        BoundaryKind::Sequence => file::SequenceMode::Megatron,
        BoundaryKind::Batch | BoundaryKind::Replicated => file::SequenceMode::None,
    };
    let recompute = match choice.mode {
        Mode::None | Mode::Offload => file::Recompute::None,
        Mode::Selective => file::Recompute::Selective,
        Mode::Full => file::Recompute::Full,
    };
    let offload = match choice.offload() {
        Offload { activations: false, states: false } => file::Offload::None,
        Offload { activations: true, states: false } => file::Offload::Activations,
        Offload { activations: false, states: true } => file::Offload::Optimizer,
        Offload { activations: true, states: true } => file::Offload::All,
    };
    let has_host = module.cluster.as_ref().is_some_and(|cluster| cluster.host.is_some());
    let is_moe = |&n: &NodeId| matches!(module.program.graph.node(n).op, Op::Moe(_));
    file::LayerPins {
        dp: pin(choice.dp as u32),
        tp: pin(choice.tp as u32),
        ulysses: pin(choice.ulysses as u32).filter(|_| choice.ulysses > 1),
        cp: pin(choice.cp as u32).filter(|_| choice.cp > 1),
        cp_kind: pin(match choice.cp_kind {
            ContextKind::Gather => file::ContextKind::Gather,
            ContextKind::Ring => file::ContextKind::Ring,
            ContextKind::Zigzag => file::ContextKind::Zigzag,
        })
        .filter(|_| choice.cp > 1),
        ep: if choice.nodes.iter().any(is_moe) { pin(choice.ep as u32) } else { None },
        ep_kind: pin(match choice.ep_kind {
            ExpertKind::Gather => file::ExpertKind::Gather,
            ExpertKind::AllToAll => file::ExpertKind::AllToAll,
        })
        .filter(|_| choice.ep > 1),
        zero: pin(choice.zero),
        sequence: pin(sequence),
        recompute: pin(recompute),
        offload: pin(offload).filter(|_| has_host),
    }
}

/// Extends the last range if that has the same pins.
fn add_layer(layers: &mut Vec<file::LayerRange>, layer: u32, pins: file::LayerPins) {
    match layers.last_mut().filter(|l| l.pins == pins && l.range.get_ref().end == layer) {
        Some(last) => last.range = Spanned::new(0..0, last.range.get_ref().start..layer + 1),
        None => layers.push(file::LayerRange { range: Spanned::new(0..0, layer..layer + 1), pins }),
    }
}

/// What the tensor axes of one op shard.
fn place(module: &Module, found: &Found, node: NodeId, choice: &SegmentChoice) -> file::PlacePin {
    let mesh = &found.plan.stages[0].mesh;
    let tensor = tensor_axes(mesh, choice.tensor_degree());
    let rule = rule_of(&module.program, node);
    let map = &found.strategy.maps[&node];
    let factor = map.axes.iter().position(|axes| tensor.iter().all(|a| axes.contains(a)));
    let label = match factor {
        // A ring over context axes is said by the layer's own keys.
        Some(factor) => match found.strategy.joint.get(&node).filter(|_| choice.tp == 1) {
            Some(JointKind::Ring) => RING.to_string(),
            Some(JointKind::Zigzag) => ZIGZAG.to_string(),
            Some(JointKind::Routed) | None => rule.factors[factor].label.clone(),
        },
        None => WHOLE.to_string(),
    };
    let name = module.program.graph.node(node).results.first();
    let name = name.map_or(String::new(), |&r| module.program.graph.value(r).name.clone());
    let axes = tensor.iter().map(|&a| mesh.name(a).to_string()).collect();
    let spanned = |s: String| Spanned::new(0..0, s);
    file::PlacePin { op: spanned(name), factor: spanned(label), axes: Spanned::new(0..0, axes) }
}

/// The fastest axes whose sizes multiply to the degree.
fn tensor_axes(mesh: &Mesh, degree: u64) -> Vec<galvatron_ir::AxisId> {
    let mut axes: Vec<galvatron_ir::AxisId> = Vec::new();
    for axis in mesh.spatial().rev() {
        if mesh.product(&axes) >= degree {
            break;
        }
        axes.insert(0, axis);
    }
    axes
}
