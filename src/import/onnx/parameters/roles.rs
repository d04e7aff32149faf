//! The role that each initializer plays: what a graph does with a tensor tells parameters from tables and masks.

use std::collections::{HashMap, HashSet};

use super::super::reader::{Node, OnnxModel};
use super::super::weights::TensorRecord;

/// What is known about one initializer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Role {
    /// How many nodes and outputs name it, or a view of it.
    pub n_uses: usize,
    /// How many operands use it, or a view of it, as parameters are used.
    pub n_roles: usize,
    /// Whether it is looked up as a table.
    pub table: bool,
    /// Whether it would play the role of a parameter if its name did not say that the exporter computed it, or if it were not
    /// added to attention scores.
    pub folded: bool,
}

impl Role {
    /// Whether it is used as parameters are.
    pub fn is_parameter(&self) -> bool {
        self.n_roles > 0
    }
}

/// Whether a name is one of those that exporters give to values they folded.
pub(super) fn is_made_up(name: &str) -> bool {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let stem = if stem == name { name } else { stem.trim_end_matches('_') };
    FOLDED.contains(&stem) || name.contains("::")
}

/// Whether a name is that of a constant which PyTorch modules keep beside their parameters, a buffer.
fn is_buffer(name: &str) -> bool {
    BUFFERS.contains(&name.rsplit('.').next().unwrap_or(name))
}

/// Operators that only move elements: what comes out is still the initializer.
const VIEWS: [&str; 13] = [
    "Transpose",
    "Reshape",
    "Cast",
    "CastLike",
    "Identity",
    "Unsqueeze",
    "Squeeze",
    "Slice",
    "Split",
    "Expand",
    "Tile",
    "Flatten",
    "Dropout",
];

/// A value that is made of more initializers is a view of none.
const MAX_ORIGINS: usize = 256;

/// Element-wise operators that a parameter enters as one of two operands.
const ARITHMETIC: [&str; 4] = ["Add", "Sub", "Mul", "Div"];

/// Products of matrices.
const PRODUCTS: [&str; 3] = ["MatMul", "Gemm", "Einsum"];

/// Operators with a gain and a bias as operands 1 and 2.
const NORMS: [&str; 6] = [
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "BatchNormalization",
];

/// Last parts of the names of buffers in Transformers: the shift of BART's logits, scales, angles.
const BUFFERS: [&str; 6] =
    ["final_logits_bias", "embed_scale", "inv_freq", "original_inv_freq", "cos_cached", "sin_cached"];

/// Names that exporters give to values they folded, without a number at the end.
const FOLDED: [&str; 31] = [
    "val",
    "expand",
    "unsqueeze",
    "embedding",
    "add",
    "mul",
    "sub",
    "div",
    "where",
    "zeros",
    "ones",
    "view",
    "_unsafe_view",
    "cos",
    "sin",
    "clone",
    "transpose",
    "permute",
    "slice",
    "select",
    "cat",
    "full",
    "arange",
    "to",
    "_to_copy",
    "tensor",
    "constant",
    "const",
    "zeros_like",
    "masked_fill",
    "index",
];

/// The roles of the initializers, in their order.
///
/// A tensor plays the role of a parameter if it, or a view of it, is multiplied with an activation as a matrix or by a
/// convolution, is looked up as a table, is the gain or bias of a normalisation, or is combined with an activation element
/// by element. It does not if it is a scalar, the angles of rotary positions, a mask of attention scores, or a tensor of
/// several dimensions whose name says that the exporter computed it.
pub(super) fn roles(model: &OnnxModel) -> Vec<Role> {
    let mut analysis = Analysis::new(model);
    for node in &model.nodes {
        analysis.node(node);
    }
    for output in &model.outputs {
        analysis.use_value(&output.name);
    }
    analysis.roles
}

/// What is known about a value.
#[derive(Clone, Debug, Default)]
struct Flow {
    /// Whether it depends on an input.
    dynamic: bool,
    /// The initializers that it is a view of.
    origins: Vec<usize>,
}

struct Analysis<'m> {
    model: &'m OnnxModel,
    flows: HashMap<&'m str, Flow>,
    /// For each value the nodes that read it.
    users: HashMap<&'m str, Vec<usize>>,
    roles: Vec<Role>,
}

impl<'m> Analysis<'m> {
    fn new(model: &'m OnnxModel) -> Self {
        let mut flows = HashMap::new();
        for input in &model.inputs {
            flows.insert(input.name.as_str(), Flow { dynamic: true, origins: Vec::new() });
        }
        for (index, record) in model.initializers.iter().enumerate() {
            flows.insert(record.name.as_str(), Flow { dynamic: false, origins: vec![index] });
        }
        let mut users: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, node) in model.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|input| users.entry(input.as_str()).or_default().push(index));
        }
        Analysis { model, flows, users, roles: vec![Role::default(); model.initializers.len()] }
    }

    fn flow(&self, name: &str) -> Flow {
        self.flows.get(name).cloned().unwrap_or_default()
    }

    fn record(&self, origin: usize) -> &'m TensorRecord {
        &self.model.initializers[origin]
    }

    fn use_value(&mut self, name: &str) {
        for origin in self.flow(name).origins {
            self.roles[origin].n_uses += 1;
        }
    }

    fn node(&mut self, node: &'m Node) {
        let flows: Vec<Flow> = node.inputs.iter().map(|input| self.flow(input)).collect();
        node.inputs.iter().for_each(|input| self.use_value(input));
        for (operand, flow) in flows.iter().enumerate() {
            if flow.dynamic || flow.origins.is_empty() {
                continue;
            }
            let is_parameter = self.is_parameter(node, operand, &flows);
            let is_folded = !is_parameter && self.is_folded(node, operand, &flows);
            for &origin in &flow.origins {
                self.roles[origin].n_roles += usize::from(is_parameter);
                self.roles[origin].table |= is_parameter && node.op_type == "Gather";
                self.roles[origin].folded |= is_folded;
            }
        }
        let result = self.result(node, &flows);
        for output in &node.outputs {
            self.flows.insert(output, result.clone());
        }
    }

    /// What comes out of a node.
    fn result(&self, node: &Node, flows: &[Flow]) -> Flow {
        let op_type = node.op_type.as_str();
        if matches!(op_type, "Shape" | "Size") {
            return Flow::default();
        }
        let dynamic = flows.iter().any(|flow| flow.dynamic);
        let tensors: &[Flow] = match op_type {
            _ if dynamic => &[],
            "Concat" => flows,
            "Gather" | "GatherND" => flows.get(..1).unwrap_or_default(),
            _ if VIEWS.contains(&op_type) => flows.get(..1).unwrap_or_default(),
            _ if ARITHMETIC.contains(&op_type) || PRODUCTS.contains(&op_type) || NORMS.contains(&op_type) => flows,
            _ => &[],
        };
        let mut origins: Vec<usize> = tensors.iter().flat_map(|flow| flow.origins.iter().copied()).collect();
        origins.retain(|&o| self.record(o).dtype.is_float() && self.record(o).n_elements() > 1);
        origins.sort_unstable();
        origins.dedup();
        if origins.len() > MAX_ORIGINS {
            origins.clear();
        }
        Flow { dynamic, origins }
    }

    /// Whether an operand that is a view of initializers is a parameter there.
    fn is_parameter(&self, node: &Node, operand: usize, flows: &[Flow]) -> bool {
        let others_dynamic = flows.iter().enumerate().any(|(i, flow)| i != operand && flow.dynamic);
        let op_type = node.op_type.as_str();
        let origins = &flows[operand].origins;
        let float = origins.iter().all(|&o| self.record(o).dtype.is_float());
        float
            && match op_type {
                "Gather" | "GatherND" => operand == 0 && self.is_table(node, origins, others_dynamic),
                "Conv" | "ConvTranspose" => others_dynamic && !self.is_angle(node),
                _ if PRODUCTS.contains(&op_type) => others_dynamic && !self.is_angle(node),
                "PRelu" => operand == 1 && others_dynamic,
                _ if NORMS.contains(&op_type) => others_dynamic && (1..=2).contains(&operand),
                _ if ARITHMETIC.contains(&op_type) => others_dynamic && self.is_combined(node, origins),
                "Concat" => others_dynamic && origins.iter().all(|&o| self.is_kept(o)),
                "Where" => others_dynamic && operand > 0 && self.is_combined(node, origins),
                _ => false,
            }
    }

    /// Whether an operand that is no parameter may be what the exporter computed from one: a term, a gain along one dimension or a
    /// part of an activation. What is multiplied along several dimensions is a rotary table.
    fn is_folded(&self, node: &Node, operand: usize, flows: &[Flow]) -> bool {
        let record = |&o: &usize| self.record(o);
        let others_dynamic = flows.iter().enumerate().any(|(i, flow)| i != operand && flow.dynamic);
        let of_floats = flows[operand].origins.iter().map(record).all(|r| r.dtype.is_float() && r.n_elements() > 1);
        let is_vector = |r: &TensorRecord| r.dims.iter().filter(|&&d| d > 1).count() <= 1;
        others_dynamic
            && of_floats
            && match node.op_type.as_str() {
                "Add" | "Sub" | "Concat" => !self.is_angle(node),
                "Mul" | "Div" => flows[operand].origins.iter().map(record).all(is_vector),
                "Where" => operand > 0,
                _ => false,
            }
    }

    /// Tables have rows; those of rotary positions, which are looked up at known places, are multiplied with activations.
    fn is_table(&self, node: &Node, origins: &[usize], dynamic: bool) -> bool {
        let rows = origins.iter().all(|&o| self.record(o).dims.len() >= 2);
        let rotary = ["Mul", "RotaryEmbedding", "Cos", "Sin"];
        rows && (dynamic || !self.result_feeds(node, &rotary))
    }

    /// Frequencies times positions.
    fn is_angle(&self, node: &Node) -> bool {
        self.result_feeds(node, &["Cos", "Sin"])
    }

    fn is_combined(&self, node: &Node, origins: &[usize]) -> bool {
        let fits = |&o: &usize| {
            let record = self.record(o);
            let is_vector = record.dims.iter().filter(|&&d| d > 1).count() <= 1;
            let is_kept = record.dims.len() <= 1 || self.is_kept(o);
            record.n_elements() > 1 && is_kept && (is_vector || node.op_type != "Mul")
        };
        let vectors = origins.iter().all(|&o| self.record(o).dims.len() <= 1);
        origins.iter().all(fits) && !self.is_angle(node) && (vectors || !self.result_feeds(node, &["Softmax"]))
    }

    /// Whether the name is neither one of those that exporters make for folded values nor that of a buffer.
    fn is_kept(&self, origin: usize) -> bool {
        self.record(origin).n_elements() > 1
            && !is_made_up(&self.record(origin).name)
            && !is_buffer(&self.record(origin).name)
    }

    fn result_feeds(&self, node: &Node, targets: &[&str]) -> bool {
        node.outputs.first().is_some_and(|result| self.feeds(result, targets))
    }

    /// Whether views of the value, or the value with a scalar or another mask added, reach one of the operators.
    fn feeds(&self, value: &str, targets: &[&str]) -> bool {
        let (mut stack, mut seen) = (vec![value], HashSet::new());
        while let Some(value) = stack.pop() {
            if !seen.insert(value) {
                continue;
            }
            for &user in self.users.get(value).into_iter().flatten() {
                let node = &self.model.nodes[user];
                let op_type = node.op_type.as_str();
                if targets.contains(&op_type) {
                    return true;
                }
                let mask = targets == ["Softmax"] && matches!(op_type, "Add" | "Where");
                if mask || VIEWS.contains(&op_type) || op_type == "Concat" {
                    stack.extend(node.outputs.iter().map(String::as_str));
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{Builder, names};
    use super::*;

    /// Names of the initializers with the role of a parameter, in their order.
    fn check(builder: Builder, expected: &str) {
        let model = builder.read();
        let roles = roles(&model);
        let chosen = model.initializers.iter().zip(&roles).filter(|(_, role)| role.is_parameter());
        assert_eq!(names(chosen.map(|(record, _)| record.name.as_str())), expected);
    }

    #[test]
    fn views_and_joints_of_weights_are_weights() {
        let nodes = ["t = Transpose w", "q k = Split{num_outputs=2} t", "y = MatMul x q"];
        check(Builder::new(&nodes).f32("w", &[4, 8]), "w");
        check(Builder::new(&["w = Concat{axis=1} a b", "y = MatMul x w"]).f32("a", &[4, 1]).f32("b", &[4, 1]), "a b");
        check(Builder::new(&["g = Add gain one", "y = Mul x g"]).f32("gain", &[4]).f32("one", &[]), "gain");
    }

    #[test]
    fn positions_are_a_table_and_rotary_tables_are_none() {
        let table = |next: &str| {
            let builder = Builder::new(&["p = Gather m.table at", next]).ints("at", &[0, 1]);
            builder.f32("m.table", &[9, 4])
        };
        check(table("y = Add x p"), "m.table");
        check(table("y = Mul x p"), "");
    }

    #[test]
    fn angles_are_no_parameters() {
        let nodes = ["a = MatMul positions m.inv_freq", "c = Cos a", "y = Mul x c"];
        let builder = Builder::new(&nodes).input("positions", 1, "batch 6 1");
        check(builder.f32("m.inv_freq", &[1, 4]), "");
    }

    #[test]
    fn what_is_made_of_weights_alone_and_meets_an_activation_makes_them_parameters() {
        let nodes = ["t = LayerNormalization table gain shift", "k = MatMul t w", "u = Tile k n", "y = MatMul x u"];
        let builder =
            Builder::new(&nodes).ints("n", &[1, 2]).f32("table", &[8, 4]).f32("gain", &[4]).f32("shift", &[4]);
        check(builder.f32("w", &[4, 4]), "table gain shift w");
        let nodes = ["a = MatMul positions inv", "c = Cos a", "y = Mul x c"];
        check(Builder::new(&nodes).f32("positions", &[6, 1]).f32("inv", &[1, 4]), "");
    }

    #[test]
    fn buffers_are_no_parameters() {
        let shifted = |name: &str| Builder::new(&[&format!("y = Add x {name}")]).f32(name, &[1, 4]);
        check(shifted("m.final_logits_bias"), "");
        check(shifted("m.output.bias"), "m.output.bias");
    }

    #[test]
    fn masks_before_a_softmax_are_constants() {
        let scores = |name: &str| {
            let sum = format!("s = Add x {name}");
            Builder::new(&[&sum, "t = Add s s", "y = Softmax t"])
        };
        check(scores("m.mask").f32("m.mask", &[1, 4, 4]), "");
        check(scores("bias").f32("bias", &[4]), "bias");
    }

    #[test]
    fn terms_and_parts_that_an_exporter_computed_may_be_parameters() {
        let folded = |nodes: &[&str], name: &str, dims: &[i64]| {
            let model = Builder::new(nodes).f32(name, dims).read();
            roles(&model)[0].folded
        };
        assert!(folded(&["y = Add x embedding_1"], "embedding_1", &[1, 2, 4]));
        assert!(folded(&["y = Concat{axis=1} expand x"], "expand", &[2, 4]));
        assert!(folded(&["y = Mul x unsqueeze_3"], "unsqueeze_3", &[1, 4]));
        assert!(folded(&["s = Add x onnx::Add_9", "y = Softmax s"], "onnx::Add_9", &[1, 4, 4]));
        assert!(!folded(&["y = Mul x unsqueeze_14"], "unsqueeze_14", &[1, 6, 4]));
        assert!(!folded(&["y = Add x bias"], "bias", &[4]));
    }

    #[test]
    fn folded_tables_are_known_by_their_name() {
        let sum = |name: &str| Builder::new(&[&format!("y = Add x {name}")]).f32(name, &[1, 2, 4]);
        check(sum("embedding_1"), "");
        check(sum("onnx::Add_12"), "");
        check(sum("pos_embed"), "pos_embed");
        check(sum("vit.position_embeddings"), "vit.position_embeddings");
    }
}
