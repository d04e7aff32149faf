//! Host memory: which pins of it can be met, and how much of it a plan takes.

use super::candidates::Mode;
use super::pins::{LayerPins, PinFault, Pins};
use galvatron_ir::Module;
use galvatron_ir::cluster::Cluster;

/// What is pinned into host memory needs one, and is not recomputed as well.
///
/// # Errors
/// Codes `no-host-memory` and `pin-conflict`.
pub fn check_pins(pins: &Pins, cluster: &Cluster) -> Result<(), PinFault> {
    let layers = pins.layers.iter().map(|(n, own)| (format!("layer {n}"), own.over(&pins.all)));
    let parts = [("the model", &pins.all), ("the embedding", &pins.embedding), ("the head", &pins.head)];
    let parts = parts.into_iter().map(|(name, pins)| (name.to_string(), pins.clone()));
    parts.chain(layers).try_for_each(|(name, pins)| check_part(&name, &pins, cluster))
}

fn check_part(name: &str, pins: &LayerPins, cluster: &Cluster) -> Result<(), PinFault> {
    let Some(offload) = pins.offload.filter(|offload| offload.is_any()) else { return Ok(()) };
    if cluster.host.is_none() {
        return Err(PinFault {
            code: "no-host-memory",
            message: format!(
                "offload {} is pinned for {name}, but the cluster says nothing of host memory",
                offload.name()
            ),
            help: "add a section `[host]` with `memory_gib`, `bandwidth_gbps` and `latency_us` to `hw.toml`".into(),
        });
    }
    match pins.recompute {
        Some(mode @ (Mode::Selective | Mode::Full)) if offload.activations => Err(PinFault {
            code: "pin-conflict",
            message: format!(
                "{name} is to keep its activations in host memory and to recompute them ({})",
                mode.name()
            ),
            help: "pin `offload` to \"none\" or \"optimizer\" there, or leave `recompute` out".into(),
        }),
        _ => Ok(()),
    }
}

/// Bytes by which a plan exceeds the host memory of its cluster, on the rank that needs most.
pub fn excess_bytes(plan: &Module, cluster: &Cluster) -> u64 {
    let needed = plan.stages.iter().map(|stage| stage.arena.host_bytes()).max().unwrap_or(0);
    needed.saturating_sub(cluster.host_bytes())
}

/// That a plan whose offload is pinned needs more host memory than there is.
pub fn too_large(excess_bytes: u64, cluster: &Cluster) -> PinFault {
    PinFault {
        code: "no-host-memory",
        message: format!(
            "what is pinned to host memory needs {} bytes for one device, of which the cluster has {}",
            cluster.host_bytes() + excess_bytes,
            cluster.host_bytes()
        ),
        help: "raise `host.memory_gib`, or pin `offload` for fewer layers".into(),
    }
}
