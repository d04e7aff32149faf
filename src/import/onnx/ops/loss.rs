//! Losses inside a model.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{
    Binary, Compare, CountLabels, CrossEntropy, Embedding, LogSoftmax, ReduceSum, Unary, UnaryKind,
};
use galvatron_ir::types::DType;

use super::layout::{expanded, transposed};
use super::order::picked;
use super::{Call, Fault, Lowered, Operator, Results, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "SoftmaxCrossEntropyLoss" => cross_entropy,
        "NegativeLogLikelihoodLoss" => likelihood,
        _ => return None,
    })
}

/// Scores [n, classes, ..] as [n, .., classes].
fn classes_last(call: &mut Call<'_, '_>) -> Result<ValueId, Fault> {
    let scores = call.float(0)?;
    let rank = call.ty(scores).rank();
    if rank < 2 {
        return Err(format!("scores of rank {rank}").into());
    }
    transposed(call, scores, [0].into_iter().chain(2..rank).chain([1]).collect())
}

/// Scores [n, classes, ..] and labels [n, ..]; the sum, or the mean over the labels that count, is one op.
fn cross_entropy(call: &mut Call<'_, '_>) -> Results {
    let reduction = call.attributes().string("reduction", "mean").to_string();
    let wants_logs = call.node.outputs.get(1).is_some_and(|output| !output.is_empty());
    if call.has(2) || wants_logs || !matches!(reduction.as_str(), "mean" | "sum") {
        return by_parts(call, wants_logs);
    }
    let ignore = call.attributes().int("ignore_index", i64::MIN);
    let labels = call.value(1)?;
    let scores = classes_last(call)?;
    let sum = call.emit(CrossEntropy { ignore }, &[scores, labels])?;
    if reduction == "sum" {
        return one(sum);
    }
    let count = call.emit(CountLabels { ignore }, &[labels])?;
    one(call.emit(Binary::DIV, &[sum, count])?)
}

/// The loss of each label, and the logarithms of the probabilities [n, classes, ..].
fn by_parts(call: &mut Call<'_, '_>, wants_logs: bool) -> Results {
    let scores = classes_last(call)?;
    let logs = call.emit(LogSoftmax, &[scores])?;
    let mut results = vec![Lowered::Value(losses(call, logs)?)];
    if wants_logs {
        let rank = call.ty(logs).rank();
        let back = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        results.push(Lowered::Value(transposed(call, logs, back)?));
    }
    Ok(results)
}

/// Operand 0 holds logarithms of probabilities.
fn likelihood(call: &mut Call<'_, '_>) -> Results {
    let logs = classes_last(call)?;
    one(losses(call, logs)?)
}

/// -weight · log-probability of each label, 0 of those that are ignored; or their sum, or that over the sum of weights.
fn losses(call: &mut Call<'_, '_>, logs: ValueId) -> Result<ValueId, Fault> {
    let labels = call.value(1)?;
    if call.ty(labels).dtype != DType::I64 {
        return Err("labels that are not integers".into());
    }
    let (zero, none) = (call.scalar(0.0)?, call.number(DType::I64, 0.0)?);
    let (mut ids, mut ignored) = (labels, None);
    if call.attributes().get("ignore_index").is_some() {
        let index = call.number(DType::I64, call.attributes().int("ignore_index", 0) as f64)?;
        let skips = call.emit(Compare::EQUAL, &[labels, index])?;
        (ids, ignored) = (call.choose(skips, none, labels)?, Some(skips));
    }
    let chosen = picked(call, logs, ids)?;
    let mut weight = match call.has(2) {
        true => {
            let table = call.float(2)?;
            call.emit(Embedding, &[table, ids])?
        }
        false => call.scalar(1.0)?,
    };
    if let Some(skips) = ignored {
        weight = call.choose(skips, zero, weight)?;
    }
    let weighted = call.emit(Binary::MUL, &[chosen, weight])?;
    let loss = call.emit(Unary { kind: UnaryKind::Neg }, &[weighted])?;
    let shape = call.ty(loss).shape;
    let dims: Vec<usize> = (0..shape.len()).collect();
    match call.attributes().string("reduction", "mean") {
        "none" => Ok(loss),
        "sum" => call.emit(ReduceSum { dims }, &[loss]),
        "mean" => {
            let sum = call.emit(ReduceSum { dims: dims.clone() }, &[loss])?;
            let weights = expanded(call, weight, shape)?;
            let total = call.emit(ReduceSum { dims }, &[weights])?;
            call.emit(Binary::DIV, &[sum, total])
        }
        other => Err(format!("the reduction `{other}` is not one of `none`, `sum` and `mean`").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    fn loss(attributes: &str, operands: &str, scores: &str, labels: &str) -> Builder {
        let builder = Builder::new(&[&format!("y = SoftmaxCrossEntropyLoss{{{attributes}}} {operands}")]);
        builder.input("x", 1, scores).input("labels", 7, labels)
    }

    #[test]
    fn the_mean_is_over_the_labels_that_count() {
        let mean = loss("reduction=mean, ignore_index=-100", "x labels", "batch 4", "batch").ops();
        assert_eq!(mean, "cross_entropy f32[]; count_labels f32[]; div f32[]");
        let sum = loss("reduction=sum", "x labels", "batch 4 6", "batch seq").ops();
        assert_eq!(sum, "transpose<[0, 2, 1]> f32[2, 6, 4]; cross_entropy f32[]");
    }

    #[test]
    fn other_forms_are_made_of_their_parts() {
        let none = loss("reduction=none", "x labels", "batch 4", "batch").ops();
        let parts = "log_softmax f32[2, 4]; full<0.0> f32[]; full<0.0> i64[]; reshape i64[2, 1]; take_along f32[2, 1]; \
                     reshape f32[2]; full<1.0> f32[]; mul f32[2]; neg f32[2]";
        assert_eq!(none, parts);
        let weighted = loss("reduction=sum", "x labels w", "batch 4", "batch").f32("w", &[4]).ops();
        assert!(weighted.contains("embedding f32[2]") && weighted.ends_with("reduce_sum f32[]"), "{weighted}");
        let other = loss("reduction=most", "x labels w", "batch 4", "batch").f32("w", &[4]);
        assert!(other.import().unwrap_err().contains("the reduction `most`"));
    }
}
