//! What a training run reports: a file with one JSON object a line, and a progress line in the terminal.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use serde::Serialize;

/// The first line of a metrics file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunRecord {
    /// `sha256:` and the digest of the plan's text.
    pub plan: String,
    /// Number of ranks.
    pub world: u32,
    /// Seconds that the cost model predicts for one step.
    pub predicted_step_time_s: f64,
    /// Bytes of each rank's arena.
    pub predicted_peak_bytes: Vec<u64>,
    /// Bytes of each rank's arena in host memory; left out where the plan puts nothing there.
    #[serde(skip_serializing_if = "is_unused")]
    pub predicted_host_bytes: Vec<u64>,
}

/// A line for one optimizer step. A number that is not finite is written as `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// Step number, from one.
    pub step: u64,
    /// Loss before the step's update.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Seconds that the step took.
    pub step_time_s: f64,
    /// Samples a second.
    pub samples_per_s: f64,
    /// Tokens a second.
    pub tokens_per_s: f64,
    /// Highest end of any buffer that was bound, on each rank.
    pub peak_bytes: Vec<u64>,
    /// The same in host memory; left out where no plan puts anything there.
    #[serde(skip_serializing_if = "is_unused")]
    pub host_bytes: Vec<u64>,
}

/// Whether no rank uses any of some memory.
fn is_unused(bytes: &[u64]) -> bool {
    bytes.iter().all(|&bytes| bytes == 0)
}

/// Writes records as lines of JSON; each line is complete in the file before the next step runs.
#[derive(Debug)]
pub struct MetricsWriter<W> {
    out: W,
}

impl MetricsWriter<File> {
    /// A new file; an old one of the same name is replaced.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(MetricsWriter::new(File::create(path)?))
    }
}

impl<W: Write> MetricsWriter<W> {
    /// Writes to any sink.
    pub fn new(out: W) -> Self {
        MetricsWriter { out }
    }

    /// Writes the first line.
    pub fn run(&mut self, record: &RunRecord) -> io::Result<()> {
        self.line(record)
    }

    /// Writes the line of one step.
    pub fn step(&mut self, record: &StepRecord) -> io::Result<()> {
        self.line(record)
    }

    fn line(&mut self, record: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.out.write_all(&line)?;
        self.out.flush()
    }
}

/// One line in the terminal, drawn anew each step: bar, step, loss, tokens a second, time left.
///
/// Progress is a courtesy: a terminal that cannot be written to stops no training.
#[derive(Debug)]
pub struct Progress<W> {
    out: W,
    n_steps: u64,
    /// Smoothed seconds a step; `None` before the first.
    step_time_s: Option<f64>,
}

/// Weight of the newest step in the smoothed step time.
const SMOOTHING: f64 = 0.2;

/// Characters of the bar.
const BAR: u64 = 24;

impl Progress<io::Stderr> {
    /// Progress on standard error, or none if that is no terminal. `n_steps`: the last step's number.
    pub fn stderr(n_steps: u64) -> Option<Self> {
        let out = io::stderr();
        out.is_terminal().then(|| Progress::new(out, n_steps))
    }
}

impl<W: Write> Progress<W> {
    /// Progress on any sink.
    pub fn new(out: W, n_steps: u64) -> Self {
        Progress { out, n_steps, step_time_s: None }
    }

    /// Draws the line for a finished step.
    pub fn step(&mut self, record: &StepRecord) {
        let newest = record.step_time_s;
        let smoothed = self.step_time_s.map_or(newest, |old| old + SMOOTHING * (newest - old));
        self.step_time_s = Some(smoothed);
        let left_s = self.n_steps.saturating_sub(record.step) as f64 * smoothed;
        let line = line(record, self.n_steps, left_s);
        let _ = write!(self.out, "\r\x1b[K{line}").and_then(|()| self.out.flush());
    }

    /// Ends the line, so that what is printed next begins a new one.
    pub fn finish(mut self) {
        if self.step_time_s.is_some() {
            let _ = writeln!(self.out).and_then(|()| self.out.flush());
        }
    }
}

fn line(record: &StepRecord, n_steps: u64, left_s: f64) -> String {
    let filled = (BAR * record.step.min(n_steps)).checked_div(n_steps).unwrap_or(BAR);
    let bar = "#".repeat(filled as usize) + &"-".repeat((BAR - filled) as usize);
    let (step, loss, rate) = (record.step, record.loss, scaled(record.tokens_per_s));
    format!("[{bar}] step {step}/{n_steps}  loss {loss:.4}  {rate} tokens/s  ETA {}", clock(left_s))
}

/// A rate with three or four digits and a decimal prefix.
fn scaled(rate: f64) -> String {
    let (value, prefix) = match rate {
        r if r >= 1e9 => (r / 1e9, "G"),
        r if r >= 1e6 => (r / 1e6, "M"),
        r if r >= 1e3 => (r / 1e3, "k"),
        r => (r, ""),
    };
    format!("{value:.1}{prefix}")
}

/// Seconds as `h:mm:ss` or `m:ss`.
fn clock(seconds: f64) -> String {
    let total = seconds.max(0.0).round() as u64;
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, loss: f64) -> StepRecord {
        StepRecord {
            step,
            loss,
            lr: 3e-4,
            grad_norm: 1.7,
            step_time_s: 0.5,
            samples_per_s: 530.1,
            tokens_per_s: 67840.0,
            peak_bytes: vec![10, 20],
            host_bytes: vec![0, 0],
        }
    }

    #[test]
    fn records_are_lines_of_json() {
        let mut out = Vec::new();
        let mut writer = MetricsWriter::new(&mut out);
        let plan = "sha256:ab".to_string();
        let run = RunRecord {
            plan,
            world: 2,
            predicted_step_time_s: 0.118,
            predicted_peak_bytes: vec![1, 2],
            predicted_host_bytes: vec![],
        };
        writer.run(&run).unwrap();
        writer.step(&record(1, 3.21)).unwrap();
        writer.step(&record(2, f64::NAN)).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            r#"{"plan":"sha256:ab","world":2,"predicted_step_time_s":0.118,"predicted_peak_bytes":[1,2]}"#
        );
        assert_eq!(
            lines[1],
            r#"{"step":1,"loss":3.21,"lr":0.0003,"grad_norm":1.7,"step_time_s":0.5,"samples_per_s":530.1,"tokens_per_s":67840.0,"peak_bytes":[10,20]}"#
        );
        assert!(lines[2].contains(r#""loss":null"#));
    }

    #[test]
    fn a_file_is_written_line_by_line() {
        let path = std::env::temp_dir().join(format!("galvatron-metrics-{}.jsonl", std::process::id()));
        let mut writer = MetricsWriter::create(&path).unwrap();
        writer.step(&record(1, 1.0)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn progress_redraws_one_line() {
        let mut out = Vec::new();
        let mut progress = Progress::new(&mut out, 4);
        progress.step(&record(1, 3.21));
        progress.step(&record(2, 3.2));
        progress.finish();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "\r\x1b[K[######------------------] step 1/4  loss 3.2100  67.8k tokens/s  ETA 0:02\
             \r\x1b[K[############------------] step 2/4  loss 3.2000  67.8k tokens/s  ETA 0:01\n"
        );
    }

    #[test]
    fn times_and_rates_are_short() {
        assert_eq!((clock(3725.4), clock(59.6), clock(f64::NAN)), ("1:02:05".into(), "1:00".into(), "0:00".into()));
        assert_eq!((scaled(12.0), scaled(1.5e6), scaled(2e9)), ("12.0".into(), "1.5M".into(), "2.0G".into()));
    }
}
