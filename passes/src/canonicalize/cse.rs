//! Merges nodes that compute the same thing.

use super::sweep::sweep;
use galvatron_ir::op::Op;
use galvatron_ir::{Program, ValueId};
use std::collections::BTreeMap;

/// Keeps the first of equal nodes; nodes of which only result 0 is read, or of one result.
pub(super) fn merge_equal_nodes(program: &mut Program) -> bool {
    let mut first: BTreeMap<(Op, Vec<ValueId>), ValueId> = BTreeMap::new();
    sweep(program, |cx, node| {
        if !cx.is_single(node) {
            return None;
        }
        let key = (cx.op(node).clone(), cx.args(node));
        if let Some(&known) = first.get(&key) {
            return Some(known);
        }
        first.insert(key, cx.result(node));
        None
    })
}
