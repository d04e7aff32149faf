//! Every collective over real sockets against its definition, and every way in which ranks can fail to meet.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use galvatron_ir::plan::Room;

use super::{JoinFault, JoinOptions, Machine, TcpComm, decline, join};
use crate::comm::testing::{at, bits, bytes, check_abort, check_call, everyone, floats, hash, run};
use crate::comm::{Collective, CommFault, CommKind, GroupId, LocalComm, ReduceOp, Stats, local_world};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(250);

/// An address that nobody listens at.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn options(n: usize, timeout: Duration) -> Vec<JoinOptions> {
    let rendezvous = free_address();
    let option = |rank| JoinOptions {
        rank,
        world: n,
        rendezvous: rendezvous.clone(),
        plan: "sha256:1".into(),
        terms: "steps 1".into(),
        timeout,
    };
    (0..n).map(option).collect()
}

/// All of them join, each on its thread.
fn join_all(options: &[JoinOptions]) -> Vec<Result<TcpComm, JoinFault>> {
    thread::scope(|scope| {
        let ranks: Vec<_> = options.iter().map(|options| scope.spawn(|| join(options))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn tcp_world(n: usize, timeout: Duration) -> Vec<TcpComm> {
    join_all(&options(n, timeout)).into_iter().map(Result::unwrap).collect()
}

#[test]
fn collectives_over_tcp_equal_their_definition() {
    for n in [1, 2, 3, 4] {
        run(tcp_world(n, LONG), |comm| {
            let group = everyone(comm);
            for (seed, len) in [0, 1, 7, 1023, 1024, 1025, 5000, 200_003].into_iter().enumerate() {
                for kind in CommKind::ALL {
                    check_call(comm, group, kind, seed as u64, len);
                }
            }
        });
    }
}

/// What a rank has after one call of each kind, as bytes, and what it counted.
fn all_results(comm: &mut impl Collective) -> (Vec<Vec<u8>>, Stats) {
    let group = everyone(comm);
    let (rank, n) = (comm.rank(), comm.world());
    let raw = |values: &[f32]| values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>();
    let mut results = Vec::new();
    for len in [5, 3000, 70_000] {
        for op in [ReduceOp::Sum, ReduceOp::Max] {
            let mut buf = floats(rank, 3, len);
            comm.all_reduce(group, &mut buf, op, &at("%r")).unwrap();
            results.push(raw(&buf));
        }
        let mut out = vec![0.0; len];
        comm.reduce_scatter(group, &floats(rank, 4, len * n), &mut out, &at("%s")).unwrap();
        results.push(raw(&out));
        let mut out = vec![0; len * n];
        comm.all_gather(group, &bytes(rank, 5, len), &mut out, &at("%g")).unwrap();
        comm.all_gather_in_place(group, &mut out, &at("%g")).unwrap();
        results.push(out.clone());
        comm.all_to_all(group, &bytes(rank, 6, len * n), &mut out, &at("%t")).unwrap();
        results.push(out);
        let mut buf = bytes(rank, 7, len);
        comm.broadcast(group, n - 1, &mut buf, &at("%b")).unwrap();
        comm.send((rank + 1) % n, 9, &buf, &at("%m")).unwrap();
        comm.recv((rank + n - 1) % n, 9, &mut buf, &at("%m")).unwrap();
        comm.barrier(group, &at("%e")).unwrap();
        results.push(buf);
    }
    (results, *comm.stats())
}

#[test]
fn processes_and_threads_give_the_same_bits() {
    for n in [2, 3, 4] {
        let threads = run(local_world(n, LONG), |comm: &mut LocalComm| all_results(comm));
        let sockets = run(tcp_world(n, LONG), |comm: &mut TcpComm| all_results(comm));
        assert!(threads == sockets, "{n} ranks");
    }
}

#[test]
fn random_rounds_on_random_groups_over_tcp() {
    const N: usize = 4;
    let ranks_of = |mask: u64| (0..N).filter(|rank| mask >> rank & 1 == 1).collect::<Vec<_>>();
    run(tcp_world(N, LONG), |comm| {
        for round in 0..400 {
            let h = hash(round);
            let ranks = ranks_of(h % ((1 << N) - 1) + 1);
            if ranks.contains(&comm.rank()) {
                let group = comm.group(&ranks);
                let kind = CommKind::ALL[(h >> 8) as usize % CommKind::ALL.len()];
                check_call(comm, group, kind, round, (h >> 16) as usize % 9000);
            }
        }
    });
}

#[test]
fn a_timeout_over_tcp_names_the_missing_rank_and_its_last_place() {
    let n_done = AtomicUsize::new(0);
    let faults = run(tcp_world(3, SHORT), |comm| {
        let group = everyone(comm);
        comm.barrier(group, &at("%start")).unwrap();
        if comm.rank() == 1 {
            while n_done.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            return Ok(());
        }
        let outcome = comm.all_reduce(group, &mut [0.0; 4], ReduceOp::Sum, &at("%sum"));
        n_done.fetch_add(1, Ordering::SeqCst);
        while n_done.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        outcome
    });
    let Err(CommFault::Timeout { rank, node, step, kind, waited, missing, around, .. }) = &faults[2] else {
        panic!("{faults:?}")
    };
    assert_eq!((*rank, node.as_str(), *step, *kind), (2, "%sum", 1, CommKind::AllReduce));
    assert!(*waited >= SHORT && missing[..] == [1], "{missing:?}");
    assert_eq!((around.peers[1].0, around.peers[1].1.as_str()), (1, "barrier at `%start` (step 1)"));
    assert!(matches!(faults[0], Err(CommFault::Timeout { .. })), "{faults:?}");
}

type OddCall = fn(&mut TcpComm, GroupId) -> Result<(), CommFault>;

fn sum(comm: &mut TcpComm, group: GroupId) -> Result<(), CommFault> {
    comm.all_reduce(group, &mut [1.0; 8], ReduceOp::Sum, &at("%x"))
}

/// Rank 1 makes the call `odd`, the others `common`: every rank must get a mismatch that names a peer of the other side.
fn check_mismatch(common: OddCall, odd: OddCall, says: &str) {
    let faults = run(tcp_world(4, LONG), |comm| {
        let group = everyone(comm);
        if comm.rank() == 1 { odd(comm, group) } else { common(comm, group) }
    });
    for (rank, fault) in faults.iter().enumerate() {
        let Err(CommFault::Mismatch { peer, what, .. }) = fault else { panic!("{fault:?}") };
        assert_eq!(rank == 1, *peer != 1, "{fault:?}");
        assert!(what.contains(says), "{what}");
    }
}

#[test]
fn calls_that_differ_are_a_mismatch_over_tcp() {
    check_mismatch(sum, |comm, group| comm.barrier(group, &at("%x")), "the calls differ");
    check_mismatch(sum, |comm, group| comm.all_reduce(group, &mut [1.0; 9], ReduceOp::Sum, &at("%x")), "36");
    check_mismatch(sum, |comm, group| comm.all_reduce(group, &mut [1.0; 8], ReduceOp::Sum, &at("%y")), "%y");
    check_mismatch(sum, |comm, group| comm.all_reduce(group, &mut [1.0; 8], ReduceOp::Max, &at("%x")), "Max");
    check_mismatch(
        |comm, group| comm.broadcast(group, 0, &mut [0; 8], &at("%x")),
        |comm, group| comm.broadcast(group, 1, &mut [0; 8], &at("%x")),
        "roots",
    );
}

#[test]
fn an_abort_reaches_all_ranks_over_tcp() {
    check_abort(tcp_world(4, LONG));
}

#[test]
fn a_panic_aborts_the_others_over_tcp() {
    let mut world = tcp_world(2, LONG);
    let failing = world.pop().unwrap();
    let thread = thread::spawn(move || {
        let _end = failing;
        panic!("expected by the test");
    });
    let group = everyone(&mut world[0]);
    let fault = sum(&mut world[0], group).unwrap_err();
    assert!(thread.join().is_err());
    assert_eq!(fault, CommFault::Aborted { rank: 0, by: 1, reason: "its thread panicked".into() });
}

#[test]
fn ranks_know_their_place_on_their_machine() {
    for (rank, comm) in tcp_world(3, LONG).iter().enumerate() {
        assert_eq!(comm.machine(), Machine { n_ranks: 3, local_rank: rank });
    }
}

/// Who waits for something else than a call sees that the world was taken down, and why.
#[test]
fn an_alarm_tells_what_every_call_would_return() {
    let world = tcp_world(2, LONG);
    let alarm = world[1].alarm();
    assert_eq!(alarm.fault(), None);
    world[0].abort("out of memory");
    let start = Instant::now();
    while alarm.fault().is_none() && start.elapsed() < LONG {
        thread::yield_now();
    }
    assert_eq!(alarm.fault(), Some(CommFault::Aborted { rank: 1, by: 0, reason: "out of memory".into() }));
    let world = local_world(2, LONG);
    world[0].abort("out of memory");
    let expected = Some(CommFault::Aborted { rank: 1, by: 0, reason: "out of memory".into() });
    assert_eq!(world[1].alarm().fault(), expected);
}

/// A rank that is gone without a word, as when its process is killed, ends the others at once and is named.
#[test]
fn a_connection_that_closes_ends_the_others_at_once() {
    let start = Instant::now();
    let faults = run(tcp_world(3, LONG), |comm| {
        let group = everyone(comm);
        let met = comm.barrier(group, &at("%start"));
        if comm.rank() == 1 {
            comm.mesh.vanish();
            return None;
        }
        Some(met.and_then(|()| sum(comm, group)).unwrap_err())
    });
    assert!(start.elapsed() < Duration::from_secs(5));
    for rank in [0, 2] {
        let Some(CommFault::Aborted { by, reason, .. }) = &faults[rank] else { panic!("{faults:?}") };
        assert_eq!(*by, 1, "{reason}");
        assert!(reason.contains("closed"), "{reason}");
    }
}

#[test]
fn a_rank_that_has_ended_is_not_waited_for() {
    let mut world = tcp_world(2, LONG);
    drop(world.pop());
    let group = everyone(&mut world[0]);
    let CommFault::Aborted { by: 1, reason, .. } = sum(&mut world[0], group).unwrap_err() else { panic!() };
    assert!(reason.contains("ended"), "{reason}");
}

#[test]
fn messages_over_tcp_are_matched_by_tag_and_held_back_when_there_are_too_many() {
    let mut world = tcp_world(2, SHORT);
    world[0].room = Room { messages: 1, bytes: 100 };
    for (tag, value) in [(1, 10), (2, 20), (1, 11)] {
        world[0].send(1, tag, &[value], &at("%s")).unwrap();
    }
    for (tag, value) in [(2, 20), (1, 10), (1, 11)] {
        let mut data = [0];
        world[1].recv(0, tag, &mut data, &at("%r")).unwrap();
        assert_eq!(data, [value]);
    }
    world[0].send(1, 0, &[1; 500], &at("%s")).unwrap();
    let fault = world[0].send(1, 0, &[2; 60], &at("%s")).unwrap_err();
    assert!(matches!(fault, CommFault::Timeout { kind: CommKind::Send, missing, .. } if missing == [1]));
    world[1].recv(0, 0, &mut [0; 500], &at("%r")).unwrap();
    world[0].send(1, 0, &[2; 60], &at("%s")).unwrap();
    let fault = world[1].recv(0, 0, &mut [0; 4], &at("%r")).unwrap_err();
    assert!(matches!(fault, CommFault::Mismatch { peer: 0, peer_node, .. } if peer_node == "%s"));
    let fault = world[1].recv(0, 5, &mut [0; 4], &at("%r")).unwrap_err();
    assert!(matches!(fault, CommFault::Timeout { missing, .. } if missing == [0]));
}

/// Every rank must be refused, for a reason with these words.
fn check_refused(options: &[JoinOptions], says: &[&str]) {
    for (rank, outcome) in join_all(options).into_iter().enumerate() {
        let Err(JoinFault::Refused { reason, is_input: true, .. }) = outcome else {
            panic!("rank {rank}: {:?}", outcome.err())
        };
        assert!(says.iter().all(|word| reason.contains(word)), "rank {rank}: {reason}");
    }
}

#[test]
fn ranks_that_do_not_fit_together_are_all_refused() {
    let mut other = options(3, LONG);
    other[2].plan = "sha256:2".into();
    check_refused(&other, &["rank 2", "sha256:2", "sha256:1"]);
    let mut other = options(3, LONG);
    other[1].world = 4;
    check_refused(&other, &["rank 1 was started for 4 ranks, rank 0 for 3"]);
    let mut other = options(3, LONG);
    other[2].terms = "steps 7".into();
    check_refused(&other, &["steps 7"]);
    let mut other = options(3, LONG);
    other[2].rank = 1;
    check_refused(&other, &["two processes say that they are rank 1"]);
    let mut other = options(3, LONG);
    other[2].rank = 0;
    check_refused(&other, &["two processes say that they are rank 0"]);
}

#[test]
fn a_rank_that_cannot_take_part_tells_the_others() {
    for who in [0, 1] {
        let options = options(3, LONG);
        thread::scope(|scope| {
            let declines = scope.spawn(|| decline(&options[who], "its data is gone"));
            let others: Vec<_> = options.iter().filter(|o| o.rank != who).map(|o| scope.spawn(|| join(o))).collect();
            for other in others {
                let Err(JoinFault::Refused { reason, .. }) = other.join().unwrap() else { panic!() };
                assert_eq!(reason, format!("rank {who} cannot take part: its data is gone"));
            }
            declines.join().unwrap();
        });
    }
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let outcomes = join_all(&options(3, SHORT)[..2]);
    for outcome in outcomes {
        let Err(JoinFault::Refused { reason, is_input: false, .. }) = outcome else { panic!() };
        assert!(reason.ends_with("for rank 2"), "{reason}");
    }
}

#[test]
fn repeats_over_tcp_give_the_same_bits() {
    let once = || {
        run(tcp_world(4, LONG), |comm| {
            let group = everyone(comm);
            let mut buf = floats(comm.rank(), 5, 10_000);
            comm.all_reduce(group, &mut buf, ReduceOp::Sum, &at("%a")).unwrap();
            bits(&buf)
        })
    };
    let first = once();
    assert!(first.iter().all(|rank| *rank == first[0]) && once() == first);
}
