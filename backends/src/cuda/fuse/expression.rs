//! What some element-wise nodes compute together, for each element by itself, and whether they may.
//!
//! Nodes are tied by what lies where: an operand is the result of an earlier node if that was the last to write just its bytes,
//! and is loaded otherwise. All results have the same number of elements, and one thread computes element i of each of them.

use galvatron_ir::op::Op;
use galvatron_ir::types::DType;

use super::functions::{Function, function};
use crate::cuda::walk::{MAX_RANK, Walk, broadcast, row_major};
use crate::device::{BufferSpec, RunNode, Span};

/// Operands and results in memory that one kernel has at most; with four elements of each they fit into its registers.
pub(super) const MAX_BUFFERS: usize = 16;

/// Nodes that one kernel computes at most.
pub(super) const MAX_NODES: usize = 32;

/// Which element of an operand belongs to element i of the results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Index {
    /// Element i.
    Each,
    /// Element 0.
    One,
    /// Element i mod period: a row that is repeated.
    Row(u64),
    /// Element i / times: each element is repeated.
    Column(u64),
    /// The place of a strided walk.
    Walk(Walk),
}

impl Index {
    /// The index of an operand with these steps along the dimensions of the results.
    pub(super) fn new(shape: &[u64], steps: Vec<u64>) -> Index {
        if shape.iter().product::<u64>() == 1 {
            return Index::Each;
        }
        let walk = Walk::new(shape, &[steps]);
        match (&walk.shape[..], &walk.steps[0][..]) {
            ([], _) | ([_], [0]) => Index::One,
            ([_], [1]) => Index::Each,
            (&[_, period], [0, 1]) => Index::Row(period),
            (&[_, times], [1, 0]) => Index::Column(times),
            _ => Index::Walk(walk),
        }
    }
}

/// An operand in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) at: Span,
    pub(super) dtype: DType,
    pub(super) index: Index,
}

/// A value of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Of an operand in memory, by its number.
    Loaded(usize),
    /// Of a step, by its number.
    Computed(usize),
}

/// The computation of one node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) function: Function,
    pub(super) args: Vec<Value>,
    /// Element type of its result.
    pub(super) dtype: DType,
}

/// Where the result of a step goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    at: Span,
    dtype: DType,
    last_reader: Option<usize>,
}

/// A result that is written to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Store {
    pub(super) step: usize,
    pub(super) at: Span,
    pub(super) dtype: DType,
}

/// Some nodes as one computation.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    /// Elements of each result.
    pub(super) n: u64,
    pub(super) loads: Vec<Load>,
    pub(super) steps: Vec<Step>,
    targets: Vec<Target>,
}

/// An operand with its index.
type Operand<'a> = (&'a BufferSpec, Index);

impl Expression {
    /// No node yet, for results of `n` elements.
    fn new(n: u64) -> Expression {
        Expression { n, loads: Vec::new(), steps: Vec::new(), targets: Vec::new() }
    }

    /// Number of elements that the result of an element-wise node has; `None` for other nodes and empty results.
    fn elements(node: &RunNode<'_>) -> Option<u64> {
        result(node).map(|to| to.ty.elements()).filter(|&n| n > 0)
    }

    /// The longest start of a run that may be one kernel.
    pub(super) fn longest(run: &[RunNode<'_>], start: usize) -> usize {
        let Some(n) = Expression::elements(&run[start]) else { return 1 };
        let (mut whole, mut longest) = (Expression::new(n), 1);
        for (i, node) in run.iter().enumerate().skip(start).take(MAX_NODES) {
            if whole.push(node).is_none() {
                break;
            }
            let end = i + 1;
            if whole.stores(end).is_some_and(|stores| whole.loads.len() + stores.len() <= MAX_BUFFERS) {
                longest = (end - start).max(1);
            }
        }
        longest
    }

    /// All nodes of a group.
    pub(super) fn of(group: &[RunNode<'_>]) -> Option<Expression> {
        let mut whole = Expression::new(Expression::elements(group.first()?)?);
        group.iter().try_for_each(|node| whole.push(node))?;
        Some(whole)
    }

    /// Adds a node; `None` if it cannot be computed with the others.
    fn push(&mut self, node: &RunNode<'_>) -> Option<()> {
        let (to, operands) = (result(node)?, operands(node)?);
        if to.ty.elements() != self.n {
            return None;
        }
        let args: Vec<DType> = operands.iter().map(|(operand, _)| operand.ty.dtype).collect();
        let function = function(node.spec.op, &args, to.ty.dtype)?;
        let args = operands.into_iter().map(|operand| self.value(operand)).collect::<Option<Vec<_>>>()?;
        let last_reader = node.last_readers.first().copied().unwrap_or(crate::device::READ_LATER);
        self.steps.push(Step { function, args, dtype: to.ty.dtype });
        self.targets.push(Target { at: to.span(), dtype: to.ty.dtype, last_reader });
        Some(())
    }

    /// An operand as a value; `None` if it is a part of a result, or a result in another order or type.
    fn value(&mut self, (operand, index): Operand<'_>) -> Option<Value> {
        let (at, dtype) = (operand.span(), operand.ty.dtype);
        if let Some(step) = self.targets.iter().rposition(|target| target.at.overlaps(&at)) {
            let target = self.targets[step];
            let is_it = target.at == at && target.dtype == dtype && index == Index::Each;
            return is_it.then_some(Value::Computed(step));
        }
        if matches!(&index, Index::Walk(walk) if walk.shape.len() > MAX_RANK) {
            return None;
        }
        let load = Load { at, dtype, index };
        let known = self.loads.iter().position(|other| *other == load);
        Some(Value::Loaded(known.unwrap_or_else(|| {
            self.loads.push(load);
            self.loads.len() - 1
        })))
    }

    /// The results that are written if the group ends before position `end` of its run; `None` if memory forbids it.
    ///
    /// Each thread loads its elements before it writes any, and no thread waits for another. So a result that is written may
    /// lie over an operand only where element i lies over element i. A result that a later one covers is not written.
    pub(super) fn stores(&self, end: usize) -> Option<Vec<Store>> {
        let mut stores = Vec::new();
        let is_written = |target: &Target| target.last_reader.is_some_and(|reader| reader >= end);
        for (step, target) in self.targets.iter().enumerate() {
            let later = self.targets[step + 1..].iter();
            let mut later = later.filter(|other| is_written(other) && other.at.overlaps(&target.at));
            match later.next() {
                Some(other) if other.at == target.at => continue,
                Some(_) => return None,
                None if is_written(target) => stores.push(Store { step, at: target.at, dtype: target.dtype }),
                None => {}
            }
        }
        let is_over = |store: &Store, load: &Load| {
            let same = store.at == load.at && store.dtype.bytes() == load.dtype.bytes() && load.index == Index::Each;
            !store.at.overlaps(&load.at) || same
        };
        stores.iter().all(|store| self.loads.iter().all(|load| is_over(store, load))).then_some(stores)
    }
}

/// Where an element-wise node writes; `None` for other nodes.
fn result<'a>(node: &RunNode<'a>) -> Option<&'a BufferSpec> {
    match node.spec.op {
        Op::Accumulate(_) | Op::Update(_) => node.spec.args.first(),
        _ => match node.spec.results {
            [result] => Some(result),
            _ => None,
        },
    }
}

/// What an element-wise node reads, and which element of it; `None` for other nodes.
fn operands<'a>(node: &RunNode<'a>) -> Option<Vec<Operand<'a>>> {
    let (args, shape) = (node.spec.args, &result(node)?.ty.shape);
    let aligned = |arg: &'a BufferSpec| (arg, Index::new(shape, broadcast(&arg.ty.shape, shape)));
    match node.spec.op {
        Op::Update(_) => Some(args[1..].iter().map(aligned).collect()),
        Op::Broadcast(op) => {
            let (x, own) = (&args[0], row_major(&args[0].ty.shape));
            let mut steps = vec![0; shape.len()];
            for (i, &to) in op.dims.iter().enumerate() {
                steps[to] = if x.ty.shape[i] == 1 { 0 } else { own[i] };
            }
            Some(vec![(x, Index::new(shape, steps))])
        }
        Op::Binary(_)
        | Op::AddN(_)
        | Op::Unary(_)
        | Op::UnaryGrad(_)
        | Op::Where(_)
        | Op::Cast(_)
        | Op::MseGrad(_)
        | Op::Accumulate(_) => Some(args.iter().map(aligned).collect()),
        _ => None,
    }
}
