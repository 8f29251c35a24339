//! Attaching and dying, agents that come and go, run directories that are not ours.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use storeshim_protocol::control::{FLAG_COMPLETE, FLAG_IDENTITY, FLAG_LOCAL, FLAG_NAMES, THROTTLE_BLOCK};
use storeshim_protocol::{Intent, MAX_MOUNTS, MountState};

use super::super::{SessionError, Sessions};
use super::fake::ChildClient;
use super::{Agent, Collector, Recorder, entry, nowhere, start, wait_until};

fn start_error(dir: &std::path::Path) -> SessionError {
    let (sender, _) = std::sync::mpsc::channel();
    match Sessions::start(dir, Arc::new(Collector(Mutex::new(sender)))) {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[test]
fn a_process_that_dies_between_calls_leaves_its_intents_and_no_doubt() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let child = ChildClient::spawn(&agent.dir, "outside");
    child.kill();
    agent.until("its intent arrives", |sink| sink.inodes.contains(&77));
    wait_until("its ring file is removed", || agent.ring_files() == 0);
    assert!(agent.sessions.list().is_empty());
    assert!(agent.sink.lock().unwrap().look_everywhere.is_empty());
}

#[test]
fn a_restarted_agent_finds_its_clients_and_they_tell_anew() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    agent.until("it is attached", |_| agent.sessions.list().len() == 1);
    agent.sessions.set_state(agent.mount, MountState::Ready);
    let mount = &client.control.mounts[agent.mount];
    // As a SIGKILL inside a cut would leave it.
    agent.sessions.stop();
    mount.frozen.store(1, Ordering::SeqCst);
    mount.throttle.store(THROTTLE_BLOCK, Ordering::SeqCst);
    assert_eq!(client.control.heartbeat_ns.load(Ordering::Relaxed), 0);
    let interval = mount.interval.load(Ordering::Acquire);
    let generation = client.control.generation.load(Ordering::Relaxed);
    client.push(agent.mount, Intent::Attributes { ino: 41 });

    let (sessions, _requests) = start(&agent.dir);
    assert_eq!(mount.frozen.load(Ordering::Acquire), 0);
    assert_eq!(mount.throttle.load(Ordering::Acquire), 0);
    assert_eq!(mount.state(), MountState::Restoring);
    assert_eq!(client.control.generation.load(Ordering::Relaxed), generation + 1);
    assert_ne!(client.control.heartbeat_ns.load(Ordering::Relaxed), 0);
    let (first, second) =
        (Arc::new(Mutex::new(Recorder::default())), Arc::new(Mutex::new(Recorder::default())));
    let other = sessions.add_mount(entry("/other", &agent.tree), second, nowhere()).unwrap();
    let index = sessions.add_mount(entry("/storage", &agent.tree), first.clone(), nowhere()).unwrap();
    assert_eq!(index, agent.mount, "live clients hold the index");
    assert_ne!(other, index);
    assert_ne!(
        mount.interval.load(Ordering::Acquire),
        interval,
        "clients must not leave out what was told before"
    );
    wait_until("what was told while no agent ran arrives", || first.lock().unwrap().inodes.contains(&41));
    assert_eq!(sessions.list().len(), 1);
}

#[test]
fn entries_that_nobody_claims_are_retired() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    agent.sessions.stop();
    let (sessions, _requests) = start(&agent.dir);
    let mount = &client.control.mounts[agent.mount];
    let word = client.post(agent.mount);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(client.slot().request().take_reply(), None, "the mount may be about to be added");
    sessions.retire_unclaimed();
    assert_eq!(mount.state(), MountState::Absent);
    assert_eq!(client.wait(word), libc::EINVAL);
    let sink = Arc::new(Mutex::new(Recorder::default()));
    assert_eq!(sessions.add_mount(entry("/storage", &agent.tree), sink, nowhere()).unwrap(), agent.mount);
    assert_eq!(mount.state(), MountState::Restoring);
}

#[test]
fn a_second_agent_is_refused_and_told_who_is_there() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let error = start_error(&agent.dir);
    assert!(matches!(&error, SessionError::Busy { pid, .. } if *pid == std::process::id().to_string()));
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    agent.sessions.stop();
    agent.sessions.stop();
    drop(start(&agent.dir));
    drop(start(&agent.dir));
}

#[test]
fn a_run_directory_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    for part in ["", "agent.lock", "rings", "doorbell", "control"] {
        let dir = place.path().join("run");
        drop(start(&dir));
        std::os::unix::fs::chown(dir.join(part), Some(12345), None).unwrap();
        let error = start_error(&dir);
        assert!(matches!(error, SessionError::NotOurs { uid: 12345, .. }), "{part}: {error}");
        assert!(error.to_string().contains("12345"));
        fs::remove_dir_all(&dir).unwrap();
    }
    // A link that another user has laid, as anybody can in /tmp.
    let (dir, link) = (place.path().join("run"), place.path().join("link"));
    fs::create_dir(&dir).unwrap();
    symlink(&dir, &link).unwrap();
    drop(start(&link));
    std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
    assert!(matches!(start_error(&link), SessionError::NotOurs { uid: 12345, .. }));
}

#[test]
fn modes_are_what_the_design_says() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let mode = |name: &str| fs::metadata(agent.dir.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("") & 0o022, 0);
    assert_eq!(mode("control"), 0o644);
    assert_eq!(mode("doorbell"), 0o644);
    assert_eq!(mode("rings"), 0o1777);
    agent.sessions.stop();
    fs::set_permissions(&agent.dir, fs::Permissions::from_mode(0o777)).unwrap();
    drop(start(&agent.dir));
    assert_eq!(mode(""), 0o755, "nobody else may replace what is in it");
}

#[test]
fn a_control_page_of_another_version_is_replaced_not_changed() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    let path = agent.dir.join("control");
    let before = fs::metadata(&path).unwrap().ino();
    agent.sessions.stop();
    client.control.version.store(99, Ordering::Relaxed);
    let (sessions, _requests) = start(&agent.dir);
    assert_ne!(fs::metadata(&path).unwrap().ino(), before);
    assert_eq!(client.control.version.load(Ordering::Relaxed), 99);
    assert_eq!(
        client.control.heartbeat_ns.load(Ordering::Relaxed),
        0,
        "to the old clients the agent is gone"
    );
    drop(sessions);
    fs::write(&path, "short").unwrap();
    drop(start(&agent.dir));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(start_error(&agent.dir).to_string().contains("control"));
}

#[test]
fn mounts_that_cannot_be_shown() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let sink = Arc::new(Mutex::new(Recorder::default()));
    let long = format!("/{}", "x".repeat(256));
    for prefix in ["", "/", "relative", "/a/", "/a/../b", "/a/./b", "//a", "/storage", &long] {
        let error =
            agent.sessions.add_mount(entry(prefix, &agent.tree), sink.clone(), nowhere()).unwrap_err();
        assert!(matches!(error, SessionError::Mount { .. }), "{prefix}: {error}");
    }
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(agent.sessions.add_mount(entry("/f", &file), sink.clone(), nowhere()).is_err());
    assert!(
        agent.sessions.add_mount(entry("/n", &place.path().join("none")), sink.clone(), nowhere()).is_err()
    );
    for number in 1..MAX_MOUNTS {
        agent
            .sessions
            .add_mount(entry(&format!("/m{number}"), &agent.tree), sink.clone(), nowhere())
            .unwrap();
    }
    let error = agent.sessions.add_mount(entry("/more", &agent.tree), sink, nowhere()).unwrap_err();
    assert!(error.to_string().contains('8'), "{error}");
}

#[test]
fn setters_show_in_the_control_page() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    let sink = Arc::new(Mutex::new(Recorder::default()));
    let mut asked = entry("/local", &agent.tree);
    asked.local = true;
    asked.identity = true;
    asked.request_timeout = Duration::from_micros(1500);
    let index = agent.sessions.add_mount(asked, sink, nowhere()).unwrap();
    let mount = &client.control.mounts[index];
    let mut buffer = [0; 1024];
    let len = mount.prefix(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"/local");
    assert_eq!(mount.root_ino.load(Ordering::Relaxed), fs::metadata(&agent.tree).unwrap().ino());
    assert_eq!(mount.request_timeout_ms.load(Ordering::Relaxed), 2);
    assert_eq!(mount.flags.load(Ordering::Relaxed), FLAG_LOCAL | FLAG_IDENTITY);
    agent.sessions.set_complete(index, true);
    assert_eq!(mount.flags.load(Ordering::Relaxed), FLAG_LOCAL | FLAG_IDENTITY | FLAG_COMPLETE);
    agent.sessions.set_complete(index, false);
    assert_eq!(mount.flags.load(Ordering::Relaxed), FLAG_LOCAL | FLAG_IDENTITY);
    agent.sessions.show_names_complete(index);
    assert_eq!(mount.flags.load(Ordering::Relaxed), FLAG_LOCAL | FLAG_IDENTITY | FLAG_NAMES);
    agent.sessions.set_state(index, MountState::Fenced);
    assert_eq!(mount.state(), MountState::Fenced);
    agent.sessions.set_throttle(index, THROTTLE_BLOCK);
    assert_eq!(mount.throttle.load(Ordering::Relaxed), THROTTLE_BLOCK);
    agent.sessions.set_state(99, MountState::Failed);
    agent.sessions.set_throttle(99, 1);
    drop(agent.sessions.freeze(99, &mut Recorder::default()));
}

#[test]
fn the_heart_beats_and_pushes_wake_nobody() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let beats = |client: &super::FakeClient, push: bool| {
        let (begun, mut beats, mut last) = (Instant::now(), 0, 0);
        while begun.elapsed() < Duration::from_millis(300) {
            let beat = client.control.heartbeat_ns.load(Ordering::Relaxed);
            beats += u32::from(beat != last);
            last = beat;
            if push {
                client.push(agent.mount, Intent::Attributes { ino: 1 });
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        beats
    };
    let client = agent.attach();
    agent.until("it is attached", |_| agent.sessions.list().len() == 1);
    for push in [false, true] {
        let count = beats(&client, push);
        assert!((3..=70).contains(&count), "{count} beats in 300 ms");
    }
}
