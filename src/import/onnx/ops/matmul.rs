//! Matrix products: `MatMul` and `Gemm` become contractions with labels.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Binary, Einsum};

use super::{Call, Fault, Operator, Results, broadcast_shape, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "MatMul" => matmul,
        "Gemm" => gemm,
        _ => return None,
    })
}

/// NumPy's product of [.., m, k] and [.., k, n]; vectors have no m or n; leading dimensions broadcast.
fn matmul(call: &mut Call<'_, '_>) -> Results {
    let (lhs, rhs) = (call.value(0)?, call.value(1)?);
    let (a, b) = (call.ty(lhs).shape, call.ty(rhs).shape);
    if a.is_empty() || b.is_empty() {
        return Err("an operand is a scalar".into());
    }
    let (batch_a, batch_b) = (&a[..a.len().saturating_sub(2)], &b[..b.len().saturating_sub(2)]);
    let batch = broadcast_shape(&[batch_a, batch_b])?;
    let letters = letters(batch.len())?;
    let (kept_a, lhs) = squeezed(call, lhs, batch_a, &batch)?;
    let (kept_b, rhs) = squeezed(call, rhs, batch_b, &batch)?;
    let of = |kept: &[usize]| kept.iter().map(|&d| letters[d]).collect::<String>();
    let (m, n) = (if a.len() > 1 { "m" } else { "" }, if b.len() > 1 { "n" } else { "" });
    let (lhs_labels, rhs_labels) = (format!("{}{m}k", of(&kept_a)), format!("{}k{n}", of(&kept_b)));
    let out = format!("{}{m}{n}", letters.iter().collect::<String>());
    one(call.emit(Einsum { lhs: lhs_labels, rhs: rhs_labels, out }, &[lhs, rhs])?)
}

/// Labels of leading dimensions.
fn letters(n: usize) -> Result<Vec<char>, Fault> {
    let letters: Vec<char> = "bhcdefgijlopqrstuvwxyz".chars().take(n).collect();
    if letters.len() == n { Ok(letters) } else { Err(Fault::Unsupported(format!("with {n} leading dimensions"))) }
}

/// Drops the leading dimensions along which the operand is repeated, and says which of the result's remain.
fn squeezed(
    call: &mut Call<'_, '_>,
    value: ValueId,
    leading: &[u64],
    batch: &[u64],
) -> Result<(Vec<usize>, ValueId), Fault> {
    let skip = batch.len() - leading.len();
    let keeps = |d: &usize| leading[*d] == batch[skip + d];
    let kept: Vec<usize> = (0..leading.len()).filter(keeps).collect();
    let shape = call.ty(value).shape;
    let shape: Vec<u64> = kept.iter().map(|&d| leading[d]).chain(shape[leading.len()..].iter().copied()).collect();
    let value = call.reshape(value, &shape)?;
    Ok((kept.into_iter().map(|d| skip + d).collect(), value))
}

/// alpha A B + beta C, where A and B may be transposed; the transposes are labels.
fn gemm(call: &mut Call<'_, '_>) -> Results {
    let (a, b) = (call.value(0)?, call.value(1)?);
    let attributes = call.attributes();
    let lhs = if attributes.int("transA", 0) != 0 { "km" } else { "mk" };
    let rhs = if attributes.int("transB", 0) != 0 { "nk" } else { "kn" };
    let (alpha, beta) = (attributes.float("alpha", 1.0), attributes.float("beta", 1.0));
    let mut product = call.emit(Einsum { lhs: lhs.into(), rhs: rhs.into(), out: "mn".into() }, &[a, b])?;
    product = scaled(call, product, alpha)?;
    if !call.has(2) || beta == 0.0 {
        return one(product);
    }
    let shape = call.ty(product).shape;
    let c = call.broadcastable(2, &[&shape], &shape)?;
    let c = scaled(call, c, beta)?;
    one(call.emit(Binary::ADD, &[product, c])?)
}

fn scaled(call: &mut Call<'_, '_>, value: ValueId, factor: f32) -> Result<ValueId, Fault> {
    if factor == 1.0 {
        return Ok(value);
    }
    let factor = call.scalar(f64::from(factor))?;
    call.emit(Binary::MUL, &[value, factor])
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    fn product(a: &str, b: &[i64], expected: &str) {
        let builder = Builder::new(&["y = MatMul x b"]).input("x", 1, a).f32("b", b);
        assert_eq!(builder.ops(), expected);
    }

    #[test]
    fn matrices_vectors_and_batches() {
        product("2 3 4", &[2, 4, 5], "einsum<bmk,bkn->bmn> f32[2, 3, 5]");
        product("2 4", &[4], "einsum<mk,k->m> f32[2]");
        product("2", &[2, 5], "einsum<k,kn->n> f32[5]");
        product("2 6 3 4", &[4, 5], "einsum<bhmk,kn->bhmn> f32[2, 6, 3, 5]");
    }

    #[test]
    fn repeated_leading_dimensions_are_dropped() {
        product("2 1 3 4", &[2, 6, 4, 5], "reshape f32[2, 3, 4]; einsum<bmk,bhkn->bhmn> f32[2, 6, 3, 5]");
        product("2 3 4", &[1, 4, 5], "reshape f32[4, 5]; einsum<bmk,kn->bmn> f32[2, 3, 5]");
    }

    #[test]
    fn gemm_transposes_by_labels() {
        let gemm = |attributes: &str| {
            let node = format!("y = Gemm{{{attributes}}} x w c");
            Builder::new(&[&node]).f32("w", &[4, 4]).f32("c", &[4]).ops()
        };
        assert_eq!(gemm("transB=1"), "einsum<mk,nk->mn> f32[2, 4]; add f32[2, 4]");
        let scaled = "einsum<mk,kn->mn> f32[2, 4]; full<0.5> f32[]; mul f32[2, 4]";
        assert_eq!(gemm("alpha=0.5, beta=0.0"), scaled);
    }
}
