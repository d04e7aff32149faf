//! Why pins leave a segment without any candidate: the first constraint that they break, by name.

use super::candidates::SpaceBuilder;
use super::experts;
use super::options::{OptionContext, options};
use super::pins::{ContextKind, LayerPins, PinFault, SequenceMode};
use super::price::Piece;
use super::split::Split;
use galvatron_ir::mesh::{Mesh, ShardingRule};
use galvatron_ir::op::Op;
use galvatron_ir::{NodeId, ValueId};

impl SpaceBuilder<'_> {
    /// Which pin leaves a piece without any candidate.
    pub(super) fn why_none(&self, piece: &Piece, pins: &LayerPins, mesh: &Mesh) -> PinFault {
        let splits = self.splits(pins, mesh);
        if splits.is_empty() {
            return no_split(pins, mesh);
        }
        self.uncut_batch(&splits, mesh)
            .or_else(|| experts::why_none(self.facts.program, &piece.nodes, pins, &splits, mesh))
            .or_else(|| splits.iter().find_map(|split| self.uncut_sequence(piece, pins, split, mesh)))
            .or_else(|| splits.iter().find_map(|split| self.uncut_node(piece, pins, split, mesh)))
            .unwrap_or_else(|| PinFault {
                code: "divisibility",
                message: format!("no placement of `{}` fits all pins at once", self.piece_name(piece)),
                help: "pin fewer degrees and read in the report what the search chooses".into(),
            })
    }

    fn uncut_batch(&self, splits: &[Split], mesh: &Mesh) -> Option<PinFault> {
        let batch = self.module.train.as_ref().map_or(1, |t| t.global_batch);
        let m = mesh.micro_batches();
        let least = splits.iter().map(|s| mesh.product(&s.data)).min().unwrap_or(1);
        (!batch.is_multiple_of(m * least)).then(|| PinFault {
            code: "divisibility",
            message: format!("a batch of {batch} samples cannot be cut into {m} micro-batches over dp {least}"),
            help: "choose degrees whose product divides `batch.global`".into(),
        })
    }

    /// Sequence parallelism lies at the boundaries of a segment.
    fn uncut_sequence(&self, piece: &Piece, pins: &LayerPins, split: &Split, mesh: &Mesh) -> Option<PinFault> {
        let is_pinned = pins.sequence == Some(SequenceMode::Megatron) || pins.cuts_sequence();
        let is_wanted = is_pinned && self.boundaries(piece, pins, split, mesh).is_empty();
        if !is_wanted {
            return None;
        }
        let degree = degree_name(pins, split, mesh);
        let named = piece.input.or(piece.output).map(|v| (self.name(v), &self.facts.program.graph.value(v).ty.shape));
        let (code, message) = match named {
            None => {
                ("no-sequence-axis", "the model has no repeated layers between which a sequence could be cut".into())
            }
            Some((name, shape)) if shape.len() < 3 => (
                "no-sequence-axis",
                format!("`{name}` of shape {shape:?}, which flows between layers, has no sequence"),
            ),
            Some((_, shape)) => {
                ("divisibility", format!("a sequence of {} positions cannot be cut over {degree}", shape[1]))
            }
        };
        Some(PinFault {
            code,
            message,
            help: "leave `sequence`, `ulysses` and `cp` out, or choose a degree that divides the sequence".into(),
        })
    }

    /// The first node that no option allows.
    fn uncut_node(&self, piece: &Piece, pins: &LayerPins, split: &Split, mesh: &Mesh) -> Option<PinFault> {
        piece.nodes.iter().find_map(|&node| {
            let rule = &self.facts.rules[node];
            let cx = OptionContext::of(&self.facts, node, split, mesh);
            let all = options(rule, &cx);
            if all.iter().any(|option| self.obeys_tensor_pin(node, option, split, pins, mesh)) {
                return None;
            }
            if let Some(fault) = self.no_ring(node, pins, split, mesh).or_else(|| self.windows(node, pins, split, mesh))
            {
                return Some(fault);
            }
            let name = self.node_name(node);
            let degree = degree_name(pins, split, mesh);
            let message = match pins.ep.filter(|_| cx.experts.is_some()) {
                _ if all.is_empty() => {
                    let (m, dp) = (mesh.micro_batches(), mesh.product(&split.data));
                    format!("the batch in `{name}` cannot be cut into {m} micro-batches over dp {dp}")
                }
                Some(ep) => {
                    format!("ep {ep} leaves {degree} nothing that it divides inside of the experts of `{name}`")
                }
                None => format!("{degree} {} `{name}`", self.undivided(node, rule)),
            };
            let help =
                "choose a tensor degree that divides the number of heads, also of keys, and the hidden width".into();
            Some(PinFault { code: "divisibility", message, help })
        })
    }

    /// An attention that has no ring, where one is pinned.
    fn no_ring(&self, node: NodeId, pins: &LayerPins, split: &Split, mesh: &Mesh) -> Option<PinFault> {
        let graph = &self.facts.program.graph;
        let n = graph.node(node);
        let kind = pins.cp_kind.filter(|&kind| kind != ContextKind::Gather && pins.tensor_name() == "cp")?;
        if !matches!(n.op, Op::Attention(_)) {
            return None;
        }
        let [queries, keys] = [0, 1].map(|i| graph.value(n.args[i]).ty.shape[1]);
        let (name, degree) = (self.node_name(node), mesh.product(split.sequence_axes()));
        let is_causal = matches!(n.op, Op::Attention(op) if op.causal);
        let (code, message) = match kind {
            ContextKind::Zigzag if !is_causal => {
                ("unsupported", format!("a zigzag evens out a causal rule, `{name}` has none"))
            }
            _ if is_causal && queries != keys => (
                "unsupported",
                format!("a causal ring needs as many keys as queries, `{name}` has {queries} queries and {keys} keys"),
            ),
            ContextKind::Zigzag => (
                "divisibility",
                format!("the {queries} positions of `{name}` cannot be cut into the {} chunks of a zigzag", 2 * degree),
            ),
            _ if [queries, keys].iter().all(|n| n.is_multiple_of(degree)) => {
                return Some(no_whole_sequence(&name, queries));
            }
            _ => (
                "divisibility",
                format!("cp {degree} does not divide the {queries} queries and {keys} keys of `{name}`"),
            ),
        };
        Some(PinFault { code, message, help: "choose `cp_kind = \"gather\"`, or pin single layers".into() })
    }

    /// An attention inside of windows, where a degree beside context parallelism divides its heads.
    fn windows(&self, node: NodeId, pins: &LayerPins, split: &Split, mesh: &Mesh) -> Option<PinFault> {
        let graph = &self.facts.program.graph;
        let n = graph.node(node);
        let is_beside = !split.context.is_empty() && pins.tensor_name() == "cp" && matches!(n.op, Op::Attention(_));
        let tensor = mesh.product(&split.tensor);
        let rule = &self.facts.rules[node];
        let divides = |f: &usize| rule.is_shardable(*f) && rule.factors[*f].size.is_multiple_of(tensor);
        let is_cut = is_beside && self.tensor_factors(node, rule).iter().any(divides);
        is_cut.then(|| no_whole_sequence(&self.node_name(node), graph.value(n.args[0]).ty.shape[1]))
    }

    /// That a tensor degree divides nothing that it could cut in a node, in words.
    fn undivided(&self, node: NodeId, rule: &ShardingRule) -> String {
        let size = |&f: &usize| rule.factors[f].size;
        let factors = self.tensor_factors(node, rule);
        match (&self.facts.program.graph.node(node).op, &factors[..]) {
            (Op::Attention(_), [heads]) => format!("does not divide the {} heads of", size(heads)),
            (Op::Attention(_), [keys, queries]) => {
                format!("divides neither the {} heads of keys nor the {} queries of each in", size(keys), size(queries))
            }
            _ => {
                let extent = |f: &usize| format!("{} {}", rule.factors[*f].label, size(f));
                let extents: Vec<String> = factors.iter().map(extent).collect();
                format!("divides none of the extents {} that it could cut in", extents.join(", "))
            }
        }
    }

    fn piece_name(&self, piece: &Piece) -> String {
        piece.nodes.first().map_or_else(String::new, |&node| self.node_name(node))
    }

    fn node_name(&self, node: NodeId) -> String {
        let n = self.facts.program.graph.node(node);
        n.results.first().map_or_else(|| n.op.mnemonic().into(), |&r| self.name(r).into())
    }

    fn name(&self, value: ValueId) -> &str {
        &self.facts.program.graph.value(value).name
    }
}

/// The tensor degree under its name, and the one beside it: `tp 2`, `ulysses 2`, `cp 2`, or `cp 2 · tp 2`.
fn degree_name(pins: &LayerPins, split: &Split, mesh: &Mesh) -> String {
    let tensor = mesh.product(&split.tensor);
    match split.context.is_empty() {
        true => format!("{} {tensor}", pins.tensor_name()),
        false => format!("{} {} · tp {tensor}", pins.tensor_name(), mesh.product(&split.context)),
    }
}

fn no_whole_sequence(attention: &str, queries: u64) -> PinFault {
    PinFault {
        code: "unsupported",
        message: format!(
            "`{attention}` sees windows of {queries} positions: beside `tp` and around a ring `cp` cuts whole sequences only"
        ),
        help: "leave `tp` or `cp` out there: alone `cp` cuts the windows, each of which a rank sees whole".into(),
    }
}

fn no_split(pins: &LayerPins, mesh: &Mesh) -> PinFault {
    let world = mesh.world();
    let both = pins.sequence_degree().and(pins.tp).filter(|&tp| tp > 1);
    let degrees = [("dp", pins.dp), (pins.tensor_name(), pins.tensor_degree()), ("tp", both)];
    let pinned: Vec<String> = degrees.iter().filter_map(|(key, pin)| Some(format!("{key} {}", (*pin)?))).collect();
    let message = match &pinned[..] {
        [_, _, ..] => format!("{} is not the world size {world}", pinned.join(" · ")),
        _ => {
            let degree = pins.dp.or(pins.tensor_degree()).unwrap_or(1);
            format!("{world} devices cannot be split into groups of {degree}")
        }
    };
    PinFault {
        code: "world-size",
        message,
        help: "the product of the degrees must be the number of devices, each a product of mesh axes".into(),
    }
}
