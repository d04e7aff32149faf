//! Launches of attention and of its gradients; those in bf16 go to tensor cores, but for that of a mask.

use galvatron_ir::op::compute::{Attention, AttentionGrad, AttentionMaskGrad};
use galvatron_ir::types::Scalar;

use super::super::command::{Arg, Command, Launch};
use super::{Cx, Family, Lowered, attention_bf16};

const FAMILY: Family = Family::Attention;

/// Bounds on the width of heads that kernels exist for, and the rows of their tiles.
const WIDTHS: [(u64, u64); 4] = [(32, 32), (64, 32), (128, 32), (256, 16)];

/// The shape of an attention: q [b, sq, h, d], k [b, sk, g, d], v [b, sk, g, e].
pub(super) struct Dims {
    batch: u64,
    queries: u64,
    keys: u64,
    heads: u64,
    groups: u64,
    /// The wider of queries and values.
    width: u64,
    /// Bound on the widths, rows of a tile.
    kernel: (u64, u64),
    /// As the kernels' structs have it: the seven extents, those of the mask, whether later keys are hidden, and how many queries
    /// of the sequence come after these, on other ranks.
    shape: [i64; 11],
    scale: Arg,
}

impl Dims {
    fn new(cx: &Cx<'_>, mask: usize, scale: Scalar, causal: bool) -> Result<Dims, String> {
        let shape = |i: usize| &cx.arg(i).ty.shape;
        let [batch, queries, heads, width] = [0, 1, 2, 3].map(|d| shape(0)[d]);
        let (keys, groups, value_width) = (shape(1)[1], shape(1)[2], shape(2)[3]);
        let width_of_all = width.max(value_width);
        let bound = |&(bound, _): &(u64, u64)| bound >= width_of_all;
        let kernel = WIDTHS.into_iter().find(bound);
        let kernel = kernel.ok_or_else(|| format!("heads are {width_of_all} wide, at most 256"))?;
        let [mask_batch, mask_heads] = cx.spec.args.get(mask).map_or([0, 0], |m| [m.ty.shape[0], m.ty.shape[1]]);
        let extents = [batch, queries, keys, heads, groups, width, value_width, mask_batch, mask_heads];
        let q = cx.arg(0);
        let later = q.global_shape[1] - q.first[1] - queries;
        let [a, b, c, d, e, f, g, h, i] = extents.map(|extent| extent as i64);
        let shape = [a, b, c, d, e, f, g, h, i, i64::from(causal), later as i64];
        let scale = Arg::Float(scale.get() as f32);
        Ok(Dims { batch, queries, keys, heads, groups, width: width_of_all, kernel, shape, scale })
    }

    pub(super) fn batch(&self) -> u64 {
        self.batch
    }

    pub(super) fn queries(&self) -> u64 {
        self.queries
    }

    pub(super) fn keys(&self) -> u64 {
        self.keys
    }

    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    pub(super) fn groups(&self) -> u64 {
        self.groups
    }

    /// The wider of queries and values.
    pub(super) fn bound(&self) -> u64 {
        self.width
    }

    /// The last arguments of kernels in bf16: the shape, with whether the mask is of bf16, and the scale.
    pub(super) fn bf16_args(&self) -> [Arg; 2] {
        let [extents @ .., causal, later] = self.shape;
        [Arg::Ints(extents.into_iter().chain([1, causal, later]).collect()), self.scale.clone()]
    }

    /// A launch with one block for each tile of `length` rows of `heads` heads; `n_tiles` and `n_squares` tiles of rows and
    /// of scores lie in shared memory.
    fn launch(
        &self,
        entry: &str,
        (length, heads): (u64, u64),
        (n_tiles, n_squares): (u64, u64),
        args: Vec<Arg>,
    ) -> Command {
        let (bound, rows) = self.kernel;
        let floats = n_tiles * rows * (bound + 1) + n_squares * rows * (rows + 1) + 2 * rows;
        let args = args.into_iter().chain([Arg::Ints(self.shape.to_vec()), self.scale.clone()]).collect();
        Command::Launch(Launch {
            unit: FAMILY.into(),
            entry: format!("{entry}_{bound}"),
            grid: [(length.div_ceil(rows) * heads * self.batch) as u32, 1, 1],
            block: 8 * rows as u32,
            shared_bytes: 4 * floats as u32,
            args,
        })
    }
}

pub(in super::super) fn attention(op: &Attention, cx: &Cx<'_>) -> Lowered {
    let dims = Dims::new(cx, 3, op.scale, op.causal)?;
    if cx.float(0)?.is_half() {
        return attention_bf16::attention(&dims, cx);
    }
    let args = vec![cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, cx.optional(3)?, cx.out(0)?, cx.out(1)?];
    Ok(vec![dims.launch("attention", (dims.queries, dims.heads), (3, 1), args)])
}

pub(in super::super) fn attention_grad(op: &AttentionGrad, cx: &Cx<'_>) -> Lowered {
    let dims = Dims::new(cx, 6, op.scale, op.causal)?;
    if cx.float(0)?.is_half() {
        return attention_bf16::attention_grad(&dims, cx);
    }
    let [q, k, v, o, lse, grad] = [0, 1, 2, 3, 4, 5].map(|i| cx.f32(i));
    let saved = [q?, k?, v?, cx.optional(6)?, o?, lse?, grad?];
    let with = |results: &[usize]| -> Result<Vec<Arg>, String> {
        let results = results.iter().map(|&r| cx.out(r)).collect::<Result<Vec<_>, _>>()?;
        Ok(saved.iter().cloned().chain(results).collect())
    };
    Ok(vec![
        dims.launch("attention_query_grad", (dims.queries, dims.heads), (4, 1), with(&[0])?),
        dims.launch("attention_key_grad", (dims.keys, dims.groups), (4, 2), with(&[1, 2])?),
    ])
}

/// One block for each tile of scores of each plane of the mask.
pub(in super::super) fn attention_mask_grad(op: &AttentionMaskGrad, cx: &Cx<'_>) -> Lowered {
    let dims = Dims::new(cx, 6, op.scale, op.causal)?;
    let mask = &cx.arg(6).ty.shape;
    let (planes, rows) = (mask[0] * mask[1], dims.kernel.1);
    // All samples that share a plane are summed by its blocks.
    let one = Dims { batch: 1, ..dims };
    let float = cx.float(0)?;
    let [q, k, v, mask, o, grad] = [0, 1, 2, 6, 3, 5].map(|i| float.arg(i));
    let pointers = vec![q?, k?, v?, mask?, o?, cx.f32(4)?, grad?, float.out(0)?];
    let tiles = (one.queries, planes * one.keys.div_ceil(rows));
    Ok(vec![one.launch(&float.entry("attention_mask_grad"), tiles, (4, 0), pointers)])
}
