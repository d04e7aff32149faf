//! Nodes of a run that are launched together, decided from what they compute and where their buffers lie, without a GPU.
//!
//! The plan stays as it is: buffers have their places, and a result that anything outside of its group reads is written there. What only
//! the group reads stays in registers.

mod expression;
mod functions;
mod many;
mod product;
mod source;
#[cfg(test)]
mod tests;

use expression::Expression;

use super::command::{Accesses, Program, Stream};
use super::table;
use crate::device::RunNode;

/// How many nodes of a run are launched together, one number a group.
pub fn groups(run: &[RunNode<'_>]) -> Vec<usize> {
    let (mut start, mut groups) = (0, Vec::new());
    while start < run.len() {
        let n = [Expression::longest, many::longest, product::longest].map(|longest| longest(run, start));
        let n = n.into_iter().max().unwrap_or(1);
        groups.push(n);
        start += n;
    }
    groups
}

/// The commands of a group.
///
/// # Errors
/// When its nodes cannot be launched together, or one by itself cannot be launched at all.
pub fn lower(group: &[RunNode<'_>]) -> Result<Program, String> {
    if let [node] = group {
        return table::lower(&node.spec);
    }
    group.iter().try_for_each(|node| table::check_overlaps(&node.spec))?;
    if let Some((commands, accesses)) = product::commands(group) {
        return Ok(Program { name: name(group), stream: Stream::Compute, commands, accesses });
    }
    if let Some(commands) = many::commands(group) {
        let all = group.iter().map(|node| table::accesses(&node.spec));
        let accesses = all.reduce(Accesses::with).unwrap_or_default();
        return Ok(Program { name: name(group), stream: Stream::Compute, commands: commands?, accesses });
    }
    elementwise(group).ok_or_else(|| "the nodes cannot be launched together".into())
}

/// Element-wise nodes as one kernel.
fn elementwise(group: &[RunNode<'_>]) -> Option<Program> {
    let (whole, end) = (Expression::of(group)?, group.last()?.position + 1);
    let stores = whole.stores(end)?;
    let reads = whole.loads.iter().map(|load| load.at).collect();
    let writes = stores.iter().map(|store| store.at).collect();
    let commands = if stores.is_empty() { Vec::new() } else { vec![source::launch(&whole, &stores)] };
    Some(Program { name: name(group), stream: Stream::Compute, commands, accesses: Accesses { reads, writes } })
}

/// The mnemonics of a group's nodes, or the one and their number.
fn name(group: &[RunNode<'_>]) -> String {
    let names: Vec<&str> = group.iter().map(|node| node.spec.op.mnemonic()).collect();
    match names.iter().all(|name| *name == names[0]) {
        true => format!("{} {}", names.len(), names[0]),
        false => names.join("+"),
    }
}
