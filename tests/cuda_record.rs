//! What a GPU would be told in a whole training step, recorded without one: every read comes after its write by the order of
//! events, every part lies in the arena of the plan, and the arena is used up to its end.

#[allow(dead_code)]
#[path = "support/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "support/plan.rs"]
mod plan;

use fixture::Fixture;
use galvatron_backends::comm::local_world;
use galvatron_backends::cuda::command::Accesses;
use galvatron_backends::cuda::order::Stream;
use galvatron_backends::cuda::race::{Race, races};
use galvatron_backends::cuda::record::{Entry, Log, Recorder};
use galvatron_backends::device::Span;
use galvatron_backends::exec::{Flow, RunOptions, World, arena_bytes, launch};
use galvatron_ir::Module;
use galvatron_ir::plan::{Resident, ResidentRole};
use galvatron_ir::types::DType;
use plan::Order;
use std::collections::BTreeSet;

/// Ranks over data and tensor axes, parameters gathered when they are used, layers recomputed.
const STRATEGY: &str = "dp = 2\ntp = 2\nzero = 3\nrecompute = \"full\"\nmicro_batches = 2";

/// The records of all ranks over some steps; with `graphs` steps are replayed.
fn record(strategy: &str, steps: u64, graphs: bool) -> (Module, Vec<Vec<Entry>>) {
    record_in(DType::F32, strategy, steps, graphs)
}

/// The same with parameters and activations of an element type.
fn record_in(compute: DType, strategy: &str, steps: u64, graphs: bool) -> (Module, Vec<Vec<Entry>>) {
    let fixture = Fixture::open("gpt2");
    let order = Order { fixture: &fixture, dialect: "keep20", optimizer: "adamw", ranks: 4, strategy, compute };
    record_by(&order, &RunOptions { steps, ..RunOptions::default() }, graphs)
}

fn record_by(order: &Order<'_>, options: &RunOptions, graphs: bool) -> (Module, Vec<Vec<Entry>>) {
    let module = order.compile_for("cuda").expect("the pins can be met").module;
    let (mut world, mut logs): (World, Vec<Log>) = (Vec::new(), Vec::new());
    for comm in local_world(module.mesh.world() as usize, options.timeout) {
        let (device, log) = Recorder::new(arena_bytes(&module), graphs);
        world.push((Box::new(device), Box::new(comm)));
        logs.push(log);
    }
    let data = (order.fixture.data(), &order.weights() as &dyn galvatron_backends::exec::WeightSource);
    launch(&module, world, options, data, &mut |_| Flow::Continue).expect("the plan runs");
    let take = |log: Log| log.lock().expect("ranks have ended").clone();
    (module, logs.into_iter().map(take).collect())
}

/// What is in the arena before anything is launched: optimizer states are zeros, as a fresh arena is.
fn zeroed(module: &Module) -> [Entry; 2] {
    let chunk = &module.chunks[0];
    let states = chunk.residents.iter().filter(|resident| resident.role == ResidentRole::State);
    let span = |resident: &Resident| {
        let place = chunk.graph.value(resident.value).place.expect("residents have places");
        Span { offset: place.offset, bytes: chunk.local_type(resident.value, &module.mesh).bytes() }
    };
    let accesses = Accesses { reads: Vec::new(), writes: states.map(span).collect() };
    let work = Entry::Work { stream: Stream::Copy, name: "zeros".into(), accesses, commands: 1 };
    [work, Entry::HostWaits(Stream::Copy)]
}

fn work(entries: &[Entry]) -> impl Iterator<Item = (Stream, &str, &Accesses)> {
    entries.iter().filter_map(|entry| match entry {
        Entry::Work { stream, name, accesses, .. } => Some((*stream, name.as_str(), accesses)),
        _ => None,
    })
}

#[test]
fn every_read_of_a_step_comes_after_its_write() {
    check_order(DType::F32);
}

#[test]
fn every_read_of_a_step_in_bf16_comes_after_its_write() {
    check_order(DType::Bf16);
}

fn check_order(compute: DType) {
    let (module, logs) = record_in(compute, STRATEGY, 2, false);
    assert_eq!(logs.len(), 4);
    for (rank, entries) in logs.iter().enumerate() {
        let entries = [&zeroed(&module)[..], entries].concat();
        let found: Vec<String> = races(&entries).iter().map(Race::to_string).collect();
        assert!(found.is_empty(), "rank {rank}: {} races:\n{}", found.len(), found.join("\n"));
    }
}

/// A sum of bf16 is received, added where it was received, and gathered: none of that is left to f32 sums of the library.
#[test]
fn sums_of_bf16_are_added_on_the_stream_of_the_exchanges() {
    let (_, logs) = record_in(DType::Bf16, "tp = 4", 1, false);
    let on = |wanted: &'static str| work(&logs[0]).filter(move |(s, n, _)| *s == Stream::Communication && *n == wanted);
    assert!(on("all_to_all").count() > 0 && on("all_gather").count() > 0);
    assert!(on("move").count() >= on("all_to_all").count());
    assert_eq!(work(&logs[0]).filter(|(s, n, _)| *s == Stream::Compute && *n == "move").count(), 0);
    let is_activation = |(_, _, accesses): &(Stream, &str, &Accesses)| accesses.reads[0].bytes > 1 << 10;
    assert_eq!(on("all_reduce").filter(is_activation).count(), 0);
}

/// The check is not blind: without the waits of one stream for another there are races.
#[test]
fn a_step_without_its_waits_has_races() {
    let (_, logs) = record(STRATEGY, 1, false);
    for waiting in [Stream::Compute, Stream::Communication] {
        let is_left = |entry: &&Entry| !matches!(entry, Entry::Wait(stream, _) if *stream == waiting);
        let entries: Vec<Entry> = logs[0].iter().filter(is_left).cloned().collect();
        let unordered = races(&entries).iter().filter(|race| matches!(race, Race::Unordered { .. })).count();
        assert!(unordered > 0, "{waiting:?} does not need to wait");
    }
}

#[test]
fn a_step_uses_the_arena_of_the_plan_to_its_end() {
    let (module, logs) = record(STRATEGY, 1, false);
    for entries in &logs {
        let spans = work(entries).flat_map(|(_, _, a)| a.reads.iter().chain(&a.writes));
        let end = spans.map(|span| span.offset + span.bytes).max().unwrap_or(0);
        let planned = arena_bytes(&module);
        assert!(end <= planned && planned - end < 64, "used to {end}, planned {planned}");
    }
}

#[test]
fn all_ranks_launch_the_same_work_and_exchange_beside_computing() {
    let (_, logs) = record(STRATEGY, 1, false);
    let names = |entries: &[Entry]| work(entries).map(|(s, n, _)| (s, n.to_string())).collect::<Vec<_>>();
    // Rank 0 reads the loss for the report; the order of the rest is the plan's.
    let launched = |entries: &[Entry]| {
        names(entries).into_iter().filter(|(stream, _)| *stream != Stream::Copy).collect::<Vec<_>>()
    };
    for entries in &logs[1..] {
        assert_eq!(launched(entries), launched(&logs[0]));
    }
    for name in ["all_reduce", "all_gather", "reduce_scatter"] {
        let found = work(&logs[0]).any(|(stream, n, _)| stream == Stream::Communication && n == name);
        assert!(found, "no {name} in the step");
    }
}

/// The launches of captured steps in a record.
fn replays(entries: &[Entry]) -> Vec<&[Entry]> {
    let mut replays = Vec::new();
    let mut rest = entries;
    while let Some(first) = rest.iter().position(|entry| *entry == Entry::GraphBegins) {
        let last = rest.iter().position(|entry| *entry == Entry::GraphEnds).expect("what begins ends");
        replays.push(&rest[first..=last]);
        rest = &rest[last + 1..];
    }
    replays
}

#[test]
fn a_step_can_be_captured_and_replayed_without_races() {
    let (module, logs) = record(STRATEGY, 5, true);
    for (rank, entries) in logs.iter().enumerate() {
        let entries = [&zeroed(&module)[..], entries].concat();
        let found: Vec<String> = races(&entries).iter().map(Race::to_string).collect();
        assert!(found.is_empty(), "rank {rank}: {} races:\n{}", found.len(), found.join("\n"));
        let replays = replays(&entries);
        assert_eq!(replays.len(), 3, "rank {rank}");
        assert!(replays.iter().all(|replay| *replay == replays[0]), "rank {rank}");
        let streams: BTreeSet<Stream> = work(replays[0]).map(|(stream, ..)| stream).collect();
        assert_eq!(streams.len(), 3, "rank {rank}: all streams are captured");
    }
}

/// The check is not blind: a capture needs each of its waits between streams, and the host's wait for its end.
#[test]
fn a_captured_step_without_its_waits_is_wrong() {
    let (_, logs) = record(STRATEGY, 4, true);
    let graph_faults = |is_left: fn(&Entry) -> bool| {
        let entries: Vec<Entry> = logs[0].iter().filter(|entry| is_left(entry)).cloned().collect();
        races(&entries).iter().filter(|race| matches!(race, Race::Graph(_))).count()
    };
    assert_eq!(graph_faults(|_| true), 0);
    assert!(graph_faults(|entry| !matches!(entry, Entry::Wait(Stream::Copy, _))) > 0);
    assert!(graph_faults(|entry| !matches!(entry, Entry::Wait(Stream::Compute, _))) > 0);
    assert!(graph_faults(|entry| !matches!(entry, Entry::HostWaits(_))) > 0);
}

/// The same nodes, exchanges, fills and readouts run in a captured step as in one that runs as it comes; each replay has the
/// host write into the same slots in the same order, one a fill.
#[test]
fn a_replayed_step_does_what_a_step_does() {
    let (_, eager) = record(STRATEGY, 1, false);
    let (_, logs) = record(STRATEGY, 4, true);
    for (entries, eager) in logs.iter().zip(&eager) {
        let replay = replays(entries)[0];
        let replayed: Vec<_> = work(replay).collect();
        let step: Vec<_> = work(eager).collect();
        assert!(step.ends_with(&replayed), "{} of {}", replayed.len(), step.len());
        let first = entries.iter().position(|entry| *entry == Entry::GraphBegins).expect("steps are replayed");
        let before = entries[..first].iter().rev().take_while(|entry| matches!(entry, Entry::HostWrites { .. }));
        let written: Vec<&Entry> = before.collect::<Vec<_>>().into_iter().rev().collect();
        let fills = replayed.iter().filter(|(_, name, _)| *name == "fill");
        let slot = |(slot, (_, _, accesses)): (usize, &(_, _, &Accesses))| Entry::HostWrites {
            slot,
            bytes: accesses.writes[0].bytes as usize,
        };
        let expected: Vec<Entry> = fills.enumerate().map(slot).collect();
        assert!(expected.len() > 4, "{expected:?}");
        assert_eq!(written, expected.iter().collect::<Vec<_>>());
        let all: Vec<&Entry> = entries.iter().filter(|entry| matches!(entry, Entry::HostWrites { .. })).collect();
        assert_eq!(all, [&written[..], &written[..]].concat(), "two replays write alike");
    }
}

/// Launches of a step of rank 0, with and without groups.
fn n_launches(compute: DType, ranks: u32, strategy: &str, group: bool) -> usize {
    let fixture = Fixture::open("gpt2");
    let order = Order { fixture: &fixture, dialect: "keep20", optimizer: "adamw", ranks, strategy, compute };
    let (_, logs) = record_by(&order, &RunOptions { group, ..RunOptions::default() }, false);
    let launches = logs[0].iter().map(|entry| match entry {
        Entry::Work { stream: Stream::Compute, commands, .. } => *commands,
        _ => 0,
    });
    launches.sum()
}

#[test]
fn groups_save_launches() {
    for (compute, ranks, strategy) in [(DType::F32, 1, ""), (DType::Bf16, 1, ""), (DType::F32, 4, STRATEGY)] {
        let [unfused, fused] = [false, true].map(|group| n_launches(compute, ranks, strategy, group));
        println!("gpt2 in {compute} on {ranks}: {unfused} -> {fused} launches a step");
        // The optimizer's nodes and the sums of squares alone are a quarter of one rank's.
        let most = if ranks == 1 { 3 * unfused / 4 } else { unfused - 1 };
        assert!(fused <= most, "{fused} of {unfused} are left");
        assert_eq!(fused, n_launches(compute, ranks, strategy, true), "the same plan gives the same launches");
    }
}
