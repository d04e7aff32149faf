//! One rank's connections: a thread for each peer reads its frames into the inbox, the rank's own thread writes.
//!
//! Readers never wait for the rank, so writers never wait for each other: what is under way is bounded by the calls, each of
//! which needs all of its members, and by the credit of messages. The first fault is spread to all peers, whoever sees it.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::inbox::{Inbox, Message, Peer, standing_text};
use super::wire::{Header, Kind};
use crate::comm::{CommFault, Standing, Whereabouts};

/// How long a write blocks before it looks whether the world still stands.
const WRITE_SLICE: Duration = Duration::from_millis(200);

/// How long a rank that ends waits for its peers to have read what it wrote.
const LINGER: Duration = Duration::from_secs(1);

/// How long a rank that has waited too long waits for the others to say what they do.
const ANSWER: Duration = Duration::from_millis(500);

/// Frames with at most so much data are written at once.
const SMALL: usize = 16 << 10;

/// The reason when a connection ends without a word.
const LOST: &str = "its connection closed: the process has ended or was killed";

/// The connections of a rank.
pub(super) struct Mesh {
    pub(super) rank: usize,
    pub(super) n_ranks: usize,
    /// How long a call waits for its peers.
    pub(super) timeout: Duration,
    inbox: Mutex<Inbox>,
    /// Signalled whenever the inbox changes.
    changed: Condvar,
    /// By rank; this rank has none.
    links: Vec<OnceLock<Link>>,
    readers: Mutex<Vec<JoinHandle<()>>>,
    whereabouts: OnceLock<Arc<dyn Whereabouts>>,
}

/// The way to one peer.
struct Link {
    stream: Mutex<TcpStream>,
    /// The last frame has been sent: an abort or a farewell.
    is_closed: AtomicBool,
}

/// Why a wait ended without what it waited for.
pub(super) enum Halt {
    Aborted(CommFault),
    /// After that time.
    TimedOut(Duration),
}

impl Mesh {
    pub(super) fn new(rank: usize, n_ranks: usize, timeout: Duration) -> Arc<Mesh> {
        Arc::new(Mesh {
            rank,
            n_ranks,
            timeout,
            inbox: Mutex::new(Inbox::new(n_ranks)),
            changed: Condvar::new(),
            links: (0..n_ranks).map(|_| OnceLock::new()).collect(),
            readers: Mutex::default(),
            whereabouts: OnceLock::new(),
        })
    }

    /// Takes a connection to `peer` into use.
    ///
    /// # Errors
    /// Those of the socket; `AlreadyExists` when there is a connection to that rank.
    pub(super) fn attach(self: &Arc<Self>, peer: usize, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(WRITE_SLICE))?;
        let reader = stream.try_clone()?;
        let link = Link { stream: Mutex::new(stream), is_closed: AtomicBool::new(false) };
        self.links[peer].set(link).map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))?;
        self.inbox().peers[peer].is_open = true;
        let mesh = Arc::clone(self);
        let thread = thread::Builder::new().name(format!("from rank {peer}"));
        let thread = thread.spawn(move || mesh.read(peer, reader))?;
        locked(&self.readers).push(thread);
        Ok(())
    }

    /// Whether there is a connection to `peer`.
    pub(super) fn is_attached(&self, peer: usize) -> bool {
        self.links[peer].get().is_some()
    }

    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        locked(&self.inbox)
    }

    /// The fault of this rank if the world has been taken down.
    pub(super) fn abort_fault(&self) -> Option<CommFault> {
        self.inbox().cause.as_ref().map(|cause| self.aborted(cause))
    }

    fn aborted(&self, (by, reason): &(usize, String)) -> CommFault {
        CommFault::Aborted { rank: self.rank, by: *by, reason: reason.clone() }
    }

    /// Looks into the inbox until `look` finds something, at most until `timeout` after `start`.
    pub(super) fn wait<T>(
        &self,
        start: Instant,
        timeout: Duration,
        mut look: impl FnMut(&mut Inbox) -> Option<T>,
    ) -> Result<T, Halt> {
        let mut inbox = self.inbox();
        loop {
            if let Some(found) = look(&mut inbox) {
                inbox.waits_for.clear();
                return Ok(found);
            }
            if let Some(cause) = &inbox.cause {
                return Err(Halt::Aborted(self.aborted(cause)));
            }
            let waited = start.elapsed();
            let Some(left) = timeout.checked_sub(waited).filter(|left| !left.is_zero()) else {
                return Err(Halt::TimedOut(waited));
            };
            inbox = self.changed.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes a frame to `peer`; to this rank itself it goes into the inbox at once.
    pub(super) fn write(&self, peer: usize, header: Header, data: &[u8], start: Instant) -> Result<(), Halt> {
        if peer == self.rank {
            self.inbox().take_in(peer, header, data.to_vec());
            return Ok(());
        }
        let link = self.links[peer].get().expect("invariant: all ranks are connected before the first call");
        let mut stream = locked(&link.stream);
        let mut bytes = Vec::with_capacity(128 + if data.len() <= SMALL { data.len() } else { 0 });
        header.encode(data.len(), &mut bytes);
        let rest = if data.len() <= SMALL { &[] } else { data };
        if rest.is_empty() {
            bytes.extend_from_slice(data);
        }
        let written = self.push(&mut stream, &bytes, start).and_then(|()| self.push(&mut stream, rest, start));
        if written.is_err() {
            // Half a frame may be under way: nothing can follow it.
            link.is_closed.store(true, Ordering::SeqCst);
            let _ = stream.shutdown(Shutdown::Write);
        }
        drop(stream);
        if self.inbox().cause.is_some() {
            self.spread();
        }
        match written {
            Ok(()) => Ok(()),
            Err(Some(halt)) => Err(halt),
            Err(None) => Err(self.lost(peer)),
        }
    }

    /// Writes all bytes. Errors: why it stopped, or none when the connection is gone.
    fn push(&self, stream: &mut TcpStream, mut bytes: &[u8], start: Instant) -> Result<(), Option<Halt>> {
        while !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(0) => return Err(None),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if let Some(fault) = self.abort_fault() {
                        return Err(Some(Halt::Aborted(fault)));
                    }
                    if start.elapsed() >= self.timeout {
                        return Err(Some(Halt::TimedOut(start.elapsed())));
                    }
                }
                Err(_) => return Err(None),
            }
        }
        Ok(())
    }

    /// A connection broke while it was written to: what its reader finds is nearer to the cause.
    fn lost(&self, peer: usize) -> Halt {
        let nothing = |_: &mut Inbox| None::<()>;
        match self.wait(Instant::now(), LINGER, nothing) {
            Err(Halt::Aborted(fault)) => Halt::Aborted(fault),
            _ => Halt::Aborted(self.fail(peer, LOST)),
        }
    }

    /// Takes the world down, if nobody has yet, and tells all peers; returns this rank's fault.
    pub(super) fn fail(&self, by: usize, reason: &str) -> CommFault {
        let fault = {
            let mut inbox = self.inbox();
            self.aborted(inbox.cause.get_or_insert_with(|| (by, reason.to_string())))
        };
        self.changed.notify_all();
        self.spread();
        fault
    }

    /// Tells the cause to the peers that have not been told. A peer that is written to at this moment is told by the
    /// writer, when its frame is complete.
    fn spread(&self) {
        let Some((by, reason)) = self.inbox().cause.clone() else { return };
        self.say_last(&Header::plain(Kind::Abort, by as u64, &reason), false);
    }

    /// Sends a last frame over every connection that has had none.
    fn say_last(&self, header: &Header, waits: bool) {
        let mut bytes = Vec::new();
        header.encode(0, &mut bytes);
        for link in self.links.iter().filter_map(OnceLock::get) {
            let stream = if waits { Some(locked(&link.stream)) } else { link.stream.try_lock().ok() };
            let Some(mut stream) = stream else { continue };
            if !link.is_closed.swap(true, Ordering::SeqCst) {
                let _ = stream.write_all(&bytes);
            }
        }
    }

    /// Reads the frames of `peer` until the connection ends.
    fn read(&self, peer: usize, stream: TcpStream) {
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        let mut has_left = false;
        let end = loop {
            match self.read_frame(peer, &mut stream) {
                Ok(Some(kind)) => has_left |= kind == Kind::Leave,
                Ok(None) => break LOST.to_string(),
                Err(e) if e.kind() == io::ErrorKind::InvalidData => break format!("its connection is broken: {e}"),
                Err(_) => break LOST.to_string(),
            }
        };
        if !has_left {
            self.fail(peer, &end);
        }
        self.inbox().peers[peer].is_open = false;
        self.changed.notify_all();
    }

    fn read_frame(&self, peer: usize, stream: &mut BufReader<TcpStream>) -> io::Result<Option<Kind>> {
        let Some((header, n_data)) = Header::read(stream)? else { return Ok(None) };
        let kind = header.kind;
        if kind == Kind::Abort {
            self.fail(header.tag as usize, &header.text);
            return Ok(Some(kind));
        }
        let mut data = self.inbox().buffer();
        data.try_reserve_exact(n_data).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        if stream.by_ref().take(n_data as u64).read_to_end(&mut data)? < n_data {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.inbox().take_in(peer, header, data);
        self.changed.notify_all();
        if kind == Kind::Ask {
            self.answer(peer);
        }
        Ok(Some(kind))
    }

    /// Takes what tells this rank's place.
    pub(super) fn watch(&self, whereabouts: Arc<dyn Whereabouts>) {
        let _ = self.whereabouts.set(whereabouts);
    }

    /// What this rank does, as a frame.
    fn own_standing(&self, inbox: &Inbox) -> Header {
        let place = self.whereabouts.get().map_or_else(|| "its start".into(), |whereabouts| whereabouts.place());
        Header::plain(Kind::Standing, 0, &standing_text(&inbox.waits_for, &place))
    }

    /// Tells `peer` what this rank does, on the thread that reads from it.
    fn answer(&self, peer: usize) {
        let standing = self.own_standing(&self.inbox());
        self.say(peer, &standing);
    }

    /// Sends a frame without data, if the connection still takes one; a lost one is found by its reader.
    fn say(&self, peer: usize, header: &Header) {
        let Some(link) = self.links[peer].get() else { return };
        let mut bytes = Vec::new();
        header.encode(0, &mut bytes);
        let mut stream = locked(&link.stream);
        if !link.is_closed.load(Ordering::SeqCst) {
            let _ = stream.write_all(&bytes);
        }
    }

    /// Asks every rank what it does, for an error of this rank, which waits in vain for `missing`; empty if this rank does not
    /// tell itself. Who does not answer in time is said to be where it was last seen.
    pub(super) fn standings(&self, missing: &[usize]) -> Vec<Standing> {
        if self.whereabouts.get().is_none() {
            return Vec::new();
        }
        let others = || (0..self.n_ranks).filter(|&peer| peer != self.rank);
        {
            let mut inbox = self.inbox();
            inbox.waits_for = missing.to_vec();
            others().for_each(|peer| inbox.peers[peer].standing = None);
            let own = self.own_standing(&inbox);
            inbox.take_in(self.rank, own, Vec::new());
        }
        others().for_each(|peer| self.say(peer, &Header::plain(Kind::Ask, 0, "")));
        let start = Instant::now();
        let mut inbox = self.inbox();
        let lacks = |inbox: &Inbox, peer: usize| inbox.peers[peer].standing.is_none() && inbox.peers[peer].is_open;
        while inbox.cause.is_none() && others().any(|peer| lacks(&inbox, peer)) {
            let Some(left) = ANSWER.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else { break };
            inbox = self.changed.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let silent = |rank: usize, place: String| Standing {
            rank,
            place: format!("an unknown place, it does not answer; it was last seen at {place}"),
            waits_for: Vec::new(),
        };
        let standing =
            |(rank, peer): (usize, &Peer)| peer.standing.clone().unwrap_or_else(|| silent(rank, peer.place()));
        inbox.peers.iter().enumerate().map(standing).collect()
    }

    /// Says farewell, or why the world ended, and closes all connections once the peers have read it.
    pub(super) fn close(&self) {
        let cause = self.inbox().cause.clone();
        let last = match cause {
            Some((by, reason)) => Header::plain(Kind::Abort, by as u64, &reason),
            None => Header::plain(Kind::Leave, 0, ""),
        };
        self.say_last(&last, true);
        self.sever(Shutdown::Write);
        let start = Instant::now();
        let mut inbox = self.inbox();
        while inbox.peers.iter().any(|peer| peer.is_open) && start.elapsed() < LINGER {
            let left = LINGER.saturating_sub(start.elapsed());
            inbox = self.changed.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(inbox);
        self.sever(Shutdown::Both);
        let readers = std::mem::take(&mut *locked(&self.readers));
        readers.into_iter().for_each(|reader| drop(reader.join()));
    }

    /// Closes all connections in one direction or both, without a word.
    fn sever(&self, how: Shutdown) {
        for link in self.links.iter().filter_map(OnceLock::get) {
            let _ = locked(&link.stream).shutdown(how);
        }
    }

    /// Is gone as a process is that was killed.
    #[cfg(test)]
    pub(super) fn vanish(&self) {
        self.links.iter().filter_map(OnceLock::get).for_each(|link| link.is_closed.store(true, Ordering::SeqCst));
        self.sever(Shutdown::Both);
    }

    /// Gives the memory of a message back.
    pub(super) fn recycle(&self, message: Message) {
        self.inbox().recycle(message);
    }
}

/// Locks a mutex whose data stays consistent even if a holder panics.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
