//! Galvatron's spelling of plans.

use galvatron_passes::hetu::{Plan, Strategy, Vocabulary};
use serde_json::Value;

/// Reads a `galvatron_config_*.json` for so many ranks.
pub fn plan(config: &Value, world: u32) -> Option<Plan> {
    let number = |key: &str| config[key].as_u64().map(|n| n as u32);
    let list = |key: &str| -> Option<Vec<u32>> { config[key].as_str()?.split(',').map(|n| n.parse().ok()).collect() };
    let pp = number("pp_deg")?;
    let (tp, flags, zero3) = (list("tp_sizes_enc")?, list("tp_consecutive_flags")?, list("dp_types_enc")?);
    let (ulysses, recompute) = (list("use_sp")?, list("checkpoint")?);
    let layer = |i: usize| Strategy {
        pp,
        tp: tp[i],
        dp: world / pp / tp[i],
        is_consecutive: flags[i] == 1,
        zero3: zero3[i] == 1,
        recompute: recompute[i] == 1,
        ulysses: ulysses[i] == 1,
    };
    Some(Plan {
        chunks: number("chunks")?,
        division: list("pp_division")?.into_iter().map(|n| n as usize).collect(),
        layers: (0..tp.len()).map(layer).collect(),
        vocabulary: Vocabulary { tp: number("vtp")?, ulysses: number("vsp")? == 1, zero3: number("embed_sdp")? == 1 },
    })
}
