//! The exact cut of a path into stages, from what every range of it costs each stage.

/// A range of the path as a stage: from and to are positions of cuts.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Where it starts.
    pub from: usize,
    /// Where it ends.
    pub to: usize,
    /// Nanoseconds.
    pub ns: u64,
}

/// The cut with the least `step` of the slowest stage and of the sum of all, and that step; `None` if the spans join nowhere. Stage s takes
/// one of `spans[s]`; the first starts at position 0, the last ends at `end`. `step` must not fall in either argument.
pub fn best_cut(spans: &[Vec<Span>], end: usize, step: impl Fn(u64, u64) -> u64) -> Option<(u64, Vec<usize>)> {
    let mut limits: Vec<u64> = spans.iter().flatten().map(|span| span.ns).collect();
    limits.sort_unstable();
    limits.dedup();
    let (least_sum, _) = least_sum(spans, end, u64::MAX)?;
    let mut best: Option<(u64, Vec<usize>)> = None;
    for limit in limits {
        if best.as_ref().is_some_and(|(ns, _)| step(limit, least_sum) >= *ns) {
            break;
        }
        let Some((sum, starts)) = self::least_sum(spans, end, limit) else { continue };
        // A slowest stage that is faster than the limit was met before, with a sum that is no less.
        let ns = step(limit, sum);
        if best.as_ref().is_none_or(|(least, _)| ns < *least) {
            best = Some((ns, starts));
        }
    }
    best
}

/// The least sum of spans of at most `limit`, and where they start.
fn least_sum(spans: &[Vec<Span>], end: usize, limit: u64) -> Option<(u64, Vec<usize>)> {
    // For each stage and each position that it may end at: the least sum so far, and where the stage starts.
    let mut rows: Vec<Vec<Option<(u64, usize)>>> = Vec::with_capacity(spans.len());
    for (stage, all) in spans.iter().enumerate() {
        let mut row = vec![None; end + 1];
        for span in all.iter().filter(|span| span.ns <= limit) {
            let before = match stage {
                0 => (span.from == 0).then_some(0),
                _ => rows[stage - 1][span.from].map(|(sum, _)| sum),
            };
            let Some(before) = before else { continue };
            let found = (before + span.ns, span.from);
            if row[span.to].is_none_or(|known| found < known) {
                row[span.to] = Some(found);
            }
        }
        rows.push(row);
    }
    let (sum, _) = rows.last()?[end]?;
    let mut starts = vec![0; spans.len()];
    let mut at = end;
    for (row, start) in rows.iter().zip(&mut starts).rev() {
        (_, at) = row[at].expect("invariant: the path was found from its start");
        *start = at;
    }
    Some((sum, starts))
}

#[cfg(test)]
mod tests {
    use super::super::solver::brute::each_assignment;
    use super::*;

    /// A number that looks random.
    fn mix(mut x: u64) -> u64 {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32
    }

    #[test]
    fn the_cut_is_that_of_enumeration() {
        let (n_stages, end) = (4, 7);
        for seed in 0..200u64 {
            let ns = |stage: usize, from: usize, to: usize| {
                mix(seed << 24 | (stage as u64) << 16 | (from as u64) << 8 | to as u64) % 50 * (to - from) as u64
            };
            let parts = 1 + seed % 5;
            let step = |slowest: u64, all: u64| slowest + (all - slowest.min(all)) / parts;
            let all = |stage| {
                let spans = (0..end).flat_map(|from| (from + 1..=end).map(move |to| (from, to)));
                spans.map(|(from, to)| Span { from, to, ns: ns(stage, from, to) }).collect()
            };
            let spans: Vec<Vec<Span>> = (0..n_stages).map(all).collect();
            let mut least = u64::MAX;
            each_assignment(&[end; 3], |cuts| {
                let bounds = [&[0], cuts, &[end]].concat();
                if bounds.windows(2).all(|w| w[0] < w[1]) {
                    let times: Vec<u64> = (0..n_stages).map(|s| ns(s, bounds[s], bounds[s + 1])).collect();
                    least = least.min(step(*times.iter().max().expect("stages"), times.iter().sum()));
                }
            });
            let (found, starts) = best_cut(&spans, end, step).expect("a cut");
            let bounds = [&starts[..], &[end]].concat();
            let times: Vec<u64> = (0..n_stages).map(|s| ns(s, bounds[s], bounds[s + 1])).collect();
            assert_eq!(found, least, "seed {seed}");
            assert!(step(*times.iter().max().expect("stages"), times.iter().sum()) <= found, "seed {seed}");
        }
    }

    #[test]
    fn spans_that_do_not_join_have_no_cut() {
        let spans = [vec![Span { from: 0, to: 1, ns: 1 }], vec![Span { from: 2, to: 3, ns: 1 }]];
        assert_eq!(best_cut(&spans, 3, |slowest, _| slowest), None);
    }
}
