//! Bounded memory for SlateDB's blocks, indexes and filters: the least recently used go first. It must not know what
//! an entry holds.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use slatedb::db_cache::{CachedEntry, CachedKey, DbCache};

/// An LRU cache of at most `limit` bytes.
pub(super) struct Cache {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Default)]
struct State {
    /// Entry, its size, and the tick of its last use.
    entries: HashMap<CachedKey, (CachedEntry, usize, u64)>,
    /// Last use → key; ticks are unique.
    order: BTreeMap<u64, CachedKey>,
    tick: u64,
    bytes: usize,
}

/// What an entry costs besides its own bytes, roughly.
const OVERHEAD: usize = 160;

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), limit }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lookup(&self, key: &CachedKey) -> Option<CachedEntry> {
        let mut guard = self.state();
        let state = &mut *guard;
        let (entry, _, used) = state.entries.get_mut(key)?;
        state.order.remove(used);
        state.tick += 1;
        *used = state.tick;
        state.order.insert(state.tick, key.clone());
        Some(entry.clone())
    }
}

impl State {
    fn take(&mut self, key: &CachedKey) {
        if let Some((_, size, used)) = self.entries.remove(key) {
            self.order.remove(&used);
            self.bytes -= size;
        }
    }
}

#[async_trait]
impl DbCache for Cache {
    async fn get_block(&self, key: &CachedKey) -> Result<Option<CachedEntry>, slatedb::Error> {
        Ok(self.lookup(key))
    }

    async fn get_index(&self, key: &CachedKey) -> Result<Option<CachedEntry>, slatedb::Error> {
        Ok(self.lookup(key))
    }

    async fn get_filter(&self, key: &CachedKey) -> Result<Option<CachedEntry>, slatedb::Error> {
        Ok(self.lookup(key))
    }

    async fn get_stats(&self, key: &CachedKey) -> Result<Option<CachedEntry>, slatedb::Error> {
        Ok(self.lookup(key))
    }

    async fn insert(&self, key: CachedKey, value: CachedEntry) {
        let size = value.size() + OVERHEAD;
        let mut guard = self.state();
        let state = &mut *guard;
        state.take(&key);
        if size > self.limit {
            return;
        }
        state.tick += 1;
        state.bytes += size;
        state.order.insert(state.tick, key.clone());
        state.entries.insert(key, (value, size, state.tick));
        while state.bytes > self.limit {
            let Some((_, oldest)) = state.order.pop_first() else { break };
            state.take(&oldest);
        }
    }

    async fn remove(&self, key: &CachedKey) {
        self.state().take(key);
    }

    fn entry_count(&self) -> u64 {
        self.state().entries.len() as u64
    }
}
