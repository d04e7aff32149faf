//! What GPU ranks settle through the host before they exchange anything by themselves: the names of communicators, and that
//! each rank has a GPU of its own. It works over any [`Collective`], so for ranks that are threads and for processes alike.

use crate::comm::{Collective, CommFault, GroupId, Site};

/// The name of a communicator, as NCCL makes it.
pub type Name = [u8; 128];

/// What identifies a GPU, or a partition of one, among all machines.
pub type Uuid = [u8; 16];

/// Gives all members of a group the same name; the first member makes it.
///
/// # Errors
/// Why it could not be made, on the first member; on others [`CommFault::Timeout`] with the ranks that did not come, or that
/// the world was taken down.
pub fn name(
    comm: &mut dyn Collective,
    group: GroupId,
    site: &Site<'_>,
    make: &mut dyn FnMut() -> Result<Name, String>,
) -> Result<Name, CommFault> {
    let mut name = [0; 128];
    if comm.members(group).index_of(comm.rank()) == Some(0) {
        let (rank, node, step) = (comm.rank(), site.node.to_string(), site.step);
        name = make().map_err(|what| CommFault::Transport { rank, node, step, what })?;
    }
    comm.broadcast(group, 0, &mut name, site)?;
    Ok(name)
}

/// A rank's GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Which one it is.
    pub uuid: Uuid,
    /// Whether the rank has been told that ranks may share a GPU.
    pub may_share: bool,
}

/// Refuses that ranks share a GPU unless all of them have been told that they may.
///
/// # Errors
/// Which ranks would share one; the same on every rank.
pub fn check_seats(seats: &[Seat]) -> Result<(), String> {
    let may_share = seats.iter().all(|seat| seat.may_share);
    for (rank, seat) in seats.iter().enumerate() {
        let first = seats.iter().position(|other| other.uuid == seat.uuid).unwrap_or(rank);
        if first < rank && !may_share {
            return Err(format!(
                "ranks {first} and {rank} would share one GPU; give every rank its own, or, with NCCL 2.30 or later, set \
                 NCCL_MULTI_RANK_GPU_ENABLE=1 on all of them"
            ));
        }
    }
    Ok(())
}

/// The seats of all ranks, by rank.
///
/// # Errors
/// Those of the collective.
pub fn gather_seats(comm: &mut dyn Collective, own: Seat) -> Result<Vec<Seat>, CommFault> {
    let everyone: Vec<usize> = (0..comm.world()).collect();
    let group = comm.group(&everyone);
    let mut bytes = [0; 17];
    bytes[..16].copy_from_slice(&own.uuid);
    bytes[16] = u8::from(own.may_share);
    let mut all = vec![0; bytes.len() * everyone.len()];
    comm.all_gather(group, &bytes, &mut all, &Site { node: "the choice of GPUs", step: 0 })?;
    let seat = |[uuid @ .., may_share]: &[u8; 17]| Seat { uuid: *uuid, may_share: *may_share == 1 };
    Ok(all.as_chunks::<17>().0.iter().map(seat).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::local_world;
    use crate::comm::tcp::{JoinOptions, join};
    use std::net::TcpListener;
    use std::thread;
    use std::time::{Duration, Instant};

    const LONG: Duration = Duration::from_secs(60);
    const AT: Site<'_> = Site { node: "%sum", step: 1 };

    /// Runs `body` as every rank of a world over sockets.
    fn over_tcp<T: Send>(n: usize, timeout: Duration, body: impl Fn(&mut dyn Collective) -> T + Sync) -> Vec<T> {
        let rendezvous = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (body, rendezvous) = (&body, &rendezvous);
        let run = |rank| {
            let (rendezvous, plan, terms) = (rendezvous.clone(), "p".into(), "t".into());
            body(&mut join(&JoinOptions { rank, world: n, rendezvous, plan, terms, timeout }).unwrap())
        };
        thread::scope(|scope| {
            let ranks: Vec<_> = (0..n).map(|rank| scope.spawn(move || run(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    /// A name that tells who made it and for which call.
    fn made_by(rank: usize, call: u8) -> Name {
        let mut name = [call; 128];
        name[0] = rank as u8;
        name
    }

    /// The names that a rank gets for its groups: all ranks, those of its parity, and all again.
    fn names(comm: &mut dyn Collective) -> Vec<Name> {
        let (rank, n) = (comm.rank(), comm.world());
        let like: Vec<usize> = (0..n).filter(|other| other % 2 == rank % 2).collect();
        let everyone: Vec<usize> = (0..n).collect();
        let groups = [comm.group(&everyone), comm.group(&like), comm.group(&everyone)];
        let of = |(call, group)| name(comm, group, &AT, &mut || Ok(made_by(rank, call))).unwrap();
        (1..).zip(groups).map(of).collect()
    }

    fn check_names(all: &[Vec<Name>]) {
        for (rank, names) in all.iter().enumerate() {
            assert_eq!(names[..], [made_by(0, 1), made_by(rank % 2, 2), made_by(0, 3)], "rank {rank}");
        }
    }

    #[test]
    fn members_get_the_name_that_their_first_one_made() {
        check_names(&over_tcp(4, LONG, names));
        let world = local_world(4, LONG);
        let all = thread::scope(|scope| {
            let ranks: Vec<_> = world.into_iter().map(|mut comm| scope.spawn(move || names(&mut comm))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        });
        check_names(&all);
    }

    #[test]
    fn a_member_that_does_not_come_is_named() {
        let short = Duration::from_millis(300);
        let faults = over_tcp(3, short, |comm| {
            let group = comm.group(&[0, 1, 2]);
            comm.barrier(group, &AT).unwrap();
            if comm.rank() == 0 {
                thread::sleep(3 * short);
                return None;
            }
            name(comm, group, &AT, &mut || Ok([7; 128])).err()
        });
        for (rank, fault) in faults.iter().enumerate().skip(1) {
            let Some(CommFault::Timeout { missing, node, .. }) = fault else { panic!("rank {rank}: {fault:?}") };
            assert_eq!((&missing[..], node.as_str()), (&[0][..], "%sum"));
        }
    }

    /// The first member fails as a rank does: it takes the world down, and the others get its reason at once.
    #[test]
    fn a_name_that_cannot_be_made_ends_all_members() {
        let start = Instant::now();
        let faults = over_tcp(2, LONG, |comm| {
            let group = comm.group(&[0, 1]);
            let fault = name(comm, group, &AT, &mut || Err("no network".into())).unwrap_err().to_string();
            comm.abort(&fault);
            fault
        });
        assert!(start.elapsed() < LONG / 4);
        assert_eq!(faults[0], "rank 0 at `%sum` (step 1): no network");
        assert!(faults[1].contains("because rank 0 failed") && faults[1].contains("no network"), "{}", faults[1]);
    }

    #[test]
    fn a_shared_gpu_is_refused_on_every_rank_unless_all_allow_it() {
        let seats = |may_share: fn(usize) -> bool| {
            over_tcp(3, LONG, |comm| {
                let own = Seat { uuid: [comm.rank() as u8 / 2; 16], may_share: may_share(comm.rank()) };
                check_seats(&gather_seats(comm, own).unwrap())
            })
        };
        for outcome in seats(|rank| rank < 2) {
            let fault = outcome.unwrap_err();
            assert!(fault.starts_with("ranks 0 and 1 would share one GPU"), "{fault}");
            assert!(fault.contains("NCCL_MULTI_RANK_GPU_ENABLE=1"), "{fault}");
        }
        assert_eq!(seats(|_| true), [Ok(()), Ok(()), Ok(())]);
        let own = |rank: u8| Seat { uuid: [rank; 16], may_share: false };
        assert_eq!(check_seats(&[own(0), own(1), own(2)]), Ok(()));
    }
}
