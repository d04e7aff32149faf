//! A mixture of experts whose tokens travel to the ranks of their experts and back (expert parallelism by all-to-all; Lepikhin et al.,
//! 2020, GShard): tokens and experts lie over the same axes, and each rank sends each other one the tokens of which some choice is there.
//!
//! One node stands for all of it, with its axes. For n ranks each rank
//!
//! 1. computes its own experts on its own tokens, and tells every other rank how many of its tokens will come;
//! 2. in round r = 1 .. n - 1 sends the rank r further on the tokens that chose an expert there, each once and with all of its choices and
//!    their weights, and computes its experts on what comes from the rank r before;
//! 3. sends the results back, and adds those of its own tokens in the order of the rounds.
//!
//! In the gradient tokens travel with the gradients of their results, and the gradients of tokens and weights come back; those of the
//! experts are sums over the tokens of all ranks. No token is dropped: there is room for all tokens of a rank in each round, and only what
//! was chosen is sent.
//!
//! On devices that compute in f32 only, what travels is bf16 where the operands are, and what is summed over rounds is f32.

use crate::cluster::DeviceKind;
use crate::id::AxisId;
use crate::mesh::{Mesh, ShardingRule};
use crate::op::comm::SCRATCH_ALIGNMENT;
use crate::op::compute::{Moe, MoeGrad};
use crate::op::{AttrReader, AttrValue, Attrs, Effects, Op, OpDef, Sample, Work};
use crate::types::{DType, TensorType};

/// y = routed_moe(x, w, i, gate, up, down): what [`Moe`] gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoutedMoe {
    /// The mixture that all ranks compute together.
    pub mixture: Moe,
    /// Axes over which the experts lie, major first, and over which the tokens lie too.
    pub axes: Vec<AxisId>,
}

/// (dx, dw, dgate, dup, ddown) = routed_moe_grad(x, w, i, gate, up, down, dy): what [`MoeGrad`] gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoutedMoeGrad {
    /// The gradient that all ranks compute together.
    pub mixture: MoeGrad,
    /// Axes over which the experts lie, major first, and over which the tokens lie too.
    pub axes: Vec<AxisId>,
}

/// The op that computes a mixture, or its gradient, by routing tokens over `axes`; none for other ops.
pub fn routed_of(op: &Op, axes: &[AxisId]) -> Option<Op> {
    let axes = axes.to_vec();
    match *op {
        Op::Moe(mixture) => Some(RoutedMoe { mixture, axes }.into()),
        Op::MoeGrad(mixture) => Some(RoutedMoeGrad { mixture, axes }.into()),
        _ => None,
    }
}

impl Op {
    /// Whether an op is a mixture, or the gradient of one, whose tokens travel.
    pub fn is_routed(&self) -> bool {
        matches!(self, Op::RoutedMoe(_) | Op::RoutedMoeGrad(_))
    }
}

/// The rule of a mixture in which the axes of the experts may cut the tokens too.
fn rule(mut dense: ShardingRule) -> ShardingRule {
    let (tokens, experts) = (&dense.operands[0], dense.operands[3][0][0]);
    dense.shared = tokens[..tokens.len() - 1].iter().flatten().map(|&token| [token, experts]).collect();
    dense
}

/// What a token takes in the messages of a round, in bytes: choices, weights and x, in the gradient also dy, and what comes back for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowBytes {
    /// To the rank of the experts.
    pub out: u64,
    /// From there.
    pub back: u64,
}

impl RowBytes {
    /// Those of a mixture, or of its gradient, with these operands.
    pub fn of(args: &[&TensorType]) -> RowBytes {
        let last = |t: &TensorType| t.shape[t.rank() - 1] * t.dtype.bytes();
        let [x, w, i] = [0, 1, 2].map(|n| last(args[n]));
        match args.get(6) {
            Some(_) => RowBytes { out: i + w + 2 * x, back: x + w },
            None => RowBytes { out: i + w + x, back: x },
        }
    }
}

/// The scratch tensors of a rank, in the order in which they lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedScratch {
    /// For each rank how many tokens go there, and how many come from there.
    pub counts: [TensorType; 2],
    /// The numbers of the tokens that are under way.
    pub rows: TensorType,
    /// What is sent in a round and what comes back, what comes, and what is sent back: messages of all tokens of a rank.
    pub messages: [TensorType; 3],
    /// What the kernel needs.
    pub kernel: TensorType,
    /// The f32 copies, where the operands are bf16: of the floating operands and of the results, and then of the rows in messages: w, x, in
    /// the gradient dy, and what comes back of them.
    pub wide: Vec<TensorType>,
}

impl RoutedScratch {
    /// Scratch of a mixture, or its gradient, on `n` ranks, from local types and the bytes that its kernel needs.
    pub fn new(args: &[&TensorType], results: &[&TensorType], n: u64, kernel_bytes: u64) -> RoutedScratch {
        let (x, w) = (args[0], args[1]);
        let rows = w.elements() / w.shape[w.rank() - 1].max(1);
        let bytes = |n: u64| TensorType::new(DType::Bool, [n]);
        let row = RowBytes::of(args);
        let mut wide = Vec::new();
        if x.dtype == DType::Bf16 {
            let in_messages: &[&TensorType] = if args.len() > 6 { &[w, x, x, x, w] } else { &[w, x, x] };
            let floats = args.iter().filter(|t| t.dtype.is_float());
            wide = floats.chain(results).chain(in_messages).map(|t| TensorType::f32(t.shape.clone())).collect();
        }
        RoutedScratch {
            counts: [(); 2].map(|()| TensorType::i64([n])),
            rows: bytes(4 * rows),
            messages: [row.out, row.out, row.back].map(|row| bytes(rows * row)),
            kernel: bytes(kernel_bytes),
            wide,
        }
    }

    /// All tensors in order.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorType> {
        let narrow = self.counts.iter().chain([&self.rows]).chain(&self.messages);
        narrow.chain([&self.kernel]).chain(&self.wide)
    }

    /// Bytes with all tensors aligned.
    pub fn bytes(&self) -> u64 {
        self.tensors().map(|t| t.bytes().next_multiple_of(SCRATCH_ALIGNMENT)).sum()
    }
}

macro_rules! routed {
    ($name:ident, $mnemonic:literal, $dense:ident) => {
        impl OpDef for $name {
            named!($mnemonic);
            no_alias!();
            no_gradient!("communication is inserted after differentiation");

            fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
                self.mixture.infer(args)
            }

            fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
                rule(self.mixture.rule(args, results))
            }

            /// That of the tokens of one rank; a rank computes as many of each.
            fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
                self.mixture.work(args, results)
            }

            fn effects(&self) -> Effects {
                Effects::Communicates
            }

            /// See [`RoutedScratch`].
            fn workspace(&self, args: &[&TensorType], results: &[&TensorType], mesh: &Mesh) -> u64 {
                let kernel = self.mixture.workspace(args, results, mesh);
                let mut scratch = RoutedScratch::new(args, results, mesh.product(&self.axes), kernel);
                if mesh.device() != DeviceKind::Cpu {
                    scratch.wide.clear();
                }
                scratch.bytes()
            }

            fn attrs(&self) -> Attrs {
                let mut attrs = vec![("axes", AttrValue::Axes(self.axes.clone()))];
                attrs.extend(self.mixture.attrs());
                attrs
            }

            fn parse(mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
                Ok($name { axes: attrs.axes("axes")?, mixture: $dense::parse(mnemonic, attrs)? })
            }

            fn samples() -> Vec<Sample> {
                Vec::new()
            }
        }
    };
}

routed!(RoutedMoe, "comm.routed_moe", Moe);
routed!(RoutedMoeGrad, "comm.routed_moe_grad", MoeGrad);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{FactorMap, MapFault, Sharding};
    use crate::op::compute::UnaryKind;

    const MB: AxisId = Mesh::MB;
    const A0: AxisId = AxisId(1);
    const A1: AxisId = AxisId(2);

    fn mixture() -> Op {
        Moe { activation: UnaryKind::Silu, experts: 4 }.into()
    }

    /// Operands of the gradient of four experts of width 6 on [8, 2] tokens of width 3, each of which chooses two.
    fn types() -> Vec<TensorType> {
        let shapes: [&[u64]; 7] = [&[8, 2, 3], &[8, 2, 2], &[8, 2, 2], &[4, 6, 3], &[4, 6, 3], &[4, 3, 6], &[8, 2, 3]];
        let ty = |(i, shape): (usize, &&[u64])| match i {
            2 => TensorType::i64(shape.to_vec()),
            _ => TensorType::f32(shape.to_vec()),
        };
        shapes.iter().enumerate().map(ty).collect()
    }

    /// The rule of the gradient, and a map that has the tokens over all axes and the experts over the last one.
    fn gradient_rule() -> (ShardingRule, FactorMap) {
        let (types, grad) = (types(), MoeGrad { activation: UnaryKind::Silu, experts: 4 });
        let args: Vec<&TensorType> = types.iter().collect();
        let results = grad.infer(&args).unwrap();
        let rule = routed_of(&grad.into(), &[A1]).unwrap().rule(&args, &results.iter().collect::<Vec<_>>());
        let mut map = FactorMap::replicated(&rule);
        map.axes[rule.operands[0][0][0]] = vec![MB, A0, A1];
        map.axes[rule.operands[3][0][0]] = vec![A1];
        (rule, map)
    }

    #[test]
    fn experts_and_tokens_lie_over_the_same_axes() {
        let types = types();
        let args: Vec<&TensorType> = types[..6].iter().collect();
        let rule = routed_of(&mixture(), &[A1]).unwrap().rule(&args, &[args[0]]);
        let (_, map) = gradient_rule();
        assert_eq!(rule.operand_sharding(3, &map).dims[0], [A1]);
        assert_eq!(rule.operand_sharding(1, &map).dims[0], [MB, A0, A1]);
        let result = rule.result_sharding(0, &map);
        assert_eq!((&result.dims[0][..], result.is_partial()), (&[MB, A0, A1][..], false));
        let operands: Vec<Sharding> = (0..6).map(|i| rule.operand_sharding(i, &map)).collect();
        let mesh = Mesh::from_levels(&[2, 2], 2);
        assert_eq!(rule.infer_map(&operands.iter().collect::<Vec<_>>(), &mesh), Ok(map));
    }

    /// All tokens of the axis that chose an expert have been there; those of other axes have not.
    #[test]
    fn gradients_of_experts_are_complete_over_their_axes() {
        let (rule, map) = gradient_rule();
        for i in 2..5 {
            let gradient = rule.result_sharding(i, &map);
            assert_eq!((&gradient.dims[0][..], &gradient.partial[..]), (&[A1][..], &[MB, A0][..]));
        }
        assert!(!rule.result_sharding(0, &map).is_partial());
    }

    #[test]
    fn no_other_factors_share_an_axis() {
        let (rule, mut map) = gradient_rule();
        let width = rule.operands[3][1][0];
        map.axes[width] = vec![A0];
        let operands: Vec<Sharding> = (0..7).map(|i| rule.operand_sharding(i, &map)).collect();
        let mesh = Mesh::from_levels(&[2, 2], 2);
        let found = rule.infer_map(&operands.iter().collect::<Vec<_>>(), &mesh);
        assert_eq!(found, Err(MapFault::Twice { factor: width, axis: A0 }));
    }

    #[test]
    fn what_is_no_mixture_is_not_routed() {
        assert_eq!(routed_of(&crate::op::comm::Reshard.into(), &[A0]), None);
        let types = types();
        let args: Vec<&TensorType> = types[..6].iter().collect();
        let other = routed_of(&Moe { activation: UnaryKind::Silu, experts: 5 }.into(), &[A0]).unwrap();
        assert!(other.infer(&args).unwrap_err().contains("are not 5 experts"));
        assert_eq!(routed_of(&mixture(), &[A0]).unwrap().infer(&args), Ok(vec![types[0].clone()]));
    }

    /// Messages of all tokens of a rank, whatever the number of ranks; only the counts grow.
    #[test]
    fn scratch_does_not_grow_with_the_ranks() {
        let types = types();
        let args: Vec<&TensorType> = types.iter().collect();
        let row = RowBytes::of(&args[..6]);
        assert_eq!((row, RowBytes::of(&args)), (RowBytes { out: 36, back: 12 }, RowBytes { out: 48, back: 20 }));
        let scratch = |n| RoutedScratch::new(&args[..6], &args[..1], n, 100).bytes();
        assert_eq!(scratch(2), 2 * 64 + 64 + 2 * 16 * 36 + 16 * 12 + 128);
        assert_eq!(scratch(64), scratch(2) - 2 * 64 + 2 * 8 * 64);
    }
}
