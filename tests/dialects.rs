//! One model is one program, whatever exporter wrote it: after the rewrites its dialects have the same ops, and its layers are
//! found.
//!
//! With `GALVATRON_FIXTURES` there are more models and dialects. Stored weights may lie transposed, so labels of contractions are
//! not compared.

#[allow(dead_code)]
#[path = "support/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "support/plan.rs"]
mod plan;
#[path = "support/snapshot.rs"]
mod snapshot;

use fixture::Fixture;
use galvatron_ir::types::DType;
use galvatron_ir::{Module, NodeId};
use galvatron_passes::segment::Segment;
use plan::Order;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Exporters that write a model differently: with all parameters kept, opset 18 with open shapes, opset 23 with large operators,
/// TorchScript.
const DIALECTS: [&str; 4] = ["keep20", "dyn18", "attn23", "ts17nofold"];

/// Models and dialects with other ops than the first dialect, and why.
const DIFFERENT: [(&str, &str, &str); 2] = [("swin", "dyn18", FOLDED_BIASES), ("swin", "attn23", FOLDED_BIASES)];

const FOLDED_BIASES: &str =
    "the exporter has folded the tables of relative positions, so that the biases are constants";

fn models() -> Vec<&'static str> {
    let all = ["gpt2", "llama", "mixtral", "bert", "t5", "vit", "swin"];
    if std::env::var_os("GALVATRON_FIXTURES").is_some() { all.to_vec() } else { vec!["gpt2"] }
}

/// The program that a dialect becomes, up to names, with its layers.
struct Form {
    /// For each node in order its op and the type of its first result.
    nodes: Vec<String>,
    /// How often each op occurs.
    ops: BTreeMap<String, usize>,
    /// The segments: runs of equal layers, and what lies between them.
    segments: String,
}

fn form(fixture: &Fixture, dialect: &str) -> Form {
    let order = Order { fixture, dialect, optimizer: "sgd", ranks: 1, strategy: "", compute: DType::F32 };
    let compiled = order.compile_with("cpu", Some("segment")).expect("the model is legal");
    let module = &compiled.module;
    let describe = |&id: &NodeId| {
        let node = module.program.graph.node(id);
        format!("{} {}", node.op.mnemonic(), module.program.graph.value(node.results[0]).ty)
    };
    let mut ops: BTreeMap<String, usize> = BTreeMap::new();
    for &id in &module.program.body {
        *ops.entry(module.program.graph.node(id).op.mnemonic().into()).or_default() += 1;
    }
    Form {
        nodes: sorted(module.program.body.iter().map(describe)),
        ops,
        segments: segments(module, &compiled.segments),
    }
}

fn sorted(nodes: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = nodes.collect();
    all.sort();
    all
}

/// `6 nodes, 2 layers of 15, 3 nodes`; nodes of the loss are among the last.
fn segments(module: &Module, segments: &[Segment]) -> String {
    let mut words: Vec<String> = Vec::new();
    let classes: BTreeSet<usize> = segments.iter().map(|s| s.class).collect();
    for class in classes {
        let own: Vec<&Segment> = segments.iter().filter(|s| s.class == class).collect();
        let first = module.program.graph.node(own[0].nodes[0]).op.mnemonic();
        words.push(match own[0].is_layer {
            true => format!("{} layers of {} from `{first}`", own.len(), own[0].nodes.len()),
            false => format!("{} nodes from `{first}`", own[0].nodes.len()),
        });
    }
    words.join(", ")
}

impl Form {
    fn text(&self) -> String {
        let ops: Vec<String> = self.ops.iter().map(|(op, n)| format!("{op} {n}")).collect();
        format!("ops: {}\nsegments: {}\n", ops.join(", "), self.segments)
    }
}

#[test]
fn dialects_of_a_model_become_one_program() {
    for model in models() {
        let fixture = Fixture::open(model);
        let dialects = DIALECTS.into_iter().filter(|d| fixture.onnx(d).exists());
        let mut text = String::new();
        let mut first: Option<(&str, Form)> = None;
        for dialect in dialects {
            let form = form(&fixture, dialect);
            let why = DIFFERENT.iter().find(|(m, d, _)| (*m, *d) == (model, dialect)).map(|(.., why)| why);
            let Some((known, expected)) = &first else {
                text += &form.text();
                first = Some((dialect, form));
                continue;
            };
            let is_equal = form.nodes == expected.nodes && form.segments == expected.segments;
            match why {
                None => assert!(is_equal, "{model}: {dialect} differs from {known}:\n{}", difference(&form, expected)),
                Some(why) => {
                    assert!(!is_equal, "{model}: {dialect} is like {known} now");
                    write!(text, "{dialect}, because {why}:\n{}", form.text()).expect("strings take everything");
                }
            }
        }
        snapshot::check(&format!("dialects.{model}"), &text);
    }
}

/// What each of two programs has that the other has not.
fn difference(a: &Form, b: &Form) -> String {
    let lacks = |nodes: &[String], other: &[String]| -> Vec<String> {
        let mut rest = other.to_vec();
        let is_new = |node: &&String| match rest.iter().position(|r| r == *node) {
            Some(at) => {
                rest.remove(at);
                false
            }
            None => true,
        };
        nodes.iter().filter(is_new).cloned().collect()
    };
    format!("{:?}\n{:?}\n{}\n{}", lacks(&a.nodes, &b.nodes), lacks(&b.nodes, &a.nodes), a.segments, b.segments)
}
