//! Reshapes, slices and transposes of a weight become the weight's own view of what is stored.
//!
//! Two parameters must never show the same stored element, since each would be trained for itself. So a view is taken only
//! where nothing else reads the weight, or where slices partition it; frozen buffers may be viewed freely.

use super::slices::is_partition;
use super::sweep::{Sweep, sweep};
use galvatron_ir::module::ViewStep;
use galvatron_ir::op::Op;
use galvatron_ir::{Module, NodeId, Program, ValueId};

/// Takes reshapes, slices and transposes of weights into their views.
pub(super) fn take_views(program: &mut Program) -> bool {
    let mut changed = false;
    while take(program, true) {
        changed = true;
    }
    changed
}

/// Takes reshapes and slices only: transposes are better absorbed by the contractions that read them.
pub(super) fn take_views_of_settled(program: &mut Program) -> bool {
    take(program, false)
}

/// Joins steps of views that follow each other and drops those that change nothing.
pub(super) fn simplify_views(module: &mut Module) {
    for weight in &mut module.program.weights {
        let stored = module.initializers[weight.initializer].ty.shape.clone();
        let mut view: Vec<ViewStep> = Vec::with_capacity(weight.view.len());
        for step in weight.view.drain(..) {
            if let (Some(ViewStep::Reshape(_)), ViewStep::Reshape(_)) = (view.last(), &step) {
                view.pop();
            }
            let before = view.iter().try_fold(stored.clone(), |shape, step| step.apply(&shape));
            let changes = match &step {
                ViewStep::Transpose(perm) => !perm.is_sorted(),
                step => before.as_deref().and_then(|shape| step.apply(shape)) != before,
            };
            if changes {
                view.push(step);
            }
        }
        weight.view = view;
    }
}

fn take(program: &mut Program, with_transposes: bool) -> bool {
    let partitioned = partitioned_weights(program);
    sweep(program, |cx, node| {
        let weight = *cx.args(node).first()?;
        if !cx.is_weight(weight) {
            return None;
        }
        let step = match cx.op(node) {
            Op::Reshape(r) => ViewStep::Reshape(r.shape.clone()),
            Op::Transpose(t) if with_transposes => ViewStep::Transpose(t.perm.clone()),
            Op::Slice(s) => ViewStep::Slice { dim: s.dim, start: s.start, len: s.len },
            _ => return None,
        };
        view(cx, node, weight, step, &partitioned)
    })
}

fn view(
    cx: &mut Sweep<'_>,
    node: NodeId,
    weight: ValueId,
    step: ViewStep,
    partitioned: &[Vec<u64>],
) -> Option<ValueId> {
    let is_slice = matches!(step, ViewStep::Slice { .. });
    if cx.uses(weight) == 1 && !is_slice {
        cx.view_weight(weight, step);
        return Some(weight);
    }
    let starts = partitioned.get(weight.index()).filter(|s| !s.is_empty());
    let part = match (&step, starts) {
        (ViewStep::Slice { start, .. }, Some(starts)) => starts.iter().position(|s| s == start),
        _ => None,
    };
    let name = match part {
        Some(part) => format!("{}.{part}", cx.name(weight)),
        None if cx.is_frozen(weight) => cx.name(cx.result(node)),
        None => return None,
    };
    Some(cx.add_weight_view(weight, step, &name))
}

/// For each value that slices partition the starts of the slices, in order.
fn partitioned_weights(program: &Program) -> Vec<Vec<u64>> {
    let mut starts = vec![Vec::new(); program.graph.n_values()];
    let users = program.graph.users(&program.body);
    for weight in &program.weights {
        let readers = &users[weight.value.index()];
        let is_output = program.outputs.iter().any(|(_, v)| *v == weight.value);
        if !is_output && is_partition(program, &program.graph.value(weight.value).ty.shape, readers) {
            let start = |n: &NodeId| match program.graph.node(*n).op {
                Op::Slice(slice) => slice.start,
                _ => 0,
            };
            let mut all: Vec<u64> = readers.iter().map(start).collect();
            all.sort();
            starts[weight.value.index()] = all;
        }
    }
    starts
}
