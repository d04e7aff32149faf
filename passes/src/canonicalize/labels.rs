//! Gives the labels of contractions the letters that readers expect.

use super::sweep::sweep;
use galvatron_ir::Program;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::Einsum;

/// Renames labels: rows of a projection `b`, `s`; its contracted dimensions `k` or `h`, `d`; its columns `n` or `h`, `d`; and
/// `b`, `h` for the dimensions that both operands and the result of a batched product share.
pub(super) fn name_labels(program: &mut Program) {
    sweep(program, |cx, node| {
        let Op::Einsum(spec) = cx.op(node) else { return None };
        let named = named(spec);
        if named == *spec {
            return None;
        }
        let args = cx.args(node);
        Some(cx.emit(named, &args))
    });
}

/// The same contraction with the customary letters.
fn named(spec: &Einsum) -> Einsum {
    let (l, r, o) = (&spec.lhs, &spec.rhs, &spec.out);
    let class = |from: &str, keep: &dyn Fn(char) -> bool| -> Vec<char> { from.chars().filter(|&c| keep(c)).collect() };
    let batch = class(o, &|c| l.contains(c) && r.contains(c));
    let rows = class(o, &|c| l.contains(c) && !r.contains(c));
    let columns = class(o, &|c| !l.contains(c) && r.contains(c));
    let contracted = class(l, &|c| !o.contains(c));
    let mut names = Names { pairs: Vec::new() };
    let is_batched = !batch.is_empty();
    names.give(&batch, "bhg");
    names.give(&rows, if is_batched { "sq" } else { "bst" });
    names.give(
        &contracted,
        if contracted.len() > 1 {
            "hd"
        } else if is_batched {
            "dt"
        } else {
            "k"
        },
    );
    names.give(
        &columns,
        if columns.len() > 1 {
            "hd"
        } else if is_batched {
            "te"
        } else {
            "n"
        },
    );
    Einsum { lhs: names.apply(l), rhs: names.apply(r), out: names.apply(o) }
}

struct Names {
    pairs: Vec<(char, char)>,
}

impl Names {
    /// Gives each label the first free letter of those preferred, or else of the alphabet.
    fn give(&mut self, labels: &[char], preferred: &str) {
        for &label in labels {
            let mut letters = preferred.chars().chain('a'..='z').chain('A'..='Z');
            let free = letters.find(|c| self.pairs.iter().all(|(_, new)| new != c));
            self.pairs.push((label, free.unwrap_or(label)));
        }
    }

    fn apply(&self, labels: &str) -> String {
        let new = |c| self.pairs.iter().find(|(old, _)| *old == c).map_or(c, |(_, new)| *new);
        labels.chars().map(new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: &str, expected: &str) {
        assert_eq!(named(&Einsum::new(spec).expect("the test's contraction")).spec(), expected);
    }

    #[test]
    fn projections_and_products_of_attention() {
        check("xyz,zvw->xyvw", "bsk,khd->bshd");
        check("abcd,cde->abe", "bshd,hdn->bsn");
        check("ab,cb->ac", "bk,nk->bn");
        check("abcd,aecd->acbe", "bshd,bthd->bhst");
    }
}
