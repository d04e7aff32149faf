//! Pins that say again what was decided.

use super::Decision;
use super::assemble::SegmentChoice;
use super::boundary::BoundaryKind;
use super::candidates::Mode;
use super::pins::{LayerPins, Pins, SequenceMode};
use crate::segment::Segment;

impl Decision {
    /// Pins of the micro-batches and of the stages, with nothing about segments.
    pub fn outer_pins(&self) -> Pins {
        let mut pins = Pins { micro_batches: Some(self.micro_batches), pp: Some(1), ..Pins::default() };
        if let Some(stages) = &self.stages {
            let each = stages.layers.len() as u32 / stages.n_stages;
            pins.pp = Some(stages.n_stages);
            pins.schedule = Some(stages.schedule);
            pins.virtual_stages = Some(each).filter(|&each| each > 1);
            pins.stage_layers = Some(stages.layers.clone());
        }
        pins
    }

    /// Pins of all that has a usual name, for the program with these segments.
    pub fn pins(&self, segments: &[Segment]) -> Pins {
        let mut pins = self.outer_pins();
        let has_layers = segments.iter().any(|s| s.is_layer);
        let mut layer = 0;
        for (segment, choice) in segments.iter().zip(&self.segments) {
            match segment.is_layer {
                true => {
                    pins.layers.insert(layer, choice.pins());
                    layer += 1;
                }
                false if !has_layers => pins.all = choice.pins(),
                false if layer == 0 => pins.embedding = choice.pins_outside(),
                false => pins.head = choice.pins_outside(),
            }
        }
        pins
    }
}

impl SegmentChoice {
    /// Degrees, ZeRO level, sequence and recomputation. Experts are pinned where they lie over several ranks.
    fn pins(&self) -> LayerPins {
        let sequence = match self.boundary {
            BoundaryKind::Sequence => SequenceMode::Megatron,
            BoundaryKind::Batch | BoundaryKind::Replicated => SequenceMode::None,
        };
        LayerPins {
            dp: None,
            tp: Some(self.tp as u32),
            ulysses: Some(self.ulysses as u32).filter(|&n| n > 1),
            cp: Some(self.cp as u32).filter(|&n| n > 1),
            cp_kind: Some(self.cp_kind).filter(|_| self.cp > 1),
            ep: Some(self.ep as u32).filter(|&n| n > 1),
            ep_kind: Some(self.ep_kind).filter(|_| self.ep > 1),
            zero: Some(self.zero),
            sequence: Some(sequence).filter(|_| self.tp > 1 || self.sequence_degree() == 1),
            recompute: Some(self.mode).filter(|&mode| mode != Mode::Offload),
            offload: Some(self.offload()),
        }
    }

    /// The same where no layer is: axes that cut nothing there are not seen, so weights are said to be cut only where they are.
    fn pins_outside(&self) -> LayerPins {
        LayerPins {
            dp: Some(self.dp as u32),
            tp: Some(self.tp as u32).filter(|&n| n > 1),
            ulysses: Some(self.ulysses as u32).filter(|&n| n > 1 && self.tp > 1),
            cp: Some(self.cp as u32).filter(|&n| n > 1 && self.tp > 1),
            zero: Some(self.zero).filter(|&level| level > 0),
            sequence: Some(SequenceMode::Megatron).filter(|_| self.boundary == BoundaryKind::Sequence),
            offload: Some(self.offload()),
            ..LayerPins::default()
        }
    }
}
