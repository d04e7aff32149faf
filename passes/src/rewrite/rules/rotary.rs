//! rotary embedding from slices, products and concatenations, and its tables from those of the exporter.

use super::Rule;
use super::conditions::{Match, rule};
use super::tables::{Pairing, table_of_pairs};
use crate::rewrite::analysis::add_op;
use egg::Id;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Rotary, Slice};

/// The rules. In the first two the tables hold the angle of each pair twice, in the others once.
pub(super) fn rules() -> Vec<Rule> {
    vec![
        rule("rotary-of-halves", "(add (mul ?x ?c) (mul (concat ?cat (neg (slice ?hi ?x)) (slice ?lo ?x)) ?s))", |m| {
            let halves = is_halves(m, m.shape("x").len() - 1);
            if halves { rotary_of_doubled(m, Pairing::Halves) } else { None }
        }),
        rule(
            "rotary-of-neighbours",
            "(add (mul ?x ?c) (mul (reshape ?r (concat ?cat (neg (slice ?hi (reshape ?t ?x))) \
             (slice ?lo (reshape ?t ?x)))) ?s))",
            |m| {
                let rank = m.shape("x").len();
                let halves = is_pairs_last(m, "t") && is_halves(m, rank);
                if halves { rotary_of_doubled(m, Pairing::Neighbours) } else { None }
            },
        ),
        rule(
            "rotary-by-halves",
            "(concat ?cat (sub (mul (slice ?lo ?x) ?c) (mul (slice ?hi ?x) ?s)) \
             (add (mul (slice ?lo ?x) ?s) (mul (slice ?hi ?x) ?c)))",
            |m| {
                let pairs = m.shape("x").last()? / 2;
                let fits = is_halves(m, m.shape("x").len() - 1) && m.shape("c").last() == Some(&pairs);
                if fits { rotary(m, "x", false, [m.get("c"), m.get("s")]) } else { None }
            },
        ),
        rule(
            "rotary-by-neighbours",
            "(reshape ?r (concat ?cat (sub (mul (slice ?lo (reshape ?t ?x)) ?c) (mul (slice ?hi (reshape ?t ?x)) ?s)) \
             (add (mul (slice ?lo (reshape ?t ?x)) ?s) (mul (slice ?hi (reshape ?t ?x)) ?c))))",
            |m| {
                let rank = m.shape("x").len();
                let fits = is_pairs_last(m, "t") && is_halves(m, rank) && m.shape("c").last() == Some(&1);
                let tables = if fits { [column(m, "c")?, column(m, "s")?] } else { return None };
                rotary(m, "x", true, tables)
            },
        ),
        rule("rotary-of-a-part", "(concat ?cat (rotary ?a (slice ?lo ?x) ?c ?s) (slice ?hi ?x))", |m| {
            let Some(Op::Rotary(op)) = m.attr("a") else { return None };
            let interleaved = op.interleaved;
            let turned = 2 * m.shape("c").last()?;
            let last = m.shape("x").len() - 1;
            let (lo, hi) = (slice(m, "lo")?, slice(m, "hi")?);
            let parts = lo == Slice { dim: last, start: 0, len: turned }
                && hi == Slice { dim: last, start: turned, len: m.shape("x")[last] - turned }
                && joins(m, last);
            if parts { rotary(m, "x", interleaved, [m.get("c"), m.get("s")]) } else { None }
        }),
    ]
}

fn slice(m: &Match<'_>, name: &str) -> Option<Slice> {
    match m.attr(name) {
        Some(Op::Slice(slice)) => Some(*slice),
        _ => None,
    }
}

/// Whether ?cat joins along this dimension.
fn joins(m: &Match<'_>, dim: usize) -> bool {
    matches!(m.attr("cat"), Some(Op::Concat(concat)) if concat.dim == dim)
}

/// Whether ?lo and ?hi are the halves of dimension `dim`, which ?cat joins again.
fn is_halves(m: &Match<'_>, dim: usize) -> bool {
    let (Some(lo), Some(hi)) = (slice(m, "lo"), slice(m, "hi")) else { return false };
    let len = lo.len;
    let extent = if dim == m.shape("x").len() { Some(2) } else { m.shape("x").get(dim).copied() };
    extent == Some(2 * len)
        && lo == Slice { dim, start: 0, len }
        && hi == Slice { dim, start: len, len }
        && joins(m, dim)
}

/// Whether the reshape splits the last dimension of ?x into pairs.
fn is_pairs_last(m: &Match<'_>, name: &str) -> bool {
    let Some(Op::Reshape(reshape)) = m.attr(name) else { return false };
    let mut split = m.shape("x");
    let Some(last) = split.last_mut() else { return false };
    *last /= 2;
    split.push(2);
    reshape.shape == split
}

/// The table [.., p, 1] as [.., p].
fn column(m: &mut Match<'_>, name: &str) -> Option<Id> {
    let shape = m.shape(name);
    let (&[_, 1], shape) = (shape.last_chunk::<2>()?, shape[..shape.len() - 1].to_vec()) else { return None };
    let table = m.get(name);
    Some(add_op(m.graph, galvatron_ir::op::compute::Reshape { shape }, &[table]))
}

/// The op for tables that have each angle twice.
fn rotary_of_doubled(m: &mut Match<'_>, pairing: Pairing) -> Option<Id> {
    if m.shape("c").last() != m.shape("x").last() {
        return None;
    }
    let tables = [m.get("c"), m.get("s")];
    let [cos, sin] = tables.map(|table| table_of_pairs(m.graph, table, pairing));
    rotary(m, "x", pairing == Pairing::Neighbours, [cos?, sin?])
}

/// The op, unless an angle may be trained or the tables are larger than what they turn.
fn rotary(m: &mut Match<'_>, x: &str, interleaved: bool, [cos, sin]: [Id; 2]) -> Option<Id> {
    let op = Rotary { interleaved, inverse: false };
    let x = m.get(x);
    let types = [x, cos, sin].map(|id| m.graph[id].data.ty().clone());
    let is_trained = [cos, sin].iter().any(|&id| m.graph[id].data.is_trained());
    let fits = !is_trained && Op::from(op).infer(&types.iter().collect::<Vec<_>>()).is_ok();
    fits.then(|| add_op(m.graph, op, &[x, cos, sin]))
}
