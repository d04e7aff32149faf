//! `computation_profiling_<element type>_<model>*.json`: forward times in ms.
//!
//! `layertype_I_bszB_seqS` is the time of one layer of kind I for each of B samples, `layertype_other_bszB_seqS` that of embedding,
//! head and loss. `layernum[…]_…` are the measurements that these were derived from.

use super::{ms, numbers, unknown, value};
use crate::config::Faults;
use crate::config::profile::file::MAX_BATCH;
use crate::config::set::Table;
use galvatron_ir::profile::{ForwardTime, LayerProfile, Profile};

/// Kinds of layers that a model may have.
pub const MAX_KINDS: u64 = 64;

/// Tokens that a sample may have.
pub const MAX_SEQUENCE: u64 = 1 << 31;

const KNOWN: &str = "`layertype_I_bszB_seqS`, `layertype_other_bszB_seqS`, `layernum[N]_bszB_seqS`";

/// Reads the times of layers and of what is outside of them.
pub fn read(table: &Table, faults: &Faults, profile: &mut Profile) {
    for (key, (_, item)) in table {
        let (kind, batch_samples, sequence_tokens) = match numbers::<3>(key, "layertype_{}_bsz{}_seq{}") {
            Some([kind, batch, sequence]) if kind < MAX_KINDS => (Some(kind as usize), batch, sequence),
            _ => match numbers::<2>(key, "layertype_other_bsz{}_seq{}") {
                Some([batch, sequence]) => (None, batch, sequence),
                None if key.starts_with("layernum[") => continue,
                None => {
                    unknown(faults, table, key, KNOWN);
                    continue;
                }
            },
        };
        if !(1..=MAX_BATCH).contains(&batch_samples) || !(1..=MAX_SEQUENCE).contains(&sequence_tokens) {
            unknown(faults, table, key, KNOWN);
            continue;
        }
        let Some(time_ns_per_sample) = value(faults, key, item, ms) else { continue };
        let time = ForwardTime { sequence_tokens, batch_samples, time_ns_per_sample };
        match kind {
            Some(kind) => layer(profile, kind).forward.push(time),
            None => profile.outside.forward.push(time),
        }
    }
}

/// What is known of the layers of one kind.
pub fn layer(profile: &mut Profile, kind: usize) -> &mut LayerProfile {
    if profile.layers.len() <= kind {
        profile.layers.resize(kind + 1, LayerProfile::default());
    }
    &mut profile.layers[kind]
}
