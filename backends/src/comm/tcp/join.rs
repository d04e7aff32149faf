//! How ranks that are processes become a world: all come to rank 0, which compares what they run, then each connects to all.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use galvatron_ir::plan::Room;

use super::handshake::{Answer, GREETING, Hello, Knock, LOOK, hear, say};
use super::lobby::{self, Guest};
use super::mesh::Mesh;
use super::{Machine, TcpComm};
use crate::comm::Stats;

/// How long a rank that cannot take part tries to tell the others.
const DECLINE: Duration = Duration::from_secs(3);

/// Time for rank 0's answer beyond its own time-out, so that its reason comes first.
const SLACK: Duration = Duration::from_secs(5);

/// Who a rank is, and what it must have in common with the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinOptions {
    /// This rank.
    pub rank: usize,
    /// The number of ranks.
    pub world: usize,
    /// `HOST:PORT` at which rank 0 listens.
    pub rendezvous: String,
    /// The digest of the plan.
    pub plan: String,
    /// The flags that all ranks must agree on, as a person would read them.
    pub terms: String,
    /// How long to wait for the others, here and later in every call.
    pub timeout: Duration,
}

/// Why a rank did not become part of a world.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinFault {
    /// The ranks do not fit together, or not all came: every rank gets this one.
    #[error("rank {rank}: the run does not begin: {reason}")]
    Refused {
        /// The rank that reports.
        rank: usize,
        /// Why.
        reason: String,
        /// Whether what the ranks were started with is wrong, and not the machine.
        is_input: bool,
    },
    /// A connection could not be made.
    #[error("rank {rank}: {what}")]
    Network {
        /// The rank that reports.
        rank: usize,
        /// What failed, with the address.
        what: String,
    },
}

/// Joins the world; returns when this rank is connected to all others.
///
/// # Errors
/// [`JoinFault::Refused`] on every rank when ranks differ in world size, plan or terms, when one is there twice, or when not
/// all came in time; [`JoinFault::Network`] when a connection cannot be made.
pub fn join(options: &JoinOptions) -> Result<TcpComm, JoinFault> {
    let JoinOptions { rank, world, .. } = *options;
    if rank >= world {
        let reason = format!("rank {rank} is not one of {world} ranks, which are numbered from 0");
        decline(options, &reason);
        return Err(JoinFault::Refused { rank, reason, is_input: true });
    }
    let mesh = Mesh::new(rank, world, options.timeout);
    let joined = if world == 1 {
        Ok(Machine { n_ranks: 1, local_rank: 0 })
    } else if rank == 0 {
        host(&mesh, options)
    } else {
        guest(&mesh, options)
    };
    match joined {
        Ok(machine) => {
            let (memberships, stats) = (Vec::new(), Stats::default());
            Ok(TcpComm { mesh, memberships, stats, room: Room::CHANNEL, machine })
        }
        Err(fault) => {
            mesh.fail(rank, &fault.to_string());
            mesh.close();
            Err(fault)
        }
    }
}

/// Tells the others, as far as they can be reached within some seconds, that this rank cannot take part.
pub fn decline(options: &JoinOptions, reason: &str) {
    let options = JoinOptions { timeout: DECLINE, ..options.clone() };
    if options.rank == 0 {
        if let Ok(listener) = listen(&options) {
            let _ = lobby::gather(&listener, &options, Some(reason));
        }
    } else if let Ok(mut stream) = connect(&options) {
        let hello = Hello::new(&options, String::new(), Some(reason));
        // Waiting for the answer keeps the connection open until rank 0 has heard.
        let _ = say(&mut stream, &hello, DECLINE).and_then(|()| hear::<Answer>(&mut stream, DECLINE));
    }
}

/// Rank 0's way in.
fn host(mesh: &Arc<Mesh>, options: &JoinOptions) -> Result<Machine, JoinFault> {
    let listener = match listen(options) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => return Err(second_host(options)),
        listener => listener.map_err(|e| network(0, format!("cannot listen at {}: {e}", options.rendezvous)))?,
    };
    let guests = lobby::gather(&listener, options, None)?;
    let address = |guest: &Option<Guest>| guest.as_ref().map_or(String::new(), |guest| guest.address.clone());
    let answer = Answer::Welcome { addresses: guests.iter().map(address).collect(), token: token() };
    let mut n_ranks = 1;
    for (rank, guest) in guests.into_iter().enumerate() {
        let Some(Guest { mut stream, .. }) = guest else { continue };
        n_ranks += usize::from(is_local(&stream));
        say(&mut stream, &answer, GREETING)
            .and_then(|()| mesh.attach(rank, stream))
            .map_err(|e| network(0, format!("rank {rank} was lost at the rendezvous: {e}")))?;
    }
    Ok(Machine { n_ranks, local_rank: 0 })
}

/// The address of the rendezvous is taken: by another rank 0, or by something else.
fn second_host(options: &JoinOptions) -> JoinFault {
    let hello = Hello::new(options, String::new(), None);
    let answer = connect(&JoinOptions { timeout: DECLINE, ..options.clone() })
        .ok()
        .and_then(|mut stream| say(&mut stream, &hello, DECLINE).and_then(|()| hear(&mut stream, SLACK)).ok());
    match answer {
        Some(Answer::Refusal { reason, is_input }) => JoinFault::Refused { rank: 0, reason, is_input },
        _ => network(0, format!("cannot listen at {}: the address is in use; name another port", options.rendezvous)),
    }
}

/// The way in of all others.
fn guest(mesh: &Arc<Mesh>, options: &JoinOptions) -> Result<Machine, JoinFault> {
    let rank = options.rank;
    let at = &options.rendezvous;
    let mut stream = connect(options)?;
    let own = stream.local_addr().map_err(|e| network(rank, format!("its connection to {at} has no address: {e}")))?;
    let listener = TcpListener::bind(SocketAddr::new(own.ip(), 0))
        .map_err(|e| network(rank, format!("cannot listen at {}: {e}", own.ip())))?;
    let port = listener.local_addr().map_or(0, |address| address.port());
    let hello = Hello::new(options, SocketAddr::new(own.ip(), port).to_string(), None);
    let answer =
        say(&mut stream, &hello, GREETING).and_then(|()| hear(&mut stream, options.timeout.saturating_add(SLACK)));
    let answer = answer.map_err(|e| network(rank, format!("rank 0 did not answer at the rendezvous {at}: {e}")))?;
    let (addresses, token) = match answer {
        Answer::Welcome { addresses, token } => (addresses, token),
        Answer::Refusal { reason, is_input } => return Err(JoinFault::Refused { rank, reason, is_input }),
    };
    let zero_is_local = is_local(&stream);
    mesh.attach(0, stream).map_err(|e| network(rank, format!("its connection to rank 0 broke: {e}")))?;
    connect_to_earlier(mesh, &addresses, token)?;
    accept_later(mesh, &listener, token)?;
    let ip = |address: &String| address.parse::<SocketAddr>().ok().map(|address| address.ip());
    let n_here = |addresses: &[String]| addresses.iter().filter(|a| ip(a) == Some(own.ip())).count();
    let zero = usize::from(zero_is_local);
    Ok(Machine { n_ranks: n_here(&addresses[1..]) + zero, local_rank: n_here(&addresses[1..rank]) + zero })
}

fn connect_to_earlier(mesh: &Arc<Mesh>, addresses: &[String], token: u64) -> Result<(), JoinFault> {
    let rank = mesh.rank;
    for (peer, address) in addresses.iter().enumerate().take(rank).skip(1) {
        let lost = |e: io::Error| network(rank, format!("cannot connect to rank {peer} at {address}: {e}"));
        let to: SocketAddr = address.parse().map_err(|e| lost(io::Error::new(io::ErrorKind::InvalidData, e)))?;
        let mut stream = TcpStream::connect_timeout(&to, mesh.timeout.max(LOOK)).map_err(lost)?;
        say(&mut stream, &Knock { rank, token }, GREETING).map_err(lost)?;
        mesh.attach(peer, stream).map_err(lost)?;
    }
    Ok(())
}

fn accept_later(mesh: &Arc<Mesh>, listener: &TcpListener, token: u64) -> Result<(), JoinFault> {
    let rank = mesh.rank;
    let failed = |e: io::Error| network(rank, format!("cannot take connections: {e}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let start = Instant::now();
    loop {
        let missing: Vec<usize> = (rank + 1..mesh.n_ranks).filter(|&peer| !mesh.is_attached(peer)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if let Some(fault) = mesh.abort_fault() {
            return Err(network(rank, format!("not all ranks could be connected: {fault}")));
        }
        if start.elapsed() >= mesh.timeout {
            let seconds = start.elapsed().as_secs_f64();
            return Err(network(rank, format!("waited {seconds:.1} s for the connections of ranks {missing:?}")));
        }
        match listener.accept() {
            Ok((stream, _)) => admit(mesh, stream, token, &missing),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => thread::sleep(LOOK),
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Takes a connection into use if it is one of the missing ranks of this run.
fn admit(mesh: &Arc<Mesh>, mut stream: TcpStream, token: u64, missing: &[usize]) {
    let knock = stream.set_nonblocking(false).and_then(|()| hear::<Knock>(&mut stream, GREETING));
    if let Ok(knock) = knock
        && knock.token == token
        && missing.contains(&knock.rank)
    {
        // A connection that breaks here is missed above.
        let _ = mesh.attach(knock.rank, stream);
    }
}

fn network(rank: usize, what: String) -> JoinFault {
    JoinFault::Network { rank, what }
}

fn listen(options: &JoinOptions) -> io::Result<TcpListener> {
    let addresses: Vec<SocketAddr> = options.rendezvous.to_socket_addrs()?.collect();
    match TcpListener::bind(&addresses[..]) {
        // The name may be that of a gateway in front of this machine.
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => {
            let port = addresses.first().map_or(0, SocketAddr::port);
            TcpListener::bind(("0.0.0.0", port))
        }
        bound => bound,
    }
}

/// Connects to rank 0, which may not be there yet.
fn connect(options: &JoinOptions) -> Result<TcpStream, JoinFault> {
    let (rank, at, start) = (options.rank, &options.rendezvous, Instant::now());
    let addresses = at.to_socket_addrs().map_err(|e| network(rank, format!("`{at}` is no address: {e}")))?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    loop {
        let left = options.timeout.saturating_sub(start.elapsed()).max(LOOK);
        let attempts = addresses.iter().map(|address| TcpStream::connect_timeout(address, left));
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for attempt in attempts {
            match attempt {
                // A connection to nobody on this machine may meet itself.
                Ok(stream) if stream.local_addr().ok() == stream.peer_addr().ok() => {}
                Ok(stream) => return Ok(stream),
                Err(e) => last = e,
            }
        }
        if start.elapsed() >= options.timeout {
            let seconds = start.elapsed().as_secs_f64();
            return Err(network(rank, format!("cannot reach rank 0 at {at} for {seconds:.1} s: {last}")));
        }
        thread::sleep(10 * LOOK);
    }
}

/// Whether the other end is on this machine.
fn is_local(stream: &TcpStream) -> bool {
    let ip = |address: io::Result<SocketAddr>| address.ok().map(|address| address.ip());
    let (own, peer) = (ip(stream.local_addr()), ip(stream.peer_addr()));
    own == peer || (own.is_some_and(|ip| IpAddr::is_loopback(&ip)) && peer.is_some_and(|ip| IpAddr::is_loopback(&ip)))
}

/// A number that two runs hardly have in common.
fn token() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
