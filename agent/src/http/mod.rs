//! The agent's interface on the unix socket in the run directory, for people and supervisors: status, flush,
//! warmup and eviction, end, metrics. It must not know volumes or rings: it asks [`Agent`].

mod client;
mod metrics;
mod server;
mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::mounts::{AgentStatus, FlushStatus, Hold, Mounts, MountsError, Worked};
use crate::volume::{Evicted, Warmed, Warmup, Watch};

pub use client::{Client, ClientError, HoldConnection};
pub use metrics::render as render_metrics;
pub use server::{ServeError, serve};
pub use work::{EvictBody, WarmupBody};

/// What the interface shows and drives.
pub trait Agent: Send + Sync + 'static {
    /// Lives as long as a program that wants the agent to stay.
    type Hold: Send + 'static;

    /// What can be said now; cheap.
    fn status(&self) -> AgentStatus;
    /// Brings the mount at `prefix`, or all, into the backend; blocking. The error is a sentence.
    fn flush(&self, prefix: Option<&str>) -> Result<Vec<FlushStatus>, MountsError>;
    /// Brings what is at `paths` to this disk; blocking, until done or called off. The error is a sentence.
    fn warm(
        &self,
        paths: &[PathBuf],
        how: Warmup,
        watch: &dyn Watch,
    ) -> Result<Vec<Worked<Warmed>>, MountsError>;
    /// Drops from this disk what is at `paths` and need not be there; blocking, until done or called off.
    fn evict(&self, paths: &[PathBuf], watch: &dyn Watch) -> Result<Vec<Worked<Evicted>>, MountsError>;
    /// Keeps the agent from ending as idle; `None` where it is ending.
    fn hold(self: Arc<Self>) -> Option<Self::Hold>;
    /// Ends the agent at the first idle moment.
    fn stop_when_idle(&self);
    /// Ends the agent.
    fn stop_now(&self);
}

impl Agent for Mounts {
    type Hold = Hold;

    fn status(&self) -> AgentStatus {
        Mounts::status(self)
    }

    fn flush(&self, prefix: Option<&str>) -> Result<Vec<FlushStatus>, MountsError> {
        Mounts::flush(self, prefix)
    }

    fn warm(
        &self,
        paths: &[PathBuf],
        how: Warmup,
        watch: &dyn Watch,
    ) -> Result<Vec<Worked<Warmed>>, MountsError> {
        Mounts::warm(self, paths, how, watch)
    }

    fn evict(&self, paths: &[PathBuf], watch: &dyn Watch) -> Result<Vec<Worked<Evicted>>, MountsError> {
        Mounts::evict(self, paths, watch)
    }

    fn hold(self: Arc<Self>) -> Option<Hold> {
        Mounts::hold(&self)
    }

    fn stop_when_idle(&self) {
        Mounts::stop_when_idle(self);
    }

    fn stop_now(&self) {
        Mounts::stop_now(self);
    }
}

/// Where the socket of a run directory is.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join(storeshim_protocol::names::SOCKET)
}

#[cfg(test)]
mod tests;
