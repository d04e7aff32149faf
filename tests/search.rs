//! The search against enumeration of everything that it may choose, on small random programs.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "search/random.rs"]
mod random;

use galvatron::config::cluster::parse_cluster;
use galvatron_ir::cluster::{Cluster, DeviceGroup, HostMemory};
use galvatron_ir::plan::Stage;
use galvatron_passes::cost::CostModel;
use galvatron_passes::search::solver::Cost;
use galvatron_passes::search::solver::brute::each_assignment;
use galvatron_passes::search::{LayerPins, Listing, Mode, NoPlan, Pins, Space, search, spaces};
use random::{Random, Shape, Trained, layered_program, random_program};

/// Programs that are compared on equal devices, on others, and on those with host memory.
const N_PROGRAMS: u64 = 500;
const N_UNEQUAL: u64 = 250;
const N_HOSTED: u64 = 100;

/// Host memory behind a link that is slower than memory, but not by much.
const HOST: HostMemory = HostMemory { memory_bytes: 1 << 40, bandwidth: 4e8, latency_ns: 100.0 };

/// Plans of one number of micro-batches that are enumerated at most; larger programs are drawn again.
const MOST_PLANS: u64 = 1_000_000;

fn cluster(levels: [u32; 2], memory_bytes: u64) -> Cluster {
    let [nodes, devices] = levels;
    let mut text = format!("nodes = {nodes}\ndevices_per_node = {devices}\n");
    text += "[device]\nkind = \"cpu\"\nmemory_gib = 1.0\npeak_tflops = { f32 = 0.001 }\nmemory_bandwidth_gbps = 1.0\n";
    text += "[links.intra_node]\nbandwidth_gbps = 1.0\nlatency_us = 0.2\n";
    text += "[links.inter_node]\nbandwidth_gbps = 0.5\nlatency_us = 0.5\n";
    let mut cluster = parse_cluster(&text).expect("the cluster is described well");
    cluster.device.memory_bytes = memory_bytes;
    cluster
}

/// For each device how many bytes it has less than the others, and its speed; of none where all are equal.
type Differences = Vec<(u64, f64)>;

/// Devices of which some are slower or faster, and some have less memory: by less than a plan needs, so that it matters.
fn differences(rng: &mut Random, levels: [u32; 2]) -> Differences {
    let lacking = |rng: &mut Random| if rng.below(3) == 0 { rng.below(1500) } else { 0 };
    (0..levels[0] * levels[1]).map(|_| (lacking(rng), rng.one_of(&[1.0, 1.0, 0.5, 0.3, 1.7]))).collect()
}

/// A program and its devices, with all its plans: their number and their Pareto front in (time, bytes).
struct Instance {
    trained: Trained,
    levels: [u32; 2],
    devices: Differences,
    host: Option<HostMemory>,
    pins: Pins,
    n_plans: u64,
    front: Vec<Cost>,
}

impl Instance {
    /// A program; `of_devices` draws in what these differ.
    fn draw(
        rng: &mut Random,
        of_devices: &mut dyn FnMut([u32; 2]) -> Differences,
        host: Option<HostMemory>,
    ) -> Instance {
        loop {
            let levels = rng.one_of(&[[1, 2], [2, 2]]);
            let n_ops = if levels == [2, 2] { 3 + rng.below(2) } else { 4 + rng.below(4) } as usize;
            let batch = rng.one_of(&[2, 4]);
            let (trained, pins) = match rng.below(5) {
                0 => (layered_program(rng, Shape { batch: 3, n_ops, levels }), layer_pins(rng)),
                _ => (random_program(rng, Shape { batch, n_ops, levels }), Pins::default()),
            };
            let (n_plans, front, devices) = (0, Vec::new(), of_devices(levels));
            if let Some(found) = (Instance { trained, levels, devices, host, pins, n_plans, front }).enumerated() {
                return found;
            }
        }
    }

    /// The cluster, whose largest devices have so many bytes.
    fn cluster(&self, memory_bytes: u64) -> Cluster {
        let group = |&(lacking, speed): &(u64, f64)| {
            let memory_bytes = memory_bytes.saturating_sub(lacking).max(1);
            DeviceGroup { name: String::new(), count: 1, memory_bytes, speed }
        };
        let groups = self.devices.iter().map(group).collect();
        Cluster { groups, host: self.host, ..cluster(self.levels, memory_bytes) }
    }

    /// With its plans; `None` where they are too many or none.
    fn enumerated(self) -> Option<Instance> {
        let model = CostModel::analytic(&self.cluster(u64::MAX));
        let Trained { module, segments } = &self.trained;
        let all = spaces(module, segments, &model, &self.pins, Listing::All).ok()?;
        let counts: Vec<u64> = all.iter().map(n_plans).collect();
        if counts.iter().any(|&n| n > MOST_PLANS) {
            return None;
        }
        let mut costs = Vec::new();
        for space in &all {
            let extents: Vec<usize> = space.candidates.path().iter().map(|&class| n_choices(space, class)).collect();
            let mut front = Vec::new();
            for starts in space.cuts() {
                each_assignment(&extents, |chosen| insert(&mut front, space.cost(&starts, chosen)));
            }
            front.into_iter().for_each(|cost| insert(&mut costs, cost));
        }
        costs.sort();
        Some(Instance { n_plans: counts.iter().sum(), front: costs, ..self })
    }

    /// Bytes of a device.
    fn memory_bytes(&self, rank: u64, limit: u64) -> u64 {
        self.devices.get(rank as usize).map_or(limit, |(lacking, _)| limit.saturating_sub(*lacking).max(1))
    }

    /// The least time within a budget by enumeration, in nanoseconds.
    fn brute(&self, budget: u64) -> Option<u64> {
        self.front.iter().filter(|c| c.bytes <= budget).map(|c| c.time_ns).min()
    }
}

/// Layers have too many plans unless some of their keys are fixed.
fn layer_pins(rng: &mut Random) -> Pins {
    let mode = rng.one_of(&[None, Some(Mode::None), Some(Mode::Selective), Some(Mode::Full)]);
    let zero = if mode.is_some() && rng.below(2) == 0 { None } else { Some(rng.below(4) as u8) };
    let ends = LayerPins { zero: Some(rng.below(4) as u8), ..LayerPins::default() };
    let all = LayerPins { zero, recompute: mode, ..LayerPins::default() };
    Pins { all, embedding: ends.clone(), head: ends, ..Pins::default() }
}

fn n_choices(space: &Space, class: usize) -> usize {
    space.candidates.choices[class].len()
}

fn n_plans(space: &Space) -> u64 {
    let layers = space.candidates.path();
    layers.iter().fold(space.cuts().len() as u64, |n, &class| n.saturating_mul(n_choices(space, class) as u64))
}

/// Keeps what no other cost beats in time and bytes.
fn insert(front: &mut Vec<Cost>, cost: Cost) {
    let beats = |a: &Cost, b: &Cost| a.time_ns <= b.time_ns && a.bytes <= b.bytes;
    if cost.is_forbidden() || front.iter().any(|known| beats(known, &cost)) {
        return;
    }
    front.retain(|known| !beats(&cost, known));
    front.push(cost);
}

/// Budgets on and beside the costs where the best plan changes, and one that is too small.
fn budgets(front: &[Cost]) -> Vec<u64> {
    let steps = front.iter().flat_map(|cost| [cost.bytes, cost.bytes.saturating_sub(1)]);
    steps.chain([u64::MAX]).collect()
}

#[test]
fn the_search_finds_what_enumeration_finds() {
    check_programs(&mut Random(7), N_PROGRAMS, &mut |_| Vec::new(), None);
}

#[test]
fn the_search_finds_what_enumeration_finds_on_unequal_devices() {
    let mut of_devices = Random(23);
    check_programs(&mut Random(11), N_UNEQUAL, &mut |levels| differences(&mut of_devices, levels), None);
}

#[test]
fn the_search_finds_what_enumeration_finds_with_host_memory() {
    check_programs(&mut Random(13), N_HOSTED, &mut |_| Vec::new(), Some(HOST));
}

fn check_programs(
    rng: &mut Random,
    n_programs: u64,
    of_devices: &mut dyn FnMut([u32; 2]) -> Differences,
    host: Option<HostMemory>,
) {
    let (mut n_plans, mut n_chained, mut n_budgets, mut n_none) = (0, 0, 0, 0);
    for i in 0..n_programs {
        let instance = Instance::draw(rng, of_devices, host);
        let Trained { module, segments } = &instance.trained;
        let model = CostModel::analytic(&instance.cluster(u64::MAX));
        let listed = spaces(module, segments, &model, &instance.pins, Listing::Best)
            .unwrap_or_else(|_| panic!("program {i} has plans"));
        for budget in budgets(&instance.front) {
            let best = |space: &Space| {
                let solved = space.solve(Some(budget), true).ok()?;
                assert_eq!(
                    space.cost(&solved.starts, &solved.solution.assignment),
                    solved.solution.cost,
                    "program {i}"
                );
                assert!(solved.solution.proven, "program {i}");
                Some(solved.solution.cost.time_ns)
            };
            let found = listed.iter().filter_map(best).min();
            assert_eq!(found, instance.brute(budget), "program {i} within {budget} bytes");
            n_none += usize::from(found.is_none());
            n_budgets += 1;
        }
        check_search(&instance, i);
        n_plans += instance.n_plans;
        n_chained += usize::from(segments.len() > 1);
    }
    println!(
        "{n_programs} programs, {n_chained} of several segments, {n_plans} plans, {n_budgets} budgets of which {n_none} too small"
    );
    assert!(n_chained as u64 > n_programs / 20 && n_none > 0);
}

/// The whole search: without a limit its bound is what enumeration finds; within limits its plans fit.
fn check_search(instance: &Instance, i: u64) {
    let Trained { module, segments } = &instance.trained;
    let run = |limit: u64| search(module, segments, &CostModel::analytic(&instance.cluster(limit)), &instance.pins);
    let free = run(u64::MAX >> 1).unwrap_or_else(|_| panic!("program {i} has plans"));
    assert_eq!(Some(free.bound_ns), instance.brute(u64::MAX), "program {i}");
    let bytes = free.plan.peak_bytes();
    for limit in [bytes, bytes * 3 / 4, bytes / 2] {
        match run(limit) {
            Ok(found) => {
                let fits = |s: &Stage| s.ranks().all(|rank| s.arena.bytes() <= instance.memory_bytes(rank, limit));
                assert!(found.plan.stages.iter().all(fits), "program {i} does not fit {limit} bytes");
            }
            Err(NoPlan::Memory { stages, .. }) => {
                assert!(stages.iter().any(|stage| !stage.fits()), "program {i}: {stages:?} fit {limit}");
            }
            Err(NoPlan::Pin(fault)) => panic!("program {i}: {}", fault.message),
        }
    }
}
