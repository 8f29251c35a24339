//! The agent's one tokio runtime: two workers that serve object_store, SlateDB and the HTTP API. It must not know
//! who uses it; everything else in the agent runs on plain threads and blocks on its handle.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

static RUNTIME: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();

/// A handle to the process-wide runtime, which is started at the first call.
///
/// # Errors
/// A sentence when the system refuses threads or descriptors.
pub fn runtime() -> std::result::Result<Handle, String> {
    let start = || {
        Builder::new_multi_thread()
            .worker_threads(2)
            // Used by `file://` only: each of its calls occupies one such thread while it waits for the disk.
            .max_blocking_threads(16)
            .thread_name("storeshim-io")
            .enable_all()
            .build()
            .map_err(|error| {
                format!(
                    "cannot start the I/O threads: {error}; raise the limits on processes and open files of this user"
                )
            })
    };
    match RUNTIME.get_or_init(start) {
        Ok(runtime) => Ok(runtime.handle().clone()),
        Err(error) => Err(error.clone()),
    }
}
