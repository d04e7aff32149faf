//! Chooses one e-node of each class so that the program that results is cheap.
//!
//! The cost is that of the program as a graph: what several terms share counts once. Classes that every extraction contains
//! count for nothing in a choice, so that a choice is weighed against the few classes that only it needs. Greedy: each class
//! takes the e-node whose set of further classes is cheapest.

mod required;

use super::analysis::Graph;
use super::cost::cost;
use super::language::Term;
use egg::{Id, Language};
use std::collections::{BTreeMap, BTreeSet};

/// The chosen e-node of each class that the roots need.
pub(super) type Choice = BTreeMap<Id, Term>;

/// An e-node that may be chosen, with the places of its children among the classes.
struct Candidate {
    term: Term,
    children: Vec<usize>,
    cost: u64,
}

/// The candidates of each class, by the place of the class.
type Classes = Vec<Vec<Candidate>>;

/// The best that is known of a class: the classes that it needs beside the required ones, itself included, sorted, and their
/// cost.
struct Best {
    candidate: usize,
    needs: Vec<usize>,
    cost: u64,
}

/// The choice for these roots, or `None` if it would contain a cycle. `is_original` marks e-nodes to prefer at equal cost.
pub(super) fn extract(graph: &Graph, roots: &[Id], is_original: impl Fn(&Term) -> bool) -> Option<Choice> {
    let ids: BTreeSet<Id> = graph.classes().map(|class| class.id).collect();
    let places: BTreeMap<Id, usize> = ids.iter().enumerate().map(|(place, &id)| (id, place)).collect();
    let classes: Classes = ids.iter().map(|&id| candidates(graph, id, &places, &is_original)).collect();
    let roots: Vec<usize> = roots.iter().map(|&r| places[&graph.find(r)]).collect();
    let best = improve(&classes, &required::required(&classes, &roots));
    let mut chosen = BTreeMap::new();
    let mut open = BTreeSet::new();
    for root in roots {
        visit(root, &classes, &best, &mut chosen, &mut open)?;
    }
    let ids: Vec<Id> = ids.into_iter().collect();
    Some(chosen.into_iter().map(|(class, term)| (ids[class], term)).collect())
}

/// The e-nodes of a class that have a cost. At equal cost original ones win: every cost is doubled, and others pay one more.
fn candidates(
    graph: &Graph,
    class: Id,
    places: &BTreeMap<Id, usize>,
    is_original: impl Fn(&Term) -> bool,
) -> Vec<Candidate> {
    let mut all = Vec::new();
    for node in &graph[class].nodes {
        let term = node.clone().map_children(|c| graph.find(c));
        if let (false, Some(cost)) = (term.children().contains(&class), cost(graph, &term)) {
            let extra = u64::from(!is_original(&term));
            let children = term.children().iter().map(|c| places[c]).collect();
            all.push(Candidate { children, cost: 2 * cost + extra, term });
        }
    }
    all.sort_by(|a, b| a.term.cmp(&b.term));
    all
}

/// Relaxes classes until no e-node improves its class.
fn improve(classes: &Classes, required: &[bool]) -> Vec<Option<Best>> {
    let parents = parents(classes);
    let mut best: Vec<Option<Best>> = classes.iter().map(|_| None).collect();
    let mut open: BTreeSet<usize> = (0..classes.len()).collect();
    while let Some(class) = open.pop_first() {
        let mut found: Option<Best> = None;
        for (i, candidate) in classes[class].iter().enumerate() {
            let known = found.as_ref().or(best[class].as_ref()).map(|b| b.cost);
            if let Some(new) = weigh(class, i, candidate, classes, required, &best)
                && known.is_none_or(|cost| new.cost < cost)
            {
                found = Some(new);
            }
        }
        if let Some(new) = found {
            best[class] = Some(new);
            open.extend(&parents[class]);
        }
    }
    best
}

/// The classes that have a candidate with this class among its children.
fn parents(classes: &Classes) -> Vec<Vec<usize>> {
    let mut parents: Vec<Vec<usize>> = vec![Vec::new(); classes.len()];
    for (class, candidates) in classes.iter().enumerate() {
        for &child in candidates.iter().flat_map(|c| &c.children) {
            parents[child].push(class);
        }
    }
    for all in &mut parents {
        all.dedup();
    }
    parents
}

/// The class by this candidate, if all its children are known and none needs the class.
fn weigh(
    class: usize,
    index: usize,
    candidate: &Candidate,
    classes: &Classes,
    required: &[bool],
    best: &[Option<Best>],
) -> Option<Best> {
    let mut needs = vec![class];
    for &child in &candidate.children {
        let known = best[child].as_ref()?;
        if !required[child] {
            needs.extend(&known.needs);
        }
    }
    let n_own = needs.iter().filter(|&&need| need == class).count();
    if n_own > 1 {
        return None;
    }
    needs.sort_unstable();
    needs.dedup();
    let of_class = |&c: &usize| match &best[c] {
        Some(known) if c != class => classes[c][known.candidate].cost,
        _ => candidate.cost,
    };
    let cost = needs.iter().map(of_class).sum();
    Some(Best { candidate: index, needs, cost })
}

/// Collects what a class needs, children first; `None` on a cycle or where no e-node can be chosen.
fn visit(
    class: usize,
    classes: &Classes,
    best: &[Option<Best>],
    chosen: &mut BTreeMap<usize, Term>,
    open: &mut BTreeSet<usize>,
) -> Option<()> {
    if chosen.contains_key(&class) {
        return Some(());
    }
    if !open.insert(class) {
        return None;
    }
    let candidate = &classes[class][best[class].as_ref()?.candidate];
    for &child in &candidate.children {
        visit(child, classes, best, chosen, open)?;
    }
    open.remove(&class);
    chosen.insert(class, candidate.term.clone());
    Some(())
}
