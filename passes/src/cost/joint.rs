//! Times of nodes that ranks compute together.

use super::calibrate::Types;
use super::rings::Ring;
use super::routed::Routed;
use super::{CostModel, PhaseTimes};
use galvatron_ir::mesh::Mesh;
use galvatron_ir::op::Op;

impl CostModel {
    /// Times of a node that the ranks of some axes compute together, from its types in the whole program and on one rank; `None` for other
    /// nodes.
    pub fn joint_times(
        &self,
        segment: Option<u32>,
        op: &Op,
        mesh: &Mesh,
        whole: Types<'_>,
        local: Types<'_>,
    ) -> Option<PhaseTimes> {
        let (dense, axes) = op.undistributed()?;
        Some(match op.is_routed() {
            true => self.routed_times(segment, &Routed { op: &dense, axes, mesh }, whole, local),
            false => self.ring_times(segment, &Ring { op: &dense, axes, mesh, zigzag: op.is_zigzag() }, whole, local),
        })
    }
}
