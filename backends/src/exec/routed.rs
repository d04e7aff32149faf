//! A mixture of experts whose tokens travel, as kernels between messages: see [`galvatron_ir::op::comm::RoutedMoe`].
//!
//! How many tokens go from each rank to each other one is exchanged first. Then each round has a message to one rank and one from
//! another, and their answers; all ranks send, receive, compute and answer in the same order, so that none waits for one that waits for
//! it. Nothing is sent to a rank that no token chose.

use std::ops::Range;

use galvatron_ir::AxisId;
use galvatron_ir::op::Op;
use galvatron_ir::op::comm::{RoutedScratch, RowBytes, SCRATCH_ALIGNMENT};
use galvatron_ir::op::compute::Cast;
use galvatron_ir::types::{DType, TensorType};

use super::exchange::{Buffers, Counted, Hop, Parts, Step};
use super::layout::Layout;
use super::rank::TAGS;
use crate::comm::Collective;
use crate::device::{BufferSpec, Device, Exchange, ExchangeKind, NodeSpec, Routing, RowBlock, Span};

/// Tags of tokens and of what comes back for them.
const TOKENS: u64 = TAGS + 3;
const ANSWERS: u64 = TAGS + 4;

/// Prepares a mixture, or its gradient, as steps in order; the communicator of its ranks is created here, on all ranks in the same order.
///
/// # Errors
/// Why the node cannot be run.
pub(super) fn prepare(
    op: &Op,
    layout: &Layout<'_>,
    device: &dyn Device,
    comm: &mut dyn Collective,
    buffers: Buffers<'_>,
) -> Result<Vec<Step>, String> {
    let Some((mixture, axes)) = op.undistributed().filter(|_| op.is_routed()) else {
        return Err(format!("`{}` routes no tokens", op.mnemonic()));
    };
    device.messages()?;
    let ranks = Ranks::new(layout, comm, axes, (&mixture, &buffers.args[3]))?;
    let work = Work::new(&mixture, layout, buffers, ranks.n())?;
    let mut plan = Plan { mixture: &mixture, device, ranks, work, steps: Vec::new() };
    plan.own_experts()?;
    plan.count()?;
    for round in 1..plan.ranks.n() {
        plan.round(round)?;
    }
    plan.convert(plan.work.wide_results.clone().iter().zip(buffers.results))?;
    Ok(plan.steps)
}

/// The ranks of the axes as one of them sees them, by position.
struct Ranks {
    ranks: Vec<usize>,
    parts: Parts,
    own: usize,
    /// The experts of each.
    experts: Vec<Range<u64>>,
}

impl Ranks {
    /// The axes are the first ones of the experts: between those of two neighbours lie those of further axes.
    fn new(
        layout: &Layout<'_>,
        comm: &mut dyn Collective,
        axes: &[AxisId],
        (mixture, gate): (&Op, &BufferSpec),
    ) -> Result<Ranks, String> {
        let (ranks, own) = (layout.group(axes), layout.index_along(axes));
        let all = match mixture {
            Op::Moe(op) => op.experts,
            Op::MoeGrad(op) => op.experts,
            other => return Err(format!("`{}` is no mixture", other.mnemonic())),
        };
        let (apart, n) = (all / ranks.len() as u64, gate.ty.shape[0]);
        let first = |position: u64| gate.first[0] % apart.max(1) + position * apart;
        let experts = (0..ranks.len() as u64).map(|position| first(position)..first(position) + n).collect();
        Ok(Ranks { ranks, parts: Parts::new(layout, comm, axes)?, own: own as usize, experts })
    }

    fn n(&self) -> usize {
        self.ranks.len()
    }
}

/// What the steps work on: floats are of f32, the tensors themselves or copies.
struct Work {
    args: Vec<BufferSpec>,
    wide_args: Vec<BufferSpec>,
    wide_results: Vec<BufferSpec>,
    /// Of what is sent, and of what comes.
    counts: [Span; 2],
    rows: Span,
    messages: [Span; 3],
    kernel: Span,
    /// Of the rows in messages.
    copies: Vec<BufferSpec>,
    row: RowBytes,
}

impl Work {
    fn new(mixture: &Op, layout: &Layout<'_>, buffers: Buffers<'_>, n: usize) -> Result<Work, String> {
        let (arg_types, result_types) = (types(buffers.args), types(buffers.results));
        let (a, r) = (arg_types.iter().collect::<Vec<_>>(), result_types.iter().collect::<Vec<_>>());
        let kernel_bytes = mixture.own_workspace(&a, &r, layout.mesh);
        let scratch = RoutedScratch::new(&a, &r, n as u64, kernel_bytes);
        let at = buffers.workspace.unwrap_or(Span { offset: 0, bytes: 0 });
        if at.bytes != scratch.bytes() {
            return Err(format!("it needs {} bytes of workspace, the plan has {}", scratch.bytes(), at.bytes));
        }
        let mut offset = at.offset;
        let mut place = |ty: &TensorType| {
            let at = offset;
            offset += ty.bytes().next_multiple_of(SCRATCH_ALIGNMENT);
            BufferSpec::whole(ty, at)
        };
        let counts = scratch.counts.each_ref().map(|ty| place(ty).span());
        let rows = place(&scratch.rows).span();
        let messages = scratch.messages.each_ref().map(|ty| place(ty).span());
        let kernel = place(&scratch.kernel).span();
        let mut wide = scratch.wide.iter().map(place);
        let mut wide_of = |all: &[BufferSpec]| {
            let of = |narrow: &BufferSpec| {
                let copy = if narrow.ty.dtype.is_float() { wide.next() } else { None };
                copy.map_or_else(|| narrow.clone(), |copy| BufferSpec { first: narrow.first.clone(), ..copy })
            };
            all.iter().map(of).collect::<Vec<_>>()
        };
        let (wide_args, wide_results) = (wide_of(buffers.args), wide_of(buffers.results));
        let (args, copies) = (buffers.args.to_vec(), wide.collect());
        Ok(Work { args, wide_args, wide_results, counts, rows, messages, kernel, copies, row: RowBytes::of(&a) })
    }

    fn dtype(&self) -> DType {
        self.args[0].ty.dtype
    }

    /// The tensors of which rows travel: choices, weights, tokens, and in the gradient those of the results.
    fn travelling(&self) -> Vec<BufferSpec> {
        [2, 1, 0, 6].into_iter().filter_map(|i| self.args.get(i).cloned()).collect()
    }

    /// The results of which rows come back: those of tokens, and in the gradient also of their weights.
    fn coming_back(&self) -> &[BufferSpec] {
        &self.wide_results[..self.wide_results.len().min(2)]
    }
}

fn types(buffers: &[BufferSpec]) -> Vec<TensorType> {
    buffers.iter().map(|b| b.ty.clone()).collect()
}

struct Plan<'a> {
    mixture: &'a Op,
    device: &'a dyn Device,
    ranks: Ranks,
    work: Work,
    steps: Vec<Step>,
}

impl Plan<'_> {
    /// Converts between bf16 and f32 where two buffers are not one.
    fn convert<'b>(&mut self, pairs: impl Iterator<Item = (&'b BufferSpec, &'b BufferSpec)>) -> Result<(), String> {
        for (from, to) in pairs.filter(|(from, to)| from.span() != to.span()) {
            let (args, results) = (std::slice::from_ref(from), std::slice::from_ref(to));
            let spec = NodeSpec { op: &Cast { to: to.ty.dtype }.into(), args, results, workspace: None };
            self.steps.push(Step::Run(self.device.prepare(&spec)?));
        }
        Ok(())
    }

    /// The rank's experts on its own tokens.
    fn own_experts(&mut self) -> Result<(), String> {
        let (args, wide) = (self.work.args.clone(), self.work.wide_args.clone());
        self.convert(args.iter().zip(&wide))?;
        let (args, results) = (&self.work.wide_args[..], &self.work.wide_results[..]);
        let spec = NodeSpec { op: self.mixture, args, results, workspace: Some(self.work.kernel) };
        self.steps.push(Step::Run(self.device.prepare(&spec)?));
        Ok(())
    }

    fn run(&mut self, task: &Routing<'_>) -> Result<(), String> {
        self.steps.push(Step::Run(self.device.prepare_routing(task)?));
        Ok(())
    }

    /// Tells every other rank how many tokens will come.
    fn count(&mut self) -> Result<(), String> {
        let Ranks { parts, own, experts, .. } = &self.ranks;
        let of = |position: usize| if position == *own { 0..0 } else { experts[position].clone() };
        let experts: Vec<Range<u64>> = parts.positions().into_iter().map(of).collect();
        let (group, [sent, received], choices) = (parts.group, self.work.counts, self.work.args[2].clone());
        self.run(&Routing::Count { choices: &choices, experts: &experts, counts: sent })?;
        let kind = ExchangeKind::AllToAll { input: sent, output: received };
        self.steps.push(Step::Exchange(Exchange { kind, group }));
        Ok(())
    }

    /// The number of tokens that go to a rank, or come from there.
    fn count_of(&self, counts: Span, position: usize) -> Span {
        counts.chunk(self.ranks.parts.slots[position] as u64, self.ranks.n() as u64)
    }

    fn hop(&self, position: usize, tag: u64, at: Span, (count, row_bytes): (Span, u64)) -> Hop {
        Hop { peer: self.ranks.ranks[position], tag, at, counted: Some(Counted { count, row_bytes }) }
    }

    /// Tokens go to the rank `round` further on and come from the one `round` before, and back.
    fn round(&mut self, round: usize) -> Result<(), String> {
        let (n, own) = (self.ranks.n(), self.ranks.own);
        let (next, before) = ((own + round) % n, (own + n - round) % n);
        let Work { counts: [sent, received], rows, messages: [out, inbox, answer], row, .. } = self.work;
        let (sent, received) = (self.count_of(sent, next), self.count_of(received, before));
        let (choices, experts) = (self.work.args[2].clone(), self.ranks.experts[next].clone());
        let tensors = self.work.travelling();
        self.run(&Routing::Pack { choices: &choices, experts, tensors: &tensors, rows, to: out })?;
        self.steps.push(Step::Send(self.hop(next, TOKENS, out, (sent, row.out))));
        self.steps.push(Step::Recv(self.hop(before, TOKENS, inbox, (received, row.out))));
        let (experts, copies) = (self.work.wide_args[3..6].to_vec(), self.work.copies.clone());
        let (gradients, dtype) = (self.work.wide_results.get(2..).unwrap_or_default().to_vec(), self.work.dtype());
        self.run(&Routing::Compute(RowBlock {
            op: self.mixture,
            choices: &choices,
            count: received,
            from: inbox,
            to: answer,
            dtype,
            experts: &experts,
            gradients: &gradients,
            copies: &copies,
            scratch: self.work.kernel,
        }))?;
        self.steps.push(Step::Send(self.hop(before, ANSWERS, answer, (received, row.back))));
        self.steps.push(Step::Recv(self.hop(next, ANSWERS, out, (sent, row.back))));
        let to = self.work.coming_back().to_vec();
        self.run(&Routing::Add { count: sent, rows, from: out, dtype, to: &to })
    }
}
