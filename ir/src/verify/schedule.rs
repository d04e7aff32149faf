//! `G0211` schedule: what runs when, and that no stage waits for ever.

use super::{Finding, Site};
use crate::graph::Node;
use crate::id::ValueId;
use crate::module::Module;
use crate::op::Op;
use crate::plan::{PhaseKind, Room, ScheduleStep, UnderWay};
use std::collections::{BTreeMap, BTreeSet};

/// Checks the schedule of every stage entry by entry, phases without nodes may be left out, then runs all of them against each other.
pub(super) fn check(module: &Module) -> Vec<Finding> {
    let findings: Vec<Finding> = (0..module.stages.len()).filter_map(|stage| check_stage(module, stage)).collect();
    if findings.is_empty() { deadlocks(module, Room::CHANNEL) } else { findings }
}

fn check_stage(module: &Module, stage: usize) -> Option<Finding> {
    let hosted: Vec<u32> = (0..module.chunks.len() as u32).filter(|&c| hosts(module, stage, c)).collect();
    match hosted.as_slice() {
        &[chunk] if module.chunks[chunk as usize].slots.count == 0 => check_plain(module, stage, chunk),
        _ => Progress::new(module, &hosted).check(stage),
    }
}

fn hosts(module: &Module, stage: usize, chunk: u32) -> bool {
    module.chunks.get(chunk as usize).is_some_and(|c| c.stage as usize == stage)
}

/// A chunk without slots runs backward at once after forward.
fn check_plain(module: &Module, stage: usize, chunk: u32) -> Option<Finding> {
    let mut wanted = plain(module, chunk).peekable();
    let steps = &module.stages[stage].schedule;
    for (i, step) in steps.iter().enumerate() {
        while wanted.next_if(|want| want != step && is_empty(module, want)).is_some() {}
        match wanted.next() {
            Some(want) if want == *step => {}
            want => return Some(wrong((stage, i), want, Some(*step))),
        }
    }
    let missing = wanted.find(|w| !is_empty(module, w))?;
    Some(wrong((stage, steps.len()), Some(missing), None))
}

/// The phases of a micro-batch.
const PASSES: [PhaseKind; 3] = [PhaseKind::Forward, PhaseKind::Backward, PhaseKind::BackwardWeight];

/// The order in which one chunk runs its phases.
fn plain(module: &Module, chunk: u32) -> impl Iterator<Item = ScheduleStep> + use<> {
    let entry = move |phase, micro_batch| ScheduleStep { phase, chunk, micro_batch };
    let micro_batches = 0..module.mesh.micro_batches() as u32;
    let passes = micro_batches.flat_map(|m| PASSES.map(|phase| (phase, Some(m))));
    let once = |phase| std::iter::once((phase, None));
    let steps = once(PhaseKind::Prologue).chain(passes).chain(once(PhaseKind::Reduce)).chain(once(PhaseKind::Step));
    steps.map(move |(phase, micro_batch)| entry(phase, micro_batch))
}

fn is_empty(module: &Module, step: &ScheduleStep) -> bool {
    module.chunks.get(step.chunk as usize).is_none_or(|c| c.phase(step.phase).is_empty())
}

fn spell(step: Option<ScheduleStep>) -> String {
    match step {
        Some(step) => match step.micro_batch {
            Some(micro_batch) => format!("`{}{}.{micro_batch}`", step.phase.letter(), step.chunk),
            None => format!("`{}{}`", step.phase.letter(), step.chunk),
        },
        None => "the end".to_string(),
    }
}

fn wrong((stage, i): (usize, usize), want: Option<ScheduleStep>, found: Option<ScheduleStep>) -> Finding {
    let message = format!("entry {i} of the schedule must be {}, found {}", spell(want), spell(found));
    let help = "the prologue, then forward and backward of each micro-batch, then reduce and step";
    Finding::new("G0211", Site::Schedule(stage, i), message).help(help)
}

/// How far each chunk of a stage has come.
struct Progress<'a> {
    module: &'a Module,
    /// By chunk: the entry of each phase that comes next, in the order of [`PhaseKind::ALL`].
    next: BTreeMap<u32, [u32; PhaseKind::ALL.len()]>,
}

impl<'a> Progress<'a> {
    fn new(module: &'a Module, hosted: &[u32]) -> Progress<'a> {
        Progress { module, next: hosted.iter().map(|&c| (c, [0; PhaseKind::ALL.len()])).collect() }
    }

    fn check(mut self, stage: usize) -> Option<Finding> {
        let finding = |i, why: String| Some(Finding::new("G0211", Site::Schedule(stage, i), why));
        let steps = &self.module.stages[stage].schedule;
        for (i, step) in steps.iter().enumerate() {
            if let Err(why) = self.run(step) {
                return finding(i, format!("{} cannot be entry {i} of the schedule: {why}", spell(Some(*step))));
            }
        }
        let chunks: Vec<u32> = self.next.keys().copied().collect();
        let unfinished = chunks.into_iter().flat_map(|c| PhaseKind::ALL.map(|(phase, ..)| (c, phase)));
        let (chunk, phase) = unfinished.into_iter().find(|&(c, phase)| !self.is_done(c, phase))?;
        finding(steps.len(), format!("the schedule ends before phase `{}` of chunk {chunk} is done", phase.name()))
    }

    fn runs_of(&self, phase: PhaseKind) -> u32 {
        if phase.is_per_micro_batch() { self.module.mesh.micro_batches() as u32 } else { 1 }
    }

    fn next(&self, chunk: u32, phase: PhaseKind) -> u32 {
        self.next[&chunk][phase as usize]
    }

    fn has_nodes(&self, chunk: u32, phase: PhaseKind) -> bool {
        !self.module.chunks[chunk as usize].phase(phase).is_empty()
    }

    fn is_done(&self, chunk: u32, phase: PhaseKind) -> bool {
        !self.has_nodes(chunk, phase) || self.next(chunk, phase) == self.runs_of(phase)
    }

    fn run(&mut self, step: &ScheduleStep) -> Result<(), String> {
        let &ScheduleStep { phase, chunk, micro_batch } = step;
        if !self.next.contains_key(&chunk) {
            return Err("another stage hosts the chunk".into());
        }
        let due = self.next(chunk, phase);
        if micro_batch.unwrap_or(0) != due
            || micro_batch.is_some() != phase.is_per_micro_batch()
            || due == self.runs_of(phase)
        {
            return Err("phases run once, those of micro-batches once for each, in order".into());
        }
        let before = PhaseKind::ALL.iter().map(|p| p.0).filter(|&p| p < phase);
        let late = before.into_iter().find(|&p| match (p, phase) {
            _ if p.is_per_micro_batch() && phase.is_per_micro_batch() => {
                self.has_nodes(chunk, p) && self.next(chunk, p) <= due
            }
            _ => !self.is_done(chunk, p),
        });
        if let Some(late) = late {
            return Err(format!("phase `{}` of the chunk comes before it", late.name()));
        }
        self.next.get_mut(&chunk).expect("invariant: the chunk is of this stage")[phase as usize] += 1;
        self.check_slots(chunk)
    }

    fn check_slots(&self, chunk: u32) -> Result<(), String> {
        let slots = self.module.chunks[chunk as usize].slots.count;
        let forward = self.next(chunk, PhaseKind::Forward);
        let last = PASSES.into_iter().rev().find(|&phase| self.has_nodes(chunk, phase));
        let backward = match last {
            Some(PhaseKind::Forward) | None => forward,
            Some(phase) => self.next(chunk, phase),
        };
        if forward.saturating_sub(backward) <= slots {
            return Ok(());
        }
        Err(format!("chunk {chunk} has {slots} slots, and each holds a micro-batch that waits for its backward phase"))
    }
}

/// A message: its channel, and its micro-batch if it is of one.
type Message = (u32, Option<u32>);

/// What is under way between stages.
#[derive(Default)]
struct Messages {
    sent: BTreeSet<Message>,
    /// By sender and receiver those from each rank of one to that of the other.
    under_way: BTreeMap<(u32, u32), UnderWay>,
}

/// Runs all stages until each has done its schedule, or waits for what nobody sends, or for room where too much is under way to the same rank.
pub(super) fn deadlocks(module: &Module, room: Room) -> Vec<Finding> {
    let mut stages: Vec<Walk<'_>> = (0..module.stages.len()).map(|stage| Walk { module, stage, at: (0, 0) }).collect();
    let mut messages = Messages::default();
    while stages.iter_mut().map(|stage| stage.advance(&mut messages, room)).fold(false, |any, moved| any | moved) {}
    stages.iter().filter_map(Walk::waits).collect()
}

/// A stage on its way through its schedule.
struct Walk<'a> {
    module: &'a Module,
    stage: usize,
    /// Index of the entry in work, and of the message in it.
    at: (usize, usize),
}

impl<'a> Walk<'a> {
    fn entry(&self) -> Option<&'a ScheduleStep> {
        self.module.stages[self.stage].schedule.get(self.at.0)
    }

    /// The next send or receive of the entry in work.
    fn next(&self, step: &ScheduleStep) -> Option<&'a Node> {
        let chunk = &self.module.chunks[step.chunk as usize];
        let nodes = chunk.phase(step.phase).iter().map(|&n| chunk.graph.node(n));
        nodes.filter(|n| matches!(n.op, Op::Send(_) | Op::Recv(_))).nth(self.at.1)
    }

    /// Bytes of a value on one rank.
    fn bytes(&self, step: &ScheduleStep, value: ValueId) -> u64 {
        let chunk = &self.module.chunks[step.chunk as usize];
        chunk.local_type(value, self.module.mesh_of(chunk)).bytes()
    }

    /// Goes on as far as possible; whether it went anywhere.
    fn advance(&mut self, messages: &mut Messages, room: Room) -> bool {
        let start = self.at;
        while let Some(step) = self.entry() {
            match self.next(step) {
                Some(node) if self.passes(step, node, messages, room) => self.at.1 += 1,
                Some(_) => break,
                None => self.at = (self.at.0 + 1, 0),
            }
        }
        self.at != start
    }

    /// Sends or receives, if there is room or if it was sent.
    fn passes(&self, step: &ScheduleStep, node: &Node, messages: &mut Messages, room: Room) -> bool {
        let stage_of = |chunk: u32| self.module.chunks[chunk as usize].stage;
        let own = self.stage as u32;
        match &node.op {
            Op::Send(op) => {
                let bytes = self.bytes(step, node.args[0]);
                let room = if stage_of(op.to) == own { Room::OWN } else { room };
                let has_room = messages.under_way.entry((own, stage_of(op.to))).or_default().add(bytes, room);
                if has_room {
                    messages.sent.insert((op.channel, step.micro_batch));
                }
                has_room
            }
            Op::Recv(op) => {
                let is_sent = messages.sent.remove(&(op.channel, step.micro_batch));
                if is_sent && let Some(under_way) = messages.under_way.get_mut(&(stage_of(op.from), own)) {
                    under_way.remove(self.bytes(step, node.results[0]));
                }
                is_sent
            }
            _ => true,
        }
    }

    fn waits(&self) -> Option<Finding> {
        let step = self.entry()?;
        let (stage, entry) = (self.stage, spell(Some(*step)));
        let (message, help) = match &self.next(step)?.op {
            Op::Recv(op) => (
                format!(
                    "stage {stage} waits for ever in {entry} for what chunk {} sends over channel {}: a deadlock",
                    op.from, op.channel
                ),
                "let the sender run that phase before anything that waits for this stage",
            ),
            Op::Send(op) => (
                format!(
                    "stage {stage} waits for ever in {entry} for room to send to chunk {} over channel {}: a deadlock",
                    op.to, op.channel
                ),
                "let the receiver run what takes earlier messages before it sends more itself",
            ),
            _ => return None,
        };
        Some(Finding::new("G0211", Site::Schedule(stage, self.at.0), message).help(help))
    }
}
