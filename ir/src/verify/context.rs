//! What the checks share: facts of the program, and of one chunk of it.

use super::{Finding, Part, Site};
use crate::graph::{Def, Graph, Value};
use crate::id::{AxisId, NodeId, ValueId};
use crate::mesh::{Mesh, Sharding};
use crate::module::{Level, Module, Program};
use crate::plan::{Chunk, PhaseKind, ResidentRole};
use std::collections::BTreeMap;

/// The program by value.
pub(super) struct ProgramFacts {
    /// Whether the program declares or computes the value.
    pub known: Vec<bool>,
    /// Index of the input that a value is.
    pub inputs: BTreeMap<ValueId, usize>,
    /// Index of the weight that a value is.
    pub weights: BTreeMap<ValueId, usize>,
    /// Index of the state that a value is.
    pub states: BTreeMap<ValueId, usize>,
    /// Index of the update of a weight or state, and its new value.
    pub updates: BTreeMap<ValueId, (usize, ValueId)>,
}

impl ProgramFacts {
    pub(super) fn new(program: &Program) -> ProgramFacts {
        let by_value = |values: &mut dyn Iterator<Item = ValueId>| values.enumerate().map(|(i, v)| (v, i)).collect();
        let inputs: BTreeMap<_, _> = by_value(&mut program.inputs.iter().map(|i| i.value));
        let weights: BTreeMap<_, _> = by_value(&mut program.weights.iter().map(|w| w.value));
        let states: BTreeMap<_, _> = by_value(&mut program.states.iter().map(|s| s.value));
        let mut known = vec![false; program.graph.n_values()];
        let computed = program.body.iter().flat_map(|&n| &program.graph.node(n).results);
        for value in inputs.keys().chain(weights.keys()).chain(states.keys()).chain(computed) {
            known[value.index()] = true;
        }
        let updates = program.updates.iter().enumerate().map(|(i, &(old, new))| (old, (i, new))).collect();
        ProgramFacts { known, inputs, weights, states, updates }
    }

    /// Whether the program declares or computes the value.
    pub(super) fn knows(&self, value: ValueId) -> bool {
        self.known.get(value.index()) == Some(&true)
    }
}

/// One chunk of a module, with facts that several checks need.
pub(super) struct ChunkCx<'a> {
    pub module: &'a Module,
    pub facts: &'a ProgramFacts,
    pub index: u32,
    pub chunk: &'a Chunk,
    pub mesh: &'a Mesh,
    /// For each value the index of the resident that it is.
    pub resident: Vec<Option<usize>>,
}

impl<'a> ChunkCx<'a> {
    pub(super) fn new(module: &'a Module, facts: &'a ProgramFacts, index: usize) -> ChunkCx<'a> {
        let chunk = &module.chunks[index];
        let mut resident = vec![None; chunk.graph.n_values()];
        for (i, r) in chunk.residents.iter().enumerate() {
            resident[r.value.index()] = Some(i);
        }
        ChunkCx { module, facts, index: index as u32, chunk, mesh: module.mesh_of(chunk), resident }
    }

    pub(super) fn program(&self) -> &'a Program {
        &self.module.program
    }

    pub(super) fn is_plan(&self) -> bool {
        self.module.level == Level::Plan
    }

    pub(super) fn value(&self, value: ValueId) -> &'a Value {
        self.chunk.graph.value(value)
    }

    /// Placement of a value; every value has one once placements are checked.
    pub(super) fn sharding(&self, value: ValueId) -> &'a Sharding {
        self.value(value).sharding.as_ref().expect("invariant: placements were checked")
    }

    /// The program value that a value is a copy of; every value has one once placements are checked.
    pub(super) fn of(&self, value: ValueId) -> ValueId {
        self.value(value).of.expect("invariant: placements were checked")
    }

    pub(super) fn role(&self, value: ValueId) -> Option<ResidentRole> {
        self.resident[value.index()].map(|i| self.chunk.residents[i].role)
    }

    /// Every node with its phase, in order of execution.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (PhaseKind, NodeId)> + use<'a> {
        self.chunk.nodes()
    }

    /// Residents and results, with their places in the module and the phase that computes them.
    pub(super) fn values(&self) -> impl Iterator<Item = (ValueId, Site, Option<PhaseKind>)> + use<'_, 'a> {
        let residents = self.chunk.residents.iter().enumerate();
        let residents = residents.map(|(i, r)| (r.value, Site::Resident(self.index, i), None));
        let computed = self.nodes().flat_map(move |(phase, node)| {
            let results = self.chunk.graph.node(node).results.iter().enumerate();
            results.map(move |(i, &value)| (value, self.site(node, Part::Result(i)), Some(phase)))
        });
        residents.chain(computed)
    }

    pub(super) fn site(&self, node: NodeId, part: Part) -> Site {
        Site::ChunkNode(self.index, node, part)
    }

    /// Where a value is defined.
    pub(super) fn site_of(&self, value: ValueId) -> Site {
        match (self.resident[value.index()], self.value(value).def) {
            (Some(resident), _) => Site::Resident(self.index, resident),
            (None, Def::Node(node, result)) => self.site(node, Part::Result(result as usize)),
            (None, Def::Declared) => Site::Module,
        }
    }

    /// A finding about a part of a node; the message starts with the node's name.
    pub(super) fn finding(&self, code: &'static str, node: NodeId, part: Part, message: String) -> Finding {
        let name = node_name(&self.chunk.graph, node);
        Finding::new(code, self.site(node, part), format!("{name}: {message}"))
    }

    /// `%name` of a value of the chunk.
    pub(super) fn name(&self, value: ValueId) -> String {
        format!("%{}", self.value(value).name)
    }

    /// `%name` of a value of the program.
    pub(super) fn program_name(&self, value: ValueId) -> String {
        format!("%{}", self.program().graph.value(value).name)
    }

    /// A list of axes as a sentence has it: `` `a0`, `a1` ``.
    pub(super) fn axes(&self, axes: &[AxisId]) -> String {
        axes.iter().map(|&a| format!("`{}`", self.axis(a))).collect::<Vec<_>>().join(", ")
    }

    /// A list of axes as an attribute has it: `axes=[a0, a1]`.
    pub(super) fn axes_attr(&self, axes: &[AxisId]) -> String {
        format!("axes=[{}]", axes.iter().map(|&a| self.axis(a)).collect::<Vec<_>>().join(", "))
    }

    fn axis(&self, axis: AxisId) -> &str {
        if axis.index() < self.mesh.axes().len() { self.mesh.name(axis) } else { "?" }
    }
}

/// How messages call a node: by its first result, or by its op and first operand.
pub(super) fn node_name(graph: &Graph, node: NodeId) -> String {
    let node = graph.node(node);
    let name = |v: ValueId| &graph.value(v).name;
    match (node.results.first(), node.args.first()) {
        (Some(&result), _) => format!("`%{}`", name(result)),
        (None, Some(&arg)) => format!("`{} %{}`", node.op.mnemonic(), name(arg)),
        (None, None) => format!("`{}`", node.op.mnemonic()),
    }
}
