//! Never zeros: readers of all kinds, writers, a cache that is far too small, evictions without mercy, a backend that is slow and
//! fails, agents that die; every byte that anybody reads is checked against a model (`programs/torture.c`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use storeshim_tests::node::{App, FileStore, Node, Said, Setup, User, find};
use storeshim_tests::pids::{self, Pids};
use storeshim_tests::programs::{Language, built, compiled, crate_dir, require, scale};
use storeshim_tests::proxy::Proxy;
use storeshim_tests::s3::{BUCKET, S3Server};
use storeshim_tests::ways::{missed, untold};

const LONG: Duration = Duration::from_secs(180);
/// Bytes that go while the programs run, at least: ten times the cache.
const LEAST: u64 = 20 << 20;
const READERS: u64 = 3;
const WRITERS: u64 = 2;

/// What goes wrong besides evictions.
#[derive(Clone, Copy)]
struct Chaos {
    /// Agents die.
    kills: bool,
    /// The backend is slow and fails.
    faults: bool,
}

fn model(node: &Node) -> PathBuf {
    node.outside().join("model")
}

fn work(node: &Node, program: &PathBuf, arguments: &[String]) -> Command {
    let mut command = node.app(program);
    command.arg(&arguments[0]).arg(model(node)).arg(node.prefix()).args(&arguments[1..]);
    command
}

/// Counters of agents that die.
#[derive(Debug, Default)]
struct Evicted {
    bytes: u64,
    /// Of files that somebody had open, as far as the agent could tell.
    open: u64,
}

impl Evicted {
    /// Of the agent that runs now.
    fn of(node: &Node) -> Self {
        let status = node.try_status().unwrap_or_default();
        let count = |name| find(&status, name).and_then(serde_json::Value::as_u64).unwrap_or(0);
        Self { bytes: count("evicted_bytes"), open: count("evicted_while_open") }
    }

    fn and(self, later: Self) -> Self {
        Self { bytes: self.bytes + later.bytes, open: self.open + later.open }
    }
}

/// `name` is the test's: it runs where the agent sees everybody, and so evicts what they have open.
fn torture(name: &str, chaos: Chaos, program: &PathBuf, seconds: u32, setup: fn(String) -> Setup) {
    let pids = pids::own(name);
    if pids == Pids::Done {
        return;
    }
    require("python3");
    let server = S3Server::start();
    let proxy = Proxy::start(server.address());
    let setup = setup(format!("s3://{BUCKET}/volume")).with_s3(&proxy.endpoint()).lazy();
    // The test itself is one of the processes that the agent is to look into.
    let setup = setup.as_user(User::Current);
    let setup = setup.with("cache_size", "2MiB").with("max_lag", "100ms").with("patience", "3s");
    if setup.reference {
        return; // The plain disk neither comes nor goes.
    }
    let seed = u64::from(scale("STORESHIM_TORTURE_SEED", rand::random_range(0..1 << 30)));
    println!("STORESHIM_TORTURE_SEED={seed}");
    let mut node = Node::started(setup);
    node.run_to_end(work(&node, program, &["make".into()]), LONG).succeeded();
    node.flush();
    node.lose();
    node.start();

    let apps = (0..READERS).map(|n| ["read".into(), (seed + n).to_string(), seconds.to_string()].to_vec());
    let writers = (0..WRITERS).map(|n| {
        [
            "write".into(),
            (seed + 100 + n).to_string(),
            seconds.to_string(),
            n.to_string(),
            WRITERS.to_string(),
        ]
        .to_vec()
    });
    let mut apps: Vec<App> = apps
        .chain(writers)
        .map(|arguments| {
            let said = File::options().create(true).append(true).open(node.outside().join("said")).unwrap();
            let mut command = work(&node, program, &arguments);
            command.stdout(said);
            node.spawn(command)
        })
        .collect();

    let end = Instant::now() + Duration::from_secs(u64::from(seconds));
    let (mut evicted, mut kills) = (Evicted::default(), 0);
    while Instant::now() < end {
        for app in &mut apps {
            if let Some(status) = app.ended().filter(|status| !status.success()) {
                // Says what it saw.
                println!("{status}");
                app.wait(LONG);
            }
        }
        if chaos.faults {
            let bad = |pct: u64| if rand::random_range(0..3) == 0 { pct } else { 0 };
            proxy.faults().delay_ms.store(rand::random_range(0..20), Relaxed);
            proxy.faults().half_answer_pct.store(bad(10), Relaxed);
            proxy.faults().reset_request_pct.store(bad(5), Relaxed);
            server.knobs().internal_error_pct.store(bad(20), Relaxed);
            server.knobs().slow_down_pct.store(bad(20), Relaxed);
        }
        if chaos.kills && rand::random_range(0..8) == 0 {
            evicted = evicted.and(Evicted::of(&node));
            node.kill_agent();
            std::thread::sleep(Duration::from_millis(rand::random_range(0..200)));
            node.launch();
            kills += 1;
        }
        // The agent may be on its way, then there is nothing to evict.
        let mut evict = node.agent_command("evict");
        evict.arg(node.prefix()).stdin(Stdio::null());
        drop(evict.output().unwrap());
        std::thread::sleep(Duration::from_millis(rand::random_range(0..50)));
    }
    proxy.faults().heal();
    server.knobs().heal();
    node.await_state("ready");
    let healed = Instant::now();
    for app in &mut apps {
        app.wait(LONG);
    }
    let said = std::fs::read_to_string(node.outside().join("said")).unwrap();
    let counts = |column: usize| -> u64 {
        said.lines().filter_map(|line| line.split(' ').nth(column)?.parse::<u64>().ok()).sum()
    };
    let (done, failed) = (counts(0), counts(1));
    println!(
        "{done} reads and writes, {failed} failed; the last ended {:.1} s later",
        healed.elapsed().as_secs_f64()
    );
    assert!(chaos.faults || failed == 0, "{failed} failed although the backend was well");
    let evicted = evicted.and(Evicted::of(&node));
    println!("{evicted:?}, {kills} kills, {} faults", proxy.faults().done.load(Relaxed));
    assert!(evicted.bytes >= LEAST, "hardly anything was evicted: {evicted:?}");
    assert!(pids != Pids::Own || evicted.open > 0, "hardly anything that was open: {evicted:?}");

    let verify = |node: &Node| node.run_to_end(work(node, program, &["verify".into()]), LONG);
    verify(&node).succeeded();
    node.flush();
    node.work("evict", &[""]).succeeded();
    verify(&node).succeeded();
    if !chaos.kills {
        // While there is no agent nobody is told.
        assert_eq!(missed(&node), 0, "{:#?}", untold(&node));
    }
    node.lose();
    node.start();
    verify(&node).succeeded();
    // Without the shim and without an agent: the tree as the backend has it.
    node.kill_agent();
    node.setup().set("cache_size", "");
    node.start();
    node.warm();
    node.kill_agent();
    let mut plain = Command::new(program);
    plain.arg("verify").arg(model(&node)).arg(node.tree());
    Said::from(plain.output().unwrap()).succeeded();
}

fn long(default: u32) -> u32 {
    scale("STORESHIM_TORTURE_SECONDS", default)
}

#[test]
fn never_zeros() {
    torture(
        "never_zeros",
        Chaos { kills: false, faults: false },
        &compiled("torture"),
        long(6),
        Setup::identity,
    );
}

#[test]
fn never_zeros_while_the_backend_fails() {
    torture(
        "never_zeros_while_the_backend_fails",
        Chaos { kills: false, faults: true },
        &compiled("torture"),
        long(6),
        Setup::translated,
    );
}

#[test]
fn never_zeros_while_agents_die() {
    torture(
        "never_zeros_while_agents_die",
        Chaos { kills: true, faults: true },
        &compiled("torture"),
        long(10),
        Setup::identity,
    );
}

#[test]
fn never_zeros_on_musl() {
    let program = built(Language::MuslC, &crate_dir().join("programs/torture.c"));
    torture(
        "never_zeros_on_musl",
        Chaos { kills: true, faults: false },
        &program,
        long(5),
        Setup::translated,
    );
}

/// Runs `names.py` on a volume or below any other directory.
fn names(command: &mut Command, what: &str, model: &Path, tree: &Path, more: [String; 3]) {
    command.arg(crate_dir().join("programs/scripts/names.py")).arg(what).arg(model).arg(tree).args(more);
}

/// Names that come and go where most are not here yet, on nodes that are lost, while agents die.
fn names_torture(placed: fn(String) -> Setup) {
    const WORKERS: u64 = 3;
    require("python3");
    let store = FileStore::new();
    // One that answers at once, and many cuts.
    let setup = placed(store.url()).lazy().with("max_lag", "20ms");
    if setup.reference {
        return;
    }
    let seed = u64::from(scale("STORESHIM_TORTURE_SEED", rand::random_range(0..1 << 30)));
    println!("STORESHIM_TORTURE_SEED={seed}");
    let mut node = Node::started(setup);
    let model = node.outside().join("model");
    std::fs::create_dir(&model).unwrap();
    std::fs::set_permissions(&model, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let python = |node: &Node, what: &str, worker: u64, round: u64, seconds: u32| {
        let mut command = node.app("/usr/bin/python3");
        let more = [worker.to_string(), (seed + round).to_string(), seconds.to_string()];
        names(&mut command, what, &model, node.prefix(), more);
        command
    };
    for worker in 0..WORKERS {
        node.run_to_end(python(&node, "make", worker, 0, 0), LONG).succeeded();
    }
    let (rounds, mut kills) = (u64::from(long(9)) / 3, 0);
    for round in 0..rounds {
        node.flush();
        node.lose();
        node.start();
        let mut apps: Vec<App> =
            (0..WORKERS).map(|worker| node.spawn(python(&node, "work", worker, round, 3))).collect();
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(rand::random_range(0..1500)));
            node.kill_agent();
            std::thread::sleep(Duration::from_millis(rand::random_range(0..100)));
            node.launch();
            kills += 1;
        }
        for app in &mut apps {
            app.wait(LONG);
        }
        node.await_state("ready");
        for worker in 0..WORKERS {
            node.run_to_end(python(&node, "verify", worker, round, 0), LONG).succeeded();
        }
    }
    println!("{rounds} nodes, {kills} kills");
    node.flush();
    node.lose();
    node.start();
    node.warm();
    node.flush();
    node.kill_agent();
    // Without the shim and without an agent: the tree as the backend has it.
    for worker in 0..WORKERS {
        let mut plain = node.app_without_shim("/usr/bin/python3");
        names(&mut plain, "verify", &model, node.tree(), [worker.to_string(), "0".into(), "0".into()]);
        node.run_to_end(plain, LONG).succeeded();
    }
}

#[test]
fn names_while_agents_die() {
    names_torture(Setup::identity);
}

#[test]
fn names_while_agents_die_as_an_ordinary_user() {
    names_torture(Setup::translated);
}
