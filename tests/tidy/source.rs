//! Rust sources as the tidiness tests read them: what is code and not comment or literal, and what of it is no test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A Rust file of the repository.
pub struct Source {
    /// Path from the root of the repository, with slashes.
    pub path: String,
    /// The text as it is.
    pub text: String,
    /// The text with comments and literals blanked; every line keeps its number.
    pub code: String,
    /// `code` with everything under `#[cfg(test)]` blanked; empty if the whole file is a test.
    pub shipped: String,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files of the repository that are not built or ignored, by path from the root, sorted.
pub fn files() -> Vec<String> {
    let mut found = Vec::new();
    walk(&root(), "", &mut found);
    found.sort();
    found
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{prefix}{name}");
        match entry.file_type().unwrap().is_dir() {
            _ if path == "target" || name == ".git" => {}
            true => walk(&entry.path(), &format!("{path}/"), found),
            false if name.ends_with(".snap.new") => {}
            false => found.push(path),
        }
    }
}

/// All Rust files.
pub fn sources() -> Vec<Source> {
    let read = |path: String| {
        let text = std::fs::read_to_string(root().join(&path)).unwrap();
        let code = blank_literals(&text);
        (path, text, code)
    };
    let all: Vec<_> = files().into_iter().filter(|p| p.ends_with(".rs")).map(read).collect();
    let test_modules: BTreeSet<String> = all.iter().flat_map(|(path, _, code)| test_modules(path, code)).collect();
    let is_test = |path: &str| {
        let in_module = |m: &String| path == format!("{m}.rs") || path.starts_with(&format!("{m}/"));
        path.starts_with("tests/") || test_modules.iter().any(in_module)
    };
    let source = |(path, text, code): (String, String, String)| {
        let shipped = if is_test(&path) { String::new() } else { blank_tests(&code) };
        Source { path, text, code, shipped }
    };
    all.into_iter().map(source).collect()
}

/// Paths, without ending, of the modules that a file declares under `#[cfg(test)]`.
fn test_modules(path: &str, code: &str) -> Vec<String> {
    let stem = path.strip_suffix(".rs").unwrap();
    let (folder, name) = stem.rsplit_once('/').unwrap_or(("", stem));
    let inside = if ["mod", "lib", "main"].contains(&name) { folder.to_string() } else { stem.to_string() };
    let declared = code.split("#[cfg(test)]").skip(1).filter_map(|rest| {
        let rest = rest.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
        let name = rest.strip_prefix("mod ")?;
        let end = name.find(|c: char| !is_word(c))?;
        name[end..].starts_with(';').then(|| format!("{inside}/{}", &name[..end]))
    });
    declared.collect()
}

/// Whether a character belongs to an identifier.
pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Positions of a word in code, where it stands by itself.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The number of the line at a position, from one.
pub fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The end of the item or block that starts at `from`: behind its closing brace, or behind a semicolon outside of brackets.
pub fn item_end(code: &str, from: usize) -> usize {
    let (mut braces, mut brackets) = (0, 0);
    for (i, c) in code[from..].bytes().enumerate() {
        match c {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets -= 1,
            b'{' => braces += 1,
            b'}' => {
                braces -= 1;
                if braces == 0 {
                    return from + i + 1;
                }
            }
            b';' if braces == 0 && brackets == 0 => return from + i + 1,
            _ => {}
        }
    }
    code.len()
}

fn blank_tests(code: &str) -> String {
    let mut out = code.to_string();
    while let Some(at) = out.find("#[cfg(test)]") {
        let end = item_end(&out, at + "#[cfg(test)]".len());
        let blank: String = out[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(at..end, &blank);
    }
    out
}

/// Replaces comments, strings and characters by spaces; quotes go too. Line ends stay.
pub fn blank_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        match end {
            Some(end) => out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' })),
            None => out.push(chars[at]),
        }
        at = end.unwrap_or(at + 1);
    }
    out
}

/// The end of the comment or literal that starts here, if one does.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let next = |i: usize| chars.get(at + i).copied().unwrap_or('\0');
    let starts_word = at == 0 || !is_word(chars[at - 1]);
    match chars[at] {
        '/' if next(1) == '/' => Some(find(chars, at, |c| c == '\n')),
        '/' if next(1) == '*' => Some(block_comment_end(chars, at)),
        '"' => Some(string_end(chars, at + 1)),
        'r' if starts_word && (next(1) == '"' || next(1) == '#') => raw_string_end(chars, at + 1),
        'b' if starts_word && next(1) == 'r' => raw_string_end(chars, at + 2),
        '\'' if next(1) == '\\' => Some(find(chars, at + 3, |c| c == '\'') + 1),
        '\'' if next(2) == '\'' => Some(at + 3),
        _ => None,
    }
}

fn find(chars: &[char], from: usize, is: impl Fn(char) -> bool) -> usize {
    (from..chars.len()).find(|&i| is(chars[i])).unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0, at);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// The end of a raw string whose hashes start at `at`; `None` if it is a raw identifier.
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at..].iter().take_while(|&&c| c == '#').count();
    if chars.get(at + hashes) != Some(&'"') {
        return None;
    }
    let closes =
        |i: &usize| chars[*i] == '"' && chars[i + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes;
    let quote = (at + hashes + 1..chars.len()).find(closes);
    Some(quote.map_or(chars.len(), |i| i + 1 + hashes))
}
