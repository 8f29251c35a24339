//! Brings large ranges of a file: by spans that several threads fetch, check and write side by side, so that the backend's
//! distance and this machine's work overlap. It must not know how a span is brought.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Residency;
use super::file::RUN;
use super::hydrate::Job;
use crate::volume::VolumeError;
use crate::volume::index::Pieces;

type Result<T> = std::result::Result<T, VolumeError>;

/// Pieces that are fetched together: a block, and so mostly one read. What a thread has in memory.
const SPAN: u64 = RUN;
/// Threads that bring one large range: 48 MiB on their way hide 20 ms at 2 GB/s. And those into a small cache.
const SIDE_BY_SIDE: usize = 12;
const SIDE_BY_SIDE_SMALL: usize = 4;
/// Threads that help others at once. So all large ranges together have 96 MiB in memory, and 4 MiB more for each.
const HELPERS: usize = 24;
/// What is no small cache, in bytes.
const ROOMY: u64 = 512 << 20;

/// How many threads help those that bring large ranges.
#[derive(Default)]
pub struct Helpers(AtomicUsize);

/// Threads that may be started.
struct Lent<'h> {
    helpers: &'h Helpers,
    count: usize,
}

impl Helpers {
    /// `wanted` of them, or what is left of [`HELPERS`].
    fn lend(&self, wanted: usize) -> Lent<'_> {
        let mut count = 0;
        // It always has an answer.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |lent| {
            count = wanted.min(HELPERS.saturating_sub(lent));
            Some(lent + count)
        });
        Lent { helpers: self, count }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.helpers.0.fetch_sub(self.count, Ordering::AcqRel);
    }
}

impl Residency {
    /// Brings absent pieces of one file, however many.
    ///
    /// # Errors
    /// As [`Residency::hydrate`].
    pub fn bring_pieces(&self, inode: u64, pieces: &Pieces, urgent: bool) -> Result<()> {
        let mut spans = Vec::new();
        for range in pieces.iter() {
            let mut at = range.start;
            while at < range.end {
                // On the borders of blocks, where chunks begin.
                let next = ((at / SPAN + 1) * SPAN).min(range.end);
                spans.push(Job { inode, pieces: Pieces::of(at..next) });
                at = next;
            }
        }
        if let [span] = spans.as_slice() {
            return self.bring(std::slice::from_ref(span), urgent);
        }
        let next = AtomicUsize::new(0);
        let run = || {
            while let Some(span) = spans.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.bring(std::slice::from_ref(span), urgent)?;
            }
            Ok(())
        };
        // This thread, and those that help it. Where none can be started it is slower.
        let most = if self.is_roomy() { SIDE_BY_SIDE } else { SIDE_BY_SIDE_SMALL };
        let helpers = self.helpers.lend(most.min(spans.len()).saturating_sub(1));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..helpers.count)
                .map_while(|_| std::thread::Builder::new().name("bring".into()).spawn_scoped(scope, run).ok())
                .collect();
            let own = run();
            // A thread that panicked has taken the process with it.
            threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(()))).fold(own, Result::and)
        })
    }

    /// Whether the cache is so large that what is on its way does not count.
    pub(super) fn is_roomy(&self) -> bool {
        self.options.cache_size.is_none_or(|size| size >= ROOMY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_ranges_share_their_helpers() {
        let helpers = Helpers::default();
        let (all, none) = (helpers.lend(HELPERS + 1), helpers.lend(1));
        assert_eq!((all.count, none.count), (HELPERS, 0));
        drop(all);
        assert_eq!(helpers.lend(3).count, 3);
    }
}
