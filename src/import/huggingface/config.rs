//! Typed access to the keys of a `config.json`, with a complaint about every key that is not understood.

use std::collections::{BTreeMap, BTreeSet};

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use serde_json::{Map, Value};

/// Keys of any model that say nothing about the computation of a training step.
const IRRELEVANT: [&str; 56] = [
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_cache",
];

/// The largest count; products of a few of them are still numbers.
const MAX_COUNT: u64 = 1 << 24;

/// A configuration that is being read.
///
/// Each method takes the value of a key, or a default where the key is missing or null. Faults are collected until
/// [`Config::finish`].
pub(super) struct Config {
    keys: BTreeMap<String, Value>,
    /// Keys whose value is null.
    nulls: BTreeSet<String>,
    read: BTreeSet<String>,
    /// Names of the tensors of the checkpoint beside it.
    stored: BTreeSet<String>,
    /// Whether dropout is on.
    drops: bool,
    faults: Vec<Diagnostic>,
    notes: Vec<String>,
}

impl Config {
    /// The configuration of a JSON object, with the names of the tensors of the checkpoint beside it, and whether dropout is on.
    pub fn new(object: Map<String, Value>, stored: BTreeSet<String>, drops: bool) -> Config {
        let nulls = object.iter().filter(|(_, value)| value.is_null()).map(|(key, _)| key.clone()).collect();
        let keys = object.into_iter().filter(|(_, value)| !value.is_null()).collect();
        let read = IRRELEVANT.map(String::from).into();
        Config { keys, nulls, read, stored, drops, faults: Vec::new(), notes: Vec::new() }
    }

    /// The value of a key, whatever it is.
    pub fn get(&mut self, key: &str) -> Option<Value> {
        self.read.insert(key.to_string());
        self.keys.get(key).cloned()
    }

    /// Whether a key is given as null, where that is something else than its default.
    pub fn is_null(&self, key: &str) -> bool {
        self.nulls.contains(key)
    }

    /// Whether the checkpoint beside the configuration has a tensor of that name.
    pub fn is_stored(&self, name: &str) -> bool {
        self.stored.contains(name)
    }

    /// Gives keys another name where that is not given itself: (other name, name).
    pub fn rename(&mut self, names: &[(&str, &str)]) {
        for &(other, name) in names {
            if let Some(value) = self.keys.remove(other) {
                self.keys.entry(name.to_string()).or_insert(value);
            }
        }
    }

    /// Gives a key a value where it is missing or null.
    pub fn assume(&mut self, key: &str, value: impl Into<Value>) {
        self.keys.entry(key.to_string()).or_insert_with(|| value.into());
    }

    /// A positive integer.
    pub fn count(&mut self, key: &str, default: u64) -> u64 {
        self.optional_count(key).unwrap_or(default)
    }

    /// A positive integer, if the key is given.
    pub fn optional_count(&mut self, key: &str) -> Option<u64> {
        let value = self.get(key)?;
        let count = value.as_u64().filter(|&n| n > 0 && n <= MAX_COUNT);
        if count.is_none() {
            self.wrong(key, &value, "a positive integer");
        }
        count
    }

    /// A list of positive integers.
    pub fn counts(&mut self, key: &str, default: &[u64]) -> Vec<u64> {
        let Some(value) = self.get(key) else { return default.to_vec() };
        let count = |v: &Value| v.as_u64().filter(|&n| n > 0 && n <= MAX_COUNT);
        let counts: Option<Vec<u64>> = value.as_array().and_then(|items| items.iter().map(count).collect());
        counts.unwrap_or_else(|| {
            self.wrong(key, &value, "a list of positive integers");
            default.to_vec()
        })
    }

    /// A positive integer for both sides of a square, or a list of two.
    pub fn sides(&mut self, key: &str, default: u64) -> [u64; 2] {
        if self.keys.get(key).is_some_and(Value::is_array) {
            return match self.counts(key, &[default; 2])[..] {
                [height, width] => [height, width],
                _ => {
                    let value = self.keys[key].clone();
                    self.wrong(key, &value, "one number or two");
                    [default; 2]
                }
            };
        }
        [self.count(key, default); 2]
    }

    /// A finite number.
    pub fn number(&mut self, key: &str, default: f64) -> f64 {
        let Some(value) = self.get(key) else { return default };
        value.as_f64().filter(|n| n.is_finite()).unwrap_or_else(|| {
            self.wrong(key, &value, "a number");
            default
        })
    }

    /// True or false.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(value) = self.get(key) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.wrong(key, &value, "true or false");
            default
        })
    }

    /// A word.
    pub fn word(&mut self, key: &str, default: &str) -> String {
        let Some(value) = self.get(key) else { return default.to_string() };
        value.as_str().map(str::to_string).unwrap_or_else(|| {
            self.wrong(key, &value, "a word");
            default.to_string()
        })
    }

    /// Refuses every value of a key but one, which is also what the key means where it is missing.
    pub fn only(&mut self, key: &str, value: impl Into<Value>) {
        let only: Value = value.into();
        match self.get(key) {
            Some(found) if found != only && found.as_f64().is_none_or(|n| Some(n) != only.as_f64()) => {
                let message = format!("`{key}` is {found}, which is not supported");
                let help = format!("only models with `{key}` = {only} can be built");
                self.fault(Diagnostic::new("config-key", message).help(help));
            }
            _ => {}
        }
    }

    /// Refuses a key that is given and is neither false nor empty.
    pub fn never(&mut self, key: &str) {
        let Some(found) = self.get(key) else { return };
        let is_empty = found == Value::Bool(false)
            || found.as_array().is_some_and(Vec::is_empty)
            || found.as_object().is_some_and(Map::is_empty);
        if !is_empty {
            let message = format!("`{key}` is {found}, which is not supported");
            self.fault(Diagnostic::new("config-key", message).help("only models without it can be built"));
        }
    }

    /// Keys that say nothing about the computation in this kind of model.
    pub fn ignore(&mut self, keys: &[&str]) {
        self.read.extend(keys.iter().map(|key| key.to_string()));
    }

    /// Rates of dropout, from 0 to below 1; all are 0 where it is off, which is noted.
    pub fn dropout<const N: usize>(&mut self, keys: [(&str, f64); N]) -> [f64; N] {
        let rates = keys.map(|(key, default)| self.rate(key, default));
        let active = keys.iter().zip(rates).filter(|&(_, rate)| rate > 0.0);
        let active: Vec<String> = active.map(|((key, _), rate)| format!("`{key}` = {rate}")).collect();
        if !active.is_empty() {
            let what = if self.drops { "on: " } else { "off; the configuration has " };
            self.note(format!("dropout is {what}{}", active.join(", ")));
        }
        if self.drops { rates } else { [0.0; N] }
    }

    /// A rate at which whole layers or branches are dropped: it must be 0 where dropout is on.
    pub fn drops_no_branch(&mut self, key: &str, default: f64) {
        let rate = self.rate(key, default);
        if rate > 0.0 && self.drops {
            let message = format!("dropout is on, and `{key}` is {rate}: dropping whole branches is not supported");
            self.fault(
                Diagnostic::new("config-key", message).help(format!("set `{key}` to 0, or `model.dropout` to false")),
            );
        } else if rate > 0.0 {
            self.note(format!("dropout is off; the configuration has `{key}` = {rate}"));
        }
    }

    fn rate(&mut self, key: &str, default: f64) -> f64 {
        let rate = self.number(key, default);
        if !(0.0..1.0).contains(&rate) {
            let message = format!("`{key}` is {rate}, not a rate from 0 to below 1");
            self.fault(Diagnostic::new("config-value", message));
        }
        rate
    }

    /// The token that fills rows, whose embedding PyTorch does not train in families that call this.
    pub fn padding(&mut self, default: Option<u64>) {
        let given = self.get("pad_token_id").and_then(|token| token.as_u64());
        let default = default.filter(|_| !self.is_null("pad_token_id"));
        if let Some(token) = given.or(default) {
            self.note(format!(
                "the embedding of token {token}, `pad_token_id`, is trained like others; in PyTorch it is not"
            ));
        }
    }

    /// Says what the user should know.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Records a fault.
    pub fn fault(&mut self, fault: Diagnostic) {
        self.faults.push(fault);
    }

    /// Complains unless one number divides another.
    pub fn divides(&mut self, (divisor, by): (&str, u64), (key, number): (&str, u64)) {
        if by == 0 || !number.is_multiple_of(by) {
            let message = format!("`{key}` is {number}, which `{divisor}`, {by}, does not divide");
            self.fault(Diagnostic::new("config-value", message));
        }
    }

    /// The notes, if nothing was wrong.
    ///
    /// # Errors
    /// All that was: `config-key` for keys that are not supported, `config-value` for values that cannot be.
    pub fn finish(mut self) -> Checked<Vec<String>> {
        if !self.faults.is_empty() {
            return Err(self.faults);
        }
        let is_unknown = |key: &&String| !self.read.contains(*key);
        let unknown: Vec<String> = self.keys.keys().filter(is_unknown).map(|key| format!("`{key}`")).collect();
        if !unknown.is_empty() {
            self.notes.push(format!("keys of the configuration that say nothing here: {}", unknown.join(", ")));
        }
        Ok(self.notes)
    }

    fn wrong(&mut self, key: &str, found: &Value, expected: &str) {
        self.fault(Diagnostic::new("config-value", format!("`{key}` is {found}, not {expected}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::new(serde_json::from_str(text).expect("the test writes JSON"), BTreeSet::new(), false)
    }

    #[test]
    fn faults_are_collected_and_name_their_key() {
        let mut config = config(r#"{"a": -1, "b": "x", "c": [], "d": [1], "e": 2, "f": null}"#);
        assert_eq!((config.count("a", 3), config.number("b", 0.5), config.count("f", 7)), (3, 0.5, 7));
        config.never("c");
        config.never("d");
        config.only("e", 2.0);
        let faults = config.finish().unwrap_err();
        let shown: Vec<(&str, &str)> = faults.iter().map(|f| (f.code, &f.message[..3])).collect();
        assert_eq!(shown, [("config-value", "`a`"), ("config-value", "`b`"), ("config-key", "`d`")]);
    }

    #[test]
    fn unknown_keys_and_dropout_are_noted() {
        let mut config = config(r#"{"p": 0.1, "q": 0.0, "new_key": 1, "use_cache": true}"#);
        assert_eq!(config.dropout([("p", 0.0), ("q", 0.1), ("r", 0.2)]), [0.0; 3]);
        let notes = config.finish().unwrap();
        assert!(notes[0].contains("`p` = 0.1, `r` = 0.2") && !notes[0].contains("`q`"), "{notes:?}");
        assert!(notes[1].ends_with("nothing here: `new_key`"), "{notes:?}");
    }

    #[test]
    fn rates_are_given_where_dropout_is_on() {
        let on = |text: &str| Config { drops: true, ..config(text) };
        let mut rates = on(r#"{"p": 0.1}"#);
        assert_eq!(rates.dropout([("p", 0.0), ("q", 0.0), ("r", 0.2)]), [0.1, 0.0, 0.2]);
        rates.drops_no_branch("s", 0.0);
        assert_eq!(rates.finish().unwrap(), ["dropout is on: `p` = 0.1, `r` = 0.2"]);
        let mut odd = on(r#"{"p": 1.0, "q": -0.5}"#);
        odd.dropout([("p", 0.0), ("q", 0.0)]);
        odd.drops_no_branch("s", 0.1);
        let faults: Vec<String> = odd.finish().unwrap_err().into_iter().map(|fault| fault.message).collect();
        let branch = "dropout is on, and `s` is 0.1: dropping whole branches is not supported";
        assert_eq!(
            faults,
            ["`p` is 1, not a rate from 0 to below 1", "`q` is -0.5, not a rate from 0 to below 1", branch]
        );
    }
}
