//! Reverse-mode differentiation: asks each op for its gradient, from the loss back to the parameters.

use galvatron_ir::graph::{Graph, dead_nodes};
use galvatron_ir::module::Program;
use galvatron_ir::op::compute::{AddN, Cast, Full};
use galvatron_ir::op::{GradCx, NoGradient};
use galvatron_ir::types::DType;
use galvatron_ir::{Diagnostic, NodeId, ValueId};
use std::collections::BTreeMap;

/// Gradients of the trainable weights, by the weight's value.
pub type Gradients = BTreeMap<ValueId, ValueId>;

/// Appends the backward nodes of the output `loss`; returns the gradient of every trainable weight that the loss depends on.
///
/// Gradient nodes know their forward node (`fwd`); each gradient knows the value it belongs to (`grad_of`).
///
/// # Errors
/// One diagnostic for each op on the way from a parameter to the loss that has no gradient.
pub fn differentiate(program: &mut Program) -> Result<Gradients, Vec<Diagnostic>> {
    let loss = program.output("loss").expect("invariant: the loss is attached before differentiation");
    let needs = depends_on_weights(program);
    let forward = program.body.clone();
    let mut tape = Tape { contributions: BTreeMap::new(), body: Vec::new() };
    let one = tape.emit(&mut program.graph, Full::f32(1.0).into(), &[], "dloss");
    tape.contributions.insert(loss, vec![one]);
    let mut faults = Vec::new();
    for &node in forward.iter().rev() {
        if let Err(fault) = tape.visit(&mut program.graph, node, &needs) {
            faults.push(no_gradient(&program.graph, node, &fault));
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut gradients = Gradients::new();
    let trainable: Vec<ValueId> = program.weights.iter().filter(|w| w.trainable).map(|w| w.value).collect();
    for weight in trainable {
        if let Some(gradient) = tape.total(&mut program.graph, weight) {
            gradients.insert(weight, tape.widen(&mut program.graph, weight, gradient));
        }
    }
    program.body.extend(tape.body);
    let roots: Vec<ValueId> = gradients.values().copied().chain(program.outputs.iter().map(|(_, v)| *v)).collect();
    remove_dead(program, &roots);
    Ok(gradients)
}

fn no_gradient(graph: &Graph, node: NodeId, fault: &NoGradient) -> Diagnostic {
    let node = graph.node(node);
    let name = node.results.first().map_or("", |&r| graph.value(r).name.as_str());
    Diagnostic::new("no-gradient", format!("`%{name}` ({}): {}", node.op.mnemonic(), fault.0))
        .help("freeze the parameters that feed it (`parameters.frozen`), or export the model without this op")
}

fn remove_dead(program: &mut Program, roots: &[ValueId]) {
    let keep = |node: NodeId| program.graph.node(node).results.iter().any(|r| roots.contains(r));
    let dead = dead_nodes(&program.graph, &program.body, keep);
    program.body.retain(|n| dead.binary_search(n).is_err() && !dead.contains(n));
}

/// For each value whether a gradient flows through it: it is a float that depends on a trainable weight.
fn depends_on_weights(program: &Program) -> Vec<bool> {
    let mut needs = vec![false; program.graph.n_values()];
    for weight in program.weights.iter().filter(|w| w.trainable) {
        needs[weight.value.index()] = true;
    }
    for &node in &program.body {
        let node = program.graph.node(node);
        if node.args.iter().any(|a| needs[a.index()]) {
            for &result in &node.results {
                needs[result.index()] = program.graph.value(result).ty.dtype.is_float();
            }
        }
    }
    needs
}

/// The backward nodes so far and the gradient contributions that wait for their value's producer.
struct Tape {
    contributions: BTreeMap<ValueId, Vec<ValueId>>,
    body: Vec<NodeId>,
}

impl Tape {
    fn emit(&mut self, graph: &mut Graph, op: galvatron_ir::op::Op, args: &[ValueId], name: &str) -> ValueId {
        let node = graph.add(op, args).expect("invariant: gradients are well typed");
        self.body.push(node);
        let result = graph.node(node).results[0];
        graph.rename(result, name);
        result
    }

    /// Emits the gradients of a forward node's operands.
    fn visit(&mut self, graph: &mut Graph, node: NodeId, needs: &[bool]) -> Result<(), NoGradient> {
        let fwd = graph.node(node).clone();
        let wanted: Vec<bool> = fwd.args.iter().map(|a| needs[a.index()]).collect();
        if !wanted.contains(&true) {
            return Ok(());
        }
        let grads: Vec<Option<ValueId>> = fwd.results.iter().map(|&r| self.total(graph, r)).collect();
        if grads.iter().all(Option::is_none) {
            return Ok(());
        }
        let op = fwd.op.clone();
        let mut cx = GradCx {
            graph,
            body: &mut self.body,
            fwd: node,
            args: fwd.args.clone(),
            results: fwd.results.clone(),
            grads,
            needs: wanted.clone(),
        };
        let operand_grads = op.gradient(&mut cx)?;
        for ((&arg, grad), wanted) in fwd.args.iter().zip(operand_grads).zip(wanted) {
            if let (Some(grad), true) = (grad, wanted) {
                self.contribute(graph, arg, grad);
            }
        }
        Ok(())
    }

    fn contribute(&mut self, graph: &mut Graph, value: ValueId, gradient: ValueId) {
        if graph.value(gradient).grad_of.is_none() {
            let name = format!("d.{}", graph.value(value).name);
            graph.value_mut(gradient).grad_of = Some(value);
            graph.rename(gradient, &name);
        }
        self.contributions.entry(value).or_default().push(gradient);
    }

    /// The whole gradient of a value: the sum of its contributions.
    fn total(&mut self, graph: &mut Graph, value: ValueId) -> Option<ValueId> {
        let parts = self.contributions.get(&value)?.clone();
        if let [only] = parts[..] {
            return Some(only);
        }
        let name = format!("d.{}", graph.value(value).name);
        let sum = self.emit(graph, AddN.into(), &parts, &name);
        graph.value_mut(sum).grad_of = Some(value);
        let node = *self.body.last().expect("invariant: the sum was just emitted");
        if let Some(producer) = graph.producer(value) {
            graph.node_mut(node).layer = graph.node(producer).layer;
            graph.node_mut(node).fwd = Some(producer);
        }
        self.contributions.insert(value, vec![sum]);
        Some(sum)
    }

    /// The f32 gradient of a weight: what is accumulated, reduced and read by the optimizer.
    fn widen(&mut self, graph: &mut Graph, weight: ValueId, gradient: ValueId) -> ValueId {
        if graph.value(gradient).ty.dtype == DType::F32 {
            return gradient;
        }
        let layer = graph.producer(gradient).and_then(|n| graph.node(n).layer);
        let narrow = format!("{}.bf16", graph.value(gradient).name);
        let name = graph.value(gradient).name.clone();
        graph.rename(gradient, &narrow);
        let wide = self.emit(graph, Cast { to: DType::F32 }.into(), &[gradient], &name);
        graph.value_mut(wide).grad_of = Some(weight);
        let node = *self.body.last().expect("invariant: the cast was just emitted");
        graph.node_mut(node).layer = layer;
        wide
    }
}
