//! Training data as the engine wants it, and the `load` of a rank's part of a micro-batch.

use galvatron_ir::ValueId;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::op::mem::Load as LoadOp;

use super::layout::Layout;
use super::shard::for_each_run;
use crate::device::{Device, Span};
use crate::fault::RunFault;

/// Where samples come from: any sample of any array, again and again, from any thread.
pub trait DataSource: Sync {
    /// Bytes of one sample of an array; `None` if there is no such array.
    fn sample_bytes(&self, input: &str) -> Option<u64>;

    /// Writes a sample of an array, in the element type of the plan's input and native byte order. Samples are numbered
    /// over the whole training: step s with a batch of b has the samples from (s - 1) b on.
    ///
    /// # Errors
    /// Why the sample cannot be read.
    fn fill(&self, input: &str, sample: u64, out: &mut [u8]) -> Result<(), String>;
}

/// A prepared `load`.
pub(super) struct Load {
    input: String,
    at: Span,
    /// Samples of one step.
    global_batch: u64,
    /// For each micro-batch the rank's first sample in the step.
    first_rows: Vec<u64>,
    row_bytes: usize,
    part: Option<RowPart>,
}

/// The part of a sample that the rank keeps.
struct RowPart {
    /// (byte in the part, byte in the sample, bytes).
    runs: Vec<(usize, usize, usize)>,
    /// A whole sample.
    row: Vec<u8>,
}

impl Load {
    /// Prepares the node whose result is `value`.
    pub(super) fn new(
        op: &LoadOp,
        value: ValueId,
        layout: &Layout<'_>,
        data: &dyn DataSource,
        global_batch: u64,
    ) -> Result<Load, RunFault> {
        let buffer = layout.buffer(value)?;
        let fault = |what: String| RunFault::Data { input: op.input.clone(), what };
        let Some((&batch, sample_shape)) = op.ty.shape.split_first() else {
            return Err(fault("a scalar has no batch dimension".into()));
        };
        if batch != global_batch {
            return Err(fault(format!("the plan loads {batch} samples a step, the batch has {global_batch}")));
        }
        let element = op.ty.dtype.bytes();
        let sample_bytes = sample_shape.iter().product::<u64>() * element;
        match data.sample_bytes(&op.input) {
            Some(found) if found == sample_bytes => {}
            Some(found) => return Err(fault(format!("a sample has {found} bytes, the plan wants {sample_bytes}"))),
            None => return Err(fault("the data has no such array".into())),
        }
        let sharding = layout.sharding(value);
        let first_row = |mb: u64| {
            let mut at = layout.coordinates.clone();
            at[Mesh::MB.index()] = mb;
            layout.mesh.index_along(&sharding.dims[0], &at) * buffer.ty.shape[0]
        };
        let part = (buffer.ty.shape[1..] != *sample_shape).then(|| {
            let (mut runs, element) = (Vec::new(), element as usize);
            for_each_run(sample_shape, &buffer.first[1..], &buffer.ty.shape[1..], |to, from, n| {
                runs.push((to * element, from * element, n * element));
            });
            RowPart { runs, row: vec![0; sample_bytes as usize] }
        });
        Ok(Load {
            input: op.input.clone(),
            at: buffer.span(),
            global_batch,
            first_rows: (0..layout.mesh.micro_batches()).map(first_row).collect(),
            row_bytes: (buffer.ty.bytes() / buffer.ty.shape[0].max(1)) as usize,
            part,
        })
    }

    /// Reads the rank's part of a micro-batch of a step (from 1).
    pub(super) fn run(
        &mut self,
        device: &dyn Device,
        data: &dyn DataSource,
        step: u64,
        micro_batch: usize,
    ) -> Result<(), String> {
        let first = (step - 1) * self.global_batch + self.first_rows[micro_batch];
        let (input, row_bytes, part) = (&self.input, self.row_bytes.max(1), &mut self.part);
        device.fill(self.at, &mut |out| {
            for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                let sample = first + i as u64;
                let fault = |what: String| format!("sample {sample} of `{input}`: {what}");
                match part {
                    None => data.fill(input, sample, out).map_err(fault)?,
                    Some(part) => {
                        data.fill(input, sample, &mut part.row).map_err(fault)?;
                        part.runs.iter().for_each(|&(to, from, n)| {
                            out[to..to + n].copy_from_slice(&part.row[from..from + n]);
                        });
                    }
                }
            }
            Ok(())
        })
    }
}
