//! Builds plans by hand, and serves them data and weights.

use std::collections::BTreeMap;

use galvatron_ir::ValueId;
use galvatron_ir::mesh::{Mesh, MeshAxis, Sharding};
use galvatron_ir::module::{Initializer, Level, Module, TrainInfo, ViewStep, Weight};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::Full;
use galvatron_ir::plan::{
    ALIGNMENT, Chunk, Memory, PhaseKind, Place, Region, Resident, ResidentRole, ScheduleStep, Stage,
};
use galvatron_ir::recipe::{LrSchedule, ScheduleKind};
use galvatron_ir::types::TensorType;

use crate::exec::{DataSource, Flow, RunOptions, RunReport, StepReport, Trained, WeightSource, run};
use crate::fault::RunFault;

/// Builds a plan whose buffers are never reused, except where a test says so.
pub(super) struct PlanBuilder {
    pub(super) module: Module,
    pub(super) chunk: Chunk,
}

impl PlanBuilder {
    /// Axes `a0`, `a1`, … of these sizes.
    pub(super) fn new(spatial: &[u32], micro_batches: u32, global_batch: u64) -> PlanBuilder {
        let axis = |(i, &size): (usize, &u32)| MeshAxis { name: format!("a{i}"), size, level: Some(0) };
        let mut module = Module::new("test");
        module.level = Level::Plan;
        module.mesh = Mesh::new(micro_batches, spatial.iter().enumerate().map(axis).collect());
        module.stages = vec![Stage::new(0, module.mesh.clone())];
        module.train = Some(TrainInfo {
            seed: 0,
            shuffle: false,
            lr: 0.1,
            schedule: LrSchedule { kind: ScheduleKind::Constant, warmup_steps: 2, total_steps: 0, min_lr: 0.0 },
            global_batch,
            sequence: 0,
            labels: "labels".into(),
            shift: None,
            ignore_index: -100,
        });
        PlanBuilder { module, chunk: Chunk::new() }
    }

    /// A placement such as `[mb.a0, _]+a1`.
    fn placement(&self, text: &str) -> Sharding {
        let axis = |name: &str| self.module.mesh.axis(name.trim()).expect("an axis of the mesh");
        let (dims, partial) = text.strip_prefix('[').and_then(|t| t.split_once(']')).expect("a placement");
        let list = |dim: &str| match dim.trim() {
            "_" | "" => Vec::new(),
            names => names.split('.').map(axis).collect(),
        };
        let dims = if dims.is_empty() { Vec::new() } else { dims.split(',').map(list).collect() };
        let mut partial = partial.strip_prefix('+').map_or(Vec::new(), list);
        partial.sort();
        Sharding { dims, partial }
    }

    /// A value of the training program.
    pub(super) fn program(&mut self, name: &str, shape: &[u64]) -> ValueId {
        self.module.program.graph.declare(name, TensorType::f32(shape.to_vec()))
    }

    /// A trained weight as a view of a stored tensor.
    pub(super) fn weight(&mut self, name: &str, stored: &[u64], view: Vec<ViewStep>) -> ValueId {
        let shape = view.iter().fold(stored.to_vec(), |shape, step| step.apply(&shape).expect("a view that fits"));
        let value = self.program(name, &shape);
        let known = self.module.initializers.iter().position(|i| i.name == name);
        let initializer = known.unwrap_or_else(|| {
            let ty = TensorType::f32(stored.to_vec());
            self.module.initializers.push(Initializer {
                name: name.into(),
                file: String::new(),
                offset: 0,
                ty,
                start: None,
            });
            self.module.initializers.len() - 1
        });
        self.module.program.weights.push(Weight { value, initializer, view, trainable: true });
        value
    }

    pub(super) fn resident(&mut self, role: ResidentRole, of: ValueId, placement: &str) -> ValueId {
        let program = self.module.program.graph.value(of).clone();
        let value = self.chunk.graph.declare(&format!("{}.r", program.name), program.ty);
        self.place(value, placement, Some(of), Region::Persistent);
        self.chunk.residents.push(Resident { value, role, memory: Memory::Device });
        value
    }

    /// A node with one result; no placement for a node without results.
    pub(super) fn one(&mut self, phase: PhaseKind, op: impl Into<Op>, args: &[ValueId], placement: &str) -> ValueId {
        self.node(phase, op, args, &[placement])[0]
    }

    /// A node whose results have these placements.
    pub(super) fn node(
        &mut self,
        phase: PhaseKind,
        op: impl Into<Op>,
        args: &[ValueId],
        placements: &[&str],
    ) -> Vec<ValueId> {
        let placements: Vec<Sharding> = placements.iter().map(|p| self.placement(p)).collect();
        self.node_at(phase, op.into(), args, &placements)
    }

    pub(super) fn node_at(&mut self, phase: PhaseKind, op: Op, args: &[ValueId], to: &[Sharding]) -> Vec<ValueId> {
        let node = self.chunk.graph.add(op, args).expect("operands that fit");
        self.chunk.phase_mut(phase).push(node);
        let results = self.chunk.graph.node(node).results.clone();
        assert_eq!(results.len(), to.len(), "one placement a result");
        for (&result, placement) in results.iter().zip(to) {
            self.place_at(result, placement.clone(), None, Region::Transient);
        }
        let arg_types = self.chunk.local_types(args, &self.module.mesh);
        let result_types = self.chunk.local_types(&results, &self.module.mesh);
        let op = self.chunk.graph.node(node).op.clone();
        let (arg_types, result_types) = (arg_types.iter().collect::<Vec<_>>(), result_types.iter().collect::<Vec<_>>());
        let bytes = op.workspace(&arg_types, &result_types, &self.module.mesh);
        if bytes > 0 {
            self.chunk.graph.node_mut(node).workspace = Some(self.allocate(Region::Transient, bytes));
        }
        results
    }

    fn place(&mut self, value: ValueId, placement: &str, of: Option<ValueId>, region: Region) {
        let placement = self.placement(placement);
        self.place_at(value, placement, of, region);
    }

    fn place_at(&mut self, value: ValueId, placement: Sharding, of: Option<ValueId>, region: Region) {
        let v = self.chunk.graph.value_mut(value);
        (v.sharding, v.of) = (Some(placement), of);
        let bytes = self.chunk.local_type(value, &self.module.mesh).bytes();
        let place = self.allocate(region, bytes);
        self.chunk.graph.value_mut(value).place = Some(place);
    }

    fn allocate(&mut self, region: Region, bytes: u64) -> Place {
        let arena = &mut self.module.stages[0].arena;
        let end = if region == Region::Persistent { &mut arena.persistent } else { &mut arena.transient };
        let offset = end.next_multiple_of(ALIGNMENT);
        *end = offset + bytes;
        Place { region, offset }
    }

    /// Says of which program value a value is a copy.
    pub(super) fn of(&mut self, value: ValueId, of: ValueId) {
        self.chunk.graph.value_mut(value).of = Some(of);
    }

    /// Lays a value over another one.
    pub(super) fn over(&mut self, value: ValueId, other: ValueId) {
        let place = self.chunk.graph.value(other).place;
        self.chunk.graph.value_mut(value).place = place;
    }

    pub(super) fn name(&mut self, value: ValueId, name: &str) {
        self.chunk.graph.rename(value, name);
    }

    /// Makes a scalar of the step phase the reported loss.
    pub(super) fn output(&mut self, name: &str, value: ValueId) {
        let of = self.program(name, &[]);
        self.module.program.outputs.push((name.into(), of));
        self.of(value, of);
    }

    /// A loss that is a constant.
    pub(super) fn constant_loss(&mut self) {
        let loss = self.one(PhaseKind::Step, Full::f32(1.0), &[], "[]");
        self.output("loss", loss);
    }

    pub(super) fn finish(mut self) -> Module {
        let once = |phase| ScheduleStep { phase, chunk: 0, micro_batch: None };
        let mut schedule = vec![once(PhaseKind::Prologue)];
        for mb in 0..self.module.mesh.micro_batches() as u32 {
            for phase in [PhaseKind::Forward, PhaseKind::Backward] {
                schedule.push(ScheduleStep { phase, chunk: 0, micro_batch: Some(mb) });
            }
        }
        schedule.extend([once(PhaseKind::Reduce), once(PhaseKind::Step)]);
        self.module.stages[0].schedule = schedule;
        self.module.chunks = vec![self.chunk];
        self.module
    }
}

/// Reproducible numbers in -1..1.
pub(super) fn numbers(n: usize, seed: u64) -> Vec<f32> {
    crate::cpu::kernels::testing::random(n, seed)
}

/// `x` of f32 and `labels` of i64, sample i the same as sample i mod 16.
pub(super) struct Samples {
    pub(super) features: usize,
    pub(super) classes: i64,
}

impl Samples {
    pub(super) fn x(&self, sample: u64) -> Vec<f32> {
        numbers(self.features, 100 + sample % 16)
    }

    /// Every fifth label is ignored.
    pub(super) fn label(&self, sample: u64) -> i64 {
        let i = (sample % 16) as i64;
        if i % 5 == 4 { -100 } else { i * 7 % self.classes }
    }
}

impl DataSource for Samples {
    fn sample_bytes(&self, input: &str) -> Option<u64> {
        match input {
            "x" => Some(4 * self.features as u64),
            "labels" => Some(8),
            _ => None,
        }
    }

    fn fill(&self, input: &str, sample: u64, out: &mut [u8]) -> Result<(), String> {
        let bytes: Vec<u8> = match input {
            "x" => self.x(sample).into_iter().flat_map(f32::to_ne_bytes).collect(),
            _ => self.label(sample).to_ne_bytes().into(),
        };
        out.copy_from_slice(&bytes);
        Ok(())
    }
}

/// Weights from memory: those of a finished run, otherwise numbers that depend on the shape.
#[derive(Default)]
pub(super) struct Stored {
    pub(super) trained: Trained,
}

pub(super) fn initial(n: usize) -> Vec<f32> {
    numbers(n, n as u64)
}

impl WeightSource for Stored {
    fn read(&self, initializer: &Initializer) -> Result<Vec<f32>, RunFault> {
        let known = self.trained.parameters.get(&initializer.name).map(|t| t.data.clone());
        Ok(known.unwrap_or_else(|| initial(initializer.ty.elements() as usize)))
    }

    fn read_state(&self, initializer: &Initializer, kind: &str) -> Result<Option<Vec<f32>>, RunFault> {
        Ok(self.trained.states.get(&format!("{}.{kind}", initializer.name)).map(|t| t.data.clone()))
    }
}

/// Runs a plan with data of `x` and `labels`; returns the reports of all steps too.
pub(super) fn train(
    module: &Module,
    options: &RunOptions,
    data: &Samples,
    weights: &Stored,
) -> (RunReport, BTreeMap<u64, StepReport>) {
    let mut reports = BTreeMap::new();
    let mut observer = |report: StepReport| {
        reports.insert(report.step, report);
        Flow::Continue
    };
    let end = run(module, options, data, weights, &mut observer).expect("a run without faults");
    (end, reports)
}
