//! Kernel numbers that the agent has given to inodes of the volume while a cut was made. A cut takes over what its look has
//! seen some time ago; by then what had a number may be gone, and the number given out again, to what was just brought. It
//! must not know what is brought, nor why.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Changes, Index, Kernel, Result, Seen, damaged, kernel_key, number_in, seen_key};

const KERNEL: u8 = b'k';

/// By kernel number the volume inode; `None` while no cut is made.
type Given = Option<HashMap<u64, u64>>;

/// See the module.
#[derive(Default)]
pub(super) struct Numbers(Mutex<Given>);

/// A cut is made, until this is dropped.
pub struct Cutting<'i>(&'i Numbers);

impl Drop for Cutting<'_> {
    fn drop(&mut self) {
        *self.0.given() = None;
    }
}

impl Numbers {
    fn given(&self) -> MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the numbers that stand in changes of the agent's own, which are about to be made: the guard is to be held until
    /// they are.
    pub(super) fn note(&self, changes: &Changes) -> Result<Option<MutexGuard<'_, Given>>> {
        let mut numbers = numbers(changes).peekable();
        if numbers.peek().is_none() {
            return Ok(None);
        }
        let mut given = self.given();
        if let Some(given) = given.as_mut() {
            for (ino, value) in numbers {
                // Nothing of the agent's own takes a number away without giving it to another inode.
                given.extend(kernel(value)?.map(|kernel| (ino, kernel.inode)));
            }
        }
        Ok(Some(given))
    }

    /// The changes of a cut that still hold: not those which would take a number from an inode that has got it since, and that
    /// the cut knows no better of. The guard is to be held until they are made.
    pub(super) fn still<'c>(
        &self,
        changes: &'c Changes,
    ) -> Result<(MutexGuard<'_, Given>, Cow<'c, Changes>)> {
        let given = self.given();
        let mut still = Cow::Borrowed(changes);
        for (ino, value) in numbers(changes) {
            let Some(inode) = given.as_ref().and_then(|given| given.get(&ino)) else { continue };
            let is_its = kernel(value)?.is_some_and(|kernel| kernel.inode == *inode);
            // Brought, and gone or made again before the cut looked.
            let has_left = match changes.get(&seen_key(*inode)) {
                Some(None) => true,
                Some(Some(seen)) => postcard::from_bytes::<Seen>(seen).map_err(damaged)?.id.ino != ino,
                None => false,
            };
            if !is_its && !has_left {
                still.to_mut().remove(&kernel_key(ino));
            }
        }
        Ok((given, still))
    }
}

/// What changes of who has which kernel number.
fn numbers(changes: &Changes) -> impl Iterator<Item = (u64, Option<&[u8]>)> {
    let keys = changes.range(vec![KERNEL]..vec![KERNEL + 1]);
    keys.filter_map(|(key, value)| Some((number_in(KERNEL, key)?, value.as_deref())))
}

/// The record in the value of such a key.
fn kernel(value: Option<&[u8]>) -> Result<Option<Kernel>> {
    value.map(|value| postcard::from_bytes(value).map_err(damaged)).transpose()
}

impl Index {
    /// Before a cut looks at anything: which inodes the agent gives numbers to is remembered until the returned value is
    /// dropped, which is to be after the cut was taken over.
    pub fn cutting(&self) -> Cutting<'_> {
        *self.numbers.given() = Some(HashMap::new());
        Cutting(&self.numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Doubt, set_seen};
    use super::*;
    use crate::meta::Head;
    use crate::meta::records::Time;
    use crate::volume::index::Standing;
    use crate::volume::index::tests::base;
    use crate::volume::tree::FileId;

    const INO: u64 = 77;

    /// Volume inode `inode` with a kernel inode of that number, born at `btime_ns`.
    fn seen(inode: u64, ino: u64, btime_ns: i64) -> Changes {
        let id = FileId { ino, btime_ns };
        let (mtime, ctime) = (Time::default(), Time::default());
        let mut changes = Changes::new();
        set_seen(&mut changes, inode, &Seen { id, size: 9, mtime, ctime, doubt: Doubt::None, blocks: 0 })
            .unwrap();
        changes
    }

    /// What a cut changes where it finds that volume inode `inode` is gone.
    fn gone(inode: u64, ino: u64) -> Changes {
        Changes::from([(seen_key(inode), None), (kernel_key(ino), None)])
    }

    fn owner(index: &Index) -> Option<u64> {
        index.kernel(INO).unwrap().map(|kernel| kernel.inode)
    }

    #[test]
    fn what_has_got_a_number_while_a_cut_was_made_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        for cut in [seen(5, INO, 1), gone(5, INO)] {
            for saved in [true, false] {
                index.apply_local(&seen(5, INO, 1)).unwrap();
                let cutting = index.cutting();
                index.apply_local(&seen(6, INO, 2)).unwrap();
                if saved {
                    index.apply(3, 33, &cut).unwrap();
                } else {
                    index.apply_seen(&cut).unwrap();
                }
                drop(cutting);
                assert_eq!(owner(&index), Some(6));
                assert_eq!(index.seen(5).unwrap().is_some(), cut.values().all(Option::is_some));
            }
        }
    }

    #[test]
    fn a_cut_that_knows_better_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        // Brought, removed and given out again while the cut looked.
        let cutting = index.cutting();
        index.apply_local(&seen(6, INO, 2)).unwrap();
        let mut cut = gone(6, INO);
        cut.extend(seen(7, INO, 3));
        index.apply(3, 33, &cut).unwrap();
        drop(cutting);
        assert_eq!(owner(&index), Some(7));
        // Before the cut began, or after it.
        index.apply_local(&seen(8, INO, 4)).unwrap();
        let cutting = index.cutting();
        index.apply(4, 44, &seen(9, INO, 5)).unwrap();
        drop(cutting);
        assert_eq!(owner(&index), Some(9));
        // Of its own inode.
        let cutting = index.cutting();
        index.apply_local(&seen(9, INO, 6)).unwrap();
        index.apply(5, 55, &gone(9, INO)).unwrap();
        drop(cutting);
        assert_eq!(owner(&index), None);
    }

    #[test]
    fn what_has_got_a_number_after_a_cut_keeps_it_when_that_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        index.set_base(&base()).unwrap();
        index.apply(1, 11, &seen(5, INO, 1)).unwrap();
        index.confirm(1, 11).unwrap();
        let head = Some(Head { seq: 1, nonce: 11, cut_at_ns: 0 });
        for (later, kept) in [(Changes::new(), 5), (seen(6, INO, 2), 6)] {
            index.apply(2, 22, &gone(5, INO)).unwrap();
            index.apply_local(&later).unwrap();
            assert_eq!(index.reconcile(7, head).unwrap(), Standing::Current);
            assert_eq!(owner(&index), Some(kept));
            assert!(index.seen(5).unwrap().is_some());
        }
    }
}
