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
    /// The rank whose failure ended the others, if one failed.
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
        let (mut first, mut since) = (None, None);
        while statuses.contains(&None) {
            for (rank, child) in self.children.iter_mut().enumerate() {
                if statuses[rank].is_none() {
                    statuses[rank] = child.try_wait()?;
                }
            }
            let is_over = since.is_some_and(|since: Instant| since.elapsed() >= GRACE);
            if is_over {
                self.kill();
            } else {
                first = first_failed(first, &statuses);
                since = since.or_else(|| first.map(|_| Instant::now()));
            }
            thread::sleep(LOOK);
        }
        Ok(End { statuses: statuses.into_iter().flatten().collect(), first })
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

/// The rank that failed first, given the one known so far. One that was killed goes before one that ended by itself, seen
/// later or not: it can be no consequence of another one's fault, and a process is gone for its peers, whose connections
/// close, before it is gone for its parent.
fn first_failed(known: Option<usize>, statuses: &[Option<ExitStatus>]) -> Option<usize> {
    let failed = |status: &Option<ExitStatus>| status.is_some_and(|s| !s.success());
    let killed = |status: &Option<ExitStatus>| status.is_some_and(|s| s.code().is_none());
    let by_itself = known.or_else(|| statuses.iter().position(failed));
    by_itself.filter(|&rank| killed(&statuses[rank])).or_else(|| statuses.iter().position(killed)).or(by_itself)
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_killed_rank_seen_after_its_victims_is_the_one_that_failed_first() {
        let exit = |code: i32| Some(ExitStatus::from_raw(code << 8));
        let kill = |signal: i32| Some(ExitStatus::from_raw(signal));
        assert_eq!(first_failed(None, &[None, exit(0), None]), None);
        assert_eq!(first_failed(None, &[None, None, exit(4)]), Some(2));
        assert_eq!(first_failed(Some(2), &[exit(2), None, exit(4)]), Some(2));
        assert_eq!(first_failed(Some(2), &[None, kill(9), exit(4)]), Some(1));
        assert_eq!(first_failed(Some(1), &[kill(15), kill(9), exit(4)]), Some(1));
    }
}
