//! How a reshape pairs the dimensions of two shapes.

use std::ops::Range;

/// The smallest runs of dimensions that hold the same elements on both sides; a unit dimension without partner is a run of
/// its own against an empty one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Dimensions before the reshape.
    pub(crate) from: Range<usize>,
    /// Dimensions after it.
    pub(crate) to: Range<usize>,
}

/// The groups of a reshape in order. Shapes have the same number of elements.
pub(crate) fn groups(from: &[u64], to: &[u64]) -> Vec<Group> {
    let (mut i, mut j) = (0, 0);
    let mut all = Vec::new();
    while i < from.len() || j < to.len() {
        let (i0, j0) = (i, j);
        let (a, b) = (from.get(i).copied(), to.get(j).copied());
        if a == Some(1) && b != Some(1) {
            i += 1;
        } else if b == Some(1) && a != Some(1) {
            j += 1;
        } else {
            (i, j) = (i + 1, j + 1);
            let (mut left, mut right) = (a.unwrap_or(1), b.unwrap_or(1));
            while left != right {
                if left < right && i < from.len() {
                    left *= from[i];
                    i += 1;
                } else if right < left && j < to.len() {
                    right *= to[j];
                    j += 1;
                } else {
                    (i, j) = (from.len(), to.len());
                    break;
                }
            }
        }
        all.push(Group { from: i0..i, to: j0..j });
    }
    all
}

/// What a reshape does to the dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReshapeKind {
    /// Nothing.
    Identity,
    /// It splits dimensions, or only inserts and drops unit dimensions.
    Split,
    /// It merges dimensions, and may insert and drop unit dimensions.
    Merge,
    /// Both.
    Mixed,
}

/// The kind of the reshape.
pub(super) fn kind(from: &[u64], to: &[u64]) -> ReshapeKind {
    let all = groups(from, to);
    match (all.iter().any(|g| g.to.len() > 1), all.iter().any(|g| g.from.len() > 1)) {
        _ if from == to => ReshapeKind::Identity,
        (_, false) => ReshapeKind::Split,
        (false, true) => ReshapeKind::Merge,
        (true, true) => ReshapeKind::Mixed,
    }
}

/// The coarsest shape without unit dimensions of which both shapes are merges, if there is one.
pub(super) fn refinement(from: &[u64], to: &[u64]) -> Option<Vec<u64>> {
    let mut all = Vec::new();
    for group in groups(from, to) {
        let mut left = from[group.from].iter().copied().filter(|&d| d > 1);
        let mut right = to[group.to].iter().copied().filter(|&d| d > 1);
        let (mut a, mut b) = (left.next().unwrap_or(1), right.next().unwrap_or(1));
        while a > 1 && b > 1 {
            let common = a.min(b);
            if !a.is_multiple_of(common) || !b.is_multiple_of(common) {
                return None;
            }
            all.push(common);
            (a, b) = (a / common, b / common);
            a = if a == 1 { left.next().unwrap_or(1) } else { a };
            b = if b == 1 { right.next().unwrap_or(1) } else { b };
        }
    }
    Some(all)
}

/// Shape of an operand of an element-wise op after its result is reshaped from `out` to `to`: the operand's dimensions are
/// aligned with `out` from the right and equal it or are 1. Every group has at most one dimension on the side of `out`.
pub(super) fn reshaped_operand(operand: &[u64], out: &[u64], to: &[u64]) -> Vec<u64> {
    let skip = out.len() - operand.len();
    let mut shape = Vec::new();
    for group in groups(out, to) {
        // Unit dimensions in front of an operand of lower rank are left out; one of full rank has them all.
        let is_inside = group.from.start > skip || skip == 0;
        let covered = if group.from.is_empty() { is_inside } else { group.from.start >= skip };
        if !covered {
            continue;
        }
        let is_full = group.from.clone().all(|d| operand[d - skip] == out[d]);
        shape.extend(group.to.map(|d| if is_full { to[d] } else { 1 }));
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_dimensions_are_groups_of_their_own() {
        let found = groups(&[4, 1, 6], &[4, 2, 3]);
        assert_eq!(found.len(), 3);
        assert_eq!(found[1], Group { from: 1..2, to: 1..1 });
    }

    #[test]
    fn kinds() {
        assert_eq!(kind(&[64, 144], &[4, 16, 3, 4, 12]), ReshapeKind::Split);
        assert_eq!(kind(&[4, 16, 48], &[64, 48]), ReshapeKind::Merge);
        assert_eq!(kind(&[4, 16, 48], &[64, 4, 12]), ReshapeKind::Mixed);
        assert_eq!(kind(&[1, 16], &[16]), ReshapeKind::Split);
    }

    #[test]
    fn refinement_keeps_common_boundaries() {
        assert_eq!(refinement(&[4, 16, 48], &[64, 4, 12]), Some(vec![4, 16, 4, 12]));
        assert_eq!(refinement(&[4, 6], &[6, 4]), None);
    }

    #[test]
    fn operand_follows_the_result() {
        assert_eq!(reshaped_operand(&[48], &[64, 48], &[4, 16, 4, 12]), [4, 12]);
        assert_eq!(reshaped_operand(&[1, 48], &[64, 48], &[4, 16, 48]), [1, 1, 48]);
        assert_eq!(reshaped_operand(&[], &[64, 48], &[4, 16, 48]), Vec::<u64>::new());
        assert_eq!(reshaped_operand(&[4, 6], &[4, 6], &[1, 1, 4, 6]), [1, 1, 4, 6]);
        assert_eq!(reshaped_operand(&[6], &[4, 6], &[1, 4, 1, 6]), [6]);
    }
}
