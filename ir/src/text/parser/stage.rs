//! Stages, and which of them a section is about.

use super::Parser;
use super::cursor::Parsed;
use super::fields::Fields;
use crate::diagnostic::Diagnostic;
use crate::plan::{Slots, Stage};
use crate::text::lexer::Token;
use crate::text::{StageSpans, fault};

impl<'t> Parser<'t> {
    /// `stage 1 at 2 [mb=2, a1=2@0]`; the first word was taken.
    pub fn stage(&mut self, first: Token) -> Parsed<()> {
        let at = self.cursor.peek();
        let number = self.cursor.unsigned("the number of the stage")?;
        self.cursor.keyword("at")?;
        let first_rank = self.cursor.unsigned("the first rank of the stage")?;
        let mesh = self.axes(first)?;
        let expected = self.module.stages.len() as u64;
        if number != expected || !self.module.chunks.is_empty() {
            let message = match self.module.chunks.is_empty() {
                true => format!("stage {number} stands where stage {expected} is expected"),
                false => format!("stage {number} stands behind a chunk"),
            };
            self.cursor.report(Diagnostic::new(fault::SECTION, message).at(at.span()));
        }
        self.has_stages = true;
        self.module.stages.push(Stage::new(first_rank, mesh));
        self.map.stages.push(StageSpans { header: self.cursor.span_from(first), ..StageSpans::default() });
        Ok(())
    }

    /// `of 1`, an index of a stage; left out where the only stage is the whole mesh. One that is not there is reported and
    /// taken for the first one.
    pub fn of_stage(&mut self) -> Parsed<usize> {
        if !self.has_stages && self.module.stages.is_empty() {
            self.module.stages.push(Stage::new(0, self.module.mesh.clone()));
            self.map.stages.push(StageSpans::default());
        }
        if !self.has_stages {
            return Ok(0);
        }
        self.cursor.keyword("of")?;
        let at = self.cursor.peek();
        let (stage, n) = (self.cursor.unsigned("the number of a stage")?, self.module.stages.len());
        if stage < n as u64 {
            return Ok(stage as usize);
        }
        let message = format!("there is no stage {stage}, the module has {n}");
        self.cursor.report(Diagnostic::new(fault::SECTION, message).at(at.span()));
        Ok(0)
    }

    /// `slots {count=2, bytes=384, offset=0}`, or nothing.
    pub fn slots(&mut self) -> Parsed<Slots> {
        if !self.cursor.eats_word("slots") {
            return Ok(Slots::default());
        }
        let at = self.cursor.peek();
        let mut fields = Fields::read(&mut self.cursor)?;
        let c = &mut self.cursor;
        let (count, bytes, offset) = (fields.u64(c, "count")?, fields.u64(c, "bytes")?, fields.u64(c, "offset")?);
        let (host_bytes, host_offset) = (fields.u64_or(c, "host_bytes", 0)?, fields.u64_or(c, "host_offset", 0)?);
        fields.finish(c)?;
        let count = u32::try_from(count).unwrap_or_else(|_| {
            let message = format!("{count} slots do not fit 32 bits");
            self.cursor.report(Diagnostic::new(fault::NUMBER, message).at(at.span()));
            0
        });
        Ok(Slots { count, bytes, offset, host_bytes, host_offset })
    }
}
