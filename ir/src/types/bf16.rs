//! Conversions of bf16, which is the upper half of an f32.

/// The f32 of the same value.
#[inline(always)]
pub fn widen(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// Rounds to nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if value.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_nearest_even() {
        assert_eq!([round(1.0), round(1.003_906_3), round(1.011_718_8)], [0x3f80, 0x3f80, 0x3f82]);
        assert_eq!(round(f32::MAX), 0x7f80);
        assert!(widen(round(f32::NAN)).is_nan());
        assert!((0..=u16::MAX).filter(|&h| !widen(h).is_nan()).all(|h| round(widen(h)) == h));
    }
}
