//! Windows over the spatial dimensions of an image: where they lie, and how they are cut out.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Unfold, Windows};

use super::pad::padded;
use super::{Call, Fault};

/// More than windows, their distances and their pads ever are.
const MAX_WINDOW: u64 = 1 << 20;

/// One spatial dimension of a convolution or a pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    /// Extent of the image.
    pub extent: u64,
    /// Elements of a window.
    pub size: u64,
    /// Distance of neighbouring windows.
    pub stride: u64,
    /// Distance of neighbouring elements of a window.
    pub dilation: u64,
    /// Places before and after the image.
    pub pads: [u64; 2],
    /// Number of windows.
    pub count: u64,
}

impl Axis {
    /// Elements that a window spans.
    fn reach(&self) -> u64 {
        (self.size - 1) * self.dilation + 1
    }

    /// Places after the image that the windows need; the pad itself, or more where windows may begin in it.
    fn behind(&self) -> i64 {
        ((self.count - 1) * self.stride + self.reach()) as i64 - (self.extent + self.pads[0]) as i64
    }

    /// How many elements of window `i` are in the image, or also in its pads.
    pub fn n_inside(&self, i: u64, with_pads: bool) -> u64 {
        let [before, after] = self.pads;
        let range = if with_pads { 0..before + self.extent + after } else { before..before + self.extent };
        (0..self.size).filter(|j| range.contains(&(i * self.stride + j * self.dilation))).count() as u64
    }
}

/// The windows of the given sizes over an image [batch, channels, spatial..], from the attributes of the node.
pub(super) fn axes(call: &Call<'_, '_>, image: &[u64], sizes: &[u64]) -> Result<Vec<Axis>, Fault> {
    let n = sizes.len();
    let is_credible = |size: &u64| (1..MAX_WINDOW).contains(size);
    if image.len() != n + 2 || n == 0 || image.contains(&0) || !sizes.iter().all(is_credible) {
        return Err(format!("windows of {sizes:?} on an image of shape {image:?}").into());
    }
    let list = |name: &str, default: i64, n: usize| -> Result<Vec<u64>, Fault> {
        let found = call.attributes().ints(name).map_or_else(|| vec![default; n], <[i64]>::to_vec);
        let credible = found.iter().map(|&v| u64::try_from(v).ok().filter(|&v| v < MAX_WINDOW)).collect();
        let credible: Option<Vec<u64>> = credible;
        let what = || format!("`{name}` is {found:?}, where {n} numbers below {MAX_WINDOW} were expected");
        credible.filter(|v| v.len() == n).ok_or_else(|| what().into())
    };
    let (strides, dilations, pads) = (list("strides", 1, n)?, list("dilations", 1, n)?, list("pads", 0, 2 * n)?);
    let rounds_up = call.attributes().int("ceil_mode", 0) != 0;
    let mode = call.attributes().string("auto_pad", "NOTSET");
    let axis = |d: usize| {
        let (stride, dilation) = (strides[d].max(1), dilations[d].max(1));
        let pads = [pads[d], pads[n + d]];
        let axis = Axis { extent: image[2 + d], size: sizes[d], stride, dilation, pads, count: 1 };
        placed(axis, mode, rounds_up)
    };
    (0..n).map(axis).collect()
}

/// The axis with its windows counted and the pads that `auto_pad` asks for.
fn placed(mut axis: Axis, mode: &str, rounds_up: bool) -> Result<Axis, Fault> {
    if let "SAME_UPPER" | "SAME_LOWER" = mode {
        axis.count = axis.extent.div_ceil(axis.stride);
        let total = ((axis.count.max(1) - 1) * axis.stride + axis.reach()).saturating_sub(axis.extent);
        let less = total / 2;
        axis.pads = if mode == "SAME_UPPER" { [less, total - less] } else { [total - less, less] };
        return Ok(axis);
    }
    if mode == "VALID" {
        axis.pads = [0, 0];
    }
    let room = (axis.extent + axis.pads[0] + axis.pads[1]).checked_sub(axis.reach());
    let room = room.ok_or_else(|| format!("a window of {} on {} elements", axis.reach(), axis.extent))?;
    axis.count = room / axis.stride + 1;
    // A last window that is cut off counts if it begins inside the image or the pad before it.
    let begins_inside = axis.count * axis.stride < axis.extent + axis.pads[0];
    axis.count += u64::from(rounds_up && !room.is_multiple_of(axis.stride) && begins_inside);
    Ok(axis)
}

/// The windows of an image [batch, channels, spatial..] as [batch, channels, (windows, size)..]; `fill` stands outside.
pub(super) fn unfolded(
    call: &mut Call<'_, '_>,
    mut image: ValueId,
    axes: &[Axis],
    fill: f64,
) -> Result<ValueId, Fault> {
    for (d, axis) in axes.iter().enumerate() {
        image = padded(call, image, 2 + d, [axis.pads[0] as i64, axis.behind()], fill)?;
    }
    for (d, axis) in axes.iter().enumerate() {
        let dim = 2 + 2 * d;
        if axis.size == axis.stride && axis.dilation == 1 {
            let mut split = call.ty(image).shape;
            split[dim] = axis.count;
            split.insert(dim + 1, axis.size);
            image = call.reshape(image, &split)?;
            continue;
        }
        let windows = Windows { dim, size: axis.size, stride: axis.stride, dilation: axis.dilation };
        image = call.emit(Unfold { windows }, &[image])?;
    }
    Ok(image)
}
