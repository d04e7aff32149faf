//! From a program to an e-graph and back.

use super::analysis::{Facts, Graph, resolve};
use super::extract::{Choice, extract};
use super::language::{LeafIndex, Term, term_of};
use crate::canonicalize::remove_dead_nodes;
use egg::{Id, Language};
use galvatron_ir::op::Effects;
use galvatron_ir::{NodeId, Program, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// A program as an e-graph, with what is needed to find the way back.
pub(super) struct Converted {
    /// The e-graph; pure nodes of which only result 0 is read are terms, all other results are leaves.
    pub(super) graph: Graph,
    leaves: Vec<ValueId>,
    class_of: BTreeMap<ValueId, Id>,
    terms: Vec<(NodeId, Term)>,
    roots: Vec<Id>,
}

/// Puts the body of a program into an e-graph.
pub(super) fn to_graph(program: &Program) -> Converted {
    let mut converted = Converted {
        graph: Graph::new(Facts::default()),
        leaves: Vec::new(),
        class_of: BTreeMap::new(),
        terms: Vec::new(),
        roots: Vec::new(),
    };
    let read = read_values(program);
    for &id in &program.body {
        let node = program.graph.node(id);
        let args: Vec<Id> = node.args.iter().map(|&a| converted.class(program, a)).collect();
        let is_single = node.results[1..].iter().all(|r| !read[r.index()]);
        if is_single && node.op.effects() == Effects::Pure {
            let index = converted.graph.analysis.vocabulary.intern(node.op.clone());
            let graph = &mut converted.graph;
            let term = term_of(&node.op, &args, index, || graph.add(Term::Attr(index)));
            let class = converted.graph.add(term.clone());
            converted.class_of.insert(node.results[0], class);
            converted.terms.push((id, term));
        } else {
            converted.roots.extend(args);
        }
    }
    for (_, value) in &program.outputs {
        let class = converted.class(program, *value);
        converted.roots.push(class);
    }
    converted.graph.rebuild();
    converted
}

/// For each value whether a node or an output reads it.
fn read_values(program: &Program) -> Vec<bool> {
    let mut read = vec![false; program.graph.n_values()];
    let args = program.body.iter().flat_map(|&n| &program.graph.node(n).args);
    for value in args.chain(program.outputs.iter().map(|(_, v)| v)) {
        read[value.index()] = true;
    }
    read
}

impl Converted {
    fn class(&mut self, program: &Program, value: ValueId) -> Id {
        if let Some(&class) = self.class_of.get(&value) {
            return class;
        }
        let leaf = LeafIndex(self.leaves.len() as u32);
        self.leaves.push(value);
        let is_input = program.inputs.iter().any(|input| input.value == value);
        let is_frozen = program.weight_of(value).is_some_and(|weight| !weight.trainable);
        self.graph.analysis.leaves.push((program.graph.value(value).ty.clone(), !is_input && !is_frozen));
        let class = self.graph.add(Term::Leaf(leaf));
        self.class_of.insert(value, class);
        class
    }

    /// Rewrites the body of the program to what is cheapest in the e-graph. Leaves the program alone if that has a cycle.
    pub(super) fn back(mut self, program: &mut Program) {
        let graph = &self.graph;
        let mut originals: BTreeMap<Term, NodeId> = BTreeMap::new();
        for (node, term) in self.terms.drain(..) {
            originals.entry(term.map_children(|c| graph.find(c))).or_insert(node);
        }
        let Some(choice) = extract(graph, &self.roots, |term| originals.contains_key(term)) else { return };
        let mut emitter = Emitter {
            converted: &self,
            choice: &choice,
            originals: &originals,
            values: BTreeMap::new(),
            renamed: BTreeSet::new(),
            body: Vec::with_capacity(program.body.len()),
        };
        for id in std::mem::take(&mut program.body) {
            emitter.visit(program, id);
        }
        let outputs: Vec<ValueId> = program.outputs.iter().map(|(_, v)| *v).collect();
        let outputs: Vec<ValueId> = outputs.into_iter().map(|v| emitter.value(program, v)).collect();
        program.body = emitter.body;
        for ((_, output), new) in program.outputs.iter_mut().zip(outputs) {
            *output = new;
        }
        remove_dead_nodes(program);
    }
}

/// Writes the chosen terms as nodes, in the order of the old body.
struct Emitter<'a> {
    converted: &'a Converted,
    choice: &'a Choice,
    originals: &'a BTreeMap<Term, NodeId>,
    values: BTreeMap<Id, ValueId>,
    renamed: BTreeSet<ValueId>,
    body: Vec<NodeId>,
}

impl Emitter<'_> {
    /// Emits the class of an old node's result, or the node itself where it is no term.
    fn visit(&mut self, program: &mut Program, id: NodeId) {
        let result = program.graph.node(id).results.first().copied();
        let class = result.and_then(|r| self.converted.class_of.get(&r)).map(|c| self.converted.graph.find(*c));
        match class {
            Some(class) if !matches!(self.choice.get(&class), Some(Term::Leaf(_))) => {
                if self.choice.contains_key(&class) {
                    self.emit(program, class, id);
                }
            }
            _ => {
                let args = program.graph.node(id).args.clone();
                let args = args.into_iter().map(|a| self.value(program, a)).collect();
                program.graph.node_mut(id).args = args;
                self.body.push(id);
            }
        }
    }

    /// The new value of an old one.
    fn value(&mut self, program: &mut Program, old: ValueId) -> ValueId {
        let class = self.converted.class_of.get(&old).map(|c| self.converted.graph.find(*c));
        let known = class.filter(|c| self.choice.contains_key(c));
        match (known, program.graph.producer(old)) {
            (Some(class), Some(node)) => self.emit(program, class, node),
            _ => old,
        }
    }

    /// Emits a class and what it needs; `near` is the old node at whose place this happens.
    fn emit(&mut self, program: &mut Program, class: Id, near: NodeId) -> ValueId {
        if let Some(&value) = self.values.get(&class) {
            return value;
        }
        let term = self.choice[&class].clone();
        if let Term::Leaf(LeafIndex(i)) = term {
            return self.converted.leaves[i as usize];
        }
        let (op, skip) = resolve(&self.converted.graph, &term).expect("invariant: only ops are extracted");
        let args: Vec<ValueId> = term.children()[skip..].iter().map(|&c| self.emit(program, c, near)).collect();
        let node = match self.originals.get(&term) {
            Some(&node) => {
                program.graph.node_mut(node).args = args;
                node
            }
            None => self.emit_new(program, class, op, &args, near),
        };
        self.body.push(node);
        let value = program.graph.node(node).results[0];
        self.values.insert(class, value);
        value
    }

    fn emit_new(
        &mut self,
        program: &mut Program,
        class: Id,
        op: galvatron_ir::op::Op,
        args: &[ValueId],
        near: NodeId,
    ) -> NodeId {
        let node = program.graph.add(op, args).expect("invariant: terms are legal ops");
        program.graph.node_mut(node).layer = program.graph.node(near).layer;
        let old = program.graph.node(near).results[0];
        let stands_for = self.converted.class_of.get(&old).map(|c| self.converted.graph.find(*c));
        if stands_for == Some(class) && self.renamed.insert(old) {
            let name = program.graph.value(old).name.clone();
            program.graph.rename(old, "dead");
            let new = program.graph.node(node).results[0];
            program.graph.rename(new, &name);
        }
        node
    }
}
