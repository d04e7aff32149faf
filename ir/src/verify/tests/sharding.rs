//! Corruptions of placements and collectives.

use super::fixture::{mlp, move_last_before, node, push, read, remove, replace, value};
use super::{check, message};
use crate::AxisId;
use crate::mesh::Mesh;
use crate::module::{Level, Module};
use crate::op::comm::{AllGather, AllReduce, AllToAll, ReduceScatter, Reshard, Shard};
use crate::plan::PhaseKind::{Backward, Forward, Reduce};

fn sharded() -> Module {
    mlp(Level::Sharded)
}

/// Drops the all-reduce that computes `name` and lets its reader see the partial sum.
fn skip(m: &mut Module, name: &str, reader: &str, operand: usize, partial: &str) {
    remove(m, node(m, name));
    let reader = node(m, reader);
    read(m, reader, operand, partial);
}

#[test]
fn a_missing_all_reduce_is_a_partial_operand() {
    check(sharded(), |m| skip(m, "y", "z", 0, "y.p"), &["G0203 %z arg 0"]);
    let expected = "`%z`: operand 0 is a partial sum over `a1`, but operand 1 is none; \
                    insert `comm.all_reduce{axes=[a1]} %y.p`, or `comm.reduce_scatter` to keep it sharded";
    assert_eq!(message(sharded(), |m| skip(m, "y", "z", 0, "y.p")), expected);
}

#[test]
fn a_loss_scaled_by_a_local_count_is_found() {
    check(sharded(), |m| skip(m, "n", "ds", 1, "n.p"), &["G0201 %loss arg 1"]);
    let both = |m: &mut Module| {
        skip(m, "n", "ds", 1, "n.p");
        let loss = node(m, "loss");
        read(m, loss, 1, "n.p");
    };
    check(sharded(), both, &["G0203 %ds arg 1", "G0203 %loss arg 1"]);
}

#[test]
fn a_loss_scaled_by_the_count_of_one_micro_batch_is_found() {
    let per_micro_batch = |m: &mut Module| {
        push(m, Backward, "n.mb=n", None, "labels", "[]+mb.a0");
        move_last_before(m, Backward, node(m, "ds"));
        push(m, Backward, "n.l=n", Some(AllReduce { axes: vec![AxisId(1)] }.into()), "n.mb", "[]+mb");
        move_last_before(m, Backward, node(m, "ds"));
        let ds = node(m, "ds");
        read(m, ds, 1, "n.l");
    };
    check(sharded(), per_micro_batch, &["G0203 %ds arg 1"]);
    let expected = "`%ds`: operand 1 is a partial sum over `mb`; \
                    a sum over micro-batches is resolved by `accumulate` and read in phase `reduce`";
    assert_eq!(message(sharded(), per_micro_batch), expected);
}

#[test]
fn a_doubled_all_reduce_is_found() {
    let double = |m: &mut Module| {
        push(m, Reduce, "twice=dw1", Some(AllReduce { axes: vec![AxisId(1)] }.into()), "g1.r", "[_, a1]");
    };
    check(sharded(), double, &["G0206 %twice arg 0"]);
}

#[test]
fn a_collective_over_the_wrong_axis_is_found() {
    let wrong = |m: &mut Module| {
        let y = node(m, "y");
        m.chunks[0].graph.node_mut(y).op = AllReduce { axes: vec![AxisId(1)] }.into();
    };
    check(sharded(), wrong, &["G0206 %y arg 0"]);
    assert_eq!(message(sharded(), wrong), "`%y`: operand 0, `%y.p`, is no partial sum over `a0`");
}

#[test]
fn a_swapped_collective_is_found() {
    let swap = |m: &mut Module| {
        let g2 = node(m, "g2.r");
        m.chunks[0].graph.node_mut(g2).op = AllReduce { axes: vec![AxisId(1)] }.into();
    };
    check(sharded(), swap, &["G0206 %g2.r result 0"]);
    let other_dim = |m: &mut Module| {
        let g2 = node(m, "g2.r");
        m.chunks[0].graph.node_mut(g2).op = ReduceScatter { axes: vec![AxisId(1)], dim: 0 }.into();
    };
    check(sharded(), other_dim, &["G0206 %g2.r result 0"]);
    let no_dim = |m: &mut Module| {
        let w2n = node(m, "w2n");
        m.chunks[0].graph.node_mut(w2n).op = AllGather { axes: vec![AxisId(1)], dim: 9 }.into();
    };
    check(sharded(), no_dim, &["G0206 %w2n arg 0"]);
    let all_to_all = |m: &mut Module| {
        let w2n = node(m, "w2n");
        m.chunks[0].graph.node_mut(w2n).op = AllToAll { axes: vec![AxisId(1)], from: 1, to: 1 }.into();
    };
    check(sharded(), all_to_all, &["G0206 %w2n arg 0"]);
}

#[test]
fn collectives_do_not_cross_micro_batches() {
    let over_mb = |m: &mut Module| {
        let y = node(m, "y");
        m.chunks[0].graph.node_mut(y).op = AllReduce { axes: vec![Mesh::MB] }.into();
    };
    check(sharded(), over_mb, &["G0206 %y op"]);
}

#[test]
fn reshard_stands_for_collectives_at_level_sharded_only() {
    let reshard = |m: &mut Module| {
        let y = node(m, "y");
        m.chunks[0].graph.node_mut(y).op = Reshard.into();
    };
    check(sharded(), reshard, &[]);
    check(mlp(Level::Plan), reshard, &["G0206 %y op"]);
    let impossible = |m: &mut Module| {
        let lr = "g1.r";
        let g1 = node(m, lr);
        m.chunks[0].graph.node_mut(g1).op = Reshard.into();
        read(m, g1, 0, "w1");
        replace(m, lr, "[_, a1]+a0");
    };
    let expected = ["G0203 %q1.p arg 0", "G0203 %w1n arg 1", "G0206 %g1.r result 0", "G0207 %g1.r result 0"];
    check(sharded(), impossible, &expected);
}

#[test]
fn operands_agree_in_their_placement() {
    let replicated = |m: &mut Module| {
        replace(m, "c", "[_, _]");
    };
    check(sharded(), replicated, &["G0203 %z arg 1"]);
    let expected = "`%z`: dimension 0 of operand 1 is not sharded, dimension 0 of operand 0, which it meets, is sharded \
                    over `mb`, `a0`; bring both to one placement by a collective";
    assert_eq!(message(sharded(), replicated), expected);
}

#[test]
fn an_axis_shards_one_factor() {
    let twice = |m: &mut Module| {
        push(m, Forward, "w1.s=w1", Some(Shard { axes: vec![AxisId(1)], dim: 1 }.into()), "w1.g", "[_, a0]");
        push(m, Forward, "h.s=h", None, "x w1.s", "[mb.a0, _]");
    };
    let gathered = |m: &mut Module| {
        push(m, Forward, "w1.g=w1", Some(AllGather { axes: vec![AxisId(2)], dim: 1 }.into()), "w1", "[_, _]");
        twice(m);
    };
    check(sharded(), gathered, &["G0203 %h.s"]);
    let expected = "`%h.s`: `a0` would shard two factors of the op, one of them `n`; \
                    gather one of the operands over this axis";
    assert_eq!(message(sharded(), gathered), expected);
}

#[test]
fn an_op_that_needs_a_whole_dimension_gets_it() {
    let cut = |m: &mut Module| {
        for name in ["y", "c", "z"] {
            replace(m, name, "[mb.a0, a1]");
        }
        let y = node(m, "y");
        m.chunks[0].graph.node_mut(y).op = ReduceScatter { axes: vec![AxisId(2)], dim: 1 }.into();
    };
    check(sharded(), cut, &["G0203 %s arg 0", "G0203 %dz arg 0"]);
}

#[test]
fn results_follow_from_the_operands() {
    let claim = |m: &mut Module| replace(m, "dw1", "[_, a1]+mb");
    check(sharded(), claim, &["G0204 %dw1 result 0", "G0209 accumulate %g1 arg 1"]);
    let claim = |m: &mut Module| replace(m, "n.p", "[]");
    check(sharded(), claim, &["G0204 %n.p result 0", "G0206 %n arg 0"]);
}

#[test]
fn constants_are_cut_freely_but_are_no_partial_sums() {
    let partial = |m: &mut Module| replace(m, "one", "[]+a0");
    check(sharded(), partial, &["G0204 %one result 0", "G0204 %ds result 0"]);
}

#[test]
fn loads_within_a_micro_batch_are_of_that_micro_batch() {
    let whole = |m: &mut Module| replace(m, "x", "[a0, _]");
    check(sharded(), whole, &["G0204 %x result 0", "G0204 %h result 0", "G0203 %dw1 arg 1"]);
}

#[test]
fn placements_divide_shapes_and_use_an_axis_once() {
    check(sharded(), |m| replace(m, "labels", "[mb.a0.a0]"), &["G0205 %labels result 0"]);
    check(sharded(), |m| replace(m, "labels", "[mb, a0]"), &["G0205 %labels result 0"]);
    check(sharded(), |m| replace(m, "q2.p", "[]+a1.a0"), &["G0205 %q2.p result 0"]);
    let none = |m: &mut Module| {
        let h = value(m, "h");
        m.chunks[0].graph.value_mut(h).sharding = None;
    };
    check(sharded(), none, &["G0205 %h result 0"]);
}

#[test]
fn residents_and_once_a_step_values_do_not_mention_mb() {
    check(sharded(), |m| replace(m, "g1", "[_, a1]+mb.a0"), &["G0205 resident %g1"]);
    check(sharded(), |m| replace(m, "labels.p", "[mb.a0]"), &["G0205 %labels.p result 0"]);
}

#[test]
fn a_copy_has_the_type_of_its_original() {
    let other = |m: &mut Module| {
        let (value, of) = (value(m, "n"), super::fixture::program_value(m, "h"));
        m.chunks[0].graph.value_mut(value).of = Some(of);
    };
    check(sharded(), other, &["G0205 %n result 0"]);
    let nothing = |m: &mut Module| {
        let value = value(m, "n");
        m.chunks[0].graph.value_mut(value).of = Some(crate::ValueId(9999));
    };
    check(sharded(), nothing, &["G0205 %n result 0"]);
}

#[test]
fn phases_are_in_order_and_values_defined_first() {
    check(sharded(), |m| m.chunks[0].phases.swap(1, 2), &["G0201 module"]);
    check(sharded(), |m| m.chunks[0].phase_mut(Forward).swap(2, 3), &["G0201 %a arg 0"]);
}
