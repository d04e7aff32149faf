//! Damages a plan in every place of a kind, one at a time: whatever is deleted, swapped, replaced or moved, it is refused.

use crate::edit::Lines;
use crate::plans::Job;
use galvatron_ir::text::print;
use std::collections::BTreeSet;
use std::ops::Range;

/// Small plans of every kind: data and tensor axes, ZeRO, two micro-batches, recomputation.
fn plans() -> Vec<Lines> {
    let gpt2 = "dp = 2\ntp = 2\nzero = 1\nmicro_batches = 2\nrecompute = \"selective\"\n";
    let jobs = [
        Job { model: "mlp", train: "", ranks: 2, strategy: "dp = 2\nzero = 2\nmicro_batches = 2\n" },
        Job { model: "mlp", train: "", ranks: 4, strategy: "dp = 2\ntp = 2\nzero = 3\nmicro_batches = 2\n" },
        Job { model: "gpt2", train: "", ranks: 4, strategy: gpt2 },
    ];
    let plan = |job: Job| job.compile(&mut |_, _| {}).expect("the pins can be met").module;
    jobs.map(|job| Lines::new(&print(&plan(job)))).to_vec()
}

/// The residents and statements that are tried: one of those that are equal but for names and places.
fn tried(plan: &Lines) -> Vec<usize> {
    let residents = (0..plan.0.len()).filter(|&i| plan.0[i].starts_with("    resident "));
    let mut seen = BTreeSet::new();
    let is_part = |word: &&str| !word.starts_with(['%', 't', 'p']) && !word.starts_with("of=") && !word.contains('+');
    let signature = |i: usize| {
        let words = plan.0[i].split([' ', ',']).filter(|w| is_part(w) || w.contains("]+"));
        words.collect::<Vec<_>>().join(" ").replace("layer=2", "layer=1")
    };
    residents.chain(plan.nodes()).filter(|&i| seen.insert(signature(i))).collect()
}

/// Tries the damages of each statement; the plan must be refused for each.
fn check(damages: impl Fn(&Lines, usize) -> Vec<Lines>) {
    let mut missed = Vec::new();
    let mut n_tried = 0;
    for plan in plans() {
        for line in tried(&plan) {
            for damaged in damages(&plan, line) {
                n_tried += 1;
                if damaged.diagnostics().is_empty() {
                    missed.push(format!("{}\n  as: {}", plan.0[line], damaged.0[line]));
                }
            }
        }
    }
    println!("{n_tried} damages");
    assert!(n_tried > 100, "{n_tried} damages are no sweep");
    assert!(missed.is_empty(), "{} of {n_tried} damaged plans pass:\n{}", missed.len(), missed.join("\n"));
}

/// The line with another text.
fn with_line(plan: &Lines, line: usize, text: String) -> Lines {
    let mut damaged = plan.clone();
    damaged.0[line] = text;
    damaged
}

#[test]
fn no_statement_can_be_left_out() {
    check(|plan, line| {
        let mut damaged = plan.clone();
        damaged.remove(line);
        vec![damaged]
    });
}

#[test]
fn no_two_operands_can_be_swapped() {
    check(|plan, line| {
        let statement = plan.statement(line);
        let swaps = (1..statement.operands.len()).filter(|&i| statement.operands[i - 1] != statement.operands[i]);
        let swapped = swaps.map(|i| {
            let mut statement = statement.clone();
            statement.operands.swap(i - 1, i);
            with_line(plan, line, statement.spell())
        });
        swapped.collect()
    });
}

/// A resident or a result of a chunk as it is declared.
struct Declared {
    line: usize,
    name: String,
    /// The program value that it is a copy of.
    of: String,
    /// Type and placement.
    ty: String,
}

/// The residents and results of the chunk.
fn declared(plan: &Lines) -> Vec<Declared> {
    let residents = (0..plan.0.len()).filter(|&i| plan.0[i].starts_with("    resident "));
    let mut values = Vec::new();
    for line in residents.chain(plan.nodes()) {
        let statement = plan.statement(line);
        let names = if statement.results.is_empty() { statement.operands } else { statement.results };
        // Behind the colon: `type of=%a at place, type of=%b at place layer=0`.
        let tails: Vec<&str> = statement.tail.split(" of=").collect();
        for (i, name) in names.into_iter().enumerate().take(tails.len() - 1) {
            let ty = tails[i].split_once(if i == 0 { ": " } else { ", " }).map_or("", |(_, ty)| ty).to_string();
            let of = tails[i + 1].split([' ', ',']).next().unwrap_or_default().to_string();
            values.push(Declared { line, name, of, ty });
        }
    }
    values
}

#[test]
fn no_operand_can_be_another_value() {
    check(|plan, line| {
        let values = declared(plan);
        let statement = plan.statement(line);
        let mut damaged = Vec::new();
        for (i, operand) in statement.operands.iter().enumerate() {
            let Some(value) = values.iter().find(|v| v.name == *operand) else { continue };
            let like = |v: &&Declared| v.line < line && v.of != value.of && v.ty == value.ty;
            // The nearest one before, and the first of all.
            let others = values.iter().rfind(like).into_iter().chain(values.iter().find(like));
            damaged.extend(others.map(|other| {
                let mut statement = statement.clone();
                statement.operands[i] = other.name.clone();
                with_line(plan, line, statement.spell())
            }));
        }
        damaged
    });
}

#[test]
fn no_value_can_be_a_copy_of_another() {
    check(|plan, line| {
        let values = declared(plan);
        let own = values.iter().filter(|v| v.line == line);
        let damaged = own.flat_map(|value| {
            let like = |v: &&Declared| v.of != value.of && v.ty == value.ty;
            let others = values.iter().rfind(like).into_iter().chain(values.iter().find(like));
            others.map(|other| {
                let (from, to) = (format!(" of={} ", value.of), format!(" of={} ", other.of));
                with_line(plan, line, plan.0[line].replacen(&from, &to, 1))
            })
        });
        damaged.collect()
    });
}

/// The ranges of the placements in a line, from behind the `@` to the space or comma behind them.
fn placements(text: &str) -> Vec<Range<usize>> {
    let end = |start: usize| {
        let close = start + text[start..].find(']').expect("a placement is closed");
        close + text[close..].find([' ', ',']).unwrap_or(text.len() - close)
    };
    text.match_indices('@').map(|(at, _)| at + 1..end(at + 1)).collect()
}

/// Placements that differ in one axis: added, taken away, or summed.
fn other_placements(placement: &str) -> BTreeSet<String> {
    let (dims, partial) = placement.split_once(']').expect("a placement is closed");
    let mut others = BTreeSet::from([format!("{dims}]")]);
    for axis in ["a0", "a1", "mb", "mb.a0"] {
        others.insert(format!("{dims}]+{axis}"));
        others.insert(format!("{}]{partial}", dims.replacen('_', axis, 1)));
        others.insert(format!("{}]{partial}", dims.replacen(axis, "_", 1)));
    }
    others.remove(placement);
    others
}

#[test]
fn no_placement_can_be_another() {
    check(|plan, line| {
        let text = &plan.0[line];
        let others = placements(text).into_iter().flat_map(|range| {
            let others = other_placements(&text[range.clone()]).into_iter();
            others.map(move |other| format!("{}{other}{}", &text[..range.start], &text[range.end..]))
        });
        others.map(|text| with_line(plan, line, text)).collect()
    });
}

#[test]
fn no_number_of_an_op_can_be_another() {
    check(|plan, line| {
        let statement = plan.statement(line);
        let mut damaged = Vec::new();
        let op = statement.op.as_bytes();
        for i in (0..op.len()).filter(|&i| op[i].is_ascii_digit() && !op[i - 1].is_ascii_alphanumeric()) {
            let mut statement = statement.clone();
            let other = if op[i] == b'9' { '8' } else { (op[i] + 1) as char };
            statement.op.replace_range(i..=i, &other.to_string());
            damaged.push(with_line(plan, line, statement.spell()));
        }
        damaged
    });
}

#[test]
fn no_value_can_lie_on_a_resident() {
    check(|plan, line| {
        let text = &plan.0[line];
        let places = text.match_indices(" at ").map(|(at, _)| at + 4);
        let end = |start: usize| start + text[start..].find([' ', ',']).unwrap_or(text.len() - start);
        let moved = places
            .filter(|&at| &text[at..end(at)] != "persistent+0")
            .map(|at| with_line(plan, line, format!("{}persistent+0{}", &text[..at], &text[end(at)..])));
        moved.collect()
    });
}
