//! Every change of placement that collectives can make, on dimensions that are contiguous and on others.

use galvatron_ir::AxisId;
use galvatron_ir::mesh::{Sharding, reshard_steps};
use galvatron_ir::module::ViewStep;
use galvatron_ir::op::Op;
use galvatron_ir::op::comm::op_of_step;
use galvatron_ir::op::compute::Cast;
use galvatron_ir::op::mem::Update;
use galvatron_ir::plan::PhaseKind::Step;
use galvatron_ir::plan::ResidentRole;
use galvatron_ir::types::{DType, bf16};

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
    check_shape_from(from, mesh, (&SHAPE, DType::F32))
}

/// The same for a shape and the element type that travels.
fn check_shape_from(from: &Sharding, mesh: &[u32; 2], (shape, dtype): (&[u64; 3], DType)) -> usize {
    let mut b = PlanBuilder::new(mesh, 1, 1);
    let extent = shape.iter().product();
    let view = || vec![ViewStep::Reshape(shape.to_vec())];
    let source_of = b.weight("w", &[extent], view());
    let source = b.resident(ResidentRole::Parameter, source_of, &from.display(&b.module.mesh));
    let fits = |to: &Sharding| !to.is_partial() && to.check(shape, &b.module.mesh).is_ok();
    let targets: Vec<Sharding> = placements().into_iter().filter(fits).collect();
    let cast = |to| Op::from(Cast { to });
    let narrow = match dtype {
        DType::F32 => source,
        _ => b.node_at(Step, cast(dtype), &[source], std::slice::from_ref(from))[0],
    };
    for (i, to) in targets.iter().enumerate() {
        let target_of = b.weight(&format!("t{i}"), &[extent], view());
        let target = b.resident(ResidentRole::Parameter, target_of, &to.display(&b.module.mesh));
        let (mut at, mut value) = (from.clone(), narrow);
        for step in reshard_steps(from, to).unwrap() {
            at = step.apply(&at);
            value = b.node_at(Step, op_of_step(&step), &[value], &[at.clone()])[0];
        }
        if dtype != DType::F32 {
            value = b.node_at(Step, cast(DType::F32), &[value], &[at])[0];
        }
        b.node(Step, Update, &[target, value], &[]);
    }
    b.constant_loss();
    let options = RunOptions { collect: true, threads: Some(1), ..RunOptions::default() };
    let trained = train(&b.finish(), &options, &DATA, &Stored::default()).0.trained.unwrap();
    let copies: f32 = from.partial.iter().map(|a| mesh[a.index() - 1] as f32).product();
    let halve = |v: f32| if dtype == DType::F32 { v } else { bf16::widen(bf16::round(v)) };
    let expected: Vec<f32> = initial(extent as usize).iter().map(|&v| halve(halve(v) * copies)).collect();
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

/// Copies of a number of bf16, summed in f32 and rounded once, are its rounded multiple: of two and of four copies it is exact, of
/// three it is rounded.
#[test]
fn sums_of_bf16_are_rounded_once() {
    let n: usize = placements().iter().map(|from| check_shape_from(from, &[2, 2], (&SHAPE, DType::Bf16))).sum();
    assert!(n > 400, "{n} pairs");
    let partial = Sharding { partial: vec![AxisId(1)], ..Sharding::replicated(3) };
    assert!(check_shape_from(&partial, &[3, 2], (&SHAPE, DType::Bf16)) > 0);
}

/// What does not divide among the ranks is summed by all of them.
#[test]
fn sums_of_bf16_need_not_divide() {
    let partial = Sharding { partial: vec![AxisId(1)], ..Sharding::replicated(3) };
    for shape in [[1, 1, 2], [5, 7, 1], [11, 13, 17]] {
        assert!(check_shape_from(&partial, &[3, 2], (&shape, DType::Bf16)) > 0);
    }
}

#[test]
fn groups_of_three_work_too() {
    placements().iter().step_by(3).for_each(|from| _ = check_from(from, &[3, 2]));
}
