//! The parts that the labels of two contractions play in attention.

use galvatron_ir::op::compute::Einsum;

/// Layouts of the operands and the result in the letters of their parts: `b` batch, `h` heads (of keys), `r` queries of a head of
/// keys, `q` queries, `k` keys, `d` width of queries and keys, `e` width of values.
pub(super) struct Parts {
    /// Layout of the queries.
    pub(super) q: String,
    /// Layout of the keys.
    pub(super) k: String,
    /// Layout of the values.
    pub(super) v: String,
    /// Layout of the result.
    pub(super) out: String,
    /// Whether the queries are the second operand of the scores.
    pub(super) swapped: bool,
    /// Which of `b`, `h`, `r` there are.
    pub(super) batch: &'static str,
}

/// Reads the labels of the scores `s` and of the product with the values `t`, or `None` if this is no attention.
pub(super) fn parts(s: &Einsum, t: &Einsum) -> Option<Parts> {
    let n_batch = s.out.len().checked_sub(2)?;
    let batch = *["", "b", "bh", "bhr"].get(n_batch).filter(|b| !b.is_empty())?;
    let query = s.out.chars().nth(n_batch)?;
    let swapped = s.rhs.contains(query);
    let (q, k) = if swapped { (&s.rhs, &s.lhs) } else { (&s.lhs, &s.rhs) };
    let of_scores = |labels: &str| named(labels, &s.out, batch, 'd');
    let of_product = |labels: &str| named(labels, &t.lhs, batch, 'e');
    let parts =
        Parts { q: of_scores(q)?, k: of_scores(k)?, v: of_product(&t.rhs)?, out: of_product(&t.out)?, swapped, batch };
    let shared = batch.trim_end_matches('r');
    let fits = is_layout(&parts.q, &[batch, "qd"])
        && is_layout(&parts.k, &[shared, "kd"])
        && is_layout(&parts.v, &[shared, "ke"])
        && is_layout(&parts.out, &[batch, "qe"]);
    fits.then_some(parts)
}

/// Labels by their position in the scores; at most one that the scores lack becomes `rest`.
fn named(labels: &str, scores: &str, batch: &str, rest: char) -> Option<String> {
    let letters: Vec<char> = batch.chars().chain(['q', 'k']).collect();
    let name = |c: char| scores.find(c).map_or(Some(rest), |i| letters.get(i).copied());
    labels.chars().map(name).collect()
}

/// Whether the layout has exactly these letters.
fn is_layout(layout: &str, letters: &[&str]) -> bool {
    let wanted = letters.concat();
    layout.len() == wanted.len() && wanted.chars().all(|c| layout.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layouts(s: &str, t: &str) -> Option<String> {
        let einsum = |spec| Einsum::new(spec).expect("the test's contraction");
        parts(&einsum(s), &einsum(t)).map(|p| [p.q, p.k, p.v, p.out].join(" "))
    }

    #[test]
    fn layouts_of_attention() {
        let found = layouts("bshd,bthd->bhst", "bhst,bthe->bshe");
        assert_eq!(found.as_deref(), Some("bqhd bkhd bkhe bqhe"));
        let grouped = layouts("bhsqd,bhtd->bhsqt", "bhqsd,bhdt->bshqt");
        assert_eq!(grouped.as_deref(), Some("bhrqd bhkd bhke bqhre"));
    }

    #[test]
    fn a_product_over_queries_is_no_attention() {
        assert_eq!(layouts("bqd,bkd->bqk", "bqk,bqe->bke"), None);
    }
}
