//! Times of attention as a ring: rounds in which a block is computed while the next one travels.

use super::calibrate::Types;
use super::{CostModel, PhaseTimes};
use galvatron_ir::AxisId;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::op::Op;
use galvatron_ir::profile::Collective;
use galvatron_ir::types::TensorType;

/// An attention, or its gradient, that the ranks of some axes compute together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring<'a> {
    /// The op of the program.
    pub(super) op: &'a Op,
    /// The axes of its sequence.
    pub(super) axes: &'a [AxisId],
    /// The mesh.
    pub(super) mesh: &'a Mesh,
    /// Whether every rank has half of each foreign block to do.
    pub(super) zigzag: bool,
}

impl Ring<'_> {
    /// The same op on a block that is seen as a whole.
    fn whole_block(&self) -> Op {
        match *self.op {
            Op::Attention(ref op) => Op::Attention(galvatron_ir::op::compute::Attention { causal: false, ..*op }),
            Op::AttentionGrad(ref op) => {
                Op::AttentionGrad(galvatron_ir::op::compute::AttentionGrad { causal: false, ..*op })
            }
            ref other => other.clone(),
        }
    }

    /// The messages that a rank sends in each round but the last, and in the last one, in bytes: keys and values, and behind them their
    /// gradients in f32, which go one round further.
    fn messages(&self, args: &[&TensorType]) -> (Vec<u64>, Vec<u64>) {
        let block = [args[1].bytes(), args[2].bytes()];
        let gradients = [4 * args[1].elements(), 4 * args[2].elements()];
        match self.op {
            Op::AttentionGrad(_) => ([block, gradients].concat(), gradients.to_vec()),
            _ => (block.to_vec(), Vec::new()),
        }
    }

    /// The messages in which a zigzag exchanges the two chunks of each operand and result.
    fn exchanged(&self, (args, results): Types<'_>) -> Vec<u64> {
        let halves = args.iter().chain(results).flat_map(|t| [t.bytes() / 2; 2]);
        halves.filter(|_| self.zigzag).collect()
    }
}

impl CostModel {
    /// Times of a ring on its slowest rank, from its types in the whole program and on one rank. The rank with the last queries sees
    /// all blocks, also under a causal rule; in a zigzag all ranks see half of each, and operands and results are exchanged first.
    /// What of the messages hides behind a block is as in [`CostModel::hidden_ns`].
    pub(super) fn ring_times(
        &self,
        segment: Option<u32>,
        ring: &Ring<'_>,
        whole: Types<'_>,
        local: Types<'_>,
    ) -> PhaseTimes {
        let others = ring.mesh.product(ring.axes).saturating_sub(1);
        let own_ns = self.node_ns(segment, ring.op, whole, local);
        if others == 0 {
            return PhaseTimes { compute_ns: own_ns, ..PhaseTimes::default() };
        }
        // A causal op has half of the work of a whole block, as the visible half of a block has.
        let block = if ring.zigzag { ring.op.clone() } else { ring.whole_block() };
        let block_ns = self.node_ns(segment, &block, whole, local);
        let (each, last) = ring.messages(local.0);
        let once = [last, ring.exchanged(local)].concat();
        let ns = |messages: &[u64]| messages.iter().map(|&b| self.shift_ns(ring.mesh, ring.axes, b)).sum::<u64>();
        PhaseTimes {
            compute_ns: own_ns + others * block_ns,
            communication_ns: others * (ns(&each) - self.hidden_ns(block_ns, ns(&each))) + ns(&once),
            sent_bytes: others * each.iter().sum::<u64>() + once.iter().sum::<u64>(),
        }
    }

    /// Nanoseconds in which each rank of a ring passes some bytes to the next one: a round of a ring's all-gather, if that was
    /// measured, or else over the slowest link between neighbours.
    pub(super) fn shift_ns(&self, mesh: &Mesh, axes: &[AxisId], bytes: u64) -> u64 {
        let n = mesh.product(axes);
        let gather = |m: &super::Measured| m.collective_ns(Collective::AllGather, mesh, axes, n * bytes);
        match self.measured.as_ref().and_then(gather) {
            Some(ns) if n > 1 => ns / (n - 1),
            _ => super::collectives::shift_ns(&self.cluster, mesh, axes, bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::cluster::{Cluster, DeviceKind, DeviceSpec, LinkLevel};
    use galvatron_ir::op::OpDef;
    use galvatron_ir::op::compute::Attention;
    use galvatron_ir::types::Scalar;

    /// Eight devices of which each sends 1 GB/s.
    fn model(kind: DeviceKind) -> CostModel {
        let device =
            DeviceSpec { kind, memory_bytes: 1 << 36, f32_flops: 1e12, bf16_flops: 1e12, memory_bandwidth: 1e12 };
        let level = LinkLevel { name: "node".into(), size: 8, bandwidth: 1e9, latency_ns: 0.0 };
        CostModel::analytic(&Cluster { name: "c".into(), device, groups: Vec::new(), host: None, levels: vec![level] })
    }

    /// A causal ring of eight ranks over a sequence.
    fn times(kind: DeviceKind, sequence: u64, zigzag: bool) -> PhaseTimes {
        let op = Attention { scale: Scalar::new(1.0), causal: true };
        let types = |sequence| {
            let t = TensorType::f32([1, sequence, 8, 64]);
            (vec![t.clone(); 3], op.infer(&[&t, &t, &t]).expect("the operands fit"))
        };
        let ((wa, wr), (la, lr)) = (types(sequence), types(sequence / 8));
        let mesh = Mesh::from_levels(&[8], 1);
        let axes: Vec<AxisId> = mesh.spatial().collect();
        let op = op.into();
        let ring = Ring { op: &op, axes: &axes, mesh: &mesh, zigzag };
        let (wa, wr): (Vec<_>, Vec<_>) = (wa.iter().collect(), wr.iter().collect());
        let (la, lr): (Vec<_>, Vec<_>) = (la.iter().collect(), lr.iter().collect());
        model(kind).ring_times(None, &ring, (&wa, &wr), (&la, &lr))
    }

    #[test]
    fn seven_blocks_of_keys_and_values_are_sent() {
        let times = times(DeviceKind::Cpu, 8192, false);
        let block = 2 * 1024 * 8 * 64 * 4;
        assert_eq!((times.sent_bytes, times.communication_ns), (7 * block, 7 * block));
    }

    /// What a block is computed from grows with its length, the work with its square.
    #[test]
    fn messages_hide_behind_long_blocks_on_devices_that_can() {
        let [short, long] = [8192, 131_072].map(|sequence| times(DeviceKind::Cuda, sequence, false));
        let seen = |found: &PhaseTimes, sequence| {
            found.communication_ns as f64 / times(DeviceKind::Cpu, sequence, false).communication_ns as f64
        };
        let seen = [seen(&short, 8192), seen(&long, 131_072)];
        assert!(seen[0] > 0.3, "{seen:?}");
        assert!((seen[1] - 0.2).abs() < 1e-6, "{seen:?}");
    }

    /// Fifteen halves of a block on the slowest rank against eight.
    #[test]
    fn a_zigzag_halves_the_work_of_the_slowest_rank() {
        let [blocks, zigzag] = [false, true].map(|zigzag| times(DeviceKind::Cuda, 131_072, zigzag));
        let ratio = blocks.compute_ns as f64 / zigzag.compute_ns as f64;
        assert!((ratio - 15.0 / 8.0).abs() < 0.01, "{ratio}");
        assert!(zigzag.sent_bytes > blocks.sent_bytes);
    }
}
