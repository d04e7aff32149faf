//! Elements of a tensor as bytes: trained floats in the type that the model stores them in.

use crate::import::onnx::weights::ElementType;

/// The bytes of floats in a type of floats, rounded to the nearest, ties to even.
///
/// # Errors
/// A finite number that the type has no room for, by its index.
pub(super) fn encode(values: &[f32], dtype: ElementType) -> Result<Vec<u8>, usize> {
    match dtype {
        ElementType::F16 => encode_halves(values, to_f16, 0x7C00),
        ElementType::Bf16 => encode_halves(values, to_bf16, 0x7F80),
        ElementType::F64 => Ok(values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect()),
        _ => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
    }
}

fn encode_halves(values: &[f32], round: fn(f32) -> u16, infinity: u16) -> Result<Vec<u8>, usize> {
    let mut bytes = Vec::with_capacity(2 * values.len());
    for (index, &value) in values.iter().enumerate() {
        let half = round(value);
        if half & 0x7FFF == infinity && value.is_finite() {
            return Err(index);
        }
        bytes.extend(half.to_le_bytes());
    }
    Ok(bytes)
}

/// The nearest IEEE half.
fn to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16) as u16 & 0x8000, bits & 0x7FFF_FFFF);
    let rounded = match magnitude {
        0x7F80_0001.. => 0x7E00,
        0x4780_0000.. => 0x7C00,
        // From 2^-14 on: a mantissa that overflows goes up into the exponent.
        0x3880_0000.. => ((magnitude + 0xFFF + (magnitude >> 13 & 1) - (112 << 23)) >> 13) as u16,
        // Below it: multiples of 2^-24.
        _ => (f32::from_bits(magnitude) * 24f32.exp2()).round_ties_even() as u16,
    };
    sign | rounded
}

/// The nearest float of 8 bits of mantissa.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

/// A matrix of so many rows and columns, transposed.
pub(super) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| values[i * columns + j])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_to_the_nearest_even() {
        let tiny = (-24f32).exp2();
        for (value, half) in [
            (0.0, 0x0000),
            (-0.0, 0x8000),
            (1.0, 0x3C00),
            (-2.0, 0xC000),
            (65504.0, 0x7BFF),
            (1.0 + 1.0 / 2048.0, 0x3C00),
            (1.0 + 3.0 / 2048.0, 0x3C02),
            (1.0 + 1.0 / 2048.0 + 1e-6, 0x3C01),
            (tiny, 0x0001),
            (0.5 * tiny, 0x0000),
            (1.5 * tiny, 0x0002),
            (1023.6 * tiny, 0x0400),
            (f32::INFINITY, 0x7C00),
        ] {
            assert_eq!(to_f16(value), half, "{value}");
        }
        assert_eq!(to_f16(f32::NAN) & 0x7E00, 0x7E00);
    }

    #[test]
    fn what_has_eight_bits_is_rounded_to_the_nearest_even() {
        let ulp = 1.0 / 128.0;
        for (value, half) in [(1.0, 0x3F80), (1.0 + 0.5 * ulp, 0x3F80), (1.0 + 1.5 * ulp, 0x3F82), (-1.0, 0xBF80)] {
            assert_eq!(to_bf16(value), half, "{value}");
        }
        assert!(to_bf16(f32::NAN) & 0x7FFF > 0x7F80);
    }

    #[test]
    fn what_becomes_infinite_is_told() {
        assert_eq!(encode(&[1.0, 65519.0, -65520.0], ElementType::F16), Err(2));
        assert_eq!(encode(&[f32::INFINITY, f32::MAX], ElementType::Bf16), Err(1));
        assert_eq!(encode(&[f32::INFINITY], ElementType::F16), Ok(vec![0x00, 0x7C]));
        assert_eq!(encode(&[1.5], ElementType::F64), Ok(1.5f64.to_le_bytes().to_vec()));
    }

    #[test]
    fn a_matrix_is_transposed() {
        assert_eq!(transpose(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
