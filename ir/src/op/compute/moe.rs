//! `moe`, a mixture of gated experts (Shazeer et al., 2017), and its gradient, each one op: which tokens an expert sees is
//! never a value of the program.
//!
//! Every token reaches all of its experts, however unevenly they are chosen (dropless; Gale et al., 2022, MegaBlocks).

use super::{Unary, UnaryKind};
use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, Mesh, RuleBuilder, ShardingRule};
use crate::op::{
    AttrReader, AttrValue, Attrs, Effects, Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic,
};
use crate::types::{DType, TensorType};

/// y [.., h] = moe(x [.., h], w [.., k], i [.., k], gate [e, f, h], up [e, f, h], down [e, h, f]): the sum over k of
/// w · down_i (a(gate_i x) · up_i x), where a is the activation and i (i64) says which k experts see a token.
///
/// With the experts sharded a rank contributes those that it holds, with f sharded a part of each: partial sums.
/// Mixtral (Jiang et al., 2024) has silu, k = 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moe {
    /// The function a.
    pub activation: UnaryKind,
    /// The number e of experts on all ranks together.
    pub experts: u64,
}

/// (dx, dw, dgate, dup, ddown) = moe_grad(x, w, i, gate, up, down, dy). The insides of the experts are computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MoeGrad {
    /// The function a.
    pub activation: UnaryKind,
    /// The number e of experts on all ranks together.
    pub experts: u64,
}

/// The rows of tokens that an expert computes at once, so that scratch memory does not depend on what is chosen.
pub const ROWS_AT_ONCE: u64 = 128;

fn check(args: &[&TensorType], experts: u64) -> Result<(), String> {
    let [x, w, i, gate, up, down] = [args[0], args[1], args[2], args[3], args[4], args[5]];
    let fits = x.rank() > 0
        && w.rank() == x.rank()
        && w.shape[..w.rank() - 1] == x.shape[..x.rank() - 1]
        && i.shape == w.shape
        && i.dtype == DType::I64
        && gate.rank() == 3
        && up == gate
        && gate.shape[2] == x.shape[x.rank() - 1]
        && down.shape == [gate.shape[0], gate.shape[2], gate.shape[1]];
    let is_float = x.dtype.is_float() && [w, gate, down].iter().all(|t| t.dtype == x.dtype);
    if !fits || !is_float {
        return Err(format!("experts `{gate}`, `{up}`, `{down}` with weights `{w}`, `{i}` do not fit tokens `{x}`"));
    }
    if gate.shape[0] == experts { Ok(()) } else { Err(format!("`{gate}` are not {experts} experts")) }
}

/// Factors of the tokens (one for each of their dimensions), the choices, the widths outside and inside, and the experts.
struct Factors {
    rows: Vec<usize>,
    k: usize,
    h: usize,
    e: usize,
    f: usize,
}

impl Factors {
    fn new(b: &mut RuleBuilder, args: &[&TensorType]) -> Factors {
        let (x, w, gate) = (args[0], args[1], args[3]);
        let last = x.rank() - 1;
        let rows = (0..last).map(|i| b.factor(format!("d{i}"), x.shape[i])).collect();
        let k = b.factor_of("k", w.shape[last], FactorKind::Whole);
        let h = b.factor_of("h", x.shape[last], FactorKind::Whole);
        let e = b.factor_of("e", gate.shape[0], FactorKind::Offset);
        Factors { rows, k, h, e, f: b.factor("f", gate.shape[1]) }
    }

    fn row(&self, last: usize) -> Vec<usize> {
        self.rows.iter().copied().chain([last]).collect()
    }

    /// The operands of the forward op.
    fn operands(&self, b: RuleBuilder) -> RuleBuilder {
        let (inner, outer) = ([self.e, self.f, self.h], [self.e, self.h, self.f]);
        let b = b.operand(&self.row(self.h)).operand(&self.row(self.k)).operand(&self.row(self.k));
        b.operand(&inner).operand(&inner).operand(&outer)
    }
}

/// Rows of tokens with their choices, [rows, choices, h, f, local experts], from local types.
fn extents(args: &[&TensorType]) -> [u64; 5] {
    let (x, w, gate) = (args[0], args[1], args[3]);
    let (h, k) = (gate.shape[2], w.shape[w.rank() - 1]);
    [x.elements() / h.max(1), k, h, gate.shape[1], gate.shape[0]]
}

/// Work of so many products [1, h] x [h, f] for each choice of a token, if all experts are chosen equally often.
fn work(args: &[&TensorType], results: &[&TensorType], experts: u64, products: u64) -> Work {
    let [rows, k, h, f, local] = extents(args);
    let calls = (rows * k * local).div_ceil(experts.max(1));
    let flops = 4 * products * calls * (f + h);
    Work { matmul_flops: 2 * products * calls * h * f, flops, bytes: traffic(args, results) }
}

/// Scratch: the choices in order of their experts, and for the rows that are computed at once so many rows of each width.
fn scratch_bytes(args: &[&TensorType], of_h: u64, of_f: u64) -> u64 {
    let [rows, k, h, f, experts] = extents(args);
    let order = (4 * (rows * k + experts + 1)).next_multiple_of(64);
    order + 4 * ROWS_AT_ONCE.min(rows * k) * (of_h * h + of_f * f)
}

fn attrs_of(activation: UnaryKind, experts: u64) -> Attrs {
    let name = Unary { kind: activation }.mnemonic().to_string();
    vec![("activation", AttrValue::Word(name)), ("experts", AttrValue::Int(experts as i64))]
}

fn parse_attrs(attrs: &mut AttrReader) -> Result<(UnaryKind, u64), String> {
    let name = attrs.word("activation")?;
    let unary = Unary::parse(&name, attrs)?;
    Ok((unary.kind, attrs.uint("experts")?))
}

fn sample_args(rows: &[u64], k: u64, [e, f, h]: [u64; 3]) -> Vec<(TensorType, Fill)> {
    let row = |last: u64| rows.iter().copied().chain([last]).collect::<Vec<u64>>();
    let uniform = |shape: Vec<u64>| (TensorType::f32(shape), Fill::Uniform);
    vec![
        uniform(row(h)),
        uniform(row(k)),
        (TensorType::i64(row(k)), Fill::Index(e as i64)),
        uniform(vec![e, f, h]),
        uniform(vec![e, f, h]),
        uniform(vec![e, h, f]),
    ]
}

impl OpDef for Moe {
    named!("moe");
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 6)?;
        check(args, self.experts)?;
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let f = Factors::new(&mut b, args);
        f.operands(b).result(&f.row(f.h)).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let mut args = cx.args.clone();
        args.push(cx.dy()?);
        let grads = cx.emit_all(MoeGrad { activation: self.activation, experts: self.experts }, &args);
        let [dx, dw, dgate, dup, ddown] = [0, 1, 2, 3, 4].map(|i| Some(grads[i]));
        Ok(vec![dx, dw, None, dgate, dup, ddown])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        work(args, results, self.experts, 3)
    }

    fn effects(&self) -> Effects {
        Effects::Pure
    }

    fn workspace(&self, args: &[&TensorType], _results: &[&TensorType], _mesh: &Mesh) -> u64 {
        scratch_bytes(args, 2, 2)
    }

    fn attrs(&self) -> Attrs {
        attrs_of(self.activation, self.experts)
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        let (activation, experts) = parse_attrs(attrs)?;
        Ok(Moe { activation, experts })
    }

    fn samples() -> Vec<Sample> {
        let op = |activation, experts| Moe { activation, experts };
        vec![
            Sample::new(op(UnaryKind::Silu, 4), sample_args(&[4], 2, [4, 4, 3])),
            Sample::new(op(UnaryKind::Gelu, 2), sample_args(&[2, 2], 1, [2, 4, 2])),
        ]
    }
}

impl OpDef for MoeGrad {
    named!("moe_grad");
    no_alias!();
    no_gradient!("second derivatives are not supported");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 7)?;
        check(args, self.experts)?;
        if args[6] != args[0] {
            return Err(format!("gradient `{}` does not fit tokens `{}`", args[6], args[0]));
        }
        Ok([0, 1, 3, 4, 5].map(|i| args[i].clone()).to_vec())
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let f = Factors::new(&mut b, args);
        let (inner, outer) = ([f.e, f.f, f.h], [f.e, f.h, f.f]);
        let b = f.operands(b).operand(&f.row(f.h)).result(&f.row(f.h)).result(&f.row(f.k));
        b.result(&inner).result(&inner).result(&outer).linear(Linearity::Each(vec![6])).build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        work(args, results, self.experts, 8)
    }

    fn effects(&self) -> Effects {
        Effects::Pure
    }

    fn workspace(&self, args: &[&TensorType], _results: &[&TensorType], _mesh: &Mesh) -> u64 {
        scratch_bytes(args, 3, 5)
    }

    fn attrs(&self) -> Attrs {
        attrs_of(self.activation, self.experts)
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        let (activation, experts) = parse_attrs(attrs)?;
        Ok(MoeGrad { activation, experts })
    }

    fn samples() -> Vec<Sample> {
        let mut args = sample_args(&[4], 2, [4, 4, 3]);
        args.push(args[0].clone());
        vec![Sample::new(MoeGrad { activation: UnaryKind::Silu, experts: 4 }, args)]
    }
}
