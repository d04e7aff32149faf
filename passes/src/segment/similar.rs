//! Layers that are similar: they have the same weights, and are not equal. Blocks of Swin differ in whether their windows are
//! shifted, blocks of other models in how far attention reaches.
//!
//! A program can be cut where one value crosses. Between neighbouring cuts lie parts, and what counts of a part are the types
//! of the trained weights that it reads. Parts repeat where these do, and where what crosses has one type throughout.

use super::{MIN_LAYER_NODES, Piece, Runs};
use galvatron_ir::types::TensorType;
use std::ops::Range;

/// A stretch between two cuts.
struct Part<'a> {
    range: Range<usize>,
    /// Types of the trained weights that it reads, sorted.
    weights: Vec<&'a TensorType>,
    /// Type of what crosses into it, and out of it.
    crosses: [Option<&'a TensorType>; 2],
}

/// The piece with its runs divided into similar parts, if they consist of such.
pub(super) fn divided(runs: &Runs<'_>, piece: Piece) -> Piece {
    let range = piece.start..piece.start + piece.period;
    match best_run(runs, range.clone()) {
        Some(found) if found.start == range.start && found.period == range.len() => Piece { cuts: found.cuts, ..piece },
        _ => piece,
    }
}

/// The longest run of similar layers in a range, as one run with cuts.
pub(super) fn best_run(runs: &Runs<'_>, range: Range<usize>) -> Option<Piece> {
    let parts = parts(runs, range);
    let mut best: Option<Piece> = None;
    for n in 1..=parts.len() / 2 {
        for first in 0..=parts.len() - 2 * n {
            let count = repeats(&parts[first..], n);
            let layers = &parts[first..first + n * count];
            if count > 1 && layers.chunks(n).all(|layer| is_layer(runs, layer)) {
                let piece = piece_of(layers, n);
                best = best.filter(|best| best.period >= piece.period).or(Some(piece));
            }
        }
    }
    best
}

fn is_layer(runs: &Runs<'_>, parts: &[Part<'_>]) -> bool {
    let range = parts[0].range.start..parts[parts.len() - 1].range.end;
    range.len() >= MIN_LAYER_NODES && runs.contracts(range)
}

/// How often the first `n` parts repeat from the start: equal weights, and one type of what crosses.
fn repeats(parts: &[Part<'_>], n: usize) -> usize {
    let [Some(into), Some(out)] = [parts[0].crosses[0], parts[n - 1].crosses[1]] else { return 1 };
    if into != out {
        return 1;
    }
    let repeats = |layer: &&[Part<'_>]| {
        let weights = layer.iter().map(|p| &p.weights).eq(parts[..n].iter().map(|p| &p.weights));
        weights && layer[n - 1].crosses[1] == Some(out)
    };
    parts.chunks_exact(n).take_while(repeats).count()
}

/// Layers of `n` parts each as one run.
fn piece_of(layers: &[Part<'_>], n: usize) -> Piece {
    let (start, end) = (layers[0].range.start, layers[layers.len() - 1].range.end);
    let cuts = layers.iter().step_by(n).skip(1).map(|part| part.range.start - start).collect();
    Piece { start, period: end - start, count: 1, cuts }
}

/// The parts of a range; what lies outside of its first and last cut is left out.
fn parts<'a>(runs: &Runs<'a>, range: Range<usize>) -> Vec<Part<'a>> {
    let cuts: Vec<usize> = (range.start..=range.end).filter(|&at| crosses(runs, at).is_some()).collect();
    let part = |pair: &[usize]| {
        let range = pair[0]..pair[1];
        let crosses = [crosses(runs, pair[0]), crosses(runs, pair[1])];
        Part { weights: weights(runs, range.clone()), crosses, range }
    };
    cuts.windows(2).map(part).collect()
}

/// The type of the one value that is computed before a position and read from it on, if the node in front of it makes it.
fn crosses<'a>(runs: &Runs<'a>, at: usize) -> Option<&'a TensorType> {
    let made = |&node: &galvatron_ir::NodeId| runs.program.graph.node(node).results.first();
    let value = runs.order.get(at.checked_sub(1)?).and_then(made)?;
    (runs.crossing[at] == 1 && runs.last_read[value.index()] >= at).then(|| &runs.program.graph.value(*value).ty)
}

fn weights<'a>(runs: &Runs<'a>, range: Range<usize>) -> Vec<&'a TensorType> {
    let graph = &runs.program.graph;
    let args = runs.order[range].iter().flat_map(|&node| &graph.node(node).args);
    let mut types: Vec<&TensorType> =
        args.filter(|arg| runs.weights.contains(arg)).map(|&arg| &graph.value(arg).ty).collect();
    types.sort_unstable();
    types
}

#[cfg(test)]
mod tests {
    use crate::segment::{layers, segment};
    use galvatron_ir::text::parse;
    use std::fmt::Write;

    /// Layers of one weight, in turn with `exp` and with `tanh` in them, and between two of them one that changes the type.
    fn program(stages: &[usize]) -> String {
        let (mut weights, mut body, mut names) = (String::new(), String::new(), String::new());
        let (mut x, mut i) = ("x0".to_string(), 0);
        let mut line = |text: String| writeln!(body, "    {text}").expect("strings take everything");
        line("%x0 = neg %x: f32[2, 4]".into());
        for (stage, &n) in stages.iter().enumerate() {
            let width = 4 << stage;
            let mut weight = |name: &str, rows: usize, columns: usize| {
                writeln!(weights, "  initializer \"{name}\" = {{file=\"none\", offset=0}} f32[{rows}, {columns}]")
                    .expect("strings take everything");
                writeln!(names, "    weight %{name} = \"{name}\": f32[{rows}, {columns}]")
                    .expect("strings take everything");
            };
            if stage > 0 {
                weight(&format!("m{stage}"), width / 2, width);
                line(format!("%x{i}m = einsum{{spec=\"bk,kn->bn\"}} %{x}, %m{stage}: f32[2, {width}]"));
                x = format!("x{i}m");
            }
            for layer in 0..n {
                weight(&format!("w{i}"), width, width);
                line(format!("%a{i} = einsum{{spec=\"bk,kn->bn\"}} %{x}, %w{i}: f32[2, {width}]"));
                let op = if layer % 2 == 0 { "exp" } else { "tanh" };
                line(format!("%b{i} = {op} %a{i}: f32[2, {width}]"));
                line(format!("%c{i} = mul %b{i}, %a{i}: f32[2, {width}]"));
                line(format!("%d{i} = neg %c{i}: f32[2, {width}]"));
                line(format!("%e{i} = mul %d{i}, %b{i}: f32[2, {width}]"));
                line(format!("%y{i} = add %{x}, %e{i}: f32[2, {width}]"));
                x = format!("y{i}");
                i += 1;
            }
        }
        let start = "gir 1\nmodule @m level=graph {\n";
        format!(
            "{start}{weights}  program {{\n    input %x = \"x\": f32[2, 4]\n{names}{body}    output \"y\" %{x}\n  }}\n}}\n"
        )
    }

    fn check(stages: &[usize]) {
        let mut program = parse(&program(stages)).expect("the text is right").program;
        let segments = segment(&mut program);
        assert_eq!(layers(&segments), stages);
        let of_layers = segments.iter().filter(|s| s.is_layer);
        assert!(of_layers.clone().all(|s| s.nodes.len() == 6), "{segments:?}");
        let classes: std::collections::BTreeSet<usize> = of_layers.map(|s| s.class).collect();
        assert_eq!(classes.len(), 2 * stages.len(), "two classes a stage");
    }

    #[test]
    fn layers_that_differ_in_turn_are_layers_of_their_own() {
        check(&[2]);
        check(&[6]);
        check(&[2, 2, 6, 2]);
    }
}
