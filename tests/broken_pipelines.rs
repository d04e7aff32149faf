//! A pipelined plan whose communication is damaged is refused before it runs: a missing or doubled message, a wrong channel, peer or
//! group, phases out of order, a micro-batch too few, stages that wait for each other. Each kind is tried at places that a seed picks.

#[path = "plans/edit.rs"]
#[allow(dead_code)]
mod edit;
mod plans;

use edit::Lines;
use galvatron_ir::plan::Room;
use galvatron_ir::text::{parse, print};
use galvatron_ir::verify::deadlocks;
use plans::Job;
use std::sync::LazyLock;

/// GPT-2 on eight ranks: two stages, in each two ranks that share the batch and two that share the weights.
static STAGES: LazyLock<Lines> = LazyLock::new(|| {
    plan("pp = 2\ndp = 2\ntp = 2\nzero = 1\nmicro_batches = 2\n[embedding]\ntp = 2\n[head]\ntp = 2\n", 8)
});

/// The same on two ranks, with all forwards first.
static GPIPE: LazyLock<Lines> = LazyLock::new(|| plan("pp = 2\nschedule = \"gpipe\"\nmicro_batches = 4\n", 2));

fn plan(strategy: &str, ranks: u32) -> Lines {
    let job = Job { model: "gpt2", train: "[optimizer]\nclip_norm = 1.0\n", ranks, strategy };
    Lines::new(&print(&job.compile(&mut |_, _| {}).expect("the pins can be met").module))
}

/// Damages a plan in as many ways as it has matching lines, at most `most` of them spread over all, and expects one of the codes.
#[track_caller]
fn refused(plan: &Lines, codes: &[&str], needles: &[&str], most: usize, damage: impl Fn(&mut Lines, usize)) -> usize {
    let matching: Vec<usize> =
        (0..plan.0.len()).filter(|&i| needles.iter().all(|needle| plan.0[i].contains(needle))).collect();
    assert!(!matching.is_empty(), "no line has {needles:?}");
    let n = matching.len().min(most);
    for k in 0..n {
        let line = matching[k * matching.len() / n];
        let mut lines = plan.clone();
        damage(&mut lines, line);
        assert_ne!(lines.0, plan.0, "nothing was damaged: {}", plan.0[line]);
        let found = lines.diagnostics();
        let first = found.first().unwrap_or_else(|| panic!("the damaged plan passes: {}", plan.0[line]));
        assert!(codes.contains(&first.code), "{first}\non: {}", plan.0[line]);
        assert!(first.span.is_some(), "{first} points at nothing");
    }
    n
}

/// The lines with the schedule of a stage, cut into its entries.
fn entries(lines: &Lines, line: usize) -> Vec<String> {
    lines.0[line].split(' ').map(str::to_string).collect()
}

fn swap_entries(lines: &mut Lines, line: usize, a: &str, b: &str) {
    let mut words = entries(lines, line);
    let at = |word: &str| words.iter().position(|w| w == word).unwrap_or_else(|| panic!("no entry {word}"));
    let (a, b) = (at(a), at(b));
    words.swap(a, b);
    lines.0[line] = words.join(" ");
}

fn drop_entry(lines: &mut Lines, line: usize, entry: &str) {
    let words: Vec<String> = entries(lines, line).into_iter().filter(|word| word != entry).collect();
    lines.0[line] = words.join(" ");
}

/// Another number for the channel of a line.
fn rechannel(lines: &mut Lines, line: usize, to: impl Fn(u32) -> u32) {
    let text = &lines.0[line];
    let (head, rest) = text.split_once("channel=").expect("the line has a channel");
    let (number, tail) = rest.split_once(',').expect("more follows the channel");
    let number: u32 = number.parse().expect("a channel is a number");
    lines.0[line] = format!("{head}channel={},{tail}", to(number));
}

#[test]
fn undamaged_pipelines_pass() {
    assert_eq!((STAGES.diagnostics(), GPIPE.diagnostics()), (Vec::new(), Vec::new()));
}

#[test]
fn missing_and_doubled_messages_are_refused() {
    let mut n = refused(&STAGES, &["G0215"], &["pipe.send"], 5, |l, line| drop(l.0.remove(line)));
    n += refused(&STAGES, &["G0201", "G0107"], &["pipe.recv"], 5, |l, line| drop(l.0.remove(line)));
    n += refused(&STAGES, &["G0215"], &["pipe.send"], 3, |l, line| l.0.insert(line, l.0[line].clone()));
    assert!(n >= 10, "{n}");
}

#[test]
fn wrong_channels_and_peers_are_refused() {
    let mut n = refused(&STAGES, &["G0215"], &["pipe.send"], 4, |l, line| rechannel(l, line, |c| c + 1));
    n += refused(&STAGES, &["G0215"], &["pipe.recv"], 4, |l, line| rechannel(l, line, |c| c + 1000));
    n += refused(&STAGES, &["G0215"], &["pipe.send", "to=1"], 2, |l, line| l.replace(line, "to=1", "to=0"));
    n += refused(&STAGES, &["G0215"], &["pipe.recv", "from=0"], 2, |l, line| l.replace(line, "from=0", "from=7"));
    assert!(n >= 10, "{n}");
}

#[test]
fn wrong_groups_are_refused() {
    let swap = |l: &mut Lines, line: usize| match l.0[line].contains("axes=[a0]") {
        true => l.replace(line, "axes=[a0]", "axes=[a1]"),
        false => l.replace(line, "axes=[a1]", "axes=[a0]"),
    };
    let codes = ["G0203", "G0204", "G0206"];
    let mut n = refused(&STAGES, &codes, &["comm.all_reduce{axes=[a1]}"], 4, swap);
    n += refused(&STAGES, &codes, &["comm.reduce_scatter{axes=[a0]"], 4, swap);
    assert!(n >= 5, "{n}");
}

#[test]
fn phases_out_of_order_and_short_schedules_are_refused() {
    let stage = "schedule of 0";
    let mut n = refused(&GPIPE, &["G0211"], &[stage], 1, |l, line| swap_entries(l, line, "F0.1", "F0.2"));
    n += refused(&GPIPE, &["G0211"], &[stage], 1, |l, line| swap_entries(l, line, "F0.0", "B0.0"));
    n += refused(&GPIPE, &["G0211"], &["schedule of 1"], 1, |l, line| swap_entries(l, line, "R1", "B1.3"));
    n += refused(&GPIPE, &["G0211"], &["schedule of 1"], 1, |l, line| swap_entries(l, line, "R1", "S1"));
    for entry in ["F0.3", "B0.3", "F0.0", "B0.1"] {
        n += refused(&GPIPE, &["G0211"], &[stage], 1, |l, line| drop_entry(l, line, entry));
    }
    n += refused(&GPIPE, &["G0211"], &["slots {count=4"], 2, |l, line| l.replace(line, "count=4", "count=3"));
    assert!(n >= 9, "{n}");
}

/// Each stage by itself is in order, but the first one waits for a gradient of a micro-batch that it has not sent.
#[test]
fn stages_that_wait_for_each_other_are_refused() {
    let mut lines = GPIPE.clone();
    let line = lines.0.iter().position(|l| l.contains("schedule of 1")).expect("there are two stages");
    let forwards = ["F1.0", "F1.1", "F1.2", "F1.3"];
    let mut words: Vec<String> =
        entries(&lines, line).into_iter().filter(|w| !forwards.contains(&w.as_str())).collect();
    let at = words.iter().position(|w| w == "B1.0").expect("there are backwards");
    words.splice(at..at, forwards.map(String::from));
    lines.0[line] = words.join(" ");
    // Stage 0 runs its first backward before its last forward; stage 1 wants all forwards first.
    let line = lines.0.iter().position(|l| l.contains("schedule of 0")).expect("there are two stages");
    let mut words = entries(&lines, line);
    let from = words.iter().position(|w| w == "B0.0").expect("there are backwards");
    let entry = words.remove(from);
    let at = words.iter().position(|w| w == "F0.3").expect("there are forwards");
    words.insert(at, entry);
    lines.0[line] = words.join(" ");
    let found = lines.diagnostics();
    assert_eq!(found.iter().map(|f| f.code).collect::<Vec<_>>(), ["G0211", "G0211"], "{found:?}");
    assert!(found.iter().all(|f| f.message.contains("waits for ever")), "{found:?}");
}

/// The stages of a plan that wait for ever where so many messages may be under way to one rank.
fn stuck(lines: &Lines, messages: u64) -> Vec<String> {
    let module = parse(&lines.text()).expect("the plan can be read");
    deadlocks(&module, Room { messages, bytes: 0 }).into_iter().map(|finding| finding.message).collect()
}

/// The first stage runs all forwards first, the second one each backward as soon as it can: while the first one waits for room for the last
/// activation, the second one waits for room for the second gradient.
#[test]
fn stages_that_wait_for_room_are_refused() {
    let mut lines = GPIPE.clone();
    let line = lines.0.iter().position(|l| l.contains("schedule of 1")).expect("there are two stages");
    let is_backward = |word: &String| word.starts_with("B1.");
    let (backward, rest): (Vec<String>, Vec<String>) = entries(&lines, line).into_iter().partition(is_backward);
    let mut backward = backward.into_iter();
    let words = rest.into_iter().flat_map(|word| {
        let next = if word.starts_with("F1.") { backward.next() } else { None };
        std::iter::once(word).chain(next)
    });
    lines.0[line] = words.collect::<Vec<_>>().join(" ");
    assert_eq!(lines.diagnostics(), [], "its messages are small");
    let found = stuck(&lines, 1);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found.iter().all(|message| message.contains("waits for ever") && message.contains("for room")),
        "{found:?}"
    );
}

/// However large messages are, schedules go on where few of them have room between two ranks.
#[test]
fn schedules_need_room_for_few_messages() {
    let kinds =
        [("gpipe", 4, 1), ("1f1b", 4, 1), ("interleaved", 2, 3), ("zero-bubble", 4, 1), ("zero-bubble-2p", 4, 1)];
    for (kind, pp, most) in kinds {
        let lines = plan(&format!("pp = {pp}\nschedule = \"{kind}\"\nmicro_batches = 4\n"), pp);
        let needed = (1..10).find(|&messages| stuck(&lines, messages).is_empty());
        assert_eq!(needed, Some(most), "{kind} of {pp} stages");
    }
}
