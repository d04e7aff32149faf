//! Chooses which initializers are parameters: by the role they play, overruled by the globs of the recipe.

mod roles;

use roles::Role;

use std::collections::BTreeMap;

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use galvatron_ir::recipe::Recipe;
use galvatron_ir::recipe::matches_glob;

use super::reader::OnnxModel;
use super::weights::{ElementType, TensorRecord};

/// Which initializers become weights of the program; all others are constants.
#[derive(Clone, Debug, Default)]
pub(super) struct Parameters {
    /// Name of the initializer, and whether it is trained.
    weights: BTreeMap<String, bool>,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
}

impl Parameters {
    /// Whether the weight is trained; none if the initializer is a constant.
    pub fn trainable(&self, name: &str) -> Option<bool> {
        self.weights.get(name).copied()
    }
}

/// Chooses the weights among the initializers that are in use.
///
/// An initializer that plays the role of a parameter is a weight, and trained unless the globs say otherwise. A float
/// initializer without such a role is a weight that is not trained if its values are in a file of their own, which is never
/// read.
///
/// # Errors
/// Code `parameters` for a glob that matches no initializer, `onnx-dtype` for parameters of another type than f32.
pub(super) fn choose(model: &OnnxModel, recipe: &Recipe) -> Checked<Parameters> {
    let roles = roles::roles(model);
    let mut faults = unmatched(model, recipe);
    let mut parameters = Parameters::default();
    for (record, role) in model.initializers.iter().zip(&roles) {
        if role.n_uses == 0 || !record.dtype.is_float() {
            continue;
        }
        let matches = |globs: &[String]| globs.iter().any(|glob| matches_glob(glob, &record.name));
        let chosen = if recipe.trainable.is_empty() { role.parameter } else { matches(&recipe.trainable) };
        let trainable = chosen && !matches(&recipe.frozen);
        if chosen || role.parameter || record.bytes().is_none() {
            faults.extend(refuse_type(record));
            parameters.weights.insert(record.name.clone(), trainable);
        }
    }
    parameters.notes = notes(model, &roles, &parameters);
    if faults.is_empty() { Ok(parameters) } else { Err(faults) }
}

fn refuse_type(record: &TensorRecord) -> Option<Diagnostic> {
    let message = format!("parameter `{}` holds {} elements", record.name, record.dtype.name());
    let fault = Diagnostic::new("onnx-dtype", message).help("export the model in single precision");
    (record.dtype != ElementType::F32).then_some(fault)
}

fn unmatched(model: &OnnxModel, recipe: &Recipe) -> Vec<Diagnostic> {
    let keys = [("trainable", &recipe.trainable), ("frozen", &recipe.frozen)];
    let globs = keys.into_iter().flat_map(|(key, globs)| globs.iter().map(move |glob| (key, glob)));
    let matches = |glob: &str| model.initializers.iter().any(|i| i.dtype.is_float() && matches_glob(glob, &i.name));
    let fault = |(key, glob): (&str, &String)| {
        let message = format!("`parameters.{key}` names `{glob}`, which matches no float initializer of the model");
        Diagnostic::new("parameters", message).help("names are those of the initializers in the ONNX file")
    };
    globs.filter(|(_, glob)| !matches(glob)).map(fault).collect()
}

fn notes(model: &OnnxModel, roles: &[Role], parameters: &Parameters) -> Vec<String> {
    let records = model.initializers.iter().filter_map(|r| Some((r, parameters.trainable(&r.name)?)));
    let (trained, frozen): (Vec<_>, Vec<_>) = records.partition(|(_, trainable)| *trainable);
    let elements: u64 = trained.iter().map(|(r, _)| r.n_elements()).sum();
    let mut notes = vec![format!("{} initializers with {elements} elements are trained", trained.len())];
    let constants = |r: &&TensorRecord| r.dtype.is_float() && r.n_elements() > 1;
    let constants = model.initializers.iter().filter(constants).filter(|r| parameters.trainable(&r.name).is_none());
    for (names, what) in [
        (frozen.iter().map(|(r, _)| r.name.as_str()).collect::<Vec<_>>(), "are read but not trained"),
        (constants.map(|r| r.name.as_str()).collect(), "are constants"),
    ] {
        if !names.is_empty() {
            notes.push(format!("{} float initializers {what}: {}", names.len(), abbreviated(&names)));
        }
    }
    let shared = model.initializers.iter().zip(roles).filter(|(r, role)| r.dims.len() == 1 && role.n_uses > 1);
    let shared: Vec<&str> =
        shared.map(|(r, _)| r.name.as_str()).filter(|n| parameters.trainable(n) == Some(true)).collect();
    if !shared.is_empty() {
        let why = "share one initializer; the exporter may have merged equal ones, which are then trained as one";
        notes.push(format!("gains or biases of several layers {why}: {}", abbreviated(&shared)));
    }
    notes
}

/// At most eight names, in backticks.
fn abbreviated(names: &[&str]) -> String {
    let listed: Vec<_> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
    let rest = if names.len() > 8 { format!(" and {} more", names.len() - 8) } else { String::new() };
    listed.join(", ") + &rest
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Builder, names};
    use super::*;

    /// The trained and the frozen weights of a model, space-separated.
    fn check(builder: &Builder, trainable: &[&str], frozen: &[&str]) -> Result<(String, String), Vec<&'static str>> {
        let globs = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        let recipe = Recipe { trainable: globs(trainable), frozen: globs(frozen), ..Recipe::default() };
        let chosen =
            choose(&builder.read(), &recipe).map_err(|faults| faults.iter().map(|f| f.code).collect::<Vec<_>>())?;
        let of = |wanted| names(chosen.weights.iter().filter(|(_, t)| **t == wanted).map(|(n, _)| n.as_str()));
        Ok((of(true), of(false)))
    }

    fn model() -> Builder {
        let weights = Builder::new(&["a = MatMul x w", "b = Add a bias", "c = Mul b half", "y = Add c mask"]);
        weights.f32("w", &[4, 4]).f32("bias", &[4]).f32("half", &[]).f32("mask", &[4, 4]).f32("unused", &[4, 4])
    }

    #[test]
    fn roles_decide_without_globs() {
        assert_eq!(check(&model(), &[], &[]).unwrap(), ("bias mask w".into(), "".into()));
    }

    #[test]
    fn frozen_takes_away() {
        assert_eq!(check(&model(), &[], &["*ma*", "bias"]).unwrap(), ("w".into(), "bias mask".into()));
    }

    #[test]
    fn trainable_is_the_whole_truth() {
        assert_eq!(check(&model(), &["w", "half"], &[]).unwrap(), ("half w".into(), "bias mask".into()));
    }

    #[test]
    fn globs_must_match() {
        assert_eq!(check(&model(), &["transformer.*"], &["x"]).unwrap_err(), ["parameters"; 2]);
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        assert!(matches_glob("h.*.ln_*.weight", "h.11.ln_1.weight") && matches_glob("*", ""));
        assert!(!matches_glob("*.bias", "h.0.weight") && !matches_glob("h", "h.0"));
    }
}
