//! The factor rules of all nodes of a program: what can be cut, and how gradients follow their forward nodes.

mod inherit;

use crate::joint::joint_rule;
use galvatron_ir::mesh::{FactorMap, ShardingRule};
use galvatron_ir::module::Program;
use galvatron_ir::op::Op;
use galvatron_ir::{NodeId, ValueId};
use inherit::Recogniser;
use std::collections::BTreeSet;
use std::ops::Index;

/// The factor rule of a node on its global types.
pub fn rule_of(program: &Program, node: NodeId) -> ShardingRule {
    let node = program.graph.node(node);
    node.op.rule(&program.graph.types(&node.args), &program.graph.types(&node.results))
}

/// The ops of which a pinned tensor degree cuts something: matrix products of weights, attention and mixtures of experts. What chooses the experts
/// of a token is none of them: it is small, and every tensor rank needs all of it.
#[derive(Default)]
pub struct Cuttable {
    weights: BTreeSet<ValueId>,
    routers: BTreeSet<NodeId>,
}

impl Cuttable {
    /// Those of a program.
    pub fn of(program: &Program) -> Cuttable {
        Cuttable { weights: program.weights.iter().map(|w| w.value).collect(), routers: routers(program) }
    }

    /// The factors of which one is cut: those of the weight of a matrix product, the heads of attention, the experts or what is inside of them.
    pub fn factors(&self, program: &Program, node: NodeId, rule: &ShardingRule) -> Vec<usize> {
        let n = program.graph.node(node);
        match n.op {
            Op::Einsum(_) if self.routers.contains(&node) => Vec::new(),
            Op::Einsum(_) => {
                let weight = n.args.iter().position(|a| self.weights.contains(a));
                weight.map_or(Vec::new(), |i| rule.operands[i].iter().flatten().copied().collect())
            }
            Op::Attention(_) => rule.operands[0][2].clone(),
            Op::Moe(_) => rule.operands[3][..2].iter().flatten().copied().collect(),
            _ => Vec::new(),
        }
    }
}

/// The matrix products nearest to the choices of experts.
pub fn routers(program: &Program) -> BTreeSet<NodeId> {
    let graph = &program.graph;
    let mixtures = program.body.iter().map(|&id| graph.node(id)).filter(|n| matches!(n.op, Op::Moe(_)));
    let mut values: Vec<ValueId> = mixtures.flat_map(|n| n.args[1..3].iter().copied()).collect();
    let mut seen: BTreeSet<ValueId> = values.iter().copied().collect();
    let mut routers = BTreeSet::new();
    while let Some(value) = values.pop() {
        let Some(id) = graph.producer(value) else { continue };
        if matches!(graph.node(id).op, Op::Einsum(_)) {
            routers.insert(id);
        } else {
            values.extend(graph.node(id).args.iter().filter(|&&arg| seen.insert(arg)));
        }
    }
    routers
}

/// The rules of the nodes of a program, made once.
pub struct Rules {
    /// By node; those outside of the body have none.
    rules: Vec<Option<ShardingRule>>,
    /// By node: its rule where ranks compute it together, if they can.
    joint: Vec<Option<ShardingRule>>,
    /// By node, for gradients: for each factor that of the forward node.
    forward_factors: Vec<Vec<Option<usize>>>,
}

impl Rules {
    /// The rules of every node of the body.
    pub fn of(program: &Program) -> Rules {
        let n_nodes = program.body.iter().map(|n| n.index() + 1).max().unwrap_or(0);
        let (rules, joint) = (vec![None; n_nodes], vec![None; n_nodes]);
        let mut rules = Rules { rules, joint, forward_factors: vec![Vec::new(); n_nodes] };
        for &node in &program.body {
            rules.rules[node.index()] = Some(rule_of(program, node));
            rules.joint[node.index()] = joint_rule(program, node);
        }
        let mut recogniser = Recogniser::default();
        for &node in &program.body {
            let n = program.graph.node(node);
            if let Some(fwd) = n.fwd.filter(|_| !matches!(n.op, Op::AddN(_))) {
                rules.forward_factors[node.index()] = recogniser.visit(program, &rules, node, fwd);
            }
        }
        rules
    }

    /// The rule of a node that ranks compute together, which has the factors of its own rule; `None` where they cannot.
    pub fn joint(&self, node: NodeId) -> Option<&ShardingRule> {
        self.joint[node.index()].as_ref()
    }

    /// The map of a gradient node under the map of its forward node; factors that this one does not have stay whole.
    pub fn inherit(&self, node: NodeId, forward: &FactorMap) -> FactorMap {
        let mut map = FactorMap::replicated(&self[node]);
        for (axes, factor) in map.axes.iter_mut().zip(&self.forward_factors[node.index()]) {
            if let Some(factor) = factor {
                axes.clone_from(&forward.axes[*factor]);
            }
        }
        map
    }
}

impl Index<NodeId> for Rules {
    type Output = ShardingRule;

    fn index(&self, node: NodeId) -> &ShardingRule {
        self.rules[node.index()].as_ref().expect("invariant: the body has the node")
    }
}
