//! Chunks with their residents and phases, and the schedule.

use super::Parser;
use super::cursor::Parsed;
use crate::diagnostic::Diagnostic;
use crate::id::NodeId;
use crate::plan::{Chunk, Memory, PhaseKind, Resident, ResidentRole, ScheduleStep};
use crate::text::lexer::{Kind, Token};
use crate::text::{ChunkSpans, fault};

impl<'t> Parser<'t> {
    /// A chunk; its first word was taken.
    pub fn chunk(&mut self, first: Token) -> Parsed<()> {
        let at = self.cursor.peek();
        let number = self.cursor.unsigned("the number of the chunk")?;
        let stage = self.of_stage()?;
        let slots = self.slots()?;
        let header = self.block_header(first)?;
        let expected = self.module.chunks.len() as u64;
        if number != expected {
            let message = format!("chunk {number} stands where chunk {expected} is expected");
            self.cursor.report(Diagnostic::new(fault::SECTION, message).at(at.span()));
        }
        self.module.chunks.push(Chunk { stage: stage as u32, slots, ..Chunk::new() });
        self.axes = self.module.stages[stage].mesh.clone();
        self.map.chunks.push(ChunkSpans { header: header.clone(), residents: Vec::new() });
        self.open_graph("the chunk");
        self.block(&header, Self::chunk_statement);
        let (graph, _, spans) = self.close_graph();
        self.open_chunk().graph = graph;
        self.map.chunk_nodes.push(spans);
        Ok(())
    }

    fn open_chunk(&mut self) -> &mut Chunk {
        self.module.chunks.last_mut().expect("invariant: a chunk is open")
    }

    fn chunk_statement(&mut self) -> Parsed<()> {
        let first = self.cursor.word("`resident` or a phase")?;
        let word = self.cursor.text_of(first);
        if word == "resident" {
            return self.resident(first);
        }
        let Some(&(kind, ..)) = PhaseKind::ALL.iter().find(|p| p.1 == word) else {
            let known = ["resident"].into_iter().chain(PhaseKind::ALL.iter().map(|p| p.1));
            return Err(self.cursor.report(fault::unknown((fault::KEYWORD, "statement"), word, known, first.span())));
        };
        self.phase(first, kind)
    }

    fn resident(&mut self, first: Token) -> Parsed<()> {
        let memory = if self.cursor.eats_word("host") { Memory::Host } else { Memory::Device };
        let token = self.cursor.peek();
        let word = self.cursor.peek_word().unwrap_or_default();
        let role = ResidentRole::ALL.iter().find(|r| r.1 == word).map(|r| r.0);
        if role.is_none() && token.kind == Kind::Word {
            let known = ResidentRole::ALL.iter().map(|r| r.1);
            self.cursor.report(fault::unknown((fault::KEYWORD, "role"), word, known, token.span()));
        } else if role.is_none() {
            return Err(self.cursor.expected("`parameter`, `state` or `accumulator`"));
        }
        let name = self.declared_name(':')?;
        let (value, spans) = self.declared_tail(first, name)?;
        if let Some(role) = role {
            self.open_chunk().residents.push(Resident { value, role, memory });
        }
        if let Some(chunk) = self.map.chunks.last_mut() {
            chunk.residents.push(spans);
        }
        Ok(())
    }

    fn phase(&mut self, first: Token, kind: PhaseKind) -> Parsed<()> {
        let header = self.block_header(first)?;
        if self.phase_is_late(kind) {
            let message = format!("phase `{}` comes twice or too late", kind.name());
            let fault = Diagnostic::new(fault::SECTION, message).at(first.span());
            let order = PhaseKind::ALL.map(|p| p.1).join("`, `");
            self.cursor.report(fault.help(format!("phases in order: `{order}`")));
        }
        self.last_phase = Some(kind);
        let mut body: Vec<NodeId> = Vec::new();
        self.block(&header, |parser| {
            body.extend(parser.node()?);
            Ok(())
        });
        self.open_chunk().phase_mut(kind).extend(body);
        Ok(())
    }

    fn phase_is_late(&self, kind: PhaseKind) -> bool {
        self.last_phase.is_some_and(|last| last >= kind)
    }

    /// The schedule; its first word was taken.
    pub fn schedule(&mut self, first: Token) -> Parsed<()> {
        let stage = self.of_stage()?;
        while self.cursor.peek().kind == Kind::Word {
            let token = self.cursor.advance();
            match schedule_step(self.cursor.text_of(token)) {
                Some(step) => {
                    self.module.stages[stage].schedule.push(step);
                    self.map.stages[stage].schedule_steps.push(token.span());
                }
                None => {
                    let message = format!("`{}` is no entry of a schedule", self.cursor.text_of(token));
                    let fault = Diagnostic::new(fault::SYNTAX, message).at(token.span());
                    self.cursor.report(fault.help(
                        "an entry is a phase's letter (P, F, B, W, R, S), a chunk and, for F, B and W, a micro-batch: `F0.3`",
                    ));
                }
            }
        }
        self.map.stages[stage].schedule = self.cursor.span_from(first);
        Ok(())
    }
}

/// `F0.3` or `R0`.
fn schedule_step(text: &str) -> Option<ScheduleStep> {
    let letter = text.chars().next()?;
    let &(phase, ..) = PhaseKind::ALL.iter().find(|p| p.2 == letter)?;
    let number = |digits: &str| digits.parse::<u32>().ok();
    let (chunk, micro_batch) = match text[1..].split_once('.') {
        Some((chunk, micro_batch)) => (number(chunk)?, Some(number(micro_batch)?)),
        None => (number(&text[1..])?, None),
    };
    Some(ScheduleStep { phase, chunk, micro_batch })
}
