//! Rotary position embeddings (Su et al. 2021): what the configuration says of them, their tables, and the turn.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Binary, Cast, Concat, Constant, Iota, UnaryKind};
use galvatron_ir::types::{DType, Scalar, TensorType};
use serde_json::{Map, Value};
use std::f64::consts::TAU;

use super::super::builder::{Builder, Built};
use super::super::config::Config;

/// How angles are stretched for sequences that are longer than those of the first training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) enum Scaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Long waves by a factor, short ones not, with a smooth passage between (LLaMA 3.1).
    Llama3 {
        /// The factor of long waves.
        factor: f64,
        /// Waves longer than `length` divided by this are long.
        low: f64,
        /// Waves shorter than `length` divided by this are short.
        high: f64,
        /// Positions of the first training.
        length: f64,
    },
}

/// Rotary position embeddings of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) struct Rope {
    /// Base of the geometric sequence of angles.
    pub theta: f64,
    /// The stretching.
    pub scaling: Scaling,
    /// Share of a head that is turned.
    pub share: f64,
}

/// Keys of `rope_parameters` that are understood.
const KEYS: [&str; 8] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
];

impl Rope {
    /// Reads `rope_parameters`, or the older `rope_theta`, `rope_scaling` and `partial_rotary_factor`.
    pub fn read(config: &mut Config, share: f64) -> Rope {
        let theta = config.number("rope_theta", 10_000.0);
        let share = config.number("partial_rotary_factor", share);
        let n_positions = config.optional_count("max_position_embeddings");
        let older = config.get("rope_scaling");
        let (key, given) = match (older, config.get("rope_parameters")) {
            (Some(older), _) => ("rope_scaling", older),
            (None, newer) => ("rope_parameters", newer.unwrap_or_else(|| Value::Object(Map::new()))),
        };
        let Value::Object(given) = given else {
            config.fault(Diagnostic::new("config-value", format!("`{key}` is {given}, not an object")));
            return Rope { theta, scaling: Scaling::None, share };
        };
        for unknown in given.keys().filter(|k| !KEYS.contains(&k.as_str())) {
            let message = format!("`{key}` has `{unknown}`, which is not supported");
            config.fault(Diagnostic::new("config-key", message).help(format!("its keys are {}", KEYS.join(", "))));
        }
        let number = |name: &str, default: f64| given.get(name).and_then(Value::as_f64).unwrap_or(default);
        let length = number("original_max_position_embeddings", n_positions.unwrap_or(0) as f64);
        let scaling = scaling(config, key, &given, length);
        Rope { theta: number("rope_theta", theta), scaling, share: number("partial_rotary_factor", share) }
    }

    /// As [`Rope::read`] for a family that turns whole heads.
    pub fn read_whole(config: &mut Config) -> Rope {
        let rope = Rope::read(config, 1.0);
        if rope.share != 1.0 {
            let message = format!("`partial_rotary_factor` is {}, which this family does not have", rope.share);
            config.fault(Diagnostic::new("config-key", message).help("leave the key out"));
        }
        rope
    }

    /// The number of leading elements of a head that are turned.
    pub fn turned(&self, width: u64) -> u64 {
        ((width as f64 * self.share) as u64).min(width)
    }

    /// Angle by which each of `turned / 2` pairs is turned from one position to the next.
    pub fn frequencies(&self, turned: u64) -> Vec<f64> {
        let plain = (0..turned / 2).map(|i| self.theta.powf(-(2.0 * i as f64) / turned as f64));
        plain.map(|f| f64::from(self.scaling.apply(f) as f32)).collect()
    }
}

impl Scaling {
    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Scaling::None => frequency,
            Scaling::Linear { factor } => frequency / factor,
            Scaling::Llama3 { factor, low, high, length } => {
                let waves = length * frequency / TAU;
                let smooth = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

/// The scaling of `rope_type`; what is missing or not supported is a fault.
fn scaling(config: &mut Config, key: &str, given: &Map<String, Value>, length: f64) -> Scaling {
    let kind = given.get("rope_type").or_else(|| given.get("type")).and_then(Value::as_str).unwrap_or("default");
    let mut number = |name: &str| {
        let found = given.get(name).and_then(Value::as_f64).filter(|&n| n > 0.0);
        if found.is_none() {
            let message = format!("`{key}` of type `{kind}` has no positive number `{name}`");
            config.fault(Diagnostic::new("config-value", message));
        }
        found.unwrap_or(1.0)
    };
    match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: number("factor") },
        "llama3" => {
            let (factor, low, high) = (number("factor"), number("low_freq_factor"), number("high_freq_factor"));
            Scaling::Llama3 { factor, low, high, length }
        }
        _ => {
            let message = format!("`{key}` has the type `{kind}`, which is not supported");
            config.fault(Diagnostic::new("config-key", message).help("the types are default, linear and llama3"));
            Scaling::None
        }
    }
}

impl Builder {
    /// Cosines and sines of the angles of `n` positions, each [1, n, 1, turned]; the second half repeats the first.
    ///
    /// # Errors
    /// Code `config-value` where the elements of a head that are turned are no pairs.
    pub fn rotary_tables(&mut self, rope: &Rope, n: u64, turned: u64) -> Result<[ValueId; 2], Diagnostic> {
        self.enter("rotary");
        if turned == 0 || !turned.is_multiple_of(2) {
            let message = format!("{turned} elements of each head are turned by their position, which are no pairs");
            return Err(Diagnostic::new("config-value", message).help("heads of an even width are needed"));
        }
        let half = rope.frequencies(turned);
        let values = half.iter().chain(&half).map(|&f| Scalar::new(f)).collect();
        let frequencies = self.emit(Constant { ty: TensorType::f32([1, turned]), values }, &[])?;
        let positions = self.emit(Iota { shape: vec![n, 1], dim: 0, start: 0, step: 1 }, &[])?;
        let positions = self.emit(Cast { to: DType::F32 }, &[positions])?;
        let angles = self.multiply(positions, frequencies)?;
        let mut table = |kind| {
            let values = self.function(kind, angles)?;
            self.reshape(values, &[1, n, 1, turned])
        };
        Ok([table(UnaryKind::Cos)?, table(UnaryKind::Sin)?])
    }

    /// Turns pairs (x_i, x_{i + turned / 2}) of the leading elements of each head; x: [b, n, heads, width].
    pub fn turn(&mut self, x: ValueId, [cos, sin]: [ValueId; 2]) -> Built {
        let (width, turned) = (self.shape(x)[3], self.shape(cos)[3]);
        let part = self.slice(x, 3, 0, turned)?;
        let [low, high] = [self.slice(part, 3, 0, turned / 2)?, self.slice(part, 3, turned / 2, turned / 2)?];
        let high = self.function(UnaryKind::Neg, high)?;
        let across = self.emit(Concat { dim: 3 }, &[high, low])?;
        let along = self.multiply(part, cos)?;
        let across = self.multiply(across, sin)?;
        let value = self.emit(Binary::ADD, &[along, across])?;
        if turned == width {
            return Ok(value);
        }
        let rest = self.slice(x, 3, turned, width - turned)?;
        self.emit(Concat { dim: 3 }, &[value, rest])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Rope, String> {
        let mut config =
            Config::new(serde_json::from_str(text).expect("the test writes JSON"), Default::default(), false);
        let rope = Rope::read(&mut config, 1.0);
        config.finish().map(|_| rope).map_err(|faults| faults.iter().map(|f| format!("{}\n", f.message)).collect())
    }

    #[test]
    fn old_and_new_keys_say_the_same() {
        let old = read(r#"{"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2}}"#);
        let new = read(r#"{"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 500.0}}"#);
        assert_eq!(old, new);
        assert_eq!(old.unwrap().frequencies(4), [0.5, f64::from((0.5 / 500f64.sqrt()) as f32)]);
    }

    #[test]
    fn llama3_stretches_long_waves_only() {
        let text = r#"{"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#;
        let rope = read(text).unwrap();
        let plain = Rope { scaling: Scaling::None, ..rope };
        let ratio: Vec<f64> =
            rope.frequencies(128).iter().zip(plain.frequencies(128)).map(|(scaled, plain)| plain / scaled).collect();
        assert_eq!((ratio[0], ratio[63]), (1.0, 8.0));
        assert!(ratio.is_sorted() && ratio.iter().any(|&r| r > 1.01 && r < 7.9), "{ratio:?}");
    }

    #[test]
    fn other_types_and_keys_are_refused_by_name() {
        let yarn = read(r#"{"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 32}}"#).unwrap_err();
        assert!(yarn.contains("`beta_fast`") && yarn.contains("type `yarn`"), "{yarn}");
        assert!(read(r#"{"rope_scaling": {"rope_type": "linear"}}"#).unwrap_err().contains("number `factor`"));
    }
}
