//! Volumes in Durable Objects, on the real runtime: what is restored after a lost machine, who is fenced, what the Worker
//! sees of the files, and what broken connections do to any of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use storeshim_tests::node::{Node, Said, Setup, built, find};
use storeshim_tests::programs::scale;
use storeshim_tests::proxy::{Faults, Proxy};
use storeshim_tests::tls::TlsFront;
use storeshim_tests::writer::{self, Writer, verify};
use storeshim_workerd::{Class, Engine, Runtime, TOKEN, Worker, free_port, missing, package};

const LONG: Duration = Duration::from_secs(60);

fn start(engine: Option<&Engine>) -> Runtime {
    let entry = package().join("test/worker/index.ts");
    let plain = |name, binding| Class { name, binding, container: false };
    let mut classes = vec![plain("DialedVolume", "DIALED"), plain("StorageObject", "PLAIN")];
    if engine.is_some() {
        classes.push(Class { name: "TestContainer", binding: "CONTAINER", container: true });
    }
    let socket = engine.map(Engine::socket);
    Runtime::start(&Worker { entry: &entry, classes: &classes, engine: socket.as_deref() }, None).unwrap()
}

/// The runtime, unless the test is to be skipped: where it is missing, and for the reference run.
fn runtime() -> Option<Runtime> {
    if let Some(why) = missing() {
        eprintln!("skipped: {why}");
        return None;
    }
    std::env::var_os("STORESHIM_E2E_REFERENCE").is_none().then(|| start(None))
}

/// A volume that the agent reaches by a WebSocket.
fn websocket(authority: &str, id: &str) -> Setup {
    Setup::translated(format!("do+ws://{authority}/container/{id}")).with_env("STORESHIM_TOKEN", TOKEN)
}

/// A volume whose object dials the agent.
fn dialled(runtime: &Runtime, id: &str) -> Setup {
    let port = free_port().unwrap();
    runtime.get(&format!("/test/{id}/dial?port={port}")).unwrap();
    Setup::translated(format!("do://listen:{port}?bind=127.0.0.1"))
}

/// As on other backends; in every other round the object's machine is lost as well.
fn fsync_campaign(runtime: Runtime, setup: impl Fn(&Runtime, &str) -> Setup, dials: bool) {
    let runtime = RefCell::new(runtime);
    let setup = |volume: u32| setup(&runtime.borrow(), &format!("v{volume}"));
    let rounds = scale("STORESHIM_ROUNDS", 20).min(100);
    writer::fsync_campaign(
        rounds,
        |volume| Node::started(setup(volume)),
        |node, round, writer| {
            if round % 2 == 1 {
                runtime.borrow_mut().kill();
            }
            node.lose();
            drop(writer);
            if round % 2 == 1 {
                runtime.borrow_mut().run().unwrap();
            }
            if dials {
                // The new machine has another port.
                *node.setup() = setup(round / 10);
            }
            node.start();
        },
    );
}

#[test]
fn fsync_campaign_over_a_websocket() {
    let Some(runtime) = runtime() else { return };
    fsync_campaign(runtime, |runtime, id| websocket(&runtime.authority(), id), false);
}

#[test]
fn fsync_campaign_dialled() {
    let Some(runtime) = runtime() else { return };
    fsync_campaign(runtime, dialled, true);
}

/// An agent and its writer live through deaths of the runtime: a barrier waits, nothing is lost, nobody is restarted.
#[test]
fn the_runtime_may_die_and_come_back() {
    let Some(mut runtime) = runtime() else { return };
    let mut node = Node::started(websocket(&runtime.authority(), "one"));
    let mut writer = Writer::start(&node, "steady");
    for _ in 0..3 {
        writer.advances(3, LONG);
        runtime.kill();
        std::thread::sleep(Duration::from_millis(300));
        writer.app().assert_running();
        runtime.run().unwrap();
    }
    writer.advances(3, LONG);
    writer.finish();
    node.lose();
    node.start();
    assert!(verify(&node, "steady") >= 12);
}

/// A Durable Object that does not answer for a while is waited for, not given up.
#[test]
fn a_stalled_object_is_waited_for() {
    let Some(runtime) = runtime() else { return };
    let mut node = Node::started(websocket(&runtime.authority(), "one"));
    let mut writer = Writer::start(&node, "steady");
    writer.advances(3, LONG);
    runtime.pause(true);
    std::thread::sleep(Duration::from_secs(2));
    let before = writer.acknowledged();
    // Longer than signs of life may be missing.
    node.await_status("trouble", |status| {
        let trouble = find(status, "backend_error").and_then(|text| text.as_str());
        trouble.is_some_and(|text| text.contains("no connection with the Durable Object"))
    });
    assert_eq!(writer.acknowledged(), before, "acknowledged although nobody answers");
    runtime.pause(false);
    writer.advances(3, LONG);
    writer.finish();
}

/// A writer works through connections that break at any byte, and the machine is lost meanwhile.
fn breaks(on: impl Fn(&Faults)) {
    let Some(runtime) = runtime() else { return };
    let proxy = Proxy::start(runtime.authority().parse().unwrap());
    let mut node = Node::started(websocket(&proxy.address().to_string(), "one"));
    let mut writer = Writer::start(&node, "steady");
    writer.advances(5, LONG);
    on(proxy.faults());
    std::thread::sleep(Duration::from_secs(3));
    writer.app().assert_running();
    proxy.faults().heal();
    writer.advances(5, LONG);
    assert!(proxy.faults().done.load(Relaxed) > 0, "no fault happened");
    writer.finish();
    let lost = Writer::start(&node, "lost");
    on(proxy.faults());
    std::thread::sleep(Duration::from_secs(1));
    node.lose();
    drop(lost);
    proxy.faults().heal();
    node.start();
    verify(&node, "steady");
    verify(&node, "lost");
}

#[test]
fn connections_that_break_within_a_frame() {
    breaks(|faults| faults.reset_request_pct.store(5, Relaxed));
}

#[test]
fn connections_whose_answers_are_lost() {
    breaks(|faults| faults.cut_answer_pct.store(5, Relaxed));
}

#[test]
fn connections_whose_answers_come_half() {
    breaks(|faults| faults.half_answer_pct.store(5, Relaxed));
}

/// Two agents of one volume: the older one is fenced, whichever way it is connected.
#[test]
fn the_older_agent_is_fenced() {
    let Some(runtime) = runtime() else { return };
    for setup in [dialled(&runtime, "one"), websocket(&runtime.authority(), "one")] {
        let mut older = Node::started(setup);
        older.sh("echo old > file; sync file");
        let newer = Node::started(websocket(&runtime.authority(), "one"));
        let said = older.bash("echo stale > file && sync file");
        assert!(said.code != 0, "a fenced agent acknowledged");
        older.await_state("fenced");
        assert_eq!(newer.sh("cat file").trim(), "old");
        newer.sh("rm file; sync .");
    }
}

#[test]
fn a_wrong_token_and_a_taken_port_are_said() {
    let Some(runtime) = runtime() else { return };
    let wrong = websocket(&runtime.authority(), "one").with_env("STORESHIM_TOKEN", "wrong-secret");
    let said = Node::new(wrong).start_refused();
    assert!(!said.err.contains("wrong-secret"), "{}", said.err);
    said.refused(&["401", "token is missing or wrong"]);
    let none = Setup::translated(format!("do+ws://{}/container/one", runtime.authority()));
    Node::new(none).start_refused().refused(&["STORESHIM_TOKEN"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("do://listen:{}?bind=127.0.0.1", taken.local_addr().unwrap().port());
    Node::new(Setup::translated(url)).start_refused().refused(&["cannot listen", "port that is free"]);
}

/// While an agent is connected, the Worker and programs see the same files; afterwards the Worker still does.
#[test]
fn worker_and_programs_see_the_same_files() {
    let Some(runtime) = runtime() else { return };
    for (id, setup) in [("a", dialled(&runtime, "a")), ("b", websocket(&runtime.authority(), "b"))] {
        let file = |path: &str| format!("/container/{id}/files/{path}");
        let mut node = Node::started(setup);
        // Not committed yet, and seen.
        node.sh("mkdir d; echo 'of the app' > d/app; ln -s /etc/passwd out; ln -s d/app in");
        assert_eq!(runtime.get(&file("d/app")).unwrap(), "of the app\n");
        assert_eq!(runtime.get(&file("in")).unwrap(), "of the app\n");
        assert_eq!(runtime.ask("GET", &file("out"), b"").unwrap().0, 404);
        assert_eq!(runtime.ask("GET", &file("d/none"), b"").unwrap().0, 404);
        let listed = runtime.get(&file("?list")).unwrap();
        assert!(["\"d\"", "\"in\"", "\"out\""].iter().all(|name| listed.contains(name)), "{listed}");
        // Written by the Worker, and there for programs when it is answered.
        let large: Vec<u8> = (0..3_000_000_u32).map(|at| (at * 7 / 5) as u8).collect();
        assert_eq!(runtime.ask("PUT", &file("new/dir/large"), &large).unwrap().0, 201);
        assert_eq!(std::fs::read(node.tree().join("new/dir/large")).unwrap(), large);
        let status = runtime.ask("PUT", &file("d/app"), b"of the Worker").unwrap().0;
        assert!(matches!(status, 200 | 201 | 204), "{status}");
        assert_eq!(node.sh("cat d/app"), "of the Worker");
        let status = runtime.ask("DELETE", &file("in"), b"").unwrap().0;
        assert!(matches!(status, 200 | 204), "{status}");
        assert_eq!(node.sh("ls").trim(), "d\nnew\nout");
        // What was answered is durable: the machine is lost at once.
        node.lose();
        node.start();
        assert_eq!(std::fs::read(node.tree().join("new/dir/large")).unwrap(), large);
        assert_eq!(node.sh("cat d/app"), "of the Worker");
        node.sh("echo last > d/last");
        assert!(node.stop_agent().success());
        if id == "a" {
            // It dials for as long as its container runs; there is none any more.
            runtime.get(&format!("/test/{id}/stop")).unwrap();
        }
        assert_eq!(runtime.get(&file("d/last")).unwrap(), "last\n");
        assert_eq!(runtime.ask("GET", &file("new/dir/large"), b"").unwrap().1, large);
    }
}

/// The mount's quota holds for what the Worker writes, whether the agent runs or not.
#[test]
fn the_worker_keeps_within_the_quota() {
    let Some(runtime) = runtime() else { return };
    let setup = websocket(&runtime.authority(), "one");
    let mut node = Node::started(setup.with("quota_bytes", "1MiB").with("quota_inodes", "6"));
    node.sh("mkdir d; head -c 600000 /dev/zero > d/app; sync d/app");
    let put = |path: &str, bytes: usize| {
        let (status, said) =
            runtime.ask("PUT", &format!("/container/one/files/{path}"), &vec![b'x'; bytes]).unwrap();
        (status, String::from_utf8_lossy(&said).into_owned())
    };
    for running in [true, false] {
        let (status, said) = put("large", 500_000);
        assert!(status == 507 && said.contains("EDQUOT") && said.contains("quota_bytes"), "{status} {said}");
        let (status, said) = put("d/app", 1_100_000);
        assert!(status == 507 && said.contains("EDQUOT"), "{status} {said}");
        assert_eq!(put(&format!("small{running}"), 1000).0, 201);
        assert_eq!(put("d/app", 590_000).0, 201, "it becomes no larger");
        if running {
            assert!(node.stop_agent().success());
        }
    }
    // The root, d, d/app and two small ones are five.
    assert_eq!(put("sixth", 0).0, 201);
    let (status, said) = put("seventh", 0);
    assert!(status == 507 && said.contains("quota_inodes"), "{status} {said}");
}

/// More data than the object stores: it is said, and nothing that was kept is lost. A commit that has begun keeps waiting for room;
/// an agent that is started again begins with what is there, without the files that were deleted meanwhile.
#[test]
fn a_full_object_is_said_and_goes_on() {
    let Some(runtime) = runtime() else { return };
    let mut node = Node::started(websocket(&runtime.authority(), "one"));
    node.sh("echo kept > kept; sync kept; head -c 120000000 /dev/urandom > first; sync first");
    // The objects of the tests store 200 MB.
    node.sh("head -c 100000000 /dev/urandom > second");
    node.await_status("that it is full", |status| {
        let trouble = find(status, "backend_error").and_then(|text| text.as_str());
        trouble.is_some_and(|text| text.contains("189 MB") && text.contains("bind an R2 bucket"))
    });
    node.sh("rm first second");
    node.kill_agent();
    node.start();
    node.flush();
    node.sh("echo on > on; sync on");
    node.lose();
    node.start();
    assert_eq!(node.sh("cat kept on; ls").trim(), "kept\non\nkept\non");
}

/// More metadata to commit at once than goes as one message: nothing is wedged by it, nothing lost.
#[test]
fn a_commit_larger_than_a_message_is_made() {
    let Some(runtime) = runtime() else { return };
    let mut node = Node::started(websocket(&runtime.authority(), "one"));
    // By a program without the shim, so that one audit finds them all. Long targets make few links enough.
    let script =
        "import os, sys\nfor n in range(5000):\n    os.symlink(f'{n:0>4000}', f'{sys.argv[1]}/{n}')\n";
    let made = Command::new("/usr/bin/python3").arg("-c").arg(script).arg(node.tree()).status().unwrap();
    assert!(made.success());
    node.flush();
    let sum = |node: &Node| node.sh("find . -type l -printf '%p %l\\n' | LC_ALL=C sort | md5sum; ls | wc -l");
    let before = sum(&node);
    assert!(before.ends_with("5000\n"), "{before}");
    node.lose();
    node.start();
    assert_eq!(sum(&node), before);
    node.sh("echo on > on; sync on");
}

/// Over TLS: a certificate that nobody vouches for is refused with what to do, and one that `SSL_CERT_FILE` vouches for is used by
/// the WebSocket and by packs over HTTP.
#[test]
fn certificates_are_checked() {
    let Some(runtime) = runtime() else { return };
    let front = TlsFront::start(runtime.authority().rsplit(':').next().unwrap().parse().unwrap());
    let url = format!("do+wss://{}/container/one", front.authority());
    let setup = || Setup::translated(&url).with_env("STORESHIM_TOKEN", TOKEN);
    Node::new(setup()).start_refused().refused(&["certificate", "does not trust", "SSL_CERT_FILE"]);
    assert_eq!(front.requests(), Vec::<String>::new(), "the token was shown to somebody unknown");
    let trusted = front.trusted();
    let mut node = Node::started(setup().with_env("SSL_CERT_FILE", trusted.to_str().unwrap()));
    node.sh("head -c 5000000 /dev/urandom > large; echo small > small; sync large small; md5sum large > sum");
    node.sh("sync sum");
    node.lose();
    node.start();
    node.sh("md5sum -c sum; [ $(cat small) = small ]");
    let requests = front.requests();
    for wanted in ["GET /container/one/.storeshim/agent", "PUT /container/one/.storeshim/packs/"] {
        assert!(requests.iter().any(|line| line.starts_with(wanted)), "{wanted}: {requests:?}");
    }
}

/// A Worker that speaks JSON is shown the same files, on the same port.
#[test]
fn json_is_spoken_on_the_same_port() {
    use std::io::{Read, Write};
    let Some(runtime) = runtime() else { return };
    let setup = dialled(&runtime, "one");
    let port: u16 = setup.url.split([':', '?']).nth(2).unwrap().parse().unwrap();
    let node = Node::started(setup);
    node.sh("mkdir d; echo hello > d/file");
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut ask = |text: &str| {
        stream.write_all(&(text.len() as u32).to_be_bytes()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    };
    let read = ask(r#"{"id": "1", "operation": "read", "path": "/d/file", "offset": 1, "size": 3}"#);
    assert!(read.contains(r#""data":"ZWxs""#) && read.contains(r#""id":"1""#), "{read}");
    let wrote = ask(r#"{"id": 2, "operation": "write", "path": "new/file", "data": "aGVsbG8="}"#);
    assert!(wrote.contains(r#""bytesWritten":5"#) && wrote.contains(r#""id":2"#), "{wrote}");
    assert_eq!(node.sh("cat new/file"), "hello");
    let part = ask(r#"{"id": 2, "operation": "write", "path": "/new/file", "data": "WFk=", "offset": 4}"#);
    assert!(part.contains(r#""bytesWritten":2"#), "{part}");
    assert_eq!(node.sh("cat new/file"), "hellXY");
    let stat = ask(r#"{"id": 3, "operation": "stat", "path": "new/file"}"#);
    assert!(stat.contains(r#""isFile":true"#) && stat.contains(r#""size":6"#), "{stat}");
    let stat = ask(r#"{"id": 3, "operation": "stat", "path": "new"}"#);
    assert!(stat.contains(r#""isDirectory":true"#), "{stat}");
    let names = ask(r#"{"id": 4, "operation": "readdir", "path": "/"}"#);
    assert!(names.contains(r#"["d","new"]"#), "{names}");
    assert!(ask(r#"{"id": 5, "operation": "unlink", "path": "d/file"}"#).contains("success"));
    assert!(ask(r#"{"id": 6, "operation": "read", "path": "d/file"}"#).contains("ENOENT"));
    assert!(ask(r#"{"id": 7, "operation": "read", "path": "../../etc/passwd"}"#).contains("EINVAL"));
    // What is wrong ends its own connection only, with the reason where there is a protocol to say it in.
    let said = |bytes: &[u8], ends: bool| {
        let mut other = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        other.write_all(bytes).unwrap();
        if ends {
            other.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut said = Vec::new();
        let _ = other.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    };
    assert_eq!(said(b"GET / HTTP/1.1\r\n\r\n", false), "");
    let oversize = said(b"\0\0\0\x02{}\x7f\xff\xff\xff", false);
    assert!(oversize.contains("2147483647 bytes was announced"), "{oversize}");
    let nothing = said(b"\0\0\0\x04{..}", false);
    assert!(nothing.contains("does not hold a JSON object"), "{nothing}");
    let half = said(b"\0\0\0\x40{\"id\": 8, \"operation\": \"unlink\", \"path\": \"new/file\"", true);
    assert_eq!(half, "", "half a request was answered");
    assert_eq!(node.sh("cat new/file"), "hellXY");
    node.sh("echo on > on; sync on");
}

/// Containers of the platform, played by processes: the visit counter of the examples.
struct Containers {
    runtime: Runtime,
    engine: Engine,
}

/// What a container runs, as the image's entry point does: a server, with settings of its mount.
fn entry(server: &str, settings: &str) -> String {
    format!(
        "mkdir $DISK/storage; export STORESHIM_SHIM={} STORAGE=$DISK/storage PORT=$PORT_8080; exec {} run --run-dir $DISK/run \
         --state-dir $DISK/state --mount \"$DISK/storage=do://listen:$PORT_8000?bind=127.0.0.1,placement=identity{settings}\" -- \
         {server}",
        built("libstoreshim.so", "STORESHIM_SHIM").display(),
        built("storeshim", "STORESHIM_BIN").display(),
    )
}

impl Containers {
    fn start() -> Option<Self> {
        let server = package().join("../examples/visits-node/server.mjs");
        Self::of(&entry(&format!("node {}", server.display()), ""))
    }

    fn of(entry: &str) -> Option<Self> {
        if let Some(why) = missing() {
            eprintln!("skipped: {why}");
            return None;
        }
        let engine = Engine::start(&["sh", "-c", entry], None).unwrap();
        Some(Self { runtime: start(Some(&engine)), engine })
    }

    fn visit(&self, id: &str) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            let (status, body) = self.runtime.ask("GET", &format!("/real/{id}/"), b"").unwrap();
            let text = String::from_utf8_lossy(&body).trim().to_owned();
            if status == 200 {
                return text;
            }
            // A container that is just starting, or has just gone.
            assert!(Instant::now() < deadline, "{status} {text}\n{}", self.runtime.said());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn visits_go_on_over_lost_containers() {
    let Some(mut all) = Containers::start() else { return };
    assert_eq!(all.visit("a"), "visit 1");
    assert_eq!(all.visit("a"), "visit 2");
    assert_eq!(all.visit("b"), "visit 1", "each id has a volume of its own");
    let disks = all.engine.disks().unwrap();
    assert_eq!(all.engine.kill_all().unwrap(), 2);
    assert!(disks.iter().all(|disk| !disk.exists()), "the disks are lost");
    assert_eq!(all.visit("a"), "visit 3");
    assert_eq!(all.visit("b"), "visit 2");
    assert_eq!(all.engine.starts().unwrap(), 4);
    all.engine.kill_all().unwrap();
    // While the containers sleep, the Worker reads their files.
    assert_eq!(all.runtime.get("/real/a/files/visits").unwrap(), "3");
    assert_eq!(all.runtime.get("/real/b/files/visits").unwrap(), "2");
    all.runtime.kill();
    all.runtime.run().unwrap();
    assert_eq!(all.visit("a"), "visit 4");
    // The object's machine is lost while the container runs on.
    all.runtime.kill();
    all.runtime.run().unwrap();
    assert_eq!(all.visit("a"), "visit 5");
}

/// The example in Go, which no hook reaches, with the settings of its image: what its README promises.
#[test]
fn visits_of_a_program_without_libc_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let server = directory.path().join("visits");
    let mut go = Command::new("go");
    go.current_dir(package().join("../examples/visits-go"))
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly");
    let made = go
        .env("GOCACHE", directory.path().join("cache"))
        .args(["build", "-o"])
        .arg(&server)
        .arg(".")
        .output();
    match made {
        Ok(made) => drop(Said::from(made).succeeded()),
        Err(error) => {
            return eprintln!(
                "skipped: Go is not installed ({error}); `apt-get install golang-go` provides it"
            );
        }
    }
    let entry = entry(server.to_str().unwrap(), ",hydrate=eager,audit_interval=1s");
    let Some(all) = Containers::of(&entry) else { return };
    for visit in 1..=3 {
        assert_eq!(all.visit("a"), format!("visit {visit}"));
        assert_eq!(all.engine.kill_all().unwrap(), 1, "right behind the answer");
        assert_eq!(all.runtime.get("/real/a/files/visits").unwrap(), visit.to_string());
    }
    assert_eq!(all.visit("b"), "visit 1");
    assert_eq!(all.visit("a"), "visit 4");
}

#[test]
fn a_container_that_lingers_is_cut_off() {
    let Some(all) = Containers::start() else { return };
    assert_eq!(all.visit("a"), "visit 1");
    let old: PathBuf = all.engine.disks().unwrap().remove(0);
    assert_eq!(all.engine.forget_all().unwrap(), 1);
    assert_eq!(all.visit("a"), "visit 2", "in a new container");
    let deadline = Instant::now() + LONG;
    loop {
        let mut status = Command::new(built("storeshim", "STORESHIM_BIN"));
        status.args(["status", "--json", "--run-dir"]).arg(old.join("run"));
        let said = Said::from(status.output().unwrap());
        // The object dials the new container only; were the old one to come back, it would be fenced.
        if said.out.contains("fenced") || said.out.contains("no connection with the Durable Object") {
            break;
        }
        assert!(Instant::now() < deadline, "the old agent is not cut off: {} {}", said.out, said.err);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(all.visit("a"), "visit 3");
}
