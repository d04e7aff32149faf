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
    fn other_forms_are_refused() {
        let none = loss("reduction=none", "x labels", "batch 4", "batch");
        assert!(none.import().unwrap_err().contains("with the reduction `none`"));
        let weighted = loss("reduction=sum", "x labels w", "batch 4", "batch").f32("w", &[4]);
        assert!(weighted.import().unwrap_err().contains("with weights of classes"));
    }
}
