//! Sessions against clients that behave, misbehave and die.

mod fake;
mod freezing;
mod hostile;
mod lifecycle;
mod requesting;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use storeshim_protocol::request::Request;
use storeshim_protocol::{Intent, OpenFlags};

use self::fake::FakeClient;
use super::feed::{Outbox, Sink};
use super::{IntentSink, Journal, MountEntry, Reply, RequestSink, Sessions};

/// A sink that remembers.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) inodes: Vec<u64>,
    pub(super) names: Vec<(u64, Vec<u8>)>,
    pub(super) look_everywhere: Vec<String>,
    pub(super) stragglers: Vec<u64>,
}

impl IntentSink for Recorder {
    fn intent(&mut self, intent: Intent<'_>) {
        match intent {
            Intent::Name { dir, name } => self.names.push((dir, name.to_vec())),
            Intent::Opened { ino, .. }
            | Intent::Written { ino, .. }
            | Intent::Attributes { ino }
            | Intent::Closed { ino } => self.inodes.push(ino),
        }
    }

    fn look_everywhere(&mut self, why: &str) {
        self.look_everywhere.push(why.into());
    }

    fn straggler(&mut self, subject: u64, _: &str) {
        self.stragglers.push(subject);
    }
}

/// A journal that a test can read.
#[derive(Debug, Default)]
pub(super) struct Written(pub(super) Mutex<Vec<u64>>);

impl Journal for Written {
    fn unseen(&self, ino: u64, _: OpenFlags) {
        self.0.lock().unwrap().push(ino);
    }
}

/// A journal that nobody reads.
pub(super) fn nowhere() -> Arc<dyn Journal> {
    Arc::new(Written::default())
}

/// An outbox with a journal that nobody reads.
pub(super) fn outbox(sink: Sink) -> Outbox {
    Outbox { sink, journal: nowhere() }
}

/// Requests as they come to the test.
type Requests = Receiver<(Request, Box<dyn Reply>)>;

/// A request sink that passes everything on to the test.
struct Collector(Mutex<Sender<(Request, Box<dyn Reply>)>>);

impl RequestSink for Collector {
    fn request(&self, request: Request, reply: Box<dyn Reply>) {
        let _ = self.0.lock().unwrap().send((request, reply));
    }
}

/// A freeze that does not wait for a straggler takes less, also on a busy machine.
const STRAGGLER_SLACK: Duration = Duration::from_millis(45);

/// An agent on a run directory of its own, with one mount at `/storage`.
struct Agent {
    dir: PathBuf,
    tree: PathBuf,
    sessions: Arc<Sessions>,
    requests: Requests,
    sink: Arc<Mutex<Recorder>>,
    mount: usize,
}

/// Starts sessions alone.
fn start(dir: &Path) -> (Arc<Sessions>, Requests) {
    let (sender, requests) = mpsc::channel();
    (Sessions::start(dir, Arc::new(Collector(Mutex::new(sender)))).unwrap(), requests)
}

fn entry(prefix: &str, tree: &Path) -> MountEntry {
    MountEntry {
        prefix: prefix.into(),
        tree: tree.into(),
        local: false,
        identity: false,
        request_timeout: Duration::ZERO,
    }
}

impl Agent {
    fn new(place: &Path) -> Self {
        let (dir, tree) = (place.join("run"), place.join("tree"));
        std::fs::create_dir_all(&tree).unwrap();
        let (sessions, requests) = start(&dir);
        let sink = Arc::new(Mutex::new(Recorder::default()));
        let mount = sessions.add_mount(entry("/storage", &tree), sink.clone(), nowhere()).unwrap();
        Self { dir, tree, sessions, requests, sink, mount }
    }

    /// A freeze that is over at once; returns what its sink was told, and how long it took.
    fn freeze_once(&self) -> (Recorder, Duration) {
        let begun = Instant::now();
        let mut told = Recorder::default();
        drop(self.sessions.freeze(self.mount, &mut told));
        (told, begun.elapsed())
    }

    /// Looks at the registered sink until `done`.
    fn until(&self, what: &str, mut done: impl FnMut(&mut Recorder) -> bool) {
        wait_until(what, || done(&mut self.sink.lock().unwrap()));
    }

    fn attach(&self) -> FakeClient {
        FakeClient::attach(&self.dir)
    }

    fn ring_files(&self) -> usize {
        std::fs::read_dir(self.dir.join("rings")).unwrap().count()
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
