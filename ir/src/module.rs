//! A module: everything that one text file says, at one of four levels.

use crate::cluster::Cluster;
use crate::graph::Graph;
use crate::id::{NodeId, ValueId};
use crate::mesh::Mesh;
use crate::op::Op;
use crate::plan::{Chunk, Predicted, Stage};
use crate::recipe::LrSchedule;
use crate::types::{Scalar, TensorType, element_count};

/// How far a module has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The forward program.
    Graph,
    /// Forward, loss, backward and optimizer of one whole step, on one device.
    Training,
    /// The chunk with placements; changes of placement are `comm.reshard`.
    Sharded,
    /// The chunk with collectives, recomputation, schedule and memory.
    Plan,
}

impl Level {
    /// All levels with their names in the text format.
    pub const ALL: [(Level, &'static str); 4] =
        [(Level::Graph, "graph"), (Level::Training, "training"), (Level::Sharded, "sharded"), (Level::Plan, "plan")];

    /// Name in the text format.
    pub fn name(self) -> &'static str {
        Level::ALL.iter().find(|(l, _)| *l == self).map_or("?", |(_, n)| n)
    }
}

/// A stored tensor of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initializer {
    /// Name in the model file.
    pub name: String,
    /// File as typed; resolved against the plan's folder, then the current one. Empty where the elements are stored nowhere.
    pub file: String,
    /// Byte offset in the file.
    pub offset: u64,
    /// Element type and stored shape.
    pub ty: TensorType,
    /// What a fresh one is drawn from, where the model says it.
    pub start: Option<Normal>,
}

/// A normal distribution; of deviation 0 it is a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normal {
    /// The mean.
    pub mean: Scalar,
    /// The standard deviation.
    pub std: Scalar,
}

impl Normal {
    /// The distribution of that mean and deviation.
    pub fn new(mean: f64, std: f64) -> Normal {
        Normal { mean: Scalar::new(mean), std: Scalar::new(std) }
    }
}

/// One step from a stored tensor to a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewStep {
    /// The same elements under another shape.
    Reshape(Vec<u64>),
    /// Dimension i becomes dimension `perm[i]` of what came before.
    Transpose(Vec<usize>),
    /// Some elements of one dimension.
    Slice {
        /// The dimension.
        dim: usize,
        /// First element.
        start: u64,
        /// Number of elements.
        len: u64,
    },
    /// Zeros after the elements of one dimension; they are never stored.
    Pad {
        /// The dimension.
        dim: usize,
        /// Its extent with the zeros.
        extent: u64,
    },
}

impl ViewStep {
    /// Shape after the step, or `None` where it does not fit.
    pub fn apply(&self, shape: &[u64]) -> Option<Vec<u64>> {
        match self {
            ViewStep::Reshape(to) => (element_count(to) == element_count(shape)).then(|| to.clone()),
            ViewStep::Transpose(perm) => {
                let fits = perm.len() == shape.len() && (0..shape.len()).all(|d| perm.contains(&d));
                fits.then(|| perm.iter().map(|&p| shape[p]).collect())
            }
            ViewStep::Slice { dim, start, len } => {
                let mut to = shape.to_vec();
                let extent = to.get_mut(*dim)?;
                if start.checked_add(*len).is_none_or(|end| end > *extent) {
                    return None;
                }
                *extent = *len;
                Some(to)
            }
            ViewStep::Pad { dim, extent } => {
                let mut to = shape.to_vec();
                let padded = to.get_mut(*dim).filter(|stored| **stored <= *extent)?;
                *padded = *extent;
                Some(to)
            }
        }
    }
}

/// A parameter (or a frozen buffer) as a view of a stored initializer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The value that the program reads.
    pub value: ValueId,
    /// Index of the initializer in the module.
    pub initializer: usize,
    /// Steps from the stored tensor to the value.
    pub view: Vec<ViewStep>,
    /// Whether it is trained.
    pub trainable: bool,
}

impl Weight {
    /// Whether the value has elements that are not stored.
    pub fn is_padded(&self) -> bool {
        self.view.iter().any(|step| matches!(step, ViewStep::Pad { .. }))
    }
}

/// The kind of optimizer state that is the parameter itself in f32, where the program reads it in bf16.
pub const MASTER: &str = "master";

/// Optimizer state of a parameter; zero at first, but a [`MASTER`] is the stored parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptimizerState {
    /// The value that the program reads.
    pub value: ValueId,
    /// The parameter's value.
    pub weight: ValueId,
    /// Which state: `m`, `v`, `momentum` or `master`.
    pub kind: String,
}

/// An array that the run supplies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Name of the array in the data.
    pub name: String,
    /// The value that the program reads.
    pub value: ValueId,
}

/// A program with the shapes of one whole optimizer step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// Values and nodes.
    pub graph: Graph,
    /// Arrays that the run supplies; the batch is dimension 0.
    pub inputs: Vec<Input>,
    /// Parameters and buffers.
    pub weights: Vec<Weight>,
    /// Optimizer state.
    pub states: Vec<OptimizerState>,
    /// The nodes in order of execution.
    pub body: Vec<NodeId>,
    /// Weight or state, and its value after the step.
    pub updates: Vec<(ValueId, ValueId)>,
    /// Named results: the model's outputs, then `loss` and `grad_norm`.
    pub outputs: Vec<(String, ValueId)>,
}

/// What the executor needs to know about training besides the program.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainInfo {
    /// Seed of everything random; dropouts carry it among their attributes.
    pub seed: u64,
    /// Whether the data is permuted each epoch.
    pub shuffle: bool,
    /// Base learning rate.
    pub lr: f64,
    /// How it moves.
    pub schedule: LrSchedule,
    /// Samples in one step.
    pub global_batch: u64,
    /// Tokens in one sample, for reports; 0 where the model has no sequence.
    pub sequence: u64,
    /// Name of the labels' array.
    pub labels: String,
    /// Whether the loader shifts tokens into labels.
    pub shift: Option<bool>,
    /// The label that counts for nothing.
    pub ignore_index: i64,
}

/// A module of the IR.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Name of the model.
    pub name: String,
    /// How far it has come.
    pub level: Level,
    /// The mesh of all ranks; trivial below level `sharded`.
    pub mesh: Mesh,
    /// Stored tensors.
    pub initializers: Vec<Initializer>,
    /// What is computed: the forward program at level `graph`, the training program from then on.
    pub program: Program,
    /// The machine that it is compiled for, where that is recorded.
    pub cluster: Option<Cluster>,
    /// How it is trained, from level `training` on.
    pub train: Option<TrainInfo>,
    /// The stages in the order of their ranks, from level `sharded` on; the only one of a module without pipeline has `mesh`.
    pub stages: Vec<Stage>,
    /// The chunks in the order of the model, from level `sharded` on.
    pub chunks: Vec<Chunk>,
    /// What the compiler expects, at level `plan`.
    pub predicted: Predicted,
}

impl Module {
    /// An empty module at level `graph`.
    pub fn new(name: impl Into<String>) -> Module {
        Module {
            name: name.into(),
            level: Level::Graph,
            mesh: Mesh::new(1, Vec::new()),
            initializers: Vec::new(),
            program: Program::default(),
            cluster: None,
            train: None,
            stages: Vec::new(),
            chunks: Vec::new(),
            predicted: Predicted::default(),
        }
    }

    /// The stage that hosts a chunk.
    pub fn stage_of(&self, chunk: &Chunk) -> &Stage {
        &self.stages[chunk.stage as usize]
    }

    /// The mesh of the stage that hosts a chunk.
    pub fn mesh_of(&self, chunk: &Chunk) -> &Mesh {
        &self.stage_of(chunk).mesh
    }

    /// Index of the stage that a rank belongs to.
    pub fn stage_of_rank(&self, rank: u64) -> Option<usize> {
        self.stages.iter().position(|stage| stage.ranks().contains(&rank))
    }

    /// Bytes of the largest arena.
    pub fn peak_bytes(&self) -> u64 {
        self.stages.iter().map(|stage| stage.arena.bytes()).max().unwrap_or(0)
    }

    /// Bytes of each rank's arena.
    pub fn peak_bytes_by_rank(&self) -> Vec<u64> {
        self.stages.iter().flat_map(|s| s.ranks().map(|_| s.arena.bytes())).collect()
    }

    /// Bytes of each rank's arena in host memory.
    pub fn host_bytes_by_rank(&self) -> Vec<u64> {
        self.stages.iter().flat_map(|s| s.ranks().map(|_| s.arena.host_bytes())).collect()
    }
}

impl Program {
    /// The parameter that an optimizer node updates: operand 0, or what operand 0 is the master copy of.
    pub fn weight_of_optimizer(&self, node: NodeId) -> Option<ValueId> {
        let node = self.graph.node(node);
        if !matches!(node.op, Op::Sgd(_) | Op::Adamw(_)) {
            return None;
        }
        let target = node.args[0];
        Some(self.states.iter().find(|s| s.value == target).map_or(target, |s| s.weight))
    }

    /// The weight whose value this is.
    pub fn weight_of(&self, value: ValueId) -> Option<&Weight> {
        self.weights.iter().find(|w| w.value == value)
    }

    /// The output of that name.
    pub fn output(&self, name: &str) -> Option<ValueId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }
}
