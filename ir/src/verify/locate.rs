//! Turns findings into diagnostics that point into the text of a module.

use super::{Finding, Part, Site};
use crate::diagnostic::Diagnostic;
use std::ops::Range;

/// Knows where the parts of a module are in its text.
pub trait Locate {
    /// Byte range of a site, if the text has it.
    fn range(&self, site: &Site) -> Option<Range<usize>>;
}

/// The findings as diagnostics; each points at its site, or at the whole node where the part has no range of its own.
pub fn diagnostics(findings: &[Finding], text: &dyn Locate) -> Vec<Diagnostic> {
    findings.iter().map(|finding| Diagnostic { span: span(&finding.at, text), ..without_text(finding) }).collect()
}

/// The finding as a diagnostic of a module that has no text.
pub fn without_text(finding: &Finding) -> Diagnostic {
    let plain = Diagnostic::new(finding.code, finding.message.clone());
    Diagnostic { help: finding.help.clone(), ..plain }
}

fn span(site: &Site, text: &dyn Locate) -> Option<Range<usize>> {
    text.range(site).or_else(|| text.range(&whole(site)))
}

fn whole(site: &Site) -> Site {
    match *site {
        Site::ProgramNode(node, _) => Site::ProgramNode(node, Part::Whole),
        Site::ChunkNode(chunk, node, _) => Site::ChunkNode(chunk, node, Part::Whole),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    /// A text that knows whole nodes only.
    struct WholeNodes;

    impl Locate for WholeNodes {
        fn range(&self, site: &Site) -> Option<Range<usize>> {
            match site {
                Site::ChunkNode(_, node, Part::Whole) => Some(node.index() * 10..node.index() * 10 + 9),
                _ => None,
            }
        }
    }

    #[test]
    fn a_part_without_a_range_is_shown_by_its_node() {
        let finding = Finding::new("G0203", Site::ChunkNode(0, NodeId(2), Part::Arg(1)), "no").help("mend it");
        let shown = diagnostics(&[finding], &WholeNodes);
        assert_eq!(shown, [Diagnostic::new("G0203", "no").at(20..29).help("mend it")]);
    }
}
