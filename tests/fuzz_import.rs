//! Damaged ONNX files are refused or imported, and never make the importer panic, whatever the damage. The example
//! `fuzz_import` does the same for as long as one likes.

#[path = "support/damaged.rs"]
mod damaged;
#[path = "support/mutate.rs"]
mod mutate;
#[path = "support/node_tests.rs"]
mod node_tests;

use damaged::{Outcomes, damaged, fixtures, models, node_models};
use mutate::Mutator;

/// Imports so many damaged files.
fn check(n_files: usize, corpus: &[Vec<u8>]) {
    assert!(corpus.len() > 3, "there are models to damage");
    let (mut mutator, mut outcomes) = (Mutator::new(1), Outcomes::default());
    for _ in 0..n_files {
        outcomes.take(damaged(&mut mutator, corpus));
    }
    println!("{} imported, refused {:?}", outcomes.n_imported, outcomes.refused);
    assert!(outcomes.crashes.is_empty(), "{} of {n_files} files panic", outcomes.crashes.len());
    assert!(outcomes.n_imported > 0 && outcomes.refused.len() > 5, "the damage is of one kind");
}

#[test]
fn damaged_models_make_no_panic() {
    check(500, &models(&fixtures()));
}

#[test]
fn damaged_operators_make_no_panic() {
    check(4000, &node_models());
}

#[test]
fn the_same_seed_gives_the_same_damage() {
    let corpus = node_models();
    let files = |seed| {
        let mut mutator = Mutator::new(seed);
        (0..50).map(|_| damaged(&mut mutator, &corpus)).collect::<Vec<_>>()
    };
    assert!(files(7) == files(7) && files(7) != files(8));
}
