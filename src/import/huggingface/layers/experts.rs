//! Mixtures of experts.

use galvatron_ir::id::ValueId;
use galvatron_ir::module::Normal;
use galvatron_ir::op::compute::{Binary, Moe, ReduceSum, Softmax, TopK, UnaryKind};

use super::super::builder::{Builder, Built};

/// The sizes of a mixture of gated experts.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Experts {
    /// How many there are.
    pub n: u64,
    /// How many of them see a token.
    pub n_chosen: u64,
    /// Width inside of each.
    pub inner: u64,
    /// The function on the gate.
    pub activation: UnaryKind,
}

impl Builder {
    /// y [.., h] = the sum over the `n_chosen` experts that the router likes best of their result, by the softmax of the
    /// router's scores, which are made to add up to 1 (Jiang et al. 2024, Mixtral).
    ///
    /// `NAME.gate.weight` [n, h] are the router's; `NAME.experts.gate_up_proj` [n, 2 inner, h] and `NAME.experts.down_proj`
    /// [n, h, inner] those of the experts.
    pub fn experts(&mut self, name: &str, x: ValueId, of: Experts, std: f64) -> Built {
        let width = self.shape(x).last().copied().unwrap_or(1);
        let scores = self.linear(&format!("{name}.gate"), x, of.n, false, std)?;
        let probabilities = self.emit(Softmax, &[scores])?;
        let chosen = self.emit(TopK { k: of.n_chosen, largest: true }, &[probabilities])?;
        let (w, i) = (self.normalized(chosen)?, self.second(chosen));
        self.enter(&format!("{name}.experts"));
        let start = Normal::new(0.0, std);
        let fused = self.parameter(&format!("{name}.experts.gate_up_proj"), &[of.n, 2 * of.inner, width], start);
        let down = self.parameter(&format!("{name}.experts.down_proj"), &[of.n, width, of.inner], start);
        let (gate, up) = (self.slice(fused, 1, 0, of.inner)?, self.slice(fused, 1, of.inner, of.inner)?);
        self.emit(Moe { activation: of.activation, experts: of.n }, &[x, w, i, gate, up, down])
    }

    /// Rows divided by their sums.
    fn normalized(&mut self, x: ValueId) -> Built {
        let mut shape = self.shape(x);
        let sum = self.emit(ReduceSum { dims: vec![shape.len() - 1] }, &[x])?;
        if let Some(last) = shape.last_mut() {
            *last = 1;
        }
        let sum = self.reshape(sum, &shape)?;
        self.emit(Binary::DIV, &[x, sum])
    }

    /// Result 1 of the node whose result 0 is x.
    fn second(&self, x: ValueId) -> ValueId {
        let graph = &self.module.program.graph;
        let node = graph.producer(x).expect("invariant: the value was computed");
        graph.node(node).results[1]
    }
}
