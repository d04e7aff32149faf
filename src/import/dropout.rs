//! The dropouts of a model under import: each has a number of its own, and all read one step.

use galvatron_ir::ValueId;
use galvatron_ir::module::Program;
use galvatron_ir::op::compute::Dropout;
use galvatron_ir::op::mem::RunScalar;
use galvatron_ir::types::Scalar;

/// Numbers the dropouts of a program.
#[derive(Debug, Default)]
pub(super) struct Dropouts {
    /// The seed of the recipe.
    seed: u64,
    next: u32,
    step: Option<ValueId>,
}

impl Dropouts {
    /// No dropouts yet.
    pub(super) fn new(seed: u64) -> Dropouts {
        Dropouts { seed, next: 0, step: None }
    }

    /// The next dropout, with probability `p` of a zero, and its operand beside the tensor: the number of the step.
    pub(super) fn next(&mut self, program: &mut Program, p: f64) -> (Dropout, ValueId) {
        let op = Dropout { p: Scalar::new(p), seed: self.seed, number: self.next };
        self.next += 1;
        (op, *self.step.get_or_insert_with(|| step(program)))
    }
}

fn step(program: &mut Program) -> ValueId {
    let node = program.graph.add(RunScalar { name: "step".into() }.into(), &[]).expect("invariant: `step` is known");
    program.body.push(node);
    let value = program.graph.node(node).results[0];
    program.graph.rename(value, "step");
    value
}

/// How many dropouts a program has.
pub(super) fn n_dropouts(program: &Program) -> usize {
    let is_dropout = |op: &galvatron_ir::op::Op| matches!(op, galvatron_ir::op::Op::Dropout(_));
    program.body.iter().filter(|&&node| is_dropout(&program.graph.node(node).op)).count()
}
