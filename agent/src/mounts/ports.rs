//! What mounts need of the modules below them, as traits: sessions, and an engine per volume. The real ones are
//! bound in [`super::bind`]; tests put in their own. It must not know how either works.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use storeshim_protocol::request::Ask;
use storeshim_protocol::{MountState, Space};

use crate::config;
use crate::session::{Hooked, IntentSink, Journal, Reply, ResidencyTable, SessionInfo};
use crate::volume::{
    Evicted, Frozen, Gatekeeper, VolumeError, VolumeOptions, VolumeStatus, Warmed, Warmup, Watch,
};

/// Where sessions put the intents of one mount.
pub type SharedSink = Arc<Mutex<dyn IntentSink + Send>>;

/// A mount as sessions show it to clients.
#[derive(Clone, Debug)]
pub struct NewMount {
    /// Logical prefix.
    pub prefix: String,
    /// Root of the tree.
    pub tree: PathBuf,
    /// fsync is satisfied by the local disk.
    pub local: bool,
    /// The tree is the prefix itself: nothing to translate.
    pub identity: bool,
    /// How long a request waits; zero is for ever.
    pub request_timeout: Duration,
}

/// The sessions of one run directory.
pub trait SessionPort: Send + Sync {
    /// Shows a mount to clients in state `Restoring`; returns its index, which is the same over agents' restarts.
    fn add_mount(
        &self,
        mount: &NewMount,
        sink: SharedSink,
        journal: Arc<dyn Journal>,
    ) -> Result<usize, String>;
    /// Says that all mounts were added: what only a former agent served is served no more.
    fn all_added(&self);
    /// Shows a mount's state.
    fn set_state(&self, mount: usize, state: MountState);
    /// Shows whether the whole tree is resident.
    fn set_complete(&self, mount: usize, complete: bool);
    /// Shows that all names of the volume are in the tree.
    fn show_names_complete(&self, mount: usize);
    /// Shows 0, `THROTTLE_SLOW` or `THROTTLE_BLOCK`.
    fn set_throttle(&self, mount: usize, throttle: u32);
    /// Shows whether clients are to ask before they add an inode, and how many bytes a process may add that does not.
    fn set_quota(&self, mount: usize, near: bool, unasked: u64);
    /// What tells attached processes from others.
    fn hooked(&self) -> Hooked;
    /// Shows what the volume offers.
    fn set_space(&self, mount: usize, space: &Space);
    /// What clients see of what is on this disk. Call it after [`SessionPort::add_mount`].
    fn residency(&self, mount: usize) -> Result<Arc<ResidencyTable>, String>;
    /// See [`Gatekeeper::freeze`].
    fn freeze<'a>(&'a self, mount: usize, sink: &mut dyn IntentSink) -> Box<dyn Frozen + 'a>;
    /// See [`Gatekeeper::drain`].
    fn drain(&self, mount: usize) -> bool;
    /// The attached processes.
    fn list(&self) -> Vec<SessionInfo>;
    /// Stops serving. Clients wait for the next agent.
    fn stop(&self);
}

/// Why a volume is not open.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The backend does not answer now; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// Trying again does not help.
    #[error(transparent)]
    Final(#[from] VolumeError),
}

/// Makes the engines.
pub trait EngineFactory: Send + Sync {
    /// A volume that is not open yet. Does not touch the backend.
    fn prepare(&self, mount: &config::Mount, options: VolumeOptions) -> Arc<dyn PendingVolume>;
}

/// A volume on its way.
pub trait PendingVolume: Send + Sync {
    /// Where its intents go, from before it is open.
    fn sink(&self) -> SharedSink;
    /// Where it is written down at once what may change unseen.
    fn journal(&self) -> Arc<dyn Journal>;
    /// Its status while it opens.
    fn status(&self) -> VolumeStatus;
    /// Opens it: restores or audits the tree. Blocking; may be called again after `Unavailable`.
    fn open(&self, gate: Arc<dyn Gatekeeper>) -> Result<Arc<dyn Engine>, OpenError>;
}

/// An open volume. See the contract in [`crate::volume`].
pub trait Engine: Send + Sync {
    /// Answers a request of a client; see [`Ask`]. Never blocks.
    fn request(&self, ask: Ask, reply: Box<dyn Reply>);
    /// Audits everything, commits, and waits until that is durable; the commit's number.
    fn flush(&self) -> Result<u64, VolumeError>;
    /// Brings what is at `path` to this disk, which is relative to the root and empty for that itself. Blocking; where it is
    /// called off it ends early and well. The error is a sentence.
    fn warm(&self, path: &Path, how: Warmup, watch: &dyn Watch) -> Result<Warmed, VolumeError>;
    /// Drops from this disk what is at `path` and need not be there. As [`Engine::warm`].
    fn evict(&self, path: &Path, watch: &dyn Watch) -> Result<Evicted, VolumeError>;
    /// Cheap.
    fn status(&self) -> VolumeStatus;
    /// Commits what is dirty and closes. Blocking.
    fn shutdown(&self);
}
