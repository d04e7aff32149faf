//! Sums of parts of bf16 that came from other ranks.

use super::super::threads::Threads;
use galvatron_ir::types::bf16;

/// Elements that are summed in f32 at once.
const BLOCK: usize = 1024;

/// Elements that a task sums.
const GRAIN: usize = 16 * BLOCK;

/// Adds equal parts in f32, in their order, and rounds the sum once. parts [n_parts, n]  to [n]
pub fn sum_parts(parts: &[u16], to: &mut [u16], threads: Threads) {
    let n = to.len();
    threads.for_each_chunk_mut(to, GRAIN, |task, chunk| {
        for (block, to) in chunk.chunks_mut(BLOCK).enumerate() {
            let (first, len, mut sums) = (task * GRAIN + block * BLOCK, to.len(), [0.0f32; BLOCK]);
            let sums = &mut sums[..len];
            for (i, start) in (first..parts.len()).step_by(n).enumerate() {
                let part = &parts[start..start + len];
                match i {
                    0 => sums.iter_mut().zip(part).for_each(|(sum, &v)| *sum = bf16::widen(v)),
                    _ => sums.iter_mut().zip(part).for_each(|(sum, &v)| *sum += bf16::widen(v)),
                }
            }
            to.iter_mut().zip(&*sums).for_each(|(to, &sum)| *to = bf16::round(sum));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_rounded_once() {
        // 256 + 0.75 + 0.75 is 258 after one rounding, and 256 if each sum is rounded.
        let (n, values) = (20_000, [256.0, 0.75, 0.75]);
        let parts: Vec<u16> = values.iter().flat_map(|&v| vec![bf16::round(v); n]).collect();
        let mut to = vec![0; n];
        sum_parts(&parts, &mut to, Threads::new(2));
        assert!(to.iter().all(|&v| bf16::widen(v) == 258.0), "{}", bf16::widen(to[0]));
    }
}
