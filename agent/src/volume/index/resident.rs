//! What the files of the tree take of this disk, added up over the records of what was [`Seen`] of them, so that it is known
//! without looking at the tree. It must not know why it changes.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fjall::Keyspace;

use super::{Changes, Index, Result, Seen, damaged, number_in, seen_key};

/// Records that are counted in one step.
const STEP: usize = 2_000;
/// What st_blocks counts in; see stat(2).
const BLOCK: i64 = 512;
const SEEN: u8 = b's';

/// See the module.
#[derive(Default)]
pub(super) struct Resident {
    blocks: AtomicI64,
    counted: AtomicBool,
    /// What has a lower key than this is counted.
    upto: Mutex<Vec<u8>>,
}

impl Resident {
    /// Takes changes into account that are about to be made: the guard is to be held until they are.
    pub(super) fn change(
        &self,
        records: &Keyspace,
        changes: &Changes,
    ) -> Result<Option<MutexGuard<'_, Vec<u8>>>> {
        let mut changed = changes.range(vec![SEEN]..vec![SEEN + 1]).peekable();
        if changed.peek().is_none() {
            return Ok(None);
        }
        let upto = self.upto();
        for (key, value) in changed.filter(|(key, _)| **key < *upto) {
            let before = records.get(key)?.map_or(Ok(0), |value| blocks_of(&value))?;
            let after = value.as_ref().map_or(Ok(0), |value| blocks_of(value))?;
            self.blocks.fetch_add(after - before, Ordering::Relaxed);
        }
        Ok(Some(upto))
    }

    fn step(&self, records: &Keyspace) -> Result<bool> {
        let mut upto = self.upto();
        let first = if upto.is_empty() { vec![SEEN] } else { upto.clone() };
        let mut sum = 0;
        let mut steps = 0;
        for pair in records.range(first..vec![SEEN + 1]).take(STEP) {
            let (key, value) = pair.into_inner()?;
            sum += blocks_of(&value)?;
            // The least key after it.
            *upto = [&key[..], &[0]].concat();
            steps += 1;
        }
        self.blocks.fetch_add(sum, Ordering::Relaxed);
        if steps < STEP {
            *upto = vec![SEEN + 1];
            self.counted.store(true, Ordering::Release);
        }
        Ok(steps < STEP)
    }

    fn upto(&self) -> MutexGuard<'_, Vec<u8>> {
        self.upto.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn blocks_of(seen: &[u8]) -> Result<i64> {
    let seen: Seen = postcard::from_bytes(seen).map_err(damaged)?;
    Ok(seen.blocks as i64)
}

impl Index {
    /// Counts some more of what files take of this disk; `true` once all are counted, and then [`Index::resident`] is right
    /// at any time.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn count_resident(&self) -> Result<bool> {
        if self.resident.counted.load(Ordering::Acquire) {
            Ok(true)
        } else {
            self.resident.step(&self.records)
        }
    }

    /// Bytes that the files of the tree take of this disk, as of the last look at each; of those that are counted.
    pub fn resident(&self) -> u64 {
        (self.resident.blocks.load(Ordering::Relaxed) * BLOCK).max(0) as u64
    }

    /// Bytes that a file takes of this disk, as of the last look at it; 0 where it is not in the tree.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn taken(&self, inode: u64) -> Result<u64> {
        Ok(self.seen(inode)?.map_or(0, |seen| seen.blocks.saturating_mul(BLOCK as u64)))
    }

    /// Up to `most` inodes of regular files with something on this disk, and the bytes that they take: the first ones with
    /// numbers from `first` on.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn resident_from(&self, first: u64, most: usize) -> Result<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        for pair in self.records.range(seen_key(first)..vec![SEEN + 1]) {
            let (key, value) = pair.into_inner()?;
            let bytes = blocks_of(&value)?.saturating_mul(BLOCK);
            let inode = number_in(SEEN, &key);
            if let Some(inode) = inode.filter(|_| bytes > 0) {
                found.push((inode, bytes as u64));
                if found.len() >= most {
                    break;
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::records::Time;
    use crate::volume::index::{Doubt, encode};
    use crate::volume::tree::FileId;

    fn set(index: &Index, inode: u64, blocks: Option<u64>) {
        let id = FileId { ino: inode, btime_ns: 0 };
        let (mtime, ctime) = (Time::default(), Time::default());
        let seen = |blocks| Seen { id, size: 9, mtime, ctime, doubt: Doubt::None, blocks };
        let value = blocks.map(|blocks| encode(&seen(blocks)).unwrap());
        index.apply_local(&Changes::from([(seen_key(inode), value)])).unwrap();
    }

    #[test]
    fn what_changes_while_it_is_counted_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        (0..3000).for_each(|inode| set(&index, inode, Some(8)));
        assert!(!index.count_resident().unwrap());
        set(&index, 5, Some(16));
        set(&index, 1999, None);
        set(&index, 2000, Some(16));
        set(&index, 2999, Some(0));
        assert!(index.count_resident().unwrap() && index.count_resident().unwrap());
        assert_eq!(index.resident(), 512 * (3000 * 8 + 8 - 8 + 8 - 8));
        set(&index, 7, Some(0));
        set(&index, 9999, Some(2));
        assert_eq!(index.resident(), 512 * (2999 * 8 + 2));
        assert_eq!(index.resident_from(6, 2).unwrap(), [(6, 4096), (8, 4096)]);
        assert_eq!(index.resident_from(2999, 9).unwrap(), [(9999, 1024)]);
        assert_eq!((index.taken(9999).unwrap(), index.taken(9998).unwrap()), (1024, 0));
    }
}
