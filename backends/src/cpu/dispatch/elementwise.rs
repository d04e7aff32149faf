//! Element-wise ops, also over their own operands.

use galvatron_ir::op::compute::{Binary, BinaryKind, Compare, CompareKind, Unary, UnaryGrad, UnaryKind};
use galvatron_ir::types::DType;

use super::broadcast::Walk;
use super::{Cx, Prepared, Slot};
use crate::cpu::arena::{Arena, Element};
use crate::cpu::kernels::{GRAIN, binary as kernels, unary as functions};
use crate::cpu::threads::Threads;

/// Elements of a chunk that is copied to the stack when a kernel cannot work over one of its operands.
const CHUNK: usize = 2048;

pub(super) fn binary(op: &Binary, cx: &Cx<'_>) -> Prepared {
    if cx.args[0].dtype == DType::I64 {
        return integers(op, cx);
    }
    let (a, b, out, threads) = (cx.f32(0)?, cx.f32(1)?, cx.out(0)?, cx.threads);
    let [a_shape, b_shape, shape] = [&cx.args[0], &cx.args[1], &cx.results[0]].map(|buffer| buffer.shape.clone());
    let kind = binary_kind(op.kind);
    match (cx.in_place(0, 0), cx.in_place(1, 0)) {
        (true, true) => cx.kernel(move |arena| {
            for_each_copied_chunk(out, arena, |copy, out| {
                let n = [copy.len()];
                kernels::binary(kind, (copy, &n), (copy, &n), (out, &n), Threads::ONE);
            });
            Ok(())
        }),
        (true, false) => cx.kernel(move |arena| {
            kernels::binary_inplace(kind, (out.get_mut(arena), &shape), (b.get(arena), &b_shape), threads);
            Ok(())
        }),
        (false, true) => cx.kernel(move |arena| {
            kernels::binary_inplace_rhs(kind, (a.get(arena), &a_shape), (out.get_mut(arena), &shape), threads);
            Ok(())
        }),
        (false, false) => cx.kernel(move |arena| {
            let (a, b) = ((a.get(arena), &a_shape[..]), (b.get(arena), &b_shape[..]));
            kernels::binary(kind, a, b, (out.get_mut(arena), &shape), threads);
            Ok(())
        }),
    }
}

/// Calls `f` with a copy of each chunk of a buffer and the chunk itself.
fn for_each_copied_chunk(buffer: Slot, arena: &Arena, f: impl Fn(&[f32], &mut [f32])) {
    let mut copy = [0f32; CHUNK];
    for chunk in buffer.get_mut::<f32>(arena).chunks_mut(CHUNK) {
        let copy = &mut copy[..chunk.len()];
        copy.copy_from_slice(chunk);
        f(copy, chunk);
    }
}

fn binary_kind(kind: BinaryKind) -> kernels::BinaryKind {
    match kind {
        BinaryKind::Add => kernels::BinaryKind::Add,
        BinaryKind::Sub => kernels::BinaryKind::Sub,
        BinaryKind::Mul => kernels::BinaryKind::Mul,
        BinaryKind::Div => kernels::BinaryKind::Div,
        BinaryKind::Pow => kernels::BinaryKind::Pow,
        BinaryKind::Max => kernels::BinaryKind::Max,
        BinaryKind::Min => kernels::BinaryKind::Min,
        BinaryKind::Mod => kernels::BinaryKind::Mod,
        BinaryKind::Rem => kernels::BinaryKind::Rem,
    }
}

/// a to the power b, cut towards zero where b is negative; 0 to a negative power is 0.
fn integer_power(a: i64, b: i64) -> i64 {
    match (a, u32::try_from(b)) {
        (_, Ok(b)) => a.wrapping_pow(b),
        (1, _) => 1,
        (-1, _) => 1 - 2 * (b & 1),
        _ => 0,
    }
}

/// Arithmetic of positions and indices; division rounds towards zero, and by zero it gives 0.
fn integers(op: &Binary, cx: &Cx<'_>) -> Prepared {
    let (a, b, out) = (cx.i64(0)?, cx.i64(1)?, cx.results[0].slot());
    let apply: fn(i64, i64) -> i64 = match op.kind {
        BinaryKind::Add => i64::wrapping_add,
        BinaryKind::Sub => i64::wrapping_sub,
        BinaryKind::Mul => i64::wrapping_mul,
        BinaryKind::Div => |a, b| a.checked_div(b).unwrap_or(0),
        BinaryKind::Pow => integer_power,
        BinaryKind::Max => i64::max,
        BinaryKind::Min => i64::min,
        BinaryKind::Mod => |a, b| a.checked_rem(b).map_or(0, |r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
        BinaryKind::Rem => |a, b| a.checked_rem(b).unwrap_or(0),
    };
    let walk = Walk::new(&cx.results[0].shape, &[&cx.args[0].shape, &cx.args[1].shape]);
    // An operand in the place of the result has its shape: element i is read before it is written.
    let over = [cx.in_place(0, 0), cx.in_place(1, 0)];
    cx.kernel(move |arena| {
        let operand = |slot: Slot, over: bool| if over { &[] } else { slot.get::<i64>(arena) };
        let (a, b) = (operand(a, over[0]), operand(b, over[1]));
        let out = out.get_mut::<i64>(arena);
        walk.for_each(|i, [at_a, at_b]| {
            let left = if over[0] { out[i] } else { a[at_a] };
            let right = if over[1] { out[i] } else { b[at_b] };
            out[i] = apply(left, right);
        });
        Ok(())
    })
}

/// The sum, in the order of the operands; the result may take the place of any of them.
pub(super) fn add_n(cx: &Cx<'_>) -> Prepared {
    let args: Vec<Slot> = (0..cx.args.len()).map(|i| cx.f32(i)).collect::<Result<_, _>>()?;
    let (out, threads) = (cx.out(0)?, cx.threads);
    cx.kernel(move |arena| {
        threads.for_each_range(out.len, GRAIN, |range| {
            for start in range.clone().step_by(CHUNK) {
                add_chunk(arena, &args, out, start, CHUNK.min(range.end - start));
            }
        });
        Ok(())
    })
}

fn add_chunk(arena: &Arena, args: &[Slot], out: Slot, start: usize, len: usize) {
    let mut sum = [0f32; CHUNK];
    let sum = &mut sum[..len];
    for (i, arg) in args.iter().enumerate() {
        let arg = arg.part(start, len, size_of::<f32>()).get::<f32>(arena);
        match i {
            0 => sum.copy_from_slice(arg),
            _ => sum.iter_mut().zip(arg).for_each(|(s, &x)| *s += x),
        }
    }
    out.part(start, len, size_of::<f32>()).get_mut(arena).copy_from_slice(sum);
}

/// Whether the operands stand in an order.
pub(super) fn compare(op: &Compare, cx: &Cx<'_>) -> Prepared {
    match cx.args[0].dtype {
        DType::I64 => compare_of::<i64>(op, cx),
        DType::Bool => compare_of::<u8>(op, cx),
        _ => compare_floats(op, cx),
    }
}

fn compare_floats(op: &Compare, cx: &Cx<'_>) -> Prepared {
    let (a, b, out, threads) = (cx.f32(0)?, cx.f32(1)?, cx.results[0].slot(), cx.threads);
    let [a_shape, b_shape, shape] = [&cx.args[0], &cx.args[1], &cx.results[0]].map(|buffer| buffer.shape.clone());
    let kind = match op.kind {
        CompareKind::Equal => kernels::CompareKind::Eq,
        CompareKind::Less => kernels::CompareKind::Lt,
        CompareKind::LessEqual => kernels::CompareKind::Le,
    };
    cx.kernel(move |arena| {
        let (a, b) = ((a.get(arena), &a_shape[..]), (b.get(arena), &b_shape[..]));
        kernels::compare(kind, a, b, (out.get_mut(arena), &shape), threads);
        Ok(())
    })
}

fn compare_of<T: Element + PartialOrd>(op: &Compare, cx: &Cx<'_>) -> Prepared {
    let [a, b] = [0, 1].map(|i| cx.args[i].slot());
    let out = cx.results[0].slot();
    let holds: fn(&T, &T) -> bool = match op.kind {
        CompareKind::Equal => T::eq,
        CompareKind::Less => T::lt,
        CompareKind::LessEqual => T::le,
    };
    let walk = Walk::new(&cx.results[0].shape, &[&cx.args[0].shape, &cx.args[1].shape]);
    cx.kernel(move |arena| {
        let (a, b, out) = (a.get::<T>(arena), b.get::<T>(arena), out.get_mut::<u8>(arena));
        walk.for_each(|i, [at_a, at_b]| out[i] = u8::from(holds(&a[at_a], &b[at_b])));
        Ok(())
    })
}

pub(super) fn unary(op: &Unary, cx: &Cx<'_>) -> Prepared {
    let (x, threads) = (cx.f32(0)?, cx.threads);
    let Some(kind) = unary_kind(op.kind) else { return is_nan(cx) };
    let out = cx.out(0)?;
    if cx.in_place(0, 0) {
        return cx.kernel(move |arena| {
            functions::unary_inplace(kind, out.get_mut(arena), threads);
            Ok(())
        });
    }
    cx.kernel(move |arena| {
        functions::unary(kind, x.get(arena), out.get_mut(arena), threads);
        Ok(())
    })
}

fn is_nan(cx: &Cx<'_>) -> Prepared {
    let (x, out) = (cx.f32(0)?, cx.results[0].slot());
    cx.kernel(move |arena| {
        let pairs = out.get_mut::<u8>(arena).iter_mut().zip(x.get::<f32>(arena));
        pairs.for_each(|(out, x)| *out = u8::from(x.is_nan()));
        Ok(())
    })
}

/// The kernel's name of a function; `None` for `is_nan`, which gives a bool.
pub(super) fn unary_kind(kind: UnaryKind) -> Option<functions::UnaryKind> {
    Some(match kind {
        UnaryKind::Neg => functions::UnaryKind::Neg,
        UnaryKind::Exp => functions::UnaryKind::Exp,
        UnaryKind::Log => functions::UnaryKind::Log,
        UnaryKind::Sqrt => functions::UnaryKind::Sqrt,
        UnaryKind::Reciprocal => functions::UnaryKind::Reciprocal,
        UnaryKind::Tanh => functions::UnaryKind::Tanh,
        UnaryKind::Erf => functions::UnaryKind::Erf,
        UnaryKind::Sigmoid => functions::UnaryKind::Sigmoid,
        UnaryKind::Relu => functions::UnaryKind::Relu,
        UnaryKind::Gelu => functions::UnaryKind::Gelu,
        UnaryKind::GeluTanh => functions::UnaryKind::GeluTanh,
        UnaryKind::Silu => functions::UnaryKind::Silu,
        UnaryKind::Abs => functions::UnaryKind::Abs,
        UnaryKind::Sign => functions::UnaryKind::Sign,
        UnaryKind::Sin => functions::UnaryKind::Sin,
        UnaryKind::Cos => functions::UnaryKind::Cos,
        UnaryKind::Floor => functions::UnaryKind::Floor,
        UnaryKind::Ceil => functions::UnaryKind::Ceil,
        UnaryKind::Round => functions::UnaryKind::Round,
        UnaryKind::Softplus => functions::UnaryKind::Softplus,
        UnaryKind::IsNan => return None,
    })
}

/// dx = f'(x) dy, over x or over dy where their place is the result's.
pub(super) fn unary_grad(op: &UnaryGrad, cx: &Cx<'_>) -> Prepared {
    let kind = unary_kind(op.kind).ok_or("`is_nan` has no derivative")?;
    let (x, dy, out, threads) = (cx.f32(0)?, cx.f32(1)?, cx.out(0)?, cx.threads);
    match (cx.in_place(0, 0), cx.in_place(1, 0)) {
        (true, _) => cx.kernel(move |arena| {
            let over_x = |start: usize, chunk: &mut [f32], x: &[f32]| {
                let dy = dy.part(start, chunk.len(), size_of::<f32>());
                functions::unary_grad(kind, x, dy.get(arena), chunk, Threads::ONE);
            };
            let same = dy == x;
            threads.for_each_chunk_mut(out.get_mut::<f32>(arena), CHUNK, |i, chunk| {
                let mut copy = [0f32; CHUNK];
                let copy = &mut copy[..chunk.len()];
                copy.copy_from_slice(chunk);
                match same {
                    true => functions::unary_grad_inplace(kind, copy, chunk, Threads::ONE),
                    false => over_x(i * CHUNK, chunk, copy),
                }
            });
            Ok(())
        }),
        (false, true) => cx.kernel(move |arena| {
            functions::unary_grad_inplace(kind, x.get(arena), out.get_mut(arena), threads);
            Ok(())
        }),
        (false, false) => cx.kernel(move |arena| {
            functions::unary_grad(kind, x.get(arena), dy.get(arena), out.get_mut(arena), threads);
            Ok(())
        }),
    }
}

/// Operand 1 where operand 0 holds, else operand 2.
pub(super) fn select(cx: &Cx<'_>) -> Prepared {
    match cx.results[0].dtype {
        DType::F32 => select_of::<f32>(cx),
        DType::I64 => select_of::<i64>(cx),
        DType::Bool => select_of::<u8>(cx),
        DType::Bf16 => select_of::<u16>(cx),
    }
}

fn select_of<T: Element>(cx: &Cx<'_>) -> Prepared {
    let [condition, yes, no] = [0, 1, 2].map(|i| cx.args[i].slot());
    let out = cx.results[0].slot();
    let shapes: Vec<&[usize]> = cx.args.iter().map(|arg| &arg.shape[..]).collect();
    let walk = Walk::new(&cx.results[0].shape, &shapes);
    cx.kernel(move |arena| {
        let (condition, yes, no) = (condition.get::<u8>(arena), yes.get::<T>(arena), no.get::<T>(arena));
        let out = out.get_mut::<T>(arena);
        walk.for_each(|i, [c, y, n]| out[i] = if condition[c] != 0 { yes[y] } else { no[n] });
        Ok(())
    })
}
