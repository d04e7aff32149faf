//! A folder of profiles as Hetu-Galvatron (PKU-DAIR) writes them: one reader for each kind of file.
//!
//! Files of the machine carry its size in their name, files of the model its element type; those that fit are read. Times are
//! milliseconds, sizes 2²⁰ bytes, bandwidths GB/s of 1e9 bytes.

mod computation;
mod hardware;
mod memory;

use std::path::{Path, PathBuf};

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::profile::Profile;
use galvatron_ir::types::DType;

use super::{FileFaults, Wanted, read};
use crate::config::json::parse_json;
use crate::config::set::{Item, Table, Value};
use crate::config::{Faults, Wrong, number};

/// Bytes of one MB in these files.
const MIB: f64 = (1u64 << 20) as f64;

/// Nanoseconds of a millisecond.
const NS_PER_MS: f64 = 1e6;

/// Reads the keys of one file into a profile.
type Reader = fn(&Table, &Faults, &mut Profile);

/// Files of the machine by the start of their name.
const MACHINE_FILES: [(&str, Reader); 3] = [
    ("allreduce_bandwidth_", hardware::read_bandwidth),
    ("p2p_bandwidth_", hardware::read_point_to_point),
    ("sp_time_", hardware::read_times),
];

/// Files of the model by the start of their name.
const MODEL_FILES: [(&str, Reader); 2] =
    [("computation_profiling_", computation::read), ("memory_profiling_", memory::read)];

/// The file of the slow-down where computation and communication overlap.
const OVERLAP_FILE: &str = "overlap_coefficient.json";

/// Element types by their names in these files.
const PRECISIONS: [(&str, &str); 3] = [("bf16", "bf16"), ("fp32", "f32"), ("fp16", "f16")];

/// Reads the files of a folder that fit a cluster and an element type; kinds of files that are not there were not measured.
///
/// # Errors
/// A folder without any of these files, files for other clusters alone, two files that fit, and the faults of each file.
pub fn read_folder(folder: &Path, wanted: Wanted) -> Result<Profile, Vec<FileFaults>> {
    let names = names_in(folder).map_err(|fault| vec![fault])?;
    let (chosen, mut faults) = choose(folder, &names, wanted);
    let name = folder.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into_owned());
    let mut profile = Profile { name, ..Profile::default() };
    for (file, reader) in &chosen {
        if MODEL_FILES.iter().any(|(prefix, _)| file.starts_with(prefix)) {
            profile.compute = PRECISIONS.iter().find(|(p, _)| has_precision(file, p)).map(|(_, name)| name.to_string());
        }
        faults.extend(read_file(&folder.join(file), *reader, &mut profile).err());
    }
    if chosen.is_empty() && faults.is_empty() {
        let known =
            "`computation_profiling_*`, `memory_profiling_*`, `allreduce_bandwidth_*`, `p2p_bandwidth_*`, `sp_time_*`";
        let fault = Diagnostic::new("file", format!("`{}` has no profile of Galvatron", folder.display()));
        faults.push(FileFaults::of_path(folder, fault.help(format!("its files are {known} and `{OVERLAP_FILE}`"))));
    }
    sort(&mut profile);
    if faults.is_empty() { Ok(profile) } else { Err(faults) }
}

/// The JSON files of a folder in the order of their names.
fn names_in(folder: &Path) -> Result<Vec<String>, FileFaults> {
    let unreadable = |e: std::io::Error| {
        let message = format!("cannot read `{}`: {e}", folder.display());
        FileFaults::of_path(folder, Diagnostic::new("file", message).help("check the path"))
    };
    let entries: Result<Vec<PathBuf>, _> =
        std::fs::read_dir(folder).map_err(unreadable)?.map(|entry| entry.map(|e| e.path())).collect();
    let name = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let mut names: Vec<String> = entries.map_err(unreadable)?.iter().filter_map(name).collect();
    names.retain(|name| name.ends_with(".json"));
    names.sort();
    Ok(names)
}

/// The files that are read, with their readers, and what is wrong with the choice.
fn choose(folder: &Path, names: &[String], wanted: Wanted) -> (Vec<(String, Reader)>, Vec<FileFaults>) {
    let (mut chosen, mut faults) = (Vec::new(), Vec::new());
    let size = format!("{}nodes_{}gpus_per_node.json", wanted.nodes, wanted.devices_per_node);
    for (prefix, reader) in MACHINE_FILES {
        let found: Vec<&String> = names.iter().filter(|name| name.starts_with(prefix)).collect();
        match found.iter().find(|name| name[prefix.len()..] == size) {
            Some(name) => chosen.push((name.to_string(), reader)),
            None if found.is_empty() => {}
            None => faults.push(unfit(folder, &format!("{prefix}{size}"), &found)),
        }
    }
    let precision = if wanted.compute == DType::Bf16 { "bf16" } else { "fp32" };
    for (prefix, reader) in MODEL_FILES {
        let all: Vec<&String> = names.iter().filter(|name| name.starts_with(prefix)).collect();
        let fits: Vec<&String> = all.iter().copied().filter(|name| has_precision(name, precision)).collect();
        match if fits.is_empty() { &all[..] } else { &fits[..] } {
            [] => {}
            [name] => chosen.push((name.to_string(), reader)),
            several => faults.push(ambiguous(folder, prefix, several)),
        }
    }
    if names.iter().any(|name| name == OVERLAP_FILE) {
        chosen.push((OVERLAP_FILE.into(), hardware::read_overlap));
    }
    (chosen, faults)
}

/// Whether a file of the model is of an element type: `computation_profiling_bf16_…`.
fn has_precision(name: &str, precision: &str) -> bool {
    name.split('_').nth(2) == Some(precision)
}

fn unfit(folder: &Path, wanted: &str, found: &[&String]) -> FileFaults {
    let message = format!("`{}` has no `{wanted}`, found {}", folder.display(), list(found));
    let help = "a profile holds for the machine that it was measured on; remove the file to price this analytically";
    FileFaults::of_path(folder, Diagnostic::new("profile", message).help(help))
}

fn ambiguous(folder: &Path, prefix: &str, found: &[&String]) -> FileFaults {
    let message = format!("`{}` has several `{prefix}*`: {}", folder.display(), list(found));
    FileFaults::of_path(folder, Diagnostic::new("profile", message).help("leave the one of this model"))
}

fn list(names: &[&String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn read_file(path: &Path, reader: Reader, profile: &mut Profile) -> Result<(), FileFaults> {
    let FileFaults { name, .. } = FileFaults::of_path(path, Diagnostic::new("file", ""));
    let text = read(path)?.to_string();
    let checked = parse_json(&text).and_then(|table| {
        let faults = Faults::default();
        reader(&table, &faults, profile);
        faults.check(Some(()))
    });
    checked.map_err(|faults| FileFaults { name, text, faults })
}

/// Puts what was read into the order of its keys as numbers.
fn sort(profile: &mut Profile) {
    profile.collectives.sort_by_key(|c| (c.kind, c.ranks, c.layout));
    for collective in &mut profile.collectives {
        collective.times.sort_by_key(|t| t.bytes);
    }
    profile.bandwidths.sort_by_key(|b| (b.kind, b.ranks, b.layout));
    profile.point_to_point.sort_by_key(|p| p.stages);
    let forward = profile.layers.iter_mut().map(|l| &mut l.forward);
    for times in forward.chain([&mut profile.outside.forward]) {
        times.sort_by_key(|t| (t.sequence_tokens, t.batch_samples));
    }
    profile.outside.memory.sort_by_key(|m| (m.sequence_tokens, m.stage, m.tensor_ranks));
}

/// The numbers that stand for each `{}` of a pattern, written in the one usual way, so that no two keys say the same.
fn numbers<const N: usize>(key: &str, pattern: &str) -> Option<[u64; N]> {
    let mut parts = pattern.split("{}");
    let mut rest = key.strip_prefix(parts.next()?)?;
    let mut found = [0; N];
    for (number, part) in found.iter_mut().zip(parts) {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        *number = rest[..digits].parse().ok().filter(|_| digits == 1 || !rest.starts_with('0'))?;
        rest = rest[digits..].strip_prefix(part)?;
    }
    rest.is_empty().then_some(found)
}

/// The value of a key; a fault where it is wrong.
fn value<T>(faults: &Faults, name: &str, item: &Item, read: impl Fn(&Item) -> Result<T, Wrong>) -> Option<T> {
    let fault = |wrong| {
        let what = match wrong {
            Wrong::Expected(what) => what,
            Wrong::Unsupported => "another value".into(),
        };
        faults.push(item.place.diagnostic("bad-value", format!("`{name}`: expected {what}, found {}", item.value)));
    };
    read(item).map_err(fault).ok()
}

/// The keys of an object; a fault where the value is none.
fn object<'a>(faults: &Faults, name: &str, item: &'a Item) -> Option<&'a Table> {
    let Value::Table(table) = &item.value else {
        let message = format!("`{name}`: expected an object, found {}", item.value);
        faults.push(item.place.diagnostic("bad-value", message));
        return None;
    };
    Some(table)
}

/// A key that no such file has.
fn unknown(faults: &Faults, table: &Table, key: &str, known: &str) {
    let fault = table[key].0.diagnostic("unknown-key", format!("unknown key `{key}`"));
    faults.push(fault.help(format!("keys of this file: {known}")));
}

/// A number of ranks or stages that a group may have.
fn is_group(ranks: u64) -> bool {
    (2..=65536).contains(&ranks)
}

/// Nanoseconds of a time in ms, at least 1.
fn ms(item: &Item) -> Result<u64, Wrong> {
    let ms = number(item, "a positive number of ms, at most 1e6", |ms| ms > 0.0 && ms <= 1e6)?;
    Ok(((ms * NS_PER_MS).round() as u64).max(1))
}

/// Bytes of a size in MB of 2²⁰.
fn mebibytes(item: &Item) -> Result<u64, Wrong> {
    let size = number(item, "a number of MB, at most 1e6", |mb| (0.0..=1e6).contains(&mb))?;
    Ok((size * MIB).round() as u64)
}

#[cfg(test)]
mod tests;
