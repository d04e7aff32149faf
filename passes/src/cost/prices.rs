//! Which prices of a plan were measured, and which are analytic.

use super::CostModel;
use super::measured::Group;
use galvatron_ir::Module;
use galvatron_ir::mesh::{Mesh, ReshardStep};
use galvatron_ir::op::comm::step_of_op;
use galvatron_ir::profile::Collective;
use std::collections::BTreeSet;

/// Prices in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// Those that come from the profile.
    pub measured: Vec<String>,
    /// Those that come from the data sheet.
    pub analytic: Vec<String>,
}

impl CostModel {
    /// Where the prices of a plan come from; `None` if nothing was measured.
    pub fn prices(&self, plan: &Module) -> Option<Prices> {
        let measured = self.measured.as_ref()?;
        let mut prices = Prices::default();
        self.add_computation(plan, &mut prices);
        for (kind, ranks, layout, axes) in collectives(plan) {
            let name = format!("{kind} over {ranks} {layout}");
            match self.is_measured(kind, &plan.mesh, &axes) {
                true => prices.measured.push(name),
                false => prices.analytic.push(name),
            }
        }
        match measured.overlap_slowdown() {
            Some(ratio) => prices.measured.push(format!("overlap × {ratio:.3}")),
            None => prices.analytic.push("overlap".into()),
        }
        Some(prices)
    }

    fn add_computation(&self, plan: &Module, prices: &mut Prices) {
        for scale in self.calibration.scales() {
            let ratios = scale.points.iter().map(|p| p.1);
            let (least, most) = (ratios.clone().fold(f64::MAX, f64::min), ratios.fold(0.0, f64::max));
            prices.measured.push(format!("{} (analytic × {least:.2} to {most:.2})", scale.name));
        }
        let segments: BTreeSet<u32> = plan.chunks.iter().flat_map(segments_of).collect();
        let without = segments.iter().filter(|s| self.calibration.of(Some(**s)).is_none()).count();
        if without > 0 {
            prices.analytic.push(format!("computation of {without} of {} segments", segments.len()));
        }
        prices.analytic.push("optimizer and norm".into());
    }

    fn is_measured(&self, kind: &str, mesh: &Mesh, axes: &[galvatron_ir::AxisId]) -> bool {
        let kind = Collective::ALL.iter().find(|(_, name)| *name == kind).map(|(kind, _)| *kind);
        let find = |kind| self.measured.as_ref()?.collective_ns(kind, mesh, axes, 0);
        kind.and_then(find).is_some()
    }
}

fn segments_of(chunk: &galvatron_ir::plan::Chunk) -> Vec<u32> {
    chunk.nodes().filter_map(|(_, node)| chunk.graph.node(node).layer).collect()
}

/// Kind, ranks and layout of the collectives of a plan, each once, with the axes of one of them.
fn collectives(plan: &Module) -> Vec<(&'static str, u64, &'static str, Vec<galvatron_ir::AxisId>)> {
    let ops = plan.chunks.iter().flat_map(|c| c.nodes().map(|(_, node)| &c.graph.node(node).op));
    let mut all: Vec<_> = ops
        .filter_map(step_of_op)
        .filter_map(|step| {
            let group = Group::of(&plan.mesh, step.axes())?;
            Some((kind_of(&step)?.name(), group.ranks, group.layout.name(), step.axes().to_vec()))
        })
        .collect();
    all.sort();
    all.dedup_by(|a, b| (a.0, a.1, a.2) == (b.0, b.1, b.2));
    all
}

/// The collective of a step, if it is one.
pub fn kind_of(step: &ReshardStep) -> Option<Collective> {
    match step {
        ReshardStep::AllReduce { .. } => Some(Collective::AllReduce),
        ReshardStep::ReduceScatter { .. } => Some(Collective::ReduceScatter),
        ReshardStep::AllGather { .. } => Some(Collective::AllGather),
        ReshardStep::AllToAll { .. } => Some(Collective::AllToAll),
        ReshardStep::Shard { .. } => None,
    }
}
