//! What no exporter writes is refused in a sentence by what meets it: numbers that overflow, ranks that do not fit, lists that
//! would grow without end.

use super::tests::Builder;

/// Imports nodes over `x` f32 [2, 4], the given integers, `w` f32 [4, 4] and `one` f32 [1], and looks for a part of the
/// diagnostics.
fn refused(nodes: &[&str], ints: &[(&str, &[i64])], expected: &str) {
    refused_of("batch 4", nodes, ints, expected);
}

/// The same with another shape of `x`.
fn refused_of(shape: &str, nodes: &[&str], ints: &[(&str, &[i64])], expected: &str) {
    let builder = Builder::new(nodes).input("x", 1, shape).f32("w", &[4, 4]).f32("one", &[1]);
    let builder = ints.iter().fold(builder, |builder, (name, values)| builder.ints(name, values));
    match builder.import() {
        Ok(_) => panic!("{nodes:?} is imported"),
        Err(fault) => assert!(fault.contains(expected), "{nodes:?}: {fault}"),
    }
}

#[test]
fn shapes_that_no_tensor_has() {
    refused_of("batch 9223372036854775807", &["y = Relu x"], &[], "error[onnx-dims]");
    refused_of("batch 281474976710656", &["y = Relu x"], &[], "error[onnx-dims]: input `x` has shape");
    let huge: [(&str, &[i64]); 1] = [("n", &[1 << 24, 1 << 24, 1, 4])];
    refused(&["y = Expand x n"], &huge, "is too large");
    refused(&["c = ConstantOfShape n", "y = Add x c"], &[("n", &[i64::MAX, 2])], "error[onnx-node]");
    refused(&["y = Tile x n"], &[("n", &[1 << 40, 1 << 40])], "error[onnx-node]");
    refused(&["y = Reshape x n"], &[("n", &[i64::MAX, i64::MAX])], "error[onnx-node]");
}

#[test]
fn dimensions_that_are_named_twice_or_not_there() {
    refused(&["y = Transpose{perm=[0 0]} x"], &[], "error[onnx-node]");
    refused(&["y = Transpose{perm=[0]} x"], &[], "error[onnx-node]");
    refused(&["v = Squeeze x n", "y = Softmax{axis=9223372036854775807} v"], &[("n", &[7])], "error[onnx-node]");
    refused(&["y = LayerNormalization x w"], &[], "a tensor of shape [4, 4] where [4] was expected");
    refused_of("batch", &["y = GroupNormalization{num_groups=1} x n n"], &[("n", &[1])], "error[onnx-node]");
    refused_of("batch", &["y = InstanceNormalization x n n"], &[("n", &[1])], "error[onnx-node]");
    refused_of("batch", &["y = BatchNormalization x one one one one"], &[], "no channels");
}

#[test]
fn indices_at_the_end_of_the_integers() {
    refused(&["y = Gather{axis=1} x n"], &[("n", &[i64::MAX])], "indices from 9223372036854775807");
    refused(&["y = Gather{axis=1} x n"], &[("n", &[i64::MAX, i64::MIN])], "error[onnx-node]");
    refused(
        &["r = Range a b c", "y = Gather{axis=1} x r"],
        &[("a", &[i64::MAX]), ("b", &[i64::MIN]), ("c", &[-1])],
        "too large",
    );
    let wrapping: [(&str, &[i64]); 3] = [("a", &[i64::MIN]), ("b", &[i64::MAX]), ("c", &[i64::MAX])];
    refused(&["r = Range a b c", "y = Gather{axis=1} x r"], &wrapping, "error[onnx-node]");
}

#[test]
fn pads_parts_and_blocks_beyond_any_tensor() {
    for pads in [[0, i64::MAX, 0, 0], [0, i64::MIN, 0, 0], [1 << 47, 0, 1 << 47, 0]] {
        refused(&["y = Pad x n"], &[("n", &pads)], "error[onnx-node]");
    }
    refused(&["y = Pad{mode=edge} x n"], &[("n", &[0, 1 << 40, 0, 0])], "in the mode `edge`");
    refused_of("batch 0", &["a = Add x x", "y = Pad{mode=edge} a n"], &[("n", &[0, 1, 0, 0])], "in the mode `edge`");
    refused(&["l = SplitToSequence{axis=1} x n", "y = SequenceAt l n"], &[("n", &[i64::MAX, i64::MAX])], "parts [");
    refused_of(
        "batch 1000000",
        &["l = SplitToSequence{axis=1} x", "y = SequenceAt l n"],
        &[("n", &[0])],
        "1000000 parts",
    );
    refused_of("batch 4 4 4", &["y = DepthToSpace{blocksize=9223372036854775807} x"], &[], "`blocksize` is");
}

#[test]
fn windows_beyond_any_image() {
    let pool = |attributes: &str| format!("y = AveragePool{{{attributes}}} x");
    for attributes in ["kernel_shape=[9223372036854775807]", "kernel_shape=[2], pads=[0 9223372036854775807]"] {
        refused_of("batch 3 6", &[&pool(attributes)], &[], "error[onnx-node]");
    }
    refused_of(
        "batch 3 6",
        &[&pool("kernel_shape=[2], strides=[9223372036854775807]")],
        &[],
        "`strides` is [9223372036854775807]",
    );
    refused_of("batch 1 1000000000", &[&pool("kernel_shape=[3], pads=[1 1]")], &[], "too many to count");
    refused_of("batch 0 6", &[&pool("kernel_shape=[2]")], &[], "error[onnx-node]");
}

#[test]
fn masks_and_caches_of_attention_without_the_right_rank() {
    let attention = |operands: &str| format!("y = Attention x x x {operands}");
    let ones: [(&str, &[i64]); 1] = [("n", &[1])];
    refused_of(
        "batch 2 3 4",
        &["b = Cast{to=9} n", "m = ReduceMin{keepdims=0} b", &attention("m")],
        &ones,
        "error[onnx-",
    );
    refused_of("batch 2 3 4", &[&attention("_ w w")], &ones, "error[onnx-node]");
}

#[test]
fn nodes_without_operands_or_results() {
    for op_type in ["Transpose", "Gather", "Concat", "MatMul", "Softmax", "Conv", "Attention"] {
        refused(&[&format!("y = {op_type}")], &[], "error[onnx-node]: node `y`");
    }
    let unused = [" = MatMul x w", " = Gather w n", " = Add x w", " = Pad{mode=edge} x p", "y = Relu x"];
    let builder = Builder::new(&unused).input("x", 1, "batch 4 4").f32("w", &[4, 4]);
    let builder = builder.ints("n", &[1]).ints("p", &[0, 0, 1, 0, 0, 0]);
    assert!(builder.ops().ends_with("relu f32[2, 4, 4]"), "{}", builder.ops());
}

#[test]
fn what_doubles_with_every_node() {
    let double = |i: usize| format!("c{} = Concat{{axis=0}} c{i} c{i}", i + 1);
    let nodes: Vec<String> = std::iter::once("c0 = Identity w".into()).chain((0..40).map(double)).collect();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).chain(["y = Add x c40"]).collect();
    refused(&nodes, &[], "error[onnx-node]: node `y`");
    let nodes = ["a = SequenceConstruct x x", "b = SequenceConstruct a a", "y = SequenceAt b n"];
    refused(&nodes, &[("n", &[0])], "operand 0 is a list");
}
