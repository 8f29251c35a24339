//! Promise 4: the backend may be slow, refuse, lie about what it did, or vanish. Nothing acknowledged is lost, nothing
//! is acknowledged that is not there, and when the backend is back everything goes on without a restart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::Value;
use storeshim_tests::node::{FileStore, Node, Setup, find};
use storeshim_tests::proxy::{Faults, Proxy};
use storeshim_tests::s3::{BUCKET, Knobs, S3Server};
use storeshim_tests::writer::{Writer, verify};

const LONG: Duration = Duration::from_secs(60);

fn seconds(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

/// A node whose way to the server goes through a proxy.
fn behind(proxy: &Proxy) -> Setup {
    Setup::identity(format!("s3://{BUCKET}/volume")).with_s3(&proxy.endpoint())
}

/// A writer works through a time of faults that it must survive; then the node is lost, once with the faults still
/// on, and once healthy.
fn survives_faults(
    server: &S3Server,
    setup: Setup,
    on: impl Fn(),
    off: impl Fn(),
    happened: impl Fn() -> u64,
) {
    let mut node = Node::new(setup);
    if node.setup().reference {
        return; // The plain disk has no backend.
    }
    node.start();
    let mut writer = Writer::start(&node, "steady");
    writer.advances(5, LONG);
    on();
    seconds(3.0);
    writer.app().assert_running();
    off();
    writer.advances(5, LONG);
    assert!(happened() > 0, "no fault happened ({} requests)", server.counters().all());
    writer.finish();

    let lost = Writer::start(&node, "lost");
    on();
    seconds(1.0);
    node.lose();
    drop(lost);
    off();
    node.start();
    verify(&node, "steady");
    verify(&node, "lost");
    node.sh("echo alive > alive");
    node.survives("faults");
}

fn server_fault(set: fn(&Knobs)) {
    let server = S3Server::start();
    survives_faults(
        &server,
        Setup::on_s3(&server),
        || set(server.knobs()),
        || server.knobs().heal(),
        || server.counters().faults.load(Relaxed),
    );
}

fn network_fault(set: fn(&Faults)) {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address());
    survives_faults(
        &server,
        behind(&proxy),
        || set(proxy.faults()),
        || proxy.faults().heal(),
        || proxy.faults().done.load(Relaxed),
    );
}

#[test]
fn internal_errors() {
    server_fault(|knobs| knobs.internal_error_pct.store(40, Relaxed));
}

#[test]
fn slow_down() {
    server_fault(|knobs| knobs.slow_down_pct.store(40, Relaxed));
}

#[test]
fn too_many_requests() {
    server_fault(|knobs| knobs.too_many_pct.store(40, Relaxed));
}

/// The write is performed and then answered by 500: a retried conditional write meets its own success.
#[test]
fn performed_but_answered_by_an_error() {
    server_fault(|knobs| knobs.ambiguous_pct.store(30, Relaxed));
}

#[test]
fn nothing_but_errors_for_a_while() {
    server_fault(|knobs| knobs.internal_error_pct.store(100, Relaxed));
}

/// The write is performed and the connection dies before the answer.
#[test]
fn answers_cut_off() {
    network_fault(|faults| faults.cut_answer_pct.store(20, Relaxed));
}

#[test]
fn half_answers() {
    network_fault(|faults| faults.half_answer_pct.store(20, Relaxed));
}

#[test]
fn resets_in_the_middle_of_requests() {
    network_fault(|faults| faults.reset_request_pct.store(20, Relaxed));
}

#[test]
fn connections_refused() {
    network_fault(|faults| {
        faults.refuse.store(true, Relaxed);
        faults.reset_request_pct.store(100, Relaxed);
    });
}

/// A backend that does not answer at all: no barrier succeeds, local reads and writes go on, `status` says what is at
/// risk and why, and all is well when it answers again.
#[test]
fn backend_vanishes_and_returns() {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address());
    let mut node = Node::new(behind(&proxy));
    if node.setup().reference {
        return; // The plain disk has no backend.
    }
    node.start();
    node.sh("echo resident > resident; sync resident");
    let mut writer = Writer::start(&node, "w");
    writer.advances(10, LONG);

    proxy.faults().black_hole.store(true, Relaxed);
    // What was on its way may still arrive.
    seconds(0.5);
    let before = writer.acknowledged();
    let start = Instant::now();
    assert_eq!(node.sh("cat resident; echo unsynced > unsynced; cat unsynced"), "resident\nunsynced\n");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "local work waited for the backend: {:?}",
        start.elapsed()
    );
    seconds(4.0);
    writer.app().assert_running();
    assert_eq!(writer.acknowledged(), before, "a barrier succeeded while the backend was away");
    assert!(node.status_of("dirty_age_ms").as_u64().unwrap() >= 3000, "{:#}", node.status());
    assert!(node.status_of("dirty_bytes").as_u64().unwrap() > 0, "{:#}", node.status());

    proxy.faults().heal();
    writer.advances(10, LONG);
    writer.finish();
    node.flush();
    assert_eq!(node.status_of("dirty_bytes"), 0);
    assert_eq!(node.status_of("backend_error"), Value::Null);
    node.lose();
    node.start();
    verify(&node, "w");
    assert_eq!(node.sh("cat unsynced"), "unsynced\n");
}

/// While the backend refuses, the trouble has a name in `status`.
#[test]
fn trouble_is_named() {
    let server = S3Server::start();
    let mut node = Node::new(Setup::on_s3(&server));
    if node.setup().reference {
        return; // The plain disk has no backend.
    }
    node.start();
    server.knobs().internal_error_pct.store(100, Relaxed);
    node.sh("echo x > x");
    node.await_status("a backend error", |status| {
        find(status, "backend_error").is_some_and(|error| !error.as_str().unwrap_or_default().is_empty())
    });
    server.knobs().heal();
    node.flush();
    node.await_status("no backend error", |status| find(status, "backend_error").is_some_and(Value::is_null));
    node.survives("trouble");
}

/// A backend that refuses for good while the agent runs (permissions taken away) loses nothing either.
#[test]
fn permissions_taken_away_and_given_back() {
    let server = S3Server::start();
    let mut node = Node::new(Setup::on_s3(&server));
    if node.setup().reference {
        return; // The plain disk has no backend.
    }
    node.start();
    let writer = Writer::start(&node, "w");
    seconds(0.3);
    server.knobs().read_only.store(true, Relaxed);
    seconds(1.5);
    let during = writer.acknowledged();
    seconds(0.7);
    assert_eq!(writer.acknowledged(), during, "a barrier succeeded on a read-only store");
    server.knobs().heal();
    drop(writer);
    // Whether it goes on by itself or wants a restart, what it has said is true and what is in the tree is kept.
    node.kill_agent();
    node.start();
    node.survives("read-only for a while");
    verify(&node, "w");
}

/// Dirty data is bounded: with a limit of 16 MiB and a backend that stands still, writers are slowed, then blocked,
/// and go on when it moves.
#[test]
fn dirty_limit_blocks_writers_and_lets_them_go() {
    const MIB: u64 = 1 << 20;
    let server = S3Server::start();
    let mut node = Node::new(Setup::on_s3(&server).with("dirty_limit", "16MiB"));
    if node.setup().reference {
        return; // The plain disk has no backend.
    }
    node.start();
    server.knobs().hang.store(true, Relaxed);
    let mut command = node.app("/usr/bin/python3");
    command.arg("-c").arg(
        "import os
with open(os.environ['STORAGE'] + '/big', 'wb', buffering=0) as f:
    for i in range(1600):
        f.write(os.urandom(1 << 18))",
    );
    let mut app = node.spawn(command);
    let written =
        |node: &Node| std::fs::metadata(node.tree().join("big")).map_or(0, |metadata| metadata.len());
    let deadline = Instant::now() + LONG;
    let mut last = (written(&node), Instant::now());
    // Blocked: no byte more for two seconds.
    while last.1.elapsed() < Duration::from_secs(2) {
        assert!(Instant::now() < deadline, "the writer was never blocked");
        seconds(0.05);
        let now = written(&node);
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    app.assert_running();
    assert!(last.0 >= 8 * MIB, "blocked at {} bytes already", last.0);
    println!("blocked at {} MiB", last.0 / MIB);
    assert!(last.0 <= 80 * MIB, "blocked only at {} bytes", last.0);
    // Readers are not.
    node.sh("head -c 100 big | wc -c");
    server.knobs().heal();
    app.wait(LONG);
    assert_eq!(written(&node), 400 * MIB);
    node.survives("back-pressure");
}

/// A slow backend is only slow.
#[test]
fn a_slow_backend_is_only_slow() {
    let server = S3Server::start();
    server.knobs().delay_ms.store(150, Relaxed);
    let mut node = Node::started(Setup::on_s3(&server));
    let mut writer = Writer::start(&node, "w");
    writer.advances(6, LONG);
    writer.finish();
    node.survives("a slow backend");
    verify(&node, "w");
}

/// The same for a directory store whose disk refuses: here, by permissions (root passes those, so an ordinary user).
#[test]
fn a_directory_store_that_refuses() {
    use std::os::unix::fs::PermissionsExt;
    let store = FileStore::new();
    let mut node = Node::new(Setup::translated(store.url()));
    if node.setup().reference {
        return; // The plain disk has no backend.
    }
    node.start();
    node.sh("echo one > one; sync one");
    let folders: Vec<_> = folders(store.path());
    let mode = |mode| {
        for folder in &folders {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    mode(0o555);
    let mut command = node.app("/bin/bash");
    command.arg("-c").arg("cd \"$STORAGE\"; echo two > two; sync two && touch \"$OUTSIDE/synced\"; true");
    let mut app = node.spawn(command);
    seconds(2.0);
    assert!(!node.outside().join("synced").exists(), "fsync succeeded on a store that refuses");
    mode(0o777);
    app.wait(LONG);
    node.kill_agent();
    node.start();
    assert_eq!(node.sh("cat one two"), "one\ntwo\n");
    node.survives("a directory store that refused");
}

fn folders(root: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![root.to_owned()];
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(folders(&entry.path()));
        }
    }
    found
}
