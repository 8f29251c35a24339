use std::sync::atomic::Ordering;

use super::fake::Fakes;
use super::*;
use crate::session::SessionInfo;

fn until(what: &str, check: impl Fn() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < Duration::from_secs(10), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn state(mounts: &Mounts) -> String {
    mounts.status().mounts[0].volume.state.clone()
}

#[test]
fn a_volume_is_restoring_until_it_is_open() {
    let fakes = Fakes::default();
    fakes.factory.hold.store(true, Ordering::SeqCst);
    let mounts = fakes.open(&["/nowhere/storage"]).unwrap();
    assert_eq!(state(&mounts), "restoring");
    fakes.factory.hold.store(false, Ordering::SeqCst);
    until("it is ready", || state(&mounts) == "ready");
    assert_eq!(mounts.failure(), None);
    assert_eq!(fakes.sessions.shown.lock().unwrap()[0].prefix, "/nowhere/storage");
    assert_eq!(*fakes.sessions.states.lock().unwrap(), [(0, MountState::Ready)]);
}

#[test]
fn a_backend_that_does_not_answer_is_tried_again() {
    let fakes = Fakes::default();
    fakes.factory.answers.lock().unwrap().push(OpenError::Unavailable("no route to host".into()));
    let mounts = fakes.open(&["/nowhere/storage"]).unwrap();
    until("the trouble shows", || {
        mounts.status().mounts[0].volume.backend_error.as_deref() == Some("no route to host")
    });
    until("it is ready", || state(&mounts) == "ready");
}

#[test]
fn a_volume_that_cannot_be_opened_is_a_failure_with_a_reason() {
    for (error, word, shown) in [
        (VolumeError::Failed("no such bucket".into()), "no such bucket", MountState::Failed),
        (VolumeError::Fenced, "taken over", MountState::Fenced),
    ] {
        let fakes = Fakes::default();
        fakes.factory.answers.lock().unwrap().push(error.into());
        let mounts = fakes.open(&["/nowhere/storage"]).unwrap();
        until("it fails", || mounts.failure().is_some());
        let why = mounts.failure().unwrap();
        assert!(why.contains("/nowhere/storage") && why.contains(word), "{why}");
        assert!(mounts.flush(None).unwrap_err().to_string().contains(word));
        assert_eq!(*fakes.sessions.states.lock().unwrap(), [(0, shown)]);
    }
}

#[test]
fn flush_is_for_one_mount_or_all() {
    let fakes = Fakes::default();
    let mounts = fakes.open(&["/nowhere/a", "/nowhere/b"]).unwrap();
    assert_eq!(mounts.flush(None).unwrap().len(), 2);
    let one = mounts.flush(Some("/nowhere/b")).unwrap();
    assert_eq!(one.len(), 1);
    assert_eq!((one[0].prefix.as_str(), one[0].seq), ("/nowhere/b", 3));
    let error = mounts.flush(Some("/c")).unwrap_err().to_string();
    assert!(error.contains("/c") && error.contains("/nowhere/a, /nowhere/b"), "{error}");
}

#[test]
fn holds_and_sessions_keep_the_agent() {
    let fakes = Fakes::default();
    let mounts = fakes.open(&["/nowhere/a"]).unwrap();
    let hold = mounts.hold().unwrap();
    assert!(!mounts.stopping(), "nobody asked");
    mounts.stop_when_idle();
    assert!(!mounts.stopping() && mounts.in_use());
    let daemon = SessionInfo { pid: 7, comm: "d".into(), uid: 0, threads: 1 };
    fakes.sessions.attached.lock().unwrap().push(daemon);
    drop(hold);
    assert!(!mounts.stopping() && mounts.in_use());
    fakes.sessions.attached.lock().unwrap().clear();
    assert!(!mounts.in_use());
    assert!(mounts.stopping());
    assert!(mounts.hold().is_none(), "an agent that ends takes nobody in");
}

#[test]
fn shutdown_waits_for_the_backend() {
    let fakes = Fakes::default();
    let mounts = fakes.open(&["/nowhere/a"]).unwrap();
    until("it is ready", || state(&mounts) == "ready");
    fakes.factory.engine.stuck.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        // Progress prolongs the patience, which is 300 ms here.
        scope.spawn(|| {
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(100));
                fakes.factory.engine.seq.fetch_add(1, Ordering::SeqCst);
            }
            fakes.factory.engine.stuck.store(false, Ordering::SeqCst);
        });
        mounts.shutdown().unwrap();
    });
    assert!(fakes.sessions.stopped.load(Ordering::SeqCst));
}

#[test]
fn shutdown_gives_up_and_says_what_is_at_risk() {
    let fakes = Fakes::default();
    let mounts = fakes.open(&["/nowhere/a"]).unwrap();
    until("it is ready", || state(&mounts) == "ready");
    let engine = &fakes.factory.engine;
    engine.stuck.store(true, Ordering::SeqCst);
    *engine.status.lock().unwrap() = VolumeStatus {
        dirty_bytes: 3 << 20,
        dirty_entries: 5,
        dirty_age_ms: 65_000,
        backend_error: Some("connection refused".into()),
        ..VolumeStatus::default()
    };
    let error = mounts.shutdown().unwrap_err();
    assert!(matches!(error, MountsError::Undrained(_)));
    for word in ["/nowhere/a", "3.0 MiB in 5 entries", "1m 05s old", "connection refused", "next start"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(fakes.sessions.stopped.load(Ordering::SeqCst));
    engine.stuck.store(false, Ordering::SeqCst);
}

#[test]
fn no_mount_is_an_error_that_says_what_to_do() {
    let error = Fakes::default().open(&[]).err().unwrap().to_string();
    assert!(error.contains("--mount"), "{error}");
}
