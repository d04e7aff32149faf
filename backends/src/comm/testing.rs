//! What the tests of all transports share: inputs, definitions of the collectives, ranks on threads.

use std::thread;

use crate::comm::{Collective, CommFault, CommKind, GroupId, ReduceOp, Site};

/// A place in a plan.
pub(super) fn at(node: &str) -> Site<'_> {
    Site { node, step: 1 }
}

/// Runs `body` as every rank of a world, each on its thread, and collects the results in rank order.
pub(super) fn run<C: Collective, T: Send>(world: Vec<C>, body: impl Fn(&mut C) -> T + Sync) -> Vec<T> {
    let body = &body;
    thread::scope(|scope| {
        let ranks: Vec<_> = world.into_iter().map(|mut comm| scope.spawn(move || body(&mut comm))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

pub(super) fn everyone(comm: &mut impl Collective) -> GroupId {
    comm.group(&(0..comm.world()).collect::<Vec<_>>())
}

pub(super) fn hash(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The input of a rank: values of very different sizes, so that the order of a sum shows in its bits.
pub(super) fn floats(rank: usize, seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let h = hash(hash(rank as u64 * 1_000_003 + seed) + i);
            ((h % 2001) as f32 - 1000.0) * 10f32.powi((h >> 32) as i32 % 5)
        })
        .collect()
}

pub(super) fn bytes(rank: usize, seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| hash(hash(rank as u64 * 7919 + seed) + i) as u8).collect()
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The definition of a reduction: rank order, one element at a time.
pub(super) fn naive_reduce(ranks: &[usize], seed: u64, len: usize, op: ReduceOp) -> Vec<f32> {
    let inputs: Vec<_> = ranks.iter().map(|&rank| floats(rank, seed, len)).collect();
    let combine = |a: f32, b: f32| if op == ReduceOp::Sum { a + b } else { a.max(b) };
    (0..len).map(|i| inputs.iter().map(|input| input[i]).reduce(combine).unwrap()).collect()
}

/// Makes one call of the given kind, with `len` elements per chunk, and checks its result.
pub(super) fn check_call(comm: &mut impl Collective, group: GroupId, kind: CommKind, seed: u64, len: usize) {
    let ranks = comm.members(group).ranks().to_vec();
    let (rank, n) = (comm.rank(), ranks.len());
    let me = comm.members(group).index_of(rank).unwrap();
    let node = format!("%{kind}{seed}");
    let site = at(&node);
    let own = bytes(rank, seed, len);
    let gathered: Vec<u8> = ranks.iter().flat_map(|&peer| bytes(peer, seed, len)).collect();
    match kind {
        CommKind::AllReduce => {
            let op = if seed.is_multiple_of(3) { ReduceOp::Max } else { ReduceOp::Sum };
            let mut buf = floats(rank, seed, len);
            comm.all_reduce(group, &mut buf, op, &site).unwrap();
            assert_eq!(bits(&buf), bits(&naive_reduce(&ranks, seed, len, op)));
        }
        CommKind::ReduceScatter => {
            let mut output = vec![f32::NAN; len];
            comm.reduce_scatter(group, &floats(rank, seed, len * n), &mut output, &site).unwrap();
            let sum = naive_reduce(&ranks, seed, len * n, ReduceOp::Sum);
            assert_eq!(bits(&output), bits(&sum[me * len..(me + 1) * len]));
        }
        CommKind::AllGather if (seed + me as u64).is_multiple_of(2) => {
            let mut buf = vec![0; len * n];
            buf[me * len..(me + 1) * len].copy_from_slice(&own);
            comm.all_gather_in_place(group, &mut buf, &site).unwrap();
            assert_eq!(buf, gathered);
        }
        CommKind::AllGather => {
            let mut output = vec![0; len * n];
            comm.all_gather(group, &own, &mut output, &site).unwrap();
            assert_eq!(output, gathered);
        }
        CommKind::AllToAll => {
            let mut output = vec![0; len * n];
            comm.all_to_all(group, &bytes(rank, seed, len * n), &mut output, &site).unwrap();
            let chunk = |peer: &usize| bytes(*peer, seed, len * n)[me * len..(me + 1) * len].to_vec();
            assert_eq!(output, ranks.iter().flat_map(chunk).collect::<Vec<_>>());
        }
        CommKind::Broadcast => {
            let root = seed as usize % n;
            let mut buf = own;
            comm.broadcast(group, root, &mut buf, &site).unwrap();
            assert_eq!(buf, bytes(ranks[root], seed, len));
        }
        CommKind::Barrier => comm.barrier(group, &site).unwrap(),
        CommKind::Send | CommKind::Recv => {
            let (next, previous) = (ranks[(me + 1) % n], ranks[(me + n - 1) % n]);
            let mut data = vec![0; len];
            comm.send(next, seed, &own, &site).unwrap();
            comm.recv(previous, seed, &mut data, &site).unwrap();
            assert_eq!(data, bytes(previous, seed, len));
        }
    }
}

/// An abort by the last of four ranks wakes the others, whatever they wait for, and the first reason stands.
pub(super) fn check_abort<C: Collective>(world: Vec<C>) {
    let faults = run(world, |comm| {
        let group = everyone(comm);
        let pair = comm.group(&[comm.rank() / 2 * 2, comm.rank() / 2 * 2 + 1]);
        match comm.rank() {
            0 => comm.all_reduce(group, &mut [1.0; 8], ReduceOp::Sum, &at("%x")),
            1 => comm.recv(2, 7, &mut [0], &at("%r")),
            2 => comm.barrier(pair, &at("%b")),
            _ => {
                comm.abort("out of memory");
                comm.abort("a later reason");
                comm.barrier(group, &at("%b"))
            }
        }
    });
    for (rank, fault) in faults.into_iter().enumerate() {
        assert_eq!(fault, Err(CommFault::Aborted { rank, by: 3, reason: "out of memory".into() }));
    }
}
