//! Writes what a search decided as a `galvatron_config_*.json` of Hetu-Galvatron (PKU-DAIR), which its runtime trains.
//!
//! That format has one degree of tensor parallelism or Ulysses a layer, one kind of data parallelism besides ZeRO-3, and a flag for full
//! recomputation. Megatron's sequence parallelism is a flag of its command line.

use galvatron_ir::mesh::Mesh;
use galvatron_ir::module::Weight;
use galvatron_ir::op::Op;
use galvatron_ir::{AxisId, Checked, Diagnostic, Module, NodeId};
use galvatron_passes::batch::BatchFactors;
use galvatron_passes::rules::rule_of;
use galvatron_passes::search::{BoundaryKind, Found, Mode, SegmentChoice};
use galvatron_passes::segment::Segment;
use galvatron_passes::strategy::ScheduleKind;
use std::path::Path;

/// Whether a file is to have Galvatron's format: its name is one that Galvatron gives.
pub fn is_galvatron_config(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.starts_with("galvatron_config") && name.ends_with(".json")
}

/// The text of the configuration of a search on a module at level `training` or higher.
///
/// # Errors
/// Everything in the plan that the format cannot say.
pub fn galvatron_config(module: &Module, found: &Found, segments: &[Segment]) -> Checked<String> {
    let forward: Vec<NodeId> = segments.iter().flat_map(|s| s.nodes.iter().copied()).collect();
    let batch = BatchFactors::of(&module.program, &forward);
    let mut writer = Writer { module, found, batch, faults: Vec::new() };
    let (mut layers, mut outside) = (Vec::new(), Vec::new());
    for (segment, choice) in segments.iter().zip(&found.decision.segments) {
        match segment.is_layer {
            true => layers.push(writer.part(&format!("layer {}", layers.len()), choice)),
            false => outside.push(writer.part(if outside.is_empty() { "the embedding" } else { "the head" }, choice)),
        }
    }
    writer.check_common(&layers, &outside);
    let Writer { faults, .. } = writer;
    if !faults.is_empty() {
        let help = "pin what it can say with `--strategy`, or write a `.toml`";
        return Err(faults.iter().map(|f| Diagnostic::new("galvatron-config", f.message()).help(help)).collect());
    }
    Ok(text(module, found, &layers, &outside))
}

/// One layer, or what is outside of layers, in the words of the format.
struct Part {
    name: String,
    /// Ranks that share the batch.
    dp: u64,
    /// Ranks that share a layer.
    tp: u64,
    /// Whether they share it as Ulysses does; `None` where no product with a weight tells.
    ulysses: Option<bool>,
    /// Whether the sequence lies over them between layers.
    is_sequence: bool,
    /// ZeRO level; of no meaning where no ranks have the same weights.
    zero: u8,
    recompute: bool,
}

impl Part {
    /// Ranks that have the same weights, over which ZeRO shards.
    fn n_sharers(&self) -> u64 {
        if self.ulysses == Some(true) { self.dp * self.tp } else { self.dp }
    }
}

/// Something that the format cannot say.
struct Fault {
    what: String,
    /// Where it first is, and in how many parts.
    first: String,
    count: usize,
}

impl Fault {
    fn message(&self) -> String {
        match self.count {
            1 => format!("{}: {}", self.first, self.what),
            n => format!("{} and {} more: {}", self.first, n - 1, self.what),
        }
    }
}

struct Writer<'a> {
    module: &'a Module,
    found: &'a Found,
    batch: BatchFactors,
    /// What cannot be said, each once.
    faults: Vec<Fault>,
}

impl Writer<'_> {
    fn fault(&mut self, first: &str, what: String) {
        match self.faults.iter_mut().find(|f| f.what == what) {
            Some(known) => known.count += 1,
            None => self.faults.push(Fault { what, first: first.into(), count: 1 }),
        }
    }

    fn part(&mut self, name: &str, choice: &SegmentChoice) -> Part {
        let (mut dp, mut tp) = (choice.dp, choice.tp * choice.ulysses);
        let mut ulysses = None;
        if tp > 1 && choice.boundary == BoundaryKind::Batch {
            self.check_ops(name, choice, "the batch", |writer, node, map| writer.cuts_batch(node, map));
            (dp, tp) = (dp * tp, 1);
        } else if tp > 1 {
            let cut: Vec<bool> = choice.nodes.iter().filter_map(|&n| self.cuts_weight(n, self.axes(n))).collect();
            let is_ulysses = choice.boundary == BoundaryKind::Sequence && !cut.contains(&true);
            ulysses = (!cut.is_empty()).then_some(is_ulysses);
            if !is_ulysses {
                let cuts = |writer: &Self, node, map: &_| writer.cuts_weight(node, map) != Some(false);
                self.check_ops(name, choice, "its weights", cuts);
            }
        }
        if choice.cp > 1 || (choice.tp > 1 && choice.ulysses > 1) {
            self.fault(name, "a sequence cut over other ranks than weights, for which the format has no key".into());
        }
        if choice.ep > 1 {
            self.fault(name, format!("experts over {} ranks, for which the format has no key", choice.ep));
        }
        if choice.mode == Mode::Selective {
            self.fault(name, "selective recomputation; the format has full recomputation or none".into());
        }
        let part = Part {
            name: name.into(),
            dp,
            tp,
            ulysses,
            is_sequence: tp > 1 && choice.boundary == BoundaryKind::Sequence,
            zero: choice.zero,
            recompute: choice.mode == Mode::Full,
        };
        if part.n_sharers() > 1 && choice.zero == 1 {
            self.fault(name, "ZeRO-1; the format has ddp, ZeRO-2 and ZeRO-3".into());
        }
        part
    }

    /// Every op of a segment cuts what it should over the tensor axes; names the first that does not.
    fn check_ops(
        &mut self,
        name: &str,
        choice: &SegmentChoice,
        what: &str,
        cuts: impl Fn(&Self, NodeId, &[Vec<AxisId>]) -> bool,
    ) {
        let other = choice.nodes.iter().find(|&&node| !cuts(self, node, self.axes(node)));
        if let Some(&node) = other {
            let graph = &self.module.program.graph;
            let op = graph.node(node).results.first().map_or("", |&r| graph.value(r).name.as_str()).to_string();
            self.fault(name, format!("`{op}` does not cut {what} over the tensor ranks"));
        }
    }

    /// Whether the axes of an op are those of its batch, if it has one.
    fn cuts_batch(&self, node: NodeId, axes: &[Vec<AxisId>]) -> bool {
        let Some(&batch) = self.batch.factors.get(&node) else { return true };
        axes.iter().enumerate().all(|(factor, axes)| axes.is_empty() || factor == batch)
    }

    /// The axes of each factor of a forward node.
    fn axes(&self, node: NodeId) -> &[Vec<AxisId>] {
        &self.found.strategy.maps[&node].axes
    }

    /// Whether a product with a weight is cut in the weight; `None` for any other op.
    fn cuts_weight(&self, node: NodeId, axes: &[Vec<AxisId>]) -> Option<bool> {
        let program = &self.module.program;
        let n = program.graph.node(node);
        let is_weight = |v: &galvatron_ir::ValueId| program.weights.iter().any(|w| w.value == *v);
        let weight = n.args.iter().position(is_weight).filter(|_| matches!(n.op, Op::Einsum(_)))?;
        let rule = rule_of(program, node);
        let is_spatial = |axis: &AxisId| *axis != Mesh::MB;
        Some(rule.operands[weight].iter().flatten().any(|&f| axes[f].iter().any(is_spatial)))
    }

    /// What all layers, or embedding and head, must have in common.
    fn check_common(&mut self, layers: &[Part], outside: &[Part]) {
        let stages = self.found.decision.stages.as_ref();
        let unknown = stages
            .map(|s| s.schedule)
            .filter(|schedule| !matches!(schedule, ScheduleKind::Gpipe | ScheduleKind::OneForwardOneBackward));
        if let Some(schedule) = unknown {
            self.fault("the pipeline", format!("the schedule {}; the format has gpipe and 1f1b", schedule.name()));
        }
        if self.found.decision.segments.iter().any(|choice| choice.offload().is_any()) {
            self.fault("the plan", "host memory; the format has none".into());
        }
        if self.module.program.weights.iter().any(Weight::is_padded) {
            self.fault("the model", "padding; the format has none".into());
        }
        let all = || layers.iter().chain(outside).filter(|p| p.n_sharers() > 1 && p.zero != 3);
        if let Some(first) = all().next()
            && let Some(other) = all().find(|p| p.zero != first.zero)
        {
            let (name, a, b) = (&first.name, first.zero, other.zero);
            self.fault(&other.name, format!("ZeRO-{b}, and {name} ZeRO-{a}; the format has one kind besides ZeRO-3"));
        }
        let mut cut = layers.iter().chain(outside).filter(|p| p.tp > 1 && p.ulysses == Some(false));
        if let Some(first) = cut.next()
            && let Some(other) = cut.find(|p| p.is_sequence != first.is_sequence)
        {
            let what =
                format!("sequence parallelism that differs from {}; the format leaves it to one flag", first.name);
            self.fault(&other.name, what);
        }
        if let Some(first) = outside.first()
            && let Some(other) = outside.iter().find(|p| differs(first, p))
        {
            let what = format!("a strategy that differs from {}; the format has one for both", first.name);
            self.fault(&other.name, what);
        }
    }
}

/// Whether two parts need different keys.
fn differs(a: &Part, b: &Part) -> bool {
    let in_kind = a.ulysses.zip(b.ulysses).is_some_and(|(a, b)| a != b);
    in_kind || (a.tp, a.zero == 3) != (b.tp, b.zero == 3)
}

fn text(module: &Module, found: &Found, layers: &[Part], outside: &[Part]) -> String {
    let list = |of: &dyn Fn(&Part) -> u64| layers.iter().map(|p| of(p).to_string()).collect::<Vec<_>>().join(",");
    let plain = layers.iter().chain(outside).find(|p| p.n_sharers() > 1 && p.zero != 3);
    let default_dp_type = if plain.is_some_and(|p| p.zero == 0) { "ddp" } else { "zero2" };
    let stages = found.decision.stages.as_ref();
    let division = stages.map_or(vec![layers.len() as u32], |s| s.layers.clone());
    let is_gpipe = stages.is_some_and(|s| s.schedule == ScheduleKind::Gpipe);
    // Its search writes `embed_sdp`; the runtime of its main branch reads `vocab_sdp`.
    let shards_outside = u64::from(outside.first().is_some_and(|p| p.zero == 3));
    let config = serde_json::json!({
        "pp_deg": stages.map_or(1, |s| s.n_stages),
        "tp_sizes_enc": list(&|p| p.tp),
        "tp_consecutive_flags": list(&|_| 1),
        "dp_types_enc": list(&|p| u64::from(p.zero == 3)),
        "use_sp": list(&|p| u64::from(p.ulysses == Some(true))),
        "checkpoint": list(&|p| u64::from(p.recompute)),
        "world_size": module.mesh.world(),
        "global_bsz": module.train.as_ref().map_or(0, |t| t.global_batch),
        "chunks": found.decision.micro_batches,
        "pp_division": division.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
        "pipeline_type": if is_gpipe { "gpipe" } else { "pipedream_flush" },
        "default_dp_type": default_dp_type,
        "vtp": outside.first().map_or(1, |p| p.tp),
        "vsp": u64::from(outside.iter().any(|p| p.ulysses == Some(true))),
        "embed_sdp": shards_outside,
        "vocab_sdp": shards_outside,
    });
    format!("{config:#}\n")
}
