//! `galvatron-exec export`: writes a trained model as ONNX.

use clap::Args;
use std::path::PathBuf;

/// Writes trained weights into the ONNX file that they were trained from.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The model that was trained.
    #[arg(long, value_name = "MODEL.onnx")]
    pub onnx: PathBuf,
    /// The trained weights: a folder that `--save` wrote, a .safetensors file, or an index.json of several.
    #[arg(long, value_name = "PATH")]
    pub weights: PathBuf,
    /// The trained model; tensors that lie beside the original go to TRAINED.onnx.data.
    #[arg(short, long, value_name = "TRAINED.onnx")]
    pub output: PathBuf,
}

/// Runs the command; returns the exit status.
#[cfg(feature = "compiler")]
pub fn export(args: &ExportArgs) -> i32 {
    use super::{OK, complain, shown};
    use crate::export::{Export, export};

    match export(&Export { onnx: &args.onnx, weights: &args.weights, output: &args.output }) {
        Ok(exported) => {
            let beside = exported.data.map_or(String::new(), |data| format!(" and `{}`", shown(&data)));
            let (n_tensors, n_elements) = (exported.n_tensors, exported.n_elements);
            println!("wrote `{}`{beside}: {n_tensors} trained tensors, {n_elements} elements", shown(&args.output));
            OK
        }
        Err(faults) => complain(&faults, None),
    }
}

/// Refuses the command: models are read by the compiler.
#[cfg(not(feature = "compiler"))]
pub fn export(_: &ExportArgs) -> i32 {
    let fault = galvatron_ir::Diagnostic::new("usage", "this `galvatron-exec` was built without what reads ONNX files");
    super::complain(&[fault.help("build it without `--no-default-features`")], None)
}
