//! Masks that are added to scores.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Broadcast, Cast, CausalMask, Where};
use galvatron_ir::types::{DType, Scalar};

use super::super::builder::{Builder, Built};

/// What is added to a score that must not count. Finite in every element type, so that differences of it are numbers.
const HIDDEN: f64 = -1e30;

impl Builder {
    /// [1, 1, n, n]: hides the keys that lie `window` or more positions before the query.
    ///
    /// The causal mask of offset -window hides the keys that shall be seen; the difference turns it round.
    pub fn window_mask(&mut self, n: u64, window: u64) -> Built {
        let mask = CausalMask { shape: vec![1, 1, n, n], offset: -(window as i64), fill: Scalar::new(HIDDEN) };
        let recent = self.emit(mask, &[])?;
        let hidden = self.scalar(HIDDEN)?;
        self.subtract(hidden, recent)
    }

    /// [b, 1, n, n] from a padding mask [b, n] of integers: hides the keys where that is 0.
    pub fn padding_mask(&mut self, mask: ValueId) -> Built {
        let [b, n] = self.shape(mask)[..] else { return Ok(mask) };
        let seen = self.emit(Cast { to: DType::Bool }, &[mask])?;
        let (zero, hidden) = (self.scalar(0.0)?, self.scalar(HIDDEN)?);
        let row = self.emit(Where, &[seen, zero, hidden])?;
        let row = self.reshape(row, &[b, 1, 1, n])?;
        self.emit(Broadcast { shape: vec![b, 1, n, n], dims: vec![0, 1, 2, 3] }, &[row])
    }
}
