//! Every change of placement that collectives can make, on dimensions that are contiguous and on others.

use galvatron_ir::AxisId;
use galvatron_ir::mesh::{Sharding, reshard_steps};
use galvatron_ir::module::ViewStep;
use galvatron_ir::op::comm::op_of_step;
use galvatron_ir::op::mem::Update;
use galvatron_ir::plan::PhaseKind::Step;
use galvatron_ir::plan::ResidentRole;

use super::plan::{PlanBuilder, Samples, Stored, initial, train};
use crate::exec::RunOptions;

const SHAPE: [u64; 3] = [12, 12, 12];
const DATA: Samples = Samples { features: 1, classes: 2 };

/// All placements of two axes on three dimensions, in both orders, with partial sums too.
fn placements() -> Vec<Sharding> {
    let mut all = vec![Sharding::replicated(3)];
    for axis in [AxisId(1), AxisId(2)] {
        for placed in all.clone() {
            for dim in 0..3 {
                let mut next = placed.clone();
                next.dims[dim].push(axis);
                all.push(next.clone());
                next.dims[dim].rotate_right(1);
                if !all.contains(&next) {
                    all.push(next);
                }
            }
            let mut next = placed;
            next.partial.push(axis);
            all.push(next);
        }
    }
    all
}

/// Copies a parameter from one placement to every other one, for a mesh of two axes; returns how many copies were right.
fn check_from(from: &Sharding, mesh: &[u32; 2]) -> usize {
    let mut b = PlanBuilder::new(mesh, 1, 1);
    let extent = SHAPE.iter().product();
    let view = || vec![ViewStep::Reshape(SHAPE.to_vec())];
    let source_of = b.weight("w", &[extent], view());
    let source = b.resident(ResidentRole::Parameter, source_of, &from.display(&b.module.mesh));
    let targets: Vec<Sharding> = placements().into_iter().filter(|to| !to.is_partial()).collect();
    for (i, to) in targets.iter().enumerate() {
        let target_of = b.weight(&format!("t{i}"), &[extent], view());
        let target = b.resident(ResidentRole::Parameter, target_of, &to.display(&b.module.mesh));
        let (mut at, mut value) = (from.clone(), source);
        for step in reshard_steps(from, to).unwrap() {
            at = step.apply(&at);
            value = b.node_at(Step, op_of_step(&step), &[value], &[at.clone()])[0];
        }
        b.node(Step, Update, &[target, value], &[]);
    }
    b.constant_loss();
    let options = RunOptions { collect: true, threads: Some(1), ..RunOptions::default() };
    let trained = train(&b.finish(), &options, &DATA, &Stored::default()).0.trained.unwrap();
    let copies: f32 = from.partial.iter().map(|a| mesh[a.index() - 1] as f32).product();
    let expected: Vec<f32> = initial(extent as usize).iter().map(|v| v * copies).collect();
    for (i, to) in targets.iter().enumerate() {
        let found = &trained.parameters[&format!("t{i}")].data;
        let close = found.iter().zip(&expected).all(|(f, e)| (f - e).abs() < 1e-5);
        assert!(close && found.len() == expected.len(), "{from:?} to {to:?}");
    }
    targets.len()
}

#[test]
fn all_placements_are_reached_from_all() {
    let n: usize = placements().iter().map(|from| check_from(from, &[2, 2])).sum();
    assert!(n > 400, "{n} pairs");
}

#[test]
fn groups_of_three_work_too() {
    placements().iter().step_by(3).for_each(|from| _ = check_from(from, &[3, 2]));
}
