//! What of a volume is on this disk, how it gets here and how it goes: directories are populated, files hydrated piece by
//! piece, and evicted when the cache is full. It must not know how a commit is made, nor how a request travels.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use storeshim_protocol::request::Ask;

use super::index::Index;
use super::status::Shared;
use super::tree::Tree;
use super::{Evicted, VolumeError, VolumeOptions, Warmed, Warmup, Watch};
use crate::blob::Blob;
use crate::session::Reply;

/// What `storeshim status` says of what is on this disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// All names of the volume are in the tree.
    pub names_complete: bool,
    /// Bytes of file data on this disk.
    pub resident_bytes: u64,
    /// Bytes that may be there.
    pub cache_size: u64,
    /// Regular files of which everything is there.
    pub resident_files: u64,
    /// Bytes that cannot be evicted now: mapped, executing, open through stdio.
    pub pinned_bytes: u64,
    /// Checks of readers that asked the agent and found their data there, and all that asked.
    pub asked_hits: u64,
    /// See `asked_hits`.
    pub asked: u64,
    /// Pieces that somebody waits for or that are read ahead.
    pub queued_pieces: u64,
    /// Files that a program without the shim could open before their data is here.
    pub unguarded_files: u64,
}

/// See the module.
pub struct Residency {}

impl Residency {
    /// Takes up the work for an open volume.
    pub fn start(
        _index: &Arc<Index>,
        _tree: &Arc<Tree>,
        _blob: &Arc<dyn Blob>,
        _shared: &Arc<Shared>,
        _options: &VolumeOptions,
    ) -> Arc<Self> {
        Arc::new(Self {})
    }

    /// Answers a request that is no barrier. Never blocks.
    pub fn request(&self, _ask: Ask, reply: Box<dyn Reply>) {
        reply.reply(libc::ENOSYS);
    }

    /// Brings what is at `path` to this disk: everything is there.
    pub fn warm(&self, _path: &Path, _how: Warmup, _watch: &dyn Watch) -> Result<Warmed, VolumeError> {
        Ok(Warmed::default())
    }

    /// Drops what is at `path` from this disk: nothing can be.
    pub fn evict_path(&self, _path: &Path, _watch: &dyn Watch) -> Result<Evicted, VolumeError> {
        Ok(Evicted::default())
    }
}
