//! Textbook modules on the builder: what every family is made of.

mod attention;
mod experts;
mod linear;
mod masks;
mod norm;
mod patches;
mod relative;
mod rotary;

pub(super) use attention::{Heads, Scores};
pub(super) use experts::Experts;
pub(super) use relative::Buckets;
pub(super) use rotary::Rope;

use galvatron_ir::op::compute::UnaryKind;
use serde_json::Value;

use super::config::Config;

/// The activation function that a key names.
pub(super) fn activation(config: &mut Config, key: &str, default: &str) -> UnaryKind {
    let name = config.word(key, default);
    activation_named(&name).unwrap_or_else(|| {
        let message = format!("`{key}` is {}, which is not supported", Value::from(name));
        let help = "the functions are gelu, gelu_new, gelu_pytorch_tanh, relu, silu, sigmoid and tanh";
        config.fault(galvatron_ir::Diagnostic::new("config-key", message).help(help));
        UnaryKind::Gelu
    })
}

/// The activation function of that name.
pub(super) fn activation_named(name: &str) -> Option<UnaryKind> {
    Some(match name {
        "gelu" | "gelu_python" => UnaryKind::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate" => UnaryKind::GeluTanh,
        "relu" => UnaryKind::Relu,
        "silu" | "swish" => UnaryKind::Silu,
        "sigmoid" => UnaryKind::Sigmoid,
        "tanh" => UnaryKind::Tanh,
        _ => return None,
    })
}
