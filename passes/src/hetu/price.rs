//! Prices by the formulas of Hetu-Galvatron.
//!
//! They assume what its search assumes by default: 1F1B, bf16 with master copies (16 bytes a parameter), ZeRO-2 where
//! a layer is not ZeRO-3, gradients that are reduced beside the backward pass, Megatron's sequence parallelism, times by batch
//! and message times from the tables (`sp_space = tp+sp`). MB are 2²⁰ bytes, times ms inside and seconds outside; like the
//! original they divide MB by GB/s and call that ms. What was not measured has no price.

use galvatron_ir::profile::{Collective, ForwardTime, Layout, OutsideMemory, Profile, StageRole, linear_fit};

/// Bytes of a MB.
const MIB: f64 = (1u64 << 20) as f64;
/// MB that the framework needs on each rank.
pub(super) const CONTEXT_MB: f64 = 1024.0;
/// Memory above which a fifth is kept for the allocator, in MB.
const RESERVED_ABOVE_MB: f64 = 20.0 * 1024.0;

/// Which release's formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// v2.4.0.
    V240,
    /// The main branch of June 2026.
    Main,
}

/// How one layer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// Pipeline stages.
    pub pp: u32,
    /// Ranks that share a layer, by tensor parallelism or by Ulysses.
    pub tp: u32,
    /// Ranks that share the batch.
    pub dp: u32,
    /// Whether the tensor-parallel ranks are neighbours.
    pub is_consecutive: bool,
    /// ZeRO-3; otherwise ZeRO-2.
    pub zero3: bool,
    /// Whether the forward pass is computed again.
    pub recompute: bool,
    /// Ulysses in the place of tensor parallelism.
    pub ulysses: bool,
}

/// How embedding and head run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Ranks that share it.
    pub tp: u32,
    /// Whether they share the sequence instead.
    pub ulysses: bool,
    /// ZeRO-3; otherwise ZeRO-2.
    pub zero3: bool,
}

/// A whole plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Micro-batches.
    pub chunks: u32,
    /// Layers of each stage.
    pub division: Vec<usize>,
    /// Each layer.
    pub layers: Vec<Strategy>,
    /// Embedding and head.
    pub vocabulary: Vocabulary,
}

/// Time of one micro-batch in seconds, and MB by stage.
#[derive(Clone, Debug, Default)]
pub struct Price {
    /// Seconds on each stage that has some of it, with the reduction of gradients.
    pub with_sync_s: Vec<f64>,
    /// The same without it.
    pub without_sync_s: Vec<f64>,
    /// Parameters, gradients and optimizer states, by stage.
    pub states_mb: Vec<f64>,
    /// Activations that are alive, by stage.
    pub activations_mb: Vec<f64>,
}

/// Price of a plan.
#[derive(Clone, Debug)]
pub struct PlanPrice {
    /// Seconds of one step.
    pub step_s: f64,
    /// Samples a second.
    pub samples_per_s: f64,
    /// MB of each stage, without what is kept for the allocator.
    pub memory_mb: Vec<f64>,
}

/// The model, the machine and the training that plans are priced for.
#[derive(Clone, Copy, Debug)]
pub struct Costs<'p> {
    /// Which formulas.
    pub release: Release,
    /// What was measured.
    pub profile: &'p Profile,
    /// Ranks.
    pub world: u32,
    /// Layers of the whole model, all of one kind.
    pub n_layers: usize,
    /// Tokens of a sample.
    pub sequence: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Samples of a step.
    pub global_batch: u32,
}

impl Costs<'_> {
    /// Price of one layer in `chunks` micro-batches.
    pub fn layer(&self, s: Strategy, chunks: u32) -> Option<Price> {
        let layer = self.profile.layers.first()?;
        let memory = layer.memory.iter().find(|m| m.sequence_tokens == self.sequence)?;
        let parameters = memory.parameter_bytes as f64 / MIB / if s.ulysses { 1.0 } else { f64::from(s.tp) };
        let samples = f64::from(self.global_batch) / f64::from(chunks) / f64::from(s.dp);
        let shards = shards(s.tp, s.dp, s.ulysses);
        let forward = fit(&layer.forward, samples / f64::from(s.tp), self.sequence)?;
        let backward = forward * if s.recompute { 3.0 } else { 2.0 };
        // bf16 gradients: half of the f32 bytes, all-reduced.
        let counted = if self.release == Release::V240 { s.dp } else { shards };
        let gradients = f64::from(counted - 1) / f64::from(counted) * parameters;
        let per_mb = self.ms_per_mb(s.tp, shards, s.pp, s.ulysses, s.is_consecutive)?;
        let slowdown = self.profile.overlap_slowdown_ratio?;
        let gather = if s.zero3 { 0.5 * gradients * per_mb } else { 0.0 };
        let rest = forward + self.tensor_ms(&s, samples)? + gather + self.pipeline_ms(s.pp, samples)?;
        let total = |gradients: f64| (rest + self.backward_ms(&s, backward, gradients * per_mb, slowdown)) * 1e-3;
        let ranks = if s.recompute { 1 } else { s.tp };
        let bytes = match s.recompute {
            true => memory.recomputed_bytes_per_sample?,
            false => memory.activations.iter().find(|a| a.tensor_ranks == ranks)?.bytes_per_sample,
        };
        let kept = bytes as f64 / MIB * samples * f64::from(ranks) / f64::from(s.tp);
        let alive = |stage: u32| f64::from((s.pp - stage).min(chunks));
        let zero = if s.dp == 1 { 1.0 } else { zero_share(s.zero3, shards, chunks) };
        Some(Price {
            with_sync_s: vec![total(gradients)],
            without_sync_s: vec![total(0.0)],
            states_mb: vec![4.0 * parameters * zero; s.pp as usize],
            activations_mb: (0..s.pp).map(|stage| kept * alive(stage)).collect(),
        })
    }

    /// Backward pass and gradient reduction beside one another: while both run, both take k times longer.
    fn backward_ms(&self, s: &Strategy, backward: f64, reduction_ms: f64, k: f64) -> f64 {
        // Up to v2.4.0, where most ranks of a node are tensor-parallel, only half of the backward pass overlaps.
        let half = self.release == Release::V240 && s.dp > 1 && s.tp > 1 && s.tp >= s.tp * s.dp / 2;
        let (alone, beside) = if half { (backward / 2.0, backward / 2.0) } else { (0.0, backward) };
        let (reduction, computation) = (reduction_ms * k, beside * k);
        let both = match reduction > computation {
            true => computation + reduction_ms - computation / k,
            false => reduction + beside - reduction / k,
        };
        alone + both
    }

    /// Collectives of tensor parallelism or Ulysses, which overlap with nothing.
    fn tensor_ms(&self, s: &Strategy, samples: f64) -> Option<f64> {
        if s.tp == 1 {
            return Some(0.0);
        }
        let bytes = self.activation_bytes(samples);
        let once = match (s.ulysses, self.release) {
            (true, _) => 4.0 * self.message_ms(Collective::AllToAll, s.tp, bytes)?,
            (false, Release::V240) => 2.0 * self.message_ms(Collective::AllReduce, s.tp, bytes)?,
            (false, Release::Main) => 3.0 * self.message_ms(Collective::AllReduce, s.tp, bytes)?,
        };
        Some(if s.recompute { 1.5 * once } else { once })
    }

    /// Messages between stages, spread over all layers.
    fn pipeline_ms(&self, pp: u32, samples: f64) -> Option<f64> {
        if pp == 1 {
            return Some(0.0);
        }
        let link = self.profile.point_to_point.iter().find(|p| p.stages == pp)?;
        let messages_mb = 2.0 * f64::from(pp) * self.activation_bytes(samples) / MIB;
        Some(messages_mb / link.bandwidth_gbps / self.n_layers as f64)
    }

    /// Price of embedding and head, without what the framework needs.
    pub fn outside(&self, pp: u32, v: Vocabulary, chunks: u32) -> Option<Price> {
        let roles = if pp == 1 { vec![StageRole::Only] } else { vec![StageRole::First, StageRole::Last] };
        let dp = self.world / pp / v.tp;
        let shards = if v.ulysses { v.tp * dp } else { dp };
        let micro_batch = f64::from(self.global_batch) / f64::from(chunks);
        let samples = micro_batch / f64::from(dp);
        let computed = match self.release {
            Release::V240 => micro_batch / f64::from(self.world / pp),
            Release::Main => samples / f64::from(v.tp),
        };
        let forward = fit(&self.profile.outside.forward, computed, self.sequence)? / roles.len() as f64;
        let message = self.vocabulary_ms(v, if self.release == Release::V240 { computed } else { samples })?;
        let messages = message * if pp == 1 { 2.0 } else { 1.0 };
        let per_mb = self.ms_per_mb(v.tp, shards, pp, v.ulysses, true)?;
        let k = self.profile.overlap_slowdown_ratio?;
        let (forward_gathers, backward_moves) = if v.zero3 { (0.5, 1.0) } else { (0.0, 0.5) };
        let mut price = Price::default();
        for &role in &roles {
            let moved = f64::from(shards - 1) / f64::from(shards) * per_mb * self.moved_mb(role, v)?;
            let ms = |backward: f64| {
                beside(forward_gathers * moved, forward, k) + beside(backward * moved, 2.0 * forward, k) + messages
            };
            price.with_sync_s.push(ms(backward_moves) * 1e-3);
            price.without_sync_s.push(ms(backward_moves - 0.5) * 1e-3);
            let memory = self.outside_memory(role, v.tp)?;
            let states = self.outside_memory(role, if v.ulysses { 1 } else { v.tp })?.state_bytes as f64 / MIB;
            let is_whole = dp == 1 && self.release == Release::Main;
            let zero = if is_whole { 1.0 } else { zero_share(v.zero3, shards, chunks) };
            let alive = if role == StageRole::First { f64::from(pp.min(chunks)) } else { 1.0 };
            price.states_mb.push(states * zero);
            price.activations_mb.push(memory.activation_bytes_per_sample as f64 / MIB * samples * alive);
        }
        Some(spread(price, pp as usize))
    }

    /// MB of parameters or gradients of one stage's part that ZeRO moves.
    fn moved_mb(&self, role: StageRole, v: Vocabulary) -> Option<f64> {
        // v2.4.0 takes one of the two stages for both, and f32 for bf16.
        let role = match (self.release, role) {
            (Release::Main, _) | (_, StageRole::Only) => role,
            _ => {
                if v.ulysses {
                    StageRole::Last
                } else {
                    StageRole::First
                }
            }
        };
        let states = self.outside_memory(role, if v.ulysses { 1 } else { v.tp })?.state_bytes as f64 / MIB;
        Some(states / 4.0 / if self.release == Release::Main { 2.0 } else { 1.0 })
    }

    fn vocabulary_ms(&self, v: Vocabulary, samples: f64) -> Option<f64> {
        let bytes = self.activation_bytes(samples);
        match self.release {
            _ if v.tp == 1 || v.ulysses => Some(0.0),
            Release::Main => Some(self.message_ms(Collective::AllReduce, v.tp, bytes)? / 2.0),
            Release::V240 => Some(self.fitted_ms(Collective::AllReduce, v.tp, bytes)? / 2.0),
        }
    }

    /// Price of a plan.
    pub fn plan(&self, plan: &Plan) -> Option<PlanPrice> {
        let pp = plan.division.len() as u32;
        let max_tp = plan.layers.iter().map(|layer| layer.tp).max().unwrap_or(1);
        let outside = self.outside(pp, plan.vocabulary, plan.chunks)?;
        let (mut computed, mut reduced, mut memory_mb) = (Vec::new(), Vec::new(), Vec::new());
        let mut layers = plan.layers.iter();
        for (stage, &n) in plan.division.iter().enumerate() {
            let own = layers.by_ref().take(n).map(|&s| self.layer(s, plan.chunks));
            let prices = own.collect::<Option<Vec<Price>>>()?;
            let sum = |part: fn(&Price) -> f64| prices.iter().map(part).sum::<f64>();
            computed.push(sum(|p| p.without_sync_s[0]) + outside.without_sync_s[stage]);
            reduced.push(sum(|p| p.with_sync_s[0]));
            // Its search counts whole MB.
            let of = |p: &Price| (p.states_mb[stage] + p.activations_mb[stage]).ceil();
            let fixed = (outside.states_mb[stage] + outside.activations_mb[stage] + CONTEXT_MB).ceil();
            memory_mb.push(prices.iter().map(of).sum::<f64>() + fixed + self.gathered_mb(pp, max_tp, plan.chunks));
        }
        let step_s = step_s(&computed, &reduced, f64::from(plan.chunks));
        Some(PlanPrice { step_s, samples_per_s: f64::from(self.global_batch) / step_s, memory_mb })
    }

    /// What sequence parallelism gathers, MB, where a layer is tensor-parallel.
    pub(super) fn gathered_mb(&self, pp: u32, max_tp: u32, chunks: u32) -> f64 {
        let per_rank = f64::from(self.global_batch) / f64::from(chunks) / f64::from(self.world / pp);
        if max_tp == 1 { 0.0 } else { self.activation_bytes(per_rank) / MIB * f64::from(max_tp) }
    }

    /// Bytes of the residual stream of some samples in bf16.
    pub(super) fn activation_bytes(&self, samples: f64) -> f64 {
        samples * self.sequence as f64 * self.hidden as f64 * 2.0
    }

    fn outside_memory(&self, stage: StageRole, tensor_ranks: u32) -> Option<&OutsideMemory> {
        let is_it =
            |m: &&OutsideMemory| (m.sequence_tokens, m.stage, m.tensor_ranks) == (self.sequence, stage, tensor_ranks);
        self.profile.outside.memory.iter().find(is_it)
    }

    /// ms for each MB of an all-reduce over the ranks that share parameters.
    fn ms_per_mb(&self, tp: u32, shards: u32, pp: u32, ulysses: bool, tensor_is_consecutive: bool) -> Option<f64> {
        if shards == 1 {
            return Some(0.0);
        }
        let is_consecutive = shards == self.world / pp || tp == 1 || ulysses || !tensor_is_consecutive;
        let layout = if is_consecutive { Layout::Consecutive } else { Layout::Strided };
        let is_it = |b: &&galvatron_ir::profile::CollectiveBandwidth| (b.ranks, b.layout) == (shards, layout);
        Some(1.0 / self.profile.bandwidths.iter().find(is_it)?.bus_bandwidth_gbps)
    }

    /// ms of a message, as measured or else on the line through what was measured.
    pub(super) fn message_ms(&self, kind: Collective, ranks: u32, bytes: f64) -> Option<f64> {
        let exact = self.times(kind, ranks)?.find(|(size, _)| *size == bytes);
        exact.map_or_else(|| self.fitted_ms(kind, ranks, bytes), |(_, ms)| Some(ms))
    }

    fn fitted_ms(&self, kind: Collective, ranks: u32, bytes: f64) -> Option<f64> {
        let (slope, latency) = linear_fit(self.times(kind, ranks)?);
        Some(slope * bytes + latency)
    }

    /// Bytes and ms of the measured messages.
    fn times(&self, kind: Collective, ranks: u32) -> Option<impl Iterator<Item = (f64, f64)> + Clone> {
        let found = self.profile.collectives.iter().find(|c| (c.kind, c.ranks) == (kind, ranks))?;
        Some(found.times.iter().map(|t| (t.bytes as f64, t.time_ns as f64 * 1e-6)))
    }
}

/// Ranks over which ZeRO shards.
fn shards(tp: u32, dp: u32, ulysses: bool) -> u32 {
    if ulysses && dp > 1 { tp * dp } else { dp }
}

/// ms of a batch on the line through the measured ones.
fn fit(times: &[ForwardTime], samples: f64, sequence: u64) -> Option<f64> {
    let of_sequence = times.iter().filter(|t| t.sequence_tokens == sequence);
    of_sequence.clone().next()?;
    let (slope, start) = linear_fit(of_sequence.map(|t| {
        let samples = t.batch_samples as f64;
        (samples, samples * t.time_ns_per_sample as f64 * 1e-6)
    }));
    Some(slope * samples + start)
}

/// Time of communication beside computation, which it makes `k` times longer.
fn beside(communication: f64, computation: f64, k: f64) -> f64 {
    if computation * k > communication { communication + computation - communication / k } else { communication }
}

/// Share of the 16 bytes a parameter that a rank holds.
fn zero_share(zero3: bool, shards: u32, chunks: u32) -> f64 {
    let part = 1.0 / f64::from(shards) + 0.003;
    match (zero3, chunks) {
        (true, 1) => part,
        (true, _) | (false, 1) => 7.0 / 8.0 * part + 1.0 / 8.0,
        (false, _) => 6.0 / 8.0 * part + 2.0 / 8.0,
    }
}

/// What stands for the first and the last stage, on all of them.
fn spread(price: Price, pp: usize) -> Price {
    let spread = |values: Vec<f64>| -> Vec<f64> {
        let last = values.len() - 1;
        (0..pp)
            .map(|i| {
                if i == 0 {
                    values[0]
                } else if i == pp - 1 {
                    values[last]
                } else {
                    0.0
                }
            })
            .collect()
    };
    Price {
        with_sync_s: spread(price.with_sync_s),
        without_sync_s: spread(price.without_sync_s),
        states_mb: spread(price.states_mb),
        activations_mb: spread(price.activations_mb),
    }
}

/// Seconds of a step: of a pipeline whose first or last stage is the slowest, and gradients that do not hide in its end.
fn step_s(computed: &[f64], reduced: &[f64], chunks: f64) -> f64 {
    let (first, last, all): (f64, f64, f64) = (computed[0], computed[computed.len() - 1], computed.iter().sum());
    let (pp, others) = (computed.len() as f64, all - first);
    let slowest_last = all + last * (chunks - 1.0);
    let warm = (pp - 1.0).min(chunks - 1.0) * first;
    let slowest_first = (warm / 3.0).max(others / 3.0)
        + (2.0 * warm / 3.0).max(2.0 * others / 3.0)
        + first * (chunks + 1.0 - pp).max(0.0);
    let (mut before, mut late) = (0.0, 0.0f64);
    for (c, r) in computed.iter().zip(reduced) {
        before += c;
        late = late.max(r - before);
    }
    slowest_last.max(slowest_first) + late
}

/// What of a memory of some MB its search may use: above 20 GB a fifth is kept for the allocator.
pub fn usable_mb(memory_mb: f64) -> f64 {
    if memory_mb > RESERVED_ABOVE_MB { memory_mb * 0.8 } else { memory_mb }
}

/// The memory of which so many MB may be used.
pub fn memory_mb_for(usable: f64) -> f64 {
    if usable > RESERVED_ABOVE_MB { usable / 0.8 } else { usable }
}
