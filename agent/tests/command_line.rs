//! The program `storeshim` as a user meets it: exit statuses, signals, and an agent that comes and goes with the
//! programs that need it. The shim is a stand-in here (nothing is preloaded); what it does is tested elsewhere.

#![allow(clippy::unwrap_used, reason = "what fails in a test's helper is a failed test")]

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A machine with a store on it.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // An ELF file that can be preloaded and does nothing.
        let source = dir.path().join("empty.c");
        std::fs::write(&source, "").unwrap();
        let made = Command::new("cc")
            .args(["-shared", "-nostdlib", "-o"])
            .arg(dir.path().join("libstoreshim.so"))
            .arg(source)
            .status()
            .unwrap();
        assert!(made.success());
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn storeshim(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_storeshim"));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.dir.path());
        command.env("STORESHIM_SHIM", self.path("libstoreshim.so"));
        command.arg(subcommand).arg("--run-dir").arg(self.path("run"));
        command.stdin(Stdio::null());
        command
    }

    fn mount(&self) -> String {
        format!("/nowhere/storage=file://{}", self.path("store").display())
    }

    fn run(&self, program: &[&str]) -> Command {
        let mut command = self.storeshim("run");
        command.arg("--state-dir").arg(self.path("state")).arg("--mount").arg(self.mount());
        command.arg("--").args(program);
        command
    }

    fn status(&self) -> Option<serde_json::Value> {
        let output = self.storeshim("status").arg("--json").output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    fn agent_pid(&self) -> Option<i32> {
        i32::try_from(self.status()?["pid"].as_i64()?).ok()
    }

    /// Starts a program that runs for `seconds`; returns when it does.
    fn start_sleep(&self, seconds: f64) -> Child {
        let ready = self.path("ready");
        let child =
            start(&mut self.run(&["sh", "-c", &format!("touch {}; exec sleep {seconds}", ready.display())]));
        until("the program has started", || exists(&ready));
        std::fs::remove_file(ready).unwrap();
        child
    }
}

fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn status(output: &Output) -> Option<i32> {
    output.status.code()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

fn exists(path: &Path) -> Option<()> {
    path.exists().then_some(())
}

#[test]
fn the_programs_status_is_ours() {
    let machine = Machine::new();
    for (script, expected) in [("true", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        let output = machine.run(&["sh", "-c", script]).output().unwrap();
        assert_eq!(status(&output), Some(expected), "{script}: {}", said(&output));
    }
    let output = machine.run(&["no-such-program"]).output().unwrap();
    assert_eq!(status(&output), Some(127), "{}", said(&output));
    let output = machine.run(&["/etc/passwd"]).output().unwrap();
    assert_eq!(status(&output), Some(126), "{}", said(&output));
}

#[test]
fn the_environment_names_shim_and_run_directory() {
    let machine = Machine::new();
    let script = "echo $LD_PRELOAD $STORESHIM_RUN_DIR";
    let output = machine.run(&["sh", "-c", script]).env("LD_PRELOAD", "/nonexistent/x.so").output().unwrap();
    let shim = machine.path("libstoreshim.so").canonicalize().unwrap();
    let expected = format!("{}:/nonexistent/x.so {}\n", shim.display(), machine.path("run").display());
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn the_agent_comes_and_goes_with_its_programs() {
    let machine = Machine::new();
    let output = machine.run(&["true"]).output().unwrap();
    assert_eq!(status(&output), Some(0), "{}", said(&output));
    assert_eq!(machine.agent_pid(), None, "the last program has ended, and run has waited for the agent");

    let mut longer = machine.start_sleep(1.5);
    let agent = machine.agent_pid();
    let output = machine.run(&["true"]).output().unwrap();
    assert_eq!(status(&output), Some(0), "{}", said(&output));
    assert_eq!(machine.agent_pid(), agent, "another program still uses it");
    assert!(longer.wait().unwrap().success());
    until("the agent is gone", || machine.agent_pid().is_none().then_some(()));
}

#[test]
fn many_programs_at_once_share_one_agent() {
    let machine = Machine::new();
    let children: Vec<_> = (0..6).map(|_| start(&mut machine.run(&["sleep", "0.5"]))).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(status(&output), Some(0), "{}", said(&output));
        assert_eq!(said(&output), "");
    }
}

#[test]
fn a_killed_run_leaves_no_agent_behind() {
    let machine = Machine::new();
    let mut run = machine.start_sleep(1.0);
    kill(pid(&run), Signal::SIGKILL).unwrap();
    run.wait().unwrap();
    until("the agent is gone", || machine.agent_pid().is_none().then_some(()));
}

#[test]
fn a_killed_agent_is_started_again() {
    let machine = Machine::new();
    let run = machine.start_sleep(3.0);
    let first = machine.agent_pid().unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    let second = until("another agent is there", || machine.agent_pid());
    assert_ne!(first, second);
    let output = run.wait_with_output().unwrap();
    assert_eq!(status(&output), Some(0), "{}", said(&output));
    assert!(said(&output).contains("starting it again"), "{}", said(&output));
}

#[test]
fn signals_are_passed_on() {
    let machine = Machine::new();
    let ready = machine.path("ready");
    let script = format!("trap 'exit 9' USR1; touch {}; while :; do sleep 0.05; done", ready.display());
    let run = start(&mut machine.run(&["sh", "-c", &script]));
    until("the program has started", || exists(&ready));
    kill(pid(&run), Signal::SIGUSR1).unwrap();
    assert_eq!(run.wait_with_output().unwrap().status.code(), Some(9));
    std::fs::remove_file(ready).unwrap();

    let run = machine.start_sleep(60.0);
    kill(pid(&run), Signal::SIGTERM).unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(status(&output), Some(143), "{}", said(&output));
    assert_eq!(machine.agent_pid(), None);
}

#[test]
fn a_stopped_program_stops_us_and_goes_on_with_us() {
    let machine = Machine::new();
    let ready = machine.path("ready");
    let script = format!("touch {}; kill -TSTP $$; exit 5", ready.display());
    let run = start(&mut machine.run(&["sh", "-c", &script]));
    let stat = format!("/proc/{}/stat", run.id());
    let state = || {
        let text = std::fs::read_to_string(&stat).ok()?;
        text.rsplit_once(") ")?.1.chars().next()
    };
    until("run is stopped", || (state() == Some('T')).then_some(()));
    // As a shell does at `fg`: everybody in the group.
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.id())).unwrap();
    kill(pid(&run), Signal::SIGCONT).unwrap();
    for child in children.split_whitespace() {
        kill(Pid::from_raw(child.parse().unwrap()), Signal::SIGCONT).unwrap();
    }
    assert_eq!(run.wait_with_output().unwrap().status.code(), Some(5));
}

#[test]
fn chdir_goes_below_a_mount() {
    let machine = Machine::new();
    let mut command = machine.storeshim("run");
    command.arg("--state-dir").arg(machine.path("state")).arg("--mount").arg(machine.mount());
    command.args(["--chdir", "/nowhere/storage", "--", "sh", "-c", "echo data > file"]);
    let output = command.output().unwrap();
    assert_eq!(status(&output), Some(0), "{}", said(&output));
    let mut command = machine.storeshim("run");
    command.arg("--state-dir").arg(machine.path("state")).arg("--mount").arg(machine.mount());
    let output = command.args(["--chdir", "/nowhere/storage", "--", "printenv", "PWD"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "/nowhere/storage\n", "{}", said(&output));
    // A new machine: only the store is left.
    std::fs::remove_dir_all(machine.path("state")).unwrap();
    let output = machine.run(&["cat", "/nowhere/storage/file"]).output().unwrap();
    assert_eq!(status(&output), Some(1), "there is no shim here to translate: {}", said(&output));
    let mut command = machine.storeshim("run");
    command.arg("--state-dir").arg(machine.path("state")).arg("--mount").arg(machine.mount());
    let output = command.args(["--chdir", "/nowhere/storage", "--", "cat", "file"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "data\n", "{}", said(&output));
}

#[test]
fn what_cannot_work_is_said_in_a_sentence() {
    let machine = Machine::new();
    let no_mount = machine.storeshim("run").args(["--", "true"]).output().unwrap();
    assert_eq!(status(&no_mount), Some(125));
    assert!(said(&no_mount).contains("--mount /storage=URL"), "{}", said(&no_mount));

    for subcommand in ["status", "flush"] {
        let output = machine.storeshim(subcommand).output().unwrap();
        assert_eq!(status(&output), Some(3));
        assert!(said(&output).contains("start one with `storeshim agent"), "{}", said(&output));
    }

    let mut bad_url = machine.storeshim("run");
    bad_url.arg("--state-dir").arg(machine.path("state"));
    let output = bad_url.args(["--mount", "/nowhere/s=gopher://x/y", "--", "true"]).output().unwrap();
    assert_eq!(status(&output), Some(125));
    assert!(said(&output).contains("gopher"), "{}", said(&output));

    let config = machine.path("s.toml");
    std::fs::write(&config, "\ncolour = 'red'\n").unwrap();
    let output = machine.storeshim("agent").arg("--config").arg(&config).output().unwrap();
    assert_eq!(status(&output), Some(2));
    assert!(said(&output).contains("s.toml line 2: unknown key `colour`"), "{}", said(&output));

    let output = machine.run(&["true"]).env("STORESHIM_SHIM", "/nonexistent").output().unwrap();
    assert_eq!(status(&output), Some(125));
    assert!(said(&output).contains("STORESHIM_SHIM"), "{}", said(&output));
}

#[test]
fn other_mounts_than_the_agents_are_refused() {
    let machine = Machine::new();
    let mut run = machine.start_sleep(30.0);
    let mut other = machine.storeshim("run");
    let output = other.args(["--mount", "/nowhere/other=memory:x", "--", "true"]).output().unwrap();
    assert_eq!(status(&output), Some(125));
    assert!(said(&output).contains("has no such mount"), "{}", said(&output));

    let second = machine.storeshim("agent").args(["--mount", "/nowhere/other=memory:x"]).output().unwrap();
    assert_eq!(status(&second), Some(1));
    assert!(said(&second).contains("already serves"), "{}", said(&second));
    kill(pid(&run), Signal::SIGTERM).unwrap();
    run.wait().unwrap();
}

#[test]
fn an_agent_drains_at_sigterm() {
    let machine = Machine::new();
    let mut command = machine.storeshim("agent");
    command.arg("--state-dir").arg(machine.path("state")).arg("--mount").arg(machine.mount());
    let agent = start(&mut command);
    until("it is ready", || {
        let output = machine.storeshim("status").output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("ready").then_some(())
    });
    let output = machine.storeshim("flush").arg("/nowhere/storage/").output().unwrap();
    assert_eq!(status(&output), Some(0), "{}", said(&output));
    kill(pid(&agent), Signal::SIGTERM).unwrap();
    let output = agent.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), None);
    assert_eq!(status(&output), Some(0), "{}", said(&output));
}
