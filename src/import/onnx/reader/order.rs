//! Puts nodes into topological order and checks that every name is defined exactly once.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};

use galvatron_ir::diagnostic::{Checked, Diagnostic};

use super::{Node, abbreviated};

/// A topological order of the nodes, as indices; a list that is in order already stays as it is.
///
/// `given` are the names of inputs and initializers, `wanted` those of the outputs.
///
/// # Errors
/// Codes `onnx-duplicate-name`, `onnx-undefined-name` and `onnx-cycle`.
pub(super) fn topological_order<'a>(
    nodes: &'a [Node],
    given: impl Iterator<Item = &'a str>,
    wanted: impl Iterator<Item = &'a str>,
) -> Checked<Vec<usize>> {
    let mut faults = Vec::new();
    let given = unique_names(given, "inputs or initializers", &mut faults);
    let wanted = unique_names(wanted, "outputs", &mut faults);
    let producers = producers(nodes, &given, &mut faults);
    check_defined(nodes, &wanted, &given, &producers, &mut faults);
    if !faults.is_empty() {
        return Err(faults);
    }
    let operands = operand_nodes(nodes, &producers);
    let order = first_ready_first(&operands);
    if order.len() == nodes.len() { Ok(order) } else { Err(vec![cycle(nodes, &operands, &order)]) }
}

fn duplicate(name: &str, what: &str) -> Diagnostic {
    Diagnostic::new("onnx-duplicate-name", format!("the name `{name}` is {what}"))
}

/// The names; one that is there twice is a fault. `whose` says what they are names of.
fn unique_names<'a>(
    names: impl Iterator<Item = &'a str>,
    whose: &str,
    faults: &mut Vec<Diagnostic>,
) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            faults.push(duplicate(name, &format!("given to two {whose}")));
        }
    }
    seen
}

fn producers<'a>(nodes: &'a [Node], given: &BTreeSet<&str>, faults: &mut Vec<Diagnostic>) -> HashMap<&'a str, usize> {
    let mut producers = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for output in node.outputs.iter().filter(|o| !o.is_empty()) {
            if given.contains(output.as_str()) {
                faults.push(duplicate(output, "both a result of a node and an input or initializer"));
            } else if producers.insert(output.as_str(), index).is_some() {
                faults.push(duplicate(output, "given to two results of nodes"));
            }
        }
    }
    producers
}

fn check_defined(
    nodes: &[Node],
    wanted: &BTreeSet<&str>,
    given: &BTreeSet<&str>,
    producers: &HashMap<&str, usize>,
    faults: &mut Vec<Diagnostic>,
) {
    let is_defined = |name: &str| given.contains(name) || producers.contains_key(name);
    let mut reported = BTreeSet::new();
    for node in nodes {
        for input in node.inputs.iter().filter(|i| !i.is_empty() && !is_defined(i)) {
            if reported.insert(input) {
                let message =
                    format!("node `{}` (`{}`) uses `{input}`, which nothing defines", node.name, node.op_type);
                faults.push(Diagnostic::new("onnx-undefined-name", message));
            }
        }
    }
    for output in wanted.iter().filter(|o| !is_defined(o)) {
        faults.push(Diagnostic::new("onnx-undefined-name", format!("nothing defines the output `{output}`")));
    }
}

/// For each node the nodes that define its operands, once for each operand.
fn operand_nodes(nodes: &[Node], producers: &HashMap<&str, usize>) -> Vec<Vec<usize>> {
    let operands = |node: &Node| node.inputs.iter().filter_map(|i| producers.get(i.as_str()).copied()).collect();
    nodes.iter().map(operands).collect()
}

/// Kahn's algorithm with the lowest index first among nodes that are ready; nodes on or behind a cycle are left out.
fn first_ready_first(operands: &[Vec<usize>]) -> Vec<usize> {
    let mut users = vec![Vec::new(); operands.len()];
    for (node, producers) in operands.iter().enumerate() {
        producers.iter().for_each(|&producer| users[producer].push(node));
    }
    let mut n_missing: Vec<usize> = operands.iter().map(Vec::len).collect();
    let mut ready: BinaryHeap<_> = (0..operands.len()).filter(|&n| n_missing[n] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(operands.len());
    while let Some(Reverse(node)) = ready.pop() {
        order.push(node);
        for &user in &users[node] {
            n_missing[user] -= 1;
            if n_missing[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    order
}

/// Names one cycle among the nodes that could not be ordered: from any of them, operands lead back into it.
fn cycle(nodes: &[Node], operands: &[Vec<usize>], order: &[usize]) -> Diagnostic {
    let ordered: HashSet<usize> = order.iter().copied().collect();
    let mut node = (0..nodes.len()).find(|n| !ordered.contains(n)).expect("invariant: some node is not in the order");
    let mut path = Vec::new();
    while !path.contains(&node) {
        path.push(node);
        let blocked = operands[node].iter().find(|n| !ordered.contains(n));
        node = *blocked.expect("invariant: a node that is not ready waits for another");
    }
    let start = path.iter().position(|&n| n == node).expect("invariant: the loop ends at a node of the path");
    let names: Vec<String> = path[start..].iter().rev().map(|&n| nodes[n].name.clone()).collect();
    let message = format!("the graph has a cycle of {} node(s): {}", names.len(), abbreviated(&names));
    Diagnostic::new("onnx-cycle", message)
}
