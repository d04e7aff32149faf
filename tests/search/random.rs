//! Small random programs: chains, diamonds, shared weights, and repeated layers, with their loss and optimizer.

use galvatron::config::train::parse_recipe;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::module::TrainInfo;
use galvatron_ir::text::parse;
use galvatron_ir::{Level, Module};
use galvatron_passes::canonicalize::canonicalize;
use galvatron_passes::segment::{Segment, segment};
use galvatron_passes::train::{attach_loss, attach_optimizer, differentiate};
use std::fmt::Write;

/// The splitmix64 generator (S. Vigna), the same everywhere.
pub struct Random(pub u64);

impl Random {
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// One of some things.
    pub fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }
}

/// What is drawn besides the ops.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Samples of a batch.
    pub batch: u64,
    /// Ops before the loss.
    pub n_ops: usize,
    /// Nodes, and devices of a node.
    pub levels: [u32; 2],
}

/// A program as text, while it grows.
struct Writer<'a> {
    rng: &'a mut Random,
    batch: u64,
    initializers: String,
    weights: String,
    body: String,
    /// Activations that may be read, with their widths.
    values: Vec<(String, u64)>,
    /// Weights of linear ops with their widths out and in.
    matrices: Vec<(String, [u64; 2])>,
    n_names: usize,
}

impl Writer<'_> {
    fn name(&mut self, what: &str) -> String {
        self.n_names += 1;
        format!("{what}{}", self.n_names)
    }

    fn weight(&mut self, shape: &[u64]) -> String {
        let name = self.name("w");
        let _ = writeln!(self.initializers, "  initializer \"{name}\" = {{file=\"none\", offset=0}} f32{shape:?}");
        let _ = writeln!(self.weights, "    weight %{name} = \"{name}\": f32{shape:?}");
        name
    }

    fn push(&mut self, op: &str, args: &[&str], width: u64) {
        let name = self.name("v");
        let args: Vec<String> = args.iter().map(|a| format!("%{a}")).collect();
        let _ = writeln!(self.body, "    %{name} = {op} {}: f32[{}, {width}]", args.join(", "), self.batch);
        self.values.push((name, width));
    }

    /// A matrix product with a new weight or one that fits.
    fn linear(&mut self, (from, width): (String, u64), out: Option<u64>) {
        let known: Vec<_> =
            self.matrices.iter().filter(|(_, [n, k])| *k == width && out.is_none_or(|o| o == *n)).cloned().collect();
        let shared = !known.is_empty() && self.rng.below(3) == 0;
        let (weight, [n, _]) = if shared {
            self.rng.one_of(&known)
        } else {
            let n = out.unwrap_or_else(|| self.rng.one_of(&[3, 4, 8, 64]));
            let weight = (self.weight(&[n, width]), [n, width]);
            self.matrices.push(weight.clone());
            weight
        };
        self.push("einsum{spec=\"bk,nk->bn\"}", &[&from, &weight], n);
    }

    /// A random op on what there is.
    fn grow(&mut self) {
        let at = self.values.len() - 1 - self.rng.below(self.values.len().min(3) as u64) as usize;
        let from = self.values[at].clone();
        let others: Vec<String> =
            self.values.iter().filter(|v| v.1 == from.1 && v.0 != from.0).map(|v| v.0.clone()).collect();
        match self.rng.below(6) {
            0 | 1 => self.linear(from, None),
            2 => self.push("gelu", &[&from.0], from.1),
            3 => {
                let bias = self.weight(&[from.1]);
                self.push("add", &[&from.0, &bias], from.1);
            }
            _ if !others.is_empty() => {
                let other = self.rng.one_of(&others);
                let op = self.rng.one_of(&["add", "mul"]);
                self.push(op, &[&from.0, &other], from.1);
            }
            _ => self.push("relu", &[&from.0], from.1),
        }
    }

    /// A layer with a residual: six ops.
    fn layer(&mut self, hidden: u64) {
        let input = self.values.last().expect("invariant: there is an input").clone();
        self.linear_of(&input, hidden);
        let bias = self.weight(&[hidden]);
        let value = self.last();
        self.push("add", &[&value, &bias], hidden);
        let value = self.last();
        self.push("gelu", &[&value], hidden);
        let value = (self.last(), hidden);
        self.linear_of(&value, input.1);
        let bias = self.weight(&[input.1]);
        let value = self.last();
        self.push("add", &[&value, &bias], input.1);
        let value = self.last();
        self.push("add", &[&value, &input.0], input.1);
    }

    fn linear_of(&mut self, from: &(String, u64), out: u64) {
        let weight = self.weight(&[out, from.1]);
        self.push("einsum{spec=\"bk,nk->bn\"}", &[&from.0, &weight], out);
    }

    fn last(&self) -> String {
        self.values.last().expect("invariant: there is an input").0.clone()
    }

    /// The program, trained with MSE or cross entropy.
    fn finish(mut self, levels: [u32; 2], input: &str) -> Trained {
        let output = self.last();
        let _ = writeln!(self.body, "    output \"logits\" %{output}");
        let (initializers, weights, body) = (&self.initializers, &self.weights, &self.body);
        let text = format!(
            "gir 1\nmodule @random level=graph {{\n{initializers}  program {{\n{input}{weights}{body}  }}\n}}\n"
        );
        let kind = self.rng.one_of(&["mse", "cross-entropy"]);
        let optimizer = self.rng.one_of(&["sgd", "adamw"]);
        train(&text, self.batch, levels, kind, optimizer)
    }
}

/// A training program, ready for the search.
pub struct Trained {
    /// The module.
    pub module: Module,
    /// Its segments.
    pub segments: Vec<Segment>,
}

fn train(text: &str, batch: u64, levels: [u32; 2], loss: &str, optimizer: &str) -> Trained {
    let mut module = parse(text).unwrap_or_else(|faults| panic!("{text}\n{faults:?}"));
    canonicalize(&mut module);
    let settings =
        [format!("loss.kind={loss}"), format!("optimizer.kind={optimizer}"), format!("batch.global={batch}")];
    let recipe = parse_recipe("", &settings).expect("the recipe is right");
    attach_loss(&mut module, &recipe.loss).expect("the output suits the loss");
    let segments = segment(&mut module.program);
    let gradients = differentiate(&mut module.program).expect("all ops have gradients");
    attach_optimizer(&mut module, &gradients, &recipe.optimizer);
    module.train = Some(TrainInfo {
        seed: 0,
        shuffle: false,
        lr: recipe.optimizer.lr,
        schedule: recipe.schedule,
        global_batch: batch,
        sequence: 0,
        labels: recipe.loss.labels,
        shift: recipe.loss.shift,
        ignore_index: recipe.loss.ignore_index,
    });
    let levels: Vec<u32> = levels.into_iter().filter(|&n| n > 1).collect();
    module.mesh = Mesh::from_levels(&levels, 1);
    module.level = Level::Training;
    Trained { module, segments }
}

fn writer(rng: &mut Random, batch: u64, width: u64) -> (Writer<'_>, String) {
    let (initializers, weights, body) = (String::new(), String::new(), String::new());
    let values = vec![("x".to_string(), width)];
    let input = format!("    input %x = \"x\": f32[{batch}, {width}]\n");
    (Writer { rng, batch, initializers, weights, body, values, matrices: Vec::new(), n_names: 0 }, input)
}

/// A program of so many random ops, each on one of the last values.
pub fn random_program(rng: &mut Random, shape: Shape) -> Trained {
    let width = rng.one_of(&[3, 4, 8]);
    let (mut writer, input) = writer(rng, shape.batch, width);
    writer.linear(("x".into(), width), None);
    for _ in 2..shape.n_ops {
        writer.grow();
    }
    let last = writer.values.last().expect("invariant: there are values").clone();
    writer.linear(last, None);
    writer.finish(shape.levels, &input)
}

/// Two equal layers with residuals between an embedding and a head. Its sizes leave each op few placements, so that all plans
/// of a path can be enumerated.
pub fn layered_program(rng: &mut Random, shape: Shape) -> Trained {
    let (width, hidden) = (rng.one_of(&[3, 5]), rng.one_of(&[4, 8]));
    let (mut writer, input) = writer(rng, shape.batch, width);
    writer.linear(("x".into(), width), Some(width));
    writer.layer(hidden);
    writer.layer(hidden);
    writer.finish(shape.levels, &input)
}
