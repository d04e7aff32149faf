//! The threads of the search. What it finds does not depend on how many there are: each looks at some of the items, and the results stand in
//! the items' order.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{available_parallelism, scope};

/// As many as were asked for; 0 stands for as many as the machine has cores.
static N_THREADS: AtomicUsize = AtomicUsize::new(0);

/// Sets how many threads a search of this process may use.
pub fn set_threads(n: NonZero<usize>) {
    N_THREADS.store(n.get(), Ordering::Relaxed);
}

fn n_threads() -> usize {
    match N_THREADS.load(Ordering::Relaxed) {
        0 => available_parallelism().map_or(1, NonZero::get),
        n => n,
    }
}

/// What `of` makes of each item, in their order, by all threads.
pub(super) fn map<T: Sync, R: Send>(items: &[T], of: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let n_threads = n_threads().min(items.len());
    if n_threads < 2 {
        return items.iter().map(of).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else { return done };
            done.push((i, of(item)));
        }
    };
    let mut all = scope(|scope| {
        let others: Vec<_> = (1..n_threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            all.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        all
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..1000).collect();
        set_threads(NonZero::new(7).expect("7 is not 0"));
        assert_eq!(map(&items, |i| i * i), items.iter().map(|i| i * i).collect::<Vec<_>>());
        assert!(map(&[], |i: &u64| *i).is_empty());
    }

    #[test]
    #[should_panic(expected = "13 is unlucky")]
    fn a_panic_is_passed_on() {
        set_threads(NonZero::new(2).expect("2 is not 0"));
        map(&(0..100).collect::<Vec<u64>>(), |&i| assert!(i != 13, "13 is unlucky"));
    }
}
