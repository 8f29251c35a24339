//! Long work on paths below mounts: finds the mount of each, has its volume do the work, adds up how far it is. It must
//! not know what is done with a path.

use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Engine, Mounts, MountsError, OneMount, Phase};
use crate::volume::{Evicted, Progress, VolumeError, Warmed, Warmup, Watch};

/// How often a wait for a volume that is being opened looks whether it is called off.
const TICK: Duration = Duration::from_millis(100);

/// What came of the work on one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worked<T> {
    /// The path, as it was asked for.
    pub path: PathBuf,
    /// What was done.
    pub done: T,
}

impl Mounts {
    /// Brings what is at `paths` to this disk, one after another. Blocking; the error is a sentence, of the first path that
    /// fails. Before anything is done all paths are looked at: each must lie in a mount.
    pub fn warm(
        &self,
        paths: &[PathBuf],
        how: Warmup,
        watch: &dyn Watch,
    ) -> Result<Vec<Worked<Warmed>>, MountsError> {
        self.work(paths, watch, |engine, path, watch| engine.warm(path, how, watch))
    }

    /// Drops what is at `paths` from this disk, as far as it need not be there. As [`Mounts::warm`].
    pub fn evict(&self, paths: &[PathBuf], watch: &dyn Watch) -> Result<Vec<Worked<Evicted>>, MountsError> {
        self.work(paths, watch, |engine, path, watch| engine.evict(path, watch))
    }

    fn work<T>(
        &self,
        paths: &[PathBuf],
        watch: &dyn Watch,
        act: impl Fn(&dyn Engine, &Path, &dyn Watch) -> Result<T, VolumeError>,
    ) -> Result<Vec<Worked<T>>, MountsError> {
        let found: Vec<_> = paths.iter().map(|path| self.locate(path)).collect::<Result<_, _>>()?;
        let sum = Sum { mounts: self, watch, before: Default::default(), now: Default::default() };
        let mut worked = Vec::new();
        for (path, (one, relative)) in paths.iter().zip(found) {
            let failed = |error: VolumeError| MountsError::Unusable(format!("{}: {error}", path.display()));
            let Some(engine) = one.wait_open_for(&sum).map_err(failed)? else { break };
            let done = act(&*engine, &relative, &sum).map_err(failed)?;
            worked.push(Worked { path: path.clone(), done });
            sum.next();
            if sum.called_off() {
                break;
            }
        }
        Ok(worked)
    }

    /// The mount of a path, and the rest of it below the mount's root.
    fn locate(&self, path: &Path) -> Result<(&Arc<OneMount>, PathBuf), MountsError> {
        let refuse = |why: &str| Err(MountsError::Unusable(format!("{}: {why}", path.display())));
        if !path.is_absolute() {
            return refuse("is not an absolute path");
        }
        // It cannot be told without the tree where `..` leads, and no path is followed on behalf of somebody else.
        if path.components().any(|part| part == Component::ParentDir) {
            return refuse("write the path without `..`");
        }
        let below = |one: &Arc<OneMount>| {
            let rest = path.strip_prefix(&one.config.prefix).or_else(|_| path.strip_prefix(&one.place.tree));
            // Put together anew: `.` and doubled slashes go.
            rest.ok().map(|rest| rest.components().filter(|part| *part != Component::CurDir).collect())
        };
        match self.mounts.iter().find_map(|one| below(one).map(|rest| (one, rest))) {
            Some(found) => Ok(found),
            None => {
                let known: Vec<_> = self.mounts.iter().map(|one| one.config.prefix.as_str()).collect();
                refuse(&format!("lies in no mount; the agent serves {}", known.join(", ")))
            }
        }
    }
}

impl OneMount {
    /// The engine, once the volume is open; `None` where the wait was called off.
    fn wait_open_for(&self, watch: &dyn Watch) -> Result<Option<Arc<dyn Engine>>, VolumeError> {
        let mut phase = self.phase();
        loop {
            match &*phase {
                Phase::Open(engine) => return Ok(Some(engine.clone())),
                Phase::Failed(error) => return Err(error.clone()),
                Phase::Opening(_) if watch.called_off() => return Ok(None),
                Phase::Opening(_) => {
                    let waited = self.changed.wait_timeout(phase, TICK);
                    phase = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

/// Adds the paths that are done to the one under way, and calls the work off when the agent ends.
struct Sum<'a> {
    mounts: &'a Mounts,
    watch: &'a dyn Watch,
    /// Files and bytes, each done and in all, of the paths that are done.
    before: [AtomicU64; 4],
    /// Of the path under way.
    now: [AtomicU64; 4],
}

impl Sum<'_> {
    /// The path under way is done.
    fn next(&self) {
        for (before, now) in self.before.iter().zip(&self.now) {
            before.fetch_add(now.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

impl Watch for Sum<'_> {
    fn advanced(&self, progress: &Progress) {
        let numbers = [progress.files_done, progress.files_total, progress.bytes_done, progress.bytes_total];
        let mut sums = numbers;
        for (((sum, number), before), now) in sums.iter_mut().zip(numbers).zip(&self.before).zip(&self.now) {
            now.store(number, Ordering::Relaxed);
            *sum += before.load(Ordering::Relaxed);
        }
        let [files_done, files_total, bytes_done, bytes_total] = sums;
        let activity = progress.activity.clone();
        self.watch.advanced(&Progress { activity, files_done, files_total, bytes_done, bytes_total });
    }

    fn called_off(&self) -> bool {
        self.watch.called_off() || self.mounts.life().stopping
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use super::super::fake::Fakes;
    use super::*;

    #[derive(Default)]
    struct Seen {
        last: Mutex<Progress>,
        off: AtomicBool,
    }

    impl Watch for Seen {
        fn advanced(&self, progress: &Progress) {
            *self.last.lock().unwrap() = progress.clone();
        }

        fn called_off(&self) -> bool {
            self.off.load(Ordering::SeqCst)
        }
    }

    const HOW: Warmup = Warmup { depth: None, parallel: 1 };

    fn paths(texts: &[&str]) -> Vec<PathBuf> {
        texts.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn each_path_goes_to_its_mount_and_progress_is_added_up() {
        let fakes = Fakes::default();
        let mounts = fakes.open(&["/nowhere/a", "/nowhere/b"]).unwrap();
        let seen = Seen::default();
        let tree = mounts.status().mounts[1].tree.join("real");
        let mut asked = paths(&["/nowhere/a", "/nowhere/b//x/./y/"]);
        asked.push(tree);
        let worked = mounts.warm(&asked, HOW, &seen).unwrap();
        assert_eq!(worked.iter().map(|one| one.path.clone()).collect::<Vec<_>>(), asked);
        assert_eq!(*fakes.factory.engine.worked.lock().unwrap(), paths(&["", "x/y", "real"]));
        let last = seen.last.lock().unwrap().clone();
        assert_eq!((last.files_done, last.bytes_total), (3, 30));
        let evicted = mounts.evict(&paths(&["/nowhere/a/f"]), &seen).unwrap();
        assert_eq!(evicted[0].done.bytes, 10);
    }

    #[test]
    fn what_is_in_no_mount_is_refused_before_anything_is_done() {
        let fakes = Fakes::default();
        let mounts = fakes.open(&["/nowhere/a"]).unwrap();
        for (wrong, word) in [
            ("/nowhere/ab", "lies in no mount; the agent serves /nowhere/a"),
            ("a", "not an absolute path"),
            ("/nowhere/a/x/../y", "without `..`"),
        ] {
            let asked = paths(&["/nowhere/a", wrong]);
            let error = mounts.warm(&asked, HOW, &Seen::default()).unwrap_err().to_string();
            assert!(error.contains(word) && error.starts_with(wrong), "{error}");
        }
        assert_eq!(*fakes.factory.engine.worked.lock().unwrap(), paths(&[]));
    }

    #[test]
    fn work_is_called_off_also_while_a_volume_is_opened_and_when_the_agent_ends() {
        let fakes = Fakes::default();
        fakes.factory.hold.store(true, Ordering::SeqCst);
        let mounts = fakes.open(&["/nowhere/a"]).unwrap();
        let seen = Seen::default();
        seen.off.store(true, Ordering::SeqCst);
        assert_eq!(mounts.warm(&paths(&["/nowhere/a"]), HOW, &seen).unwrap(), []);
        mounts.stop_now();
        assert_eq!(mounts.warm(&paths(&["/nowhere/a"]), HOW, &Seen::default()).unwrap(), []);
        fakes.factory.hold.store(false, Ordering::SeqCst);
    }
}
