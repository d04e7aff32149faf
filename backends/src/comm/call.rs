//! What the members of a group must agree on when they make a call, and how a disagreement is said.

use super::{CommKind, ReduceOp};

/// One member's call without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) kind: CommKind,
    /// The length of the buffer that the call is about, in bytes.
    pub(super) n_bytes: usize,
    pub(super) op: Option<ReduceOp>,
    pub(super) root_index: Option<usize>,
}

impl Shape {
    /// A call without a reduction and a root.
    pub(super) fn new(kind: CommKind, n_bytes: usize) -> Self {
        Self { kind, n_bytes, op: None, root_index: None }
    }
}

/// What two members disagree on, `mine` first; each is a call and the plan node that it comes from.
pub(super) fn difference(mine: (&Shape, &str), other: (&Shape, &str)) -> Option<String> {
    let ((a, my_node), (b, other_node)) = (mine, other);
    if a.kind != b.kind {
        Some(format!("the calls differ: {} and {}", a.kind, b.kind))
    } else if my_node != other_node {
        Some(format!("the nodes differ: `{my_node}` and `{other_node}`"))
    } else if a.n_bytes != b.n_bytes {
        Some(format!("the byte counts of {} differ: {} and {}", a.kind, a.n_bytes, b.n_bytes))
    } else if a.op != b.op {
        Some(format!("the reductions differ: {:?} and {:?}", a.op, b.op))
    } else if a.root_index != b.root_index {
        Some(format!("the roots differ: {:?} and {:?}", a.root_index, b.root_index))
    } else {
        None
    }
}
