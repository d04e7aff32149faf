//! How planning time grows: with the devices, with the layers, and as memory gets scarce.

use galvatron::config::{cluster::parse_cluster, train::parse_recipe};
use galvatron::driver::{Compiled, compile};
use galvatron_ir::cluster::Cluster;
use galvatron_passes::search::Pins;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Devices of the A100 cluster.
const DEVICES: [u32; 6] = [8, 64, 512, 1024, 4096, 16384];
/// Layers, on 64 devices.
const LAYERS: [u64; 5] = [24, 48, 96, 192, 384];
/// GiB of each of 64 devices.
const MEMORY: [u64; 5] = [76, 48, 32, 24, 16];

/// One measurement: the words of its row, the cluster, the model, and samples a step.
struct Case {
    row: String,
    cluster: Cluster,
    model: PathBuf,
    batch: u32,
}

/// Plans copies of a configuration and prints a row for each.
///
/// # Errors
/// What cannot be read, or planned at all.
pub fn run(config: &Path, cluster: &Path) -> Result<(), String> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()));
    let cluster = parse_cluster(&read(cluster)?).map_err(|faults| super::rendered(&faults))?;
    let config: Value = serde_json::from_str(&read(config)?).map_err(|e| format!("no configuration: {e}"))?;
    println!("{:<24} {:>8} {:>10} {:>8} {:>10} {:>8}", "", "time", "spaces", "plans", "step", "gap");
    for case in cases(&config, &cluster)? {
        match planned(&case) {
            Ok((compiled, took)) => print_row(&case.row, &compiled, took),
            Err(message) => println!("{:<24} {message}", case.row),
        }
    }
    Ok(())
}

fn cases(config: &Value, cluster: &Cluster) -> Result<Vec<Case>, String> {
    let folder = std::env::temp_dir().join(format!("galvatron-growth-{}", std::process::id()));
    let own = config["num_hidden_layers"].as_u64().ok_or("the configuration has no `num_hidden_layers`")?;
    let mut cases = Vec::new();
    for devices in DEVICES {
        let (cluster, model) = (cluster.resized(devices)?, with_layers(config, own, &folder)?);
        cases.push(Case { row: format!("{devices} devices"), cluster, model, batch: devices.max(256) });
    }
    for layers in LAYERS {
        let (cluster, model) = (cluster.resized(64)?, with_layers(config, layers, &folder)?);
        cases.push(Case { row: format!("{layers} layers"), cluster, model, batch: 256 });
    }
    for gib in MEMORY {
        let (mut cluster, model) = (cluster.resized(64)?, with_layers(config, own, &folder)?);
        cluster.device.memory_bytes = gib << 30;
        cases.push(Case { row: format!("{gib} GiB a device"), cluster, model, batch: 256 });
    }
    Ok(cases)
}

/// The configuration with another number of layers, as a file.
fn with_layers(config: &Value, layers: u64, folder: &Path) -> Result<PathBuf, String> {
    let mut config = config.clone();
    config["num_hidden_layers"] = layers.into();
    let folder = folder.join(layers.to_string());
    let path = folder.join("config.json");
    let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, config.to_string()));
    written.map(|()| path).map_err(|e| format!("cannot write into {}: {e}", folder.display()))
}

fn planned(case: &Case) -> Result<(Compiled, Duration), String> {
    let overrides =
        [format!("batch.global={}", case.batch), "batch.sequence=2048".into(), "precision.compute=bf16".into()];
    let recipe = parse_recipe("", &overrides).map_err(|faults| super::rendered(&faults))?;
    let (start, pins) = (Instant::now(), Pins::default());
    let what = super::compilation(&case.model, &case.cluster, &recipe, &pins);
    let compiled = compile(&what, &mut |_, _| {}).map_err(super::spelled)?;
    Ok((compiled, start.elapsed()))
}

fn print_row(row: &str, compiled: &Compiled, took: Duration) {
    let Some(found) = &compiled.found else { return };
    let (time, step) = (took.as_secs_f64(), found.cost.step_ns as f64 * 1e-9);
    let (gap, effort) = (found.plan.predicted.gap_ppm as f64 / 1e4, &found.effort);
    let spaces = format!("{}/{}", effort.n_opened, effort.n_spaces);
    println!("{row:<24} {time:>6.2} s {spaces:>10} {:>8} {step:>8.3} s {gap:>6.2} %", effort.n_replays);
}
