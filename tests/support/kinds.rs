//! What holds for every kind in which ranks compute an op together: it is written down, and rounds like one rank.

use crate::cells::train;
use crate::fixture::Fixture;
use crate::plan::Order;
use galvatron::config::strategy::to_toml;
use galvatron::driver::{Compiled, strategy_file};
use galvatron_ir::text::print;
use galvatron_ir::types::DType;

/// An order under the export and the optimizer that these checks have in common.
pub fn order<'a>(fixture: &'a Fixture, strategy: &'a str, ranks: u32, compute: DType) -> Order<'a> {
    Order { fixture, dialect: "keep20", optimizer: "adamw", ranks, strategy, compute }
}

/// What a search decided has this pin; read back as pins it is the same plan, but for the gap, which tells of what else was searched.
pub fn check_written_down(fixture: &Fixture, strategy: &str, ranks: u32, pin: &str) -> Compiled {
    let compiled = order(fixture, strategy, ranks, DType::F32).compile().expect("the pins fit");
    let found = compiled.found.as_ref().expect("the search ran");
    let text = to_toml(&strategy_file(&compiled, found));
    assert!(text.contains(pin), "{text}");
    let mut again = order(fixture, &text, ranks, DType::F32).compile().expect("what was decided fits");
    again.module.predicted.gap_ppm = compiled.module.predicted.gap_ppm;
    assert_eq!(print(&again.module), print(&compiled.module));
    compiled
}

/// Losses of bf16 on some ranks are those of one, beyond its rounding: what is summed over ranks is f32.
pub fn check_bf16(fixture: &Fixture, ranks: u32, strategies: [&str; 2]) {
    let losses = |strategy: &str, ranks| {
        let order = order(fixture, strategy, ranks, DType::Bf16);
        let module = order.compile().expect("the pins fit").module;
        let mut losses = Vec::new();
        let report = train(&order, &module, 5, &mut |step| losses.push(step.loss));
        assert_eq!(report.expect("the run has no faults").peak_bytes, module.peak_bytes_by_rank());
        losses
    };
    let expected = losses("", 1);
    for strategy in strategies {
        for (found, expected) in losses(strategy, ranks).iter().zip(&expected) {
            assert!((found - expected).abs() < 4e-3 * expected.abs(), "{strategy}: {found}, not {expected}");
        }
    }
}
