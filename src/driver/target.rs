//! Plans for Galvatron's runtime: the pins that its own formulas find fastest, on what was measured there.

use super::{Compilation, CompileFault, compile};
use galvatron_ir::headroom::StageMemory;
use galvatron_ir::{Diagnostic, Module};
use galvatron_passes::hetu::{Costs, NoPlan, PlanPrice, Release, Request, fastest, memory_mb_for, usable_mb};
use galvatron_passes::search::Pins;
use galvatron_passes::segment::{Segment, layers};

/// Bytes of a MB.
const MIB: f64 = (1u64 << 20) as f64;

/// Pins for the plan that Galvatron's formulas find fastest within its memory rule, and its price by them. What `what` pins stays.
///
/// # Errors
/// Those of the passes before the search; a model or a profile that the formulas do not cover, pins that its runtime has no word
/// for, or a memory in which no plan fits.
pub fn pins_for_galvatron(what: &Compilation<'_>, release: Release) -> Result<(Pins, PlanPrice), CompileFault> {
    let Some(profile) = what.profile else { return Err(fault("there is no profile", "give one with `--profile`")) };
    let trained = compile(&Compilation { stop_after: Some("attach-optimizer"), ..*what }, &mut |_, _| {})?;
    let [n_layers] = layers(&trained.segments)[..] else {
        return Err(fault("the model does not have one kind of repeated layers", "plan without `--galvatron`"));
    };
    let shape = trained.module.train.as_ref().map(|t| (t.sequence, t.global_batch as u32));
    let Some(((sequence, global_batch), hidden)) = shape.zip(width(&trained.module, &trained.segments)) else {
        return Err(fault("between the model's layers no value has a width", "plan without `--galvatron`"));
    };
    let world = trained.module.mesh.world() as u32;
    let costs = Costs { release, profile, world, n_layers, sequence, hidden, global_batch };
    let memory_mb = what.cluster.device.memory_bytes as f64 / MIB;
    let request = Request { costs, usable_mb: usable_mb(memory_mb), pins: what.pins };
    match fastest(&request) {
        Ok((plan, price)) => Ok((plan.pins(what.pins), price)),
        Err(NoPlan::Memory(least_mb)) => Err(CompileFault::NoPlan {
            stages: vec![StageMemory {
                stage: 0,
                peak_bytes: (memory_mb_for(least_mb) * MIB) as u64,
                memory_bytes: what.cluster.device.memory_bytes,
            }],
            name: "the smallest plan of Galvatron's runtime".into(),
        }),
        Err(NoPlan::Unpriced) => Err(fault(
            "Galvatron's formulas price no plan that the pins allow",
            "measure forward times, memory, bandwidths and collectives at this sequence, or pin less",
        )),
    }
}

fn fault(what: &str, help: &str) -> CompileFault {
    CompileFault::Input(vec![Diagnostic::new("galvatron", what).help(help)])
}

/// Last extent of what passes from the first layer to the second.
fn width(module: &Module, segments: &[Segment]) -> Option<u64> {
    let graph = &module.program.graph;
    let mut own = segments.iter().filter(|s| s.is_layer);
    let (first, second) = (own.next()?, own.next()?);
    let operands = second.nodes.iter().flat_map(|&node| graph.node(node).args.iter());
    let mut crossing = operands.filter(|&&v| graph.producer(v).is_some_and(|p| first.nodes.contains(&p)));
    graph.value(*crossing.next()?).ty.shape.last().copied()
}
