//! `G0215` messages between chunks: sends and receives belong together in pairs.

use super::{Finding, Part, Site};
use crate::id::{NodeId, ValueId};
use crate::module::Module;
use crate::op::Op;
use crate::plan::PhaseKind;
use std::collections::BTreeMap;

/// One end of a channel.
#[derive(Clone, Copy)]
struct End {
    chunk: u32,
    phase: PhaseKind,
    node: NodeId,
    /// The chunk that the op names as the other end's.
    peer: u32,
    /// What is sent or received.
    value: ValueId,
}

/// Checks every channel.
pub(super) fn check(module: &Module) -> Vec<Finding> {
    let (sends, receives) = ends(module);
    let mut findings = Vec::new();
    for (channel, ends) in sends.iter().chain(&receives) {
        findings.extend(ends.get(1).map(|second| {
            let message = format!("channel {channel} has a second `{}`", mnemonic(module, second));
            fault(second, Part::Op, message).help("every channel has one send and one receive")
        }));
    }
    for (channel, ends) in &sends {
        match receives.get(channel) {
            Some(others) => findings.extend(pair(module, &ends[0], &others[0])),
            None => findings.push(alone(module, *channel, &ends[0], "receives from it")),
        }
    }
    let unsent = receives.iter().filter(|(channel, _)| !sends.contains_key(channel));
    findings.extend(unsent.map(|(channel, ends)| alone(module, *channel, &ends[0], "sends into it")));
    findings
}

type Ends = BTreeMap<u32, Vec<End>>;

fn ends(module: &Module) -> (Ends, Ends) {
    let (mut sends, mut receives) = (Ends::new(), Ends::new());
    for (chunk, c) in module.chunks.iter().enumerate() {
        for (phase, node) in c.nodes() {
            let n = c.graph.node(node);
            let (ends, channel, peer, value) = match &n.op {
                Op::Send(op) => (&mut sends, op.channel, op.to, n.args[0]),
                Op::Recv(op) => (&mut receives, op.channel, op.from, n.results[0]),
                _ => continue,
            };
            ends.entry(channel).or_default().push(End { chunk: chunk as u32, phase, node, peer, value });
        }
    }
    (sends, receives)
}

/// What is wrong between a send and its receive.
fn pair(module: &Module, send: &End, recv: &End) -> Option<Finding> {
    let value = |end: &End| module.chunks[end.chunk as usize].graph.value(end.value);
    let mesh = |end: &End| module.mesh_of(&module.chunks[end.chunk as usize]);
    let (sent, received) = (value(send), value(recv));
    let sizes = |end: &End| mesh(end).axes().iter().map(|a| a.size).collect::<Vec<_>>();
    let name = |of: Option<ValueId>| of.map_or("?", |v| &module.program.graph.value(v).name).to_string();
    if (send.peer, recv.peer) != (recv.chunk, send.chunk) {
        let message = format!(
            "chunk {} sends to chunk {}, chunk {} receives from chunk {}",
            send.chunk, send.peer, recv.chunk, recv.peer
        );
        return Some(fault(recv, Part::Op, message));
    }
    if send.phase != recv.phase {
        let message = format!("it is sent in phase `{}`, received in `{}`", send.phase.name(), recv.phase.name());
        return Some(fault(recv, Part::Whole, message));
    }
    if sent.of != received.of {
        let message = format!("a copy of `%{}` is sent, one of `%{}` received", name(sent.of), name(received.of));
        return Some(fault(recv, Part::Result(0), message));
    }
    if sizes(send) != sizes(recv) || sent.sharding != received.sharding {
        let spell =
            |end: &End| value(end).sharding.as_ref().map_or(String::new(), |s| s.display(mesh(end)).to_string());
        let message = format!("it is sent as `{}`, received as `{}`", spell(send), spell(recv));
        let help = "both stages need meshes of one shape, and both values one placement";
        return Some(fault(recv, Part::Result(0), message).help(help));
    }
    None
}

fn alone(module: &Module, channel: u32, end: &End, what: &str) -> Finding {
    let message = format!("`{}`: no node {what}: channel {channel}", mnemonic(module, end));
    fault(end, Part::Op, message).help("every channel has one send and one receive")
}

fn mnemonic(module: &Module, end: &End) -> &'static str {
    module.chunks[end.chunk as usize].graph.node(end.node).op.mnemonic()
}

fn fault(end: &End, part: Part, message: String) -> Finding {
    Finding::new("G0215", Site::ChunkNode(end.chunk, end.node, part), message)
}
