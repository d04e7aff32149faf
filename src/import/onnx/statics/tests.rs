//! Laws of static evaluation: compression does not change values, and masks of exported graphs stay small.

use super::super::attributes::{Attribute, Attributes};
use super::{CausalMask, Iota, Scalar, StaticTensor, evaluate, shape_of};

fn op(op_type: &str, inputs: &[&StaticTensor]) -> StaticTensor {
    op_with(op_type, Attributes::default(), inputs)
}

fn op_with(op_type: &str, attributes: Attributes, inputs: &[&StaticTensor]) -> StaticTensor {
    let inputs: Vec<_> = inputs.iter().map(|&t| Some(t)).collect();
    evaluate(op_type, 18, &attributes, &inputs, 1).unwrap().unwrap().remove(0)
}

fn fault(op_type: &str, inputs: &[&StaticTensor]) -> String {
    let inputs: Vec<_> = inputs.iter().map(|&t| Some(t)).collect();
    evaluate(op_type, 18, &Attributes::default(), &inputs, 1).unwrap().unwrap_err()
}

fn int(value: i64) -> StaticTensor {
    StaticTensor::splat(vec![], Scalar::I64(value)).unwrap()
}

fn ints(values: &[i64]) -> StaticTensor {
    StaticTensor::from_ints(values)
}

fn range(n: i64) -> StaticTensor {
    op("Range", &[&int(0), &int(n), &int(1)])
}

fn axis(value: i64) -> Attributes {
    Attributes::default().with("axis", Attribute::Int(value))
}

#[test]
fn expanded_positions_stay_as_small_as_the_range() {
    let positions = op("Unsqueeze", &[&range(6), &ints(&[0, 1])]);
    let expanded = op("Expand", &[&positions, &ints(&[2048, 1, 6, 6])]);
    assert_eq!((expanded.shape(), expanded.n_stored()), (&[2048, 1, 6, 6][..], 6));
    assert_eq!(expanded.as_iota(), Some(Iota { dim: 3, start: 0, step: 1 }));
}

#[test]
fn a_mask_from_comparing_positions_is_causal() {
    let (batch, seq) = (2048, 32);
    let rows = op("Unsqueeze", &[&range(seq), &ints(&[0, 1, 3])]);
    let columns = op("Unsqueeze", &[&range(seq), &ints(&[0, 1, 2])]);
    let keep = op("LessOrEqual", &[&columns, &rows]);
    let keep = op("Expand", &[&keep, &ints(&[batch, 1, seq, seq])]);
    let value = |v: f32| StaticTensor::splat(vec![], Scalar::F32(v)).unwrap();
    let mask = op("Where", &[&keep, &value(0.0), &value(f32::NEG_INFINITY)]);
    assert_eq!((mask.shape()[0], mask.n_stored()), (2048, 32 * 32));
    assert_eq!(mask.as_causal_mask(), Some(CausalMask { fill: Scalar::F32(f32::NEG_INFINITY), offset: 0 }));
    assert_eq!(keep.as_causal_mask(), Some(CausalMask { fill: Scalar::Bool(false), offset: 0 }));
}

#[test]
fn gathering_what_does_not_depend_on_the_batch_forgets_the_batch() {
    let (batch, seq) = (3, 5);
    let data = op("Expand", &[&range(seq), &ints(&[batch, seq])]);
    let b = op("Expand", &[&op("Unsqueeze", &[&range(batch), &ints(&[1, 2])]), &ints(&[batch, seq, 1])]);
    let s = op("Expand", &[&op("Unsqueeze", &[&range(seq), &ints(&[0, 2])]), &ints(&[batch, seq, 1])]);
    let tuples = op_with("Concat", axis(-1), &[&b, &s]);
    let gathered = op("GatherND", &[&data, &tuples]);
    assert_eq!((gathered.shape(), gathered.stored()), (&[3, 5][..], &[1, 5][..]));
}

#[test]
fn reshapes_keep_constant_dimensions_where_groups_allow() {
    let x = op("Expand", &[&op("Unsqueeze", &[&range(6), &ints(&[0])]), &ints(&[4, 6])]);
    let split = op("Reshape", &[&x, &ints(&[2, 2, 3, -1])]);
    assert_eq!((split.shape(), split.stored()), (&[2, 2, 3, 2][..], &[1, 1, 3, 2][..]));
    let flat = op("Reshape", &[&x, &ints(&[-1])]);
    assert_eq!(flat.ints().unwrap(), [0, 1, 2, 3, 4, 5].repeat(4));
    assert_eq!(op("Reshape", &[&flat, &ints(&[4, 6])]).stored(), [1, 6]);
}

#[test]
fn reductions_count_the_copies_of_constant_dimensions() {
    let x = op("Expand", &[&op("Unsqueeze", &[&range(4), &ints(&[0])]), &ints(&[3, 4])]);
    assert_eq!(op("ReduceSum", &[&x]).ints().unwrap(), [18]);
    assert_eq!(op("ReduceSum", &[&x, &ints(&[0])]).ints().unwrap(), [0, 3, 6, 9]);
    assert_eq!(op("ReduceProd", &[&op("Add", &[&x, &int(1)]), &ints(&[0])]).ints().unwrap(), [1, 8, 27, 64]);
    assert_eq!(op("CumSum", &[&x, &int(0)]).ints().unwrap()[4..8], [0, 2, 4, 6]);
}

#[test]
fn shapes_are_cut_by_start_and_end() {
    let cut = Attributes::default().with("start", Attribute::Int(-2)).with("end", Attribute::Int(9));
    assert_eq!(shape_of(&[7, 8, 9], &cut).ints().unwrap(), [8, 9]);
    assert_eq!(shape_of(&[], &Attributes::default()).shape(), [0]);
}

#[test]
fn integer_division_truncates_and_modulo_follows_the_divisor() {
    assert_eq!(op("Div", &[&ints(&[-7, 7]), &ints(&[2, -2])]).ints().unwrap(), [-3, -3]);
    assert_eq!(op("Mod", &[&ints(&[-7, 7]), &ints(&[3, -3])]).ints().unwrap(), [2, -2]);
    assert_eq!(fault("Div", &[&int(1), &int(0)]), "`Div`: integer division by zero");
}

#[test]
fn faults_are_reported_and_unknown_operators_left_alone() {
    assert!(evaluate("Softmax", 18, &Attributes::default(), &[], 1).is_none());
    assert!(fault("Gather", &[&range(3), &ints(&[3])]).contains("index 3"));
    assert!(fault("Reshape", &[&range(3), &ints(&[2, -1])]).contains("cannot become"));
    assert!(fault("Add", &[&range(3), &range(2)]).contains("broadcast"));
    assert!(fault("Range", &[&int(0), &int(i64::MAX), &int(1)]).contains("too large"));
    let wide = op("Unsqueeze", &[&range(1 << 14), &ints(&[1])]);
    assert!(fault("Less", &[&wide, &range(1 << 14)]).contains("too large"));
}
