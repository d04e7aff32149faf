//! Times of a mixture of experts whose tokens travel: rounds of messages to one rank and from another, and their answers.

use super::calibrate::Types;
use super::{Collective, CostModel, PhaseTimes};
use galvatron_ir::AxisId;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::op::Op;
use galvatron_ir::op::comm::RowBytes;
use galvatron_ir::types::TensorType;

/// A mixture, or its gradient, whose tokens travel over some axes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Routed<'a> {
    /// The op of the program.
    pub(super) op: &'a Op,
    /// The axes over which tokens travel.
    pub(super) axes: &'a [AxisId],
    /// The mesh.
    pub(super) mesh: &'a Mesh,
}

impl Routed<'_> {
    /// Bytes that a rank sends another one in a round, and gets back, if experts are chosen evenly.
    fn messages(&self, args: &[&TensorType]) -> RowBytes {
        let (w, gate) = (args[1], args[3]);
        let choices = w.shape[w.rank() - 1];
        let experts = match self.op {
            Op::Moe(op) => op.experts,
            Op::MoeGrad(op) => op.experts,
            _ => gate.shape[0],
        };
        let tokens = (w.elements() / choices.max(1)) as f64 * share(experts, gate.shape[0], choices);
        let bytes = |row: u64| (tokens * row as f64).ceil() as u64;
        let RowBytes { out, back } = RowBytes::of(args);
        RowBytes { out: bytes(out), back: bytes(back) }
    }
}

/// The share of tokens of which some choice is one of `n` experts, of so many, if all choices of different experts are as likely:
/// 1 - C(experts - n, choices) / C(experts, choices).
fn share(experts: u64, n: u64, choices: u64) -> f64 {
    let others = |chosen: u64| experts.saturating_sub(n + chosen) as f64 / experts.saturating_sub(chosen).max(1) as f64;
    1.0 - (0..choices).map(others).product::<f64>()
}

impl CostModel {
    /// Times of a mixture whose tokens travel, from its types in the whole program and on one rank, if experts are chosen evenly. The
    /// experts of a rank are computed once for the tokens of each rank. What is sent in a round is waited for before it is computed on, and
    /// so is the answer.
    pub(super) fn routed_times(
        &self,
        segment: Option<u32>,
        routed: &Routed<'_>,
        whole: Types<'_>,
        local: Types<'_>,
    ) -> PhaseTimes {
        let (mesh, axes) = (routed.mesh, routed.axes);
        let n = mesh.product(axes).max(1);
        let compute_ns = n * self.node_ns(segment, routed.op, whole, local);
        if n == 1 {
            return PhaseTimes { compute_ns, ..PhaseTimes::default() };
        }
        let RowBytes { out, back } = routed.messages(local.0);
        let counts = n * size_of::<i64>() as u64;
        let round_ns = self.shift_ns(mesh, axes, out) + self.shift_ns(mesh, axes, back);
        PhaseTimes {
            compute_ns,
            communication_ns: self.collective_ns(Collective::AllToAll, mesh, axes, counts) + (n - 1) * round_ns,
            sent_bytes: counts + (n - 1) * (out + back),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::cluster::{Cluster, DeviceKind, DeviceSpec, LinkLevel};
    use galvatron_ir::op::compute::{Moe, MoeGrad, UnaryKind};

    /// 64 devices with links of 1 GB/s and a latency.
    fn model(latency_ns: f64) -> CostModel {
        let device = DeviceSpec {
            kind: DeviceKind::Cpu,
            memory_bytes: 1 << 36,
            f32_flops: 1e13,
            bf16_flops: 1e13,
            memory_bandwidth: 1e12,
        };
        let level = LinkLevel { name: "node".into(), size: 64, bandwidth: 1e9, latency_ns };
        CostModel::analytic(&Cluster { name: "c".into(), device, groups: Vec::new(), host: None, levels: vec![level] })
    }

    /// Operands of the gradient of a mixture of some experts of widths 64 and 128, of which every token chooses two.
    fn types(tokens: u64, experts: u64) -> Vec<TensorType> {
        let f32 = |shape: &[u64]| TensorType::f32(shape.to_vec());
        let (x, w, i) = (f32(&[tokens, 64]), f32(&[tokens, 2]), TensorType::i64([tokens, 2]));
        let inner = f32(&[experts, 128, 64]);
        vec![x.clone(), w, i, inner.clone(), inner, f32(&[experts, 64, 128]), x]
    }

    /// Times forward and backward of as many experts as ranks with so many tokens each.
    fn times(model: &CostModel, ranks: u32, tokens: u64) -> [PhaseTimes; 2] {
        let mesh = Mesh::from_levels(&[ranks], 1);
        let axes: Vec<AxisId> = mesh.spatial().collect();
        let (activation, experts) = (UnaryKind::Silu, u64::from(ranks));
        let (whole, local) = (types(experts * tokens, experts), types(tokens, 1));
        let grad = MoeGrad { activation, experts };
        [(Moe { activation, experts }.into(), 6), (grad.into(), 7)].map(|(op, n): (Op, usize)| {
            let (wa, la): (Vec<_>, Vec<_>) = (whole[..n].iter().collect(), local[..n].iter().collect());
            let results = |args: &[&TensorType]| match n {
                6 => vec![args[0].clone()],
                _ => [0, 1, 3, 4, 5].map(|i| args[i].clone()).to_vec(),
            };
            let (wr, lr) = (results(&wa), results(&la));
            let routed = Routed { op: &op, axes: &axes, mesh: &mesh };
            let (wr, lr): (Vec<_>, Vec<_>) = (wr.iter().collect(), lr.iter().collect());
            model.routed_times(None, &routed, (&wa, &wr), (&la, &lr))
        })
    }

    /// What the ranks spend on gathering all tokens, with their choices and weights, and on scattering the sums of the results.
    fn gathered_ns(model: &CostModel, ranks: u32, tokens: u64) -> u64 {
        let mesh = Mesh::from_levels(&[ranks], 1);
        let axes: Vec<AxisId> = mesh.spatial().collect();
        let types = types(u64::from(ranks) * tokens, u64::from(ranks));
        let gather = |t: &TensorType| model.collective_ns(Collective::AllGather, &mesh, &axes, t.bytes());
        let sum = model.collective_ns(Collective::ReduceScatter, &mesh, &axes, types[0].bytes());
        types[..3].iter().map(gather).sum::<u64>() + sum
    }

    #[test]
    fn a_quarter_of_the_tokens_goes_to_each_of_eight_ranks() {
        assert_eq!((share(8, 1, 2), share(8, 8, 2), share(8, 7, 2)), (0.25, 1.0, 1.0));
        assert!((share(8, 2, 2) - 13.0 / 28.0).abs() < 1e-12);
        let [forward, backward] = times(&model(0.0), 8, 1024);
        let [out, back] = [256 * (2 * 8 + 2 * 4 + 64 * 4), 256 * 64 * 4];
        assert_eq!(forward.sent_bytes, 64 + 7 * (out + back));
        assert_eq!(forward.communication_ns, 56 + 7 * (out + back));
        assert_eq!(backward.sent_bytes, 64 + 7 * (out + back + 256 * (64 * 4 + 2 * 4)));
    }

    #[test]
    fn tokens_travel_over_slow_links_and_many_ranks_gather_them_by_fewer_messages() {
        let slow_links = model(0.0);
        let [slow, _] = times(&slow_links, 8, 4096);
        assert!(3 * slow.communication_ns < 2 * gathered_ns(&slow_links, 8, 4096), "{slow:?}");
        let slow_messages = model(1e6);
        let [late, _] = times(&slow_messages, 64, 16);
        assert!(late.communication_ns > 2 * gathered_ns(&slow_messages, 64, 16), "{late:?}");
    }
}
