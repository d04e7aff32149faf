//! From the ranks' shards back to whole stored tensors: trained parameters, optimizer states, gradients.

use std::collections::BTreeMap;
use std::sync::Mutex;

use galvatron_ir::module::Module;

use super::shard::for_each_run;
use super::view;
use super::weights::WeightSource;
use crate::device::{BufferSpec, Device};
use crate::fault::RunFault;

/// A tensor in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// Elements, row-major.
    pub data: Vec<f32>,
}

/// Tensors by the name of their initializer, in its stored shape.
pub type Tensors = BTreeMap<String, HostTensor>;

/// The outcome of training, independent of the plan: it can be saved and resumed under any other plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trained {
    /// Parameters and frozen buffers by initializer.
    pub parameters: Tensors,
    /// Optimizer states by initializer and kind: `fc.weight.m`.
    pub states: Tensors,
}

/// Whole values under assembly; every rank writes the parts of which it is the first holder.
pub(super) struct Gather {
    entries: Vec<Entry>,
}

/// A weight's value, state or gradient.
struct Entry {
    weight: usize,
    kind: Option<String>,
    bytes: Mutex<Vec<u8>>,
}

impl Gather {
    /// Room for one f32 value a (weight, kind).
    pub(super) fn new(module: &Module, subjects: impl Iterator<Item = (usize, Option<String>)>) -> Gather {
        let entry = |(weight, kind): (usize, Option<String>)| {
            let value = module.program.weights[weight].value;
            let bytes = module.program.graph.value(value).ty.elements() as usize * size_of::<f32>();
            Entry { weight, kind, bytes: Mutex::new(vec![0; bytes]) }
        };
        Gather { entries: subjects.map(entry).collect() }
    }

    /// Copies a rank's part of entry `index`.
    pub(super) fn write(&self, index: usize, device: &dyn Device, buffer: &BufferSpec) {
        self.write_runs(index, buffer, |from, out| buffer.read(device, from as u64, out));
    }

    /// Copies a part of entry `index` that another process has sent.
    pub(super) fn write_bytes(&self, index: usize, buffer: &BufferSpec, part: &[u8]) {
        self.write_runs(index, buffer, |from, out| out.copy_from_slice(&part[from..from + out.len()]));
    }

    /// Calls `read(byte of the part, place in the whole)` for the runs of a part.
    fn write_runs(&self, index: usize, buffer: &BufferSpec, read: impl Fn(usize, &mut [u8])) {
        let mut bytes = self.entries[index].bytes.lock().expect("invariant: writers do not panic");
        for_each_run(&buffer.global_shape, &buffer.first, &buffer.ty.shape, |from, to, n| {
            read(4 * from, &mut bytes[4 * to..4 * (to + n)]);
        });
    }

    /// The stored tensors of all entries without a kind, and of those with one. What no weight is a view of stays as
    /// `rest` has it, or zero.
    ///
    /// # Errors
    /// When `rest` cannot be read.
    pub(super) fn assemble(&self, module: &Module, rest: Option<&dyn WeightSource>) -> Result<Trained, RunFault> {
        let mut trained = Trained::default();
        for entry in &self.entries {
            let weight = &module.program.weights[entry.weight];
            let initializer = &module.initializers[weight.initializer];
            let tensors = if entry.kind.is_some() { &mut trained.states } else { &mut trained.parameters };
            let name = match &entry.kind {
                None => initializer.name.clone(),
                Some(kind) => format!("{}.{kind}", initializer.name),
            };
            if !tensors.contains_key(&name) {
                let covered = entry.kind.is_some() || self.is_covered(module, weight.initializer);
                let data = match rest {
                    Some(rest) if !covered => rest.read(initializer)?,
                    _ => vec![0.0; initializer.ty.elements() as usize],
                };
                tensors.insert(name.clone(), HostTensor { shape: initializer.ty.shape.clone(), data });
            }
            let stored = tensors.get_mut(&name).expect("invariant: inserted above");
            view::write_back(&entry.elements(), &mut stored.data, &initializer.ty.shape, &weight.view);
        }
        let frozen =
            module.program.weights.iter().filter(|w| !w.trainable).map(|w| &module.initializers[w.initializer]);
        for initializer in frozen.filter(|_| !self.entries.is_empty()) {
            if let (Some(rest), false) = (rest, trained.parameters.contains_key(&initializer.name)) {
                let tensor = HostTensor { shape: initializer.ty.shape.clone(), data: rest.read(initializer)? };
                trained.parameters.insert(initializer.name.clone(), tensor);
            }
        }
        Ok(trained)
    }

    /// Whether the entries without a kind show all elements of the stored tensor.
    fn is_covered(&self, module: &Module, initializer: usize) -> bool {
        let stored = &module.initializers[initializer].ty;
        let entries = self.entries.iter().filter(|e| e.kind.is_none()).map(|e| &module.program.weights[e.weight]);
        let shown = entries.filter(|w| w.initializer == initializer).map(|w| view::n_shown(&stored.shape, &w.view));
        shown.sum::<u64>() >= stored.elements()
    }
}

impl Entry {
    fn elements(&self) -> Vec<f32> {
        let bytes = self.bytes.lock().expect("invariant: writers do not panic");
        bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_ne_bytes(*chunk)).collect()
    }
}
