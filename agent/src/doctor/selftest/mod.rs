//! A trial of a mount: everything that programs do, by a child with the shim, then a look at what the agent made of it. Where
//! no agent runs it starts one of its own, on a volume in a temporary directory.

mod shell;
pub mod steps;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use storeshim_protocol::names::ENV_RUN_DIR;

use super::report::{Section, Severity};
use crate::http::Client;
use crate::mounts::{AgentStatus, MountStatus};
use steps::Step;

/// How long an agent of our own may take to start, and to end.
const AGENT_WITHIN: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// How long the steps may take: an fsync of a mount whose backend does not answer waits for it.
const STEPS_WITHIN: Duration = Duration::from_secs(60);
/// The hidden command that does the steps.
pub const STEPS_FLAG: &str = "--self-test-in";
/// How the volume's status counts changes that no intent told of.
const MISSED: &str = "missed_changes";

/// Who does the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// This program, started once more with the shim.
    Own,
    /// The shell.
    Shell,
}

impl By {
    /// Files that are there in the end, with [`steps::CONTENT`].
    fn files(self) -> &'static [&'static str] {
        match self {
            By::Own => &steps::FILES,
            By::Shell => &shell::FILES,
        }
    }
}

/// Tries the mounts of `status`, or a private one where there is no agent. `program` is this very program.
pub fn run(program: &Path, shim: &Path, run_dir: &Path, status: Option<&AgentStatus>) -> Vec<Section> {
    let by = if shell::is_needed(program) { By::Shell } else { By::Own };
    if by == By::Shell
        && let Some(why) = shell::trouble()
    {
        let mut section = Section::new("Self-test");
        section.advise(
            Severity::Note,
            format!(
                "left out: this storeshim is linked statically, and the shell cannot do it instead: {why}"
            ),
            "name your program: `storeshim doctor CMD` asks its loader",
        );
        return vec![section];
    }
    let trial = |run_dir: &Path, mount: &MountStatus| trial(by, program, shim, run_dir, mount);
    if let Some(status) = status {
        let ready = status.mounts.iter().filter(|mount| mount.volume.state == "ready");
        return ready.map(|mount| trial(run_dir, mount)).collect();
    }
    match OwnAgent::start(program) {
        Ok(own) => own.mounts.iter().map(|mount| trial(&own.run_dir(), mount)).collect(),
        Err(trouble) => {
            let mut section = Section::new("Self-test in a private volume");
            section.add(Severity::Unknown, trouble);
            vec![section]
        }
    }
}

fn trial(by: By, program: &Path, shim: &Path, run_dir: &Path, mount: &MountStatus) -> Section {
    let kind = if mount.identity { "identity" } else { "translated" };
    let mut section = Section::new(format!("Self-test of {} ({kind})", mount.prefix));
    if by == By::Shell {
        section.add(Severity::Note, format!("by {}: this storeshim is linked statically", shell::SHELL));
    }
    let name = format!(".storeshim-doctor-{}", std::process::id());
    let client = Client::new(run_dir);
    let missed = |mounts: &[MountStatus]| {
        let own = mounts.iter().find(|other| other.prefix == mount.prefix)?;
        own.volume.counters.get(MISSED).copied().or(Some(0))
    };
    let before = missed(std::slice::from_ref(mount));
    let dir = Path::new(&mount.prefix).join(&name);
    let done = match by {
        By::Own => run_steps(own_command(program, &dir), shim, run_dir, own_steps),
        By::Shell => run_steps(shell::command(&dir, shim), shim, run_dir, shell::steps),
    };
    match done {
        Err(trouble) => section.add(Severity::Loss, trouble),
        Ok(steps) => {
            let (good, bad): (Vec<&Step>, Vec<&Step>) = steps.iter().partition(|step| step.trouble.is_none());
            let names: Vec<&str> = good.iter().map(|step| step.name.as_str()).collect();
            if !names.is_empty() {
                section.add(Severity::Good, names.join(", "));
            }
            for step in bad {
                let trouble = step.trouble.as_deref().unwrap_or_default();
                section.add(Severity::Loss, format!("{}: {trouble}", step.name));
            }
        }
    }
    // What was written must lie in the tree, which is seen here without the shim.
    let place = mount.tree.join(&name);
    let wrong: Vec<&str> = by
        .files()
        .iter()
        .copied()
        .filter(|file| fs::read(place.join(file)).ok().as_deref() != Some(steps::CONTENT))
        .collect();
    match wrong.as_slice() {
        [] => {
            section.add(Severity::Good, format!("what was written lies in the tree {}", mount.tree.display()))
        }
        wrong => {
            section.add(Severity::Loss, format!("not in the tree as it was written: {}", wrong.join(", ")))
        }
    }
    match client.flush(Some(&mount.prefix)).and_then(|_| client.status()) {
        Err(error) => section.add(Severity::Loss, format!("the barrier was not answered: {error}")),
        Ok(status) => {
            let after = missed(&status.mounts);
            match (before, after) {
                (Some(before), Some(after)) if after == before => section
                    .add(Severity::Good, "the barrier was answered, and an audit found no change that was not told"),
                (Some(before), Some(after)) => section.advise(
                    Severity::Warning,
                    format!("an audit found {} changes that nobody had told", after - before.min(after)),
                    "some program writes here without the shim, or past it: see `storeshim status` and the agent's log",
                ),
                _ => section.add(Severity::Unknown, "the mount has gone meanwhile"),
            }
        }
    }
    clean(&place);
    section
}

/// Removes what the self-test has made, in the tree: nobody else knows the directory.
fn clean(place: &Path) {
    let _ = fs::remove_dir_all(place);
}

fn own_command(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.args([OsStr::new("doctor"), OsStr::new(STEPS_FLAG), dir.as_os_str()]);
    command
}

fn own_steps(output: &str) -> Vec<Step> {
    output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn run_steps(
    mut command: Command,
    shim: &Path,
    run_dir: &Path,
    read: fn(&str) -> Vec<Step>,
) -> Result<Vec<Step>, String> {
    let program = command.get_program().to_owned();
    let mut child = command
        .env("LD_PRELOAD", shim)
        .env(ENV_RUN_DIR, run_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
    wait(&mut child, STEPS_WITHIN)
        .ok_or_else(|| format!("not done within {} s: the backend may not answer", STEPS_WITHIN.as_secs()))?;
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let steps = read(&String::from_utf8_lossy(&output.stdout));
    match (output.status.success(), steps.is_empty()) {
        (true, false) => Ok(steps),
        _ => Err(format!("the program that tries it has failed: {}", output.status)),
    }
}

/// Waits for the end of a child; one that takes longer is killed.
fn wait(child: &mut Child, limit: Duration) -> Option<()> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if !matches!(child.try_wait(), Ok(None)) {
            return Some(());
        }
        std::thread::sleep(LOOK);
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// An agent on a private volume, with everything that belongs to it in one directory.
struct OwnAgent {
    dir: PathBuf,
    child: Child,
    mounts: Vec<MountStatus>,
}

impl OwnAgent {
    fn start(program: &Path) -> Result<Self, String> {
        let dir = private_directory()?;
        let trouble =
            |what: &str, error: &dyn std::fmt::Display| format!("cannot start an agent: {what}: {error}");
        let mount = format!("{}=file://{}", dir.join("storage").display(), dir.join("store").display());
        let log = fs::File::create(dir.join("log")).map_err(|error| trouble("its log", &error))?;
        let child = Command::new(program)
            .arg("agent")
            .args([OsStr::new("--run-dir"), dir.join("run").as_os_str()])
            .args([OsStr::new("--state-dir"), dir.join("state").as_os_str()])
            .args(["--mount", &mount])
            .env_remove("LD_PRELOAD")
            .env_remove("STORESHIM_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                return Err(trouble("its program", &error));
            }
        };
        let mut own = Self { dir, child, mounts: Vec::new() };
        let client = Client::new(&own.run_dir());
        let began = Instant::now();
        while began.elapsed() < AGENT_WITHIN && matches!(own.child.try_wait(), Ok(None)) {
            if let Ok(status) = client.status()
                && !status.mounts.is_empty()
                && status.mounts.iter().all(|mount| mount.volume.state == "ready")
            {
                own.mounts = status.mounts;
                return Ok(own);
            }
            std::thread::sleep(LOOK);
        }
        let log = fs::read_to_string(own.dir.join("log")).unwrap_or_default();
        let words = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it does not answer");
        Err(trouble("it has failed", &words))
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }
}

impl Drop for OwnAgent {
    fn drop(&mut self) {
        let asked = Client::new(&self.run_dir()).shutdown(false);
        let limit = if asked.is_ok() { AGENT_WITHIN } else { Duration::ZERO };
        let _ = wait(&mut self.child, limit);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A directory of our own, made anew.
fn private_directory() -> Result<PathBuf, String> {
    use std::os::unix::fs::DirBuilderExt;
    let base = std::env::temp_dir();
    let mut last = None;
    for _ in 0..16 {
        let dir = base.join(format!("storeshim-doctor-{:016x}", rand::random::<u64>()));
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return dir.canonicalize().map_err(|error| error.to_string()),
            Err(error) => last = Some(error),
        }
    }
    let why = last.map(|error| error.to_string()).unwrap_or_default();
    Err(format!("cannot make a directory in {}: {why}", base.display()))
}
