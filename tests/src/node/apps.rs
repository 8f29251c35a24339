//! Apps on a node: ordinary programs under its shim. It must not know the agent.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Node, Said};
use crate::programs::PATH;

/// Longest run of a program that is waited for.
const PATIENCE: Duration = Duration::from_secs(180);

/// A program that runs beside the test; dropping it kills it.
pub struct App(Child);

impl App {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("our child")
    }

    /// Fails the test where it has ended by itself.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if let Some(status) = self.ended() {
            panic!("the app ended ({status}): {}", self.complaint());
        }
    }

    /// What it wrote to standard error; only after it has ended.
    fn complaint(&mut self) -> String {
        self.0.stderr.take().and_then(|stderr| io::read_to_string(stderr).ok()).unwrap_or_default()
    }

    /// Asks it to end by SIGTERM and waits; the test fails unless it then succeeds.
    #[track_caller]
    pub fn finish(mut self) {
        let _ = kill(self.pid(), Signal::SIGTERM);
        self.wait(Duration::from_secs(60));
    }

    /// Waits for its end; the test fails unless it succeeds in time.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            assert!(Instant::now() < deadline, "the app is still running after {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "the app ended with {status}: {}", self.complaint());
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Node {
    /// `program` under the shim, as the node's user, in a small clean environment with `$STORAGE` (the volume as
    /// apps see it) and `$OUTSIDE`.
    pub fn app(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", self.base.path().join("home"))
            .env("TMPDIR", self.base.path().join("tmp"))
            .env("LANG", "C.UTF-8")
            .env("STORAGE", self.prefix())
            .env("OUTSIDE", self.outside())
            .env("STORESHIM_RUN_DIR", self.run_dir())
            .current_dir("/")
            .stdin(Stdio::null());
        if !self.setup.reference {
            command.env("LD_PRELOAD", self.shim());
        }
        if let Some(net) = std::env::var_os("STORESHIM_E2E_NET") {
            command.env("STORESHIM_NET", net);
        }
        if let Some(id) = self.setup.user.id() {
            command.uid(id).gid(id);
        }
        command
    }

    /// `program` as the node's user, but without the shim, with `$STORAGE` the real tree.
    pub fn app_without_shim(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.app(program);
        command.env_remove("LD_PRELOAD").env("STORAGE", self.tree());
        command
    }

    /// Runs a bash script in the volume under the shim; returns what it said.
    #[track_caller]
    pub fn bash(&self, script: &str) -> Said {
        let mut command = self.app("/bin/bash");
        command.arg("-euo").arg("pipefail").arg("-c").arg(format!("cd \"$STORAGE\"\n{script}"));
        self.run_to_end(command, PATIENCE)
    }

    /// Runs a bash script in the volume under the shim; it must succeed. Returns its output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.bash(script).succeeded()
    }

    /// Runs a Python program in the volume under the shim; it must succeed. Returns its output.
    #[track_caller]
    pub fn python(&self, program: &str) -> String {
        crate::programs::require("python3");
        let mut command = self.app("/usr/bin/python3");
        command.arg("-c").arg(format!("import os\nos.chdir(os.environ['STORAGE'])\n{program}"));
        self.run_to_end(command, PATIENCE).succeeded()
    }

    /// Starts a program beside the test.
    #[track_caller]
    pub fn spawn(&self, mut command: Command) -> App {
        command.process_group(0).stderr(Stdio::piped());
        App(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Processes that hold the marks on absent files for this node's agent, and for the next one.
    pub fn guards(&self) -> Vec<Pid> {
        let state = self.state_dir().display().to_string();
        let is_one = |pid: &u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = words.split(|byte| *byte == 0).skip(1);
            words.next() == Some(b"guard")
                && words.next().is_some_and(|dir| dir.starts_with(state.as_bytes()))
        };
        pids().into_iter().filter(is_one).map(|pid| Pid::from_raw(pid.cast_signed())).collect()
    }

    /// SIGKILL for these: to be called where the agent has gone, which would start them again.
    pub(super) fn kill_guards(&self) {
        for pid in self.guards() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// SIGKILL for every process that was started on this node but its agent and that one's guards, daemons and orphans included. They are known by
    /// this node's run directory, in their environment or among their mappings; no other node has that path.
    pub fn kill_apps(&self) {
        let agent = self.agent.as_ref().map(Child::id);
        let marker = self.base.path().display().to_string();
        for _ in 0..200 {
            let mut found = false;
            let guards: Vec<u32> = self.guards().iter().map(|pid| pid.as_raw().cast_unsigned()).collect();
            for pid in pids() {
                if [agent, Some(std::process::id())].contains(&Some(pid))
                    || guards.contains(&pid)
                    || !belongs(pid, &marker)
                {
                    continue;
                }
                found = true;
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
            if !found {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("processes of {:?} survive SIGKILL", self.base.path());
    }
}

fn pids() -> Vec<u32> {
    let list = fs::read_dir("/proc").expect("proc is mounted").flatten();
    list.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A live process with `marker` in its environment or its mappings. A zombie has neither.
fn belongs(pid: u32, marker: &str) -> bool {
    ["environ", "maps"].iter().any(|file| {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&text).contains(marker)
    })
}
