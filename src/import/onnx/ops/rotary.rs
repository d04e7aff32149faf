//! `RotaryEmbedding` of operator set 23.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Embedding, Rotary};

use super::super::attributes::{Attribute, Attributes};
use super::super::statics::evaluate;
use super::{Call, Fault, Operator, Results, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "RotaryEmbedding" => rotary,
        _ => return None,
    })
}

/// Turns pairs (a, b) of the last dimension to (a cos - b sin, a sin + b cos), by an angle for each position and pair.
///
/// The operand is [batch, heads, length, width], or [batch, length, heads · width].
fn rotary(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let shape = call.ty(x).shape;
    let heads = u64::try_from(call.attributes().int("num_heads", 0)).unwrap_or(0);
    let (x, heads_dim) = match shape[..] {
        [_, _, _, _] => (x, 1),
        [b, s, width] if heads > 0 && width.is_multiple_of(heads) => {
            (call.reshape(x, &[b, s, heads, width / heads])?, 2)
        }
        _ => return Err(format!("`num_heads` is {heads} for an operand of shape {shape:?}").into()),
    };
    let [cos, sin] = [angles(call, 1, heads_dim)?, angles(call, 2, heads_dim)?];
    let width = call.ty(x).shape[3];
    let turned = match call.attributes().int("rotary_embedding_dim", 0) {
        0 => width,
        n => u64::try_from(n).ok().filter(|n| *n <= width).ok_or_else(|| format!("`rotary_embedding_dim` is {n}"))?,
    };
    if call.ty(cos).shape.last().map(|pairs| 2 * pairs) != Some(turned) {
        return Err(format!("tables `{}` for a width of {turned}", call.ty(cos)).into());
    }
    let interleaved = call.attributes().int("interleaved", 0) != 0;
    let value = call.emit(Rotary { interleaved, inverse: false }, &[x, cos, sin])?;
    one(call.reshape(value, &shape)?)
}

/// The table of one function as [batch or 1, 1, length, pairs], or [batch or 1, length, 1, pairs].
fn angles(call: &mut Call<'_, '_>, index: usize, heads_dim: usize) -> Result<ValueId, Fault> {
    let with_heads = |mut shape: Vec<u64>| {
        shape.insert(heads_dim, 1);
        shape
    };
    let (table, positions) = (call.known(index).cloned(), call.known(3).cloned());
    if let Some(table) = table
        && (positions.is_some() || !call.has(3))
    {
        let axis = Attributes::default().with("axis", Attribute::Int(0));
        let picked = match &positions {
            Some(ids) => evaluate("Gather", 13, &axis, &[Some(&table), Some(ids)], 1)
                .expect("invariant: gathering is evaluated")?
                .remove(0),
            None => table,
        };
        let mut shape: Vec<u64> = picked.shape().iter().map(|&d| d as u64).collect();
        if shape.len() != 3 {
            return Err(format!("a table of shape {shape:?}").into());
        }
        shape[0] = picked.stored()[0] as u64;
        let name = match call.node.inputs.get(3).filter(|ids| !ids.is_empty()) {
            Some(ids) => format!("{}.{ids}", call.node.inputs[index]),
            None => call.node.inputs[index].clone(),
        };
        let value = call.lowering.materialize_as(&name, &picked, shape.clone())?;
        return call.reshape(value, &with_heads(shape));
    }
    let mut value = call.value(index)?;
    if call.has(3) {
        let ids = call.value(3)?;
        value = call.emit(Embedding, &[value, ids])?;
    }
    let shape = call.ty(value).shape;
    if shape.len() != 3 {
        return Err(format!("a table of shape {shape:?}").into());
    }
    call.reshape(value, &with_heads(shape))
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    fn rotary(attributes: &str, x: &str) -> String {
        let nodes = ["table = Cast{to=1} numbers", "cos = Unsqueeze table first", "sin = Neg cos"];
        let node = format!("y = RotaryEmbedding{{{attributes}}} x cos sin");
        let builder = Builder::new(&[nodes[0], nodes[1], nodes[2], &node]).opset(23).input("x", 1, x);
        builder.matrix("numbers", 6, |row, column| row + column).ints("first", &[0]).ops()
    }

    #[test]
    fn halves_are_turned() {
        let ops = rotary("", "batch 3 6 12");
        let tables = "constant f32[1, 6, 6]; reshape f32[1, 1, 6, 6]; constant f32[1, 6, 6]; reshape f32[1, 1, 6, 6]; ";
        assert_eq!(ops, format!("{tables}rotary f32[2, 3, 6, 12]"));
    }

    #[test]
    fn tables_of_another_width_are_refused() {
        let nodes = ["table = Cast{to=1} numbers", "cos = Unsqueeze table first", "y = RotaryEmbedding x cos cos"];
        let builder = Builder::new(&nodes).opset(23).input("x", 1, "batch 3 6 8").ints("first", &[0]);
        let fault = builder.matrix("numbers", 6, |row, column| row + column).import().unwrap_err();
        assert!(fault.contains("for a width of 8"), "{fault}");
    }

    #[test]
    fn packed_heads_keep_their_shape_and_a_part_may_stay() {
        let ops = rotary("num_heads=2, rotary_embedding_dim=12, interleaved=1", "batch 6 32");
        assert!(ops.starts_with("reshape f32[2, 6, 2, 16]; "), "{ops}");
        assert!(ops.ends_with("rotary f32[2, 6, 2, 16]; reshape f32[2, 6, 32]"), "{ops}");
    }
}
