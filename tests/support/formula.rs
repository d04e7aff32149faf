//! Weights that are computed and not stored: a hash of the parameter's name and the element's number, scaled.

/// The elements of a parameter of that name: numbers in [-scale, scale) around `shift`.
pub fn elements(name: &str, n: u64, scale: f64, shift: f64) -> impl Iterator<Item = f32> {
    let key = fnv1a64(name);
    (0..n).map(move |i| element(key, i, scale, shift))
}

/// FNV-1a with 64 bits.
fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// Element `i`: the hash mixed as in SplitMix64, as a number in [-scale, scale) around `shift`.
fn element(key: u64, i: u64, scale: f64, shift: f64) -> f32 {
    let mut z = key.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let u = (z >> 40) as f64 / (1u64 << 24) as f64;
    ((2.0 * u - 1.0) * scale + shift) as f32
}

#[test]
fn the_formula_gives_the_documented_elements() {
    assert_eq!(fnv1a64("transformer.wte.weight"), 1_694_720_246_732_430_158);
    let first: Vec<f32> = elements("transformer.wte.weight", 4, 0.125, 0.0).collect();
    assert_eq!(first, [-0.064_890_146, 0.082_987_01, 0.028_485_596, 0.016_174_957]);
}
