//! Puts static tensors into the program, as the smallest op that makes them.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Broadcast, Cast, CausalMask, Constant, Full, Iota, Where};
use galvatron_ir::types::{DType, Scalar, TensorType};

use super::super::statics::{self, StaticTensor, StaticType};
use super::{Fault, Lowered, Lowering};

/// Most elements of a constant that is written into the program.
pub(super) const MAX_CONSTANT: usize = 1 << 16;

/// Longest chain of large tensors of which the program computes each from the one before.
const MAX_CHAIN: usize = 64;

impl Lowering<'_> {
    /// The static tensor of that ONNX name as a value of the program, of its whole shape.
    pub fn materialize(&mut self, name: &str, tensor: &StaticTensor) -> Result<ValueId, Fault> {
        let shape = tensor.shape().iter().map(|&d| d as u64).collect();
        self.materialize_as(name, tensor, shape)
    }

    /// The same with extent 1 where the tensor is constant along a dimension and `shape` says 1.
    pub fn materialize_as(&mut self, name: &str, tensor: &StaticTensor, shape: Vec<u64>) -> Result<ValueId, Fault> {
        let key = (name.to_string(), shape);
        if let Some(&value) = self.constants.get(&key) {
            return Ok(value);
        }
        let value = self.made(name, tensor, key.1.clone())?;
        self.constants.insert(key, value);
        Ok(value)
    }

    fn made(&mut self, name: &str, tensor: &StaticTensor, shape: Vec<u64>) -> Result<ValueId, Fault> {
        let ty = TensorType::new(dtype(tensor.dtype())?, shape);
        if ty.elements() == 0 {
            return self.source(name, Full { ty, value: Scalar::new(0.0) });
        }
        if let Some(value) = tensor.as_splat() {
            let value = Scalar::new(as_f64(value));
            return self.source(name, Full { ty, value });
        }
        if let Some(statics::Iota { dim, start, step }) = tensor.as_iota() {
            return self.source(name, Iota { shape: ty.shape, dim, start, step });
        }
        if let Some(mask) = tensor.as_causal_mask() {
            return self.causal(name, ty, mask);
        }
        if tensor.n_stored() > MAX_CONSTANT {
            return self.large(name, tensor, ty);
        }
        let stored = ty.with_shape(tensor.stored().iter().map(|&d| d as u64).collect::<Vec<_>>());
        let values = elements(tensor).into_iter().map(Scalar::new).collect();
        let constant = self.source(name, Constant { ty: stored.clone(), values })?;
        if stored == ty {
            return Ok(constant);
        }
        let dims = (0..ty.rank()).collect();
        Ok(self.emit(name, Broadcast { shape: ty.shape, dims }.into(), &[constant])?[0])
    }

    fn source(&mut self, name: &str, op: impl Into<Op>) -> Result<ValueId, Fault> {
        Ok(self.emit(name, op.into(), &[])?[0])
    }

    fn causal(&mut self, name: &str, ty: TensorType, mask: statics::CausalMask) -> Result<ValueId, Fault> {
        let (shape, offset) = (ty.shape, mask.offset);
        if ty.dtype == DType::F32 {
            return self.source(name, CausalMask { shape, offset, fill: Scalar::new(as_f64(mask.fill)) });
        }
        let ones = self.source(name, CausalMask { shape, offset, fill: Scalar::new(1.0) })?;
        let hidden = self.emit(name, Cast { to: DType::Bool }.into(), &[ones])?[0];
        let flag = |value| Full { ty: TensorType::new(DType::Bool, []), value: Scalar::new(value) };
        let (no, yes) = (self.source(name, flag(0.0))?, self.source(name, flag(1.0))?);
        Ok(self.emit(name, Where.into(), &[hidden, no, yes])?[0])
    }

    /// A tensor that is too large for a constant is read from the file it stands in, if it does, or computed by the program
    /// from smaller ones, as the model does.
    fn large(&mut self, name: &str, tensor: &StaticTensor, ty: TensorType) -> Result<ValueId, Fault> {
        let record = self.records.get(name).copied();
        match record.filter(|r| r.dims == ty.shape && r.source().is_some() && tensor.dtype() == StaticType::F32) {
            Some(record) => self.weight(record, false).ok_or(Fault::Unknown),
            None => self.computed(name, &ty)?.ok_or_else(|| {
                let n = tensor.n_stored();
                Fault::Unsupported(format!("with the constant `{name}` of {n} elements, more than {MAX_CONSTANT}"))
            }),
        }
    }

    /// The static tensor of that name by the ops of the node that makes it, if it is of that type then.
    fn computed(&mut self, name: &str, ty: &TensorType) -> Result<Option<ValueId>, Fault> {
        if self.n_computing == MAX_CHAIN {
            return Ok(None);
        }
        self.n_computing += 1;
        let result = self.computed_by_node(name);
        self.n_computing -= 1;
        Ok(result?.filter(|&value| self.module.program.graph.value(value).ty == *ty))
    }

    fn computed_by_node(&mut self, name: &str) -> Result<Option<ValueId>, Fault> {
        let Some(&node) = self.producers.get(name) else { return Ok(None) };
        for input in &node.inputs {
            let Some(ty) = self.forgotten.get(input.as_str()).cloned() else { continue };
            let Some(value) = self.computed(input, &ty)? else { return Ok(None) };
            self.table.insert(input, Lowered::Value(value));
            self.forgotten.remove(input.as_str());
        }
        let results = match self.as_ops(node) {
            Err(Fault::Unsupported(_)) => return Ok(None),
            results => results?,
        };
        let result = node.outputs.iter().zip(results).find(|(output, _)| *output == name);
        let Some((_, Lowered::Value(value))) = result else { return Ok(None) };
        Ok(Some(value))
    }
}

/// Element type of a static tensor in the program.
pub(in super::super) fn dtype(of: StaticType) -> Result<DType, Fault> {
    Ok(match of {
        StaticType::F32 => DType::F32,
        StaticType::I64 => DType::I64,
        StaticType::Bool => DType::Bool,
        StaticType::F64 => return Err(Fault::Unsupported("in double precision".into())),
    })
}

/// An element as the scalars of the program hold it.
pub(in super::super) fn as_f64(value: statics::Scalar) -> f64 {
    match value {
        statics::Scalar::I64(v) => v as f64,
        statics::Scalar::Bool(v) => f64::from(u8::from(v)),
        statics::Scalar::F32(v) => f64::from(v),
        statics::Scalar::F64(v) => v,
    }
}

/// The stored elements.
pub(in super::super) fn elements(tensor: &StaticTensor) -> Vec<f64> {
    match (tensor.stored_ints(), tensor.stored_bools(), tensor.stored_floats()) {
        (Some(v), ..) => v.iter().map(|&x| x as f64).collect(),
        (_, Some(v), _) => v.iter().map(|&x| f64::from(u8::from(x))).collect(),
        (.., Some(v)) => v.iter().map(|&x| f64::from(x)).collect(),
        _ => tensor.stored_doubles().unwrap_or_default().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    #[test]
    fn known_forms_need_no_list_of_elements() {
        let nodes = ["m = Cast{to=1} hidden", "y = Add x m"];
        let builder = Builder::new(&nodes).input("x", 1, "batch 1 6 6");
        let mask = builder.matrix("hidden", 6, |row, column| if column > row { -9 } else { 0 });
        assert_eq!(mask.ops(), "causal_mask f32[6, 6]; add f32[2, 1, 6, 6]");
    }

    #[test]
    fn constants_are_stored_once_along_repeated_dimensions() {
        let nodes = ["t = Cast{to=1} numbers", "e = Expand t shape", "y = Concat{axis=0} x e"];
        let builder = Builder::new(&nodes).ints("numbers", &[1, 2, 4, 8]).ints("shape", &[3, 4]);
        assert_eq!(builder.ops(), "constant f32[1, 4]; broadcast<[0, 1]> f32[3, 4]; concat f32[5, 4]");
    }

    #[test]
    fn large_tables_are_read_from_their_file() {
        let builder = Builder::new(&["y = Mul x table"]).input("x", 1, "batch 256 257").f32("table", &[256, 257]);
        let program = builder.import().unwrap().module.program;
        assert_eq!((program.weights.len(), program.weights[0].trainable), (1, false));
    }

    #[test]
    fn large_constants_without_a_file_are_computed_by_the_program() {
        let nodes = ["c = Reshape numbers shape", "d = Sub c numbers", "t = Cast{to=1} d", "y = Mul x t"];
        let squares: Vec<i64> = (0..300).map(|i| i * i).collect();
        let builder = Builder::new(&nodes).input("x", 1, "batch 300 300").ints("numbers", &squares);
        let expected = "constant i64[300, 1]; constant i64[300]; sub i64[300, 300]; cast f32[300, 300]";
        assert_eq!(builder.ints("shape", &[300, 1]).ops(), format!("{expected}; mul f32[2, 300, 300]"));
    }

    #[test]
    fn chains_of_large_constants_are_computed_up_to_a_length() {
        let model = |n: usize| {
            let add = |i: usize| format!("c{} = Sub c{i} numbers", i + 1);
            let (add, last) = ((0..n).map(add).collect::<Vec<_>>(), format!("y = Mul x c{n}"));
            let nodes =
                ["c0 = Reshape numbers shape"].into_iter().chain(add.iter().map(String::as_str)).chain([&*last]);
            let squares: Vec<i64> = (0..300).map(|i| i * i).collect();
            let builder = Builder::new(&nodes.collect::<Vec<_>>()).input("x", 7, "batch 300 300");
            builder.ints("numbers", &squares).ints("shape", &[300, 1])
        };
        assert_eq!(model(64).ops().matches("sub i64[300, 300]").count(), 64);
        assert!(model(65).import().unwrap_err().contains("`Mul` with the constant `c65` of 90000 elements"));
    }

    #[test]
    fn large_constants_that_no_op_makes_are_refused() {
        let nodes = ["n = NonZero numbers", "t = Cast{to=1} n", "y = Mul x t"];
        let builder = Builder::new(&nodes).input("x", 1, "batch 2 90000").matrix("numbers", 300, |_, _| 1);
        let expected = "`Mul` with the constant `t` of 180000 elements, more than 65536 (at `y`)";
        assert!(builder.import().unwrap_err().contains(expected));
    }
}
