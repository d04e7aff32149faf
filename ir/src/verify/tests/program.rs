//! Corruptions of the program: order, types, declarations.

use super::fixture::{mlp, program_value};
use super::{check, message};
use crate::id::NodeId;
use crate::module::{Initializer, Level, Module, ViewStep};
use crate::op::comm::AllReduce;
use crate::plan::Chunk;
use crate::types::TensorType;

fn producer(m: &Module, name: &str) -> NodeId {
    m.program.graph.producer(program_value(m, name)).unwrap()
}

fn training() -> Module {
    mlp(Level::Training)
}

#[test]
fn a_value_is_read_after_its_node() {
    check(training(), |m| m.program.body.swap(0, 1), &["G0201 program %a arg 0"]);
}

#[test]
fn a_node_runs_once() {
    check(training(), |m| m.program.body.push(NodeId(0)), &["G0201 program %h"]);
}

#[test]
fn types_are_what_the_op_infers() {
    let retype = |m: &mut Module| {
        let value = program_value(m, "norm");
        m.program.graph.value_mut(value).ty = TensorType::f32([1]);
    };
    check(training(), retype, &["G0202 program %norm result 0"]);
    assert_eq!(message(training(), retype), "`%norm`: result 0 is declared `f32[1]`, the op gives `f32[]`");
}

#[test]
fn every_trainable_weight_is_updated_once() {
    let drop = |m: &mut Module| m.program.updates.retain(|(old, _)| *old != program_value(&mlp(Level::Training), "w2"));
    check(training(), drop, &["G0214 weight %w2"]);
    let twice = |m: &mut Module| {
        let again = (program_value(m, "w1"), program_value(m, "w1n"));
        m.program.updates.push(again);
    };
    check(training(), twice, &["G0214 update %w1"]);
}

#[test]
fn frozen_weights_and_inputs_are_not_updated() {
    let freeze = |m: &mut Module| m.program.weights[0].trainable = false;
    check(training(), freeze, &["G0214 state %m1", "G0214 update %w1"]);
}

#[test]
fn a_weight_has_the_type_of_its_view() {
    let stored =
        Initializer { name: "t".into(), file: "w".into(), offset: 0, ty: TensorType::f32([8, 8]), start: None };
    let view = vec![ViewStep::Slice { dim: 1, start: 4, len: 4 }, ViewStep::Transpose(vec![1, 0])];
    let fits = |m: &mut Module| (m.initializers[0], m.program.weights[0].view) = (stored.clone(), view.clone());
    check(training(), fits, &[]);
    check(training(), |m| m.initializers[0] = stored.clone(), &["G0214 weight %w1"]);
    check(training(), |m| m.program.weights[1].initializer = 7, &["G0214 weight %w2"]);
}

#[test]
fn declarations_are_unique() {
    check(training(), |m| m.program.inputs[1].name = "x".into(), &["G0214 input %labels"]);
    check(training(), |m| m.program.outputs[1].0 = "loss".into(), &["G0214 output loss"]);
    let twice = |m: &mut Module| m.program.weights.push(m.program.weights[0].clone());
    check(training(), twice, &["G0214 weight %w1"]);
}

#[test]
fn forward_nodes_of_gradients_run_before_them() {
    let good = |m: &mut Module| {
        let (dw1, h) = (producer(m, "dw1"), producer(m, "h"));
        m.program.graph.node_mut(dw1).fwd = Some(h);
    };
    check(training(), good, &[]);
    let bad = |m: &mut Module| {
        let (dw1, norm) = (producer(m, "dw1"), producer(m, "norm"));
        m.program.graph.node_mut(dw1).fwd = Some(norm);
    };
    check(training(), bad, &["G0214 program %dw1"]);
}

#[test]
fn a_program_has_no_collectives() {
    let reduce = |m: &mut Module| {
        let norm = producer(m, "norm");
        m.program.graph.node_mut(norm).op = AllReduce { axes: vec![] }.into();
    };
    check(training(), reduce, &["G0214 program %norm op"]);
}

#[test]
fn chunks_are_there_from_level_sharded_on() {
    check(training(), |m| m.chunks.push(Chunk::new()), &["G0201 module"]);
    check(mlp(Level::Plan), |m| m.chunks.clear(), &["G0201 module"]);
}

#[test]
fn the_mesh_has_positions() {
    check(mlp(Level::Plan), |m| m.mesh = m.mesh.with_micro_batches(0), &["G0205 module"]);
}
