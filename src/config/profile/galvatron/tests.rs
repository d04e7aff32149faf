//! The files that Galvatron ships, and damaged ones.

use super::*;
use galvatron_ir::profile::{Collective, Layout, StageRole};

/// Galvatron's files for LLaMA-2 7B on one node of 8 A100.
const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/galvatron/llama2-7b_1x8");

fn wanted(nodes: u32) -> Wanted {
    Wanted { nodes, devices_per_node: 8, compute: DType::Bf16 }
}

/// File, code, what the fault points at and the message of each fault.
fn faults_of(result: Result<Profile, Vec<FileFaults>>) -> Vec<String> {
    let name = |path: &str| Path::new(path).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let one = |file: &FileFaults| -> Vec<String> {
        let place = |f: &Diagnostic| f.span.clone().map_or("", |s| &file.text[s]).to_string();
        file.faults.iter().map(|f| format!("{}|{}|{}|{}", name(&file.name), f.code, place(f), f.message)).collect()
    };
    result.unwrap_err().iter().flat_map(one).collect()
}

/// Reads one file of a fresh folder.
fn read_one(folder: &str, name: &str, text: &str) -> Result<Profile, Vec<FileFaults>> {
    let folder = std::env::temp_dir().join(format!("galvatron-profile-{}-{folder}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), text).unwrap();
    let result = read_folder(&folder, wanted(1));
    std::fs::remove_dir_all(&folder).unwrap();
    result
}

#[test]
fn the_samples_are_read() {
    let profile = read_folder(Path::new(SAMPLES), wanted(1)).unwrap();
    assert_eq!((profile.name.as_str(), profile.compute.as_deref()), ("llama2-7b_1x8", Some("bf16")));
    assert_eq!(profile.overlap_slowdown_ratio, Some(1.125552573612729));
    let kinds: Vec<_> = profile.collectives.iter().map(|c| (c.kind, c.ranks, c.times.len())).collect();
    let both = [Collective::AllReduce, Collective::AllToAll];
    let expected: Vec<_> = both.iter().flat_map(|&kind| [2, 4, 8].map(|ranks| (kind, ranks, 11))).collect();
    assert_eq!(kinds, expected);
    let first = profile.collectives[2].times[0];
    assert_eq!((first.bytes, first.time_ns), (1 << 20, 78_950));
    let strided = profile.bandwidths.iter().find(|b| b.ranks == 4 && b.layout == Layout::Strided);
    assert_eq!(strided.map(|b| b.bus_bandwidth_gbps), Some(155.815));
    assert_eq!(profile.point_to_point.iter().map(|p| p.stages).collect::<Vec<_>>(), [2, 4, 8]);
    let layer = &profile.layers[0];
    assert_eq!(layer.forward.iter().map(|t| t.batch_samples).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    assert_eq!((layer.forward[0].sequence_tokens, layer.forward[0].time_ns_per_sample), (2048, 4_396_253));
    assert_eq!(layer.memory[0].parameter_bytes, 816_026_624);
    assert_eq!(layer.memory[0].activations.iter().map(|a| a.tensor_ranks).collect::<Vec<_>>(), [1, 2, 4, 8]);
    assert_eq!(layer.memory[0].recomputed_bytes_per_sample, Some(32 << 20));
    assert_eq!(profile.outside.forward.len(), 12);
    let of_last = profile.outside.memory.iter().filter(|m| m.stage == StageRole::Last).count();
    assert_eq!((profile.outside.memory.len(), of_last), (12, 4));
}

#[test]
fn a_profile_of_samples_is_a_profile_file() {
    let profile = read_folder(Path::new(SAMPLES), wanted(1)).unwrap();
    let text = crate::config::profile::to_json(&profile);
    assert_eq!(crate::config::profile::parse_profile(&text).unwrap(), profile);
}

#[test]
fn files_of_another_machine_are_refused() {
    let faults = faults_of(read_folder(Path::new(SAMPLES), wanted(2)));
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(faults[0].contains("has no `allreduce_bandwidth_2nodes_8gpus_per_node.json`"), "{}", faults[0]);
}

#[test]
fn damaged_files_are_named_with_the_key() {
    let check = |name: &str, text: &str, expected: &str| {
        let faults = faults_of(read_one(&format!("{}-{}", name.len(), text.len()), name, text));
        assert_eq!(faults, [format!("{name}|{expected}")]);
    };
    let bandwidth = "allreduce_bandwidth_1nodes_8gpus_per_node.json";
    check(
        bandwidth,
        "{\"allreduce_size_8_consec_1\": -1}",
        "bad-value|-1|`allreduce_size_8_consec_1`: expected a number of GB/s from 0.001 to 1000000, found -1",
    );
    check(
        bandwidth,
        "{\"allreduce_size_8_consec_2\": 1}",
        "unknown-key|\"allreduce_size_8_consec_2\"|unknown key `allreduce_size_8_consec_2`",
    );
    check(bandwidth, "{\"allreduce_size_8_consec_1\": ", "syntax||EOF while parsing a value");
    check(
        "sp_time_1nodes_8gpus_per_node.json",
        "{\"all2all_size_1_2MB_time\": 1}",
        "unknown-key|\"all2all_size_1_2MB_time\"|unknown key `all2all_size_1_2MB_time`",
    );
    check(
        "computation_profiling_bf16_m.json",
        "{\"layertype_0_bsz1_seq8\": null}",
        "bad-value|null|`layertype_0_bsz1_seq8`: expected a positive number of ms, at most 1e6, found null",
    );
    check(
        "memory_profiling_bf16_m.json",
        "{\"layertype_0\": {\"8\": {\"parameter_size\": 1}}}",
        "missing-key||`layertype_0.8.tp_activation_per_bsz_dict` is missing",
    );
    check(
        "overlap_coefficient.json",
        "{\"overlap_coe\": 0.5}",
        "bad-value|0.5|`overlap_coe`: expected a number from 1 to 10, found 0.5",
    );
}

#[test]
fn a_folder_without_profiles_is_refused() {
    let faults = faults_of(read_one("none", "notes.json", "{}"));
    assert!(faults.len() == 1 && faults[0].ends_with("has no profile of Galvatron"), "{faults:?}");
}

#[test]
fn patterns_match_whole_keys() {
    assert_eq!(numbers::<2>("a_12_b3", "a_{}_b{}"), Some([12, 3]));
    for key in ["a_12_b3x", "a__b3", "a_12_c3", "b_12_b3", "a_12_b99999999999999999999", "a_012_b3"] {
        assert_eq!(numbers::<2>(key, "a_{}_b{}"), None, "{key}");
    }
}
