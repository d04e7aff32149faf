//! Small programs written as terms, for samples and tests.

use galvatron_ir::module::{Initializer, Input, Weight};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{
    Attention, Binary, Broadcast, CausalMask, Concat, Constant, Einsum, Embedding, Full, LayerNorm, ReduceSum, Reshape,
    RmsNorm, Rotary, Slice, Softmax, Transpose, Unary, UnaryKind, Where,
};
use galvatron_ir::types::{DType, Scalar, TensorType};
use galvatron_ir::{Module, Program, ValueId};
use std::collections::BTreeMap;
use std::iter::Peekable;

/// The program of a term, whose value is the output `y`.
///
/// `inputs` is a list of `name:2x3`; names that begin with `is_` are bools, with `ids` integers, with `w_` trainable weights,
/// each with an initializer of its own. In the term `(op[attributes] operands…)` is an op, a number a constant.
///
/// # Panics
/// If the term is not well formed or not well typed.
pub fn module_of_term(inputs: &str, term: &str) -> Module {
    let mut module = Module::new("term");
    let mut names = BTreeMap::new();
    for input in inputs.split_whitespace() {
        let (name, shape) = input.split_once(':').expect("invariant: inputs are name:shape");
        let shape: Vec<u64> = shape.split('x').map(|d| d.parse().expect("invariant: extents are numbers")).collect();
        names.insert(name.to_string(), declare(&mut module, name, shape));
    }
    let text = term.replace('(', " ( ").replace(')', " ) ");
    let mut words = text.split_whitespace().peekable();
    let value = build(&mut module.program, &names, &mut words);
    module.program.outputs.push(("y".into(), value));
    module
}

fn declare(module: &mut Module, name: &str, shape: Vec<u64>) -> ValueId {
    let dtype = match name {
        name if name.starts_with("is_") => DType::Bool,
        name if name.starts_with("ids") => DType::I64,
        _ => DType::F32,
    };
    let ty = TensorType::new(dtype, shape);
    let value = module.program.graph.declare(name, ty.clone());
    if name.starts_with("w_") {
        let initializer = module.initializers.len();
        module.initializers.push(Initializer {
            name: name.into(),
            file: "model.onnx".into(),
            offset: 0,
            ty,
            start: None,
        });
        module.program.weights.push(Weight { value, initializer, view: Vec::new(), trainable: true });
    } else {
        module.program.inputs.push(Input { name: name.into(), value });
    }
    value
}

fn build<'a>(
    program: &mut Program,
    names: &BTreeMap<String, ValueId>,
    words: &mut Peekable<impl Iterator<Item = &'a str>>,
) -> ValueId {
    let word = words.next().expect("invariant: terms are complete");
    if word != "(" {
        let constant = || Full::f32(word.parse().expect("invariant: a word is an input or a number")).into();
        return names.get(word).copied().unwrap_or_else(|| emit(program, constant(), &[]));
    }
    let head = words.next().expect("invariant: terms are complete");
    let mut args = Vec::new();
    while words.peek() != Some(&")") {
        args.push(build(program, names, words));
    }
    words.next();
    emit(program, op(head), &args)
}

fn emit(program: &mut Program, op: Op, args: &[ValueId]) -> ValueId {
    let node = program.graph.add(op, args).expect("invariant: terms are well typed");
    program.body.push(node);
    program.graph.node(node).results[0]
}

fn op(head: &str) -> Op {
    let (name, attributes) = head.split_once('[').unwrap_or((head, ""));
    let attributes = attributes.trim_end_matches(']');
    let extents = || -> Vec<u64> { list(attributes) };
    let indices = || -> Vec<usize> { list(attributes) };
    match name {
        "add" => Binary::ADD.into(),
        "sub" => Binary::SUB.into(),
        "mul" => Binary::MUL.into(),
        "div" => Binary::DIV.into(),
        "pow" => Binary::POW.into(),
        "where" => Where.into(),
        "softmax" => Softmax.into(),
        "embedding" => Embedding.into(),
        "einsum" => Einsum::new(attributes).expect("invariant: contractions are well formed").into(),
        "reduce_sum" => ReduceSum { dims: indices() }.into(),
        "transpose" => Transpose { perm: indices() }.into(),
        "reshape" => Reshape { shape: extents() }.into(),
        "slice" => slice(&extents()),
        "broadcast" => Broadcast { dims: (0..extents().len()).collect(), shape: extents() }.into(),
        "causal_mask" => causal_mask(extents()),
        "attention" => Attention { scale: Scalar::new(list(attributes)[0]), causal: false }.into(),
        "layer_norm" => LayerNorm { eps: Scalar::new(list(attributes)[0]) }.into(),
        "concat" => Concat { dim: indices()[0] }.into(),
        "constant" => constant(&list(attributes)),
        "rotary" => Rotary { interleaved: false, inverse: false }.into(),
        "rms_norm" => RmsNorm { eps: Scalar::new(list(attributes)[0]) }.into(),
        _ => Unary { kind: unary_kind(name) }.into(),
    }
}

fn list<T: std::str::FromStr>(text: &str) -> Vec<T> {
    let read = |word: &str| word.parse().ok().expect("invariant: attributes are numbers");
    text.split(',').map(read).collect()
}

/// Dimension, first element, number of elements.
fn slice(numbers: &[u64]) -> Op {
    Slice { dim: numbers[0] as usize, start: numbers[1], len: numbers[2] }.into()
}

/// A constant of rank 1.
fn constant(values: &[f64]) -> Op {
    Constant { ty: TensorType::f32([values.len() as u64]), values: values.iter().map(|&v| Scalar::new(v)).collect() }
        .into()
}

/// Shape, then the offset; hidden places have -1e9.
fn causal_mask(mut numbers: Vec<u64>) -> Op {
    let offset = numbers.pop().expect("invariant: the offset comes last") as i64;
    CausalMask { shape: numbers, offset, fill: Scalar::new(-1e9) }.into()
}

fn unary_kind(name: &str) -> UnaryKind {
    match name {
        "neg" => UnaryKind::Neg,
        "exp" => UnaryKind::Exp,
        "sqrt" => UnaryKind::Sqrt,
        "reciprocal" => UnaryKind::Reciprocal,
        "tanh" => UnaryKind::Tanh,
        "erf" => UnaryKind::Erf,
        "sigmoid" => UnaryKind::Sigmoid,
        "is_nan" => UnaryKind::IsNan,
        other => panic!("invariant: `{other}` is an op of terms"),
    }
}
