//! Renders diagnostics for a terminal: the message, the source line with a caret, the help.

use std::fmt::Write;
use std::ops::Range;

use galvatron_ir::diagnostic::Diagnostic;

/// Columns that a tab takes.
const TAB: usize = 4;

/// Most columns of a source line that are shown.
const WINDOW: usize = 120;

/// Columns before the caret that a cut line keeps.
const BEFORE: usize = 40;

/// The text of a diagnostic, ending in a newline.
///
/// `source` is the file's name and text; the span of the diagnostic is a byte range in that text. Lines and columns
/// count from one, columns in characters. A span over several lines is marked on its first line.
pub fn render(diagnostic: &Diagnostic, source: Option<(&str, &str)>) -> String {
    let mut out = format!("error[{}]: {}\n", diagnostic.code, printable(&diagnostic.message));
    let place = source.and_then(|(name, text)| Some((name, Place::new(text, diagnostic.span.as_ref()?))));
    let gutter = place.as_ref().map_or(1, |(_, place)| place.line.to_string().len());
    match (place, source) {
        (Some((name, place)), _) => render_place(&mut out, name, &place, diagnostic.label.as_deref(), gutter),
        (None, Some((name, _))) => put(&mut out, format_args!("{:gutter$}--> {name}\n", "")),
        (None, None) => {}
    }
    if let Some(help) = &diagnostic.help {
        render_help(&mut out, help, gutter);
    }
    out
}

/// Several diagnostics about one source, with an empty line between them.
pub fn render_all(diagnostics: &[Diagnostic], source: Option<(&str, &str)>) -> String {
    diagnostics.iter().map(|diagnostic| render(diagnostic, source)).collect::<Vec<_>>().join("\n")
}

/// The first line of a span.
struct Place<'t> {
    /// Line number, from one.
    line: usize,
    /// The line without its end.
    text: &'t str,
    /// The marked bytes of the line.
    marked: Range<usize>,
}

impl<'t> Place<'t> {
    /// Finds a span, which is clamped to the text and to character boundaries.
    fn new(source: &'t str, span: &Range<usize>) -> Self {
        let start = (0..=span.start.min(source.len())).rev().find(|&at| source.is_char_boundary(at)).unwrap_or(0);
        let end = span.end.clamp(start, source.len());
        let end = (end..source.len()).find(|&at| source.is_char_boundary(at)).unwrap_or(source.len());
        let line_start = source[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = source[start..].find('\n').map_or(source.len(), |at| start + at);
        let text = source[line_start..line_end].trim_end_matches('\r');
        let within = |at: usize| (at - line_start).min(text.len());
        let line = source[..line_start].matches('\n').count() + 1;
        Place { line, text, marked: within(start)..within(end) }
    }

    fn column(&self) -> usize {
        self.text[..self.marked.start].chars().count() + 1
    }
}

fn render_place(out: &mut String, name: &str, place: &Place<'_>, label: Option<&str>, gutter: usize) {
    let (shown, indent, carets) = window(place);
    let label = label.map(|label| format!(" {}", printable(label).replace('\n', " "))).unwrap_or_default();
    put(out, format_args!("{:gutter$}--> {name}:{}:{}\n", "", place.line, place.column()));
    put(out, format_args!("{:gutter$} |\n{} | {shown}\n", "", place.line));
    put(out, format_args!("{:gutter$} | {:indent$}{}{label}\n", "", "", "^".repeat(carets)));
}

/// The shown part of the line, the columns before the carets and the number of carets.
fn window(place: &Place<'_>) -> (String, usize, usize) {
    let before = cells(&place.text[..place.marked.start], 0);
    let marked = cells(&place.text[place.marked.clone()], columns(&before));
    let after = cells(&place.text[place.marked.end..], columns(&before) + columns(&marked));
    let (start, carets) = (columns(&before), columns(&marked).max(1));
    let all: Vec<(String, usize)> = before.into_iter().chain(marked).chain(after).collect();
    if columns(&all) <= WINDOW {
        return (join(&all), start, carets);
    }
    cut(&all, start, carets)
}

/// A window of the line from a little before `start`; an ellipsis stands for what is left out.
fn cut(cells: &[(String, usize)], start: usize, carets: usize) -> (String, usize, usize) {
    let from = start.saturating_sub(BEFORE);
    let (mut column, mut left, mut kept) = (0, None, Vec::new());
    for (text, width) in cells {
        if column >= from && column + width <= from + WINDOW {
            left.get_or_insert(column);
            kept.push((text.clone(), *width));
        }
        column += width;
    }
    let (left, right) = (left.unwrap_or(0), left.unwrap_or(0) + columns(&kept));
    let (head, tail) = (if left > 0 { "…" } else { "" }, if right < column { "…" } else { "" });
    let indent = start - left + usize::from(left > 0);
    (format!("{head}{}{tail}", join(&kept)), indent, carets.min(right.saturating_sub(start)).max(1))
}

/// Every character as it is shown, with its width; tabs reach to the next stop, control characters are replaced.
fn cells(text: &str, mut column: usize) -> Vec<(String, usize)> {
    let cell = |c: char| {
        let (shown, width) = match c {
            '\t' => (" ".repeat(TAB - column % TAB), TAB - column % TAB),
            c if c.is_control() => (char::REPLACEMENT_CHARACTER.to_string(), 1),
            c => (c.to_string(), width(c)),
        };
        column += width;
        (shown, width)
    };
    text.chars().map(cell).collect()
}

/// Columns of a character: two for East Asian wide ones and emoji, none for combining marks, else one.
fn width(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036F | 0x200B..=0x200F | 0xFE00..=0xFE0F => 0,
        0x1100..=0x115F | 0x2E80..=0xA4CF | 0xAC00..=0xD7A3 | 0xF900..=0xFAFF | 0xFE30..=0xFE6F => 2,
        0xFF00..=0xFF60 | 0xFFE0..=0xFFE6 | 0x1F300..=0x1FAFF | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

fn columns(cells: &[(String, usize)]) -> usize {
    cells.iter().map(|(_, width)| width).sum()
}

fn join(cells: &[(String, usize)]) -> String {
    cells.iter().map(|(text, _)| text.as_str()).collect()
}

/// Text without control characters, so that a file cannot steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn render_help(out: &mut String, help: &str, gutter: usize) {
    for (index, line) in printable(help).lines().enumerate() {
        let head = if index == 0 { "= help:" } else { "       " };
        put(out, format_args!("{:gutter$} {head} {line}\n", ""));
    }
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("invariant: writing into a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, span: Range<usize>, expected: &str) {
        let diagnostic = Diagnostic::new("G1", "wrong").at(span).label("here");
        let rendered = render(&diagnostic, Some(("a.toml", text)));
        assert_eq!(rendered.strip_prefix("error[G1]: wrong\n").unwrap(), expected);
    }

    #[test]
    fn whole_form() {
        let text = "\n".repeat(11) + "  %d = sub %yp, %t: f32[4, 8]@[_, _]\n}\n";
        let diagnostic = Diagnostic::new("G0203", "`%d`: operand 0 is a partial sum over `tp`")
            .at(22..25)
            .label("declared `+tp` here")
            .help("insert `comm.all_reduce{axis=tp} %yp`,\nor reduce it before");
        assert_eq!(
            render(&diagnostic, Some(("plan.gir", &text))),
            "error[G0203]: `%d`: operand 0 is a partial sum over `tp`\n  --> plan.gir:12:12\n   |\n\
             12 |   %d = sub %yp, %t: f32[4, 8]@[_, _]\n   |            ^^^ declared `+tp` here\n   \
             = help: insert `comm.all_reduce{axis=tp} %yp`,\n           or reduce it before\n"
        );
    }

    #[test]
    fn without_a_place() {
        let diagnostic = Diagnostic::new("unsupported", "no").help("do");
        assert_eq!(render(&diagnostic, None), "error[unsupported]: no\n  = help: do\n");
        assert_eq!(render(&diagnostic, Some(("a", "x"))), "error[unsupported]: no\n --> a\n  = help: do\n");
        assert_eq!(render(&Diagnostic::new("a", "b").at(3..4), None), "error[a]: b\n");
    }

    #[test]
    fn tabs_and_wide_characters_keep_the_caret_in_place() {
        check("\ta = 1", 1..2, " --> a.toml:1:2\n  |\n1 |     a = 1\n  |     ^ here\n");
        check("名 = \"é\"", 6..10, " --> a.toml:1:5\n  |\n1 | 名 = \"é\"\n  |      ^^^ here\n");
    }

    #[test]
    fn a_span_of_several_lines_is_marked_on_the_first() {
        check("x\r\nab = [\r\n1]", 5..14, " --> a.toml:2:3\n  |\n2 | ab = [\n  |   ^^^^ here\n");
    }

    #[test]
    fn spans_beyond_the_text_are_clamped() {
        check("ab", 7..9, " --> a.toml:1:3\n  |\n1 | ab\n  |   ^ here\n");
        check("é", 1..1, " --> a.toml:1:1\n  |\n1 | é\n  | ^ here\n");
        check("a\n", 2..2, " --> a.toml:2:1\n  |\n2 | \n  | ^ here\n");
    }

    #[test]
    fn long_lines_are_cut_around_the_span() {
        let text = format!("{}bad{}", "x".repeat(300), "y".repeat(300));
        let expected = format!(
            " --> a.toml:1:301\n  |\n1 | …{}bad{}…\n  | {}^^^ here\n",
            "x".repeat(40),
            "y".repeat(77),
            " ".repeat(41)
        );
        check(&text, 300..303, &expected);
        let all = format!(" --> a.toml:1:1\n  |\n1 | {}…\n  | {} here\n", "x".repeat(120), "^".repeat(120));
        check(&"x".repeat(400), 0..400, &all);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let diagnostic = Diagnostic::new("a", "b\u{1b}[31m").at(0..1);
        assert!(!render(&diagnostic, Some(("f", "\u{1b}[0m"))).contains('\u{1b}'));
    }

    #[test]
    fn several_are_separated() {
        let two = [Diagnostic::new("a", "b"), Diagnostic::new("c", "d")];
        assert_eq!(render_all(&two, None), "error[a]: b\n\nerror[c]: d\n");
    }
}
