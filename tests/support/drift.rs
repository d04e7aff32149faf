//! How far trained weights are from those of PyTorch, in units of what single precision explains.
//!
//! The manifest says by how much each parameter's gradient in single precision is off from the one in double precision, at the
//! first batch; ten times that, as for losses, is the noise of a gradient here. SGD adds the gradients up, so its weights are
//! off by at most the rate times the noise of all steps, each of which momentum lets go on. AdamW divides each gradient
//! by its size: the first by its own, later ones by the root of the mean square of all. What is smaller than its noise
//! may move either way, by a whole step; other weights follow the ones that did. Every step rounds the weight.

use crate::fixture::{Fixture, N_STEPS};
use safetensors::SafeTensors;
use serde_json::Value;

/// A gradient is off by so many times the difference of PyTorch's own.
const NOISE: f64 = 10.0;
/// Part of a step by which the weights of AdamW follow those that noise moves: ten times what is seen in GPT-2.
const FOLLOWED: f64 = 2.5e-4;
/// Largest relative error of rounding to single precision.
const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// A trained parameter.
pub struct Parameter<'a> {
    /// PyTorch's name.
    pub name: &'a str,
    /// Its elements after training.
    pub found: Vec<f32>,
    /// The running mean of squared gradients, where the optimizer has one.
    pub squares: Option<Vec<f32>>,
}

/// The largest error of an element in units of its tolerance, and its index; nothing where there is no reference.
pub fn worst(fixture: &Fixture, optimizer: &str, parameter: &Parameter<'_>) -> Option<(f64, usize)> {
    let reference = SafeTensors::deserialize(&fixture.reference).unwrap();
    let expected = floats(reference.tensor(&format!("after_{optimizer}.{}", parameter.name)).ok()?.data());
    let first = floats(reference.tensor(&format!("grad.{}", parameter.name)).unwrap().data());
    assert_eq!(parameter.found.len(), expected.len(), "`{}`", parameter.name);
    let noise = &fixture.manifest["reference"]["parameters"][parameter.name]["grad_abs_err_f32"];
    let noise = NOISE * noise.as_f64().unwrap();
    let constants = &fixture.manifest["reference"]["trajectories"][optimizer]["hyper"];
    let units = (0..expected.len()).map(|i| {
        let moved = match &parameter.squares {
            Some(squares) => by_adamw(constants, noise, first[i], squares[i]),
            None => by_sgd(constants, noise),
        };
        let tolerance = moved + N_STEPS as f64 * ROUNDING * f64::from(expected[i].abs());
        let error = (f64::from(parameter.found[i]) - f64::from(expected[i])).abs();
        (if error == 0.0 { 0.0 } else { error / tolerance }, i)
    });
    units.max_by(|a, b| a.0.total_cmp(&b.0))
}

fn by_sgd(constants: &Value, noise: f64) -> f64 {
    let [rate, momentum] = ["lr", "momentum"].map(|key| constants[key].as_f64().unwrap());
    N_STEPS as f64 * rate * noise / (1.0 - momentum)
}

fn by_adamw(constants: &Value, noise: f64, first: f32, square: f32) -> f64 {
    let [rate, eps] = ["lr", "eps"].map(|key| constants[key].as_f64().unwrap());
    let decay = constants["betas"][1].as_f64().unwrap();
    let n_later = (N_STEPS - 1) as f64;
    if square == 0.0 {
        // It never had a gradient, noise included.
        return 0.0;
    }
    let mean = f64::from(square) / (1.0 - decay.powi(N_STEPS as i32));
    let of_step = |size: f64| (noise / (size + eps)).min(2.0);
    rate * (of_step(f64::from(first.abs())) + n_later * of_step(mean.sqrt()) + N_STEPS as f64 * FOLLOWED)
}

/// Little-endian floats.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
