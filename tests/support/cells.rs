//! Cells of a parity table: each is compiled, trained for 20 steps and compared with PyTorch's losses, its pins and its own memory.

use crate::fixture::N_STEPS;
use crate::obedience::disobeyed;
use crate::plan::Order;
use crate::snapshot;
use crate::table::{Cell, Outcome, name, pinned, table};
use galvatron_backends::exec::{Flow, RunOptions, RunReport, StepReport};
use galvatron_ir::Module;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Cells that are compiled and trained at the same time.
const N_WORKERS: usize = 2;

/// Codes with which a pin may be refused.
const REFUSALS: [&str; 8] = [
    "divisibility",
    "world-size",
    "no-sequence-axis",
    "no-experts",
    "too-few-layers",
    "no-host-memory",
    "pin-conflict",
    "unsupported",
];

/// Runs all cells and prints the table. Nothing may be wrong, and what is refused is as reviewed, in a snapshot for each model
/// whose name begins with `list`.
pub fn check_cells(orders: &[Order<'_>], models: &[&str], optimizers: &[&str], list: &str) {
    let cells = run_all(orders);
    print!("{}", table(&cells, models, optimizers));
    let faults: Vec<String> = cells.iter().flat_map(faults).collect();
    assert!(faults.is_empty(), "{} faults in {} cells:\n{}", faults.len(), cells.len(), faults.join("\n"));
    for model in models {
        check_refusals(model, &cells, list);
    }
}

fn run_all<'a>(orders: &[Order<'a>]) -> Vec<Cell<'a>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<usize, Outcome>> = Mutex::default();
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(order) = orders.get(index) else { break };
            let outcome = catch_unwind(AssertUnwindSafe(|| outcome(order)))
                .unwrap_or_else(|_| Outcome::Wrong(vec!["it panics".into()]));
            done.lock().expect("panics are caught").insert(index, outcome);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..N_WORKERS {
            scope.spawn(work);
        }
    });
    let done = done.into_inner().expect("panics are caught");
    orders.iter().zip(done.into_values()).map(|(&order, outcome)| Cell { order, outcome }).collect()
}

fn outcome(order: &Order<'_>) -> Outcome {
    let compiled = match order.compile() {
        Ok(compiled) => compiled,
        Err(faults) => {
            let unknown = faults.iter().any(|fault| !REFUSALS.contains(&fault.code));
            let shown: Vec<String> = faults.iter().map(|f| format!("{}: {}", f.code, f.message)).collect();
            return if unknown { Outcome::Wrong(shown) } else { Outcome::Refused(shown.join("; ")) };
        }
    };
    let mut wrong = disobeyed(&compiled, &order.pins().expect("invariant: they were read before"));
    let module = reread(&compiled.module, &mut wrong);
    let mut worst = 0.0;
    match train(order, &module, N_STEPS, &mut |step| {
        worst = f64::max(worst, check_step(order, &module, step, &mut wrong))
    }) {
        Ok(report) if report.steps == N_STEPS => {}
        Ok(report) => wrong.push(format!("{} steps were run", report.steps)),
        Err(fault) => wrong.push(fault),
    }
    if wrong.is_empty() { Outcome::Trained(worst) } else { Outcome::Wrong(wrong) }
}

/// The module as it is after printing and parsing; it must verify and print the same.
fn reread(module: &Module, wrong: &mut Vec<String>) -> Module {
    let text = galvatron_ir::text::print(module);
    let module = galvatron_ir::text::parse(&text).expect("printed plans parse");
    wrong.extend(galvatron_ir::verify::check(&module, None).iter().map(|fault| format!("after parsing: {fault}")));
    if galvatron_ir::text::print(&module) != text {
        wrong.push("the parsed plan prints otherwise".into());
    }
    module
}

/// Trains on one thread a rank.
pub fn train(
    order: &Order<'_>,
    module: &Module,
    steps: u64,
    each: &mut dyn FnMut(&StepReport),
) -> Result<RunReport, String> {
    let options = RunOptions { steps, threads: Some(1), dump_gradients: steps == 1, ..RunOptions::default() };
    let mut observer = |step: StepReport| {
        each(&step);
        Flow::Continue
    };
    galvatron_backends::run(module, &options, order.fixture.data(), &order.weights(), &mut observer)
        .map_err(|fault| format!("the run fails: {fault}"))
}

/// The error of a step's loss in units of its tolerance.
fn check_step(order: &Order<'_>, module: &Module, step: &StepReport, wrong: &mut Vec<String>) -> f64 {
    let run = &order.fixture.manifest["reference"]["trajectories"][order.optimizer];
    let number = |value: &serde_json::Value| value.as_f64().expect("the manifest has a number");
    let expected = number(&run["losses"][step.step as usize - 1]);
    let tolerance = 1e-5 * expected.abs().max(1.0) + 10.0 * number(&run["max_abs_diff_f32_f64"]);
    let error = (step.loss - expected).abs() / tolerance;
    // A NaN is wrong, too.
    if error.is_nan() || error > 1.0 {
        wrong.push(format!(
            "the loss of step {} is {}, not {expected}: {error:.1} times the tolerance",
            step.step, step.loss
        ));
    }
    let predicted = module.peak_bytes_by_rank();
    if step.peak_bytes != predicted {
        wrong.push(format!("step {} used {:?} bytes, not {predicted:?}", step.step, step.peak_bytes));
    }
    let predicted = module.host_bytes_by_rank();
    if step.host_bytes != predicted {
        wrong.push(format!("step {} used {:?} bytes of host memory, not {predicted:?}", step.step, step.host_bytes));
    }
    error
}

fn faults(cell: &Cell<'_>) -> Vec<String> {
    match &cell.outcome {
        Outcome::Wrong(wrong) => wrong.iter().map(|what| format!("{}: {what}", name(&cell.order))).collect(),
        _ => Vec::new(),
    }
}

/// What is refused does not depend on dialect and optimizer, and is as reviewed, in the names of one dialect.
fn check_refusals(model: &str, cells: &[Cell<'_>], list: &str) {
    let mut refused: BTreeMap<String, Vec<(bool, &str)>> = BTreeMap::new();
    for cell in cells.iter().filter(|c| c.order.fixture.model == model) {
        let why = match &cell.outcome {
            Outcome::Refused(why) => (true, why.as_str()),
            _ => (false, ""),
        };
        let all = refused.entry(pinned(&cell.order)).or_default();
        let at = if cell.order.dialect == "keep20" { 0 } else { all.len() };
        all.insert(at, why);
    }
    let mut text = String::new();
    for (pins, outcomes) in refused {
        assert!(outcomes.iter().all(|(is_refused, _)| *is_refused == outcomes[0].0), "{model}, {pins}: {outcomes:?}");
        if let (true, why) = outcomes[0] {
            writeln!(text, "{pins}\n  {why}").expect("strings take everything");
        }
    }
    snapshot::check(&format!("{list}-{model}"), &text);
}
