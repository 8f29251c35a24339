//! `storeshim agent`: the daemon's life from its settings to its drained end.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{FAILED, Failure, Settings, UNDRAINED, USAGE};
use crate::config::{Log, LogFormat};
use crate::http;
use crate::mounts::{self, Mounts, MountsError};

/// How often the agent looks whether it is to end.
const TICK: Duration = Duration::from_millis(50);
/// How long an agent that ends when idle waits for its first user.
const FIRST_USER: Duration = Duration::from_secs(10);

/// Arguments of `storeshim agent`.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) settings: Settings,
    /// End when the last program that used the agent has ended.
    #[arg(long)]
    exit_when_idle: bool,
}

pub(super) fn main(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.settings.load()?;
    start_log(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(FAILED, format!("cannot start a runtime: {error}")))?;
    // Before anything can block: a signal that comes early must still mean a clean end.
    let signals = runtime.block_on(async { Signals::new() })?;
    let mounts = mounts::open(&config)?;
    runtime.block_on(async {
        http::serve(&config.run_dir, mounts.clone()).map_err(|error| Failure::new(FAILED, error))
    })?;
    tracing::info!(run_dir = %config.run_dir.display(), pid = std::process::id(), "the agent serves");

    let ended = runtime.block_on(until_end(&mounts, signals, arguments.exit_when_idle));
    let drained = mounts.shutdown();
    // A drain that was given up has threads that never end; the process does.
    runtime.shutdown_background();
    ended?;
    drained?;
    tracing::info!("everything is in the backend; the agent ends");
    Ok(())
}

impl From<MountsError> for Failure {
    fn from(error: MountsError) -> Self {
        let status = if matches!(error, MountsError::Undrained(_)) { UNDRAINED } else { FAILED };
        Self::new(status, error)
    }
}

/// Waits for a reason to end: an error where that is one.
async fn until_end(mounts: &Arc<Mounts>, mut signals: Signals, exit_when_idle: bool) -> Result<(), Failure> {
    let mut tick = tokio::time::interval(TICK);
    let started = Instant::now();
    loop {
        tokio::select! {
            name = signals.next() => {
                tracing::info!(signal = name, "committing what is dirty before the end");
                mounts.stop_now();
                // From now on a second Ctrl-C ends at once; the changes are safe in the tree.
                tokio::spawn(async move {
                    while signals.next().await != "SIGINT" {}
                    eprintln!("storeshim: interrupted before everything was in the backend; the tree keeps it");
                    std::process::exit(i32::from(UNDRAINED));
                });
                return Ok(());
            }
            _ = tick.tick() => {
                if let Some(why) = mounts.failure() {
                    return Err(Failure::new(FAILED, why));
                }
                if exit_when_idle && mounts.in_use() {
                    mounts.stop_when_idle();
                }
                if mounts.stopping() {
                    return Ok(());
                }
                if exit_when_idle && started.elapsed() > FIRST_USER && !mounts.in_use() {
                    tracing::info!("nobody came; the agent ends");
                    return Ok(());
                }
            }
        }
    }
}

/// The signals that ask for an end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Must be called in a runtime.
    fn new() -> Result<Self, Failure> {
        let watch = |kind| {
            signal(kind).map_err(|error| Failure::new(FAILED, format!("cannot watch for signals: {error}")))
        };
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
            hangup: watch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

fn start_log(log: &Log) -> Result<(), Failure> {
    // A plain level is for this program; what its libraries tell at the same level is not for its users.
    let filter = match log.level.as_str() {
        level @ ("trace" | "debug" | "info") => format!("warn,storeshim_agent={level}"),
        other => other.to_owned(),
    };
    // Checked when the settings were read.
    let filter = EnvFilter::try_new(filter).map_err(|error| Failure::new(USAGE, error))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Human => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
