//! A mixture of gated experts: choices are sorted by expert, and each expert multiplies its rows block by block.

use super::super::threads::Threads;
use super::dense::{Matrix, multiply};
use super::unary::{UnaryKind, unary};

/// The extents of a mixture and the experts that the rank holds.
#[derive(Clone, Copy, Debug)]
pub struct MoeDims {
    /// Tokens.
    pub rows: usize,
    /// Experts that each token chooses.
    pub choices: usize,
    /// Width of a token.
    pub h: usize,
    /// Width inside of an expert.
    pub f: usize,
    /// Experts of the rank.
    pub experts: usize,
    /// The first of them.
    pub first: usize,
    /// Rows that are computed at once.
    pub block: usize,
    /// The function on the gate.
    pub activation: UnaryKind,
}

/// What an expert is and what it sees: x [rows, h], w and i [rows, choices], gate and up [experts, f, h], down [experts, h, f].
#[derive(Clone, Copy)]
pub struct MoeArgs<'a> {
    /// Tokens.
    pub x: &'a [f32],
    /// Weight of each choice.
    pub w: &'a [f32],
    /// Expert of each choice.
    pub i: &'a [i64],
    /// Gates of the experts.
    pub gate: &'a [f32],
    /// Projections into the experts.
    pub up: &'a [f32],
    /// Projections out of them.
    pub down: &'a [f32],
}

impl MoeDims {
    /// Numbers of choices and experts that the order takes.
    pub fn order_len(&self) -> usize {
        self.rows * self.choices + self.experts + 1
    }

    /// Scratch elements of a block with so many rows of each width.
    pub fn scratch_len(&self, of_h: usize, of_f: usize) -> usize {
        self.block * (of_h * self.h + of_f * self.f)
    }
}

/// The choices of the rank's experts in order of the experts, those of one in order of the tokens.
pub(super) struct Order<'a> {
    starts: &'a [u32],
    choices: &'a [u32],
}

/// Sorts by counting. `order` has [`MoeDims::order_len`] places.
pub(super) fn sort<'a>(dims: &MoeDims, i: &[i64], order: &'a mut [u32]) -> Order<'a> {
    let (starts, choices) = order.split_at_mut(dims.experts + 1);
    starts.fill(0);
    let local = |id: i64| usize::try_from(id).ok()?.checked_sub(dims.first).filter(|&e| e < dims.experts);
    for expert in i.iter().filter_map(|&id| local(id)) {
        starts[expert + 1] += 1;
    }
    for e in 0..dims.experts {
        starts[e + 1] += starts[e];
    }
    for (choice, &id) in (0..).zip(i) {
        if let Some(expert) = local(id) {
            choices[starts[expert] as usize] = choice;
            starts[expert] += 1;
        }
    }
    // Every start now is the end of its expert.
    starts.rotate_right(1);
    starts[0] = 0;
    Order { starts, choices }
}

impl Order<'_> {
    /// Visits the blocks of all experts in order: the expert, and its next choices.
    pub(super) fn each_block(&self, block: usize, mut visit: impl FnMut(usize, &[u32])) {
        for (expert, ends) in self.starts.windows(2).enumerate() {
            let chosen = &self.choices[ends[0] as usize..ends[1] as usize];
            chosen.chunks(block.max(1)).for_each(|choices| visit(expert, choices));
        }
    }
}

/// Copies the rows of tokens of some choices.
pub(super) fn gather(x: &[f32], h: usize, per_token: usize, choices: &[u32], out: &mut [f32]) {
    for (row, &choice) in out.chunks_exact_mut(h).zip(choices) {
        let token = choice as usize / per_token;
        row.copy_from_slice(&x[token * h..][..h]);
    }
}

/// Adds rows to those of the tokens of some choices, in their order.
pub(super) fn scatter(rows: &[f32], h: usize, per_token: usize, choices: &[u32], out: &mut [f32]) {
    for (row, &choice) in rows.chunks_exact(h).zip(choices) {
        let token = choice as usize / per_token;
        out[token * h..][..h].iter_mut().zip(row).for_each(|(o, r)| *o += r);
    }
}

/// The part of a tensor [experts, ..] that is one expert's.
pub(super) fn of_expert(all: &[f32], expert: usize, len: usize) -> &[f32] {
    &all[expert * len..][..len]
}

/// y [rows, h] is overwritten: the sum over the choices of w down (a(gate x) up x). Experts of other ranks add nothing.
///
/// `order` has [`MoeDims::order_len`] places, `scratch` room for two rows of each width.
///
/// # Panics
/// When a slice has not the length that `dims` says.
pub fn moe(
    dims: &MoeDims,
    args: &MoeArgs<'_>,
    y: &mut [f32],
    (order, scratch): (&mut [u32], &mut [f32]),
    threads: Threads,
) {
    let (h, f) = (dims.h, dims.f);
    y.fill(0.0);
    let order = sort(dims, args.i, order);
    let [x, out, g, u] = parts(scratch, [h, h, f, f].map(|width| dims.block * width));
    order.each_block(dims.block, |expert, choices| {
        let n = choices.len();
        let (x, out, g, u) = (&mut x[..n * h], &mut out[..n * h], &mut g[..n * f], &mut u[..n * f]);
        let [gate, up, down] = [args.gate, args.up, args.down].map(|all| of_expert(all, expert, h * f));
        gather(args.x, h, dims.choices, choices, x);
        multiply(Matrix::rows(x, h), Matrix::rows(gate, h).transposed(), out_of(g, f), false, threads);
        multiply(Matrix::rows(x, h), Matrix::rows(up, h).transposed(), out_of(u, f), false, threads);
        super::unary::unary_inplace(dims.activation, g, threads);
        let rows = g.chunks_exact_mut(f).zip(u.chunks_exact(f)).zip(choices);
        for ((g, u), &choice) in rows {
            let w = args.w[choice as usize];
            g.iter_mut().zip(u).for_each(|(g, u)| *g *= w * u);
        }
        multiply(Matrix::rows(g, f), Matrix::rows(down, f).transposed(), out_of(out, h), false, threads);
        scatter(out, h, dims.choices, choices, y);
    });
}

/// The gradients (dx, dw, dgate, dup, ddown) for dy [rows, h]; all of the results is overwritten. See [`more_moe_grad`].
///
/// # Panics
/// When a slice has not the length that `dims` says.
pub fn moe_grad(
    dims: &MoeDims,
    args: &MoeArgs<'_>,
    dy: &[f32],
    results: [&mut [f32]; 5],
    scratch: (&mut [u32], &mut [f32]),
    threads: Threads,
) {
    let [dx, dw, dgate, dup, ddown] = results;
    for grad in [&mut *dgate, &mut *dup, &mut *ddown] {
        threads.for_each_chunk_mut(grad, super::GRAIN, |_, chunk| chunk.fill(0.0));
    }
    more_moe_grad(dims, args, dy, [dx, dw, dgate, dup, ddown], scratch, threads);
}

/// The gradients (dx, dw) for dy [rows, h]; what these rows give is added to (dgate, dup, ddown).
///
/// With s = a(gate x), z = downᵀ dy: dw = (s u) z, ddown = w dy (s u)ᵀ, du = w z s, dgate x = w z u a'(gate x).
/// `scratch` has room for three rows of width h and five of width f.
///
/// # Panics
/// When a slice has not the length that `dims` says.
pub fn more_moe_grad(
    dims: &MoeDims,
    args: &MoeArgs<'_>,
    dy: &[f32],
    [dx, dw, dgate, dup, ddown]: [&mut [f32]; 5],
    (order, scratch): (&mut [u32], &mut [f32]),
    threads: Threads,
) {
    let (h, f) = (dims.h, dims.f);
    for grad in [&mut *dx, &mut *dw] {
        threads.for_each_chunk_mut(grad, super::GRAIN, |_, chunk| chunk.fill(0.0));
    }
    let order = sort(dims, args.i, order);
    let [x, d, out, g, u, z, s, p] = parts(scratch, [h, h, h, f, f, f, f, f].map(|width| dims.block * width));
    order.each_block(dims.block, |expert, choices| {
        let n = choices.len();
        let [x, d, out] = [&mut *x, &mut *d, &mut *out].map(|all| &mut all[..n * h]);
        let [g, u, z, s, p] = [&mut *g, &mut *u, &mut *z, &mut *s, &mut *p].map(|all| &mut all[..n * f]);
        let [gate, up, down] = [args.gate, args.up, args.down].map(|all| of_expert(all, expert, h * f));
        let [dgate, dup, ddown] = [&mut *dgate, &mut *dup, &mut *ddown].map(|all| &mut all[expert * h * f..][..h * f]);
        gather(args.x, h, dims.choices, choices, x);
        gather(dy, h, dims.choices, choices, d);
        let (x, d) = (Matrix::rows(x, h), Matrix::rows(d, h));
        multiply(x, Matrix::rows(gate, h).transposed(), out_of(g, f), false, threads);
        multiply(x, Matrix::rows(up, h).transposed(), out_of(u, f), false, threads);
        multiply(d, Matrix::rows(down, f), out_of(z, f), false, threads);
        unary(dims.activation, g, s, threads);
        product(s, u, p);
        for (row, &choice) in choices.iter().enumerate() {
            let (w, at) = (args.w[choice as usize], row * f..(row + 1) * f);
            dw[choice as usize] = super::super::math::sum2(&p[at.clone()], &z[at.clone()], |p, z| p * z);
            p[at.clone()].iter_mut().for_each(|p| *p *= w);
            z[at].iter_mut().for_each(|z| *z *= w);
        }
        multiply(d.transposed(), Matrix::rows(p, f), out_of(ddown, f), true, threads);
        product(z, u, p);
        super::unary::unary_grad_inplace(dims.activation, g, p, threads);
        s.iter_mut().zip(&*z).for_each(|(s, z)| *s *= z);
        let (dg, du) = (Matrix::rows(p, f), Matrix::rows(s, f));
        multiply(dg.transposed(), x, out_of(dgate, h), true, threads);
        multiply(du.transposed(), x, out_of(dup, h), true, threads);
        multiply(dg, Matrix::rows(gate, h), out_of(out, h), false, threads);
        multiply(du, Matrix::rows(up, h), out_of(out, h), true, threads);
        scatter(out, h, dims.choices, choices, dx);
    });
}

fn product(a: &[f32], b: &[f32], out: &mut [f32]) {
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = a * b);
}

fn out_of(rows: &mut [f32], width: usize) -> (&mut [f32], usize) {
    (rows, width)
}

/// Cuts scratch memory into parts of these lengths.
fn parts<const N: usize>(mut scratch: &mut [f32], lens: [usize; N]) -> [&mut [f32]; N] {
    lens.map(|len| {
        let (part, rest) = std::mem::take(&mut scratch).split_at_mut(len);
        scratch = rest;
        part
    })
}
