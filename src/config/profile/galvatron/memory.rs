//! `memory_profiling_<element type>_<model>*.json`: bytes in MB of 2²⁰.
//!
//! `layertype_I` has for each sequence length the parameters of a layer in f32 and its activations for one sample by the number of
//! tensor-parallel ranks, `other_memory_pp_off`, `…_on_first` and `…_on_last` the same of embedding and head. Keys that end in
//! `_sp` were measured with Megatron's sequence parallelism and go before those that do not. `PP_TP_DP…` are the measurements
//! that these were derived from.

use super::computation::{MAX_KINDS, MAX_SEQUENCE, layer};
use super::{mebibytes, numbers, object, unknown, value};
use crate::config::Faults;
use crate::config::set::{Item, Place, Table};
use galvatron_ir::profile::{ActivationBytes, LayerMemory, OutsideMemory, Profile, StageRole};

const KNOWN: &str = "`layertype_I`, `other_memory_pp_off`, `other_memory_pp_on_first`, `other_memory_pp_on_last`, \
                     `PP_TP_DP`, each also with `_sp`";

/// Tensor-parallel ranks that an entry may be for.
const MAX_RANKS: u64 = 65536;

/// Reads the bytes of layers and of what is outside of them.
pub fn read(table: &Table, faults: &Faults, profile: &mut Profile) {
    for (key, (_, item)) in table {
        let name = key.strip_suffix("_sp").unwrap_or(key);
        if is_measurement(name) || (name == key && table.contains_key(&format!("{key}_sp"))) {
            continue;
        }
        let stage = match name {
            "other_memory_pp_off" => Some(StageRole::Only),
            "other_memory_pp_on_first" => Some(StageRole::First),
            "other_memory_pp_on_last" => Some(StageRole::Last),
            _ => None,
        };
        match (stage, numbers::<1>(name, "layertype_{}")) {
            (Some(stage), _) => read_outside(key, item, stage, faults, profile),
            (None, Some([kind])) if kind < MAX_KINDS => {
                let memory = read_layer(key, item, faults);
                layer(profile, kind as usize).memory.extend(memory);
            }
            _ => unknown(faults, table, key, KNOWN),
        }
    }
}

/// `PP_TP_DP`, and `_c` or `_vtp` behind it.
fn is_measurement(name: &str) -> bool {
    let numbers = name.split('_').take(3).filter(|part| part.parse::<u32>().is_ok()).count();
    numbers == 3 && name.split('_').skip(3).all(|part| ["c", "vtp"].contains(&part))
}

/// The entries of an object by sequence length.
fn by_sequence<'a>(name: &str, item: &'a Item, faults: &Faults) -> Vec<(u64, String, &'a Table)> {
    let Some(table) = object(faults, name, item) else { return Vec::new() };
    let entry = |(key, (place, item)): (&String, &'a (Place, Item))| {
        let path = format!("{name}.{key}");
        match numbers::<1>(key, "{}") {
            Some([sequence]) if (1..=MAX_SEQUENCE).contains(&sequence) => {
                Some((sequence, path.clone(), object(faults, &path, item)?))
            }
            _ => {
                faults.push(place.diagnostic("unknown-key", format!("`{path}`: expected a sequence length")));
                None
            }
        }
    };
    let mut all: Vec<_> = table.iter().filter_map(entry).collect();
    all.sort_by_key(|(sequence, ..)| *sequence);
    all
}

fn read_layer(name: &str, item: &Item, faults: &Faults) -> Vec<LayerMemory> {
    let entry = |(sequence_tokens, path, table): (u64, String, &Table)| {
        let parameters = required(&path, "parameter_size", table, faults);
        let activations = required(&path, "tp_activation_per_bsz_dict", table, faults);
        let path_of = |key: &str| format!("{path}.{key}");
        let parameter_bytes = value(faults, &path_of("parameter_size"), parameters?, mebibytes)?;
        let path = path_of("tp_activation_per_bsz_dict");
        let table = object(faults, &path, activations?)?;
        let recomputed = table.get("checkpoint");
        let recomputed_bytes_per_sample =
            recomputed.and_then(|(_, item)| value(faults, &format!("{path}.checkpoint"), item, mebibytes));
        let ranks = by_ranks(&path, table, faults, &["checkpoint"]);
        let activations = ranks
            .into_iter()
            .map(|(tensor_ranks, bytes_per_sample)| ActivationBytes { tensor_ranks, bytes_per_sample })
            .collect();
        Some(LayerMemory { sequence_tokens, parameter_bytes, activations, recomputed_bytes_per_sample })
    };
    by_sequence(name, item, faults).into_iter().filter_map(entry).collect()
}

fn read_outside(name: &str, item: &Item, stage: StageRole, faults: &Faults, profile: &mut Profile) {
    for (sequence_tokens, path, table) in by_sequence(name, item, faults) {
        let part = |key: &str| {
            let (item, path) = (required(&path, key, table, faults)?, format!("{path}.{key}"));
            Some(by_ranks(&path, object(faults, &path, item)?, faults, &[]))
        };
        let (Some(states), Some(activations)) = (part("model_states"), part("activation")) else { continue };
        for (tensor_ranks, state_bytes) in states {
            let Some(&(_, bytes)) = activations.iter().find(|(ranks, _)| *ranks == tensor_ranks) else {
                let message = format!("`{path}.activation.{tensor_ranks}` is missing");
                faults.push(item.place.diagnostic("missing-key", message));
                continue;
            };
            profile.outside.memory.push(OutsideMemory {
                sequence_tokens,
                stage,
                tensor_ranks,
                state_bytes,
                activation_bytes_per_sample: bytes,
            });
        }
    }
}

/// Bytes by the number of ranks, ascending.
fn by_ranks(path: &str, table: &Table, faults: &Faults, others: &[&str]) -> Vec<(u32, u64)> {
    let entry = |(key, (place, item)): (&String, &(Place, Item))| match numbers::<1>(key, "{}") {
        Some([ranks]) if (1..=MAX_RANKS).contains(&ranks) => {
            Some((ranks as u32, value(faults, &format!("{path}.{key}"), item, mebibytes)?))
        }
        _ => {
            let message = format!("`{path}.{key}`: expected a number of ranks");
            faults.push(place.diagnostic("unknown-key", message));
            None
        }
    };
    let mut all: Vec<(u32, u64)> =
        table.iter().filter(|(key, _)| !others.contains(&key.as_str())).filter_map(entry).collect();
    all.sort_unstable();
    all
}

/// The value of a key that must be there.
fn required<'a>(path: &str, key: &str, table: &'a Table, faults: &Faults) -> Option<&'a Item> {
    let found = table.get(key).map(|(_, item)| item);
    if found.is_none() {
        let fault = galvatron_ir::Diagnostic::new("missing-key", format!("`{path}.{key}` is missing"));
        faults.push(fault);
    }
    found
}
