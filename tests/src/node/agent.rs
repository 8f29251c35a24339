//! The agent of a node: started, asked, halted, killed. It must not know what apps do.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Node, Said};
use crate::programs::PATH;

/// Longest wait for anything that an agent is asked to do.
const PATIENCE: Duration = Duration::from_secs(60);

impl Node {
    /// Starts the agent and waits until its volume is ready.
    #[track_caller]
    pub fn start(&mut self) {
        if self.setup.reference {
            return;
        }
        self.launch();
        self.await_state("ready");
    }

    /// Starts the agent and does not wait.
    #[track_caller]
    pub fn launch(&mut self) {
        assert!(self.agent.is_none(), "the agent runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log is ours");
        let mut command = self.agent_command("agent");
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log).stdin(Stdio::null());
        self.agent = Some(command.spawn().expect("the agent's program runs"));
    }

    /// Runs an agent that is expected to refuse; returns what it said when it ended. Fails the test where it is
    /// still running after a while: then it did not refuse.
    #[track_caller]
    pub fn start_refused(&self) -> Said {
        self.run_to_end(self.agent_command("agent"), Duration::from_secs(90))
    }

    /// Runs `command` to its end and returns what it said; kills it and fails the test after `limit`.
    #[track_caller]
    pub fn run_to_end(&self, mut command: Command, limit: Duration) -> Said {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("the program runs");
        let pid = Pid::from_raw(child.id().cast_signed());
        let (ended, waiting) = std::sync::mpsc::channel();
        let output = std::thread::spawn(move || {
            let output = child.wait_with_output().expect("our child");
            let _ = ended.send(());
            Said::from(output)
        });
        let timed_out = waiting.recv_timeout(limit).is_err();
        if timed_out {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let said = output.join().expect("the thread only waits");
        assert!(!timed_out, "still running after {limit:?}: {command:?}\n{}\n{}", said.out, said.err);
        said
    }

    /// The program with a subcommand, this node's directories and, for `agent` and `run`, its mount.
    pub fn agent_command(&self, subcommand: &str) -> Command {
        let mut command = self.bare_command();
        command.arg(subcommand).arg("--run-dir").arg(self.run_dir());
        if matches!(subcommand, "agent" | "run") {
            command.arg("--state-dir").arg(self.state_dir());
            command.arg("--mount").arg(self.setup.mount(&self.prefix, &self.tree));
            for mount in &self.setup.more_mounts {
                command.arg("--mount").arg(mount);
            }
        }
        command
    }

    /// The program in the agent's environment, with no arguments.
    pub fn bare_command(&self) -> Command {
        let mut command = Command::new(self.base.path().join("bin/storeshim"));
        command.env_clear().env("PATH", PATH).env("HOME", self.base.path().join("home"));
        command.env("STORESHIM_LOG_LEVEL", std::env::var("STORESHIM_LOG_LEVEL").unwrap_or("info".into()));
        command.envs(self.setup.agent_env.iter().map(|(name, value)| (name, value)));
        command.current_dir("/");
        if let Some(id) = self.setup.user.id() {
            command.uid(id).gid(id);
        }
        command
    }

    /// Process id of the running agent.
    #[track_caller]
    pub fn agent_pid(&self) -> Pid {
        Pid::from_raw(self.agent.as_ref().expect("the agent runs").id().cast_signed())
    }

    /// SIGKILL for the agent, if it runs.
    pub fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// SIGTERM for the agent; returns how it ended.
    #[track_caller]
    pub fn stop_agent(&mut self) -> ExitStatus {
        kill(self.agent_pid(), Signal::SIGTERM).expect("it is our child");
        self.await_exit()
    }

    /// Waits until the agent has ended of itself.
    #[track_caller]
    pub fn await_exit(&mut self) -> ExitStatus {
        let mut agent = self.agent.take().expect("the agent runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = agent.try_wait().expect("our child") {
                return status;
            }
            if Instant::now() > deadline {
                self.agent = Some(agent);
                panic!("the agent has not ended after {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Does something while the agent stands still, so that nobody writes to its store. Keep it under a second:
    /// clients take a silent agent for a dead one.
    pub fn halted<T>(&self, act: impl FnOnce() -> T) -> T {
        if self.setup.reference {
            return act();
        }
        let pid = self.agent_pid();
        kill(pid, Signal::SIGSTOP).expect("it is our child");
        // A thread inside a system call stops only at its end.
        let deadline = Instant::now() + PATIENCE;
        while !stands_still(pid) {
            assert!(Instant::now() < deadline, "the agent does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        let result = act();
        kill(pid, Signal::SIGCONT).expect("it is our child");
        result
    }

    /// `storeshim status --json`, or `None` where no agent answers.
    pub fn try_status(&self) -> Option<Value> {
        let mut command = self.agent_command("status");
        let output = command.arg("--json").stdin(Stdio::null()).output().expect("the agent's program runs");
        serde_json::from_slice(&output.stdout).ok()
    }

    /// `storeshim status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.try_status().expect("the agent answers")
    }

    /// The value of `key` wherever it stands in the status of this node's one mount.
    #[track_caller]
    pub fn status_of(&self, key: &str) -> Value {
        let status = self.status();
        find(&status, key).cloned().unwrap_or_else(|| panic!("no `{key}` in the status:\n{status:#}"))
    }

    /// Waits until the mount is in `state`.
    #[track_caller]
    pub fn await_state(&mut self, state: &str) {
        self.await_status(&format!("state {state}"), |status| {
            find(status, "state").and_then(Value::as_str).is_some_and(|word| word == state)
        });
    }

    /// Waits until the status is as wanted. Fails the test where the agent ends first.
    #[track_caller]
    pub fn await_status(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.try_status();
            if status.as_ref().is_some_and(&wanted) {
                return;
            }
            let agent = self.agent.as_mut().expect("the agent runs");
            if let Some(status) = agent.try_wait().expect("our child") {
                self.agent = None;
                panic!("the agent ended ({status}) instead of reaching {what}:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "no {what} after {PATIENCE:?}; status: {status:#?}");
            std::thread::sleep(Duration::from_millis(15));
        }
    }

    /// Waits until all names of the volume are in the tree.
    #[track_caller]
    pub fn await_names(&mut self) {
        self.await_status("all names", |status| {
            find(status, "names_complete").is_some_and(|complete| complete == true)
        });
    }

    /// `storeshim flush`, which must succeed.
    #[track_caller]
    pub fn flush(&self) {
        if !self.setup.reference {
            self.try_flush(PATIENCE).succeeded();
        }
    }

    /// `storeshim warmup` or `evict` of paths that are relative to the volume's root; returns what it said.
    #[track_caller]
    pub fn work(&self, subcommand: &str, paths: &[&str]) -> Said {
        let mut command = self.agent_command(subcommand);
        command.args(paths.iter().map(|path| self.prefix().join(path)));
        self.run_to_end(command, PATIENCE)
    }

    /// Brings everything to this disk.
    #[track_caller]
    pub fn warm(&self) {
        if !self.setup.reference {
            self.work("warmup", &[""]).succeeded();
        }
    }

    /// A number of the status of what is on this disk.
    #[track_caller]
    pub fn residency(&self, key: &str) -> u64 {
        let value = find(&self.status_of("residency"), key).cloned();
        value
            .as_ref()
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no number residency.{key}: {value:?}"))
    }

    /// `storeshim flush`, given up (and the test with it) after `limit`.
    #[track_caller]
    pub fn try_flush(&self, limit: Duration) -> Said {
        self.run_to_end(self.agent_command("flush"), limit)
    }

    /// Puts the agent and the shim where every user may read and run them.
    pub(super) fn install(&self) {
        if self.setup.reference {
            return;
        }
        let bin = self.base.path().join("bin");
        for (name, variable) in [("storeshim", "STORESHIM_BIN"), ("libstoreshim.so", "STORESHIM_SHIM")] {
            let built = built(name, variable);
            let place = bin.join(name);
            if fs::hard_link(&built, &place).is_err() {
                fs::copy(&built, &place).unwrap_or_else(|error| panic!("copy {built:?}: {error}"));
            }
        }
    }

    /// The shim library of this node.
    pub fn shim(&self) -> PathBuf {
        self.base.path().join("bin/libstoreshim.so")
    }
}

/// True where every thread of a process is stopped.
fn stands_still(pid: Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("our child").flatten();
    tasks.into_iter().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The state follows the name in brackets, which may hold anything. A thread that has gone is still, too.
        stat.rsplit(')')
            .next()
            .is_none_or(|rest| matches!(rest.trim_start().chars().next(), Some('T') | None))
    })
}

/// What `variable` names, or the newest of what the debug and release builds have left.
pub fn built(name: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| crate::programs::crate_dir().join("../target"), PathBuf::from);
    let modified = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    // The debug build of the shim is no product: it is only ever tested as it is shipped.
    let profiles: &[&str] = if name.ends_with(".so") { &["release"] } else { &["debug", "release"] };
    let candidates = profiles.iter().map(|profile| target.join(profile).join(name));
    candidates.filter(|path| path.exists()).max_by_key(modified).unwrap_or_else(|| {
        panic!(
            "there is no {name} below {}: run the tests by `cargo xtask test`, or set {variable}",
            target.display()
        )
    })
}

/// The first value of `key` in a JSON document, outermost first.
pub fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|inner| find(inner, key))),
        Value::Array(list) => list.iter().find_map(|inner| find(inner, key)),
        _ => None,
    }
}
