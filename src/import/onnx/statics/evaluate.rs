//! The list of operators that can be evaluated, and the call they see.

use super::super::attributes::Attributes;
use super::tensor::StaticTensor;
use super::{arithmetic, cast, compare, generate, index, layout, matmul, pieces, reduce};

/// What an operator returns: its results, or what is wrong with its operands.
pub(super) type Results = Result<Vec<StaticTensor>, String>;

/// One call of an operator of the standard domain on known operands.
pub(super) struct Call<'a> {
    pub opset: i64,
    pub attributes: &'a Attributes,
    pub inputs: &'a [Option<&'a StaticTensor>],
    pub n_outputs: usize,
}

impl<'a> Call<'a> {
    /// An operand that must be there.
    pub(super) fn input(&self, index: usize) -> Result<&'a StaticTensor, String> {
        self.optional(index).ok_or_else(|| format!("operand {index} is missing"))
    }

    /// An operand that may be absent.
    pub(super) fn optional(&self, index: usize) -> Option<&'a StaticTensor> {
        self.inputs.get(index).copied().flatten()
    }

    /// All elements of an integer operand that may be absent.
    pub(super) fn optional_ints(&self, index: usize) -> Result<Option<Vec<i64>>, String> {
        let read =
            |t: &StaticTensor| t.ints().ok_or_else(|| format!("operand {index} is not a short list of integers"));
        self.optional(index).map(read).transpose()
    }

    /// All elements of an integer operand.
    pub(super) fn ints(&self, index: usize) -> Result<Vec<i64>, String> {
        self.optional_ints(index)?.ok_or_else(|| format!("operand {index} is missing"))
    }

    /// Integers that older operator sets give as an attribute and newer ones as an operand.
    pub(super) fn ints_either(&self, index: usize, attribute: &str) -> Result<Option<Vec<i64>>, String> {
        match self.attributes.ints(attribute) {
            Some(values) => Ok(Some(values.to_vec())),
            None => self.optional_ints(index),
        }
    }

    /// The attribute `axis` as an index below `rank`.
    pub(super) fn axis(&self, default: i64, rank: usize) -> Result<usize, String> {
        axis_index(self.attributes.int("axis", default), rank)
    }
}

/// An axis, possibly counted from the end, as an index below `rank`.
pub(super) fn axis_index(axis: i64, rank: usize) -> Result<usize, String> {
    let index = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    match usize::try_from(index) {
        Ok(index) if index < rank => Ok(index),
        _ => Err(format!("axis {axis} of a tensor of rank {rank}")),
    }
}

/// Extents from integers, none of which may be negative.
pub(super) fn extents(values: &[i64]) -> Result<Vec<usize>, String> {
    values.iter().map(|&v| usize::try_from(v).map_err(|_| format!("negative extent {v}"))).collect()
}

/// Applies an operator of the standard domain to operands that are all known; an absent optional operand is `None`.
///
/// Returns `None` if the operator is not one of those evaluated here; `opset` is the version of its operator set and
/// `n_outputs` the number of results that the node names. Semantics are those of the ONNX operator specification.
///
/// # Errors
/// A clause that says what is wrong with the operands, or that the result is too large to store.
pub fn evaluate(
    op_type: &str,
    opset: i64,
    attributes: &Attributes,
    inputs: &[Option<&StaticTensor>],
    n_outputs: usize,
) -> Option<Result<Vec<StaticTensor>, String>> {
    let call = Call { opset, attributes, inputs, n_outputs };
    operator(op_type).map(|evaluate| evaluate(&call).map_err(|what| format!("`{op_type}`: {what}")))
}

/// Whether [`evaluate`] knows the operator.
pub fn is_supported(op_type: &str) -> bool {
    operator(op_type).is_some()
}

fn operator(op_type: &str) -> Option<fn(&Call) -> Results> {
    Some(match op_type {
        "Constant" => generate::constant,
        "ConstantOfShape" => generate::constant_of_shape,
        "Shape" => generate::shape,
        "Size" => generate::size,
        "Range" => generate::range,
        "OneHot" => generate::one_hot,
        "NonZero" => generate::non_zero,
        "Identity" => |c| Ok(vec![c.input(0)?.clone()]),
        "Reshape" => layout::reshape,
        "Flatten" => layout::flatten,
        "Squeeze" => layout::squeeze,
        "Unsqueeze" => layout::unsqueeze,
        "Transpose" => layout::transpose,
        "Expand" => layout::expand,
        "Tile" => pieces::tile,
        "Concat" => pieces::concat,
        "Slice" => pieces::slice,
        "Split" => pieces::split,
        "Trilu" => pieces::trilu,
        "Gather" => index::gather_axis,
        "GatherElements" => index::gather_elements,
        "GatherND" => index::gather_nd,
        "ScatterND" => index::scatter_nd,
        "Cast" => |c| Ok(vec![cast::cast(c.input(0)?, c.attributes.int("to", 0))?]),
        "CastLike" => |c| Ok(vec![cast::cast_like(c.input(0)?, c.input(1)?)?]),
        "MatMul" => matmul::matmul,
        "ArgMax" => reduce::arg_max,
        "CumSum" => reduce::cum_sum,
        _ => return arithmetic::operator(op_type).or(compare::operator(op_type)).or(reduction(op_type)),
    })
}

fn reduction(op_type: &str) -> Option<fn(&Call) -> Results> {
    Some(match op_type {
        "ReduceSum" => reduce::sum,
        "ReduceMean" => reduce::mean,
        "ReduceProd" => reduce::product,
        "ReduceMax" => reduce::maximum,
        "ReduceMin" => reduce::minimum,
        _ => return None,
    })
}
