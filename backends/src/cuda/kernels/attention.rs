//! Launches of attention and of its gradients.

use galvatron_ir::op::compute::{Attention, AttentionGrad, AttentionMaskGrad};
use galvatron_ir::types::Scalar;

use super::super::command::{Arg, Command, Launch};
use super::{Cx, Family, Float, Lowered};

const FAMILY: Family = Family::Attention;

/// Bounds on the width of heads that kernels exist for, and the rows of their tiles.
const WIDTHS: [(u64, u64); 4] = [(32, 32), (64, 32), (128, 32), (256, 16)];

/// The shape of an attention: q [b, sq, h, d], k [b, sk, g, d], v [b, sk, g, e].
struct Dims {
    batch: u64,
    queries: u64,
    keys: u64,
    heads: u64,
    groups: u64,
    /// Bound on the widths, rows of a tile.
    kernel: (u64, u64),
    shape: Arg,
    scale: Arg,
}

impl Dims {
    fn new(cx: &Cx<'_>, mask: usize, scale: Scalar, causal: bool) -> Result<Dims, String> {
        let shape = |i: usize| &cx.arg(i).ty.shape;
        let [batch, queries, heads, width] = [0, 1, 2, 3].map(|d| shape(0)[d]);
        let (keys, groups, value_width) = (shape(1)[1], shape(1)[2], shape(2)[3]);
        let bound = |&(bound, _): &(u64, u64)| bound >= width.max(value_width);
        let kernel = WIDTHS.into_iter().find(bound);
        let kernel = kernel.ok_or_else(|| format!("heads are {} wide, at most 256", width.max(value_width)))?;
        let mask = cx.spec.args.get(mask).map_or([0, 0], |mask| [mask.ty.shape[0], mask.ty.shape[1]]);
        let numbers = [batch, queries, keys, heads, groups, width, value_width].into_iter().chain(mask);
        let shape = Arg::Ints(numbers.map(|v| v as i64).chain([i64::from(causal)]).collect());
        Ok(Dims { batch, queries, keys, heads, groups, kernel, shape, scale: Arg::Float(scale.get() as f32) })
    }

    /// A launch with one block for each tile of `length` rows of `heads` heads; `n_tiles` and `n_squares` tiles of rows and
    /// of scores lie in shared memory.
    fn launch(
        &self,
        (entry, float): (&str, &Float<'_>),
        (length, heads): (u64, u64),
        (n_tiles, n_squares): (u64, u64),
        args: Vec<Arg>,
    ) -> Command {
        let (bound, rows) = self.kernel;
        let floats = n_tiles * rows * (bound + 1) + n_squares * rows * (rows + 1) + 2 * rows;
        let args = args.into_iter().chain([self.shape.clone(), self.scale.clone()]).collect();
        Command::Launch(Launch {
            unit: FAMILY.into(),
            entry: float.entry(&format!("{entry}_{bound}")),
            grid: [(length.div_ceil(rows) * heads * self.batch) as u32, 1, 1],
            block: 8 * rows as u32,
            shared_bytes: 4 * floats as u32,
            args,
        })
    }
}

pub(in super::super) fn attention(op: &Attention, cx: &Cx<'_>) -> Lowered {
    let dims = Dims::new(cx, 3, op.scale, op.causal)?;
    let float = cx.float(0)?;
    let args = vec![float.arg(0)?, float.arg(1)?, float.arg(2)?, float.optional(3)?, float.out(0)?, cx.out(1)?];
    let tiles = (dims.queries, dims.heads);
    Ok(vec![dims.launch(("attention", &float), tiles, (3, 1), args)])
}

pub(in super::super) fn attention_grad(op: &AttentionGrad, cx: &Cx<'_>) -> Lowered {
    let dims = Dims::new(cx, 6, op.scale, op.causal)?;
    let float = cx.float(0)?;
    let [q, k, v, o, grad] = [0, 1, 2, 3, 5].map(|i| float.arg(i));
    let saved = [q?, k?, v?, float.optional(6)?, o?, cx.f32(4)?, grad?];
    let with = |results: &[usize]| -> Result<Vec<Arg>, String> {
        let results = results.iter().map(|&r| float.out(r)).collect::<Result<Vec<_>, _>>()?;
        Ok(saved.iter().cloned().chain(results).collect())
    };
    Ok(vec![
        dims.launch(("attention_query_grad", &float), (dims.queries, dims.heads), (4, 1), with(&[0])?),
        dims.launch(("attention_key_grad", &float), (dims.keys, dims.groups), (4, 2), with(&[1, 2])?),
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
    Ok(vec![one.launch(("attention_mask_grad", &float), tiles, (4, 0), pointers)])
}
