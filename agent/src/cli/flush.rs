//! `storeshim flush`, and the wait for a flush with a progress bar.

use std::time::{Duration, Instant};

use clap::Args;
use crossbeam::channel::{self, Receiver};

use super::progress::Bar;
use super::run::Arrived;
use super::{FAILED, Failure, Settings};
use crate::config::{Age, Bytes};
use crate::http::{Client, ClientError};
use crate::mounts::{AgentStatus, FlushStatus};

/// How often a waiting command looks how far the agent is.
const LOOK: Duration = Duration::from_millis(200);

/// Arguments of `storeshim flush`.
#[derive(Args)]
pub(super) struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    /// The agent's run directory.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<std::path::PathBuf>,
    /// Only the mount at this prefix.
    prefix: Option<String>,
}

pub(super) fn main(arguments: &Arguments) -> Result<(), Failure> {
    let settings = Settings {
        config: arguments.config.clone(),
        run_dir: arguments.run_dir.clone(),
        ..Settings::default()
    };
    let client = Client::new(&settings.load()?.run_dir);
    let prefix = arguments.prefix.as_deref().map(|prefix| match prefix.trim_end_matches('/') {
        "" => prefix,
        plain => plain,
    });
    for mount in Flush::begin(&client, prefix)?.wait(&client, None, None)? {
        println!("{}: everything is in the backend as commit {}", mount.prefix, mount.seq);
    }
    Ok(())
}

/// A flush under way.
pub(super) struct Flush {
    answer: Receiver<Result<Vec<FlushStatus>, ClientError>>,
}

impl Flush {
    pub(super) fn begin(client: &Client, prefix: Option<&str>) -> Result<Self, Failure> {
        let (sender, answer) = channel::bounded(1);
        let (client, prefix) = (client.clone(), prefix.map(str::to_owned));
        let spawned = std::thread::Builder::new().name("flush".into()).spawn(move || {
            // Nobody receives once the wait was given up.
            let _ = sender.send(client.flush(prefix.as_deref()));
        });
        spawned.map_err(|error| Failure::new(FAILED, format!("cannot start a thread: {error}")))?;
        Ok(Self { answer })
    }

    /// Waits for the answer and shows how far it is. With a `patience` it gives up once a backend in trouble has
    /// made no progress for that long, and when one of `signals` arrives that asks for an end.
    pub(super) fn wait(
        self,
        client: &Client,
        patience: Option<Duration>,
        signals: Option<&Receiver<Arrived>>,
    ) -> Result<Vec<FlushStatus>, Failure> {
        let never = channel::never();
        let signals = signals.unwrap_or(&never);
        let bar = Bar::new();
        let mut watch = Watch::new();
        loop {
            channel::select! {
                recv(self.answer) -> answer => match answer {
                    Ok(answer) => return Ok(answer?),
                    Err(_) => return Err(Failure::new(FAILED, "the flush ended abruptly; see the agent's log")),
                },
                recv(signals) -> arrived => match arrived {
                    Ok(arrived) if arrived.asks_for_an_end() => {
                        let risk = at_risk(&client.status()?);
                        return Err(Failure::new(FAILED, format!("interrupted by {}: {risk}", arrived.signal)));
                    }
                    _ => continue,
                },
                default(LOOK) => {}
            }
            let Ok(status) = client.status() else { continue };
            bar.show(&status);
            let stuck_for = watch.look(&status);
            if patience.is_some_and(|patience| stuck_for >= patience) {
                return Err(Failure::new(FAILED, at_risk(&status)));
            }
        }
    }
}

/// Sees how long a backend has been stuck.
struct Watch {
    mark: Vec<(u64, u64, u64, u64)>,
    since: Instant,
}

impl Watch {
    fn new() -> Self {
        Self { mark: Vec::new(), since: Instant::now() }
    }

    /// How long there has been trouble without any progress.
    fn look(&mut self, status: &AgentStatus) -> Duration {
        let mark: Vec<_> = status.mounts.iter().map(|mount| mount.progress_mark()).collect();
        let trouble = status.mounts.iter().any(|mount| mount.volume.backend_error.is_some());
        if !trouble || mark != self.mark {
            self.mark = mark;
            self.since = Instant::now();
        }
        self.since.elapsed()
    }
}

fn at_risk(status: &AgentStatus) -> String {
    let mounts = status.mounts.iter().filter(|mount| mount.volume.dirty_entries > 0);
    let each: Vec<String> = mounts
        .map(|mount| {
            format!(
                "{} of {} (the oldest {} old) did not reach {}{}; they stay in {}",
                Bytes(mount.volume.dirty_bytes),
                mount.prefix,
                Age(Duration::from_millis(mount.volume.dirty_age_ms)),
                mount.url,
                mount.volume.backend_error.as_ref().map_or(String::new(), |error| format!(": {error}")),
                mount.tree.display()
            )
        })
        .collect();
    match each.is_empty() {
        true => "the backend does not answer; see `storeshim status`".to_owned(),
        false => each.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{mount_status, status};

    #[test]
    fn only_trouble_without_progress_is_stuck() {
        let mut watch = Watch::new();
        let mut now = status(vec![mount_status("/a")]);
        let nap = || std::thread::sleep(Duration::from_millis(30));
        watch.look(&now);
        nap();
        assert!(watch.look(&now) < Duration::from_millis(20), "a slow but healthy backend");
        now.mounts[0].volume.backend_error = Some("connection refused".into());
        nap();
        assert!(watch.look(&now) >= Duration::from_millis(30));
        now.mounts[0].volume.seq += 1;
        assert!(watch.look(&now) < Duration::from_millis(20), "it got something done");
    }

    #[test]
    fn what_is_at_risk_is_told() {
        let mut now = status(vec![mount_status("/one"), mount_status("/two")]);
        let volume = &mut now.mounts[0].volume;
        volume.dirty_entries = 1;
        volume.dirty_bytes = 2048;
        volume.backend_error = Some("connection refused".into());
        let text = at_risk(&now);
        assert!(text.contains("2.0 KiB of /one") && text.contains("connection refused"), "{text}");
        assert!(!text.contains("/two"), "{text}");
    }
}
