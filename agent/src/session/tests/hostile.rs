//! Clients that lie, tear down what the agent has mapped, or put rubbish into its directory.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, symlink};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use storeshim_protocol::{Intent, RING_MAGIC, RingFile};

use super::fake::{FakeClient, begin, lock};
use super::{Agent, wait_until};

#[test]
fn a_truncated_ring_costs_an_audit_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let honest = agent.attach();
    for len in [0, 4096, 100_000] {
        let hostile = agent.attach();
        hostile.push(agent.mount, Intent::Attributes { ino: 1 });
        hostile.enter(agent.mount);
        agent.until("it is attached", |sink| std::mem::take(&mut sink.inodes).contains(&1));
        hostile.file.set_len(len).unwrap();
        // All slots, so that the agent reaches beyond any end.
        hostile.ring.slots_used.store(64, Ordering::Release);
        agent
            .until("everybody is told to look", |sink| !std::mem::take(&mut sink.look_everywhere).is_empty());
        let (told, took) = agent.freeze_once();
        assert!(told.stragglers.len() <= 1 && took < Duration::from_secs(1));
        assert_eq!(agent.sessions.list().len(), 2, "it counts as attached while it lives");
        drop(hostile);
        wait_until("it is buried", || agent.sessions.list().len() == 1);
    }
    honest.push(agent.mount, Intent::Attributes { ino: 9 });
    agent.until("others are served", |sink| sink.inodes.contains(&9));
}

#[test]
fn a_ring_truncated_again_and_again_under_freezes() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    for _ in 0..10 {
        let hostile = agent.attach();
        let end = Instant::now() + Duration::from_millis(50);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = &hostile.file;
                while Instant::now() < end {
                    file.set_len(0).unwrap();
                    file.set_len(size_of::<RingFile>() as u64).unwrap();
                    let mut header = [0u8; 16];
                    header[..8].copy_from_slice(&RING_MAGIC.to_le_bytes());
                    file.write_all_at(&header, 0).unwrap();
                }
            });
            while Instant::now() < end {
                agent.freeze_once();
            }
        });
    }
    wait_until("all are buried", || agent.sessions.list().is_empty());
}

#[test]
fn random_bytes_everywhere_in_a_ring() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let mut random = SmallRng::seed_from_u64(0x5eed);
    let hostile = agent.attach();
    agent.until("it is attached", |_| agent.sessions.list().len() == 1);
    let end = Instant::now() + Duration::from_secs(2);
    let slot = (size_of::<RingFile>() - 4096) / 64;
    while Instant::now() < end {
        // Headers and the heads of slots, where it hurts, and now and then anywhere.
        let at = match random.random_range(0..4u32) {
            0 => random.random_range(0..128),
            1 | 2 => 4096 + slot * random.random_range(0..64usize) + random.random_range(0..200usize),
            _ => random.random_range(0..size_of::<RingFile>() - 8),
        };
        let word: u64 = if random.random() { random.random() } else { random.random_range(0..2000) };
        hostile.file.write_all_at(&word.to_ne_bytes(), at as u64).unwrap();
        if random.random_range(0..500u32) == 0 {
            let (_, took) = agent.freeze_once();
            assert!(took < Duration::from_secs(1), "it may delay a freeze, not prevent it");
            while let Ok((_, reply)) = agent.requests.try_recv() {
                reply.reply(0);
            }
        }
    }
    assert!(agent.sessions.corrupt_rings() > 0);
    assert!(!agent.sink.lock().unwrap().look_everywhere.is_empty());
    let honest = agent.attach();
    honest.push(agent.mount, Intent::Attributes { ino: 123_456_789_123 });
    agent.until("others are served", |sink| sink.inodes.contains(&123_456_789_123));
}

#[test]
fn records_for_mounts_that_do_not_exist_count_as_corrupt() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    client.push(agent.mount + 1, Intent::Attributes { ino: 1 });
    client.push(200, Intent::Attributes { ino: 1 });
    client.push(agent.mount, Intent::Attributes { ino: 2 });
    agent.until("it is noticed", |sink| !sink.look_everywhere.is_empty());
    assert_eq!(agent.sink.lock().unwrap().inodes, [2]);
    assert_eq!(agent.sessions.corrupt_rings(), 1);
}

#[test]
fn a_full_ring_means_looking_everywhere() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let client = agent.attach();
    client.ring.look_everywhere.store(1, Ordering::Release);
    agent.until("it is told", |sink| sink.look_everywhere.len() == 1);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(agent.sink.lock().unwrap().look_everywhere.len(), 1, "once");
    assert_eq!(client.ring.look_everywhere.load(Ordering::Relaxed), 0);
}

#[test]
fn rubbish_in_the_directory_of_rings() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let rings = agent.dir.join("rings");
    // Rings elsewhere, which whoever laid the link could not open himself.
    for (number, hard) in [true, false].into_iter().enumerate() {
        let elsewhere = place.path().join(number.to_string());
        fs::create_dir_all(elsewhere.join("rings")).unwrap();
        for name in ["control", "doorbell"] {
            fs::copy(agent.dir.join(name), elsewhere.join(name)).unwrap();
        }
        let other = FakeClient::attach(&elsewhere);
        other.push(agent.mount, Intent::Attributes { ino: 666 });
        let ring = fs::read_dir(elsewhere.join("rings")).unwrap().next().unwrap().unwrap().path();
        let name = rings.join(format!("link{number}"));
        if hard { fs::hard_link(&ring, name).unwrap() } else { symlink(&ring, name).unwrap() }
    }
    // A lease makes others' opens wait, and tells its holder by a signal.
    let leased = fs::File::create(rings.join("leased")).unwrap();
    // SAFETY: a descriptor that is open, and integers. SIGURG is ignored by default.
    let lease = unsafe {
        const F_SETSIG: libc::c_int = 10;
        libc::fcntl(leased.as_raw_fd(), F_SETSIG, libc::SIGURG);
        libc::fcntl(leased.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK)
    };
    assert_eq!(lease, 0);
    symlink("nowhere", rings.join("dangling")).unwrap();
    fs::create_dir(rings.join("dir")).unwrap();
    nix::unistd::mkfifo(&rings.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    fs::write(rings.join("short"), "x").unwrap();
    fs::write(rings.join("long"), vec![0u8; size_of::<RingFile>() + 1]).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(rings.join("socket")).unwrap();
    let (_, took) = agent.freeze_once();
    assert!(took < Duration::from_secs(1));
    let client = agent.attach();
    client.push(agent.mount, Intent::Attributes { ino: 3 });
    agent.until("a client beside it is served", |sink| sink.inodes.contains(&3));
    assert_eq!(agent.sessions.list().len(), 1);
    assert!(!agent.sink.lock().unwrap().inodes.contains(&666), "a link was followed");
    wait_until("incomplete files that nobody holds are removed", || {
        !rings.join("short").exists() && !rings.join("long").exists()
    });
}

#[test]
fn a_ring_is_used_as_soon_as_it_is_complete_and_not_before() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let file = begin(&agent.dir);
    let (_, took) = agent.freeze_once();
    assert!(took < Duration::from_secs(1));
    assert!(agent.sessions.list().is_empty());
    let client = FakeClient::complete(&agent.dir, file);
    client.push(agent.mount, Intent::Attributes { ino: 8 });
    agent.freeze_once();
    let list = agent.sessions.list();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].comm.as_str(), list[0].threads, list[0].pid), ("fake", 1, std::process::id()));
}

/// A process whose files may not grow that far has the agent do it.
#[test]
fn an_empty_ring_file_is_let_grow_while_somebody_holds_it() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let (held, free) = (agent.dir.join("rings/held"), agent.dir.join("rings/free"));
    let file = fs::File::create_new(&held).unwrap();
    lock(&file);
    fs::File::create_new(&free).unwrap();
    wait_until("the held file has the size of a ring", || {
        fs::metadata(&held).unwrap().len() == size_of::<RingFile>() as u64
    });
    assert!(fs::metadata(&free).map_or(0, |meta| meta.len()) == 0);
    assert!(agent.sessions.list().is_empty());
}

#[test]
fn a_ring_of_another_version_is_noticed_once() {
    let place = tempfile::tempdir().unwrap();
    let agent = Agent::new(place.path());
    let file = begin(&agent.dir);
    file.set_len(size_of::<RingFile>() as u64).unwrap();
    file.write_all_at(b"otherone", 0).unwrap();
    agent.until("it is told", |sink| !sink.look_everywhere.is_empty());
    agent.freeze_once();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(agent.sink.lock().unwrap().look_everywhere.len(), 1);
}
