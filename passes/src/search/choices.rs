//! The candidates of a segment: for each split of the mesh, boundary placement, ZeRO level, place of optimizer states and recomputation mode the assignments that are kept.

use super::boundary::BoundaryKind;
use super::candidates::{Choice, Listing, Mode, SpaceBuilder};
use super::experts::Experts;
use super::flows::{Border, Flows};
use super::pins::LayerPins;
use super::points::{Point, kept_points};
use super::price::{Piece, Priced};
use super::recompute::Recompute;
use super::sequence::TensorKind;
use super::solver::{Cost, Edge, Problem};
use super::split::Split;
use super::threads;
use super::weights::Holding;
use crate::cost::CostModel;
use galvatron_ir::mesh::{Mesh, Sharding};

/// What candidates are priced for.
pub(super) struct Setting<'a> {
    /// The mesh of a stage.
    pub mesh: &'a Mesh,
    /// Micro-batches that are kept at one time, at most.
    pub in_flight: u64,
    /// Costs at each speed that a stage has, fastest first.
    pub models: &'a [CostModel],
}

/// A piece under one split of the mesh.
struct Cut<'a> {
    split: Split,
    recomputes: &'a [(Mode, Recompute)],
    /// At each speed that a stage has, fastest first.
    speeds: Vec<AtSpeed<'a>>,
    /// Where its experts may lie, each with candidates of its own.
    experts: Vec<Option<Experts>>,
}

/// The same at one speed.
struct AtSpeed<'a> {
    priced: Priced<'a>,
    flows: Vec<Flows>,
    /// By recomputation mode what flows cost.
    edges: Vec<Vec<Edge>>,
}

/// What the borders of a piece cost at one speed under a recomputation mode, by group.
type BorderCosts = Vec<(usize, Vec<Cost>)>;

/// What candidates have in common besides their split.
struct Way {
    boundary: BoundaryKind,
    /// Number of the recomputation mode.
    recompute: usize,
    holding: Holding,
}

/// The candidates under one split, by where the boundary values lie; these have no numbers yet.
struct Under {
    placed: Vec<(Option<Sharding>, Vec<Choice>)>,
    width: usize,
}

impl SpaceBuilder<'_> {
    /// All candidates of a piece.
    pub(super) fn choices(
        &self,
        piece: &Piece,
        pins: &LayerPins,
        setting: &Setting<'_>,
        states: &mut Vec<Sharding>,
        width: &mut usize,
    ) -> Vec<Choice> {
        let recomputes: Vec<(Mode, Recompute)> =
            self.modes(piece, pins).into_iter().map(|mode| (mode, Recompute::of(&self.facts, piece, mode))).collect();
        let of = |split: &Split| self.choices_under(piece, pins, setting, (split, &recomputes));
        let mut all = Vec::new();
        for under in threads::map(&self.splits(pins, setting.mesh), of).into_iter().flatten() {
            for (placed, choices) in under.placed {
                let state = placed.as_ref().map_or(0, |p| intern(states, p));
                all.extend(choices.into_iter().map(|choice| Choice { state, ..choice }));
            }
            *width = (*width).max(under.width);
        }
        // Those that another one beats stay: a uniform plan may be made of them.
        all.sort_by_key(|c| (c.state, c.cost));
        all
    }

    /// The candidates of a piece under a split; `None` where some op has no option.
    fn choices_under(
        &self,
        piece: &Piece,
        pins: &LayerPins,
        setting: &Setting<'_>,
        (split, recomputes): (&Split, &[(Mode, Recompute)]),
    ) -> Option<Under> {
        let mesh = setting.mesh;
        let cut = self.cut(piece, pins, setting, (split.clone(), recomputes))?;
        let at = |(boundary, placed): (BoundaryKind, Option<Sharding>)| {
            let borders = cut.borders(piece, placed.as_ref());
            let mut choices = Vec::new();
            for recompute in 0..recomputes.len() {
                let costs = cut.border_costs(&borders, recompute);
                for holding in self.holdings(piece, pins, mesh) {
                    let way = Way { boundary, recompute, holding };
                    choices.extend(cut.choices(&way, &costs, setting.in_flight, self.listing));
                }
            }
            (placed, choices)
        };
        let placed = self.boundaries(piece, pins, split, mesh).into_iter().map(at).collect();
        Some(Under { placed, width: cut.width() })
    }

    /// A piece priced under a split at all speeds; `None` where some op has no option.
    fn cut<'c>(
        &'c self,
        piece: &'c Piece,
        pins: &LayerPins,
        setting: &Setting<'c>,
        (split, recomputes): (Split, &'c [(Mode, Recompute)]),
    ) -> Option<Cut<'c>> {
        let at_speed = |model: &'c CostModel| {
            let priced = self.priced(piece, pins, (setting.mesh, model), &split)?;
            let flows = priced.flows();
            let edges = recomputes.iter().map(|(_, r)| priced.edges(&flows, r)).collect();
            Some(AtSpeed { priced, flows, edges })
        };
        let speeds = setting.models.iter().map(at_speed).collect::<Option<Vec<_>>>()?;
        // What another place of experts beats by the surrogate may still take less memory while it runs.
        let experts = if self.listing == Listing::Best { speeds[0].priced.all_experts() } else { vec![None] };
        Some(Cut { split, recomputes, speeds, experts })
    }
}

impl Cut<'_> {
    /// The borders at each speed where the boundary values lie in one placement.
    fn borders(&self, piece: &Piece, placed: Option<&Sharding>) -> Vec<Border> {
        let (input, output) = piece.ends(placed);
        self.speeds.iter().map(|at| at.priced.border(input, output)).collect()
    }

    fn border_costs(&self, borders: &[Border], recompute: usize) -> Vec<BorderCosts> {
        let (_, recompute) = &self.recomputes[recompute];
        self.speeds.iter().zip(borders).map(|(at, b)| at.priced.border_costs(b, recompute)).collect()
    }

    fn choices<'w>(
        &'w self,
        way: &'w Way,
        costs: &'w [BorderCosts],
        in_flight: u64,
        listing: Listing,
    ) -> impl Iterator<Item = Choice> + 'w {
        let points = self.experts.iter().flat_map(move |&experts| {
            let problem = move |speed: usize, n| self.problem(way, &costs[speed], experts, speed, n);
            kept_points(problem, self.speeds.len(), in_flight, listing)
        });
        points.map(|point| self.choice(way, point))
    }

    /// The problem at a speed with the activations of `n` micro-batches.
    fn problem(&self, way: &Way, border: &BorderCosts, experts: Option<Experts>, speed: usize, n: u64) -> Problem {
        let AtSpeed { priced, edges, .. } = &self.speeds[speed];
        let (_, recompute) = &self.recomputes[way.recompute];
        let problem = priced.problem((border, &edges[way.recompute]), recompute, way.holding, n);
        match experts {
            Some(experts) => priced.with_experts(problem, experts),
            None => problem,
        }
    }

    fn choice(&self, way: &Way, point: Point) -> Choice {
        let priced = &self.speeds[0].priced;
        let cuts_sequence = way.boundary == BoundaryKind::Sequence || !self.split.context.is_empty();
        let Point { cost, slower_ns, saved_bytes, assignment } = point;
        Choice {
            split: self.split.clone(),
            boundary: way.boundary,
            tensor: if cuts_sequence { priced.tensor_kind(&assignment) } else { TensorKind::Weights },
            experts: priced.experts(&assignment),
            zero: way.holding.zero,
            host_states: way.holding.host_states,
            mode: self.recomputes[way.recompute].0,
            assignment,
            cost,
            slower_ns,
            saved_bytes,
            state: 0,
        }
    }

    fn width(&self) -> usize {
        self.speeds[0].priced.width(&self.speeds[0].flows)
    }
}

fn intern(states: &mut Vec<Sharding>, placed: &Sharding) -> u16 {
    let at = states.iter().position(|s| s == placed).unwrap_or_else(|| {
        states.push(placed.clone());
        states.len() - 1
    });
    at as u16
}
