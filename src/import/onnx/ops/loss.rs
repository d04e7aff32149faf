//! Losses inside a model.

use galvatron_ir::op::compute::{Binary, CountLabels, CrossEntropy};

use super::layout::transposed;
use super::{Call, Fault, Operator, Results, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "SoftmaxCrossEntropyLoss" => cross_entropy,
        _ => return None,
    })
}

/// Scores [n, classes, ..] and labels [n, ..]; the sum, or the mean over the labels that count.
fn cross_entropy(call: &mut Call<'_, '_>) -> Results {
    if call.has(2) {
        return Err(Fault::Unsupported("with weights of classes".into()));
    }
    if call.node.outputs.get(1).is_some_and(|output| !output.is_empty()) {
        return Err(Fault::Unsupported("with log-probabilities as result".into()));
    }
    let reduction = call.attributes().string("reduction", "mean").to_string();
    if !matches!(reduction.as_str(), "mean" | "sum") {
        return Err(Fault::Unsupported(format!("with the reduction `{reduction}`")));
    }
    let ignore = call.attributes().int("ignore_index", i64::MIN);
    let (scores, labels) = (call.value(0)?, call.value(1)?);
    let rank = call.ty(scores).rank();
    if rank < 2 {
        return Err(format!("scores of rank {rank}").into());
    }
    let classes_last = [0].into_iter().chain(2..rank).chain([1]).collect();
    let scores = transposed(call, scores, classes_last)?;
    let sum = call.emit(CrossEntropy { ignore }, &[scores, labels])?;
    if reduction == "sum" {
        return one(sum);
    }
    let count = call.emit(CountLabels { ignore }, &[labels])?;
    one(call.emit(Binary::DIV, &[sum, count])?)
}
