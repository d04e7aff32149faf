//! `--profile`: what was measured, from a `profile.json` or from a folder of Galvatron's files.

mod file;
mod galvatron;

pub use file::{parse_profile, to_json};
pub use galvatron::read_folder;

use super::cluster::INTER_NODE;
use galvatron_ir::cluster::Cluster;
use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::profile::Profile;
use galvatron_ir::recipe::Recipe;
use galvatron_ir::types::DType;
use std::path::Path;

/// Faults of one file, with its name and text.
#[derive(Debug)]
pub struct FileFaults {
    /// The file, or the folder for what concerns none of them.
    pub name: String,
    /// Its text; empty if it was not read.
    pub text: String,
    /// What is wrong, in the order of the file.
    pub faults: Vec<Diagnostic>,
}

impl FileFaults {
    /// A fault of a path whose text does not matter.
    fn of_path(path: &Path, fault: Diagnostic) -> FileFaults {
        FileFaults { name: path.display().to_string(), text: String::new(), faults: vec![fault] }
    }
}

/// Which of Galvatron's files are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Nodes of the cluster.
    pub nodes: u32,
    /// Devices of each node.
    pub devices_per_node: u32,
    /// In what the layers compute.
    pub compute: DType,
}

impl Wanted {
    /// Those of a cluster, for a training.
    pub fn of(cluster: &Cluster, recipe: &Recipe) -> Wanted {
        let world = cluster.world();
        let innermost = cluster.levels.last().filter(|level| level.name != INTER_NODE);
        let devices_per_node = innermost.map_or(1, |level| level.size);
        Wanted { nodes: world / devices_per_node, devices_per_node, compute: recipe.compute }
    }
}

/// Reads a profile: a JSON file, or a folder of Galvatron's files.
///
/// # Errors
/// Files that cannot be read, and the faults of each.
pub fn read_profile(path: &Path, wanted: Wanted) -> Result<Profile, Vec<FileFaults>> {
    if path.is_dir() {
        return read_folder(path, wanted);
    }
    let text = read(path).map_err(|fault| vec![fault])?;
    let name = path.display().to_string();
    parse_profile(&text).map_err(|faults| vec![FileFaults { name, text, faults }])
}

fn read(path: &Path) -> Result<String, FileFaults> {
    std::fs::read_to_string(path).map_err(|e| {
        let message = format!("cannot read `{}`: {e}", path.display());
        FileFaults::of_path(path, Diagnostic::new("file", message).help("check the path"))
    })
}
