//! What goes next when the cache is full. Two queues: what has come once is *fresh*, what was wanted again is *proven*, and
//! the fresh go first, so that reading a large file once throws nothing out but itself. What went is remembered for a
//! while (*ghosts*): who comes back was wanted after all, and is proven from then on. (2Q, Johnson and Shasha 1994, with the
//! second chance of CLOCK.) It must not know files: whether something was read without anybody asking is found out by who
//! asks for the next one, and told by the [`Verdict`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

/// A run of pieces of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Run {
    /// Volume inode.
    pub inode: u64,
    /// Which of the file's runs.
    pub run: u64,
}

/// What became of a run that was offered by [`Policy::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its bytes are gone from this disk.
    Evicted,
    /// There is nothing of it.
    Nothing,
    /// It may have been read since it came; whether it really was shows when it is offered again.
    Tried,
    /// It was read since it was offered last.
    Used,
    /// It cannot go now.
    Busy,
}

/// A run that may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which.
    pub run: Run,
    /// It was offered before, and [`Verdict::Tried`].
    pub tried: bool,
    /// Bytes of it that are here, about.
    pub bytes: u64,
}

/// Of the bytes that are known the fresh may keep one in so many before the proven are looked at.
const FRESH_SHARE: u64 = 5;
/// Who asks for a run so soon after it has come reads it for the first time, in several steps. Seconds.
const SAME_USE: u32 = 5;

struct Entry {
    proven: bool,
    used: bool,
    tried: bool,
    bytes: u64,
    /// When it came, in seconds.
    since: u32,
    /// Tells its place in a queue from one that it has left.
    place: u32,
}

/// See the module. Memory: some 100 bytes for each of at most `most` runs, 16 for each of as many ghosts.
pub struct Policy {
    most: usize,
    known: HashMap<Run, Entry>,
    fresh: Queue,
    proven: Queue,
    ghosts: Ghosts,
    places: u32,
}

#[derive(Default)]
struct Queue {
    runs: VecDeque<(Run, u32)>,
    bytes: u64,
}

impl Policy {
    /// A policy that knows at most `most` runs; the ones beyond are forgotten, coldest first, and may be told of again by
    /// [`Policy::found`].
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            known: HashMap::new(),
            fresh: Queue::default(),
            proven: Queue::default(),
            ghosts: Ghosts::new(most),
            places: 0,
        }
    }

    /// Runs that are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Somebody asked for a run at second `now`, of which at least `bytes` are here or just come.
    pub fn used(&mut self, run: Run, bytes: u64, now: u32) {
        if let Some(entry) = self.known.get_mut(&run) {
            entry.used |= now.saturating_sub(entry.since) >= SAME_USE;
            let more = bytes.saturating_sub(entry.bytes);
            entry.bytes += more;
            let queue = if entry.proven { &mut self.proven } else { &mut self.fresh };
            queue.bytes = queue.bytes.saturating_add(more);
            return;
        }
        let proven = self.ghosts.take(run);
        self.insert(run, Entry { proven, used: false, tried: false, bytes, since: now, place: 0 }, false);
    }

    /// A run of which `bytes` are on this disk, and nobody knows when it was used last: it goes before all that is known,
    /// unless it is found to be used. Nothing where it is known.
    pub fn found(&mut self, run: Run, bytes: u64) {
        if self.known.len() < self.most && !self.known.contains_key(&run) {
            self.insert(
                run,
                Entry { proven: false, used: false, tried: false, bytes, since: 0, place: 0 },
                true,
            );
        }
    }

    /// A run is gone for another reason: its file was cut or removed.
    pub fn forget(&mut self, run: Run) {
        if let Some(entry) = self.known.remove(&run) {
            let queue = if entry.proven { &mut self.proven } else { &mut self.fresh };
            queue.bytes = queue.bytes.saturating_sub(entry.bytes);
        }
    }

    /// The run that should go next: it leaves its queue until [`Policy::judge`] is told what became of it. `None` where
    /// nothing is known that has not been used lately.
    pub fn next(&mut self) -> Option<Offer> {
        loop {
            let total = self.fresh.bytes.saturating_add(self.proven.bytes);
            let fresh_first = self.fresh.bytes > total / FRESH_SHARE;
            let (first, second) = if fresh_first {
                (&mut self.fresh, &mut self.proven)
            } else {
                (&mut self.proven, &mut self.fresh)
            };
            let (run, place) = first.runs.pop_front().or_else(|| second.runs.pop_front())?;
            let Some(entry) = self.known.get_mut(&run).filter(|entry| entry.place == place) else { continue };
            if !std::mem::take(&mut entry.used) {
                return Some(Offer { run, tried: entry.tried, bytes: entry.bytes });
            }
            if !std::mem::replace(&mut entry.proven, true) {
                self.fresh.bytes = self.fresh.bytes.saturating_sub(entry.bytes);
                self.proven.bytes = self.proven.bytes.saturating_add(entry.bytes);
            }
            self.place(run, false);
        }
    }

    /// What became of an offered run, and the bytes of it that are on this disk now.
    pub fn judge(&mut self, run: Run, verdict: Verdict, bytes: u64) {
        let Some(mut entry) = self.known.remove(&run) else { return };
        let queue = if entry.proven { &mut self.proven } else { &mut self.fresh };
        queue.bytes = queue.bytes.saturating_sub(entry.bytes);
        match verdict {
            Verdict::Evicted => return self.ghosts.add(run),
            Verdict::Nothing => return,
            Verdict::Tried => entry.tried = true,
            Verdict::Used => (entry.proven, entry.tried) = (true, true),
            Verdict::Busy => {}
        }
        entry.bytes = bytes;
        let queue = if entry.proven { &mut self.proven } else { &mut self.fresh };
        queue.bytes = queue.bytes.saturating_add(bytes);
        self.known.insert(run, entry);
        self.place(run, false);
    }

    fn insert(&mut self, run: Run, entry: Entry, cold: bool) {
        while self.known.len() >= self.most {
            let Some((coldest, place)) = self.fresh.runs.pop_front().or_else(|| self.proven.runs.pop_front())
            else {
                // All are offered just now.
                return;
            };
            if self.known.get(&coldest).is_some_and(|entry| entry.place == place) {
                self.forget(coldest);
            }
        }
        let queue = if entry.proven { &mut self.proven } else { &mut self.fresh };
        queue.bytes = queue.bytes.saturating_add(entry.bytes);
        self.known.insert(run, entry);
        self.place(run, cold);
    }

    fn place(&mut self, run: Run, cold: bool) {
        self.places = self.places.wrapping_add(1);
        let Some(entry) = self.known.get_mut(&run) else { return };
        entry.place = self.places;
        let queue = if entry.proven { &mut self.proven } else { &mut self.fresh };
        if cold {
            queue.runs.push_front((run, self.places));
        } else {
            queue.runs.push_back((run, self.places));
        }
    }
}

/// Runs that went, by their hashes, in the order in which they did.
struct Ghosts {
    most: usize,
    order: VecDeque<u64>,
    known: HashSet<u64>,
    hasher: RandomState,
}

impl Ghosts {
    fn new(most: usize) -> Self {
        Self { most, order: VecDeque::new(), known: HashSet::new(), hasher: RandomState::new() }
    }

    fn add(&mut self, run: Run) {
        let hash = self.hasher.hash_one(run);
        if self.known.insert(hash) {
            self.order.push_back(hash);
        }
        while self.order.len() > self.most {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    /// Whether a run is among them. It is none any more.
    fn take(&mut self, run: Run) -> bool {
        // Its place in the order stays, and is worth nothing.
        self.known.remove(&self.hasher.hash_one(run))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1 << 20;

    fn run(inode: u64) -> Run {
        Run { inode, run: 0 }
    }

    /// A cache of 1 MiB runs over the policy.
    struct Cache {
        policy: Policy,
        here: BTreeMap<Run, u64>,
        now: u32,
    }

    impl Cache {
        fn new() -> Self {
            Self { policy: Policy::new(1000), here: BTreeMap::new(), now: 0 }
        }

        fn want(&mut self, inodes: std::ops::Range<u64>) {
            for inode in inodes {
                self.now += SAME_USE;
                self.policy.used(run(inode), MB, self.now);
                self.here.insert(run(inode), MB);
            }
        }

        /// Evicts what is offered until so many are left; `read` says what was read since it was offered last.
        fn shrink(&mut self, most: usize, mut read: impl FnMut(Run) -> bool) {
            while self.here.len() > most {
                let offer = self.policy.next().unwrap();
                let verdict = match (read(offer.run), offer.tried) {
                    (false, _) => Verdict::Evicted,
                    (true, false) => Verdict::Tried,
                    (true, true) => Verdict::Used,
                };
                if verdict == Verdict::Evicted {
                    self.here.remove(&offer.run);
                }
                self.policy.judge(offer.run, verdict, self.here.get(&offer.run).copied().unwrap_or(0));
            }
        }

        fn left(&self, inodes: std::ops::Range<u64>) -> usize {
            self.here.keys().filter(|run| inodes.contains(&run.inode)).count()
        }
    }

    #[test]
    fn a_scan_throws_out_nothing_but_itself() {
        let mut cache = Cache::new();
        // A working set that was wanted twice.
        cache.want(0..50);
        cache.want(0..50);
        for inode in 1000..1400 {
            cache.want(inode..inode + 1);
            cache.shrink(80, |_| false);
        }
        assert_eq!(cache.left(0..50), 50, "the working set outlives a scan");
    }

    #[test]
    fn one_read_in_several_steps_is_one_use() {
        let mut cache = Cache::new();
        cache.want(0..10);
        cache.want(0..10);
        for inode in 1000..1040 {
            cache.want(inode..inode + 1);
            cache.policy.used(run(inode), MB, cache.now + SAME_USE - 1);
            cache.shrink(15, |_| false);
        }
        assert_eq!(cache.left(0..10), 10);
    }

    #[test]
    fn what_comes_back_soon_is_kept_longer() {
        let mut cache = Cache::new();
        cache.want(0..40);
        cache.shrink(20, |_| false);
        // One of those that went is asked for again.
        cache.want(3..4);
        for inode in 100..200 {
            cache.want(inode..inode + 1);
            cache.shrink(21, |_| false);
        }
        assert_eq!(cache.left(3..4), 1);
    }

    #[test]
    fn what_is_read_without_asking_is_kept() {
        let mut cache = Cache::new();
        cache.want(0..40);
        for inode in 100..300 {
            cache.want(inode..inode + 1);
            cache.shrink(40, |run| run.inode == 7);
        }
        assert_eq!((cache.left(7..8), cache.left(0..40)), (1, 1));
    }

    #[test]
    fn what_was_found_on_the_disk_goes_first() {
        let mut policy = Policy::new(10);
        policy.used(run(1), MB, 0);
        policy.found(run(2), MB);
        policy.found(run(1), MB);
        assert_eq!(policy.next().unwrap().run, run(2));
        assert_eq!(policy.len(), 2);
    }

    #[test]
    fn the_oldest_is_forgotten_where_there_is_no_room() {
        let mut policy = Policy::new(3);
        (0..5).for_each(|inode| policy.used(run(inode), MB, 0));
        policy.found(run(9), MB);
        assert_eq!(policy.len(), 3);
        let order: Vec<_> = std::iter::from_fn(|| policy.next().map(|offer| offer.run.inode)).collect();
        assert_eq!(order, [2, 3, 4]);
    }

    proptest! {
        /// Against a set: what is known is offered once until it is judged, nothing else is, and bytes add up.
        #[test]
        fn all_that_is_known_is_offered(steps in prop::collection::vec((0u8..7, 0u64..12, 1u64..5), 1..200)) {
            let mut policy = Policy::new(8);
            let mut model: BTreeMap<Run, u64> = BTreeMap::new();
            let mut offered: Vec<Run> = Vec::new();
            for (now, (step, inode, bytes)) in steps.into_iter().enumerate() {
                let run = run(inode);
                match step {
                    0..=2 if model.len() < 8 || model.contains_key(&run) => {
                        policy.used(run, bytes, now as u32);
                        let known = model.entry(run).or_default();
                        *known = bytes.max(*known);
                    }
                    3 => {
                        policy.forget(run);
                        model.remove(&run);
                        offered.retain(|one| *one != run);
                    }
                    4 => {
                        if let Some(offer) = policy.next() {
                            prop_assert!(model.contains_key(&offer.run) && !offered.contains(&offer.run));
                            offered.push(offer.run);
                        } else {
                            prop_assert!(model.keys().all(|run| offered.contains(run)));
                        }
                    }
                    5 if !offered.is_empty() => {
                        let run = offered.swap_remove(inode as usize % offered.len());
                        policy.judge(run, Verdict::Evicted, 0);
                        model.remove(&run);
                    }
                    6 if !offered.is_empty() => {
                        let run = offered.swap_remove(inode as usize % offered.len());
                        let verdict = [Verdict::Tried, Verdict::Used, Verdict::Busy][bytes as usize % 3];
                        policy.judge(run, verdict, bytes);
                        model.insert(run, bytes);
                    }
                    _ => {}
                }
                prop_assert_eq!(policy.len(), model.len());
                prop_assert_eq!(policy.fresh.bytes + policy.proven.bytes, model.values().sum::<u64>());
            }
            while let Some(offer) = policy.next() {
                offered.push(offer.run);
            }
            offered.sort();
            prop_assert_eq!(offered, model.keys().copied().collect::<Vec<_>>());
        }
    }
}
