//! Dropout by a counter-based generator: Philox4x32-10 (Salmon et al., SC 2011).

use super::super::math::simd;
use super::super::threads::Threads;
use super::GRAIN;

/// What is drawn, besides the places of the elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// The key of the generator.
    pub seed: u64,
    /// The third word of the counter.
    pub step: u32,
    /// The fourth word of the counter.
    pub number: u32,
    /// Words below it are those of zeros.
    pub threshold: u64,
    /// What the kept elements are multiplied by.
    pub scale: f32,
}

/// Where the elements of a part of a row-major tensor lie in the whole: runs of one length that are contiguous there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Elements of a run.
    len: usize,
    /// Index in the whole of the first element of the part.
    first: u64,
    /// Extent and step in the whole of each dimension that the runs are counted along, the innermost first.
    outer: Vec<(u64, u64)>,
}

impl Runs {
    /// The runs of a part of shape `local` that starts at index `first` of a tensor of shape `global`.
    pub fn new(local: &[usize], global: &[usize], first: &[u64]) -> Runs {
        let mut runs = Runs { len: 1, first: 0, outer: Vec::new() };
        let mut step = 1;
        for d in (0..local.len()).rev() {
            runs.first += first[d] * step;
            // The dimensions behind this one are whole as long as a run is as long as a step.
            if runs.outer.is_empty() && runs.len as u64 == step {
                runs.len *= local[d];
            } else {
                runs.outer.push((local[d] as u64, step));
            }
            step *= global[d] as u64;
        }
        runs
    }

    /// Index in the whole of the first element of a run.
    fn start(&self, run: usize) -> u64 {
        let mut rest = run as u64;
        self.outer.iter().fold(self.first, |at, &(extent, step)| {
            let index = rest % extent;
            rest /= extent;
            at + index * step
        })
    }
}

/// y = x scale where the word of an element is at least the threshold, otherwise 0; over x itself where that is `None`.
/// x, y: as many elements as the runs have together
pub fn dropout(draw: Draw, runs: &Runs, x: Option<&[f32]>, y: &mut [f32], threads: Threads) {
    assert!(x.is_none_or(|x| x.len() == y.len()), "invariant: operand and result have one length");
    threads.for_each_chunk_mut(y, GRAIN, |task, y| {
        let start = task * GRAIN;
        if let Some(x) = x {
            y.copy_from_slice(&x[start..][..y.len()]);
        }
        let mut done = 0;
        while done < y.len() {
            let (run, within) = ((start + done) / runs.len, (start + done) % runs.len);
            let n = (runs.len - within).min(y.len() - done);
            drop_run(draw, runs.start(run) + within as u64, &mut y[done..done + n]);
            done += n;
        }
    });
}

/// Blocks that are drawn at once, in vector instructions.
const LANES: usize = 16;

/// Elements at consecutive indices from `first` on.
fn drop_run(draw: Draw, first: u64, y: &mut [f32]) {
    let Ok(threshold) = u32::try_from(draw.threshold) else { return y.fill(0.0) };
    simd!({
        let (mut block, mut skip, mut rest) = (first / 4, (first % 4) as usize, y);
        while !rest.is_empty() {
            let words = words(draw, block);
            let (now, later) = rest.split_at_mut((4 * LANES - skip).min(rest.len()));
            for (y, &word) in now.iter_mut().zip(&words[skip..]) {
                let kept = *y * draw.scale;
                *y = if word >= threshold { kept } else { 0.0 };
            }
            (block, skip, rest) = (block + LANES as u64, 0, later);
        }
    });
}

/// The words of consecutive blocks, one after the other.
#[inline(always)]
fn words(draw: Draw, first: u64) -> [u32; 4 * LANES] {
    let (mut low, mut high) = ([0; LANES], [0; LANES]);
    for i in 0..LANES {
        let block = first + i as u64;
        (low[i], high[i]) = (block as u32, (block >> 32) as u32);
    }
    let counter = [low, high, [draw.step; LANES], [draw.number; LANES]];
    let drawn = philox4x32(counter, [draw.seed as u32, (draw.seed >> 32) as u32]);
    let mut words = [0; 4 * LANES];
    for (i, block) in words.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *block = [drawn[0][i], drawn[1][i], drawn[2][i], drawn[3][i]];
    }
    words
}

/// Ten rounds on several counters under one key.
#[inline(always)]
fn philox4x32(counter: [[u32; LANES]; 4], key: [u32; 2]) -> [[u32; LANES]; 4] {
    let ([mut a, mut b, mut c, mut d], [mut k, mut l]) = (counter, key);
    for _ in 0..10 {
        for i in 0..LANES {
            let (left, right) = (u64::from(a[i]) * 0xD251_1F53, u64::from(c[i]) * 0xCD9E_8D57);
            a[i] = (right >> 32) as u32 ^ b[i] ^ k;
            b[i] = right as u32;
            c[i] = (left >> 32) as u32 ^ d[i] ^ l;
            d[i] = left as u32;
        }
        (k, l) = (k.wrapping_add(0x9E37_79B9), l.wrapping_add(0xBB67_AE85));
    }
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the Random123 library.
    #[test]
    fn philox_gives_its_known_answers() {
        let check = |counter: [u32; 4], key, expected: [u32; 4]| {
            assert_eq!(philox4x32(counter.map(|word| [word; LANES]), key), expected.map(|word| [word; LANES]));
        };
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        check(pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    const DRAW: Draw = Draw { seed: 5, step: 1, number: 2, threshold: 1 << 30, scale: 1.0 };

    /// Ones through dropout, for a part of a tensor.
    fn kept(draw: Draw, local: &[usize], global: &[usize], first: &[u64]) -> Vec<f32> {
        let mut y = vec![1.0; local.iter().product()];
        dropout(draw, &Runs::new(local, global, first), None, &mut y, Threads::ONE);
        y
    }

    #[test]
    fn parts_are_kept_as_in_the_whole() {
        let shape = [6, 5, 7];
        let whole = kept(DRAW, &shape, &shape, &[0; 3]);
        for (local, first) in
            [([3, 5, 7], [3, 0, 0]), ([6, 1, 7], [0, 4, 0]), ([2, 5, 3], [1, 0, 2]), ([1, 1, 1], [5, 4, 6])]
        {
            let at = |i: usize| {
                let index = [i / (local[1] * local[2]), i / local[2] % local[1], i % local[2]];
                (0..3).fold(0, |at, d| at * shape[d] + first[d] + index[d])
            };
            let expected: Vec<f32> = (0..local.iter().product()).map(|i| whole[at(i)]).collect();
            let first = first.map(|f| f as u64);
            assert_eq!(kept(DRAW, &local, &shape, &first), expected, "{local:?} at {first:?}");
        }
    }

    /// Of n elements n (1 - p) are kept, give or take five standard deviations; of two draws (1 - p)² n are kept in both.
    #[test]
    fn draws_are_as_often_as_the_probability_says_and_independent() {
        let n = 100_000;
        let sum = |y: &[f32]| y.iter().map(|&v| f64::from(v)).sum::<f64>();
        let is_near = |found: f64, q: f64| (found - n as f64 * q).abs() < 5.0 * (n as f64 * q * (1.0 - q)).sqrt();
        let draws = [
            DRAW,
            Draw { seed: 6, ..DRAW },
            Draw { seed: 5 + (1 << 32), ..DRAW },
            Draw { step: 2, ..DRAW },
            Draw { number: 3, ..DRAW },
        ];
        let all: Vec<Vec<f32>> = draws.iter().map(|&draw| kept(draw, &[n], &[n], &[0])).collect();
        for (i, draw) in all.iter().enumerate() {
            assert!(is_near(sum(draw), 0.75), "{i}: {}", sum(draw));
            for (j, other) in all[..i].iter().enumerate() {
                let both: Vec<f32> = draw.iter().zip(other).map(|(a, b)| a * b).collect();
                assert!(is_near(sum(&both), 0.75 * 0.75), "{i} and {j}: {}", sum(&both));
            }
        }
    }

    #[test]
    fn thresholds_at_the_ends_keep_all_or_nothing() {
        let y = kept(Draw { threshold: 0, scale: 3.0, ..DRAW }, &[100], &[100], &[0]);
        assert!(y.iter().all(|&v| v == 3.0));
        let y = kept(Draw { threshold: 1 << 32, ..DRAW }, &[100], &[100], &[0]);
        assert!(y.iter().all(|&v| v == 0.0));
    }
}
