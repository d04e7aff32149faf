//! The cost of one e-node, from the work of its op.

use super::analysis::{Graph, resolve};
use super::language::Term;
use egg::Language;
use galvatron_ir::op::Op;
use galvatron_ir::types::TensorType;

/// How many floating-point operations of a matrix product cost as much as one byte moved or one other operation.
const MATMUL_FLOPS_PER_UNIT: u64 = 8;

/// Cost of a term without its children, or `None` if it is not to be extracted. Changes of layout are free, since contractions
/// absorb them; attributes and leaves are free too.
pub(super) fn cost(graph: &Graph, term: &Term) -> Option<u64> {
    match term {
        Term::Attr(_) | Term::Leaf(_) => return Some(0),
        Term::GuardedSoftmax(_) | Term::RowMean(_) | Term::Normalized(_) | Term::InverseRms(_) => return None,
        _ => {}
    }
    let (op, skip) = resolve(graph, term)?;
    if matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_)) {
        return Some(0);
    }
    let args: Vec<&TensorType> = term.children()[skip..].iter().map(|c| graph[*c].data.ty()).collect();
    let results = op.infer(&args).ok()?;
    let work = op.work(&args, &results.iter().collect::<Vec<_>>());
    Some(1 + work.bytes + work.flops + work.matmul_flops / MATMUL_FLOPS_PER_UNIT)
}
