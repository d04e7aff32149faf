//! A mixture of experts and its gradient.

use galvatron_ir::op::compute::{Moe, MoeGrad, ROWS_AT_ONCE, UnaryKind};

use super::elementwise::unary_kind;
use super::{Cx, Prepared, Slot};
use crate::cpu::arena::Arena;
use crate::cpu::kernels::moe::{MoeArgs, MoeDims, moe as forward, moe_grad as backward};

/// Operands x, w, i, gate, up, down, and where scratch memory lies.
#[derive(Clone, Copy)]
struct Mixture {
    dims: MoeDims,
    /// Experts of all ranks together.
    all_experts: u64,
    x: Slot,
    w: Slot,
    i: Slot,
    gate: Slot,
    up: Slot,
    down: Slot,
    order: Slot,
    scratch: Slot,
}

impl Mixture {
    fn new(cx: &Cx<'_>, activation: UnaryKind, all_experts: u64, rows: [usize; 2]) -> Result<Mixture, String> {
        let activation = unary_kind(activation).ok_or("`is_nan` is no activation")?;
        let (gate, choices) = (&cx.args[3], cx.args[1].rows().1);
        let [experts, f, h] = [0, 1, 2].map(|d| gate.shape[d]);
        let n_rows = cx.args[0].len / h.max(1);
        let block = (ROWS_AT_ONCE as usize).min(n_rows * choices);
        let first = gate.first.first().map_or(0, |&first| first as usize);
        let dims = MoeDims { rows: n_rows, choices, h, f, experts, first, block, activation };
        let order_bytes = (size_of::<u32>() * dims.order_len()).next_multiple_of(64);
        let len = dims.scratch_len(rows[0], rows[1]);
        let needed = (order_bytes + size_of::<f32>() * len) as u64;
        let room = cx.workspace.filter(|room| room.bytes >= needed);
        let room = room.ok_or_else(|| format!("it needs {needed} bytes of workspace"))?;
        Ok(Mixture {
            dims,
            all_experts,
            x: cx.f32(0)?,
            w: cx.f32(1)?,
            i: cx.i64(2)?,
            gate: cx.f32(3)?,
            up: cx.f32(4)?,
            down: cx.f32(5)?,
            order: Slot { offset: room.offset, len: dims.order_len() },
            scratch: Slot { offset: room.offset + order_bytes as u64, len },
        })
    }

    /// The operands; an index that is no expert at all is an error.
    fn args(self, arena: &Arena) -> Result<MoeArgs<'_>, String> {
        let i = self.i.get::<i64>(arena);
        let is_expert = |&id: &i64| u64::try_from(id).is_ok_and(|id| id < self.all_experts);
        if let Some(id) = i.iter().find(|id| !is_expert(id)) {
            return Err(format!("index {id} is not one of the {} experts", self.all_experts));
        }
        let [x, w] = [self.x, self.w].map(|slot| slot.get(arena));
        let [gate, up, down] = [self.gate, self.up, self.down].map(|slot| slot.get(arena));
        Ok(MoeArgs { x, w, i, gate, up, down })
    }
}

pub(super) fn moe(op: &Moe, cx: &Cx<'_>) -> Prepared {
    let (m, y, threads) = (Mixture::new(cx, op.activation, op.experts, [2, 2])?, cx.out(0)?, cx.threads);
    cx.kernel(move |arena| {
        let scratch = (m.order.get_mut(arena), m.scratch.get_mut(arena));
        forward(&m.dims, &m.args(arena)?, y.get_mut(arena), scratch, threads);
        Ok(())
    })
}

pub(super) fn moe_grad(op: &MoeGrad, cx: &Cx<'_>) -> Prepared {
    let (m, dy, threads) = (Mixture::new(cx, op.activation, op.experts, [3, 5])?, cx.f32(6)?, cx.threads);
    let results = [cx.out(0)?, cx.out(1)?, cx.out(2)?, cx.out(3)?, cx.out(4)?];
    cx.kernel(move |arena| {
        let scratch = (m.order.get_mut(arena), m.scratch.get_mut(arena));
        let results = results.map(|slot| slot.get_mut(arena));
        backward(&m.dims, &m.args(arena)?, dy.get(arena), results, scratch, threads);
        Ok(())
    })
}
