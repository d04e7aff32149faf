//! Canonical form of a forward program: constants folded, equal nodes merged, layouts absorbed by the ops that read them.
//!
//! Every rule has a direction, so that the passes end: reshapes that split dimensions and slices move up towards weights,
//! where they become views; reshapes that merge dimensions and transposes move down; contractions absorb all of them into
//! their labels.

mod cse;
mod dce;
mod einsums;
mod elementwise;
mod experts;
mod fold;
mod groups;
mod heads;
mod indices;
mod labels;
mod lower;
mod names;
mod raise;
mod slices;
mod sweep;
mod transposes;
mod weights;

pub(crate) use dce::remove_dead_nodes;
pub(crate) use groups::groups;
pub(crate) use heads::merged_shape;

use galvatron_ir::{Module, Program};

/// Rounds after which the passes stop even if something still changes; a round moves a layout as far as it goes.
const MAX_ROUNDS: usize = 24;

/// Brings the forward program of a module at level graph into canonical form. Results keep their names.
pub fn canonicalize(module: &mut Module) {
    let program = &mut module.program;
    let known = names::names(program);
    settle(program);
    raise::join_reshapes(program);
    weights::take_views(program);
    cse::merge_equal_nodes(program);
    labels::name_labels(program);
    dce::remove_unused_weights(program);
    names::name_new_results(program, &known);
    weights::simplify_views(module);
}

/// Runs the directed passes until nothing changes.
fn settle(program: &mut Program) {
    for _ in 0..MAX_ROUNDS {
        let mut changed = fold::fold(program);
        changed |= indices::drop_wraps(program);
        changed |= cse::merge_equal_nodes(program);
        changed |= experts::recognise_experts(program);
        changed |= raise::raise_reshapes(program);
        changed |= transposes::absorb_transposes(program);
        changed |= lower::lower_layouts(program);
        changed |= heads::join_heads(program);
        changed |= slices::raise_slices(program);
        changed |= weights::take_views_of_settled(program);
        if !changed {
            return;
        }
    }
}
