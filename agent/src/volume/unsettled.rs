//! Of which inodes the backend may not have what is in the tree: those that the cut under way has taken up, and those of
//! commits that are not durable yet. What is still in the dirty set is unsettled as well, and not remembered here. It must
//! not know who asks.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use super::dirty::DirtySet;
use super::status::Mutex;

/// See the module.
#[derive(Default)]
pub struct Unsettled {
    inner: Mutex<Inner>,
    cuts: AtomicU64,
}

#[derive(Default)]
struct Inner {
    /// The cut under way looks at the whole tree.
    everywhere: bool,
    /// Kernel inode numbers that it has taken up.
    cutting: HashSet<u64>,
    /// Names and inodes that it was told of.
    entries: u64,
    /// Kernel inode numbers that the last cut could not look at.
    troubled: HashSet<u64>,
    /// Volume inodes of each commit on its way, with its number.
    commits: VecDeque<(u64, HashSet<u64>)>,
}

impl Unsettled {
    /// The cut under way takes this up: to be told before the gate opens again.
    pub fn taking(&self, work: &DirtySet) {
        let mut inner = self.inner.lock();
        inner.everywhere |= work.everywhere.is_some();
        inner.cutting.extend(work.inodes.keys());
    }

    /// The cut under way looks everywhere.
    pub fn taking_all(&self) {
        self.inner.lock().everywhere = true;
    }

    /// The cut is over: what it took is settled, or in a commit, or in the dirty set again, but for `troubled`.
    pub fn cut_ended(&self, troubled: HashSet<u64>) {
        let mut inner = self.inner.lock();
        inner.everywhere = false;
        inner.cutting.clear();
        inner.entries = 0;
        inner.troubled = troubled;
        self.cuts.fetch_add(1, Ordering::Release);
    }

    /// Commit `seq` is on its way: to be told before the index has it.
    pub fn commit(&self, seq: u64, inodes: HashSet<u64>) {
        self.inner.lock().commits.push_back((seq, inodes));
    }

    /// All commits up to `seq` are durable.
    pub fn durable(&self, seq: u64) {
        let mut inner = self.inner.lock();
        while inner.commits.front().is_some_and(|(first, _)| *first <= seq) {
            inner.commits.pop_front();
        }
    }

    /// The cut under way was told of so many names and inodes more.
    pub fn told(&self, entries: u64) {
        self.inner.lock().entries += entries;
    }

    /// Names and inodes that the cut under way was told of.
    pub fn entries(&self) -> u64 {
        self.inner.lock().entries
    }

    /// Cuts that have ended since the start.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    /// Whether the backend has what the last look at an inode saw, and no look is under way. By kernel inode number and
    /// volume inode; exact as long as the gate is closed.
    pub fn is_settled(&self, ino: u64, inode: u64) -> bool {
        let inner = self.inner.lock();
        !inner.everywhere
            && !inner.cutting.contains(&ino)
            && !inner.troubled.contains(&ino)
            && !inner.commits.iter().any(|(_, inodes)| inodes.contains(&inode))
    }

    /// Whether a cut that is under way was told of an inode, by kernel inode number.
    pub fn is_being_cut(&self, ino: u64) -> bool {
        self.inner.lock().cutting.contains(&ino)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_settled_when_its_commit_is_durable() {
        let unsettled = Unsettled::default();
        assert!(unsettled.is_settled(70, 7));
        let mut work = DirtySet::default();
        work.add_inode(70);
        unsettled.taking(&work);
        assert!(!unsettled.is_settled(70, 7) && unsettled.is_settled(80, 8));
        unsettled.commit(3, HashSet::from([7]));
        unsettled.cut_ended(HashSet::new());
        unsettled.commit(4, HashSet::from([8]));
        unsettled.durable(2);
        assert!(!unsettled.is_settled(70, 7));
        unsettled.durable(3);
        assert!(unsettled.is_settled(70, 7) && !unsettled.is_settled(80, 8));
        unsettled.taking_all();
        assert!(!unsettled.is_settled(70, 7));
        unsettled.cut_ended(HashSet::from([70]));
        assert!(!unsettled.is_settled(70, 7), "it could not be looked at");
        assert_eq!(unsettled.cuts(), 2);
    }
}
