//! The data that a plan reads, from a data set on disk.

use crate::data::{ArrayId, ArraySpec, DataSpec, Dataset, ElementType};
use galvatron_backends::exec::DataSource;
use galvatron_ir::module::TrainInfo;
use galvatron_ir::types::DType;
use galvatron_ir::{Checked, Diagnostic, Module};
use std::collections::BTreeMap;
use std::path::Path;

/// A data set, by the names of the plan's inputs.
pub struct PlanData {
    dataset: Dataset,
    arrays: BTreeMap<String, (ArrayId, u64)>,
}

impl PlanData {
    /// Opens the data for a plan.
    ///
    /// # Errors
    /// Arrays that are missing or of another type or shape.
    pub fn open(path: &Path, module: &Module) -> Checked<PlanData> {
        let Some(train) = &module.train else {
            return Err(vec![Diagnostic::new("plan-level", "the file is no plan: it does not say how to train")]);
        };
        let spec = data_spec(module, train)?;
        let dataset = Dataset::open(path, &spec)?;
        let mut arrays = BTreeMap::new();
        for array in dataset.arrays() {
            if let Some(id) = dataset.array(&array.name) {
                arrays.insert(array.name.clone(), (id, array.sample_bytes() as u64));
            }
        }
        Ok(PlanData { dataset, arrays })
    }
}

fn data_spec(module: &Module, train: &TrainInfo) -> Checked<DataSpec> {
    let (mut inputs, mut labels) = (Vec::new(), None);
    for input in &module.program.inputs {
        let ty = &module.program.graph.value(input.value).ty;
        let dtype = match ty.dtype {
            DType::F32 => ElementType::F32,
            DType::I64 => ElementType::I64,
            other => {
                let message = format!("input `{}` has element type {other}", input.name);
                return Err(vec![Diagnostic::new("data-array", message).help("inputs are f32 or i64")]);
            }
        };
        let sample_shape = ty.shape.iter().skip(1).map(|&d| d as usize).collect();
        let array = ArraySpec { name: input.name.clone(), dtype, sample_shape };
        match input.name == train.labels {
            true => labels = Some(array),
            false => inputs.push(array),
        }
    }
    Ok(DataSpec {
        inputs,
        labels,
        shift: train.shift,
        ignore_index: train.ignore_index,
        seed: train.seed,
        shuffle: train.shuffle,
    })
}

impl DataSource for PlanData {
    fn sample_bytes(&self, input: &str) -> Option<u64> {
        self.arrays.get(input).map(|(_, bytes)| *bytes)
    }

    fn fill(&self, input: &str, sample: u64, out: &mut [u8]) -> Result<(), String> {
        let (id, _) = self.arrays.get(input).ok_or_else(|| format!("there is no array `{input}`"))?;
        self.dataset.fill(*id, sample, out);
        Ok(())
    }
}
