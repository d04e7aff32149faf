//! What ranks say to each other before they are connected: JSON texts with their length in front.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Changes when ranks of two builds could not understand each other.
pub(super) const PROTOCOL: u32 = 1;

/// What every greeting begins with.
const MAGIC: &str = "galvatron";

/// Longest text in bytes.
const MAX_BYTES: u32 = 16 << 20;

/// How long a connection may take to say what it is.
pub(super) const GREETING: Duration = Duration::from_secs(5);

/// How often someone who waits for a connection looks again. Only used before the first call.
pub(super) const LOOK: Duration = Duration::from_millis(5);

/// A rank's first words to rank 0.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Hello {
    magic: String,
    pub(super) protocol: u32,
    /// Whether numbers are stored with their lowest byte first.
    pub(super) is_little_endian: bool,
    pub(super) rank: usize,
    pub(super) world: usize,
    /// The digest of the plan.
    pub(super) plan: String,
    /// The flags that all ranks must agree on.
    pub(super) terms: String,
    /// Where the rank takes connections of later ranks.
    pub(super) address: String,
    /// Why this rank cannot take part.
    pub(super) veto: Option<String>,
}

impl Hello {
    pub(super) fn new(options: &super::JoinOptions, address: String, veto: Option<&str>) -> Hello {
        Hello {
            magic: MAGIC.into(),
            protocol: PROTOCOL,
            is_little_endian: cfg!(target_endian = "little"),
            rank: options.rank,
            world: options.world,
            plan: options.plan.clone(),
            terms: options.terms.clone(),
            address,
            veto: veto.map(str::to_string),
        }
    }

    pub(super) fn is_ours(&self) -> bool {
        self.magic == MAGIC
    }
}

/// Rank 0's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Answer {
    /// All have come.
    Welcome {
        /// Where each rank takes connections, by rank.
        addresses: Vec<String>,
        /// What the ranks of this run know each other by.
        token: u64,
    },
    /// The run does not begin.
    Refusal {
        /// Why.
        reason: String,
        /// Whether the ranks' input is wrong, and not the machine.
        is_input: bool,
    },
}

/// A rank's first words to another one than rank 0.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Knock {
    pub(super) rank: usize,
    pub(super) token: u64,
}

/// Writes a text within `timeout`.
pub(super) fn say(stream: &mut TcpStream, what: &impl Serialize, timeout: Duration) -> io::Result<()> {
    stream.set_write_timeout(Some(timeout.max(LOOK)))?;
    let text = serde_json::to_vec(what)?;
    let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
    bytes.extend(text);
    stream.write_all(&bytes)
}

/// Reads a text that comes within `timeout`, and not a byte more.
pub(super) fn hear<T: DeserializeOwned>(stream: &mut TcpStream, timeout: Duration) -> io::Result<T> {
    let end = Instant::now() + timeout;
    let mut length = [0; 4];
    read_until(stream, &mut length, end)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length as usize];
    read_until(stream, &mut text, end)?;
    Ok(serde_json::from_slice(&text)?)
}

fn read_until(stream: &mut TcpStream, mut bytes: &mut [u8], end: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => bytes = &mut bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
