//! Who waits for whom: what a rank that has waited too long finds out about all others, so that its error names the rank that
//! is blocked and not only the one that it met last.

/// Tells, from any thread, what a rank is at. Whoever drives the rank gives it to its end of the world.
pub trait Whereabouts: Send + Sync {
    /// The rank's place in the plan, in words: the node, its op, phase and step.
    fn place(&self) -> String;
}

/// What a rank does at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The rank.
    pub rank: usize,
    /// Its place in the plan, in words.
    pub place: String,
    /// The ranks that the call waits for which it is in, ascending; none if it waits for nobody.
    pub waits_for: Vec<usize>,
}

/// Ranks that wait, of which an error names no more.
const MAX_NAMED: usize = 8;

/// The ranks that `rank` waits for, directly or through others, and that wait for nobody themselves: those that are blocked.
/// None if ranks wait for each other in a circle. `standings` are those of all ranks, in order.
pub(super) fn blocked_before(rank: usize, standings: &[Standing]) -> Vec<usize> {
    let mut reached = vec![false; standings.len()];
    let mut open = vec![rank];
    while let Some(next) = open.pop() {
        if !std::mem::replace(&mut reached[next], true) {
            open.extend(standings[next].waits_for.iter().filter(|&&other| other < reached.len()));
        }
    }
    (0..standings.len()).filter(|&r| reached[r] && standings[r].waits_for.is_empty()).collect()
}

/// What an error says of the world: first who is blocked, then who waits and for whom.
pub(super) fn describe(rank: usize, standings: &[Standing]) -> String {
    let blocked = blocked_before(rank, standings);
    let mut text: String =
        blocked.iter().map(|&r| format!("; rank {r} is blocked at {}", standings[r].place)).collect();
    let waiting: Vec<&Standing> = standings.iter().filter(|s| !s.waits_for.is_empty()).collect();
    for Standing { rank, place, waits_for } in waiting.iter().take(MAX_NAMED) {
        text += &format!("; rank {rank} waits for rank {} at {place}", super::fault::list(waits_for));
    }
    if waiting.len() > MAX_NAMED {
        text += &format!("; {} more ranks wait", waiting.len() - MAX_NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(waits: &[&[usize]]) -> Vec<Standing> {
        let standing = |(rank, waits): (usize, &&[usize])| Standing {
            rank,
            place: format!("`%{rank}`"),
            waits_for: waits.to_vec(),
        };
        waits.iter().enumerate().map(standing).collect()
    }

    #[test]
    fn the_blocked_rank_is_found_through_others() {
        let world = world(&[&[1], &[3], &[], &[]]);
        assert_eq!(blocked_before(0, &world), [3]);
        let expected = "; rank 3 is blocked at `%3`; rank 0 waits for rank 1 at `%0`; rank 1 waits for rank 3 at `%1`";
        assert_eq!(describe(0, &world), expected);
    }

    #[test]
    fn nobody_is_blocked_in_a_circle() {
        assert!(blocked_before(0, &world(&[&[1], &[0], &[]])).is_empty());
    }

    #[test]
    fn many_that_wait_are_counted() {
        let mut waits: Vec<&[usize]> = vec![&[9]; 9];
        waits.push(&[]);
        assert!(describe(0, &world(&waits)).ends_with("; rank 7 waits for rank 9 at `%7`; 1 more ranks wait"));
    }
}
