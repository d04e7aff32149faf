//! Which prices of a plan were measured, and which are analytic.

use super::CostModel;
use super::measured::{Group, Measured};
use galvatron_ir::Module;
use galvatron_ir::mesh::ReshardStep;
use galvatron_ir::op::comm::step_of_op;
use galvatron_ir::profile::Collective;
use std::collections::{BTreeMap, BTreeSet};

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
        for (name, is_measured) in self.collectives(plan) {
            let list = if is_measured { &mut prices.measured } else { &mut prices.analytic };
            list.push(name);
        }
        if plan.stages.len() > 1 {
            let n_stages = plan.stages.len();
            let list = match measured.message_ns(n_stages, 0) {
                Some(_) => &mut prices.measured,
                None => &mut prices.analytic,
            };
            list.push(format!("messages between {n_stages} stages"));
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

    /// The collectives of a plan by kind, ranks and layout, and whether they were measured.
    fn collectives(&self, plan: &Module) -> BTreeMap<String, bool> {
        let mut all = BTreeMap::new();
        for chunk in &plan.chunks {
            let mesh = plan.mesh_of(chunk);
            for step in chunk.nodes().filter_map(|(_, node)| step_of_op(&chunk.graph.node(node).op)) {
                let (Some(kind), Some(group)) = (kind_of(&step), Group::of(mesh, step.axes())) else { continue };
                let name = format!("{} over {} {}", kind.name(), group.ranks, group.layout.name());
                let find = |m: &Measured| m.collective_ns(kind, mesh, step.axes(), 0);
                all.insert(name, self.measured.as_ref().and_then(find).is_some());
            }
        }
        all
    }
}

fn segments_of(chunk: &galvatron_ir::plan::Chunk) -> Vec<u32> {
    chunk.nodes().filter_map(|(_, node)| chunk.graph.node(node).layer).collect()
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
