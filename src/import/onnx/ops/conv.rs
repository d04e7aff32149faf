//! Convolutions whose windows do not overlap, as patch embeddings are: a contraction over each patch.

use galvatron_ir::op::compute::{Binary, Einsum};

use super::pieces::sliced;
use super::{Call, Fault, Operator, Results, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Conv" => conv,
        _ => return None,
    })
}

/// Image [batch, in, spatial..], kernel [out, in, window..], bias [out]; the stride is the window and nothing is padded.
fn conv(call: &mut Call<'_, '_>) -> Results {
    let (mut x, kernel) = (call.value(0)?, call.value(1)?);
    let (image, window) = (call.ty(x).shape, call.ty(kernel).shape);
    if image.len() != window.len() || image.len() < 3 || window.contains(&0) {
        return Err(format!("a kernel of shape {window:?} on an image of shape {image:?}").into());
    }
    let n_spatial = image.len() - 2;
    refuse_overlap(call, &window[2..])?;
    let (mut split, mut out) = (image[..2].to_vec(), vec![image[0], window[0]]);
    let (mut lhs, mut rhs, mut result) = ("bc".to_string(), "oc".to_string(), "bo".to_string());
    for (i, (outer, inner)) in "xyz".chars().zip("ijk".chars()).take(n_spatial).enumerate() {
        let n = image[2 + i] / window[2 + i];
        x = sliced(call, x, 2 + i, 0, n * window[2 + i])?;
        split.extend([n, window[2 + i]]);
        out.push(n);
        lhs.extend([outer, inner]);
        rhs.push(inner);
        result.push(outer);
    }
    let patches = call.reshape(x, &split)?;
    let value = call.emit(Einsum { lhs, rhs, out: result }, &[patches, kernel])?;
    if !call.has(2) {
        return one(value);
    }
    let bias = call.value(2)?;
    let mut column = vec![1; n_spatial + 1];
    column[0] = window[0];
    let bias = call.reshape(bias, &column)?;
    one(call.emit(Binary::ADD, &[value, bias])?)
}

fn refuse_overlap(call: &Call<'_, '_>, window: &[u64]) -> Result<(), Fault> {
    let attributes = call.attributes();
    let list =
        |name: &str, default: i64| attributes.ints(name).map_or_else(|| vec![default; window.len()], <[i64]>::to_vec);
    let strides: Vec<u64> = list("strides", 1).iter().map(|&s| s.max(0) as u64).collect();
    let padded = list("pads", 0).iter().any(|&p| p != 0) || attributes.string("auto_pad", "NOTSET").starts_with("SAME");
    let dilated = list("dilations", 1).iter().zip(window).any(|(&d, &w)| d != 1 && w > 1);
    let unsupported = |what: &str| Err(Fault::Unsupported(what.into()));
    if window.len() > 3 || attributes.int("group", 1) != 1 {
        return unsupported("with groups or more than three spatial dimensions");
    }
    if strides != window || padded || dilated {
        return unsupported("whose windows overlap, have gaps or reach beyond the image");
    }
    Ok(())
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
        let expected = "slice<3: 0, 8> f32[2, 3, 8, 8]; reshape f32[2, 3, 2, 4, 2, 4]; \
                        einsum<bcxiyj,ocij->boxy> f32[2, 5, 2, 2]; reshape f32[5, 1, 1]; add f32[2, 5, 2, 2]";
        assert_eq!(conv("strides=[4 4]").ops(), expected);
    }

    #[test]
    fn overlapping_windows_are_refused() {
        for attributes in ["strides=[2 2]", "strides=[4 4], pads=[1 1 1 1]", "strides=[4 4], group=3"] {
            assert!(conv(attributes).import().unwrap_err().starts_with("error[onnx-op]"), "{attributes}");
        }
    }
}
