//! Contraction of two operands given by labels, as strided matrix products.

use super::super::threads::{Shared, Threads};

/// The labels of a contraction and their sizes, e.g. `bsk,khd->bshd`. Every operand is row-major in its labels.
pub struct EinsumDims<F: Fn(u8) -> usize> {
    /// Labels of the left operand, outermost first.
    pub lhs: Vec<u8>,
    /// Labels of the right operand.
    pub rhs: Vec<u8>,
    /// Labels of the result.
    pub out: Vec<u8>,
    /// The size of a label.
    pub size: F,
}

/// Why a contraction has no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EinsumError {
    /// The label occurs twice in one operand or in the result.
    #[error("label `{}` occurs twice in one operand", char::from(*.0))]
    Repeated(u8),
    /// The label occurs in only one of the two operands and the result.
    #[error("label `{}` occurs only once", char::from(*.0))]
    Lonely(u8),
}

/// One loop: its size and how far each operand moves per step, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    size: usize,
    lhs: isize,
    rhs: isize,
    out: isize,
}

/// A step of no size, for a role without labels.
const UNIT: Axis = Axis { size: 1, lhs: 0, rhs: 0, out: 0 };

/// A contraction made ready: one strided matrix product inside loops over what does not collapse into it.
#[derive(Clone, Debug)]
pub struct EinsumPlan {
    /// Loops over independent parts of the result.
    outer: Vec<Axis>,
    /// Loops over further contracted labels; they accumulate.
    inner: Vec<Axis>,
    m: Axis,
    n: Axis,
    k: Axis,
    /// Rows and columns of the blocks of a product.
    block: [usize; 2],
    lens: [usize; 3],
}

impl EinsumPlan {
    /// Classifies the labels (batch, M, N, K) and merges neighbours whose strides permit it.
    ///
    /// # Errors
    /// A label twice in one operand, or one that only one of the three tensors has.
    pub fn new<F: Fn(u8) -> usize>(dims: &EinsumDims<F>) -> Result<EinsumPlan, EinsumError> {
        let mut roles: [Vec<Axis>; 4] = Default::default();
        for label in labels_in_order(dims)? {
            let place = |labels: &[u8]| stride(labels, label, &dims.size);
            let (lhs, rhs, out) = (place(&dims.lhs), place(&dims.rhs), place(&dims.out));
            let role = match (lhs, rhs, out) {
                (Some(_), Some(_), Some(_)) => 0,
                (Some(_), None, Some(_)) => 1,
                (None, Some(_), Some(_)) => 2,
                (Some(_), Some(_), None) => 3,
                _ => return Err(EinsumError::Lonely(label)),
            };
            let axis = |s: Option<isize>| s.unwrap_or(0);
            push(&mut roles[role], Axis { size: (dims.size)(label), lhs: axis(lhs), rhs: axis(rhs), out: axis(out) });
        }
        let [mut outer, mut m, mut n, mut k] = roles;
        let (m_axis, n_axis, k_axis) = (take_largest(&mut m), take_largest(&mut n), take_largest(&mut k));
        outer.extend(m);
        outer.extend(n);
        let len = |labels: &[u8]| labels.iter().map(|&l| (dims.size)(l)).product();
        let lens = [len(&dims.lhs), len(&dims.rhs), len(&dims.out)];
        let block = [block_len(m_axis, n_axis), block_len(n_axis, m_axis)];
        Ok(EinsumPlan { outer, inner: k, m: m_axis, n: n_axis, k: k_axis, block, lens })
    }

    /// Blocks of one product, along its rows and its columns.
    fn blocks(&self) -> [usize; 2] {
        [self.m.size.div_ceil(self.block[0]), self.n.size.div_ceil(self.block[1])]
    }

    /// Parts that can be computed independently: blocks of all products.
    fn parts(&self) -> usize {
        count(&self.outer) * self.blocks().iter().product::<usize>()
    }

    /// Part `i`: its offsets in (lhs, rhs, out), its rows and columns.
    fn part(&self, i: usize) -> ([isize; 3], usize, usize) {
        let [row_blocks, column_blocks] = self.blocks();
        let at = offsets(&self.outer, i / (row_blocks * column_blocks));
        let row = i / column_blocks % row_blocks * self.block[0];
        let column = i % column_blocks * self.block[1];
        let (r, c) = (row as isize, column as isize);
        let at = [at[0] + r * self.m.lhs, at[1] + c * self.n.rhs, at[2] + r * self.m.out + c * self.n.out];
        (at, self.block[0].min(self.m.size - row), self.block[1].min(self.n.size - column))
    }

    /// Multiplications and additions of one run.
    pub fn flops(&self) -> u64 {
        2 * self.lens[2] as u64 * self.k.size as u64 * count(&self.inner) as u64
    }
}

/// Every label once: those of the result in its order, then the contracted ones in the order of the left operand.
fn labels_in_order<F: Fn(u8) -> usize>(dims: &EinsumDims<F>) -> Result<Vec<u8>, EinsumError> {
    for labels in [&dims.lhs, &dims.rhs, &dims.out] {
        if let Some(i) = (0..labels.len()).find(|&i| labels[..i].contains(&labels[i])) {
            return Err(EinsumError::Repeated(labels[i]));
        }
    }
    let mut labels = dims.out.clone();
    for &label in dims.lhs.iter().chain(&dims.rhs) {
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    Ok(labels)
}

/// The row-major stride of `label` among `labels`.
fn stride(labels: &[u8], label: u8, size: &impl Fn(u8) -> usize) -> Option<isize> {
    let position = labels.iter().position(|&l| l == label)?;
    Some(labels[position + 1..].iter().map(|&l| size(l)).product::<usize>() as isize)
}

/// Appends an axis inside the last one, merged with it when one step of the outer equals all steps of the inner.
fn push(axes: &mut Vec<Axis>, axis: Axis) {
    if axis.size == 1 {
        return;
    }
    let n = axis.size as isize;
    match axes.last_mut() {
        Some(o) if o.lhs == axis.lhs * n && o.rhs == axis.rhs * n && o.out == axis.out * n => {
            *o = Axis { size: o.size * axis.size, ..axis };
        }
        _ => axes.push(axis),
    }
}

/// Removes the largest axis, the innermost of equals.
fn take_largest(axes: &mut Vec<Axis>) -> Axis {
    match (0..axes.len()).max_by_key(|&i| axes[i].size) {
        Some(i) => axes.remove(i),
        None => UNIT,
    }
}

fn count(axes: &[Axis]) -> usize {
    axes.iter().map(|a| a.size).product()
}

/// The offsets in (lhs, rhs, out) of step `i` of the nested loops.
fn offsets(axes: &[Axis], mut i: usize) -> [isize; 3] {
    let mut at = [0; 3];
    for axis in axes.iter().rev() {
        let step = (i % axis.size) as isize;
        i /= axis.size;
        at = [at[0] + step * axis.lhs, at[1] + step * axis.rhs, at[2] + step * axis.out];
    }
    at
}

/// The largest extents of a block of the result: along the dimension that is contiguous in memory, and along the other one.
///
/// They bound the packed copies of the operands that a product makes, and do not depend on the threads, so that neither do
/// the bits.
const MAX_BLOCK: [usize; 2] = [1024, 512];

/// The extent of the blocks along an axis of the result, nearly equal blocks of whole vectors.
fn block_len(axis: Axis, other: Axis) -> usize {
    let max = MAX_BLOCK[usize::from(axis.out > other.out)];
    axis.size.div_ceil(axis.size.div_ceil(max).max(1)).next_multiple_of(16).max(16)
}

/// Below this many multiplications a product is not worth splitting over threads.
const SMALL: usize = 1 << 21;

/// Parts a thread needs before they are handed out one by one, so that no thread waits long for the last.
const PARTS_PER_THREAD: usize = 4;

/// out (+)= lhs · rhs over the contracted labels; adds to `out` when `accumulate`, else overwrites it.
///
/// Products that are small, or parts that are many, go to one thread each; else each part uses all threads.
///
/// # Panics
/// When a slice has not the length of its labels.
pub fn run(plan: &EinsumPlan, lhs: &[f32], rhs: &[f32], out: &mut [f32], accumulate: bool, threads: Threads) {
    assert_eq!([lhs.len(), rhs.len(), out.len()], plan.lens, "invariant: operands have the planned lengths");
    if out.is_empty() {
        return;
    }
    if lhs.is_empty() {
        if !accumulate {
            out.fill(0.0);
        }
        return;
    }
    let (products, parts) = (count(&plan.outer), plan.parts());
    let small = plan.m.size * plan.n.size * plan.k.size * count(&plan.inner) < SMALL;
    let many = (products > 1 && products >= threads.get()) || parts >= PARTS_PER_THREAD * threads.get();
    let (over_parts, in_part) =
        if parts > 1 && (small || many) { (threads, Threads::ONE) } else { (Threads::ONE, threads) };
    let out = Shared::new(out);
    // Many tiny products share a task.
    let grain = (products / (8 * threads.get())).clamp(1, 64);
    over_parts.for_each_range(parts, grain, |range| {
        for i in range {
            // SAFETY: different parts write different elements of `out`.
            unsafe { product(plan, plan.part(i), lhs, rhs, out.as_mut_ptr(), accumulate, in_part) };
        }
    });
}

/// One block of one product.
///
/// # Safety
/// `out` has the planned length, the part is one of the plan, and nobody else touches its elements.
unsafe fn product(
    plan: &EinsumPlan,
    (at, n_rows, n_columns): ([isize; 3], usize, usize),
    lhs: &[f32],
    rhs: &[f32],
    out: *mut f32,
    accumulate: bool,
    threads: Threads,
) {
    let (m, n, k) = (plan.m, plan.n, plan.k);
    for i in 0..count(&plan.inner) {
        let step = offsets(&plan.inner, i);
        // SAFETY: every offset is a sum of (index < size) * stride over distinct labels, so it stays in its operand.
        unsafe {
            let (a, b) = (lhs.as_ptr().offset(at[0] + step[0]), rhs.as_ptr().offset(at[1] + step[1]));
            let c = out.offset(at[2]);
            gemm::gemm(
                n_rows,
                n_columns,
                k.size,
                c,
                n.out,
                m.out,
                accumulate || i > 0,
                a,
                k.lhs,
                m.lhs,
                b,
                n.rhs,
                k.rhs,
                1.0,
                1.0,
                false,
                false,
                false,
                threads.parallelism(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random, wide};
    use super::*;

    fn sizes(label: u8) -> usize {
        match label {
            b'b' => 3,
            b's' => 5,
            b'k' => 12,
            b'h' => 4,
            b'd' => 7,
            b'n' => 9,
            b'o' => 1,
            _ => 2,
        }
    }

    fn dims(spec: &str) -> EinsumDims<fn(u8) -> usize> {
        let (operands, out) = spec.split_once("->").unwrap();
        let (lhs, rhs) = operands.split_once(',').unwrap();
        EinsumDims { lhs: lhs.into(), rhs: rhs.into(), out: out.into(), size: sizes }
    }

    fn naive(d: &EinsumDims<fn(u8) -> usize>, a: &[f64], b: &[f64]) -> Vec<f64> {
        let labels = labels_in_order(d).unwrap();
        let len = |l: &[u8]| l.iter().map(|&x| sizes(x)).product::<usize>();
        let mut out = vec![0.0; len(&d.out)];
        for mut i in 0..len(&labels) {
            let mut at = [0; 3];
            for &label in labels.iter().rev() {
                let step = i % sizes(label);
                i /= sizes(label);
                for (x, operand) in at.iter_mut().zip([&d.lhs, &d.rhs, &d.out]) {
                    *x += step * stride(operand, label, &d.size).unwrap_or(0) as usize;
                }
            }
            out[at[2]] += a[at[0]] * b[at[1]];
        }
        out
    }

    fn check(spec: &str) {
        let d = dims(spec);
        let plan = EinsumPlan::new(&d).unwrap();
        let (a, b) = (random(plan.lens[0], 1), random(plan.lens[1], 2));
        let want = naive(&d, &wide(&a), &wide(&b));
        let mut out = random(plan.lens[2], 3);
        run(&plan, &a, &b, &mut out, false, Threads::ONE);
        assert_close(&out, &want, 1e-5);
        let mut threaded = vec![0.0; out.len()];
        in_pool(3, || run(&plan, &a, &b, &mut threaded, false, Threads::new(3)));
        assert_eq!(out, threaded);
        run(&plan, &a, &b, &mut out, true, Threads::ONE);
        assert_close(&out, &want.iter().map(|x| 2.0 * x).collect::<Vec<_>>(), 1e-5);
    }

    #[test]
    fn every_layout_gives_the_sum_over_shared_labels() {
        for spec in [
            "bsk,khd->bshd",
            "bsk,bsn->kn",
            "bsn,kn->bsk",
            "bsk,kn->bsn",
            "sk,kn->sn",
            "k,k->",
            "k,kn->n",
            "sk,k->s",
            "bshd,bthd->bhst",
            "bhst,bthd->bshd",
            "kbs,nk->sbn",
            "hkd,bds->bkhs",
            "b,s->bs",
            "bs,bs->bs",
            "bsk,nkbs->n",
            "skb,bnk->ns",
            "bosk,ko->bs",
            "dhsk,bkh->sbd",
            "xyk,kzw->xzyw",
            "xzk,kyw->xwzy",
            "sbk,sk->sb",
            "s,->s",
        ] {
            check(spec);
        }
    }

    #[test]
    fn linear_layers_are_one_product() {
        for spec in ["bsk,khd->bshd", "bsk,bsn->kn", "bsn,kn->bsk"] {
            let plan = EinsumPlan::new(&dims(spec)).unwrap();
            assert!(plan.outer.is_empty() && plan.inner.is_empty(), "{spec}");
        }
    }

    #[test]
    fn an_empty_contraction_is_zero() {
        let d = EinsumDims {
            lhs: b"sk".into(),
            rhs: b"kn".into(),
            out: b"sn".into(),
            size: |l| if l == b'k' { 0 } else { 2 },
        };
        let mut out = vec![1.0; 4];
        run(&EinsumPlan::new(&d).unwrap(), &[], &[], &mut out, false, Threads::ONE);
        assert_eq!(out, vec![0.0; 4]);
    }

    #[test]
    fn labels_that_occur_once_or_twice_in_one_operand_are_refused() {
        assert_eq!(EinsumPlan::new(&dims("sk,n->sn")).err(), Some(EinsumError::Lonely(b'k')));
        assert_eq!(EinsumPlan::new(&dims("ss,sn->sn")).err(), Some(EinsumError::Repeated(b's')));
    }

    fn matrices(m: usize, n: usize, k: usize) -> EinsumPlan {
        let size = |l| match l {
            b'm' => m,
            b'n' => n,
            _ => k,
        };
        EinsumPlan::new(&EinsumDims { lhs: b"mk".into(), rhs: b"kn".into(), out: b"mn".into(), size }).unwrap()
    }

    #[test]
    fn blocks_cover_a_large_product() {
        let (m, n, k) = (1100, 2100, 9);
        let plan = matrices(m, n, k);
        assert_eq!(plan.blocks(), [3, 3]);
        let (a, b) = (random(m * k, 1), random(k * n, 2));
        let mut out = vec![9.0; m * n];
        in_pool(2, || run(&plan, &a, &b, &mut out, false, Threads::new(2)));
        let element = |e: usize| (0..k).map(|p| a[e / n * k + p] as f64 * b[p * n + e % n] as f64).sum();
        assert_close(&out, &(0..m * n).map(element).collect::<Vec<f64>>(), 1e-5);
    }

    #[test]
    fn large_products_have_the_same_bits_at_any_thread_count() {
        for (m, n, k) in [(331, 331, 700), (1030, 70, 600), (65, 3000, 530)] {
            let plan = matrices(m, n, k);
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let result = |t: usize| {
                let mut out = vec![0.0; m * n];
                in_pool(t, || run(&plan, &a, &b, &mut out, false, Threads::new(t)));
                out
            };
            assert_eq!(result(1), result(2));
            assert_eq!(result(1), result(5));
        }
    }
}
