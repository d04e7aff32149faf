//! Lowers a model node by node: what is static is evaluated, everything else becomes ops of the IR.

use std::collections::HashMap;
use std::path::Path;

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use galvatron_ir::graph::Def;
use galvatron_ir::id::ValueId;
use galvatron_ir::module::{Initializer, Input, Module, Weight};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::Transpose;
use galvatron_ir::types::TensorType;

use super::super::dropout::Dropouts;
use super::bind::Bindings;
use super::ops::{self, Call};
use super::parameters::Parameters;
use super::reader::{Node, OnnxModel};
use super::statics::{CausalMask, StaticTensor, evaluate, is_supported, shape_of};
use super::weights::{MAX_ELEMENTS, TensorRecord};
use held::Held;

mod held;
mod materialize;

use materialize::MAX_CONSTANT;
pub(super) use materialize::{as_f64, dtype, elements};

/// What an ONNX value became.
#[derive(Clone, Debug)]
pub(super) enum Lowered {
    /// Its elements are known.
    Static(StaticTensor),
    /// A value of the program.
    Value(ValueId),
    /// A list of tensors.
    Sequence(Vec<Lowered>),
    /// Nothing: the node that defines it could not be lowered, which has been reported.
    Unknown,
}

/// Lowers a model whose inputs are bound and whose parameters are chosen; dropouts draw from the seed.
///
/// # Errors
/// Code `onnx-op`: all operators that are not supported, in one diagnostic; code `onnx-node`: a node whose operands do not
/// fit; code `onnx-weight`: a weight that lies in no file.
pub(super) fn lower(model: &OnnxModel, bindings: &Bindings, parameters: &Parameters, seed: u64) -> Checked<Module> {
    let name = Path::new(&model.file).file_stem().map_or("model".into(), |stem| stem.to_string_lossy());
    let mut lowering = Lowering::new(Module::new(name), seed);
    lowering.inputs(model, bindings);
    lowering.initializers(model, parameters);
    let last_uses = last_uses(model);
    for (index, node) in model.nodes.iter().enumerate() {
        lowering.node(node);
        lowering.forget(node, |name| last_uses.get(name) == Some(&index));
    }
    lowering.outputs(model);
    let mut faults: Vec<Diagnostic> = unsupported(lowering.unsupported).into_iter().collect();
    faults.extend(lowering.faults);
    if faults.is_empty() { Ok(lowering.module) } else { Err(faults) }
}

/// The last node that uses each value, by its index; no node for what is a result of the model.
fn last_uses(model: &OnnxModel) -> HashMap<&str, usize> {
    let mut last = HashMap::new();
    for (index, node) in model.nodes.iter().enumerate() {
        last.extend(node.inputs.iter().chain(&node.outputs).map(|name| (name.as_str(), index)));
    }
    for output in &model.outputs {
        last.remove(output.name.as_str());
    }
    last
}

/// The program under construction and the table of what each ONNX value became.
pub(super) struct Lowering<'m> {
    /// Receives values, nodes, weights and outputs.
    pub module: Module,
    /// The dropouts so far.
    pub dropouts: Dropouts,
    table: HashMap<&'m str, Lowered>,
    /// The memory of what was evaluated.
    held: Held,
    /// The types of known values whose elements were dropped after their last use.
    forgotten: HashMap<&'m str, TensorType>,
    /// How many known values wait for others that they are computed from.
    n_computing: usize,
    /// Tensors of the file that are too large for constants of the program, by name.
    records: HashMap<&'m str, &'m TensorRecord>,
    /// The nodes whose results are static, by the name of the result.
    producers: HashMap<&'m str, &'m Node>,
    /// Values of static tensors that are in the program already, by name and shape.
    constants: HashMap<(String, Vec<u64>), ValueId>,
    /// What is known about static tensors that are used as masks, by name.
    masks: HashMap<String, Option<CausalMask>>,
    /// Operator, node and reason.
    unsupported: Vec<(String, String, String)>,
    faults: Vec<Diagnostic>,
}

impl<'m> Lowering<'m> {
    fn new(module: Module, seed: u64) -> Self {
        Lowering {
            module,
            dropouts: Dropouts::new(seed),
            table: HashMap::new(),
            held: Held::default(),
            forgotten: HashMap::new(),
            n_computing: 0,
            records: HashMap::new(),
            producers: HashMap::new(),
            constants: HashMap::new(),
            masks: HashMap::new(),
            unsupported: Vec::new(),
            faults: Vec::new(),
        }
    }

    fn inputs(&mut self, model: &'m OnnxModel, bindings: &Bindings) {
        for (input, ty) in model.inputs.iter().zip(&bindings.inputs) {
            let value = self.module.program.graph.declare(&input.name, ty.clone());
            self.module.program.inputs.push(Input { name: input.name.clone(), value });
            // A tensor without elements is known whatever the data are.
            let empty = (ty.elements() == 0).then(|| ops::empty(ty.dtype, &ty.shape).ok()).flatten();
            self.table.insert(&input.name, empty.unwrap_or(Lowered::Value(value)));
        }
    }

    fn initializers(&mut self, model: &'m OnnxModel, parameters: &Parameters) {
        for record in &model.initializers {
            self.records.insert(&record.name, record);
            let lowered = match parameters.trainable(&record.name) {
                Some(trainable) => self.weight(record, trainable).map_or(Lowered::Unknown, Lowered::Value),
                None => match StaticTensor::from_record(record) {
                    Some(Ok(tensor)) => Lowered::Static(tensor),
                    _ => Lowered::Unknown,
                },
            };
            self.table.insert(&record.name, lowered);
        }
        for copy in &parameters.copies {
            let record = self.records.get_key_value(copy.name.as_str()).map(|(&name, _)| name);
            if let (Some(name), Some(&Lowered::Value(of))) = (record, self.table.get(copy.of.as_str())) {
                let view = if copy.transposed { self.transposed(name, of) } else { Ok(of) };
                self.table.insert(name, view.map_or(Lowered::Unknown, Lowered::Value));
            }
        }
    }

    fn transposed(&mut self, name: &str, matrix: ValueId) -> Result<ValueId, Fault> {
        Ok(self.emit(name, Transpose { perm: vec![1, 0] }.into(), &[matrix])?[0])
    }

    /// Declares a weight that is the whole of a tensor of the file.
    fn weight(&mut self, record: &TensorRecord, trainable: bool) -> Option<ValueId> {
        let Some(source) = record.source() else {
            let message = format!("the elements of parameter `{}` are typed fields, which have no place", record.name);
            let help = "store it as raw data: `onnx.numpy_helper.from_array` does, `onnx.helper.make_tensor` does not";
            self.faults.push(Diagnostic::new("onnx-weight", message).help(help));
            return None;
        };
        let ty = TensorType::f32(record.dims.clone());
        let value = self.module.program.graph.declare(&record.name, ty.clone());
        let (name, file) = (record.name.clone(), source.file.clone());
        self.module.initializers.push(Initializer { name, file, offset: source.offset, ty, start: None });
        let initializer = self.module.initializers.len() - 1;
        self.module.program.weights.push(Weight { value, initializer, view: Vec::new(), trainable });
        Some(value)
    }

    fn node(&mut self, node: &'m Node) {
        let before = self.module.program.graph.n_values();
        let results = self.results(node);
        let mut results = results.into_iter();
        for output in &node.outputs {
            let result = results.next().unwrap_or(Lowered::Unknown);
            if output.is_empty() {
                continue;
            }
            if let Lowered::Value(value) = result
                && value.index() >= before
                && matches!(self.module.program.graph.value(value).def, Def::Node(..))
            {
                self.module.program.graph.rename(value, output);
            }
            if matches!(result, Lowered::Static(_)) {
                self.producers.insert(output, node);
            }
            self.table.insert(output, result);
        }
    }

    /// Drops the elements of evaluated operands and results that no later node uses, unless a list has them now or they are
    /// few: the program may still need those to compute what was evaluated from them.
    fn forget(&mut self, node: &'m Node, is_last: impl Fn(&str) -> bool) {
        if node.outputs.iter().any(|output| matches!(self.lowered(output), Some(Lowered::Sequence(_)))) {
            return;
        }
        for name in node.inputs.iter().chain(&node.outputs).map(String::as_str).filter(|name| is_last(name)) {
            let Some(Lowered::Static(tensor)) = self.table.get(name) else { continue };
            if tensor.n_stored() <= MAX_CONSTANT || !self.producers.contains_key(name) {
                continue;
            }
            if let Ok(dtype) = dtype(tensor.dtype()) {
                let shape: Vec<u64> = tensor.shape().iter().map(|&d| d as u64).collect();
                self.forgotten.insert(name, TensorType::new(dtype, shape));
            }
            self.held.release(tensor);
            self.table.remove(name);
        }
    }

    /// What the results of a node became; the faults of the node are recorded.
    fn results(&mut self, node: &'m Node) -> Vec<Lowered> {
        if node.has_body {
            self.refuse(node, "with a body of its own".into());
            return Vec::new();
        }
        if !node.domain.is_empty() || !(is_supported(&node.op_type) || ops::is_supported(&node.op_type)) {
            self.refuse(node, String::new());
            return Vec::new();
        }
        match self.statically(node).map(|evaluated| self.hold(evaluated?)).unwrap_or_else(|| self.as_ops(node)) {
            Ok(results) => results,
            Err(Fault::Unknown) => Vec::new(),
            Err(Fault::Unsupported(why)) => {
                self.refuse(node, why);
                Vec::new()
            }
            Err(Fault::Wrong(what)) => {
                let message = format!("node `{}` (`{}`): {what}", node.name, node.op_type);
                self.faults.push(Diagnostic::new("onnx-node", message));
                Vec::new()
            }
        }
    }

    fn refuse(&mut self, node: &Node, why: String) {
        let domain = if node.domain.is_empty() { String::new() } else { format!("{}::", node.domain) };
        self.unsupported.push((format!("{domain}{}", node.op_type), node.name.clone(), why));
    }

    /// The results, if the node depends on shapes and constants only.
    fn statically(&self, node: &Node) -> Option<Result<Vec<Lowered>, Fault>> {
        let inputs: Vec<Option<&Lowered>> = node.inputs.iter().map(|input| self.table.get(input.as_str())).collect();
        if inputs.iter().any(|input| matches!(input, Some(Lowered::Unknown))) {
            return Some(Err(Fault::Unknown));
        }
        if let ("Shape" | "Size", Some(&Some(Lowered::Value(value)))) = (node.op_type.as_str(), inputs.first()) {
            let dims = &self.module.program.graph.value(*value).ty.shape;
            let shape = shape_of(dims, &node.attributes);
            let n_elements = dims.iter().product::<u64>() as i64;
            let size = StaticTensor::splat(Vec::new(), super::statics::Scalar::I64(n_elements));
            let result = if node.op_type == "Shape" { Ok(shape) } else { size.map_err(Fault::Wrong) };
            return Some(result.map(|tensor| vec![Lowered::Static(tensor)]));
        }
        let tensors = inputs.into_iter().map(|input| match input {
            None => Some(None),
            Some(Lowered::Static(tensor)) => Some(Some(tensor)),
            Some(_) => None,
        });
        let tensors: Vec<Option<&StaticTensor>> = tensors.collect::<Option<_>>()?;
        if self.held.is_full {
            return Some(Err(Fault::Unknown));
        }
        let results = evaluate(&node.op_type, node.opset, &node.attributes, &tensors, node.outputs.len())?;
        let statics = |tensors: Vec<StaticTensor>| tensors.into_iter().map(Lowered::Static).collect();
        Some(results.map(statics).map_err(Fault::Wrong))
    }

    /// Counts the memory of known results.
    fn hold(&mut self, results: Vec<Lowered>) -> Result<Vec<Lowered>, Fault> {
        for result in &results {
            if let Lowered::Static(tensor) = result {
                self.held.hold(tensor)?;
            }
        }
        Ok(results)
    }

    fn as_ops(&mut self, node: &Node) -> Result<Vec<Lowered>, Fault> {
        let Some(operator) = ops::operator(&node.op_type) else {
            return Err(Fault::Unsupported("on values that depend on the data".into()));
        };
        operator(&mut Call { lowering: self, node })
    }

    fn outputs(&mut self, model: &'m OnnxModel) {
        for output in &model.outputs {
            let value = match self.table.get(output.name.as_str()).cloned() {
                Some(Lowered::Value(value)) => value,
                Some(Lowered::Static(tensor)) => match self.materialize(&output.name, &tensor) {
                    Ok(value) => value,
                    Err(_) => continue,
                },
                _ => continue,
            };
            self.module.program.outputs.push((output.name.clone(), value));
        }
    }

    /// What an ONNX value became; none for an operand that is absent.
    pub fn lowered(&self, name: &str) -> Option<&Lowered> {
        self.table.get(name)
    }

    /// The causal mask that a static tensor is.
    pub fn causal_mask(&mut self, name: &str) -> Option<CausalMask> {
        if let Some(&known) = self.masks.get(name) {
            return known;
        }
        let mask = match self.table.get(name) {
            Some(Lowered::Static(tensor)) => tensor.as_causal_mask(),
            _ => None,
        };
        self.masks.insert(name.to_string(), mask);
        mask
    }

    /// Adds a node to the end of the program; the names of its results start with `name`.
    pub fn emit(&mut self, name: &str, op: Op, args: &[ValueId]) -> Result<Vec<ValueId>, Fault> {
        let program = &mut self.module.program;
        let types = op.infer(&program.graph.types(args)).map_err(Fault::Wrong)?;
        if let Some(ty) = types.iter().find(|ty| !is_credible(ty)) {
            return Err(format!("a tensor of shape {:?} is too large", ty.shape).into());
        }
        let names = vec![name.to_string(); types.len()];
        let node = program.graph.add_typed(op, args, types, &names);
        program.body.push(node);
        Ok(program.graph.node(node).results.clone())
    }
}

/// Whether a tensor has no more elements than any may have.
fn is_credible(ty: &TensorType) -> bool {
    let n = ty.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)));
    n.is_some_and(|n| n <= MAX_ELEMENTS)
}

/// Why a node was not lowered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// An operand is not known, for a reason that has been reported.
    Unknown,
    /// The operator, or this use of it, is not supported; the reason, if it is not the operator itself.
    Unsupported(String),
    /// The operands or the attributes do not fit the operator.
    Wrong(String),
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Fault::Wrong(what)
    }
}

impl From<&str> for Fault {
    fn from(what: &str) -> Self {
        Fault::Wrong(what.into())
    }
}

/// One diagnostic for all operators that are not supported, with every node that uses one.
fn unsupported(found: Vec<(String, String, String)>) -> Option<Diagnostic> {
    let mut kinds: Vec<(String, String, Vec<String>)> = Vec::new();
    for (op_type, node, why) in found {
        match kinds.iter_mut().find(|(o, w, _)| *o == op_type && *w == why) {
            Some((.., nodes)) => nodes.push(node),
            None => kinds.push((op_type, why, vec![node])),
        }
    }
    let line = |(op_type, why, nodes): &(String, String, Vec<String>)| {
        let why = if why.is_empty() { String::new() } else { format!(" {why}") };
        let listed: Vec<_> = nodes.iter().map(|node| format!("`{node}`")).collect();
        format!("`{op_type}`{why} (at {})", listed.join(", "))
    };
    let lines: Vec<String> = kinds.iter().map(line).collect();
    let message = format!("the model uses operators that are not supported: {}", lines.join("; "));
    (!lines.is_empty()).then(|| Diagnostic::new("onnx-op", message))
}
