//! From ops to CPU kernels: one line an op, the arms sorted into files by theme.

mod along;
mod attention;
mod broadcast;
mod constants;
mod contract;
mod dropout;
mod elementwise;
mod layout;
mod loss;
mod moe;
mod norm;
mod optimizer;
mod rotary;
mod routed;
#[cfg(test)]
mod tests;
pub(super) mod widen;

use std::sync::Arc;

use galvatron_ir::op::{Alias, Op};
use galvatron_ir::types::DType;

use super::arena::{Arena, Element};
use super::device::kernel;
use super::threads::Threads;
use crate::device::{AttentionBlock, BufferSpec, Kernel, NodeSpec, Routing, Span};

/// What `prepare` makes of a node: its kernel, or why there is none.
type Prepared = Result<Box<dyn Kernel>, String>;

/// Prepares a compute node; f32 copies for which it has no workspace lie in `scratch`, which all nodes share.
///
/// # Errors
/// When no kernel fits the op, its element types or the overlap of its buffers.
pub(super) fn prepare(arena: &Arc<Arena>, threads: Threads, scratch: Span, spec: &NodeSpec<'_>) -> Prepared {
    let (args, results) = (buffers(spec.args), buffers(spec.results));
    let cx = Cx { arena, threads, op: spec.op, args, results, workspace: spec.workspace };
    cx.check_overlaps()?;
    let types = |specs: &'_ [BufferSpec]| specs.iter().map(|s| s.ty.clone()).collect::<Vec<_>>();
    let (args, results) = (types(spec.args), types(spec.results));
    match spec.op.is_widened(&args.iter().collect::<Vec<_>>(), &results.iter().collect::<Vec<_>>()) {
        true => widen::prepare(&cx, scratch),
        false => dispatch(spec.op, &cx),
    }
}

/// Prepares the attention to one block of a sequence.
///
/// # Errors
/// When a buffer is not of f32.
pub(super) fn prepare_block(arena: &Arc<Arena>, threads: Threads, block: &AttentionBlock<'_>) -> Prepared {
    attention::block(arena, threads, block)
}

/// Prepares a part of a mixture of experts whose tokens travel.
///
/// # Errors
/// When a buffer has another element type than it should have, or the scratch memory is too small.
pub(super) fn prepare_routing(arena: &Arc<Arena>, threads: Threads, task: &Routing<'_>) -> Prepared {
    routed::prepare(arena, threads, task)
}

fn dispatch(op: &Op, cx: &Cx<'_>) -> Prepared {
    match op {
        Op::Einsum(op) => contract::einsum(op, cx),
        Op::ReduceSum(op) => contract::reduce_sum(op, cx),
        Op::Reduce(op) => contract::reduce(op, cx),
        Op::SumSquares(_) => contract::sum_squares(cx),
        Op::Binary(op) => elementwise::binary(op, cx),
        Op::AddN(_) => elementwise::add_n(cx),
        Op::Unary(op) => elementwise::unary(op, cx),
        Op::UnaryGrad(op) => elementwise::unary_grad(op, cx),
        Op::Where(_) => elementwise::select(cx),
        Op::Compare(op) => elementwise::compare(op, cx),
        Op::CumSum(op) => along::cum_sum(op, cx),
        Op::Dropout(op) => dropout::dropout(op, cx),
        Op::TopK(op) => along::top_k(op, cx),
        Op::TakeAlong(op) => along::take_along(op, cx),
        Op::PutAlong(op) => along::put_along(op, cx),
        Op::Unfold(op) => along::unfold(op, cx),
        Op::Fold(op) => along::fold(op, cx),
        Op::Broadcast(op) => layout::broadcast(op, cx),
        Op::Reshape(_) => layout::reshape(cx),
        Op::Transpose(op) => layout::transpose(op, cx),
        Op::Slice(op) => layout::slice(op, cx),
        Op::Concat(op) => layout::concat(op, cx),
        Op::Cast(_) => layout::cast(cx),
        Op::LayerNorm(op) => norm::layer_norm(op, cx),
        Op::LayerNormGrad(_) => norm::layer_norm_grad(cx),
        Op::LayerNormParamGrad(_) => norm::layer_norm_param_grad(cx),
        Op::RmsNorm(op) => norm::rms_norm(op, cx),
        Op::RmsNormGrad(_) => norm::rms_norm_grad(cx),
        Op::RmsNormParamGrad(_) => norm::rms_norm_param_grad(cx),
        Op::Softmax(_) => norm::softmax(cx),
        Op::SoftmaxGrad(_) => norm::softmax_grad(cx),
        Op::LogSoftmax(_) => norm::log_softmax(cx),
        Op::Attention(op) => attention::attention(op, cx),
        Op::AttentionGrad(op) => attention::attention_grad(op, cx),
        Op::AttentionMaskGrad(op) => attention::attention_mask_grad(op, cx),
        Op::Rotary(op) => rotary::rotary(op, cx),
        Op::Moe(op) => moe::moe(op, cx),
        Op::MoeGrad(op) => moe::moe_grad(op, cx),
        Op::Embedding(_) => contract::embedding(cx),
        Op::EmbeddingGrad(_) => contract::embedding_grad(cx),
        Op::CrossEntropy(op) => loss::cross_entropy(op, cx),
        Op::CrossEntropyGrad(op) => loss::cross_entropy_grad(op, cx),
        Op::CountLabels(op) => loss::count_labels(op, cx),
        Op::Mse(_) => loss::mse(cx),
        Op::MseGrad(_) => loss::mse_grad(cx),
        Op::Full(op) => constants::full(op, cx),
        Op::Iota(op) => constants::iota(op, cx),
        Op::CausalMask(op) => constants::causal_mask(op, cx),
        Op::Constant(op) => constants::constant(op, cx),
        Op::ClipScale(op) => constants::clip_scale(op, cx),
        Op::Sgd(op) => optimizer::sgd(op, cx),
        Op::Adamw(op) => optimizer::adamw(op, cx),
        Op::Accumulate(_) => optimizer::accumulate(cx),
        Op::Update(_) => optimizer::update(cx),
        _ => Err("the CPU has no kernel for this op".into()),
    }
}

/// A buffer in the kernels' terms.
#[derive(Clone, Debug, PartialEq)]
struct Buffer {
    offset: u64,
    dtype: DType,
    /// Local shape.
    shape: Vec<usize>,
    /// Elements of the local shape.
    len: usize,
    /// Global shape.
    global: Vec<usize>,
    /// Global index of the first element.
    first: Vec<u64>,
}

impl Buffer {
    fn span(&self) -> Span {
        Span { offset: self.offset, bytes: self.len as u64 * self.dtype.bytes() }
    }

    /// Where the elements lie, as a value that kernels keep.
    fn slot(&self) -> Slot {
        Slot { offset: self.offset, len: self.len }
    }

    /// Extents but the last, multiplied, and the last; 1 and 1 for a scalar.
    fn rows(&self) -> (usize, usize) {
        let last = self.shape.last().copied().unwrap_or(1);
        (self.len / last.max(1), last)
    }
}

fn buffers(specs: &[BufferSpec]) -> Vec<Buffer> {
    let shape = |s: &[u64]| s.iter().map(|&d| d as usize).collect::<Vec<_>>();
    let buffer = |s: &BufferSpec| Buffer {
        offset: s.offset,
        dtype: s.ty.dtype,
        shape: shape(&s.ty.shape),
        len: s.ty.elements() as usize,
        global: shape(&s.global_shape),
        first: s.first.clone(),
    };
    specs.iter().map(buffer).collect()
}

/// The place of a buffer's elements, whatever their type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) offset: u64,
    pub(super) len: usize,
}

impl Slot {
    fn get<T: Element>(self, arena: &Arena) -> &[T] {
        arena.slice(self.offset, self.len)
    }

    #[allow(clippy::mut_from_ref)]
    fn get_mut<T: Element>(self, arena: &Arena) -> &mut [T] {
        arena.slice_mut(self.offset, self.len)
    }

    /// Elements `start..start + len` of this slot.
    fn part(self, start: usize, len: usize, element_bytes: usize) -> Slot {
        Slot { offset: self.offset + (start * element_bytes) as u64, len }
    }
}

/// A node under preparation.
struct Cx<'a> {
    arena: &'a Arc<Arena>,
    threads: Threads,
    op: &'a Op,
    args: Vec<Buffer>,
    results: Vec<Buffer>,
    /// Scratch memory of the op's own workspace, or more.
    workspace: Option<Span>,
}

impl Cx<'_> {
    fn kernel(&self, body: impl Fn(&Arena) -> Result<(), String> + Send + Sync + 'static) -> Prepared {
        Ok(kernel(self.arena, body))
    }

    /// An operand of f32.
    fn f32(&self, index: usize) -> Result<Slot, String> {
        self.arg(index, DType::F32)
    }

    /// An operand of i64.
    fn i64(&self, index: usize) -> Result<Slot, String> {
        self.arg(index, DType::I64)
    }

    fn arg(&self, index: usize, dtype: DType) -> Result<Slot, String> {
        let buffer = &self.args[index];
        if buffer.dtype == dtype {
            return Ok(buffer.slot());
        }
        Err(format!("operand {index} is {}, the CPU kernel takes {dtype}", buffer.dtype))
    }

    /// A result of f32.
    fn out(&self, index: usize) -> Result<Slot, String> {
        let buffer = &self.results[index];
        if buffer.dtype == DType::F32 {
            return Ok(buffer.slot());
        }
        Err(format!("result {index} is {}, the CPU kernel gives f32", buffer.dtype))
    }

    /// Whether result `result` has the very place of operand `arg`.
    fn in_place(&self, arg: usize, result: usize) -> bool {
        self.args[arg].span() == self.results[result].span()
    }

    /// A result overlaps no operand and no other result, unless it has the place of an operand that it may reuse.
    fn check_overlaps(&self) -> Result<(), String> {
        for (r, result) in self.results.iter().enumerate() {
            if self.results[..r].iter().any(|other| other.span().overlaps(&result.span())) {
                return Err(format!("result {r} overlaps another result in memory"));
            }
            for (a, arg) in self.args.iter().enumerate() {
                if arg.span().overlaps(&result.span()) && !(self.in_place(a, r) && self.may_reuse(a, r)) {
                    return Err(format!("result {r} overlaps operand {a} in memory"));
                }
            }
        }
        Ok(())
    }

    /// With one result, any listed operand; with several, result i the i-th listed one.
    fn may_reuse(&self, arg: usize, result: usize) -> bool {
        match self.op.alias() {
            Alias::None => false,
            Alias::View(operand) => operand == arg,
            alias => alias
                .reusable(result, self.results.len())
                .iter()
                .any(|&listed| self.args[listed].span() == self.args[arg].span()),
        }
    }
}
