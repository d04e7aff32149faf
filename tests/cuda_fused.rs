//! Nodes that GPUs launch together give the bits that they give one by one, on random programs of element-wise nodes and
//! on optimizer steps. No GPU runs here: generated kernels too are compiled as C++.

#[allow(dead_code)]
#[path = "support/emulated.rs"]
mod emulated;

use emulated::Emulated;
use galvatron_backends::cuda::fuse;
use galvatron_backends::device::{BufferSpec, Device, NodeSpec, READ_LATER, RunNode, Span};
use galvatron_ir::op::compute::{
    AddN, Binary, BinaryKind, Cast, Einsum, MseGrad, SumSquares, Unary, UnaryGrad, UnaryKind, Where,
};
use galvatron_ir::op::mem::Accumulate;
use galvatron_ir::op::opt::{Adamw, Sgd};
use galvatron_ir::op::{Alias, Op};
use galvatron_ir::types::{DType, Scalar, TensorType, bf16};

/// Programs that are tried.
const N_PROGRAMS: u64 = 24;

/// Numbers that are the same for the same seed (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// An element in [1, 2), of either sign if that is asked for.
    fn element(&mut self, dtype: DType, signed: bool) -> Vec<u8> {
        let size = 1.0 + self.below(1 << 20) as f32 / (1 << 20) as f32;
        let value = if signed && self.below(2) == 0 { -size } else { size };
        match dtype {
            DType::F32 => value.to_ne_bytes().into(),
            DType::Bf16 => bf16::round(value).to_ne_bytes().into(),
            DType::I64 => (self.below(9) as i64 - 4).to_ne_bytes().into(),
            DType::Bool => vec![self.below(2) as u8],
        }
    }
}

/// A node with its buffers.
struct Node {
    op: Op,
    args: Vec<BufferSpec>,
    results: Vec<BufferSpec>,
    last_readers: Vec<Option<usize>>,
}

impl Node {
    fn run_node(&self, position: usize) -> RunNode<'_> {
        let spec = NodeSpec { op: &self.op, args: &self.args, results: &self.results, workspace: None };
        RunNode { spec, position, last_readers: &self.last_readers }
    }
}

/// A value of a program under construction: the node and result that it is, unless it was there before, and whether it is still
/// in memory.
struct Value {
    buffer: BufferSpec,
    by: Option<usize>,
    lives: bool,
}

/// A program under construction.
struct Program {
    random: Random,
    shape: Vec<u64>,
    nodes: Vec<Node>,
    values: Vec<Value>,
    end: u64,
    n_before: usize,
    /// Whether what it begins with has numbers below zero.
    is_signed: bool,
}

impl Program {
    fn new(random: Random, shape: Vec<u64>) -> Program {
        Program { random, shape, nodes: Vec::new(), values: Vec::new(), end: 0, n_before: 0, is_signed: false }
    }

    /// A random program of `n` element-wise nodes.
    fn random(seed: u64, n: usize) -> Program {
        let mut random = Random::new(seed);
        let shape = random.pick(&[vec![4, 8], vec![3, 5], vec![2, 3, 8], vec![300], vec![2, 4, 1, 24], vec![]]);
        let mut program = Program::new(random, shape);
        program.is_signed = true;
        program.declare();
        while program.nodes.len() < n {
            program.grow();
        }
        program.read();
        program
    }

    fn declare(&mut self) {
        let shape = self.shape.clone();
        let inner: Vec<u64> = shape.last().copied().into_iter().collect();
        let outer: Vec<u64> =
            shape.iter().enumerate().map(|(d, &n)| if d + 1 == shape.len() { 1 } else { n }).collect();
        for dtype in [DType::F32, DType::F32, DType::F32, DType::Bf16, DType::Bf16, DType::I64, DType::Bool] {
            self.place(TensorType::new(dtype, shape.clone()), None);
        }
        for dtype in [DType::F32, DType::Bf16] {
            for shape in [vec![], inner.clone(), outer.clone()] {
                self.place(TensorType::new(dtype, shape), None);
            }
        }
        self.n_before = self.values.len();
    }

    /// A new value in memory of its own, or in that of another value.
    fn place(&mut self, ty: TensorType, over: Option<usize>) -> usize {
        let offset = over.map_or(self.end, |value| self.values[value].buffer.offset);
        let buffer = BufferSpec::whole(&ty, offset);
        if over.is_none() {
            self.end = (offset + buffer.ty.bytes()).next_multiple_of(64);
        }
        self.values.push(Value { buffer, by: None, lives: true });
        self.values.len() - 1
    }

    /// A result of the next node, in memory of its own.
    fn result(&mut self, ty: &TensorType) -> BufferSpec {
        let value = self.place(ty.clone(), None);
        self.values[value].by = Some(self.nodes.len());
        self.values[value].buffer.clone()
    }

    /// A living value of a type; `whole` if it must have the shape of results.
    fn value(&mut self, dtype: DType, whole: bool) -> usize {
        let fits = |value: &Value| {
            value.lives && value.buffer.ty.dtype == dtype && (!whole || value.buffer.ty.shape == self.shape)
        };
        let all: Vec<usize> = (0..self.values.len()).filter(|&v| fits(&self.values[v])).collect();
        if all.is_empty() {
            self.place(TensorType::new(dtype, self.shape.clone()), None)
        } else {
            self.random.pick(&all)
        }
    }

    fn grow(&mut self) {
        let float = self.random.pick(&[DType::F32, DType::F32, DType::Bf16]);
        let unary = [UnaryKind::Neg, UnaryKind::Relu, UnaryKind::GeluTanh, UnaryKind::Silu, UnaryKind::Tanh];
        let binary = [BinaryKind::Add, BinaryKind::Sub, BinaryKind::Mul, BinaryKind::Div];
        let scalar = |program: &mut Program| {
            let is_scalar = |value: &Value| value.buffer.ty.dtype == float && value.buffer.ty.rank() == 0;
            (0..program.n_before).find(|&v| program.values[v].lives && is_scalar(&program.values[v]))
        };
        let (op, args): (Op, Vec<usize>) = match self.random.below(11) {
            0 | 1 => (Unary { kind: self.random.pick(&unary) }.into(), vec![self.value(float, true)]),
            2 => {
                let kind = self.random.pick(&unary);
                (UnaryGrad { kind }.into(), vec![self.value(float, true), self.value(float, true)])
            }
            3 => (AddN.into(), (0..3).map(|_| self.value(float, true)).collect()),
            4 => (Where.into(), vec![self.value(DType::Bool, true), self.value(float, true), self.value(float, false)]),
            5 => {
                let pairs = [
                    (DType::F32, DType::Bf16),
                    (DType::Bf16, DType::F32),
                    (DType::F32, DType::I64),
                    (DType::I64, DType::Bf16),
                    (DType::Bf16, DType::Bool),
                ];
                let (from, to) = self.random.pick(&pairs);
                (Cast { to }.into(), vec![self.value(from, true)])
            }
            6 => (Unary { kind: UnaryKind::IsNan }.into(), vec![self.value(float, true)]),
            7 => {
                let kind = self.random.pick(&binary);
                (Binary { kind }.into(), vec![self.value(DType::I64, true), self.value(DType::I64, true)])
            }
            8 => match scalar(self) {
                Some(ds) => (MseGrad.into(), vec![self.value(float, true), self.value(float, true), ds]),
                None => return,
            },
            _ => {
                let kind = self.random.pick(&binary);
                (Binary { kind }.into(), vec![self.value(float, true), self.value(float, false)])
            }
        };
        self.add(op, &args);
    }

    /// Adds a node; its result lies over an operand now and then.
    fn add(&mut self, op: Op, args: &[usize]) {
        let types: Vec<&TensorType> = args.iter().map(|&v| &self.values[v].buffer.ty).collect();
        let ty = op.infer(&types).expect("a legal node").remove(0);
        let may_be_over = |&operand: &usize| {
            let same = args.iter().filter(|&&v| v == args[operand]).count() == 1;
            same && self.values[args[operand]].buffer.ty.bytes() == ty.bytes() && ty.shape == types[operand].shape
        };
        let listed = match op.alias() {
            Alias::None | Alias::View(_) => Vec::new(),
            alias => alias.reusable(0, 1),
        };
        let over: Vec<usize> = listed.into_iter().filter(may_be_over).map(|operand| args[operand]).collect();
        let over = if over.is_empty() || self.random.below(2) == 0 { None } else { Some(self.random.pick(&over)) };
        let buffers = args.iter().map(|&v| self.values[v].buffer.clone()).collect();
        let result = self.place(ty, over);
        over.into_iter().for_each(|v| self.values[v].lives = false);
        self.values[result].by = Some(self.nodes.len());
        let results = vec![self.values[result].buffer.clone()];
        self.nodes.push(Node { op, args: buffers, results, last_readers: vec![None] });
    }

    /// Sets the last readers: some of the values that are still in memory are read later.
    fn read(&mut self) {
        for node in 0..self.nodes.len() {
            for arg in self.nodes[node].args.clone() {
                // The node that wrote the bytes last before this one.
                let writer = (0..node).rev().find(|&w| self.nodes[w].results[0].span() == arg.span());
                if let Some(writer) = writer {
                    let last = &mut self.nodes[writer].last_readers[0];
                    *last = (*last).max(Some(node));
                }
            }
        }
        for v in self.n_before..self.values.len() {
            let Some(by) = self.values[v].by.filter(|_| self.values[v].lives) else { continue };
            if self.random.below(2) == 0 || self.nodes[by].last_readers[0].is_none() {
                self.nodes[by].last_readers[0] = READ_LATER;
            }
        }
    }

    fn run(&self) -> Vec<RunNode<'_>> {
        self.nodes.iter().enumerate().map(|(position, node)| node.run_node(position)).collect()
    }

    /// What is read after the program: results, and what nodes without results write.
    fn read_later(&self) -> Vec<Span> {
        let of = |node: &Node| match node.results.is_empty() {
            true => vec![node.args[0].span()],
            false => {
                let later = node.results.iter().zip(&node.last_readers).filter(|(_, last)| **last == READ_LATER);
                later.map(|(result, _)| result.span()).collect()
            }
        };
        self.nodes.iter().flat_map(of).collect()
    }
}

/// Runs a program node by node, or in the groups of a GPU; what it leaves behind.
fn outcome(emulator: &std::path::Path, program: &Program, groups: &[usize]) -> Vec<Vec<u8>> {
    let device = Emulated::world(emulator, 1, program.end, false).remove(0);
    let mut random = Random::new(7);
    for value in program.values.iter().filter(|value| value.by.is_none()) {
        let ty = &value.buffer.ty;
        let bytes: Vec<u8> = (0..ty.elements()).flat_map(|_| random.element(ty.dtype, program.is_signed)).collect();
        let write = &mut |out: &mut [u8]| {
            out.copy_from_slice(&bytes);
            Ok(())
        };
        device.fill(value.buffer.span(), write).expect("the emulator takes bytes");
    }
    let (run, mut start) = (program.run(), 0);
    for n in groups {
        let kernel = device.prepare_group(&run[start..start + n]).expect("the device prepares its own groups");
        kernel.run().expect("the emulator takes launches");
        start += n;
    }
    device.finish().expect("the emulator finishes");
    let read = |span: Span| {
        let mut bytes = vec![0; span.bytes as usize];
        device.read(span, &mut bytes);
        bytes
    };
    program.read_later().into_iter().map(read).collect()
}

/// Compares both ways; the groups, or `None` where there is no emulator.
fn check(program: &Program) -> Option<Vec<usize>> {
    let emulator = emulated::program()?;
    let groups = fuse::groups(&program.run());
    let alone = vec![1; program.nodes.len()];
    let (fused, unfused) = (outcome(emulator, program, &groups), outcome(emulator, program, &alone));
    for (i, (f, u)) in fused.iter().zip(&unfused).enumerate() {
        let ops: Vec<&Op> = program.nodes.iter().map(|node| &node.op).collect();
        assert!(f == u, "part {i} of {:?} differs in groups {groups:?} of {ops:?}", program.shape);
    }
    Some(groups)
}

#[test]
fn random_programs_give_the_same_bits_in_groups() {
    let mut n_fused = 0;
    for seed in 1..=N_PROGRAMS {
        let Some(groups) = check(&Program::random(seed, 10)) else { return };
        n_fused += groups.iter().filter(|&&n| n > 1).sum::<usize>();
    }
    assert!(n_fused as u64 > 4 * N_PROGRAMS, "only {n_fused} nodes were launched with others");
}

/// Nodes of one op on tensors of these lengths, results over the operands that the op lists for them.
fn many(op: impl Into<Op>, n_tensors: usize, n_scalars: usize, lengths: &[u64]) -> Program {
    let (op, mut program) = (op.into(), Program::new(Random::new(1), vec![]));
    let scalars: Vec<usize> = (0..n_scalars).map(|_| program.place(TensorType::f32([]), None)).collect();
    for &n in lengths {
        let tensors = (0..n_tensors).map(|_| program.place(TensorType::f32([n]), None));
        let args: Vec<usize> = tensors.collect::<Vec<_>>().into_iter().chain(scalars.iter().copied()).collect();
        let args: Vec<BufferSpec> = args.iter().map(|&v| program.values[v].buffer.clone()).collect();
        let types = op.infer(&args.iter().map(|arg| &arg.ty).collect::<Vec<_>>()).expect("a legal node");
        let over = |r: usize| op.alias().reusable(r, types.len()).first().map(|&operand| args[operand].clone());
        let mut results = Vec::new();
        for (r, ty) in types.iter().enumerate() {
            results.push(over(r).unwrap_or_else(|| program.result(ty)));
        }
        let last_readers = vec![READ_LATER; results.len()];
        program.nodes.push(Node { op: op.clone(), args, results, last_readers });
    }
    program
}

/// More tensors than one launch takes, some longer than a chunk, some shorter than a vector.
fn lengths() -> Vec<u64> {
    (0..90).map(|i| [1, 7, 64, 4096, 4097, 300, 9001, 5][i % 8]).collect()
}

#[test]
fn optimizer_steps_on_many_tensors_give_the_same_bits() {
    let [beta1, beta2, eps, weight_decay] = [0.9, 0.99, 1e-8, 0.1].map(Scalar::new);
    let sgd = |momentum| Sgd { momentum: Scalar::new(momentum), weight_decay };
    let programs = [
        many(Adamw { beta1, beta2, eps, weight_decay }, 4, 2, &lengths()),
        many(Adamw { beta1, beta2, eps, weight_decay }, 4, 3, &[10, 20]),
        many(sgd(0.0), 2, 1, &lengths()),
        many(sgd(0.9), 3, 2, &lengths()),
    ];
    for program in programs {
        let Some(groups) = check(&program) else { return };
        assert_eq!(groups, [program.nodes.len()]);
    }
}

#[test]
fn sums_of_squares_of_many_tensors_give_the_same_bits() {
    let program = many(SumSquares, 1, 0, &lengths());
    let Some(groups) = check(&program) else { return };
    assert_eq!(groups, [program.nodes.len()]);
}

#[test]
fn accumulators_are_added_to_in_groups() {
    let mut program = Program::new(Random::new(3), vec![6, 50]);
    let [x, y, sum] = [0, 1, 2].map(|_| program.place(TensorType::f32([6, 50]), None));
    program.add(Binary::MUL.into(), &[x, y]);
    let args = [sum, program.values.len() - 1].map(|v| program.values[v].buffer.clone());
    for _ in 0..2 {
        let node = Node { op: Accumulate.into(), args: args.to_vec(), results: vec![], last_readers: vec![] };
        program.nodes.push(node);
    }
    program.nodes[0].last_readers = vec![Some(2)];
    let Some(groups) = check(&program) else { return };
    assert_eq!(groups, [3]);
}

/// A product [6, 50] of f32 or bf16 that one node reads, which adds it to what lies before it.
fn product(dtype: DType, spec: &str, next: impl Fn(&mut Program, BufferSpec) -> Node) -> Program {
    let mut program = Program::new(Random::new(5), vec![6, 50]);
    program.is_signed = true;
    let args = [vec![6, 70], vec![70, 50]].map(|shape| {
        let value = program.place(TensorType::new(dtype, shape), None);
        program.values[value].buffer.clone()
    });
    let value = program.result(&TensorType::new(dtype, [6, 50]));
    let op = Einsum::new(spec).expect("a contraction").into();
    let results = vec![value.clone()];
    program.nodes.push(Node { op, args: args.to_vec(), results, last_readers: vec![Some(1)] });
    let node = next(&mut program, value);
    program.nodes.push(node);
    program
}

#[test]
fn products_give_the_same_bits_with_what_is_added_to_them() {
    let biased = |program: &mut Program, value: BufferSpec| {
        let bias = program.place(TensorType::new(value.ty.dtype, [50]), None);
        let (bias, sum) = (program.values[bias].buffer.clone(), program.result(&value.ty));
        let (args, results, last_readers) = (vec![value, bias], vec![sum], vec![READ_LATER]);
        Node { op: Binary::ADD.into(), args, results, last_readers }
    };
    let accumulated = |program: &mut Program, value: BufferSpec| {
        let sum = program.place(value.ty.clone(), None);
        let args = vec![program.values[sum].buffer.clone(), value];
        Node { op: Accumulate.into(), args, results: Vec::new(), last_readers: Vec::new() }
    };
    let programs = [
        (product(DType::F32, "mk,kn->mn", biased), vec![2]),
        // A sum of bf16 is rounded before the bias is added.
        (product(DType::Bf16, "mk,kn->mn", biased), vec![1, 1]),
        (product(DType::F32, "mk,kn->mn", accumulated), vec![2]),
    ];
    for (program, expected) in programs {
        let Some(groups) = check(&program) else { return };
        assert_eq!(groups, expected);
    }
}
