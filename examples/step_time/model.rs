//! A GPT-2-shaped decoder built through the IR: pre-norm, learned positions, tanh-GELU, tied head, random weights.

use galvatron_ir::cluster::Cluster;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::module::{Initializer, Input, TrainInfo, Weight};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Attention, Binary, Einsum, Embedding, Iota, LayerNorm, Unary, UnaryKind};
use galvatron_ir::recipe::Recipe;
use galvatron_ir::types::{Scalar, TensorType};
use galvatron_ir::{Level, Module, ValueId};
use galvatron_passes::segment::{Segment, segment};
use galvatron_passes::train::{attach_loss, attach_optimizer, differentiate};

/// Extents of the model and its batch.
pub struct Size {
    /// Blocks.
    pub layers: u64,
    /// Elements of an activation.
    pub hidden: u64,
    /// Attention heads.
    pub heads: u64,
    /// Tokens in the vocabulary.
    pub vocab: u64,
    /// Tokens of a sample.
    pub seq: u64,
    /// Samples of a step.
    pub batch: u64,
}

/// What is timed.
pub const SIZE: Size = Size { layers: 4, hidden: 768, heads: 12, vocab: 8192, seq: 256, batch: 4 };

/// The module at level `training`, with AdamW, and the segments of its forward program.
///
/// # Errors
/// What the passes refuse, in words.
pub fn training(cluster: &Cluster) -> Result<(Module, Vec<Segment>), String> {
    let recipe = Recipe::default();
    let mut module = forward();
    attach_loss(&mut module, &recipe.loss).map_err(|fault| fault.to_string())?;
    let segments = segment(&mut module.program);
    let gradients = differentiate(&mut module.program).map_err(|faults| format!("{faults:?}"))?;
    attach_optimizer(&mut module, &gradients, &recipe.optimizer);
    let sizes: Vec<u32> = cluster.levels.iter().map(|level| level.size).collect();
    module.mesh = Mesh::from_levels(&sizes, 1);
    module.train = Some(train_info(&recipe));
    module.level = Level::Training;
    Ok((module, segments))
}

fn train_info(recipe: &Recipe) -> TrainInfo {
    TrainInfo {
        seed: recipe.seed,
        shuffle: false,
        lr: recipe.optimizer.lr,
        schedule: recipe.schedule.clone(),
        global_batch: SIZE.batch,
        sequence: SIZE.seq,
        labels: recipe.loss.labels.clone(),
        shift: Some(false),
        ignore_index: recipe.loss.ignore_index,
    }
}

/// The forward program, in the form that the rewrites give.
fn forward() -> Module {
    let mut b = Builder { module: Module::new("gpt2") };
    let ids = b.module.program.graph.declare("input_ids", TensorType::i64([SIZE.batch, SIZE.seq]));
    b.module.program.inputs.push(Input { name: "input_ids".into(), value: ids });
    let wte = b.weight("wte.weight", &[SIZE.vocab, SIZE.hidden]);
    let wpe = b.weight("wpe.weight", &[SIZE.seq, SIZE.hidden]);
    let tokens = b.add(Embedding, &[wte, ids]);
    let places = b.add(Iota { shape: vec![1, SIZE.seq], dim: 1, start: 0, step: 1 }, &[]);
    let places = b.add(Embedding, &[wpe, places]);
    let mut x = b.add(Binary::ADD, &[tokens, places]);
    for layer in 0..SIZE.layers {
        x = b.block(&format!("h.{layer}"), x);
    }
    let x = b.norm("ln_f", x);
    let logits = b.einsum("bsk,nk->bsn", x, wte);
    b.module.program.outputs.push(("logits".into(), logits));
    b.module
}

/// A module under construction.
struct Builder {
    module: Module,
}

impl Builder {
    /// One block. x: [batch, seq, hidden]
    fn block(&mut self, name: &str, x: ValueId) -> ValueId {
        let (h, d) = (SIZE.heads, SIZE.hidden / SIZE.heads);
        let normal = self.norm(&format!("{name}.ln_1"), x);
        let mut part = |part| self.linear(&format!("{name}.{part}"), "bsk,khd->bshd", normal, &[SIZE.hidden, h, d]);
        let [q, k, v] = ["q", "k", "v"].map(&mut part);
        let scale = Scalar::new(1.0 / (d as f64).sqrt());
        let attended = self.add(Attention { scale, causal: true }, &[q, k, v]);
        let projected = self.linear(&format!("{name}.o"), "bshd,hdn->bsn", attended, &[h, d, SIZE.hidden]);
        let x = self.add(Binary::ADD, &[projected, x]);
        let normal = self.norm(&format!("{name}.ln_2"), x);
        let up = self.linear(&format!("{name}.up"), "bsk,kn->bsn", normal, &[SIZE.hidden, 4 * SIZE.hidden]);
        let up = self.add(Unary { kind: UnaryKind::GeluTanh }, &[up]);
        let down = self.linear(&format!("{name}.down"), "bsk,kn->bsn", up, &[4 * SIZE.hidden, SIZE.hidden]);
        self.add(Binary::ADD, &[x, down])
    }

    fn norm(&mut self, name: &str, x: ValueId) -> ValueId {
        let gain = self.weight(&format!("{name}.weight"), &[SIZE.hidden]);
        let bias = self.weight(&format!("{name}.bias"), &[SIZE.hidden]);
        self.add(LayerNorm { eps: Scalar::new(1e-5) }, &[x, gain, bias])
    }

    /// A projection with a bias, whose shape is that of the labels that the weight adds.
    fn linear(&mut self, name: &str, spec: &str, x: ValueId, shape: &[u64]) -> ValueId {
        let weight = self.weight(&format!("{name}.weight"), shape);
        let added = spec.split(['-', ',']).nth(1).unwrap_or_default();
        let (lhs, _) = spec.split_once(',').unwrap_or_default();
        let kept: Vec<u64> =
            added.chars().zip(shape).filter(|(label, _)| !lhs.contains(*label)).map(|(_, &d)| d).collect();
        let bias = self.weight(&format!("{name}.bias"), &kept);
        let product = self.einsum(spec, x, weight);
        self.add(Binary::ADD, &[product, bias])
    }

    fn einsum(&mut self, spec: &str, a: ValueId, b: ValueId) -> ValueId {
        self.add(Einsum::new(spec).expect("invariant: the contractions are well formed"), &[a, b])
    }

    /// Adds a node; returns its first result.
    fn add(&mut self, op: impl Into<Op>, args: &[ValueId]) -> ValueId {
        let program = &mut self.module.program;
        let node = program.graph.add(op.into(), args).expect("invariant: the model is well typed");
        program.body.push(node);
        program.graph.node(node).results[0]
    }

    fn weight(&mut self, name: &str, shape: &[u64]) -> ValueId {
        let ty = TensorType::f32(shape);
        let value = self.module.program.graph.declare(name, ty.clone());
        let initializer = self.module.initializers.len();
        self.module.initializers.push(Initializer {
            name: name.into(),
            file: String::new(),
            offset: 0,
            ty,
            start: None,
        });
        self.module.program.weights.push(Weight { value, initializer, view: Vec::new(), trainable: true });
        value
    }
}
