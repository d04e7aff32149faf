//! Launches of attention in bf16 and of its gradient, on tensor cores.

use super::super::command::{Arg, Command, Launch};
use super::attention::Dims;
use super::{Cx, Family, Lowered, scratch};

/// Threads of a block, four warps (`TC_THREADS` of the sources).
const THREADS: u32 = 128;

/// Rows that a warp has of a tile, for each `M` of a kernel.
const ROWS: u64 = 64;

/// A kernel's tiles: the bound on widths, `M` (64 M rows are a block's own), and the rows that go by at a time.
struct Tiles {
    bound: u64,
    own: u64,
    passing: u64,
}

/// The tiles of the kernels as the sources have them, by the bound on widths: forward, dq, dk and dv.
const WIDTHS: [(u64, [(u64, u64); 3]); 5] = [
    (32, [(2, 64), (2, 32), (2, 32)]),
    (64, [(2, 64), (2, 32), (2, 32)]),
    (96, [(2, 64), (2, 32), (1, 32)]),
    (128, [(2, 64), (2, 32), (1, 32)]),
    (256, [(1, 32), (1, 16), (1, 16)]),
];

/// A bound from which on dk and dv have a kernel each, because the sums of both are more than registers hold.
const PARTED: u64 = 256;

impl Tiles {
    fn new(dims: &Dims, kernel: usize) -> Tiles {
        let fits = |&(bound, _): &(u64, _)| bound >= dims.bound();
        let (bound, tiles) = WIDTHS.into_iter().find(fits).expect("invariant: the widths were checked");
        let (own, passing) = tiles[kernel];
        Tiles { bound, own: own * ROWS, passing }
    }

    /// Bytes of `own` tiles of a block's rows and `passing` ones of those that go by; rows are an odd number of 16 bytes apart.
    fn bytes(&self, own: u64, passing: u64) -> u64 {
        2 * (self.bound + 8) * (own * self.own + passing * self.passing)
    }

    /// A launch with a block for each tile of `length` rows of `heads` heads.
    fn launch(&self, family: Family, name: &str, dims: &Dims, on: Grid, shared_bytes: u64, args: Vec<Arg>) -> Command {
        Command::Launch(Launch {
            unit: family.into(),
            entry: format!("{name}_{}", self.bound),
            grid: [(on.length.div_ceil(self.own) * on.heads * dims.batch()) as u32, 1, 1],
            block: THREADS,
            shared_bytes: shared_bytes as u32,
            args: args.into_iter().chain(dims.bf16_args()).collect(),
        })
    }
}

/// What the blocks of a launch share among them in each sequence.
#[derive(Clone, Copy)]
struct Grid {
    length: u64,
    heads: u64,
}

/// The commands of the forward pass.
pub(super) fn attention(dims: &Dims, cx: &Cx<'_>) -> Lowered {
    let float = cx.float(0)?;
    let args = vec![float.arg(0)?, float.arg(1)?, float.arg(2)?, float.optional(3)?, float.out(0)?, cx.out(1)?];
    let (tiles, grid) = (Tiles::new(dims, 0), Grid { length: dims.queries(), heads: dims.heads() });
    Ok(vec![tiles.launch(Family::AttentionBf16, "attention_bf16", dims, grid, tiles.bytes(1, 2), args)])
}

/// The commands of the gradient: two numbers for each row, dq, then dk and dv.
pub(super) fn attention_grad(dims: &Dims, cx: &Cx<'_>) -> Lowered {
    let float = cx.float(0)?;
    let n_rows = dims.batch() * dims.heads() * dims.queries();
    let floors = Arg::At(scratch(0, 4 * n_rows)?);
    let deltas = Arg::At(scratch((4 * n_rows).next_multiple_of(256), 4 * n_rows)?);
    let [q, k, v, o, grad] = [0, 1, 2, 3, 5].map(|i| float.arg(i));
    let (grad, family) = (grad?, Family::AttentionBf16Grad);
    let row_args = vec![o?, grad.clone(), cx.f32(4)?, floors.clone(), deltas.clone(), dims.bf16_args()[0].clone()];
    let rows = Command::Launch(Launch {
        unit: family.into(),
        entry: "attention_bf16_rows".into(),
        grid: [n_rows.div_ceil(u64::from(THREADS) / 8) as u32, 1, 1],
        block: THREADS,
        shared_bytes: 0,
        args: row_args,
    });
    let saved = [q?, k?, v?, float.optional(6)?, grad, floors, deltas];
    let with = |results: &[usize]| -> Result<Vec<Arg>, String> {
        let results = results.iter().map(|&r| float.out(r)).collect::<Result<Vec<_>, _>>()?;
        Ok(saved.iter().cloned().chain(results).collect())
    };
    let (tiles, grid) = (Tiles::new(dims, 1), Grid { length: dims.queries(), heads: dims.heads() });
    let of_queries = tiles.launch(family, "attention_bf16_query_grad", dims, grid, tiles.bytes(2, 3), with(&[0])?);
    let (tiles, grid) = (Tiles::new(dims, 2), Grid { length: dims.keys(), heads: dims.groups() });
    let of_keys = |name: &str, n_own| -> Result<Command, String> {
        let numbers = 4 * 4 * tiles.passing;
        let shared_bytes = tiles.bytes(n_own, 3) + numbers;
        Ok(tiles.launch(family, &format!("attention_bf16_{name}_grad"), dims, grid, shared_bytes, with(&[1, 2])?))
    };
    let mut commands = vec![rows, of_queries];
    if tiles.bound < PARTED {
        commands.push(of_keys("key_value", 2)?);
    } else {
        commands.extend([of_keys("key", 2)?, of_keys("value", 1)?]);
    }
    Ok(commands)
}
