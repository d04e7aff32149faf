//! Launches that move elements: strided copies in the widest units that fit, chunks in place, conversions.

use galvatron_ir::op::compute::{Broadcast, Concat, Slice, Transpose};
use galvatron_ir::types::DType;

use super::super::command::{Arg, Command, Launch, Place};
use super::super::walk::{Walk, row_major};
use super::{Cx, Family, Lowered, at, elements, reduce, row_grid};
use crate::device::{BufferSpec, Corner, Move, Span};

const FAMILY: Family = Family::Layout;

/// Chunks that one launch permutes.
const MAX_CHUNKS: usize = 64;

/// Elements of a row that one block of the kernels of rows moves.
const SEGMENT: u64 = 2048;

/// One side of a strided copy: its first element and its steps, in bytes and elements.
#[derive(Clone, Debug)]
pub(in super::super) struct Side {
    pub(in super::super) place: Place,
    pub(in super::super) steps: Vec<u64>,
}

/// Copies the elements of an index space of `shape` from one side to the other.
pub(in super::super) fn copy(element_bytes: u64, shape: &[u64], from: Side, to: Side) -> Lowered {
    let walk = Walk::new(shape, &[from.steps, to.steps]);
    if walk.len() == 0 {
        return Ok(Vec::new());
    }
    if walk.is_contiguous() {
        return Ok(vec![Command::Copy { from: from.place, to: to.place, bytes: walk.len() * element_bytes }]);
    }
    if let Some(launch) = transpose_planes(element_bytes, &walk, from.place, to.place) {
        return Ok(vec![launch]);
    }
    let (walk, unit) = widen(walk, element_bytes, [from.place, to.place]);
    if let ([rows, columns], [[from_step, 1], [to_step, 1]]) =
        (&walk.shape[..], [&walk.steps[0][..], &walk.steps[1][..]])
        && matches!(unit, 2 | 4)
    {
        let n_segments = columns.div_ceil(SEGMENT);
        let numbers = [*rows, *columns, *from_step, *to_step, n_segments].map(|v| Arg::Int(v as i64));
        let args = [from.place, to.place].map(Arg::At).into_iter().chain(numbers).collect();
        return Ok(vec![Launch::grid(FAMILY, format!("rows_{unit}"), row_grid(rows * n_segments), args)]);
    }
    let args = vec![Arg::At(from.place), Arg::At(to.place), Arg::Int(walk.len() as i64), walk.arg()?];
    Ok(vec![Launch::of(FAMILY, format!("copy_{unit}"), walk.len(), args)])
}

/// The same walk in the widest unit, in bytes, that divides its runs, its steps and its places.
fn widen(mut walk: Walk, element_bytes: u64, places: [Place; 2]) -> (Walk, u64) {
    let offset = |place| match place {
        Place::Arena(offset) | Place::Scratch(offset) => offset,
        Place::Fault => 1,
    };
    let last = walk.shape.len() - 1;
    let fits = |&factor: &u64| {
        let unit = factor * element_bytes;
        let steps = walk
            .steps
            .iter()
            .all(|steps| steps[last] == 1 && steps[..last].iter().all(|step| step.is_multiple_of(factor)));
        steps && walk.shape[last].is_multiple_of(factor) && places.iter().all(|&p| offset(p).is_multiple_of(unit))
    };
    let factors = [16, 8, 4, 2].into_iter().filter(|unit| *unit > element_bytes).map(|unit| unit / element_bytes);
    let factor = factors.into_iter().find(fits).unwrap_or(1);
    walk.shape[last] /= factor;
    for steps in &mut walk.steps {
        steps[..last].iter_mut().for_each(|step| *step /= factor);
    }
    (walk, factor * element_bytes)
}

/// A transpose of the last two dimensions, with planes before them, of elements of two or four bytes.
fn transpose_planes(element_bytes: u64, walk: &Walk, from: Place, to: Place) -> Option<Command> {
    let (planes, rows, columns) = match walk.shape[..] {
        [rows, columns] => (1, rows, columns),
        [planes, rows, columns] => (planes, rows, columns),
        _ => return None,
    };
    let plane = if walk.shape.len() == 3 { vec![rows * columns] } else { Vec::new() };
    let target = |a: u64, b: u64| plane.iter().copied().chain([a, b]).collect::<Vec<u64>>();
    // The walk runs over one side in order; that may be the target or the source.
    let (rows, columns) = if walk.steps == [target(1, rows), target(columns, 1)] {
        (columns, rows)
    } else if walk.steps == [target(columns, 1), target(1, rows)] {
        (rows, columns)
    } else {
        return None;
    };
    if !matches!(element_bytes, 2 | 4) || rows < 32 || columns < 32 {
        return None;
    }
    let (down, across) = (rows.div_ceil(32), columns.div_ceil(32));
    let n_tiles = planes * down * across;
    let numbers = [rows, columns, down, across, n_tiles].map(|v| Arg::Int(v as i64));
    let args = [Arg::At(from), Arg::At(to)].into_iter().chain(numbers).collect();
    Some(Launch::grid(FAMILY, format!("transpose_{element_bytes}"), [n_tiles.min(1 << 20) as u32, 1, 1], args))
}

fn side(buffer: &BufferSpec, first: u64, steps: Vec<u64>) -> Side {
    Side { place: Place::Arena(buffer.offset + first * buffer.ty.dtype.bytes()), steps }
}

fn whole(buffer: &BufferSpec) -> Side {
    side(buffer, 0, row_major(&buffer.ty.shape))
}

/// All of an operand to a result of the same number of elements, or from operand to operand.
pub(in super::super) fn copy_bytes(from: &BufferSpec, to: &BufferSpec) -> Lowered {
    if from.span() == to.span() {
        return Ok(Vec::new());
    }
    if from.span().overlaps(&to.span()) {
        return Err("the two sides of a copy overlap in memory".into());
    }
    let (from, to, bytes) = (Place::Arena(from.offset), Place::Arena(to.offset), from.ty.bytes());
    Ok(if bytes == 0 { Vec::new() } else { vec![Command::Copy { from, to, bytes }] })
}

pub(in super::super) fn transpose(op: &Transpose, cx: &Cx<'_>) -> Lowered {
    let (x, y) = (cx.arg(0), cx.result(0));
    let own = row_major(&x.ty.shape);
    let steps = op.perm.iter().map(|&p| own[p]).collect();
    copy(x.ty.dtype.bytes(), &y.ty.shape, side(x, 0, steps), whole(y))
}

pub(in super::super) fn slice(op: &Slice, cx: &Cx<'_>) -> Lowered {
    let (x, y) = (cx.arg(0), cx.result(0));
    let steps = row_major(&x.ty.shape);
    copy(x.ty.dtype.bytes(), &y.ty.shape, side(x, op.start * steps[op.dim], steps), whole(y))
}

pub(in super::super) fn concat(op: &Concat, cx: &Cx<'_>) -> Lowered {
    let y = cx.result(0);
    let (steps, mut first, mut commands) = (row_major(&y.ty.shape), 0, Vec::new());
    for x in cx.spec.args {
        let to = side(y, first * steps[op.dim], steps.clone());
        commands.extend(copy(y.ty.dtype.bytes(), &x.ty.shape, whole(x), to)?);
        first += x.ty.shape[op.dim];
    }
    Ok(commands)
}

pub(in super::super) fn broadcast(op: &Broadcast, cx: &Cx<'_>) -> Lowered {
    let (x, y) = (cx.arg(0), cx.result(0));
    let (own, mut steps) = (row_major(&x.ty.shape), vec![0; y.ty.rank()]);
    for (i, &to) in op.dims.iter().enumerate() {
        steps[to] = if x.ty.shape[i] == 1 { 0 } else { own[i] };
    }
    copy(x.ty.dtype.bytes(), &y.ty.shape, side(x, 0, steps), whole(y))
}

pub(in super::super) fn cast(cx: &Cx<'_>) -> Lowered {
    let (x, y, n) = (cx.arg(0), cx.result(0), elements(cx.result(0)));
    if x.ty.dtype == y.ty.dtype {
        return copy_bytes(x, y);
    }
    let name = format!("cast_{}_{}", x.ty.dtype, y.ty.dtype);
    let at_once = if x.ty.dtype.is_float() && y.ty.dtype.is_float() { 8 } else { 1 };
    Ok(vec![Launch::of(FAMILY, name, (n as u64).div_ceil(at_once), vec![at(x), at(y), Arg::Int(n)])])
}

/// The commands of a move inside the arena.
pub(in super::super) fn moved(spec: &Move) -> Lowered {
    match spec {
        Move::Block { dtype, from, to, .. } if from.span(*dtype).overlaps(&to.span(*dtype)) => {
            Err("the two sides of a copy overlap in memory".into())
        }
        Move::Block { dtype, extents, from, to } => {
            copy(dtype.bytes(), extents, corner(from, *dtype), corner(to, *dtype))
        }
        Move::Permute { at, to } => permute(*at, to),
        Move::Sum { parts, to } => reduce::sum_parts(*parts, *to),
    }
}

fn corner(corner: &Corner, dtype: DType) -> Side {
    let steps = row_major(&corner.shape);
    let first: u64 = corner.first.iter().zip(&steps).map(|(i, step)| i * step).sum();
    Side { place: Place::Arena(corner.offset + first * dtype.bytes()), steps }
}

fn permute(span: Span, to: &[usize]) -> Lowered {
    if to.len() > MAX_CHUNKS {
        return Err(format!("at most {MAX_CHUNKS} chunks are permuted in place, not {}", to.len()));
    }
    let chunk = span.bytes / to.len() as u64;
    let unit = if chunk.is_multiple_of(16) && span.offset.is_multiple_of(16) { 16 } else { 1 };
    let mut places: Vec<i64> = to.iter().map(|&p| p as i64).collect();
    places.resize(MAX_CHUNKS, 0);
    let (n, units) = (Arg::Int(to.len() as i64), chunk / unit);
    let args = vec![Arg::At(Place::Arena(span.offset)), n, Arg::Int(units as i64), Arg::Ints(places)];
    Ok(vec![Launch::of(FAMILY, format!("permute_{unit}"), units, args)])
}
