//! The parity table in words: cells, their names and the printed rows.

use crate::plan::Order;
use std::collections::BTreeMap;
use std::fmt::Write;

/// One cell of the table, and what came of it.
pub struct Cell<'a> {
    /// What was ordered.
    pub order: Order<'a>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What comes of compiling and training a cell.
pub enum Outcome {
    /// The largest error of a loss in units of its tolerance.
    Trained(f64),
    /// The pins are refused: code and message.
    Refused(String),
    /// Everything that is wrong.
    Wrong(Vec<String>),
}

/// One line a model, dialect, ranks and pins; one column an optimizer.
pub fn table(cells: &[Cell<'_>], models: &[&str], optimizers: &[&str]) -> String {
    let mut rows: BTreeMap<(usize, &str, String), BTreeMap<&str, String>> = BTreeMap::new();
    for cell in cells {
        let Order { fixture, dialect, optimizer, .. } = cell.order;
        let model = models.iter().position(|m| *m == fixture.model).unwrap_or(0);
        let shown = match &cell.outcome {
            Outcome::Trained(error) => format!("{error:.3}"),
            Outcome::Refused(why) => why.split(':').next().unwrap_or_default().to_string(),
            Outcome::Wrong(_) => "WRONG".into(),
        };
        rows.entry((model, dialect, pinned(&cell.order))).or_default().insert(optimizer, shown);
    }
    let mut out = format!("{:<11}{:<12}{:<78}", "model", "dialect", "pins");
    optimizers.iter().for_each(|name| out += &format!(" {name:>14}"));
    for ((model, dialect, pins), columns) in rows {
        write!(out, "\n{:<11}{dialect:<12}{pins:<78}", models[model]).expect("strings take everything");
        for &optimizer in optimizers {
            write!(out, " {:>14}", columns.get(optimizer).map_or("", String::as_str)).expect("strings take everything");
        }
    }
    out + "\nThe numbers are errors of the worst loss of 20 in units of its tolerance.\n"
}

/// `4 ranks: dp = 2, tp = 2`.
pub fn pinned(order: &Order<'_>) -> String {
    let pins = match order.strategy {
        "" => "searched".to_string(),
        strategy => strategy.replace("[[layers]]\n", "layers ").replace('\n', ", "),
    };
    format!("{} ranks: {pins}", order.ranks)
}

/// Model, dialect, optimizer, ranks and pins.
pub fn name(order: &Order<'_>) -> String {
    format!("{} {} {}, {}", order.fixture.model, order.dialect, order.optimizer, pinned(order))
}
