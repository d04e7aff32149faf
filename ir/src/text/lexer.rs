//! Tokens of the text format: kinds and byte ranges; line ends count, comments do not.

use super::fault;
use crate::diagnostic::Diagnostic;
use std::ops::Range;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `%name`
    Value,
    /// A keyword, mnemonic, axis list or other bare word, dots and dashes included.
    Word,
    /// An integer, perhaps negative.
    Int,
    /// A number with a point or an exponent, or `-inf`.
    Float,
    /// A quoted string.
    Str,
    /// One of the signs of the grammar.
    Sign(char),
    /// One or more line ends.
    NewLine,
    /// The end of the text.
    End,
    /// Something that was reported already.
    Bad,
}

/// A token: its kind and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Token {
    /// Its byte range.
    pub fn span(self) -> Range<usize> {
        self.start..self.end
    }
}

const SIGNS: &[u8] = b"@[]{}=,:+|";

/// The tokens of a text, the last one [`Kind::End`], and what is no token.
pub fn lex(text: &str) -> (Vec<Token>, Vec<Diagnostic>) {
    let mut lexer = Lexer { text, at: 0, tokens: Vec::with_capacity(text.len() / 4), faults: Vec::new() };
    while lexer.at < text.len() {
        lexer.step();
    }
    lexer.push(Kind::End, text.len());
    (lexer.tokens, lexer.faults)
}

/// Whether the byte may stand in the name of a value.
pub fn is_name_byte(b: u8) -> bool {
    is_word_byte(b) || b == b'/'
}

fn is_word_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
    tokens: Vec<Token>,
    faults: Vec<Diagnostic>,
}

impl Lexer<'_> {
    fn step(&mut self) {
        let b = self.byte(self.at);
        match b {
            b' ' | b'\t' | b'\r' => self.at += 1,
            b'\n' => self.new_line(),
            b'/' if self.byte(self.at + 1) == b'/' => self.at = self.run(self.at, |b| b != b'\n'),
            b'%' => self.value(),
            b'"' => self.string(),
            b'-' if self.text[self.at + 1..].starts_with("inf") => self.push(Kind::Float, self.at + 4),
            b'-' if self.byte(self.at + 1).is_ascii_digit() => self.number(),
            b if b.is_ascii_digit() => self.number(),
            b if b.is_ascii_alphabetic() || b == b'_' => self.push(Kind::Word, self.run(self.at, is_word_byte)),
            b if SIGNS.contains(&b) => self.push(Kind::Sign(char::from(b)), self.at + 1),
            _ => self.stray(),
        }
    }

    /// The byte there; 0 past the end, which is part of no token.
    fn byte(&self, at: usize) -> u8 {
        self.text.as_bytes().get(at).copied().unwrap_or(0)
    }

    /// End of the run of such bytes from `at` on.
    fn run(&self, at: usize, is_in: impl Fn(u8) -> bool) -> usize {
        self.text.as_bytes()[at..].iter().position(|&b| !is_in(b)).map_or(self.text.len(), |n| at + n)
    }

    fn push(&mut self, kind: Kind, end: usize) {
        self.tokens.push(Token { kind, start: self.at, end });
        self.at = end;
    }

    fn bad(&mut self, end: usize, message: String) {
        self.faults.push(Diagnostic::new(fault::LEXICAL, message).at(self.at..end));
        self.push(Kind::Bad, end);
    }

    fn new_line(&mut self) {
        if self.tokens.last().is_some_and(|t| t.kind == Kind::NewLine) {
            self.at += 1;
        } else {
            self.push(Kind::NewLine, self.at + 1);
        }
    }

    fn value(&mut self) {
        let end = self.run(self.at + 1, is_name_byte);
        match self.byte(self.at + 1) {
            b'.' => self.bad(end, "a value's name does not start with a point".into()),
            _ if end == self.at + 1 => self.bad(end, "expected a name after `%`".into()),
            _ => self.push(Kind::Value, end),
        }
    }

    fn number(&mut self) {
        let digits = |from: usize| self.run(from, |b| b.is_ascii_digit());
        let mut end = digits(self.at + 1);
        let mut kind = Kind::Int;
        if self.byte(end) == b'.' && self.byte(end + 1).is_ascii_digit() {
            (end, kind) = (digits(end + 1), Kind::Float);
        }
        if matches!(self.byte(end), b'e' | b'E') {
            let signed = usize::from(matches!(self.byte(end + 1), b'+' | b'-'));
            if self.byte(end + 1 + signed).is_ascii_digit() {
                (end, kind) = (digits(end + 1 + signed), Kind::Float);
            }
        }
        self.push(kind, end);
    }

    fn string(&mut self) {
        let mut end = self.at + 1;
        loop {
            match self.byte(end) {
                b'"' => break,
                b'\\' if end + 1 < self.text.len() && self.byte(end + 1) != b'\n' => end += 2,
                b'\n' | 0 => {
                    let end = self.run(end.min(self.text.len()), |b| b != b'\n');
                    return self.bad(end, "the string does not end on its line".into());
                }
                _ => end += 1,
            }
        }
        match unquote(self.text.get(self.at + 1..end).unwrap_or("\\")) {
            Some(_) => self.push(Kind::Str, end + 1),
            None => self.bad(end + 1, "unknown escape in a string; escapes are \\\" \\\\ \\n \\r \\t \\u{…}".into()),
        }
    }

    fn stray(&mut self) {
        let c = self.text[self.at..].chars().next().unwrap_or(' ');
        self.bad(self.at + c.len_utf8(), format!("`{}` starts nothing here", c.escape_debug()));
    }
}

/// The text that the inside of a quoted string stands for, or `None` if an escape is unknown.
pub fn unquote(inside: &str) -> Option<String> {
    let mut out = String::with_capacity(inside.len());
    let mut rest = inside.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match rest.next()? {
            c @ ('"' | '\\') => c,
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let hex = rest.as_str().strip_prefix('{')?.split_once('}')?.0;
                rest = rest.as_str()[hex.len() + 2..].chars();
                char::from_u32(u32::from_str_radix(hex, 16).ok()?)?
            }
            _ => return None,
        });
    }
    Some(out)
}

/// The string in quotes, with escapes where they are needed.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(Kind, &str)> {
        lex(text).0.iter().map(|t| (t.kind, &text[t.span()])).collect()
    }

    #[test]
    fn numbers_words_and_values_are_told_apart() {
        let found = kinds("%a/b-c.0=1e-5 -inf -3 comm.x+a1 // no\n\n2.5");
        let expected = [
            (Kind::Value, "%a/b-c.0"),
            (Kind::Sign('='), "="),
            (Kind::Float, "1e-5"),
            (Kind::Float, "-inf"),
            (Kind::Int, "-3"),
            (Kind::Word, "comm.x"),
            (Kind::Sign('+'), "+"),
            (Kind::Word, "a1"),
            (Kind::NewLine, "\n"),
            (Kind::Float, "2.5"),
            (Kind::End, ""),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn quotes_are_undone() {
        for text in ["", "plain", "a\"b\\c\n\t\r\u{7f}\u{1}é", "%x // y"] {
            let quoted = quote(text);
            assert_eq!(unquote(&quoted[1..quoted.len() - 1]).as_deref(), Some(text));
            assert_eq!(kinds(&quoted)[0], (Kind::Str, quoted.as_str()));
        }
    }

    #[test]
    fn what_is_no_token_is_reported_once() {
        for text in ["$", "é", "\"open", "\"\\q\"", "% ", "%.x", "\"a\\", "-", "\"\\é\""] {
            let (tokens, faults) = lex(text);
            assert_eq!((tokens[0].kind, faults.len()), (Kind::Bad, 1), "{text}");
        }
    }
}
