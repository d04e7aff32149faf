//! What the e-graph knows of each class: its tensor type, and its value if all elements are one constant.

use super::language::{LeafIndex, OpIndex, Term, Vocabulary, op_of, term_of};
use egg::{Analysis, DidMerge, EGraph, Id, Language};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::Full;
use galvatron_ir::types::{Scalar, TensorType};

/// The e-graph of a program.
pub(super) type Graph = EGraph<Term, Facts>;

/// The state of the analysis: what numbers in terms mean.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// The ops.
    pub(super) vocabulary: Vocabulary,
    /// Types of the leaves, and whether a trained weight may have gone into them.
    pub(super) leaves: Vec<(TensorType, bool)>,
}

/// What is known of a class.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fact {
    /// It is a tensor.
    Tensor {
        /// Type of result 0.
        ty: TensorType,
        /// The value of every element, where known.
        splat: Option<Scalar>,
        /// Whether it may depend on a trained weight.
        is_trained: bool,
    },
    /// It stands for the attributes of an op.
    Attr(OpIndex),
}

impl Fact {
    fn tensor(ty: TensorType, is_trained: bool) -> Fact {
        Fact::Tensor { ty, splat: None, is_trained }
    }

    /// Whether the tensor may depend on a trained weight.
    pub(super) fn is_trained(&self) -> bool {
        matches!(self, Fact::Tensor { is_trained: true, .. })
    }

    fn without_splat(&self) -> Fact {
        Fact::tensor(self.ty().clone(), self.is_trained())
    }

    /// Type of the tensor.
    pub(super) fn ty(&self) -> &TensorType {
        match self {
            Fact::Tensor { ty, .. } => ty,
            Fact::Attr(_) => panic!("invariant: attributes have no type"),
        }
    }

    /// The value of every element, where known.
    pub(super) fn splat(&self) -> Option<f64> {
        match self {
            Fact::Tensor { splat, .. } => splat.map(Scalar::get),
            Fact::Attr(_) => None,
        }
    }

    /// The op whose attributes these are.
    pub(super) fn attr(&self) -> Option<OpIndex> {
        match self {
            Fact::Attr(index) => Some(*index),
            Fact::Tensor { .. } => None,
        }
    }
}

impl Analysis<Term> for Facts {
    type Data = Fact;

    fn make(graph: &mut Graph, term: &Term, _id: Id) -> Fact {
        match term {
            Term::Attr(index) => Fact::Attr(*index),
            Term::Leaf(LeafIndex(i)) => {
                let (ty, is_trained) = graph.analysis.leaves[*i as usize].clone();
                Fact::tensor(ty, is_trained)
            }
            Term::GuardedSoftmax([x]) | Term::Normalized([_, x]) => graph[*x].data.without_splat(),
            Term::RowMean([x]) | Term::InverseRms([_, x]) => {
                Fact::tensor(with_unit_last(graph[*x].data.ty()), graph[*x].data.is_trained())
            }
            _ => {
                let (op, skip) = resolve(graph, term).expect("invariant: every other term is an op");
                let args: Vec<&TensorType> = term.children()[skip..].iter().map(|c| graph[*c].data.ty()).collect();
                let ty = op.infer(&args).expect("invariant: rules make legal terms").remove(0);
                let splat = if let Op::Full(full) = &op { Some(full.value) } else { None };
                let is_trained = term.children().iter().any(|c| graph[*c].data.is_trained());
                Fact::Tensor { ty, splat, is_trained }
            }
        }
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        if let Fact::Tensor { ty, splat, is_trained } = a
            && let Fact::Tensor { ty: other, splat: known, is_trained: maybe } = b
        {
            assert_eq!(*ty, other, "invariant: both sides of a rule have one type");
            let before = (*splat, *is_trained);
            // Two terms of one class are equal, so the one that depends on fewer weights tells the truth.
            let merged = (splat.or(known), *is_trained && maybe);
            (*splat, *is_trained) = merged;
            return DidMerge(before != merged, (known, maybe) != merged);
        }
        assert!(matches!(a, Fact::Attr(_)), "invariant: attributes are never merged with tensors");
        DidMerge(false, false)
    }
}

/// The op of a term and the number of its children that are attributes.
pub(super) fn resolve(graph: &Graph, term: &Term) -> Option<(Op, usize)> {
    op_of(term, &graph.analysis.vocabulary, |id| graph[id].data.attr())
}

/// The op whose attributes a class stands for.
pub(super) fn attr_op(graph: &Graph, id: Id) -> Option<&Op> {
    graph[id].data.attr().map(|index| graph.analysis.vocabulary.op(index))
}

/// Adds an op on classes.
pub(super) fn add_op(graph: &mut Graph, op: impl Into<Op>, args: &[Id]) -> Id {
    let op = op.into();
    let index = graph.analysis.vocabulary.intern(op.clone());
    let mut attr = None;
    if has_attr_child(&op) {
        attr = Some(graph.add(Term::Attr(index)));
    }
    let term = term_of(&op, args, index, || attr.expect("invariant: the op has an attribute child"));
    graph.add(term)
}

fn has_attr_child(op: &Op) -> bool {
    let is_layout = matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Concat(_));
    let is_norm = matches!(op, Op::LayerNorm(_) | Op::RmsNorm(_));
    is_layout || is_norm || matches!(op, Op::Einsum(_) | Op::ReduceSum(_) | Op::Rotary(_) | Op::Attention(_))
}

/// Adds a tensor all of whose elements are `value`.
pub(super) fn add_full(graph: &mut Graph, ty: TensorType, value: f64) -> Id {
    add_op(graph, Full { ty, value: Scalar::new(value) }, &[])
}

/// The type with the last extent 1.
pub(super) fn with_unit_last(ty: &TensorType) -> TensorType {
    let mut shape = ty.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = 1;
    }
    ty.with_shape(shape)
}
