//! `Einsum` of any number of operands, with ellipses, repeated labels and labels that are summed in one operand alone.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Einsum, ReduceSum, Unfold, Windows};

use super::layout::{expanded, transposed};
use super::{Call, Fault, Operator, Results, one, unsupported_type};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Einsum" => einsum,
        _ => return None,
    })
}

/// A value whose dimensions have labels.
#[derive(Clone, Debug)]
struct Labelled {
    value: ValueId,
    labels: Vec<char>,
}

/// The operands are contracted one after the other; a label is summed as soon as nothing else has it.
fn einsum(call: &mut Call<'_, '_>) -> Results {
    let spec: String = call.attributes().string("equation", "").split_whitespace().collect();
    let operands = (0..call.node.inputs.len()).map(|i| call.float(i)).collect::<Result<Vec<_>, _>>()?;
    let ranks: Vec<usize> = operands.iter().map(|&v| call.ty(v).rank()).collect();
    let (inputs, out) = labels(&spec, &ranks)?;
    let mut terms = Vec::new();
    for (value, labels) in operands.into_iter().zip(inputs) {
        terms.push(diagonal(call, Labelled { value, labels })?);
    }
    let mut terms = terms.into_iter();
    let mut product = terms.next().ok_or("no operands")?;
    while let Some(next) = terms.next() {
        let mut needed = out.clone();
        needed.extend(terms.as_slice().iter().flat_map(|term| term.labels.iter()));
        product = contracted(call, product, next, &needed)?;
    }
    let product = summed(call, product, &out)?;
    let place = |c: &char| product.labels.iter().position(|l| l == c);
    let perm: Option<Vec<usize>> = out.iter().map(place).collect();
    let perm = perm.ok_or_else(|| format!("`{spec}` has a label in its result that is in no operand"))?;
    one(transposed(call, product.value, perm)?)
}

/// Labels of each operand and of the result; ellipses become capital letters that the equation does not use.
fn labels(spec: &str, ranks: &[usize]) -> Result<(Vec<Vec<char>>, Vec<char>), Fault> {
    let (inputs, out) = match spec.split_once("->") {
        Some((inputs, out)) => (inputs, Some(out)),
        None => (spec, None),
    };
    let terms: Vec<&str> = inputs.split(',').collect();
    if terms.len() != ranks.len() {
        return Err(format!("`{spec}` has {} terms for {} operands", terms.len(), ranks.len()).into());
    }
    let free: Vec<char> = ('A'..='Z').chain('a'..='z').filter(|&c| !spec.contains(c)).collect();
    let named = |term: &str| term.chars().filter(|c| *c != '.').count();
    let width = |(term, &rank): (&&str, &usize)| if term.contains('.') { rank.saturating_sub(named(term)) } else { 0 };
    let n_dots = terms.iter().zip(ranks).map(width).max().unwrap_or(0);
    let dots = free.get(..n_dots).ok_or_else(|| Fault::Unsupported("of very many dimensions".into()))?;
    let spelled = |term: &str, n: usize| -> Vec<char> {
        match term.split_once("...") {
            Some((before, after)) => {
                before.chars().chain(dots[n_dots - n..].iter().copied()).chain(after.chars()).collect()
            }
            None => term.chars().collect(),
        }
    };
    let all: Vec<Vec<char>> = terms.iter().zip(ranks).map(|pair| spelled(pair.0, width(pair))).collect();
    let is_bad =
        |(labels, &rank): (&Vec<char>, &usize)| labels.len() != rank || labels.iter().any(|c| !c.is_ascii_alphabetic());
    if all.iter().zip(ranks).any(is_bad) {
        return Err(format!("the labels of `{spec}` do not fit operands of {ranks:?} dimensions").into());
    }
    let out = out.map_or_else(|| implied(&all, dots), |out| spelled(out, n_dots));
    Ok((all, out))
}

/// The result without an arrow: the ellipsis, then the labels that occur once, in the order of the alphabet.
fn implied(all: &[Vec<char>], dots: &[char]) -> Vec<char> {
    let mut labels: Vec<char> = all.iter().flatten().copied().filter(|c| !dots.contains(c)).collect();
    labels.sort();
    let once = |c: &char| labels.iter().filter(|l| *l == c).count() == 1;
    dots.iter().copied().chain(labels.iter().copied().filter(once)).collect()
}

/// The term with each label once: two dimensions of one label become their diagonal.
fn diagonal(call: &mut Call<'_, '_>, mut term: Labelled) -> Result<Labelled, Fault> {
    while let Some((i, j)) = repeated(&term.labels) {
        let rank = term.labels.len();
        let perm: Vec<usize> = (0..rank).filter(|d| *d != i && *d != j).chain([i, j]).collect();
        let shape = call.ty(term.value).shape;
        let n = shape[i];
        if shape[j] != n {
            return Err(format!("label `{}` has extents {n} and {}", term.labels[i], shape[j]).into());
        }
        let moved = transposed(call, term.value, perm.clone())?;
        let outer: Vec<u64> = perm[..rank - 2].iter().map(|&d| shape[d]).collect();
        let flat = call.reshape(moved, &[&outer[..], &[n * n]].concat())?;
        let windows = Windows { dim: rank - 2, size: 1, stride: n + 1, dilation: 1 };
        let picked = call.emit(Unfold { windows }, &[flat])?;
        term.value = call.reshape(picked, &[&outer[..], &[n]].concat())?;
        term.labels = perm[..rank - 1].iter().map(|&d| term.labels[d]).collect();
    }
    Ok(term)
}

fn repeated(labels: &[char]) -> Option<(usize, usize)> {
    let again = |i: usize| labels[i + 1..].iter().position(|l| *l == labels[i]).map(|j| (i, i + 1 + j));
    (0..labels.len()).find_map(again)
}

/// The term with the labels summed that nothing needs.
fn summed(call: &mut Call<'_, '_>, term: Labelled, needed: &[char]) -> Result<Labelled, Fault> {
    let alone = |d: &usize| !needed.contains(&term.labels[*d]);
    let dims: Vec<usize> = (0..term.labels.len()).filter(alone).collect();
    if dims.is_empty() {
        return Ok(term);
    }
    let labels = term.labels.iter().copied().filter(|c| needed.contains(c)).collect();
    Ok(Labelled { value: call.emit(ReduceSum { dims }, &[term.value])?, labels })
}

/// The product of two terms, summed over the labels that they share and nothing else needs.
fn contracted(call: &mut Call<'_, '_>, a: Labelled, b: Labelled, needed: &[char]) -> Result<Labelled, Fault> {
    let (a, b) = matched(call, a, b)?;
    let keeps = |other: &Labelled| needed.iter().chain(&other.labels).copied().collect::<Vec<_>>();
    let (with_b, with_a) = (keeps(&b), keeps(&a));
    let (a, b) = (summed(call, a, &with_b)?, summed(call, b, &with_a)?);
    let new = b.labels.iter().filter(|c| !a.labels.contains(c));
    let labels: Vec<char> = a.labels.iter().chain(new).copied().filter(|c| needed.contains(c)).collect();
    let word = |labels: &[char]| labels.iter().collect::<String>();
    let op = Einsum { lhs: word(&a.labels), rhs: word(&b.labels), out: word(&labels) };
    if !call.ty(a.value).dtype.is_float() {
        return Err(unsupported_type(call.ty(a.value).dtype));
    }
    Ok(Labelled { value: call.emit(op, &[a.value, b.value])?, labels })
}

/// Both terms with the same extent for each shared label: one of extent 1 is repeated.
fn matched(call: &mut Call<'_, '_>, mut a: Labelled, mut b: Labelled) -> Result<(Labelled, Labelled), Fault> {
    let (mut left, mut right) = (call.ty(a.value).shape, call.ty(b.value).shape);
    for (i, label) in a.labels.iter().enumerate() {
        if let Some(j) = b.labels.iter().position(|l| l == label) {
            let extent = left[i].max(right[j]);
            (left[i], right[j]) = (extent, extent);
        }
    }
    a.value = expanded(call, a.value, left)?;
    b.value = expanded(call, b.value, right)?;
    Ok((a, b))
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    fn check(equation: &str, operands: &str, expected: &str) {
        let node = format!("y = Einsum{{equation={equation}}} {operands}");
        let builder = Builder::new(&[&node]).input("x", 1, "batch 3 3").input("z", 1, "batch 3 4").f32("w", &[3, 4]);
        assert_eq!(builder.ops(), expected);
    }

    #[test]
    fn two_operands_are_one_contraction() {
        check("bij,jk->bik", "x w", "einsum<bij,jk->bik> f32[2, 3, 4]");
        check("bij,bjk->kib", "x z", "einsum<bij,bjk->bik> f32[2, 3, 4]; transpose<[2, 1, 0]> f32[4, 3, 2]");
    }

    #[test]
    fn ellipses_and_implied_results() {
        check("...j,jk", "x w", "einsum<ABj,jk->ABk> f32[2, 3, 4]");
        check("...ij->...ji", "x", "transpose<[0, 2, 1]> f32[2, 3, 3]");
    }

    #[test]
    fn labels_of_one_operand_are_summed_first_and_diagonals_cut_out() {
        check("bij,jk->b", "x w", "reduce_sum f32[2, 3]; reduce_sum f32[3]; einsum<bj,j->b> f32[2]");
        let cut = "reshape f32[2, 9]; unfold f32[2, 3, 1]; reshape f32[2, 3]; reduce_sum f32[2]";
        check("bii->b", "x", cut);
    }

    #[test]
    fn many_operands_are_contracted_in_turn() {
        let expected = "einsum<bij,bjk->bik> f32[2, 3, 4]; einsum<bik,ik->b> f32[2]";
        check("bij,bjk,ik->b", "x z w", expected);
    }
}
