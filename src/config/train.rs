//! `train.toml` with its `--set` overrides: how a model is trained.

use std::fmt::Write;

use galvatron_ir::diagnostic::Checked;
use galvatron_ir::recipe::{LossKind, LossRecipe, LrSchedule, OptimizerKind, OptimizerRecipe, Recipe, ScheduleKind};
use galvatron_ir::types::DType;

use super::set::{apply_overrides, parse_file, quoted};
use super::{Faults, Fields, count, flag, integer_in, list, non_negative, one_of, pair, rate, signed, text};

const LOSSES: [(&str, Option<LossKind>); 3] =
    [("cross-entropy", Some(LossKind::CrossEntropy)), ("mse", Some(LossKind::Mse)), ("output", Some(LossKind::Output))];

const OPTIMIZERS: [(&str, Option<OptimizerKind>); 2] =
    [("adamw", Some(OptimizerKind::Adamw)), ("sgd", Some(OptimizerKind::Sgd))];

const SCHEDULES: [(&str, Option<ScheduleKind>); 4] = [
    ("constant", Some(ScheduleKind::Constant)),
    ("linear", Some(ScheduleKind::Linear)),
    ("cosine", Some(ScheduleKind::Cosine)),
    ("wsd", Some(ScheduleKind::Wsd)),
];

/// Element types of parameters, activations and messages.
const PRECISIONS: [(&str, Option<DType>); 2] = [("f32", Some(DType::F32)), ("bf16", Some(DType::Bf16))];

/// Reads the text of `train.toml` (empty if there is none) with `key=value` overrides laid over it, later ones over
/// earlier ones.
///
/// An override has a dotted key and a TOML value, or a bare word that stands for a string. Faults of the file carry a
/// span; faults of an override name the override. Keys that are left out take the defaults of [`Recipe`].
pub fn parse_recipe(text: &str, overrides: &[String]) -> Checked<Recipe> {
    let mut table = parse_file(text)?;
    let faults = Faults::default();
    for fault in apply_overrides(&mut table, overrides) {
        faults.push(fault);
    }
    let recipe = read_recipe(Fields::root(&table, &faults));
    faults.check(Some(recipe))
}

fn read_recipe(mut root: Fields<'_>) -> Recipe {
    let mut recipe = Recipe::default();
    set(&mut recipe.seed, root.read("seed", integer_in(0..=u64::MAX)));
    if let Some(mut batch) = root.section("batch") {
        recipe.global_batch = batch.read("global", count);
        recipe.sequence = batch.read("sequence", count);
        batch.finish();
    }
    recipe.dims = root.section("dims").map(read_dims).unwrap_or_default();
    each_section(&mut root, "loss", |fields| read_loss(fields, &mut recipe.loss));
    each_section(&mut root, "optimizer", |fields| read_optimizer(fields, &mut recipe.optimizer));
    let base = recipe.optimizer.lr;
    each_section(&mut root, "schedule", |fields| read_schedule(fields, &mut recipe.schedule, base));
    each_section(&mut root, "parameters", |fields| {
        set(&mut recipe.trainable, fields.read("trainable", list(text)));
        set(&mut recipe.frozen, fields.read("frozen", list(text)));
    });
    each_section(&mut root, "precision", |fields| {
        set(&mut recipe.compute, fields.read("compute", one_of(&PRECISIONS)));
    });
    each_section(&mut root, "model", |fields| set(&mut recipe.dropout, fields.read("dropout", flag)));
    each_section(&mut root, "data", |fields| set(&mut recipe.shuffle, fields.read("shuffle", flag)));
    root.finish();
    recipe
}

fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

fn each_section(root: &mut Fields<'_>, key: &'static str, read: impl FnOnce(&mut Fields<'_>)) {
    if let Some(mut fields) = root.section(key) {
        read(&mut fields);
        fields.finish();
    }
}

/// Every key of `[dims]` is the name of a symbolic dimension.
fn read_dims(fields: Fields<'_>) -> Vec<(String, u64)> {
    let mut dims = Vec::new();
    for (name, (_, item)) in fields.table {
        match count(item) {
            Ok(extent) => dims.push((name.clone(), extent)),
            Err(wrong) => fields.faults.push(fields.wrong_value(name, item, wrong)),
        }
    }
    dims
}

fn read_loss(fields: &mut Fields<'_>, loss: &mut LossRecipe) {
    set(&mut loss.kind, fields.read("kind", one_of(&LOSSES)));
    set(&mut loss.output, fields.read("output", text));
    set(&mut loss.labels, fields.read("labels", text));
    loss.shift = fields.read("shift", flag);
    set(&mut loss.ignore_index, fields.read("ignore_index", signed));
}

fn read_optimizer(fields: &mut Fields<'_>, optimizer: &mut OptimizerRecipe) {
    set(&mut optimizer.kind, fields.read("kind", one_of(&OPTIMIZERS)));
    set(&mut optimizer.lr, fields.read("lr", non_negative));
    set(&mut optimizer.betas, fields.read("betas", pair(rate)));
    set(&mut optimizer.eps, fields.read("eps", non_negative));
    set(&mut optimizer.weight_decay, fields.read("weight_decay", non_negative));
    set(&mut optimizer.no_decay, fields.read("no_decay", list(text)));
    set(&mut optimizer.momentum, fields.read("momentum", non_negative));
    set(&mut optimizer.clip_norm, fields.read("clip_norm", non_negative));
}

/// `base` is the optimizer's learning rate, above which `min_lr` may not lie.
fn read_schedule(fields: &mut Fields<'_>, schedule: &mut LrSchedule, base: f64) {
    let steps = || integer_in(0..=1 << 53);
    set(&mut schedule.kind, fields.read("kind", one_of(&SCHEDULES)));
    set(&mut schedule.warmup_steps, fields.read("warmup_steps", steps()));
    set(&mut schedule.total_steps, fields.read("total_steps", steps()));
    set(&mut schedule.min_lr, fields.read("min_lr", non_negative));
    if schedule.kind == ScheduleKind::Constant {
        return;
    }
    if !fields.has("total_steps") {
        fields.need("total_steps");
    } else if schedule.total_steps <= schedule.warmup_steps {
        let (total, warmup) = (schedule.total_steps, schedule.warmup_steps);
        let message = format!("`schedule.total_steps`: expected more than the {warmup} warm-up steps, found {total}");
        fields.faults.push(fields.fault("total_steps", "bad-value", message));
    }
    if schedule.min_lr > base {
        let message =
            format!("`schedule.min_lr`: expected at most `optimizer.lr` = {base:?}, found {:?}", schedule.min_lr);
        fields.faults.push(fields.fault("min_lr", "bad-value", message));
    }
}

/// The recipe as the text of a `train.toml` that names every key; reads back as the same recipe.
///
/// A key whose value depends on the model or the data stands in a comment.
pub fn to_toml(recipe: &Recipe) -> String {
    let mut out = String::new();
    write_recipe(recipe, &mut out).expect("invariant: writing into a string cannot fail");
    out
}

fn write_recipe(recipe: &Recipe, out: &mut String) -> std::fmt::Result {
    writeln!(out, "seed = {}\n\n[batch]", recipe.seed)?;
    write_count(out, "global", recipe.global_batch, "the static batch of the model")?;
    write_count(out, "sequence", recipe.sequence, "not bound")?;
    writeln!(out, "\n[dims]")?;
    for (name, extent) in &recipe.dims {
        writeln!(out, "{} = {extent}", quoted(name))?;
    }
    write_loss(&recipe.loss, out)?;
    write_optimizer(&recipe.optimizer, out)?;
    let schedule = &recipe.schedule;
    writeln!(out, "\n[schedule]\nkind = {}", name_of(&SCHEDULES, schedule.kind))?;
    writeln!(out, "warmup_steps = {}\ntotal_steps = {}", schedule.warmup_steps, schedule.total_steps)?;
    writeln!(out, "min_lr = {:?}", schedule.min_lr)?;
    writeln!(out, "\n[parameters]\ntrainable = {}\nfrozen = {}", names(&recipe.trainable), names(&recipe.frozen))?;
    writeln!(out, "\n[precision]\ncompute = {}", name_of(&PRECISIONS, recipe.compute))?;
    writeln!(out, "\n[model]\ndropout = {}", recipe.dropout)?;
    writeln!(out, "\n[data]\nshuffle = {}", recipe.shuffle)
}

fn write_loss(loss: &LossRecipe, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n[loss]\nkind = {}", name_of(&LOSSES, loss.kind))?;
    writeln!(out, "output = {}\nlabels = {}", quoted(&loss.output), quoted(&loss.labels))?;
    match loss.shift {
        Some(shift) => writeln!(out, "shift = {shift}")?,
        None => writeln!(out, "# shift: true if the data has no labels")?,
    }
    writeln!(out, "ignore_index = {}", loss.ignore_index)
}

fn write_optimizer(optimizer: &OptimizerRecipe, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n[optimizer]\nkind = {}\nlr = {:?}", name_of(&OPTIMIZERS, optimizer.kind), optimizer.lr)?;
    writeln!(out, "betas = {:?}\neps = {:?}", optimizer.betas, optimizer.eps)?;
    writeln!(out, "weight_decay = {:?}\nno_decay = {}", optimizer.weight_decay, names(&optimizer.no_decay))?;
    writeln!(out, "momentum = {:?}\nclip_norm = {:?}", optimizer.momentum, optimizer.clip_norm)
}

fn write_count(out: &mut String, key: &str, value: Option<u64>, otherwise: &str) -> std::fmt::Result {
    match value {
        Some(value) => writeln!(out, "{key} = {value}"),
        None => writeln!(out, "# {key}: {otherwise}"),
    }
}

fn name_of<T: PartialEq + Copy>(names: &[(&str, Option<T>)], value: T) -> String {
    let found = names.iter().find(|(_, known)| *known == Some(value));
    quoted(found.expect("invariant: every kind has a name").0)
}

fn names(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, overrides: &[&str]) -> Checked<Recipe> {
        parse_recipe(text, &overrides.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    fn check_fault(text: &str, overrides: &[&str], expected: &[&str]) {
        let faults = parse(text, overrides).unwrap_err();
        let help = |help: &Option<String>| help.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
        let shown: Vec<String> = faults.iter().map(|f| format!("{}|{}{}", f.code, f.message, help(&f.help))).collect();
        assert_eq!(shown, expected);
    }

    const FULL: &str = r#"
seed = 7
[batch]
global = 64
sequence = 1024
[dims]
dec_seq = 512
"enc.seq" = 128
[loss]
kind = "cross-entropy"
output = "logits"
labels = "targets"
shift = false
ignore_index = -1
[optimizer]
kind = "sgd"
lr = 3e-4
betas = [0.9, 0.999]
eps = 1e-8
weight_decay = 0.01
no_decay = ["*.bias", "ln_f.weight"]
momentum = 0.9
clip_norm = 1
[schedule]
kind = "cosine"
warmup_steps = 10
total_steps = 100
min_lr = 1e-5
[parameters]
trainable = ["h.*"]
frozen = ["wpe"]
[precision]
compute = "f32"
[model]
dropout = true
[data]
shuffle = true
"#;

    #[test]
    fn every_key_is_read() {
        let recipe = parse(FULL, &[]).unwrap();
        assert_eq!((recipe.seed, recipe.global_batch, recipe.sequence), (7, Some(64), Some(1024)));
        assert_eq!(recipe.dims, [("dec_seq".to_string(), 512), ("enc.seq".to_string(), 128)]);
        assert_eq!(
            (recipe.loss.labels.as_str(), recipe.loss.shift, recipe.loss.ignore_index),
            ("targets", Some(false), -1)
        );
        assert_eq!((recipe.optimizer.kind, recipe.optimizer.clip_norm), (OptimizerKind::Sgd, 1.0));
        assert_eq!(recipe.optimizer.no_decay, ["*.bias", "ln_f.weight"]);
        assert_eq!((recipe.schedule.kind, recipe.schedule.total_steps), (ScheduleKind::Cosine, 100));
        assert!(recipe.shuffle && recipe.dropout);
    }

    #[test]
    fn nothing_gives_the_defaults() {
        assert_eq!(parse("", &[]).unwrap(), Recipe::default());
    }

    #[test]
    fn overrides_replace_keys() {
        let recipe = parse(FULL, &["batch.global=8", "loss.kind=mse", "dims.dec_seq=3", "batch.global=16"]).unwrap();
        assert_eq!((recipe.global_batch, recipe.loss.kind, recipe.dims[0].1), (Some(16), LossKind::Mse, 3));
    }

    #[test]
    fn printed_config_reads_back() {
        let odd = parse(FULL, &["seed=18446744073709551615", "loss.output='a\\b\"c'", "optimizer.lr=1e21"]).unwrap();
        for recipe in [Recipe::default(), odd] {
            assert_eq!(parse(&to_toml(&recipe), &[]).unwrap(), recipe, "{}", to_toml(&recipe));
        }
    }

    #[test]
    fn unknown_keys_get_the_nearest_known_one() {
        check_fault(
            "[optimizer]\nlearning_rate = 1\n[batch]\nglobl = 2\n",
            &["batch.seqence=4"],
            &[
                "unknown-key|unknown key `optimizer.learning_rate` (known keys here: `kind`, `lr`, `betas`, `eps`, \
                 `weight_decay`, `no_decay`, `momentum`, `clip_norm`)",
                "unknown-key|unknown key `batch.globl` (did you mean `batch.global`?)",
                "unknown-key|unknown key `batch.seqence` (in `--set batch.seqence=4`) (did you mean `batch.sequence`?)",
            ],
        );
    }

    #[test]
    fn bf16_is_read() {
        let recipe = parse_recipe("[precision]\ncompute = \"bf16\"\n", &[]).unwrap();
        assert_eq!(recipe.compute, DType::Bf16);
    }

    #[test]
    fn values_out_of_range_are_faults() {
        check_fault(
            "seed = -1\n[optimizer]\nlr = \"fast\"\nbetas = [0.9, 1.0]\nno_decay = [1]\n[dims]\nn = 0\n",
            &["optimizer.eps=nan", "data.shuffle=yes"],
            &[
                "bad-value|`seed`: expected an integer from 0 to 18446744073709551615, found -1",
                "bad-value|`optimizer.lr`: expected a number that is not negative, found \"fast\"",
                "bad-value|`optimizer.betas`: expected an array, each element a number in [0, 1), found [0.9, 1.0]",
                "bad-value|`optimizer.no_decay`: expected an array, each element a string, found [1]",
                "bad-value|`dims.n`: expected an integer from 1 to 2147483648, found 0",
                "bad-value|`optimizer.eps`: expected a number that is not negative, found NaN (in `--set optimizer.eps=nan`)",
                "bad-value|`data.shuffle`: expected true or false, found \"yes\" (in `--set data.shuffle=yes`)",
            ],
        );
    }

    #[test]
    fn a_falling_schedule_needs_its_length() {
        check_fault("[schedule]\nkind = \"linear\"\n", &[], &["missing-key|`schedule.total_steps` is missing"]);
        check_fault(
            "[schedule]\nkind = \"wsd\"\nwarmup_steps = 5\ntotal_steps = 5\nmin_lr = 1.0\n",
            &[],
            &[
                "bad-value|`schedule.total_steps`: expected more than the 5 warm-up steps, found 5",
                "bad-value|`schedule.min_lr`: expected at most `optimizer.lr` = 0.0003, found 1.0",
            ],
        );
    }
}
