//! The state of one file of which something may be absent, and the locks under which it changes: one for each inode, in
//! shards. Who holds an inode's lock may look at the file's times, at what was seen of it, and at what is absent, and knows
//! that the three belong together. It must not know how pieces come and go.

use std::collections::{BTreeMap, HashMap};
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use storeshim_protocol::residency::PIECE;

use super::pin::Pinned;
use crate::volume::VolumeError;
use crate::volume::dirty::{DirtySet, Names};
use crate::volume::index::{Index, Pieces};
use crate::volume::status::Mutex;

/// Locks; an inode has one of them.
const SHARDS: usize = 256;
/// Pieces whose last use is remembered together: a block of 4 MiB.
pub const RUN: u64 = 32;

/// What is known of a file that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Pieces that are not here.
    pub absent: Pieces,
    /// When the runs of [`RUN`] pieces were last asked for, by their number; see [`Files::now`].
    pub used: BTreeMap<u64, u32>,
    /// What is here of it stays, and for how long.
    pub pinned: Option<Pinned>,
}

impl State {
    /// What is here stays for `pin` as well.
    pub fn pin(&mut self, pin: Option<Pinned>) {
        self.pinned = Pinned::both(self.pinned, pin);
    }
}

/// The states of the files that were touched, by volume inode. See the module.
pub struct Files {
    shards: Vec<Mutex<HashMap<u64, State>>>,
    /// Names that were told in directories which are not populated yet, by volume inode.
    later: Mutex<HashMap<u64, Names>>,
    started: Instant,
    /// Seconds that tests let pass.
    ahead: AtomicU32,
}

/// The lock of one inode.
pub struct Locked<'f> {
    inode: u64,
    shard: MutexGuard<'f, HashMap<u64, State>>,
}

impl Default for Files {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect();
        Self { shards, later: Mutex::new(HashMap::new()), started: Instant::now(), ahead: AtomicU32::new(0) }
    }
}

impl Files {
    /// Takes the lock of an inode. Nobody may hold two.
    pub fn lock(&self, inode: u64) -> Locked<'_> {
        // There is one for each remainder.
        let shard = &self.shards[(inode % SHARDS as u64) as usize];
        Locked { inode, shard: shard.lock() }
    }

    /// The same, if nobody has it.
    pub fn try_lock(&self, inode: u64) -> Option<Locked<'_>> {
        let shard = &self.shards[(inode % SHARDS as u64) as usize];
        Some(Locked { inode, shard: shard.try_lock()? })
    }

    /// Keeps names that were told in a directory until it is populated: before, nothing in it can be compared.
    pub fn defer(&self, dir: u64, names: &Names) {
        let mut told = DirtySet::default();
        let mut later = self.later.lock();
        told.names.extend(later.remove(&dir).map(|known| (dir, known)));
        told.merge(DirtySet { names: HashMap::from([(dir, names.clone())]), ..DirtySet::default() });
        later.extend(told.names);
    }

    /// What was kept.
    pub fn deferred(&self, dir: u64) -> Option<Names> {
        self.later.lock().remove(&dir)
    }

    /// The clock of last uses: seconds since the start.
    pub fn now(&self) -> u32 {
        (self.started.elapsed().as_secs() as u32).saturating_add(self.ahead.load(Ordering::Relaxed))
    }

    /// Calls `each` for every file that was touched.
    pub fn each(&self, mut each: impl FnMut(u64, &State)) {
        for shard in &self.shards {
            shard.lock().iter().for_each(|(inode, state)| each(*inode, state));
        }
    }
}

impl Locked<'_> {
    /// The inode.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// What is absent, without remembering that it was asked for.
    pub fn absent(&self, index: &Index) -> Result<Pieces, VolumeError> {
        match self.shard.get(&self.inode) {
            Some(state) => Ok(state.absent.clone()),
            None => Ok(index.absent(self.inode)?.unwrap_or_default()),
        }
    }

    /// The state, where the file was touched.
    pub fn peek(&self) -> Option<&State> {
        self.shard.get(&self.inode)
    }

    /// The state, from the index where it is not known yet.
    pub fn state(&mut self, index: &Index) -> Result<&mut State, VolumeError> {
        match self.shard.entry(self.inode) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let absent = index.absent(self.inode)?.unwrap_or_default();
                Ok(entry.insert(State { absent, ..State::default() }))
            }
        }
    }

    /// Forgets the file: it is gone, or nothing but what the index says is known of it.
    pub fn forget(&mut self) -> Option<State> {
        self.shard.remove(&self.inode)
    }
}

/// All pieces of a file of `size` bytes.
pub fn pieces_of(size: u64) -> Pieces {
    Pieces::of(0..size.div_ceil(PIECE))
}

/// The bytes of a file of `size` bytes that lie in some pieces.
pub fn bytes_in(pieces: &Pieces, size: u64) -> u64 {
    let end_of = |piece: u64| piece.saturating_mul(PIECE).min(size);
    pieces.iter().map(|range| end_of(range.end) - end_of(range.start)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_piece_has_the_bytes_that_are_left() {
        assert_eq!(bytes_in(&pieces_of(PIECE + 5), PIECE + 5), PIECE + 5);
        assert_eq!(bytes_in(&Pieces::of(1..2), PIECE + 5), 5);
        assert_eq!(bytes_in(&Pieces::of(1..u64::MAX), PIECE), 0);
        assert!(pieces_of(0).is_empty());
    }
}
