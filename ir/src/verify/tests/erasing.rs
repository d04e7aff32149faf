//! Corruptions of what is computed: constants, operands, terms.

use super::fixture::{full, mlp, node, program_value, read, remove, value, writer};
use super::{check, message};
use crate::module::{Level, Module};
use crate::op::mem::{Load, RunScalar};
use crate::op::opt::Sgd;
use crate::types::{Scalar, TensorType};

fn sharded() -> Module {
    mlp(Level::Sharded)
}

#[test]
fn a_changed_constant_is_found() {
    let change = |m: &mut Module| {
        let c = node(m, "c");
        m.chunks[0].graph.node_mut(c).op = full(&[32, 4], 0.25);
    };
    check(sharded(), change, &["G0207 %c op"]);
    let expected = "`%c`: the op is `full{dtype=f32, shape=[32, 4], value=0.25}`, that of `%c` in the program \
                    `full{dtype=f32, shape=[32, 4], value=0.5}`";
    assert_eq!(message(sharded(), change), expected);
}

#[test]
fn a_changed_hyperparameter_is_found() {
    let change = |m: &mut Module| {
        let w1n = node(m, "w1n");
        m.chunks[0].graph.node_mut(w1n).op = Sgd { momentum: Scalar::new(0.8), weight_decay: Scalar::new(0.0) }.into();
    };
    check(sharded(), change, &["G0207 %w1n op"]);
    let other = |m: &mut Module| {
        let lr = node(m, "lr");
        m.chunks[0].graph.node_mut(lr).op = RunScalar { name: "step".into() }.into();
    };
    check(sharded(), other, &["G0207 %lr op"]);
}

#[test]
fn swapped_operands_of_sub_are_found() {
    let swap = |m: &mut Module| {
        let z = node(m, "z");
        m.chunks[0].graph.node_mut(z).args.swap(0, 1);
    };
    check(sharded(), swap, &["G0207 %z arg 0", "G0207 %z arg 1"]);
}

#[test]
fn a_dropped_gradient_of_a_tied_weight_is_found() {
    let drop = |m: &mut Module| {
        let dw2 = node(m, "dw2");
        m.chunks[0].graph.node_mut(dw2).args.pop();
    };
    check(sharded(), drop, &["G0207 %dw2"]);
    let direct = |m: &mut Module| {
        remove(m, node(m, "dw2"));
        let accumulate = writer(m, "g2");
        read(m, accumulate, 1, "dw2a");
    };
    check(sharded(), direct, &["G0207 accumulate %g2 arg 1"]);
    assert_eq!(message(sharded(), direct), "`accumulate %g2`: a term of the sum `%dw2` is `%dw2a`");
}

#[test]
fn a_term_that_counts_twice_is_found() {
    let twice = |m: &mut Module| {
        let dw2 = node(m, "dw2");
        read(m, dw2, 1, "dw2a");
    };
    check(sharded(), twice, &["G0207 %dw2 arg 1"]);
}

#[test]
fn another_input_of_the_same_shape_is_found() {
    let other = |m: &mut Module| {
        let x = node(m, "x");
        m.chunks[0].graph.node_mut(x).op = Load { input: "y".into(), ty: TensorType::f32([32, 4]) }.into();
    };
    check(sharded(), other, &["G0207 %x op"]);
}

#[test]
fn a_collective_keeps_what_its_operand_is() {
    let relabel = |m: &mut Module| {
        let (q1, q2) = (value(m, "q1"), program_value(m, "q2"));
        m.chunks[0].graph.value_mut(q1).of = Some(q2);
    };
    check(sharded(), relabel, &["G0207 %q1 result 0", "G0207 %q arg 0"]);
}

#[test]
fn residents_are_copies_of_what_their_role_says() {
    let relabel = |m: &mut Module| {
        let (m1, w1) = (value(m, "m1"), program_value(m, "w1"));
        m.chunks[0].graph.value_mut(m1).of = Some(w1);
    };
    let expected =
        ["G0207 resident %m1", "G0207 %w1n arg 2", "G0209 resident %m1", "G0209 update %m1 arg 1", "G0210 update %m1"];
    check(sharded(), relabel, &expected);
}
