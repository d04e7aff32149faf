//! File snapshots: a small model after each pass, its plan, a block of GPT-2 in ops, and the report that the user sees.

mod plans;
#[path = "support/snapshot.rs"]
mod snapshot;

use galvatron::report::Report;
use galvatron_ir::Module;
use galvatron_ir::text::print;
use galvatron_passes::manager::PASSES;
use plans::Job;
use snapshot::check;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Three linear layers on two ranks that share the batch, in two micro-batches, trained by SGD with momentum.
const MLP: Job<'_> = Job {
    model: "mlp",
    train: "[optimizer]\nkind = \"sgd\"\nlr = 0.1\nmomentum = 0.9\nweight_decay = 0.01\n",
    ranks: 2,
    strategy: "dp = 2\nmicro_batches = 2\n",
};

/// GPT-2 on four ranks, the layers pinned.
const GPT2: Job<'_> = Job {
    model: "gpt2",
    train: "",
    ranks: 4,
    strategy: "dp = 2\ntp = 2\nzero = 1\nmicro_batches = 2\nsequence = \"megatron\"\nrecompute = \"selective\"\n",
};

#[test]
fn a_model_after_each_pass() {
    let mut seen = Vec::new();
    let compiled = MLP.compile(&mut |pass, module| {
        check(&format!("mlp.{:02}-{pass}", seen.len()), &print(module));
        seen.push(pass.to_string());
    });
    compiled.expect("the pins can be met");
    assert_eq!(seen, PASSES.map(|(name, _)| name));
}

/// The nodes of one layer by op: in the program, then in each phase of the chunk.
fn ops_of_layer(module: &Module, layer: u32) -> Vec<String> {
    let program = module.program.body.iter().map(|&n| (0, "program", module.program.graph.node(n)));
    let chunk = module
        .chunks
        .iter()
        .flat_map(|chunk| chunk.nodes().map(|(phase, n)| (1 + phase as usize, phase.name(), chunk.graph.node(n))));
    let mut parts: BTreeMap<(usize, &str), BTreeMap<&str, usize>> = BTreeMap::new();
    for (i, part, node) in program.chain(chunk).filter(|(.., node)| node.layer == Some(layer)) {
        *parts.entry((i, part)).or_default().entry(node.op.mnemonic()).or_default() += 1;
    }
    let spell =
        |ops: BTreeMap<&str, usize>| ops.iter().map(|(op, n)| format!("{op} {n}")).collect::<Vec<_>>().join(", ");
    parts.into_iter().map(|((_, part), ops)| format!("  {part}: {}\n", spell(ops))).collect()
}

/// What each pass changes in the ops of the first block.
#[test]
fn the_ops_of_a_block_of_gpt2() {
    let mut text = String::new();
    let mut before = Vec::new();
    let compiled = GPT2.compile(&mut |pass, module| {
        let parts = ops_of_layer(module, 1);
        let changed: String = parts.iter().filter(|part| !before.contains(*part)).map(String::as_str).collect();
        if !changed.is_empty() {
            let _ = write!(text, "{pass}\n{changed}");
        }
        before = parts;
    });
    compiled.expect("the pins can be met");
    check("gpt2.block", &text);
}

/// The report without what the search cost.
fn report(job: Job<'_>) -> String {
    let compiled = job.compile(&mut |_, _| {}).expect("the pins can be met");
    let found = compiled.found.expect("the search ran");
    let text = Report::new(&found, &compiled.segments, &job.cluster(), &compiled.times).text(true);
    text.lines().filter(|line| !line.starts_with("searched:")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_report_of_a_pinned_plan() {
    check("report.mlp", &report(MLP));
    check("report.gpt2", &report(GPT2));
}

#[test]
fn the_report_of_a_searched_plan() {
    check("report.gpt2-searched", &report(Job { strategy: "", ..GPT2 }));
}
