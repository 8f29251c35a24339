//! Metadata of a volume in its backend: an ordered, fenced, atomic key-value store with range reads.
//!
//! The one trait that every engine implements. It knows keys and values as bytes; what they mean is
//! [`records`]. It must not know trees, rings or packs.

mod cache;
pub mod records;
mod slate;

#[cfg(test)]
mod conformance;

pub use self::slate::{open, open_and_probe};

use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::Receiver;

/// Where a volume stands: written by every commit, in the same atomic batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Head {
    /// Number of the commit, from 1; strictly increasing by one.
    pub seq: u64,
    /// The committing agent's epoch token (random per open): tells our own commit from another agent's.
    pub nonce: u128,
    /// Wall clock of the cut, nanoseconds since 1970.
    pub cut_at_ns: u64,
}

/// One commit: all of its operations become durable at once or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Keys to put (`Some`) or delete (`None`). Each key appears at most once.
    pub ops: Vec<(Vec<u8>, Option<Bytes>)>,
}

/// Why metadata could not be read or committed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MetaError {
    /// Another agent has taken the volume's epoch; final for this instance.
    #[error(
        "another agent has taken over this volume; stop this one or start it again to take the volume back"
    )]
    Fenced,
    /// The backend did not answer or refused for now; already retried. The same call may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The stored data is damaged, foreign or of an unknown format version; final.
    #[error("{0}")]
    Damaged(String),
    /// The backend can never serve (wrong credentials, missing bucket, read-only, unsafe conditional writes); final.
    #[error("{0}")]
    Refused(String),
}

/// The engine's own key, hidden from readers and refused of writers.
const RESERVED: &[u8] = b"\0";
/// Longest key that every engine stores.
pub(crate) const LONGEST_KEY: usize = 65_535;

/// Refuses what no engine can ever store.
///
/// # Errors
/// `Refused`.
pub(crate) fn check_record(key: &[u8], value: Option<&Bytes>) -> Result<()> {
    let length = value.map_or(0, Bytes::len);
    if key.is_empty()
        || key.len() > LONGEST_KEY
        || key == RESERVED
        || length > u32::MAX as usize - LONGEST_KEY
    {
        return Err(MetaError::Refused(format!(
            "a metadata record with a key of {} bytes and a value of {length} bytes cannot be stored; this is a bug, \
             report it",
            key.len()
        )));
    }
    Ok(())
}

/// Result of a metadata call.
pub type Result<T> = std::result::Result<T, MetaError>;

/// Until when whoever reads waits for an answer; `None`: as long as the engine itself finds right.
pub type Until = Option<Instant>;

/// What is left of `patience` for somebody who waits `until` then.
pub(crate) fn left(patience: Duration, until: Until) -> Duration {
    until.map_or(patience, |until| patience.min(until.saturating_duration_since(Instant::now())))
}

/// A volume's metadata engine, opened as the writer. Blocking; callable from any plain (non-tokio) thread.
pub trait Meta: Send + Sync {
    /// The value of `key`. Reads show durable commits only, never one that could still be lost; a commit is shown from
    /// the moment on at which its submission is answered.
    ///
    /// # Errors
    /// `Unavailable` also where there is no answer `until` then.
    fn get(&self, key: &[u8], until: Until) -> Result<Option<Bytes>>;

    /// The values of many keys, in their order, each as by [`Meta::get`]: side by side where that is of use.
    ///
    /// # Errors
    /// As [`Meta::get`], of any of them.
    fn get_many(&self, keys: &[Vec<u8>], until: Until) -> Result<Vec<Option<Bytes>>> {
        keys.iter().map(|key| self.get(key, until)).collect()
    }

    /// Calls `each` with every pair whose key starts with `prefix`, in key order, until it returns `false`. `until` is meant of
    /// each page, since whoever gets something goes on.
    ///
    /// # Errors
    /// As [`Meta::get`].
    fn scan(&self, prefix: &[u8], until: Until, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()>;

    /// Hands over the next commit. Commits become durable strictly in the order in which they were submitted; the
    /// receiver gets one answer: `Ok` once the batch is durable. `Unavailable` is never answered: the engine
    /// retries with backoff and jitter until the batch is durable or it is fenced or closed.
    fn submit(&self, batch: Batch) -> Receiver<Result<()>>;

    /// Waits for what was submitted and gives the engine's resources back.
    fn close(&self) -> Result<()>;
}
