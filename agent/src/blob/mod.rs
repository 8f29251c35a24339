//! Packs of chunks in the backend: whole immutable objects, written once, read by range. It must not know what
//! a chunk is used for.

mod buffer;
#[cfg(test)]
pub(crate) mod faults;
pub mod pack;
mod packs;
mod runtime;
mod store;

use bytes::Bytes;
use std::ops::Range;
use std::path::Path;

pub use self::runtime::runtime;
pub(crate) use self::store::{Counted, Kind};
pub use self::store::{Health, Store, StoreError, StoreOptions, explain, redact};
pub(crate) use self::store::{condense, decode_escapes};

use crate::meta::records::PackId;

/// Why a pack could not be written or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BlobError {
    /// The backend did not answer or refused for now, after retries; the same call may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The object is not there or is shorter than asked: damage.
    #[error("{0}")]
    Missing(String),
    /// Another agent has taken the volume's epoch; final for this instance.
    #[error(
        "another agent has taken over this volume; stop this one or start it again to take the volume back"
    )]
    Fenced,
    /// The backend can never serve this (credentials, permissions); final.
    #[error("{0}")]
    Refused(String),
}

/// Result of a blob call.
pub type Result<T> = std::result::Result<T, BlobError>;

/// A volume's pack store. Blocking; callable from any plain thread, from many at once.
pub trait Blob: Send + Sync {
    /// Stores a pack durably. Idempotent: storing the same id again replaces it by the same bytes.
    fn put(&self, id: &PackId, bytes: Bytes) -> Result<()>;

    /// Reads `range` of a pack.
    fn get(&self, id: &PackId, range: Range<u64>) -> Result<Bytes>;

    /// Deletes a pack; one that is not there is no error.
    fn delete(&self, id: &PackId) -> Result<()>;

    /// The local directory that the backend is, where it is one: its filesystem bounds the volume.
    fn directory(&self) -> Option<&Path> {
        None
    }
}
