//! Tables of rotary embeddings that hold the angle of each pair twice, and the half of them that says it all.

use crate::rewrite::analysis::{Graph, add_op, resolve};
use crate::rewrite::language::Term;
use egg::{Id, Language};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Constant, Full, Reshape, Unary};
use galvatron_ir::types::Scalar;

/// Ops between a table and where its angles are doubled, at most.
const MAX_DEPTH: usize = 8;

/// Where the two elements of a pair stand in the last dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairing {
    /// At i and i + p.
    Halves,
    /// At 2i and 2i + 1.
    Neighbours,
}

/// The table [.., p] of which a table [.., 2p] holds each element twice, or `None` where that is not known.
pub(super) fn table_of_pairs(graph: &mut Graph, table: Id, pairing: Pairing) -> Option<Id> {
    of_class(graph, table, pairing, MAX_DEPTH)
}

fn of_class(graph: &mut Graph, table: Id, pairing: Pairing, depth: usize) -> Option<Id> {
    let last = *graph[table].data.ty().shape.last()?;
    if depth == 0 || !last.is_multiple_of(2) {
        return None;
    }
    let nodes = graph[table].nodes.clone();
    nodes.iter().find_map(|term| of_term(graph, term, table, pairing, depth - 1))
}

fn of_term(graph: &mut Graph, term: &Term, table: Id, pairing: Pairing, depth: usize) -> Option<Id> {
    let (op, skip) = resolve(graph, term)?;
    let children = term.children()[skip..].to_vec();
    let half = graph[table].data.ty().shape.last()? / 2;
    match (op, children[..].as_ref()) {
        (Op::Constant(constant), []) => {
            let constant = half_of_constant(&constant, pairing)?;
            Some(add_op(graph, constant, &[]))
        }
        (Op::Full(full), []) => {
            let ty = full.ty.with_shape(with_last(&full.ty.shape, half));
            Some(add_op(graph, Full { ty, ..full }, &[]))
        }
        (Op::Concat(concat), &[a, b]) => {
            let is_doubled = pairing == Pairing::Halves && graph.find(a) == graph.find(b);
            (is_doubled && concat.dim + 1 == graph[table].data.ty().rank()).then_some(a)
        }
        (Op::Reshape(reshape), &[x]) => {
            let is_last_kept = graph[x].data.ty().shape.last() == reshape.shape.last();
            let x = if is_last_kept { of_class(graph, x, pairing, depth)? } else { return None };
            Some(add_op(graph, Reshape { shape: with_last(&reshape.shape, half) }, &[x]))
        }
        (Op::Unary(Unary { kind }), &[x]) => {
            let x = of_class(graph, x, pairing, depth)?;
            Some(add_op(graph, Unary { kind }, &[x]))
        }
        (Op::Binary(binary), &[a, b]) => {
            let a = of_operand(graph, a, pairing, depth)?;
            let b = of_operand(graph, b, pairing, depth)?;
            Some(add_op(graph, binary, &[a, b]))
        }
        _ => None,
    }
}

/// The half of an operand, or all of it where it is the same for all angles.
fn of_operand(graph: &mut Graph, operand: Id, pairing: Pairing, depth: usize) -> Option<Id> {
    match graph[operand].data.ty().shape.last() {
        None | Some(1) => Some(operand),
        Some(_) => of_class(graph, operand, pairing, depth),
    }
}

fn with_last(shape: &[u64], last: u64) -> Vec<u64> {
    let mut shape = shape.to_vec();
    if let Some(d) = shape.last_mut() {
        *d = last;
    }
    shape
}

/// One element of each pair, if both are equal.
fn half_of_constant(constant: &Constant, pairing: Pairing) -> Option<Constant> {
    let last = *constant.ty.shape.last()? as usize;
    let mut values: Vec<Scalar> = Vec::with_capacity(constant.values.len() / 2);
    for row in constant.values.chunks_exact(last) {
        for i in 0..last / 2 {
            let (a, b) = match pairing {
                Pairing::Halves => (row[i], row[i + last / 2]),
                Pairing::Neighbours => (row[2 * i], row[2 * i + 1]),
            };
            if a != b {
                return None;
            }
            values.push(a);
        }
    }
    Some(Constant { ty: constant.ty.with_shape(with_last(&constant.ty.shape, last as u64 / 2)), values: values.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::types::TensorType;

    fn half(pairing: Pairing, values: &[f64]) -> Option<Vec<f64>> {
        let values = values.iter().map(|&v| Scalar::new(v)).collect();
        let constant = Constant { ty: TensorType::f32([2, 4]), values };
        half_of_constant(&constant, pairing).map(|c| c.values.iter().map(|v| v.get()).collect())
    }

    #[test]
    fn tables_that_hold_each_angle_twice_are_halved() {
        let halves = [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0];
        assert_eq!(half(Pairing::Halves, &halves), Some(vec![1.0, 2.0, 3.0, 4.0]));
        assert_eq!(half(Pairing::Neighbours, &halves), None);
        let neighbours = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0];
        assert_eq!(half(Pairing::Neighbours, &neighbours), Some(vec![1.0, 2.0, 3.0, 4.0]));
    }
}
