//! Element-wise operations of two operands with NumPy broadcasting, and comparisons.

use super::super::math::simd;
use super::super::threads::{Shared, Threads};
use super::GRAIN;
use super::broadcast::Broadcast;

/// An element-wise operation of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryKind {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
    /// a / b
    Div,
    /// The larger; NaN when one is.
    Max,
    /// The smaller; NaN when one is.
    Min,
    /// The remainder that has the sign of b.
    Mod,
    /// The remainder that has the sign of a.
    Rem,
    /// a to the power b
    Pow,
}

/// A comparison; its result is 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareKind {
    /// a = b
    Eq,
    /// a < b
    Lt,
    /// a <= b
    Le,
    /// a > b
    Gt,
    /// a >= b
    Ge,
}

#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

/// a - b floor(a / b), of which 0 has the sign of b.
#[inline(always)]
fn modulo(a: f32, b: f32) -> f32 {
    let rest = a % b;
    if rest == 0.0 {
        0f32.copysign(b)
    } else if (rest < 0.0) != (b < 0.0) {
        rest + b
    } else {
        rest
    }
}

/// Expands `$body` once per kind with `$f` bound to its scalar function, so that every loop is specialised.
macro_rules! with_binary {
    ($kind:expr, $f:ident => $body:expr) => {
        match $kind {
            BinaryKind::Add => with_binary!(@arm $f, a, b => a + b, $body),
            BinaryKind::Sub => with_binary!(@arm $f, a, b => a - b, $body),
            BinaryKind::Mul => with_binary!(@arm $f, a, b => a * b, $body),
            BinaryKind::Div => with_binary!(@arm $f, a, b => a / b, $body),
            BinaryKind::Max => with_binary!(@arm $f, a, b => max(a, b), $body),
            BinaryKind::Min => with_binary!(@arm $f, a, b => min(a, b), $body),
            BinaryKind::Mod => with_binary!(@arm $f, a, b => modulo(a, b), $body),
            BinaryKind::Rem => with_binary!(@arm $f, a, b => a % b, $body),
            BinaryKind::Pow => with_binary!(@arm $f, a, b => a.powf(b), $body),
        }
    };
    (@arm $f:ident, $a:ident, $b:ident => $value:expr, $body:expr) => {{
        let $f = std::convert::identity(
            #[inline(always)]
            |$a: f32, $b: f32| $value,
        );
        $body
    }};
}

/// out = a op b. The shapes of `a` and `b` broadcast to `out_shape`.
///
/// # Panics
/// When the shapes do not broadcast or a slice has not the length of its shape.
pub fn binary(
    kind: BinaryKind,
    (a, a_shape): (&[f32], &[usize]),
    (b, b_shape): (&[f32], &[usize]),
    (out, out_shape): (&mut [f32], &[usize]),
    threads: Threads,
) {
    let rows = checked(out_shape, (a.len(), a_shape), (b.len(), b_shape), out.len());
    with_binary!(kind, f => over_rows(&rows, a, b, out, threads, f));
}

/// a = a op b, where `b_shape` broadcasts to `a_shape`.
///
/// # Panics
/// As [`binary`].
pub fn binary_inplace(
    kind: BinaryKind,
    (a, a_shape): (&mut [f32], &[usize]),
    (b, b_shape): (&[f32], &[usize]),
    threads: Threads,
) {
    let rows = checked(a_shape, (a.len(), a_shape), (b.len(), b_shape), a.len());
    with_binary!(kind, f => over_rows_inplace(&rows, a, b, threads, f));
}

/// b = a op b, where `a_shape` broadcasts to `b_shape`.
///
/// # Panics
/// As [`binary`].
pub fn binary_inplace_rhs(
    kind: BinaryKind,
    (a, a_shape): (&[f32], &[usize]),
    (b, b_shape): (&mut [f32], &[usize]),
    threads: Threads,
) {
    let rows = checked(b_shape, (b.len(), b_shape), (a.len(), a_shape), b.len());
    with_binary!(kind, f => over_rows_inplace(&rows, b, a, threads, #[inline(always)] |b, a| f(a, b)));
}

/// out = 1 where the comparison holds, else 0. The shapes of `a` and `b` broadcast to `out_shape`.
///
/// # Panics
/// As [`binary`].
pub fn compare(
    kind: CompareKind,
    (a, a_shape): (&[f32], &[usize]),
    (b, b_shape): (&[f32], &[usize]),
    (out, out_shape): (&mut [u8], &[usize]),
    threads: Threads,
) {
    let rows = checked(out_shape, (a.len(), a_shape), (b.len(), b_shape), out.len());
    match kind {
        CompareKind::Eq => over_rows(&rows, a, b, out, threads, |a, b| (a == b) as u8),
        CompareKind::Lt => over_rows(&rows, a, b, out, threads, |a, b| (a < b) as u8),
        CompareKind::Le => over_rows(&rows, a, b, out, threads, |a, b| (a <= b) as u8),
        CompareKind::Gt => over_rows(&rows, a, b, out, threads, |a, b| (a > b) as u8),
        CompareKind::Ge => over_rows(&rows, a, b, out, threads, |a, b| (a >= b) as u8),
    }
}

/// The loops of a call whose slices have the lengths of their shapes.
fn checked(out: &[usize], a: (usize, &[usize]), b: (usize, &[usize]), out_len: usize) -> Broadcast {
    let len = |shape: &[usize]| shape.iter().product::<usize>();
    assert_eq!(
        [a.0, b.0, out_len],
        [len(a.1), len(b.1), len(out)],
        "invariant: slices have the lengths of their shapes"
    );
    Broadcast::new(out, a.1, b.1).expect("invariant: operand shapes broadcast to the result")
}

/// Calls `f(first element of the result, start in a, start in b, length)` for pieces of rows, in parallel.
fn over_pieces(rows: &Broadcast, threads: Threads, f: impl Fn(usize, usize, usize, usize) + Send + Sync) {
    let (n_rows, len) = (rows.n_rows(), rows.row_len);
    if n_rows == 1 {
        threads.for_each_range(len, GRAIN, |r| f(r.start, r.start * rows.a_step, r.start * rows.b_step, r.len()));
    } else {
        threads.for_each_range(n_rows, GRAIN.div_ceil(len.max(1)), |range| {
            for i in range {
                let (a, b) = rows.row_start(i);
                f(i * len, a, b, len);
            }
        });
    }
}

/// out = f(a, b) over all rows.
fn over_rows<T: Copy + Send>(
    rows: &Broadcast,
    a: &[f32],
    b: &[f32],
    out: &mut [T],
    threads: Threads,
    f: impl Fn(f32, f32) -> T + Copy + Send + Sync,
) {
    let out = Shared::new(out);
    let (a_step, b_step) = (rows.a_step, rows.b_step);
    over_pieces(rows, threads, |start, a_at, b_at, n| {
        // SAFETY: pieces of the result are disjoint.
        let out = unsafe { out.slice(start..start + n) };
        let (a, b) = (&a[a_at..], &b[b_at..]);
        simd!(match (a_step, b_step) {
            (1, 1) => {
                for ((o, &a), &b) in out.iter_mut().zip(&a[..n]).zip(&b[..n]) {
                    *o = f(a, b);
                }
            }
            (1, 0) => {
                for (o, &a) in out.iter_mut().zip(&a[..n]) {
                    *o = f(a, b[0]);
                }
            }
            (0, 1) => {
                for (o, &b) in out.iter_mut().zip(&b[..n]) {
                    *o = f(a[0], b);
                }
            }
            _ => {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = f(a[i * a_step], b[i * b_step]);
                }
            }
        });
    });
}

/// a = f(a, b) over all rows; `a` has the shape of the result.
fn over_rows_inplace(
    rows: &Broadcast,
    a: &mut [f32],
    b: &[f32],
    threads: Threads,
    f: impl Fn(f32, f32) -> f32 + Copy + Send + Sync,
) {
    let a = Shared::new(a);
    let b_step = rows.b_step;
    over_pieces(rows, threads, |start, _, b_at, n| {
        // SAFETY: pieces of the result are disjoint.
        let a = unsafe { a.slice(start..start + n) };
        let b = &b[b_at..];
        simd!(match b_step {
            1 => {
                for (a, &b) in a.iter_mut().zip(&b[..n]) {
                    *a = f(*a, b);
                }
            }
            0 => {
                for a in a.iter_mut() {
                    *a = f(*a, b[0]);
                }
            }
            _ => {
                for (i, a) in a.iter_mut().enumerate() {
                    *a = f(*a, b[i * b_step]);
                }
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random};
    use super::*;

    const KINDS: [BinaryKind; 9] = [
        BinaryKind::Add,
        BinaryKind::Sub,
        BinaryKind::Mul,
        BinaryKind::Div,
        BinaryKind::Max,
        BinaryKind::Min,
        BinaryKind::Mod,
        BinaryKind::Rem,
        BinaryKind::Pow,
    ];

    fn scalar(kind: BinaryKind, a: f64, b: f64) -> f64 {
        match kind {
            BinaryKind::Add => a + b,
            BinaryKind::Sub => a - b,
            BinaryKind::Mul => a * b,
            BinaryKind::Div => a / b,
            BinaryKind::Max => a.max(b),
            BinaryKind::Min => a.min(b),
            BinaryKind::Mod => a.rem_euclid(b),
            BinaryKind::Rem => a % b,
            BinaryKind::Pow => a.powf(b),
        }
    }

    /// The element of an operand of `shape` under element `i` of `out`.
    fn source(out: &[usize], shape: &[usize], mut i: usize) -> usize {
        let (mut at, mut step) = (0, 1);
        for (j, &n) in out.iter().enumerate().rev() {
            let index = i % n;
            i /= n;
            if let Some(k) = (j + shape.len()).checked_sub(out.len()) {
                at += if shape[k] == 1 { 0 } else { index * step };
                step *= shape[k];
            }
        }
        at
    }

    fn check(out_shape: &[usize], a_shape: &[usize], b_shape: &[usize]) {
        let len = |s: &[usize]| s.iter().product::<usize>();
        let positive = |n, seed| random(n, seed).iter().map(|x| x + 1.5).collect::<Vec<f32>>();
        let (a, b) = (positive(len(a_shape), 1), positive(len(b_shape), 2));
        for kind in KINDS {
            let element =
                |i| scalar(kind, a[source(out_shape, a_shape, i)] as f64, b[source(out_shape, b_shape, i)] as f64);
            let want: Vec<f64> = (0..len(out_shape)).map(element).collect();
            let mut out = vec![0.0; want.len()];
            in_pool(2, || binary(kind, (&a, a_shape), (&b, b_shape), (&mut out, out_shape), Threads::new(2)));
            assert_close(&out, &want, 1e-6);
            if a_shape == out_shape {
                let mut a = a.clone();
                binary_inplace(kind, (&mut a, a_shape), (&b, b_shape), Threads::ONE);
                assert_eq!(a, out);
            }
            if b_shape == out_shape {
                let mut b = b.clone();
                binary_inplace_rhs(kind, (&a, a_shape), (&mut b, b_shape), Threads::ONE);
                assert_eq!(b, out);
            }
        }
    }

    #[test]
    fn operands_broadcast_as_in_numpy() {
        check(&[7], &[7], &[7]);
        check(&[], &[], &[]);
        check(&[3, 5, 67], &[3, 5, 67], &[67]);
        check(&[3, 5, 67], &[], &[3, 5, 67]);
        check(&[3, 5, 67], &[3, 5, 67], &[1, 1]);
        check(&[3, 5, 67], &[3, 5, 1], &[5, 67]);
        check(&[3, 5, 67], &[3, 1, 67], &[5, 1]);
        check(&[2, 3, 4, 5], &[2, 1, 4, 1], &[1, 3, 1, 5]);
        check(&[3, 0, 2], &[3, 0, 2], &[2]);
        check(&[100_000], &[100_000], &[1]);
    }

    fn one(kind: BinaryKind, a: f32, b: f32) -> f32 {
        let mut out = [9.0];
        binary(kind, (&[a], &[]), (&[b], &[]), (&mut out, &[]), Threads::ONE);
        out[0]
    }

    #[test]
    fn remainders_take_the_sign_of_one_side() {
        for (a, b, modulo, rest) in [(-4.5, 2.0, 1.5, -0.5), (4.5, -2.0, -1.5, 0.5), (5.0, 8.0, 5.0, 5.0)] {
            assert_eq!((one(BinaryKind::Mod, a, b), one(BinaryKind::Rem, a, b)), (modulo, rest));
        }
        assert_eq!(one(BinaryKind::Mod, 4.0, -2.0).to_bits(), (-0f32).to_bits());
        assert_eq!(one(BinaryKind::Mod, -3.0, f32::INFINITY), f32::INFINITY);
        assert!(one(BinaryKind::Mod, 1.0, 0.0).is_nan());
    }

    #[test]
    fn extremes_of_nan_are_nan() {
        for kind in [BinaryKind::Max, BinaryKind::Min] {
            assert!(one(kind, f32::NAN, 1.0).is_nan() && one(kind, 1.0, f32::NAN).is_nan());
        }
    }

    #[test]
    fn comparisons_are_ones_and_zeros() {
        let (a, b) = ([1.0, 2.0, 3.0], [2.0]);
        for (kind, want) in [
            (CompareKind::Eq, [0, 1, 0]),
            (CompareKind::Lt, [1, 0, 0]),
            (CompareKind::Le, [1, 1, 0]),
            (CompareKind::Gt, [0, 0, 1]),
            (CompareKind::Ge, [0, 1, 1]),
        ] {
            let mut out = [9; 3];
            compare(kind, (&a, &[3]), (&b, &[1]), (&mut out, &[3]), Threads::ONE);
            assert_eq!(out, want);
        }
    }
}
