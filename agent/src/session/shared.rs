//! What the poll thread and the callers of [`super::Sessions`] share.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use storeshim_protocol::MAX_MOUNTS;

use super::RequestSink;
use super::run_dir::RunDir;
use super::table::Table;

pub(super) struct Shared {
    pub(super) run: RunDir,
    pub(super) requests: Arc<dyn RequestSink>,
    pub(super) stopping: AtomicBool,
    /// One freeze at a time per mount. Taken before `table`.
    pub(super) gates: [Mutex<()>; MAX_MOUNTS],
    pub(super) table: Mutex<Table>,
}

impl Shared {
    /// The session table, locked.
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
