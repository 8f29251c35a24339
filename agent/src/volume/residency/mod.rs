//! What of a volume is on this disk, how it gets here and how it goes: directories are populated, files hydrated piece by
//! piece, and evicted when the cache is full. It must not know how a commit is made, nor how a request travels.
//!
//! ```text
//! requests ─▶ descend ─▶ populate ─▶ stage (entries)    table   what clients see of it
//!          └▶ hydrate ─▶ wanted ─▶ fetch                file    what is absent of a file, and the inodes' locks
//!             ahead, background: the same, before anybody asks; filled: small files with their names, as far as momentum lets
//! ```

mod ahead;
mod background;
mod burial;
mod bypath;
mod cache;
mod descend;
mod doubted;
mod evict;
mod extents;
mod fetch;
pub mod file;
mod filled;
mod find;
mod guard;
mod hydrate;
mod in_use;
mod lease;
mod lru;
mod momentum;
mod openers;
mod own;
mod pin;
mod policy;
mod populate;
mod populating;
pub mod preaccess;
mod quota;
mod ready;
mod requests;
mod room;
mod spans;
mod stage;
pub mod table;
mod waiters;
mod wanted;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::ahead::Ahead;
use self::background::Background;
use self::burial::Lost;
use self::cache::Cache;
use self::fetch::Fetcher;
use self::file::Files;
use self::guard::Guards;
use self::momentum::Momentum;
use self::populating::Populating;
use self::preaccess::{Guarded, Marks};
use self::requests::Requests;
use self::spans::Helpers;
use self::stage::Stage;
use self::table::{Lacking, Table};
use super::cut::Sink;
use super::index::{Absent, Index};
use super::status::{Mutex, Shared};
use super::tree::Tree;
use super::{Hydrate, VolumeError, VolumeOptions};
use crate::blob::Blob;
use crate::guard::Guard;

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
    /// By how much the volume exceeds its quota.
    #[serde(default)]
    pub over_quota_bytes: u64,
    /// See `over_quota_bytes`.
    #[serde(default)]
    pub over_quota_inodes: u64,
    /// How programs without the shim are kept from absent files.
    #[serde(default)]
    pub guard: Guarded,
    /// Why nothing can be evicted, while that is so.
    #[serde(default)]
    pub eviction_error: Option<String>,
}

/// Numbers that are kept as things happen. Signed where several threads add and take away in any order.
#[derive(Debug, Default)]
pub struct Meter {
    /// Files that are not in the tree yet, as far as it is known.
    pub unnamed_files: AtomicI64,
    /// Requests for data, and those of them that found it here.
    pub asked: AtomicU64,
    /// See `asked`.
    pub asked_hits: AtomicU64,
    /// Pieces that somebody waits for or that are read ahead.
    pub queued_pieces: AtomicI64,
}

/// What hydration needs of who decides what is evicted. Nothing of it may wait for an inode's lock, which may be held.
pub trait Uses: Send + Sync {
    /// Pieces `start..end` of a file have been asked for, or have come.
    fn used(&self, inode: u64, start: u64, end: u64);
    /// Makes room for `bytes` on this disk, which is full; whether it did.
    fn make_room(&self, bytes: u64) -> bool;
}

/// Whether a volume can be brought to this disk piece by piece: the tree's filesystem tells holes from data, and what is made
/// in the state directory can be moved into the tree.
///
/// # Errors
/// Why not, as a part of a sentence.
pub fn fits(state: &Path, tree: &Tree) -> Result<(), String> {
    Stage::fits(state, tree)
}

/// Has the engine make a cut of what was told so far, and waits for that as long as is sensible; whether it was made.
pub type Settle = Box<dyn Fn() -> bool + Send + Sync>;

/// See the module.
pub struct Residency {
    /// The last cut, and what is absent.
    pub index: Arc<Index>,
    /// The tree.
    pub tree: Arc<Tree>,
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
    cache: Cache,
    guards: Guards,
    marks: Arc<Marks>,
    quota: OnceLock<quota::Keeper>,
    settle: Settle,
    stage: Stage,
    populating: Populating,
    fetcher: Fetcher,
    ahead: Ahead,
    helpers: Helpers,
    momentum: Momentum,
    background: Background,
    requests: Requests,
    lost: Lost,
    closed: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the work needs of an open volume.
pub struct Parts {
    /// The last cut.
    pub index: Arc<Index>,
    /// The tree.
    pub tree: Arc<Tree>,
    /// Where data comes from.
    pub blob: Arc<dyn Blob>,
    /// Counters, gate.
    pub shared: Arc<Shared>,
    /// Settings.
    pub options: VolumeOptions,
    /// Where intents go.
    pub sink: Sink,
    /// The inodes' locks.
    pub files: Arc<Files>,
    /// See [`Settle`].
    pub settle: Settle,
    /// What an agent before this one has left on guard.
    pub guard: Option<Guard>,
}

impl Residency {
    /// Takes up the work for an open volume: to be called before the mount is shown ready. Blocking where the mount is to have
    /// everything.
    ///
    /// # Errors
    /// Where the table, the stage or a thread cannot be made, or the index cannot be read.
    pub fn start(parts: Parts) -> Result<Arc<Self>, VolumeError> {
        let Parts { index, tree, blob, shared, mut options, sink, files, settle, guard } = parts;
        let shown = shared.gate().residency().map_err(VolumeError::Failed)?;
        let threads = |e: std::io::Error| VolumeError::Failed(format!("no thread could be started: {e}"));
        let stage = Stage::open(&options.state).map_err(|e| {
            let state = options.state.display();
            VolumeError::Failed(format!(
                "the directory {state}/stage cannot be made: {e}; make room or mend the disk"
            ))
        })?;
        match Tree::open(&options.state.join("kept"), &options.state.join("kept"), &[]) {
            Ok(kept) => tree.set_kept(kept),
            Err(e) => {
                let state = options.state.display();
                return Err(VolumeError::Failed(format!(
                    "the directory {state}/kept cannot be opened: {e}; mend the disk"
                )));
            }
        }
        let cache = Cache::new(&options, &files);
        let bytes = shared.bytes.load(Ordering::Relaxed).max(0) as u64;
        if let Some(notice) = policy::shortfall(&options, bytes, cache.size()) {
            tracing::warn!(prefix = %options.prefix.display(), "{notice}");
            shared.notice.lock().get_or_insert(notice);
        }
        options.hydrate = policy::decide(&options, bytes, cache.size());
        let marks = Marks::new(options.guard, options.hydrate != Hydrate::Eager, guard);
        let table = shown.file();
        let residency = Arc::new(Self {
            table: Table::new(shown, Arc::clone(&shared)),
            fetcher: Fetcher::start(&blob, &shared).map_err(threads)?,
            index,
            tree,
            shared,
            options,
            sink,
            files,
            meter: Meter::default(),
            uses: OnceLock::new(),
            cache,
            guards: Guards::default(),
            marks,
            quota: OnceLock::new(),
            settle,
            stage,
            populating: Populating::default(),
            ahead: Ahead::default(),
            helpers: Helpers::default(),
            momentum: Momentum::default(),
            background: Background::default(),
            requests: Requests::default(),
            lost: Lost::default(),
            closed: AtomicBool::new(false),
            threads: Mutex::new(Vec::new()),
        });
        residency.count_unnamed()?;
        residency.serve_marks(table);
        residency.keep_bounds()?;
        if residency.options.hydrate == Hydrate::Eager {
            residency.count()?;
            residency.bring_everything()?;
        } else {
            residency.spawn("count", |own| {
                if let Err(error) = own.count() {
                    own.shared.fail(error);
                }
            })?;
        }
        residency.spawn("names", |own| own.run_background())?;
        for n in 0..ahead::THREADS {
            residency.spawn(&format!("ahead-{n}"), |own| own.run_ahead())?;
        }
        Ok(residency)
    }

    fn spawn(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce(Arc<Self>) + Send + 'static,
    ) -> Result<(), VolumeError> {
        let own = Arc::clone(self);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || work(own));
        let thread = thread.map_err(|e| VolumeError::Failed(format!("no thread could be started: {e}")))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Ends the threads. What somebody waits for is not answered: it stands in its ring.
    pub fn stop(&self) {
        self.closed.store(true, Ordering::Release);
        self.cache.end();
        if let Some(quota) = self.quota.get() {
            quota.end();
        }
        self.index.stop_loading();
        self.fetcher.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A thread that panicked has taken the process with it.
            let _ = thread.join();
        }
        self.end_requests();
        self.marks.end();
    }

    /// Whether the volume is being closed, or has failed in a way that ends it.
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Sleeps, but not past the end.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.is_closed() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20).min(pause));
        }
    }

    /// Counts the files that are not in the tree.
    fn count_unnamed(&self) -> Result<(), VolumeError> {
        if !self.index.names_complete()? {
            let files = self.shared.files.load(Ordering::Relaxed);
            // Directories are among what is here, and nobody asks for their number: there are fewer of them.
            let here = self.index.seen_count()?.saturating_sub(1);
            self.meter.unnamed_files.store(files - i64::try_from(here).unwrap_or(files), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Counts what is absent, for the table and the numbers. Until it ends, clients ask for everything.
    fn count(&self) -> Result<(), VolumeError> {
        self.index.absentees(|absentee| {
            if let Some(ino) = absentee.ino {
                let what = match absentee.what {
                    Absent::Pieces(_) => Lacking::Bytes,
                    Absent::Entries => Lacking::Names,
                };
                self.table.count_early(absentee.inode, ino, what);
            }
            Ok(())
        })?;
        self.table.counted();
        if self.index.names_complete()? {
            self.table.names_are_complete();
        }
        Ok(())
    }

    /// Has the engine make a cut, and waits for that; whether it was made.
    fn settle(&self) -> bool {
        !self.is_closed() && (self.settle)()
    }

    /// See [`Uses::make_room`].
    fn make_room(&self, bytes: u64) -> bool {
        self.uses.get().is_some_and(|uses| uses.make_room(bytes))
    }

    /// Files of the volume of which something is absent; those that are not in the tree yet are none of them.
    fn absent_files(&self) -> u64 {
        self.table.absent_files().saturating_sub(self.lost.len())
    }

    /// Cheap, at any time.
    pub fn status(&self) -> Status {
        let load = |number: &AtomicI64| number.load(Ordering::Relaxed).max(0) as u64;
        let absent = self.absent_files() + load(&self.meter.unnamed_files);
        self.bounds(Status {
            names_complete: self.table.has_all_names(),
            resident_files: load(&self.shared.files).saturating_sub(absent),
            asked_hits: self.meter.asked_hits.load(Ordering::Relaxed),
            asked: self.meter.asked.load(Ordering::Relaxed),
            queued_pieces: load(&self.meter.queued_pieces),
            ..Status::default()
        })
    }
}
