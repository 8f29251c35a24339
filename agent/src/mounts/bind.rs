//! Binds the real sessions and volumes to the ports. It must not decide anything.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use storeshim_protocol::request::Ask;
use storeshim_protocol::{MountState, Space};

use super::ports::{Engine, EngineFactory, NewMount, OpenError, PendingVolume, SessionPort, SharedSink};
use super::{Mounts, MountsError};
use crate::backend::Backend;
use crate::blob::{Health, StoreOptions};
use crate::config::{self, Config};
use crate::doctor::aside;
use crate::durable::{Files, Link};
use crate::meta::MetaError;
use crate::session::{
    self, Freeze, IntentSink, MountEntry, Reply, RequestSink, ResidencyTable, SessionInfo, Sessions,
};
use crate::volume::{
    DirtySet, Evicted, Frozen, Gatekeeper, Journal, Local, Shared, TreeFiles, Volume, VolumeError,
    VolumeOptions, VolumeStatus, Warmed, Warmup, Watch,
};

/// Opens all mounts of `config`; see [`Mounts::open`].
pub fn open(config: &Config) -> Result<Arc<Mounts>, MountsError> {
    let mounts = Mounts::open(config, &start_sessions, &Volumes)?;
    let watched = mounts.notice.watch(&config.run_dir, Box::new(aside::examine));
    watched.map_err(|error| MountsError::Unusable(format!("cannot start a thread: {error}")))?;
    Ok(mounts)
}

fn start_sessions(run_dir: &Path, requests: Arc<dyn RequestSink>) -> Result<Arc<dyn SessionPort>, String> {
    match Sessions::start(run_dir, requests) {
        Ok(sessions) => Ok(sessions),
        Err(error) => Err(error.to_string()),
    }
}

impl SessionPort for Sessions {
    fn add_mount(
        &self,
        mount: &NewMount,
        sink: SharedSink,
        journal: Arc<dyn session::Journal>,
    ) -> Result<usize, String> {
        let entry = MountEntry {
            prefix: mount.prefix.clone().into(),
            tree: mount.tree.clone(),
            local: mount.local,
            identity: mount.identity,
            request_timeout: mount.request_timeout,
        };
        Sessions::add_mount(self, entry, sink, journal).map_err(|error| error.to_string())
    }

    fn all_added(&self) {
        self.retire_unclaimed();
    }

    fn set_state(&self, mount: usize, state: MountState) {
        Sessions::set_state(self, mount, state);
    }

    fn set_complete(&self, mount: usize, complete: bool) {
        Sessions::set_complete(self, mount, complete);
    }

    fn show_names_complete(&self, mount: usize) {
        Sessions::show_names_complete(self, mount);
    }

    fn set_throttle(&self, mount: usize, throttle: u32) {
        Sessions::set_throttle(self, mount, throttle);
    }

    fn set_quota(&self, mount: usize, near: bool, unasked: u64) {
        Sessions::set_quota(self, mount, near, unasked);
    }

    fn hooked(&self) -> session::Hooked {
        Sessions::hooked(self)
    }

    fn set_space(&self, mount: usize, space: &Space) {
        Sessions::set_space(self, mount, space);
    }

    fn residency(&self, mount: usize) -> Result<Arc<ResidencyTable>, String> {
        Sessions::residency(self, mount).map_err(|error| error.to_string())
    }

    fn freeze<'a>(&'a self, mount: usize, sink: &mut dyn IntentSink) -> Box<dyn Frozen + 'a> {
        Box::new(Sessions::freeze(self, mount, sink))
    }

    fn drain(&self, mount: usize) -> bool {
        Sessions::drain(self, mount)
    }

    fn list(&self) -> Vec<SessionInfo> {
        Sessions::list(self)
    }

    fn stop(&self) {
        Sessions::stop(self);
    }
}

impl Frozen for Freeze<'_> {
    fn deadline(&self) -> std::time::Instant {
        Freeze::deadline(self)
    }
}

/// Makes [`Volume`]s.
struct Volumes;

impl EngineFactory for Volumes {
    fn prepare(&self, mount: &config::Mount, options: VolumeOptions) -> Arc<dyn PendingVolume> {
        let journal = Arc::new(Journal::open(&options.state));
        Arc::new(Pending {
            url: mount.url.clone(),
            options,
            sink: Arc::default(),
            journal,
            shared: OnceLock::new(),
        })
    }
}

/// A [`Volume`] that is not open yet.
struct Pending {
    url: String,
    options: VolumeOptions,
    sink: Arc<Mutex<DirtySet>>,
    journal: Arc<Journal>,
    shared: OnceLock<Arc<Shared>>,
}

impl PendingVolume for Pending {
    fn sink(&self) -> SharedSink {
        self.sink.clone()
    }

    fn journal(&self) -> Arc<dyn session::Journal> {
        self.journal.clone()
    }

    fn status(&self) -> VolumeStatus {
        self.shared.get().map(|shared| shared.status(0, 0, None)).unwrap_or_default()
    }

    fn open(&self, gate: Arc<dyn Gatekeeper>) -> Result<Arc<dyn Engine>, OpenError> {
        let shared = self.shared.get_or_init(|| Shared::new(gate));
        let (backend, local) = std::thread::scope(|scope| {
            let local = scope.spawn(|| Local::open(&self.options));
            let backend = Backend::open(&self.url, &StoreOptions::default());
            let died = || Err(VolumeError::Failed("the thread that opens the volume's state died".into()));
            (backend, local.join().unwrap_or_else(|_| died()))
        });
        let backend = backend?;
        let volume = local.and_then(|local| {
            Volume::open(
                self.options.clone(),
                local,
                backend.meta.clone(),
                backend.blob.clone(),
                shared.clone(),
                self.sink.clone(),
                self.journal.clone(),
            )
        });
        match volume {
            Ok(volume) => {
                let files = backend.link.map(|link| self.show_files(&volume, &link)).transpose()?;
                Ok(Arc::new(Opened { volume, health: backend.health, _files: files }))
            }
            Err(error) => {
                // The next try opens the backend anew. That this one does not end well changes nothing.
                let _ = backend.meta.close();
                Err(match (backend.health.last_error(), error) {
                    (Some(_), VolumeError::Failed(why)) => OpenError::Unavailable(why),
                    (_, error) => OpenError::Final(error),
                })
            }
        }
    }
}

impl Pending {
    /// Lets the Worker of a Durable Object ask for the volume's files.
    fn show_files(&self, volume: &Arc<Volume>, link: &Arc<Link>) -> Result<Arc<dyn Files>, VolumeError> {
        let version = Arc::clone(link);
        let version = Box::new(move || version.version());
        let files = TreeFiles::new(Arc::clone(volume), &self.options, Arc::clone(&self.sink), version)?;
        let files: Arc<dyn Files> = Arc::new(files);
        link.serve_files(Arc::downgrade(&files));
        Ok(files)
    }
}

impl From<MetaError> for OpenError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::Unavailable(why) => Self::Unavailable(why),
            other => Self::Final(other.into()),
        }
    }
}

/// A [`Volume`] at work, and its backend's health, which belongs into its status.
struct Opened {
    volume: Arc<Volume>,
    health: Arc<Health>,
    /// What the Worker asks; gone with the volume.
    _files: Option<Arc<dyn Files>>,
}

impl Engine for Opened {
    fn request(&self, ask: Ask, reply: Box<dyn Reply>) {
        self.volume.request(ask, reply);
    }

    fn flush(&self) -> Result<u64, VolumeError> {
        self.volume.flush()
    }

    fn warm(&self, path: &Path, how: Warmup, watch: &dyn Watch) -> Result<Warmed, VolumeError> {
        self.volume.warm(path, how, watch)
    }

    fn evict(&self, path: &Path, watch: &dyn Watch) -> Result<Evicted, VolumeError> {
        self.volume.evict(path, watch)
    }

    fn status(&self) -> VolumeStatus {
        let mut status = self.volume.status();
        let health = &self.health;
        status.counters.extend(health.counters().map(|(name, value)| (format!("backend_{name}"), value)));
        status.backend_error = status.backend_error.or_else(|| health.last_error());
        status
    }

    fn shutdown(&self) {
        self.volume.shutdown();
    }
}
