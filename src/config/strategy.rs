//! `strategy.toml`: decisions that the user pins; what is left out is searched.

mod write;

use std::ops::Range;

use galvatron_ir::diagnostic::Checked;
use serde_spanned::Spanned;

use super::set::parse_file;
use super::{Faults, Fields, Item, Wrong, count, expected, flag, integer_in, list, one_of, pair, spanned, text};

pub use write::to_toml;

/// A pinned value with its byte range in the file; two are equal if their values are.
pub type Pinned<T> = Option<Spanned<T>>;

/// How the boundary activations of a layer lie along the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceMode {
    /// Every tensor-parallel rank holds the whole sequence between the tensor-parallel regions.
    None,
    /// The sequence is sharded over the tensor-parallel axes there (Megatron sequence parallelism).
    Megatron,
}

/// What a layer keeps of its forward pass for its backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// Everything that the backward pass reads.
    None,
    /// The layer's input only.
    Full,
    /// The outputs of matmul and attention only.
    Selective,
}

/// What of a layer lies in host memory while nothing needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nothing.
    None,
    /// What is kept from forward to backward.
    Activations,
    /// Optimizer states.
    Optimizer,
    /// Both.
    All,
}

/// How the keys and values of all ranks reach the queries of each under context parallelism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextKind {
    /// Every rank gathers them all.
    Gather,
    /// They travel around a ring.
    Ring,
    /// They travel around a ring whose ranks each compute a chunk of the front and one of the back.
    Zigzag,
}

/// How tokens reach experts of other ranks, where experts lie over data ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertKind {
    /// Every rank gathers the tokens of all.
    Gather,
    /// Every token travels to the ranks of the experts that it chose, and back.
    AllToAll,
}

/// In which order the stages run their micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipelineSchedule {
    /// All forwards, then all backwards.
    Gpipe,
    /// One forward, one backward, after a warm-up.
    OneForwardOneBackward,
    /// 1F1B with several chunks on each stage.
    Interleaved,
    /// Zero bubble, with the memory of 1F1B (ZB-H1 of Qi et al., 2023).
    ZeroBubble,
    /// Zero bubble, with twice that memory (ZB-H2 of Qi et al., 2023).
    ZeroBubble2p,
}

const SEQUENCES: [(&str, Option<SequenceMode>); 2] =
    [("none", Some(SequenceMode::None)), ("megatron", Some(SequenceMode::Megatron))];

const CONTEXT_KINDS: [(&str, Option<ContextKind>); 3] =
    [("gather", Some(ContextKind::Gather)), ("ring", Some(ContextKind::Ring)), ("zigzag", Some(ContextKind::Zigzag))];

const EXPERT_KINDS: [(&str, Option<ExpertKind>); 2] =
    [("gather", Some(ExpertKind::Gather)), ("all_to_all", Some(ExpertKind::AllToAll))];

const RECOMPUTES: [(&str, Option<Recompute>); 3] =
    [("none", Some(Recompute::None)), ("full", Some(Recompute::Full)), ("selective", Some(Recompute::Selective))];

const OFFLOADS: [(&str, Option<Offload>); 4] = [
    ("none", Some(Offload::None)),
    ("activations", Some(Offload::Activations)),
    ("optimizer", Some(Offload::Optimizer)),
    ("all", Some(Offload::All)),
];

const SCHEDULES: [(&str, Option<PipelineSchedule>); 5] = [
    ("gpipe", Some(PipelineSchedule::Gpipe)),
    ("1f1b", Some(PipelineSchedule::OneForwardOneBackward)),
    ("interleaved", Some(PipelineSchedule::Interleaved)),
    ("zero-bubble", Some(PipelineSchedule::ZeroBubble)),
    ("zero-bubble-2p", Some(PipelineSchedule::ZeroBubble2p)),
];

impl SequenceMode {
    /// The word in `strategy.toml`.
    pub fn name(self) -> &'static str {
        name_of(&SEQUENCES, self)
    }
}

impl ContextKind {
    /// The word in `strategy.toml`.
    pub fn name(self) -> &'static str {
        name_of(&CONTEXT_KINDS, self)
    }
}

impl ExpertKind {
    /// The word in `strategy.toml`.
    pub fn name(self) -> &'static str {
        name_of(&EXPERT_KINDS, self)
    }
}

impl Recompute {
    /// The word in `strategy.toml`.
    pub fn name(self) -> &'static str {
        name_of(&RECOMPUTES, self)
    }
}

impl Offload {
    /// The word in `strategy.toml`.
    pub fn name(self) -> &'static str {
        name_of(&OFFLOADS, self)
    }
}

impl PipelineSchedule {
    /// The word in `strategy.toml`.
    pub fn name(self) -> &'static str {
        name_of(&SCHEDULES, self)
    }
}

/// Pins that may differ from layer to layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerPins {
    /// Data-parallel degree.
    pub dp: Pinned<u32>,
    /// Tensor-parallel degree.
    pub tp: Pinned<u32>,
    /// Context-parallel degree.
    pub cp: Pinned<u32>,
    /// How keys and values reach the queries of other ranks.
    pub cp_kind: Pinned<ContextKind>,
    /// Ulysses degree (sequence between attentions, heads inside).
    pub ulysses: Pinned<u32>,
    /// Ranks over which the experts of mixtures lie: some of the data ranks, or all tensor ranks.
    pub ep: Pinned<u32>,
    /// How tokens reach experts of other ranks.
    pub ep_kind: Pinned<ExpertKind>,
    /// ZeRO stage, 0 to 3, over the data-parallel axes.
    pub zero: Pinned<u8>,
    /// Sequence sharding between tensor-parallel regions.
    pub sequence: Pinned<SequenceMode>,
    /// Activation checkpointing.
    pub recompute: Pinned<Recompute>,
    /// What lies in host memory.
    pub offload: Pinned<Offload>,
}

impl LayerPins {
    /// These pins, and those of `base` where these say nothing.
    pub fn over(&self, base: &LayerPins) -> LayerPins {
        let (own, base) = (self.clone(), base.clone());
        LayerPins {
            dp: own.dp.or(base.dp),
            tp: own.tp.or(base.tp),
            cp: own.cp.or(base.cp),
            cp_kind: own.cp_kind.or(base.cp_kind),
            ulysses: own.ulysses.or(base.ulysses),
            ep: own.ep.or(base.ep),
            ep_kind: own.ep_kind.or(base.ep_kind),
            zero: own.zero.or(base.zero),
            sequence: own.sequence.or(base.sequence),
            recompute: own.recompute.or(base.recompute),
            offload: own.offload.or(base.offload),
        }
    }
}

/// Overrides for a range of layers (one repeated block each, in the order of the model).
#[derive(Clone, Debug, PartialEq)]
pub struct LayerRange {
    /// First layer, and one past the last; not empty.
    pub range: Spanned<Range<u32>>,
    /// The keys that are replaced.
    pub pins: LayerPins,
}

/// One op's factor put on mesh axes.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacePin {
    /// Name of the op's result.
    pub op: Spanned<String>,
    /// Label of the factor in the op's sharding rule.
    pub factor: Spanned<String>,
    /// Mesh axes, major first.
    pub axes: Spanned<Vec<String>>,
}

/// Whether a value of the forward pass is kept for the backward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct SavePin {
    /// Name of the value.
    pub value: Spanned<String>,
    /// Kept if true, recomputed if false.
    pub keep: bool,
}

/// Everything that `strategy.toml` pins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StrategyFile {
    /// Number of pipeline stages.
    pub pp: Pinned<u32>,
    /// Pins of every layer that does not say otherwise.
    pub pins: LayerPins,
    /// Extents that tensor axes cut are padded to a multiple of this; 1 pads nothing.
    pub pad: Pinned<u32>,
    /// Micro-batches in one optimizer step.
    pub micro_batches: Pinned<u64>,
    /// Pipeline schedule.
    pub schedule: Pinned<PipelineSchedule>,
    /// Chunks on each stage of an interleaved schedule.
    pub virtual_stages: Pinned<u32>,
    /// Layers of each stage (of each chunk, when interleaved), in the order of the model; excludes `stage_cuts`.
    pub stage_layers: Pinned<Vec<u32>>,
    /// Values at which the model is cut into stages, in the order of the model.
    pub stage_cuts: Pinned<Vec<String>>,
    /// Pins of what lies before the first layer.
    pub embedding: Option<LayerPins>,
    /// Pins of what lies behind the last layer, with the loss.
    pub head: Option<LayerPins>,
    /// Overrides by layer; a later entry wins.
    pub layers: Vec<LayerRange>,
    /// Placements of single ops.
    pub place: Vec<PlacePin>,
    /// Decisions to keep or recompute single values.
    pub save: Vec<SavePin>,
}

/// Reads the text of `strategy.toml`; an empty text pins nothing.
///
/// Faults, all reported with their place: syntax, unknown or reserved keys, values out of range, `stage_layers` beside
/// `stage_cuts` or of another length than `pp` asks for, `virtual_stages` without an interleaved schedule. Whether the
/// pins fit the model and the cluster is not decided here.
pub fn parse_strategy(text: &str) -> Checked<StrategyFile> {
    let table = parse_file(text)?;
    let faults = Faults::default();
    let mut root = Fields::root(&table, &faults);
    let file = read_file(&mut root);
    check_schedule(&root, &file);
    check_stages(&root, &file);
    root.finish();
    faults.check(Some(file))
}

fn read_file(root: &mut Fields<'_>) -> StrategyFile {
    let file = StrategyFile {
        pp: root.read("pp", spanned(degree)),
        pins: read_pins(root),
        pad: root.read("pad", spanned(degree)),
        micro_batches: root.read("micro_batches", spanned(count)),
        schedule: root.read("schedule", spanned(one_of(&SCHEDULES))),
        virtual_stages: root.read("virtual_stages", spanned(degree)),
        stage_layers: root.read("stage_layers", spanned(list(layer_count))),
        stage_cuts: root.read("stage_cuts", spanned(list(self::text))),
        embedding: root.section("embedding").map(read_all_pins),
        head: root.section("head").map(read_all_pins),
        layers: root.sections("layers").into_iter().filter_map(read_layers).collect(),
        place: root.sections("place").into_iter().filter_map(read_place).collect(),
        save: root.sections("save").into_iter().filter_map(read_save).collect(),
    };
    root.reserve("cut");
    file
}

fn read_pins(fields: &mut Fields<'_>) -> LayerPins {
    LayerPins {
        dp: fields.read("dp", spanned(degree)),
        tp: fields.read("tp", spanned(degree)),
        cp: fields.read("cp", spanned(degree)),
        cp_kind: fields.read("cp_kind", spanned(one_of(&CONTEXT_KINDS))),
        ulysses: fields.read("ulysses", spanned(degree)),
        ep: fields.read("ep", spanned(degree)),
        ep_kind: fields.read("ep_kind", spanned(one_of(&EXPERT_KINDS))),
        zero: fields.read("zero", spanned(|item| Ok(integer_in(0..=3)(item)? as u8))),
        sequence: fields.read("sequence", spanned(one_of(&SEQUENCES))),
        recompute: fields.read("recompute", spanned(one_of(&RECOMPUTES))),
        offload: fields.read("offload", spanned(one_of(&OFFLOADS))),
    }
}

fn read_all_pins(mut fields: Fields<'_>) -> LayerPins {
    let pins = read_pins(&mut fields);
    fields.finish();
    pins
}

fn read_layers(mut fields: Fields<'_>) -> Option<LayerRange> {
    let range = fields.require("range", spanned(layer_range));
    let pins = read_all_pins(fields);
    Some(LayerRange { range: range?, pins })
}

fn read_place(mut fields: Fields<'_>) -> Option<PlacePin> {
    let op = fields.require("op", spanned(text));
    let factor = fields.require("factor", spanned(text));
    let axes = fields.require("axes", spanned(list(text)));
    fields.finish();
    Some(PlacePin { op: op?, factor: factor?, axes: axes? })
}

fn read_save(mut fields: Fields<'_>) -> Option<SavePin> {
    let value = fields.require("value", spanned(text));
    let keep = fields.require("keep", flag);
    fields.finish();
    Some(SavePin { value: value?, keep: keep? })
}

/// A degree of parallelism, or a number of layers.
fn degree(item: &Item) -> Result<u32, Wrong> {
    Ok(integer_in(1..=65536)(item)? as u32)
}

/// A number of layers of a chunk, which may be an embedding or a head alone.
fn layer_count(item: &Item) -> Result<u32, Wrong> {
    Ok(integer_in(0..=65536)(item)? as u32)
}

fn layer_range(item: &Item) -> Result<Range<u32>, Wrong> {
    let what = "`[first, one past the last]` with first < last";
    match pair(integer_in(0..=65536))(item) {
        Ok([first, last]) if first < last => Ok(first as u32..last as u32),
        _ => Err(expected(what)),
    }
}

fn check_schedule(root: &Fields<'_>, file: &StrategyFile) {
    let (Some(schedule), Some(chunks)) = (&file.schedule, &file.virtual_stages) else {
        return;
    };
    if *chunks.get_ref() > 1 && *schedule.get_ref() != PipelineSchedule::Interleaved {
        let (chunks, name) = (chunks.get_ref(), schedule.get_ref().name());
        let message = format!("`virtual_stages = {chunks}` needs `schedule = \"interleaved\"`, found \"{name}\"");
        root.faults.push(root.fault("virtual_stages", "bad-value", message));
    }
}

/// `stage_layers` and `stage_cuts` must give as many chunks as `pp` and `virtual_stages` allow.
fn check_stages(root: &Fields<'_>, file: &StrategyFile) {
    if root.has("stage_layers") && root.has("stage_cuts") {
        let message = "`stage_layers` and `stage_cuts` say the same thing: expected one of them";
        root.faults.push(root.fault("stage_cuts", "bad-value", message));
    }
    let layers = file.stage_layers.as_ref().map(|list| ("stage_layers", list.get_ref().len(), 0));
    let cuts = file.stage_cuts.as_ref().map(|list| ("stage_cuts", list.get_ref().len(), 1));
    for (key, entries, extra) in layers.into_iter().chain(cuts) {
        if let Some(pp) = &file.pp
            && !fits_stages(*pp.get_ref() as usize, entries + extra, file)
        {
            let wanted = pp.get_ref().saturating_sub(extra as u32);
            let message = format!("`{key}`: expected {wanted} entries for `pp = {}`, found {entries}", pp.get_ref());
            root.faults.push(root.fault(key, "bad-value", message));
        }
    }
}

fn fits_stages(pp: usize, chunks: usize, file: &StrategyFile) -> bool {
    let may_interleave = file.schedule.as_ref().is_none_or(|s| *s.get_ref() == PipelineSchedule::Interleaved);
    let interleaved = match &file.virtual_stages {
        Some(each) => chunks == pp * *each.get_ref() as usize,
        None => chunks > 0 && chunks.is_multiple_of(pp),
    };
    chunks == pp || (may_interleave && interleaved)
}

fn name_of<T: PartialEq>(names: &[(&'static str, Option<T>)], value: T) -> &'static str {
    let found = names.iter().find(|(_, known)| known.as_ref() == Some(&value));
    found.expect("invariant: every kind has a name").0
}

#[cfg(test)]
mod tests;
