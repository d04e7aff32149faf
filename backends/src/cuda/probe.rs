//! Looks for the libraries of CUDA before anything is called in them: a missing one is a diagnostic, never a panic.
//!
//! A library is looked for by its names as the system's loader finds them, then in folders. One that is found stays loaded, so
//! that later look-ups by its name find the same one.

use std::ffi::c_int;
use std::fmt;
use std::path::PathBuf;

use libloading::Library;

/// A library that the backend needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// What it is.
    pub what: &'static str,
    /// Its file names, the preferred one first.
    pub names: &'static [&'static str],
    /// The function that tells its version, and how.
    version: (&'static [u8], Version),
}

/// How a library tells its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// `int f(int *version)`, 1000 major + 10 minor.
    Driver,
    /// `int f(int *major, int *minor)`.
    Pair,
    /// `size_t f()`, 10000 major + 100 minor + patch.
    Size,
    /// `int f(int *version)`, 10000 major + 100 minor + patch.
    Number,
}

/// The libraries in the order in which they are looked for.
pub const NEEDED: [Needed; 4] = [
    Needed {
        what: "driver",
        names: &["libcuda.so.1", "libcuda.so"],
        version: (b"cuDriverGetVersion\0", Version::Driver),
    },
    Needed {
        what: "NVRTC",
        names: &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
        version: (b"nvrtcVersion\0", Version::Pair),
    },
    Needed {
        what: "cuBLASLt",
        names: &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
        version: (b"cublasLtGetVersion\0", Version::Size),
    },
    Needed { what: "NCCL", names: &["libnccl.so.2", "libnccl.so"], version: (b"ncclGetVersion\0", Version::Number) },
];

/// The environment variable that names folders, between colons, which go before the system's loader.
const OWN_FOLDERS: &str = "GALVATRON_CUDA_LIBRARIES";

/// Environment variables of CUDA that name folders, where libraries lie below.
const FOLDERS: [(&str, &str); 2] = [("CUDA_HOME", "lib64"), ("CUDA_PATH", "lib64")];

/// Where toolkits are installed.
const USUAL: [&str; 3] = ["/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];

/// A library that was found.
#[derive(Debug)]
pub struct Found {
    /// What it is.
    pub what: &'static str,
    /// The name or path under which it was loaded.
    pub path: PathBuf,
    /// Its version.
    pub version: String,
    /// The library itself.
    pub(super) library: &'static Library,
}

/// The libraries of CUDA, loaded.
#[derive(Debug)]
pub struct Libraries {
    /// In the order of [`NEEDED`].
    pub found: Vec<Found>,
}

impl Libraries {
    /// NCCL.
    pub(super) fn nccl(&self) -> &'static Library {
        self.found[3].library
    }
}

/// A library as it was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// What it is.
    pub what: &'static str,
    /// Name or path and version if it was found; why not otherwise.
    pub outcome: Result<(PathBuf, String), String>,
}

/// Not all libraries of CUDA are there. It lists all that were looked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct CudaMissing {
    /// Each library.
    pub looked: Vec<Looked>,
    /// The folders that were looked in besides the system's loader.
    pub folders: Vec<PathBuf>,
}

impl fmt::Display for CudaMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the CUDA libraries are not all there:")?;
        for looked in &self.looked {
            match &looked.outcome {
                Ok((path, version)) => write!(f, "\n  {}: {} (version {version})", looked.what, path.display())?,
                Err(why) => write!(f, "\n  {}: not found: {why}", looked.what)?,
            }
        }
        let folders: Vec<String> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
        let folders = if folders.is_empty() { "no folder".into() } else { folders.join(", ") };
        write!(f, "\n  looked with the system's loader (LD_LIBRARY_PATH, ld.so.conf), and in {folders}")
    }
}

impl CudaMissing {
    /// How it can be mended.
    pub fn help(&self) -> &'static str {
        "install the NVIDIA driver and the CUDA libraries, or name their folders, between colons, in \
         GALVATRON_CUDA_LIBRARIES; leave `--backend` out to train on CPU ranks"
    }
}

/// The folders that the user names, only those that exist.
fn own_folders() -> Vec<PathBuf> {
    let named = std::env::var_os(OWN_FOLDERS).unwrap_or_default();
    std::env::split_paths(&named).filter(|folder| folder.is_dir()).collect()
}

/// The folders in which libraries are looked for after the system's loader; only those that exist.
fn folders() -> Vec<PathBuf> {
    let named = FOLDERS.iter().filter_map(|(variable, inside)| Some((std::env::var_os(variable)?, inside)));
    let named = named.flat_map(|(value, inside)| {
        std::env::split_paths(&value).map(|folder| folder.join(inside)).collect::<Vec<_>>()
    });
    let mut folders: Vec<PathBuf> = named.chain(USUAL.iter().map(PathBuf::from)).filter(|f| f.is_dir()).collect();
    let mut seen = Vec::new();
    folders.retain(|folder| {
        !seen.contains(folder) && {
            seen.push(folder.clone());
            true
        }
    });
    folders
}

/// Loads all libraries, or says which are missing.
///
/// # Errors
/// [`CudaMissing`] with all libraries, found or not.
pub fn probe() -> Result<Libraries, CudaMissing> {
    let (own, rest) = (own_folders(), folders());
    let outcomes: Vec<Result<Found, String>> = NEEDED.iter().map(|needed| find(needed, &own, &rest)).collect();
    let folders = own.into_iter().chain(rest).collect();
    if outcomes.iter().all(Result::is_ok) {
        return Ok(Libraries { found: outcomes.into_iter().filter_map(Result::ok).collect() });
    }
    let looked = |(needed, outcome): (&Needed, Result<Found, String>)| Looked {
        what: needed.what,
        outcome: outcome.map(|found| (found.path, found.version)),
    };
    Err(CudaMissing { looked: NEEDED.iter().zip(outcomes).map(looked).collect(), folders })
}

/// Looks in the folders that the user names, then where the system's loader does, then in the others.
fn find(needed: &Needed, own: &[PathBuf], rest: &[PathBuf]) -> Result<Found, String> {
    let in_folder = |folder: &PathBuf| needed.names.iter().map(|name| folder.join(name)).collect::<Vec<_>>();
    let inside =
        |folders: &[PathBuf]| folders.iter().flat_map(in_folder).filter(|path| path.exists()).collect::<Vec<_>>();
    let plain = needed.names.iter().map(PathBuf::from).collect::<Vec<_>>();
    let paths: Vec<PathBuf> = [inside(own), plain, inside(rest)].concat();
    let mut broken = Vec::new();
    for path in &paths {
        // SAFETY: loading runs the library's initialisers; these are NVIDIA's, which may be loaded at any time.
        match unsafe { Library::new(path) } {
            Ok(library) => match version(&library, needed) {
                Ok(version) => {
                    // It is never unloaded: functions of it are called from everywhere until the process ends.
                    let library = Box::leak(Box::new(library));
                    return Ok(Found { what: needed.what, path: path.clone(), version, library });
                }
                Err(why) => broken.push(format!("{}: {why}", path.display())),
            },
            Err(why) if path.is_absolute() => broken.push(why.to_string()),
            Err(_) => {}
        }
    }
    let tried = format!("tried {}", needed.names.join(", "));
    Err(if broken.is_empty() { tried } else { format!("{tried}; {}", broken.join("; ")) })
}

/// Asks a library for its version.
fn version(library: &Library, needed: &Needed) -> Result<String, String> {
    let (symbol, how) = needed.version;
    let dotted = |v: usize| format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100);
    let failed = |status: c_int| format!("it does not tell its version: status {status}");
    let (mut a, mut b): (c_int, c_int) = (0, 0);
    match how {
        Version::Driver | Version::Number => {
            // SAFETY: the library declares the function with this type.
            let f = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(symbol) };
            let f = f.map_err(|e| e.to_string())?;
            // SAFETY: it writes one int.
            let status = unsafe { f(&mut a) };
            let text =
                if how == Version::Driver { format!("{}.{}", a / 1000, a % 1000 / 10) } else { dotted(a as usize) };
            if status == 0 { Ok(text) } else { Err(failed(status)) }
        }
        Version::Pair => {
            // SAFETY: the library declares the function with this type.
            let f = unsafe { library.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(symbol) };
            let f = f.map_err(|e| e.to_string())?;
            // SAFETY: it writes two ints.
            let status = unsafe { f(&mut a, &mut b) };
            if status == 0 { Ok(format!("{a}.{b}")) } else { Err(failed(status)) }
        }
        Version::Size => {
            // SAFETY: the library declares the function with this type.
            let f = unsafe { library.get::<unsafe extern "C" fn() -> usize>(symbol) };
            let f = f.map_err(|e| e.to_string())?;
            // SAFETY: it takes nothing.
            Ok(dotted(unsafe { f() }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_libraries_are_listed() {
        let looked = NEEDED.iter().map(|n| Looked { what: n.what, outcome: Err(format!("tried {}", n.names[0])) });
        let text = CudaMissing { looked: looked.collect(), folders: Vec::new() }.to_string();
        for name in ["driver", "NVRTC", "cuBLASLt", "NCCL", "libnccl.so.2", "libcuda.so.1"] {
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn a_probe_never_panics() {
        if let Err(missing) = probe() {
            assert_eq!(missing.looked.len(), NEEDED.len());
        }
    }
}
