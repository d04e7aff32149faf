//! A naive interpreter of the compute and optimizer ops in `f64`: the oracle of the tests.
//!
//! Every op is written as its formula reads, one element at a time, without any thought of speed. Integers and bools are
//! held as `f64` too, and `bf16` is not rounded. [`eval`] runs one op on whole or on local operands, [`run_program`] a whole
//! program, and [`scatter`] and [`assemble`] go from a tensor to the parts that the ranks of a mesh hold and back.

mod along;
mod attention;
mod dropout;
mod einsum;
mod elementwise;
mod gather;
mod layout;
mod loss;
mod moe;
mod norm;
mod optimizer;
mod rotary;
mod shards;
mod special;
mod tensor;

pub use shards::{assemble, first_index, scatter, scatter_at};
pub use special::erf;
pub use tensor::{Tensor, indices, noise};

use galvatron_ir::op::{Effects, Op};
use galvatron_ir::types::TensorType;
use galvatron_ir::{NodeId, Program, ValueId};
use std::collections::BTreeMap;

/// Results of one op.
///
/// `results` are the types of the results, local ones when the operands are local. `part` says where what a rank holds lies in
/// the whole, of ops for which that matters: of the table (operand 0 of `embedding`, the result of `embedding_grad`), of the
/// matrices of the experts (operand 3 of `moe`, `moe_grad`), of operand 0 of `dropout`, of
/// attention and its gradients.
///
/// # Errors
/// When the op communicates, reads or writes what the run supplies, or when a result has not the shape of its type.
pub fn eval(op: &Op, args: &[&Tensor], results: &[TensorType], part: &Part) -> Result<Vec<Tensor>, String> {
    let found = compute(op, args, results, part)?;
    let has: Vec<&[u64]> = found.iter().map(|t| t.shape.as_slice()).collect();
    let wants: Vec<&[u64]> = results.iter().map(|t| t.shape.as_slice()).collect();
    if has == wants { Ok(found) } else { Err(format!("`{}` gives shapes {has:?}, not {wants:?}", op.mnemonic())) }
}

/// Where a part of a tensor lies in the whole tensor; both lists are empty for a tensor that is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Global index of the first element.
    pub first: Vec<u64>,
    /// Shape of the whole tensor.
    pub of: Vec<u64>,
}

/// Values of all the values of a program, by their ids, where `feeds` gives those that it declares.
///
/// A node whose results are all fed is not run, so the learning rate and the step count are fed as the results of their
/// nodes. `None` stands for a value that is not fed and is no pure function of what is.
pub fn run_program(program: &Program, feeds: BTreeMap<ValueId, Tensor>) -> Vec<Option<Tensor>> {
    let mut values: Vec<Option<Tensor>> = vec![None; program.graph.n_values()];
    for (value, tensor) in feeds {
        assert_eq!(tensor.shape, program.graph.value(value).ty.shape, "fed `{}`", program.graph.value(value).name);
        values[value.index()] = Some(tensor);
    }
    for &node in &program.body {
        run_node(program, node, &mut values);
    }
    values
}

fn run_node(program: &Program, id: NodeId, values: &mut [Option<Tensor>]) {
    let node = program.graph.node(id);
    let fed = node.results.iter().all(|r| values[r.index()].is_some());
    let args: Option<Vec<&Tensor>> = node.args.iter().map(|a| values[a.index()].as_ref()).collect();
    let Some(args) = args.filter(|_| !fed && node.op.effects() == Effects::Pure) else { return };
    let types: Vec<TensorType> = program.graph.types(&node.results).into_iter().cloned().collect();
    let found = eval(&node.op, &args, &types, &Part::default())
        .expect("invariant: pure ops of a well-typed program have values");
    for (result, tensor) in node.results.iter().zip(found) {
        values[result.index()] = Some(tensor);
    }
}

/// Queries of the sequence that come after those of operand 0 of attention.
fn later(part: &Part, args: &[&Tensor]) -> u64 {
    match (part.of.get(1), part.first.get(1)) {
        (Some(all), Some(first)) => all - first - args[0].shape[1],
        _ => 0,
    }
}

fn compute(op: &Op, args: &[&Tensor], results: &[TensorType], part: &Part) -> Result<Vec<Tensor>, String> {
    let first_row = part.first.first().copied().unwrap_or(0);
    let shape = |i: usize| results[i].shape.as_slice();
    let one = match op {
        Op::Einsum(op) => einsum::einsum(op, args[0], args[1], shape(0)),
        Op::Binary(op) => elementwise::binary(op.kind, args, &results[0]),
        Op::Compare(op) => elementwise::compare(op.kind, args, shape(0)),
        Op::AddN(_) => elementwise::add_n(args, shape(0)),
        Op::Unary(op) => elementwise::unary(op.kind, args[0]),
        Op::UnaryGrad(op) => elementwise::unary_grad(op.kind, args[0], args[1]),
        Op::Where(_) => elementwise::choose(args, shape(0)),
        Op::Cast(op) => elementwise::cast(op.to, args[0]),
        Op::ReduceSum(op) => layout::reduce_sum(&op.dims, args[0], shape(0)),
        Op::Reduce(op) => layout::reduce(op, args[0], shape(0)),
        Op::CumSum(op) => along::cum_sum(op, args[0]),
        Op::Dropout(op) => dropout::dropout(op, args[0], args[1], part),
        Op::TopK(op) => return Ok(along::top_k(op, args[0])),
        Op::TakeAlong(op) => along::take(op.dim, args[0], args[1])?,
        Op::PutAlong(op) => along::put(op, args)?,
        Op::Unfold(op) => along::unfold(&op.windows, args[0], shape(0)),
        Op::Fold(op) => along::fold(&op.windows, args[0], shape(0)),
        Op::Broadcast(op) => layout::broadcast(&op.dims, args[0], shape(0)),
        Op::Reshape(_) => Tensor::new(shape(0), args[0].data.clone()),
        Op::Transpose(op) => layout::transpose(&op.perm, args[0], shape(0)),
        Op::Slice(op) => layout::slice(op, args[0], shape(0)),
        Op::Concat(op) => layout::concat(op.dim, args, shape(0)),
        Op::Full(op) => Tensor::filled(shape(0), op.value.get()),
        Op::Iota(op) => layout::iota(op, shape(0)),
        Op::CausalMask(op) => layout::causal_mask(op, shape(0)),
        Op::Constant(op) => Tensor::new(shape(0), op.values.iter().map(|v| v.get()).collect()),
        Op::LayerNorm(op) => return Ok(norm::layer_norm(op.eps.get(), args[0], args[1], args[2])),
        Op::LayerNormGrad(_) => norm::layer_norm_grad(args),
        Op::LayerNormParamGrad(_) => return Ok(norm::layer_norm_param_grad(args)),
        Op::RmsNorm(op) => return Ok(norm::rms_norm(op.eps.get(), args[0], args[1])),
        Op::RmsNormGrad(_) => norm::rms_norm_grad(args),
        Op::RmsNormParamGrad(_) => norm::rms_norm_param_grad(args),
        Op::Softmax(_) => norm::softmax(args[0]),
        Op::LogSoftmax(_) => norm::log_softmax(args[0]),
        Op::SoftmaxGrad(_) => norm::softmax_grad(args[0], args[1]),
        Op::Attention(op) => return Ok(attention::attention(op, args, later(part, args))),
        Op::AttentionGrad(op) => return Ok(attention::attention_grad(op, args, later(part, args))),
        Op::AttentionMaskGrad(op) => attention::attention_mask_grad(op, args, later(part, args)),
        Op::Rotary(op) => rotary::rotary(op, args),
        Op::Moe(op) => moe::moe(op.activation, args, first_row),
        Op::MoeGrad(op) => return Ok(moe::moe_grad(op.activation, args, first_row)),
        Op::Embedding(_) => gather::embedding(args[0], args[1], shape(0), first_row),
        Op::EmbeddingGrad(_) => gather::embedding_grad(args[0], args[1], shape(0), first_row),
        Op::CrossEntropy(op) => return Ok(loss::cross_entropy(op.ignore, args[0], args[1])),
        Op::CrossEntropyGrad(op) => loss::cross_entropy_grad(op.ignore, args),
        Op::CountLabels(op) => loss::count_labels(op.ignore, args[0]),
        Op::Mse(_) => loss::mse(args[0], args[1]),
        Op::MseGrad(_) => loss::mse_grad(args[0], args[1], args[2]),
        Op::SumSquares(_) => loss::sum_squares(args[0]),
        Op::ClipScale(op) => loss::clip_scale(op.max_norm.get(), args[0]),
        Op::Sgd(op) => return Ok(optimizer::sgd(op, args)),
        Op::Adamw(op) => return Ok(optimizer::adamw(op, args)),
        Op::Reshard(_) | Op::AllReduce(_) | Op::ReduceScatter(_) => return refuse(op),
        Op::RingAttention(_) | Op::RingAttentionGrad(_) | Op::RoutedMoe(_) | Op::RoutedMoeGrad(_) => return refuse(op),
        Op::AllGather(_) | Op::AllToAll(_) | Op::Shard(_) | Op::Send(_) | Op::Recv(_) => return refuse(op),
        Op::Load(_) | Op::RunScalar(_) | Op::Accumulate(_) | Op::Update(_) => return refuse(op),
        Op::ToHost(_) | Op::ToDevice(_) => return refuse(op),
    };
    Ok(vec![one])
}

fn refuse(op: &Op) -> Result<Vec<Tensor>, String> {
    Err(format!("`{}` is no function of its operands on one rank", op.mnemonic()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::op::compute::{Binary, Unary, UnaryKind};
    use galvatron_ir::op::mem::RunScalar;

    #[test]
    fn a_program_runs_in_order_and_leaves_out_what_is_not_known() {
        let mut program = Program::default();
        let x = program.graph.declare("x", TensorType::f32([2]));
        let y = program.graph.declare("y", TensorType::f32([2]));
        for (op, args) in [
            (Op::from(Unary { kind: UnaryKind::Neg }), vec![x]),
            (Op::from(Binary::MUL), vec![x, ValueId(2)]),
            (Op::from(Binary::MUL), vec![x, y]),
            (Op::from(RunScalar { name: "lr".into() }), vec![]),
        ] {
            let node = program.graph.add(op, &args).unwrap();
            program.body.push(node);
        }
        let values = run_program(&program, BTreeMap::from([(x, Tensor::new([2], vec![1.0, -3.0]))]));
        assert_eq!(values[3], Some(Tensor::new([2], vec![-1.0, -9.0])));
        assert_eq!(values[4], None);
        assert_eq!(values[5], None);
    }

    #[test]
    fn a_result_of_another_shape_than_its_type_is_an_error() {
        let x = Tensor::filled([2, 3], 1.0);
        let op = Op::from(Unary { kind: UnaryKind::Exp });
        assert!(eval(&op, &[&x], &[TensorType::f32([2, 3])], &Part::default()).is_ok());
        assert!(eval(&op, &[&x], &[TensorType::f32([3, 2])], &Part::default()).is_err());
    }
}
