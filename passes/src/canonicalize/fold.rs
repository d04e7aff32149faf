//! Constants, and ops that do nothing.

use super::elementwise::is_elementwise;
use super::raise::reshaped;
use super::sweep::{Sweep, sweep};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::broadcasting::broadcast_shape;
use galvatron_ir::op::compute::{BinaryKind, Broadcast, CausalMask, Constant, Full, Iota, UnaryKind};
use galvatron_ir::types::{DType, Scalar, TensorType};
use galvatron_ir::{NodeId, Program, ValueId};

/// Folds constants and removes identities.
pub(super) fn fold(program: &mut Program) -> bool {
    sweep(program, |cx, node| {
        let args = cx.args(node);
        let ty = cx.ty(cx.result(node)).clone();
        if let Some(value) = constant(cx, node, &args, &ty) {
            return (!matches!(cx.op(node), Op::Full(_))).then(|| cx.emit(Full { ty, value }, &[]));
        }
        identity(cx, node, &args, &ty).or_else(|| shrink_operands(cx, node, &args, &ty))
    })
}

/// The value of all elements of a constant.
pub(super) fn splat(cx: &Sweep<'_>, value: ValueId) -> Option<f64> {
    match cx.def(value) {
        Some((Op::Full(full), _)) => Some(full.value.get()),
        _ => None,
    }
}

/// The value of all elements of a result, if it is one value; rounded to the element type.
fn constant(cx: &Sweep<'_>, node: NodeId, args: &[ValueId], ty: &TensorType) -> Option<Scalar> {
    let known: Option<Vec<f64>> = args.iter().map(|&a| splat(cx, a)).collect();
    let value = match (cx.op(node), known.as_deref()) {
        (Op::Constant(Constant { values, .. }), _) if values.windows(2).all(|w| w[0] == w[1]) => values.first()?.get(),
        (Op::Binary(b), Some([x, y])) if ty.dtype.is_float() => binary(b.kind, *x, *y),
        (Op::Unary(u), Some([x])) => unary(u.kind, *x)?,
        (Op::AddN(_), Some(all)) if ty.dtype.is_float() => all.iter().sum(),
        (Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Broadcast(_), Some([x])) => *x,
        (Op::Cast(_), Some([x])) if ty.dtype.is_float() => *x,
        _ => return None,
    };
    let rounded = if ty.dtype == DType::F32 { f64::from(value as f32) } else { value };
    (!rounded.is_nan()).then(|| Scalar::new(rounded))
}

fn binary(kind: BinaryKind, x: f64, y: f64) -> f64 {
    match kind {
        BinaryKind::Add => x + y,
        BinaryKind::Sub => x - y,
        BinaryKind::Mul => x * y,
        BinaryKind::Div => x / y,
        BinaryKind::Pow => x.powf(y),
        BinaryKind::Max => x.max(y),
        BinaryKind::Min => x.min(y),
        BinaryKind::Mod => x - y * (x / y).floor(),
        BinaryKind::Rem => x % y,
    }
}

fn unary(kind: UnaryKind, x: f64) -> Option<f64> {
    Some(match kind {
        UnaryKind::Neg => -x,
        UnaryKind::Exp => x.exp(),
        UnaryKind::Log => x.ln(),
        UnaryKind::Sqrt => x.sqrt(),
        UnaryKind::Reciprocal => 1.0 / x,
        UnaryKind::Tanh => x.tanh(),
        UnaryKind::Relu => x.max(0.0),
        UnaryKind::Abs => x.abs(),
        UnaryKind::Sin => x.sin(),
        UnaryKind::Cos => x.cos(),
        _ => return None,
    })
}

/// The operand that the op returns unchanged, or a simpler op.
fn identity(cx: &mut Sweep<'_>, node: NodeId, args: &[ValueId], ty: &TensorType) -> Option<ValueId> {
    let op = cx.op(node).clone();
    let operand = match &op {
        Op::Binary(b) => neutral(cx, b.kind, args)?,
        Op::Cast(_) | Op::Broadcast(_) | Op::Reshape(_) => args[0],
        Op::AddN(_) | Op::Concat(_) if args.len() == 1 => args[0],
        Op::Where(_) => match splat(cx, args[0])? {
            0.0 => args[2],
            _ => args[1],
        },
        _ => return None,
    };
    if cx.ty(operand) == ty {
        return Some(operand);
    }
    match op {
        Op::Broadcast(b) => broadcast(cx, &b, operand, ty),
        _ => None,
    }
}

/// The operand x of x + 0, x - 0, x * 1, x / 1 and x to the power 1.
fn neutral(cx: &Sweep<'_>, kind: BinaryKind, args: &[ValueId]) -> Option<ValueId> {
    let is = |i: usize, v: f64| splat(cx, args[i]) == Some(v);
    let (unit, commutes) = match kind {
        BinaryKind::Add => (0.0, true),
        BinaryKind::Sub => (0.0, false),
        BinaryKind::Mul => (1.0, true),
        BinaryKind::Div | BinaryKind::Pow => (1.0, false),
        BinaryKind::Max | BinaryKind::Min | BinaryKind::Mod | BinaryKind::Rem => return None,
    };
    if is(1, unit) {
        return Some(args[0]);
    }
    (commutes && is(0, unit)).then_some(args[1])
}

/// A broadcast that only inserts unit dimensions is a reshape; one of a mask or a ramp is a mask or ramp.
fn broadcast(cx: &mut Sweep<'_>, b: &Broadcast, x: ValueId, ty: &TensorType) -> Option<ValueId> {
    if cx.ty(x).elements() == ty.elements() {
        return Some(reshaped(cx, x, &ty.shape));
    }
    let (op, rank) = (cx.def(x)?.0.clone(), ty.rank());
    let operand = cx.shape(x);
    let at = |d: usize| operand.len().checked_sub(d).map(|i| (b.dims[i], operand[i]));
    match op {
        Op::CausalMask(mask) => {
            let kept = [1, 2].into_iter().all(|d| at(d).is_some_and(|(to, n)| to + d == rank && n == ty.shape[to]));
            kept.then(|| cx.emit(CausalMask { shape: ty.shape.clone(), ..mask }, &[]))
        }
        Op::Iota(iota) if operand[iota.dim] == ty.shape[b.dims[iota.dim]] => {
            Some(cx.emit(Iota { shape: ty.shape.clone(), dim: b.dims[iota.dim], ..iota }, &[]))
        }
        _ => None,
    }
}

/// Operands of an element-wise op without the repetition that the op does by itself.
fn shrink_operands(cx: &mut Sweep<'_>, node: NodeId, args: &[ValueId], ty: &TensorType) -> Option<ValueId> {
    let op = cx.op(node).clone();
    if !is_elementwise(&op) || matches!(op, Op::AddN(_) | Op::Cast(_) | Op::Unary(_)) {
        return None;
    }
    let mut shapes = cx.shapes(args);
    let mut changed = vec![false; args.len()];
    for i in 0..args.len() {
        let Some(small) = small_shape(cx, args[i]) else { continue };
        let before = std::mem::replace(&mut shapes[i], small);
        let views: Vec<&[u64]> = shapes.iter().map(Vec::as_slice).collect();
        changed[i] = before != shapes[i] && broadcast_shape(&views).is_ok_and(|s| s == ty.shape);
        if !changed[i] {
            shapes[i] = before;
        }
    }
    if !changed.contains(&true) {
        return None;
    }
    let mut operands = args.to_vec();
    for i in (0..args.len()).filter(|&i| changed[i]) {
        operands[i] = shrunk(cx, args[i], &shapes[i]);
    }
    Some(cx.emit(op, &operands))
}

/// The smallest shape that broadcasts to the value, if the value repeats a smaller one.
fn small_shape(cx: &Sweep<'_>, value: ValueId) -> Option<Vec<u64>> {
    match cx.def(value)? {
        (Op::Full(full), _) => (!full.ty.shape.is_empty()).then(Vec::new),
        (Op::CausalMask(mask), _) => {
            let (rows, rest) = (mask.shape.len() - 2, mask.shape.iter().copied());
            Some(rest.skip(rows).collect())
        }
        (Op::Broadcast(b), args) => {
            let operand = cx.shape(args[0]);
            let extent = |d: usize| b.dims.iter().position(|&to| to == d).map_or(1, |i| operand[i]);
            let all: Vec<u64> = (0..b.shape.len()).map(extent).collect();
            Some(all[all.iter().position(|&d| d != 1).unwrap_or(all.len())..].to_vec())
        }
        _ => None,
    }
}

/// The value with that shape, which is that of `small_shape`.
fn shrunk(cx: &mut Sweep<'_>, value: ValueId, shape: &[u64]) -> ValueId {
    let (op, args) =
        cx.def(value).map(|(op, args)| (op.clone(), args.to_vec())).expect("invariant: small_shape saw it");
    match op {
        Op::Full(full) => cx.emit(Full { ty: full.ty.with_shape(shape), ..full }, &[]),
        Op::CausalMask(mask) => cx.emit(CausalMask { shape: shape.to_vec(), ..mask }, &[]),
        _ => reshaped(cx, args[0], shape),
    }
}
