//! Progress on a terminal: a bar where the agent says how far it is, nothing where nobody looks.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::mounts::AgentStatus;

/// Shorter work than this shows no bar.
const SHOW_AFTER: Duration = Duration::from_millis(300);

/// A bar on stderr, if that is a terminal.
pub(super) struct Bar {
    began: std::time::Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::hidden();
            let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { began: std::time::Instant::now(), bar }
    }

    /// Shows what `status` says is under way.
    pub(super) fn show(&self, status: &AgentStatus) {
        let Some(bar) = &self.bar else { return };
        let Some(now) = Sum::of(status) else { return };
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
        let first = under_way.first()?;
        let sum =
            |pick: fn(&crate::volume::Progress) -> u64| under_way.iter().map(|one| pick(one)).sum::<u64>();
        let files = match sum(|one| one.files_total) {
            0 => String::new(),
            total => format!(" {}/{total} files", sum(|one| one.files_done)),
        };
        Some(Self {
            text: format!("{}{files}", first.activity),
            done: sum(|one| one.bytes_done),
            total: sum(|one| one.bytes_total),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{mount_status, status};
    use crate::volume::Progress;

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
