//! Launches of element-wise functions.

use galvatron_ir::op::compute::{Binary, BinaryKind, ClipScale, Unary, UnaryGrad, UnaryKind};
use galvatron_ir::types::DType;

use super::super::command::{Arg, Launch};
use super::super::walk::{Walk, broadcast};
use super::{Cx, Family, Float, Lowered, at, elements, scratch};

const FAMILY: Family = Family::Elementwise;

/// Operands that one launch of `add_n` takes.
const TERMS: usize = 8;

pub(in super::super) fn unary_name(kind: UnaryKind) -> Option<&'static str> {
    Some(match kind {
        UnaryKind::Neg => "neg",
        UnaryKind::Exp => "exp",
        UnaryKind::Log => "log",
        UnaryKind::Sqrt => "sqrt",
        UnaryKind::Reciprocal => "reciprocal",
        UnaryKind::Tanh => "tanh",
        UnaryKind::Erf => "erf",
        UnaryKind::Sigmoid => "sigmoid",
        UnaryKind::Relu => "relu",
        UnaryKind::Gelu => "gelu",
        UnaryKind::GeluTanh => "gelu_tanh",
        UnaryKind::Silu => "silu",
        UnaryKind::Abs => "abs",
        UnaryKind::Sign => "sign",
        UnaryKind::Sin => "sin",
        UnaryKind::Cos => "cos",
        UnaryKind::Floor => "floor",
        UnaryKind::Ceil => "ceil",
        UnaryKind::Round => "round",
        UnaryKind::Softplus => "softplus",
        UnaryKind::IsNan => return None,
    })
}

pub(in super::super) fn binary_name(kind: BinaryKind) -> &'static str {
    match kind {
        BinaryKind::Add => "add",
        BinaryKind::Sub => "sub",
        BinaryKind::Mul => "mul",
        BinaryKind::Div => "div",
        BinaryKind::Pow => "pow",
        BinaryKind::Max => "max",
        BinaryKind::Min => "min",
        BinaryKind::Mod => "mod",
        BinaryKind::Rem => "rem",
    }
}

/// Work items of a kernel that takes the elements of 16 bytes at once.
fn packs(float: &Float<'_>, n: i64) -> u64 {
    (n as u64).div_ceil(float.pack())
}

pub(in super::super) fn unary(op: &Unary, cx: &Cx<'_>) -> Lowered {
    let (float, n) = (cx.float(0)?, elements(cx.result(0)));
    let Some(name) = unary_name(op.kind) else {
        let args = vec![float.arg(0)?, at(cx.result(0)), Arg::Int(n)];
        return Ok(vec![Launch::of(FAMILY, float.entry("is_nan"), n as u64, args)]);
    };
    let args = vec![float.arg(0)?, float.out(0)?, Arg::Int(n)];
    Ok(vec![Launch::of(FAMILY, float.entry(&format!("unary_{name}")), packs(&float, n), args)])
}

pub(in super::super) fn unary_grad(op: &UnaryGrad, cx: &Cx<'_>) -> Lowered {
    let name = unary_name(op.kind).ok_or("`is_nan` has no derivative")?;
    let (float, n) = (cx.float(0)?, elements(cx.result(0)));
    let args = vec![float.arg(0)?, float.arg(1)?, float.out(0)?, Arg::Int(n)];
    Ok(vec![Launch::of(FAMILY, float.entry(&format!("grad_{name}")), packs(&float, n), args)])
}

/// The walk of operands that are broadcast to the result.
fn walk(cx: &Cx<'_>) -> Walk {
    let shape = &cx.result(0).ty.shape;
    let steps: Vec<Vec<u64>> = cx.spec.args.iter().map(|arg| broadcast(&arg.ty.shape, shape)).collect();
    Walk::new(shape, &steps)
}

pub(in super::super) fn binary(op: &Binary, cx: &Cx<'_>) -> Lowered {
    let (name, walk, n) = (binary_name(op.kind), walk(cx), elements(cx.result(0)));
    if cx.arg(0).ty.dtype == DType::I64 {
        if op.kind == BinaryKind::Pow {
            return Err("there is no kernel for powers of integers".into());
        }
        let args = vec![cx.i64(0)?, cx.i64(1)?, at(cx.result(0)), Arg::Int(n), walk.arg()?];
        return Ok(vec![Launch::of(FAMILY, format!("integer_{name}"), n as u64, args)]);
    }
    let float = cx.float(0)?;
    let mut args = vec![float.arg(0)?, float.arg(1)?, float.out(0)?, Arg::Int(n)];
    if walk.is_contiguous() {
        return Ok(vec![Launch::of(FAMILY, float.entry(&format!("binary_{name}")), packs(&float, n), args)]);
    }
    args.push(walk.arg()?);
    Ok(vec![Launch::of(FAMILY, float.entry(&format!("binary_{name}_walk")), packs(&float, n), args)])
}

/// The sum of the operands: the first eight, then seven more a launch. Sums of bf16 go on in f32 from launch to launch.
pub(in super::super) fn add_n(cx: &Cx<'_>) -> Lowered {
    let float = cx.float(0)?;
    let (to, n) = (float.out(0)?, elements(cx.result(0)));
    let mut terms: Vec<Arg> = (0..cx.spec.args.len()).map(|i| float.arg(i)).collect::<Result<_, _>>()?;
    let is_split = terms.len() > TERMS;
    let between = match is_split && float.is_half() {
        true => Arg::At(scratch(0, 4 * n as u64)?),
        false => to.clone(),
    };
    if is_split && !float.is_half() && terms[TERMS..].contains(&to) {
        return Err(format!("the result lies over an operand beyond the first {TERMS}"));
    }
    let mut commands = Vec::new();
    while !terms.is_empty() {
        let rest = terms.split_off(TERMS.min(terms.len()));
        let place = match (commands.is_empty(), rest.is_empty()) {
            _ if !is_split || !float.is_half() => "",
            (true, _) => "_first",
            (false, false) => "_next",
            (false, true) => "_last",
        };
        let sum = if rest.is_empty() { &to } else { &between };
        let mut args = vec![sum.clone(), Arg::Int(n), Arg::Int(terms.len() as i64)];
        let unused = vec![terms[terms.len() - 1].clone(); TERMS - terms.len()];
        args.extend(terms.into_iter().chain(unused));
        commands.push(Launch::of(FAMILY, float.entry("add_n") + place, (n as u64).div_ceil(8), args));
        terms = if rest.is_empty() { rest } else { std::iter::once(between.clone()).chain(rest).collect() };
    }
    Ok(commands)
}

/// Operand 0 += operand 1.
pub(in super::super) fn accumulate(cx: &Cx<'_>) -> Lowered {
    if cx.arg(0).span().overlaps(&cx.arg(1).span()) {
        return Err("an accumulator overlaps what is added to it in memory".into());
    }
    let (float, n) = (cx.float(0)?, elements(cx.arg(0)));
    let args = vec![float.arg(0)?, float.arg(1)?, float.arg(0)?, Arg::Int(n)];
    Ok(vec![Launch::of(FAMILY, float.entry("binary_add"), packs(&float, n), args)])
}

pub(in super::super) fn select(cx: &Cx<'_>) -> Lowered {
    let (out, n) = (cx.result(0), elements(cx.result(0)));
    let pointers = [cx.arg(0), cx.arg(1), cx.arg(2), out].map(at);
    let args = pointers.into_iter().chain([Arg::Int(n), walk(cx).arg()?]).collect();
    Ok(vec![Launch::of(FAMILY, format!("where_{}", out.ty.dtype.bytes()), n as u64, args)])
}

pub(in super::super) fn mse_grad(cx: &Cx<'_>) -> Lowered {
    let (float, n) = (cx.float(0)?, elements(cx.result(0)));
    let args = vec![float.arg(0)?, float.arg(1)?, float.arg(2)?, float.out(0)?, Arg::Int(n)];
    Ok(vec![Launch::of(FAMILY, float.entry("mse_grad"), n as u64, args)])
}

pub(in super::super) fn clip_scale(op: &ClipScale, cx: &Cx<'_>) -> Lowered {
    let args = vec![cx.f32(0)?, cx.out(0)?, Arg::Double(op.max_norm.get())];
    Ok(vec![Launch::of(FAMILY, "clip_scale", 1, args)])
}
