//! Parts of the plans that the search looks into: all of a space, or those of one kind.

use super::candidates::Choice;
use super::kinds::Kind;
use super::pipe::Solved;
use super::solver::Infeasible;
use super::solver::chain::Chain;
use super::spaces::Space;

/// All plans of a space, or those of one kind.
pub struct Part<'a> {
    space: &'a Space,
    restricted: Option<Restricted>,
}

/// The path with some of its candidates.
struct Restricted {
    chain: Chain,
    /// By variant: which of the space's candidates those are.
    numbers: Vec<Vec<usize>>,
}

impl<'a> Part<'a> {
    /// All plans of a space.
    pub fn all(space: &'a Space) -> Part<'a> {
        Part { space, restricted: None }
    }

    /// The plans of a kind; for each variant it is said whether its segments are layers.
    pub fn of_kind(space: &'a Space, kind: &Kind<'_>, layers: &[bool]) -> Part<'a> {
        let (chain, choices) = (&space.candidates.chain, &space.candidates.choices);
        let allowed = |(choices, &is_layer): (&Vec<Choice>, &bool)| {
            (0..choices.len()).filter(|&c| kind.allows(&choices[c], is_layer)).collect::<Vec<usize>>()
        };
        let numbers: Vec<Vec<usize>> = choices.iter().zip(layers).map(allowed).collect();
        let classes = chain.classes.iter().zip(&numbers).map(|(class, own)| own.iter().map(|&c| class[c]).collect());
        let (layers, n_states, switch) = (chain.layers.clone(), chain.n_states, chain.switch.clone());
        let chain = Chain { classes: classes.collect(), layers, n_states, switch };
        Part { space, restricted: Some(Restricted { chain, numbers }) }
    }

    /// The fastest plan within a budget; with `exact` the gap of the relaxation is closed as far as the effort goes.
    ///
    /// # Errors
    /// When none is within the budget: the smallest one.
    pub fn solve(&self, budget: Option<u64>, exact: bool) -> Result<Solved, Infeasible> {
        let Some(Restricted { chain, numbers }) = &self.restricted else { return self.space.solve(budget, exact) };
        let mut solved = self.space.solve_chain(chain, budget, exact)?;
        for (choice, &variant) in solved.solution.assignment.iter_mut().zip(&chain.layers) {
            *choice = numbers[variant][*choice];
        }
        Ok(solved)
    }

    /// Surrogate bytes of the smallest plan.
    pub fn least_bytes(&self) -> u64 {
        self.solve(Some(0), false).map_or_else(|none| none.least.bytes, |_| 0)
    }
}
