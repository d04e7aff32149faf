//! Conversions between element types.

use super::super::weights::ElementType;
use super::tensor::{Element, StaticTensor, Values};
use galvatron_ir::types::bf16;

/// Converts to the type of an ONNX number, rounding through narrower types where the result is kept wider.
pub(super) fn cast(x: &StaticTensor, to: i64) -> Result<StaticTensor, String> {
    let target = i32::try_from(to).ok().and_then(ElementType::from_number);
    let target = target.ok_or_else(|| format!("cast to element type {to}"))?;
    let values = match target {
        ElementType::Bool => convert(x, |v| v != 0, |v| v != 0.0),
        ElementType::F32 => convert(x, |v| v as f32, |v| v as f32),
        ElementType::F64 => convert(x, |v| v as f64, |v| v),
        ElementType::F16 => convert(x, |v| round_to_f16(v as f64), round_to_f16),
        ElementType::Bf16 => convert(x, |v| round_to_bf16(v as f32), |v| round_to_bf16(v as f32)),
        ElementType::I64 => convert(x, |v| v, |v| v as i64),
        ElementType::I32 => convert(x, |v| i64::from(v as i32), |v| i64::from(v as i64 as i32)),
        ElementType::I16 => convert(x, |v| i64::from(v as i16), |v| i64::from(v as i64 as i16)),
        ElementType::I8 => convert(x, |v| i64::from(v as i8), |v| i64::from(v as i64 as i8)),
        ElementType::U8 => convert(x, |v| i64::from(v as u8), |v| i64::from(v as i64 as u8)),
        ElementType::U16 => convert(x, |v| i64::from(v as u16), |v| i64::from(v as i64 as u16)),
        ElementType::U32 => convert(x, |v| i64::from(v as u32), |v| i64::from(v as i64 as u32)),
        ElementType::U64 => convert(x, |v| v, |v| v as u64 as i64),
        ElementType::Other { .. } => return Err(format!("cast to {}", target.name())),
    };
    StaticTensor::new(x.shape().to_vec(), x.stored().to_vec(), values)
}

/// Converts to the element type of another tensor.
pub(super) fn cast_like(x: &StaticTensor, like: &StaticTensor) -> Result<StaticTensor, String> {
    let number = match like.values() {
        Values::I64(_) => 7,
        Values::Bool(_) => 9,
        Values::F32(_) => 1,
        Values::F64(_) => 11,
    };
    cast(x, number)
}

fn convert<R: Element>(x: &StaticTensor, int: impl Fn(i64) -> R, float: impl Fn(f64) -> R) -> Values {
    R::wrap(match x.values() {
        Values::I64(v) => v.iter().map(|&x| int(x)).collect(),
        Values::Bool(v) => v.iter().map(|&x| int(i64::from(x))).collect(),
        Values::F32(v) => v.iter().map(|&x| float(f64::from(x))).collect(),
        Values::F64(v) => v.iter().map(|&x| float(x)).collect(),
    })
}

/// The number behind the bits of an IEEE half.
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    }
}

/// The nearest half, ties to even.
fn round_to_f16(x: f64) -> f32 {
    if !x.is_finite() || x == 0.0 {
        return x as f32;
    }
    let exponent = ((x.abs().to_bits() >> 52) as i32 - 1023).max(-14);
    let step = 2f64.powi(exponent - 10);
    let rounded = (x / step).round_ties_even() * step;
    if rounded.abs() > 65504.0 { f32::INFINITY.copysign(x as f32) } else { rounded as f32 }
}

/// The nearest bfloat16, ties to even.
fn round_to_bf16(x: f32) -> f32 {
    bf16::widen(bf16::round(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_nearest_even() {
        assert_eq!(round_to_f16(2049.0), 2048.0);
        assert_eq!(round_to_f16(65519.0), 65504.0);
        assert_eq!(round_to_f16(-65520.0), f32::NEG_INFINITY);
        assert_eq!(round_to_f16(2f64.powi(-25)), 0.0);
        assert_eq!(round_to_bf16(257.0), 256.0);
    }

    #[test]
    fn halves_survive_the_round_trip() {
        for bits in (0..=u16::MAX).filter(|b| b >> 10 & 31 != 31) {
            let x = f16_to_f32(bits);
            assert_eq!(round_to_f16(f64::from(x)).to_bits(), x.to_bits());
        }
    }

    #[test]
    fn integers_truncate_and_wrap() {
        let x = StaticTensor::from_elements(vec![2], vec![2], vec![-1.7f32, 300.0]).unwrap();
        assert_eq!(cast(&x, 7).unwrap().ints().unwrap(), [-1, 300]);
        assert_eq!(cast(&x, 2).unwrap().ints().unwrap(), [255, 44]);
    }
}
