//! Attaches the loss: a sum over the whole step divided by a count, both values of the program.

use galvatron_ir::module::{Input, Program};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Binary, CountLabels, CrossEntropy, Full, Mse};
use galvatron_ir::recipe::{LossKind, LossRecipe};
use galvatron_ir::types::{DType, Scalar, TensorType};
use galvatron_ir::{Diagnostic, Module, ValueId};

/// Adds the labels' input and the output `loss`.
///
/// # Errors
/// When the named output does not exist or does not suit the loss.
pub fn attach_loss(module: &mut Module, recipe: &LossRecipe) -> Result<(), Diagnostic> {
    let program = &mut module.program;
    let output = find_output(program, &recipe.output)?;
    let loss = match recipe.kind {
        LossKind::CrossEntropy => cross_entropy(program, output, recipe)?,
        LossKind::Mse => mse(program, output, recipe),
        LossKind::Output => check_scalar(program, output)?,
    };
    program.outputs.retain(|(name, _)| name != "loss");
    program.outputs.push(("loss".into(), loss));
    Ok(())
}

fn find_output(program: &Program, name: &str) -> Result<ValueId, Diagnostic> {
    if !name.is_empty() {
        return program.output(name).ok_or_else(|| {
            let names: Vec<&str> = program.outputs.iter().map(|(n, _)| n.as_str()).collect();
            Diagnostic::new("loss-output", format!("the model has no output `{name}`"))
                .help(format!("set `loss.output` to one of: {}", names.join(", ")))
        });
    }
    match &program.outputs[..] {
        [(_, only)] => Ok(*only),
        outputs => match outputs.iter().find(|(n, _)| n == "logits") {
            Some((_, logits)) => Ok(*logits),
            None => Err(Diagnostic::new("loss-output", format!("the model has {} outputs", outputs.len()))
                .help("name the one that the loss reads with `loss.output`")),
        },
    }
}

fn check_scalar(program: &Program, output: ValueId) -> Result<ValueId, Diagnostic> {
    let value = program.graph.value(output);
    if value.ty.elements() == 1 && value.ty.rank() == 0 {
        return Ok(output);
    }
    Err(Diagnostic::new("loss-output", format!("output `{}` of type `{}` is no scalar loss", value.name, value.ty))
        .help("use `loss.kind = \"cross-entropy\"` or \"mse\", or name the loss with `loss.output`"))
}

fn cross_entropy(program: &mut Program, logits: ValueId, recipe: &LossRecipe) -> Result<ValueId, Diagnostic> {
    let ty = program.graph.value(logits).ty.clone();
    let Some((_, rows)) = ty.shape.split_last().filter(|_| ty.dtype.is_float()) else {
        return Err(Diagnostic::new("loss-output", format!("output of type `{ty}` has no classes"))
            .help("cross entropy runs over the last axis of a float output"));
    };
    let labels = labels_input(program, recipe, TensorType::i64(rows.to_vec()));
    let ignore = recipe.ignore_index;
    let sum = emit(program, CrossEntropy { ignore }.into(), &[logits, labels], "loss_sum");
    let count = emit(program, CountLabels { ignore }.into(), &[labels], "label_count");
    Ok(emit(program, Binary::DIV.into(), &[sum, count], "loss"))
}

fn mse(program: &mut Program, prediction: ValueId, recipe: &LossRecipe) -> ValueId {
    let ty = program.graph.value(prediction).ty.clone();
    let elements = ty.elements() as f64;
    let target = labels_input(program, recipe, ty);
    let sum = emit(program, Mse.into(), &[prediction, target], "loss_sum");
    let count = Full { ty: TensorType::new(DType::F32, []), value: Scalar::new(elements) };
    let count = emit(program, count.into(), &[], "element_count");
    emit(program, Binary::DIV.into(), &[sum, count], "loss")
}

/// The labels: an input of the model if it has one of that name, otherwise a new one.
fn labels_input(program: &mut Program, recipe: &LossRecipe, ty: TensorType) -> ValueId {
    if let Some(input) = program.inputs.iter().find(|i| i.name == recipe.labels) {
        return input.value;
    }
    let value = program.graph.declare(&recipe.labels, ty);
    program.inputs.push(Input { name: recipe.labels.clone(), value });
    value
}

fn emit(program: &mut Program, op: Op, args: &[ValueId], name: &str) -> ValueId {
    let node = program.graph.add(op, args).expect("invariant: the loss is well typed");
    program.body.push(node);
    let result = program.graph.node(node).results[0];
    program.graph.rename(result, name);
    result
}
