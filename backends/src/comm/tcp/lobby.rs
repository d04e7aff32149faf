//! Where rank 0 gathers the others: it hears who they are, and lets all in or none.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::handshake::{Answer, GREETING, Hello, LOOK, PROTOCOL, hear, say};
use super::join::{JoinFault, JoinOptions};

/// How long rank 0 waits for more ranks once it is clear that the run does not begin, to tell them why.
const GRACE: Duration = Duration::from_secs(3);

/// A rank that has come.
pub(super) struct Guest {
    pub(super) stream: TcpStream,
    pub(super) address: String,
}

/// Everyone who has come so far.
struct Lobby<'a> {
    options: &'a JoinOptions,
    /// What rank 0 says of itself.
    host: Hello,
    /// By rank; none at 0.
    seats: Vec<Option<Guest>>,
    /// Those who cannot be seated.
    standing: Vec<TcpStream>,
    /// The first reason not to begin, and when it was found.
    reason: Option<(String, Instant)>,
}

/// Waits for all other ranks; `veto`: why rank 0 cannot take part. Nobody has been answered when all have come.
///
/// # Errors
/// Why the run does not begin; all who came have been told.
pub(super) fn gather(
    listener: &TcpListener,
    options: &JoinOptions,
    veto: Option<&str>,
) -> Result<Vec<Option<Guest>>, JoinFault> {
    let failed = |e: io::Error| JoinFault::Network { rank: 0, what: format!("cannot take connections: {e}") };
    listener.set_nonblocking(true).map_err(failed)?;
    let host = Hello::new(options, String::new(), veto);
    let reason = veto.map(|veto| (format!("rank 0 cannot take part: {veto}"), Instant::now()));
    let seats = (0..options.world).map(|_| None).collect();
    let mut lobby = Lobby { options, host, seats, standing: Vec::new(), reason };
    let start = Instant::now();
    while lobby.n_guests() + 1 < options.world {
        match listener.accept() {
            Ok((stream, _)) => lobby.let_in(stream),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => thread::sleep(LOOK),
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => return Err(lobby.refuse(&format!("rank 0 cannot take connections: {e}"), false)),
        }
        if lobby.reason.as_ref().is_some_and(|(_, since)| since.elapsed() >= GRACE) {
            break;
        }
        if lobby.reason.is_none() && start.elapsed() >= options.timeout {
            let reason = lobby.absence(start.elapsed());
            return Err(lobby.refuse(&reason, false));
        }
    }
    match lobby.reason.take() {
        Some((reason, _)) => Err(lobby.refuse(&reason, true)),
        None => Ok(lobby.seats),
    }
}

impl Lobby<'_> {
    fn n_guests(&self) -> usize {
        self.seats.iter().flatten().count() + self.standing.len()
    }

    /// Hears who has come. Whoever does not speak as a rank does is none.
    fn let_in(&mut self, mut stream: TcpStream) {
        let greeting = stream.set_nonblocking(false).and_then(|()| hear::<Hello>(&mut stream, GREETING));
        let Ok(hello) = greeting else { return };
        if !hello.is_ours() {
            return;
        }
        if let Some(reason) = self.objection(&hello) {
            self.reason.get_or_insert_with(|| (reason, Instant::now()));
        }
        match self.seats.get_mut(hello.rank) {
            Some(seat) if seat.is_none() && hello.rank > 0 => *seat = Some(Guest { stream, address: hello.address }),
            _ => self.standing.push(stream),
        }
    }

    /// Why a run with this rank cannot begin.
    fn objection(&self, hello: &Hello) -> Option<String> {
        let (host, rank, world) = (&self.host, hello.rank, hello.world);
        if let Some(veto) = &hello.veto {
            return Some(format!("rank {rank} cannot take part: {veto}"));
        }
        if hello.protocol != PROTOCOL || hello.is_little_endian != host.is_little_endian {
            return Some(format!("rank {rank} is of another build or kind of machine than rank 0"));
        }
        if world != host.world {
            return Some(format!("rank {rank} was started for {world} ranks, rank 0 for {}", host.world));
        }
        if rank >= world {
            return Some(format!("rank {rank} is not one of {world} ranks, which are numbered from 0"));
        }
        if rank == 0 || self.seats[rank].is_some() {
            return Some(format!("two processes say that they are rank {rank}"));
        }
        if hello.plan != host.plan {
            return Some(format!("rank {rank} has plan {}, rank 0 has {}", hello.plan, host.plan));
        }
        (hello.terms != host.terms)
            .then(|| format!("rank {rank} was started with `{}`, rank 0 with `{}`", hello.terms, host.terms))
    }

    /// Who has not come.
    fn absence(&self, waited: Duration) -> String {
        let missing = (1..self.options.world).filter(|&rank| self.seats[rank].is_none());
        let missing: Vec<String> = missing.map(|rank| rank.to_string()).collect();
        let (seconds, at) = (waited.as_secs_f64(), &self.options.rendezvous);
        format!("rank 0 waited {seconds:.1} s at the rendezvous {at} for rank {}", missing.join(", "))
    }

    /// Tells everyone who has come why the run does not begin.
    fn refuse(&mut self, reason: &str, is_input: bool) -> JoinFault {
        let answer = Answer::Refusal { reason: reason.to_string(), is_input };
        let seated = self.seats.iter_mut().flatten().map(|guest| &mut guest.stream);
        for stream in seated.chain(&mut self.standing) {
            // Who is gone needs no answer.
            let _ = say(stream, &answer, GREETING);
        }
        JoinFault::Refused { rank: 0, reason: reason.to_string(), is_input }
    }
}
