//! Tests of every op, made from its samples: gradients, shardings against the unsharded result, attributes in the text.

use galvatron_backends::reference::{Part, Tensor, assemble, eval, first_index, run_program, scatter};
use galvatron_ir::mesh::{FactorKind, FactorMap, Linearity, Mesh, MeshAxis, Sharding, ShardingRule};
use galvatron_ir::op::{AttrReader, GradCx, Op, Sample};
use galvatron_ir::types::{DType, TensorType};
use galvatron_ir::{AxisId, NodeId, Program, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Half the distance of the two points of a central difference.
const STEP: f64 = 1e-4;

/// Ops without a gradient, by the beginning or the end of their names.
fn has_no_gradient(op: &Op) -> bool {
    let name = op.mnemonic();
    name.starts_with("opt.") || name.ends_with("_grad") || ["count_labels", "sum_squares", "clip_scale"].contains(&name)
}

/// The float operands into which an op lets no gradient flow.
fn is_constant(op: &Op, operand: usize) -> bool {
    [("mse", 1), ("rotary", 1), ("rotary", 2), ("dropout", 1)].contains(&(op.mnemonic(), operand))
}

#[test]
fn gradients_are_central_differences() {
    for (i, sample) in Op::all_samples().iter().enumerate() {
        check_gradient(sample, 100 * i as u64);
    }
}

fn check_gradient(sample: &Sample, seed: u64) {
    let case = Case::new(sample, seed);
    let needs = case.needs(sample);
    let mut program = case.program.clone();
    if has_no_gradient(&sample.op) {
        assert!(gradient(&mut program, &case, &needs).is_none(), "{:?} has a gradient", sample.op);
        return;
    }
    let (dy, grads) = gradient(&mut program, &case, &needs).unwrap_or_else(|| panic!("{:?} has none", sample.op));
    let mut feeds = case.feeds.clone();
    feeds.insert(dy, case.weights.clone());
    let values = run_program(&program, feeds);
    for operand in (0..needs.len()).filter(|&i| needs[i]) {
        let found = match grads[operand] {
            Some(grad) => values[grad.index()].clone().unwrap(),
            None => Tensor::filled(sample.args[operand].0.shape.clone(), 0.0),
        };
        let distance = found.distance(&case.differences(operand));
        assert!(distance < 1e-6, "gradient of operand {operand} of {:?} is off by {distance:e}", sample.op);
    }
    for operand in 0..needs.len() {
        if is_constant(&sample.op, operand) {
            let only: Vec<bool> = (0..needs.len()).map(|i| i == operand).collect();
            assert!(gradient(&mut case.program.clone(), &case, &only).is_none(), "{:?} has one", sample.op);
        }
    }
}

/// A program of one node with contents for its operands; its loss is the weighted sum of result 0.
struct Case {
    program: Program,
    node: NodeId,
    args: Vec<ValueId>,
    feeds: BTreeMap<ValueId, Tensor>,
    weights: Tensor,
}

impl Case {
    fn new(sample: &Sample, seed: u64) -> Case {
        let mut program = Program::default();
        let declare = |(i, (ty, _)): (usize, &(TensorType, _))| program.graph.declare(&format!("x{i}"), ty.clone());
        let args: Vec<ValueId> = sample.args.iter().enumerate().map(declare).collect();
        let node = program.graph.add(sample.op.clone(), &args).unwrap();
        program.body.push(node);
        let feeds = args.iter().copied().zip(operands(sample, seed)).collect();
        let shape = program.graph.value(program.graph.node(node).results[0]).ty.shape.clone();
        let weights = Tensor::random(shape, galvatron_ir::op::Fill::Uniform, seed + 99);
        Case { program, node, args, feeds, weights }
    }

    /// The operands for which the op must have a gradient.
    fn needs(&self, sample: &Sample) -> Vec<bool> {
        let is_float = |i: usize| sample.args[i].0.dtype.is_float();
        (0..self.args.len()).map(|i| is_float(i) && !is_constant(&sample.op, i)).collect()
    }

    fn loss(&self, feeds: BTreeMap<ValueId, Tensor>) -> f64 {
        let result = self.program.graph.node(self.node).results[0];
        let y = run_program(&self.program, feeds).swap_remove(result.index()).unwrap();
        y.data.iter().zip(&self.weights.data).map(|(y, w)| y * w).sum()
    }

    fn differences(&self, operand: usize) -> Tensor {
        let x = self.args[operand];
        let mut differences = self.feeds[&x].clone();
        for (i, difference) in differences.data.iter_mut().enumerate() {
            let at = |offset: f64| {
                let mut feeds = self.feeds.clone();
                feeds.get_mut(&x).unwrap().data[i] += offset;
                self.loss(feeds)
            };
            *difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        }
        differences
    }
}

/// Adds the gradient to the program: the gradient of result 0, which is to be fed, and those of the operands.
fn gradient(program: &mut Program, case: &Case, needs: &[bool]) -> Option<(ValueId, Vec<Option<ValueId>>)> {
    let results = program.graph.node(case.node).results.clone();
    let mut grads = vec![None; results.len()];
    let dy = program.graph.declare("dy", program.graph.value(results[0]).ty.clone());
    grads[0] = Some(dy);
    let op = program.graph.node(case.node).op.clone();
    let (fwd, args, needs) = (case.node, case.args.clone(), needs.to_vec());
    let mut cx = GradCx { graph: &mut program.graph, body: &mut program.body, fwd, args, results, grads, needs };
    let found = op.gradient(&mut cx).ok()?;
    for (operand, grad) in case.args.iter().zip(&found) {
        if let Some(grad) = grad {
            assert_eq!(program.graph.value(*grad).ty, program.graph.value(*operand).ty, "type of a gradient of {op:?}");
        }
    }
    Some((dy, found))
}

#[test]
fn gradients_have_the_types_of_their_operands() {
    for mut sample in Op::all_samples() {
        for (ty, _) in sample.args.iter_mut().filter(|(ty, _)| ty.dtype == DType::F32) {
            ty.dtype = DType::Bf16;
        }
        let types: Vec<&TensorType> = sample.args.iter().map(|(ty, _)| ty).collect();
        if sample.op.infer(&types).is_ok() {
            let case = Case::new(&sample, 1);
            gradient(&mut case.program.clone(), &case, &case.needs(&sample));
        }
    }
}

fn operands(sample: &Sample, seed: u64) -> Vec<Tensor> {
    let operand = |(i, (ty, fill)): (usize, &(TensorType, _))| Tensor::random(ty.shape.clone(), *fill, seed + i as u64);
    sample.args.iter().enumerate().map(operand).collect()
}

/// The meshes of the sharding tests: two axes of two positions, and one of four.
fn meshes() -> [Mesh; 2] {
    let axis = |name: &str, size| MeshAxis { name: name.into(), size, level: Some(0) };
    [Mesh::new(1, vec![axis("a0", 2), axis("a1", 2)]), Mesh::new(1, vec![axis("a0", 4)])]
}

#[test]
fn every_allowed_sharding_equals_the_unsharded_result() {
    for whole in &Whole::all() {
        for mesh in &meshes() {
            for (map, partial_operands) in placements(&whole.rule, mesh) {
                whole.check(&map, &partial_operands, mesh);
            }
        }
    }
}

/// An op with contents for its operands, its rule, and its results on one device.
struct Whole {
    op: Op,
    args: Vec<Tensor>,
    types: Vec<TensorType>,
    rule: ShardingRule,
    results: Vec<Tensor>,
}

impl Whole {
    fn new(op: &Op, arg_types: &[&TensorType], args: Vec<Tensor>) -> Whole {
        let types = op.infer(arg_types).unwrap();
        let rule = op.rule(arg_types, &types.iter().collect::<Vec<_>>());
        let results = eval(op, &args.iter().collect::<Vec<_>>(), &types, &Part::default()).unwrap();
        Whole { op: op.clone(), args, types, rule, results }
    }

    /// All samples, and the nodes of their gradients with what they read there.
    fn all() -> Vec<Whole> {
        Op::all_samples().iter().enumerate().flat_map(|(i, sample)| Whole::of_sample(sample, 100 * i as u64)).collect()
    }

    fn of_sample(sample: &Sample, seed: u64) -> Vec<Whole> {
        let case = Case::new(sample, seed);
        let mut program = case.program.clone();
        let mut feeds = case.feeds.clone();
        if let Some((dy, _)) = gradient(&mut program, &case, &case.needs(sample)) {
            feeds.insert(dy, case.weights.clone());
        }
        let values = run_program(&program, feeds);
        let whole = |&node: &NodeId| {
            let node = program.graph.node(node);
            let args = node.args.iter().map(|a| values[a.index()].clone().unwrap()).collect();
            Whole::new(&node.op, &program.graph.types(&node.args), args)
        };
        program.body.iter().map(whole).collect()
    }

    /// Cuts the operands as the map says, runs each rank, and puts the results together as the rule says.
    fn check(&self, map: &FactorMap, partial_operands: &[usize], mesh: &Mesh) {
        let placed: Vec<Sharding> = (0..self.args.len())
            .map(|i| {
                let partial = if partial_operands.contains(&i) { map.partial.clone() } else { Vec::new() };
                Sharding { partial, ..self.rule.operand_sharding(i, map) }
            })
            .collect();
        self.check_inferred(map, &placed, mesh);
        let ranks: Vec<Vec<Tensor>> = (0..mesh.world()).map(|rank| self.run(&placed, map, mesh, rank)).collect();
        for (i, expected) in self.results.iter().enumerate() {
            let parts: Vec<Tensor> = ranks.iter().map(|results| results[i].clone()).collect();
            let whole = assemble(&parts, &self.rule.result_sharding(i, map), mesh);
            let whole = whole.unwrap_or_else(|e| panic!("result {i} of {:?} under {map:?}: {e}", self.op));
            let distance = whole.distance(expected);
            assert!(distance < 1e-12, "result {i} of {:?} under {map:?} is off by {distance:e}", self.op);
        }
    }

    fn run(&self, placed: &[Sharding], map: &FactorMap, mesh: &Mesh, rank: u64) -> Vec<Tensor> {
        let results: Vec<Sharding> = (0..self.types.len()).map(|i| self.rule.result_sharding(i, map)).collect();
        let parts: Vec<Tensor> = self.args.iter().zip(placed).map(|(x, s)| scatter(x, s, mesh, rank)).collect();
        let types: Vec<TensorType> = self.types.iter().zip(&results).map(|(ty, s)| s.local_type(ty, mesh)).collect();
        let part = |shape: &[u64], sharding: &Sharding| {
            let first = |dim| first_index(shape, sharding, dim, mesh, &mesh.coordinates(rank));
            Part { first: (0..shape.len()).map(first).collect(), of: shape.to_vec() }
        };
        let part = match &self.op {
            Op::Embedding(_) | Op::Dropout(_) => part(&self.args[0].shape, &placed[0]),
            Op::Attention(_) | Op::AttentionGrad(_) | Op::AttentionMaskGrad(_) => part(&self.args[0].shape, &placed[0]),
            Op::EmbeddingGrad(op) => part(&op.shape, &results[0]),
            Op::Moe(_) | Op::MoeGrad(_) => part(&self.args[3].shape, &placed[3]),
            _ => Part::default(),
        };
        eval(&self.op, &parts.iter().collect::<Vec<_>>(), &types, &part).unwrap()
    }

    /// The placements of the operands give the map back, as far as operands have its factors.
    fn check_inferred(&self, map: &FactorMap, placed: &[Sharding], mesh: &Mesh) {
        let read: BTreeSet<usize> = self.rule.operands.iter().flatten().flatten().copied().collect();
        let mut expected = map.clone();
        for (factor, axes) in expected.axes.iter_mut().enumerate() {
            if !read.contains(&factor) {
                axes.clear();
            }
        }
        let inferred = self.rule.infer_map(&placed.iter().collect::<Vec<_>>(), mesh);
        assert_eq!(inferred, Ok(expected), "placements {placed:?} of {:?}", self.op);
    }
}

/// What one mesh axis does.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Replicates,
    Shards(usize),
    Sums,
}

/// All maps of the axes of a mesh, each with the operands that are partial over its partial axes.
fn placements(rule: &ShardingRule, mesh: &Mesh) -> Vec<(FactorMap, Vec<usize>)> {
    let mut orders = vec![mesh.spatial().collect::<Vec<_>>()];
    if mesh.spatial().count() > 1 {
        orders.push(mesh.spatial().rev().collect());
    }
    let mut found = BTreeSet::new();
    for order in orders {
        for roles in all_roles(rule, order.len()) {
            let map = map_of(rule, &order, &roles);
            if rule.takes(&map, mesh) {
                let operands = partial_operands(rule, !map.partial.is_empty());
                found.extend(operands.into_iter().map(|operands| (map.clone(), operands)));
            }
        }
    }
    found.into_iter().collect()
}

fn all_roles(rule: &ShardingRule, n_axes: usize) -> Vec<Vec<Role>> {
    let mut roles = vec![Role::Replicates];
    let can_be_cut = |f: &usize| rule.factors[*f].kind != FactorKind::Whole;
    roles.extend((0..rule.factors.len()).filter(can_be_cut).map(Role::Shards));
    if rule.linear != Linearity::None {
        roles.push(Role::Sums);
    }
    let extend =
        |all: Vec<Vec<Role>>| all.iter().flat_map(|r| roles.iter().map(|&x| [r.as_slice(), &[x]].concat())).collect();
    (0..n_axes).fold(vec![vec![]], |all, _| extend(all))
}

fn map_of(rule: &ShardingRule, order: &[AxisId], roles: &[Role]) -> FactorMap {
    let mut map = FactorMap::replicated(rule);
    for (&axis, role) in order.iter().zip(roles) {
        match role {
            Role::Replicates => {}
            Role::Shards(factor) => map.axes[*factor].push(axis),
            Role::Sums => map.partial.push(axis),
        }
    }
    map.partial.sort();
    map
}

/// The sets of operands that may be partial together.
fn partial_operands(rule: &ShardingRule, is_partial: bool) -> Vec<Vec<usize>> {
    match &rule.linear {
        _ if !is_partial => vec![vec![]],
        Linearity::None => Vec::new(),
        Linearity::Joint(operands) => vec![operands.clone()],
        Linearity::Each(operands) => operands.iter().map(|&i| vec![i]).collect(),
    }
}

#[test]
fn placements_that_a_rule_forbids_give_no_map() {
    let mesh = &meshes()[0];
    let axis = mesh.axis("a0").unwrap();
    for Whole { op, rule, .. } in &Whole::all() {
        for factor in (0..rule.factors.len()).filter(|&f| !rule.is_shardable(f)) {
            let mut map = FactorMap::replicated(rule);
            map.axes[factor].push(axis);
            let placed: Vec<Sharding> = (0..rule.operands.len()).map(|i| rule.operand_sharding(i, &map)).collect();
            let inferred = rule.infer_map(&placed.iter().collect::<Vec<_>>(), mesh);
            assert!(rule.takes(&map, mesh) || inferred != Ok(map), "{:?} takes {placed:?}", op);
        }
        for operand in 0..rule.operands.len() {
            let mut placed: Vec<Sharding> = rule.operands.iter().map(|dims| Sharding::replicated(dims.len())).collect();
            placed[operand].partial.push(axis);
            let allowed = partial_operands(rule, true).contains(&vec![operand]);
            let inferred = rule.infer_map(&placed.iter().collect::<Vec<_>>(), mesh);
            assert_eq!(inferred.is_ok(), allowed, "{:?} with operand {operand} partial", op);
        }
    }
}

#[test]
fn attributes_survive_the_text() {
    for Sample { op, .. } in Op::all_samples() {
        let entries = op.attrs().into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        let mut reader = AttrReader::new(entries);
        assert_eq!(Op::parse(op.mnemonic(), &mut reader), Some(Ok(op.clone())));
        assert_eq!(reader.finish(), Ok(()), "attributes of {op:?}");
    }
}

#[test]
fn every_op_has_its_own_name_and_a_sample() {
    let all = Op::all_mnemonics();
    let names: BTreeSet<&str> = all.iter().copied().collect();
    assert_eq!(names.len(), all.len(), "{all:?}");
    let sampled: BTreeSet<&str> = Op::all_samples().iter().map(|s| s.op.mnemonic()).collect();
    let memory = ["load", "run_scalar", "accumulate", "update", "mem.to_host", "mem.to_device"];
    let without: Vec<&str> = names.difference(&sampled).copied().collect();
    assert!(
        without.iter().all(|n| n.starts_with("comm.") || n.starts_with("pipe.") || memory.contains(n)),
        "no samples: {without:?}"
    );
}
