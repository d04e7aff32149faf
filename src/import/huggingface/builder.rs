//! The program under construction: inputs, parameters under their names in checkpoints, and ops.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::module::{Initializer, Input, Module, Normal, Weight};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Binary, Full, Reshape, Slice, Transpose, Unary, UnaryKind};
use galvatron_ir::types::TensorType;

use super::super::dropout::Dropouts;

/// A value of the program, or why it cannot be.
pub(super) type Built = Result<ValueId, Diagnostic>;

/// Builds a forward program.
pub(super) struct Builder {
    /// What is built.
    pub module: Module,
    dropouts: Dropouts,
    /// Prefix of the names of results: the module of the model that is being built.
    scope: String,
}

impl Builder {
    /// An empty program, whose dropouts will draw from the seed.
    pub fn new(name: &str, seed: u64) -> Builder {
        Builder { module: Module::new(name), dropouts: Dropouts::new(seed), scope: String::new() }
    }

    /// Names the results from now on after a module of the model.
    pub fn enter(&mut self, scope: &str) {
        self.scope = scope.to_string();
    }

    /// An array that the run supplies; the batch is dimension 0.
    pub fn input(&mut self, name: &str, ty: TensorType) -> ValueId {
        let value = self.module.program.graph.declare(name, ty);
        self.module.program.inputs.push(Input { name: name.to_string(), value });
        value
    }

    /// A parameter in the shape in which checkpoints store it.
    pub fn parameter(&mut self, name: &str, shape: &[u64], start: Normal) -> ValueId {
        let ty = TensorType::f32(shape);
        let value = self.module.program.graph.declare(name, ty.clone());
        let initializer = self.module.initializers.len();
        let stored = Initializer { name: name.to_string(), file: String::new(), offset: 0, ty, start: Some(start) };
        self.module.initializers.push(stored);
        self.module.program.weights.push(Weight { value, initializer, view: Vec::new(), trainable: true });
        value
    }

    /// Names a result of the program.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.module.program.graph.rename(value, name);
        self.module.program.outputs.push((name.to_string(), value));
    }

    /// Global shape of a value.
    pub fn shape(&self, value: ValueId) -> Vec<u64> {
        self.module.program.graph.value(value).ty.shape.clone()
    }

    /// Result 0 of an op.
    ///
    /// # Errors
    /// Code `config-shape` where the operands do not fit.
    pub fn emit(&mut self, op: impl Into<Op>, args: &[ValueId]) -> Built {
        let (op, program) = (op.into(), &mut self.module.program);
        let types = op.infer(&program.graph.types(args)).map_err(|what| {
            let message = format!("the sizes of the configuration do not fit at `{}`: {what}", self.scope);
            Diagnostic::new("config-shape", message)
        })?;
        let word = op.mnemonic().rsplit('.').next().unwrap_or("value");
        let name = if self.scope.is_empty() { word.to_string() } else { format!("{}.{word}", self.scope) };
        let node = program.graph.add_typed(op, args, types.clone(), &vec![name; types.len()]);
        program.body.push(node);
        Ok(program.graph.node(node).results[0])
    }

    /// A constant of one element.
    pub fn scalar(&mut self, value: f64) -> Built {
        self.emit(Full::f32(value), &[])
    }

    /// x + y
    pub fn add(&mut self, x: ValueId, y: ValueId) -> Built {
        self.emit(Binary::ADD, &[x, y])
    }

    /// x - y
    pub fn subtract(&mut self, x: ValueId, y: ValueId) -> Built {
        self.emit(Binary::SUB, &[x, y])
    }

    /// x y, element by element.
    pub fn multiply(&mut self, x: ValueId, y: ValueId) -> Built {
        self.emit(Binary::MUL, &[x, y])
    }

    /// x times a number.
    pub fn scaled(&mut self, x: ValueId, factor: f64) -> Built {
        if factor == 1.0 {
            return Ok(x);
        }
        let factor = self.scalar(factor)?;
        self.multiply(x, factor)
    }

    /// An element-wise function.
    pub fn function(&mut self, kind: UnaryKind, x: ValueId) -> Built {
        self.emit(Unary { kind }, &[x])
    }

    /// x with a part of its elements dropped; x itself at the rate 0.
    pub fn dropout(&mut self, x: ValueId, rate: f64) -> Built {
        if rate == 0.0 {
            return Ok(x);
        }
        let (op, step) = self.dropouts.next(&mut self.module.program, rate);
        self.emit(op, &[x, step])
    }

    /// The same elements in another shape.
    pub fn reshape(&mut self, x: ValueId, shape: &[u64]) -> Built {
        self.emit(Reshape { shape: shape.to_vec() }, &[x])
    }

    /// Dimension i of the result is dimension `perm[i]` of x.
    pub fn transpose(&mut self, x: ValueId, perm: &[usize]) -> Built {
        self.emit(Transpose { perm: perm.to_vec() }, &[x])
    }

    /// Elements `start` to `start + len` of a dimension; x itself if those are all.
    pub fn slice(&mut self, x: ValueId, dim: usize, start: u64, len: u64) -> Built {
        if self.shape(x).get(dim) == Some(&len) && start == 0 {
            return Ok(x);
        }
        self.emit(Slice { dim, start, len }, &[x])
    }
}
