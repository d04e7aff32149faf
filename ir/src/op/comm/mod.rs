//! Collectives, local cuts and messages between stages: they change where a value is, never its meaning.
//!
//! `reshard` stands for a list of collectives until the pass `lower-reshards`; all others name their axes. An
//! `all_reduce` may carry several operands (a bucket), each resolved by itself.

use crate::id::AxisId;
use crate::mesh::{Mesh, ReshardStep, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, Effects, OpDef, Sample, Work, expect_args};
use crate::types::TensorType;

/// The answers that all collectives and messages share: there is no factor rule and no gradient.
macro_rules! communication {
    ($name:literal) => {
        named!($name);
        no_alias!();
        no_gradient!("communication is inserted after differentiation");

        fn rule(&self, _args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
            RuleBuilder::new().build()
        }

        fn work(&self, _args: &[&TensorType], _results: &[&TensorType]) -> Work {
            Work::default()
        }

        fn effects(&self) -> Effects {
            Effects::Communicates
        }

        fn samples() -> Vec<Sample> {
            Vec::new()
        }
    };
}

/// Those of collectives of one operand, whose type passes through.
macro_rules! collective {
    ($name:literal) => {
        communication!($name);

        fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
            expect_args(args, 1)?;
            Ok(vec![args[0].clone()])
        }
    };
}

mod pipe;
mod ring;
mod routed;
mod sums;

pub use pipe::{Recv, Send};
pub use ring::{RingAttention, RingAttentionGrad, RingScratch, SCRATCH_ALIGNMENT, ring_of};
pub use routed::{RoutedMoe, RoutedMoeGrad, RoutedScratch, RowBytes, routed_of};
pub use sums::{SumParts, scattered_sum_bytes, sum_bytes};

/// Bytes that every dimension but the first costs: the parts must be packed side by side before or after they travel.
fn packing(dim: usize, ty: &TensorType) -> u64 {
    if ty.shape[..dim].iter().all(|&d| d == 1) { 0 } else { ty.bytes() }
}

/// Any change of placement; exists at level `sharded` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reshard;

impl OpDef for Reshard {
    collective!("comm.reshard");
    no_attrs!(Reshard);

    fn workspace(&self, _args: &[&TensorType], _results: &[&TensorType], _mesh: &Mesh) -> u64 {
        0
    }
}

/// Sums partial values over `axes`; every rank of the group gets the sum. One result an operand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllReduce {
    /// Axes of the group, major first.
    pub axes: Vec<AxisId>,
}

impl OpDef for AllReduce {
    named!("comm.all_reduce");
    no_gradient!("collectives are inserted after differentiation");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        if args.is_empty() {
            return Err("expected at least one operand".into());
        }
        Ok(args.iter().map(|t| (*t).clone()).collect())
    }

    fn rule(&self, _args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        RuleBuilder::new().build()
    }

    fn work(&self, _args: &[&TensorType], _results: &[&TensorType]) -> Work {
        Work::default()
    }

    fn effects(&self) -> Effects {
        Effects::Communicates
    }

    fn alias(&self) -> crate::op::Alias {
        crate::op::Alias::MayReuseEach
    }

    /// Several operands travel as one message, packed one after the other.
    fn workspace(&self, args: &[&TensorType], _results: &[&TensorType], mesh: &Mesh) -> u64 {
        let packed: u64 = if args.len() == 1 { 0 } else { args.iter().map(|t| t.bytes()).sum() };
        sum_bytes(args, mesh.product(&self.axes)) + packed
    }

    fn attrs(&self) -> Attrs {
        vec![("axes", AttrValue::Axes(self.axes.clone()))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(AllReduce { axes: attrs.axes("axes")? })
    }

    fn samples() -> Vec<Sample> {
        Vec::new()
    }
}

macro_rules! along_dim {
    ($(#[$doc:meta])* $name:ident, $mnemonic:literal, $workspace:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// Axes of the group, major first.
            pub axes: Vec<AxisId>,
            /// The dimension.
            pub dim: usize,
        }

        impl OpDef for $name {
            collective!($mnemonic);

            fn workspace(&self, args: &[&TensorType], results: &[&TensorType], _mesh: &Mesh) -> u64 {
                let bytes: fn(usize, &TensorType, &TensorType) -> u64 = $workspace;
                bytes(self.dim, args[0], results[0])
            }

            fn attrs(&self) -> Attrs {
                vec![("axes", AttrValue::Axes(self.axes.clone())), ("dim", AttrValue::Int(self.dim as i64))]
            }

            fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
                Ok($name { axes: attrs.axes("axes")?, dim: attrs.uint("dim")? as usize })
            }
        }
    };
}

along_dim!(
    /// Sums partial values over `axes`; each rank keeps its part of `dim`.
    ReduceScatter, "comm.reduce_scatter", |dim, from, _| scattered_sum_bytes(from) + packing(dim, from)
);
along_dim!(
    /// Joins the parts of `dim` that the minor axes `axes` hold.
    AllGather, "comm.all_gather", |dim, _, to| packing(dim, to)
);
along_dim!(
    /// Keeps the rank's own part of `dim`; no data moves between ranks.
    Shard, "comm.shard", |_, _, _| 0
);

/// Joins dimension `from` and cuts dimension `to` over the same axes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllToAll {
    /// Axes of the group, major first.
    pub axes: Vec<AxisId>,
    /// The dimension that is joined.
    pub from: usize,
    /// The dimension that is cut.
    pub to: usize,
}

impl OpDef for AllToAll {
    collective!("comm.all_to_all");

    fn workspace(&self, args: &[&TensorType], _results: &[&TensorType], _mesh: &Mesh) -> u64 {
        2 * args[0].bytes()
    }

    fn attrs(&self) -> Attrs {
        vec![
            ("axes", AttrValue::Axes(self.axes.clone())),
            ("from", AttrValue::Int(self.from as i64)),
            ("to", AttrValue::Int(self.to as i64)),
        ]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(AllToAll { axes: attrs.axes("axes")?, from: attrs.uint("from")? as usize, to: attrs.uint("to")? as usize })
    }
}

/// The op of one step of a reshard.
pub fn op_of_step(step: &ReshardStep) -> crate::op::Op {
    match step.clone() {
        ReshardStep::AllReduce { axes } => AllReduce { axes }.into(),
        ReshardStep::ReduceScatter { axes, dim } => ReduceScatter { axes, dim }.into(),
        ReshardStep::AllGather { axes, dim } => AllGather { axes, dim }.into(),
        ReshardStep::AllToAll { axes, from, to } => AllToAll { axes, from, to }.into(),
        ReshardStep::Shard { axes, dim } => Shard { axes, dim }.into(),
    }
}

/// The reshard step that an op performs, if it is a collective other than `reshard`.
pub fn step_of_op(op: &crate::op::Op) -> Option<ReshardStep> {
    use crate::op::Op;
    Some(match op {
        Op::AllReduce(o) => ReshardStep::AllReduce { axes: o.axes.clone() },
        Op::ReduceScatter(o) => ReshardStep::ReduceScatter { axes: o.axes.clone(), dim: o.dim },
        Op::AllGather(o) => ReshardStep::AllGather { axes: o.axes.clone(), dim: o.dim },
        Op::AllToAll(o) => ReshardStep::AllToAll { axes: o.axes.clone(), from: o.from, to: o.to },
        Op::Shard(o) => ReshardStep::Shard { axes: o.axes.clone(), dim: o.dim },
        _ => return None,
    })
}
