//! A parameter as a view of a stored tensor, both ways: from the stored tensor, and back into it.

use galvatron_ir::module::ViewStep;

use super::shard::for_each_run;

/// The parameter that the steps make of a stored tensor; both row-major.
///
/// # Errors
/// Which step does not fit.
pub(super) fn apply(stored: Vec<f32>, shape: &[u64], steps: &[ViewStep]) -> Result<(Vec<f32>, Vec<u64>), String> {
    let (mut data, mut shape) = (stored, shape.to_vec());
    for step in steps {
        let to = step.apply(&shape).ok_or_else(|| format!("view step {step:?} does not fit shape {shape:?}"))?;
        data = match step {
            ViewStep::Reshape(_) => data,
            ViewStep::Transpose(perm) => transpose(&data, &shape, perm),
            ViewStep::Slice { dim, start, .. } => cut(&data, &shape, &first_of(&shape, *dim, *start), &to),
            ViewStep::Pad { .. } => padded(&data, &shape, &to),
        };
        shape = to;
    }
    Ok((data, shape))
}

/// Writes a parameter into the part of the stored tensor that it is a view of; the steps fit.
pub(super) fn write_back(parameter: &[f32], stored: &mut [f32], shape: &[u64], steps: &[ViewStep]) {
    let Some((step, rest)) = steps.split_first() else { return stored.copy_from_slice(parameter) };
    let to = step.apply(shape).expect("invariant: the view was applied before");
    match step {
        ViewStep::Reshape(_) => write_back(parameter, stored, &to, rest),
        ViewStep::Transpose(perm) => {
            let mut turned = transpose(stored, shape, perm);
            write_back(parameter, &mut turned, &to, rest);
            let mut back = vec![0; perm.len()];
            perm.iter().enumerate().for_each(|(i, &p)| back[p] = i);
            stored.copy_from_slice(&transpose(&turned, &to, &back));
        }
        ViewStep::Slice { dim, start, .. } => {
            let first = first_of(shape, *dim, *start);
            let mut part = cut(stored, shape, &first, &to);
            write_back(parameter, &mut part, &to, rest);
            for_each_run(shape, &first, &to, |from, at, n| stored[at..at + n].copy_from_slice(&part[from..from + n]));
        }
        ViewStep::Pad { .. } => {
            let mut whole = padded(stored, shape, &to);
            write_back(parameter, &mut whole, &to, rest);
            stored.copy_from_slice(&cut(&whole, &to, &vec![0; to.len()], shape));
        }
    }
}

/// How many elements of a stored tensor a view shows: what is padded is none of them.
pub(super) fn n_shown(shape: &[u64], steps: &[ViewStep]) -> u64 {
    let is_pad = |step: &ViewStep| matches!(step, ViewStep::Pad { .. });
    let (before, after) = steps.split_at(steps.iter().position(is_pad).unwrap_or(steps.len()));
    if after.iter().all(is_pad) {
        let to = before.iter().try_fold(shape.to_vec(), |shape, step| step.apply(&shape));
        return to.map_or(0, |to| to.iter().product());
    }
    let ones = vec![1.0; shape.iter().product::<u64>() as usize];
    apply(ones, shape, steps).map_or(0, |(shown, _)| shown.iter().filter(|&&one| one != 0.0).count() as u64)
}

/// The elements of a tensor with zeros behind them.
fn padded(data: &[f32], shape: &[u64], to: &[u64]) -> Vec<f32> {
    let mut padded = vec![0.0; to.iter().product::<u64>() as usize];
    for_each_run(to, &vec![0; to.len()], shape, |from, at, n| {
        padded[at..at + n].copy_from_slice(&data[from..from + n])
    });
    padded
}

fn first_of(shape: &[u64], dim: usize, start: u64) -> Vec<u64> {
    (0..shape.len()).map(|d| if d == dim { start } else { 0 }).collect()
}

fn cut(data: &[f32], shape: &[u64], first: &[u64], extents: &[u64]) -> Vec<f32> {
    let mut part = Vec::with_capacity(extents.iter().product::<u64>() as usize);
    for_each_run(shape, first, extents, |_, at, n| part.extend_from_slice(&data[at..at + n]));
    part
}

/// Dimension i of the result is dimension `perm[i]` of the operand.
fn transpose(data: &[f32], shape: &[u64], perm: &[usize]) -> Vec<f32> {
    let mut strides = vec![1usize; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d] as usize;
    }
    let extents: Vec<usize> = perm.iter().map(|&p| shape[p] as usize).collect();
    let steps: Vec<usize> = perm.iter().map(|&p| strides[p]).collect();
    let (mut out, mut index, mut at) = (Vec::with_capacity(data.len()), vec![0; perm.len()], 0);
    for _ in 0..data.len() {
        out.push(data[at]);
        for d in (0..perm.len()).rev() {
            index[d] += 1;
            at += steps[d];
            if index[d] < extents[d] {
                break;
            }
            at -= steps[d] * extents[d];
            index[d] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_written_back_restores_its_part() {
        let stored: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let slice = ViewStep::Slice { dim: 1, start: 2, len: 4 };
        let steps = [slice, ViewStep::Reshape(vec![4, 2, 2]), ViewStep::Transpose(vec![2, 0, 1])];
        let (view, shape) = apply(stored.clone(), &[4, 6], &steps).unwrap();
        assert_eq!(shape, [2, 4, 2]);
        assert_eq!(view[..8], [2.0, 4.0, 8.0, 10.0, 14.0, 16.0, 20.0, 22.0]);
        let mut back = vec![-1.0; 24];
        write_back(&view, &mut back, &[4, 6], &steps);
        let expected: Vec<f32> = (0..24).map(|i| if (2..6).contains(&(i % 6)) { i as f32 } else { -1.0 }).collect();
        assert_eq!(back, expected);
    }

    #[test]
    fn padding_is_zero_and_is_never_stored() {
        let stored: Vec<f32> = (1..=12).map(|i| i as f32).collect();
        let slice = ViewStep::Slice { dim: 1, start: 0, len: 4 };
        let pad = ViewStep::Pad { dim: 1, extent: 3 };
        let steps = [slice, ViewStep::Reshape(vec![2, 2, 2]), pad, ViewStep::Transpose(vec![1, 0, 2])];
        let (view, shape) = apply(stored.clone(), &[2, 6], &steps).unwrap();
        assert_eq!(shape, [3, 2, 2]);
        assert_eq!(view, [1.0, 2.0, 7.0, 8.0, 3.0, 4.0, 9.0, 10.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(n_shown(&[2, 6], &steps), 8);
        let trained: Vec<f32> = view.iter().map(|v| v + 100.0).collect();
        let mut back = stored.clone();
        write_back(&trained, &mut back, &[2, 6], &steps);
        assert_eq!(back, [101.0, 102.0, 103.0, 104.0, 5.0, 6.0, 107.0, 108.0, 109.0, 110.0, 11.0, 12.0]);
    }
}
