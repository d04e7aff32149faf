//! The predicted timeline of a plan and the measured one: the format, the end of the step, the same nodes under the same names.

#[path = "support/chrome.rs"]
mod chrome;
#[allow(dead_code)]
#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/plan.rs"]
mod plan;

use chrome::Trace;
use fixture::Fixture;
use galvatron::driver::Compiled;
use galvatron::trace::{for_all_ranks, write_chrome_trace};
use galvatron_backends::exec::{Flow, RunOptions};
use galvatron_ir::Module;
use galvatron_ir::trace::TraceEvent;
use galvatron_ir::types::DType;
use galvatron_passes::cost::timeline;
use plan::Order;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// One layer on each of the inner stages, embedding and head on the outer ones.
const FOUR_STAGES: &str = "pp = 4\nstage_layers = [0, 1, 1, 0]\nmicro_batches = 4";

/// Texts of `strategy.toml` with the number of ranks.
const PLANS: [(&str, u32); 8] = [
    ("", 1),
    ("dp = 2\ntp = 2\nzero = 1\nmicro_batches = 2\nsequence = \"megatron\"", 4),
    ("dp = 4\nzero = 3\nrecompute = \"full\"\nmicro_batches = 1", 4),
    ("dp = 4\nzero = 2\nmicro_batches = 1", 4),
    (FOUR_STAGES, 4),
    ("pp = 2\ndp = 2\nzero = 1\nmicro_batches = 2\nschedule = \"gpipe\"", 4),
    ("pp = 2\ntp = 2\nmicro_batches = 2\nrecompute = \"selective\"", 4),
    ("pp = 2\nschedule = \"interleaved\"\nvirtual_stages = 2\nmicro_batches = 4", 2),
];

fn order<'a>(fixture: &'a Fixture, strategy: &'a str, ranks: u32) -> Order<'a> {
    Order { fixture, dialect: "keep20", optimizer: "adamw", ranks, strategy, compute: DType::F32 }
}

fn written(plan: &Module, events: &[TraceEvent]) -> Trace {
    let mut bytes = Vec::new();
    write_chrome_trace(plan, events, &mut bytes).expect("memory takes everything");
    Trace::read(&bytes)
}

fn predicted(compiled: &Compiled) -> Trace {
    written(&compiled.module, &compiled.timeline())
}

/// Runs one step on CPU ranks.
fn measured(order: &Order<'_>, plan: &Module) -> Trace {
    let options = RunOptions { trace: true, threads: Some(1), ..RunOptions::default() };
    let report =
        galvatron_backends::run(plan, &options, order.fixture.data(), &order.weights(), &mut |_| Flow::Continue);
    written(plan, &report.expect("the plan runs").trace)
}

#[test]
fn the_last_event_ends_with_the_predicted_step() {
    let fixture = Fixture::open("gpt2");
    for (strategy, ranks) in PLANS {
        for kind in ["cpu", "cuda"] {
            let compiled = order(&fixture, strategy, ranks).compile_for(kind).expect("the pins can be met");
            let step_ns = compiled.module.predicted.step_time_ns;
            assert_eq!(predicted(&compiled).end_ns(), step_ns, "{strategy} on {kind}");
            assert!(step_ns > 0);
        }
    }
}

#[test]
fn every_rank_runs_each_node_as_often_as_its_schedule_says() {
    let fixture = Fixture::open("gpt2");
    for (strategy, ranks) in PLANS {
        let compiled = order(&fixture, strategy, ranks).compile().expect("the pins can be met");
        let plan = &compiled.module;
        let of_stage = |stage: &galvatron_ir::plan::Stage| {
            let nodes =
                |entry: &galvatron_ir::plan::ScheduleStep| plan.chunks[entry.chunk as usize].phase(entry.phase).len();
            stage.schedule.iter().map(nodes).sum::<usize>() * stage.mesh.world() as usize
        };
        assert_eq!(compiled.timeline().len(), plan.stages.iter().map(of_stage).sum::<usize>(), "{strategy}");
    }
}

#[test]
fn a_timeline_that_is_too_long_shows_the_first_rank_of_each_stage() {
    let fixture = Fixture::open("gpt2");
    let compiled = order(&fixture, PLANS[5].0, 4).compile().expect("the pins can be met");
    let first = timeline(compiled.costs.as_ref().expect("the search ran"), &compiled.module);
    let shown = |most: usize| {
        let events = for_all_ranks(&compiled.module, &first, most as u64);
        written(&compiled.module, &events);
        events.iter().map(|event| event.rank).collect::<BTreeSet<usize>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(shown(2 * first.len()), [0, 1, 2, 3]);
    assert_eq!(shown(2 * first.len() - 1), [0, 2]);
}

#[test]
fn what_is_communicated_beside_computation_is_what_hides() {
    let fixture = Fixture::open("gpt2");
    let compiled = order(&fixture, PLANS[3].0, 4).compile_for("cuda").expect("the pins can be met");
    let trace = predicted(&compiled);
    let spans = |is: &dyn Fn(&Value) -> bool| -> Vec<(f64, f64)> {
        let time = |e: &Value, key: &str| e[key].as_f64().expect("checked");
        let of_rank = trace.slices().filter(|e| e["pid"] == 0 && is(e));
        of_rank.map(|e| (time(e, "ts"), time(e, "ts") + time(e, "dur"))).collect()
    };
    let computed = spans(&|e| e["tid"] == 0);
    let reduced = spans(&|e| e["tid"] != 0);
    let both =
        |(a, b): &(f64, f64)| computed.iter().map(|(from, to)| (b.min(*to) - a.max(*from)).max(0.0)).sum::<f64>();
    let together_ns = 1e3 * reduced.iter().map(both).sum::<f64>();
    let slowdown = compiled.costs.as_ref().and_then(|costs| costs.slowdown()).expect("GPUs do both at once");
    let expected = compiled.found.expect("the search ran").cost.hidden_ns as f64;
    assert!(expected > 0.0);
    assert!(
        (together_ns / slowdown * (2.0 - slowdown) - expected).abs() < 1e-3 * expected,
        "{together_ns}, {expected}"
    );
}

#[test]
fn a_run_does_what_was_predicted_under_the_same_names() {
    let fixture = Fixture::open("gpt2");
    for (strategy, ranks) in [(FOUR_STAGES, 4), PLANS[2], PLANS[5]] {
        let order = order(&fixture, strategy, ranks);
        let compiled = order.compile().expect("the pins can be met");
        let text = galvatron_ir::text::print(&compiled.module);
        let reread = galvatron_ir::text::parse(&text).expect("printed plans parse");
        let (predicted, measured) = (predicted(&compiled), measured(&order, &reread));
        assert_eq!(predicted.executions(), measured.executions(), "{strategy}");
        assert_eq!(predicted.slices().count(), measured.slices().count(), "{strategy}");
        for kind in ["s", "t", "f"] {
            assert_eq!(predicted.of_kind(kind).count(), measured.of_kind(kind).count(), "{strategy}: {kind}");
        }
        assert!(predicted.of_kind("s").count() > 0);
    }
}

#[test]
fn the_arena_is_never_fuller_than_planned() {
    let fixture = Fixture::open("gpt2");
    for (strategy, ranks) in PLANS {
        let compiled = order(&fixture, strategy, ranks).compile().expect("the pins can be met");
        let trace = predicted(&compiled);
        let mut most: BTreeMap<u64, [u64; 3]> = BTreeMap::new();
        for counter in trace.of_kind("C") {
            let rank = most.entry(counter["pid"].as_u64().expect("checked")).or_default();
            for (most, region) in rank.iter_mut().zip(["persistent", "slots", "transient"]) {
                *most = counter["args"][region].as_u64().expect("checked").max(*most);
            }
        }
        assert_eq!(most.len(), ranks as usize);
        for (rank, [persistent, slots, transient]) in most {
            let stage = compiled.module.stage_of_rank(rank).expect("a rank of the plan");
            let arena = compiled.module.stages[stage].arena;
            assert_eq!(persistent, arena.persistent, "{strategy}, rank {rank}");
            // What is packed has gaps, and no more than a quarter here.
            for (used, planned) in [(slots, arena.slots), (transient, arena.transient)] {
                assert!(used <= planned && 4 * used >= 3 * planned, "{strategy}, rank {rank}: {used} of {planned}");
            }
        }
    }
}
