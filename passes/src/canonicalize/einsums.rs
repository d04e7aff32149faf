//! Contractions absorb layouts: splits of their result, merges, transposes and repetitions of their operands.

use super::groups::groups;
use super::raise::reshaped;
use super::sweep::Sweep;
use galvatron_ir::ValueId;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Einsum, Reshape};

/// What a label becomes: labels with extents.
type Substitute = Vec<(char, u64)>;

/// Hands out letters that a contraction does not use.
struct Letters {
    taken: String,
}

impl Letters {
    fn new(spec: &Einsum) -> Letters {
        Letters { taken: format!("{}{}", spec.lhs, spec.rhs) }
    }

    fn fresh(&mut self) -> Option<char> {
        let letter = ('a'..='z').chain('A'..='Z').find(|c| !self.taken.contains(*c))?;
        self.taken.push(letter);
        Some(letter)
    }
}

/// Substitutes for some labels; the others stay.
struct Substitution {
    entries: Vec<(char, Substitute)>,
}

impl Substitution {
    fn labels(&self, labels: &str) -> String {
        labels.chars().flat_map(|c| self.of(c).map_or(vec![c], |s| s.iter().map(|e| e.0).collect())).collect()
    }

    fn shape(&self, labels: &str, shape: &[u64]) -> Vec<u64> {
        let each = labels.chars().zip(shape);
        each.flat_map(|(c, &d)| self.of(c).map_or(vec![d], |s| s.iter().map(|e| e.1).collect())).collect()
    }

    fn of(&self, label: char) -> Option<&Substitute> {
        self.entries.iter().find(|(c, _)| *c == label).map(|(_, s)| s)
    }

    fn apply(&self, spec: &Einsum) -> Einsum {
        Einsum { lhs: self.labels(&spec.lhs), rhs: self.labels(&spec.rhs), out: self.labels(&spec.out) }
    }
}

/// reshape(einsum) as an einsum of reshaped operands; the reshape splits, inserts or drops dimensions of the result.
pub(super) fn raise_split(cx: &mut Sweep<'_>, spec: &Einsum, args: &[ValueId], to: &[u64]) -> Option<ValueId> {
    let substitution = substitution_of_split(cx, spec, args, to)?;
    let new = substitution.apply(spec);
    Einsum::new(&new.spec()).ok()?;
    let lhs = reshaped(cx, args[0], &substitution.shape(&spec.lhs, &cx.shape(args[0])));
    let rhs = reshaped(cx, args[1], &substitution.shape(&spec.rhs, &cx.shape(args[1])));
    Some(cx.emit(new, &[lhs, rhs]))
}

fn substitution_of_split(cx: &Sweep<'_>, spec: &Einsum, args: &[ValueId], to: &[u64]) -> Option<Substitution> {
    let out: Vec<char> = spec.out.chars().collect();
    let from = Op::from(spec.clone()).infer(&[cx.ty(args[0]), cx.ty(args[1])]).ok()?.remove(0).shape;
    let mut letters = Letters::new(spec);
    let mut entries: Vec<(char, Substitute)> = out.iter().map(|&c| (c, Vec::new())).collect();
    for group in groups(&from, to) {
        let owner = group.from.start.min(out.len().checked_sub(1)?);
        let keeps = group.from.len() == 1 && group.to.len() == 1;
        for d in group.to {
            let letter = if keeps { out[owner] } else { letters.fresh()? };
            entries[owner].1.push((letter, to[d]));
        }
    }
    Some(Substitution { entries })
}

/// einsum(merge x, y) as a reshape of einsum(x, split y), for the operand at `side`.
pub(super) fn absorb_merge(cx: &mut Sweep<'_>, spec: &Einsum, args: &[ValueId], side: usize) -> Option<ValueId> {
    let Some((Op::Reshape(_), inner)) = cx.def(args[side]) else { return None };
    let (source, merged) = (inner[0], cx.shape(args[side]));
    let from = cx.shape(source);
    let labels: Vec<char> = if side == 0 { &spec.lhs } else { &spec.rhs }.chars().collect();
    let mut letters = Letters::new(spec);
    let mut entries = Vec::new();
    for group in groups(&from, &merged).into_iter().filter(|g| g.from.len() > 1) {
        let mut parts = Vec::new();
        for d in group.from {
            parts.push((letters.fresh()?, from[d]));
        }
        entries.push((labels[group.to.start], parts));
    }
    let substitution = Substitution { entries };
    let mut operands = args.to_vec();
    for (i, labels) in [&spec.lhs, &spec.rhs].into_iter().enumerate() {
        let value = if i == side { source } else { args[i] };
        let shape = substitution.shape(labels, &cx.shape(args[i]));
        operands[i] = reshaped(cx, value, &shape);
    }
    let types = [cx.ty(args[0]), cx.ty(args[1])];
    let shape = Op::from(spec.clone()).infer(&types).ok()?.remove(0).shape;
    let value = cx.emit(substitution.apply(spec), &operands);
    Some(if cx.shape(value) == shape { value } else { cx.emit(Reshape { shape }, &[value]) })
}

/// einsum(transpose x, y) with other labels for x; likewise for y.
pub(super) fn absorb_transposed_operand(cx: &mut Sweep<'_>, spec: &Einsum, args: &[ValueId]) -> Option<ValueId> {
    let mut parts = [spec.lhs.clone(), spec.rhs.clone()];
    let mut operands = args.to_vec();
    let mut found = false;
    for (labels, operand) in parts.iter_mut().zip(&mut operands) {
        if let Some((Op::Transpose(t), inner)) = cx.def(*operand) {
            let letters: Vec<char> = labels.chars().collect();
            *labels = t.inverse().perm.iter().map(|&i| letters[i]).collect();
            *operand = inner[0];
            found = true;
        }
    }
    let [lhs, rhs] = parts;
    found.then(|| cx.emit(Einsum { lhs, rhs, out: spec.out.clone() }, &operands))
}

/// einsum(broadcast x, y) without the labels along which x is repeated, as far as y has them; likewise for y.
pub(super) fn absorb_broadcast(cx: &mut Sweep<'_>, spec: &Einsum, args: &[ValueId], side: usize) -> Option<ValueId> {
    let Some((Op::Broadcast(b), inner)) = cx.def(args[side]) else { return None };
    let (source, dims, shape) = (inner[0], b.dims.clone(), b.shape.clone());
    let parts = [&spec.lhs, &spec.rhs];
    let (mine, other): (Vec<char>, &String) = (parts[side].chars().collect(), parts[1 - side]);
    let small = cx.shape(source);
    let extent = |d: usize| dims.iter().position(|&to| to == d).map_or(0, |i| small[i]);
    let repeated = |d: &usize| extent(*d) != shape[*d];
    let kept: Vec<usize> = (0..shape.len()).filter(|d| !repeated(d)).collect();
    let may_go = |d: usize| other.contains(mine[d]) && spec.out.contains(mine[d]);
    if kept.len() == shape.len() || !(0..shape.len()).filter(repeated).all(may_go) {
        return None;
    }
    let labels: String = kept.iter().map(|&d| mine[d]).collect();
    let kept_shape: Vec<u64> = kept.iter().map(|&d| shape[d]).collect();
    let operand = reshaped(cx, source, &kept_shape);
    let (lhs, rhs) = if side == 0 { (labels, other.clone()) } else { (other.clone(), labels) };
    let operands = if side == 0 { [operand, args[1]] } else { [args[0], operand] };
    Some(cx.emit(Einsum { lhs, rhs, out: spec.out.clone() }, &operands))
}
