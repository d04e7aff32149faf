//! Convolutions: a contraction over each window.

use galvatron_ir::op::compute::{Binary, Einsum};

use super::window::{axes, unfolded};
use super::{Call, Fault, Operator, Results, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Conv" => conv,
        _ => return None,
    })
}

/// Labels of windows and of the elements in them, for each spatial dimension.
const SPATIAL: [(char, char); 3] = [('x', 'i'), ('y', 'j'), ('z', 'k')];

/// Image [batch, in, spatial..], kernel [out, in / groups, window..], bias [out].
fn conv(call: &mut Call<'_, '_>) -> Results {
    let (image, kernel) = (call.value(0)?, call.value(1)?);
    let (shape, window) = (call.ty(image).shape, call.ty(kernel).shape);
    let groups = u64::try_from(call.attributes().int("group", 1)).ok().filter(|&g| g > 0).ok_or("no groups")?;
    if window.len() > 2 + SPATIAL.len() {
        return Err(Fault::Unsupported("with more than three spatial dimensions".into()));
    }
    let fits = shape.len() == window.len()
        && window.len() > 2
        && window[1].checked_mul(groups) == Some(shape[1])
        && window[0].is_multiple_of(groups);
    if !fits {
        return Err(format!("a kernel of shape {window:?} on an image of shape {shape:?}").into());
    }
    let axes = axes(call, &shape, &window[2..])?;
    let mut patches = unfolded(call, image, &axes, 0.0)?;
    let mut filters = kernel;
    let mut einsum = Einsum { lhs: "bc".into(), rhs: "oc".into(), out: "bo".into() };
    if groups > 1 {
        let cut = call.ty(patches).shape;
        patches = call.reshape(patches, &[&[cut[0], groups, window[1]], &cut[2..]].concat())?;
        filters = call.reshape(kernel, &[&[groups, window[0] / groups], &window[1..]].concat())?;
        einsum = Einsum { lhs: "bgc".into(), rhs: "goc".into(), out: "bgo".into() };
    }
    for (outer, inner) in SPATIAL.into_iter().take(axes.len()) {
        einsum.lhs.extend([outer, inner]);
        einsum.rhs.push(inner);
        einsum.out.push(outer);
    }
    let value = call.emit(einsum, &[patches, filters])?;
    let counts: Vec<u64> = axes.iter().map(|axis| axis.count).collect();
    let value = call.reshape(value, &[&[shape[0], window[0]], &counts[..]].concat())?;
    if !call.has(2) {
        return one(value);
    }
    let bias = call.value(2)?;
    let mut column = vec![1; axes.len() + 1];
    column[0] = window[0];
    let bias = call.reshape(bias, &column)?;
    one(call.emit(Binary::ADD, &[value, bias])?)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    fn conv(attributes: &str) -> Builder {
        let builder = Builder::new(&[&format!("y = Conv{{{attributes}}} x w b")]);
        builder.input("x", 1, "batch 3 8 9").f32("w", &[5, 3, 4, 4]).f32("b", &[5])
    }

    #[test]
    fn patches_are_contracted() {
        let expected = "slice<3: 0, 8> f32[2, 3, 8, 8]; reshape f32[2, 3, 2, 4, 8]; reshape f32[2, 3, 2, 4, 2, 4]; \
                        einsum<bcxiyj,ocij->boxy> f32[2, 5, 2, 2]; reshape f32[5, 1, 1]; add f32[2, 5, 2, 2]";
        assert_eq!(conv("strides=[4 4]").ops(), expected);
    }

    #[test]
    fn windows_that_overlap_are_unfolded() {
        let ops = conv("strides=[2 2], pads=[1 0 1 0]").ops();
        assert!(
            ops.contains("concat f32[2, 3, 10, 9]; slice<3: 0, 8> f32[2, 3, 10, 8]; unfold f32[2, 3, 4, 4, 8]"),
            "{ops}"
        );
        let same = conv("auto_pad=SAME_UPPER").ops();
        assert!(same.ends_with("add f32[2, 5, 8, 9]"), "{same}");
    }

    #[test]
    fn groups_have_a_label_of_their_own() {
        let builder = Builder::new(&["y = Conv{group=2} x w"]).input("x", 1, "batch 4 8").f32("w", &[6, 2, 3]);
        let expected = "unfold f32[2, 4, 6, 3]; reshape f32[2, 2, 2, 6, 3]; reshape f32[2, 3, 2, 3]; \
                        einsum<bgcxi,goci->bgox> f32[2, 2, 3, 6]; reshape f32[2, 6, 6]";
        assert_eq!(builder.ops(), expected);
    }

    #[test]
    fn kernels_that_do_not_fit_are_refused() {
        assert!(conv("group=3").import().unwrap_err().starts_with("error[onnx-node]"));
        assert!(conv("dilations=[4 4]").import().unwrap_err().contains("a window of 13 on 8 elements"));
    }
}
