//! Attaches the optimizer: global gradient norm, clipping, one update a parameter.

use super::autodiff::Gradients;
use galvatron_ir::module::{MASTER, OptimizerState, Program};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{AddN, Cast, ClipScale, SumSquares, Unary, UnaryKind};
use galvatron_ir::op::mem::RunScalar;
use galvatron_ir::op::opt::{Adamw, Sgd};
use galvatron_ir::recipe::{OptimizerKind, OptimizerRecipe, matches_glob};
use galvatron_ir::types::{DType, Scalar, TensorType};
use galvatron_ir::{Module, ValueId};

/// Adds optimizer state, the output `grad_norm` and an update for every weight that has a gradient.
///
/// Weights without a gradient (nothing of the loss depends on them) become frozen; their names are returned.
pub fn attach_optimizer(module: &mut Module, gradients: &Gradients, recipe: &OptimizerRecipe) -> Vec<String> {
    let names: Vec<String> = module.initializers.iter().map(|i| i.name.clone()).collect();
    let program = &mut module.program;
    let mut unused = Vec::new();
    for weight in program.weights.iter_mut().filter(|w| w.trainable && !gradients.contains_key(&w.value)) {
        weight.trainable = false;
        unused.push(names[weight.initializer].clone());
    }
    if gradients.is_empty() {
        return unused;
    }
    let norm = gradient_norm(program, gradients);
    program.outputs.push(("grad_norm".into(), norm));
    let mut scalars = vec![run_scalar(program, "lr")];
    if recipe.kind == OptimizerKind::Adamw {
        scalars.push(run_scalar(program, "step"));
    }
    if recipe.clip_norm > 0.0 {
        let clip = ClipScale { max_norm: Scalar::new(recipe.clip_norm) };
        scalars.push(emit(program, clip.into(), &[norm], "clip_scale")[0]);
    }
    let weights: Vec<_> = program.weights.iter().filter(|w| w.trainable).cloned().collect();
    for weight in weights {
        let decays = !recipe.no_decay.iter().any(|glob| matches_glob(glob, &names[weight.initializer]));
        update(program, weight.value, gradients[&weight.value], &scalars, recipe, decays);
    }
    unused
}

fn gradient_norm(program: &mut Program, gradients: &Gradients) -> ValueId {
    let mut squares = Vec::new();
    for &gradient in gradients.values() {
        squares.push(emit(program, SumSquares.into(), &[gradient], "grad_squares")[0]);
        join_layer_of(program, gradient);
    }
    let total = emit(program, AddN.into(), &squares, "grad_squares_total")[0];
    emit(program, Unary { kind: UnaryKind::Sqrt }.into(), &[total], "grad_norm")[0]
}

fn run_scalar(program: &mut Program, name: &str) -> ValueId {
    emit(program, RunScalar { name: name.into() }.into(), &[], name)[0]
}

/// Emits the optimizer op of one weight; its operands are weight, gradient, states, scalars.
fn update(
    program: &mut Program,
    weight: ValueId,
    gradient: ValueId,
    scalars: &[ValueId],
    recipe: &OptimizerRecipe,
    decays: bool,
) {
    let decay = Scalar::new(if decays { recipe.weight_decay } else { 0.0 });
    let (op, kinds): (Op, &[&str]) = match recipe.kind {
        OptimizerKind::Adamw => (adamw(recipe, decay).into(), &["m", "v"]),
        OptimizerKind::Sgd => {
            let sgd = Sgd { momentum: Scalar::new(recipe.momentum), weight_decay: decay };
            (sgd.into(), if recipe.momentum == 0.0 { &[] } else { &["momentum"] })
        }
    };
    let is_narrow = program.graph.value(weight).ty.dtype == DType::Bf16;
    let target = if is_narrow { state(program, weight, MASTER) } else { weight };
    let states: Vec<ValueId> = kinds.iter().map(|kind| state(program, weight, kind)).collect();
    let args: Vec<ValueId> = [target, gradient].iter().chain(&states).chain(scalars).copied().collect();
    let name = program.graph.value(weight).name.clone();
    let results = emit(program, op, &args, &format!("{}.new", program.graph.value(target).name));
    join_layer_of(program, gradient);
    if is_narrow {
        let narrow = emit(program, Cast { to: DType::Bf16 }.into(), &results[..1], &format!("{name}.new"));
        join_layer_of(program, gradient);
        program.updates.push((weight, narrow[0]));
    }
    let targets = std::iter::once(target).chain(states);
    program.updates.extend(targets.zip(results));
}

/// Puts the newest node into the segment that computes a gradient.
fn join_layer_of(program: &mut Program, gradient: ValueId) {
    let layer = program.graph.producer(gradient).and_then(|n| program.graph.node(n).layer);
    if let Some(&newest) = program.body.last() {
        program.graph.node_mut(newest).layer = layer;
    }
}

fn adamw(recipe: &OptimizerRecipe, weight_decay: Scalar) -> Adamw {
    let [beta1, beta2] = recipe.betas.map(Scalar::new);
    Adamw { beta1, beta2, eps: Scalar::new(recipe.eps), weight_decay }
}

fn state(program: &mut Program, weight: ValueId, kind: &str) -> ValueId {
    let (name, ty) = {
        let value = program.graph.value(weight);
        (format!("{}.{kind}", value.name), TensorType::f32(value.ty.shape.clone()))
    };
    let value = program.graph.declare(&name, ty);
    program.states.push(OptimizerState { value, weight, kind: kind.into() });
    value
}

fn emit(program: &mut Program, op: Op, args: &[ValueId], name: &str) -> Vec<ValueId> {
    let node = program.graph.add(op, args).expect("invariant: the optimizer is well typed");
    program.body.push(node);
    let results = program.graph.node(node).results.clone();
    program.graph.rename(results[0], name);
    results
}
