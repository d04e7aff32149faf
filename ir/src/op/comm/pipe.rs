//! Messages between stages: what a chunk computes and another one reads.
//!
//! A send and a receive of one channel belong together, the rank at each position of the one stage's mesh with the rank at that position
//! of the other's. Both name the same value of the program in the same placement, a partial sum included. Within forward and
//! backward a message is that of the running micro-batch.

use crate::mesh::{Mesh, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, Effects, OpDef, Sample, Work, expect_args};
use crate::types::TensorType;

/// Sends each rank's part of the operand to the rank at its position of another chunk's stage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Send {
    /// Number of the channel; each has one send and one receive.
    pub channel: u32,
    /// The chunk that receives.
    pub to: u32,
}

impl OpDef for Send {
    communication!("pipe.send");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        Ok(Vec::new())
    }

    fn workspace(&self, _args: &[&TensorType], _results: &[&TensorType], _mesh: &Mesh) -> u64 {
        0
    }

    fn attrs(&self) -> Attrs {
        vec![("channel", AttrValue::Int(i64::from(self.channel))), ("to", AttrValue::Int(i64::from(self.to)))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Send { channel: small(attrs, "channel")?, to: small(attrs, "to")? })
    }
}

/// Receives what the send of its channel sends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recv {
    /// Number of the channel.
    pub channel: u32,
    /// The chunk that sends.
    pub from: u32,
    /// Global type of the value.
    pub ty: TensorType,
}

impl OpDef for Recv {
    communication!("pipe.recv");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 0)?;
        Ok(vec![self.ty.clone()])
    }

    fn workspace(&self, _args: &[&TensorType], _results: &[&TensorType], _mesh: &Mesh) -> u64 {
        0
    }

    fn attrs(&self) -> Attrs {
        vec![
            ("channel", AttrValue::Int(i64::from(self.channel))),
            ("from", AttrValue::Int(i64::from(self.from))),
            ("dtype", AttrValue::Word(self.ty.dtype.to_string())),
            ("shape", crate::op::attrs::to_ints(&self.ty.shape)),
        ]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        let (channel, from) = (small(attrs, "channel")?, small(attrs, "from")?);
        Ok(Recv { channel, from, ty: TensorType::new(attrs.dtype("dtype")?, attrs.uints("shape")?) })
    }
}

/// A number of 32 bits.
fn small(attrs: &mut AttrReader, key: &str) -> Result<u32, String> {
    let value = attrs.uint(key)?;
    u32::try_from(value).map_err(|_| format!("`{key}` = {value} does not fit 32 bits"))
}
