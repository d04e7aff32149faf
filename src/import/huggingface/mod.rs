//! Builds models from a `config.json` of Hugging Face: the forward graph from its keys, parameters under their names in
//! checkpoints, and their places in the checkpoint that lies beside it, if one does.

mod builder;
mod checkpoint;
mod config;
mod layers;
mod models;

use std::path::{Path, PathBuf};

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use galvatron_ir::module::Module;
use galvatron_ir::recipe::{Recipe, matches_glob};
use serde_json::{Map, Value};

use super::{ImportOptions, Imported};
use builder::Builder;
use checkpoint::Checkpoint;
use config::Config;
use models::{FAMILIES, Family, Sizes, Tokens};

/// Name of the configuration in the folder of a model.
const CONFIG: &str = "config.json";

/// The key that names the sequence of the decoder in `dims`.
const DECODER_SEQUENCE: &str = "decoder_sequence";

/// The configuration that a path names: a JSON file, recognised by its first character, or a folder that has one.
pub fn config_file(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        return Some(path.join(CONFIG));
    }
    if !path.exists() && path.extension().is_some_and(|e| e == "json") {
        return Some(path.to_path_buf());
    }
    use std::io::Read;
    let mut start = Vec::new();
    std::fs::File::open(path).ok()?.take(64).read_to_end(&mut start).ok()?;
    // No ONNX file starts with a brace: that would be the start of a group, which its format does not have.
    (start.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{')).then(|| path.to_path_buf())
}

/// Builds the model of a configuration as a module at level `graph`.
///
/// # Errors
/// `config-file` for a file that is no configuration, `config-type` for a kind of model that is not known,
/// `config-architecture` for a head that is not built, `config-key` for keys that are not supported, `config-value` for
/// values that cannot be, `config-shape` for sizes that do not fit, `config-weights` for a checkpoint that does not fit, and
/// `batch` where batch or sequence are missing.
pub fn import(path: &Path, options: &ImportOptions<'_>) -> Checked<Imported> {
    let one = |fault: Diagnostic| vec![fault];
    let object = read_object(path).map_err(one)?;
    let family = family(&object).map_err(one)?;
    let checkpoint = Checkpoint::beside(path).map_err(one)?;
    let stored = checkpoint.as_ref().map(Checkpoint::names).unwrap_or_default();
    let mut config = Config::new(object, stored, options.recipe.dropout);
    check_architecture(&mut config, family);
    config.never("quantization_config");
    let model = (family.read)(&mut config);
    let mut notes = config.finish()?;
    let sizes = sizes(options.recipe, model.tokens())?;
    let mut b = Builder::new(family.model_type, options.recipe.seed);
    model.build(&mut b, sizes).map_err(one)?;
    let mut module = b.module;
    match checkpoint {
        Some(checkpoint) => notes.extend(checkpoint.place(&mut module)?),
        None => notes.push("there is no checkpoint beside the configuration: parameters need `--init`".into()),
    }
    let n_parameters: u64 = module.initializers.iter().map(|i| i.ty.elements()).sum();
    notes.push(format!("{} parameters in {} tensors", n_parameters, module.initializers.len()));
    freeze(&mut module, options.recipe)?;
    let sequence = if model.tokens() == Tokens::None { 0 } else { sizes.sequence };
    Ok(Imported { module, notes, warnings: Vec::new(), global_batch: sizes.batch, sequence })
}

fn read_object(path: &Path) -> Result<Map<String, Value>, Diagnostic> {
    let fault = |what: String| {
        Diagnostic::new("config-file", what).help("give an ONNX file, a `config.json`, or a folder that has one")
    };
    let text = std::fs::read_to_string(path).map_err(|e| fault(format!("cannot read `{}`: {e}", path.display())))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(fault(format!("`{}` holds no object", path.display()))),
        Err(e) => Err(fault(format!("`{}` is no JSON: {e}", path.display()))),
    }
}

fn family(object: &Map<String, Value>) -> Result<&'static Family, Diagnostic> {
    let known: Vec<&str> = FAMILIES.iter().map(|f| f.model_type).collect();
    let help = format!("the kinds that are built are {}; others can be exported as ONNX", known.join(", "));
    let Some(model_type) = object.get("model_type").and_then(Value::as_str) else {
        return Err(Diagnostic::new("config-type", "the configuration has no `model_type`").help(help));
    };
    FAMILIES.iter().find(|f| f.model_type == model_type).ok_or_else(|| {
        Diagnostic::new("config-type", format!("models of type `{model_type}` are not built")).help(help)
    })
}

/// The head that is built must be the one that the configuration names.
fn check_architecture(config: &mut Config, family: &Family) {
    let Some(found) = config.get("architectures") else { return };
    let built = family.architectures[0];
    match found.as_array().and_then(|all| all.first()).and_then(Value::as_str) {
        Some(name) if name == built => {}
        Some(name) if family.architectures.contains(&name) => {
            config.note(format!("the configuration is of a `{name}`; built is a `{built}`"));
        }
        Some(name) => {
            let message = format!("the architecture is `{name}`, which is not built");
            let help = format!("of this kind `{built}` is built; name that, or leave `architectures` out");
            config.fault(Diagnostic::new("config-architecture", message).help(help));
        }
        None => {}
    }
}

/// Batch and sequence of the recipe.
fn sizes(recipe: &Recipe, tokens: Tokens) -> Checked<Sizes> {
    let mut faults = Vec::new();
    let missing = |key: &str| {
        let message = format!("a configuration does not say how much a step reads, and `{key}` is not given");
        Diagnostic::new("batch", message).help(format!("give it as `--set {key}=N`"))
    };
    if recipe.global_batch.is_none() {
        faults.push(missing("batch.global"));
    }
    if recipe.sequence.is_none() && tokens != Tokens::None {
        faults.push(missing("batch.sequence"));
    }
    let sequence = recipe.sequence.unwrap_or(1);
    if let Tokens::UpTo(longest) = tokens
        && sequence > longest
    {
        let message = format!("`batch.sequence` is {sequence}, but the model has {longest} positions");
        faults.push(Diagnostic::new("batch", message).help(format!("set it to {longest} or less")));
    }
    let decoder = recipe.dims.iter().find(|(name, _)| name == DECODER_SEQUENCE).map(|(_, n)| *n);
    let sizes =
        Sizes { batch: recipe.global_batch.unwrap_or(1), sequence, decoder_sequence: decoder.unwrap_or(sequence) };
    if faults.is_empty() { Ok(sizes) } else { Err(faults) }
}

/// Decides which parameters are trained by the globs of the recipe; all are unless it says otherwise.
fn freeze(module: &mut Module, recipe: &Recipe) -> Checked<()> {
    let mut faults = Vec::new();
    for (key, globs) in [("trainable", &recipe.trainable), ("frozen", &recipe.frozen)] {
        for glob in globs.iter().filter(|glob| !module.initializers.iter().any(|i| matches_glob(glob, &i.name))) {
            let message = format!("`parameters.{key}` names `{glob}`, which matches no parameter of the model");
            faults.push(Diagnostic::new("parameters", message).help("names are those of checkpoints"));
        }
    }
    for weight in &mut module.program.weights {
        let name = &module.initializers[weight.initializer].name;
        let matches = |globs: &[String]| globs.iter().any(|glob| matches_glob(glob, name));
        weight.trainable = (recipe.trainable.is_empty() || matches(&recipe.trainable)) && !matches(&recipe.frozen);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// At most eight names, in backticks.
fn abbreviated(names: &[String]) -> String {
    let listed: Vec<_> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
    let rest = if names.len() > 8 { format!(" and {} more", names.len() - 8) } else { String::new() };
    listed.join(", ") + &rest
}

#[cfg(test)]
mod tests;
