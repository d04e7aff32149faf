//! The faults that a text can have: their codes, and the words for those that occur in many places.

use crate::diagnostic::Diagnostic;
use std::ops::Range;

/// A character or string that is no token.
pub const LEXICAL: &str = "G0101";
/// Something else was expected here.
pub const SYNTAX: &str = "G0102";
/// The text is of another version of the format.
pub const VERSION: &str = "G0103";
/// An unknown keyword, level, role, region, phase or element type.
pub const KEYWORD: &str = "G0104";
/// A section that is missing, given twice, or not closed.
pub const SECTION: &str = "G0105";
/// An unknown op.
pub const OP: &str = "G0106";
/// An unknown value.
pub const VALUE: &str = "G0107";
/// A name that is defined twice.
pub const REDEFINED: &str = "G0108";
/// A missing, unknown, doubled or ill-typed attribute.
pub const ATTRIBUTE: &str = "G0109";
/// A declared type that is not what the op gives, or operands that the op does not take.
pub const TYPE: &str = "G0110";
/// An unknown mesh axis.
pub const AXIS: &str = "G0111";
/// A placement whose rank is not the value's.
pub const RANK: &str = "G0112";
/// A number out of range.
pub const NUMBER: &str = "G0113";
/// An unknown initializer.
pub const INITIALIZER: &str = "G0114";
/// A mesh that cannot be.
pub const MESH: &str = "G0115";
/// A cluster that cannot be.
pub const CLUSTER: &str = "G0116";
/// An unknown literal, or one that is no list of numbers.
pub const LITERAL: &str = "G0117";

/// More candidates than this are not listed in a help line.
const LISTED: usize = 8;

/// An unknown word of some kind, with the nearest known one or the list of all as help.
pub fn unknown<'c>(
    (code, what): (&'static str, &str),
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
    span: Range<usize>,
) -> Diagnostic {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let fault = Diagnostic::new(code, format!("unknown {what} `{word}`")).at(span);
    match nearest(word, &candidates) {
        Some(near) => fault.help(format!("did you mean `{near}`?")),
        None if !candidates.is_empty() && candidates.len() <= LISTED => {
            fault.help(format!("known are `{}`", candidates.join("`, `")))
        }
        None => fault,
    }
}

/// The candidate that is most like the word, if at most a third of the word differs; the first of equals.
///
/// A candidate is also compared without what stands before its last point, so `all_reduce` finds `comm.all_reduce`.
pub fn nearest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let bound = word.chars().count() / 3;
    let mut best: Option<(usize, &str)> = None;
    for &candidate in candidates {
        let last = candidate.rsplit('.').next().unwrap_or(candidate);
        let within = best.map_or(bound, |(d, _)| d - 1);
        let Some(found) = [candidate, last].iter().filter_map(|c| distance(word, c, within)).min() else { continue };
        if found == 0 {
            return Some(candidate);
        }
        best = Some((found, candidate));
    }
    best.map(|(_, c)| c)
}

/// The number of insertions, deletions and replacements between two words (Levenshtein), if it is within the bound.
fn distance(a: &str, b: &str, bound: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > 4 * bound {
        return None;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    let found = row[b.len()];
    (found <= bound).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_last_parts() {
        let known = ["relu", "relu_grad", "comm.all_reduce", "comm.all_gather", "layer_norm"];
        assert_eq!(nearest("rellu", &known), Some("relu"));
        assert_eq!(nearest("layernorm", &known), Some("layer_norm"));
        assert_eq!(nearest("a9", &["a0"]), None);
        assert_eq!(nearest("all_reduce", &known), Some("comm.all_reduce"));
        assert_eq!(nearest("convolution", &known), None);
    }
}
