//! What a measurement needs: a home directory, the compiled programs, an agent, an S3 server. It must not know what is
//! measured.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::{build, workspace};

/// Where apps see the volume.
pub const PREFIX: &str = "/storage";
/// The key pair of the S3 server.
const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "bench"), ("AWS_SECRET_ACCESS_KEY", "bench-secret")];
/// Our programs, and what they are made of.
const PROGRAMS: [(&str, &[&str]); 4] = [
    (
        "calls",
        &[
            "calls/main.c",
            "calls/opens.c",
            "calls/names.c",
            "calls/attributes.c",
            "calls/data.c",
            "calls/others.c",
        ],
    ),
    ("spawn", &["spawn.c"]),
    ("load", &["load.c"]),
    ("reads", &["reads.c"]),
];
/// A library to be loaded.
const LIBRARY: &str = "empty.so";
/// Longest wait for an agent to be ready or to end.
const PATIENCE: Duration = Duration::from_secs(600);

/// Everything that was built, and a directory to work in, which is removed at the end.
pub struct Rig {
    program: PathBuf,
    /// The library.
    pub shim: PathBuf,
    servers: PathBuf,
    home: PathBuf,
    run_dir: PathBuf,
}

impl Rig {
    /// Builds everything, optimised, and makes a directory below `dir` or the target folder. Where `STORESHIM_BIN` and
    /// `STORESHIM_SHIM` name an agent and a library, as for the tests, it is those that are measured, with the servers that
    /// lie beside the agent if there are any.
    pub fn set_up(dir: Option<&Path>) -> Result<Self> {
        let sh = workspace::shell()?;
        let built = build::named(&sh, true)?;
        let release = workspace::target()?.join("release");
        let beside = built.program.parent().filter(|dir| **dir != release && dir.join("s3mem").exists());
        let servers = match beside.map(Path::to_path_buf) {
            Some(dir) => dir,
            None => {
                cmd!(sh, "cargo build --quiet --locked --release --package storeshim-tests --bins")
                    .quiet()
                    .run()?;
                release
            }
        };
        Self::with(&sh, built, servers, dir)
    }

    /// The same without servers.
    pub fn of_hooks(dir: Option<&Path>) -> Result<Self> {
        let sh = workspace::shell()?;
        let built = build::named(&sh, true)?;
        Self::with(&sh, built, workspace::target()?.join("release"), dir)
    }

    fn with(sh: &Shell, built: build::Built, servers: PathBuf, dir: Option<&Path>) -> Result<Self> {
        let target = workspace::target()?;
        let home = dir.map_or_else(|| Ok(target.clone()), std::path::absolute)?.join("storeshim-bench");
        remove(&home)?;
        fs::create_dir_all(&home)?;
        let sources = workspace::root().join("xtask/src/bench/programs");
        for (name, files) in PROGRAMS {
            let sources = files.iter().map(|file| sources.join(file));
            let program = home.join(name);
            cmd!(sh, "cc -std=gnu11 -O2 -Wall -Wextra -Werror -o {program} {sources...}").quiet().run()?;
        }
        let (library, source) = (home.join(LIBRARY), sources.join("empty.c"));
        cmd!(sh, "cc -O2 -Wall -Wextra -Werror -shared -fPIC -o {library} {source}").quiet().run()?;
        // The rings belong into memory: on a disk, writing them back would be measured, too.
        let memory = Path::new("/dev/shm");
        let run_dir = if memory.is_dir() {
            memory.join(format!("storeshim-bench-{}", std::process::id()))
        } else {
            home.join("run")
        };
        Ok(Self { program: built.program, shim: built.shim, servers, home, run_dir })
    }

    /// A path in the working directory.
    pub fn home(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// An empty directory for native work: on the tree's file system, as deep as the tree and with as long a name.
    pub fn native(&self) -> Result<PathBuf> {
        self.beside("home")
    }

    /// Another of these, with a name of four letters.
    pub fn beside(&self, name: &str) -> Result<PathBuf> {
        fresh(self.home(name))
    }

    /// One of our C programs.
    pub fn program(&self, name: &str) -> Command {
        Command::new(self.home(name))
    }

    /// The program `calls` in a directory, on the last CPU that there is.
    pub fn calls(&self, dir: &Path) -> Command {
        let mut command = self.program("calls");
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        command.arg(dir).arg(self.home(LIBRARY)).arg((cpus - 1).to_string());
        command
    }

    /// The program with an empty library preloaded: what any library would cost.
    pub fn with_empty_library(&self, mut program: Command) -> Command {
        program.env("LD_PRELOAD", self.home(LIBRARY));
        program
    }

    /// A variable of the environment for each process with the shim, as `storeshim run` sets them.
    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", &self.shim), ("STORESHIM_RUN_DIR", &self.run_dir)]
    }

    /// Our client that does plain PUTs, for [`S3::endpoint`].
    pub fn plain_puts(&self) -> Command {
        let mut command = Command::new(self.servers.join("s3put"));
        command.envs(KEYS);
        command
    }

    /// Our client that does plain GETs, for [`S3::endpoint`].
    pub fn plain_gets(&self) -> Command {
        let mut command = Command::new(self.servers.join("s3get"));
        command.envs(KEYS);
        command
    }

    /// A store in a directory, emptied.
    pub fn directory_store(&self) -> Result<String> {
        Ok(format!("file://{}", fresh(self.home("store"))?.display()))
    }

    /// Starts an S3 server.
    pub fn s3(&self) -> Result<S3> {
        self.start_s3(&[])
    }

    /// Starts an S3 server that has the files of `dir` as objects below `prefix`, behind a proxy that adds `distance`
    /// milliseconds to a round trip.
    pub fn s3_serving(&self, prefix: &str, dir: &Path, distance: u64) -> Result<S3> {
        let (load, distance) = (format!("{prefix}={}", dir.display()), distance.to_string());
        self.start_s3(&[("S3MEM_LOAD", &load), ("S3MEM_DISTANCE_MS", &distance)])
    }

    fn start_s3(&self, environment: &[(&str, &str)]) -> Result<S3> {
        let mut command = Command::new(self.servers.join("s3mem"));
        command.args(["127.0.0.1:0"]).args(KEYS.map(|(_, value)| value));
        // Its own MD5 sums would take the CPU that is measured here.
        command.env("S3MEM_FAST_ETAG", "1").envs(environment.iter().copied());
        let mut server = Talk::start(command)?;
        let line = server.read()?;
        let endpoint = line.strip_prefix("listening on ").context("the S3 server does not start")?;
        Ok(S3 { endpoint: endpoint.to_owned(), server })
    }

    /// Starts an agent with an empty tree and state; `settings` are those of the mount, each behind a comma.
    pub fn agent(&self, url: &str, settings: &str) -> Result<Agent<'_>> {
        let tree = fresh(self.home("tree"))?;
        let mount = format!("{PREFIX}={url},placement=translated,tree={}{settings}", tree.display());
        self.agent_in("state", mount, tree, PREFIX.into(), self.run_dir.clone())
    }

    /// `storeshim run` of a program with nothing on this disk and no agent: it starts its own.
    pub fn runs_alone(&self, url: &str, program: &Command) -> Result<Command> {
        let (tree, state) = (fresh(self.home("tree"))?, fresh(self.home("state"))?);
        remove(&self.run_dir)?;
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--run-dir").arg(&self.run_dir).arg("--state-dir").arg(state);
        let mount = format!("{PREFIX}={url},placement=translated,tree={}", tree.display());
        command.args(["--mount", &mount]).envs(KEYS).env("STORESHIM_SHIM", &self.shim);
        command.arg("--").arg(program.get_program()).args(program.get_args());
        Ok(command)
    }

    /// Waits until the agent has ended that a program of [`Rig::runs_alone`] had.
    pub fn await_idle(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let socket = self.run_dir.join("agent.sock");
        while std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            if Instant::now() > deadline {
                bail!("an agent without users does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// As [`Rig::agent`], beside it, with the tree at the prefix: nothing is translated.
    pub fn identical_agent(&self, settings: &str) -> Result<Agent<'_>> {
        let (tree, store) = (fresh(self.home("same"))?, fresh(self.home("same-store"))?);
        let mount = format!("{}=file://{},placement=identity{settings}", tree.display(), store.display());
        let mut run_dir = self.run_dir.clone().into_os_string();
        run_dir.push("-same");
        self.agent_in("same-state", mount, tree.clone(), tree, run_dir.into())
    }

    fn agent_in(
        &self,
        state: &str,
        mount: String,
        tree: PathBuf,
        prefix: PathBuf,
        run_dir: PathBuf,
    ) -> Result<Agent<'_>> {
        let state = fresh(self.home(state))?;
        remove(&run_dir)?;
        let mut agent = Agent { rig: self, mount, tree, prefix, state, run_dir, child: None };
        agent.start()?;
        Ok(agent)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // What is left is removed by the next run.
        let _ = remove(&self.home);
        let _ = remove(&self.run_dir);
    }
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// An empty directory. What was there is put aside and stays until the end: ext4 does not give out again for a minute what was
/// just deleted, and looks at all of it for each file that is made, which would be measured.
fn fresh(dir: PathBuf) -> Result<PathBuf> {
    static ASIDE: AtomicU32 = AtomicU32::new(0);
    if dir.exists() {
        let aside = dir.with_extension(format!("used-{}", ASIDE.fetch_add(1, Ordering::Relaxed)));
        fs::rename(&dir, &aside).with_context(|| format!("cannot move {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Runs a program to its end; its output. Fails when it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// As [`run`]; the seconds that it took.
pub fn timed(command: &mut Command) -> Result<f64> {
    let started = Instant::now();
    run(command)?;
    Ok(started.elapsed().as_secs_f64())
}

/// The numbers in a program's output.
pub fn numbers<const N: usize>(text: &str) -> Result<[f64; N]> {
    let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    numbers.try_into().map_err(|_| anyhow::anyhow!("not {N} numbers: {text:?}"))
}

/// An agent with one mount; killed when dropped.
pub struct Agent<'a> {
    rig: &'a Rig,
    mount: String,
    tree: PathBuf,
    prefix: PathBuf,
    state: PathBuf,
    run_dir: PathBuf,
    child: Option<Child>,
}

impl Agent<'_> {
    /// Starts it on the state and the tree that are there.
    pub fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.rig.home("agent.log"))?;
        let mut command = self.command("agent");
        command.arg("--state-dir").arg(&self.state).arg("--mount").arg(&self.mount);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().context("cannot start the agent")?);
        let deadline = Instant::now() + PATIENCE;
        while !self.status().is_ok_and(|status| volume(&status, "state") == Some(&Value::from("ready"))) {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.rig.home("agent.log")).unwrap_or_default();
                bail!("the agent does not get ready:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends it in good order.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            run(Command::new("kill").arg(child.id().to_string()))?;
            child.wait()?;
        }
        Ok(())
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.rig.program);
        command.arg(subcommand).arg("--run-dir").arg(&self.run_dir);
        command.envs(KEYS).env("STORESHIM_SHIM", &self.rig.shim);
        command
    }

    /// The root of its tree.
    pub fn tree(&self) -> PathBuf {
        self.tree.clone()
    }

    /// Where apps see it.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// `storeshim run -- PROGRAM`, by the program's own name and arguments.
    pub fn runs(&self, program: &Command) -> Command {
        let mut command = self.command("run");
        command.arg("--state-dir").arg(&self.state);
        command.arg("--").arg(program.get_program()).args(program.get_args());
        command
    }

    /// The program with the shim, and without the flush that `storeshim run` ends with.
    pub fn shows(&self, mut program: Command) -> Command {
        program.env("LD_PRELOAD", &self.rig.shim).env("STORESHIM_RUN_DIR", &self.run_dir);
        program
    }

    /// `storeshim flush`; the seconds that it took.
    pub fn flush(&self) -> Result<f64> {
        timed(&mut self.command("flush"))
    }

    fn status(&self) -> Result<Value> {
        let output = self.command("status").arg("--json").stderr(Stdio::null()).output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Pauses of the cuts since it started, in nanoseconds: p50, p99, longest.
    pub fn pauses(&self) -> Result<[f64; 3]> {
        let status = self.status()?;
        let pauses = volume(&status, "cut_pause_us").context("the status has no cut_pause_us")?;
        let pauses: [f64; 3] = serde_json::from_value(pauses.clone())?;
        Ok(pauses.map(|micros| micros * 1e3))
    }

    /// A counter of the volume, zero where it never counted.
    pub fn counter(&self, name: &str) -> Result<f64> {
        let status = self.status()?;
        let counter = volume(&status, "counters").and_then(|counters| counters.get(name));
        Ok(counter.and_then(Value::as_f64).unwrap_or(0.0))
    }

    /// A number, or a truth as 0 or 1, of what the status says of what is on this disk.
    pub fn residency(&self, field: &str) -> Result<f64> {
        let status = self.status()?;
        let value = volume(&status, "residency").and_then(|residency| residency.get(field));
        let number = value
            .and_then(|value| value.as_f64().or_else(|| value.as_bool().map(|set| f64::from(u8::from(set)))));
        number.with_context(|| format!("the status has no residency.{field}"))
    }

    /// Resident memory in bytes: at present, and at most since it started.
    pub fn memory(&self) -> Result<[f64; 2]> {
        let pid = self.child.as_ref().map(Child::id).context("the agent does not run")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |field: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
            Ok(line.split_whitespace().next().unwrap_or_default().parse::<f64>()? * 1024.0)
        };
        Ok([kib("VmRSS:")?, kib("VmHWM:")?])
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = remove(&self.run_dir);
    }
}

/// What an agent's status says of its only mount.
fn volume<'a>(status: &'a Value, field: &str) -> Option<&'a Value> {
    status.get("mounts")?.get(0)?.get("volume")?.get(field)
}

/// An S3 server in memory.
pub struct S3 {
    /// Its address.
    pub endpoint: String,
    server: Talk,
}

impl S3 {
    /// A volume in it.
    pub fn url(&self, name: &str) -> String {
        format!("s3://volumes/{name}?endpoint={}", self.endpoint)
    }

    /// Requests so far: PUTs, and all others.
    pub fn requests(&mut self) -> Result<[f64; 2]> {
        let [puts, others, _bytes] = numbers(&self.server.ask("count")?)?;
        Ok([puts, others])
    }
}

/// A program that answers lines by lines; killed when dropped.
pub struct Talk {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Talk {
    /// Starts it.
    pub fn start(mut command: Command) -> Result<Self> {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| format!("cannot start {command:?}"))?;
        let to = child.stdin.take().context("a pipe was asked for")?;
        let from = child.stdout.take().context("a pipe was asked for")?;
        Ok(Self { child, to, from: BufReader::new(from) })
    }

    /// Its next line.
    pub fn read(&mut self) -> Result<String> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        if line.is_empty() {
            bail!("a program ended in the middle of a measurement");
        }
        Ok(line.trim_end().to_owned())
    }

    /// Its answer to a line.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.to, "{line}")?;
        self.read()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
