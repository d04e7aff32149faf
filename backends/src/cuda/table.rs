//! The launch table: every op of the IR has commands here, is done by the engine, or is listed as not supported.

use galvatron_ir::op::{Alias, Op};

use super::command::{Accesses, Program, Stream};
use super::gemm;
use super::kernels::{
    Cx, Lowered, attention, constants, cross_entropy, dropout, elementwise, embedding, layout, norm, optimizer, reduce,
    rotary,
};
use crate::device::{BufferSpec, Move, NodeSpec};

/// Mnemonics of the ops that no plan can run on a GPU, and why.
pub const UNSUPPORTED: [(&str, &str); 25] = [
    ("comm.reshard", "it is lowered to collectives before a plan is made"),
    ("comm.ring_attention", NOT_WRITTEN),
    ("comm.ring_attention_grad", NOT_WRITTEN),
    ("comm.routed_moe", NOT_WRITTEN),
    ("comm.routed_moe_grad", NOT_WRITTEN),
    ("pipe.send", NO_STAGES),
    ("pipe.recv", NO_STAGES),
    ("mem.to_host", NO_HOST),
    ("mem.to_device", NO_HOST),
    ("equal", NOT_WRITTEN),
    ("less", NOT_WRITTEN),
    ("less_equal", NOT_WRITTEN),
    ("reduce_max", NOT_WRITTEN),
    ("reduce_min", NOT_WRITTEN),
    ("reduce_prod", NOT_WRITTEN),
    ("cum_sum", NOT_WRITTEN),
    ("top_k", NOT_WRITTEN),
    ("unfold", NOT_WRITTEN),
    ("fold", NOT_WRITTEN),
    ("take_along", NOT_WRITTEN),
    ("put_along", NOT_WRITTEN),
    ("add_along", NOT_WRITTEN),
    ("log_softmax", NOT_WRITTEN),
    ("moe", NOT_WRITTEN),
    ("moe_grad", NOT_WRITTEN),
];

/// Why an op that CPUs have has no kernel here.
const NOT_WRITTEN: &str = "it runs on CPUs only";

/// Why there are no messages between stages.
const NO_STAGES: &str = "GPUs have no pipeline stages yet";

/// Why nothing lies in host memory.
const NO_HOST: &str = "GPUs have no arena in host memory yet";

/// Mnemonics of the ops that the engine does without a kernel: by exchanges, moves and writes of the host.
pub const BY_THE_ENGINE: [&str; 7] = [
    "comm.all_reduce",
    "comm.reduce_scatter",
    "comm.all_gather",
    "comm.all_to_all",
    "comm.shard",
    "load",
    "run_scalar",
];

/// The commands of a compute node.
///
/// # Errors
/// When no kernel fits the op, its element types, its widths or the overlap of its buffers.
pub fn lower(spec: &NodeSpec<'_>) -> Result<Program, String> {
    check_overlaps(spec)?;
    let commands = dispatch(spec.op, &Cx { spec })?;
    let (name, accesses) = (spec.op.mnemonic().into(), accesses(spec));
    Ok(Program { name, stream: Stream::Compute, commands, accesses })
}

/// The commands of a move inside the arena, which is a part of an exchange: computing goes on beside it.
///
/// # Errors
/// When the two sides overlap, or there are more chunks than a kernel permutes.
pub fn lower_move(spec: &Move) -> Result<Program, String> {
    let (reads, writes) = match spec {
        Move::Block { dtype, from, to, .. } => (from.span(*dtype), to.span(*dtype)),
        Move::Permute { at, .. } => (*at, *at),
        Move::Sum { parts, to } => (*parts, *to),
    };
    let accesses = Accesses { reads: vec![reads], writes: vec![writes] };
    Ok(Program { name: "move".into(), stream: Stream::Communication, commands: layout::moved(spec)?, accesses })
}

fn dispatch(op: &Op, cx: &Cx<'_>) -> Lowered {
    match op {
        Op::Einsum(op) => gemm::einsum(op, cx),
        Op::ReduceSum(op) => reduce::reduce_sum(op, cx),
        Op::SumSquares(_) => reduce::sum_squares(cx),
        Op::CountLabels(op) => reduce::count_labels(op, cx),
        Op::Mse(_) => reduce::mse(cx),
        Op::Binary(op) => elementwise::binary(op, cx),
        Op::AddN(_) => elementwise::add_n(cx),
        Op::Unary(op) => elementwise::unary(op, cx),
        Op::UnaryGrad(op) => elementwise::unary_grad(op, cx),
        Op::Where(_) => elementwise::select(cx),
        Op::Dropout(op) => dropout::dropout(op, cx),
        Op::MseGrad(_) => elementwise::mse_grad(cx),
        Op::ClipScale(op) => elementwise::clip_scale(op, cx),
        Op::Accumulate(_) => elementwise::accumulate(cx),
        Op::Update(_) => layout::copy_bytes(cx.arg(1), cx.arg(0)),
        Op::Reshape(_) => layout::copy_bytes(cx.arg(0), cx.result(0)),
        Op::Broadcast(op) => layout::broadcast(op, cx),
        Op::Transpose(op) => layout::transpose(op, cx),
        Op::Slice(op) => layout::slice(op, cx),
        Op::Concat(op) => layout::concat(op, cx),
        Op::Cast(_) => layout::cast(cx),
        Op::LayerNorm(op) => norm::layer_norm(op, cx),
        Op::LayerNormGrad(_) => norm::layer_norm_grad(cx),
        Op::LayerNormParamGrad(_) => norm::layer_norm_param_grad(cx),
        Op::RmsNorm(op) => norm::rms_norm(op, cx),
        Op::RmsNormGrad(_) => norm::rms_norm_grad(cx),
        Op::RmsNormParamGrad(_) => norm::rms_norm_param_grad(cx),
        Op::Softmax(_) => norm::softmax(cx),
        Op::SoftmaxGrad(_) => norm::softmax_grad(cx),
        Op::Attention(op) => attention::attention(op, cx),
        Op::AttentionGrad(op) => attention::attention_grad(op, cx),
        Op::AttentionMaskGrad(op) => attention::attention_mask_grad(op, cx),
        Op::Rotary(op) => rotary::rotary(op, cx),
        Op::Embedding(_) => embedding::embedding(cx),
        Op::EmbeddingGrad(_) => embedding::embedding_grad(cx),
        Op::CrossEntropy(op) => cross_entropy::cross_entropy(op, cx),
        Op::CrossEntropyGrad(op) => cross_entropy::cross_entropy_grad(op, cx),
        Op::Full(op) => constants::full(op, cx),
        Op::Iota(op) => constants::iota(op, cx),
        Op::CausalMask(op) => constants::causal_mask(op, cx),
        Op::Constant(op) => constants::constant(op, cx),
        Op::Sgd(op) => optimizer::sgd(op, cx),
        Op::Adamw(op) => optimizer::adamw(op, cx),
        _ => Err(no_kernel(op)),
    }
}

fn no_kernel(op: &Op) -> String {
    let listed = UNSUPPORTED.iter().find(|(mnemonic, _)| *mnemonic == op.mnemonic());
    match listed {
        Some((_, why)) => format!("GPUs have no kernel for this op: {why}"),
        None => "GPUs have no kernel for this op".into(),
    }
}

/// What a node reads and writes. Nodes without results write operand 0; `accumulate` reads it too.
pub(super) fn accesses(spec: &NodeSpec<'_>) -> Accesses {
    let spans = |buffers: &[BufferSpec]| buffers.iter().map(BufferSpec::span).collect::<Vec<_>>();
    match spec.op {
        Op::Accumulate(_) => Accesses { reads: spans(spec.args), writes: spans(&spec.args[..1]) },
        Op::Update(_) => Accesses { reads: spans(&spec.args[1..]), writes: spans(&spec.args[..1]) },
        _ => Accesses { reads: spans(spec.args), writes: spans(spec.results) },
    }
}

/// Results may lie over operands only where the op says so, and then exactly.
pub(super) fn check_overlaps(spec: &NodeSpec<'_>) -> Result<(), String> {
    for (r, result) in spec.results.iter().enumerate() {
        if spec.results[..r].iter().any(|other| other.span().overlaps(&result.span())) {
            return Err(format!("result {r} overlaps another result in memory"));
        }
        for (a, arg) in spec.args.iter().enumerate() {
            let is_same = arg.span() == result.span();
            if arg.span().overlaps(&result.span()) && !(is_same && may_reuse(spec, a, r)) {
                return Err(format!("result {r} overlaps operand {a} in memory"));
            }
        }
    }
    Ok(())
}

fn may_reuse(spec: &NodeSpec<'_>, arg: usize, result: usize) -> bool {
    match spec.op.alias() {
        Alias::None => false,
        Alias::View(operand) => operand == arg,
        alias => alias
            .reusable(result, spec.results.len())
            .iter()
            .any(|&listed| spec.args[listed].span() == spec.args[arg].span()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::command::Command;
    use crate::cuda::kernels::Family;
    use galvatron_ir::op::mem::{Accumulate, Update};
    use galvatron_ir::types::TensorType;

    fn buffer(ty: &TensorType, end: &mut u64) -> BufferSpec {
        let offset = *end;
        *end = (offset + ty.bytes()).next_multiple_of(64);
        BufferSpec::whole(ty, offset)
    }

    fn lowered(op: &Op, types: &[&TensorType]) -> Program {
        let mut end = 0;
        let args: Vec<BufferSpec> = types.iter().map(|ty| buffer(ty, &mut end)).collect();
        let results = op.infer(types).expect("a legal sample");
        let results: Vec<BufferSpec> = results.iter().map(|ty| buffer(ty, &mut end)).collect();
        let spec = NodeSpec { op, args: &args, results: &results, workspace: None };
        lower(&spec).unwrap_or_else(|what| panic!("{op:?}: {what}"))
    }

    /// All programs that the samples of the ops give.
    fn programs() -> Vec<Program> {
        let t = TensorType::f32([4]);
        let samples = Op::all_samples();
        let supported = samples.iter().filter(|s| UNSUPPORTED.iter().all(|(m, _)| *m != s.op.mnemonic()));
        let of_samples = supported.map(|s| lowered(&s.op, &s.args.iter().map(|(ty, _)| ty).collect::<Vec<_>>()));
        let writes = [Op::from(Accumulate), Op::from(Update)];
        of_samples.chain(writes.iter().map(|op| lowered(op, &[&t, &t]))).collect()
    }

    #[test]
    fn every_op_has_commands_or_is_listed() {
        let known: Vec<String> = programs().into_iter().map(|p| p.name).collect();
        for mnemonic in Op::all_mnemonics() {
            let listed = UNSUPPORTED.iter().any(|(m, _)| *m == mnemonic) || BY_THE_ENGINE.contains(&mnemonic);
            let lowered = known.iter().any(|k| k == mnemonic);
            assert!(listed != lowered, "`{mnemonic}`: listed {listed}, lowered {lowered}");
        }
    }

    #[test]
    fn every_kernel_that_is_launched_is_in_its_source() {
        for command in programs().into_iter().flat_map(|p| p.commands) {
            let Command::Launch(launch) = command else { continue };
            let source = launch.unit.source();
            let stem = launch.entry.split('_').next().expect("invariant: names are not empty");
            assert!(source.contains(stem), "{:?} in {:?}", launch.entry, launch.unit);
        }
        assert!(Family::ALL.iter().all(|family| family.source().contains("KERNEL")));
    }
}
