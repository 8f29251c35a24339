use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::mounts::MountStatus;
use crate::session::SessionInfo;
use crate::volume::{Durability, Progress, VolumeStatus};

#[derive(Default)]
struct FakeAgent {
    holds: Arc<AtomicUsize>,
    ending: AtomicBool,
    when_idle: AtomicBool,
    flushed: Mutex<Vec<Option<String>>>,
    warmed: Mutex<Vec<(Vec<PathBuf>, Warmup)>>,
    called_off: AtomicBool,
}

struct FakeHold(Arc<AtomicUsize>);

impl Drop for FakeHold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn status() -> AgentStatus {
    let volume = VolumeStatus {
        state: "ready".into(),
        seq: 42,
        dirty_bytes: 4096,
        dirty_age_ms: 1500,
        counters: [("commits".to_owned(), 41)].into(),
        cut_pause_us: [100, 2000, 3000],
        residency: crate::volume::residency::Status {
            names_complete: true,
            resident_bytes: 8192,
            asked: 7,
            asked_hits: 5,
            ..Default::default()
        },
        ..VolumeStatus::default()
    };
    AgentStatus {
        pid: 7,
        version: "0.1.0".into(),
        uptime_ms: 2500,
        run_dir: "/run/x".into(),
        stopping: false,
        holds: 0,
        mounts: vec![MountStatus {
            prefix: "/sto\"rage".into(),
            tree: "/tree".into(),
            identity: false,
            url: "s3://b".into(),
            durability: Durability::Remote,
            volume,
        }],
        sessions: vec![SessionInfo { pid: 9, comm: "app".into(), uid: 1000, threads: 2 }],
        past_libc: vec!["9 app: openat (in /bin/app)".into()],
    }
}

impl Agent for FakeAgent {
    type Hold = FakeHold;

    fn status(&self) -> AgentStatus {
        AgentStatus { stopping: self.ending.load(Ordering::SeqCst), ..status() }
    }

    fn flush(&self, prefix: Option<&str>) -> Result<Vec<FlushStatus>, MountsError> {
        self.flushed.lock().unwrap().push(prefix.map(str::to_owned));
        match prefix {
            Some("/bad") => Err(MountsError::Unusable("there is no mount /bad here".into())),
            _ => Ok(vec![FlushStatus { prefix: "/storage".into(), seq: 43 }]),
        }
    }

    /// `/slow` goes on until it is called off.
    fn warm(
        &self,
        paths: &[PathBuf],
        how: Warmup,
        watch: &dyn Watch,
    ) -> Result<Vec<Worked<Warmed>>, MountsError> {
        self.warmed.lock().unwrap().push((paths.to_vec(), how));
        let mut files_done = 0;
        while paths.iter().any(|path| path == Path::new("/slow")) && !watch.called_off() {
            files_done += 1;
            watch.advanced(&Progress { files_done, ..Progress::default() });
            std::thread::sleep(Duration::from_millis(5));
        }
        self.called_off.store(watch.called_off(), Ordering::SeqCst);
        let one =
            |path: &PathBuf| Worked { path: path.clone(), done: Warmed { files: 1, ..Warmed::default() } };
        Ok(paths.iter().map(one).collect())
    }

    fn evict(&self, paths: &[PathBuf], _: &dyn Watch) -> Result<Vec<Worked<Evicted>>, MountsError> {
        let path = paths.first().cloned().unwrap_or_default();
        if path == Path::new("/late") {
            std::thread::sleep(Duration::from_millis(500));
        } else if path != Path::new("/bad") {
            return Ok(vec![Worked { path, done: Evicted { bytes: 7, ..Evicted::default() } }]);
        }
        Err(MountsError::Unusable(format!("{}: lies in no mount", path.display())))
    }

    fn hold(self: Arc<Self>) -> Option<FakeHold> {
        if self.ending.load(Ordering::SeqCst) {
            return None;
        }
        self.holds.fetch_add(1, Ordering::SeqCst);
        Some(FakeHold(self.holds.clone()))
    }

    fn stop_when_idle(&self) {
        self.when_idle.store(true, Ordering::SeqCst);
    }

    fn stop_now(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }
}

struct Served {
    dir: tempfile::TempDir,
    agent: Arc<FakeAgent>,
    client: Client,
    _runtime: tokio::runtime::Runtime,
}

fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let agent = Arc::new(FakeAgent::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { serve(dir.path(), agent.clone()).unwrap() });
    let client = Client::new(dir.path());
    Served { dir, agent, client, _runtime: runtime }
}

#[test]
fn the_status_arrives_whole() {
    let served = served();
    let got = served.client.status().unwrap();
    assert_eq!(serde_json::to_value(&got).unwrap(), serde_json::to_value(status()).unwrap());
}

#[test]
fn the_socket_is_private() {
    let served = served();
    let mode = std::fs::metadata(socket_path(served.dir.path())).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, if nix::unistd::geteuid().is_root() { 0o660 } else { 0o600 });
}

#[test]
fn a_dead_agents_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(socket_path(dir.path())).unwrap());
    let client = Client::new(dir.path());
    assert!(matches!(client.status(), Err(ClientError::NoAgent(_))));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { serve(dir.path(), Arc::new(FakeAgent::default())).unwrap() });
    client.status().unwrap();
}

#[test]
fn flush_passes_the_mount_and_the_error_on() {
    let served = served();
    assert_eq!(served.client.flush(None).unwrap()[0].seq, 43);
    served.client.flush(Some("/sto rage&é")).unwrap();
    let error = served.client.flush(Some("/bad")).unwrap_err().to_string();
    assert_eq!(error, "there is no mount /bad here");
    let flushed = served.agent.flushed.lock().unwrap();
    assert_eq!(*flushed, [None, Some("/sto rage&é".to_owned()), Some("/bad".to_owned())]);
}

#[test]
fn work_is_asked_for_followed_and_answered() {
    let served = served();
    let body = |text: &str| WarmupBody { paths: vec![text.into()], depth: Some(2), parallel: None };
    let done = served.client.warmup(&body("/a b\u{e9}"), |_| {}).unwrap();
    assert_eq!((done[0].path.as_path(), done[0].done.files), (Path::new("/a b\u{e9}"), 1));
    let how = Warmup { depth: Some(2), parallel: 8 };
    assert_eq!(*served.agent.warmed.lock().unwrap(), [(vec!["/a b\u{e9}".into()], how)]);
    let wrong = WarmupBody { parallel: Some(0), ..body("/a") };
    let error = served.client.warmup(&wrong, |_| {}).unwrap_err().to_string();
    assert!(error.contains("1 to 256"), "{error}");
    let evict = |path: &str| served.client.evict(&EvictBody { paths: vec![path.into()] }, |_| {});
    assert_eq!(evict("/x").unwrap()[0].done.bytes, 7);
    // Whether it comes at once, as a status, or later, as a line.
    assert_eq!(evict("/bad").unwrap_err().to_string(), "/bad: lies in no mount");
    assert_eq!(evict("/late").unwrap_err().to_string(), "/late: lies in no mount");
}

/// Ctrl-C at the command line: its process is gone, and so is the work.
#[test]
fn work_ends_when_whoever_asked_hangs_up() {
    use std::io::{Read, Write};
    let served = served();
    let mut stream = std::os::unix::net::UnixStream::connect(socket_path(served.dir.path())).unwrap();
    let body = r#"{"paths":["/slow"]}"#;
    write!(stream, "POST /v1/warmup HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .unwrap();
    let mut seen = String::new();
    while seen.matches("files_done").count() < 2 {
        let mut piece = [0; 512];
        let length = stream.read(&mut piece).unwrap();
        seen.push_str(std::str::from_utf8(&piece[..length]).unwrap());
    }
    assert!(!served.agent.called_off.load(Ordering::SeqCst));
    drop(stream);
    let began = Instant::now();
    while !served.agent.called_off.load(Ordering::SeqCst) {
        assert!(began.elapsed() < Duration::from_secs(5), "the work goes on for nobody");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_hold_lasts_as_long_as_its_connection() {
    let served = served();
    let hold = served.client.hold().unwrap();
    assert_eq!(served.agent.holds.load(Ordering::SeqCst), 1);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(served.agent.holds.load(Ordering::SeqCst), 1);
    drop(hold);
    let began = Instant::now();
    while served.agent.holds.load(Ordering::SeqCst) != 0 {
        assert!(began.elapsed() < Duration::from_secs(5), "the hold outlives its connection");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn shutdown_is_now_or_when_idle() {
    let served = served();
    served.client.shutdown(true).unwrap();
    assert!(served.agent.when_idle.load(Ordering::SeqCst) && !served.agent.ending.load(Ordering::SeqCst));
    assert!(served.client.shutdown(false).unwrap().stopping);
    assert!(matches!(served.client.hold(), Err(ClientError::Ending)));
}

#[test]
fn without_an_agent_the_error_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::new(dir.path()).status().unwrap_err();
    assert!(error.to_string().contains("storeshim agent --mount"), "{error}");
}

#[test]
fn a_run_directory_too_long_for_a_socket_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(100));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(async { serve(&long, Arc::new(FakeAgent::default())).unwrap_err() });
    assert!(error.to_string().contains("shorter run_dir"), "{error}");
}

#[test]
fn metrics_are_prometheus_text() {
    let text = render_metrics(&status());
    for line in [
        "# TYPE storeshim_dirty_bytes gauge",
        "storeshim_dirty_bytes{mount=\"/sto\\\"rage\"} 4096",
        "storeshim_dirty_age_seconds{mount=\"/sto\\\"rage\"} 1.5",
        "storeshim_up{mount=\"/sto\\\"rage\"} 1",
        "# TYPE storeshim_commits_total counter",
        "storeshim_commits_total{mount=\"/sto\\\"rage\"} 41",
        "storeshim_cut_pause_seconds{mount=\"/sto\\\"rage\",quantile=\"0.99\"} 0.002",
        "storeshim_resident_bytes{mount=\"/sto\\\"rage\"} 8192",
        "storeshim_names_complete{mount=\"/sto\\\"rage\"} 1",
        "# TYPE storeshim_asked_hits_total counter",
        "storeshim_asked_hits_total{mount=\"/sto\\\"rage\"} 5",
        "storeshim_sessions 1",
        "storeshim_past_libc_programs 1",
        "storeshim_uptime_seconds 2.5",
    ] {
        assert!(text.lines().any(|got| got == line), "{line} is missing in\n{text}");
    }
}
