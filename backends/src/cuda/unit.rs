//! What is compiled at once: the source of a family of kernels, or one that was generated for a plan.

use std::sync::Arc;

use super::kernels::Family;

/// A source of kernels, compiled as one unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Kernels that all plans share.
    Family(Family),
    /// A kernel that was generated.
    Generated(Arc<Generated>),
}

/// A generated source with one kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generated {
    /// The kernel's name, which depends on nothing but its text.
    pub name: String,
    /// The whole source, ready to be compiled.
    pub source: String,
}

impl Unit {
    /// The name of its source, without the ending.
    pub fn name(&self) -> &str {
        match self {
            Unit::Family(family) => family.name(),
            Unit::Generated(generated) => &generated.name,
        }
    }

    /// Its source, ready to be compiled.
    pub fn source(&self) -> String {
        match self {
            Unit::Family(family) => family.source(),
            Unit::Generated(generated) => generated.source.clone(),
        }
    }

    /// Whether the compiler may round a product and the sum that it goes into once instead of twice. Where nodes may be
    /// computed together or one by one it may not: the bits would depend on which of them the compiler sees at once.
    pub fn may_contract(&self) -> bool {
        !matches!(self, Unit::Family(Family::Elementwise | Family::Optimizer) | Unit::Generated(_))
    }
}

impl From<Family> for Unit {
    fn from(family: Family) -> Unit {
        Unit::Family(family)
    }
}
