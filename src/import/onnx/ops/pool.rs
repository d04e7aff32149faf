//! Pooling: the largest or the mean of each window.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Binary, Constant, ReduceSum, TopK};
use galvatron_ir::types::{Scalar, TensorType};

use super::layout::transposed;
use super::window::{Axis, axes, unfolded};
use super::{Call, Fault, Operator, Results, one};

/// Most elements of windows along one dimension that are counted one by one.
const MAX_COUNTED: u64 = 1 << 24;

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "MaxPool" => max_pool,
        "AveragePool" => average_pool,
        "GlobalMaxPool" => global_max_pool,
        _ => return None,
    })
}

fn window_axes(call: &mut Call<'_, '_>, image: ValueId) -> Result<Vec<Axis>, Fault> {
    let sizes = call.attributes().ints("kernel_shape").ok_or("no `kernel_shape`")?.to_vec();
    let sizes: Vec<u64> = sizes.iter().map(|&n| u64::try_from(n).unwrap_or(0)).collect();
    let shape = call.ty(image).shape;
    axes(call, &shape, &sizes)
}

/// The gradient goes to the first of the largest elements, so that the largest is the best one of a row, not an extreme.
fn max_pool(call: &mut Call<'_, '_>) -> Results {
    if call.node.outputs.get(1).is_some_and(|output| !output.is_empty()) {
        return Err(Fault::Unsupported("with indices as result".into()));
    }
    let image = call.float(0)?;
    let axes = window_axes(call, image)?;
    let windows = unfolded(call, image, &axes, f64::NEG_INFINITY)?;
    let outer = (0..2).chain((0..axes.len()).map(|d| 2 + 2 * d));
    let perm: Vec<usize> = outer.chain((0..axes.len()).map(|d| 3 + 2 * d)).collect();
    let windows = transposed(call, windows, perm)?;
    let mut shape = call.ty(windows).shape[..2 + axes.len()].to_vec();
    let result = shape.clone();
    shape.push(axes.iter().map(|axis| axis.size).product());
    let rows = call.reshape(windows, &shape)?;
    one(largest(call, rows, &result)?)
}

fn largest(call: &mut Call<'_, '_>, rows: ValueId, shape: &[u64]) -> Result<ValueId, Fault> {
    let best = call.emit(TopK { k: 1, largest: true }, &[rows])?;
    call.reshape(best, shape)
}

fn global_max_pool(call: &mut Call<'_, '_>) -> Results {
    let image = call.float(0)?;
    let mut shape = call.ty(image).shape;
    if shape.len() < 3 {
        return Err(format!("an image of shape {shape:?}").into());
    }
    let rows = call.reshape(image, &[shape[0], shape[1], shape[2..].iter().product()])?;
    shape[2..].fill(1);
    one(largest(call, rows, &shape)?)
}

/// The sum of each window over the number of its elements in the image, or also in its pads.
fn average_pool(call: &mut Call<'_, '_>) -> Results {
    let image = call.float(0)?;
    let axes = window_axes(call, image)?;
    let with_pads = call.attributes().int("count_include_pad", 0) != 0;
    let windows = unfolded(call, image, &axes, 0.0)?;
    let dims = (0..axes.len()).map(|d| 3 + 2 * d).collect();
    let mut value = call.emit(ReduceSum { dims }, &[windows])?;
    for (d, axis) in axes.iter().enumerate() {
        if axis.count.saturating_mul(axis.size) > MAX_COUNTED {
            return Err(format!("{} windows of {} elements are too many to count", axis.count, axis.size).into());
        }
        let shares = (0..axis.count).map(|i| 1.0 / axis.n_inside(i, with_pads) as f64).collect::<Vec<_>>();
        let mut shape = vec![1; axes.len() - d];
        shape[0] = axis.count;
        let shares = match shares.iter().all(|&s| s == shares[0]) {
            true => call.scalar(shares[0])?,
            false => {
                let values = shares.into_iter().map(|s| Scalar::new(f64::from(s as f32))).collect();
                call.emit(Constant { ty: TensorType::f32(shape), values }, &[])?
            }
        };
        value = call.emit(Binary::MUL, &[value, shares])?;
    }
    one(value)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    fn pool(node: &str) -> String {
        Builder::new(&[&format!("y = {node} x")]).input("x", 1, "batch 3 6").ops()
    }

    #[test]
    fn the_largest_is_the_best_of_each_window() {
        let expected = "unfold f32[2, 3, 4, 3]; top_k f32[2, 3, 4, 1]; reshape f32[2, 3, 4]";
        assert_eq!(pool("MaxPool{kernel_shape=[3]}"), expected);
    }

    #[test]
    fn means_count_what_is_in_the_image() {
        let inside = pool("AveragePool{kernel_shape=[2], strides=[2]}");
        assert_eq!(inside, "reshape f32[2, 3, 3, 2]; reduce_sum f32[2, 3, 3]; full<0.5> f32[]; mul f32[2, 3, 3]");
        let padded = pool("AveragePool{kernel_shape=[3], pads=[1 1]}");
        assert!(padded.ends_with("reduce_sum f32[2, 3, 6]; constant f32[6]; mul f32[2, 3, 6]"), "{padded}");
    }

    #[test]
    fn a_last_window_may_be_cut_off() {
        let up = pool("MaxPool{kernel_shape=[4], strides=[4], ceil_mode=1}");
        assert!(up.ends_with("top_k f32[2, 3, 2, 1]; reshape f32[2, 3, 2]"), "{up}");
    }
}
