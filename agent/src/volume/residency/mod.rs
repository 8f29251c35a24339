//! What of a volume is on this disk, how it gets here and how it goes: directories are populated, files hydrated piece by
//! piece, and evicted when the cache is full. It must not know how a commit is made, nor how a request travels.
//!
//! ```text
//! requests ─▶ populate ─▶ stage (entries)        table   what clients see of it
//!          └▶ hydrate ──▶ wanted ─▶ fetch        file    what is absent of a file, and the inodes' locks
//!             ahead, background: the same, before anybody asks
//! ```

pub mod file;
pub mod lru;
pub mod openers;
pub mod quota;
pub mod table;

use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use storeshim_protocol::request::Ask;

use self::file::Files;
use self::table::Table;
use super::cut::Sink;
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

/// Numbers that are kept as things happen. Signed where several threads add and take away in any order.
#[derive(Debug, Default)]
pub struct Meter {
    /// Bytes of files that are absent, as their sizes say; those of files that are not in the tree yet are none of them.
    pub absent_bytes: AtomicI64,
    /// Files of which something is absent.
    pub absent_files: AtomicI64,
    /// Regular files in the tree, and the bytes in them as their sizes say.
    pub files: AtomicI64,
    /// See `files`.
    pub bytes: AtomicI64,
    /// Requests for data, and those of them that found it here.
    pub asked: AtomicU64,
    /// See `asked`.
    pub asked_hits: AtomicU64,
    /// Pieces that somebody waits for or that are read ahead.
    pub queued_pieces: AtomicI64,
}

/// Who wants to know when which part of a file was last of use: what is evicted is decided by that. Must not block, and
/// may be called with an inode's lock held.
pub trait Uses: Send + Sync {
    /// Pieces `start..end` of a file have been asked for, or have come.
    fn used(&self, inode: u64, start: u64, end: u64);
}

/// See the module.
pub struct Residency {
    /// The last cut, and what is absent.
    pub index: Arc<Index>,
    /// The tree.
    pub tree: Arc<Tree>,
    /// Where data comes from.
    pub blob: Arc<dyn Blob>,
    /// Counters, gate.
    pub shared: Arc<Shared>,
    /// Settings of the mount.
    pub options: VolumeOptions,
    /// What may have changed: for names of which nobody told.
    pub sink: Sink,
    /// What clients see.
    pub table: Table,
    /// What is absent of files, and the inodes' locks.
    pub files: Arc<Files>,
    /// Numbers.
    pub meter: Meter,
    /// Who decides what is evicted.
    pub uses: OnceLock<Arc<dyn Uses>>,
}

impl Residency {
    /// Takes up the work for an open volume: to be called before the mount is shown ready.
    pub fn start(
        index: &Arc<Index>,
        tree: &Arc<Tree>,
        blob: &Arc<dyn Blob>,
        shared: &Arc<Shared>,
        options: &VolumeOptions,
        sink: &Sink,
        files: &Arc<Files>,
    ) -> Result<Arc<Self>, VolumeError> {
        let shown = shared.gate().residency().map_err(VolumeError::Failed)?;
        let residency = Arc::new(Self {
            index: Arc::clone(index),
            tree: Arc::clone(tree),
            blob: Arc::clone(blob),
            shared: Arc::clone(shared),
            options: options.clone(),
            sink: Arc::clone(sink),
            table: Table::new(shown, Arc::clone(shared)),
            files: Arc::clone(files),
            meter: Meter::default(),
            uses: OnceLock::new(),
        });
        residency.count()?;
        Ok(residency)
    }

    /// Counts what is absent, for the table and the numbers.
    fn count(&self) -> Result<(), VolumeError> {
        self.index.absentees(|absentee| {
            if let Some(ino) = absentee.ino {
                self.table.count_early(absentee.inode, ino);
            }
            Ok(())
        })?;
        self.table.counted();
        if self.index.names_complete()? {
            self.table.names_are_complete();
        }
        Ok(())
    }

    /// Answers a request that is no barrier. Never blocks.
    pub fn request(&self, _ask: Ask, reply: Box<dyn Reply>) {
        self.meter.asked.fetch_add(1, Ordering::Relaxed);
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
