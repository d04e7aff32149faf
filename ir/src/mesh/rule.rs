//! Sharding rules: one einsum-like table of factors per op, from which placements, their legality and their duals follow.
//!
//! A *factor* is an index that an op runs over. Each dimension of each operand and result is made of factors, major first
//! (a merged dimension `(b s)` has two). Assigning mesh axes to factors determines the placement of everything the op
//! touches: a dimension is sharded by the axes of its factors, where a minor one has some only if those before it are cut into
//! single elements; a result is a partial sum over the axes of every factor that it does not contain. An axis cuts one factor of an op;
//! only of factors that ranks exchange while they compute it may cut two. The idea of factor rules is that of Shardy (OpenXLA) and of
//! einsum-based SPMD partitioners.

use super::{Mesh, Sharding};
use crate::id::AxisId;

/// What sharding a factor means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FactorKind {
    /// Each part is computed by itself; results without the factor are partial sums.
    Plain,
    /// The op must see the whole extent: never sharded.
    Whole,
    /// Sharding needs the op's own offset (vocabulary of an embedding); results without the factor are partial sums.
    Offset,
}

/// An index that an op runs over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Factor {
    /// Letter in reports and pins, for example `b`.
    pub label: String,
    /// Extent.
    pub size: u64,
    /// What sharding it means.
    pub kind: FactorKind,
}

/// In which operands an op is linear, so that partial sums may pass through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linearity {
    /// Partial operands are errors.
    None,
    /// Linear in these operands jointly: all of them partial over the same axes, or none.
    Joint(Vec<usize>),
    /// Linear in each of these operands alone: at most one of them is partial.
    Each(Vec<usize>),
}

/// The table of factors of one op on given types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardingRule {
    /// The factors.
    pub factors: Vec<Factor>,
    /// For each operand and dimension the factors (indices into `factors`), major first; empty for an extent of 1.
    pub operands: Vec<Vec<Vec<usize>>>,
    /// The same for each result.
    pub results: Vec<Vec<Vec<usize>>>,
    /// Which operands may be partial.
    pub linear: Linearity,
    /// Pairs of factors that one axis may cut both: its ranks exchange what they hold of one by what they hold of the other, so that a
    /// result with either of them is complete over the axis.
    pub shared: Vec<[usize; 2]>,
}

/// An assignment of mesh axes to the factors of one op.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FactorMap {
    /// For each factor its axes, major first.
    pub axes: Vec<Vec<AxisId>>,
    /// Axes over which the (jointly linear) operands and the results are partial.
    pub partial: Vec<AxisId>,
}

impl FactorMap {
    /// Nothing is sharded.
    pub fn replicated(rule: &ShardingRule) -> Self {
        FactorMap { axes: vec![Vec::new(); rule.factors.len()], partial: Vec::new() }
    }
}

impl ShardingRule {
    /// Placement that the map demands of an operand.
    pub fn operand_sharding(&self, index: usize, map: &FactorMap) -> Sharding {
        let mut sharding = Sharding { dims: self.dims_of(&self.operands[index], map), partial: Vec::new() };
        if let Linearity::Joint(operands) = &self.linear
            && operands.contains(&index)
        {
            sharding.partial = map.partial.clone();
        }
        sharding
    }

    /// Placement of a result under the map.
    pub fn result_sharding(&self, index: usize, map: &FactorMap) -> Sharding {
        let (factors, dims) = (&self.results[index], self.dims_of(&self.results[index], map));
        let mut partial = map.partial.clone();
        for (f, axes) in map.axes.iter().enumerate() {
            if !factors.iter().flatten().any(|&g| g == f) {
                partial.extend(axes.iter().filter(|axis| !dims.iter().flatten().any(|cut| cut == *axis)));
            }
        }
        partial.sort();
        Sharding { dims, partial }
    }

    fn dims_of(&self, dims: &[Vec<usize>], map: &FactorMap) -> Vec<Vec<AxisId>> {
        dims.iter().map(|fs| fs.iter().flat_map(|&f| map.axes[f].iter().copied()).collect()).collect()
    }

    /// The factor that is minor to this one in every merged dimension that has it before another, if there is one such.
    pub fn minor_of(&self, factor: usize) -> Option<usize> {
        let dims = self.operands.iter().chain(&self.results).flatten();
        let mut minors = dims.flat_map(|fs| fs.windows(2)).filter(|pair| pair[0] == factor).map(|pair| pair[1]);
        let minor = minors.next()?;
        minors.all(|other| other == minor).then_some(minor)
    }

    /// Whether all factors are cut into equal parts, those that may be cut at all, and minor ones only where those before them
    /// are cut into single elements.
    pub fn takes(&self, map: &FactorMap, mesh: &Mesh) -> bool {
        let is_cut = |f: &usize| !map.axes[*f].is_empty();
        let divides = |f: usize| {
            let factor = &self.factors[f];
            factor.kind != FactorKind::Whole && factor.size.is_multiple_of(mesh.product(&map.axes[f]))
        };
        let is_single = |f: usize| self.factors[f].size == mesh.product(&map.axes[f]);
        let mut merged = self.operands.iter().chain(&self.results).flatten();
        (0..self.factors.len()).filter(is_cut).all(divides)
            && merged.all(|fs| fs.windows(2).all(|pair| !is_cut(&pair[1]) || is_single(pair[0])))
    }

    /// Whether a factor may be sharded by itself: never a whole one, nor one that is minor in a merged dimension.
    pub fn is_shardable(&self, factor: usize) -> bool {
        let minor = |dims: &Vec<Vec<usize>>| dims.iter().any(|fs| fs.iter().skip(1).any(|&f| f == factor));
        self.factors[factor].kind != FactorKind::Whole
            && !self.operands.iter().any(minor)
            && !self.results.iter().any(minor)
    }

    /// Whether one axis may cut two factors.
    fn shares(&self, one: usize, other: usize) -> bool {
        self.shared.contains(&[one, other]) || self.shared.contains(&[other, one])
    }

    /// Whether the op is linear in this operand while all others are whole.
    pub fn is_linear_alone(&self, operand: usize) -> bool {
        match &self.linear {
            Linearity::None => false,
            Linearity::Joint(operands) => operands[..] == [operand],
            Linearity::Each(operands) => operands.contains(&operand),
        }
    }

    /// The map that gives the operands these placements, or why there is none.
    ///
    /// The partial axes of operands are checked against the op's linearity; the result placements then follow.
    pub fn infer_map(&self, operands: &[&Sharding], mesh: &Mesh) -> Result<FactorMap, MapFault> {
        let mut map = FactorMap::replicated(self);
        let mut known = vec![false; self.factors.len()];
        for (i, sharding) in operands.iter().enumerate() {
            for (d, factors) in self.operands[i].iter().enumerate() {
                self.bind(&mut map, &mut known, (i, d), &self.parts(factors, &sharding.dims[d], mesh))?;
            }
        }
        self.check_order(&map, operands, mesh)?;
        map.partial = self.partial_of(operands)?;
        self.check_distinct(&map)?;
        Ok(map)
    }

    /// The axes of a dimension by factor: of each the longest run that cuts it into equal parts, of the last one all that are left.
    fn parts<'x>(&self, factors: &[usize], axes: &'x [AxisId], mesh: &Mesh) -> Vec<(Option<usize>, &'x [AxisId])> {
        let Some((&last, major)) = factors.split_last() else { return vec![(None, axes)] };
        let mut rest = axes;
        let mut parts = Vec::with_capacity(factors.len());
        for &factor in major {
            let divides = |n: &usize| self.factors[factor].size.is_multiple_of(mesh.product(&rest[..*n]));
            let n = (0..=rest.len()).rev().find(divides).unwrap_or(0);
            parts.push((Some(factor), &rest[..n]));
            rest = &rest[n..];
        }
        parts.push((Some(last), rest));
        parts
    }

    fn bind(
        &self,
        map: &mut FactorMap,
        known: &mut [bool],
        (operand, dim): (usize, usize),
        parts: &[(Option<usize>, &[AxisId])],
    ) -> Result<(), MapFault> {
        for &(factor, axes) in parts {
            let Some(factor) = factor else {
                return if axes.is_empty() { Ok(()) } else { Err(MapFault::Whole { operand, dim }) };
            };
            if known[factor] && map.axes[factor] != axes {
                return Err(MapFault::Disagree { operand, dim, factor });
            }
            known[factor] = true;
            map.axes[factor] = axes.to_vec();
        }
        Ok(())
    }

    /// Names the dimension by which a map is none that the rule takes.
    fn check_order(&self, map: &FactorMap, operands: &[&Sharding], mesh: &Mesh) -> Result<(), MapFault> {
        if self.takes(map, mesh) {
            return Ok(());
        }
        let dims = operands.iter().enumerate().flat_map(|(i, s)| (0..s.dims.len()).map(move |d| (i, d)));
        let is_wrong = |&(operand, dim): &(usize, usize)| {
            let mut alone = FactorMap::replicated(self);
            for &f in &self.operands[operand][dim] {
                alone.axes[f].clone_from(&map.axes[f]);
            }
            !self.takes(&alone, mesh)
        };
        let (operand, dim) = dims.into_iter().find(is_wrong).unwrap_or((0, 0));
        Err(MapFault::Whole { operand, dim })
    }

    fn partial_of(&self, operands: &[&Sharding]) -> Result<Vec<AxisId>, MapFault> {
        let is_partial = |i: usize| operands[i].is_partial();
        let found: Vec<usize> = (0..operands.len()).filter(|&i| is_partial(i)).collect();
        let Some(&first) = found.first() else { return Ok(Vec::new()) };
        match &self.linear {
            Linearity::None => return Err(MapFault::Partial { operand: first }),
            Linearity::Joint(linear) => {
                if let Some(&bad) = found.iter().find(|i| !linear.contains(i)) {
                    return Err(MapFault::Partial { operand: bad });
                }
                if let Some(&bad) = linear.iter().find(|&&i| operands[i].partial != operands[first].partial) {
                    return Err(MapFault::Mixed { operand: bad, other: first });
                }
            }
            Linearity::Each(linear) => {
                if let Some(&bad) = found.iter().find(|i| !linear.contains(i) || **i != first) {
                    return Err(MapFault::Partial { operand: bad });
                }
            }
        }
        Ok(operands[first].partial.clone())
    }

    fn check_distinct(&self, map: &FactorMap) -> Result<(), MapFault> {
        let mut seen: Vec<(AxisId, Option<usize>)> = map.partial.iter().map(|&axis| (axis, None)).collect();
        for (factor, axes) in map.axes.iter().enumerate() {
            for &axis in axes {
                let may_meet = |other: Option<usize>| other.is_some_and(|other| self.shares(other, factor));
                if seen.iter().any(|&(cut, by)| cut == axis && !may_meet(by)) {
                    return Err(MapFault::Twice { factor, axis });
                }
                seen.push((axis, Some(factor)));
            }
        }
        Ok(())
    }
}

/// Why operand placements do not fit a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapFault {
    /// The op needs the whole extent of this dimension.
    Whole {
        /// Operand index.
        operand: usize,
        /// Dimension.
        dim: usize,
    },
    /// Two operands shard the same factor differently.
    Disagree {
        /// Operand index.
        operand: usize,
        /// Dimension.
        dim: usize,
        /// The factor.
        factor: usize,
    },
    /// A partial sum where the op needs the value.
    Partial {
        /// Operand index.
        operand: usize,
    },
    /// A sum of operands that are partial over different axes.
    Mixed {
        /// Operand index.
        operand: usize,
        /// The operand it disagrees with.
        other: usize,
    },
    /// One axis shards two factors.
    Twice {
        /// The second factor.
        factor: usize,
        /// The axis.
        axis: AxisId,
    },
}

/// Builds rules from einsum-like strings.
pub struct RuleBuilder {
    rule: ShardingRule,
}

impl RuleBuilder {
    /// A rule without factors.
    pub fn new() -> Self {
        RuleBuilder {
            rule: ShardingRule {
                factors: Vec::new(),
                operands: Vec::new(),
                results: Vec::new(),
                linear: Linearity::None,
                shared: Vec::new(),
            },
        }
    }

    /// Adds a plain factor; returns its index.
    pub fn factor(&mut self, label: impl Into<String>, size: u64) -> usize {
        self.factor_of(label, size, FactorKind::Plain)
    }

    /// Adds a factor of a kind; returns its index.
    pub fn factor_of(&mut self, label: impl Into<String>, size: u64, kind: FactorKind) -> usize {
        self.rule.factors.push(Factor { label: label.into(), size, kind });
        self.rule.factors.len() - 1
    }

    /// Adds an operand with one factor a dimension.
    pub fn operand(mut self, dims: &[usize]) -> Self {
        self.rule.operands.push(dims.iter().map(|&f| vec![f]).collect());
        self
    }

    /// Adds a result with one factor a dimension.
    pub fn result(mut self, dims: &[usize]) -> Self {
        self.rule.results.push(dims.iter().map(|&f| vec![f]).collect());
        self
    }

    /// Adds an operand with any factors a dimension.
    pub fn operand_dims(mut self, dims: Vec<Vec<usize>>) -> Self {
        self.rule.operands.push(dims);
        self
    }

    /// Adds a result with any factors a dimension.
    pub fn result_dims(mut self, dims: Vec<Vec<usize>>) -> Self {
        self.rule.results.push(dims);
        self
    }

    /// Says where partial sums may pass.
    pub fn linear(mut self, linear: Linearity) -> Self {
        self.rule.linear = linear;
        self
    }

    /// Says which pairs of factors one axis may cut.
    pub fn shared(mut self, pairs: Vec<[usize; 2]>) -> Self {
        self.rule.shared = pairs;
        self
    }

    /// The rule.
    pub fn build(self) -> ShardingRule {
        self.rule
    }
}

impl Default for RuleBuilder {
    fn default() -> Self {
        RuleBuilder::new()
    }
}
