//! The CUDA kernels give the results of the reference, one op at a time. No GPU runs here: the sources are compiled as C++ and
//! each block's threads are fibers. That checks what they compute, not how fast, nor what only a GPU would do.

#[path = "support/conformance.rs"]
mod conformance;
#[path = "support/emulated.rs"]
mod emulated;

use galvatron_backends::device::Device;

/// An emulated GPU, where there is a C++ compiler.
fn device(arena_bytes: u64) -> Option<Box<dyn Device>> {
    Some(Box::new(emulated::Emulated::new(emulated::program()?, arena_bytes)))
}

#[test]
fn every_sample_agrees_with_the_reference() {
    conformance::every_sample_agrees_with_the_reference(device);
}

#[test]
fn every_sample_gives_the_same_bits_in_place() {
    conformance::every_sample_gives_the_same_bits_in_place(device);
}

#[test]
fn contractions_are_products_whatever_their_labels() {
    conformance::contractions_are_products_whatever_their_labels(device);
}

#[test]
fn attention_crosses_tiles_and_takes_wide_heads() {
    conformance::attention_crosses_tiles_and_takes_wide_heads(device);
}

#[test]
fn the_gradient_of_attention_crosses_tiles() {
    conformance::the_gradient_of_attention_crosses_tiles(device);
}

#[test]
fn long_rows_and_many_rows_are_summed() {
    conformance::long_rows_and_many_rows_are_summed(device);
}

#[test]
fn many_classes_and_many_indices_are_taken() {
    conformance::many_classes_and_many_indices_are_taken(device);
}

#[test]
fn elements_are_moved_in_tiles_runs_and_one_by_one() {
    conformance::elements_are_moved_in_tiles_runs_and_one_by_one(device);
}

#[test]
fn an_index_outside_of_its_table_is_a_fault() {
    conformance::an_index_outside_of_its_table_is_a_fault(device);
}
