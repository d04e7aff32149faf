//! Which nodes are launched together, and what memory forbids.

use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{AddN, Binary, Cast, Einsum, SumSquares, Unary, UnaryKind};
use galvatron_ir::op::mem::{Accumulate, Update};
use galvatron_ir::op::opt::Adamw;
use galvatron_ir::types::{DType, Scalar, TensorType};

use super::{groups, lower};
use crate::cuda::command::{Arg, Command, Epilogue, Place, Program};
use crate::cuda::kernels::Family;
use crate::device::{BufferSpec, NodeSpec, READ_LATER, RunNode};

const RELU: Unary = Unary { kind: UnaryKind::Relu };
const NEG: Unary = Unary { kind: UnaryKind::Neg };

/// A buffer at an offset.
fn at(offset: u64, shape: &[u64]) -> BufferSpec {
    typed(offset, TensorType::f32(shape.to_vec()))
}

fn typed(offset: u64, ty: TensorType) -> BufferSpec {
    BufferSpec::whole(&ty, offset)
}

/// A run under construction.
#[derive(Default)]
struct Run(Vec<Member>);

/// An op with operands, results, and for each result its last reader.
type Member = (Op, Vec<BufferSpec>, Vec<BufferSpec>, Vec<Option<usize>>);

impl Run {
    /// Adds a node with one result.
    fn node(
        mut self,
        op: impl Into<Op>,
        args: impl Into<Vec<BufferSpec>>,
        result: BufferSpec,
        last_reader: Option<usize>,
    ) -> Run {
        self.0.push((op.into(), args.into(), vec![result], vec![last_reader]));
        self
    }

    /// Adds a node without results.
    fn write(mut self, op: impl Into<Op>, args: impl Into<Vec<BufferSpec>>) -> Run {
        self.0.push((op.into(), args.into(), Vec::new(), Vec::new()));
        self
    }

    fn nodes(&self) -> Vec<RunNode<'_>> {
        let node = |(position, (op, args, results, last_readers))| RunNode {
            spec: NodeSpec { op, args, results, workspace: None },
            position,
            last_readers,
        };
        self.0
            .iter()
            .map(|(op, args, results, last)| (op, &args[..], &results[..], &last[..]))
            .enumerate()
            .map(node)
            .collect()
    }

    fn groups(&self) -> Vec<usize> {
        groups(&self.nodes())
    }

    fn lowered(&self) -> Program {
        lower(&self.nodes()).expect("the nodes can be launched together")
    }
}

fn offsets(spans: &[crate::device::Span]) -> Vec<u64> {
    spans.iter().map(|span| span.offset).collect()
}

/// x [4, 8] at 0, bias [8] at 128; x + bias at 0, its relu at 192.
fn bias_relu(last_reader: Option<usize>) -> Run {
    let (x, bias) = (at(0, &[4, 8]), at(128, &[8]));
    let sum = x.clone();
    Run::default().node(Binary::ADD, [x, bias], sum.clone(), last_reader).node(
        RELU,
        [sum],
        at(192, &[4, 8]),
        READ_LATER,
    )
}

#[test]
fn what_only_the_group_reads_is_not_written() {
    let program = bias_relu(Some(1)).lowered();
    assert_eq!((offsets(&program.accesses.reads), offsets(&program.accesses.writes)), (vec![0, 128], vec![192]));
    let program = bias_relu(READ_LATER).lowered();
    assert_eq!(offsets(&program.accesses.writes), [0, 192]);
    assert_eq!((program.name.as_str(), program.commands.len()), ("add+relu", 1));
}

#[test]
fn equal_computations_share_a_kernel_wherever_they_lie() {
    let unit = |run: Run| match &run.lowered().commands[..] {
        [Command::Launch(launch)] => launch.unit.clone(),
        commands => panic!("{commands:?}"),
    };
    let shape = [16, 24];
    let (x, bias) = (at(4096, &shape), at(8192, &[24]));
    let elsewhere = Run::default().node(Binary::ADD, [x.clone(), bias], x.clone(), Some(1)).node(
        RELU,
        [x],
        at(12288, &shape),
        READ_LATER,
    );
    assert_eq!(unit(bias_relu(Some(1))), unit(elsewhere));
    assert_ne!(unit(bias_relu(Some(1))), unit(bias_relu(READ_LATER)));
}

#[test]
fn element_i_may_be_written_over_element_i() {
    let (x, y) = (at(0, &[8]), at(64, &[8]));
    let run = Run::default()
        .node(RELU, [x.clone()], x.clone(), READ_LATER)
        .node(Binary::MUL, [x.clone(), y.clone()], y, READ_LATER)
        .node(NEG, [x.clone()], x, READ_LATER);
    assert_eq!(run.groups(), [3]);
    // The first result is covered by the last one.
    assert_eq!(offsets(&run.lowered().accesses.writes), [64, 0]);
}

#[test]
fn a_result_over_a_repeated_operand_is_not_fused() {
    let (x, bias) = (at(0, &[4, 8]), at(128, &[8]));
    let over_bias = Run::default().node(Binary::ADD, [x.clone(), bias], x.clone(), Some(1)).node(
        RELU,
        [x],
        at(128, &[4, 8]),
        READ_LATER,
    );
    assert_eq!(over_bias.groups(), [1, 1]);
}

#[test]
fn a_result_over_other_elements_of_an_operand_is_not_fused() {
    let (x, y) = (at(0, &[32]), at(128, &[32]));
    let shifted = |offset| {
        Run::default().node(RELU, [x.clone()], y.clone(), Some(1)).node(NEG, [y.clone()], at(offset, &[32]), READ_LATER)
    };
    assert_eq!(shifted(0).groups(), [2]);
    assert_eq!(shifted(64).groups(), [1, 1]);
    // Nobody reads it: nothing is written there.
    let dead = Run::default().node(RELU, [x], y.clone(), Some(1)).node(NEG, [y], at(64, &[32]), None);
    assert_eq!(dead.groups(), [2]);
}

#[test]
fn elements_of_another_width_are_other_elements() {
    let half = |offset| typed(offset, TensorType::new(DType::Bf16, [32]));
    let cast = Cast { to: DType::F32 };
    let run = |to| {
        Run::default().node(cast, [half(0)], at(to, &[32]), READ_LATER).node(
            NEG,
            [at(to, &[32])],
            at(256, &[32]),
            READ_LATER,
        )
    };
    assert_eq!(run(64).groups(), [2]);
    assert_eq!(run(0).groups(), [1, 1]);
}

#[test]
fn a_part_of_an_earlier_result_is_not_an_operand_of_its_kernel() {
    let (x, y) = (at(0, &[32]), at(128, &[32]));
    let run = Run::default().node(RELU, [x], y, READ_LATER).node(NEG, [at(192, &[32])], at(512, &[32]), READ_LATER);
    assert_eq!(run.groups(), [1, 1]);
}

#[test]
fn results_that_share_some_bytes_are_not_fused() {
    let x = at(0, &[32]);
    let run = Run::default().node(RELU, [x.clone()], at(128, &[32]), None).node(NEG, [x], at(192, &[32]), READ_LATER);
    assert_eq!(run.groups(), [1, 1]);
}

#[test]
fn a_kernel_has_no_more_buffers_than_fit_into_registers() {
    let terms: Vec<BufferSpec> = (0..12).map(|i| at(128 * i, &[32])).collect();
    let (sum, end) = (at(2048, &[32]), at(4096, &[32]));
    let run = |n: usize| {
        Run::default()
            .node(AddN, &terms[..n], sum.clone(), READ_LATER)
            .node(AddN, [&[sum.clone()][..], &terms[..3]].concat(), end.clone(), READ_LATER)
            .node(AddN, [&[end.clone()][..], &[at(8192, &[32]), at(8320, &[32])]].concat(), at(8448, &[32]), READ_LATER)
    };
    assert_eq!(run(11).groups(), [3]);
    assert_eq!(run(12).groups(), [2, 1]);
}

#[test]
fn an_accumulator_is_written_whoever_reads_it() {
    let (x, sum) = (at(0, &[32]), at(128, &[32]));
    let run = Run::default().node(NEG, [x.clone()], x.clone(), Some(1)).write(Accumulate, [sum, x]);
    assert_eq!(run.groups(), [2]);
    assert_eq!(offsets(&run.lowered().accesses.writes), [128]);
}

#[test]
fn other_ops_and_other_sizes_end_a_group() {
    let (x, y, z) = (at(0, &[32]), at(128, &[32]), at(256, &[16]));
    let run = Run::default()
        .node(RELU, [x], y.clone(), READ_LATER)
        .node(NEG, [z.clone()], z.clone(), READ_LATER)
        .node(NEG, [z.clone()], z.clone(), READ_LATER)
        .node(galvatron_ir::op::compute::SumSquares, [z], at(384, &[]), READ_LATER)
        .node(NEG, [y.clone()], y, READ_LATER);
    assert_eq!(run.groups(), [1, 2, 1, 1]);
}

/// Steps of AdamW on [8] each, with one learning rate and the number of the step at 4096 and 4160.
fn steps(decays: &[f64]) -> Run {
    let [beta1, beta2, eps] = [0.9, 0.99, 1e-8].map(Scalar::new);
    let step = |(i, &decay): (usize, &f64)| {
        let tensors: Vec<BufferSpec> = (0..4).map(|t| at(256 * i as u64 + 64 * t, &[8])).collect();
        let results = vec![tensors[0].clone(), tensors[2].clone(), tensors[3].clone()];
        let args = tensors.into_iter().chain([at(4096, &[]), at(4160, &[])]).collect();
        let op = Adamw { beta1, beta2, eps, weight_decay: Scalar::new(decay) };
        (op.into(), args, results, vec![READ_LATER; 3])
    };
    Run(decays.iter().enumerate().map(step).collect())
}

#[test]
fn optimizer_steps_that_differ_in_nothing_but_tensors_are_one_launch() {
    let run = steps(&[0.1, 0.1, 0.1, 0.0, 0.0]);
    assert_eq!(run.groups(), [3, 2]);
    let program = steps(&[0.1; 3]).lowered();
    assert_eq!((program.name.as_str(), program.commands.len()), ("3 opt.adamw", 1));
    assert_eq!((program.accesses.reads.len(), program.accesses.writes.len()), (18, 9));
}

#[test]
fn optimizer_steps_that_touch_the_same_bytes_are_not_one_launch() {
    let mut run = steps(&[0.1, 0.1]);
    // The second step's gradient is the first one's parameter.
    run.0[1].1[1] = run.0[0].1[0].clone();
    assert_eq!(run.groups(), [1, 1]);
}

#[test]
fn tables_are_as_long_as_their_structs() {
    let words = |run: &Run| match &run.lowered().commands[0] {
        Command::Launch(launch) => match &launch.args[0] {
            Arg::Struct(words) => words.len(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let squares = |i: u64| (SumSquares.into(), vec![at(64 * i, &[8])], vec![at(8192 + 64 * i, &[])], vec![READ_LATER]);
    assert_eq!(words(&steps(&[0.1, 0.1])), 1 + 48 * 9);
    assert!(
        Family::Optimizer.source().contains("Parameter at[48];") && Family::Optimizer.source().contains("CHUNK 4096ll")
    );
    assert_eq!(words(&Run((0..3).map(squares).collect())), 1 + 80 * 5);
    assert!(Family::Reduce.source().contains("Squared at[80];"));
}

/// x [4, 6] at 0 times w [6, 8] at 128, to 384, which only the next node reads.
fn product(spec: &str, last_reader: Option<usize>) -> Run {
    let op = Einsum::new(spec).expect("a contraction");
    Run::default().node(op, [at(0, &[4, 6]), at(128, &[6, 8])], at(384, &[4, 8]), last_reader)
}

fn epilogues(run: &Run) -> Vec<Epilogue> {
    let of = |command: &Command| match command {
        Command::Matmul(matmul) => matmul.epilogue,
        other => panic!("{other:?}"),
    };
    run.lowered().commands.iter().map(of).collect()
}

#[test]
fn a_bias_along_rows_goes_into_its_product() {
    let biased = |last, bias| {
        let sum = at(512, &[4, 8]);
        product("mk,kn->mn", last).node(Binary::ADD, [at(384, &[4, 8]), bias], sum, READ_LATER)
    };
    let run = biased(Some(1), at(1024, &[8]));
    assert_eq!(run.groups(), [2]);
    assert_eq!(epilogues(&run), [Epilogue::Bias(Place::Arena(1024), 8)]);
    let accesses = run.lowered().accesses;
    assert_eq!((offsets(&accesses.reads), offsets(&accesses.writes)), (vec![0, 128, 1024], vec![512]));
    // One that others read, one along columns, one that is no row.
    assert_eq!(biased(READ_LATER, at(1024, &[8])).groups(), [1, 1]);
    assert_eq!(biased(Some(1), at(1024, &[4, 1])).groups(), [1, 1]);
    assert_eq!(biased(Some(1), at(1024, &[])).groups(), [1, 1]);
    // The bias and the result share bytes.
    assert_eq!(biased(Some(1), at(576, &[8])).groups(), [1, 1]);
}

#[test]
fn a_product_that_is_added_up_goes_into_its_accumulator() {
    let run = |sum| product("mk,kn->mn", Some(1)).write(Accumulate, [at(sum, &[4, 8]), at(384, &[4, 8])]);
    assert_eq!((run(512).groups(), epilogues(&run(512))), (vec![2], vec![Epilogue::Accumulate]));
    let first = product("mk,kn->mn", Some(1)).write(Update, [at(512, &[4, 8]), at(384, &[4, 8])]);
    assert_eq!((epilogues(&first), offsets(&first.lowered().accesses.writes)), (vec![Epilogue::None], vec![512]));
    // An accumulator over an operand of the product.
    assert_eq!(run(128).groups(), [1, 1]);
}
