//! The ops on a device against the reference: their samples, and cases that cross the tiles of the CUDA kernels.

use galvatron_backends::cuda::table::UNSUPPORTED;
use galvatron_backends::device::{BufferSpec, Device, NodeSpec};
use galvatron_backends::reference::{Part, Tensor, eval};
use galvatron_ir::op::compute::{self, Einsum};
use galvatron_ir::op::{Alias, Effects, Fill, Op, Sample};
use galvatron_ir::types::{DType, Scalar, TensorType, bf16};

/// Numbers in [-1, 1), the same for the same seed (Marsaglia's xorshift).
fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Bytes of an operand.
fn content(ty: &TensorType, fill: Fill, seed: u64) -> Vec<u8> {
    let value = |v: f32| match fill {
        Fill::Uniform => v,
        Fill::Positive => 1.0 + v / 2.0,
        Fill::Index(n) => ((v + 1.0) / 2.0 * n as f32).floor().min(n as f32 - 1.0),
        Fill::Bool => f32::from(v > 0.0),
    };
    let numbers = random(ty.elements() as usize, seed).into_iter().map(value);
    match ty.dtype {
        DType::F32 => numbers.flat_map(f32::to_ne_bytes).collect(),
        DType::I64 => numbers.flat_map(|v| (v as i64).to_ne_bytes()).collect(),
        DType::Bool => numbers.map(|v| v as u8).collect(),
        DType::Bf16 => numbers.flat_map(|v| bf16::round(v).to_ne_bytes()).collect(),
    }
}

fn contents(sample: &Sample) -> Vec<Vec<u8>> {
    let args = sample.args.iter().zip(1..);
    let mut all: Vec<Vec<u8>> = args.map(|((ty, fill), seed)| content(ty, *fill, seed)).collect();
    if let Op::Adamw(_) = sample.op {
        all[5] = 3f32.to_ne_bytes().into();
    }
    all
}

fn tensor(ty: &TensorType, bytes: &[u8]) -> Tensor {
    let data = match ty.dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|c| f64::from(f32::from_ne_bytes(*c))).collect(),
        DType::I64 => bytes.as_chunks().0.iter().map(|c| i64::from_ne_bytes(*c) as f64).collect(),
        DType::Bool => bytes.iter().map(|&b| f64::from(b)).collect(),
        DType::Bf16 => bytes.as_chunks().0.iter().map(|c| f64::from(bf16::widen(u16::from_ne_bytes(*c)))).collect(),
    };
    Tensor::new(ty.shape.clone(), data)
}

fn buffer(ty: &TensorType, end: &mut u64) -> BufferSpec {
    let offset = *end;
    *end = (offset + ty.bytes()).next_multiple_of(64);
    BufferSpec::whole(ty, offset)
}

/// Makes a device with an arena of that many bytes; `None` where there is none.
pub type Make = fn(u64) -> Option<Box<dyn Device>>;

/// The results of a sample; result `r` is laid over operand `a` for the pairs (a, r). `None` where there is no device.
///
/// # Errors
/// What the device says at the end.
fn try_run(
    make: Make,
    sample: &Sample,
    args: &[Vec<u8>],
    over: &[(usize, usize)],
) -> Option<Result<Vec<Vec<u8>>, String>> {
    let types: Vec<&TensorType> = sample.args.iter().map(|(ty, _)| ty).collect();
    let mut end = 0;
    let buffers: Vec<BufferSpec> = types.iter().map(|ty| buffer(ty, &mut end)).collect();
    let inferred = sample.op.infer(&types).expect("a legal sample");
    let mut results: Vec<BufferSpec> = inferred.iter().map(|ty| buffer(ty, &mut end)).collect();
    over.iter().for_each(|&(a, r)| results[r].offset = buffers[a].offset);
    let device = make(end)?;
    let spec = NodeSpec { op: &sample.op, args: &buffers, results: &results, workspace: None };
    let kernel = device.prepare(&spec).unwrap_or_else(|what| panic!("{:?}: {what}", sample.op));
    for (buffer, bytes) in buffers.iter().zip(args) {
        let write = &mut |out: &mut [u8]| {
            out.copy_from_slice(bytes);
            Ok(())
        };
        device.fill(buffer.span(), write).unwrap();
    }
    kernel.run().unwrap();
    let read = |r: &BufferSpec| {
        let mut bytes = vec![0; r.ty.bytes() as usize];
        device.read(r.span(), &mut bytes);
        bytes
    };
    let found = results.iter().map(read).collect();
    Some(device.finish().map(|()| found))
}

fn run(make: Make, sample: &Sample, args: &[Vec<u8>], over: &[(usize, usize)]) -> Option<Vec<Vec<u8>>> {
    try_run(make, sample, args, over).map(|found| found.unwrap_or_else(|what| panic!("{:?}: {what}", sample.op)))
}

/// The sample with bf16 for f32, where plans in bf16 have that; `None` where they have none.
fn in_bf16(sample: &Sample) -> Option<Sample> {
    let keeps_f32 = |i: usize| match sample.op {
        Op::LayerNorm(_) | Op::RmsNorm(_) | Op::Rotary(_) => i > 0,
        Op::RmsNormGrad(_) => (1..3).contains(&i),
        Op::RmsNormParamGrad(_) => i == 1,
        Op::LayerNormGrad(_) => (1..4).contains(&i),
        Op::LayerNormParamGrad(_) => (1..3).contains(&i),
        Op::AttentionGrad(_) | Op::AttentionMaskGrad(_) => i == 4,
        Op::CrossEntropyGrad(_) => i > 1,
        Op::Dropout(_) => i > 0,
        Op::Sgd(_) | Op::Adamw(_) | Op::ClipScale(_) => true,
        _ => false,
    };
    let mut narrow = sample.clone();
    for (i, (ty, _)) in narrow.args.iter_mut().enumerate() {
        if ty.dtype == DType::F32 && !keeps_f32(i) {
            ty.dtype = DType::Bf16;
        }
    }
    let is_narrow = narrow.args.iter().any(|(ty, _)| ty.dtype == DType::Bf16);
    is_narrow.then_some(narrow)
}

/// The samples of all ops without effects that GPUs have kernels for, then those of them that there are in bf16.
fn pure_samples() -> Vec<Sample> {
    let has_kernel = |op: &Op| UNSUPPORTED.iter().all(|(mnemonic, _)| *mnemonic != op.mnemonic());
    let samples = Op::all_samples().into_iter();
    let all: Vec<Sample> = samples.filter(|s| s.op.effects() == Effects::Pure && has_kernel(&s.op)).collect();
    let narrow: Vec<Sample> = all.iter().filter_map(in_bf16).collect();
    assert!(narrow.len() > 50, "{} samples in bf16", narrow.len());
    all.into_iter().chain(narrow).collect()
}

/// Half a unit in the last place of a number, relative to it, where it was rounded to bf16.
fn rounding(dtype: DType) -> f64 {
    if dtype == DType::Bf16 { 1.0 / 256.0 } else { 0.0 }
}

/// What kernels of attention in bf16 lose beyond the rounding of results: weights and slopes are rounded to bf16 for products.
fn lost_inside(op: &Op, dtype: DType) -> f64 {
    let is_attention = matches!(op, Op::Attention(_) | Op::AttentionGrad(_));
    if is_attention && dtype == DType::Bf16 { 1.0 / 128.0 } else { 0.0 }
}

/// Compares a sample with the reference; false where there is no device.
fn agrees(make: Make, sample: &Sample, args: &[Vec<u8>], tolerance: f64) -> bool {
    let types: Vec<&TensorType> = sample.args.iter().map(|(ty, _)| ty).collect();
    let results = sample.op.infer(&types).expect("a legal sample");
    let tensors: Vec<Tensor> = types.iter().zip(args).map(|(ty, bytes)| tensor(ty, bytes)).collect();
    let expected = eval(&sample.op, &tensors.iter().collect::<Vec<_>>(), &results, &Part::default()).unwrap();
    let Some(found) = run(make, sample, args, &[]) else { return false };
    for (r, ((ty, found), expected)) in results.iter().zip(found).zip(&expected).enumerate() {
        for (i, (f, e)) in tensor(ty, &found).data.iter().zip(&expected.data).enumerate() {
            let lost = tolerance + lost_inside(&sample.op, ty.dtype);
            let close = (f - e).abs() <= lost * e.abs().max(1.0) + rounding(ty.dtype) * e.abs();
            assert!(close || f == e, "{:?} {types:?}: element {i} of result {r} is {f}, not {e}", sample.op);
        }
    }
    true
}

/// Every sample agrees with the reference.
pub fn every_sample_agrees_with_the_reference(make: Make) {
    for sample in &pure_samples() {
        if !agrees(make, sample, &contents(sample), 1e-5) {
            return;
        }
    }
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

/// Every sample gives the same bits in place.
pub fn every_sample_gives_the_same_bits_in_place(make: Make) {
    for sample in &pure_samples() {
        let args = contents(sample);
        let Some(expected) = run(make, sample, &args, &[]) else { return };
        for over in overlays(sample) {
            assert_eq!(run(make, sample, &args, &over).as_ref(), Some(&expected), "{:?} over {over:?}", sample.op);
        }
    }
}

fn uniform(op: impl Into<Op>, shapes: &[&[u64]]) -> Sample {
    Sample::uniform(op.into(), shapes)
}

fn einsum(spec: &str, shapes: &[&[u64]]) -> Sample {
    uniform(Einsum::new(spec).unwrap(), shapes)
}

/// Compares samples that are too large for the other tests with the reference, and the same in bf16.
fn check(make: Make, samples: &[Sample]) {
    let narrow: Vec<Sample> = samples.iter().filter_map(in_bf16).collect();
    for sample in samples.iter().chain(&narrow) {
        if !agrees(make, sample, &contents(sample), 2e-5) {
            return;
        }
    }
}

/// Contractions are products whatever their labels.
pub fn contractions_are_products_whatever_their_labels(make: Make) {
    check(
        make,
        &[
            einsum("bhqd,bhkd->bhqk", &[&[2, 3, 5, 4], &[2, 3, 7, 4]]),
            einsum("bqhd,bkhd->bhqk", &[&[2, 5, 3, 4], &[2, 7, 3, 4]]),
            einsum("bhqk,bkhd->bqhd", &[&[2, 3, 5, 7], &[2, 7, 3, 4]]),
            einsum("bsk,bshd->khd", &[&[2, 3, 4], &[2, 3, 5, 2]]),
            einsum("mk,nk->nm", &[&[4, 6], &[5, 6]]),
            einsum("mk,kn->nm", &[&[4, 6], &[6, 5]]),
            einsum("km,kn->mn", &[&[6, 4], &[6, 5]]),
            einsum("mkb,bkn->nbm", &[&[4, 6, 3], &[3, 6, 5]]),
            einsum("amb,abn->bmna", &[&[2, 4, 3], &[2, 3, 5]]),
            einsum("akb,bka->ab", &[&[2, 4, 3], &[3, 4, 2]]),
            einsum("m,n->mn", &[&[4], &[5]]),
            einsum("k,k->", &[&[9], &[9]]),
            einsum("mk,k->m", &[&[4, 6], &[6]]),
            einsum("k,kn->n", &[&[6], &[6, 5]]),
            einsum("mk,kn->mn", &[&[1, 6], &[6, 1]]),
        ],
    );
}

/// Products with one matrix whose rows start anywhere: the result, the left operand by rows and by columns. In bf16 a term of
/// a sum that is left over of whole units is rounded by itself; it is at most 1 here.
pub fn rows_that_start_anywhere_are_multiplied(make: Make) {
    let samples = [
        einsum("mk,nk->mn", &[&[128, 256], &[129, 256]]),
        einsum("mk,kn->mn", &[&[128, 257], &[257, 128]]),
        einsum("km,kn->mn", &[&[256, 129], &[256, 128]]),
    ];
    for sample in samples {
        let narrow = in_bf16(&sample).expect("it has floats");
        for (sample, tolerance) in [(sample, 2e-5), (narrow, rounding(DType::Bf16))] {
            if !agrees(make, &sample, &contents(&sample), tolerance) {
                return;
            }
        }
    }
}

/// Attention crosses tiles and takes wide heads.
pub fn attention_crosses_tiles_and_takes_wide_heads(make: Make) {
    let op = |causal| compute::Attention { scale: Scalar::new(0.3), causal };
    let mask: &[u64] = &[1, 2, 40, 70];
    check(
        make,
        &[
            uniform(op(true), &[&[2, 40, 2, 16], &[2, 40, 2, 16], &[2, 40, 2, 16]]),
            uniform(op(true), &[&[1, 40, 4, 8], &[1, 70, 2, 8], &[1, 70, 2, 24]]),
            uniform(op(true), &[&[1, 70, 2, 8], &[1, 40, 1, 8], &[1, 40, 1, 8]]),
            uniform(op(false), &[&[1, 40, 2, 33], &[1, 70, 2, 33], &[1, 70, 2, 64], mask]),
            uniform(op(false), &[&[1, 33, 1, 100], &[1, 35, 1, 100], &[1, 35, 1, 128]]),
            uniform(op(true), &[&[1, 35, 1, 256], &[1, 35, 1, 256], &[1, 35, 1, 200]]),
            uniform(op(true), &[&[1, 150, 2, 64], &[1, 150, 1, 64], &[1, 150, 1, 64]]),
            uniform(op(false), &[&[1, 130, 1, 80], &[1, 17, 1, 80], &[1, 17, 1, 80]]),
            uniform(op(true), &[&[1, 65, 1, 128], &[1, 129, 1, 128], &[1, 129, 1, 128]]),
        ],
    );
}

/// Whether later keys are hidden, the shapes of q, k and v, and that of the mask.
type Case = (bool, [&'static [u64]; 3], Option<&'static [u64]>);

/// The gradient reads the forward's own results, as in a training step.
pub fn the_gradient_of_attention_crosses_tiles(make: Make) {
    let shapes: [Case; 9] = [
        (true, [&[2, 40, 4, 16], &[2, 40, 2, 16], &[2, 40, 2, 24]], None),
        (true, [&[1, 40, 2, 8], &[1, 70, 2, 8], &[1, 70, 2, 8]], None),
        (false, [&[1, 70, 2, 100], &[1, 40, 1, 100], &[1, 40, 1, 100]], Some(&[1, 2, 70, 40])),
        (false, [&[4, 35, 4, 8], &[4, 40, 2, 8], &[4, 40, 2, 8]], Some(&[2, 1, 35, 40])),
        (true, [&[1, 35, 1, 256], &[1, 35, 1, 256], &[1, 35, 1, 256]], None),
        (true, [&[1, 150, 2, 64], &[1, 150, 1, 64], &[1, 150, 1, 64]], None),
        (false, [&[1, 130, 2, 32], &[1, 140, 2, 32], &[1, 140, 2, 32]], Some(&[1, 1, 130, 140])),
        (false, [&[1, 20, 1, 96], &[1, 130, 1, 96], &[1, 130, 1, 96]], None),
        (true, [&[1, 65, 1, 128], &[1, 129, 1, 128], &[1, 129, 1, 128]], None),
    ];
    for ((causal, qkv, mask), dtype) in shapes.into_iter().flat_map(|case| [(case, DType::F32), (case, DType::Bf16)]) {
        let all: Vec<&[u64]> = qkv.into_iter().chain(mask).collect();
        let forward = uniform(compute::Attention { scale: Scalar::new(0.3), causal }, &all);
        let typed =
            |sample: Sample| if dtype == DType::Bf16 { in_bf16(&sample).expect("it has floats") } else { sample };
        let forward = typed(forward);
        let args = contents(&forward);
        let Some(results) = run(make, &forward, &args, &[]) else { return };
        let o = [qkv[0][0], qkv[0][1], qkv[0][2], qkv[2][3]];
        let lse = [qkv[0][0], qkv[0][2], qkv[0][1]];
        let all: Vec<&[u64]> = qkv.into_iter().chain([&o[..], &lse, &o]).chain(mask).collect();
        let backward = typed(uniform(compute::AttentionGrad { scale: Scalar::new(0.3), causal }, &all));
        let grad = content(&TensorType::new(dtype, o), Fill::Uniform, 77);
        let mut saved = args[..3].to_vec();
        saved.extend([results[0].clone(), results[1].clone(), grad]);
        saved.extend(args.get(3).cloned());
        agrees(make, &backward, &saved, 2e-5);
        if mask.is_some() {
            let of_mask = compute::AttentionMaskGrad { scale: Scalar::new(0.3), causal };
            agrees(make, &typed(uniform(of_mask, &all)), &saved, 2e-5);
        }
    }
}

/// Long rows and many rows are summed.
pub fn long_rows_and_many_rows_are_summed(make: Make) {
    let layer_norm = compute::LayerNorm { eps: Scalar::new(1e-5) };
    let rms_norm = compute::RmsNorm { eps: Scalar::new(1e-6) };
    let sum = |dims: &[usize]| compute::ReduceSum { dims: dims.to_vec() };
    check(
        make,
        &[
            uniform(layer_norm, &[&[5, 300], &[300], &[300]]),
            uniform(layer_norm, &[&[33, 40], &[40], &[40]]),
            uniform(layer_norm, &[&[3, 2304], &[2304], &[2304]]),
            uniform(compute::LayerNormGrad, &[&[3, 2304], &[2304], &[3], &[3], &[3, 2304]]),
            uniform(compute::LayerNormGrad, &[&[5, 300], &[300], &[5], &[5], &[5, 300]]),
            uniform(compute::LayerNormParamGrad, &[&[700, 70], &[700], &[700], &[700, 70]]),
            uniform(rms_norm, &[&[5, 300], &[300]]),
            uniform(rms_norm, &[&[3, 2304], &[2304]]),
            uniform(compute::RmsNormGrad, &[&[3, 2304], &[2304], &[3], &[3, 2304]]),
            uniform(compute::RmsNormGrad, &[&[5, 300], &[300], &[5], &[5, 300]]),
            uniform(compute::RmsNormParamGrad, &[&[700, 70], &[700], &[700, 70]]),
            uniform(sum(&[0]), &[&[700, 70]]),
            uniform(sum(&[0, 1]), &[&[7, 100, 304]]),
            uniform(sum(&[0]), &[&[70, 304]]),
            uniform(sum(&[0, 2]), &[&[70, 40, 9]]),
            uniform(sum(&[1]), &[&[3, 500, 33]]),
            uniform(sum(&[0, 1]), &[&[70, 90]]),
            uniform(sum(&[]), &[&[70, 9]]),
            uniform(compute::SumSquares, &[&[70, 900]]),
            uniform(compute::Softmax, &[&[3, 700]]),
            uniform(compute::SoftmaxGrad, &[&[3, 700], &[3, 700]]),
            uniform(compute::Mse, &[&[70, 90], &[70, 90]]),
        ],
    );
}

/// Many classes and many indices are taken.
pub fn many_classes_and_many_indices_are_taken(make: Make) {
    let labels = |shape: &[u64], n| (TensorType::i64(shape.to_vec()), Fill::Index(n));
    let float = |shape: &[u64]| (TensorType::f32(shape.to_vec()), Fill::Uniform);
    let (ce, ids) = (compute::CrossEntropy { ignore: 3 }, labels(&[40, 70], 50));
    check(
        make,
        &[
            Sample::new(ce, vec![float(&[9, 1000]), labels(&[9], 1000)]),
            Sample::new(ce, vec![float(&[9, 1001]), labels(&[9], 1001)]),
            Sample::new(ce, vec![float(&[9, 3]), labels(&[9], 3)]),
            Sample::new(
                compute::CrossEntropyGrad { ignore: 3 },
                vec![float(&[9, 1001]), labels(&[9], 1001), float(&[9]), float(&[])],
            ),
            Sample::new(compute::CountLabels { ignore: 3 }, vec![labels(&[90, 100], 8)]),
            Sample::new(compute::Embedding, vec![float(&[50, 20]), ids.clone()]),
            Sample::new(compute::Embedding, vec![float(&[50, 3]), ids.clone()]),
            Sample::new(compute::EmbeddingGrad { shape: vec![50, 20] }, vec![ids.clone(), float(&[40, 70, 20])]),
            Sample::new(compute::EmbeddingGrad { shape: vec![900, 3] }, vec![labels(&[5000], 800), float(&[5000, 3])]),
        ],
    );
}

/// Elements are moved in tiles runs and one by one.
pub fn elements_are_moved_in_tiles_runs_and_one_by_one(make: Make) {
    let transpose = |perm: &[usize]| compute::Transpose { perm: perm.to_vec() };
    check(
        make,
        &[
            uniform(transpose(&[1, 0]), &[&[70, 45]]),
            uniform(transpose(&[0, 2, 1]), &[&[3, 33, 40]]),
            uniform(transpose(&[0, 2, 1, 3]), &[&[2, 5, 7, 16]]),
            uniform(transpose(&[3, 0, 2, 1]), &[&[2, 5, 7, 3]]),
            uniform(compute::Slice { dim: 1, start: 4, len: 8 }, &[&[6, 20, 3]]),
            uniform(compute::Slice { dim: 1, start: 3, len: 5 }, &[&[6, 20]]),
            uniform(compute::Concat { dim: 1 }, &[&[3, 4, 4], &[3, 8, 4], &[3, 2, 4]]),
            uniform(compute::Concat { dim: 0 }, &[&[3, 5], &[2, 5]]),
            uniform(compute::Binary::ADD, &[&[6, 5, 7], &[7]]),
            uniform(compute::Binary::MUL, &[&[6, 1, 7], &[5, 1]]),
            uniform(compute::Binary::ADD, &[&[6, 5, 16], &[16]]),
            uniform(compute::Binary::MUL, &[&[6, 5, 16], &[5, 1]]),
            uniform(compute::AddN, &[&[9u64, 16][..]; 17]),
            uniform(compute::Slice { dim: 1, start: 3, len: 3001 }, &[&[6, 3010]]),
            uniform(compute::AddN, &[&[3u64, 7][..]; 17]),
        ],
    );
}

/// An index outside of its table is a fault.
pub fn an_index_outside_of_its_table_is_a_fault(make: Make) {
    let args = vec![(TensorType::f32([8, 4]), Fill::Uniform), (TensorType::i64([3]), Fill::Index(8))];
    let sample = Sample::new(compute::Embedding, args);
    let mut bytes = contents(&sample);
    bytes[1][..8].copy_from_slice(&8i64.to_ne_bytes());
    if let Some(found) = try_run(make, &sample, &bytes, &[]) {
        assert!(found.is_err(), "{found:?}");
    }
}

/// The tests of this file on the devices that a function makes.
macro_rules! conformance_tests {
    ($make:path) => {
        conformance_tests!(@each $make, every_sample_agrees_with_the_reference,
            every_sample_gives_the_same_bits_in_place,
            contractions_are_products_whatever_their_labels,
            rows_that_start_anywhere_are_multiplied,
            attention_crosses_tiles_and_takes_wide_heads,
            the_gradient_of_attention_crosses_tiles,
            long_rows_and_many_rows_are_summed,
            many_classes_and_many_indices_are_taken,
            elements_are_moved_in_tiles_runs_and_one_by_one,
            an_index_outside_of_its_table_is_a_fault);
    };
    (@each $make:path, $($test:ident),*) => {
        $(#[test]
        fn $test() {
            conformance::$test($make);
        })*
    };
}
