//! What was measured on a machine, as plain data: times of collectives and of a model's layers.
//!
//! A profile is written with serde; its keys are the names of the fields, which carry their units. Bytes are bytes, GB/s are
//! 1e9 bytes a second. [`Curve`] reads a time between and beyond the sizes that were measured.

use serde::Serialize;

/// Version of the file format that this crate writes.
pub const VERSION: u64 = 1;

/// The longest time that a lookup gives, in nanoseconds: some hours, so that sums of times do not overflow.
pub const MAX_NS: u64 = 1 << 44;

/// Kinds of collectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Collective {
    /// Everyone gets the sum.
    AllReduce,
    /// Everyone gets its part of the sum.
    ReduceScatter,
    /// Everyone gets all parts.
    AllGather,
    /// Everyone sends a part to everyone.
    AllToAll,
}

impl Collective {
    /// All kinds with their names in files and reports.
    pub const ALL: [(Collective, &'static str); 4] = [
        (Collective::AllReduce, "all_reduce"),
        (Collective::ReduceScatter, "reduce_scatter"),
        (Collective::AllGather, "all_gather"),
        (Collective::AllToAll, "all_to_all"),
    ];

    /// Name in files and reports.
    pub fn name(self) -> &'static str {
        Collective::ALL.iter().find(|(kind, _)| *kind == self).map_or("?", |(_, name)| name)
    }
}

/// How the ranks of a group are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Neighbours: the fastest links.
    Consecutive,
    /// As far apart as the machine allows: the slowest links.
    Strided,
}

impl Layout {
    /// All layouts with their names in files and reports.
    pub const ALL: [(Layout, &'static str); 2] = [(Layout::Consecutive, "consecutive"), (Layout::Strided, "strided")];

    /// Name in files and reports.
    pub fn name(self) -> &'static str {
        Layout::ALL.iter().find(|(layout, _)| *layout == self).map_or("?", |(_, name)| name)
    }
}

/// Everything that was measured; what is empty or `None` was not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// [`VERSION`].
    pub version: u64,
    /// What was measured, for reports.
    pub name: String,
    /// Element type in which the layers computed, by its name in the text format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute: Option<String>,
    /// Times of collectives by message size; one entry for each kind, number of ranks and layout.
    pub collectives: Vec<CollectiveTimes>,
    /// Bandwidths of collectives, for those whose times are not known.
    pub bandwidths: Vec<CollectiveBandwidth>,
    /// Bandwidths between neighbouring pipeline stages.
    pub point_to_point: Vec<PointToPoint>,
    /// How many times longer computation and communication take that run at the same time; at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap_slowdown_ratio: Option<f64>,
    /// The kinds of repeated layers, in the order of the model.
    pub layers: Vec<LayerProfile>,
    /// Embedding, head and loss together.
    pub outside: OutsideProfile,
}

impl Default for Profile {
    fn default() -> Self {
        Profile {
            version: VERSION,
            name: String::new(),
            compute: None,
            collectives: Vec::new(),
            bandwidths: Vec::new(),
            point_to_point: Vec::new(),
            overlap_slowdown_ratio: None,
            layers: Vec::new(),
            outside: OutsideProfile::default(),
        }
    }
}

/// Times of one collective.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CollectiveTimes {
    /// Its kind.
    pub kind: Collective,
    /// Ranks of the group, at least 2.
    pub ranks: u32,
    /// How they are numbered.
    pub layout: Layout,
    /// Times by size, ascending, at least one.
    pub times: Vec<TimePoint>,
}

/// One measured time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TimePoint {
    /// Bytes of the larger of a rank's input and output.
    pub bytes: u64,
    /// Nanoseconds.
    pub time_ns: u64,
}

/// Bus bandwidth of one collective.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CollectiveBandwidth {
    /// Its kind.
    pub kind: Collective,
    /// Ranks of the group, at least 2.
    pub ranks: u32,
    /// How they are numbered.
    pub layout: Layout,
    /// GB/s over each rank's link: a ring of n ranks moves (n - 1) / n of the bytes over it, an all-reduce twice that.
    pub bus_bandwidth_gbps: f64,
}

/// Bandwidth between neighbouring stages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PointToPoint {
    /// Number of stages, at least 2.
    pub stages: u32,
    /// GB/s in one direction.
    pub bandwidth_gbps: f64,
}

/// What was measured of one kind of layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LayerProfile {
    /// Forward times on one device.
    pub forward: Vec<ForwardTime>,
    /// Bytes, one entry for each sequence length.
    pub memory: Vec<LayerMemory>,
}

/// Forward time of one layer, or of all that is outside of layers, on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ForwardTime {
    /// Tokens of a sample.
    pub sequence_tokens: u64,
    /// Samples that were computed together.
    pub batch_samples: u64,
    /// Nanoseconds for each of them.
    pub time_ns_per_sample: u64,
}

/// Bytes of one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LayerMemory {
    /// Tokens of a sample.
    pub sequence_tokens: u64,
    /// Bytes of the parameters in f32.
    pub parameter_bytes: u64,
    /// What the backward pass reads, by the number of tensor-parallel ranks.
    pub activations: Vec<ActivationBytes>,
    /// Bytes that are kept of a sample where the layer is recomputed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recomputed_bytes_per_sample: Option<u64>,
}

/// Activation bytes on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ActivationBytes {
    /// Ranks that share a sample.
    pub tensor_ranks: u32,
    /// Bytes of one rank for each sample.
    pub bytes_per_sample: u64,
}

/// What was measured of embedding, head and loss.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutsideProfile {
    /// Forward times on one device.
    pub forward: Vec<ForwardTime>,
    /// Bytes on the stages that have some of it.
    pub memory: Vec<OutsideMemory>,
}

/// Which stage of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageRole {
    /// There is one stage.
    Only,
    /// The first of several, with the embedding.
    First,
    /// The last of several, with the head.
    Last,
}

impl StageRole {
    /// All roles with their names in files.
    pub const ALL: [(StageRole, &'static str); 3] =
        [(StageRole::Only, "only"), (StageRole::First, "first"), (StageRole::Last, "last")];
}

/// Bytes of what is outside of layers, on one rank of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OutsideMemory {
    /// Tokens of a sample.
    pub sequence_tokens: u64,
    /// The stage.
    pub stage: StageRole,
    /// Ranks that share the vocabulary.
    pub tensor_ranks: u32,
    /// Bytes of parameters, gradients and optimizer states together.
    pub state_bytes: u64,
    /// Bytes of activations for each sample.
    pub activation_bytes_per_sample: u64,
}

/// A time over a size: linear between the measured sizes, straight on beyond them; it never falls.
///
/// Below the smallest size it follows the line through the two smallest, down to 0 at the least; above the largest it
/// rises like the straight line that fits all points best (least squares). A single point is proportional to its size.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// From 0 bytes on, ascending in both.
    points: Vec<TimePoint>,
    /// Nanoseconds for each byte beyond the last point.
    slope: f64,
}

impl Curve {
    /// The curve through some points.
    ///
    /// # Panics
    /// Without points, or where sizes do not ascend.
    pub fn new(measured: &[TimePoint]) -> Curve {
        assert!(!measured.is_empty() && measured.is_sorted_by(|a, b| a.bytes < b.bytes), "sizes ascend");
        let mut points = vec![TimePoint { bytes: 0, time_ns: latency_ns(measured) }];
        for point in measured.iter().filter(|p| p.bytes > 0) {
            let floor = points.last().map_or(0, |p| p.time_ns);
            points.push(TimePoint { bytes: point.bytes, time_ns: point.time_ns.max(floor) });
        }
        Curve { points, slope: slope(measured) }
    }

    /// Nanoseconds for some bytes, at most [`MAX_NS`].
    pub fn ns(&self, bytes: u64) -> u64 {
        let above = self.points.partition_point(|p| p.bytes <= bytes);
        let low = self.points[above - 1];
        let Some(high) = self.points.get(above) else {
            return low.time_ns.saturating_add((self.slope * (bytes - low.bytes) as f64) as u64).min(MAX_NS);
        };
        let rise = u128::from(high.time_ns - low.time_ns) * u128::from(bytes - low.bytes);
        (low.time_ns + (rise / u128::from(high.bytes - low.bytes)) as u64).min(MAX_NS)
    }
}

/// Where the line through the two smallest sizes meets 0 bytes, between 0 and the first time.
fn latency_ns(measured: &[TimePoint]) -> u64 {
    let [first, second, ..] = measured else { return 0 };
    let per_byte = second.time_ns.saturating_sub(first.time_ns) as f64 / (second.bytes - first.bytes) as f64;
    first.time_ns.saturating_sub((per_byte * first.bytes as f64) as u64)
}

/// Slope of the least-squares line, not below 0; of a single point that of the line from the origin.
fn slope(measured: &[TimePoint]) -> f64 {
    if let [only] = measured {
        return only.time_ns as f64 / only.bytes.max(1) as f64;
    }
    linear_fit(measured.iter().map(|p| (p.bytes as f64, p.time_ns as f64))).0.max(0.0)
}

/// Slope and intercept of the straight line that fits some points best; flat through their mean where it has no slope.
pub fn linear_fit(points: impl Iterator<Item = (f64, f64)> + Clone) -> (f64, f64) {
    let n = points.clone().count().max(1) as f64;
    let (x, y) = points.clone().fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
    let (xy, xx) = points.fold((0.0, 0.0), |(xy, xx), p| (xy + (p.0 - x) * (p.1 - y), xx + (p.0 - x) * (p.0 - x)));
    let slope = if xx > 0.0 { xy / xx } else { 0.0 };
    (slope, y - slope * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(u64, u64)]) -> Curve {
        Curve::new(&points.iter().map(|&(bytes, time_ns)| TimePoint { bytes, time_ns }).collect::<Vec<_>>())
    }

    #[test]
    fn times_are_those_measured_and_linear_between() {
        let curve = curve(&[(100, 50), (200, 70), (400, 130)]);
        assert_eq!([100, 150, 200, 300, 400].map(|bytes| curve.ns(bytes)), [50, 60, 70, 100, 130]);
    }

    #[test]
    fn below_the_smallest_size_the_first_line_goes_on() {
        assert_eq!([0, 50].map(|bytes| curve(&[(100, 50), (200, 70)]).ns(bytes)), [30, 40]);
        assert_eq!([0, 50].map(|bytes| curve(&[(100, 50), (200, 200)]).ns(bytes)), [0, 25]);
        assert_eq!([0, 50, 200].map(|bytes| curve(&[(100, 50)]).ns(bytes)), [0, 25, 100]);
    }

    #[test]
    fn above_the_largest_size_it_rises_like_the_best_line() {
        // The best line through (0, 0), (100, 200), (200, 200) has slope 1.
        let curve = curve(&[(0, 0), (100, 200), (200, 200)]);
        assert_eq!([200, 300, 1200].map(|bytes| curve.ns(bytes)), [200, 300, 1200]);
    }

    #[test]
    fn noise_makes_no_time_fall() {
        let curve = curve(&[(100, 50), (200, 40), (300, 60)]);
        assert_eq!([0, 100, 200, 250, 300].map(|bytes| curve.ns(bytes)), [50, 50, 50, 55, 60]);
        assert!((0..600).all(|bytes| curve.ns(bytes) <= curve.ns(bytes + 1)));
    }

    #[test]
    fn the_best_line_of_points_on_a_line_is_that_line() {
        let points = [1.0, 2.0, 5.0].map(|x| (x, 3.0 * x + 2.0));
        assert_eq!(linear_fit(points.into_iter()), (3.0, 2.0));
        assert_eq!(linear_fit([(4.0, 7.0)].into_iter()), (0.0, 7.0));
    }
}
