//! A rank that stands still in the middle of a step is named by the others, with its node and with who waits for it, within the time-out
//! and a second; ranks are threads, or ends of connections as processes have them.

#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/plan.rs"]
mod plan;

use fixture::{Fixture, N_STEPS};
use galvatron_backends::comm::Collective;
use galvatron_backends::comm::tcp::{JoinOptions, join};
use galvatron_backends::exec::{Flow, Hold, RunOptions, run, run_ranks};
use galvatron_backends::fault::RunFault;
use galvatron_ir::Module;
use galvatron_ir::op::{Effects, Op};
use galvatron_ir::plan::PhaseKind;
use galvatron_ir::types::DType;
use plan::Order;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_millis(1500);

/// What a rank says within `TIMEOUT` and a second more.
const LIMIT: Duration = Duration::from_millis(2500);

fn order<'a>(fixture: &'a Fixture, strategy: &'a str, ranks: u32) -> Order<'a> {
    Order { fixture, dialect: "keep20", optimizer: "adamw", ranks, strategy, compute: DType::F32 }
}

/// The place of a rank's node in the middle of its backward pass that has this kind of effect, in the second step.
fn place(module: &Module, rank: usize, is_it: fn(&Op) -> bool) -> String {
    let stage = module.stage_of_rank(rank as u64).expect("the rank has a stage") as u32;
    let chunk = module.chunks.iter().find(|c| c.stage == stage).expect("the stage has a chunk");
    let nodes: Vec<_> = chunk.phase(PhaseKind::Backward).iter().map(|&n| chunk.graph.node(n)).collect();
    let nodes: Vec<_> = nodes.into_iter().filter(|n| !n.results.is_empty() && is_it(&n.op)).collect();
    let node = nodes.get(nodes.len() / 2).expect("there is such a node");
    let name = &chunk.graph.value(node.results[0]).name;
    format!("`%{name}` ({}, backward, micro-batch 1, step 2)", node.op.mnemonic())
}

fn computes(op: &Op) -> bool {
    op.effects() == Effects::Pure
}

fn communicates(op: &Op) -> bool {
    op.effects() == Effects::Communicates && !matches!(op, Op::Shard(_))
}

/// What is said when a rank stands still, and how long after the end of the first step.
fn said(order: &Order<'_>, module: &Module, hold: Hold) -> (String, Duration) {
    let options =
        RunOptions { steps: N_STEPS, timeout: TIMEOUT, threads: Some(1), hold: Some(hold), ..RunOptions::default() };
    let mut start = None;
    let mut observer = |_| {
        start = Some(Instant::now());
        Flow::Continue
    };
    let fault =
        run(module, &options, order.fixture.data(), &order.weights(), &mut observer).expect_err("a rank stands still");
    (fault.to_string(), start.expect("the first step ends").elapsed())
}

/// Every strategy, with `rank` standing still at `is_it`, and the ranks that wait.
fn check(strategy: &str, ranks: u32, rank: usize, is_it: fn(&Op) -> bool) {
    let fixture = Fixture::open("gpt2");
    let order = order(&fixture, strategy, ranks);
    let module = order.compile().expect("the pins fit").module;
    let place = place(&module, rank, is_it);
    let (said, after) = said(&order, &module, Hold { rank, place: place.clone() });
    check_words(&said, (rank, &place), ranks as usize);
    assert!(after <= LIMIT, "{strategy}: after {after:?}");
}

/// The blocked rank with its node; every other one waits at a node.
fn check_words(said: &str, (rank, place): (usize, &str), n_ranks: usize) {
    assert!(said.contains(&format!("; rank {rank} is blocked at {place}")), "{said}");
    assert_eq!(said.matches(" is blocked at ").count(), 1, "{said}");
    for other in (0..n_ranks).filter(|&other| other != rank) {
        let waits = said.split("; ").find(|part| part.starts_with(&format!("rank {other} waits for rank ")));
        assert!(waits.is_some_and(|part| part.contains(" at `%") && part.contains("step 2")), "{said}");
    }
}

#[test]
fn a_data_rank_that_stands_still_is_named() {
    check("dp = 2\nmicro_batches = 2", 2, 1, computes);
}

/// Ranks 0 and 1 wait for each other's partners: the blocked rank is found through those that wait themselves.
#[test]
fn a_rank_of_two_groups_that_stands_still_is_named() {
    check("dp = 2\ntp = 2\nmicro_batches = 2", 4, 3, computes);
    check("dp = 2\ntp = 2\nmicro_batches = 2", 4, 0, communicates);
}

#[test]
fn a_stage_that_stands_still_is_named() {
    check("pp = 2\nmicro_batches = 2", 2, 1, computes);
    check("pp = 2\nmicro_batches = 2", 2, 0, communicates);
}

/// The ends of a world of processes, here all in one.
fn ends(n: usize) -> Vec<Box<dyn Collective>> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let rendezvous = listener.local_addr().expect("it has an address").to_string();
    drop(listener);
    let join_one = |rank| {
        let (plan, terms) = ("sha256:1".into(), String::new());
        join(&JoinOptions { rank, world: n, rendezvous: rendezvous.clone(), plan, terms, timeout: TIMEOUT })
    };
    thread::scope(|scope| {
        let joins: Vec<_> = (0..n).map(|rank| scope.spawn(move || join_one(rank))).collect();
        let mut ends: Vec<Box<dyn Collective>> = Vec::new();
        for join in joins {
            ends.push(Box::new(join.join().expect("joining makes no panic").expect("all ranks meet")));
        }
        ends
    })
}

/// All ranks over TCP; what each of them says.
fn check_over_tcp(strategy: &str, ranks: u32, rank: usize) {
    let fixture = Fixture::open("gpt2");
    let order = order(&fixture, strategy, ranks);
    let module = order.compile().expect("the pins fit").module;
    let place = place(&module, rank, computes);
    let hold = Some(Hold { rank, place: place.clone() });
    let options = RunOptions { steps: N_STEPS, timeout: TIMEOUT, threads: Some(1), hold, ..RunOptions::default() };
    let run_one = |end| {
        let sources = (order.fixture.data(), &order.weights() as &dyn galvatron_backends::exec::WeightSource);
        run_ranks(&module, vec![end], &options, sources, &mut |_| Flow::Continue).expect_err("a rank stands still")
    };
    let faults: Vec<RunFault> = thread::scope(|scope| {
        let run_one = &run_one;
        let runs: Vec<_> = ends(ranks as usize).into_iter().map(|end| scope.spawn(move || run_one(end))).collect();
        runs.into_iter().map(|run| run.join().expect("ranks make no panic")).collect()
    });
    faults.iter().for_each(|fault| check_words(&fault.to_string(), (rank, &place), ranks as usize));
}

#[test]
fn a_rank_over_tcp_that_stands_still_is_named_by_all() {
    check_over_tcp("dp = 2\ntp = 2\nmicro_batches = 2", 4, 2);
    check_over_tcp("pp = 2\nmicro_batches = 2", 2, 1);
}
