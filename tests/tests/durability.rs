//! Promises 1, 2, 3 and 5: what is restored was there at one instant, what was acknowledged is there, an agent may
//! die at any time, and only one agent writes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::{Duration, Instant};

use storeshim_tests::node::{FileStore, Node, Said, Setup};
use storeshim_tests::programs::{compiled, scale};
use storeshim_tests::s3::{BUCKET, S3Server};
use storeshim_tests::writer::{self, Writer, verify};

fn pause(range: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(rand::random_range(range)));
}

/// Restores at many commits, taken while a writer keeps its invariant in one style; none may break it.
fn point_in_time(style: &str) {
    let restores = scale("STORESHIM_RESTORES", 30) as usize;
    let store = FileStore::new();
    let mut node = Node::new(Setup::translated(store.url()).with("max_lag", "50ms"));
    if node.setup().reference {
        return; // The plain disk has no commits.
    }
    node.start();
    node.sh("mkdir d");
    let mut command = node.app(compiled("invariant"));
    command.arg(style).arg(node.prefix().join("d"));
    let mut writer = node.spawn(command);

    let mut copies = Vec::new();
    for _ in 0..restores {
        pause(30..150);
        copies.push(node.halted(|| store.copy()));
    }
    writer.assert_running();
    drop(writer);
    node.kill_apps();
    node.kill_agent();

    let mut values = Vec::new();
    for (index, copy) in copies.iter().enumerate() {
        let restored = Node::started(Setup::translated(copy.url()));
        let folder = restored.tree().join("d");
        if !folder.exists() {
            values.push(0); // From before the first commit.
            continue;
        }
        let said = Command::new(compiled("invariant")).arg("check").arg(style).arg(folder).output().unwrap();
        let said = Said::from(said);
        assert!(said.code == 0, "restore {index} of {style}: {}", said.err);
        values.push(said.out.trim().parse::<u64>().unwrap());
    }
    assert!(values.is_sorted(), "later copies of the store hold older states: {values:?}");
    let mut distinct = values.clone();
    distinct.dedup();
    assert!(distinct.len() * 3 >= restores, "few commits among the copies: {values:?}");
}

#[test]
fn point_in_time_write() {
    point_in_time("write");
}

#[test]
fn point_in_time_stdio() {
    point_in_time("stdio");
}

#[test]
fn point_in_time_mmap() {
    point_in_time("mmap");
}

#[test]
fn point_in_time_names() {
    point_in_time("names");
}

#[test]
fn point_in_time_processes() {
    point_in_time("processes");
}

fn fsync_campaign(mut setup_of_volume: impl FnMut(u32) -> Setup) {
    let node = |volume| Node::started(setup_of_volume(volume));
    writer::fsync_campaign(scale("STORESHIM_ROUNDS", 50), node, |node, _, writer| {
        node.lose();
        drop(writer);
        node.start();
    });
}

#[test]
fn fsync_campaign_on_a_directory() {
    let store = FileStore::new();
    fsync_campaign(|volume| Setup::translated(format!("{}/v{volume}", store.url())));
}

#[test]
fn fsync_campaign_on_s3() {
    let server = S3Server::start();
    let (endpoint, bucket) = (server.endpoint(), BUCKET);
    fsync_campaign(|volume| Setup::identity(format!("s3://{bucket}/v{volume}")).with_s3(&endpoint));
}

/// A commit that takes as long as on a real network: many barriers wait for it when the machine is lost.
#[test]
fn fsync_with_slow_commits() {
    let server = S3Server::start();
    server.knobs().delay_ms.store(30, std::sync::atomic::Ordering::Relaxed);
    let mut node = Node::started(Setup::on_s3(&server));
    for round in 0..3 {
        let names: Vec<String> = (0..4).map(|writer| format!("r{round}w{writer}")).collect();
        let writers: Vec<Writer> = names.iter().map(|name| Writer::start(&node, name)).collect();
        pause(600..900);
        node.lose();
        drop(writers);
        node.start();
        let acknowledged: u64 = names.iter().map(|name| verify(&node, name)).sum();
        assert!(acknowledged > 0, "nothing was acknowledged in round {round}");
    }
}

/// Apps write while their agent is killed and started again; nothing breaks, and nothing acknowledged is lost.
fn agent_killed_under_writers(setup: Setup) {
    let mut node = Node::started(setup);
    let names = ["w0", "w1", "w2"];
    let mut writers: Vec<Writer> = names.iter().map(|name| Writer::start(&node, name)).collect();
    for _ in 0..scale("STORESHIM_KILLS", 10) {
        pause(50..300);
        node.kill_agent();
        pause(0..250);
        node.start();
    }
    for writer in &mut writers {
        writer.advances(5, Duration::from_secs(30));
    }
    // The writer's lock, taken before all this, is still held.
    let said = node.bash("! flock -n w0/lock true");
    assert_eq!(said.code, 0, "the lock was lost: {said:?}");
    writers.into_iter().for_each(Writer::finish);
    node.lose();
    node.start();
    let acknowledged: u64 = names.iter().map(|name| verify(&node, name)).sum();
    assert!(acknowledged >= 15, "{acknowledged}");
}

#[test]
fn agent_killed_under_writers_on_a_directory() {
    let store = FileStore::new();
    agent_killed_under_writers(Setup::translated(store.url()));
}

#[test]
fn agent_killed_under_writers_on_s3() {
    let server = S3Server::start();
    agent_killed_under_writers(Setup::on_s3(&server));
}

/// Writes that no barrier follows go on at full speed while there is no agent, and are found by the next one.
#[test]
fn writes_without_an_agent_are_found() {
    let store = FileStore::new();
    let mut node = Node::started(Setup::translated(store.url()));
    node.sh("mkdir d; echo before > d/before");
    node.flush();
    node.kill_agent();
    let start = Instant::now();
    // Attached while there is no agent at all: nothing to wait for, the tree is there.
    node.sh("echo without > d/without; rm d/before; mv d e; for i in $(seq 300); do echo $i > e/$i; done; cat e/300");
    assert!(start.elapsed() < Duration::from_secs(20), "writes waited for the agent: {:?}", start.elapsed());
    node.start();
    node.survives("writes without an agent");
    assert_eq!(node.sh("cat e/without; ls e | wc -l"), "without\n301\n");
}

/// A barrier that is under way when the agent dies waits for the next one and tells the truth.
#[test]
fn a_barrier_waits_for_the_next_agent() {
    let store = FileStore::new();
    let mut node = Node::started(Setup::translated(store.url()));
    node.sh("echo x > f");
    node.kill_agent();
    let mut command = node.app("/usr/bin/python3");
    command.arg("-c").arg(
        "import os
fd = os.open(os.environ['STORAGE'] + '/f', os.O_WRONLY | os.O_APPEND)
os.write(fd, b'synced\\n')
os.fsync(fd)
open(os.environ['OUTSIDE'] + '/done', 'w').close()",
    );
    let mut app = node.spawn(command);
    std::thread::sleep(Duration::from_millis(700));
    if node.setup().reference {
        return;
    }
    app.assert_running();
    assert!(!node.outside().join("done").exists(), "fsync succeeded without an agent");
    node.start();
    app.wait(Duration::from_secs(20));
    node.lose();
    node.start();
    assert_eq!(std::fs::read_to_string(node.tree().join("f")).unwrap(), "x\nsynced\n");
}

/// Two agents on one volume: the older is fenced, says so, and can do no harm.
#[test]
fn the_older_of_two_agents_is_fenced() {
    let server = S3Server::start();
    let mut old = Node::started(Setup::on_s3(&server));
    if old.setup().reference {
        return; // The plain disk has no agents.
    }
    let mut command = old.app("/usr/bin/python3");
    command.arg("-c").arg(
        "import os, time
fd = os.open(os.environ['STORAGE'] + '/f', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(fd, b'first\\n')
os.fsync(fd)
out = os.environ['OUTSIDE']
open(out + '/ready', 'w').close()
while not os.path.exists(out + '/go'):
    time.sleep(0.01)
os.write(fd, b'late\\n')
try:
    os.fsync(fd)
    answer = 'no error'
except OSError as error:
    answer = str(error.errno)
open(out + '/answer.tmp', 'w').write(answer)
os.rename(out + '/answer.tmp', out + '/answer')",
    );
    let mut app = old.spawn(command);
    wait_for(&old, "ready");

    let mut new = Node::started(Setup::on_s3(&server));
    assert_eq!(new.sh("cat f"), "first\n");
    std::fs::write(old.outside().join("go"), "").unwrap();
    wait_for(&old, "answer");
    app.wait(Duration::from_secs(10));
    assert_eq!(std::fs::read_to_string(old.outside().join("answer")).unwrap(), libc::ESTALE.to_string());

    old.await_state("fenced");
    let reason = old.status_of("reason").as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("another agent"), "{reason}");
    old.try_flush(Duration::from_secs(20)).refused(&["another agent"]);

    // The newer one is not affected, and never sees what the older one wrote late.
    new.sh("echo second >> f; sync f");
    old.sh("echo later > late");
    std::thread::sleep(Duration::from_millis(1500));
    new.lose();
    new.start();
    assert_eq!(new.sh("cat f; ls"), "first\nsecond\nf\n");
}

#[track_caller]
fn wait_for(node: &Node, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !node.outside().join(name).exists() {
        assert!(Instant::now() < deadline, "no {name} after 30 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The fenced agent, started again, takes the volume back, as its own error advises.
#[test]
fn a_fenced_volume_can_be_taken_back() {
    let store = FileStore::new();
    let mut first = Node::started(Setup::translated(store.url()));
    if first.setup().reference {
        return; // The plain disk has no agents.
    }
    first.sh("echo 1 > one; sync one");
    let mut second = Node::started(Setup::translated(store.url()));
    second.sh("echo 2 > two; sync two");
    second.flush();
    assert_ne!(first.bash("echo late > late; sync late").code, 0);
    first.kill_agent();
    first.lose();
    first.start();
    assert_eq!(first.sh("cat one two; ls"), "1\n2\none\ntwo\n");
    first.sh("echo 3 > three; sync three");
    assert_ne!(second.bash("echo 4 > four; sync four").code, 0);
    second.await_state("fenced");
}

/// The checkers checked: a lost record and an impossible state must be found.
mod canaries {
    use std::fs;

    use super::*;

    #[test]
    fn a_lost_record_is_found() {
        let store = FileStore::new();
        let mut setup = Setup::identity(store.url());
        setup.reference = true;
        let node = Node::started(setup);
        let mut writer = Writer::start(&node, "d");
        writer.advances(40, Duration::from_secs(30));
        writer.finish();
        verify(&node, "d");
        for victim in ["log.0", "stream", "synchronous", "vector", "current", "slots", "mapping"] {
            let path = node.tree().join("d").join(victim);
            let whole = fs::read(&path).unwrap();
            let mut damaged = whole.clone();
            // The last record of a log; the only one of the others.
            match victim {
                "slots" => damaged.fill(0),
                "mapping" => damaged[0] = damaged[0].wrapping_sub(8),
                _ => damaged.truncate(whole.len() - 64),
            }
            fs::write(&path, &damaged).unwrap();
            let found = std::panic::catch_unwind(|| verify(&node, "d"));
            assert!(found.is_err(), "the loss of {victim} was not noticed");
            fs::write(&path, &whole).unwrap();
        }
        fs::remove_dir_all(node.tree().join("d/new")).unwrap();
        assert!(
            std::panic::catch_unwind(|| verify(&node, "d")).is_err(),
            "the loss of new files was not noticed"
        );
    }

    #[test]
    fn an_impossible_state_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let check = |a: u64, b: u64, c: u64| {
            for (name, value) in [("a", a), ("b", b), ("c", c)] {
                fs::write(folder.path().join(name), value.to_le_bytes()).unwrap();
            }
            let mut command = Command::new(compiled("invariant"));
            Said::from(command.args(["check", "write"]).arg(folder.path()).output().unwrap()).code
        };
        assert_eq!(check(5, 5, 4), 0);
        assert_eq!(check(5, 4, 4), 0);
        for (a, b, c) in [(4, 5, 4), (5, 4, 5), (6, 5, 4), (7, 5, 5)] {
            assert_eq!(check(a, b, c), 1, "{a} {b} {c}");
        }
    }
}
