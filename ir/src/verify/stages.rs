//! `G0215` stages: who has which ranks.

use super::{Finding, Site};
use crate::module::Module;

/// Stages lie one behind the other and cover the ranks of the mesh; every chunk has one.
pub(super) fn check(module: &Module) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut next = 0;
    for (i, stage) in module.stages.iter().enumerate() {
        let (found, wanted) = (stage.mesh.micro_batches(), module.mesh.micro_batches());
        if found != wanted {
            findings.push(fault(i, format!("stage {i} has {found} micro-batches, the mesh {wanted}")));
        }
        if stage.first_rank != next {
            findings.push(fault(i, format!("stage {i} starts at rank {}, expected {next}", stage.first_rank)));
        }
        if !module.chunks.iter().any(|chunk| chunk.stage as usize == i) {
            findings.push(fault(i, format!("stage {i} hosts no chunk")));
        }
        next = stage.first_rank.saturating_add(stage.mesh.world());
    }
    if !module.stages.is_empty() && next != module.mesh.world() {
        let message = format!("the stages have {next} ranks, the mesh {}", module.mesh.world());
        findings.push(fault(module.stages.len() - 1, message));
    }
    let homeless = module.chunks.iter().position(|chunk| chunk.stage as usize >= module.stages.len());
    findings.extend(homeless.map(|i| {
        let message = format!("chunk {i} is hosted by stage {}, which is not there", module.chunks[i].stage);
        Finding::new("G0215", Site::Module, message)
    }));
    findings
}

fn fault(stage: usize, message: String) -> Finding {
    Finding::new("G0215", Site::Stage(stage), message).help("stages are given in the order of their ranks")
}
