//! The ops: an enum of typed attribute structs, one file each, and the trait that each answers.
//!
//! To add an op: a file with a struct and its `OpDef`, and a line in [`ops!`](self) below. It does not compile until every
//! question of the trait is answered; its tests (gradient check, shardings against the unsharded result, text round trip)
//! are made from its samples.

#[macro_use]
mod answers;
mod attrs;
pub mod comm;
pub mod compute;
mod gradient;
pub mod mem;
pub mod opt;
mod sample;
mod widen;

pub use attrs::{AttrReader, AttrValue, Attrs, numbers};
pub use gradient::{GradCx, NoGradient};
pub use sample::{Fill, Sample};
pub use widen::widened_bytes;

use crate::cluster::DeviceKind;
use crate::mesh::{Mesh, ShardingRule};
use crate::types::TensorType;

/// Work of one execution, from local types; never seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Work {
    /// Floating-point operations of matrix products (what runs at GEMM speed).
    pub matmul_flops: u64,
    /// Other floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// What an op does besides computing its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effects {
    /// Nothing: it may be removed, repeated, merged.
    Pure,
    /// It moves data between ranks, and all ranks of its groups must execute it.
    Communicates,
    /// It reads what the run supplies (data, learning rate).
    Reads,
    /// It writes a resident value.
    Writes,
    /// It copies a value between the memories of its device and of the host.
    Copies,
}

/// How result 0 may share memory with an operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alias {
    /// Separate memory.
    None,
    /// Result 0 is the operand's bytes under another shape: never copied.
    View(usize),
    /// Result i may be written over the i-th listed operand, an only result over any of them, if that dies here and has the
    /// same bytes.
    MayReuse(Vec<usize>),
    /// Result i may be written over operand i, if that dies here and has the same bytes.
    MayReuseEach,
}

impl Alias {
    /// The operands that a result may be written over, best first: any listed one if it is the only result.
    pub fn reusable(&self, result: usize, n_results: usize) -> Vec<usize> {
        match self {
            Alias::MayReuse(operands) if n_results == 1 => operands.clone(),
            Alias::MayReuse(operands) => operands.get(result).copied().into_iter().collect(),
            Alias::MayReuseEach => vec![result],
            Alias::None | Alias::View(_) => Vec::new(),
        }
    }
}

/// The questions that each op answers. Types are global in `infer` and local in `work` and `workspace`.
pub trait OpDef: Sized {
    /// The mnemonics of all ops of this struct.
    fn mnemonics() -> Vec<&'static str>;
    /// This op's mnemonic.
    fn mnemonic(&self) -> &'static str;
    /// Result types, or what is wrong with the operands.
    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String>;
    /// Factor rule on these (legal) types.
    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule;
    /// Emits the gradient of each operand that needs one.
    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<crate::id::ValueId>>, NoGradient>;
    /// Floating-point operations and bytes.
    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work;
    /// Side effects.
    fn effects(&self) -> Effects;
    /// Sharing of memory.
    fn alias(&self) -> Alias;
    /// Bytes of scratch memory that any backend may use; a collective's depend on the number of its ranks.
    fn workspace(&self, args: &[&TensorType], results: &[&TensorType], mesh: &Mesh) -> u64;
    /// Attributes for the text format.
    fn attrs(&self) -> Attrs;
    /// Reads the attributes of the op of that mnemonic.
    fn parse(mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String>;
    /// Small instances for the generated tests.
    fn samples() -> Vec<Sample>;
}

macro_rules! ops {
    ($($module:ident :: $name:ident),* $(,)?) => {
        /// An op with its attributes.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($module), "::", stringify!($name), "`].")] $name($module::$name),)*
        }

        impl Op {
            /// The mnemonics of all ops, in the order of the list.
            pub fn all_mnemonics() -> Vec<&'static str> {
                let mut all = Vec::new();
                $(all.extend($module::$name::mnemonics());)*
                all
            }
            /// Samples of all ops.
            pub fn all_samples() -> Vec<Sample> {
                let mut all = Vec::new();
                $(all.extend($module::$name::samples());)*
                all
            }
            /// Reads an op; `None` if no op has the mnemonic.
            pub fn parse(mnemonic: &str, attrs: &mut AttrReader) -> Option<Result<Op, String>> {
                $(if $module::$name::mnemonics().contains(&mnemonic) {
                    return Some($module::$name::parse(mnemonic, attrs).map(Op::$name));
                })*
                None
            }
            /// See [`OpDef::mnemonic`].
            pub fn mnemonic(&self) -> &'static str {
                match self { $(Op::$name(op) => op.mnemonic(),)* }
            }
            /// See [`OpDef::infer`].
            pub fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
                match self { $(Op::$name(op) => op.infer(args),)* }
            }
            /// See [`OpDef::rule`].
            pub fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
                match self { $(Op::$name(op) => op.rule(args, results),)* }
            }
            /// See [`OpDef::gradient`].
            pub fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<crate::id::ValueId>>, NoGradient> {
                match self { $(Op::$name(op) => op.gradient(cx),)* }
            }
            /// See [`OpDef::work`].
            pub fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
                match self { $(Op::$name(op) => op.work(args, results),)* }
            }
            /// See [`OpDef::effects`].
            pub fn effects(&self) -> Effects {
                match self { $(Op::$name(op) => op.effects(),)* }
            }
            /// See [`OpDef::alias`].
            pub fn alias(&self) -> Alias {
                match self { $(Op::$name(op) => op.alias(),)* }
            }
            /// See [`OpDef::workspace`]; in plans for devices without kernels for bf16 the f32 copies of tensors come first.
            pub fn workspace(&self, args: &[&TensorType], results: &[&TensorType], mesh: &Mesh) -> u64 {
                let own = self.own_workspace(args, results, mesh);
                let is_widened = mesh.device() == DeviceKind::Cpu;
                if is_widened { self.widening_bytes(args, results) + own } else { own }
            }
            /// See [`OpDef::workspace`]; without f32 copies.
            pub fn own_workspace(&self, args: &[&TensorType], results: &[&TensorType], mesh: &Mesh) -> u64 {
                match self { $(Op::$name(op) => op.workspace(args, results, mesh),)* }
            }
            /// See [`OpDef::attrs`].
            pub fn attrs(&self) -> Attrs {
                match self { $(Op::$name(op) => op.attrs(),)* }
            }
        }

        $(impl From<$module::$name> for Op {
            fn from(op: $module::$name) -> Op { Op::$name(op) }
        })*
    };
}

ops! {
    compute::Einsum,
    compute::Binary,
    compute::AddN,
    compute::Unary,
    compute::UnaryGrad,
    compute::Where,
    compute::Compare,
    compute::ReduceSum,
    compute::Reduce,
    compute::CumSum,
    compute::Dropout,
    compute::TopK,
    compute::Broadcast,
    compute::Reshape,
    compute::Transpose,
    compute::Slice,
    compute::Concat,
    compute::Cast,
    compute::Unfold,
    compute::Fold,
    compute::TakeAlong,
    compute::PutAlong,
    compute::LayerNorm,
    compute::LayerNormGrad,
    compute::LayerNormParamGrad,
    compute::RmsNorm,
    compute::RmsNormGrad,
    compute::RmsNormParamGrad,
    compute::Softmax,
    compute::SoftmaxGrad,
    compute::LogSoftmax,
    compute::Attention,
    compute::AttentionGrad,
    compute::AttentionMaskGrad,
    compute::Rotary,
    compute::Moe,
    compute::MoeGrad,
    compute::Embedding,
    compute::EmbeddingGrad,
    compute::CrossEntropy,
    compute::CrossEntropyGrad,
    compute::CountLabels,
    compute::Mse,
    compute::MseGrad,
    compute::Full,
    compute::Iota,
    compute::CausalMask,
    compute::Constant,
    compute::SumSquares,
    compute::ClipScale,
    opt::Sgd,
    opt::Adamw,
    comm::Reshard,
    comm::AllReduce,
    comm::ReduceScatter,
    comm::AllGather,
    comm::AllToAll,
    comm::Shard,
    comm::RingAttention,
    comm::RingAttentionGrad,
    comm::RoutedMoe,
    comm::RoutedMoeGrad,
    comm::Send,
    comm::Recv,
    mem::Load,
    mem::RunScalar,
    mem::Accumulate,
    mem::Update,
    mem::ToHost,
    mem::ToDevice,
}

impl Op {
    /// The op without what tells it from equal ones in other layers: the number of a dropout.
    pub fn unnumbered(&self) -> Op {
        match self {
            Op::Dropout(op) => Op::Dropout(compute::Dropout { number: 0, ..*op }),
            op => op.clone(),
        }
    }
}

/// Sum of the bytes of operands and results: the memory traffic of an op that touches each once.
pub fn traffic(args: &[&TensorType], results: &[&TensorType]) -> u64 {
    args.iter().chain(results).map(|t| t.bytes()).sum()
}

/// Checks the number of operands.
pub fn expect_args(args: &[&TensorType], n: usize) -> Result<(), String> {
    if args.len() == n { Ok(()) } else { Err(format!("expected {n} operands, found {}", args.len())) }
}
