//! Linear maps and embeddings.

use galvatron_ir::id::ValueId;
use galvatron_ir::module::Normal;
use galvatron_ir::op::compute::{Einsum, Embedding, Iota};

use super::super::builder::{Builder, Built};

/// How a linear map is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// [out, in], as `torch.nn.Linear`.
    OutIn,
    /// [in, out], as the `Conv1D` of GPT-2.
    InOut,
}

impl Builder {
    /// y [.., out] = x [.., in] weight^T + bias, with `NAME.weight` [out, in] and, if there is one, `NAME.bias` [out].
    pub fn linear(&mut self, name: &str, x: ValueId, n_out: u64, has_bias: bool, std: f64) -> Built {
        self.affine(name, x, n_out, has_bias, std, Layout::OutIn)
    }

    /// As [`Builder::linear`] with bias, but with `NAME.weight` [in, out].
    pub fn linear_in_out(&mut self, name: &str, x: ValueId, n_out: u64, std: f64) -> Built {
        self.affine(name, x, n_out, true, std, Layout::InOut)
    }

    fn affine(&mut self, name: &str, x: ValueId, n_out: u64, has_bias: bool, std: f64, layout: Layout) -> Built {
        self.enter(name);
        let n_in = self.shape(x).last().copied().unwrap_or(1);
        let shape = if layout == Layout::OutIn { [n_out, n_in] } else { [n_in, n_out] };
        let weight = self.parameter(&format!("{name}.weight"), &shape, Normal::new(0.0, std));
        let y = match layout {
            Layout::OutIn => self.project(x, weight)?,
            Layout::InOut => self.contract(x, weight, "kn")?,
        };
        if !has_bias {
            return Ok(y);
        }
        let bias = self.parameter(&format!("{name}.bias"), &[n_out], Normal::new(0.0, 0.0));
        self.add(y, bias)
    }

    /// y [.., out] = x [.., in] weight^T for a weight [out, in].
    pub fn project(&mut self, x: ValueId, weight: ValueId) -> Built {
        self.contract(x, weight, "nk")
    }

    fn contract(&mut self, x: ValueId, weight: ValueId, labels: &str) -> Built {
        let rows: String = "bstuv".chars().take(self.shape(x).len() - 1).collect();
        let einsum = Einsum { lhs: format!("{rows}k"), rhs: labels.into(), out: format!("{rows}n") };
        self.emit(einsum, &[x, weight])
    }

    /// A table of `n_rows` vectors and the vectors at `ids`: (table, [ids.., width]).
    pub fn embedding(
        &mut self,
        name: &str,
        ids: ValueId,
        [n_rows, width]: [u64; 2],
        std: f64,
    ) -> Result<(ValueId, ValueId), galvatron_ir::Diagnostic> {
        self.enter(name);
        let table = self.parameter(&format!("{name}.weight"), &[n_rows, width], Normal::new(0.0, std));
        let rows = self.emit(Embedding, &[table, ids])?;
        Ok((table, rows))
    }

    /// The vectors of positions `start` to `start + length`: [1, length, width].
    pub fn positions(&mut self, name: &str, start: u64, length: u64, [n_rows, width]: [u64; 2], std: f64) -> Built {
        self.enter(name);
        let ids = self.emit(Iota { shape: vec![1, length], dim: 1, start: start as i64, step: 1 }, &[])?;
        Ok(self.embedding(name, ids, [n_rows, width], std)?.1)
    }
}
