//! Every op's samples have a kernel that agrees with the reference, with the same bits in place and with more threads.

use galvatron_ir::op::{Alias, Effects, Fill, Op, Sample};
use galvatron_ir::types::{DType, TensorType};

use crate::cpu::Cpu;
use crate::cpu::kernels::testing::random;
use crate::device::{BufferSpec, Device, Kernel, NodeSpec, Span};
use crate::reference::{Part, Tensor, eval};
use galvatron_ir::types::bf16;

/// The operands of a sample; the step of an optimizer is a whole number.
fn contents(sample: &Sample) -> Vec<Vec<u8>> {
    let args = sample.args.iter().zip(1..);
    let mut all: Vec<Vec<u8>> = args.map(|((ty, fill), seed)| content(ty, *fill, seed)).collect();
    if let Op::Adamw(_) = sample.op {
        all[5] = 3f32.to_ne_bytes().into();
    }
    all
}

/// Bytes of an operand.
fn content(ty: &TensorType, fill: Fill, seed: u64) -> Vec<u8> {
    let numbers = random(ty.elements() as usize, seed);
    let value = |v: f32| match fill {
        Fill::Uniform => v,
        Fill::Positive => 1.0 + v / 2.0,
        Fill::Index(n) => ((v + 1.0) / 2.0 * n as f32).floor().min(n as f32 - 1.0),
        Fill::Bool => f32::from(v > 0.0),
    };
    let numbers = numbers.into_iter().map(value);
    match ty.dtype {
        DType::F32 => numbers.flat_map(f32::to_ne_bytes).collect(),
        DType::I64 => numbers.flat_map(|v| (v as i64).to_ne_bytes()).collect(),
        DType::Bool => numbers.map(|v| v as u8).collect(),
        DType::Bf16 => numbers.flat_map(|v| bf16::round(v).to_ne_bytes()).collect(),
    }
}

fn buffer(ty: &TensorType, end: &mut u64) -> BufferSpec {
    let offset = *end;
    *end = (offset + ty.bytes()).next_multiple_of(64);
    BufferSpec::whole(ty, offset)
}

/// Runs a sample; result `r` is laid over operand `a` for the pairs (a, r).
fn run(sample: &Sample, over: &[(usize, usize)], n_threads: usize) -> Vec<Vec<u8>> {
    let types: Vec<&TensorType> = sample.args.iter().map(|(ty, _)| ty).collect();
    let (mut end, op) = (0, &sample.op);
    let args: Vec<BufferSpec> = types.iter().map(|ty| buffer(ty, &mut end)).collect();
    let inferred = op.infer(&types).expect("a legal sample");
    let mut results: Vec<BufferSpec> = inferred.iter().map(|ty| buffer(ty, &mut end)).collect();
    over.iter().for_each(|&(a, r)| results[r].offset = args[a].offset);
    let mesh = galvatron_ir::mesh::Mesh::new(1, Vec::new());
    let bytes = op.workspace(&types, &inferred.iter().collect::<Vec<_>>(), &mesh);
    let device = Cpu::new(end + bytes, n_threads).unwrap();
    let workspace = (bytes > 0).then_some(Span { offset: end, bytes });
    let spec = NodeSpec { op, args: &args, results: &results, workspace };
    let kernel = device.prepare(&spec).unwrap_or_else(|what| panic!("{op:?}: {what}"));
    let spans: Vec<Span> = results.iter().map(BufferSpec::span).collect();
    for (arg, bytes) in args.iter().zip(contents(sample)) {
        let write = &mut |out: &mut [u8]| {
            out.copy_from_slice(&bytes);
            Ok(())
        };
        device.fill(arg.span(), write).unwrap();
    }
    launch(&device, kernel).unwrap_or_else(|what| panic!("{op:?}: {what}"));
    let read = |at: Span| {
        let mut out = vec![0; at.bytes as usize];
        device.read(at, &mut out);
        out
    };
    spans.into_iter().map(read).collect()
}

fn launch(device: &Cpu, kernel: Box<dyn Kernel>) -> Result<(), String> {
    let mut outcome = Ok(());
    device.install(&mut || outcome = kernel.run());
    outcome
}

/// Bytes as the reference holds them.
fn tensor(ty: &TensorType, bytes: &[u8]) -> Tensor {
    let data = match ty.dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|c| f64::from(f32::from_ne_bytes(*c))).collect(),
        DType::I64 => bytes.as_chunks().0.iter().map(|c| i64::from_ne_bytes(*c) as f64).collect(),
        DType::Bool => bytes.iter().map(|&b| f64::from(b)).collect(),
        DType::Bf16 => bytes.as_chunks().0.iter().map(|c| f64::from(bf16::widen(u16::from_ne_bytes(*c)))).collect(),
    };
    Tensor::new(ty.shape.clone(), data)
}

#[test]
fn every_sample_agrees_with_the_reference() {
    Op::all_samples().iter().filter(|s| s.op.effects() == Effects::Pure).for_each(check);
}

/// A sample agrees with the reference; results of bf16 within half a unit of their last place.
fn check(sample: &Sample) {
    let types: Vec<&TensorType> = sample.args.iter().map(|(ty, _)| ty).collect();
    let results = sample.op.infer(&types).expect("a legal sample");
    let args: Vec<Tensor> = types.iter().zip(contents(sample)).map(|(ty, bytes)| tensor(ty, &bytes)).collect();
    let expected = eval(&sample.op, &args.iter().collect::<Vec<_>>(), &results, &Part::default()).unwrap();
    for ((ty, found), expected) in results.iter().zip(run(sample, &[], 1)).zip(&expected) {
        let half_unit = if ty.dtype == DType::Bf16 { 1.0 / 256.0 } else { 0.0 };
        for (i, (f, e)) in tensor(ty, &found).data.iter().zip(&expected.data).enumerate() {
            let close = (f - e).abs() <= 1e-5 * e.abs().max(1.0) + half_unit * e.abs();
            assert!(close || f == e, "{:?}: element {i} is {f}, not {e}", sample.op);
        }
    }
}

/// Floats of a sample become bf16, where the op takes that.
#[test]
fn every_op_takes_bf16() {
    let mut n_checked = 0;
    for mut sample in Op::all_samples().into_iter().filter(|s| s.op.effects() == Effects::Pure) {
        for (i, (ty, _)) in sample.args.iter_mut().enumerate().filter(|(_, (ty, _))| ty.dtype == DType::F32) {
            let keeps_f32 = match sample.op {
                Op::LayerNorm(_) => i > 0,
                Op::LayerNormGrad(_) => (1..4).contains(&i),
                Op::LayerNormParamGrad(_) => (1..3).contains(&i),
                Op::RmsNorm(_) => i > 0,
                Op::RmsNormGrad(_) => (1..3).contains(&i),
                Op::RmsNormParamGrad(_) => i == 1,
                Op::Rotary(_) => i > 0,
                Op::AttentionGrad(_) | Op::AttentionMaskGrad(_) => i == 4,
                Op::CrossEntropyGrad(_) => i > 1,
                Op::Dropout(_) => i > 0,
                Op::Sgd(_) | Op::Adamw(_) | Op::ClipScale(_) => true,
                _ => false,
            };
            ty.dtype = if keeps_f32 { DType::F32 } else { DType::Bf16 };
        }
        let types: Vec<&TensorType> = sample.args.iter().map(|(ty, _)| ty).collect();
        if types.iter().any(|ty| ty.dtype == DType::Bf16) {
            assert!(sample.op.infer(&types).is_ok(), "{:?} does not take {types:?}", sample.op);
            check(&sample);
            n_checked += 1;
        }
    }
    assert!(n_checked > 50, "{n_checked} samples");
}

/// The ways in which results may lie over operands.
fn overlays(sample: &Sample) -> Vec<Vec<(usize, usize)>> {
    let types: Vec<&TensorType> = sample.args.iter().map(|(ty, _)| ty).collect();
    let results = sample.op.infer(&types).expect("a legal sample");
    let fits = |&(a, r): &(usize, usize)| types[a].bytes() == results[r].bytes();
    match sample.op.alias() {
        Alias::None => Vec::new(),
        Alias::View(operand) => vec![vec![(operand, 0)]],
        Alias::MayReuse(listed) if results.len() == 1 => {
            listed.into_iter().map(|a| (a, 0)).filter(fits).map(|pair| vec![pair]).collect()
        }
        Alias::MayReuse(listed) => vec![listed.into_iter().zip(0..).filter(fits).collect()],
        Alias::MayReuseEach => vec![(0..results.len()).map(|i| (i, i)).filter(fits).collect()],
    }
}

#[test]
fn every_sample_gives_the_same_bits_in_place_and_in_parallel() {
    let pure = |sample: &Sample| sample.op.effects() == Effects::Pure;
    for sample in Op::all_samples().iter().filter(|s| pure(s)) {
        let expected = run(sample, &[], 1);
        assert_eq!(run(sample, &[], 3), expected, "{:?} with 3 threads", sample.op);
        for over in overlays(sample) {
            assert_eq!(run(sample, &over, 1), expected, "{:?} over {over:?}", sample.op);
            assert_eq!(run(sample, &over, 2), expected, "{:?} over {over:?} with 2 threads", sample.op);
        }
    }
}

/// f(x, x) written over x.
#[test]
fn both_operands_may_be_overwritten() {
    use galvatron_ir::op::compute::{Binary, UnaryGrad, UnaryKind};
    let ops: [Op; 3] = [Binary::MUL.into(), Binary::SUB.into(), UnaryGrad { kind: UnaryKind::Gelu }.into()];
    for op in ops {
        let ty = TensorType::f32([5000]);
        let mut end = 0;
        let x = buffer(&ty, &mut end);
        let apart = buffer(&ty, &mut end);
        let device = Cpu::new(end, 2).unwrap();
        let mut outcomes = Vec::new();
        for y in [&apart, &x] {
            let bytes = content(&ty, Fill::Uniform, 7);
            let write = &mut |out: &mut [u8]| {
                out.copy_from_slice(&bytes);
                Ok(())
            };
            device.fill(x.span(), write).unwrap();
            let args = [x.clone(), x.clone()];
            let spec = NodeSpec { op: &op, args: &args, results: std::slice::from_ref(y), workspace: None };
            let kernel = device.prepare(&spec).unwrap();
            launch(&device, kernel).unwrap();
            let mut out = vec![0; ty.bytes() as usize];
            device.read(y.span(), &mut out);
            outcomes.push(out);
        }
        assert_eq!(outcomes[0], outcomes[1], "{op:?}");
    }
}
