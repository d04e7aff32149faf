//! By which multiples extents are padded.

use super::{Compilation, Compiled, cost_model, mesh_of, training};
use galvatron_ir::Module;
use galvatron_ir::recipe::OptimizerKind;
use galvatron_passes::manager::PassManager;
use galvatron_passes::pad::{Degrees, worth_trying};
use galvatron_passes::search::{Pins, search};

/// What shall be divided: a multiple if there is one, or else what is pinned, in whatever layer: weights over `tp`, heads over `ulysses` and
/// `tp` besides.
pub(super) fn degrees(what: &Compilation<'_>, multiple: Option<u32>) -> Degrees {
    // Without an epsilon AdamW divides the zeros of a padded weight by zero.
    let optimizer = &what.recipe.optimizer;
    match multiple {
        _ if optimizer.kind == OptimizerKind::Adamw && optimizer.eps <= 0.0 => Degrees::default(),
        Some(multiple) => Degrees {
            weights: Some(u64::from(multiple)).filter(|&m| m > 1).into_iter().collect(),
            ..Degrees::default()
        },
        None => pinned(what.pins),
    }
}

fn pinned(pins: &Pins) -> Degrees {
    let layers = [&pins.all, &pins.embedding, &pins.head].into_iter().chain(pins.layers.values());
    let mut degrees = Degrees::default();
    for layer in layers {
        let [tp, ulysses] = [layer.tp, layer.ulysses].map(|degree| u64::from(degree.unwrap_or(1)));
        degrees.weights.extend((tp > 1).then_some(tp));
        degrees.heads.extend((ulysses > 1).then_some(ulysses * tp));
    }
    degrees
}

/// The multiple that leads to a faster plan than no padding does, where no tensor degree is pinned and none divides the heads. The module is a
/// forward program with its loss.
pub(super) fn multiple(what: &Compilation<'_>, module: &Module, out: &Compiled) -> Option<u32> {
    if pinned(what.pins) != Degrees::default() {
        return None;
    }
    let multiple = worth_trying(&module.program, &mesh_of(what.cluster))?;
    let step_ns = |multiple| step_ns(what, module.clone(), out, multiple).unwrap_or(u64::MAX);
    (step_ns(multiple) < step_ns(1)).then_some(multiple)
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
