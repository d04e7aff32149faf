//! Dropout.
//!
//! Up to operator set 6 it trains unless `is_test` says otherwise, from 7 to 11 never, from 12 on where the operand
//! `training_mode` is true.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Compare, CompareKind, Full};
use galvatron_ir::types::TensorType;

use super::super::lower::elements;
use super::super::statics::{Scalar, StaticTensor};
use super::{Call, Fault, Lowered, Operator, Results};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    (op_type == "Dropout").then_some(dropout)
}

/// The result, and a mask of what is kept.
fn dropout(call: &mut Call<'_, '_>) -> Results {
    let rate = if trains(call)? { rate(call)? } else { 0.0 };
    if rate == 0.0 {
        let shape = call.shape(0)?.iter().map(|&d| d as usize).collect();
        let mask = StaticTensor::splat(shape, Scalar::Bool(true))?;
        return Ok(vec![call.lowered(0)?.clone(), Lowered::Static(mask)]);
    }
    let x = call.float(0)?;
    let lowering = &mut *call.lowering;
    let (op, step) = lowering.dropouts.next(&mut lowering.module.program, rate);
    let y = call.emit(op, &[x, step])?;
    let mut results = vec![Lowered::Value(y)];
    if call.node.outputs.get(1).is_some_and(|mask| !mask.is_empty()) {
        results.push(Lowered::Value(mask(call, op, x, step)?));
    }
    Ok(results)
}

/// Whether the node trains.
fn trains(call: &Call<'_, '_>) -> Result<bool, Fault> {
    match call.node.opset {
        ..7 => Ok(call.attributes().int("is_test", 0) == 0),
        7..12 => Ok(false),
        _ if !call.has(2) => Ok(false),
        _ => Ok(number(call, 2, "training_mode")? != 0.0),
    }
}

/// The probability of a zero: an operand, before operator set 12 an attribute.
fn rate(call: &Call<'_, '_>) -> Result<f64, Fault> {
    let rate = match call.node.opset {
        ..12 => f64::from(call.attributes().float("ratio", 0.5)),
        _ if !call.has(1) => 0.5,
        _ => number(call, 1, "ratio")?,
    };
    let fault = || Fault::Wrong(format!("its ratio is {rate}, it must be at least 0 and below 1"));
    (0.0..1.0).contains(&rate).then_some(rate).ok_or_else(fault)
}

/// The one element of an operand that must be known.
fn number(call: &Call<'_, '_>, index: usize, name: &str) -> Result<f64, Fault> {
    let tensor =
        call.known(index).ok_or_else(|| Fault::Unsupported(format!("with a `{name}` that depends on the data")))?;
    let found = elements(tensor).first().copied();
    found.ok_or_else(|| Fault::Wrong(format!("`{name}` has no element")))
}

/// Where the same dropout keeps ones: it draws by index, whatever the elements are.
fn mask(
    call: &mut Call<'_, '_>,
    op: galvatron_ir::op::compute::Dropout,
    x: ValueId,
    step: ValueId,
) -> Result<ValueId, Fault> {
    let one =
        call.emit(Full { ty: TensorType::f32(call.ty(x).shape), value: galvatron_ir::types::Scalar::new(1.0) }, &[])?;
    let (kept, zero) = (call.emit(op, &[one, step])?, call.scalar(0.0)?);
    call.emit(Compare { kind: CompareKind::Less }, &[zero, kept])
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{Builder, check};
    use galvatron_backends::reference::{Tensor, run_program};
    use galvatron_ir::op::Op;
    use std::collections::BTreeMap;

    /// The dropouts of a model, as the text format has them, or what it is refused for.
    fn dropouts(builder: Builder) -> Result<Vec<String>, String> {
        let program = builder.import()?.module.program;
        let ops = program.body.iter().map(|&node| &program.graph.node(node).op);
        let text = |op: &Op| match op {
            Op::Dropout(op) => Some(format!("{} of {}", op.number, op.p)),
            _ => None,
        };
        Ok(ops.filter_map(text).collect())
    }

    #[test]
    fn inference_is_the_identity() {
        check(&["a = Dropout x", "y = Relu a"], "relu f32[2, 4]");
        assert_eq!(Builder::new(&["y = Dropout x ratio off"]).ints("off", &[0]).f32("ratio", &[1]).ops(), "");
        assert_eq!(Builder::new(&["y = Dropout{ratio=0.5} x"]).opset(10).ops(), "");
        assert_eq!(Builder::new(&["y = Dropout{is_test=1} x"]).opset(6).ops(), "");
    }

    #[test]
    fn training_drops_under_numbers_of_their_own() {
        let nodes = ["a = Dropout x ratio on", "b = Dropout a _ on", "y = Relu b"];
        let builder = Builder::new(&nodes).ints("on", &[1]).f32("ratio", &[1]);
        assert_eq!(builder.ops(), "run_scalar f32[]; dropout f32[2, 4]; dropout f32[2, 4]; relu f32[2, 4]");
        assert_eq!(dropouts(builder), Ok(vec!["0 of 0.5".into(), "1 of 0.5".into()]));
        let old = Builder::new(&["y = Dropout{ratio=0.25} x"]).opset(6);
        assert_eq!(dropouts(old), Ok(vec!["0 of 0.25".into()]));
    }

    /// Ones that are kept are 2, and 1 less their mask; what is dropped is 0 and has none.
    #[test]
    fn a_mask_is_of_the_same_draw() {
        let nodes = ["a mask = Dropout x _ on", "m = Cast{to=1} mask", "y = Sub a m"];
        let builder = Builder::new(&nodes).ints("on", &[1]);
        assert_eq!(dropouts(builder.clone()), Ok(vec!["0 of 0.5".into(); 2]));
        let program = builder.import().unwrap().module.program;
        let step = program.body.iter().find(|&&node| matches!(program.graph.node(node).op, Op::RunScalar(_)));
        let step = program.graph.node(*step.expect("dropouts read it")).results[0];
        let feeds = [(program.inputs[0].value, Tensor::filled([2, 4], 1.0)), (step, Tensor::scalar(1.0))];
        let values = run_program(&program, BTreeMap::from(feeds));
        let y = values[program.output("y").expect("the model has it").index()].as_ref().expect("it is computed");
        assert!(y.data.contains(&0.0) && y.data.contains(&1.0), "{y:?}");
        assert!(y.data.iter().all(|v| [0.0, 1.0].contains(v)), "{y:?}");
    }

    #[test]
    fn what_is_not_known_or_no_probability_is_refused() {
        let with =
            |ratio: &str| Builder::new(&[&format!("y = Dropout x {ratio} on")]).ints("on", &[1]).ints("one", &[1]);
        assert!(dropouts(with("one")).unwrap_err().contains("its ratio is 1, it must be at least 0 and below 1"));
        assert!(dropouts(with("empty").ints("empty", &[])).unwrap_err().contains("`ratio` has no element"));
        let open = Builder::new(&["y = Dropout x _ on"]).input("on", 9, "");
        assert!(dropouts(open).unwrap_err().contains("with a `training_mode` that depends on the data"));
    }
}
