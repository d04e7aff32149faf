//! `rotary`: pairs of the last dimension turned by an angle that depends on the position (Su et al., 2021).

use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::{Alias, AttrReader, AttrValue, Attrs, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::TensorType;

/// y [.., d] = rotary(x [.., d], cos [.., p], sin [.., p]): pair i of a row becomes (a cos - b sin, a sin + b cos) with element i
/// of the tables.
///
/// Pair i is elements i and i + p, or with `interleaved` elements 2i and 2i + 1; what lies behind the first 2p elements stays.
/// The other dimensions of the tables are broadcast to those of x as by NumPy. The gradient turns back: it is `rotary` with the
/// other `inverse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rotary {
    /// Whether the elements of a pair are neighbours.
    pub interleaved: bool,
    /// Whether the angles are negative.
    pub inverse: bool,
}

impl OpDef for Rotary {
    named!("rotary");
    pure!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 3)?;
        let (Some((d, rows)), Some((p, own))) = (args[0].shape.split_last(), args[1].shape.split_last()) else {
            return Err("an operand is a scalar".into());
        };
        let skip = rows
            .len()
            .checked_sub(own.len())
            .ok_or_else(|| format!("tables `{}` have too many dimensions", args[1]))?;
        let repeats = own.iter().zip(&rows[skip..]).all(|(&table, &row)| table == 1 || table == row);
        let is_float = args[0].dtype.is_float() && *args[1] == TensorType::f32(args[1].shape.clone());
        if !is_float || args[1] != args[2] || !repeats || *p == 0 || 2 * p > *d {
            return Err(format!("tables `{}` and `{}` do not fit `{}`", args[1], args[2], args[0]));
        }
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut builder = RuleBuilder::new();
        let last = args[0].rank() - 1;
        let mut x: Vec<usize> = (0..last).map(|i| builder.factor(format!("d{i}"), args[0].shape[i])).collect();
        let skip = args[0].rank() - args[1].rank();
        let own = |i: usize| if args[1].shape[i] == args[0].shape[skip + i] { vec![x[skip + i]] } else { Vec::new() };
        let mut table: Vec<Vec<usize>> = (0..args[1].rank() - 1).map(own).collect();
        x.push(builder.factor_of("d", args[0].shape[last], FactorKind::Whole));
        table.push(vec![builder.factor_of("p", args[1].shape[last - skip], FactorKind::Whole)]);
        let builder = builder.operand(&x).operand_dims(table.clone()).operand_dims(table);
        builder.result(&x).linear(Linearity::Each(vec![0])).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        if cx.needs[1] || cx.needs[2] {
            return Err(NoGradient("the angles of `rotary` have no gradient".into()));
        }
        let (cos, sin, dy) = (cx.args[1], cx.args[2], cx.dy()?);
        let dx = cx.emit_for(0, Rotary { inverse: !self.inverse, ..*self }, &[dy, cos, sin]);
        Ok(vec![dx, None, None])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 3 * args[0].elements(), bytes: traffic(args, results) }
    }

    fn alias(&self) -> Alias {
        Alias::MayReuse(vec![0])
    }

    fn attrs(&self) -> Attrs {
        let flags = [("interleaved", self.interleaved), ("inverse", self.inverse)];
        flags.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| (name, AttrValue::Flag)).collect()
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Rotary { interleaved: attrs.flag("interleaved"), inverse: attrs.flag("inverse") })
    }

    fn samples() -> Vec<Sample> {
        let op = |interleaved, inverse| Rotary { interleaved, inverse };
        vec![
            Sample::uniform(op(false, false), &[&[4, 6, 2, 8], &[1, 6, 1, 4], &[1, 6, 1, 4]]),
            Sample::uniform(op(true, false), &[&[4, 2, 6, 8], &[6, 3], &[6, 3]]),
            Sample::uniform(op(false, true), &[&[4, 6, 6], &[4, 6, 2], &[4, 6, 2]]),
        ]
    }
}
