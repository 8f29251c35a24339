//! Reaches the agent of a run directory, and starts one where none is. It must not know what is run with it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{LOOK, OWN_FAILURE, next_look};
use crate::cli::{Failure, Settings};
use crate::config::Config;
use crate::http::{Client, ClientError, HoldConnection};

/// How long an agent may take until it answers on its socket (not: until its mounts are restored).
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// How long an agent that another program has just started may take, when ours has found the place taken.
const OTHERS_ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Pause before an agent that was killed is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// A hold that was let go is counted no longer than this.
const HOLD_COUNTED: Duration = Duration::from_secs(2);
/// A log that has grown larger than this is put aside before the next agent writes to it.
const LOG_MAX: u64 = 16 << 20;

/// The agent that a program runs with, and the hold that keeps it.
pub(super) struct Attached {
    client: Client,
    hold: Option<HoldConnection>,
    own: Option<OwnAgent>,
    launch: Launch,
}

/// How an agent is started.
struct Launch {
    arguments: Vec<std::ffi::OsString>,
    state_dir: PathBuf,
}

/// An agent that this process has started.
struct OwnAgent {
    pid: Pid,
    ended: Option<WaitStatus>,
    log: PathBuf,
    /// Where its part of the log begins.
    log_from: u64,
    since: Instant,
}

impl Attached {
    /// Takes a hold at the agent of the configured run directory; starts that agent where there is none.
    pub(super) fn reach(config: &Config, settings: &Settings) -> Result<Self, Failure> {
        let launch =
            Launch { arguments: agent_arguments(config, settings), state_dir: config.state_dir.clone() };
        let mut attached = Self { client: Client::new(&config.run_dir), hold: None, own: None, launch };
        let began = Instant::now();
        loop {
            match attached.client.hold() {
                Ok(hold) => {
                    attached.hold = Some(hold);
                    // Ours may have lost the race for the run directory, and be about to say so.
                    let pid = attached.client.status()?.pid;
                    attached.own = attached.own.filter(|own| u32::try_from(own.pid.as_raw()) == Ok(pid));
                    return Ok(attached);
                }
                Err(ClientError::NoAgent(_)) if attached.own.is_none() => {
                    if config.mounts.is_empty() {
                        return Err(Failure::new(
                            OWN_FAILURE,
                            format!(
                                "no agent is running on {} and there is no mount to start one with; give one with \
                                 --mount /storage=URL",
                                config.run_dir.display()
                            ),
                        ));
                    }
                    attached.own = Some(attached.launch.start()?);
                }
                // One that ends makes room for ours, however long its drain takes.
                Err(ClientError::Ending) if attached.own.is_none() => {}
                Err(ClientError::NoAgent(_) | ClientError::Ending) => attached.check_start(began)?,
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(next_look(began));
        }
    }

    /// The agent.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    fn check_start(&mut self, began: Instant) -> Result<(), Failure> {
        let Some(own) = &mut self.own else { return Ok(()) };
        let limit = if own.has_ended() { OTHERS_ANSWER_WITHIN } else { ANSWERS_WITHIN };
        if own.since.elapsed() < limit && began.elapsed() < ANSWERS_WITHIN * 2 {
            // The usual way to end is a wrong setting: no reason to wait for somebody else's agent.
            let taken = own.words().is_none_or(|words| words.contains("agent (pid"));
            if !own.has_ended() || taken {
                return Ok(());
            }
        }
        let words = own.last_words();
        let why = words.unwrap_or_else(|| format!("it does not answer; see its log {}", own.log.display()));
        Err(Failure::new(OWN_FAILURE, format!("the agent could not be started: {why}")))
    }

    /// What our agent printed last, once it has ended.
    pub(super) fn last_words(&mut self) -> Option<String> {
        let own = self.own.as_mut()?;
        // A lost connection is seen a moment before the death that caused it.
        for _ in 0..50 {
            if own.has_ended() {
                return own.last_words();
            }
            std::thread::sleep(LOOK);
        }
        None
    }

    /// Takes note of the end of a child process.
    pub(super) fn child_ended(&mut self, status: WaitStatus) {
        if let Some(own) = &mut self.own
            && status.pid() == Some(own.pid)
        {
            own.ended = Some(status);
        }
    }

    /// Called now and then while the program runs: an agent of ours that was killed is started again, because the
    /// program's requests wait for it. One that ended with an error would do so again.
    pub(super) fn keep(&mut self) {
        let Some(own) = &mut self.own else { return };
        if own.has_ended() {
            let killed = matches!(own.ended, Some(WaitStatus::Signaled(..)));
            if killed && own.since.elapsed() >= RESTART_PAUSE {
                eprintln!("storeshim: the agent was killed; starting it again");
                self.hold = None;
                match self.launch.start() {
                    Ok(started) => self.own = Some(started),
                    Err(failure) => {
                        eprintln!("storeshim: {}", failure.message);
                        self.own = None;
                    }
                }
            } else if !killed {
                let words = own.last_words().unwrap_or_default();
                eprintln!("storeshim: the agent has ended, and fsync waits for another one: {words}");
                self.own = None;
            }
        } else if self.hold.is_none() {
            self.hold = self.client.hold().ok();
        }
    }

    /// Lets the agent go; one that we have started ends with its last user, and that is waited for.
    pub(super) fn leave(mut self, config: &Config) {
        let Some(mut own) = self.own.take() else { return };
        // It ends by itself when idle; asking makes that independent of how it was started.
        let asked = self.client.shutdown(true);
        drop(self.hold.take());
        let alone = asked.is_ok_and(|status| status.holds <= 1 && status.sessions.is_empty());
        let began = Instant::now();
        while alone && !own.has_ended() && began.elapsed() < config.drain_timeout {
            match self.client.status() {
                // Somebody came at the last moment. (Our own hold may still be counted for a moment.)
                Ok(status)
                    if !status.stopping
                        && began.elapsed() > HOLD_COUNTED
                        && (status.holds > 0 || !status.sessions.is_empty()) =>
                {
                    return;
                }
                _ => std::thread::sleep(LOOK),
            }
        }
    }
}

/// The flags that give an agent the settings that we have.
fn agent_arguments(config: &Config, settings: &Settings) -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<std::ffi::OsString> = vec!["agent".into(), "--exit-when-idle".into()];
    let mut add = |flag: &str, value: &std::ffi::OsStr| {
        arguments.push(flag.into());
        arguments.push(value.to_owned());
    };
    // What comes from the environment it inherits; what is relative must not depend on its working directory.
    if let Some(file) = &settings.config {
        add("--config", std::path::absolute(file).as_deref().unwrap_or(file).as_os_str());
    }
    add("--run-dir", config.run_dir.as_os_str());
    add("--state-dir", config.state_dir.as_os_str());
    add("--drain-timeout", format!("{}ms", config.drain_timeout.as_millis()).as_ref());
    add("--log-level", config.log.level.as_ref());
    for mount in &settings.mounts {
        add("--mount", mount.spec.as_ref());
    }
    arguments
}

impl Launch {
    /// Starts an agent in a session of its own, so that the terminal's signals do not reach it.
    fn start(&self) -> Result<OwnAgent, Failure> {
        let log = self.state_dir.join("agent.log");
        let trouble = |what: &str, error: &dyn std::fmt::Display| {
            Failure::new(OWN_FAILURE, format!("cannot start an agent: {what}: {error}"))
        };
        let (file, log_from) = open_log(&self.state_dir, &log)
            .map_err(|error| trouble(&format!("its log {}", log.display()), &error))?;
        let program = std::env::current_exe().map_err(|error| trouble("its program", &error))?;
        let stderr = file.try_clone().map_err(|error| trouble("its log", &error))?;
        let mut command = Command::new(program);
        command
            .args(&self.arguments)
            .env_remove("LD_PRELOAD")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(stderr);
        // SAFETY: setsid(2) is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
        }
        let child = command.spawn().map_err(|error| trouble("its program", &error))?;
        let pid = i32::try_from(child.id()).map_err(|error| trouble("its process id", &error))?;
        Ok(OwnAgent { pid: Pid::from_raw(pid), ended: None, log, log_from, since: Instant::now() })
    }
}

fn open_log(state_dir: &Path, log: &Path) -> std::io::Result<(File, u64)> {
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(state_dir)?;
    if log.metadata().is_ok_and(|meta| meta.len() > LOG_MAX) {
        std::fs::rename(log, log.with_extension("log.1"))?;
    }
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(log)?;
    let end = file.seek(SeekFrom::End(0))?;
    Ok((file, end))
}

impl OwnAgent {
    /// Whether it has ended; takes note of it.
    fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
                Ok(status) => self.ended = Some(status),
                // Somebody has waited for it already; how it ended is not known.
                Err(_) => self.ended = Some(WaitStatus::Exited(self.pid, -1)),
            }
        }
        self.ended.is_some()
    }

    /// The last line of its log that tells the reason of an end: the sentence without our name in front. Agents that were started
    /// at once write to one log, and the one that serves goes on writing.
    fn last_words(&self) -> Option<String> {
        let words = self.words()?;
        let mut lines = words.lines().rev().map(str::trim).filter(|line| !line.is_empty()).peekable();
        let last = lines.peek().copied();
        // One of another agent may be half written.
        let reason =
            lines.find_map(|line| line.strip_prefix("storeshim: ").filter(|reason| !reason.is_empty()));
        reason.or(last).map(str::to_owned)
    }

    /// Its part of the log; `None` where there is nothing in it yet.
    fn words(&self) -> Option<String> {
        let mut file = File::open(&self.log).ok()?;
        file.seek(SeekFrom::Start(self.log_from)).ok()?;
        let mut text = Vec::new();
        file.take(LOG_MAX).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned()).filter(|text| !text.trim().is_empty())
    }
}
