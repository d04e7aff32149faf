//! The strategies that Galvatron has, and pins in both directions: which strategies pins allow, and which pins a plan is.

use super::price::{Plan, Strategy, Vocabulary};
use crate::search::{LayerPins, Mode, Offload, Pins, SequenceMode};
use crate::strategy::ScheduleKind;

/// The divisors of a number, ascending.
pub fn divisors(n: u32) -> impl Iterator<Item = u32> {
    (1..=n).filter(move |d| n.is_multiple_of(*d))
}

/// Every way to run a layer on `ranks` ranks of one of `pp` stages, with at most `max_tp` ranks that share it.
pub fn strategies(pp: u32, ranks: u32, max_tp: u32) -> Vec<Strategy> {
    let mut all = Vec::new();
    for (tp, ulysses) in shares(ranks).filter(|(tp, _)| *tp <= max_tp) {
        for (zero3, recompute) in [(false, false), (false, true), (true, false), (true, true)] {
            let dp = ranks / tp;
            if dp > 1 || !zero3 {
                all.push(Strategy { pp, tp, dp, is_consecutive: true, zero3, recompute, ulysses });
            }
        }
    }
    all
}

/// Every way to run embedding and head on `ranks` ranks of a stage.
pub fn vocabularies(ranks: u32) -> impl Iterator<Item = Vocabulary> {
    shares(ranks).flat_map(|(tp, ulysses)| [false, true].map(|zero3| Vocabulary { tp, ulysses, zero3 }))
}

/// How many of some ranks may share a layer, and whether as Ulysses does.
fn shares(ranks: u32) -> impl Iterator<Item = (u32, bool)> {
    divisors(ranks).flat_map(|tp| [(tp, false), (tp, true)]).filter(|&(tp, ulysses)| tp > 1 || !ulysses)
}

/// Degrees, ZeRO and recomputation of a layer, or of embedding and head.
#[derive(Clone, Copy)]
struct Part {
    dp: u32,
    tp: u32,
    ulysses: bool,
    zero3: bool,
    mode: Mode,
}

impl Part {
    fn of_layer(s: &Strategy) -> Part {
        let mode = if s.recompute { Mode::Full } else { Mode::None };
        Part { dp: s.dp, tp: s.tp, ulysses: s.ulysses, zero3: s.zero3, mode }
    }

    fn of_vocabulary(v: &Vocabulary, ranks: u32) -> Part {
        Part { dp: ranks / v.tp, tp: v.tp, ulysses: v.ulysses, zero3: v.zero3, mode: Mode::None }
    }

    fn is_tensor(&self) -> bool {
        self.tp > 1 && !self.ulysses
    }

    /// Where several ranks have the same weights, ZeRO-2 or ZeRO-3.
    fn zero(&self) -> Option<u8> {
        let is_shared = self.dp > 1 || self.ulysses;
        is_shared.then_some(if self.zero3 { 3 } else { 2 })
    }

    /// These decisions as pins.
    fn pins(&self) -> LayerPins {
        let (tp, ulysses) = if self.ulysses { (1, self.tp) } else { (self.tp, 1) };
        LayerPins {
            dp: Some(self.dp),
            tp: Some(tp),
            ulysses: Some(ulysses),
            zero: self.zero(),
            sequence: self.is_tensor().then_some(SequenceMode::Megatron),
            recompute: Some(self.mode),
            offload: Some(Offload::default()),
            ..LayerPins::default()
        }
    }

    fn obeys(&self, pins: &LayerPins) -> bool {
        let own = self.pins();
        let agrees = |pin: Option<u32>, own: Option<u32>| pin.is_none_or(|pin| Some(pin) == own);
        let one = |pin: Option<u32>| pin.is_none_or(|pin| pin == 1);
        let degrees = agrees(pins.dp, own.dp) && agrees(pins.tp, own.tp) && agrees(pins.ulysses, own.ulysses);
        degrees
            && one(pins.cp)
            && one(pins.ep)
            && pins.zero.is_none_or(|zero| own.zero.is_none_or(|own| own == zero))
            && (pins.sequence != Some(SequenceMode::None) || !self.is_tensor())
            && pins.recompute.is_none_or(|mode| mode == self.mode)
            && pins.offload.is_none_or(|offload| !offload.is_any())
    }
}

/// Whether a layer may run like that.
pub fn allows_layer(pins: &LayerPins, strategy: &Strategy) -> bool {
    Part::of_layer(strategy).obeys(pins)
}

/// Whether embedding and head may run like that on `ranks` ranks of a stage.
pub fn allows_vocabulary(pins: &Pins, vocabulary: &Vocabulary, ranks: u32) -> bool {
    let part = Part::of_vocabulary(vocabulary, ranks);
    part.obeys(&pins.embedding) && part.obeys(&pins.head)
}

/// Whether the stages and their schedule are such that Galvatron has them.
pub fn allows_stages(pins: &Pins, pp: u32, chunks: u32) -> bool {
    let schedule = pins.schedule.is_none_or(|kind| pp == 1 || kind == ScheduleKind::OneForwardOneBackward);
    let division = pins.stage_layers.as_ref().is_none_or(|layers| pp == 1 || layers.len() == pp as usize);
    schedule
        && division
        && pins.pp.is_none_or(|pin| pin == pp)
        && pins.micro_batches.is_none_or(|pin| pin == chunks)
        && pins.virtual_stages.is_none_or(|each| each == 1)
}

/// The pins of a layer.
pub fn pins_of_layer(pins: &Pins, layer: usize) -> LayerPins {
    pins.layers.get(&(layer as u32)).map_or_else(|| pins.all.clone(), |own| own.over(&pins.all))
}

impl Plan {
    /// The pins that leave nothing of what Galvatron decides open; single ops stay as they are in `base`.
    pub fn pins(&self, base: &Pins) -> Pins {
        let pp = self.division.len() as u32;
        let ranks = self.layers.first().map_or(1, |layer| layer.dp * layer.tp);
        let outside = Part::of_vocabulary(&self.vocabulary, ranks).pins();
        let layer = |(i, strategy): (usize, &Strategy)| (i as u32, Part::of_layer(strategy).pins());
        Pins {
            pad: None,
            micro_batches: Some(self.chunks),
            pp: Some(pp),
            schedule: (pp > 1).then_some(ScheduleKind::OneForwardOneBackward),
            virtual_stages: None,
            stage_layers: (pp > 1).then(|| self.division.iter().map(|&n| n as u32).collect()),
            all: LayerPins::default(),
            embedding: LayerPins { recompute: None, ..outside.clone() },
            head: LayerPins { recompute: None, ..outside },
            layers: self.layers.iter().enumerate().map(layer).collect(),
            places: base.places.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_obeys_the_pins_that_it_is() {
        for tp in [1, 2, 4, 8] {
            for layer in strategies(1, 8, 8).into_iter().filter(|s| s.tp == tp) {
                for vocabulary in vocabularies(8) {
                    let plan = Plan { chunks: 4, division: vec![2], layers: vec![layer; 2], vocabulary };
                    let pins = plan.pins(&Pins::default());
                    assert!(allows_layer(&pins_of_layer(&pins, 1), &layer), "{layer:?}");
                    assert!(allows_vocabulary(&pins, &vocabulary, 8), "{vocabulary:?}");
                    let others = strategies(1, 8, 8).into_iter().filter(|s| allows_layer(&pins_of_layer(&pins, 1), s));
                    assert_eq!(others.collect::<Vec<_>>(), [layer]);
                }
            }
        }
        assert_eq!(strategies(1, 8, 8).len(), 4 + 2 * (4 + 4 + 2));
        assert_eq!(vocabularies(8).count(), 14);
    }

    #[test]
    fn what_galvatron_has_no_word_for_is_not_allowed() {
        let layer = strategies(1, 8, 8)[0];
        let not = |pins: LayerPins| assert!(!allows_layer(&pins, &layer), "{pins:?}");
        not(LayerPins { recompute: Some(Mode::Selective), ..LayerPins::default() });
        not(LayerPins { zero: Some(1), ..LayerPins::default() });
        not(LayerPins { cp: Some(2), ..LayerPins::default() });
        let zero_bubble = Pins { schedule: Some(ScheduleKind::ZeroBubble), ..Pins::default() };
        assert!(allows_stages(&zero_bubble, 1, 8) && !allows_stages(&zero_bubble, 2, 8));
    }
}
