//! The gate: nobody is inside during a freeze, or he is named.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use storeshim_protocol::Intent;
use storeshim_protocol::control::FREEZE_MAX_NS;

use super::fake::{ChildClient, enter, push};
use super::{Agent, Recorder, STRAGGLER_SLACK, entry, nowhere, wait_until};

#[test]
fn a_freeze_shows_itself_and_moves_the_interval() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    let mount = &client.control.mounts[agent.mount];
    let interval = mount.interval.load(Ordering::Acquire);
    let mut told = Recorder::default();
    let freeze = agent.sessions.freeze(agent.mount, &mut told);
    assert_eq!(mount.frozen.load(Ordering::Acquire), 1);
    assert_eq!(mount.interval.load(Ordering::Acquire), interval.wrapping_add(1));
    assert!(freeze.deadline() < Instant::now() + Duration::from_nanos(FREEZE_MAX_NS));
    assert!(freeze.deadline() > Instant::now() + Duration::from_nanos(FREEZE_MAX_NS / 2));
    assert!(!client.slot().gate.try_enter(agent.mount, mount, true));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| client.enter(agent.mount));
        std::thread::sleep(Duration::from_millis(10));
        assert!(!waiter.is_finished());
        drop(freeze);
        waiter.join().unwrap();
    });
    client.leave();
    assert_eq!(mount.frozen.load(Ordering::Acquire), 0);
}

#[test]
fn writers_never_change_anything_inside_a_freeze() {
    // SAFETY: integers only. Registers this process, whose unfenced threads then count on the agent's membarrier.
    let registered =
        unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) }
            == 0;
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    let stop = AtomicBool::new(false);
    let pairs: [(AtomicU64, AtomicU64); 4] = Default::default();
    std::thread::scope(|scope| {
        for (thread, pair) in pairs.iter().enumerate() {
            let (client, stop, mount) = (&client, &stop, agent.mount);
            scope.spawn(move || {
                let (_, slot) = client.ring.claim(thread as u64 + 10).unwrap();
                let fenced = !registered || thread % 2 == 0;
                while !stop.load(Ordering::Relaxed) {
                    enter(&client.control, slot, mount, fenced);
                    push(&client.ring, slot, mount, Intent::Attributes { ino: thread as u64 });
                    // Two plain halves of one change, as two system calls would be.
                    pair.0.store(pair.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    std::hint::spin_loop();
                    pair.1.store(pair.1.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    slot.gate.leave();
                }
            });
        }
        let begun = Instant::now();
        let (mut clean, mut all) = (0, 0);
        while begun.elapsed() < Duration::from_secs(2) {
            let mut told = Recorder::default();
            let freeze = agent.sessions.freeze(agent.mount, &mut told);
            all += 1;
            if told.stragglers.is_empty() {
                clean += 1;
                let look =
                    || pairs.each_ref().map(|p| (p.0.load(Ordering::Relaxed), p.1.load(Ordering::Relaxed)));
                let first = look();
                assert!(first.iter().all(|(a, b)| a == b), "half a change is visible: {first:?}");
                std::hint::spin_loop();
                if Instant::now() < freeze.deadline() {
                    assert_eq!(first, look(), "somebody went on inside the freeze");
                }
            }
            drop(freeze);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(clean > 20 && clean * 2 > all, "only {clean} of {all} freezes went well");
    });
}

#[test]
fn a_straggler_is_named_until_it_has_moved_and_once_more() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    client.enter(agent.mount);
    client.slot().subject.store(4711, Ordering::Relaxed);
    for ino in 1..=6 {
        client.push(agent.mount, Intent::Attributes { ino });
    }
    let (told, took) = agent.freeze_once();
    assert_eq!(told.stragglers, [4711]);
    let mut again: Vec<u64> = told.inodes.iter().rev().take(4).copied().collect();
    again.sort_unstable();
    assert_eq!(again, [3, 4, 5, 6], "its last records are told again");
    assert!(took >= super::super::STRAGGLER_AFTER);

    let (told, took) = agent.freeze_once();
    assert_eq!(told.stragglers, [4711]);
    assert_eq!(told.inodes.len(), 4);
    assert!(took < STRAGGLER_SLACK, "a known straggler is not waited for again: {took:?}");

    // It goes on, and its later records must not push out those which the freeze could not wait for.
    for ino in 11..=16 {
        client.push(agent.mount, Intent::Attributes { ino });
    }
    client.leave();
    agent.until("the later records are drained", |sink| sink.inodes.contains(&16));
    let (told, _) = agent.freeze_once();
    assert_eq!(told.stragglers, [4711]);
    assert!([3, 4, 5, 6].iter().all(|ino| told.inodes.contains(ino)));
    let (told, _) = agent.freeze_once();
    assert!(told.stragglers.is_empty() && told.inodes.is_empty());

    // The next entry of the same thread is waited for.
    client.enter(agent.mount);
    let (told, took) = agent.freeze_once();
    assert_eq!(told.stragglers.len(), 1);
    assert!(took >= super::super::STRAGGLER_AFTER);
    client.leave();
}

#[test]
fn a_straggler_of_one_mount_does_not_hold_up_another() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let other = Default::default();
    let second =
        agent.sessions.add_mount(entry("/second", &agent.tree), Arc::clone(&other) as _, nowhere()).unwrap();
    let client = agent.attach();
    client.enter(agent.mount);
    client.push(second, Intent::Attributes { ino: 5 });
    let mut told = Recorder::default();
    let begun = Instant::now();
    drop(agent.sessions.freeze(second, &mut told));
    assert!(begun.elapsed() < STRAGGLER_SLACK);
    assert!(told.stragglers.is_empty());
    let (told_first, _) = agent.freeze_once();
    assert_eq!(told_first.stragglers, [0]);
    client.leave();
    drop(agent.sessions.freeze(second, &mut told));
    let other: &std::sync::Mutex<Recorder> = &other;
    let seen: Vec<u64> = told.inodes.iter().chain(&other.lock().unwrap().inodes).copied().collect();
    assert_eq!(seen, [5]);
}

#[test]
fn a_process_killed_inside_the_gate_is_found_by_the_freeze() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    for mode in ["inside", "overflow"] {
        let child = ChildClient::spawn(&agent.dir, mode);
        agent.until("the child's intent arrives", |sink| sink.inodes.contains(&77));
        child.kill();
        let (told, _) = agent.freeze_once();
        let by_poll = std::mem::take(&mut *agent.sink.lock().unwrap());
        assert!(told.stragglers.is_empty(), "the dead are no stragglers");
        assert!(
            !told.look_everywhere.is_empty() || !by_poll.look_everywhere.is_empty(),
            "{mode}: nobody was told"
        );
        wait_until("its ring file is removed", || agent.ring_files() == 0);
    }
}

#[test]
fn a_process_that_attached_just_now_is_frozen_too() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    for ino in 1..=50 {
        let client = agent.attach();
        client.enter(agent.mount);
        client.push(agent.mount, Intent::Attributes { ino });
        client.leave();
        let (told, _) = agent.freeze_once();
        let known = agent.sink.lock().unwrap().inodes.contains(&ino) || told.inodes.contains(&ino);
        assert!(known, "the freeze missed client {ino}");
    }
}

#[test]
fn volumes_may_freeze_with_their_sinks_locked() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let sinks: [Arc<std::sync::Mutex<Recorder>>; 3] = Default::default();
    let client = agent.attach();
    std::thread::scope(|scope| {
        for (number, sink) in sinks.iter().enumerate() {
            let mount = agent
                .sessions
                .add_mount(entry(&format!("/m{number}"), &agent.tree), sink.clone(), nowhere())
                .unwrap();
            let (sessions, client) = (&agent.sessions, &client);
            scope.spawn(move || {
                let (_, slot) = client.ring.claim(number as u64 + 2).unwrap();
                for ino in 1..=300 {
                    push(&client.ring, slot, mount, Intent::Attributes { ino });
                    let mut locked = sink.lock().unwrap();
                    drop(sessions.freeze(mount, &mut *locked));
                    assert!(locked.inodes.contains(&ino), "what came before the freeze is told by it");
                    locked.inodes.clear();
                }
            });
        }
    });
}
