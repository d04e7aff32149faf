//! From `strategy.toml` to the pins of the search.

use crate::config::strategy as file;
use galvatron_ir::{Checked, Diagnostic};
use galvatron_passes::search::{ContextKind, ExpertKind, LayerPins, Mode, Offload, Pins, Place, SequenceMode, WHOLE};
use galvatron_passes::strategy::ScheduleKind;

/// The pins of a strategy file.
///
/// # Errors
/// Keys whose dimension is not built: each with its place.
pub fn pins_of(strategy: &file::StrategyFile) -> Checked<Pins> {
    let mut faults = Vec::new();
    if let Some(cuts) = &strategy.stage_cuts {
        faults.push(unsupported("stage_cuts").at(cuts.span()));
    }
    if !strategy.save.is_empty() {
        faults.push(unsupported("[[save]]"));
    }
    let mut pins = Pins {
        micro_batches: strategy.micro_batches.as_ref().map(|m| *m.get_ref() as u32),
        pp: value(&strategy.pp),
        pad: value(&strategy.pad),
        schedule: strategy.schedule.as_ref().map(|pin| schedule(*pin.get_ref())),
        virtual_stages: value(&strategy.virtual_stages),
        stage_layers: strategy.stage_layers.as_ref().map(|layers| layers.get_ref().clone()),
        all: layer_pins(&strategy.pins, &mut faults),
        embedding: strategy.embedding.as_ref().map_or_else(LayerPins::default, |p| layer_pins(p, &mut faults)),
        head: strategy.head.as_ref().map_or_else(LayerPins::default, |p| layer_pins(p, &mut faults)),
        ..Pins::default()
    };
    for pin in &strategy.place {
        let place = match pin.factor.get_ref().as_str() {
            WHOLE => Place::Whole,
            label => Place::Factor(label.to_string()),
        };
        pins.places.insert(pin.op.get_ref().clone(), place);
    }
    for range in &strategy.layers {
        let layer = layer_pins(&range.pins, &mut faults);
        for i in range.range.get_ref().clone() {
            let base = pins.layers.remove(&i).unwrap_or_default();
            pins.layers.insert(i, layer.over(&base));
        }
    }
    if faults.is_empty() { Ok(pins) } else { Err(faults) }
}

fn unsupported(key: &str) -> Diagnostic {
    Diagnostic::new("unsupported", format!("`{key}` is not supported yet")).help("leave the key out")
}

fn value(pin: &file::Pinned<u32>) -> Option<u32> {
    pin.as_ref().map(|pin| *pin.get_ref())
}

fn schedule(schedule: file::PipelineSchedule) -> ScheduleKind {
    match schedule {
        file::PipelineSchedule::Gpipe => ScheduleKind::Gpipe,
        file::PipelineSchedule::OneForwardOneBackward => ScheduleKind::OneForwardOneBackward,
        file::PipelineSchedule::Interleaved => ScheduleKind::Interleaved,
        file::PipelineSchedule::ZeroBubble => ScheduleKind::ZeroBubble,
        file::PipelineSchedule::ZeroBubble2p => ScheduleKind::ZeroBubble2p,
    }
}

fn layer_pins(pins: &file::LayerPins, faults: &mut Vec<Diagnostic>) -> LayerPins {
    let above_one = |pin: &file::Pinned<u32>| pin.as_ref().is_some_and(|p| *p.get_ref() > 1);
    if let Some(pin) = pins.cp.as_ref().filter(|_| above_one(&pins.ulysses) && above_one(&pins.cp)) {
        let message = "`ulysses` and `cp` above 1 in one layer are not supported yet";
        faults.push(Diagnostic::new("unsupported", message).help("choose one of them").at(pin.span()));
    }
    LayerPins {
        dp: value(&pins.dp),
        tp: value(&pins.tp),
        ulysses: value(&pins.ulysses),
        cp: value(&pins.cp),
        cp_kind: pins.cp_kind.as_ref().map(|kind| match kind.get_ref() {
            file::ContextKind::Gather => ContextKind::Gather,
            file::ContextKind::Ring => ContextKind::Ring,
            file::ContextKind::Zigzag => ContextKind::Zigzag,
        }),
        ep: value(&pins.ep),
        ep_kind: pins.ep_kind.as_ref().map(|kind| match kind.get_ref() {
            file::ExpertKind::Gather => ExpertKind::Gather,
            file::ExpertKind::AllToAll => ExpertKind::AllToAll,
        }),
        zero: pins.zero.as_ref().map(|z| *z.get_ref()),
        sequence: pins.sequence.as_ref().map(|s| match s.get_ref() {
            file::SequenceMode::None => SequenceMode::None,
            file::SequenceMode::Megatron => SequenceMode::Megatron,
        }),
        recompute: pins.recompute.as_ref().map(|r| match r.get_ref() {
            file::Recompute::None => Mode::None,
            file::Recompute::Selective => Mode::Selective,
            file::Recompute::Full => Mode::Full,
        }),
        offload: pins.offload.as_ref().map(|offload| match offload.get_ref() {
            file::Offload::None => Offload::default(),
            file::Offload::Activations => Offload { activations: true, states: false },
            file::Offload::Optimizer => Offload { activations: false, states: true },
            file::Offload::All => Offload { activations: true, states: true },
        }),
    }
}
