//! Copies between the memory of a device and that of its host: values and placements stay as they are.

use super::plain_rule;
use crate::mesh::{Linearity, ShardingRule};
use crate::op::{Effects, OpDef, Sample, Work, expect_args, traffic};
use crate::types::TensorType;

macro_rules! copy_op {
    ($(#[$doc:meta])* $op:ident, $name:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $op;

        impl OpDef for $op {
            memory_op!($name, Effects::Copies);
            no_attrs!($op);

            fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
                expect_args(args, 1)?;
                Ok(vec![args[0].clone()])
            }

            fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
                plain_rule(&args[0].shape, 1, 1, Linearity::Each(vec![0]))
            }
        }
    };
}

copy_op!(
    /// A copy in host memory of a value in the device's memory.
    ToHost,
    "mem.to_host"
);

copy_op!(
    /// A copy in the device's memory of a value in host memory.
    ToDevice,
    "mem.to_device"
);
