//! Names of values that passes made.

use galvatron_ir::{NodeId, Program};
use std::collections::BTreeSet;

/// The names that the program has already.
pub(super) fn names(program: &Program) -> BTreeSet<String> {
    program.graph.value_ids().map(|v| program.graph.value(v).name.clone()).collect()
}

/// Names each result that got its name since `known` after the op that computes it now.
pub(super) fn name_new_results(program: &mut Program, known: &BTreeSet<String>) {
    let body: Vec<NodeId> = program.body.clone();
    for id in body {
        let node = program.graph.node(id).clone();
        let mnemonic = node.op.mnemonic();
        for result in node.results {
            let name = &program.graph.value(result).name;
            let is_plain = name.strip_prefix(mnemonic).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
            if !known.contains(name) && !is_plain {
                program.graph.rename(result, mnemonic);
            }
        }
    }
}
