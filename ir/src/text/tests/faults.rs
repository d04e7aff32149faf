//! What the parser says of faulty texts: code, place, message, help.

use super::texts::{GRAPH, PIPELINE, PLAN, TRAINING};
use crate::diagnostic::Diagnostic;
use crate::text::{fault, parse};

/// The faults of a text in which `from` is replaced by `to`, with the part of the text that each points at.
fn faults(text: &str, from: &str, to: &str) -> Vec<(Diagnostic, String)> {
    assert!(text.contains(from), "`{from}` is not in the text");
    let text = text.replacen(from, to, 1);
    let found = parse(&text).expect_err("the text is faulty");
    found.into_iter().map(|f| (f.clone(), text[f.span.unwrap_or(0..0)].to_string())).collect()
}

/// Checks that there is one fault, its code, where it points, and a part of its message and help.
#[track_caller]
fn check(text: &str, (from, to): (&str, &str), code: &str, at: &str, says: &str) {
    let found = faults(text, from, to);
    let [(fault, place)] = found.as_slice() else { panic!("not one fault but {found:#?}") };
    assert_eq!((fault.code, place.as_str()), (code, at), "{fault}");
    assert!(fault.to_string().contains(says), "{fault}");
}

#[test]
fn an_unknown_op_is_told_its_neighbour() {
    check(TRAINING, ("= relu %h", "= rellu %h"), fault::OP, "rellu", "did you mean `relu`?");
    check(PLAN, ("comm.shard", "shard"), fault::OP, "shard", "did you mean `comm.shard`?");
    check(TRAINING, ("= relu %h", "= convolution %h"), fault::OP, "convolution", "unknown op");
}

#[test]
fn an_unknown_value_is_told_its_neighbour() {
    check(TRAINING, ("= %dw\n    output", "= %w.dm\n    output"), fault::VALUE, "%w.dm", "did you mean `%w.m`?");
    check(PLAN, ("of=%w at", "of=%ww at"), fault::VALUE, "%ww", "unknown value `%ww` in the program");
    check(PLAN, ("accumulate %acc", "accumulate %bcc"), fault::VALUE, "%bcc", "in the chunk");
    check(TRAINING, ("grad=%y", "grad=%nowhere"), fault::VALUE, "%nowhere", "unknown value");
    check(TRAINING, ("update %w =", "update %v ="), fault::VALUE, "%v", "unknown value");
    check(TRAINING, ("fwd=%y", "fwd=%x"), fault::VALUE, "%x", "no node computes");
}

#[test]
fn a_name_has_one_definition() {
    check(
        TRAINING,
        ("    %loss =", "    %h = exp %y: f32[4, 8]\n    %loss ="),
        fault::REDEFINED,
        "%h",
        "defined twice",
    );
}

#[test]
fn readers_of_a_faulty_line_are_not_reported() {
    check(TRAINING, ("%h = einsum{", "%h = einsum{{"), fault::SYNTAX, "{", "expected an attribute");
    check(TRAINING, ("input %x =", "input %x"), fault::SYNTAX, "\"x\"", "expected `=`");
    check(TRAINING, ("weight %w = \"w\":", "weight %w = \"w\" f32"), fault::SYNTAX, "f32", "expected `:`");
}

#[test]
fn literals_are_checked() {
    let table = "  literal 0 = \"1.0 2.0\"\n  program {\n    %t = constant{dtype=f32, shape=[2], values=@0}: f32[2]";
    let with = |from: &str, to: &str| GRAPH.replacen("  program {", &table.replace(from, to), 1);
    let check = |(from, to): (&str, &str), code: &str, at: &str, says: &str| {
        check(&with("", ""), (from, to), code, at, says);
    };
    assert!(parse(&with("", "")).is_ok());
    check(("values=@0", "values=@1"), fault::LITERAL, "1", "there is no literal 1, the module has 1 before this line");
    check(("literal 0 =", "literal 1 ="), fault::SECTION, "1", "stands where literal 0 is expected");
    check(("values=@0", "values=@x"), fault::SYNTAX, "x", "expected the number of a literal");
    check(("shape=[2], values=@0", "shape=@0, values=@0"), fault::ATTRIBUTE, "shape=@0", "found a list of numbers");
    let faulty = parse(&with("2.0", "two")).expect_err("`two` is no number");
    assert_eq!(faulty[0].code, fault::LITERAL);
    assert!(faulty[0].to_string().contains("`two` is no number"));
}

#[test]
fn attributes_are_checked() {
    let bad = |from, to, at, says| check(GRAPH, (from, to), fault::ATTRIBUTE, at, says);
    bad("{eps=1e-5}", "", "layer_norm", "attribute `eps` is missing");
    bad("eps=1e-5", "eps=\"x\"", "eps=\"x\"", "expected a number");
    bad("eps=1e-5", "eps=1e-5, k=3", "k=3", "unknown attribute `k`");
    bad("eps=1e-5", "eps=1e-5, eps=3", "eps=3", "given twice");
    bad("perm=[1, 0]", "perm=[1, x]", "x", "expected integers");
    bad(" | transpose{perm=[1, 0]}", " | transpose{}", "{}", "`perm` is missing");
    bad("dtype=f32, shape=[48]", "dtype=f31, shape=[48]", "{dtype=f31, shape=[48], value=1.0}", "`f31`");
    check(TRAINING, ("\"cosine\"", "\"sine\""), fault::ATTRIBUTE, "\"sine\"", "known are `constant`, `linear`");
    let found = faults(TRAINING, "sequence=0, ", "");
    assert_eq!((found.len(), found[0].0.message.as_str()), (1, "attribute `sequence` is missing"));
}

#[test]
fn declared_types_are_what_the_op_gives() {
    let says = "declared `f32[8, 47]`, the op gives `f32[8, 48]`";
    check(GRAPH, (": f32[8, 48] layer", ": f32[8, 47] layer"), fault::TYPE, "f32[8, 47]", says);
    check(GRAPH, (", f32[8], f32[8]", ", f32[8]"), fault::TYPE, "layer_norm", "gives 3 results");
    check(GRAPH, ("\"bi,io->bo\"} %x, %fc1.weight", "\"bi,io->bo\"} %x"), fault::TYPE, "einsum", "expected 2 operands");
    check(PLAN, ("accumulate %acc, %p", "accumulate %acc, %h"), fault::TYPE, "accumulate", "does not fit");
}

#[test]
fn placements_are_checked() {
    check(PLAN, ("@[_, _]+mb.a0 of", "@[_]+mb.a0 of"), fault::RANK, "[_]+mb.a0", "has 1 dimensions");
    check(PLAN, ("@[mb.a0, _] of=%h", "@[mb.b0, _] of=%h"), fault::AXIS, "mb.b0", "unknown axis `b0`");
    check(PLAN, ("axes=[a1]", "axes=[a9]"), fault::AXIS, "a9", "known are `mb`, `a0`, `a1`");
    check(
        PLAN,
        ("at transient+128", "at heap+128"),
        fault::KEYWORD,
        "heap",
        "known are `persistent`, `slot`, `transient`",
    );
}

#[test]
fn stages_are_checked() {
    let bad = |from, to, at, says| check(PIPELINE, (from, to), fault::SECTION, at, says);
    bad("stage 1 at 1", "stage 2 at 1", "2", "stage 1 is expected");
    bad("chunk 1 of 1", "chunk 1 of 7", "7", "there is no stage 7, the module has 2");
    bad("arena of 1", "arena of 2", "2", "there is no stage 2");
    check(PIPELINE, ("schedule of 1", "schedule"), fault::SYNTAX, "P1", "expected `of`");
    check(PIPELINE, ("{count=2", "{count=4294967296"), fault::NUMBER, "{", "4294967296 slots");
    check(PIPELINE, ("send{channel=0", "send{channel=4294967296"), fault::ATTRIBUTE, "channel=4294967296", "32 bits");
}

#[test]
fn meshes_are_checked() {
    let bad = |to, at, says| check(GRAPH, ("level=graph {", to), fault::MESH, at, says);
    bad("level=graph {\n mesh []", "mesh []", "at least");
    let unknown = "level=graph {\n mesh [mb=1] of tpu";
    check(GRAPH, ("level=graph {", unknown), fault::KEYWORD, "tpu", "unknown kind of devices");
    bad("level=graph {\n mesh [a0=2]", "a0=2", "first axis");
    bad("level=graph {\n mesh [mb=1, a0=0]", "a0=0", "no positions");
    bad("level=graph {\n mesh [mb=1, a0=2, a0=2]", "a0=2", "twice");
    bad("level=graph {\n mesh [mb=1, a0=65536, a1=65536]", "a1=65536", "32 bits");
}

#[test]
fn groups_of_devices_are_checked() {
    let cluster = PIPELINE.lines().find(|line| line.contains("cluster {")).unwrap().trim();
    let bad = |from: &str, to: &str, says| {
        check(PIPELINE, (from, to), fault::CLUSTER, &cluster.replacen(from, to, 1), says);
    };
    bad("count=1", "count=2", "the groups have 3 devices, the cluster has 2");
    bad("speed=0.5", "speed=0.0", "group `slow`: its count, memory and speed are positive");
    bad("memory_bytes=512", "memory_bytes=0", "group `slow`");
    check(
        PIPELINE,
        ("speed=0.5", "pace=0.5"),
        fault::ATTRIBUTE,
        "{name=\"slow\", count=1, memory_bytes=512, pace=0.5}",
        "`speed` is missing",
    );
    check(PIPELINE, ("group {name=\"slow\"", "groups {name=\"slow\""), fault::SYNTAX, "groups", "expected");
}

#[test]
fn numbers_are_in_range() {
    check(
        PLAN,
        ("at transient+128", "at transient+99999999999999999999"),
        fault::NUMBER,
        "99999999999999999999",
        "u64",
    );
    check(GRAPH, ("x\": f32[8, 16]", "x\": f32[8, 999999999999999]"), fault::NUMBER, "999999999999999", "2^48");
    check(PLAN, ("layer=0", "layer=5000000000"), fault::NUMBER, "5000000000", "u32");
}

#[test]
fn sections_are_known_and_come_once() {
    check(PLAN, ("  arena", "  arenas"), fault::KEYWORD, "arenas", "did you mean `arena`?");
    check(PLAN, ("  predicted", "  arena {persistent=1, transient=1}\n  predicted"), fault::SECTION, "arena", "twice");
    check(PLAN, ("chunk 0 {", "chunk 1 {"), fault::SECTION, "1", "chunk 0 is expected");
    check(PLAN, ("forward {", "reduce {\n}\nforward {"), fault::SECTION, "forward", "too late");
    check(PLAN, ("resident parameter", "resident param"), fault::KEYWORD, "param", "unknown role");
    check(PLAN, ("level=plan", "level=plans"), fault::KEYWORD, "plans", "did you mean `plan`?");
    check(GRAPH, ("gir 1", "gir 2"), fault::VERSION, "2", "reads version 1");
    check(PLAN, ("F0.1", "F0.x"), fault::SYNTAX, "F0.x", "an entry is");
    let empty = parse("gir 1\nmodule @m level=graph {\n}\n").unwrap_err();
    assert_eq!((empty.len(), empty[0].code), (1, fault::SECTION));
}

#[test]
fn an_unknown_initializer_is_told_its_neighbour() {
    check(GRAPH, ("= \"mask\"", "= \"mesk\""), fault::INITIALIZER, "\"mesk\"", "did you mean `mask`?");
}

#[test]
fn a_block_is_closed() {
    let text = PLAN.trim_end().strip_suffix('}').unwrap();
    let faults = parse(text).unwrap_err();
    assert_eq!((faults.len(), faults[0].message.as_str()), (1, "the block is not closed"));
    assert_eq!(&text[faults[0].span.clone().unwrap()], "module @mlp level=plan");
}

#[test]
fn a_block_of_an_unknown_section_is_skipped_whole() {
    check(
        PLAN,
        ("  arena", "  extra {\n    %a = b {\n    }\n  }\n  arena"),
        fault::KEYWORD,
        "extra",
        "unknown section",
    );
}

#[test]
fn faults_come_together_in_the_order_of_the_text() {
    let text = TRAINING.replace("= relu %h", "= rellu %h").replace("%one:", "%on:").replace("$", "");
    let text = text.replace("sub %w, %dw", "sub %w; %dw");
    let found: Vec<&str> = parse(&text).unwrap_err().iter().map(|f| f.code).collect();
    assert_eq!(found, [fault::OP, fault::VALUE, fault::LEXICAL]);
}

#[test]
fn endless_faults_end() {
    let lines = "    %z = nothing %q\n".repeat(1000);
    let text = GRAPH.replace("    output \"hidden\"", &format!("{lines}    output \"hidden\""));
    let n = parse(&text).unwrap_err().len();
    assert!((10..=60).contains(&n), "{n}");
}
