//! Launches of the embedding and of its gradient: positions are sorted by row, then each row sums its run.

use super::super::command::{Arg, BLOCK, Command, Launch, Place};
use super::{Cx, Family, Lowered, elements, row_grid, scratch};
use crate::device::BufferSpec;

const FAMILY: Family = Family::Embedding;

/// Keys that a block sorts in shared memory.
const BLOCK_KEYS: u64 = 1024;

/// The first row that a (part of a) table holds, how many, and the number of all rows.
fn table_rows(table: &BufferSpec) -> [Arg; 3] {
    let held = table.ty.shape[0];
    let first = if held == table.global_shape[0] { 0 } else { table.first[0] };
    [first, held, table.global_shape[0]].map(|v| Arg::Int(v as i64))
}

fn width(table: &BufferSpec) -> u64 {
    table.ty.shape[1..].iter().product()
}

pub(in super::super) fn embedding(cx: &Cx<'_>) -> Lowered {
    let (float, table, n_ids) = (cx.float(0)?, cx.arg(0), elements(cx.arg(1)));
    let pointers = [float.arg(0)?, cx.i64(1)?, float.out(0)?, Arg::Int(n_ids), Arg::Int(width(table) as i64)];
    let args = pointers.into_iter().chain(table_rows(table)).chain([Arg::At(Place::Fault)]).collect();
    Ok(vec![Launch::grid(FAMILY, float.entry("embedding"), row_grid(n_ids as u64), args)])
}

pub(in super::super) fn embedding_grad(cx: &Cx<'_>) -> Lowered {
    let float = cx.float(1)?;
    let (ids, dy, table) = (cx.i64(0)?, float.arg(1)?, cx.result(0));
    let (n_ids, held) = (cx.arg(0).ty.elements(), table.ty.shape[0]);
    if n_ids > 1 << 32 {
        return Err(format!("the gradient sorts at most 2^32 indices, not {n_ids}"));
    }
    let n_keys = n_ids.next_power_of_two().max(BLOCK_KEYS);
    let keys = Arg::At(scratch(0, 8 * n_keys)?);
    let numbers = [Arg::Int(n_ids as i64), Arg::Int(n_keys as i64)];
    let args = [ids, keys.clone()].into_iter().chain(numbers).chain(table_rows(table));
    let args = args.chain([Arg::At(Place::Fault)]).collect();
    let mut commands = vec![Launch::of(FAMILY, "sort_keys", n_keys, args)];
    commands.extend(sort(&keys, n_keys));
    let numbers = [n_keys, width(table), held].map(|v| Arg::Int(v as i64));
    let args = [keys, dy, float.out(0)?].into_iter().chain(numbers).collect();
    commands.push(Launch::grid(FAMILY, float.entry("embedding_grad"), row_grid(held), args));
    Ok(commands)
}

/// A bitonic sort of a power of two of keys.
fn sort(keys: &Arg, n_keys: u64) -> Vec<Command> {
    let in_blocks = |first_run: u64, last_run: u64| {
        let args = vec![keys.clone(), Arg::Int(first_run as i64), Arg::Int(last_run as i64)];
        Launch::grid(FAMILY, "sort_block", [(n_keys / BLOCK_KEYS) as u32, 1, 1], args)
    };
    let mut commands = vec![in_blocks(2, BLOCK_KEYS)];
    let mut run = 2 * BLOCK_KEYS;
    while run <= n_keys {
        let mut step = run / 2;
        while step >= BLOCK_KEYS {
            let numbers = [n_keys, run, step].map(|v| Arg::Int(v as i64));
            let args = std::iter::once(keys.clone()).chain(numbers).collect();
            let blocks = (n_keys / 2).div_ceil(u64::from(BLOCK));
            commands.push(Launch::of(FAMILY, "sort_pass", blocks * u64::from(BLOCK), args));
            step /= 2;
        }
        commands.push(in_blocks(run, run));
        run *= 2;
    }
    commands
}
