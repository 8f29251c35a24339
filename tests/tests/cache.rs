//! The bound of the cache holds whatever programs do, and what is open without being read unseen goes as well. All in pid
//! namespaces of their own (`pids`): where the agent cannot look into somebody, everything that is open must stay.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use storeshim_tests::cold::cold;
use storeshim_tests::contents::CONTENTS;
use storeshim_tests::node::{App, FileStore, Node, Setup};
use storeshim_tests::pids::{self, Pids};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

/// A node with nothing on its disk, once the look at everything that is there is over.
fn looked_at(setup: Setup, fill: &str) -> Option<Node> {
    let node = cold(setup, fill)?;
    node.flush();
    Some(node)
}

fn spawned(node: &Node, program: &str) -> App {
    let mut command = node.app("/usr/bin/python3");
    command.arg("-c").arg(format!("import os\nos.chdir(os.environ['STORAGE'])\n{CONTENTS}\n{program}"));
    node.spawn(command)
}

fn counter(node: &Node, name: &str) -> u64 {
    let status = node.status();
    storeshim_tests::node::find(&status, name).and_then(serde_json::Value::as_u64).unwrap_or(0)
}

/// Nobody writes, and so everything may go: also of files that are read while they are offered.
#[test]
fn readers_of_more_than_the_cache_stay_within_it() {
    readers("readers_of_more_than_the_cache_stay_within_it", "auto");
}

#[test]
fn readers_of_leased_files_stay_within_the_cache() {
    readers("readers_of_leased_files_stay_within_the_cache", "leases");
}

fn readers(name: &str, guard: &str) {
    if pids::own(name) != Pids::Own {
        return;
    }
    let store = FileStore::new();
    let cache = 16 * MIB;
    let setup = Setup::identity(store.url())
        .with("cache_size", "16MiB")
        .with("guard", guard)
        .with("audit_interval", "1h");
    let Some(node) = looked_at(setup, "make('a', 40 << 20)\nmake('b', 40 << 20)") else { return };
    let mut readers: Vec<App> = ["a", "b"]
        .iter()
        .map(|name| {
            let program = format!(
                "import time
data, end = content('{name}', 40 << 20), time.time() + 6
while time.time() < end:
    fd, at = os.open('{name}', os.O_RDONLY), 0
    while piece := os.read(fd, 1 << 20):
        assert piece == data[at:at + len(piece)], at
        at += len(piece)
    assert at == len(data)
    os.close(fd)"
            );
            spawned(&node, &program)
        })
        .collect();
    let (began, mut samples) = (Instant::now(), Vec::new());
    while readers.iter_mut().any(|reader| reader.ended().is_none()) {
        assert!(began.elapsed() < LONG, "{:#}", node.status());
        samples.push(node.residency("resident_bytes"));
        std::thread::sleep(Duration::from_millis(100));
    }
    readers.iter_mut().for_each(|reader| reader.wait(LONG));
    // A moment in which something has to be looked at is bridged by more room, since nobody is to wait in vain.
    samples.sort_unstable();
    let (most, usual) = (samples[samples.len() - 1], samples[samples.len() / 2]);
    println!(
        "{} MiB at most, {} mostly, {} evicted",
        most / MIB,
        usual / MIB,
        counter(&node, "evicted_bytes") / MIB
    );
    assert!(
        usual <= cache + 4 * MIB,
        "{} MiB with a cache of {}: {:#}",
        usual / MIB,
        cache / MIB,
        node.status()
    );
    assert!(counter(&node, "evicted_bytes") > 4 * cache, "{:#}", node.status());
    // A program that has just ended is in nobody's list for a moment, while its files are still open.
    let mut said = String::new();
    for _ in 0..5 {
        said = node.work("evict", &[""]).succeeded();
        if !said.contains("kept") {
            return;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    panic!("{said}");
}

/// Nobody but the agent has anything open: it does not stand in its own way, whatever guards the files.
#[test]
fn the_agent_alone_takes_itself_for_nobody() {
    if pids::own("the_agent_alone_takes_itself_for_nobody") != Pids::Own {
        return;
    }
    let store = FileStore::new();
    let (size, files, rounds) = (40 * MIB, 2, 8);
    let setup = Setup::identity(store.url()).with("cache_size", "16MiB").with("guard", "leases");
    let Some(node) = looked_at(setup, "make('a', 40 << 20)\nmake('b', 40 << 20)") else { return };
    for _ in 0..rounds {
        node.warm();
    }
    let (hydrated, breaks) = (counter(&node, "hydrated_bytes"), counter(&node, "lease_breaks"));
    println!("{} MiB came, {breaks} leases were broken", hydrated / MIB);
    assert_eq!(counter(&node, "failed_hydrations"), 0, "{:#}", node.status());
    assert!(hydrated <= rounds * files * size, "{} MiB came: {:#}", hydrated / MIB, node.status());
    // Nobody brings back what is told to go.
    let said = node.work("evict", &[""]).succeeded();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(node.residency("resident_bytes"), 0, "{said}\n{:#}", node.status());
    assert_eq!(counter(&node, "hydrated_bytes"), hydrated, "{:#}", node.status());
}
