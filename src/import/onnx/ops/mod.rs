//! One function for each ONNX operator, which emits the ops of the IR that compute it.
//!
//! The lowering is literal: rewriting into textbook ops is the work of a later pass. Semantics are those of the ONNX operator
//! specification (<https://onnx.ai/onnx/operators>), for the version of the operator set where the node stands.

mod activation;
mod attention;
mod compare;
mod conv;
mod dropout;
mod einsum;
mod elementwise;
mod gather;
mod indices;
mod layout;
mod logic;
mod loss;
mod matmul;
mod norm;
mod order;
mod pad;
mod pieces;
mod pool;
mod reduce;
mod rotary;
mod scatter;
mod sequence;
mod window;

use galvatron_ir::id::ValueId;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Full, Reshape, Where};
use galvatron_ir::types::{DType, Scalar, TensorType};

use super::attributes::Attributes;
pub(super) use super::lower::{Fault, Lowered, Lowering};
use super::reader::Node;
use super::statics::{self, StaticTensor};

/// The results of a node, or why there are none.
pub(super) type Results = Result<Vec<Lowered>, Fault>;

/// A function that lowers a node.
pub(super) type Operator = fn(&mut Call<'_, '_>) -> Results;

/// The function that lowers an operator of the standard domain.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    let families = [
        elementwise::operator,
        activation::operator,
        compare::operator,
        matmul::operator,
        einsum::operator,
        layout::operator,
        dropout::operator,
        pieces::operator,
        pad::operator,
        norm::operator,
        attention::operator,
        conv::operator,
        pool::operator,
        gather::operator,
        scatter::operator,
        reduce::operator,
        order::operator,
        loss::operator,
        logic::operator,
        rotary::operator,
        sequence::operator,
    ];
    families.iter().find_map(|family| family(op_type))
}

/// Whether [`operator`] knows the operator.
pub(super) fn is_supported(op_type: &str) -> bool {
    operator(op_type).is_some()
}

/// A node to lower, and the program that receives its ops.
pub(super) struct Call<'a, 'm> {
    /// The program under construction.
    pub lowering: &'a mut Lowering<'m>,
    /// The node.
    pub node: &'a Node,
}

impl Call<'_, '_> {
    /// The attributes of the node.
    pub fn attributes(&self) -> &Attributes {
        &self.node.attributes
    }

    /// Whether the operand is given.
    pub fn has(&self, index: usize) -> bool {
        self.node.inputs.get(index).is_some_and(|input| !input.is_empty())
    }

    /// What an operand became.
    pub fn lowered(&self, index: usize) -> Result<&Lowered, Fault> {
        let name = self.node.inputs.get(index).filter(|input| !input.is_empty());
        name.and_then(|name| self.lowering.lowered(name)).ok_or_else(|| format!("operand {index} is missing").into())
    }

    /// An operand whose elements are known.
    pub fn known(&self, index: usize) -> Option<&StaticTensor> {
        match self.lowered(index) {
            Ok(Lowered::Static(tensor)) => Some(tensor),
            _ => None,
        }
    }

    /// The elements of an integer operand that must be known, or that an older operator set gives as an attribute.
    pub fn ints(&self, index: usize, attribute: &str) -> Result<Option<Vec<i64>>, Fault> {
        if let Some(values) = self.attributes().ints(attribute) {
            return Ok(Some(values.to_vec()));
        }
        if !self.has(index) {
            return Ok(None);
        }
        let tensor = self
            .known(index)
            .ok_or_else(|| Fault::Unsupported(format!("with an operand {index} that depends on the data")))?;
        tensor.ints().map(Some).ok_or_else(|| format!("operand {index} is no list of integers").into())
    }

    /// Shape of an operand.
    pub fn shape(&self, index: usize) -> Result<Vec<u64>, Fault> {
        match self.lowered(index)? {
            Lowered::Static(tensor) => Ok(tensor.shape().iter().map(|&d| d as u64).collect()),
            Lowered::Value(value) => Ok(self.ty(*value).shape),
            _ => Err(format!("operand {index} is no tensor").into()),
        }
    }

    /// An operand as a value of the program.
    pub fn value(&mut self, index: usize) -> Result<ValueId, Fault> {
        match self.lowered(index)?.clone() {
            Lowered::Value(value) => Ok(value),
            Lowered::Static(tensor) => self.lowering.materialize(&self.node.inputs[index], &tensor),
            _ => Err(format!("operand {index} is no tensor").into()),
        }
    }

    /// An operand that NumPy broadcasting brings to `shape` together with the others, whose shapes are `others`: of extent
    /// 1 where it is static and constant.
    pub fn broadcastable(&mut self, index: usize, others: &[&[u64]], shape: &[u64]) -> Result<ValueId, Fault> {
        let Lowered::Static(tensor) = self.lowered(index)?.clone() else { return self.value(index) };
        let stored: Vec<u64> = tensor.stored().iter().map(|&d| d as u64).collect();
        let all: Vec<&[u64]> = others.iter().copied().chain([stored.as_slice()]).collect();
        let enough = broadcast_shape(&all)? == shape;
        let name = &self.node.inputs[index];
        if enough {
            return self.lowering.materialize_as(name, &tensor, stored);
        }
        self.lowering.materialize(name, &tensor)
    }

    /// Type of a value.
    pub fn ty(&self, value: ValueId) -> TensorType {
        self.lowering.module.program.graph.value(value).ty.clone()
    }

    /// Adds an op; the result that is asked for most.
    pub fn emit(&mut self, op: impl Into<Op>, args: &[ValueId]) -> Result<ValueId, Fault> {
        Ok(self.emit_all(op, args)?[0])
    }

    /// Adds an op.
    pub fn emit_all(&mut self, op: impl Into<Op>, args: &[ValueId]) -> Result<Vec<ValueId>, Fault> {
        let op = op.into();
        let result = self.node.outputs.iter().find(|output| !output.is_empty()).map_or("v", String::as_str);
        let name = format!("{result}.{}", op.mnemonic());
        self.lowering.emit(&name, op, args)
    }

    /// A scalar of the program.
    pub fn scalar(&mut self, value: f64) -> Result<ValueId, Fault> {
        self.emit(Full::f32(value), &[])
    }

    /// A scalar of any element type.
    pub fn number(&mut self, dtype: DType, value: f64) -> Result<ValueId, Fault> {
        self.emit(Full { ty: TensorType::new(dtype, []), value: Scalar::new(value) }, &[])
    }

    /// `yes` where the condition holds, otherwise `no`.
    pub fn choose(&mut self, condition: ValueId, yes: ValueId, no: ValueId) -> Result<ValueId, Fault> {
        self.emit(Where, &[condition, yes, no])
    }

    /// An operand that must be a float.
    pub fn float(&mut self, index: usize) -> Result<ValueId, Fault> {
        let value = self.value(index)?;
        match self.ty(value).dtype {
            dtype if dtype.is_float() => Ok(value),
            dtype => Err(unsupported_type(dtype)),
        }
    }

    /// An operand that must be a list of integers that are known.
    pub fn known_ints(&self, index: usize, what: &str) -> Result<Vec<i64>, Fault> {
        self.ints(index, "")?.ok_or_else(|| format!("no {what}").into())
    }

    /// The value under another shape; the value itself if it has that shape.
    pub fn reshape(&mut self, value: ValueId, shape: &[u64]) -> Result<ValueId, Fault> {
        if self.ty(value).shape == shape {
            return Ok(value);
        }
        self.emit(Reshape { shape: shape.to_vec() }, &[value])
    }

    /// The attribute `axis` as an index below `rank`.
    pub fn axis(&self, default: i64, rank: usize) -> Result<usize, Fault> {
        axis_index(self.attributes().int("axis", default), rank)
    }
}

/// A fault for values of a type that the operator does not take here.
pub(super) fn unsupported_type(dtype: DType) -> Fault {
    Fault::Unsupported(format!("on {dtype} values that depend on the data"))
}

/// A tensor without elements, which is known whatever the data are.
pub(super) fn empty(dtype: DType, shape: &[u64]) -> Result<Lowered, Fault> {
    let like = match dtype {
        DType::I64 => statics::Scalar::I64(0),
        DType::Bool => statics::Scalar::Bool(false),
        DType::F32 | DType::Bf16 => statics::Scalar::F32(0.0),
    };
    let shape = shape.iter().map(|&d| d as usize).collect();
    Ok(Lowered::Static(StaticTensor::splat(shape, like)?))
}

/// One result.
pub(super) fn one(value: ValueId) -> Results {
    Ok(vec![Lowered::Value(value)])
}

/// An axis, possibly counted from the end, as an index below `rank`.
pub(super) fn axis_index(axis: i64, rank: usize) -> Result<usize, Fault> {
    let index = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    match usize::try_from(index) {
        Ok(index) if index < rank => Ok(index),
        _ => Err(format!("axis {axis} of a tensor of rank {rank}").into()),
    }
}

/// The shape that NumPy broadcasting gives.
pub(super) fn broadcast_shape(shapes: &[&[u64]]) -> Result<Vec<u64>, Fault> {
    galvatron_ir::op::compute::broadcasting::broadcast_shape(shapes).map_err(Fault::Wrong)
}
