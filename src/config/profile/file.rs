//! `profile.json`: the fields of [`Profile`] by name.

use galvatron_ir::diagnostic::Checked;
use galvatron_ir::profile::{
    ActivationBytes, Collective, CollectiveBandwidth, CollectiveTimes, ForwardTime, LayerMemory, LayerProfile, Layout,
    OutsideMemory, OutsideProfile, PointToPoint, Profile, StageRole, TimePoint, VERSION,
};
use galvatron_ir::types::DType;

use crate::config::json::parse_json;
use crate::config::{Faults, Fields, Item, Wrong, integer_in, number, one_of, text};

/// The largest number of bytes, tokens or nanoseconds that a profile may have.
const MOST: u64 = 1 << 40;

/// Most samples that were computed together.
pub(super) const MAX_BATCH: u64 = 1 << 16;

/// Most ranks of a group.
const MAX_RANKS: u64 = 65536;

/// Most times longer that anything takes beside something else.
const MAX_SLOWDOWN: f64 = 10.0;

/// Reads the text of a `profile.json`.
///
/// All faults are reported with their place: syntax, unknown, missing and doubled keys, values out of range, sizes that do not
/// ascend, entries for the same thing. Every key but `version` may be left out.
pub fn parse_profile(text: &str) -> Checked<Profile> {
    let table = parse_json(text)?;
    let faults = Faults::default();
    let mut root = Fields::root(&table, &faults);
    let version = root.require("version", integer_in(VERSION..=VERSION));
    let profile = version.map(|version| Profile {
        version,
        name: root.read("name", self::text).unwrap_or_default(),
        compute: root.read("compute", compute),
        collectives: read_collectives(&mut root),
        bandwidths: read_bandwidths(&mut root),
        point_to_point: read_point_to_point(&mut root),
        overlap_slowdown_ratio: root.read("overlap_slowdown_ratio", slowdown),
        layers: root.sections("layers").into_iter().map(read_layer).collect(),
        outside: root.section("outside").map(read_outside).unwrap_or_default(),
    });
    if profile.is_some() {
        root.finish();
    }
    faults.check(profile)
}

/// The profile as the text of a `profile.json`; reads back as the same profile.
pub fn to_json(profile: &Profile) -> String {
    serde_json::to_string_pretty(profile).expect("invariant: a profile has numbers and strings only") + "\n"
}

/// How many times longer, from 1 to [`MAX_SLOWDOWN`].
pub(super) fn slowdown(item: &Item) -> Result<f64, Wrong> {
    let holds = |ratio: f64| (1.0..=MAX_SLOWDOWN).contains(&ratio);
    number(item, &format!("a number from 1 to {MAX_SLOWDOWN}"), holds)
}

/// GB/s of a link.
pub(super) fn bandwidth(item: &Item) -> Result<f64, Wrong> {
    number(item, "a number of GB/s from 0.001 to 1000000", |gbps| (1e-3..=1e6).contains(&gbps))
}

fn compute(item: &Item) -> Result<String, Wrong> {
    let floats = [("f32", Some(DType::F32)), ("bf16", Some(DType::Bf16))];
    Ok(one_of(&floats)(item)?.to_string())
}

fn amount(item: &Item) -> Result<u64, Wrong> {
    integer_in(1..=MOST)(item)
}

fn amount_or_none(item: &Item) -> Result<u64, Wrong> {
    integer_in(0..=MOST)(item)
}

fn ranks(item: &Item) -> Result<u32, Wrong> {
    Ok(integer_in(2..=MAX_RANKS)(item)? as u32)
}

fn sharers(item: &Item) -> Result<u32, Wrong> {
    Ok(integer_in(1..=MAX_RANKS)(item)? as u32)
}

/// One of the names of a kind.
fn named<T: Copy>(all: &'static [(T, &'static str)]) -> impl Fn(&Item) -> Result<T, Wrong> {
    move |item| {
        let names: Vec<(&'static str, Option<T>)> = all.iter().map(|&(value, name)| (name, Some(value))).collect();
        one_of(&names)(item)
    }
}

/// Reads a list of tables; an entry for what an earlier one is for is a fault at its `at`.
fn distinct<'a, T, K: PartialEq>(
    root: &mut Fields<'a>,
    key: &'static str,
    at: &str,
    read: impl Fn(&mut Fields<'a>) -> Option<(K, T)>,
) -> Vec<T> {
    let mut known: Vec<K> = Vec::new();
    let mut all = Vec::new();
    for mut fields in root.sections(key) {
        let Some((key, value)) = read(&mut fields) else {
            fields.finish();
            continue;
        };
        if known.contains(&key) {
            let message = format!("`{}` is for the same as an entry before it", fields.path);
            fields.faults.push(fields.fault(at, "duplicate-key", message));
        }
        known.push(key);
        all.push(value);
        fields.finish();
    }
    all
}

type Group = (Collective, u32, Layout);

fn read_group(fields: &mut Fields<'_>) -> Option<Group> {
    let kind = fields.require("kind", named(&Collective::ALL));
    let ranks = fields.require("ranks", ranks);
    let layout = fields.require("layout", named(&Layout::ALL));
    Some((kind?, ranks?, layout?))
}

fn read_collectives(root: &mut Fields<'_>) -> Vec<CollectiveTimes> {
    distinct(root, "collectives", "kind", |fields| {
        let group = read_group(fields);
        let times = read_times(fields);
        let (kind, ranks, layout) = group?;
        Some(((kind, ranks, layout), CollectiveTimes { kind, ranks, layout, times: times? }))
    })
}

/// At least one time, by ascending size; else there is a fault.
fn read_times(fields: &mut Fields<'_>) -> Option<Vec<TimePoint>> {
    fields.need("times");
    let mut times: Vec<TimePoint> = Vec::new();
    for mut point in fields.sections("times") {
        let bytes = point.require("bytes", amount);
        let time_ns = point.require("time_ns", amount);
        if let (Some(bytes), Some(last)) = (bytes, times.last())
            && bytes <= last.bytes
        {
            let message = format!("`{}.bytes`: expected more than {}, found {bytes}", point.path, last.bytes);
            point.faults.push(point.fault("bytes", "bad-value", message));
        } else if let (Some(bytes), Some(time_ns)) = (bytes, time_ns) {
            times.push(TimePoint { bytes, time_ns });
        }
        point.finish();
    }
    if times.is_empty() && fields.has("times") {
        let message = format!("`{}`: expected at least one time", fields.name("times"));
        fields.faults.push(fields.fault("times", "bad-value", message));
    }
    (!times.is_empty()).then_some(times)
}

fn read_bandwidths(root: &mut Fields<'_>) -> Vec<CollectiveBandwidth> {
    distinct(root, "bandwidths", "kind", |fields| {
        let group = read_group(fields);
        let bandwidth = fields.require("bus_bandwidth_gbps", bandwidth);
        let (kind, ranks, layout) = group?;
        Some(((kind, ranks, layout), CollectiveBandwidth { kind, ranks, layout, bus_bandwidth_gbps: bandwidth? }))
    })
}

fn read_point_to_point(root: &mut Fields<'_>) -> Vec<PointToPoint> {
    distinct(root, "point_to_point", "stages", |fields| {
        let stages = fields.require("stages", ranks);
        let bandwidth = fields.require("bandwidth_gbps", bandwidth);
        Some((stages?, PointToPoint { stages: stages?, bandwidth_gbps: bandwidth? }))
    })
}

fn read_forward(fields: &mut Fields<'_>) -> Vec<ForwardTime> {
    distinct(fields, "forward", "batch_samples", |fields| {
        let sequence_tokens = fields.require("sequence_tokens", amount);
        let batch_samples = fields.require("batch_samples", integer_in(1..=MAX_BATCH));
        let time_ns_per_sample = fields.require("time_ns_per_sample", amount);
        let (sequence_tokens, batch_samples) = (sequence_tokens?, batch_samples?);
        let time = ForwardTime { sequence_tokens, batch_samples, time_ns_per_sample: time_ns_per_sample? };
        Some(((sequence_tokens, batch_samples), time))
    })
}

fn read_layer(mut fields: Fields<'_>) -> LayerProfile {
    let forward = read_forward(&mut fields);
    let memory = distinct(&mut fields, "memory", "sequence_tokens", |fields| {
        let sequence_tokens = fields.require("sequence_tokens", amount);
        let parameter_bytes = fields.require("parameter_bytes", amount_or_none);
        let activations = read_activations(fields);
        let recomputed_bytes_per_sample = fields.read("recomputed_bytes_per_sample", amount_or_none);
        let (sequence_tokens, parameter_bytes) = (sequence_tokens?, parameter_bytes?);
        let memory = LayerMemory { sequence_tokens, parameter_bytes, activations, recomputed_bytes_per_sample };
        Some((sequence_tokens, memory))
    });
    fields.finish();
    LayerProfile { forward, memory }
}

fn read_activations(fields: &mut Fields<'_>) -> Vec<ActivationBytes> {
    distinct(fields, "activations", "tensor_ranks", |fields| {
        let tensor_ranks = fields.require("tensor_ranks", sharers);
        let bytes_per_sample = fields.require("bytes_per_sample", amount_or_none);
        Some((tensor_ranks?, ActivationBytes { tensor_ranks: tensor_ranks?, bytes_per_sample: bytes_per_sample? }))
    })
}

fn read_outside(mut fields: Fields<'_>) -> OutsideProfile {
    let forward = read_forward(&mut fields);
    let memory = distinct(&mut fields, "memory", "stage", |fields| {
        let sequence_tokens = fields.require("sequence_tokens", amount);
        let stage = fields.require("stage", named(&StageRole::ALL));
        let tensor_ranks = fields.require("tensor_ranks", sharers);
        let state_bytes = fields.require("state_bytes", amount_or_none);
        let activation = fields.require("activation_bytes_per_sample", amount_or_none);
        let key = (sequence_tokens?, stage?, tensor_ranks?);
        let (sequence_tokens, stage, tensor_ranks) = key;
        let (state_bytes, activation_bytes_per_sample) = (state_bytes?, activation?);
        let memory = OutsideMemory { sequence_tokens, stage, tensor_ranks, state_bytes, activation_bytes_per_sample };
        Some((key, memory))
    });
    fields.finish();
    OutsideProfile { forward, memory }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"{
  "version": 1,
  "name": "two layers on two ranks",
  "compute": "bf16",
  "collectives": [
    {"kind": "all_to_all", "ranks": 2, "layout": "consecutive", "times": [{"bytes": 8, "time_ns": 9}, {"bytes": 16, "time_ns": 11}]}
  ],
  "bandwidths": [{"kind": "all_reduce", "ranks": 2, "layout": "strided", "bus_bandwidth_gbps": 8.13}],
  "point_to_point": [{"stages": 2, "bandwidth_gbps": 12}],
  "overlap_slowdown_ratio": 1.25,
  "layers": [{
    "forward": [{"sequence_tokens": 8, "batch_samples": 1, "time_ns_per_sample": 100}],
    "memory": [{"sequence_tokens": 8, "parameter_bytes": 64, "activations": [{"tensor_ranks": 1, "bytes_per_sample": 32}],
                "recomputed_bytes_per_sample": 4}]
  }],
  "outside": {
    "forward": [{"sequence_tokens": 8, "batch_samples": 2, "time_ns_per_sample": 50}],
    "memory": [{"sequence_tokens": 8, "stage": "only", "tensor_ranks": 1, "state_bytes": 7, "activation_bytes_per_sample": 6}]
  }
}"#;

    fn check_faults(text: &str, expected: &[&str]) {
        let faults = parse_profile(text).unwrap_err();
        let place = |f: &galvatron_ir::Diagnostic| f.span.clone().map_or("", |s| &text[s]).to_string();
        let shown: Vec<String> = faults.iter().map(|f| format!("{}|{}|{}", f.code, place(f), f.message)).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_printed_profile_reads_back() {
        let profile = parse_profile(FULL).unwrap();
        assert_eq!(profile.collectives[0].times[1], TimePoint { bytes: 16, time_ns: 11 });
        assert_eq!((profile.layers.len(), profile.outside.memory[0].state_bytes), (1, 7));
        assert_eq!(parse_profile(&to_json(&profile)).unwrap(), profile);
        assert_eq!(parse_profile(&to_json(&Profile::default())).unwrap(), Profile::default());
    }

    #[test]
    fn all_faults_are_placed() {
        check_faults(
            "{\"version\": 1, \"compute\": \"fp8\", \"overlap_slowdown\": 1.1, \"overlap_slowdown_ratio\": 0.9,\n\
             \"collectives\": [{\"kind\": \"all_reduce\", \"ranks\": 1, \"layout\": \"ring\", \"times\": []}]}",
            &[
                "bad-value|\"fp8\"|`compute`: expected one of `f32`, `bf16`, found \"fp8\"",
                "unknown-key|\"overlap_slowdown\"|unknown key `overlap_slowdown`",
                "bad-value|0.9|`overlap_slowdown_ratio`: expected a number from 1 to 10, found 0.9",
                "bad-value|1|`collectives[0].ranks`: expected an integer from 2 to 65536, found 1",
                "bad-value|\"ring\"|`collectives[0].layout`: expected one of `consecutive`, `strided`, found \"ring\"",
                "bad-value|[]|`collectives[0].times`: expected at least one time",
            ],
        );
    }

    #[test]
    fn versions_that_are_not_known_are_refused() {
        check_faults("{\"version\": 2}", &["bad-value|2|`version`: expected an integer from 1 to 1, found 2"]);
        check_faults("{}", &["missing-key||`version` is missing"]);
    }

    #[test]
    fn sizes_ascend_and_entries_differ() {
        let times = FULL.replace("\"bytes\": 16", "\"bytes\": 8");
        check_faults(&times, &["bad-value|8|`collectives[0].times[1].bytes`: expected more than 8, found 8"]);
        let twice =
            FULL.replace("{\"stages\": 2, \"bandwidth_gbps\": 12}", "{\"stages\": 2, \"bandwidth_gbps\": 1}, $0");
        let twice = twice.replace("$0", "{\"stages\": 2, \"bandwidth_gbps\": 12}");
        check_faults(&twice, &["duplicate-key|2|`point_to_point[1]` is for the same as an entry before it"]);
    }
}
