//! One run of a suite on a node of its own, and what must hold after it: nothing was missed by the intents, and the
//! volume comes back as the tree was. It must not know the results of other runs.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Results, Suite};
use crate::node::{FileStore, Node, Setup, find};
use crate::programs::{cache_dir, crate_dir};
use crate::tree::{self, Snapshot};

/// Longest flush: the tree of a large suite is audited whole.
const FLUSH: Duration = Duration::from_secs(600);

/// Where a suite runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In an ordinary directory, without the shim.
    Native,
    /// In a volume, behind a prefix that does not exist.
    Translated,
    /// In a volume, whose tree is the prefix.
    Identity,
    /// In an ordinary directory, over a library that does things wrong: what passes here proves nothing.
    Broken,
}

impl Place {
    /// Its name in the table and in `differences.txt`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Translated => "translated",
            Self::Identity => "identity",
            Self::Broken => "broken",
        }
    }

    fn is_volume(self) -> bool {
        matches!(self, Self::Translated | Self::Identity)
    }

    fn setup(self, suite: &Suite, options: &Options, store: &FileStore) -> Setup {
        let mut setup = match self {
            Self::Identity => Setup::identity(store.url()),
            // How many cases this one has depends on the length of its directory.
            _ if suite.script == "sqlite" => Setup::translated(store.url()).at_a_long_prefix(),
            _ => Setup::translated(store.url()),
        };
        setup.reference |= !self.is_volume();
        for (key, value) in suite.settings {
            setup.set(key, value);
        }
        if let Some(cache) = options.cache {
            setup = setup.lazy().with("cache_size", &format!("{cache}B"));
        }
        setup.as_user(suite.user)
    }
}

/// How much of a suite is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A subset that takes seconds.
    pub quick: bool,
    /// Only these cases, as the suite takes them.
    pub only: Option<String>,
    /// In a volume: how many bytes of data may be on this disk. What need not be there is evicted all the time, too.
    pub cache: Option<u64>,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The outcome of every case.
    pub results: Results,
    /// How long the suite took.
    pub took: Duration,
    /// In a volume: changes that the audit found and no intent had told.
    pub missed: Option<u64>,
    /// In a volume: what the agent's log says of them.
    pub missed_names: Vec<String>,
    /// In a volume: in what a restored tree differs from the one that the suite left behind.
    pub restored: Option<Vec<String>>,
    /// Natively: the most bytes of the disk that the suite's files took.
    pub most_bytes: u64,
    /// Names in the tree that the suite left behind.
    pub names: usize,
    /// Where its outputs are.
    pub outputs: PathBuf,
}

/// Where suites keep what they build.
fn cache() -> PathBuf {
    cache_dir().join("suites")
}

fn scripts() -> PathBuf {
    crate_dir().join("suites")
}

/// Installs and builds what a suite needs.
///
/// # Errors
/// What the script said.
pub fn prepare(suite: &Suite) -> Result<(), String> {
    let script = scripts().join(suite.script).with_extension("sh");
    let mut command = Command::new("bash");
    command.arg(script).arg("prepare").env("CACHE", cache()).env("LOG", cache().join("logs"));
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("bash: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{} cannot be prepared: {}", suite.script, String::from_utf8_lossy(&output.stderr)))
}

/// Runs a prepared suite.
///
/// # Errors
/// Why there are no results. (A node that misbehaves panics, as in every test.)
pub fn run(suite: &Suite, place: Place, options: &Options) -> Result<Run, String> {
    let store = FileStore::new();
    let mut node = Node::started(place.setup(suite, options, &store));
    let command = command(&node, suite, place, options)?;
    let started = Instant::now();
    let (ended, most_bytes) = attend(&node, suite, place, options, command);
    let took = started.elapsed();
    let outputs = keep_outputs(&node, suite, place)?;
    ended.map_err(|error| format!("{error}; its outputs: {}", outputs.display()))?;

    let results =
        fs::read_to_string(outputs.join("results")).map_err(|error| format!("no results: {error}"))?;
    let mut run = Run { results: Results::parse(&results)?, took, outputs, most_bytes, ..Run::default() };
    if run.results.is_empty() {
        return Err(format!("no case came up; its outputs: {}", run.outputs.display()));
    }
    if place.is_volume() {
        node.try_flush(FLUSH).succeeded();
        node.kill_apps();
        node.try_flush(FLUSH).succeeded();
        let counters = node.status_of("counters");
        run.missed = Some(find(&counters, "missed_changes").and_then(serde_json::Value::as_u64).unwrap_or(0));
        let log = node.log();
        let missed = log.lines().filter(|line| line.contains("no intent had told"));
        run.missed_names = missed.map(str::to_owned).collect();
        if options.cache.is_some() {
            // What is compared must be here as a whole.
            node.kill_agent();
            node.setup().set("cache_size", "");
            node.start();
            node.warm();
        }
        let (names, differences) = lose_and_restore(&mut node);
        (run.names, run.restored) = (names, Some(differences));
        let _ = fs::write(run.outputs.join("agent.log"), node.log());
    }
    Ok(run)
}

/// The script on the node, with everything that it needs where every user may read it.
fn command(node: &Node, suite: &Suite, place: Place, options: &Options) -> Result<Command, String> {
    let outside = node.outside();
    let copied = Command::new("cp").arg("-r").arg(scripts()).arg(cache().join("bin")).arg(&outside).output();
    let copied = copied.map_err(|error| format!("cp: {error}"))?;
    if !copied.status.success() && !cache().join("bin").exists() {
        // Nothing of crates.io has been needed so far.
        let _ = fs::create_dir(outside.join("bin"));
    }
    let script = outside.join("suites").join(suite.script).with_extension("sh");
    let mut command = node.app("/bin/bash");
    command.arg(script).arg(node.prefix());
    command.env("PREPARED", "1").env("CACHE", cache()).env("BIN", outside.join("bin"));
    command.env("LOG", outside.join("logs")).env("RESULTS", outside.join("results"));
    if options.quick {
        command.env("QUICK", "1");
    }
    if let Some(only) = &options.only {
        command.env("ONLY", only);
    }
    if place == Place::Broken {
        command.env("WRAP", format!("env LD_PRELOAD={}", broken_library(&outside)?.display()));
    }
    Ok(command)
}

/// The library that does things wrong.
fn broken_library(folder: &Path) -> Result<PathBuf, String> {
    let (source, library) = (scripts().join("canary.c"), folder.join("canary.so"));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&library).arg(source);
    let output = cc.output().map_err(|error| format!("cc: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(library)
}

/// Runs the script to its end, which it may reach with any status: its results are what counts. Flushes meanwhile, evicts
/// where that was asked for, and natively sees how many bytes there are at most.
fn attend(
    node: &Node,
    suite: &Suite,
    place: Place,
    options: &Options,
    mut command: Command,
) -> (Result<(), String>, u64) {
    let log = File::create(node.outside().join("suite.log")).and_then(|log| Ok((log.try_clone()?, log)));
    let (log, err) = match log {
        Ok(log) => log,
        Err(error) => return (Err(format!("its log: {error}")), 0),
    };
    command.stdin(Stdio::null()).stdout(log).stderr(err).process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return (Err(format!("{command:?}: {error}")), 0),
    };
    let (over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let ended = std::thread::scope(|scope| {
        let (over, most) = (&over, &most);
        match suite.flushes {
            Some(interval) if place.is_volume() => drop(scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    node.try_flush(FLUSH);
                    if options.cache.is_some() {
                        let mut evict = node.agent_command("evict");
                        evict.arg(node.prefix());
                        // A whole tree that changes all the time takes its time.
                        node.run_to_end(evict, FLUSH);
                    }
                    std::thread::sleep(interval);
                }
            })),
            _ => drop(scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    most.fetch_max(bytes_below(node.prefix()), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(500));
                }
            })),
        }
        let deadline = Instant::now() + suite.limit;
        let ended = loop {
            match child.try_wait() {
                Ok(Some(_)) => break Ok(()),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                Ok(None) => {
                    node.kill_apps();
                    let _ = child.wait();
                    break Err(format!("still running after {:?}", suite.limit));
                }
                Err(error) => break Err(error.to_string()),
            }
        };
        over.store(true, Ordering::Relaxed);
        ended
    });
    (ended, most.into_inner())
}

/// Bytes that all files below a directory take of the disk, as a cache counts them: holes are no data. As far as they can be
/// told while things change.
fn bytes_below(dir: &Path) -> u64 {
    let du = Command::new("du").args(["--summarize", "--block-size=1"]).arg(dir).output();
    let said = du.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    said.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// Copies what the suite said to where it is found after the node is gone.
fn keep_outputs(node: &Node, suite: &Suite, place: Place) -> Result<PathBuf, String> {
    let kept = cache().join("out").join(suite.name).join(place.word());
    let _ = fs::remove_dir_all(&kept);
    fs::create_dir_all(&kept).map_err(|error| format!("{}: {error}", kept.display()))?;
    for name in ["logs", "results", "suite.log"] {
        let _ = Command::new("cp").arg("-r").arg(node.outside().join(name)).arg(&kept).output();
    }
    if !node.log().is_empty() {
        let _ = fs::write(kept.join("agent.log"), node.log());
    }
    Ok(kept)
}

/// Loses the machine, restores the volume, and compares; how many names there were, and in what they differ.
fn lose_and_restore(node: &mut Node) -> (usize, Vec<String>) {
    node.kill_agent();
    let before = Snapshot::of(node.tree());
    node.lose();
    node.start();
    node.warm();
    node.kill_agent();
    let after = Snapshot::of(node.tree());
    (before.len(), tree::diff(&before, &after).iter().map(ToString::to_string).collect())
}
