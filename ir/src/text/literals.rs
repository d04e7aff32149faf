//! Literals: long lists of numbers, written once however many nodes have them.

use crate::graph::Graph;
use crate::id::NodeId;
use crate::module::Module;
use crate::op::{AttrValue, Op};
use crate::types::Scalar;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;

/// A list with more numbers than this stands apart.
const MAX_INLINE: usize = 64;

/// The long lists of a module in the order in which nodes mention them.
#[derive(Default)]
pub struct Literals {
    lists: Vec<Arc<[Scalar]>>,
    /// Index of the list that has these elements.
    by_content: BTreeMap<Arc<[Scalar]>, usize>,
    /// The same by where elements lie, so that shared ones are not compared.
    by_place: HashMap<*const Scalar, usize>,
}

impl Literals {
    /// Those of all nodes that stand in a body.
    pub fn of(module: &Module) -> Literals {
        let mut literals = Literals::default();
        literals.add_all(&module.program.graph, module.program.body.iter().copied());
        for chunk in &module.chunks {
            literals.add_all(&chunk.graph, chunk.nodes().map(|(_, node)| node));
        }
        literals
    }

    fn add_all(&mut self, graph: &Graph, body: impl Iterator<Item = NodeId>) {
        let ops = body.map(|node| &graph.node(node).op).filter(|op| matches!(op, Op::Constant(_)));
        for (_, value) in ops.flat_map(|op| op.attrs()) {
            match value {
                AttrValue::Numbers(numbers) if numbers.len() > MAX_INLINE => self.add(&numbers),
                _ => {}
            }
        }
    }

    fn add(&mut self, numbers: &Arc<[Scalar]>) {
        if self.by_place.contains_key(&numbers.as_ptr()) {
            return;
        }
        let index = *self.by_content.entry(numbers.clone()).or_insert(self.lists.len());
        if index == self.lists.len() {
            self.lists.push(numbers.clone());
        }
        self.by_place.insert(numbers.as_ptr(), index);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &[Scalar]> {
        self.lists.iter().map(|list| &**list)
    }

    /// The number of a list that stands apart.
    pub fn index_of(&self, numbers: &Arc<[Scalar]>) -> Option<usize> {
        self.by_place.get(&numbers.as_ptr()).copied()
    }
}

/// Numbers with spaces between, in quotes.
pub fn in_quotes(numbers: &[Scalar]) -> String {
    let mut text = String::from("\"");
    for (i, number) in numbers.iter().enumerate() {
        let space = if i == 0 { "" } else { " " };
        write!(text, "{space}{number}").expect("invariant: a string takes all text");
    }
    text.push('"');
    text
}
