//! Which copies of each program value the chunk has, and which of them a phase may read.

use galvatron_ir::ValueId;
use galvatron_ir::mesh::{Mesh, Sharding};
use galvatron_ir::plan::{PhaseKind, ResidentRole};
use std::collections::BTreeMap;

/// A copy of a program value.
#[derive(Clone, Debug)]
pub struct Copy {
    /// The chunk's value.
    pub value: ValueId,
    /// Its placement.
    pub sharding: Sharding,
    /// The phase that computes it; `None` for a resident.
    pub phase: Option<PhaseKind>,
}

/// All copies, by program value.
#[derive(Default)]
pub struct Copies {
    copies: BTreeMap<ValueId, Vec<Copy>>,
    residents: BTreeMap<ValueId, ValueId>,
}

impl Copies {
    /// Adds a computed copy.
    pub fn add(&mut self, of: ValueId, copy: Copy) {
        self.copies.entry(of).or_default().push(copy);
    }

    /// Remembers a resident; parameters and states are copies that every phase may read.
    pub fn add_resident(&mut self, of: ValueId, value: ValueId, role: ResidentRole) {
        if role != ResidentRole::Accumulator {
            self.residents.insert(of, value);
        }
    }

    /// The resident of a weight or state.
    pub fn resident(&self, of: ValueId) -> ValueId {
        self.residents[&of]
    }

    /// The resident of a value that is a weight or a state.
    pub fn find_resident(&self, of: ValueId) -> Option<ValueId> {
        self.residents.get(&of).copied()
    }

    /// Whether a phase computes a copy.
    pub fn is_in(&self, of: ValueId, phase: PhaseKind) -> bool {
        self.copies.get(&of).is_some_and(|c| c.iter().any(|c| c.phase == Some(phase)))
    }

    /// Whether all copies are partial sums over micro-batches.
    pub fn is_sum_over_micro_batches(&self, of: ValueId) -> bool {
        self.copies.get(&of).is_some_and(|c| c.iter().all(|c| c.sharding.partial.contains(&Mesh::MB)))
    }

    /// The copies that a phase may read, oldest first.
    pub fn readable(&self, of: ValueId, phase: PhaseKind) -> impl Iterator<Item = &Copy> {
        self.copies.get(&of).into_iter().flatten().filter(move |c| is_readable(c, phase))
    }

    /// All copies, oldest first.
    pub fn all(&self, of: ValueId) -> &[Copy] {
        self.copies.get(&of).map_or(&[], |c| c)
    }
}

fn is_readable(copy: &Copy, phase: PhaseKind) -> bool {
    let Some(from) = copy.phase else { return true };
    let mentions_micro_batch = copy.sharding.axes().any(|a| a == Mesh::MB);
    from <= phase && (phase.is_per_micro_batch() || !mentions_micro_batch)
}
