//! The kernels: one CUDA C++ source a family, and beside it the file that makes launches of it from nodes.

pub(super) mod attention;
pub(super) mod attention_bf16;
pub(super) mod constants;
pub(super) mod cross_entropy;
pub(super) mod dropout;
pub(super) mod elementwise;
pub(super) mod embedding;
pub(super) mod layout;
pub(super) mod norm;
pub(super) mod optimizer;
pub(super) mod reduce;
pub(super) mod rotary;

use galvatron_ir::types::DType;

use super::command::{Arg, Command, Place, SCRATCH_BYTES};
use crate::device::{BufferSpec, NodeSpec};

/// A source of kernels, compiled as one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Attention and its gradient, in f32.
    Attention,
    /// Attention in bf16, on tensor cores.
    AttentionBf16,
    /// The gradient of attention in bf16.
    AttentionBf16Grad,
    /// Tensors known when compiling.
    Constants,
    /// Cross entropy and its gradient.
    CrossEntropy,
    /// Dropout.
    Dropout,
    /// Element-wise functions.
    Elementwise,
    /// Rows of a table by index, and the gradient of the table.
    Embedding,
    /// Moves and conversions of elements.
    Layout,
    /// Layer norm, softmax and their gradients.
    Norm,
    /// Optimizer steps.
    Optimizer,
    /// Sums.
    Reduce,
    /// Rotary embedding.
    Rotary,
}

/// What all sources share.
pub(super) const PRELUDE: &str = include_str!("prelude.cu");

/// Functions of one element, which element-wise kernels and generated ones share.
pub(super) const FUNCTIONS: &str = include_str!("functions.cu");

/// Products on tensor cores, and the tiles of attention that are made of them.
const TENSOR_CORE_ATTENTION: [&str; 2] = [include_str!("tensor_core.cu"), include_str!("attention_tile.cu")];

impl Family {
    /// All families.
    pub const ALL: [Family; 13] = [
        Family::Attention,
        Family::AttentionBf16,
        Family::AttentionBf16Grad,
        Family::Constants,
        Family::CrossEntropy,
        Family::Dropout,
        Family::Elementwise,
        Family::Embedding,
        Family::Layout,
        Family::Norm,
        Family::Optimizer,
        Family::Reduce,
        Family::Rotary,
    ];

    /// The name of its source, without the ending.
    pub fn name(self) -> &'static str {
        self.parts().0
    }

    /// Its source, ready to be compiled.
    pub fn source(self) -> String {
        let shared = match self {
            Family::Elementwise => &[FUNCTIONS][..],
            Family::AttentionBf16 | Family::AttentionBf16Grad => &TENSOR_CORE_ATTENTION,
            _ => &[],
        };
        [&[PRELUDE], shared, &[self.parts().1]].concat().join("\n")
    }

    fn parts(self) -> (&'static str, &'static str) {
        match self {
            Family::Attention => ("attention", include_str!("attention.cu")),
            Family::AttentionBf16 => ("attention_bf16", include_str!("attention_bf16.cu")),
            Family::AttentionBf16Grad => ("attention_bf16_grad", include_str!("attention_bf16_grad.cu")),
            Family::Constants => ("constants", include_str!("constants.cu")),
            Family::CrossEntropy => ("cross_entropy", include_str!("cross_entropy.cu")),
            Family::Dropout => ("dropout", include_str!("dropout.cu")),
            Family::Elementwise => ("elementwise", include_str!("elementwise.cu")),
            Family::Embedding => ("embedding", include_str!("embedding.cu")),
            Family::Layout => ("layout", include_str!("layout.cu")),
            Family::Norm => ("norm", include_str!("norm.cu")),
            Family::Optimizer => ("optimizer", include_str!("optimizer.cu")),
            Family::Reduce => ("reduce", include_str!("reduce.cu")),
            Family::Rotary => ("rotary", include_str!("rotary.cu")),
        }
    }
}

/// The commands of a node, or why there are none.
pub(super) type Lowered = Result<Vec<Command>, String>;

/// A node whose commands are made.
pub(super) struct Cx<'a> {
    pub(super) spec: &'a NodeSpec<'a>,
}

impl Cx<'_> {
    /// An operand.
    pub(super) fn arg(&self, index: usize) -> &BufferSpec {
        &self.spec.args[index]
    }

    /// A result.
    pub(super) fn result(&self, index: usize) -> &BufferSpec {
        &self.spec.results[index]
    }

    /// Pointer to an operand of f32.
    pub(super) fn f32(&self, index: usize) -> Result<Arg, String> {
        typed(self.arg(index), DType::F32, "operand", index)
    }

    /// Pointer to an operand of i64.
    pub(super) fn i64(&self, index: usize) -> Result<Arg, String> {
        typed(self.arg(index), DType::I64, "operand", index)
    }

    /// Pointer to a result of f32.
    pub(super) fn out(&self, index: usize) -> Result<Arg, String> {
        typed(self.result(index), DType::F32, "result", index)
    }

    /// Pointer to an optional operand of f32.
    pub(super) fn optional(&self, index: usize) -> Result<Arg, String> {
        if index < self.spec.args.len() { self.f32(index) } else { Ok(Arg::Null) }
    }

    /// The float type that operand `index` has, for kernels that exist in each.
    pub(super) fn float(&self, index: usize) -> Result<Float<'_>, String> {
        Float::of(self, self.arg(index).ty.dtype, format!("operand {index}"))
    }
}

/// The float type of most operands and results of a node: f32 or bf16.
pub(super) struct Float<'a> {
    cx: &'a Cx<'a>,
    dtype: DType,
}

impl<'a> Float<'a> {
    fn of(cx: &'a Cx<'a>, dtype: DType, whose: String) -> Result<Float<'a>, String> {
        match dtype {
            DType::F32 | DType::Bf16 => Ok(Float { cx, dtype }),
            other => Err(format!("{whose} is {other}, the kernels for GPUs take floats here")),
        }
    }

    /// Whether it is bf16.
    pub(super) fn is_half(&self) -> bool {
        self.dtype == DType::Bf16
    }

    /// Elements that 16 bytes hold.
    pub(super) fn pack(&self) -> u64 {
        16 / self.dtype.bytes()
    }

    /// Pointer to an operand of the type.
    pub(super) fn arg(&self, index: usize) -> Result<Arg, String> {
        typed(self.cx.arg(index), self.dtype, "operand", index)
    }

    /// Pointer to a result of the type.
    pub(super) fn out(&self, index: usize) -> Result<Arg, String> {
        typed(self.cx.result(index), self.dtype, "result", index)
    }

    /// Pointer to an optional operand of the type.
    pub(super) fn optional(&self, index: usize) -> Result<Arg, String> {
        if index < self.cx.spec.args.len() { self.arg(index) } else { Ok(Arg::Null) }
    }

    /// The kernel of that name for the type.
    pub(super) fn entry(&self, name: &str) -> String {
        format!("{name}{}", if self.is_half() { "_bf16" } else { "" })
    }
}

fn typed(buffer: &BufferSpec, dtype: DType, what: &str, index: usize) -> Result<Arg, String> {
    if buffer.ty.dtype == dtype {
        return Ok(at(buffer));
    }
    Err(format!("{what} {index} is {}, the kernels for GPUs take {dtype} here", buffer.ty.dtype))
}

/// Pointer to a buffer.
pub(super) fn at(buffer: &BufferSpec) -> Arg {
    Arg::At(Place::Arena(buffer.offset))
}

/// Number of elements of a buffer, as kernels take it.
pub(super) fn elements(buffer: &BufferSpec) -> i64 {
    buffer.ty.elements() as i64
}

/// Rows and length of the last dimension.
pub(super) fn rows(buffer: &BufferSpec) -> (u64, u64) {
    let last = buffer.ty.shape.last().copied().unwrap_or(1);
    (buffer.ty.shape[..buffer.ty.rank().saturating_sub(1)].iter().product(), last)
}

/// A grid of one block a row.
pub(super) fn row_grid(rows: u64) -> [u32; 3] {
    [rows.clamp(1, 1 << 20) as u32, 1, 1]
}

/// Place in the scratch memory after `start` bytes.
///
/// # Errors
/// When `bytes` from there do not fit.
pub(super) fn scratch(start: u64, bytes: u64) -> Result<Place, String> {
    if start + bytes <= SCRATCH_BYTES {
        return Ok(Place::Scratch(start));
    }
    Err(format!("it needs {} bytes of scratch memory, there are {SCRATCH_BYTES}", start + bytes))
}
