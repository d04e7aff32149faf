//! Operators that change a shape and keep the elements; most of them share the values.

use super::evaluate::{Call, Results, axis_index, extents};
use super::tensor::{StaticTensor, Values, map_values};
use super::walk::{Broadcast, gather, steps, strides};

/// A target extent 0 copies the operand's unless `allowzero=1`; one extent may be -1.
pub(super) fn reshape(call: &Call) -> Results {
    let x = call.input(0)?;
    let target = call.ints_either(1, "shape")?.ok_or("no target shape")?;
    let allow_zero = call.attributes.int("allowzero", 0) == 1;
    Ok(vec![reshaped(x, target_shape(x.shape(), &target, allow_zero)?)?])
}

fn target_shape(shape: &[usize], target: &[i64], allow_zero: bool) -> Result<Vec<usize>, String> {
    let mut result = Vec::with_capacity(target.len());
    for (d, &extent) in target.iter().enumerate() {
        result.push(match extent {
            0 if !allow_zero => *shape.get(d).ok_or_else(|| format!("no extent {d} to copy from {shape:?}"))?,
            -1 => 1,
            _ => extents(&[extent])?[0],
        });
    }
    let product = |extents: &[usize]| extents.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let misfit = || format!("shape {shape:?} cannot become {target:?}");
    let known = product(&result).ok_or_else(misfit)?;
    let n: usize = shape.iter().product();
    let unknown: Vec<usize> = (0..target.len()).filter(|&d| target[d] == -1).collect();
    match unknown[..] {
        [] if known == n => Ok(result),
        [d] if known > 0 && n.is_multiple_of(known) => {
            result[d] = n / known;
            Ok(result)
        }
        _ => Err(misfit()),
    }
}

pub(super) fn flatten(call: &Call) -> Results {
    let x = call.input(0)?;
    let axis = call.attributes.int("axis", 1);
    let axis = if axis == x.rank() as i64 { x.rank() } else { axis_index(axis, x.rank())? };
    let shape = vec![x.shape()[..axis].iter().product(), x.shape()[axis..].iter().product()];
    Ok(vec![reshaped(x, shape)?])
}

/// The same elements in row-major order over another shape with the same number of elements.
fn reshaped(x: &StaticTensor, shape: Vec<usize>) -> Result<StaticTensor, String> {
    if shape.contains(&0) {
        return x.with_shape(shape.clone(), shape);
    }
    let mut full = vec![false; x.rank()];
    let mut stored = vec![1; shape.len()];
    for (from, to) in matching_groups(x.shape(), &shape) {
        if from.clone().any(|d| x.stored()[d] > 1) {
            full[from].fill(true);
            stored[to.clone()].copy_from_slice(&shape[to]);
        }
    }
    StaticTensor::new(shape, stored, x.materialize(&full)?.values().clone())
}

type Group = (std::ops::Range<usize>, std::ops::Range<usize>);

/// Splits two shapes with equal products into the shortest runs of dimensions whose products are equal.
fn matching_groups(from: &[usize], to: &[usize]) -> Vec<Group> {
    let (mut i, mut j) = (0, 0);
    let mut groups = Vec::new();
    while i < from.len() || j < to.len() {
        let (i_start, j_start) = (i, j);
        let next = |extents: &[usize], at: &mut usize| {
            extents.get(*at).map_or(1, |&extent| {
                *at += 1;
                extent
            })
        };
        let (mut a, mut b) = (next(from, &mut i), next(to, &mut j));
        while a != b {
            if a < b { a *= next(from, &mut i) } else { b *= next(to, &mut j) }
        }
        groups.push((i_start..i, j_start..j));
    }
    groups
}

/// Removes dimensions of extent 1: those that are listed, or all.
pub(super) fn squeeze(call: &Call) -> Results {
    let x = call.input(0)?;
    let mut dropped = vec![false; x.rank()];
    match call.ints_either(1, "axes")? {
        None => dropped.iter_mut().zip(x.shape()).for_each(|(drop, &extent)| *drop = extent == 1),
        Some(axes) => {
            for axis in axes {
                let d = axis_index(axis, x.rank())?;
                if x.shape()[d] != 1 {
                    return Err(format!("axis {axis} of shape {:?} is not of extent 1", x.shape()));
                }
                dropped[d] = true;
            }
        }
    }
    let keep = |extents: &[usize]| (0..x.rank()).filter(|&d| !dropped[d]).map(|d| extents[d]).collect();
    Ok(vec![x.with_shape(keep(x.shape()), keep(x.stored()))?])
}

/// Inserts dimensions of extent 1 at the listed places of the result.
pub(super) fn unsqueeze(call: &Call) -> Results {
    let x = call.input(0)?;
    let axes = call.ints_either(1, "axes")?.ok_or("no axes")?;
    let rank = x.rank() + axes.len();
    let mut is_new = vec![false; rank];
    for &axis in &axes {
        let d = axis_index(axis, rank)?;
        if std::mem::replace(&mut is_new[d], true) {
            return Err(format!("axis {axis} is listed twice"));
        }
    }
    let insert = |extents: &[usize]| {
        let mut old = extents.iter();
        is_new.iter().map(|&new| if new { 1 } else { *old.next().unwrap_or(&1) }).collect()
    };
    Ok(vec![x.with_shape(insert(x.shape()), insert(x.stored()))?])
}

pub(super) fn transpose(call: &Call) -> Results {
    let x = call.input(0)?;
    let perm: Vec<usize> = match call.attributes.ints("perm") {
        None => (0..x.rank()).rev().collect(),
        Some(perm) => perm.iter().map(|&p| axis_index(p, x.rank())).collect::<Result<_, _>>()?,
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    if sorted != (0..x.rank()).collect::<Vec<_>>() {
        return Err(format!("`perm` {perm:?} is no permutation of {} dimensions", x.rank()));
    }
    let permuted = |extents: &[usize]| perm.iter().map(|&p| extents[p]).collect::<Vec<_>>();
    let (shape, stored) = (permuted(x.shape()), permuted(x.stored()));
    let varying: Vec<usize> = perm.iter().copied().filter(|&p| x.stored()[p] != 1).collect();
    if varying.is_sorted() {
        return Ok(vec![x.with_shape(shape, stored)?]);
    }
    let strides = strides(x.stored());
    let tables: Vec<_> = perm.iter().map(|&p| steps(x.stored()[p], strides[p])).collect();
    let values = map_values!(x.values(), v => gather(v, &tables));
    Ok(vec![StaticTensor::new(shape, stored, values)?])
}

/// Broadcasts with a shape: extents 1 on either side give way.
pub(super) fn expand(call: &Call) -> Results {
    let x = call.input(0)?;
    let target = extents(&call.ints(1)?)?;
    let like = StaticTensor::splat(target, super::Scalar::Bool(true))?;
    let Broadcast { shape, .. } = Broadcast::new([x, &like])?;
    let mut stored = vec![1; shape.len() - x.rank()];
    stored.extend(x.stored());
    Ok(vec![x.with_shape(shape, stored)?])
}
