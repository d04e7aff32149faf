//! Mixtures of experts over data ranks, by the way in which tokens reach them: gathered, or each to the ranks of the experts that it
//! chose. That such plans train like PyTorch without stages is in `parity.rs`.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/cells.rs"]
mod cells;
#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/kinds.rs"]
mod kinds;
#[path = "support/obedience.rs"]
mod obedience;
#[path = "support/pins.rs"]
mod pins;
#[path = "support/plan.rs"]
mod plan;
#[path = "support/snapshot.rs"]
mod snapshot;
#[path = "support/table.rs"]
mod table;

use cells::check_cells;
use fixture::Fixture;
use galvatron::config::cluster::parse_cluster_with;
use galvatron::config::strategy::parse_strategy;
use galvatron::config::train::parse_recipe;
use galvatron::driver::{Compilation, compile, pins_of};
use galvatron_ir::op::Op;
use galvatron_ir::types::DType;
use galvatron_passes::recognize::recognize;
use galvatron_passes::search::ExpertKind;
use kinds::{check_bf16, check_written_down, order};
use obedience::disobeyed;
use pins::STAGES_OF_EXPERTS;
use std::path::Path;

#[test]
fn stages_whose_tokens_travel_train_like_pytorch() {
    let fixture = Fixture::open("mixtral");
    let orders = STAGES_OF_EXPERTS.iter().map(|&(strategy, ranks)| order(&fixture, strategy, ranks, DType::F32));
    check_cells(&orders.collect::<Vec<_>>(), &["mixtral"], &["adamw"], "refused-experts");
}

/// Nodes by which the mixtures of a plan are computed: those whose tokens travel, and others.
fn mixtures(strategy: &str) -> (usize, usize) {
    let fixture = Fixture::open("mixtral");
    let module = order(&fixture, strategy, 2, DType::F32).compile().expect("the pins fit").module;
    let nodes = module.chunks.iter().flat_map(|chunk| chunk.nodes().map(|(_, node)| &chunk.graph.node(node).op));
    let nodes: Vec<&Op> = nodes.collect();
    let routed = nodes.iter().filter(|op| op.is_routed()).count();
    (routed, nodes.iter().filter(|op| matches!(op, Op::Moe(_) | Op::MoeGrad(_))).count())
}

/// Two layers, forward and backward.
#[test]
fn tokens_travel_where_that_is_pinned() {
    assert_eq!(mixtures("dp = 2\nep = 2\nep_kind = \"all_to_all\"\nrecompute = \"none\""), (4, 0));
    assert_eq!(mixtures("dp = 2\nep = 2\nep_kind = \"gather\"\nrecompute = \"none\""), (0, 4));
    assert_eq!(mixtures("dp = 2\nep = 1\nep_kind = \"all_to_all\"\nrecompute = \"none\""), (0, 4));
    let both = "dp = 2\nep = 2\nrecompute = \"none\"\n[[layers]]\nrange = [0, 1]\nep_kind = \"gather\"\n\
        [[layers]]\nrange = [1, 2]\nep_kind = \"all_to_all\"";
    assert_eq!(mixtures(both), (2, 2));
}

#[test]
fn disobedience_is_seen() {
    let fixture = Fixture::open("mixtral");
    let [gather, travel] = ["gather", "all_to_all"].map(|kind| format!("dp = 2\nep = 2\nep_kind = \"{kind}\""));
    for (made, pinned) in [(&gather, &travel), (&travel, &gather)] {
        let compiled = order(&fixture, made, 2, DType::F32).compile().expect("the pins can be met");
        let pins = order(&fixture, pinned, 2, DType::F32).pins().expect("the strategy can be read");
        assert!(!disobeyed(&compiled, &pins).is_empty(), "{made:?} passes for {pinned:?}");
    }
}

/// A plan says by itself in which way its tokens reach their experts.
#[test]
fn the_kind_is_written_down_and_recognised() {
    let fixture = Fixture::open("mixtral");
    for (kind, (ranks, beside)) in ["gather", "all_to_all"]
        .into_iter()
        .flat_map(|kind| [(2, "dp = 2\nep = 2"), (4, "dp = 2\ntp = 2\nep = 4")].map(|beside| (kind, beside)))
    {
        let pin = format!("ep_kind = \"{kind}\"");
        let compiled = check_written_down(&fixture, &format!("{beside}\n{pin}"), ranks, &pin);
        let recognised = recognize(&compiled.module, &compiled.segments).name();
        let degree = beside.rsplit(' ').next().expect("it ends with a degree");
        let shown = if kind == "gather" { format!("ep {degree}") } else { format!("ep {degree} (all-to-all)") };
        assert!(recognised.contains(&shown), "{recognised}");
        assert_eq!(recognised.contains("all-to-all"), kind == "all_to_all", "{recognised}");
    }
}

#[test]
fn tokens_of_bf16_train_like_one_rank() {
    let strategies = ["dp = 2\nep = 2\nep_kind = \"all_to_all\"", "dp = 2\nep = 2\nep_kind = \"gather\""];
    check_bf16(&Fixture::open("mixtral"), 2, strategies);
}

/// A Mixtral of two layers with eight experts over eight devices, whose links have a bandwidth, for sequences of a length: what the search
/// chooses.
fn kind_for(name: &str, bandwidth_gbps: f64, sequence: u32) -> ExpertKind {
    let config = r#"{"model_type": "mixtral", "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 2,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 1024, "max_position_embeddings": 65536,
        "num_local_experts": 8, "num_experts_per_tok": 2}"#;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("experts-{name}"));
    std::fs::create_dir_all(&folder).expect("the folder is made");
    let model = folder.join("config.json");
    std::fs::write(&model, config).expect("the configuration is written");
    let cluster = include_str!("../examples/clusters/a100-80gb-8.toml");
    let links = [format!("links.intra_node.bandwidth_gbps={bandwidth_gbps:?}")];
    let cluster = parse_cluster_with(cluster, &links);
    let keys = ["batch.global=8".into(), "precision.compute=bf16".into(), format!("batch.sequence={sequence}")];
    let pins = "dp = 8\nep = 8\nmicro_batches = 1";
    let what = Compilation {
        model: &model,
        cluster: &cluster.expect("the cluster is described well"),
        recipe: &parse_recipe("", &keys).expect("the recipe is right"),
        pins: &pins_of(&parse_strategy(pins).expect("the pins are well formed")).expect("the pins are known"),
        profile: None,
        retie: true,
        stop_after: None,
        verify_each: true,
    };
    let compiled = compile(&what, &mut |_, _| {}).unwrap_or_else(|_| panic!("{name}: there is a plan"));
    let found = compiled.found.expect("the search ran");
    let layers: Vec<_> = found.decision.segments.iter().filter(|s| s.ep > 1).map(|s| s.ep_kind).collect();
    assert!(layers.len() == 2 && layers.iter().all(|kind| *kind == layers[0]), "{layers:?}");
    layers[0]
}

/// Over slow links a quarter of the tokens for each rank is sooner there than all; few tokens are computed sooner at once than in eight
/// rounds, each of which reads the experts.
#[test]
fn the_search_chooses_the_kind_by_its_cost() {
    let found = [kind_for("slow", 5.0, 4096), kind_for("few", 300.0, 128)];
    assert_eq!(found, [ExpertKind::AllToAll, ExpertKind::Gather]);
}
