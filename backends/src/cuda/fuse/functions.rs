//! What element-wise nodes compute of one element, as CUDA C++.

use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{BinaryKind, UnaryKind};
use galvatron_ir::types::DType;

use crate::cuda::kernels::elementwise::{binary_name, unary_name};

/// A function of elements: text in which `$0`, `$1`, … stand for the operands. Operands of bf16 are f32 in it, and what it
/// gives for a result of bf16 is an f32 that is still to be rounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function(String);

impl Function {
    /// The text with the names of operands in it.
    pub(super) fn applied(&self, args: &[String]) -> String {
        let mut parts = self.0.split('$');
        let mut text = parts.next().unwrap_or_default().to_string();
        for part in parts {
            let n_digits = part.bytes().take_while(u8::is_ascii_digit).count();
            let index: usize = part[..n_digits].parse().expect("invariant: a number follows each mark");
            text += &args[index];
            text += &part[n_digits..];
        }
        text
    }
}

/// The function of a node with operands and a result of these types; `None` if there is none, as where a node by itself has no
/// kernel either.
pub(super) fn function(op: &Op, args: &[DType], to: DType) -> Option<Function> {
    let is_float = |dtype: &DType| matches!(dtype, DType::F32 | DType::Bf16);
    let floats = args.iter().all(is_float);
    let text = match op {
        Op::Binary(op) if floats => float_binary(op.kind),
        Op::Binary(op) if args.iter().all(|&dtype| dtype == DType::I64) => integer_binary(op.kind)?,
        Op::AddN(_) if floats => (0..args.len()).map(|i| format!("${i}")).collect::<Vec<_>>().join(" + "),
        Op::Unary(op) if floats && op.kind == UnaryKind::IsNan => "(u8)($0 != $0)".into(),
        Op::Unary(op) if floats => format!("f_{}($0)", unary_name(op.kind)?),
        Op::UnaryGrad(op) if floats => format!("$1 * d_{}($0)", unary_name(op.kind)?),
        Op::Where(_) => "$0 ? $1 : $2".into(),
        Op::Cast(_) => cast(args[0], to).into(),
        Op::MseGrad(_) if floats => "2.0f * $2 * ($0 - $1)".into(),
        Op::Accumulate(_) if args.iter().all(|&dtype| dtype == DType::F32) => "$0 + $1".into(),
        // Bits are only moved: they may be no number.
        Op::Update(_) | Op::Broadcast(_) if to != DType::Bf16 => "$0".into(),
        _ => return None,
    };
    Some(Function(text))
}

fn float_binary(kind: BinaryKind) -> String {
    match kind {
        BinaryKind::Add => "$0 + $1".into(),
        BinaryKind::Sub => "$0 - $1".into(),
        BinaryKind::Mul => "$0 * $1".into(),
        BinaryKind::Div => "$0 / $1".into(),
        BinaryKind::Pow => "powf($0, $1)".into(),
        BinaryKind::Max => "larger_of($0, $1)".into(),
        BinaryKind::Min => "smaller_of($0, $1)".into(),
        BinaryKind::Mod => "modulo_of($0, $1)".into(),
        BinaryKind::Rem => "fmodf($0, $1)".into(),
    }
}

/// Integers wrap around.
fn integer_binary(kind: BinaryKind) -> Option<String> {
    (kind != BinaryKind::Pow).then(|| format!("fused_integer_{}($0, $1)", binary_name(kind)))
}

fn cast(from: DType, to: DType) -> &'static str {
    let is_float = |dtype| matches!(dtype, DType::F32 | DType::Bf16);
    match (from, to) {
        (_, DType::Bool) if from == DType::Bool => "$0",
        (_, DType::Bool) => "(u8)($0 != 0)",
        (_, DType::I64) if is_float(from) => "fused_truncated($0)",
        (_, DType::I64) => "(i64)$0",
        (_, DType::F32 | DType::Bf16) => "(float)$0",
    }
}
