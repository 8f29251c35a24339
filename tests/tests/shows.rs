//! What a release shows, as a report: `cargo xtask demo NAME`. Too large for every day.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use storeshim_tests::node::{FileStore, Node, Setup, find};
use storeshim_tests::programs::{require, scale};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(3600);

/// What the status said while something was done.
#[derive(Clone, Default)]
struct Seen {
    samples: u64,
    resident: u64,
    pinned: u64,
    dirty: u64,
    /// Most bytes beyond what the cache may hold, pinned and dirty ones not counted.
    beyond: u64,
}

/// Looks at the status all along, phase by phase.
struct Watch<'a> {
    node: &'a Node,
    cache: u64,
    seen: Mutex<Seen>,
}

impl<'a> Watch<'a> {
    fn on(node: &'a Node, cache: u64) -> Self {
        Self { node, cache, seen: Mutex::default() }
    }

    fn look(&self) {
        let Some(status) = self.node.try_status() else { return };
        let number = |key: &str| find(&status, key).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let (resident, pinned, dirty) =
            (number("resident_bytes"), number("pinned_bytes"), number("dirty_bytes"));
        let mut seen = self.seen.lock().unwrap();
        seen.samples += 1;
        seen.resident = seen.resident.max(resident);
        seen.pinned = seen.pinned.max(pinned);
        seen.dirty = seen.dirty.max(dirty);
        seen.beyond = seen.beyond.max(resident.saturating_sub(self.cache + pinned + dirty));
    }

    /// Does it under observation and adds a line to the report.
    fn phase(&self, report: &mut String, what: &str, act: impl FnOnce() -> String) -> Seen {
        *self.seen.lock().unwrap() = Seen::default();
        let over = AtomicBool::new(false);
        let began = Instant::now();
        let said = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    self.look();
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
            let said = act();
            over.store(true, Relaxed);
            said
        });
        let seen = self.seen.lock().unwrap().clone();
        writeln!(
            report,
            "| {what} | {said} | {:.1} s | {} MiB | {} MiB | {} |",
            began.elapsed().as_secs_f64(),
            seen.resident / MIB,
            seen.pinned / MIB,
            seen.samples
        )
        .unwrap();
        seen
    }
}

fn run(node: &Node, program: &str, script: &str) -> String {
    let mut command = node.app(program);
    command.arg("-c").arg(script).current_dir("/");
    node.run_to_end(command, LONG).succeeded()
}

/// 2 GiB through a cache of 256 MiB: a repository, a database, and many files, each right, within the bound all along.
#[test]
#[ignore = "takes minutes and gigabytes: see `cargo xtask demo residency`"]
fn residency() {
    for program in ["git", "sqlite3", "python3"] {
        require(program);
    }
    let all = u64::from(scale("STORESHIM_SHOW_MIB", 2048)) * MIB;
    let cache = all / 8;
    let store = FileStore::new();
    let setup = Setup::identity(store.url()).lazy().with("cache_size", &format!("{cache}B"));
    let mut node = Node::started(setup.with("dirty_limit", &format!("{}B", (cache / 2).max(16 * MIB))));
    assert!(!node.setup().reference, "this shows the product");
    let mut report =
        "| what | came to | took | most on this disk | pinned | looks |\n|---|---|---|---|---|---|\n"
            .to_owned();

    Watch::on(&node, cache).phase(&mut report, "filled", || fill(&node, all));
    node.flush();
    let sums = std::fs::read_to_string(node.outside().join("sums")).unwrap();
    node.lose();
    let began = Instant::now();
    node.start();
    writeln!(report, "| opened on an empty disk | ready | {:.1} s | | | |", began.elapsed().as_secs_f64())
        .unwrap();

    let mut seen = BTreeMap::new();
    let watching = Watch::on(&node, cache);
    let mut phase = |what, script: &str, expected: &str| {
        let said = watching.phase(&mut report, what, || {
            let said = run(&node, "/bin/bash", &format!("set -euo pipefail; cd \"$STORAGE\"; {script}"));
            assert!(said.contains(expected), "{what}: {said}");
            said.lines().last().unwrap_or_default().to_owned()
        });
        seen.insert(what, said);
    };
    phase(
        "git fsck --full",
        "git -C repository -c safe.directory='*' fsck --full --no-progress; echo right",
        "right",
    );
    phase("sqlite3 pragma integrity_check", "sqlite3 database 'pragma integrity_check'", "ok");
    phase(
        "checksum of every file",
        "sha256sum --quiet -c \"$OUTSIDE/sums\"; echo \"$(wc -l < \"$OUTSIDE/sums\") files right\"",
        "files right",
    );
    println!("\n{report}");
    let status = node.agent_command("status").output().unwrap();
    println!("{}", String::from_utf8_lossy(&status.stdout));
    assert!(seen.values().any(|seen| seen.resident > cache / 4), "hardly anything was ever on this disk");
    for (what, seen) in &seen {
        assert!(seen.samples > 0, "{what}: nobody looked");
        // What a piece on its way may take until its place is made.
        assert!(seen.beyond <= cache / 16 + 8 * MIB, "{what}: {} bytes beyond the cache", seen.beyond);
    }
    let gib = all as f64 / (1u64 << 30) as f64;
    println!(
        "{gib:.1} GiB in {} files through {} MiB: all is right, within the bound.",
        sums.lines().count(),
        cache / MIB
    );
}

/// A tenth in a repository, a fifth in a database, the rest in files of all sizes; their sums go outside.
fn fill(node: &Node, all: u64) -> String {
    let script = format!(
        "
import hashlib, os, random, sqlite3, subprocess
os.chdir(os.environ['STORAGE'])
ALL = {all}
dice = random.Random(4)
git = lambda *words: subprocess.run(['git', '-C', 'repository', '-c', 'user.name=a', '-c', 'user.email=a@b', *words],
    check=True, stdout=subprocess.DEVNULL)
os.mkdir('repository')
git('init', '-q')
done = 0
while done < ALL // 10:
    for _ in range(100):
        size = dice.randrange(100, 60000)
        name = f'repository/{{dice.randrange(30)}}/{{dice.randrange(60)}}'
        os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, 'wb') as f: f.write(dice.randbytes(size))
        done += size
    git('add', '-A')
    git('commit', '-q', '-m', str(done))
    if done < ALL // 20: git('repack', '-q', '-d')
base = sqlite3.connect('database')
base.execute('create table t(a integer primary key, b blob, c text)')
base.execute('create index i on t(c)')
done = 0
while done < ALL // 5:
    for _ in range(1000):
        base.execute('insert into t(b, c) values(?, ?)', (dice.randbytes(4000), str(dice.random())))
        done += 4000
    base.commit()
base.close()
done = 0
number = 0
while done < ALL * 7 // 10:
    size = dice.choice((500, 20000, 300000, 3000000, 40000000))
    size = min(dice.randrange(size), ALL * 7 // 10 - done) + 1
    name = f'files/{{number % 50}}/{{number}}'
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, 'wb') as f: f.write(dice.randbytes(size))
    done += size
    number += 1
count = 0
with open(os.environ['OUTSIDE'] + '/sums', 'w') as sums:
    for folder, _, names in os.walk('.'):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, 'rb') as f: sums.write(hashlib.file_digest(f, 'sha256').hexdigest() + '  ' + path + '\\n')
            count += 1
print(count, 'files')"
    );
    run(node, "/usr/bin/python3", &script).trim().to_owned()
}
