//! By which multiples extents are padded.

use super::{Compilation, Compiled, cost_model, mesh_of, training};
use galvatron_ir::Module;
use galvatron_ir::recipe::OptimizerKind;
use galvatron_passes::manager::{PASSES, PassManager};
use galvatron_passes::pad::{Degrees, worth_trying};
use galvatron_passes::search::{Pins, search};

/// What shall be divided: a multiple if there is one, or else what is pinned, in whatever layer.
pub(super) fn degrees(what: &Compilation<'_>, multiple: Option<u32>) -> Degrees {
    multiple.map_or_else(|| pinned(what.pins), |multiple| Degrees::all(u64::from(multiple)))
}

/// Why nothing can be padded, if so: without an epsilon AdamW divides the zeros of a padded weight by zero.
pub(super) fn obstacle(what: &Compilation<'_>) -> Option<&'static str> {
    let optimizer = &what.recipe.optimizer;
    let is_bare = optimizer.kind == OptimizerKind::Adamw && optimizer.eps as f32 <= 0.0;
    is_bare.then_some("nothing is padded, since AdamW with `optimizer.eps = 0` divides the zeros by zero")
}

/// The degrees of weights are those of `tp`, those of heads that and `ulysses` besides. Attention is inside of layers only.
fn pinned(pins: &Pins) -> Degrees {
    let mut degrees = Degrees::default();
    for layer in [&pins.all].into_iter().chain(pins.layers.values()) {
        let [tp, ulysses] = [layer.tp, layer.ulysses].map(|degree| u64::from(degree.unwrap_or(1)));
        degrees.weights.extend((tp > 1).then_some(tp));
        degrees.heads.extend((tp * ulysses > 1).then_some(tp * ulysses));
    }
    let outside = [&pins.embedding, &pins.head].into_iter().filter_map(|layer| layer.tp);
    degrees.weights.extend(outside.filter(|&tp| tp > 1).map(u64::from));
    degrees
}

/// The multiple that leads to a faster plan than no padding does, where no tensor degree is pinned and none divides the heads. The module is a
/// forward program with its loss.
pub(super) fn multiple(what: &Compilation<'_>, module: &Module, out: &Compiled) -> Option<u32> {
    // Whoever stops before the search has no plans to compare.
    let is_searched = what.stop_after.is_none_or(|pass| position(pass) >= position("search"));
    if pinned(what.pins) != Degrees::default() || obstacle(what).is_some() || !is_searched {
        return None;
    }
    let multiple = worth_trying(&module.program, &mesh_of(what.cluster))?;
    let step_ns = |multiple| step_ns(what, module.clone(), out, multiple).unwrap_or(u64::MAX);
    (step_ns(multiple) < step_ns(1)).then_some(multiple)
}

fn position(pass: &str) -> Option<usize> {
    PASSES.iter().position(|(name, _)| *name == pass)
}

/// Nanoseconds of a step of the plan that is found with a multiple, if one is.
fn step_ns(what: &Compilation<'_>, mut module: Module, out: &Compiled, multiple: u32) -> Option<u64> {
    let quiet = &mut |_: &str, _: &Module| {};
    let mut passes = PassManager::new(quiet, None, None).ok()?;
    let mut tried = Compiled { sizes: out.sizes, ..Compiled::nothing(Some(multiple)) };
    training(what, &mut passes, &mut module, &mut tried).ok()?;
    let model = cost_model(what, &module, &mut tried);
    Some(search(&module, &tried.segments, &model, what.pins).ok()?.cost.step_ns)
}
