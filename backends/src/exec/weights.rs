//! Initial parameters and optimizer states: from stored tensors, through their views, to the ranks' shards.

use std::collections::BTreeSet;

use galvatron_ir::module::{Initializer, MASTER, Module, Weight};
use galvatron_ir::plan::ResidentRole;
use galvatron_ir::types::DType;

use super::layout::Layout;
use super::shard::for_each_run;
use super::view;
use crate::device::{BufferSpec, Device};
use crate::fault::RunFault;
use galvatron_ir::types::bf16;

/// Where stored tensors come from.
pub trait WeightSource: Sync {
    /// The elements of a stored tensor, row-major in its stored shape.
    ///
    /// # Errors
    /// [`RunFault::Weights`] when it cannot be read.
    fn read(&self, initializer: &Initializer) -> Result<Vec<f32>, RunFault>;

    /// An optimizer state (`m`, `v`, `momentum`) in the shape of the stored tensor, when a run is resumed; `None` is zeros.
    ///
    /// # Errors
    /// [`RunFault::Weights`] when it cannot be read.
    fn read_state(&self, initializer: &Initializer, kind: &str) -> Result<Option<Vec<f32>>, RunFault> {
        let _ = (initializer, kind);
        Ok(None)
    }
}

/// A resident that is filled before the first step and collected after the last: a weight's parameter or one of its states.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// Index of the chunk.
    pub(super) chunk: usize,
    /// Index of the resident in the chunk.
    pub(super) resident: usize,
    /// Index of the weight in the program.
    pub(super) weight: usize,
    /// The state's kind; `None` for the parameter itself and its master copy.
    pub(super) kind: Option<String>,
    /// Whether it is what the weight is after training: not a bf16 parameter.
    pub(super) is_collected: bool,
}

/// The parameters and states among the residents of all chunks.
pub(super) fn stored_residents(module: &Module) -> Result<Vec<Stored>, RunFault> {
    let program = &module.program;
    let mut stored = Vec::new();
    let residents = module
        .chunks
        .iter()
        .enumerate()
        .flat_map(|(c, chunk)| chunk.residents.iter().enumerate().map(move |(i, resident)| (c, i, resident)));
    for (chunk, resident, declared) in residents {
        let value = module.chunks[chunk].graph.value(declared.value);
        let state = program.states.iter().find(|s| Some(s.value) == value.of);
        let (weight, kind) = match declared.role {
            ResidentRole::Accumulator => continue,
            ResidentRole::Parameter => (value.of, None),
            ResidentRole::State => {
                (state.map(|s| s.weight), state.map(|s| s.kind.clone()).filter(|kind| kind != MASTER))
            }
        };
        let is_collected = value.ty.dtype == DType::F32;
        let weight = program.weights.iter().position(|w| Some(w.value) == weight);
        let weight = weight.ok_or_else(|| RunFault::Plan(format!("resident `%{}` is of no weight", value.name)))?;
        stored.push(Stored { chunk, resident, weight, kind, is_collected });
    }
    Ok(stored)
}

/// Those that are collected, each from the first chunk that has it.
pub(super) fn collected(stored: Vec<Stored>) -> Vec<Stored> {
    let mut known = BTreeSet::new();
    stored.into_iter().filter(|s| s.is_collected && known.insert((s.weight, s.kind.clone()))).collect()
}

/// Fills the parameters and states of some ranks. Each stored tensor is read once for each chunk that uses it here.
pub(super) fn upload(
    module: &Module,
    ranks: &[(usize, &dyn Device)],
    weights: &dyn WeightSource,
) -> Result<(), RunFault> {
    for stored in stored_residents(module)? {
        let hosts: Vec<_> = ranks
            .iter()
            .filter_map(|&(rank, device)| Some((Layout::hosted(module, stored.chunk, rank)?, device)))
            .collect();
        if hosts.is_empty() {
            continue;
        }
        let weight = &module.program.weights[stored.weight];
        let initializer = &module.initializers[weight.initializer];
        let data = match &stored.kind {
            None => Some(weights.read(initializer)?),
            Some(kind) => weights.read_state(initializer, kind)?,
        };
        let Some(data) = data else { continue };
        let (data, shape) = viewed(data, initializer, weight)?;
        for (layout, device) in &hosts {
            let buffer = layout.buffer(layout.chunk.residents[stored.resident].value)?;
            if buffer.global_shape != shape {
                let what = format!("the plan wants shape {:?}, its view has {shape:?}", buffer.global_shape);
                return Err(RunFault::Weights { initializer: initializer.name.clone(), what });
            }
            write_shard(*device, &buffer, &data);
        }
    }
    Ok(())
}

fn viewed(data: Vec<f32>, initializer: &Initializer, weight: &Weight) -> Result<(Vec<f32>, Vec<u64>), RunFault> {
    let fault = |what: String| RunFault::Weights { initializer: initializer.name.clone(), what };
    if data.len() as u64 != initializer.ty.elements() {
        return Err(fault(format!("found {} elements, expected {}", data.len(), initializer.ty)));
    }
    view::apply(data, &initializer.ty.shape, &weight.view).map_err(fault)
}

/// Writes a rank's part of a global tensor.
fn write_shard(device: &dyn Device, buffer: &BufferSpec, data: &[f32]) {
    let element = buffer.ty.dtype.bytes() as usize;
    let written = buffer.fill(device, &mut |out| {
        for_each_run(&buffer.global_shape, &buffer.first, &buffer.ty.shape, |to, from, n| {
            encode(buffer.ty.dtype, &data[from..from + n], &mut out[to * element..(to + n) * element]);
        });
        Ok(())
    });
    written.expect("invariant: encoding does not fail");
}

/// Elements in the bytes of an element type; bf16 is rounded to nearest, ties to even.
fn encode(dtype: DType, data: &[f32], out: &mut [u8]) {
    let pairs = |n: usize, out| data.iter().zip(<[u8]>::chunks_exact_mut(out, n));
    match dtype {
        DType::F32 => pairs(4, out).for_each(|(v, out)| out.copy_from_slice(&v.to_ne_bytes())),
        DType::Bf16 => pairs(2, out).for_each(|(v, out)| out.copy_from_slice(&bf16::round(*v).to_ne_bytes())),
        DType::I64 => pairs(8, out).for_each(|(v, out)| out.copy_from_slice(&(*v as i64).to_ne_bytes())),
        DType::Bool => pairs(1, out).for_each(|(v, out)| out[0] = u8::from(*v != 0.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_encoded_by_type() {
        let mut out = [0; 16];
        encode(DType::I64, &[-2.0, 3.0], &mut out);
        assert_eq!(out[..8], (-2i64).to_ne_bytes());
        encode(DType::Bf16, &[1.0], &mut out[..2]);
        assert_eq!(out[..2], 0x3f80u16.to_ne_bytes());
    }
}
