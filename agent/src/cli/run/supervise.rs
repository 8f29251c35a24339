//! A running program: passes signals on, follows its stops and its end, and reaps what is left to this process.
//! It must not know mounts.
//!
//! The program shares our process group, so the terminal's signals (Ctrl-C, Ctrl-Z, a hang-up) reach it without us,
//! and job control works as if we were not there. Only what somebody sent to us alone is passed on.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, RecvTimeoutError};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::OWN_FAILURE;
use super::launch::Attached;
use super::program::Program;
use crate::cli::Failure;

/// The program could be found but not run.
const CANNOT_RUN: u8 = 126;
/// The program could not be found.
const NOT_FOUND: u8 = 127;
/// How often the agent is looked after.
const LOOK_AFTER: Duration = Duration::from_millis(250);
/// Signals that are passed on.
const PASSED_ON: [Signal; 10] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// How a program has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(Signal),
}

impl Outcome {
    /// As a shell reports it.
    pub(super) fn status(self) -> u8 {
        match self {
            // The kernel gives eight bits.
            Self::Exited(status) => status as u8,
            Self::Killed(signal) => 128u8.wrapping_add(signal as i32 as u8),
        }
    }
}

/// A signal that has arrived.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct Arrived {
    /// Which.
    pub(in crate::cli) signal: Signal,
    /// Somebody sent it to us; else it came from the kernel, and the program has it too.
    sent: bool,
}

impl Arrived {
    /// Whether it would end a program that does nothing about it.
    pub(in crate::cli) fn asks_for_an_end(self) -> bool {
        matches!(self.signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT)
    }
}

/// A program under way.
pub(super) struct Running {
    pid: Pid,
    signals: Receiver<Arrived>,
}

impl Running {
    /// Starts it. From now on this process takes no signal by its default action.
    pub(super) fn start(program: &Program<'_>) -> Result<Self, Failure> {
        let trouble = |error: &dyn std::fmt::Display| {
            Failure::new(OWN_FAILURE, format!("cannot watch for signals: {error}"))
        };
        let mut command = program.command()?;
        let mut watched: SigSet = PASSED_ON.into_iter().collect();
        watched.add(Signal::SIGCHLD);
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&watched), Some(&mut before))
            .map_err(|error| trouble(&error))?;
        // SAFETY: pthread_sigmask(2) is async-signal-safe, and `before` was copied into the closure.
        unsafe {
            command.pre_exec(move || {
                sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None).map_err(Into::into)
            });
        }
        let child = command.spawn().map_err(|error| {
            let status = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
            Failure::new(status, format!("cannot run {}: {error}", program.name()))
        })?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(|error| trouble(&error))?);

        let (sender, signals) = channel::unbounded();
        let descriptor = SignalFd::new(&watched).map_err(|error| trouble(&error))?;
        let spawned = std::thread::Builder::new().name("signals".into()).spawn(move || {
            while let Ok(arrived) = descriptor.read_signal() {
                let Some(info) = arrived else { continue };
                let signal = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok());
                // SI_USER, SI_QUEUE and SI_TKILL are zero and below; what the kernel sends is above.
                let Some(signal) = signal else { continue };
                if sender.send(Arrived { signal, sent: info.ssi_code <= 0 }).is_err() {
                    return;
                }
            }
        });
        spawned.map_err(|error| trouble(&error))?;
        Ok(Self { pid, signals })
    }

    /// Waits for the end of the program and looks after the agent meanwhile.
    pub(super) fn wait(&mut self, attached: &mut Attached) -> Result<Outcome, Failure> {
        loop {
            match self.signals.recv_timeout(LOOK_AFTER) {
                Ok(Arrived { signal: Signal::SIGCHLD, .. }) => {}
                Ok(Arrived { signal, sent: true }) => {
                    // It may have ended a moment ago.
                    let _ = kill(self.pid, signal);
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::new(OWN_FAILURE, "the watch for signals has ended"));
                }
            }
            if let Some(outcome) = self.reap(attached)? {
                return Ok(outcome);
            }
            attached.keep();
        }
    }

    /// What arrives after the program's end.
    pub(super) fn signals(&self) -> &Receiver<Arrived> {
        &self.signals
    }

    /// Takes note of every child that has changed: the program, the agent, and as the first process of a container
    /// all orphans.
    fn reap(&self, attached: &mut Attached) -> Result<Option<Outcome>, Failure> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::StillAlive) => return Ok(None),
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    return Err(Failure::new(OWN_FAILURE, format!("the program was lost sight of: {error}")));
                }
            };
            match status {
                WaitStatus::Exited(pid, code) if pid == self.pid => return Ok(Some(Outcome::Exited(code))),
                WaitStatus::Signaled(pid, signal, _) if pid == self.pid => {
                    return Ok(Some(Outcome::Killed(signal)));
                }
                WaitStatus::Stopped(pid, Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU)
                    if pid == self.pid =>
                {
                    // The shell that waits for us must see the stop, too. It goes on with the whole group.
                    let _ = kill(Pid::this(), Signal::SIGSTOP);
                }
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => attached.child_ended(status),
                _ => {}
            }
        }
    }
}
