//! Progress: a bar on a terminal where the agent says how far it is; elsewhere a line now and then for work that was asked
//! for, and nothing for waits.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::config::Bytes;
use crate::mounts::AgentStatus;
use crate::volume::Progress;

/// Shorter work than this shows no bar.
const SHOW_AFTER: Duration = Duration::from_millis(300);
/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(3);

/// A bar on stderr, if that is a terminal.
pub(super) struct Bar {
    began: std::time::Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::hidden();
            let style =
                ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { began: std::time::Instant::now(), bar }
    }

    /// Shows what `status` says is under way.
    pub(super) fn show(&self, status: &AgentStatus) {
        if let Some(now) = Sum::of(status) {
            self.draw(now);
        }
    }

    fn draw(&self, now: Sum) {
        let Some(bar) = &self.bar else { return };
        if self.began.elapsed() >= SHOW_AFTER && bar.is_hidden() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
        bar.set_length(now.total);
        bar.set_position(now.done);
        bar.set_message(now.text);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Work that somebody asked for and waits for.
pub(super) struct Work {
    what: &'static str,
    bar: Bar,
    line_due: Instant,
}

impl Work {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, bar: Bar::new(), line_due: Instant::now() + LINE_INTERVAL }
    }

    /// Shows how far it is.
    pub(super) fn show(&mut self, progress: &Progress) {
        if self.bar.bar.is_some() {
            let progress = Progress { activity: self.what.to_owned(), ..progress.clone() };
            self.bar.draw(Sum::over(&[&progress], &progress));
        } else if Instant::now() >= self.line_due {
            self.line_due = Instant::now() + LINE_INTERVAL;
            eprintln!("{}", line(self.what, progress, self.bar.began.elapsed()));
        }
    }
}

/// The progress as text.
fn line(what: &str, progress: &Progress, after: Duration) -> String {
    let rate = progress.bytes_done as f64 / after.as_secs_f64().max(1e-3);
    format!(
        "{what}: {} of {} files, {} of {}, {}/s",
        progress.files_done,
        progress.files_total,
        Bytes(progress.bytes_done),
        Bytes(progress.bytes_total),
        Bytes(rate as u64)
    )
}

/// The progress of all mounts together.
#[derive(Debug, PartialEq, Eq)]
struct Sum {
    text: String,
    done: u64,
    total: u64,
}

impl Sum {
    fn of(status: &AgentStatus) -> Option<Self> {
        let under_way: Vec<_> =
            status.mounts.iter().filter_map(|mount| mount.volume.progress.as_ref()).collect();
        Some(Self::over(&under_way, under_way.first()?))
    }

    fn over(under_way: &[&Progress], first: &Progress) -> Self {
        let sum = |pick: fn(&Progress) -> u64| under_way.iter().map(|one| pick(one)).sum::<u64>();
        let files = match sum(|one| one.files_total) {
            0 => String::new(),
            total => format!(" {}/{total} files", sum(|one| one.files_done)),
        };
        Self {
            text: format!("{}{files}", first.activity),
            done: sum(|one| one.bytes_done),
            total: sum(|one| one.bytes_total),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{mount_status, status};

    #[test]
    fn a_line_tells_files_bytes_and_rate() {
        let progress = Progress {
            files_done: 3,
            files_total: 4,
            bytes_done: 8 << 20,
            bytes_total: 16 << 20,
            ..Progress::default()
        };
        assert_eq!(
            line("warmup", &progress, Duration::from_secs(2)),
            "warmup: 3 of 4 files, 8.0 MiB of 16.0 MiB, 4.0 MiB/s"
        );
    }

    #[test]
    fn mounts_are_added_up() {
        assert_eq!(Sum::of(&status(vec![mount_status("/a")])), None);
        let mut mounts = vec![mount_status("/a"), mount_status("/b"), mount_status("/c")];
        for (mount, n) in mounts.iter_mut().zip([1, 10]) {
            mount.volume.progress = Some(Progress {
                activity: "restoring".into(),
                files_done: n,
                files_total: n * 2,
                bytes_done: n * 100,
                bytes_total: n * 200,
            });
        }
        let expected = Sum { text: "restoring 11/22 files".into(), done: 1100, total: 2200 };
        assert_eq!(Sum::of(&status(mounts)), Some(expected));
    }
}
