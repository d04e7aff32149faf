//! Scales the analytic times of a layer's ops so that its whole forward pass on one device takes what was measured.
//!
//! The scale of a kind of layer depends on how many samples a device computes at once, because small batches use it worse than
//! the roofline says. An op that is cut over tensor-parallel ranks counts as one of fewer samples, by its share of the whole op's
//! work. Backward passes are scaled like their forward pass.

use super::compute;
use crate::batch::BatchFactors;
use crate::segment::Segment;
use galvatron_ir::cluster::DeviceSpec;
use galvatron_ir::module::Program;
use galvatron_ir::op::Op;
use galvatron_ir::profile::{ForwardTime, MAX_NS, Profile};
use galvatron_ir::types::{DType, TensorType};
use galvatron_ir::{Module, NodeId, ValueId};
use std::collections::BTreeSet;

/// Scales of the segments of one program.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// Samples of one step.
    batch: u64,
    /// For each segment its scale, if it has one.
    of_segment: Vec<Option<usize>>,
    scales: Vec<Scale>,
    /// What of the profile does not fit the model.
    pub warnings: Vec<String>,
}

/// Measured over analytic time by the number of samples.
#[derive(Clone, Debug)]
pub struct Scale {
    /// What is scaled, for reports.
    pub name: String,
    /// Samples on one device, ascending, and the ratio; at least one.
    pub points: Vec<(u64, f64)>,
}

impl Scale {
    /// The ratio at some samples: linear between the measured ones, constant beyond.
    fn at(&self, samples: f64) -> f64 {
        let above = self.points.partition_point(|&(n, _)| n as f64 <= samples);
        let Some(&(low, low_ratio)) = above.checked_sub(1).and_then(|i| self.points.get(i)) else {
            return self.points[0].1;
        };
        let Some(&(high, high_ratio)) = self.points.get(above) else { return low_ratio };
        low_ratio + (high_ratio - low_ratio) * (samples - low as f64) / (high - low) as f64
    }
}

/// Operands and results of an op.
pub type Types<'a> = (&'a [&'a TensorType], &'a [&'a TensorType]);

impl Calibration {
    /// The scales of a program's segments; the module is at level `training` and computes in `compute`.
    pub fn new(device: &DeviceSpec, profile: &Profile, compute: DType, module: &Module, segments: &[Segment]) -> Self {
        let (batch, sequence) = module.train.as_ref().map_or((1, 1), |t| (t.global_batch.max(1), t.sequence));
        let mut made = Calibration { batch, of_segment: vec![None; segments.len()], ..Calibration::default() };
        if let Some(other) = profile.compute.as_ref().filter(|name| **name != compute.to_string()) {
            made.warnings.push(format!("the profile has times of layers in {other}; this model computes in {compute}"));
            return made;
        }
        let forward: Vec<NodeId> = segments.iter().flat_map(|s| s.nodes.iter().copied()).collect();
        let alone = Alone::new(device, &module.program, &forward);
        let kinds: BTreeSet<usize> = segments.iter().filter(|s| s.is_layer).map(|s| s.kind).collect();
        let n_measured = profile.layers.iter().filter(|l| !l.forward.is_empty()).count();
        if n_measured > 0 && n_measured != kinds.len() {
            let n = kinds.len();
            made.warnings.push(format!("the profile has times of {n_measured} kinds of layers, the model has {n}"));
        }
        for (i, (kind, layer)) in kinds.iter().zip(&profile.layers).enumerate() {
            let of_kind = |s: &Segment| s.is_layer && s.kind == *kind;
            made.add(&alone, &layer.forward, &format!("layers of kind {i}"), sequence, segments, &of_kind);
        }
        if !kinds.is_empty() {
            let outside = |s: &Segment| !s.is_layer;
            made.add(&alone, &profile.outside.forward, "embedding and head", sequence, segments, &outside);
        }
        made
    }

    /// Scales the segments that are of a kind: the mean of layers is what was measured, the sum of what is outside.
    fn add(
        &mut self,
        alone: &Alone<'_>,
        measured: &[ForwardTime],
        name: &str,
        sequence: u64,
        segments: &[Segment],
        of_kind: &dyn Fn(&Segment) -> bool,
    ) {
        let times = match of_sequence(measured, sequence) {
            Ok(times) => times,
            Err(known) => {
                let what = format!("the profile has no time of {name} for sequences of {sequence}");
                self.warnings.push(format!("{what}, only for {known}; their times are analytic"));
                return;
            }
        };
        let chosen: Vec<usize> = (0..segments.len()).filter(|&i| of_kind(&segments[i])).collect();
        let n_layers = chosen.iter().filter(|&&i| segments[i].is_layer).count();
        let n_measured = n_layers.max(1) as f64;
        let point = |time: &ForwardTime| {
            let samples = time.batch_samples;
            let part = (samples, self.batch);
            let analytic: u64 = chosen.iter().map(|&i| alone.forward_ns(&segments[i].nodes, part)).sum();
            let ns = time.time_ns_per_sample as f64 * samples as f64 * n_measured;
            (analytic > 0).then(|| (samples, ns / analytic as f64))
        };
        let points: Vec<(u64, f64)> = times.iter().filter_map(point).collect();
        if points.is_empty() {
            return;
        }
        for &i in &chosen {
            self.of_segment[i] = Some(self.scales.len());
        }
        self.scales.push(Scale { name: name.into(), points });
    }

    /// Nanoseconds of an op of a segment, from its analytic time on local types and its types in the whole program.
    pub fn scaled(&self, ns: u64, segment: Option<u32>, op: &Op, whole: Types<'_>, local: Types<'_>) -> u64 {
        match self.of(segment) {
            Some(scale) if ns > 0 && !belongs_to_step(op) => {
                let share = amount(op, local) / amount(op, whole).max(1.0);
                ((ns as f64 * scale.at(self.batch as f64 * share)) as u64).min(MAX_NS)
            }
            _ => ns,
        }
    }

    /// The scale of a segment.
    pub fn of(&self, segment: Option<u32>) -> Option<&Scale> {
        let scale = (*self.of_segment.get(segment? as usize)?)?;
        self.scales.get(scale)
    }

    /// All scales.
    pub fn scales(&self) -> &[Scale] {
        &self.scales
    }
}

/// What a step does once with weights and gradients, which no forward time says anything about.
fn belongs_to_step(op: &Op) -> bool {
    matches!(op, Op::Sgd(_) | Op::Adamw(_) | Op::SumSquares(_) | Op::Accumulate(_) | Op::Update(_))
}

/// Operations of an op, or bytes if it has none.
fn amount(op: &Op, (args, results): Types<'_>) -> f64 {
    let work = op.work(args, results);
    let flops = work.matmul_flops + work.flops;
    if flops > 0 { flops as f64 } else { work.bytes as f64 }
}

/// Times at one sequence length by ascending batch; else the lengths that were measured, in words. A model without sequences has the
/// only length that was measured.
fn of_sequence(measured: &[ForwardTime], sequence: u64) -> Result<Vec<ForwardTime>, String> {
    let known: BTreeSet<u64> = measured.iter().map(|t| t.sequence_tokens).collect();
    let only = known.first().copied().filter(|_| known.len() == 1 && sequence <= 1);
    let wanted = only.unwrap_or(sequence);
    if !known.is_empty() && !known.contains(&wanted) {
        return Err(known.iter().map(u64::to_string).collect::<Vec<_>>().join(", "));
    }
    let mut times: Vec<ForwardTime> = measured.iter().copied().filter(|t| t.sequence_tokens == wanted).collect();
    times.sort_by_key(|t| t.batch_samples);
    Ok(times)
}

/// A program on one device that computes a part of its batch.
struct Alone<'a> {
    device: &'a DeviceSpec,
    program: &'a Program,
    batch: BatchFactors,
    /// Forward nodes that run once a step and not with each micro-batch: counts of labels, the mean loss.
    once: BTreeSet<NodeId>,
}

impl<'a> Alone<'a> {
    fn new(device: &'a DeviceSpec, program: &'a Program, forward: &[NodeId]) -> Alone<'a> {
        let batch = BatchFactors::of(program, forward);
        let graph = &program.graph;
        let has_gradient: BTreeSet<ValueId> = graph.value_ids().filter_map(|v| graph.value(v).grad_of).collect();
        let mut once = BTreeSet::new();
        for &id in forward {
            let node = graph.node(id);
            let is_of_batch = |p: &NodeId| batch.factors.contains_key(p) || once.contains(p);
            let reads_batch = node.args.iter().filter_map(|&a| graph.producer(a)).any(|p| is_of_batch(&p));
            let counts = |r: &ValueId| !batch.dims.contains_key(r) && !has_gradient.contains(r);
            let is_once = match batch.factors.contains_key(&id) {
                true => node.results.iter().all(counts),
                false => reads_batch,
            };
            if is_once {
                once.insert(id);
            }
        }
        Alone { device, program, batch, once }
    }

    /// Analytic forward time of some nodes on `samples` of `batch` samples.
    fn forward_ns(&self, nodes: &[NodeId], part: (u64, u64)) -> u64 {
        let types = |values: &[ValueId]| -> Vec<TensorType> { values.iter().map(|&v| self.part_of(v, part)).collect() };
        let ns = |&id: &NodeId| {
            let node = self.program.graph.node(id);
            let (args, results) = (types(&node.args), types(&node.results));
            let (args, results): (Vec<_>, Vec<_>) = (args.iter().collect(), results.iter().collect());
            compute::op_ns(self.device, &node.op, &args, &results)
        };
        nodes.iter().filter(|node| !self.once.contains(node)).map(ns).sum()
    }

    /// The type of a value that has `samples` of `batch` samples.
    fn part_of(&self, value: ValueId, (samples, batch): (u64, u64)) -> TensorType {
        let ty = &self.program.graph.value(value).ty;
        let mut shape = ty.shape.clone();
        if let Some(&dim) = self.batch.dims.get(&value).filter(|&&dim| shape[dim].is_multiple_of(batch)) {
            shape[dim] = shape[dim] / batch * samples;
        }
        ty.with_shape(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(sequence_tokens: u64, batch_samples: u64) -> ForwardTime {
        ForwardTime { sequence_tokens, batch_samples, time_ns_per_sample: 1 }
    }

    #[test]
    fn scales_are_linear_between_batches_and_constant_beyond() {
        let scale = Scale { name: String::new(), points: vec![(2, 1.0), (4, 3.0)] };
        assert_eq!([0.5, 2.0, 3.0, 4.0, 9.0].map(|samples| scale.at(samples)), [1.0, 1.0, 2.0, 3.0, 3.0]);
    }

    #[test]
    fn times_of_another_sequence_do_not_count() {
        let measured = [time(8, 4), time(8, 2), time(16, 1)];
        assert_eq!(of_sequence(&measured, 8), Ok(vec![time(8, 2), time(8, 4)]));
        assert_eq!(of_sequence(&measured, 4), Err("8, 16".into()));
        assert_eq!(of_sequence(&measured[..1], 1), Ok(vec![time(8, 4)]));
        assert_eq!(of_sequence(&[], 4), Ok(Vec::new()));
    }
}
