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
    /// At each speed.
    chains: Vec<Chain>,
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
        let allowed = |(choices, &is_layer): (&Vec<Choice>, &bool)| {
            (0..choices.len()).filter(|&c| kind.allows(&choices[c], is_layer)).collect::<Vec<usize>>()
        };
        let numbers: Vec<Vec<usize>> = space.candidates.choices.iter().zip(layers).map(allowed).collect();
        let restrict = |chain: &Chain| {
            let classes = chain.classes.iter().zip(&numbers);
            let classes = classes.map(|(class, own)| own.iter().map(|&c| class[c]).collect()).collect();
            Chain { classes, layers: chain.layers.clone(), n_states: chain.n_states, switch: chain.switch.clone() }
        };
        let chains = space.candidates.chains.iter().map(restrict).collect();
        Part { space, restricted: Some(Restricted { chains, numbers }) }
    }

    /// The fastest plan within a budget; with `exact` the gap of the relaxation is closed as far as the effort goes.
    ///
    /// # Errors
    /// When none is within the budget: the smallest one.
    pub fn solve(&self, budget: Option<u64>, exact: bool) -> Result<Solved, Infeasible> {
        let Some(Restricted { chains, numbers }) = &self.restricted else { return self.space.solve(budget, exact) };
        let mut solved = self.space.solve_chains(chains, budget, exact)?;
        for (choice, &variant) in solved.solution.assignment.iter_mut().zip(self.space.candidates.path()) {
            *choice = numbers[variant][*choice];
        }
        Ok(solved)
    }

    /// Counted surrogate bytes of the smallest plan.
    pub fn least_bytes(&self) -> u64 {
        self.solve(Some(0), false).map_or_else(|none| none.least.bytes, |_| 0)
    }
}
