//! The language of the e-graph: the ops that rules speak of by name, and everything else by its number.

use egg::{Id, define_language};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Binary, BinaryKind, Softmax, Unary, UnaryKind, Where};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $mark:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(super) struct $name(pub(super) u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($mark, "{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let number = text.strip_prefix($mark).and_then(|n| n.parse().ok());
                number.map($name).ok_or_else(|| format!("`{text}` is no number"))
            }
        }
    };
}

number!(
    /// Position of an op in the vocabulary.
    OpIndex,
    "#"
);
number!(
    /// A value that comes from outside of the e-graph.
    LeafIndex,
    "%"
);

define_language! {
    /// A term. Ops with attributes have them as first child. The last four named terms stand for intermediate steps of
    /// rules: they are never extracted.
    pub(super) enum Term {
        "add" = Add([Id; 2]),
        "sub" = Sub([Id; 2]),
        "mul" = Mul([Id; 2]),
        "div" = Div([Id; 2]),
        "pow" = Pow([Id; 2]),
        "neg" = Neg([Id; 1]),
        "exp" = Exp([Id; 1]),
        "sqrt" = Sqrt([Id; 1]),
        "reciprocal" = Reciprocal([Id; 1]),
        "tanh" = Tanh([Id; 1]),
        "erf" = Erf([Id; 1]),
        "sigmoid" = Sigmoid([Id; 1]),
        "is_nan" = IsNan([Id; 1]),
        "gelu" = Gelu([Id; 1]),
        "gelu_tanh" = GeluTanh([Id; 1]),
        "silu" = Silu([Id; 1]),
        "where" = Where([Id; 3]),
        "softmax" = Softmax([Id; 1]),
        "einsum" = Einsum([Id; 3]),
        "reduce_sum" = ReduceSum([Id; 2]),
        "reshape" = Reshape([Id; 2]),
        "transpose" = Transpose([Id; 2]),
        "slice" = Slice([Id; 2]),
        "concat" = Concat([Id; 3]),
        "rotary" = Rotary([Id; 4]),
        "layer_norm" = LayerNorm([Id; 4]),
        "rms_norm" = RmsNorm([Id; 3]),
        "attention" = Attention([Id; 4]),
        "masked_attention" = MaskedAttention([Id; 5]),
        "guarded_softmax" = GuardedSoftmax([Id; 1]),
        "row_mean" = RowMean([Id; 1]),
        "normalized" = Normalized([Id; 2]),
        "inverse_rms" = InverseRms([Id; 2]),
        Attr(OpIndex),
        Leaf(LeafIndex),
        Other(OpIndex, Box<[Id]>),
    }
}

/// The ops that terms refer to by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Vocabulary {
    ops: Vec<Op>,
    index: BTreeMap<Op, OpIndex>,
}

impl Vocabulary {
    /// The number of an op.
    pub(super) fn intern(&mut self, op: Op) -> OpIndex {
        let next = OpIndex(self.ops.len() as u32);
        *self.index.entry(op).or_insert_with_key(|op| {
            self.ops.push(op.clone());
            next
        })
    }

    /// The op of a number.
    pub(super) fn op(&self, index: OpIndex) -> &Op {
        &self.ops[index.0 as usize]
    }
}

fn unary_kind(term: &Term) -> Option<UnaryKind> {
    Some(match term {
        Term::Neg(_) => UnaryKind::Neg,
        Term::Exp(_) => UnaryKind::Exp,
        Term::Sqrt(_) => UnaryKind::Sqrt,
        Term::Reciprocal(_) => UnaryKind::Reciprocal,
        Term::Tanh(_) => UnaryKind::Tanh,
        Term::Erf(_) => UnaryKind::Erf,
        Term::Sigmoid(_) => UnaryKind::Sigmoid,
        Term::IsNan(_) => UnaryKind::IsNan,
        Term::Gelu(_) => UnaryKind::Gelu,
        Term::GeluTanh(_) => UnaryKind::GeluTanh,
        Term::Silu(_) => UnaryKind::Silu,
        _ => return None,
    })
}

fn of_unary(kind: UnaryKind, x: Id) -> Option<Term> {
    let all: [fn([Id; 1]) -> Term; 11] = [
        Term::Neg,
        Term::Exp,
        Term::Sqrt,
        Term::Reciprocal,
        Term::Tanh,
        Term::Erf,
        Term::Sigmoid,
        Term::IsNan,
        Term::Gelu,
        Term::GeluTanh,
        Term::Silu,
    ];
    all.into_iter().map(|make| make([x])).find(|term| unary_kind(term) == Some(kind))
}

fn binary_kind(term: &Term) -> Option<BinaryKind> {
    Some(match term {
        Term::Add(_) => BinaryKind::Add,
        Term::Sub(_) => BinaryKind::Sub,
        Term::Mul(_) => BinaryKind::Mul,
        Term::Div(_) => BinaryKind::Div,
        Term::Pow(_) => BinaryKind::Pow,
        _ => return None,
    })
}

fn of_binary(kind: BinaryKind, operands: [Id; 2]) -> Option<Term> {
    let all: [fn([Id; 2]) -> Term; 5] = [Term::Add, Term::Sub, Term::Mul, Term::Div, Term::Pow];
    all.into_iter().map(|make| make(operands)).find(|term| binary_kind(term) == Some(kind))
}

/// The op of a term and how many leading children are attributes; `None` for leaves, attributes and intermediate terms.
pub(super) fn op_of(term: &Term, vocabulary: &Vocabulary, attr: impl Fn(Id) -> Option<OpIndex>) -> Option<(Op, usize)> {
    if let Some(kind) = unary_kind(term) {
        return Some((Unary { kind }.into(), 0));
    }
    if let Some(kind) = binary_kind(term) {
        return Some((Binary { kind }.into(), 0));
    }
    let attributed = |id: Id| attr(id).map(|index| (vocabulary.op(index).clone(), 1));
    match term {
        Term::Where(_) => Some((Where.into(), 0)),
        Term::Softmax(_) => Some((Softmax.into(), 0)),
        Term::Einsum([a, ..]) | Term::ReduceSum([a, _]) | Term::Reshape([a, _]) => attributed(*a),
        Term::Transpose([a, _]) | Term::Slice([a, _]) | Term::Concat([a, ..]) => attributed(*a),
        Term::LayerNorm([a, ..]) | Term::RmsNorm([a, ..]) | Term::Rotary([a, ..]) => attributed(*a),
        Term::Attention([a, ..]) | Term::MaskedAttention([a, ..]) => attributed(*a),
        Term::Other(index, _) => Some((vocabulary.op(*index).clone(), 0)),
        _ => None,
    }
}

/// The term of an op on these operands. `attr` gives the class of the op's attributes.
pub(super) fn term_of(op: &Op, args: &[Id], index: OpIndex, attr: impl FnOnce() -> Id) -> Term {
    let special = match (op, args) {
        (Op::Unary(u), [x]) => of_unary(u.kind, *x),
        (Op::Binary(b), [x, y]) => of_binary(b.kind, [*x, *y]),
        (Op::Where(_), [c, x, y]) => Some(Term::Where([*c, *x, *y])),
        (Op::Softmax(_), [x]) => Some(Term::Softmax([*x])),
        (Op::Einsum(_), [x, y]) => Some(Term::Einsum([attr(), *x, *y])),
        (Op::ReduceSum(_), [x]) => Some(Term::ReduceSum([attr(), *x])),
        (Op::Reshape(_), [x]) => Some(Term::Reshape([attr(), *x])),
        (Op::Transpose(_), [x]) => Some(Term::Transpose([attr(), *x])),
        (Op::Slice(_), [x]) => Some(Term::Slice([attr(), *x])),
        (Op::Concat(_), [x, y]) => Some(Term::Concat([attr(), *x, *y])),
        (Op::Rotary(_), [x, c, s]) => Some(Term::Rotary([attr(), *x, *c, *s])),
        (Op::LayerNorm(_), [x, g, b]) => Some(Term::LayerNorm([attr(), *x, *g, *b])),
        (Op::RmsNorm(_), [x, g]) => Some(Term::RmsNorm([attr(), *x, *g])),
        (Op::Attention(_), [q, k, v]) => Some(Term::Attention([attr(), *q, *k, *v])),
        (Op::Attention(_), [q, k, v, m]) => Some(Term::MaskedAttention([attr(), *q, *k, *v, *m])),
        _ => None,
    };
    special.unwrap_or_else(|| Term::Other(index, args.into()))
}
