//! Why a plan could not be run, or not to the end.

use crate::comm::CommFault;

/// A fault that ends a run. It names the rank and the node where there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunFault {
    /// The plan is not one that an engine can run; the verifier refuses such plans.
    #[error("the plan cannot be run: {0}")]
    Plan(String),
    /// Nodes that the backend has no kernel for, all of them.
    #[error("the backend cannot run this plan:{}", list(.0))]
    Unsupported(Vec<Unsupported>),
    /// A rank's arena could not be allocated.
    #[error("rank {rank}: cannot allocate an arena of {bytes} bytes")]
    Memory {
        /// The rank.
        rank: usize,
        /// Its size.
        bytes: u64,
    },
    /// A rank has no device that it could use.
    #[error("rank {rank}: {what}")]
    Device {
        /// The rank.
        rank: usize,
        /// Why.
        what: String,
    },
    /// A stored tensor could not be read, or is not what the plan says.
    #[error("`{initializer}`: {what}")]
    Weights {
        /// Name of the stored tensor.
        initializer: String,
        /// What is wrong.
        what: String,
    },
    /// The data has no such array, or not of that size.
    #[error("data `{input}`: {what}")]
    Data {
        /// Name of the array.
        input: String,
        /// What is wrong.
        what: String,
    },
    /// A kernel or a load refused its data.
    #[error("rank {rank} at `{node}` (step {step}): {what}")]
    Node {
        /// The rank.
        rank: usize,
        /// The plan node.
        node: String,
        /// The training step.
        step: u64,
        /// What is wrong.
        what: String,
    },
    /// Communication failed.
    #[error(transparent)]
    Comm(#[from] CommFault),
    /// A rank's thread panicked: a bug of this program.
    #[error("rank {rank} at `{node}`: internal error: {message}")]
    Panic {
        /// The rank.
        rank: usize,
        /// The plan node that it was at.
        node: String,
        /// The panic's message.
        message: String,
    },
}

/// A node without a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The plan node.
    pub node: String,
    /// The op's mnemonic.
    pub op: String,
    /// Why.
    pub what: String,
}

fn list(nodes: &[Unsupported]) -> String {
    nodes.iter().map(|n| format!("\n  `{}` ({}): {}", n.node, n.op, n.what)).collect()
}

impl RunFault {
    /// How likely this is the cause and not a consequence of another rank's fault; lower is likelier.
    pub(crate) fn distance_from_cause(&self) -> usize {
        match self {
            RunFault::Comm(CommFault::Aborted { .. }) => 3,
            RunFault::Comm(CommFault::Timeout { .. }) => 2,
            RunFault::Comm(CommFault::Mismatch { .. }) => 1,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_unsupported_nodes_are_listed() {
        let node = |name: &str| Unsupported { node: name.into(), op: "einsum".into(), what: "bf16".into() };
        let text = RunFault::Unsupported(vec![node("%a"), node("%b")]).to_string();
        assert_eq!(text, "the backend cannot run this plan:\n  `%a` (einsum): bf16\n  `%b` (einsum): bf16");
    }
}
