//! Files that are to go and whose times may hide a change ([`Doubt::Racy`](crate::volume::index::Doubt)): a cut looks at what is in
//! them, soon, and then they may. It must not know why they are doubted.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::Residency;
use crate::volume::status::Mutex;

/// Between two such looks. Each reads what is here of a file; one that somebody holds open for writing is in doubt again whenever
/// anything of it comes.
const PAUSE: Duration = Duration::from_secs(2);
/// Files that are remembered at most: the others are offered again.
const MOST: usize = 4096;

/// By kernel inode number. See the module.
#[derive(Default)]
pub struct Doubted(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    files: HashSet<u64>,
    looked: Option<Instant>,
}

impl Doubted {
    /// A file stays because of its doubt.
    pub fn add(&self, ino: u64) {
        let mut inner = self.0.lock();
        if inner.files.len() < MOST {
            inner.files.insert(ino);
        }
    }

    /// Those that are to be looked at now.
    fn take(&self, now: Instant) -> HashSet<u64> {
        let mut inner = self.0.lock();
        if inner.files.is_empty() || inner.looked.is_some_and(|looked| now < looked + PAUSE) {
            return HashSet::new();
        }
        inner.looked = Some(now);
        std::mem::take(&mut inner.files)
    }
}

impl Residency {
    /// Has the next cut look at what is in doubt. Nobody may hold the sink, nor wait at the gate for it.
    pub(super) fn look_at_doubted(&self) {
        let files = self.cache.doubted.take(Instant::now());
        if files.is_empty() {
            return;
        }
        self.shared.count("looks_for_eviction", files.len() as u64);
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        sink.since.get_or_insert_with(Instant::now);
        for ino in files {
            // What was told of it, if anything, stays.
            sink.add_inode(ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_looked_at_together_and_not_all_the_time() {
        let (doubted, now) = (Doubted::default(), Instant::now());
        assert!(doubted.take(now).is_empty());
        doubted.add(5);
        doubted.add(6);
        assert_eq!(doubted.take(now), HashSet::from([5, 6]));
        doubted.add(5);
        assert!(doubted.take(now + PAUSE / 2).is_empty());
        assert_eq!(doubted.take(now + PAUSE), HashSet::from([5]));
        assert!(doubted.take(now + 3 * PAUSE).is_empty());
    }
}
