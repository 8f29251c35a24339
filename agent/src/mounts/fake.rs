//! Stand-ins for sessions and engines, for the tests of the modules above them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::session::{IntentSink, Journal, Reply, SessionInfo};
use crate::volume::{Evicted, Frozen, Gatekeeper, Progress, Warmed, Warmup, Watch};
use storeshim_protocol::{Intent, Space};

/// A mount with the default settings.
pub fn mount(prefix: &str, url: &str) -> Mount {
    Mount {
        prefix: prefix.to_owned(),
        url: url.to_owned(),
        tree: None,
        placement: crate::config::Placement::Auto,
        durability: Durability::Remote,
        max_lag: Duration::from_secs(1),
        dirty_limit: 1 << 30,
        request_timeout: Duration::ZERO,
        audit_interval: Duration::from_secs(30),
        upload_parallelism: 8,
        hydrate: Default::default(),
        cache_size: None,
        patience: Duration::from_secs(60),
        guard: Default::default(),
        quota: Default::default(),
    }
}

/// A reply whose answer can be looked at.
pub struct FakeReply(Arc<Mutex<Option<i32>>>);

/// The answer of a [`FakeReply`].
pub struct Answer(Arc<Mutex<Option<i32>>>);

impl FakeReply {
    pub fn pair() -> (Box<dyn Reply>, Answer) {
        let cell = Arc::new(Mutex::new(None));
        (Box::new(Self(cell.clone())), Answer(cell))
    }
}

impl Reply for FakeReply {
    fn answer(self: Box<Self>, answer: storeshim_protocol::request::Answer) {
        let before = self.0.lock().unwrap().replace(answer.errno);
        assert_eq!(before, None, "answered twice");
    }
}

impl Answer {
    pub fn get(&self) -> Option<i32> {
        *self.0.lock().unwrap()
    }
}

/// Sessions without any process, unless told.
#[derive(Default)]
pub struct FakeSessions {
    pub shown: Mutex<Vec<NewMount>>,
    pub states: Mutex<Vec<(usize, MountState)>>,
    pub attached: Mutex<Vec<SessionInfo>>,
    pub stopped: AtomicBool,
}

struct Thawed;

impl Frozen for Thawed {
    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(1)
    }
}

impl SessionPort for FakeSessions {
    fn add_mount(&self, mount: &NewMount, _: SharedSink, _: Arc<dyn Journal>) -> Result<usize, String> {
        let mut shown = self.shown.lock().unwrap();
        shown.push(mount.clone());
        Ok(shown.len() - 1)
    }

    fn all_added(&self) {}

    fn set_state(&self, mount: usize, state: MountState) {
        self.states.lock().unwrap().push((mount, state));
    }

    fn set_complete(&self, _: usize, _: bool) {}

    fn show_names_complete(&self, _: usize) {}

    fn set_throttle(&self, _: usize, _: u32) {}

    fn set_quota(&self, _: usize, _: bool, _: u64) {}
    fn hooked(&self) -> crate::session::Hooked {
        crate::session::Hooked::default()
    }
    fn set_space(&self, _: usize, _: &Space) {}

    fn residency(&self, _: usize) -> Result<Arc<crate::session::ResidencyTable>, String> {
        Ok(Arc::new(crate::session::ResidencyTable::anonymous().unwrap()))
    }

    fn freeze<'a>(&'a self, _: usize, _: &mut dyn IntentSink) -> Box<dyn Frozen + 'a> {
        Box::new(Thawed)
    }

    fn drain(&self, _: usize) -> bool {
        true
    }

    fn list(&self) -> Vec<SessionInfo> {
        self.attached.lock().unwrap().clone()
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Deaf;

impl Journal for Deaf {
    fn unseen(&self, _: u64, _: storeshim_protocol::OpenFlags) {}
}

impl IntentSink for Deaf {
    fn intent(&mut self, _: Intent<'_>) {}
    fn look_everywhere(&mut self, _: &str) {}
    fn straggler(&mut self, _: u64, _: &str) {}
}

/// An engine that does at once what it is told to do, unless it is stuck.
#[derive(Default)]
pub struct FakeEngine {
    pub seq: AtomicU64,
    pub stuck: AtomicBool,
    pub status: Mutex<VolumeStatus>,
    pub worked: Mutex<Vec<PathBuf>>,
}

impl FakeEngine {
    fn wait(&self) {
        while self.stuck.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// One file of ten bytes at each path, unless called off.
    fn work(&self, path: &Path, watch: &dyn Watch) -> u64 {
        while self.stuck.load(Ordering::SeqCst) && !watch.called_off() {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.worked.lock().unwrap().push(path.to_owned());
        let bytes = if watch.called_off() { 0 } else { 10 };
        watch.advanced(&Progress {
            activity: "working".into(),
            files_done: bytes / 10,
            files_total: 1,
            bytes_done: bytes,
            bytes_total: 10,
        });
        bytes
    }
}

impl Engine for FakeEngine {
    fn request(&self, _: storeshim_protocol::request::Ask, reply: Box<dyn Reply>) {
        reply.reply(0);
    }

    fn flush(&self) -> Result<u64, VolumeError> {
        self.wait();
        Ok(self.seq.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn warm(&self, path: &Path, _: Warmup, watch: &dyn Watch) -> Result<Warmed, VolumeError> {
        let bytes = self.work(path, watch);
        Ok(Warmed { files: bytes / 10, bytes, ..Warmed::default() })
    }

    fn evict(&self, path: &Path, watch: &dyn Watch) -> Result<Evicted, VolumeError> {
        let bytes = self.work(path, watch);
        Ok(Evicted { files: bytes / 10, bytes, kept: Vec::new() })
    }

    fn status(&self) -> VolumeStatus {
        let status = self.status.lock().unwrap().clone();
        let state = if status.state.is_empty() { "ready".to_owned() } else { status.state.clone() };
        VolumeStatus { state, seq: self.seq.load(Ordering::SeqCst), ..status }
    }

    fn shutdown(&self) {
        self.wait();
    }
}

/// What [`FakeFactory`]'s volumes answer to `open`, in order; the last answer is repeated.
#[derive(Default)]
pub struct FakeFactory {
    pub engine: Arc<FakeEngine>,
    pub answers: Arc<Mutex<Vec<OpenError>>>,
    pub hold: Arc<AtomicBool>,
}

struct FakePending {
    engine: Arc<FakeEngine>,
    answers: Arc<Mutex<Vec<OpenError>>>,
    hold: Arc<AtomicBool>,
}

impl EngineFactory for FakeFactory {
    fn prepare(&self, _: &Mount, options: VolumeOptions) -> Arc<dyn PendingVolume> {
        assert!(options.tree.is_dir() && options.state.is_dir());
        Arc::new(FakePending {
            engine: self.engine.clone(),
            answers: self.answers.clone(),
            hold: self.hold.clone(),
        })
    }
}

impl PendingVolume for FakePending {
    fn journal(&self) -> Arc<dyn Journal> {
        Arc::new(Deaf)
    }

    fn sink(&self) -> SharedSink {
        Arc::new(Mutex::new(Deaf))
    }

    fn status(&self) -> VolumeStatus {
        VolumeStatus::default()
    }

    fn open(&self, gate: Arc<dyn Gatekeeper>) -> Result<Arc<dyn Engine>, OpenError> {
        while self.hold.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut answers = self.answers.lock().unwrap();
        if !answers.is_empty() {
            return Err(answers.remove(0));
        }
        gate.set_state(MountState::Ready);
        Ok(self.engine.clone())
    }
}

/// Mounts over fakes, below a directory of their own.
pub struct Fakes {
    pub dir: tempfile::TempDir,
    pub sessions: Arc<FakeSessions>,
    pub factory: FakeFactory,
}

impl Default for Fakes {
    fn default() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), sessions: Arc::default(), factory: FakeFactory::default() }
    }
}

impl Fakes {
    pub fn config(&self, mounts: Vec<Mount>) -> Config {
        Config {
            run_dir: self.dir.path().join("run"),
            state_dir: self.dir.path().join("state"),
            drain_timeout: Duration::from_millis(300),
            log: crate::config::Log { level: "info".into(), format: Default::default() },
            mounts,
        }
    }

    pub fn open(&self, prefixes: &[&str]) -> Result<Arc<Mounts>, MountsError> {
        let mounts = prefixes.iter().map(|prefix| mount(prefix, &format!("memory:///{prefix}"))).collect();
        let sessions = self.sessions.clone();
        Mounts::open(&self.config(mounts), &move |_, _| Ok(sessions.clone()), &self.factory)
    }
}
