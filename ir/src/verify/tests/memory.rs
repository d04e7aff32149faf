//! Corruptions of places.

use super::fixture::{mlp, node, place, value};
use super::{check, message};
use crate::module::{Level, Module};
use crate::plan::{ALIGNMENT, Place, Region};

fn plan() -> Module {
    mlp(Level::Plan)
}

fn place_of(m: &Module, name: &str) -> Place {
    m.chunks[0].graph.value(value(m, name)).place.unwrap()
}

/// Puts a value where another one is.
fn put(m: &mut Module, name: &str, at: &str) {
    let place = place_of(m, at);
    set(m, name, Some(place));
}

fn set(m: &mut Module, name: &str, place: Option<Place>) {
    let value = value(m, name);
    m.chunks[0].graph.value_mut(value).place = place;
}

#[test]
fn results_are_written_over_dying_operands_and_updated_residents() {
    let m = plan();
    for (result, over) in [("a", "h"), ("z", "y"), ("w1n", "w1"), ("m1n", "m1"), ("m2n", "m2"), ("g1.r", "g1")] {
        let expected = result != "a";
        assert_eq!(place_of(&m, result) == place_of(&m, over), expected, "{result}");
    }
}

#[test]
fn a_buffer_over_a_live_one_is_found() {
    let overlap = |m: &mut Module| put(m, "a", "h");
    check(plan(), overlap, &["G0213 %a result 0"]);
    let expected = "`%a` overlaps `%h`, which `%dha` still reads";
    assert_eq!(message(plan(), overlap), expected);
}

#[test]
fn memory_is_used_again_after_the_last_reader() {
    let again = |m: &mut Module| put(m, "dw1", "y0");
    check(plan(), again, &[]);
}

#[test]
fn a_partial_overlap_is_found_too() {
    let shift = |m: &mut Module| {
        let h = place_of(m, "h");
        set(m, "y0", Some(Place { offset: h.offset + ALIGNMENT, ..h }));
    };
    check(plan(), shift, &["G0213 %y0 result 0"]);
}

#[test]
fn prologue_values_are_kept_for_the_next_micro_batch() {
    let reuse = |m: &mut Module| put(m, "dha", "n");
    check(plan(), reuse, &["G0213 %dha result 0"]);
}

#[test]
fn residents_are_never_shared() {
    let reuse = |m: &mut Module| put(m, "x", "m2");
    check(plan(), reuse, &["G0213 %x result 0"]);
    let shadow = |m: &mut Module| put(m, "w2.s", "m2");
    check(plan(), shadow, &["G0213 %w2.s result 0"]);
    assert_eq!(message(plan(), shadow), "`%w2.s` overlaps the resident `%m2`");
}

#[test]
fn a_weight_is_written_over_by_its_own_update_only() {
    let other = |m: &mut Module| put(m, "m1n", "w1");
    check(plan(), other, &["G0213 %m1n result 1"]);
}

#[test]
fn a_resident_is_live_again_after_the_value_that_updated_it() {
    let late = |m: &mut Module| put(m, "w2.s", "w1n");
    check(plan(), late, &["G0213 %w2.s result 0"]);
}

#[test]
fn places_are_there_aligned_and_inside_their_region() {
    check(plan(), |m| set(m, "h", None), &["G0212 %h result 0"]);
    let odd = |m: &mut Module| {
        let h = place_of(m, "h");
        set(m, "h", Some(Place { offset: h.offset + 4, ..h }));
    };
    check(plan(), odd, &["G0212 %h result 0"]);
    let outside = |m: &mut Module| {
        let offset = m.stages[0].arena.transient;
        set(m, "h", Some(Place { region: Region::Transient, offset }));
    };
    check(plan(), outside, &["G0212 %h result 0"]);
    let transient = |m: &mut Module| set(m, "m2", Some(Place { region: Region::Transient, offset: 0 }));
    check(plan(), transient, &["G0212 resident %m2"]);
    check(plan(), |m| m.stages[0].arena.transient = u64::MAX, &["G0212 arena"]);
}

#[test]
fn workspaces_have_places_of_their_own() {
    let without = |m: &mut Module| {
        let g2 = node(m, "g2.r");
        m.chunks[0].graph.node_mut(g2).workspace = None;
    };
    check(plan(), without, &["G0212 %g2.r"]);
    let shared = |m: &mut Module| {
        let (g2, at) = (node(m, "g2.r"), place_of(m, "g2.r"));
        m.chunks[0].graph.node_mut(g2).workspace = Some(at);
    };
    check(plan(), shared, &["G0213 %g2.r"]);
}

#[test]
fn placing_again_changes_nothing() {
    let mut m = plan();
    place(&mut m);
    assert_eq!(m, plan());
}
