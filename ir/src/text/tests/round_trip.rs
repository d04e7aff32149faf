//! What is printed reads back as the same module.

use super::texts::{ALL, GRAPH, PLAN, TRAINING};
use crate::id::NodeId;
use crate::mesh::{Mesh, Sharding};
use crate::module::{Input, Module};
use crate::op::Op;
use crate::op::compute::Constant;
use crate::plan::{Region, ResidentRole};
use crate::text::{parse, parse_with_spans, print};
use crate::types::{Scalar, TensorType};

fn read(text: &str) -> Module {
    parse(text).unwrap_or_else(|faults| panic!("{}\n{text}", faults[0]))
}

#[test]
fn every_level_prints_as_it_was_read() {
    for text in ALL {
        assert_eq!(print(&read(text)), text);
    }
}

#[test]
fn what_is_read_again_is_the_same_module() {
    for text in ALL.iter().filter(|t| !t.contains("NaN")) {
        let module = read(text);
        assert_eq!(read(&print(&module)), module);
    }
}

#[test]
fn comments_blank_lines_and_spaces_do_not_count() {
    let loose = PLAN.replace('\n', "  // a remark\r\n\n\t// another\n").replace(", ", " ,\t").replace(": ", " : ");
    assert_eq!(print(&read(&format!("// first\n\n{loose}"))), PLAN);
}

/// The long lists of three nodes, two of which are equal.
#[test]
fn a_long_list_is_written_once() {
    let mut module = Module::new("tables");
    for (name, first) in [("a", 0.5), ("b", 0.5), ("c", 1.5)] {
        let values = (0..100).map(|i| Scalar::new(first + f64::from(i))).collect();
        let op = Constant { ty: TensorType::f32([4, 25]), values };
        let node = module.program.graph.add_typed(op.clone().into(), &[], vec![op.ty], &[name.to_string()]);
        module.program.body.push(node);
    }
    let text = print(&module);
    let lines: Vec<&str> =
        text.lines().map(str::trim).filter(|l| l.contains("literal") || l.contains("values")).collect();
    let [first, second, a, b, c] = lines.as_slice() else { panic!("{text}") };
    assert!(first.starts_with("literal 0 = \"0.5 1.5 ") && second.starts_with("literal 1 = \"1.5 2.5 "), "{text}");
    for (line, literal) in [(a, "@0"), (b, "@0"), (c, "@1")] {
        assert!(line.contains(&format!("values={literal}}}")), "{line}");
    }
    let again = read(&text);
    assert_eq!(again, module);
    assert_eq!(print(&again), text);
}

#[test]
fn all_ops_round_trip() {
    for sample in Op::all_samples() {
        let mut module = Module::new("sample");
        let mut args = Vec::new();
        for (i, (ty, _)) in sample.args.iter().enumerate() {
            let value = module.program.graph.declare(&format!("x{i}"), ty.clone());
            module.program.inputs.push(Input { name: format!("x{i}"), value });
            args.push(value);
        }
        let node = module.program.graph.add(sample.op.clone(), &args).unwrap();
        module.program.body.push(node);
        let again = read(&print(&module));
        assert_eq!(again, module);
        assert_eq!(again.program.graph.node(NodeId(0)).op, sample.op);
    }
}

#[test]
fn every_mnemonic_has_a_sample_or_stands_in_a_text() {
    let sampled: Vec<&str> = Op::all_samples().iter().map(|s| s.op.mnemonic()).collect();
    for mnemonic in Op::all_mnemonics() {
        let written = ALL.iter().any(|t| t.contains(&format!(" {mnemonic}")));
        assert!(written || sampled.contains(&mnemonic), "{mnemonic}");
    }
}

#[test]
fn ids_follow_the_text_and_dead_nodes_are_left_out() {
    let mut module = Module::new("m");
    let graph = &mut module.program.graph;
    let x = graph.declare("x", TensorType::f32([4]));
    let relu = |graph: &mut crate::graph::Graph, of| {
        let node = graph.add(crate::op::compute::Unary { kind: crate::op::compute::UnaryKind::Relu }.into(), &[of]);
        node.unwrap()
    };
    let first = relu(graph, x);
    let dead = relu(graph, x);
    let last = relu(graph, graph.node(first).results[0]);
    let gone = graph.node(dead).results[0];
    graph.node_mut(last).fwd = Some(dead);
    graph.node_mut(first).fwd = Some(last);
    let result = graph.node(last).results[0];
    graph.value_mut(result).grad_of = Some(gone);
    graph.rename(result, "y");
    module.program.inputs.push(Input { name: "x".into(), value: x });
    module.program.body = vec![first, last];
    let text = print(&module);
    assert!(text.contains("    %relu = relu %x: f32[4] fwd=%y\n    %y = relu %relu: f32[4]\n"), "{text}");
    let again = read(&text);
    assert_eq!(again.program.body, vec![NodeId(0), NodeId(1)]);
    assert_eq!((again.program.graph.n_values(), print(&again)), (3, text));
}

#[test]
fn gradients_and_forward_nodes_are_found_on_later_lines() {
    let program = read(TRAINING).program;
    let one = program.graph.node(program.body[0]);
    let loss = program.output("loss").unwrap();
    assert_eq!(program.graph.value(one.results[0]).grad_of, Some(loss));
    assert_eq!(one.fwd, program.graph.producer(loss));
}

#[test]
fn a_plan_means_what_it_says() {
    let module = read(PLAN);
    assert_eq!((module.mesh.micro_batches(), module.mesh.world()), (2, 4));
    let chunk = &module.chunks[0];
    let acc = chunk.residents[1];
    assert_eq!(acc.role, ResidentRole::Accumulator);
    let value = chunk.graph.value(acc.value);
    let a0 = module.mesh.axis("a0").unwrap();
    assert_eq!(value.sharding, Some(Sharding { dims: vec![vec![], vec![]], partial: vec![a0] }));
    assert_eq!(value.place.map(|p| (p.region, p.offset)), Some((Region::Persistent, 512)));
    assert_eq!(module.program.graph.value(value.of.unwrap()).name, "dw");
    let load = chunk.graph.value(chunk.graph.node(chunk.phases[1].body[0]).results[0]);
    assert_eq!(load.sharding.as_ref().unwrap().dims[0], vec![Mesh::MB, a0]);
    assert_eq!(module.stages[0].schedule.len(), 7);
    assert_eq!(module.stages[0].schedule[4].micro_batch, Some(1));
}

#[test]
fn partial_axes_are_put_in_order() {
    let text = PLAN.replace("+mb.a0 of=%dw", "+a0.mb of=%dw");
    assert_eq!(print(&read(&text)), PLAN);
}

#[test]
fn spans_point_at_what_they_name() {
    let (module, map) = parse_with_spans(PLAN).unwrap();
    let at = |span: &std::ops::Range<usize>| &PLAN[span.clone()];
    let node = module.chunks[0].phases[1].body[1];
    let spans = &map.chunk_nodes[0][node.index()];
    assert_eq!((at(&spans.op), at(&spans.args[1]), at(&spans.results[0])), ("einsum", "%w", "%h"));
    assert_eq!(at(&spans.types[0]), "f32[8, 8]@[mb.a0, _]");
    assert!(at(&spans.whole).starts_with("%h = ") && at(&spans.whole).ends_with("transient+4096"));
    assert_eq!(at(&map.chunks[0].residents[1].ty), "f32[16, 8]@[_, _]+a0");
    assert_eq!(at(&map.chunks[0].residents[1].name), "%acc");
    assert_eq!((at(&map.updates[0]), at(&map.outputs[0])), ("update %w = %w1", "output \"grad_norm\" %n"));
    assert_eq!((at(&map.inputs[0].ty), at(&map.weights[0].name)), ("f32[8, 16]", "%w"));
    assert_eq!((at(&map.mesh), at(&map.chunks[0].header)), ("mesh [mb=2, a0=2@0, a1=2@1]", "chunk 0"));
    assert_eq!(
        (at(&map.stages[0].schedule_steps[3]), at(&map.stages[0].arena)),
        ("F0.1", "arena {persistent=1024, transient=8192}")
    );
    assert_eq!(map.program_nodes.len(), module.program.graph.n_nodes());
    assert_eq!(at(&map.program_nodes[2].whole), "%n = sum_squares %dw: f32[]");
    assert!(at(&map.predicted).starts_with("predicted") && at(&map.train).starts_with("train {seed=0"));
    let (_, map) = parse_with_spans(GRAPH).unwrap();
    assert!(GRAPH[map.initializers[1].clone()].starts_with("initializer \"mask\""));
}

#[test]
fn the_example_of_the_grammar_is_printed_so() {
    let grammar = include_str!("../grammar.md");
    let example = grammar.split("```gir\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(print(&read(example)), example);
}
