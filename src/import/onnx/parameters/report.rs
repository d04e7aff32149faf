//! What the user should know about the choice of parameters: what is trained, and what an exporter has made of parameters.

use super::super::reader::OnnxModel;
use super::super::weights::TensorRecord;
use super::Parameters;
use super::roles::{Role, is_made_up};
use super::tied::Files;

/// How to export a model such that its parameters stay what they are.
const RECIPE: &str = "export with `optimize=False`, or let the exporter optimize while the parameters have no value \
                      (README, \"A model from PyTorch\")";

/// Fewest different elements of a constant that may have been a parameter; masks have two.
const MIN_DISTINCT: usize = 16;

/// What was chosen, one sentence each.
pub(super) fn notes(model: &OnnxModel, parameters: &Parameters) -> Vec<String> {
    let records = model.initializers.iter().filter_map(|r| Some((r, parameters.trainable(&r.name)?)));
    let (trained, frozen): (Vec<_>, Vec<_>) = records.partition(|(_, trainable)| *trainable);
    let elements: u64 = trained.iter().map(|(r, _)| r.n_elements()).sum();
    let mut notes = vec![format!("{} initializers with {elements} elements are trained", trained.len())];
    let made_up = trained.iter().map(|(r, _)| r.name.as_str()).filter(|name| is_made_up(name));
    for (names, what) in [
        (
            frozen.iter().map(|(r, _)| r.name.as_str()).collect::<Vec<_>>(),
            "float initializers are read but not trained",
        ),
        (constants(model, parameters).map(|r| r.name.as_str()).collect(), "float initializers are constants"),
        (made_up.collect(), "parameters are trained and saved under names that the exporter made up"),
    ] {
        if !names.is_empty() {
            notes.push(format!("{} {what}: {}", names.len(), abbreviated(&names)));
        }
    }
    notes.extend(parameters.copies.iter().map(|copy| {
        let transposed = if copy.transposed { " transposed" } else { "" };
        format!("`{}` equals `{}`{transposed}: tied again; `--no-retie` keeps them apart", copy.name, copy.of)
    }));
    notes
}

/// What an exporter has done to parameters, with the way to avoid it.
pub(super) fn warnings(model: &OnnxModel, roles: &[Role], parameters: &Parameters) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut files = Files::default();
    let mut is_varied =
        |r: &TensorRecord| files.content(r).is_some_and(|c| super::tied::has_distinct(&c, MIN_DISTINCT));
    let role = |r: &TensorRecord| model.initializers.iter().position(|i| i.name == r.name).map(|i| roles[i]);
    let folded = constants(model, parameters).filter(|r| role(r).is_some_and(|role| role.folded) && is_varied(r));
    let folded: Vec<&str> = folded.map(|r| r.name.as_str()).collect();
    if !folded.is_empty() {
        warnings.push(format!(
            "{} constants look like parameters that the exporter folded, and are not trained: {}; {RECIPE}",
            folded.len(),
            abbreviated(&folded)
        ));
    }
    let is_trained = |r: &TensorRecord| parameters.trainable(&r.name) == Some(true);
    let merged = model.initializers.iter().zip(roles).filter(|(r, role)| r.dims.len() == 1 && role.n_roles > 1);
    let merged: Vec<&str> = merged.filter(|(r, _)| is_trained(r)).map(|(r, _)| r.name.as_str()).collect();
    if !merged.is_empty() {
        warnings.push(format!(
            "{} gains or biases are used in several places: {}; if the exporter merged equal ones, they are trained as one; {RECIPE}",
            merged.len(),
            abbreviated(&merged)
        ));
    }
    warnings
}

/// Float initializers of several elements that are neither weights nor copies of weights.
fn constants<'a>(model: &'a OnnxModel, parameters: &'a Parameters) -> impl Iterator<Item = &'a TensorRecord> {
    let is_constant = |r: &&TensorRecord| parameters.trainable(&r.name).is_none() && !parameters.is_copy(&r.name);
    model.initializers.iter().filter(|r| r.dtype.is_float() && r.n_elements() > 1).filter(is_constant)
}

/// At most eight names, in backticks.
fn abbreviated(names: &[&str]) -> String {
    let listed: Vec<_> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
    let rest = if names.len() > 8 { format!(" and {} more", names.len() - 8) } else { String::new() };
    listed.join(", ") + &rest
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    fn warnings(builder: &Builder) -> Vec<String> {
        builder.import().unwrap().warnings
    }

    #[test]
    fn folded_parameters_are_listed_with_the_way_to_avoid_them() {
        let varied = Builder::new(&["y = Add x embedding_1"]).input("x", 1, "batch 6 4").f32("embedding_1", &[1, 6, 4]);
        let found = warnings(&varied);
        assert!(
            found[0].starts_with("1 constants look like parameters") && found[0].contains("`embedding_1`; export with")
        );
        let mask = Builder::new(&["y = Add x where_1"]).input("x", 1, "batch 6 6");
        assert!(warnings(&mask.elements("where_1", 6, 6, |i, j| if j > i { -9.0 } else { 0.0 })).is_empty());
    }

    #[test]
    fn merged_gains_are_mentioned_and_a_gain_that_is_computed_with_is_none() {
        let norms = ["a = LayerNormalization x gain", "y = LayerNormalization a gain"];
        let found = warnings(&Builder::new(&norms).f32("gain", &[4]));
        assert!(found[0].starts_with("1 gains or biases are used in several places: `gain`; "), "{found:?}");
        let gemma = ["one = Add gain unit", "y = Mul x one"];
        assert!(warnings(&Builder::new(&gemma).f32("gain", &[4]).f32("unit", &[])).is_empty());
    }
}
