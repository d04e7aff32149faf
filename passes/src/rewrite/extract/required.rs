//! The classes that every extraction contains.
//!
//! What a class needs under every choice is the class, and what all its candidates need: the intersection, over them, of the
//! union of what their children need (the dominators of a graph of alternatives). Sets hold only what lies near, so that the
//! work grows with the number of classes alone; what is required far below is found through what is required between.

use super::Classes;
use std::collections::BTreeSet;

/// How much deeper than a class those that need it may lie, to be remembered as such.
const NEAR: usize = 16;

/// For each class whether every extraction of the roots contains it. A class that is only found to be required by a chain of
/// more than `NEAR` alternatives is missed, and counts as if it were not.
pub(super) fn required(classes: &Classes, roots: &[usize]) -> Vec<bool> {
    let depths = depths(classes);
    let mut needs: Vec<Option<Vec<usize>>> = vec![None; classes.len()];
    settle(classes, &mut needs, &|class, needs| {
        let is_near = |&need: &usize| need == class || depths[class] <= depths[need].map(|d| d + NEAR);
        Some(needed(classes, class, needs)?.into_iter().filter(is_near).collect())
    });
    let mut required = vec![false; classes.len()];
    let mut open = roots.to_vec();
    while let Some(class) = open.pop() {
        if !std::mem::replace(&mut required[class], true) {
            open.extend(needed(classes, class, &needs).into_iter().flatten());
        }
    }
    required
}

/// For each class the height of the lowest term that it has, `None` if it has none.
fn depths(classes: &Classes) -> Vec<Option<usize>> {
    let mut depths: Vec<Option<usize>> = vec![None; classes.len()];
    settle(classes, &mut depths, &|class, depths| {
        let of_children =
            |children: &Vec<usize>| children.iter().map(|&c| depths[c]).try_fold(0, |d, c| Some(d.max(c? + 1)));
        classes[class].iter().filter_map(|candidate| of_children(&candidate.children)).min()
    });
    depths
}

/// Computes the facts of classes from those of their children until none changes.
fn settle<T: PartialEq>(classes: &Classes, facts: &mut [T], fact: &dyn Fn(usize, &[T]) -> T) {
    let parents = super::parents(classes);
    let mut open: BTreeSet<usize> = (0..classes.len()).collect();
    while let Some(class) = open.pop_first() {
        let new = fact(class, facts);
        if new != facts[class] {
            facts[class] = new;
            open.extend(&parents[class]);
        }
    }
}

/// What every term of a class needs, sorted; `None` as long as it has no term.
fn needed(classes: &Classes, class: usize, needs: &[Option<Vec<usize>>]) -> Option<Vec<usize>> {
    let mut shared: Option<Vec<usize>> = None;
    for candidate in &classes[class] {
        let Some(of_candidate) = union(&candidate.children, needs) else { continue };
        // A term of a class that contains the class is none to choose.
        if of_candidate.binary_search(&class).is_err() {
            shared = Some(match shared {
                None => of_candidate,
                Some(shared) => shared.into_iter().filter(|need| of_candidate.binary_search(need).is_ok()).collect(),
            });
        }
    }
    let mut needed = shared?;
    needed.insert(needed.partition_point(|&need| need < class), class);
    Some(needed)
}

/// What these classes need together, sorted; `None` as long as one has no term.
fn union(of: &[usize], needs: &[Option<Vec<usize>>]) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for &class in of {
        all.extend(needs[class].as_ref()?);
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::super::Candidate;
    use super::required;
    use crate::rewrite::language::{LeafIndex, Term};

    /// The required ones of classes that are given by the children of their candidates; the last class is the root.
    fn check(classes: &[&[&[usize]]], expected: &[usize]) {
        let candidate =
            |children: &&[usize]| Candidate { term: Term::Leaf(LeafIndex(0)), children: children.to_vec(), cost: 1 };
        let classes: Vec<Vec<Candidate>> = classes.iter().map(|all| all.iter().map(candidate).collect()).collect();
        let found = required(&classes, &[classes.len() - 1]);
        let found: Vec<usize> = (0..classes.len()).filter(|&class| found[class]).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_lies_below_all_alternatives_is_required() {
        // 3 is made of 1 or of 2, both of which are made of 0.
        check(&[&[&[]], &[&[0]], &[&[0]], &[&[1], &[2]]], &[0, 3]);
        check(&[&[&[]], &[&[0]], &[&[0]], &[&[1, 2]]], &[0, 1, 2, 3]);
    }

    #[test]
    fn alternatives_in_a_row_are_passed() {
        // Each link is the one before it, or goes round by a class of its own.
        let mut links: Vec<Vec<Vec<usize>>> = vec![vec![vec![]]];
        for link in 0..40 {
            links.push(vec![vec![2 * link]]);
            links.push(vec![vec![2 * link], vec![2 * link + 1]]);
        }
        let classes: Vec<Vec<&[usize]>> = links.iter().map(|all| all.iter().map(Vec::as_slice).collect()).collect();
        let classes: Vec<&[&[usize]]> = classes.iter().map(Vec::as_slice).collect();
        check(&classes, &(0..=40).map(|link| 2 * link).collect::<Vec<_>>());
    }

    #[test]
    fn terms_that_contain_their_class_are_no_alternatives() {
        // 2 is made of 1, and 1 of 2 or of 0.
        check(&[&[&[]], &[&[2], &[0]], &[&[1]]], &[0, 1, 2]);
    }
}
