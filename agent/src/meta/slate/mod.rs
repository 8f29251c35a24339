//! The metadata engine on SlateDB, in `meta/` under the volume's prefix. It must not know what keys and values mean,
//! but for the [`Format`] record that makes a prefix a volume.
//!
//! How the promises of [`Meta`] are kept:
//! - **Order and atomicity.** One task ([`writer`]) writes batches in order; SlateDB keeps a batch within one WAL
//!   object, and WAL objects become durable in order. While one WAL object is on its way, the batches that arrive
//!   meanwhile gather for the next: one PUT per group.
//! - **Lost answers.** A conditional PUT that is sent twice may report its own success as a conflict. SlateDB puts a
//!   random id into each such object's attributes and compares it at a conflict; that covers S3 and `memory:`.
//!   (`file://` has no attributes: see `blob/store/local.rs`.)
//! - **Retry for ever.** SlateDB retries each request without end; what it gives up on closes the database, and the
//!   writer opens it again *at the epoch it holds*, which fails if another agent has taken the volume meanwhile.
//!   The marker record then tells which batches are durable, so that no batch is written over a later one.

mod ahead;
mod open;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{Receiver, bounded};
use futures::{StreamExt, TryStreamExt};
use slatedb::config::{DurabilityLevel, ReadOptions, ScanOptions};
use slatedb::{CloseReason, Db, ErrorKind};
use tokio::sync::mpsc;

use super::{Batch, Meta, MetaError, Result, Until, left};
use crate::blob::Store;

pub use self::open::{open, open_and_probe};

/// The engine's own record, hidden from readers: which batch of which opening was written last.
const MARKER: &[u8] = super::RESERVED;
/// A read that the backend does not answer within this is `Unavailable`.
const READ_PATIENCE: Duration = Duration::from_secs(60);
/// Records that are read side by side for one caller, of which there may be dozens.
const GETS: usize = 8;
/// A page of a scan ends after this many pairs or bytes.
const PAGE_PAIRS: usize = 1024;
const PAGE_BYTES: usize = 1 << 20;

/// A volume's metadata on SlateDB.
struct SlateMeta {
    shared: Arc<Shared>,
    /// `None` once closed.
    queue: Mutex<Option<mpsc::UnboundedSender<writer::Submitted>>>,
    /// Answers when the writer has ended.
    ended: Mutex<Option<tokio::task::JoinHandle<Result<()>>>>,
}

/// What readers and the writer share.
struct Shared {
    store: Store,
    db: RwLock<Db>,
    /// Set once, when this instance can never commit again.
    fatal: Mutex<Option<MetaError>>,
}

impl Shared {
    fn db(&self) -> Db {
        self.db.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fatal(&self) -> Option<MetaError> {
        lock(&self.fatal).clone()
    }

    /// What an error of SlateDB means to a caller of [`Meta`].
    fn judge(&self, error: &slatedb::Error) -> MetaError {
        let said = crate::blob::condense(&error.to_string());
        let shown = self.store.shown();
        match error.kind() {
            ErrorKind::Closed(CloseReason::Fenced) => MetaError::Fenced,
            ErrorKind::Data | ErrorKind::Invalid => damaged(shown, &said),
            _ => {
                MetaError::Unavailable(format!("the metadata in '{shown}' cannot be reached for now: {said}"))
            }
        }
    }

    /// Runs a read until it has an answer; a database that is being opened again is waited for.
    fn read<T>(
        &self,
        until: Until,
        mut attempt: impl AsyncFnMut(Db) -> std::result::Result<T, slatedb::Error>,
    ) -> Result<T> {
        let answer = async {
            loop {
                if let Some(error) = self.fatal() {
                    return Err(error);
                }
                match attempt(self.db()).await {
                    Ok(value) => return Ok(value),
                    // The writer finds out whether this is final, and opens the database again if it is not.
                    Err(error) if matches!(error.kind(), ErrorKind::Closed(_)) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(error) => return Err(self.judge(&error)),
                }
            }
        };
        self.store.handle().block_on(async {
            let patience = left(READ_PATIENCE, until);
            tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| {
                Err(MetaError::Unavailable(format!(
                    "the metadata in '{}' could not be read for {:.1} s: {}",
                    self.store.shown(),
                    patience.as_secs_f64(),
                    self.store.health().last_error().unwrap_or_else(|| "no answer".into())
                )))
            })
        })
    }
}

fn damaged(shown: &str, said: &str) -> MetaError {
    MetaError::Damaged(format!(
        "the metadata in '{shown}' is damaged or was written by another version ({said}); use the version that wrote it, \
         or restore the backend from a copy"
    ))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads show what is durable, never a batch that could still be lost.
fn read_options() -> ReadOptions {
    ReadOptions::default().with_durability_filter(DurabilityLevel::Remote)
}

fn scan_options() -> ScanOptions {
    ScanOptions::default()
        .with_durability_filter(DurabilityLevel::Remote)
        .with_read_ahead_bytes(1 << 20)
        .with_max_fetch_tasks(4)
}

impl Meta for SlateMeta {
    fn get(&self, key: &[u8], until: Until) -> Result<Option<Bytes>> {
        if key == MARKER {
            return Ok(None);
        }
        self.shared.read(until, async |db| db.get_with_options(key, &read_options()).await)
    }

    fn get_many(&self, keys: &[Vec<u8>], until: Until) -> Result<Vec<Option<Bytes>>> {
        self.shared.read(until, async |db| {
            let reads = keys.iter().map(|key| {
                let db = &db;
                async move {
                    if key == MARKER {
                        return Ok(None);
                    }
                    db.get_with_options(key, &read_options()).await
                }
            });
            futures::stream::iter(reads).buffered(GETS).try_collect().await
        })
    }

    fn scan(&self, prefix: &[u8], until: Until, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        let mut last: Option<Bytes> = None;
        let mut open: Option<slatedb::DbIterator> = None;
        loop {
            // `each` runs outside of the runtime, so that it may call the engine itself.
            let (page, more) = self.shared.read(until, async |db| {
                let mut pairs = match open.take() {
                    Some(pairs) => pairs,
                    None => begin(&db, prefix, last.as_ref()).await?,
                };
                let (mut page, mut bytes) = (Vec::new(), 0);
                while page.len() < PAGE_PAIRS && bytes < PAGE_BYTES {
                    let Some(pair) = pairs.next().await? else { return Ok((page, false)) };
                    bytes += pair.key.len() + pair.value.len();
                    page.push((pair.key, pair.value));
                }
                open = Some(pairs);
                Ok((page, true))
            })?;
            for (key, value) in &page {
                if key != MARKER && !each(key, value) {
                    return Ok(());
                }
            }
            if !more {
                return Ok(());
            }
            last = page.into_iter().next_back().map(|(key, _)| key).or(last);
        }
    }

    fn submit(&self, batch: Batch) -> Receiver<Result<()>> {
        let (answer, receiver) = bounded(1);
        let submitted = match writer::Submitted::new(batch, answer.clone()) {
            Ok(submitted) => submitted,
            Err(error) => {
                let _ = answer.send(Err(error));
                return receiver;
            }
        };
        let unsent = match lock(&self.queue).as_ref() {
            Some(queue) => queue.send(submitted).is_err(),
            None => true,
        };
        if unsent {
            // The writer ends only at close() and at a fatal error.
            let _ = answer.send(Err(self.shared.fatal().unwrap_or_else(closed)));
        }
        receiver
    }

    fn close(&self) -> Result<()> {
        drop(lock(&self.queue).take());
        let Some(ended) = lock(&self.ended).take() else { return Ok(()) };
        self.shared.store.handle().block_on(ended).unwrap_or_else(|error| {
            Err(MetaError::Unavailable(format!(
                "the metadata's writer ended early: {error}; start the agent again"
            )))
        })
    }
}

fn closed() -> MetaError {
    MetaError::Refused("the volume's metadata is closed; open the volume again".into())
}

/// Begins a scan of `prefix` behind the key `after`.
async fn begin(
    db: &Db,
    prefix: &[u8],
    after: Option<&Bytes>,
) -> std::result::Result<slatedb::DbIterator, slatedb::Error> {
    use std::ops::Bound;
    let from = match after.and_then(|after| after.get(prefix.len()..)) {
        Some(rest) => Bound::Excluded(Bytes::copy_from_slice(rest)),
        None => Bound::Unbounded,
    };
    db.scan_prefix_with_options(prefix, (from, Bound::<Bytes>::Unbounded), &scan_options()).await
}
