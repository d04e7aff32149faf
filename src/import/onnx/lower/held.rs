//! The memory that known values take while a model is lowered.

use std::collections::HashMap;

use super::super::statics::StaticTensor;
use super::Fault;

/// Most bytes of evaluated values that are held at once: masks of a sequence of 8192, and several on the way to them.
const MAX_BYTES: usize = 1 << 31;

/// The elements that are held, each counted once however many tensors share them.
pub(super) struct Held {
    /// Number of tensors, by the place of their elements.
    n_tensors: HashMap<usize, usize>,
    n_bytes: usize,
    max_bytes: usize,
    /// Whether a tensor was refused; nothing more need be evaluated then.
    pub is_full: bool,
}

impl Default for Held {
    fn default() -> Self {
        Held { n_tensors: HashMap::new(), n_bytes: 0, max_bytes: MAX_BYTES, is_full: false }
    }
}

impl Held {
    /// Counts a tensor that was evaluated.
    ///
    /// # Errors
    /// If more would be held than there may be.
    pub(super) fn hold(&mut self, tensor: &StaticTensor) -> Result<(), Fault> {
        let (place, n_bytes) = tensor.storage();
        let n_tensors = self.n_tensors.entry(place).or_insert(0);
        if *n_tensors == 0 {
            self.n_bytes += n_bytes;
        }
        *n_tensors += 1;
        if self.n_bytes <= self.max_bytes {
            return Ok(());
        }
        let what = format!("the known values up to here take {} bytes, more than {}", self.n_bytes, self.max_bytes);
        self.release(tensor);
        self.is_full = true;
        Err(what.into())
    }

    /// Takes a tensor away; initializers, which were not evaluated, are not counted.
    pub(super) fn release(&mut self, tensor: &StaticTensor) {
        let (place, n_bytes) = tensor.storage();
        let Some(n_tensors) = self.n_tensors.get_mut(&place) else { return };
        *n_tensors -= 1;
        if *n_tensors == 0 {
            self.n_tensors.remove(&place);
            self.n_bytes -= n_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_counted_once_and_until_their_last_tensor_goes() {
        let mut held = Held { max_bytes: 20, ..Held::default() };
        let (a, b) = (StaticTensor::from_ints(&[1, 2]), StaticTensor::from_ints(&[3]));
        let (same, not_counted) = (a.clone(), StaticTensor::from_ints(&[4]));
        assert_eq!(held.hold(&a).and_then(|()| held.hold(&same)), Ok(()));
        let what = "the known values up to here take 24 bytes, more than 20";
        assert_eq!((held.hold(&b), held.is_full), (Err(Fault::Wrong(what.into())), true));
        held.release(&not_counted);
        held.release(&a);
        assert!(held.hold(&b).is_err(), "`same` has the elements still");
        held.release(&same);
        assert_eq!((held.hold(&b), held.n_bytes), (Ok(()), 8));
    }
}
