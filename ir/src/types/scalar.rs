//! A float that can be compared, ordered and hashed by its bits.

use std::fmt;

/// A finite or infinite `f64` constant of the program; two scalars are equal when their bits are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scalar(u64);

impl Scalar {
    /// The scalar of a float.
    pub fn new(value: f64) -> Scalar {
        Scalar(value.to_bits())
    }

    /// The float.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

impl fmt::Display for Scalar {
    /// The shortest decimal form that reads back as the same bits; always with a point, an exponent or a name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}
