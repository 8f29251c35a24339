//! The commit engine of one volume: dirty set, cut, commit, audit, restore. It drives `meta` and `blob`, looks at
//! the tree, and must not know sockets, configuration files, or how a ring is laid out.
//!
//! ```text
//! intents ─▶ dirty ─▶ cut (freeze, look, double collect) ─▶ plan ─▶ commit (packs, batch, acknowledge)
//!                      │       tree, capture                 │ index
//!                      └──────────── audit ◀─────────────────┘
//! ```

mod audit;
mod capture;
mod chunks;
mod commit;
mod cut;
mod dirty;
mod engine;
mod entry;
mod files;
mod index;
mod journal;
mod loader;
mod look;
mod open;
mod plan;
pub mod residency;
mod restore;
mod space;
mod status;
#[cfg(test)]
mod tests;
mod tree;
mod unsettled;
mod verify;
mod work;

pub use dirty::DirtySet;
pub use engine::Volume;
pub use files::TreeFiles;
pub use journal::Journal;
pub use open::Local;
pub use status::Shared;
pub use work::{Evicted, Kept, Warmed, Warmup, Watch};

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use storeshim_protocol::{MountState, Space};

use crate::session::{Hooked, IntentSink, ResidencyTable};

/// What the engine needs of the sessions of its own mount (implemented over `session`, and by tests).
pub trait Gatekeeper: Send + Sync {
    /// Closes the gate of this mount: returns when no hooked mutating call is inside (stragglers named to `sink`)
    /// and every ring has been drained into `sink`. The gate opens when the guard is dropped.
    fn freeze<'a>(&'a self, sink: &mut dyn IntentSink) -> Box<dyn Frozen + 'a>;
    /// Drains the rings now, without a freeze, into the sink that the mount has. `false` where that was busy: it is told later,
    /// or the next freeze is.
    fn drain(&self) -> bool;
    /// Process ids of the attached programs, each in its own pid namespace.
    fn attached(&self) -> Vec<u32>;
    /// Shows clients the mount's state.
    fn set_state(&self, state: MountState);
    /// Shows clients whether the whole tree is resident.
    fn set_complete(&self, complete: bool);
    /// Shows clients that all names of the volume are in the tree, which stays so.
    fn show_names_complete(&self) {}
    /// 0, `THROTTLE_SLOW` or `THROTTLE_BLOCK`.
    fn set_throttle(&self, throttle: u32);
    /// Shows clients whether they are to ask before they add an inode, and how many bytes a process may add that does not.
    fn set_quota(&self, _near: bool, _unasked: u64) {}
    /// What tells processes that ask before they read from others. By default there are none.
    fn hooked(&self) -> Hooked {
        Hooked::default()
    }
    /// Shows clients what the volume offers (statfs(2)).
    fn set_space(&self, space: &Space);
    /// What clients see of what is on this disk. To be called once; the error is a sentence.
    fn residency(&self) -> std::result::Result<Arc<ResidencyTable>, String>;
}

/// A closed gate.
pub trait Frozen {
    /// Past this instant clients may go on: a look that ends later is void.
    fn deadline(&self) -> Instant;
}

/// When fsync returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The commit is durable in the backend.
    Remote,
    /// The data is durable on this disk.
    Local,
}

/// Trees and the prefixes under which apps see them: of all mounts of an agent, since a link in one may lead into another.
#[derive(Debug, Default)]
pub struct Neighbours(Mutex<Vec<(PathBuf, PathBuf)>>);

impl Neighbours {
    /// Adds the mount of `tree` at `prefix`.
    pub fn add(&self, tree: &Path, prefix: &Path) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((tree.to_path_buf(), prefix.to_path_buf()));
    }

    /// Tree and prefix of each.
    pub fn list(&self) -> Vec<(PathBuf, PathBuf)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Settings of the engine.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// Root of the tree; must exist.
    pub tree: PathBuf,
    /// Logical prefix under which apps see it.
    pub prefix: PathBuf,
    /// The tree is at the prefix: programs without the shim find it, too.
    pub identity: bool,
    /// The mounts of the same agent, this one among them.
    pub neighbours: Arc<Neighbours>,
    /// Directory of the index and other state of this mount; must exist, private to the agent.
    pub state: PathBuf,
    /// When fsync returns.
    pub durability: Durability,
    /// Unsynced changes reach the backend within this while it answers.
    pub max_lag: Duration,
    /// Bytes of changes not yet in the backend, from which writers are blocked (slowed from half of it).
    pub dirty_limit: u64,
    /// A background audit of the whole tree begins at least this often.
    pub audit_interval: Duration,
    /// Uploads in flight.
    pub upload_parallelism: usize,
    /// When what is not on this disk is brought here.
    pub hydrate: Hydrate,
    /// Bytes of file data that the tree may keep on this disk; `None`: 80 % of what the filesystem has free when the
    /// volume is opened, and what the tree takes already.
    pub cache_size: Option<u64>,
    /// How long a reader waits for data that cannot be fetched before it gets EIO.
    pub patience: Duration,
    /// What the volume may grow to.
    pub quota: Quota,
    /// How programs that do not ask are kept from absent files.
    pub guard: Guarding,
}

/// How programs without the shim are kept from files of which something is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guarding {
    /// By fanotify where our rights allow it, so that who opens one waits; else by leases.
    #[default]
    Auto,
    /// The same, and where the kernel allows it so that who reads bytes waits as well, under whatever descriptor.
    PreAccess,
    /// By leases.
    Leases,
    /// Not at all.
    Off,
}

/// When what is not on this disk is brought here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hydrate {
    /// `on-read` in the translated placement; in identity placement, where programs without the shim find the tree as well and
    /// cannot be kept from all that is absent, `eager` while the volume fits into the cache.
    #[default]
    Auto,
    /// Everything, before the mount is ready: also for programs that no hook sees.
    Eager,
    /// A directory when it is first touched, a file piece by piece when it is first read; names also in the background.
    OnRead,
    /// As `on-read`, and a file as a whole when it is opened.
    OnOpen,
}

/// What a volume may grow to; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Bytes in regular files.
    pub bytes: Option<u64>,
    /// Inodes of all kinds.
    pub inodes: Option<u64>,
}

/// Progress of long work, for a progress bar.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done, for people: "restoring", "uploading".
    pub activity: String,
    /// Files done and in all.
    pub files_done: u64,
    /// Files in all.
    pub files_total: u64,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// What `storeshim status` says of a volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// `restoring`, `ready`, `fenced` or `failed`.
    pub state: String,
    /// Why it is fenced or failed; what to do.
    pub reason: Option<String>,
    /// The last durable commit's number.
    pub seq: u64,
    /// Bytes of changes that are not in the backend yet (an estimate from intents).
    pub dirty_bytes: u64,
    /// Names and inodes with changes not in the backend yet.
    pub dirty_entries: u64,
    /// Age in milliseconds of the oldest change not in the backend, 0 when there is none.
    pub dirty_age_ms: u64,
    /// Regular files in the volume.
    pub files: u64,
    /// Bytes in regular files.
    pub bytes: u64,
    /// Counters since the agent's start, by name (commits, packs, put_bytes, audits, missed_changes, stragglers …).
    pub counters: std::collections::BTreeMap<String, u64>,
    /// Pause of the last cuts in microseconds: p50, p99, max.
    pub cut_pause_us: [u64; 3],
    /// The last trouble with the backend that is not over yet.
    pub backend_error: Option<String>,
    /// Programs seen in the tree without the shim ("pid comm"), last audit.
    pub foreign: Vec<String>,
    /// Long work under way.
    pub progress: Option<Progress>,
    /// What of the volume is on this disk.
    #[serde(default)]
    pub residency: residency::Status,
}

/// Why a volume cannot be opened or has stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VolumeError {
    /// Another agent holds the epoch.
    #[error(
        "another agent has taken over this volume; stop this one or start it again to take the volume back"
    )]
    Fenced,
    /// This disk has no room for what is to be noted: it goes on once there is. The sentence says what to do.
    #[error("{0}")]
    NoRoom(String),
    /// Anything else; the sentence says what, where and what to do.
    #[error("{0}")]
    Failed(String),
}

impl VolumeError {
    /// For who still wants something of a volume that is being closed.
    pub fn closed() -> Self {
        Self::Failed("the volume is closed".into())
    }

    /// What a barrier answers.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Fenced => libc::ESTALE,
            Self::NoRoom(_) => libc::ENOSPC,
            Self::Failed(_) => libc::EIO,
        }
    }
}

impl From<crate::meta::MetaError> for VolumeError {
    fn from(e: crate::meta::MetaError) -> Self {
        match e {
            crate::meta::MetaError::Fenced => Self::Fenced,
            other => Self::Failed(other.to_string()),
        }
    }
}
