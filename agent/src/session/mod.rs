//! Attached processes: finds their rings, drains their intents, answers their requests, closes the gate for a
//! cut. It treats every byte of a ring as hostile and must not know what an intent leads to.
//!
//! ```text
//! run_dir   control page, doorbell, the lock      discover  which files in rings/ are clients
//! client    one ring file and its slots           table     all clients and all sinks, one lock
//! feed      from rings to sinks                   requests  from slots to the request sink and back
//! freeze    the gate                              poll      the thread that does it all between cuts
//! mapping, sigbus, sys: memory and system calls
//! ```

mod client;
mod discover;
mod error;
mod feed;
mod freeze;
mod mapping;
mod mount_table;
mod poll;
mod requests;
mod residency;
mod run_dir;
mod shared;
mod sigbus;
mod sys;
mod table;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use storeshim_protocol::control::{FLAG_COMPLETE, FLAG_NAMES, FLAG_QUOTA_NEAR};
use storeshim_protocol::request::{Answer, Request};
use storeshim_protocol::{Intent, Mount, MountState, OpenFlags, Space};

use self::discover::Discovery;
pub use self::error::SessionError;
pub use self::freeze::Freeze;
use self::mount_table::retire_unclaimed;
pub use self::residency::{ResidencyTable, ShownTable};
use self::run_dir::RunDir;
pub use self::run_dir::heartbeat_age;
use self::shared::Shared;
use self::table::Table;

/// Receives what the rings say. Called with the session table locked: be quick, do not call back.
pub trait IntentSink {
    /// An intent of the sink's mount.
    fn intent(&mut self, intent: Intent<'_>);

    /// Something was lost (full ring, corrupt ring, a process killed inside the gate): every mount's sink is told
    /// and must audit its tree before the next barrier is answered.
    fn look_everywhere(&mut self, why: &str);

    /// A thread did not leave the mount's gate before the deadline: `subject` (an inode, 0 where unknown) may
    /// still change after the freeze and must be looked at again in the next cut.
    fn straggler(&mut self, subject: u64, who: &str);
}

/// A request on its way: answer it exactly once, from any thread, at any later time.
pub trait Reply: Send {
    /// Answers.
    fn answer(self: Box<Self>, answer: Answer);

    /// Answers with 0 or an errno.
    fn reply(self: Box<Self>, errno: i32) {
        self.answer(Answer { errno, value: 0 });
    }
}

/// Where requests go.
pub trait RequestSink: Send + Sync {
    /// Takes a request over; must not block.
    fn request(&self, request: Request, reply: Box<dyn Reply>);
}

/// Remembers, before a client's ring forgets it, which files may change without a further call.
pub trait Journal: Send + Sync {
    /// The file with kernel inode number `ino` is open so that writes to it pass no hook.
    fn unseen(&self, ino: u64, flags: OpenFlags);
}

/// How long a freeze waits for threads to leave the gate before it calls them stragglers.
pub const STRAGGLER_AFTER: Duration = Duration::from_millis(50);

/// A mount to show to clients.
#[derive(Clone, Debug)]
pub struct MountEntry {
    /// Logical prefix: absolute, no `.` or `..`, not the root itself.
    pub prefix: PathBuf,
    /// The tree's root: an existing directory.
    pub tree: PathBuf,
    /// Durability `local`: fsync asks nothing.
    pub local: bool,
    /// The tree's root is the prefix itself: clients translate nothing.
    pub identity: bool,
    /// How long a request waits before it fails with ETIMEDOUT; zero waits for ever. Milliseconds count.
    pub request_timeout: Duration,
}

/// An attached process, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Process id in its own pid namespace.
    pub pid: u32,
    /// Name of its program at attach.
    pub comm: String,
    /// Owner of its ring file: the user that it attached as.
    pub uid: u32,
    /// Threads that have a ring.
    pub threads: usize,
}

/// What tells processes that ask before they read from others: they have files of the run directory mapped. (The devices
/// that mappings show are not those of stat(2) everywhere.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooked {
    /// Inode number of the control page, which each of them has mapped; 0 where it is not known.
    pub control: u64,
    /// Inode numbers of the ring files, one for each attached process.
    pub rings: Vec<u64>,
}

/// All sessions of one run directory.
pub struct Sessions {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Sessions {
    /// Serves the run directory `run_dir`, which is made where it does not exist; finds the clients of a former agent
    /// again, whose mounts wait until they are added. Requests go to `requests` from the poll thread.
    ///
    /// # Errors
    /// Where the directory or something in it belongs to another user, where another agent serves it, and where it
    /// cannot be written.
    pub fn start(run_dir: &Path, requests: Arc<dyn RequestSink>) -> Result<Arc<Self>, SessionError> {
        raise_descriptor_limit();
        let run = RunDir::open(run_dir)?;
        let mut table = Table::new(Discovery::new(run.rings.clone()));
        mount_table::note_former(&run.control, &mut table);
        table.discover(None);
        let shared = Arc::new(Shared {
            run,
            requests,
            stopping: AtomicBool::new(false),
            gates: Default::default(),
            table: Mutex::new(table),
        });
        let poll = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("sessions".into())
            .spawn(move || poll::run(&poll))
            .map_err(SessionError::io("start the thread that serves", run_dir))?;
        Ok(Arc::new(Self { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// Shows a mount to clients, as [`MountState::Restoring`], and returns its index: that which a former agent gave
    /// to this prefix, if one did. Its intents go to `sink` from now on, what may change unseen before that to
    /// `journal`, and every client tells anew what it may have
    /// told a former agent.
    ///
    /// # Errors
    /// Where prefix or tree cannot be shown, the prefix is served already, or the table is full.
    pub fn add_mount(
        &self,
        entry: MountEntry,
        sink: Arc<Mutex<dyn IntentSink + Send>>,
        journal: Arc<dyn Journal>,
    ) -> Result<usize, SessionError> {
        let index = mount_table::add(&self.shared, &entry, feed::Outbox { sink, journal })?;
        drop(freeze::freeze(&self.shared, index, None));
        Ok(index)
    }

    /// Says that all mounts were added: entries of a former agent that nobody claimed become
    /// [`MountState::Absent`], and requests for them fail with EINVAL. Happens by itself 30 s after the start.
    pub fn retire_unclaimed(&self) {
        retire_unclaimed(&self.shared.run.control, &mut self.shared.table());
    }

    /// Shows clients the mount's state. Does nothing for an index that [`Sessions::add_mount`] has not returned, as
    /// the other setters.
    pub fn set_state(&self, mount: usize, state: MountState) {
        if let Some(mount) = self.mount(mount) {
            mount.state.store(state as u32, Ordering::Release);
            sys::futex_wake_all(&mount.state);
        }
    }

    /// Shows clients that all names of the mount's volume are in its tree.
    pub fn show_names_complete(&self, mount: usize) {
        if let Some(mount) = self.mount(mount) {
            mount.flags.fetch_or(FLAG_NAMES, Ordering::Release);
        }
    }

    /// Shows clients whether the mount's whole tree is resident.
    pub fn set_complete(&self, mount: usize, complete: bool) {
        if let Some(mount) = self.mount(mount) {
            if complete {
                mount.flags.fetch_or(FLAG_COMPLETE, Ordering::Release);
            } else {
                mount.flags.fetch_and(!FLAG_COMPLETE, Ordering::Release);
            }
        }
    }

    /// Shows clients whether they are to ask before they add an inode, and how many bytes a process may add that does not.
    pub fn set_quota(&self, mount: usize, near: bool, unasked: u64) {
        if let Some(mount) = self.mount(mount) {
            mount.set_unasked(unasked);
            if near {
                mount.flags.fetch_or(FLAG_QUOTA_NEAR, Ordering::Release);
            } else {
                mount.flags.fetch_and(!FLAG_QUOTA_NEAR, Ordering::Release);
            }
        }
    }

    /// 0, `THROTTLE_SLOW` or `THROTTLE_BLOCK`.
    pub fn set_throttle(&self, mount: usize, throttle: u32) {
        if let Some(mount) = self.mount(mount)
            && mount.throttle.swap(throttle, Ordering::Release) != throttle
        {
            sys::futex_wake_all(&mount.throttle);
        }
    }

    /// Shows clients what the volume offers.
    pub fn set_space(&self, mount: usize, space: &Space) {
        if let Some(mount) = self.mount(mount) {
            mount.set_space(space);
        }
    }

    /// What clients see of what is on this disk.
    ///
    /// # Errors
    /// Where the run directory has no room for it.
    pub fn residency(&self, mount: usize) -> Result<Arc<ResidencyTable>, SessionError> {
        self.shared.run.residency(mount).map(Arc::new)
    }

    /// Closes the mount's gate: returns when no hooked mutating call is inside (stragglers are named to `sink`) and
    /// all rings are drained, this mount's intents into `sink`, the others' into their own sinks. The gate opens when
    /// the guard is dropped. A second freeze of the same mount waits for the first one to end, so a thread must not
    /// ask for two.
    pub fn freeze(&self, mount: usize, sink: &mut dyn IntentSink) -> Freeze<'_> {
        freeze::freeze(&self.shared, mount, Some(sink))
    }

    /// Drains all rings now into the mounts' own sinks. `false` where this mount's was busy: what is kept for it is told to the
    /// next freeze, or when it is free. (Never into a sink of the caller's: a freeze meanwhile would miss what only that has.)
    pub fn drain(&self, mount: usize) -> bool {
        let mut table = self.shared.table();
        table.drain(&self.shared.run.control, None);
        table.told_all(mount)
    }

    /// The attached processes.
    pub fn list(&self) -> Vec<SessionInfo> {
        self.shared.table().list()
    }

    /// What the attached processes have mapped.
    pub fn hooked(&self) -> Hooked {
        Hooked { control: self.shared.run.control_ino().unwrap_or(0), rings: self.shared.table().rings() }
    }

    /// Rings that were found corrupt since the start.
    pub fn corrupt_rings(&self) -> u64 {
        self.shared.table().corrupt()
    }

    /// Stops serving: clients see at once that the agent is gone, their requests wait for the next one, and the run
    /// directory is free for it. Does nothing the second time.
    pub fn stop(&self) {
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.shared.stopping.store(true, Ordering::Release);
        let run = &self.shared.run;
        run.doorbell.word.fetch_add(1, Ordering::SeqCst);
        sys::futex_wake_all(&run.doorbell.word);
        if thread.join().is_err() {
            tracing::error!("the session thread has died");
        }
        // A heartbeat of zero is stale to everybody.
        run.control.heartbeat_ns.store(0, Ordering::SeqCst);
        for mount in run.control.mounts() {
            for word in [&mount.throttle, &mount.frozen] {
                word.store(0, Ordering::SeqCst);
                sys::futex_wake_all(word);
            }
        }
        run.unlock();
    }

    fn mount(&self, index: usize) -> Option<&Mount> {
        self.shared.run.control.mounts().get(index)
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Every client costs a descriptor, and the usual soft limit of 1024 is for programs that use select(2).
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}
