//! Records that are still only in the backend. While the index is not loaded, a record of the volume that was never
//! touched here is missing here: reading it falls through to the backend, and what was read is kept. A record that was
//! changed or deleted here since is never read from there again: a deletion leaves a tombstone, and one lock orders
//! what is taken in with what is changed. It must not know who asks, or why.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::{Base, Changes, For, Index, Result, VolumeError, damaged, size_of_change};
use crate::meta::records::key;
use crate::meta::{self, Meta, MetaError, Until};

/// Records that are asked for by name, and not since they lie beside others: so many at once.
const FEW: usize = 64;
/// Pairs taken in at once.
const BATCH: usize = 512;
/// Bounds of the pause between two tries of a read.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Kinds of records, in the order in which they are loaded: names first, they are waited for soonest.
const KINDS: [&[u8]; 6] = [key::DENTRIES, key::INODES, key::BLOCKS, key::CHUNKS, key::PACKS, key::GARBAGE];

/// A key, and its value if there is one.
pub(super) type Pair = (Vec<u8>, Option<Vec<u8>>);

/// How far the index is loaded.
pub(super) struct Lazy {
    source: OnceLock<Arc<dyn Meta>>,
    /// As [`Base::loaded`]; true while there is no base.
    loaded: AtomicBool,
    /// As [`Base::since`].
    since: AtomicU64,
    /// There may be tombstones.
    tombstones: AtomicBool,
    /// Reads of the backend that somebody waits for.
    waiting: AtomicUsize,
    stopped: AtomicBool,
    closed: AtomicBool,
    writing: Mutex<()>,
}

impl Lazy {
    pub(super) fn new() -> Self {
        Self {
            source: OnceLock::new(),
            loaded: AtomicBool::new(true),
            since: AtomicU64::new(0),
            tombstones: AtomicBool::new(true),
            waiting: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            writing: Mutex::new(()),
        }
    }

    /// Held by whoever changes records of the volume or takes some in.
    pub(super) fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what a base says.
    pub(super) fn stand(&self, base: Option<&Base>) {
        self.since.store(base.map_or(0, |base| base.since), Ordering::Release);
        self.loaded.store(base.is_none_or(|base| base.loaded), Ordering::Release);
    }

    fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Whether a read that may be tried `until` then is to be given up.
    fn is_over(&self, until: Until) -> bool {
        let over = if until.is_some() { &self.stopped } else { &self.closed };
        over.load(Ordering::Acquire)
    }

    /// Whether the backend had nothing at `key` when the index was emptied, or has nothing that is read lazily.
    fn is_ours(&self, key: &[u8]) -> bool {
        let number = key.get(1..9).and_then(|n| n.try_into().ok()).map(u64::from_be_bytes);
        match key.first() {
            Some(b'i' | b'd' | b'b') => number.is_some_and(|n| n >= self.since.load(Ordering::Acquire)),
            Some(b'c' | b'p' | b'g') => false,
            _ => true,
        }
    }
}

/// Key that says that the backend is not to be asked for `key`.
fn tombstone(key: &[u8]) -> Vec<u8> {
    [b"x", key].concat()
}

/// Key that says that all records under `prefix` were taken in.
fn mark(prefix: &[u8]) -> Vec<u8> {
    [b"y", prefix].concat()
}

impl Index {
    /// From where records come that are not here yet. To be called once.
    pub fn set_source(&self, meta: Arc<dyn Meta>) {
        // A second one would be the same backend.
        let _ = self.lazy.source.set(meta);
    }

    /// Whether all records of the volume are here.
    pub fn is_loaded(&self) -> bool {
        self.lazy.is_loaded()
    }

    /// Ends the background's reads of the backend, and lets those fail that have a time by which they give up: the volume is
    /// being closed. Its last cut still reads what it needs.
    pub fn stop_loading(&self) {
        self.lazy.stopped.store(true, Ordering::Release);
    }

    /// Lets all reads fail that the backend does not answer: nobody makes a cut any more.
    pub fn close_loading(&self) {
        self.lazy.stopped.store(true, Ordering::Release);
        self.lazy.closed.store(true, Ordering::Release);
    }

    /// Whether somebody waits for the backend.
    pub fn is_waited_for(&self) -> bool {
        self.lazy.waiting.load(Ordering::Acquire) > 0
    }

    /// Whether this index knows what is at `key`, be it nothing, without the backend.
    pub(super) fn knows(&self, key: &[u8]) -> Result<bool> {
        Ok(self.lazy.is_loaded()
            || self.lazy.is_ours(key)
            || self.records.contains_key(key)?
            || self.is_buried(key)?
            || self.is_marked(key.get(..1).unwrap_or(&[]))?
            || (matches!(key.first(), Some(b'd' | b'b')) && self.is_marked(key.get(..9).unwrap_or(&[]))?))
    }

    fn is_buried(&self, key: &[u8]) -> Result<bool> {
        Ok(self.lazy.tombstones.load(Ordering::Acquire) && self.records.contains_key(tombstone(key))?)
    }

    fn is_marked(&self, prefix: &[u8]) -> Result<bool> {
        Ok(self.records.contains_key(mark(prefix))?)
    }

    /// Whether all records under `prefix` are here: a kind, the entries of a directory or the blocks of a file.
    pub(super) fn has_range(&self, prefix: &[u8]) -> Result<bool> {
        Ok(self.lazy.is_loaded()
            || self.lazy.is_ours(prefix)
            || self.is_marked(prefix)?
            || self.is_marked(prefix.get(..1).unwrap_or(&[]))?)
    }

    /// The value of a record of the volume, from the backend where it must be.
    pub(super) fn look_up(&self, key: &[u8], until: Until) -> Result<Option<Vec<u8>>> {
        if let Some(value) = self.records.get(key)? {
            return Ok(Some(value.to_vec()));
        }
        if !self.knows(key)? {
            let value = self.ask(until, |meta| meta.get(key, until))?;
            self.take_in(&[(key.to_vec(), value.map(|value| value.to_vec()))], None)?;
        }
        // Known, or taken in by somebody, since the first look.
        Ok(self.records.get(key)?.map(|value| value.to_vec()))
    }

    /// Has many records here.
    pub(super) fn look_up_many(&self, keys: &[Vec<u8>], until: Until) -> Result<()> {
        let mut wanted = Vec::new();
        for key in keys {
            if self.records.get(key)?.is_none() && !self.knows(key)? {
                wanted.push(key.clone());
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let values = self.ask(until, |meta| meta.get_many(&wanted, until))?;
        let values = values.into_iter().map(|value| value.map(|value| value.to_vec()));
        self.take_in(&wanted.into_iter().zip(values).collect::<Vec<_>>(), None)
    }

    /// Has all records under `prefix` here. See [`Index::has_range`].
    pub(super) fn load_range(&self, prefix: &[u8], until: Until) -> Result<()> {
        if self.has_range(prefix)? {
            return Ok(());
        }
        if self.stream(prefix, until, &mut |_| true)? {
            return self.take_in(&[], Some(prefix));
        }
        Err(VolumeError::closed())
    }

    /// Takes in what the backend has under `prefix`, until `each`, called with every key, says to stop; whether it went
    /// to the end.
    pub(super) fn stream(
        &self,
        prefix: &[u8],
        until: Until,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<bool> {
        let waiting = Waiting::new(self);
        let whole = self.try_again(until, |meta| {
            self.scan_in(meta, prefix, until, &mut |key| each(key) && !self.lazy.is_over(until))
        });
        drop(waiting);
        whole
    }

    /// One try of [`Index::stream`]. The outer error is the backend's.
    fn scan_in(
        &self,
        meta: &dyn Meta,
        prefix: &[u8],
        until: Until,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> meta::Result<Result<bool>> {
        let (mut batch, mut failed, mut whole) = (Vec::with_capacity(BATCH), None, true);
        meta.scan(prefix, until, &mut |key, value| {
            batch.push((key.to_vec(), Some(value.to_vec())));
            if batch.len() >= BATCH {
                failed = self.take_in(&batch, None).err();
                batch.clear();
            }
            whole = failed.is_none() && each(key);
            whole
        })?;
        Ok(match failed {
            Some(error) => Err(error),
            None => self.take_in(&batch, None).map(|()| whole),
        })
    }

    /// Takes in what the backend has, but for what was changed here since; and notes that `range` is here as a whole.
    pub(super) fn take_in(&self, pairs: &[(Vec<u8>, Option<Vec<u8>>)], range: Option<&[u8]>) -> Result<()> {
        if pairs.is_empty() && range.is_none() {
            return Ok(());
        }
        let _writing = self.lazy.writing();
        if self.lazy.is_loaded() {
            return Ok(());
        }
        let bytes = pairs.iter().map(|(key, value)| size_of_change(key, value.as_deref())).sum();
        // Single ones a cut may need; that all are here makes only for speed.
        self.provide(bytes, if range.is_none() && pairs.len() <= FEW { For::Room } else { For::More })?;
        let mut batch = self.db.batch();
        for (key, value) in pairs {
            if self.lazy.is_ours(key) || self.records.contains_key(key)? || self.is_buried(key)? {
                continue;
            }
            match value {
                Some(value) => batch.insert(&self.records, key.clone(), value.clone()),
                None => self.bury(&mut batch, key),
            }
        }
        if let Some(range) = range {
            batch.insert(&self.records, mark(range), []);
        }
        Ok(batch.commit()?)
    }

    fn bury(&self, batch: &mut fjall::OwnedWriteBatch, key: &[u8]) {
        self.lazy.tombstones.store(true, Ordering::Release);
        batch.insert(&self.records, tombstone(key), []);
    }

    /// Adds a change to a batch, while `writing` is held.
    pub(super) fn stage(&self, batch: &mut fjall::OwnedWriteBatch, key: Vec<u8>, value: Option<Vec<u8>>) {
        match value {
            Some(value) => batch.insert(&self.records, key, value),
            None => {
                if !self.lazy.is_loaded() && !self.lazy.is_ours(&key) {
                    self.bury(batch, &key);
                }
                batch.remove(&self.records, key);
            }
        }
    }

    /// Values before `changes`, as they are in the volume.
    pub(super) fn before(&self, changes: &Changes) -> Result<Vec<Pair>> {
        changes.keys().map(|key| Ok((key.clone(), self.look_up(key, None)?))).collect()
    }

    /// Asks the backend, on behalf of somebody who waits.
    pub(super) fn ask<T>(
        &self,
        until: Until,
        mut read: impl FnMut(&dyn Meta) -> meta::Result<T>,
    ) -> Result<T> {
        let waiting = Waiting::new(self);
        let answer = self.try_again(until, |meta| read(meta).map(Ok));
        drop(waiting);
        answer
    }

    /// Reads from the backend, again and again while it refuses for now.
    fn try_again<T>(
        &self,
        until: Until,
        mut read: impl FnMut(&dyn Meta) -> meta::Result<Result<T>>,
    ) -> Result<T> {
        let Some(source) = self.lazy.source.get() else {
            return Err(damaged("its records are not all here, and it was given no backend"));
        };
        let mut pause = RETRY.0;
        loop {
            if self.lazy.is_over(until) {
                return Err(VolumeError::closed());
            }
            match read(&**source) {
                Ok(answer) => return answer,
                Err(MetaError::Unavailable(why))
                    if until.is_none_or(|until| Instant::now() + pause < until) =>
                {
                    tracing::warn!(%why, "a metadata record cannot be read for now; trying again");
                }
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Takes in everything, kind by kind. `each` is called for every record, outside of every lock, and says whether to
    /// go on; whether everything is here now.
    ///
    /// # Errors
    /// Of this disk, and of the backend those that are final: while it refuses for now, it is asked again.
    pub fn load_all(&self, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool> {
        if self.lazy.is_loaded() {
            return Ok(true);
        }
        for kind in KINDS {
            if self.is_marked(kind)? {
                continue;
            }
            // Not counted as waited for: this is what makes way.
            let mut go_on = |key: &[u8]| each(key) && !self.lazy.stopped.load(Ordering::Acquire);
            if !self.try_again(None, |meta| self.scan_in(meta, kind, None, &mut go_on))? {
                return Ok(false);
            }
            self.take_in(&[], Some(kind))?;
        }
        {
            let _writing = self.lazy.writing();
            if let Some(base) = self.base()? {
                self.write_base(&Base { loaded: true, ..base })?;
            }
        }
        self.forget_loading()?;
        Ok(true)
    }

    /// Removes what only an index needs that is not loaded.
    pub(super) fn forget_loading(&self) -> Result<()> {
        for prefix in [b"x", b"y"] {
            loop {
                let mut batch = self.db.batch();
                let mut any = false;
                for pair in self.records.prefix(prefix).take(BATCH) {
                    batch.remove(&self.records, pair.key()?);
                    any = true;
                }
                batch.commit()?;
                if !any {
                    break;
                }
            }
        }
        self.lazy.tombstones.store(false, Ordering::Release);
        Ok(())
    }
}

/// Counts somebody who waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(index: &'a Index) -> Self {
        index.lazy.waiting.fetch_add(1, Ordering::AcqRel);
        Self(&index.lazy.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
