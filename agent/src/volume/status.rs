//! What a volume shows of itself, and whether it has failed: shared by its threads. It must not decide anything.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use storeshim_protocol::MountState;
use storeshim_protocol::control::{THROTTLE_BLOCK, THROTTLE_SLOW};

use super::unsettled::Unsettled;
use super::{Gatekeeper, Progress, Quota, VolumeError, VolumeStatus, residency, space};

/// A lock whose holder cannot leave it poisoned in a way that matters: panics end the process.
#[derive(Default)]
pub struct Mutex<T>(StdMutex<T>);

impl<T> Mutex<T> {
    /// A new lock.
    pub fn new(value: T) -> Self {
        Self(StdMutex::new(value))
    }

    /// Takes the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<T> Mutex<T> {
    /// Takes the lock if nobody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }
}

/// Pauses remembered for the percentiles.
const PAUSES: usize = 1024;

/// See the module.
pub struct Shared {
    gate: Arc<dyn Gatekeeper>,
    /// What the backend may not have yet.
    pub unsettled: Unsettled,
    failure: Mutex<Option<VolumeError>>,
    ready: AtomicBool,
    seq: AtomicU64,
    /// Bytes in cuts that are not durable yet.
    pub in_flight_bytes: AtomicU64,
    /// Metadata operations in cuts that are not durable yet.
    pub in_flight_operations: AtomicU64,
    /// Bytes that the cut under way has taken from the dirty set.
    pub cutting_bytes: AtomicU64,
    /// Writers are faster than the cut under way: hold them up.
    pub crowded: AtomicBool,
    /// Oldest change of each cut on its way.
    pub in_flight: Mutex<VecDeque<Instant>>,
    /// Regular files in the volume.
    pub files: AtomicI64,
    /// Bytes in them.
    pub bytes: AtomicI64,
    /// Inodes of all kinds in the volume.
    pub inodes: AtomicU64,
    /// What the volume may grow to.
    pub quota: Mutex<Quota>,
    counters: Mutex<BTreeMap<String, u64>>,
    pauses: Mutex<VecDeque<u64>>,
    backend: Mutex<Option<(String, Instant)>>,
    /// Programs seen in the tree without the shim.
    pub foreign: Mutex<Vec<String>>,
    /// Long work under way.
    pub progress: Mutex<Option<Progress>>,
    /// What the user should know that is not a failure.
    pub notice: Mutex<Option<String>>,
    /// What the last cut could not look at.
    pub trouble: Mutex<Option<String>>,
}

impl Shared {
    /// A volume that is being opened.
    pub fn new(gate: Arc<dyn Gatekeeper>) -> Arc<Self> {
        Arc::new(Self {
            gate,
            unsettled: Unsettled::default(),
            failure: Mutex::new(None),
            ready: AtomicBool::new(false),
            seq: AtomicU64::new(0),
            in_flight_bytes: AtomicU64::new(0),
            in_flight_operations: AtomicU64::new(0),
            cutting_bytes: AtomicU64::new(0),
            crowded: AtomicBool::new(false),
            in_flight: Mutex::new(VecDeque::new()),
            files: AtomicI64::new(0),
            bytes: AtomicI64::new(0),
            inodes: AtomicU64::new(0),
            quota: Mutex::default(),
            counters: Mutex::new(BTreeMap::new()),
            pauses: Mutex::new(VecDeque::new()),
            backend: Mutex::new(None),
            foreign: Mutex::new(Vec::new()),
            progress: Mutex::new(None),
            notice: Mutex::new(None),
            trouble: Mutex::new(None),
        })
    }

    /// The sessions of the mount.
    pub fn gate(&self) -> &dyn Gatekeeper {
        &*self.gate
    }

    /// Why the volume has stopped, if it has.
    pub fn failure(&self) -> Option<VolumeError> {
        self.failure.lock().clone()
    }

    /// Stops the volume for good: the first reason stands, clients see the state, no barrier succeeds any more.
    pub fn fail(&self, error: VolumeError) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            tracing::error!(%error, "the volume has stopped");
            self.gate.set_state(match error {
                VolumeError::Fenced => MountState::Fenced,
                VolumeError::NoRoom(_) | VolumeError::Failed(_) => MountState::Failed,
            });
            *failure = Some(error);
        }
    }

    /// Shows clients what the volume offers on a backend that is `directory`, or is none.
    pub fn show_space(&self, directory: Option<&Path>) {
        let bytes = self.bytes.load(Ordering::Relaxed).max(0) as u64;
        let inodes = self.inodes.load(Ordering::Relaxed);
        let space = space::of_volume(bytes, inodes, directory.and_then(space::of_directory));
        self.gate.set_space(&space::within(space, *self.quota.lock(), bytes, inodes));
    }

    /// The tree may be used.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Bytes that would be lost with this machine, besides those of the dirty set.
    fn under_way(&self) -> u64 {
        self.in_flight_bytes
            .load(Ordering::Relaxed)
            .saturating_add(self.cutting_bytes.load(Ordering::Relaxed))
    }

    /// How writers are to be held up: slowed, then blocked, as the bytes that are not in the backend yet near their
    /// limit, or as names and inodes pass theirs.
    pub fn throttle_at(&self, dirty: u64, limit: u64, entries: u64, entries_max: u64) -> u32 {
        let at_risk = dirty.saturating_add(self.under_way());
        if at_risk >= limit || entries >= 2 * entries_max || self.crowded.load(Ordering::Relaxed) {
            THROTTLE_BLOCK
        } else if at_risk >= limit / 2 || entries >= entries_max {
            THROTTLE_SLOW
        } else {
            0
        }
    }

    /// What the cut took is in the pipeline now, or was given up.
    pub fn cut_ended(&self) {
        self.cutting_bytes.store(0, Ordering::Relaxed);
        self.crowded.store(false, Ordering::Relaxed);
    }

    /// Commit `seq` is durable.
    pub fn committed(&self, seq: u64) {
        self.unsettled.durable(seq);
        self.seq.store(seq, Ordering::Release);
        self.count("commits", 1);
        self.backend_answers();
    }

    /// Sets the last durable commit, at open.
    pub fn set_seq(&self, seq: u64) {
        self.seq.store(seq, Ordering::Release);
    }

    /// The last durable commit.
    pub fn seq(&self) -> u64 {
        self.seq.load(Ordering::Acquire)
    }

    /// Adds to a counter.
    pub fn count(&self, name: &str, n: u64) {
        let mut counters = self.counters.lock();
        match counters.get_mut(name) {
            Some(value) => *value += n,
            None => drop(counters.insert(name.to_owned(), n)),
        }
    }

    /// A counter's value.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.lock().get(name).copied().unwrap_or(0)
    }

    /// Remembers how long the gate was closed.
    pub fn paused(&self, pause: Duration) {
        let mut pauses = self.pauses.lock();
        if pauses.len() == PAUSES {
            pauses.pop_front();
        }
        pauses.push_back(pause.as_micros() as u64);
    }

    /// The backend did what it was asked.
    pub fn backend_answers(&self) {
        if let Some((why, since)) = self.backend.lock().take() {
            tracing::info!(seconds = since.elapsed().as_secs(), %why, "the backend answers again");
        }
    }

    /// The backend refused for now.
    pub fn backend_refuses(&self, why: &str) {
        self.count("backend_errors", 1);
        let mut backend = self.backend.lock();
        if backend.is_none() {
            tracing::warn!(%why, "the backend does not take our data for now; trying again until it does");
        }
        let since = backend.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        *backend = Some((why.to_owned(), since));
    }

    /// Everything, with the dirty set's part given by the engine.
    pub fn status(&self, dirty_bytes: u64, dirty_entries: u64, dirty_since: Option<Instant>) -> VolumeStatus {
        let failure = self.failure();
        let state = match (&failure, self.ready.load(Ordering::Acquire)) {
            (Some(VolumeError::Fenced), _) => "fenced",
            (Some(VolumeError::NoRoom(_) | VolumeError::Failed(_)), _) => "failed",
            (None, true) => "ready",
            (None, false) => "restoring",
        };
        let oldest = self.in_flight.lock().front().copied().into_iter().chain(dirty_since).min();
        let mut pauses: Vec<u64> = self.pauses.lock().iter().copied().collect();
        pauses.sort_unstable();
        let at = |q: usize| pauses.get((pauses.len() * q / 100).min(pauses.len().saturating_sub(1))).copied();
        VolumeStatus {
            state: state.into(),
            reason: failure
                .map(|e| e.to_string())
                .or_else(|| self.trouble.lock().clone())
                .or_else(|| self.notice.lock().clone()),
            seq: self.seq(),
            dirty_bytes: dirty_bytes.saturating_add(self.under_way()),
            dirty_entries,
            dirty_age_ms: oldest.map_or(0, |t| t.elapsed().as_millis() as u64),
            files: self.files.load(Ordering::Relaxed).max(0) as u64,
            bytes: self.bytes.load(Ordering::Relaxed).max(0) as u64,
            counters: self.counters.lock().clone(),
            cut_pause_us: [at(50), at(99), pauses.last().copied()].map(|p| p.unwrap_or(0)),
            backend_error: self
                .backend
                .lock()
                .as_ref()
                .map(|(why, since)| format!("for {} s: {why}", since.elapsed().as_secs())),
            foreign: self.foreign.lock().clone(),
            progress: self.progress.lock().clone(),
            residency: residency::Status::default(),
        }
    }
}
