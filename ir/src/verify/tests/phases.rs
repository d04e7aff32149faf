//! Corruptions of phases, residents, coverage and schedule.

use super::check;
use super::fixture::{mlp, move_last_before, node, push, read, remove, replace, resident, schedule, value, writer};
use crate::module::{Level, Module};
use crate::op::comm::AllReduce;
use crate::op::compute::Reshape;
use crate::op::mem::{Accumulate, Update};
use crate::plan::PhaseKind::{Backward, Forward, Reduce, Step};
use crate::plan::ResidentRole;

fn sharded() -> Module {
    mlp(Level::Sharded)
}

#[test]
fn a_gradient_that_is_not_accumulated_is_found() {
    let direct = |m: &mut Module| {
        remove(m, writer(m, "g1"));
        let reduced = node(m, "g1.r");
        read(m, reduced, 0, "dw1");
        replace(m, "g1.r", "[_, a1]+mb");
    };
    check(sharded(), direct, &["G0205 %g1.r result 0"]);
    let hidden = |m: &mut Module| {
        direct(m);
        replace(m, "g1.r", "[_, a1]");
    };
    check(sharded(), hidden, &["G0206 %g1.r result 0", "G0208 %g1.r arg 0", "G0209 resident %g1"]);
}

#[test]
fn a_micro_batch_counts_once() {
    let twice = |m: &mut Module| push(m, Backward, "", Some(Accumulate.into()), "g1 dw1", "");
    check(sharded(), twice, &["G0209 accumulate %g1"]);
}

#[test]
fn accumulators_are_read_after_the_last_micro_batch() {
    let early = |m: &mut Module| {
        let axes = vec![m.mesh.axis("a0").unwrap()];
        push(m, Forward, "early=dw1", Some(AllReduce { axes }.into()), "g1", "[_, a1]");
    };
    check(sharded(), early, &["G0208 %early arg 0"]);
    let with_last = |m: &mut Module| {
        let axes = vec![m.mesh.axis("a0").unwrap()];
        push(m, Backward, "early=dw1", Some(AllReduce { axes }.into()), "g1", "[_, a1]");
    };
    check(sharded(), with_last, &[]);
    let late = |m: &mut Module| {
        remove(m, writer(m, "s.acc"));
        push(m, Reduce, "", Some(Accumulate.into()), "s.acc s", "");
    };
    check(sharded(), late, &["G0208 accumulate %s.acc", "G0208 accumulate %s.acc arg 1"]);
}

#[test]
fn a_term_is_placed_like_its_accumulator() {
    let misplaced = |m: &mut Module| replace(m, "g2", "[_, a1]+a0");
    check(sharded(), misplaced, &["G0206 %g2.r result 0", "G0209 accumulate %g2 arg 1"]);
}

#[test]
fn a_weight_is_not_read_after_its_update() {
    let late = |m: &mut Module| {
        push(m, Step, "late=w1", Some(AllReduce { axes: vec![] }.into()), "w1", "[_, a1]");
    };
    check(sharded(), late, &["G0206 %late op", "G0208 %late arg 0"]);
}

#[test]
fn a_view_of_a_weight_is_not_read_after_its_update() {
    let through_view = |m: &mut Module| {
        let graph = &mut m.program.graph;
        let w1 = m.program.weights[0].value;
        let flat = graph.add(Reshape { shape: vec![32] }.into(), &[w1]).unwrap();
        let back = graph.add(Reshape { shape: vec![4, 8] }.into(), &[graph.node(flat).results[0]]).unwrap();
        for (node, name) in [(flat, "flat"), (back, "back")] {
            let result = graph.node(node).results[0];
            graph.rename(result, name);
        }
        m.program.body.extend([flat, back]);
        replace(m, "w1", "[_, _]");
        push(m, Step, "flat", None, "w1", "[_]");
        move_last_before(m, Step, writer(m, "w1"));
        push(m, Step, "back", None, "flat", "[_, _]");
    };
    let mut module = sharded();
    through_view(&mut module);
    let findings = super::verify(&module);
    let found: Vec<_> = findings.iter().filter(|f| f.code == "G0208").map(|f| f.message.as_str()).collect();
    assert_eq!(found, ["`%back`: operand 0, `%flat`, is read after its resident got its new value"]);
}

#[test]
fn updates_happen_in_the_step_and_once() {
    let twice = |m: &mut Module| push(m, Step, "", Some(Update.into()), "w1 w1n", "");
    check(sharded(), twice, &["G0209 update %w1"]);
    let never = |m: &mut Module| remove(m, writer(m, "m2"));
    check(sharded(), never, &["G0210 update %m2"]);
    let misplaced = |m: &mut Module| {
        let update = writer(m, "w2");
        read(m, update, 1, "w2n.s");
    };
    check(sharded(), misplaced, &["G0209 update %w2 arg 1"]);
    let early = |m: &mut Module| {
        let update = writer(m, "w1");
        remove(m, update);
        m.chunks[0].phase_mut(Forward).push(update);
        let (sgd, lr) = (node(m, "w1n"), node(m, "lr"));
        for node in [sgd, lr] {
            remove(m, node);
        }
        m.chunks[0].phase_mut(Reduce).extend([lr, sgd]);
    };
    check(sharded(), early, &["G0201 update %w1 arg 1"]);
}

#[test]
fn an_update_has_the_value_that_the_program_says() {
    let stale = |m: &mut Module| {
        let update = writer(m, "m1");
        read(m, update, 1, "w1n");
    };
    check(sharded(), stale, &["G0209 update %m1 arg 1"]);
    let of_a_sum = |m: &mut Module| push(m, Step, "", Some(Update.into()), "g1 g1.r", "");
    check(sharded(), of_a_sum, &["G0209 update %g1 arg 0", "G0209 update %g1"]);
}

#[test]
fn a_weight_has_one_resident() {
    let second = |m: &mut Module| resident(m, ResidentRole::Parameter, "w1.copy=w1", "[_, _]");
    check(sharded(), second, &["G0209 resident %w1.copy"]);
}

#[test]
fn the_loss_and_the_norm_are_complete() {
    let no_loss = |m: &mut Module| remove(m, node(m, "loss"));
    check(sharded(), no_loss, &["G0210 output loss"]);
    let partial = |m: &mut Module| {
        let loss = node(m, "loss");
        read(m, loss, 0, "s.acc");
        replace(m, "loss", "[]+a0");
    };
    check(sharded(), partial, &["G0210 output loss"]);
    let renamed = |m: &mut Module| {
        let (norm, q) = (value(m, "norm"), value(m, "q"));
        let of = m.chunks[0].graph.value(q).of;
        m.chunks[0].graph.value_mut(norm).of = of;
    };
    check(sharded(), renamed, &["G0207 %norm op", "G0210 output grad_norm"]);
}

#[test]
fn every_micro_batch_is_scheduled_once_and_in_order() {
    let plan = || mlp(Level::Plan);
    let missing = |m: &mut Module| m.stages[0].schedule = schedule(&[(0, Forward), (0, Backward)]);
    check(plan(), missing, &["G0211 schedule 3"]);
    let swapped = |m: &mut Module| m.stages[0].schedule.swap(1, 2);
    check(plan(), swapped, &["G0211 schedule 1"]);
    let extra = |m: &mut Module| m.stages[0].schedule.extend_from_within(6..7);
    check(plan(), extra, &["G0211 schedule 7"]);
    let short = |m: &mut Module| m.stages[0].schedule.truncate(6);
    check(plan(), short, &["G0211 schedule 6"]);
}
