//! `G0214` declarations of the program: inputs, weights, states, updates, outputs.

use super::context::ProgramFacts;
use super::{Finding, Site};
use crate::graph::Def;
use crate::id::ValueId;
use crate::module::{Level, Module, ViewStep, Weight};
use crate::types::{DType, TensorType};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Every fault of a declaration.
pub(super) fn check(module: &Module, facts: &ProgramFacts) -> Vec<Finding> {
    let mut findings = declared_once(module);
    findings.extend(weights(module));
    findings.extend(shared_elements(module));
    findings.extend(states(module, facts));
    findings.extend(updates(module, facts));
    findings.extend(outputs(module, facts));
    if module.level >= Level::Training {
        findings.extend(untrained(module, facts));
    }
    findings
}

fn fault(at: Site, message: String) -> Finding {
    Finding::new("G0214", at, message)
}

fn name(module: &Module, value: ValueId) -> String {
    format!("`%{}`", module.program.graph.value(value).name)
}

fn ty(module: &Module, value: ValueId) -> &TensorType {
    &module.program.graph.value(value).ty
}

/// No value is declared twice, and none that a node computes; no two inputs have one name.
fn declared_once(module: &Module) -> Vec<Finding> {
    let program = &module.program;
    let inputs = program.inputs.iter().enumerate().map(|(i, x)| (x.value, Site::Input(i)));
    let weights = program.weights.iter().enumerate().map(|(i, x)| (x.value, Site::Weight(i)));
    let states = program.states.iter().enumerate().map(|(i, x)| (x.value, Site::State(i)));
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for (value, site) in inputs.chain(weights).chain(states) {
        let computed = program.graph.value(value).def != Def::Declared;
        if computed || !seen.insert(value) {
            let how = if computed { "the result of a node" } else { "declared twice" };
            findings.push(fault(site, format!("{} is {how}", name(module, value))));
        }
    }
    let mut names = BTreeSet::new();
    for (i, input) in program.inputs.iter().enumerate() {
        if !names.insert(&input.name) {
            findings.push(fault(Site::Input(i), format!("a second input reads the array \"{}\"", input.name)));
        }
    }
    findings
}

fn weights(module: &Module) -> Vec<Finding> {
    let check = |(i, weight)| weight_view(module, weight).err().map(|why| fault(Site::Weight(i), why));
    module.program.weights.iter().enumerate().filter_map(check).collect()
}

/// The view of the initializer has the type that the weight declares.
fn weight_view(module: &Module, weight: &Weight) -> Result<(), String> {
    let name = name(module, weight.value);
    let stored = module.initializers.get(weight.initializer);
    let stored = stored.ok_or_else(|| format!("{name}: there is no initializer {}", weight.initializer))?;
    let mut shape = stored.ty.shape.clone();
    for step in &weight.view {
        let next = step.apply(&shape);
        shape = next.ok_or_else(|| format!("{name}: `{step:?}` does not fit the shape {shape:?}"))?;
    }
    let (view, declared) = (stored.ty.with_shape(shape), ty(module, weight.value));
    let is_rounded = declared.dtype == DType::Bf16 && stored.ty.dtype == DType::F32;
    if view == *declared || (is_rounded && view.shape == declared.shape) {
        return Ok(());
    }
    Err(format!("{name} is declared `{declared}`, the view of \"{}\" is `{view}`", stored.name))
}

/// No two trainable weights view one stored element: each would be trained for itself, and one of them stored.
fn shared_elements(module: &Module) -> Vec<Finding> {
    let weights = &module.program.weights;
    let mut viewed: BTreeMap<usize, Vec<&Weight>> = BTreeMap::new();
    let mut findings = Vec::new();
    for (i, weight) in weights.iter().enumerate().filter(|(_, w)| w.trainable) {
        let Some(stored) = module.initializers.get(weight.initializer) else { continue };
        let others = viewed.entry(weight.initializer).or_default();
        let shares =
            |other: &&&Weight| other.value != weight.value && meet(&stored.ty.shape, &weight.view, &other.view);
        if let Some(other) = others.iter().find(shares) {
            let (name, other) = (name(module, weight.value), name(module, other.value));
            let message = format!("{name} views elements of \"{}\" that {other} views too", stored.name);
            findings.push(fault(Site::Weight(i), message));
        }
        others.push(weight);
    }
    findings
}

/// Whether two views of a stored shape surely have an element in common.
fn meet(stored: &[u64], a: &[ViewStep], b: &[ViewStep]) -> bool {
    let n_common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let shape = a[..n_common].iter().try_fold(stored.to_vec(), |shape, step| step.apply(&shape));
    let parts = shape.and_then(|s| Some((part_of(&s, &a[n_common..])?, part_of(&s, &b[n_common..])?)));
    parts.is_some_and(|(a, b)| a.iter().zip(&b).all(|(a, b)| a.start < b.end && b.start < a.end))
}

/// The range of each dimension that a view takes; `None` where it slices what it has reshaped or padded.
fn part_of(shape: &[u64], view: &[ViewStep]) -> Option<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = shape.iter().map(|&extent| 0..extent).collect();
    let mut dims: Vec<usize> = (0..shape.len()).collect();
    let mut is_reshaped = false;
    for step in view {
        match step {
            ViewStep::Reshape(_) | ViewStep::Pad { .. } => is_reshaped = true,
            ViewStep::Slice { .. } if is_reshaped => return None,
            ViewStep::Transpose(_) if is_reshaped => {}
            ViewStep::Transpose(perm) => dims = perm.iter().map(|&p| dims.get(p).copied()).collect::<Option<_>>()?,
            ViewStep::Slice { dim, start, len } => {
                let range = &mut ranges[*dims.get(*dim)?];
                let start = range.start.saturating_add(*start);
                *range = start..start.saturating_add(*len);
            }
        }
    }
    Some(ranges)
}

/// A state is f32 and belongs to a trainable weight of its shape; no weight has two of one kind.
fn states(module: &Module, facts: &ProgramFacts) -> Vec<Finding> {
    let mut kinds = BTreeSet::new();
    let mut findings = Vec::new();
    for (i, state) in module.program.states.iter().enumerate() {
        let weight = facts.weights.get(&state.weight).map(|&w| &module.program.weights[w]);
        let why = if !weight.is_some_and(|w| w.trainable) {
            "belongs to no trainable weight"
        } else if *ty(module, state.value) != TensorType::f32(ty(module, state.weight).shape.clone()) {
            "is not f32 of the shape of its weight"
        } else if !kinds.insert((state.weight, &state.kind)) {
            "is a second state of its kind"
        } else {
            continue;
        };
        findings.push(fault(Site::State(i), format!("state {} {why}", name(module, state.value))));
    }
    findings
}

/// Updates go to trainable weights and states, once each, and have their type.
fn updates(module: &Module, facts: &ProgramFacts) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for (i, &(old, new)) in module.program.updates.iter().enumerate() {
        let trainable = facts.weights.get(&old).is_some_and(|&w| module.program.weights[w].trainable);
        let why = if !trainable && !facts.states.contains_key(&old) {
            "is no trainable weight and no state".to_string()
        } else if !facts.knows(new) {
            "gets a value that is not there".to_string()
        } else if ty(module, old) != ty(module, new) {
            format!("is `{}`, its new value {} is `{}`", ty(module, old), name(module, new), ty(module, new))
        } else if !seen.insert(old) {
            "is updated more than once".to_string()
        } else {
            continue;
        };
        findings.push(fault(Site::Update(i), format!("{} {why}", name(module, old))));
    }
    findings
}

fn outputs(module: &Module, facts: &ProgramFacts) -> Vec<Finding> {
    let mut names = BTreeSet::new();
    let mut findings = Vec::new();
    for (i, (name, value)) in module.program.outputs.iter().enumerate() {
        if !facts.knows(*value) {
            findings.push(fault(Site::Output(i), format!("output \"{name}\" is a value that is not there")));
        }
        if !names.insert(name) {
            findings.push(fault(Site::Output(i), format!("there is a second output \"{name}\"")));
        }
    }
    findings
}

fn untrained(module: &Module, facts: &ProgramFacts) -> Vec<Finding> {
    let weights = module.program.weights.iter().enumerate();
    let untrained = weights.filter(|(_, w)| w.trainable && !facts.updates.contains_key(&w.value));
    untrained
        .map(|(i, w)| {
            let message = format!("trainable weight {} has no update", name(module, w.value));
            fault(Site::Weight(i), message).help("add an `update`, or declare it `frozen`")
        })
        .collect()
}
