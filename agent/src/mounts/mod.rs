//! All mounts of one agent: puts each volume, its tree and the sessions together, and answers for the agent as a
//! whole (status, flush, end). It must not know how a volume commits or how a command line looks.

mod bind;
mod gate;
mod notice;
mod place;
mod ports;
mod router;
mod status;
mod work;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel;
use storeshim_protocol::MountState;

use crate::config::{Age, Bytes, Config, Mount};
use crate::session::RequestSink;
use crate::volume::{Durability, Neighbours, VolumeError, VolumeOptions, VolumeStatus};
pub use bind::open;
use gate::MountGate;
use notice::Notice;
use place::Place;
pub use ports::{Engine, EngineFactory, NewMount, OpenError, PendingVolume, SessionPort, SharedSink};
pub use router::Router;
pub use status::{AgentStatus, FlushStatus, MountStatus};
pub use work::Worked;

/// How long a volume that has never been open here may fail to reach its backend before the agent gives up. A
/// volume that was open before is tried for ever: apps may be waiting for it.
const FIRST_OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// First and longest pause between tries to open a volume.
const OPEN_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How often a shutdown that takes long says so.
const DRAIN_REPORT: Duration = Duration::from_secs(5);

/// Why the agent cannot serve, or could not end well: a sentence.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MountsError {
    /// It cannot serve.
    #[error("{0}")]
    Unusable(String),
    /// It ended with changes that are not in the backend.
    #[error("{0}")]
    Undrained(String),
}

/// Starts the sessions of a run directory.
pub type StartSessions<'a> =
    &'a dyn Fn(&std::path::Path, Arc<dyn RequestSink>) -> Result<Arc<dyn SessionPort>, String>;

/// The mounts of one agent.
pub struct Mounts {
    run_dir: PathBuf,
    started: Instant,
    drain_timeout: Duration,
    sessions: Arc<dyn SessionPort>,
    router: Arc<Router>,
    mounts: Vec<Arc<OneMount>>,
    life: Mutex<Life>,
    notice: Arc<Notice>,
}

/// What decides when the agent ends.
#[derive(Default)]
struct Life {
    /// Holds that are out: programs started by `storeshim run`.
    holds: usize,
    /// End at the first idle moment.
    when_idle: bool,
    /// The end has begun.
    stopping: bool,
}

/// One mount.
struct OneMount {
    config: Mount,
    place: Place,
    index: usize,
    pending: Arc<dyn PendingVolume>,
    phase: Mutex<Phase>,
    changed: Condvar,
}

enum Phase {
    /// Being opened; the last trouble with it.
    Opening(Option<String>),
    Open(Arc<dyn Engine>),
    Failed(VolumeError),
}

/// Keeps the agent from ending as idle while it lives.
pub struct Hold {
    mounts: Arc<Mounts>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut life = self.mounts.life();
        life.holds = life.holds.saturating_sub(1);
    }
}

impl Mounts {
    /// Takes every mount's places, starts the sessions and begins to open every volume, each in a thread of its
    /// own. Returns while they are still being opened; see [`Mounts::failure`] and [`Mounts::status`].
    pub fn open(
        config: &Config,
        start_sessions: StartSessions<'_>,
        factory: &dyn EngineFactory,
    ) -> Result<Arc<Self>, MountsError> {
        if config.mounts.is_empty() {
            return Err(MountsError::Unusable(
                "there is no mount to serve; give one with --mount /storage=URL or in the configuration file"
                    .into(),
            ));
        }
        let router = Arc::new(Router::default());
        let sessions = start_sessions(&config.run_dir, router.clone()).map_err(MountsError::Unusable)?;
        let mut mounts = Vec::new();
        let neighbours = Arc::new(Neighbours::default());
        for mount in &config.mounts {
            let one = OneMount::prepare(mount, config, &*sessions, factory, &neighbours)
                .map_err(MountsError::Unusable)?;
            mounts.push(Arc::new(one));
        }
        let served: Vec<usize> = mounts.iter().map(|one| one.index).collect();
        router.refuse_others(&served, libc::EIO);
        sessions.all_added();
        for one in &mounts {
            let (one, gate) = (
                one.clone(),
                MountGate { sessions: sessions.clone(), router: router.clone(), index: one.index },
            );
            let spawned = std::thread::Builder::new()
                .name(format!("open {}", one.config.prefix))
                .spawn(move || one.open(Arc::new(gate)));
            spawned.map_err(|error| MountsError::Unusable(format!("cannot start a thread: {error}")))?;
        }
        Ok(Arc::new(Self {
            run_dir: config.run_dir.clone(),
            started: Instant::now(),
            drain_timeout: config.drain_timeout,
            sessions,
            router,
            mounts,
            life: Mutex::default(),
            notice: Arc::default(),
        }))
    }

    /// What can be said of everything now.
    pub fn status(&self) -> AgentStatus {
        let life = self.life();
        let (holds, stopping) = (life.holds, life.stopping);
        drop(life);
        AgentStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            run_dir: self.run_dir.clone(),
            stopping,
            holds,
            mounts: self.mounts.iter().map(|one| one.status()).collect(),
            sessions: self.sessions.list(),
            past_libc: self.notice.list(),
        }
    }

    /// Why a mount could not be opened, once one could not.
    pub fn failure(&self) -> Option<String> {
        self.mounts.iter().find_map(|one| match &*one.phase() {
            Phase::Failed(error) => Some(format!("mount {}: {error}", one.config.prefix)),
            Phase::Opening(_) | Phase::Open(_) => None,
        })
    }

    /// Brings everything that the trees hold into the backend: of the mount at `prefix`, or of all. Blocking.
    pub fn flush(&self, prefix: Option<&str>) -> Result<Vec<FlushStatus>, MountsError> {
        let wanted = |one: &&Arc<OneMount>| prefix.is_none_or(|prefix| prefix == one.config.prefix);
        let chosen: Vec<_> = self.mounts.iter().filter(wanted).cloned().collect();
        if let (true, Some(prefix)) = (chosen.is_empty(), prefix) {
            let known: Vec<_> = self.mounts.iter().map(|one| one.config.prefix.as_str()).collect();
            return Err(MountsError::Unusable(format!(
                "there is no mount {prefix} here; the agent serves {}",
                known.join(", ")
            )));
        }
        std::thread::scope(|scope| {
            let flushes: Vec<_> = chosen.iter().map(|one| scope.spawn(|| one.flush())).collect();
            flushes
                .into_iter()
                .map(|flush| flush.join().unwrap_or_else(|_| Err("the flush ended abruptly".to_owned())))
                .collect::<Result<Vec<_>, _>>()
                .map_err(MountsError::Unusable)
        })
    }

    /// Takes a hold; `None` where the agent is ending.
    pub fn hold(self: &Arc<Self>) -> Option<Hold> {
        let mut life = self.life();
        if life.stopping {
            return None;
        }
        life.holds += 1;
        drop(life);
        Some(Hold { mounts: self.clone() })
    }

    /// From now on the first idle moment is the end.
    pub fn stop_when_idle(&self) {
        self.life().when_idle = true;
    }

    /// Begins the end: no more holds.
    pub fn stop_now(&self) {
        self.life().stopping = true;
    }

    /// Whether the end has begun. Begins it where it was to begin when idle and nobody is there.
    pub fn stopping(&self) -> bool {
        let mut life = self.life();
        if life.when_idle && life.holds == 0 && self.sessions.list().is_empty() {
            life.stopping = true;
        }
        life.stopping
    }

    /// Whether somebody uses the agent: a hold or an attached process.
    pub fn in_use(&self) -> bool {
        self.life().holds > 0 || !self.sessions.list().is_empty()
    }

    /// Commits what is dirty, then stops serving. Gives up where no volume has made any progress for the drain
    /// timeout: the changes stay in the trees, where the next agent finds them. Blocking.
    pub fn shutdown(&self) -> Result<(), MountsError> {
        self.stop_now();
        let (done, finished) = channel::unbounded();
        let mut waiting = Vec::new();
        for one in &self.mounts {
            let Some(engine) = one.engine() else { continue };
            // An engine that has ended would refuse what the next agent can serve.
            self.router.hold(one.index);
            waiting.push(one.clone());
            let (done, prefix) = (done.clone(), one.config.prefix.clone());
            let spawned = std::thread::Builder::new().name(format!("drain {prefix}")).spawn(move || {
                engine.shutdown();
                // The receiver is gone only once the agent has given up.
                let _ = done.send(prefix);
            });
            spawned.map_err(|error| MountsError::Unusable(format!("cannot start a thread: {error}")))?;
        }
        let result = self.wait_for_drain(waiting, &finished);
        self.sessions.stop();
        result
    }

    fn wait_for_drain(
        &self,
        mut waiting: Vec<Arc<OneMount>>,
        finished: &channel::Receiver<String>,
    ) -> Result<(), MountsError> {
        let mut last_progress = Instant::now();
        let mut last_report = Instant::now();
        let mut before: Vec<_> = waiting.iter().map(|one| one.status().progress_mark()).collect();
        let mut lost = Vec::new();
        while !waiting.is_empty() {
            if let Ok(prefix) = finished.recv_timeout(Duration::from_millis(100)) {
                waiting.retain(|one| {
                    let ended = one.config.prefix == prefix;
                    if ended {
                        lost.extend(one.status().at_risk_at_end());
                    }
                    !ended
                });
                last_progress = Instant::now();
                continue;
            }
            let now: Vec<_> = waiting.iter().map(|one| one.status().progress_mark()).collect();
            if now != before {
                before = now;
                last_progress = Instant::now();
            }
            if last_report.elapsed() >= DRAIN_REPORT {
                last_report = Instant::now();
                for status in waiting.iter().map(|one| one.status()) {
                    tracing::warn!(
                        prefix = status.prefix,
                        not_in_backend = %Bytes(status.volume.dirty_bytes),
                        giving_up_in = %Age(self.drain_timeout.saturating_sub(last_progress.elapsed())),
                        backend_error = status.volume.backend_error,
                        "still committing before the end"
                    );
                }
            }
            if last_progress.elapsed() >= self.drain_timeout {
                lost.extend(waiting.iter().map(|one| one.status().at_risk()));
                break;
            }
        }
        if lost.is_empty() { Ok(()) } else { Err(MountsError::Undrained(lost.join("; "))) }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OneMount {
    fn prepare(
        mount: &Mount,
        config: &Config,
        sessions: &dyn SessionPort,
        factory: &dyn EngineFactory,
        neighbours: &Arc<Neighbours>,
    ) -> Result<Self, String> {
        let place = Place::take(mount, &config.state_dir)?;
        neighbours.add(&place.tree, Path::new(&mount.prefix));
        let pending = factory.prepare(
            mount,
            VolumeOptions {
                tree: place.tree.clone(),
                prefix: mount.prefix.clone().into(),
                identity: place.identity,
                neighbours: neighbours.clone(),
                state: place.volume.clone(),
                durability: mount.durability,
                max_lag: mount.max_lag,
                dirty_limit: mount.dirty_limit,
                audit_interval: mount.audit_interval,
                upload_parallelism: mount.upload_parallelism,
                hydrate: mount.hydrate,
                cache_size: mount.cache_size,
                patience: mount.patience,
                quota: mount.quota,
                guard: mount.guard,
            },
        );
        let shown = NewMount {
            prefix: mount.prefix.clone(),
            tree: place.tree.clone(),
            local: mount.durability == Durability::Local,
            identity: place.identity,
            request_timeout: mount.request_timeout,
        };
        let index = sessions
            .add_mount(&shown, pending.sink(), pending.journal())
            .map_err(|error| format!("mount {}: {error}", mount.prefix))?;
        tracing::info!(
            prefix = mount.prefix, volume = mount.public_url(), tree = %place.tree.display(),
            identity = place.identity, "mount"
        );
        Ok(Self {
            config: mount.clone(),
            place,
            index,
            pending,
            phase: Mutex::new(Phase::Opening(None)),
            changed: Condvar::new(),
        })
    }

    /// Opens the volume, however often it takes, and lets its requests through.
    fn open(&self, gate: Arc<MountGate>) {
        let known = self.place.volume.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        let (began, mut pause) = (Instant::now(), OPEN_PAUSE.0);
        let result = loop {
            match self.pending.open(gate.clone()) {
                Ok(engine) => break Ok(engine),
                Err(OpenError::Final(error)) => break Err(error),
                Err(OpenError::Unavailable(why)) => {
                    if !known && began.elapsed() >= FIRST_OPEN_PATIENCE {
                        break Err(VolumeError::Failed(why));
                    }
                    tracing::warn!(
                        prefix = self.config.prefix,
                        why,
                        "the backend does not answer; trying again"
                    );
                    self.set_phase(Phase::Opening(Some(why)));
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(OPEN_PAUSE.1);
                }
            }
        };
        match result {
            Ok(engine) => {
                tracing::info!(prefix = self.config.prefix, took = %Age(began.elapsed()), "the volume is open");
                gate.router.open(self.index, &engine);
                self.set_phase(Phase::Open(engine));
            }
            Err(error) => {
                let (state, errno) = match error {
                    VolumeError::Fenced => (MountState::Fenced, libc::ESTALE),
                    VolumeError::NoRoom(_) | VolumeError::Failed(_) => (MountState::Failed, libc::EIO),
                };
                gate.router.refuse(self.index, errno);
                gate.sessions.set_state(self.index, state);
                self.set_phase(Phase::Failed(error));
            }
        }
    }

    fn flush(&self) -> Result<FlushStatus, String> {
        let prefix = &self.config.prefix;
        let engine = self.wait_open().map_err(|error| format!("mount {prefix}: {error}"))?;
        let seq = engine.flush().map_err(|error| format!("mount {prefix}: {error}"))?;
        Ok(FlushStatus { prefix: prefix.clone(), seq })
    }

    fn wait_open(&self) -> Result<Arc<dyn Engine>, VolumeError> {
        let mut phase = self.phase();
        loop {
            match &*phase {
                Phase::Open(engine) => return Ok(engine.clone()),
                Phase::Failed(error) => return Err(error.clone()),
                Phase::Opening(_) => {
                    phase = self.changed.wait(phase).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn engine(&self) -> Option<Arc<dyn Engine>> {
        match &*self.phase() {
            Phase::Open(engine) => Some(engine.clone()),
            Phase::Opening(_) | Phase::Failed(_) => None,
        }
    }

    fn status(&self) -> MountStatus {
        let volume = match &*self.phase() {
            Phase::Open(engine) => engine.status(),
            Phase::Failed(error) => VolumeStatus {
                state: if matches!(error, VolumeError::Fenced) { "fenced" } else { "failed" }.to_owned(),
                reason: Some(error.to_string()),
                ..VolumeStatus::default()
            },
            Phase::Opening(trouble) => {
                let status = self.pending.status();
                VolumeStatus {
                    state: "restoring".to_owned(),
                    backend_error: trouble.clone().or(status.backend_error),
                    ..status
                }
            }
        };
        MountStatus {
            prefix: self.config.prefix.clone(),
            tree: self.place.tree.clone(),
            identity: self.place.identity,
            url: self.config.public_url(),
            durability: self.config.durability,
            volume,
        }
    }

    fn set_phase(&self, phase: Phase) {
        *self.phase() = phase;
        self.changed.notify_all();
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
