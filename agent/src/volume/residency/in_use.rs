//! Files that could not go when they were offered, because somebody uses them where no hook sees it: by them the tree may be larger
//! than the cache. It must not know how that is found out.

use std::collections::HashSet;

use super::Residency;
use crate::volume::status::Mutex;

/// Files that are looked at in one round for whether that has ended.
const LOOKS: usize = 64;

/// By volume inode. See the module.
#[derive(Default)]
pub struct InUse(Mutex<Files>);

#[derive(Default)]
struct Files {
    used: HashSet<u64>,
    /// They were until now: what the tree is too large by is about to go.
    leaving: HashSet<u64>,
}

impl InUse {
    /// A file was offered; whether it is used.
    pub fn judge(&self, inode: u64, used: bool) {
        let Files { used: files, leaving } = &mut *self.0.lock();
        if used {
            files.insert(inode);
            leaving.remove(&inode);
        } else if files.remove(&inode) {
            leaving.insert(inode);
        }
    }

    /// What is to go has gone, or cannot.
    pub fn settle(&self) {
        self.0.lock().leaving.clear();
    }

    fn some(&self) -> Vec<u64> {
        self.0.lock().used.iter().copied().take(LOOKS).collect()
    }

    fn all(&self) -> Vec<u64> {
        let files = self.0.lock();
        files.used.union(&files.leaving).copied().collect()
    }
}

impl Residency {
    /// What such files take of this disk, in bytes.
    pub(super) fn bytes_in_use(&self) -> u64 {
        // One that cannot be read is told of elsewhere.
        self.cache.in_use.all().into_iter().map(|inode| self.index.taken(inode).unwrap_or(0)).sum()
    }

    /// Forgets those of them that nobody has open any more.
    pub(super) fn look_who_is_in_use(&self) {
        for inode in self.cache.in_use.some() {
            let open = match self.at_its_place(inode) {
                Ok(Some(found)) => self.is_open(&found).unwrap_or(true),
                Ok(None) => false,
                Err(_) => true,
            };
            if !open {
                self.cache.in_use.judge(inode, false);
            }
        }
        self.cache.in_use.settle();
    }

    /// Whether a file is pinned and somebody has it open: then nothing more need be found out of it.
    pub(super) fn is_held(&self, inode: u64) -> bool {
        let pinned = self.files.lock(inode).peek().is_some_and(|state| state.pinned.is_some());
        // Where that cannot be told, taking it away finds out.
        pinned && matches!(self.at_its_place(inode), Ok(Some(found)) if self.is_open(&found).unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_go_counts_until_it_had_the_time_to_go() {
        let files = InUse::default();
        files.judge(1, true);
        files.judge(2, true);
        files.judge(1, false);
        files.judge(3, false);
        assert_eq!((files.some(), files.all().len()), (vec![2], 2), "what was never used does not count");
        files.settle();
        assert_eq!(files.all(), [2]);
    }
}
