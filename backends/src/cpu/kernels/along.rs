//! Elements along one axis by index: read, written over others, or added to them. Any element type.

use super::super::threads::Threads;
use super::GRAIN;

/// A tensor seen from the indexed axis: what is before it, how many elements it and the indices have, what is after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Along {
    /// Elements of the axes before.
    pub outer: usize,
    /// Extent of the indexed axis.
    pub n: usize,
    /// Extent of that axis in the indices.
    pub k: usize,
    /// Elements of the axes after.
    pub inner: usize,
}

impl Along {
    /// The extents of x and of its indices along axis `dim`.
    pub fn new(shape: &[usize], ids: &[usize], dim: usize) -> Along {
        let outer = shape[..dim].iter().product();
        Along { outer, n: shape[dim], k: ids[dim], inner: shape[dim + 1..].iter().product() }
    }

    /// Calls `f(place, position)` for the indices of block `outer`, in their order: the place in x's block and the position
    /// among the block's indices.
    fn for_each(&self, ids: &[i64], mut f: impl FnMut(usize, usize)) {
        for row in 0..self.k {
            for column in 0..self.inner {
                let position = row * self.inner + column;
                f(ids[position] as usize * self.inner + column, position);
            }
        }
    }

    fn check(&self, ids: &[i64]) -> Result<(), String> {
        match ids.iter().position(|&id| id < 0 || id >= self.n as i64) {
            None => Ok(()),
            Some(at) => Err(format!("index {} at position {at} is not one of the {} places", ids[at], self.n)),
        }
    }

    /// Blocks of one task.
    fn per_task(&self) -> usize {
        GRAIN.div_ceil((self.k.max(self.n) * self.inner).max(1))
    }
}

/// out[.., i, ..] = x[.., ids[.., i, ..], ..].   x: [outer, n, inner]   ids, out: [outer, k, inner]
///
/// # Errors
/// An index outside; then `out` is untouched.
pub fn take<T: Copy + Send + Sync>(
    along: Along,
    x: &[T],
    ids: &[i64],
    out: &mut [T],
    threads: Threads,
) -> Result<(), String> {
    along.check(ids)?;
    let (from, to, per_task) = (along.n * along.inner, along.k * along.inner, along.per_task());
    threads.for_each_chunk_mut(out, per_task * to, |task, out| {
        for (i, out) in out.chunks_exact_mut(to.max(1)).enumerate() {
            let block = task * per_task + i;
            let (x, ids) = (&x[block * from..(block + 1) * from], &ids[block * to..(block + 1) * to]);
            along.for_each(ids, |place, position| out[position] = x[place]);
        }
    });
    Ok(())
}

/// out[.., ids[.., i, ..], ..] = join(what is there, y[.., i, ..]), in the order of i.   ids, y: [outer, k, inner]
/// out: [outer, n, inner]
///
/// # Errors
/// An index outside; then `out` is untouched.
pub fn put<T: Copy + Send + Sync>(
    along: Along,
    ids: &[i64],
    y: &[T],
    out: &mut [T],
    join: impl Fn(T, T) -> T + Send + Sync,
    threads: Threads,
) -> Result<(), String> {
    along.check(ids)?;
    let (to, from, per_task) = (along.n * along.inner, along.k * along.inner, along.per_task());
    threads.for_each_chunk_mut(out, per_task * to, |task, out| {
        for (i, out) in out.chunks_exact_mut(to.max(1)).enumerate() {
            let at = (task * per_task + i) * from;
            let (ids, y) = (&ids[at..at + from], &y[at..at + from]);
            along.for_each(ids, |place, position| out[place] = join(out[place], y[position]));
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_and_written_by_index() {
        let along = Along::new(&[2, 3], &[2, 2], 1);
        let (x, ids) = ([1, 2, 3, 4, 5, 6], [2, 0, 1, 1]);
        let mut out = [0; 4];
        take(along, &x, &ids, &mut out, Threads::ONE).unwrap();
        assert_eq!(out, [3, 1, 5, 5]);
        let (mut last, mut sum) = (x, x);
        put(along, &ids, &[10, 20, 30, 40], &mut last, |_, y| y, Threads::ONE).unwrap();
        put(along, &ids, &[10, 20, 30, 40], &mut sum, |x, y| x + y, Threads::ONE).unwrap();
        assert_eq!((last, sum), ([20, 2, 10, 4, 40, 6], [21, 2, 13, 4, 75, 6]));
    }

    #[test]
    fn axes_after_the_indexed_one_have_indices_of_their_own() {
        let along = Along::new(&[2, 2], &[1, 2], 0);
        let mut out = [0; 2];
        take(along, &[1, 2, 3, 4], &[1, 0], &mut out, Threads::ONE).unwrap();
        assert_eq!(out, [3, 2]);
    }

    #[test]
    fn an_index_outside_is_a_fault() {
        let along = Along::new(&[3], &[2], 0);
        let fault = take(along, &[1, 2, 3], &[0, 3], &mut [0; 2], Threads::ONE).unwrap_err();
        assert_eq!(fault, "index 3 at position 1 is not one of the 3 places");
        assert!(put(along, &[-1, 0], &[0; 2], &mut [1, 2, 3], |_, y| y, Threads::ONE).is_err());
    }
}
