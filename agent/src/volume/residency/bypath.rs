//! What is brought here, or dropped, because somebody named a path: `storeshim warmup` and `storeshim evict`. Paths are those of
//! the last cut. It must not know how either is done.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, bounded};
use storeshim_protocol::request::Pin;

use super::Residency;
use super::descend::names_of;
use super::evict::{Gone, Stays};
use crate::meta::records::{Inode, ROOT_INODE};
use crate::volume::status::Mutex;
use crate::volume::{Evicted, Kept, Progress, VolumeError, Warmed, Warmup, Watch};

/// Files that are evicted together.
const BATCH: usize = 256;
/// Threads that bring files, at most.
const PARALLEL_MAX: usize = 256;

/// A file on its way.
struct Wanted {
    ino: u64,
    size: u64,
}

/// How far a warmup is.
#[derive(Default)]
struct Far {
    files: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
}

impl Far {
    fn add(&self, which: usize, bytes: u64) {
        for (numbers, more) in [(&self.files, 1), (&self.bytes, bytes)] {
            if let Some(number) = numbers.get(which) {
                number.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    fn tell(&self, activity: &str, watch: &dyn Watch) {
        let [files_done, files_total] = self.files.each_ref().map(|number| number.load(Ordering::Relaxed));
        let [bytes_done, bytes_total] = self.bytes.each_ref().map(|number| number.load(Ordering::Relaxed));
        watch.advanced(&Progress {
            activity: activity.into(),
            files_done,
            files_total,
            bytes_done,
            bytes_total,
        });
    }
}

const DONE: usize = 0;
const ALL: usize = 1;

impl Residency {
    /// Brings what is at `path`, relative to the root, to this disk. Blocking.
    ///
    /// # Errors
    /// Where there is no such path, or the names on the way to it or below it cannot be brought here.
    pub fn warm(&self, path: &Path, how: Warmup, watch: &dyn Watch) -> Result<Warmed, VolumeError> {
        let top = self.resolve(path, true)?;
        let (far, warmed) = (Far::default(), Mutex::new(Warmed::default()));
        let parallel = how.parallel.clamp(1, PARALLEL_MAX);
        let (give, take) = bounded::<Wanted>(4 * parallel);
        let mut met = HashSet::new();
        std::thread::scope(|scope| {
            for _ in 0..parallel {
                let take = take.clone();
                scope.spawn(|| self.warm_files(take, &far, &warmed, watch));
            }
            drop(take);
            let found = self.below(top, how.depth, true, &mut |inode, record| {
                if !met.insert(inode) {
                    // By another of its names.
                    return Ok(true);
                }
                far.add(ALL, record.size);
                let ino = self.index.seen(inode)?.map(|seen| seen.id.ino);
                if let Some(ino) = ino {
                    // They end only when this does.
                    let _ = give.send(Wanted { ino, size: record.size });
                }
                far.tell("warming up", watch);
                Ok(!watch.called_off())
            });
            drop(give);
            found
        })?;
        far.tell("warming up", watch);
        let mut done = std::mem::take(&mut *warmed.lock());
        for inode in met {
            done.gone += u64::from(self.index.absent(inode)?.is_some());
        }
        done.gone = done.gone.saturating_sub(done.failed);
        Ok(done)
    }

    fn warm_files(&self, take: Receiver<Wanted>, far: &Far, warmed: &Mutex<Warmed>, watch: &dyn Watch) {
        for Wanted { ino, size } in take {
            if watch.called_off() {
                continue;
            }
            let one = match self.hydrate(ino, 0, u64::MAX, Pin::No) {
                Ok(()) => Warmed { files: 1, bytes: size, ..Warmed::default() },
                Err(error) => Warmed { failed: 1, why: Some(error.to_string()), ..Warmed::default() },
            };
            far.add(DONE, size);
            warmed.lock().add(one);
            far.tell("warming up", watch);
        }
    }

    /// Drops from this disk what is at `path`, relative to the root, and need not be there. Blocking.
    ///
    /// # Errors
    /// Where there is no such path, or the index cannot be used.
    pub fn evict_path(&self, path: &Path, watch: &dyn Watch) -> Result<Evicted, VolumeError> {
        let top = self.resolve(path, false)?;
        let (far, mut evicted) = (Far::default(), Evicted::default());
        let mut batch = Vec::new();
        self.below(top, None, false, &mut |inode, _| {
            let bytes = self.index.seen(inode)?.map_or(0, |seen| seen.blocks * 512);
            if bytes > 0 {
                far.add(ALL, bytes);
                batch.push(inode);
            }
            if batch.len() >= BATCH {
                self.evict_batch(&mut batch, &far, &mut evicted)?;
                far.tell("evicting", watch);
            }
            Ok(!watch.called_off())
        })?;
        self.evict_batch(&mut batch, &far, &mut evicted)?;
        far.tell("evicting", watch);
        Ok(evicted)
    }

    fn evict_batch(&self, batch: &mut Vec<u64>, far: &Far, evicted: &mut Evicted) -> Result<(), VolumeError> {
        for (_, Gone { bytes, stays }) in self.evict_inodes(batch)? {
            let kept = stays.filter(|(why, _)| *why != Stays::Nothing);
            let kept = kept.map(|(why, bytes)| Kept { why: self.why(why), files: 1, bytes });
            far.add(DONE, bytes);
            evicted.add(Evicted { files: u64::from(bytes > 0), bytes, kept: kept.into_iter().collect() });
        }
        batch.clear();
        Ok(())
    }

    /// Why something stays, for people: also whom it is due to, where that is known.
    fn why(&self, stays: Stays) -> String {
        match (stays, self.cache.openers.lock().why_blind()) {
            (Stays::Unknown, Some(blind)) => format!("{}: {blind}", stays.words()),
            _ => stays.words().into(),
        }
    }

    /// The volume inode at a path.
    fn resolve(&self, path: &Path, populate: bool) -> Result<u64, VolumeError> {
        if populate {
            self.descend_from_root(names_of(path))?;
        }
        let mut at = ROOT_INODE;
        for name in names_of(path) {
            let child = match self.index.child(at, name)? {
                Some(child) => child,
                None if self.kind(at)? == Some(libc::S_IFLNK) => {
                    return Err(VolumeError::Failed(format!(
                        "{} leads through a symbolic link, which is not followed here; give the path that the link stands for",
                        path.display()
                    )));
                }
                None => {
                    return Err(VolumeError::Failed(format!(
                        "there is no {} in the volume as of its last commit; flush it if it is new",
                        path.display()
                    )));
                }
            };
            // Its directory is elsewhere since the last cut.
            if populate && self.index.seen(child)?.is_none() {
                self.populate_inode(at)?;
            }
            at = child;
        }
        match self.kind(at)? {
            Some(libc::S_IFREG | libc::S_IFDIR) | None => Ok(at),
            Some(_) => Err(VolumeError::Failed(format!(
                "{} is neither a file nor a directory, and so has no data; give one that is",
                path.display()
            ))),
        }
    }

    fn kind(&self, inode: u64) -> Result<Option<u32>, VolumeError> {
        Ok(self.index.inode(inode)?.map(|record| record.mode & libc::S_IFMT))
    }

    /// Calls `each` with every regular file at or below an inode, until it says no.
    fn below(
        &self,
        top: u64,
        depth: Option<u32>,
        populate: bool,
        each: &mut dyn FnMut(u64, &Inode) -> Result<bool, VolumeError>,
    ) -> Result<(), VolumeError> {
        let mut dirs = vec![(top, 0)];
        let look =
            |inode: u64, level: u32, dirs: &mut Vec<(u64, u32)>, each: &mut dyn FnMut(u64, &Inode) -> _| {
                let Some(record) = self.index.inode(inode)? else { return Ok(true) };
                match record.mode & libc::S_IFMT {
                    libc::S_IFREG => each(inode, &record),
                    libc::S_IFDIR if depth.is_none_or(|most| level <= most) => {
                        dirs.push((inode, level));
                        Ok(true)
                    }
                    _ => Ok(true),
                }
            };
        if self.index.inode(top)?.is_some_and(|record| record.mode & libc::S_IFMT != libc::S_IFDIR) {
            dirs.clear();
            look(top, 0, &mut dirs, each)?;
        }
        while let Some((dir, level)) = dirs.pop() {
            if populate {
                self.populate_inode(dir)?;
            } else if self.index.is_unpopulated(dir)? {
                continue;
            }
            for (_, child) in self.index.children(dir)? {
                if !look(child, level + 1, &mut dirs, each)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn populate_inode(&self, dir: u64) -> Result<(), VolumeError> {
        match self.index.seen(dir)? {
            Some(seen) if self.index.is_unpopulated(dir)? => self.populate(seen.id.ino),
            _ => Ok(()),
        }
    }
}
