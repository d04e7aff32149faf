//! Chooses one e-node of each class so that the program that results is cheap.
//!
//! The cost is that of the program as a graph: what several terms share counts once. Classes that every extraction contains
//! count for nothing in a choice, so that a choice is weighed against the few classes that only it needs. Greedy: each class
//! takes the e-node whose set of further classes is cheapest.

use super::analysis::Graph;
use super::cost::cost;
use super::language::Term;
use egg::{Id, Language};
use std::collections::{BTreeMap, BTreeSet};

/// The chosen e-node of each class that the roots need.
pub(super) type Choice = BTreeMap<Id, Term>;

/// An e-node that may be chosen.
struct Candidate {
    term: Term,
    children: Vec<Id>,
    cost: u64,
}

/// The best that is known of a class: the classes that it needs beside the required ones, itself included, and their cost.
#[derive(Clone)]
struct Best {
    candidate: usize,
    needs: BTreeSet<Id>,
    cost: u64,
}

/// The choice for these roots, or `None` if it would contain a cycle. `is_original` marks e-nodes to prefer at equal cost.
pub(super) fn extract(graph: &Graph, roots: &[Id], is_original: impl Fn(&Term) -> bool) -> Option<Choice> {
    let classes = candidates(graph, is_original);
    let roots: Vec<Id> = roots.iter().map(|&r| graph.find(r)).collect();
    let required = required(&classes, &roots);
    let best = improve(&classes, &required);
    let mut choice = Choice::new();
    let mut open: BTreeSet<Id> = BTreeSet::new();
    for root in roots {
        visit(root, &classes, &best, &mut choice, &mut open)?;
    }
    Some(choice)
}

/// The e-nodes of each class that have a cost. At equal cost original ones win: every cost is doubled, and others pay one more.
fn candidates(graph: &Graph, is_original: impl Fn(&Term) -> bool) -> BTreeMap<Id, Vec<Candidate>> {
    let mut classes = BTreeMap::new();
    for class in graph.classes() {
        let mut all = Vec::with_capacity(class.nodes.len());
        for node in &class.nodes {
            let term = node.clone().map_children(|c| graph.find(c));
            let children = term.children().to_vec();
            if let (false, Some(cost)) = (children.contains(&class.id), cost(graph, &term)) {
                let extra = u64::from(!is_original(&term));
                all.push(Candidate { children, cost: 2 * cost + extra, term });
            }
        }
        all.sort_by(|a, b| a.term.cmp(&b.term));
        classes.insert(class.id, all);
    }
    classes
}

/// The classes that every extraction of the roots contains.
fn required(classes: &BTreeMap<Id, Vec<Candidate>>, roots: &[Id]) -> BTreeSet<Id> {
    let mut required: BTreeSet<Id> = BTreeSet::new();
    let mut open = roots.to_vec();
    while let Some(class) = open.pop() {
        if !required.insert(class) {
            continue;
        }
        let mut candidates = classes[&class].iter();
        let Some(first) = candidates.next() else { continue };
        let mut shared: BTreeSet<Id> = first.children.iter().copied().collect();
        for other in candidates {
            shared.retain(|c| other.children.contains(c));
        }
        open.extend(shared);
    }
    required
}

/// Relaxes classes until no e-node improves its class.
fn improve(classes: &BTreeMap<Id, Vec<Candidate>>, required: &BTreeSet<Id>) -> BTreeMap<Id, Best> {
    let parents = parents(classes);
    let mut best: BTreeMap<Id, Best> = BTreeMap::new();
    let mut open: BTreeSet<Id> = classes.keys().copied().collect();
    while let Some(class) = open.pop_first() {
        let mut found: Option<Best> = None;
        for (i, candidate) in classes[&class].iter().enumerate() {
            let known = found.as_ref().or(best.get(&class)).map(|b| b.cost);
            if let Some(new) = weigh(class, i, candidate, classes, required, &best)
                && known.is_none_or(|cost| new.cost < cost)
            {
                found = Some(new);
            }
        }
        if let Some(new) = found {
            best.insert(class, new);
            open.extend(parents.get(&class).into_iter().flatten());
        }
    }
    best
}

fn parents(classes: &BTreeMap<Id, Vec<Candidate>>) -> BTreeMap<Id, BTreeSet<Id>> {
    let mut parents: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
    for (&class, candidates) in classes {
        for child in candidates.iter().flat_map(|c| &c.children) {
            parents.entry(*child).or_default().insert(class);
        }
    }
    parents
}

/// The class by this candidate, if all its children are known and none needs the class.
fn weigh(
    class: Id,
    index: usize,
    candidate: &Candidate,
    classes: &BTreeMap<Id, Vec<Candidate>>,
    required: &BTreeSet<Id>,
    best: &BTreeMap<Id, Best>,
) -> Option<Best> {
    let mut needs = BTreeSet::from([class]);
    for child in &candidate.children {
        let known = best.get(child)?;
        if !required.contains(child) {
            if known.needs.contains(&class) {
                return None;
            }
            needs.extend(&known.needs);
        }
    }
    let of_class = |c: &Id| if *c == class { candidate.cost } else { classes[c][best[c].candidate].cost };
    let cost = needs.iter().map(of_class).sum();
    Some(Best { candidate: index, needs, cost })
}

/// Collects what a class needs, children first; `None` on a cycle or where no e-node can be chosen.
fn visit(
    class: Id,
    classes: &BTreeMap<Id, Vec<Candidate>>,
    best: &BTreeMap<Id, Best>,
    choice: &mut Choice,
    open: &mut BTreeSet<Id>,
) -> Option<()> {
    if choice.contains_key(&class) {
        return Some(());
    }
    if !open.insert(class) {
        return None;
    }
    let candidate = &classes[&class][best.get(&class)?.candidate];
    for &child in &candidate.children {
        visit(child, classes, best, choice, open)?;
    }
    open.remove(&class);
    choice.insert(class, candidate.term.clone());
    Some(())
}
