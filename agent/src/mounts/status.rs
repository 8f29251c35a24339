//! What an agent says of itself: the JSON of `/v1/status`, read back by the command line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Age, Bytes};
use crate::session::SessionInfo;
use crate::volume::{Durability, VolumeStatus};

/// The agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Its run directory.
    pub run_dir: PathBuf,
    /// It is committing what is dirty and will end.
    pub stopping: bool,
    /// Programs started by `storeshim run` that are still there.
    pub holds: usize,
    /// Its mounts.
    pub mounts: Vec<MountStatus>,
    /// The attached processes.
    pub sessions: Vec<SessionInfo>,
    /// Programs under the shim that make system calls past libc and run without the second net, as they were met since
    /// the agent's start: "pid name: calls (in file)".
    #[serde(default)]
    pub past_libc: Vec<String>,
}

/// A mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountStatus {
    /// Logical prefix.
    pub prefix: String,
    /// Root of the tree.
    pub tree: PathBuf,
    /// The tree is the prefix itself.
    pub identity: bool,
    /// The volume's URL, without credentials.
    pub url: String,
    /// When fsync returns.
    pub durability: Durability,
    /// The volume.
    pub volume: VolumeStatus,
}

/// A flushed mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlushStatus {
    /// Logical prefix.
    pub prefix: String,
    /// Number of the commit that holds everything.
    pub seq: u64,
}

impl MountStatus {
    /// A value that changes whenever the volume gets something done towards the backend.
    pub(crate) fn progress_mark(&self) -> (u64, u64, u64, u64) {
        let uploaded = self.volume.progress.as_ref().map_or(0, |progress| progress.bytes_done);
        let packs = self.volume.counters.get("packs").copied().unwrap_or(0);
        (self.volume.seq, self.volume.dirty_bytes, uploaded, packs)
    }

    /// What is lost with this machine, as a sentence.
    pub(super) fn at_risk(&self) -> String {
        let volume = &self.volume;
        let why = volume.reason.as_ref().or(volume.backend_error.as_ref());
        format!(
            "mount {}: {} in {} entries, the oldest {} old, did not reach {}{}{}; the changes stay in {} and are \
             picked up at the next start",
            self.prefix,
            Bytes(volume.dirty_bytes),
            volume.dirty_entries,
            Age(std::time::Duration::from_millis(volume.dirty_age_ms)),
            self.url,
            if why.is_some() { ": " } else { "" },
            why.map_or("", String::as_str),
            self.tree.display()
        )
    }

    /// As [`MountStatus::at_risk`], of a volume that has ended by itself: only one that could not commit any more
    /// leaves something behind.
    pub(super) fn at_risk_at_end(&self) -> Option<String> {
        let stuck = matches!(self.volume.state.as_str(), "fenced" | "failed");
        (stuck && self.volume.dirty_entries > 0).then(|| self.at_risk())
    }
}
