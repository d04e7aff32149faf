//! Canonical form and rewrite rules: what comes out, and that it computes the same. Every rule fires on its sample and leaves
//! its counterexample alone.

use galvatron_backends::reference::{Part, Tensor, eval, run_program};
use galvatron_ir::module::ViewStep;
use galvatron_ir::op::compute::{Reshape, Slice, Transpose};
use galvatron_ir::op::{Fill, Op};
use galvatron_ir::types::{DType, TensorType};
use galvatron_ir::{Module, Program, ValueId};
use galvatron_passes::canonicalize::canonicalize;
use galvatron_passes::rewrite::rules::{RuleSample, module_of_term, rule_misses, rule_names, rule_samples};
use galvatron_passes::rewrite::{RewriteReport, rewrite};
use std::collections::{BTreeMap, BTreeSet};

/// Inputs in [0.5, 1.5], where every op of the samples is defined; indices in [0, 3).
fn feeds(program: &Program) -> BTreeMap<ValueId, Tensor> {
    let feed = |(i, input): (usize, &galvatron_ir::module::Input)| {
        let ty = &program.graph.value(input.value).ty;
        let fill = match ty.dtype {
            DType::Bool => Fill::Bool,
            DType::I64 => Fill::Index(3),
            _ => Fill::Positive,
        };
        (input.value, Tensor::random(ty.shape.clone(), fill, 1 + i as u64))
    };
    program.inputs.iter().enumerate().map(feed).collect()
}

/// A weight as a view of random stored elements.
fn weight(module: &Module, weight: &galvatron_ir::module::Weight) -> Tensor {
    let stored = module.initializers[weight.initializer].ty.shape.clone();
    let mut tensor = Tensor::random(stored, Fill::Uniform, 100 + weight.initializer as u64);
    for step in weight.view.iter().cloned() {
        let op: Op = match step {
            ViewStep::Reshape(shape) => Reshape { shape }.into(),
            ViewStep::Transpose(perm) => Transpose { perm }.into(),
            ViewStep::Slice { dim, start, len } => Slice { dim, start, len }.into(),
            ViewStep::Pad { .. } => unreachable!("nothing is padded before a strategy is known"),
        };
        let types = op.infer(&[&TensorType::f32(tensor.shape.clone())]).expect("views fit");
        tensor = eval(&op, &[&tensor], &types, &Part::default()).expect("views are pure").remove(0);
    }
    tensor
}

fn evaluate(module: &Module) -> Tensor {
    let program = &module.program;
    let mut feeds = feeds(program);
    feeds.extend(program.weights.iter().map(|w| (w.value, weight(module, w))));
    let values = run_program(program, feeds);
    values[program.outputs[0].1.index()].clone().expect("the output is computed")
}

/// The module of a sample's program.
fn module_of(sample: &RuleSample) -> Module {
    let mut module = Module::new(sample.rule);
    module.program = sample.program.clone();
    module
}

fn rewritten(sample: &RuleSample) -> (Module, RewriteReport) {
    let mut module = module_of(sample);
    let report = rewrite(&mut module);
    (module, report)
}

#[test]
fn every_rule_has_a_sample() {
    let names: BTreeSet<String> = rule_names().into_iter().collect();
    let sampled: BTreeSet<String> = rule_samples().iter().map(|s| s.rule.to_string()).collect();
    assert_eq!(names, sampled);
    assert_eq!(names.len(), rule_names().len(), "names of rules are unique");
}

#[test]
fn every_rule_fires_and_keeps_the_result() {
    for sample in rule_samples() {
        let (module, report) = rewritten(&sample);
        assert!(report.applied.contains_key(sample.rule), "`{}` did not fire: {report:?}", sample.rule);
        assert!(report.stopped.iter().all(|(_, why)| why == "Saturated"), "`{}`: {report:?}", sample.rule);
        let distance = evaluate(&module).distance(&evaluate(&module_of(&sample)));
        assert!(distance < 1e-7, "`{}` changes the result by {distance}", sample.rule);
    }
}

#[test]
fn no_rule_fires_on_its_counterexample() {
    for sample in rule_misses() {
        let (module, report) = rewritten(&sample);
        assert!(!report.applied.contains_key(sample.rule), "`{}` fired: {report:?}", sample.rule);
        let distance = evaluate(&module).distance(&evaluate(&module_of(&sample)));
        assert!(distance < 1e-7, "`{}`: the result changes by {distance}", sample.rule);
    }
}

/// The ops of the only node that is left beside constants and layouts.
fn check(rule: &str, expected: &str) {
    let sample = rule_samples().into_iter().find(|s| s.rule == rule).expect("the rule has a sample");
    let (module, _) = rewritten(&sample);
    let graph = &module.program.graph;
    let ops: Vec<&str> = module.program.body.iter().map(|&n| graph.node(n).op.mnemonic()).collect();
    let ops: Vec<&str> = ops.into_iter().filter(|op| !["full", "transpose", "reshape"].contains(op)).collect();
    assert_eq!(ops.join(" "), expected, "`{rule}`");
}

#[test]
fn primitives_become_one_op() {
    check("gelu", "gelu");
    check("gelu-half-inside", "gelu");
    check("gelu-distributed", "gelu");
    check("gelu-tanh", "gelu_tanh");
    check("gelu-tanh-expanded", "gelu_tanh");
    check("gelu-tanh-by-sigmoid", "gelu_tanh");
    check("silu", "silu");
    check("layer-norm", "layer_norm");
    check("layer-norm-without-bias", "layer_norm");
    check("layer-norm-without-gain", "layer_norm");
    check("rms-norm", "rms_norm");
    check("rms-norm-of-gained", "rms_norm");
    check("rms-norm-by-gained-rms", "rms_norm");
    check("rms-norm-without-gain", "rms_norm");
    check("rotary-of-halves", "rotary");
    check("rotary-of-neighbours", "constant constant rotary");
    check("rotary-by-halves", "rotary");
    check("rotary-by-neighbours", "rotary");
    check("rotary-of-a-part", "rotary");
    check("repeated-masks", "add attention");
    check("softmax", "softmax");
    check("attention", "attention");
    check("attention-guarded", "attention");
    check("attention-scaled", "attention");
    check("attention-scaled-masked-guarded", "attention");
    check("causal-attention", "attention");
}

/// The nodes in order: contractions with their labels, other ops by name, constants left out.
fn listing(module: &Module) -> String {
    let describe = |op: &Op| match op {
        Op::Full(_) => None,
        Op::Einsum(einsum) => Some(einsum.spec()),
        Op::Attention(attention) if attention.causal => Some("causal".into()),
        op => Some(op.mnemonic().to_string()),
    };
    let nodes = module.program.body.iter().map(|&n| &module.program.graph.node(n).op);
    nodes.filter_map(describe).collect::<Vec<_>>().join(" ")
}

/// The weights with their shapes, in order.
fn weights(module: &Module) -> String {
    let value = |w: &galvatron_ir::module::Weight| module.program.graph.value(w.value).clone();
    let all = module.program.weights.iter().map(value);
    all.map(|v| format!("{} {:?}", v.name, v.ty.shape)).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check_canonical(inputs: &str, term: &str, expected: &str, expected_weights: &str) {
    let before = module_of_term(inputs, term);
    let mut module = before.clone();
    canonicalize(&mut module);
    assert_eq!(listing(&module), expected);
    assert_eq!(weights(&module), expected_weights);
    assert!(evaluate(&module).distance(&evaluate(&before)) < 1e-12);
    let once = module.clone();
    canonicalize(&mut module);
    assert_eq!(listing(&module), listing(&once), "canonical form is stable");
}

#[test]
fn identities_disappear() {
    check_canonical("x:2x3 y:2x3", "(add (mul 1 (reshape[2,3] (reshape[6] x))) (add y (sub 2 2)))", "add", "");
    check_canonical("x:2x3", "(transpose[1,0] (transpose[1,0] x))", "", "");
}

#[test]
fn equal_nodes_are_merged() {
    check_canonical("x:2x3", "(add (exp x) (exp x))", "exp add", "");
}

#[test]
fn linear_layers_keep_batch_and_sequence_apart() {
    let term = "(reshape[2,3,5] (add (einsum[mk,kn->mn] (reshape[6,4] x) (transpose[1,0] w_a)) w_b))";
    check_canonical("x:2x3x4 w_a:5x4 w_b:5", term, "bsk,nk->bsn add", "w_a [5, 4] w_b [5]");
}

#[test]
fn slices_that_partition_a_projection_split_its_weight() {
    let fused = "(add (einsum[bsk,kn->bsn] x w_a) w_b)";
    let term = "(mul (slice[2,0,6] F) (slice[2,6,6] F))".replace('F', fused);
    let expected = "bsk,kn->bsn add bsk,kn->bsn add mul";
    let parts = "w_a.0 [4, 6] w_a.1 [4, 6] w_b.0 [6] w_b.1 [6]";
    check_canonical("x:2x3x4 w_a:4x12 w_b:12", &term, expected, parts);
}

#[test]
fn slices_that_lose_elements_do_not_split_a_weight() {
    let term = "(slice[2,0,6] (einsum[bsk,kn->bsn] x w_a))";
    check_canonical("x:2x3x4 w_a:4x12", term, "bsk,kn->bsn slice", "w_a [4, 12]");
}

#[test]
fn a_tied_weight_stays_one_weight() {
    let term = "(einsum[bsk,kv->bsv] (embedding w_e ids) (transpose[1,0] w_e))";
    check_canonical("ids:2x3 w_e:5x4", term, "embedding bsk,nk->bsn", "w_e [5, 4]");
}

#[test]
fn a_weight_with_two_shapes_is_not_viewed() {
    let term = "(add (einsum[mk,kn->mn] x (reshape[4,6] w_a)) (reduce_sum[1] (exp w_a)))";
    check_canonical("x:6x4 w_a:6x4", term, "reshape bk,kn->bn exp reduce_sum add", "w_a [6, 4]");
}

/// A block of GPT-2 as an exporter writes it: every projection on [batch * sequence, hidden].
fn gpt2_block() -> String {
    let norm = |x: &str, i: u32| format!("(reshape[6,4] (layer_norm[1e-5] {x} w_g{i} w_b{i}))");
    let fused = format!("(reshape[2,3,12] (add (einsum[mk,kn->mn] {} w_qkv) w_qkvb))", norm("x", 1));
    let part = |i: u32| format!("(transpose[0,2,1,3] (reshape[2,3,2,2] (slice[2,{},4] {fused})))", 4 * i);
    let keys = format!("(reshape[2,2,2,3] (transpose[0,2,1] (reshape[4,3,2] {})))", part(1));
    let scores = format!("(einsum[abmk,abkn->abmn] (mul {} 0.84089641525) (mul {keys} 0.84089641525))", part(0));
    let p = format!("(softmax (add {scores} (causal_mask[2,1,3,3,0] )))");
    let guarded = format!("(where (is_nan {p}) 0 {p})");
    let heads = format!("(transpose[0,2,1,3] (einsum[abmk,abkn->abmn] {guarded} {}))", part(2));
    let attended = format!("(add x (reshape[2,3,4] (add (einsum[mk,kn->mn] (reshape[6,4] {heads}) w_o) w_ob)))");
    let up = format!("(reshape[2,3,8] (add (einsum[mk,kn->mn] {} w_up) w_upb))", norm(&attended, 2));
    let cubic = format!("(add {up} (mul (pow {up} 3) 0.044714998453855515))");
    let gelu = format!("(mul (mul {up} 0.5) (add (tanh (mul {cubic} 0.7978845834732056)) 1))");
    format!("(add {attended} (reshape[2,3,4] (add (einsum[mk,kn->mn] (reshape[6,8] {gelu}) w_dn) w_dnb)))")
}

#[test]
fn a_block_of_gpt2_becomes_textbook_ops() {
    let inputs =
        "x:2x3x4 w_g1:4 w_b1:4 w_qkv:4x12 w_qkvb:12 w_o:4x4 w_ob:4 w_g2:4 w_b2:4 w_up:4x8 w_upb:8 w_dn:8x4 w_dnb:4";
    let before = module_of_term(inputs, &gpt2_block());
    let mut module = before.clone();
    canonicalize(&mut module);
    rewrite(&mut module);
    let qkv = "bsk,khd->bshd add bsk,khd->bshd add bsk,khd->bshd add";
    let mlp = "layer_norm bsk,kn->bsn add gelu_tanh bsk,kn->bsn add add";
    assert_eq!(listing(&module), format!("layer_norm {qkv} causal bshd,hdn->bsn add add {mlp}"));
    assert!(weights(&module).contains("w_qkv.0 [4, 2, 2] w_qkv.1 [4, 2, 2] w_qkv.2 [4, 2, 2]"));
    assert!(weights(&module).contains("w_qkvb.0 [2, 2]") && weights(&module).contains("w_o [2, 2, 4]"));
    assert!(evaluate(&module).distance(&evaluate(&before)) < 1e-7);
}

/// Attention in which two queries share a head of keys, whose repetition is written out.
#[test]
fn grouped_queries_become_attention() {
    let project =
        |w: &str, heads: u32| format!("(transpose[0,2,1,3] (reshape[2,3,{heads},2] (einsum[bmk,kn->bmn] x {w})))");
    let repeated =
        |w: &str| format!("(reshape[2,4,3,2] (broadcast[2,2,2,3,2] (reshape[2,2,1,3,2] {})))", project(w, 2));
    let keys = format!("(transpose[0,1,3,2] {})", repeated("w_k"));
    let scores = format!("(div (einsum[abmk,abkn->abmn] {} {keys}) 1.5)", project("w_q", 4));
    let p = format!("(softmax (add {scores} (causal_mask[1,1,3,3,0] )))");
    let term = format!("(reshape[2,3,8] (transpose[0,2,1,3] (einsum[abmk,abkn->abmn] {p} {})))", repeated("w_v"));
    let before = module_of_term("x:2x3x5 w_q:5x8 w_k:5x4 w_v:5x4", &term);
    let mut module = before.clone();
    canonicalize(&mut module);
    rewrite(&mut module);
    assert!(listing(&module).contains("causal"), "{}", listing(&module));
    assert!(evaluate(&module).distance(&evaluate(&before)) < 1e-12);
}

/// As an exporter writes it: for each choice of each token the matrices of the expert are gathered.
#[test]
fn a_mixture_of_experts_becomes_one_op() {
    for text in [
        include_str!("filetests/canonicalize/mixture_of_experts.gir"),
        include_str!("filetests/canonicalize/mixture_of_one_expert.gir"),
    ] {
        let (input, _) = text.split_once("// expect:").expect("the file has a result");
        let before = galvatron_ir::text::parse(input).expect("the file is right");
        let mut module = before.clone();
        canonicalize(&mut module);
        let found = listing(&module);
        assert!(found.contains("moe") && !found.contains("embedding") && !found.contains("where"), "{found}");
        assert!(weights(&module).ends_with("gate_up.0 [4, 5, 6] gate_up.1 [4, 5, 6] down [4, 6, 5]"));
        assert!(evaluate(&module).distance(&evaluate(&before)) < 1e-12);
    }
}

#[test]
fn a_trained_mask_becomes_an_operand_of_attention() {
    let term = "(einsum[bhqk,bhkd->bhqd] (softmax (add (einsum[bhqd,bhkd->bhqk] q k) w_m)) v)";
    let before = module_of_term("q:2x3x4x2 k:2x3x4x2 v:2x3x4x2 w_m:3x4x4", term);
    let mut module = before.clone();
    rewrite(&mut module);
    assert_eq!(listing(&module), "transpose transpose transpose attention transpose");
    assert!(evaluate(&module).distance(&evaluate(&before)) < 1e-7);
}

/// Queries of two heads for each head of keys, turned by their positions; `repeated` says how often the keys are written out.
fn rotary_attention(keys: &str) -> Module {
    let turned = |x: &str, n: u32| {
        let half = |start: u32| format!("(slice[3,{start},2] {x})");
        let rotated = format!("(concat[3] (neg {}) {})", half(2), half(0));
        let table = |name: &str| format!("(reshape[1,1,3,4] (concat[1] {name} {name}))");
        format!("(reshape[2,{n},3,4] (add (mul {x} {}) (mul {rotated} {})))", table("f"), table("g"))
    };
    let project = |w: &str, n: u32| format!("(transpose[0,2,1,3] (reshape[2,3,{n},4] (einsum[bmk,kn->bmn] x {w})))");
    let (q, k, v) = (turned(&project("w_q", 4), 4), turned(&project("w_k", 2), 2), project("w_v", 2));
    let repeated = |x: &str| format!("(reshape[2,4,3,4] (broadcast[2,2,2,3,4] (reshape[2,2,1,3,4] {x})))");
    let heads = match keys {
        "attention" => {
            let rows = |x: &str| format!("(transpose[0,2,1,3] {x})");
            format!("(attention[0.5] {} {} {})", rows(&q), rows(&repeated(&k)), rows(&repeated(&v)))
        }
        _ => {
            let scores = format!("(einsum[abmk,abnk->abmn] {q} {})", repeated(&k));
            let attended = format!("(einsum[abmk,abkn->abmn] (softmax (mul {scores} 0.5)) {})", repeated(&v));
            format!("(transpose[0,2,1,3] {attended})")
        }
    };
    let term = format!("(einsum[bsk,kn->bsn] (reshape[2,3,16] {heads}) w_o)");
    module_of_term("x:2x3x5 f:3x2 g:3x2 w_q:5x16 w_k:5x8 w_v:5x8 w_o:16x5", &term)
}

#[test]
fn rotary_attention_with_shared_keys_has_one_form() {
    for keys in ["attention", "scores"] {
        let before = rotary_attention(keys);
        let mut module = before.clone();
        canonicalize(&mut module);
        rewrite(&mut module);
        let listed = listing(&module);
        let projections = "bsk,khd->bshd";
        assert_eq!(listed.matches(projections).count(), 3, "{keys}: {listed}");
        assert_eq!(listed.matches("rotary").count(), 2, "{keys}: {listed}");
        assert!(listed.ends_with("attention bshd,hdn->bsn"), "{keys}: {listed}");
        assert!(weights(&module).contains("w_q [5, 4, 4] w_k [5, 2, 4] w_v [5, 2, 4]"), "{}", weights(&module));
        assert!(evaluate(&module).distance(&evaluate(&before)) < 1e-7);
    }
}

#[test]
fn attention_over_windows_of_an_image_becomes_one_op() {
    let scores = "(mul (einsum[nwabd,nwced->nwabce] q k) 0.5)";
    let p = format!("(softmax (add (reshape[6,4,4] {scores}) w_m))");
    let term = format!("(einsum[nwabce,nwced->nwabd] (reshape[2,3,2,2,2,2] {p}) v)");
    let before = module_of_term("q:2x3x2x2x4 k:2x3x2x2x4 v:2x3x2x2x4 w_m:4x4", &term);
    let mut module = before.clone();
    canonicalize(&mut module);
    rewrite(&mut module);
    assert!(listing(&module).contains("attention") && !listing(&module).contains("softmax"), "{}", listing(&module));
    assert!(evaluate(&module).distance(&evaluate(&before)) < 1e-7);
}
