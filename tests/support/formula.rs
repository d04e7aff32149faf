//! Weights that are computed and not stored: a hash of the parameter's name and the element's number, scaled.

use galvatron_ir::Module;
use galvatron_ir::types::DType;
use serde_json::Value;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// Writes the elements of every initializer of a module at its offset of a file of its own.
///
/// `manifest` is the model's: `reference.parameters` has the formula of each PyTorch parameter, `tied` the groups of which
/// the model file keeps one name. In the model file a parameter is called `model.` and its PyTorch name.
pub fn write_weights(path: &Path, module: &Module, manifest: &Value) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for initializer in &module.initializers {
        assert_eq!(initializer.ty.dtype, DType::F32, "`{}`", initializer.name);
        let name = initializer.name.strip_prefix("model.").unwrap_or(&initializer.name);
        let (name, scale, shift) = formula(name, manifest);
        file.seek(SeekFrom::Start(initializer.offset))?;
        let key = fnv1a64(&name);
        for i in 0..initializer.ty.elements() {
            file.write_all(&element(key, i, scale, shift).to_le_bytes())?;
        }
    }
    file.flush()
}

/// The name under which a parameter is hashed, and the scale and shift of its elements.
fn formula(name: &str, manifest: &Value) -> (String, f64, f64) {
    let groups = manifest["tied"].as_array().expect("the manifest lists tied parameters");
    let is_named = |group: &&Value| group.as_array().is_some_and(|names| names.iter().any(|n| n == name));
    let tied = groups.iter().find(is_named).and_then(Value::as_array);
    let names = std::iter::once(name).chain(tied.into_iter().flatten().filter_map(Value::as_str));
    let numbers =
        |name: &str| Some((name.to_string(), manifest["reference"]["parameters"][name]["formula"].as_array()?));
    let found = names.map(numbers).find_map(|found| found);
    let (name, numbers) = found.unwrap_or_else(|| panic!("`{name}` has a formula"));
    (name, numbers[0].as_f64().expect("a scale"), numbers[1].as_f64().expect("a shift"))
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
    let key = fnv1a64("transformer.wte.weight");
    assert_eq!(key, 1_694_720_246_732_430_158);
    let elements: Vec<f32> = (0..4).map(|i| element(key, i, 0.125, 0.0)).collect();
    assert_eq!(elements, [-0.064_890_146, 0.082_987_01, 0.028_485_596, 0.016_174_957]);
}
