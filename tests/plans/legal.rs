//! Legal plans of many pins verify, and after every pass the text that is printed reads back as itself.

use crate::edit::Lines;
use crate::plans::Job;
use galvatron_ir::text::{parse, print};

/// Every pin that the two models can be given on up to eight ranks, a few of them impossible.
fn jobs() -> Vec<(&'static str, u32, String)> {
    let mut jobs = Vec::new();
    for (ranks, dp, tp) in [(1, 1, 1), (2, 2, 1), (2, 1, 2), (4, 4, 1), (4, 2, 2), (4, 1, 4), (8, 2, 4)] {
        let degrees = format!("dp = {dp}\ntp = {tp}\n");
        for (i, more) in ["zero = 0", "zero = 1", "zero = 2", "zero = 3"].iter().enumerate() {
            let recompute = ["none", "selective", "full"][(i + ranks as usize) % 3];
            let micro_batches = [1, 2][(i + dp as usize) % 2];
            let pins = format!("{degrees}{more}\nrecompute = \"{recompute}\"\nmicro_batches = {micro_batches}\n");
            jobs.push(("gpt2", ranks, pins.clone()));
            jobs.push(("mlp", ranks, pins));
        }
        jobs.push(("gpt2", ranks, format!("{degrees}sequence = \"megatron\"\n")));
        jobs.push(("gpt2", ranks, String::new()));
    }
    jobs
}

#[test]
fn legal_plans_pass_and_print_as_they_are_read() {
    let mut n_plans = 0;
    for (model, ranks, strategy) in jobs() {
        let job = Job { model, train: "", ranks, strategy: &strategy };
        let compiled = job.compile(&mut |pass, module| {
            let text = print(module);
            let read = parse(&text).unwrap_or_else(|faults| panic!("{job:?} after {pass}: {}", faults[0]));
            assert!(print(&read) == text, "{job:?}: the text after {pass} is not what is printed again");
        });
        let Ok(compiled) = compiled else { continue };
        let found = Lines::new(&print(&compiled.module)).diagnostics();
        assert_eq!(found, [], "{job:?}");
        n_plans += 1;
    }
    println!("{n_plans} plans");
    assert!(n_plans >= 50, "{n_plans} plans");
}
