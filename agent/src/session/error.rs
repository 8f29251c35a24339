//! What can go wrong with a run directory or its mount table.

use std::io;
use std::path::PathBuf;

/// Why sessions cannot start or a mount cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Something in the run directory belongs to somebody whom we must not trust with it.
    #[error(
        "{path} belongs to user {uid}, not to the agent's user {ours}: choose another run directory or start the agent as that user",
        path = .path.display()
    )]
    NotOurs {
        /// What belongs to somebody else.
        path: PathBuf,
        /// Who owns it.
        uid: u32,
        /// The agent's effective user id.
        ours: u32,
    },
    /// Another agent serves this run directory.
    #[error(
        "an agent (pid {pid}) already serves the run directory {path}: stop it or choose another run directory",
        path = .path.display()
    )]
    Busy {
        /// The run directory.
        path: PathBuf,
        /// What that agent has written into its lock file; "unknown" where it has not yet.
        pid: String,
    },
    /// A mount that clients could not be shown.
    #[error("mount {prefix} cannot be served: {why}", prefix = .prefix.display())]
    Mount {
        /// Its logical prefix.
        prefix: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// The operating system refused.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl SessionError {
    /// For `map_err`: what was tried on which path.
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
