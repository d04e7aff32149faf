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
        let name = pytorch_name(&initializer.name, manifest);
        let formula = &manifest["reference"]["parameters"][&name]["formula"];
        let (scale, shift) = (formula[0].as_f64().expect("a scale"), formula[1].as_f64().expect("a shift"));
        file.seek(SeekFrom::Start(initializer.offset))?;
        for element in formula::elements(&name, initializer.ty.elements(), scale, shift) {
            file.write_all(&element.to_le_bytes())?;
        }
    }
    file.flush()
}

/// The name of an initializer in PyTorch; of tied ones that under which the manifest has it.
pub fn pytorch_name(initializer: &str, manifest: &Value) -> String {
    let name = initializer.strip_prefix("model.").unwrap_or(initializer);
    let groups = manifest["tied"].as_array().expect("the manifest lists tied parameters");
    let is_named = |group: &&Value| group.as_array().is_some_and(|names| names.iter().any(|n| n == name));
    let tied = groups.iter().find(is_named).and_then(Value::as_array);
    let mut names = std::iter::once(name).chain(tied.into_iter().flatten().filter_map(Value::as_str));
    let is_known = |name: &&str| manifest["reference"]["parameters"].get(name).is_some();
    names.find(is_known).unwrap_or_else(|| panic!("`{name}` is no parameter")).to_string()
}
