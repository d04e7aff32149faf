//! Chooses element types: what is computed in bf16 and what stays f32.
//!
//! Parameters, activations and their gradients become bf16; every op computes in f32 inside. Gains and biases of norms and
//! the angles of rotary embeddings stay f32, and so do the loss and everything of the optimizer, which keeps a master copy of
//! each bf16 parameter. What is made of constants alone is computed in f32 and rounded where something else reads it.

use galvatron_ir::graph::Graph;
use galvatron_ir::module::Program;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::Cast;
use galvatron_ir::types::DType;
use galvatron_ir::{Module, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Rewrites the forward program of a module to bf16. Runs before the loss is attached.
pub fn to_bf16(module: &mut Module) {
    let program = &mut module.program;
    narrow_weights(program);
    let mut caster = Caster { body: Vec::new(), casts: BTreeMap::new(), constants: BTreeSet::new() };
    for node in std::mem::take(&mut program.body) {
        caster.visit(&mut program.graph, node);
    }
    for (_, output) in &mut program.outputs {
        let ty = &program.graph.value(*output).ty;
        if ty.rank() == 0 && ty.dtype == DType::Bf16 {
            *output = caster.cast(&mut program.graph, *output, DType::F32);
        }
    }
    program.body = caster.body;
}

/// The element type that an op wants of a float operand.
fn wanted(op: &Op, operand: usize) -> DType {
    match op {
        Op::LayerNorm(_) | Op::RmsNorm(_) | Op::Rotary(_) | Op::Dropout(_) if operand > 0 => DType::F32,
        _ => DType::Bf16,
    }
}

/// Weights are stored in bf16, but for those that only norms read.
fn narrow_weights(program: &mut Program) {
    for weight in &program.weights {
        let readers = program.body.iter().map(|&n| program.graph.node(n));
        let uses = readers.flat_map(|n| n.args.iter().enumerate().map(move |(i, &a)| (&n.op, i, a)));
        let is_narrow = uses.filter(|&(_, _, arg)| arg == weight.value).any(|(op, i, _)| wanted(op, i) == DType::Bf16);
        let ty = &mut program.graph.value_mut(weight.value).ty;
        if is_narrow && ty.dtype == DType::F32 {
            ty.dtype = DType::Bf16;
        }
    }
}

struct Caster {
    body: Vec<NodeId>,
    /// Values in other element types.
    casts: BTreeMap<(ValueId, DType), ValueId>,
    /// Results of nodes that depend on no input and no weight.
    constants: BTreeSet<ValueId>,
}

impl Caster {
    fn visit(&mut self, graph: &mut Graph, id: NodeId) {
        let node = graph.node(id).clone();
        if node.args.iter().all(|arg| self.constants.contains(arg)) {
            self.constants.extend(&node.results);
            self.body.push(id);
            return;
        }
        if !matches!(node.op, Op::Cast(_)) {
            for (i, &arg) in node.args.iter().enumerate() {
                if graph.value(arg).ty.dtype.is_float() {
                    graph.node_mut(id).args[i] = self.cast(graph, arg, wanted(&node.op, i));
                }
            }
        }
        self.body.push(id);
        let args = graph.node(id).args.clone();
        let types = node.op.infer(&graph.types(&args)).expect("invariant: bf16 suits wherever f32 does");
        for (&result, ty) in node.results.iter().zip(types) {
            graph.value_mut(result).ty = ty;
        }
    }

    fn cast(&mut self, graph: &mut Graph, value: ValueId, to: DType) -> ValueId {
        if graph.value(value).ty.dtype == to {
            return value;
        }
        *self.casts.entry((value, to)).or_insert_with(|| {
            let node = graph.add(Cast { to }.into(), &[value]).expect("invariant: floats can be converted");
            self.body.push(node);
            let result = graph.node(node).results[0];
            let name = format!("{}.{to}", graph.value(value).name);
            graph.rename(result, &name);
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::text::{parse, print};

    #[test]
    fn what_is_made_of_constants_stays_exact_until_it_is_read() {
        let text = "gir 1\nmodule @m level=graph {\n  program {\n    input %x = \"x\": f32[2, 300]\n\
            \x20   %i = iota{shape=[300], dim=0, start=0, step=1}: i64[300]\n    %p = cast{to=f32} %i: f32[300]\n\
            \x20   %f = full{dtype=f32, shape=[], value=0.5}: f32[]\n    %a = mul %p, %f: f32[300]\n\
            \x20   %c = cos %a: f32[300]\n    %y = mul %x, %c: f32[2, 300]\n    output \"y\" %y\n  }\n}\n";
        let mut module = parse(text).expect("the text is right");
        to_bf16(&mut module);
        let text = print(&module);
        assert!(text.contains("%c = cos %a: f32[300]"), "{text}");
        assert!(text.contains("%c.bf16 = cast{to=bf16} %c: bf16[300]"), "{text}");
        assert!(text.contains("%y = mul %x.bf16, %c.bf16: bf16[2, 300]"), "{text}");
    }
}
