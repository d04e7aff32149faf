//! Graphs: an arena of values and one of nodes, with ordered operands.
//!
//! The order of execution is not here but in the lists of node ids of the program or chunk that owns the graph.

mod view;

pub use view::{dead_nodes, dependency_graph, toposort};

use crate::id::{NodeId, ValueId};
use crate::mesh::Sharding;
use crate::op::Op;
use crate::place::Place;
use crate::types::TensorType;
use std::collections::BTreeSet;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Def {
    /// Result `1` of node `0`.
    Node(NodeId, u32),
    /// The owner of the graph declares it: an input, a weight, a state or a resident.
    Declared,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Unique name in the graph, without the sigil.
    pub name: String,
    /// Element type and global shape.
    pub ty: TensorType,
    /// Who defines it.
    pub def: Def,
    /// Placement, from level `sharded` on.
    pub sharding: Option<Sharding>,
    /// The training value that it is a copy of, from level `sharded` on.
    pub of: Option<ValueId>,
    /// Memory, at level `plan`.
    pub place: Option<Place>,
    /// The forward value that this is (a contribution to) the gradient of, in the training program.
    pub grad_of: Option<ValueId>,
}

/// An op applied to values.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The op.
    pub op: Op,
    /// Operands in order.
    pub args: Vec<ValueId>,
    /// Results in order.
    pub results: Vec<ValueId>,
    /// The forward node whose gradient this node computes a part of.
    pub fwd: Option<NodeId>,
    /// The segment (repeated layer) that it belongs to.
    pub layer: Option<u32>,
    /// Scratch memory, at level `plan`; its bytes are the op's workspace.
    pub workspace: Option<Place>,
}

/// Arenas of values and nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    values: Vec<Value>,
    nodes: Vec<Node>,
    names: BTreeSet<String>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Graph::default()
    }

    /// A value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// A value, to change it.
    pub fn value_mut(&mut self, id: ValueId) -> &mut Value {
        &mut self.values[id.index()]
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// A node, to change it.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// Number of values in the arena.
    pub fn n_values(&self) -> usize {
        self.values.len()
    }

    /// Number of nodes in the arena.
    pub fn n_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Ids of all values.
    pub fn value_ids(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    /// Ids of all nodes, dead ones included.
    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// The node that computes a value.
    pub fn producer(&self, value: ValueId) -> Option<NodeId> {
        match self.value(value).def {
            Def::Node(node, _) => Some(node),
            Def::Declared => None,
        }
    }

    /// The types of some values.
    pub fn types(&self, values: &[ValueId]) -> Vec<&TensorType> {
        values.iter().map(|&v| &self.value(v).ty).collect()
    }

    /// Adds a value that the owner of the graph declares.
    pub fn declare(&mut self, name: &str, ty: TensorType) -> ValueId {
        self.push_value(name, ty, Def::Declared)
    }

    /// Adds a node; its results get fresh names.
    ///
    /// # Errors
    /// What is wrong with the operands.
    pub fn add(&mut self, op: Op, args: &[ValueId]) -> Result<NodeId, String> {
        let types = op.infer(&self.types(args))?;
        let names = vec![op.mnemonic().rsplit('.').next().unwrap_or("v").to_string(); types.len()];
        Ok(self.add_typed(op, args, types, &names))
    }

    /// Adds a node whose result types are known; names are made unique.
    pub fn add_typed(&mut self, op: Op, args: &[ValueId], types: Vec<TensorType>, names: &[String]) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        let mut results = Vec::with_capacity(types.len());
        for (i, (ty, name)) in types.into_iter().zip(names).enumerate() {
            results.push(self.push_value(name, ty, Def::Node(id, i as u32)));
        }
        self.nodes.push(Node { op, args: args.to_vec(), results, fwd: None, layer: None, workspace: None });
        id
    }

    /// Gives a value another name (made unique if it is taken).
    pub fn rename(&mut self, value: ValueId, name: &str) {
        let old = self.values[value.index()].name.clone();
        if old == name {
            return;
        }
        self.names.remove(&old);
        let name = self.unique(name);
        self.values[value.index()].name = name;
    }

    fn push_value(&mut self, name: &str, ty: TensorType, def: Def) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        let name = self.unique(name);
        self.values.push(Value { name, ty, def, sharding: None, of: None, place: None, grad_of: None });
        id
    }

    /// The name if it is free, otherwise the name with the id that the next value gets, which is free.
    fn unique(&mut self, wanted: &str) -> String {
        let clean = clean_name(wanted);
        let mut name = clean.clone();
        let mut n = self.values.len();
        while !self.names.insert(name.clone()) {
            name = format!("{clean}_{n}");
            n += 1;
        }
        name
    }

    /// For each value the nodes of `body` that read it, in order.
    pub fn users(&self, body: &[NodeId]) -> Vec<Vec<NodeId>> {
        let mut users: Vec<Vec<NodeId>> = vec![Vec::new(); self.values.len()];
        for &node in body {
            for &arg in &self.node(node).args {
                if users[arg.index()].last() != Some(&node) {
                    users[arg.index()].push(node);
                }
            }
        }
        users
    }

    /// Makes every node of `body` that reads `old` read `new`.
    pub fn replace_uses(&mut self, body: &[NodeId], old: ValueId, new: ValueId) {
        for &node in body {
            for arg in &mut self.nodes[node.index()].args {
                if *arg == old {
                    *arg = new;
                }
            }
        }
    }
}

/// A name that the text format can hold: letters, digits, `_`, `.`, `/`, `-`; starts with no `.`.
fn clean_name(name: &str) -> String {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
    let mut clean: String = name.chars().map(|c| if ok(c) { c } else { '_' }).collect();
    if clean.is_empty() || clean.starts_with('.') {
        clean.insert(0, 'v');
    }
    clean
}
