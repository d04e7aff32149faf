//! Every key is read, and what is wrong is named with its place.

use super::*;

const FULL: &str = r#"
pp = 2
dp = 2
tp = 2
cp = 1
ulysses = 1
ep = 1
ep_kind = "all_to_all"
zero = 1
sequence = "none"
recompute = "selective"
offload = "optimizer"
pad = 4
micro_batches = 8
schedule = "interleaved"
virtual_stages = 2
stage_layers = [3, 3, 3, 3]
[embedding]
dp = 4
[head]
tp = 4
sequence = "megatron"
[[layers]]
range = [0, 6]
tp = 4
zero = 3
[[layers]]
range = [6, 7]
recompute = "full"
[[place]]
op = "h.0/qkv"
factor = "n"
axes = ["a0", "a1"]
[[save]]
value = "h.0/gelu"
keep = false
"#;

fn check_fault(text: &str, expected: &[&str]) {
    let faults = parse_strategy(text).unwrap_err();
    let shown: Vec<String> =
        faults.iter().map(|f| format!("{}|{}|{}", f.code, &text[f.span.clone().unwrap()], f.message)).collect();
    assert_eq!(shown, expected);
}

fn at<T>(value: T) -> Pinned<T> {
    Some(Spanned::new(0..0, value))
}

#[test]
fn every_key_is_read() {
    let file = parse_strategy(FULL).unwrap();
    assert_eq!((file.pp.clone(), file.pins.zero.clone(), file.micro_batches.clone()), (at(2), at(1), at(8)));
    assert_eq!((file.pins.recompute.clone(), file.pad.clone()), (at(Recompute::Selective), at(4)));
    assert_eq!(file.pins.offload, at(Offload::Optimizer));
    assert_eq!(file.schedule, at(PipelineSchedule::Interleaved));
    assert_eq!(file.stage_layers, at(vec![3, 3, 3, 3]));
    assert_eq!(file.embedding, Some(LayerPins { dp: at(4), ..LayerPins::default() }));
    assert_eq!(file.layers[0].range.get_ref(), &(0..6));
    assert_eq!(file.layers[1].pins, LayerPins { recompute: at(Recompute::Full), ..LayerPins::default() });
    assert_eq!((file.place[0].axes.get_ref().len(), file.save[0].keep), (2, false));
    assert_eq!(&FULL[file.pp.unwrap().span()], "2");
}

#[test]
fn an_empty_file_pins_nothing() {
    assert_eq!(parse_strategy("# nothing\n").unwrap(), StrategyFile::default());
}

#[test]
fn printed_strategy_reads_back() {
    let cut = "pp = 2\nschedule = \"zero-bubble-2p\"\nstage_cuts = [\"x\\\"y\"]\n[embedding]\n";
    for text in [FULL, cut, ""] {
        let file = parse_strategy(text).unwrap();
        let printed = to_toml(&file);
        assert_eq!(parse_strategy(&printed).unwrap(), file, "{printed}");
        assert_eq!(to_toml(&parse_strategy(&printed).unwrap()), printed);
    }
}

#[test]
fn overrides_replace_only_the_named_keys() {
    let file = parse_strategy(FULL).unwrap();
    let pins = file.layers[0].pins.over(&file.pins);
    assert_eq!((pins.tp, pins.zero, pins.dp), (at(4), at(3), at(2)));
}

#[test]
fn wrong_values_are_placed() {
    check_fault(
        "tp = 0\nzero = 4\nsequence = \"ulysses\"\n[[layers]]\nrange = [6, 6]\n[[layers]]\npp = 2\nrange = [0, 1]\n",
        &[
            "bad-value|0|`tp`: expected an integer from 1 to 65536, found 0",
            "bad-value|4|`zero`: expected an integer from 0 to 3, found 4",
            "bad-value|\"ulysses\"|`sequence`: expected one of `none`, `megatron`, found \"ulysses\"",
            "bad-value|[6, 6]|`layers[0].range`: expected `[first, one past the last]` with first < last, found [6, 6]",
            "unknown-key|pp|unknown key `layers[1].pp`",
        ],
    );
}

#[test]
fn missing_keys_of_a_table_point_at_it() {
    check_fault("[[layers]]\ntp = 2\n", &["missing-key|[[layers]]|`layers[0].range` is missing"]);
}

#[test]
fn cuts_by_table_are_reserved() {
    check_fault("[[cut]]\nvalue = \"x\"\n", &["unsupported|cut|`cut` is not supported yet"]);
}

#[test]
fn stages_must_agree() {
    check_fault(
        "pp = 2\nstage_layers = [1, 2, 3]\n",
        &["bad-value|[1, 2, 3]|`stage_layers`: expected 2 entries for `pp = 2`, found 3"],
    );
    check_fault(
        "stage_layers = [1]\nstage_cuts = []\n",
        &["bad-value|[]|`stage_layers` and `stage_cuts` say the same thing: expected one of them"],
    );
    check_fault(
        "schedule = \"1f1b\"\nvirtual_stages = 2\n",
        &["bad-value|2|`virtual_stages = 2` needs `schedule = \"interleaved\"`, found \"1f1b\""],
    );
    assert!(parse_strategy("pp = 2\nstage_layers = [1, 2, 3, 4]\n").is_ok());
    assert!(parse_strategy("pp = 2\nschedule = \"gpipe\"\nstage_layers = [1, 2, 3, 4]\n").is_err());
}
