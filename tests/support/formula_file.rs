//! A file of weights that are computed by the formula.

use crate::formula;
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
        let (name, scale, shift) = formula_of(name, manifest);
        file.seek(SeekFrom::Start(initializer.offset))?;
        for element in formula::elements(&name, initializer.ty.elements(), scale, shift) {
            file.write_all(&element.to_le_bytes())?;
        }
    }
    file.flush()
}

/// The name under which a parameter is hashed, and the scale and shift of its elements.
fn formula_of(name: &str, manifest: &Value) -> (String, f64, f64) {
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
