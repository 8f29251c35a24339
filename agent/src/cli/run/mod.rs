//! `storeshim run`: a program with its mounts, from the agent that it needs to the flush at its end.

mod launch;
mod program;
mod supervise;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::flush::Flush;
use super::progress::Bar;
use super::{Failure, Settings};
use crate::config::Config;
use crate::http::ClientError;
use crate::mounts::{AgentStatus, MountStatus};
use launch::Attached;
use program::{Net, Program};
pub(super) use program::{find_shim, physical};
pub(super) use supervise::Arrived;
use supervise::Outcome;

/// storeshim itself failed: the agent, the shim, or the flush at the end of a program that ended well.
const OWN_FAILURE: u8 = 125;
/// How often an agent is looked at, and how often while it has just been started, which mostly does not take long.
const LOOK: Duration = Duration::from_millis(20);
const LOOK_AT_FIRST: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(500));

/// Arguments of `storeshim run`.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Start the program in this directory, which may be below a mount.
    #[arg(long, value_name = "DIR")]
    chdir: Option<PathBuf>,
    /// Catch system calls that the program makes outside libc, too: sud (Syscall User Dispatch; x86-64, Linux 5.11).
    #[arg(long, value_name = "NET")]
    net: Option<Net>,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(super) command: Vec<std::ffi::OsString>,
}

/// Runs the program; its exit status, or 128 + n where signal n ended it.
pub(super) fn main(arguments: &Arguments) -> Result<u8, Failure> {
    let own = |failure: Failure| Failure { status: OWN_FAILURE, ..failure };
    let config = arguments.settings.load().map_err(|error| own(error.into()))?;
    let shim = find_shim()?;
    if let Some(net) = arguments.net {
        net.check()?;
    }
    let mut attached = Attached::reach(&config, &arguments.settings).map_err(own)?;
    let status = until_ready(&mut attached).map_err(own)?;
    check_mounts(&config, &status).map_err(own)?;

    let program = Program {
        command: &arguments.command,
        chdir: arguments.chdir.as_deref(),
        net: arguments.net,
        shim: &shim,
        run_dir: &config.run_dir,
        mounts: &status.mounts,
    };
    let mut running = supervise::Running::start(&program)?;
    let outcome = running.wait(&mut attached)?;
    let flushed = flush(&running, &attached, &config);
    if flushed.is_ok() {
        attached.leave(&config);
    }
    match (flushed, outcome) {
        (Ok(()), outcome) => Ok(outcome.status()),
        // The program's own failure is the better news for whoever waits for it; the sentence is printed anyway.
        (Err(failure), outcome) => Err(match outcome {
            Outcome::Exited(0) => own(failure),
            other => Failure { status: other.status(), ..failure },
        }),
    }
}

/// The pause before the next look at what has begun then.
fn next_look(began: Instant) -> Duration {
    let (soon, first) = LOOK_AT_FIRST;
    if began.elapsed() < first { soon } else { LOOK }
}

/// Waits until every mount can be used, with a progress bar where that takes long.
fn until_ready(attached: &mut Attached) -> Result<AgentStatus, Failure> {
    let (bar, began) = (Bar::new(), Instant::now());
    loop {
        let status = match attached.client().status() {
            Ok(status) => status,
            Err(error) => return Err(attached.why_gone(error)),
        };
        if let Some(mount) = status.mounts.iter().find(|mount| is_lost(mount)) {
            let reason = mount.volume.reason.as_deref().unwrap_or("see the agent's log");
            return Err(Failure::new(OWN_FAILURE, format!("mount {}: {reason}", mount.prefix)));
        }
        if status.mounts.iter().all(|mount| mount.volume.state == "ready") {
            return Ok(status);
        }
        bar.show(&status);
        std::thread::sleep(next_look(began));
    }
}

fn is_lost(mount: &MountStatus) -> bool {
    matches!(mount.volume.state.as_str(), "fenced" | "failed")
}

/// An agent that was there before may serve other mounts than those asked for.
fn check_mounts(config: &Config, status: &AgentStatus) -> Result<(), Failure> {
    for wanted in &config.mounts {
        let there = match status.mounts.iter().find(|mount| mount.prefix == wanted.prefix) {
            Some(mount) if mount.url == wanted.public_url() => continue,
            Some(mount) => format!("shows {} there", mount.url),
            None => "has no such mount".to_owned(),
        };
        return Err(Failure::new(
            OWN_FAILURE,
            format!(
                "{} is to show {}, but the running agent (pid {} on {}) {there}; stop that agent, or give this \
                 program its own with --run-dir",
                wanted.prefix,
                wanted.public_url(),
                status.pid,
                status.run_dir.display()
            ),
        ));
    }
    Ok(())
}

/// Brings what the program did into the backend; a signal breaks the wait off.
fn flush(running: &supervise::Running, attached: &Attached, config: &Config) -> Result<(), Failure> {
    let patience = Some(config.drain_timeout);
    match Flush::begin(attached.client(), None)?.wait(attached.client(), patience, Some(running.signals())) {
        Ok(_) => Ok(()),
        Err(failure) => Err(Failure::new(
            OWN_FAILURE,
            format!("not everything that the program did is in the backend: {}", failure.message),
        )),
    }
}

impl Attached {
    /// The better explanation of a lost agent: what it printed at its end, if it was ours.
    fn why_gone(&mut self, error: ClientError) -> Failure {
        match self.last_words() {
            Some(words) => Failure::new(OWN_FAILURE, format!("the agent has ended: {words}")),
            None => Failure::new(OWN_FAILURE, error),
        }
    }
}

#[cfg(test)]
mod tests;
