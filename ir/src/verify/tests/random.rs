//! Random corruptions: whatever a module says, the verifier answers.

use super::fixture::mlp;
use super::verify;
use crate::id::{NodeId, ValueId};
use crate::module::{Level, Module};
use crate::plan::Place;

/// Knuth's linear congruential generator (MMIX).
pub(super) struct Random(u64);

impl Random {
    /// A generator whose first numbers differ between neighbouring seeds.
    pub(super) fn new(seed: u64) -> Random {
        Random((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// A number below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

fn corrupt(m: &mut Module, r: &mut Random) {
    let (n_values, n_nodes) = (m.chunks[0].graph.n_values(), m.chunks[0].graph.n_nodes());
    let (v, w) = (ValueId(r.below(n_values) as u32), ValueId(r.below(n_values) as u32));
    let (a, b) = (NodeId(r.below(n_nodes) as u32), NodeId(r.below(n_nodes) as u32));
    let chunk = &mut m.chunks[0];
    let other = chunk.graph.value(w).clone();
    match r.below(9) {
        0 => chunk.graph.value_mut(v).sharding = other.sharding,
        1 => chunk.graph.value_mut(v).of = other.of,
        2 => chunk.graph.value_mut(v).place = other.place,
        3 => chunk.graph.value_mut(v).ty = other.ty,
        4 => chunk.graph.node_mut(a).op = chunk.graph.node(b).op.clone(),
        5 => chunk.graph.node_mut(a).args = chunk.graph.node(b).args.clone(),
        6 => chunk.phases[r.below(5)].body.push(a),
        7 => chunk.phases.iter_mut().for_each(|p| p.body.retain(|n| *n != a)),
        _ => {
            let place = chunk.graph.value(v).place;
            chunk.graph.value_mut(v).place = place.map(|p| Place { offset: p.offset ^ (64 << r.below(58)), ..p });
        }
    }
}

#[test]
fn no_corruption_is_too_much() {
    let good = mlp(Level::Plan);
    let mut n_found = 0;
    for seed in 0..4000 {
        let mut random = Random::new(seed);
        let mut module = good.clone();
        for _ in 0..=random.below(3) {
            corrupt(&mut module, &mut random);
        }
        n_found += usize::from(!verify(&module).is_empty());
    }
    assert!(n_found > 2500, "{n_found}");
}
