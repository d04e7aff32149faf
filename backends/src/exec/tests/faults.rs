//! Faults end a run at once, and name the rank and the node.

use std::time::Duration;

use galvatron_ir::AxisId;
use galvatron_ir::mesh::ReshardStep;
use galvatron_ir::module::Module;
use galvatron_ir::op::comm::op_of_step;
use galvatron_ir::op::compute::{Binary, Embedding, SumSquares};
use galvatron_ir::op::mem::Load;
use galvatron_ir::plan::PhaseKind::{Forward, Step};
use galvatron_ir::plan::ResidentRole;
use galvatron_ir::types::{DType, TensorType};

use super::plan::{PlanBuilder, Stored};
use crate::comm::{CommFault, CommKind};
use crate::exec::{DataSource, Flow, RunOptions, run};
use crate::fault::RunFault;

/// Two ranks load a sample each, look it up and sum up.
fn plan() -> Module {
    let mut b = PlanBuilder::new(&[2], 1, 2);
    let of = b.weight("table", &[4, 2], vec![]);
    let table = b.resident(ResidentRole::Parameter, of, "[a0,_]");
    let ids = Load { input: "ids".into(), ty: TensorType::i64([2]) };
    let ids = b.one(Forward, ids, &[], "[mb.a0]");
    let gather = op_of_step(&ReshardStep::AllGather { axes: vec![AxisId(1)], dim: 0 });
    let all = b.one(Forward, gather, &[ids], "[mb]");
    b.name(all, "all_ids");
    let rows = b.one(Forward, Embedding, &[table, all], "[mb,_]+a0");
    b.name(rows, "rows");
    let reduce = op_of_step(&ReshardStep::AllReduce { axes: vec![AxisId(1)] });
    let rows = b.one(Forward, reduce, &[rows], "[mb,_]");
    let loss = b.one(Forward, SumSquares, &[rows], "[]");
    b.output("loss", loss);
    b.finish()
}

/// Sample 1 is read as `other` says.
struct Ids(fn() -> Result<i64, String>);

impl DataSource for Ids {
    fn sample_bytes(&self, input: &str) -> Option<u64> {
        (input == "ids").then_some(8)
    }

    fn fill(&self, _input: &str, sample: u64, out: &mut [u8]) -> Result<(), String> {
        let id = if sample == 1 { (self.0)()? } else { 2 };
        out.copy_from_slice(&id.to_ne_bytes());
        Ok(())
    }
}

fn outcome(module: &Module, other: fn() -> Result<i64, String>) -> Result<f64, RunFault> {
    outcome_within(Duration::from_secs(60), module, other)
}

fn outcome_within(timeout: Duration, module: &Module, other: fn() -> Result<i64, String>) -> Result<f64, RunFault> {
    let options = RunOptions { timeout, threads: Some(4), ..RunOptions::default() };
    let mut loss = 0.0;
    let report = run(module, &options, &Ids(other), &Stored::default(), &mut |report| {
        loss = report.loss;
        Flow::Continue
    });
    report.map(|_| loss)
}

#[test]
fn a_sharded_table_gives_all_rows() {
    let table = super::plan::initial(8);
    let expected: f32 = [table[4], table[5], table[6], table[7]].iter().map(|v| v * v).sum();
    let loss = outcome(&plan(), || Ok(3)).unwrap();
    assert!((loss - f64::from(expected)).abs() < 1e-6);
}

#[test]
fn an_index_outside_of_the_whole_table_is_refused() {
    let fault = outcome(&plan(), || Ok(4)).unwrap_err();
    let RunFault::Node { node, step: 1, what, .. } = &fault else { panic!("{fault}") };
    assert_eq!((node.as_str(), what.as_str()), ("%rows", "index 4 at position 1 is not one of the 4 rows"));
}

#[test]
fn unreadable_data_names_rank_sample_and_input() {
    let fault = outcome(&plan(), || Err("the disk is gone".into())).unwrap_err();
    assert_eq!(fault.to_string(), "rank 1 at `%load` (step 1): sample 1 of `ids`: the disk is gone");
}

#[test]
fn a_panic_becomes_a_fault_that_names_the_rank() {
    let fault = outcome(&plan(), || panic!("a bug")).unwrap_err();
    assert_eq!(fault, RunFault::Panic { rank: 1, node: "%load".into(), message: "a bug".into() });
}

/// The only wait of these tests: rank 1 is late by more than the time-out.
#[test]
fn a_late_rank_is_named_with_the_node_that_waits_for_it() {
    let late = || {
        std::thread::sleep(Duration::from_millis(900));
        Ok(0)
    };
    let fault = outcome_within(Duration::from_millis(200), &plan(), late).unwrap_err();
    let RunFault::Comm(CommFault::Timeout { rank: 0, node, kind, missing, .. }) = &fault else { panic!("{fault}") };
    assert_eq!((node.as_str(), *kind, &missing[..]), ("%all_ids", CommKind::AllGather, &[1][..]));
}

#[test]
fn all_nodes_without_a_kernel_are_listed() {
    let mut b = PlanBuilder::new(&[], 1, 2);
    let ty = TensorType::new(DType::Bool, [2, 2]);
    let x =
        b.one(Step, galvatron_ir::op::compute::Full { ty, value: galvatron_ir::types::Scalar::new(1.0) }, &[], "[_,_]");
    let y = b.one(Step, Binary::ADD, &[x, x], "[_,_]");
    b.one(Step, Binary::MUL, &[x, y], "[_,_]");
    b.constant_loss();
    let fault = outcome(&b.finish(), || Ok(0)).unwrap_err();
    let RunFault::Unsupported(nodes) = &fault else { panic!("{fault}") };
    assert_eq!(nodes.iter().map(|n| n.op.as_str()).collect::<Vec<_>>(), ["add", "mul"]);
}

#[test]
fn overlapping_buffers_are_refused_before_the_run() {
    let mut b = PlanBuilder::new(&[], 1, 2);
    let full =
        galvatron_ir::op::compute::Full { ty: TensorType::f32([4]), value: galvatron_ir::types::Scalar::new(1.0) };
    let x = b.one(Step, full, &[], "[_]");
    let sum = b.one(Step, SumSquares, &[x], "[]");
    b.over(sum, x);
    b.constant_loss();
    let fault = outcome(&b.finish(), || Ok(0)).unwrap_err();
    assert!(fault.to_string().contains("result 0 overlaps operand 0"), "{fault}");
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let mut module = plan();
    module.stages[0].arena.transient -= 1;
    assert!(matches!(outcome(&module, || Ok(0)), Err(RunFault::Plan(_))));
    let mut module = plan();
    module.program.outputs.clear();
    assert!(matches!(outcome(&module, || Ok(0)), Err(RunFault::Plan(_))));
    let mut module = plan();
    module.train.as_mut().unwrap().global_batch = 4;
    assert!(matches!(outcome(&module, || Ok(0)), Err(RunFault::Data { .. })));
}
