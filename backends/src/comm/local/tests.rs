//! Every collective against its definition, and every way in which ranks can fail to meet.

use std::thread;
use std::time::Duration;

use galvatron_ir::plan::Room;

use super::{LocalComm, local_world, local_world_with_room};
use crate::comm::testing::{at, bits, bytes, check_abort, check_call, everyone, floats, hash, naive_reduce, run};
use crate::comm::{Collective, CommFault, CommKind, GroupId, ReduceOp};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(250);

#[test]
fn collectives_equal_their_definition() {
    for n in [1, 2, 3, 4, 8] {
        run(local_world(n, LONG), |comm| {
            let group = everyone(comm);
            for (seed, len) in [0, 1, 7, 1023, 1024, 1025, 5000, 20_003].into_iter().enumerate() {
                for kind in CommKind::ALL {
                    check_call(comm, group, kind, seed as u64, len);
                }
            }
        });
    }
}

#[test]
fn rows_and_columns_of_a_mesh_overlap() {
    run(local_world(4, LONG), |comm| {
        let (row, column) = (comm.rank() / 2, comm.rank() % 2);
        let row = comm.group(&[2 * row, 2 * row + 1]);
        let column = comm.group(&[column + 2, column]);
        for seed in 0..100 {
            for kind in CommKind::ALL {
                check_call(comm, row, kind, seed, 300);
                check_call(comm, column, kind, seed, 50 + seed as usize);
            }
        }
    });
}

#[test]
fn random_rounds_on_random_groups() {
    const N: usize = 6;
    let ranks_of = |mask: u64| (0..N).filter(|rank| mask >> rank & 1 == 1).collect::<Vec<_>>();
    run(local_world(N, LONG), |comm| {
        for round in 0..1000 {
            let h = hash(round);
            let ranks = ranks_of(h % ((1 << N) - 1) + 1);
            if ranks.contains(&comm.rank()) {
                let group = comm.group(&ranks);
                let kind = CommKind::ALL[(h >> 8) as usize % CommKind::ALL.len()];
                check_call(comm, group, kind, round, (h >> 16) as usize % 4000);
            }
        }
    });
}

#[test]
fn repeats_give_the_same_bits() {
    let once = || {
        run(local_world(8, LONG), |comm| {
            let group = everyone(comm);
            let mut buf = floats(comm.rank(), 5, 10_000);
            comm.all_reduce(group, &mut buf, ReduceOp::Sum, &at("%a")).unwrap();
            bits(&buf)
        })
    };
    let first = once();
    assert!(first.iter().all(|rank| *rank == first[0]));
    (0..10).for_each(|_| assert_eq!(once(), first));
}

#[test]
fn same_ranks_are_the_same_group() {
    let mut world = local_world(3, LONG);
    let group = world[1].group(&[2, 1]);
    assert_eq!(world[1].group(&[1, 2]), group);
    assert_eq!(world[1].members(group).ranks(), [1, 2]);
    assert_ne!(world[1].group(&[1]), group);
}

#[test]
fn timeout_names_the_missing_rank_and_its_last_place() {
    let faults = run(local_world(3, SHORT), |comm| {
        let group = everyone(comm);
        comm.barrier(group, &at("%start")).unwrap();
        if comm.rank() == 1 { Ok(()) } else { comm.all_reduce(group, &mut [0.0; 4], ReduceOp::Sum, &at("%sum")) }
    });
    let Err(CommFault::Timeout { rank, node, kind, waited, missing, around, .. }) = &faults[2] else {
        panic!("{faults:?}")
    };
    assert_eq!((*rank, node.as_str(), *kind), (2, "%sum", CommKind::AllReduce));
    assert!(*waited >= SHORT && missing.contains(&1));
    assert_eq!(
        (around.peers[1].0, around.peers[1].1.starts_with("barrier at `%start` (step 1)")),
        (1, true),
        "{around:?}"
    );
    assert!(faults[1].is_ok() && matches!(faults[0], Err(CommFault::Timeout { .. })));
}

#[test]
fn a_call_that_timed_out_can_be_made_again() {
    run(local_world(3, Duration::from_micros(3)), |comm| {
        let group = everyone(comm);
        for round in 0..300 {
            let mut buf = floats(comm.rank(), round, 1500);
            while let Err(fault) = comm.all_reduce(group, &mut buf, ReduceOp::Sum, &at("%sum")) {
                assert!(matches!(fault, CommFault::Timeout { .. }), "{fault}");
                thread::yield_now();
            }
            assert_eq!(bits(&buf), bits(&naive_reduce(&[0, 1, 2], round, 1500, ReduceOp::Sum)));
        }
    });
}

/// Rank 1 makes the call `odd`, the others `common`: every rank must get a mismatch that names a peer of the other side.
fn check_mismatch(common: impl Fn(&mut LocalComm, GroupId) -> Result<(), CommFault> + Sync, odd: OddCall, says: &str) {
    let faults = run(local_world(4, LONG), |comm| {
        let group = everyone(comm);
        if comm.rank() == 1 { odd(comm, group) } else { common(comm, group) }
    });
    for (rank, fault) in faults.iter().enumerate() {
        let Err(CommFault::Mismatch { peer, what, .. }) = fault else { panic!("{fault:?}") };
        assert_eq!(rank == 1, *peer != 1, "{fault:?}");
        assert!(what.contains(says), "{what}");
    }
}

type OddCall = fn(&mut LocalComm, GroupId) -> Result<(), CommFault>;

fn sum(comm: &mut LocalComm, group: GroupId) -> Result<(), CommFault> {
    comm.all_reduce(group, &mut [1.0; 8], ReduceOp::Sum, &at("%x"))
}

#[test]
fn different_kinds_are_a_mismatch() {
    check_mismatch(sum, |comm, group| comm.barrier(group, &at("%x")), "the calls differ");
}

#[test]
fn different_lengths_are_a_mismatch() {
    let odd: OddCall = |comm, group| comm.all_reduce(group, &mut [1.0; 9], ReduceOp::Sum, &at("%x"));
    check_mismatch(sum, odd, "36");
}

#[test]
fn different_nodes_are_a_mismatch() {
    let odd: OddCall = |comm, group| comm.all_reduce(group, &mut [1.0; 8], ReduceOp::Sum, &at("%y"));
    check_mismatch(sum, odd, "%y");
}

#[test]
fn different_reductions_are_a_mismatch() {
    let odd: OddCall = |comm, group| comm.all_reduce(group, &mut [1.0; 8], ReduceOp::Max, &at("%x"));
    check_mismatch(sum, odd, "Max");
}

#[test]
fn different_roots_are_a_mismatch() {
    let odd: OddCall = |comm, group| comm.broadcast(group, 1, &mut [0; 8], &at("%x"));
    check_mismatch(|comm, group| comm.broadcast(group, 0, &mut [0; 8], &at("%x")), odd, "roots");
}

#[test]
fn abort_wakes_those_who_wait() {
    check_abort(local_world(4, LONG));
}

#[test]
fn panic_of_a_rank_aborts_the_others() {
    let mut world = local_world(2, LONG);
    let mut failing = world.pop().unwrap();
    let mut waiting = world.pop().unwrap();
    let group = everyone(&mut waiting);
    let thread = thread::spawn(move || {
        everyone(&mut failing);
        panic!("expected by the test");
    });
    let fault = sum(&mut waiting, group).unwrap_err();
    assert!(thread.join().is_err());
    assert_eq!(fault, CommFault::Aborted { rank: 0, by: 1, reason: "its thread panicked".into() });
}

#[test]
fn messages_are_matched_by_tag_and_need_no_receiver() {
    let mut world = local_world(2, SHORT);
    for (tag, value) in [(1, 10), (2, 20), (1, 11)] {
        world[0].send(1, tag, &[value], &at("%s")).unwrap();
    }
    for (tag, value) in [(2, 20), (1, 10), (1, 11)] {
        let mut data = [0];
        world[1].recv(0, tag, &mut data, &at("%r")).unwrap();
        assert_eq!(data, [value]);
    }
    let fault = world[1].recv(0, 1, &mut [0], &at("%r")).unwrap_err();
    assert!(matches!(fault, CommFault::Timeout { missing, .. } if missing == [0]));
}

#[test]
fn full_channel_blocks_the_sender_until_the_receiver_takes() {
    let mut world = local_world_with_room(2, SHORT, Room { messages: 1, bytes: 100 });
    world[0].send(1, 0, &[1; 500], &at("%s")).unwrap();
    let fault = world[0].send(1, 0, &[2; 60], &at("%s")).unwrap_err();
    assert!(matches!(fault, CommFault::Timeout { kind: CommKind::Send, missing, .. } if missing == [1]));
    world[1].recv(0, 0, &mut [0; 500], &at("%r")).unwrap();
    world[0].send(1, 0, &[2; 60], &at("%s")).unwrap();
    world[0].send(1, 0, &[3; 40], &at("%s")).unwrap();
    assert!(world[0].send(1, 0, &[4; 1], &at("%s")).is_err());
}

#[test]
fn sender_goes_on_when_room_appears() {
    run(local_world_with_room(2, LONG, Room { messages: 1, bytes: 64 }), |comm| {
        for tag in 0..2000 {
            if comm.rank() == 0 {
                comm.send(1, tag, &bytes(0, tag, 48), &at("%s")).unwrap();
            } else {
                let mut data = [0; 48];
                comm.recv(0, tag, &mut data, &at("%r")).unwrap();
                assert_eq!(data.to_vec(), bytes(0, tag, 48));
            }
        }
    });
}

#[test]
fn message_of_another_length_is_a_mismatch() {
    let mut world = local_world(2, SHORT);
    world[0].send(1, 0, &[1; 5], &at("%s")).unwrap();
    let fault = world[1].recv(0, 0, &mut [0; 4], &at("%r")).unwrap_err();
    assert!(matches!(fault, CommFault::Mismatch { peer: 0, peer_node, .. } if peer_node == "%s"));
}

#[test]
fn stats_count_what_peers_take() {
    let stats = run(local_world(4, LONG), |comm| {
        let group = everyone(comm);
        comm.all_reduce(group, &mut [0.0; 100], ReduceOp::Sum, &at("%a")).unwrap();
        comm.all_gather(group, &[0; 10], &mut [0; 40], &at("%g")).unwrap();
        comm.broadcast(group, 0, &mut [0; 10], &at("%b")).unwrap();
        *comm.stats()
    });
    let sent = |rank: usize, kind| stats[rank].of(kind).sent_bytes;
    assert_eq!((sent(1, CommKind::AllReduce), sent(1, CommKind::AllGather)), (600, 30));
    assert_eq!((sent(0, CommKind::Broadcast), sent(1, CommKind::Broadcast)), (30, 0));
    assert_eq!(stats[0].iter().map(|(_, traffic)| traffic.n_calls).sum::<u64>(), 3);
}
