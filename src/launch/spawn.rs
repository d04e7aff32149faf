//! All ranks of a world as processes of this machine: starts them, passes their output on, ends all when one fails.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long the others may take to end by themselves once a rank has failed.
const GRACE: Duration = Duration::from_secs(3);

/// How often the processes are looked after.
const LOOK: Duration = Duration::from_millis(20);

/// What is started.
pub struct Spawn {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, for each rank.
    pub args: Vec<Vec<OsString>>,
}

/// A line that a rank other than 0 has printed; what rank 0 prints needs no help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The rank.
    pub rank: usize,
    /// Whether it was printed to standard error.
    pub is_error: bool,
    /// The line without its end.
    pub text: String,
}

/// How the processes ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The status of each rank.
    pub statuses: Vec<ExitStatus>,
    /// The rank that failed first, if one did.
    pub first: Option<usize>,
}

/// Starts one process a rank and waits for all; `print` is called for every line, from any thread. The standard input of each
/// process is a pipe that closes when this process ends.
///
/// # Errors
/// When a process cannot be started; those that were started are ended.
pub fn spawn(what: &Spawn, print: fn(&Line)) -> io::Result<End> {
    let mut ranks = Ranks { children: Vec::new(), printers: Vec::new() };
    for (rank, args) in what.args.iter().enumerate() {
        let output = || if rank == 0 { Stdio::inherit() } else { Stdio::piped() };
        let mut command = Command::new(&what.program);
        command.args(args).stdin(Stdio::piped()).stdout(output()).stderr(output());
        let mut child = command.spawn()?;
        ranks.printers.extend(child.stdout.take().map(|out| forward(rank, false, out, print)));
        ranks.printers.extend(child.stderr.take().map(|out| forward(rank, true, out, print)));
        ranks.children.push(child);
    }
    let end = ranks.wait()?;
    std::mem::take(&mut ranks.printers).into_iter().for_each(|printer| drop(printer.join()));
    Ok(end)
}

/// The processes; none of them outlives it.
struct Ranks {
    children: Vec<Child>,
    printers: Vec<JoinHandle<()>>,
}

impl Ranks {
    fn wait(&mut self) -> io::Result<End> {
        let mut statuses: Vec<Option<ExitStatus>> = vec![None; self.children.len()];
        let mut first: Option<(usize, Instant)> = None;
        while statuses.contains(&None) {
            for (rank, child) in self.children.iter_mut().enumerate() {
                if statuses[rank].is_none() {
                    statuses[rank] = child.try_wait()?;
                }
            }
            first = first.or_else(|| first_failed(&statuses).map(|rank| (rank, Instant::now())));
            if first.is_some_and(|(_, since)| since.elapsed() >= GRACE) {
                self.kill();
            }
            thread::sleep(LOOK);
        }
        Ok(End { statuses: statuses.into_iter().flatten().collect(), first: first.map(|(rank, _)| rank) })
    }

    fn kill(&mut self) {
        // A process that has ended needs no end.
        self.children.iter_mut().for_each(|child| drop(child.kill()));
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.kill();
        self.children.iter_mut().for_each(|child| drop(child.wait()));
    }
}

/// The rank that failed; of several that have failed since the last look, one that was killed, because it can be no
/// consequence of another one's fault.
fn first_failed(statuses: &[Option<ExitStatus>]) -> Option<usize> {
    let failed = |status: &Option<ExitStatus>| status.is_some_and(|s| !s.success());
    let killed = |status: &Option<ExitStatus>| status.is_some_and(|s| s.code().is_none());
    statuses.iter().position(killed).or_else(|| statuses.iter().position(failed))
}

fn forward(rank: usize, is_error: bool, out: impl Read + Send + 'static, print: fn(&Line)) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(out).split(b'\n') {
            let Ok(bytes) = line else { break };
            let text = String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_string();
            print(&Line { rank, is_error, text });
        }
    })
}
