//! The place in the tokens: what comes next, what was expected, and how to go on after a fault.

use crate::diagnostic::Diagnostic;
use crate::text::fault;
use crate::text::lexer::{Kind, Token, lex, unquote};
use std::ops::Range;

/// Says that a fault was reported and the statement given up.
#[derive(Debug)]
pub struct Reported;

/// What was read, unless a fault was reported.
pub type Parsed<T> = Result<T, Reported>;

/// After so many faults the rest of the text is not read.
const MAX_FAULTS: usize = 50;

/// The tokens of a text and the place in them.
pub struct Cursor<'t> {
    text: &'t str,
    tokens: Vec<Token>,
    at: usize,
    faults: Vec<Diagnostic>,
}

impl<'t> Cursor<'t> {
    /// The start of a text.
    pub fn new(text: &'t str) -> Self {
        let (tokens, mut faults) = lex(text);
        faults.truncate(MAX_FAULTS);
        Cursor { text, tokens, at: 0, faults }
    }

    /// All faults in the order of the text.
    pub fn into_faults(mut self) -> Vec<Diagnostic> {
        self.faults.sort_by_key(|f| f.span.as_ref().map_or(usize::MAX, |s| s.start));
        self.faults
    }

    /// Reports a fault; too many of them end the reading.
    pub fn report(&mut self, fault: Diagnostic) -> Reported {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        } else {
            self.at = self.tokens.len() - 1;
        }
        Reported
    }

    /// Reports that something else was expected here.
    pub fn expected(&mut self, what: &str) -> Reported {
        let token = self.peek();
        let found = match token.kind {
            Kind::Bad => return Reported,
            Kind::NewLine => "the end of the line".to_string(),
            Kind::End => "the end of the text".to_string(),
            _ => format!("`{}`", self.text_of(token)),
        };
        self.report(Diagnostic::new(fault::SYNTAX, format!("expected {what}, found {found}")).at(token.span()))
    }

    /// The next token.
    pub fn peek(&self) -> Token {
        self.tokens[self.at]
    }

    /// Position of the next token, for [`Cursor::line_from`].
    pub fn position(&self) -> usize {
        self.at
    }

    /// The tokens from a position to the end of its line.
    pub fn line_from(&self, position: usize) -> &[Token] {
        let rest = &self.tokens[position..];
        let len = rest.iter().position(|t| matches!(t.kind, Kind::NewLine | Kind::End)).unwrap_or(rest.len());
        &rest[..len]
    }

    /// The characters of a token; of a value without the sigil.
    pub fn text_of(&self, token: Token) -> &'t str {
        let text = &self.text[token.span()];
        if token.kind == Kind::Value { &text[1..] } else { text }
    }

    /// Range from a token to the last one that was read.
    pub fn span_from(&self, first: Token) -> Range<usize> {
        let last = self.tokens[self.at.saturating_sub(1)];
        first.start..last.end.max(first.end)
    }

    /// Takes the next token, whatever it is.
    pub fn advance(&mut self) -> Token {
        let token = self.peek();
        if token.kind != Kind::End {
            self.at += 1;
        }
        token
    }

    /// Takes the next token if it is of a kind.
    pub fn token(&mut self, kind: Kind, what: &str) -> Parsed<Token> {
        if self.peek().kind == kind { Ok(self.advance()) } else { Err(self.expected(what)) }
    }

    /// Whether a sign comes next.
    pub fn sees(&self, sign: char) -> bool {
        self.peek().kind == Kind::Sign(sign)
    }

    /// Takes a sign if it comes next.
    pub fn eats(&mut self, sign: char) -> bool {
        let found = self.sees(sign);
        if found {
            self.at += 1;
        }
        found
    }

    /// Takes a sign.
    pub fn sign(&mut self, sign: char) -> Parsed<Token> {
        self.token(Kind::Sign(sign), &format!("`{sign}`"))
    }

    /// The bare word that comes next, if one does.
    pub fn peek_word(&self) -> Option<&'t str> {
        (self.peek().kind == Kind::Word).then(|| self.text_of(self.peek()))
    }

    /// Takes a bare word if it comes next.
    pub fn eats_word(&mut self, word: &str) -> bool {
        let found = self.peek_word() == Some(word);
        if found {
            self.at += 1;
        }
        found
    }

    /// Takes a bare word.
    pub fn word(&mut self, what: &str) -> Parsed<Token> {
        self.token(Kind::Word, what)
    }

    /// Takes a certain bare word.
    pub fn keyword(&mut self, word: &str) -> Parsed<()> {
        if self.eats_word(word) { Ok(()) } else { Err(self.expected(&format!("`{word}`"))) }
    }

    /// Takes a value.
    pub fn value(&mut self) -> Parsed<Token> {
        self.token(Kind::Value, "a value such as `%x`")
    }

    /// Takes a quoted string and undoes its escapes.
    pub fn string(&mut self, what: &str) -> Parsed<String> {
        let token = self.token(Kind::Str, what)?;
        Ok(self.unquoted(token))
    }

    /// What a string token stands for.
    pub fn unquoted(&self, token: Token) -> String {
        let inside = token.start + 1..token.end - 1;
        unquote(&self.text[inside]).expect("invariant: the lexer checked the escapes")
    }

    /// Takes an integer that is not negative.
    pub fn unsigned(&mut self, what: &str) -> Parsed<u64> {
        let token = self.token(Kind::Int, what)?;
        self.number(token)
    }

    /// Takes an integer that fits 32 bits.
    pub fn unsigned32(&mut self, what: &str) -> Parsed<u32> {
        let token = self.token(Kind::Int, what)?;
        self.number(token)
    }

    /// The number that a token says.
    pub fn number<T: std::str::FromStr>(&mut self, token: Token) -> Parsed<T> {
        let text = self.text_of(token);
        let message = || format!("`{text}` is out of range for {}", std::any::type_name::<T>());
        text.parse().map_err(|_| self.report(Diagnostic::new(fault::NUMBER, message()).at(token.span())))
    }

    /// Takes items with commas between, up to and with the closing sign.
    pub fn items<T>(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        if self.eats(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eats(close) {
                return Ok(items);
            }
            if !self.eats(',') {
                return Err(self.expected(&format!("`,` or `{close}`")));
            }
        }
    }

    /// Whether the line or the text ends here.
    pub fn is_at_line_end(&self) -> bool {
        matches!(self.peek().kind, Kind::NewLine | Kind::End)
    }

    /// Takes the end of the line.
    pub fn line_end(&mut self) -> Parsed<()> {
        if !self.is_at_line_end() {
            return Err(self.expected("the end of the line"));
        }
        self.advance();
        Ok(())
    }

    /// Takes line ends if there are any.
    pub fn skip_line_ends(&mut self) {
        while self.peek().kind == Kind::NewLine {
            self.at += 1;
        }
    }

    /// Goes to the next line, or behind the block that the rest of this line opens.
    pub fn skip_statement(&mut self) {
        let mut depth = 0usize;
        loop {
            let mut opens = false;
            while !self.is_at_line_end() {
                opens = self.sees('{');
                self.at += 1;
            }
            depth += usize::from(opens);
            self.skip_line_ends();
            if depth == 0 || self.peek().kind == Kind::End {
                return;
            }
            if self.sees('}') {
                depth -= 1;
            }
        }
    }

    /// Whether the block whose header that is ends here; takes its `}`. The end of the text ends it too, with a fault.
    pub fn at_block_end(&mut self, header: &Range<usize>) -> bool {
        self.skip_line_ends();
        if self.peek().kind == Kind::End {
            let fault = Diagnostic::new(fault::SECTION, "the block is not closed").at(header.clone());
            self.report(fault.help("add `}` on a line of its own"));
            return true;
        }
        self.eats('}')
    }
}
