//! Compiles kernel sources for one GPU, by NVRTC, to machine code (CUBIN: the driver need not know the compiler's PTX).
//!
//! What was compiled is kept in the user's cache folder under a hash of source, options and compiler version.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};

use super::unit::Unit;

/// Options besides the architecture.
const OPTIONS: [&str; 2] = ["--std=c++17", "-default-device"];

/// Compiles a source of kernels for an architecture such as `sm_90`.
///
/// # Errors
/// The compiler's log.
pub fn compile(unit: &Unit, arch: &str) -> Result<Vec<u8>, String> {
    let source = unit.source();
    let own = [format!("--gpu-architecture={arch}"), format!("--fmad={}", unit.may_contract())];
    let options: Vec<String> = own.into_iter().chain(OPTIONS.map(String::from)).collect();
    let cached = cache_folder().map(|folder| folder.join(format!("{}-{}.cubin", unit.name(), key(&source, &options))));
    if let Some(image) = cached.as_ref().and_then(|path| std::fs::read(path).ok()).filter(|i| i.starts_with(b"\x7fELF"))
    {
        return Ok(image);
    }
    let image = compile_source(unit.name(), &source, &options)?;
    if let Some(path) = cached {
        keep(&path, &image);
    }
    Ok(image)
}

/// Writes a file whole or not at all; a cache that cannot be written is no fault.
fn keep(path: &Path, image: &[u8]) {
    let own = path.with_extension(format!("{}.{:?}", std::process::id(), std::thread::current().id()));
    let written = path.parent().map(std::fs::create_dir_all).is_some_and(|made| made.is_ok())
        && std::fs::write(&own, image).is_ok()
        && std::fs::rename(&own, path).is_ok();
    if !written {
        let _ = std::fs::remove_file(&own);
    }
}

/// `galvatron/kernels` in the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("galvatron").join("kernels"))
}

/// A hash of all that decides the result (FNV-1a, twice with different bases).
fn key(source: &str, options: &[String]) -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: it writes two ints.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    let version = format!("{major}.{minor}");
    let parts = || options.iter().map(String::as_str).chain([version.as_str(), source]);
    let hash = |base: u64| {
        let bytes = parts().flat_map(|part| part.bytes().chain([0]));
        bytes.fold(base, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    format!("{:016x}{:016x}", hash(0xcbf2_9ce4_8422_2325), hash(0x6c62_272e_07bb_0142))
}

/// A program that is destroyed when it is dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was created and is destroyed once.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn compile_source(name: &str, source: &str, options: &[String]) -> Result<Vec<u8>, String> {
    let text = CString::new(source).map_err(|_| "a source has a zero byte")?;
    let title = CString::new(format!("{name}.cu")).map_err(|_| "a name has a zero byte")?;
    let failed = |what: &str, e: result::NvrtcError| format!("NVRTC cannot {what} `{name}`: {e:?}");
    let program = Program(result::create_program(&text, Some(&title)).map_err(|e| failed("take", e))?);
    // SAFETY: the program is alive, and so are its source and name.
    if let Err(e) = unsafe { result::compile_program(program.0, options) } {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|c| c as u8).collect();
        let log = CStr::from_bytes_until_nul(&log).map(|log| log.to_string_lossy().into_owned()).unwrap_or_default();
        return Err(format!("{}\n{log}", failed("compile", e)));
    }
    let mut size = 0;
    // SAFETY: it writes one number.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &mut size) }.result().map_err(|e| failed("translate", e))?;
    let mut image = vec![0u8; size];
    // SAFETY: the buffer has the size that the library told.
    unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) }.result().map_err(|e| failed("translate", e))?;
    Ok(image)
}
