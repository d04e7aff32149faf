//! Types, placements and what else is said behind a value: `f32[8, 64]@[mb.a0, _]+a1 of=%h at transient+0`.

use super::Parser;
use super::cursor::{Cursor, Parsed};
use super::fields::axis_named;
use crate::diagnostic::Diagnostic;
use crate::id::{AxisId, ValueId};
use crate::mesh::{Mesh, Sharding};
use crate::plan::{Place, Region};
use crate::text::fault;
use crate::text::lexer::Token;
use crate::types::{DType, TensorType};
use std::ops::Range;

/// Extents are below this, so that sums and small products of them do not overflow.
const MAX_EXTENT: u64 = 1 << 48;

/// What stands behind a value where it is defined.
pub struct ValueTail {
    /// Its type.
    pub ty: TensorType,
    /// Its placement.
    pub sharding: Option<Sharding>,
    /// The training value that it is a copy of.
    pub of: Option<ValueId>,
    /// The value that it is the gradient of; looked up when the whole graph is known.
    pub grad: Option<Token>,
    /// Where it lies.
    pub place: Option<Place>,
    /// Range of type and placement.
    pub span: Range<usize>,
}

/// A tensor type.
pub fn tensor_type(cursor: &mut Cursor<'_>) -> Parsed<TensorType> {
    let token = cursor.word("a type such as `f32[8, 64]`")?;
    let name = cursor.text_of(token);
    let Some(dtype) = DType::from_name(name) else {
        let known = DType::ALL.iter().map(|d| d.1);
        return Err(cursor.report(fault::unknown((fault::KEYWORD, "element type"), name, known, token.span())));
    };
    cursor.sign('[')?;
    let shape = cursor.items(']', extent)?;
    Ok(TensorType { dtype, shape })
}

fn extent(cursor: &mut Cursor<'_>) -> Parsed<u64> {
    let token = cursor.peek();
    let extent = cursor.unsigned("an extent")?;
    if extent < MAX_EXTENT {
        return Ok(extent);
    }
    Err(cursor.report(Diagnostic::new(fault::NUMBER, format!("extent {extent} is not below 2^48")).at(token.span())))
}

/// A place in an arena: `transient+64`.
pub fn place(cursor: &mut Cursor<'_>) -> Parsed<Place> {
    let token = cursor.word("a place such as `transient+0`")?;
    let name = cursor.text_of(token);
    let Some(&(region, _)) = Region::ALL.iter().find(|r| r.1 == name) else {
        let known = Region::ALL.iter().map(|r| r.1);
        return Err(cursor.report(fault::unknown((fault::KEYWORD, "region"), name, known, token.span())));
    };
    cursor.sign('+')?;
    Ok(Place { region, offset: cursor.unsigned("an offset in bytes")? })
}

/// A placement behind its `@`: `[mb.a0, _]+a1`.
fn sharding(cursor: &mut Cursor<'_>, mesh: &Mesh) -> Parsed<Sharding> {
    cursor.sign('[')?;
    let dims = cursor.items(']', |c| axis_list(c, mesh))?;
    let mut partial = if cursor.eats('+') { axis_list(cursor, mesh)? } else { Vec::new() };
    partial.sort();
    Ok(Sharding { dims, partial })
}

/// Axes joined by points, or `_` for none.
fn axis_list(cursor: &mut Cursor<'_>, mesh: &Mesh) -> Parsed<Vec<AxisId>> {
    let token = cursor.word("axes such as `mb.a0`, or `_`")?;
    let text = cursor.text_of(token);
    if text == "_" {
        return Ok(Vec::new());
    }
    text.split('.').map(|name| axis_named(cursor, mesh, name, token.span())).collect()
}

impl<'t> Parser<'t> {
    /// Type, placement and the rest of what is said behind a value.
    pub fn value_tail(&mut self) -> Parsed<ValueTail> {
        let first = self.cursor.peek();
        let ty = tensor_type(&mut self.cursor)?;
        let sharding = self.placement(&ty)?;
        let span = self.cursor.span_from(first);
        let mut tail = ValueTail { ty, sharding, of: None, grad: None, place: None, span };
        loop {
            match self.cursor.peek_word() {
                Some("of") => tail.of = self.program_value()?,
                Some("grad") => tail.grad = Some(self.keyed_value()?),
                Some("at") => {
                    self.cursor.advance();
                    tail.place = Some(place(&mut self.cursor)?);
                }
                _ => return Ok(tail),
            }
        }
    }

    fn placement(&mut self, ty: &TensorType) -> Parsed<Option<Sharding>> {
        let first = self.cursor.peek();
        if !self.cursor.eats('@') {
            return Ok(None);
        }
        let sharding = sharding(&mut self.cursor, &self.axes)?;
        if sharding.dims.len() != ty.rank() {
            let (n, rank) = (sharding.dims.len(), ty.rank());
            let message = format!("placement has {n} dimensions, `{ty}` has {rank}");
            let fault = Diagnostic::new(fault::RANK, message).at(first.end..self.cursor.span_from(first).end);
            self.cursor.report(fault.help("give each dimension its axes, or `_` for none"));
            return Ok(None);
        }
        Ok(Some(sharding))
    }

    /// `key=%value`; the key was seen.
    pub fn keyed_value(&mut self) -> Parsed<Token> {
        self.cursor.advance();
        self.cursor.sign('=')?;
        self.cursor.value()
    }

    /// `of=%value`, a value of the program.
    fn program_value(&mut self) -> Parsed<Option<ValueId>> {
        let token = self.keyed_value()?;
        let name = self.cursor.text_of(token);
        if self.program_names.is_empty() {
            let message = format!("`of=%{name}` stands before the program");
            let fault = Diagnostic::new(fault::VALUE, message).at(token.span());
            self.cursor.report(fault.help("values of the program are no copies; chunks follow the program"));
            return Ok(None);
        }
        Ok(self.program_names.find(&mut self.cursor, token, "the program"))
    }
}
