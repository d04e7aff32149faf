//! Orders of a forward program in which equal layers can be equal runs of nodes.
//!
//! A walk from the outputs puts what many layers read into the first of them: tables of positions, masks, the output of an
//! encoder. So there is an order for each reach: values that are read from at least so far are computed first, in front of
//! the layers. How far is far enough depends on the length of a layer, which is not known beforehand.

use galvatron_ir::module::Program;
use galvatron_ir::{NodeId, ValueId};
use std::collections::BTreeSet;

/// Reaches that are tried at most, the longest first.
const MAX_REACHES: usize = 32;

/// Topological orders of the nodes that the outputs depend on, the plainest first.
pub(super) fn candidates(program: &Program) -> Vec<Vec<NodeId>> {
    let plain = walk(program, &[]);
    let reaches = reaches(program, &plain);
    let lengths: BTreeSet<usize> = reaches.iter().map(|(_, reach)| *reach).filter(|&reach| reach > 1).collect();
    let mut orders: Vec<Vec<NodeId>> = vec![plain];
    for &least in lengths.iter().rev().take(MAX_REACHES) {
        let early: Vec<ValueId> = reaches.iter().filter(|(_, reach)| *reach >= least).map(|(v, _)| *v).collect();
        orders.push(walk(program, &early));
    }
    orders
}

/// Post-order of a depth-first walk, operands in order: from these values first, then from the outputs.
fn walk(program: &Program, early: &[ValueId]) -> Vec<NodeId> {
    let mut order = Vec::with_capacity(program.body.len());
    let mut seen = vec![false; program.graph.n_nodes()];
    for root in early.iter().copied().chain(program.outputs.iter().map(|(_, v)| *v)) {
        let mut stack: Vec<(NodeId, usize)> = Vec::new();
        let push = |value: ValueId, seen: &mut Vec<bool>, stack: &mut Vec<(NodeId, usize)>| {
            if let Some(node) = program.graph.producer(value)
                && !std::mem::replace(&mut seen[node.index()], true)
            {
                stack.push((node, 0));
            }
        };
        push(root, &mut seen, &mut stack);
        while let Some((node, next)) = stack.pop() {
            match program.graph.node(node).args.get(next) {
                Some(&arg) => {
                    stack.push((node, next + 1));
                    push(arg, &mut seen, &mut stack);
                }
                None => order.push(node),
            }
        }
    }
    order
}

/// For each value in order how far it is from the last of its readers: the length of the longest path between nodes that it
/// spans, counted from the outputs, so that a long branch beside it does not matter.
fn reaches(program: &Program, order: &[NodeId]) -> Vec<(ValueId, usize)> {
    let n = program.graph.n_values();
    // The longest and the shortest way from the readers of a value to an output.
    let (mut first, mut last) = (vec![0; n], vec![usize::MAX; n]);
    for (_, output) in &program.outputs {
        last[output.index()] = 0;
    }
    for &id in order.iter().rev() {
        let node = program.graph.node(id);
        let height = node.results.iter().map(|r| first[r.index()]).max().unwrap_or(0) + 1;
        for arg in &node.args {
            first[arg.index()] = first[arg.index()].max(height);
            last[arg.index()] = last[arg.index()].min(height);
        }
    }
    let results = order.iter().flat_map(|&id| &program.graph.node(id).results);
    results.map(|r| (*r, first[r.index()].saturating_sub(last[r.index()]))).collect()
}

#[cfg(test)]
mod tests {
    use crate::segment::segment;
    use galvatron_ir::text::parse;
    use std::fmt::Write;

    /// `n` layers from %x0 that all read %s, which is made of the second input.
    fn layers(n: usize) -> String {
        let mut text = String::from("gir 1\nmodule @m level=graph {\n");
        for i in 0..n {
            writeln!(text, "  initializer \"w{i}\" = {{file=\"none\", offset=0}} f32[4, 4]")
                .expect("strings take everything");
        }
        text += "  program {\n    input %x = \"x\": f32[2, 4]\n    input %m = \"m\": f32[2, 4]\n";
        for i in 0..n {
            writeln!(text, "    weight %w{i} = \"w{i}\": f32[4, 4]").expect("strings take everything");
        }
        text += "    %x0 = exp %x: f32[2, 4]\n    %r = exp %m: f32[2, 4]\n    %s = neg %r: f32[2, 4]\n";
        for i in 0..n {
            let next = i + 1;
            let lines = [
                format!("%a{i} = einsum{{spec=\"bk,kn->bn\"}} %x{i}, %w{i}"),
                format!("%b{i} = add %a{i}, %s"),
                format!("%c{i} = tanh %b{i}"),
                format!("%d{i} = mul %c{i}, %s"),
                format!("%e{i} = einsum{{spec=\"bk,kn->bn\"}} %d{i}, %w{i}"),
                format!("%x{next} = add %x{i}, %e{i}"),
            ];
            lines.iter().for_each(|line| writeln!(text, "    {line}: f32[2, 4]").expect("strings take everything"));
        }
        writeln!(text, "    output \"y\" %x{n}\n  }}\n}}").expect("strings take everything");
        text
    }

    #[test]
    fn what_all_layers_read_stands_in_front_of_them() {
        for n in [2, 5] {
            let mut program = parse(&layers(n)).expect("the text is right").program;
            let found = segment(&mut program);
            let sizes: Vec<(bool, usize)> = found.iter().map(|s| (s.is_layer, s.nodes.len())).collect();
            assert_eq!(sizes, [vec![(false, 3)], vec![(true, 6); n]].concat());
        }
    }
}
