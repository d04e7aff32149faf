//! The data of a fixture as a file.

use crate::fixture::Fixture;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the batches of the reference run, one after the other.
pub fn write(fixture: &Fixture, path: &Path) {
    let reference = SafeTensors::deserialize(&fixture.reference).unwrap();
    let mut arrays: BTreeMap<String, (Vec<TensorView<'_>>, Vec<u8>)> = BTreeMap::new();
    for batch in 0..4 {
        let prefix = format!("batch{batch}.");
        for (name, tensor) in reference.iter().filter(|(name, _)| name.starts_with(&prefix)) {
            let (batches, bytes) = arrays.entry(name[prefix.len()..].to_string()).or_default();
            bytes.extend(tensor.data());
            batches.push(tensor);
        }
    }
    let view = |(batches, bytes): &'_ (Vec<TensorView<'_>>, Vec<u8>)| {
        let mut shape = batches[0].shape().to_vec();
        shape[0] = batches.iter().map(|b| b.shape()[0]).sum();
        (batches[0].dtype(), shape, bytes.clone())
    };
    let whole: BTreeMap<&String, _> = arrays.iter().map(|(name, array)| (name, view(array))).collect();
    let views = whole
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}
