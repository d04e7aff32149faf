//! Chooses which initializers are parameters: by the role they play, overruled by the globs of the recipe.

mod report;
mod roles;
mod tied;

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
    /// Initializers that are copies of a weight, in the order of the file.
    pub copies: Vec<TiedCopy>,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
    /// What is probably not as the user wants it, one sentence each.
    pub warnings: Vec<String>,
}

/// An initializer that holds what a weight holds: a tied weight that the file stores twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TiedCopy {
    /// Name of the copy.
    pub name: String,
    /// Name of the weight.
    pub of: String,
    /// Whether the copy, a matrix, is transposed.
    pub transposed: bool,
}

impl Parameters {
    /// Whether the weight is trained; none if the initializer is a constant.
    pub fn trainable(&self, name: &str) -> Option<bool> {
        self.weights.get(name).copied()
    }

    /// Takes trained weights that are copies of other trained weights from the weights.
    fn tie(&mut self, model: &OnnxModel, roles: &[Role]) {
        let name = |i: usize| model.initializers[i].name.clone();
        let trained =
            (0..model.initializers.len()).filter(|&i| self.trainable(&model.initializers[i].name) == Some(true));
        for tied::Tie { copy, of, transposed } in tied::find(model, roles, trained) {
            self.weights.remove(&name(copy));
            self.copies.push(TiedCopy { name: name(copy), of: name(of), transposed });
        }
    }

    /// Whether the initializer is a copy of a weight.
    fn is_copy(&self, name: &str) -> bool {
        self.copies.iter().any(|copy| copy.name == name)
    }
}

/// Chooses the weights among the initializers that are in use.
///
/// An initializer that plays the role of a parameter is a weight, and trained unless the globs say otherwise. A float
/// initializer without such a role is a weight that is not trained if its values are in a file of their own, which is never
/// read. With `retie`, trained matrices that are copies of another one are tied to it, see [`tied`].
///
/// # Errors
/// Code `parameters` for a glob that matches no initializer, `onnx-dtype` for parameters of another type than f32.
pub(super) fn choose(model: &OnnxModel, recipe: &Recipe, retie: bool) -> Checked<Parameters> {
    let roles = roles::roles(model);
    let mut faults = unmatched(model, recipe);
    let mut parameters = Parameters::default();
    for (record, role) in model.initializers.iter().zip(&roles) {
        if role.n_uses == 0 || !record.dtype.is_float() {
            continue;
        }
        let matches = |globs: &[String]| globs.iter().any(|glob| matches_glob(glob, &record.name));
        let chosen = if recipe.trainable.is_empty() { role.is_parameter() } else { matches(&recipe.trainable) };
        let trainable = chosen && !matches(&recipe.frozen);
        if chosen || role.is_parameter() || record.bytes().is_none() {
            faults.extend(refuse_type(record));
            parameters.weights.insert(record.name.clone(), trainable);
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    if retie {
        parameters.tie(model, &roles);
    }
    parameters.notes = report::notes(model, &parameters);
    parameters.warnings = report::warnings(model, &roles, &parameters);
    Ok(parameters)
}

/// The initializers that play the role of a parameter, and which of them are copies of others.
#[derive(Clone, Debug, Default)]
pub struct ParameterNames {
    /// Names of the parameters, without the copies, in the order of the file.
    pub originals: Vec<String>,
    /// Initializers that are copies of one of them.
    pub copies: Vec<TiedCopy>,
}

/// What training changes unless a recipe says otherwise, whatever the type of the floats.
pub fn names(model: &OnnxModel) -> ParameterNames {
    let roles = roles::roles(model);
    let plays = |i: &usize| {
        let (record, role) = (&model.initializers[*i], &roles[*i]);
        role.n_uses > 0 && role.is_parameter() && record.dtype.is_float()
    };
    let chosen: Vec<usize> = (0..model.initializers.len()).filter(plays).collect();
    let singles = chosen.iter().copied().filter(|&i| model.initializers[i].dtype == ElementType::F32);
    let ties = tied::find(model, &roles, singles);
    let is_copy = |i: usize| ties.iter().any(|tie| tie.copy == i);
    let name = |i: usize| model.initializers[i].name.clone();
    ParameterNames {
        originals: chosen.iter().filter(|&&i| !is_copy(i)).map(|&i| name(i)).collect(),
        copies: ties
            .iter()
            .map(|t| TiedCopy { name: name(t.copy), of: name(t.of), transposed: t.transposed })
            .collect(),
    }
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

#[cfg(test)]
mod tests {
    use super::super::tests::{Builder, names};
    use super::*;

    /// The trained and the frozen weights of a model, space-separated.
    fn check(builder: &Builder, trainable: &[&str], frozen: &[&str]) -> Result<(String, String), Vec<&'static str>> {
        let globs = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        let recipe = Recipe { trainable: globs(trainable), frozen: globs(frozen), ..Recipe::default() };
        let chosen = choose(&builder.read(), &recipe, true)
            .map_err(|faults| faults.iter().map(|f| f.code).collect::<Vec<_>>())?;
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
