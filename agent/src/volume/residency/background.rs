//! Brings names before anybody asks for them, so that after a while all of the volume's names are in the tree: directories
//! below those that were asked for first, then all others. And where the mount is to have everything, data too. It must not
//! know how a directory is populated.

use std::collections::{HashSet, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Residency;
use super::descend::names_of;
use super::filled::is_small;
use super::find::Found;
use super::hydrate::Job;
use super::momentum;
use super::own::Own;
use super::populate::BATCH;
use crate::meta::records::ROOT_INODE;
use crate::volume::index::{Absent, Changes, Pieces};
use crate::volume::status::Mutex;
use crate::volume::{Hydrate, Progress, VolumeError};

/// Directories whose entries are read from the backend together.
const TOGETHER: usize = 64;
/// Directories that are remembered because they were asked for.
const HOT: usize = 1024;
/// Between two looks at whether there is anything to do again, and after a failure.
const REST: Duration = Duration::from_secs(2);
/// Of these, those whose files are read together.
const AHEAD: usize = 8;
/// Between two looks whether who is read ahead for has come nearer.
const TICK: Duration = Duration::from_millis(1);
/// Files that are brought together where everything is.
const FILES: usize = 256;
const BYTES: u64 = 16 << 20;
/// Threads that bring everything.
const THREADS: usize = 4;

/// Directories that were asked for, the last one first.
pub struct Background {
    hot: Mutex<VecDeque<u64>>,
}

impl Default for Background {
    fn default() -> Self {
        Self { hot: Mutex::new(VecDeque::new()) }
    }
}

impl Residency {
    /// A directory was asked for, or an entry of it: the others and those below it will be.
    pub(super) fn note_populated(&self, ino: u64) {
        self.momentum.names_asked();
        if let Ok(Some(kernel)) = self.index.kernel(ino)
            && !self.table.is_complete()
        {
            let mut hot = self.background.hot.lock();
            hot.retain(|dir| *dir != kernel.inode);
            hot.push_front(kernel.inode);
            hot.truncate(HOT);
        }
    }

    /// The thread that brings names, until all are there or the volume is closed.
    pub(super) fn run_background(self: &Arc<Self>) {
        let mut failed = HashSet::new();
        while !self.is_closed() {
            match self.bring_some_names(&mut failed) {
                Ok(true) => {}
                Ok(false) => match self.index.names_complete() {
                    Ok(true) => {
                        self.names_are_complete();
                        return;
                    }
                    // They are gone, or they cannot be made now.
                    _ => {
                        failed.clear();
                        self.pause(REST);
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "names cannot be brought to this disk for now; trying again");
                    failed.clear();
                    self.pause(REST);
                }
            }
        }
    }

    /// Populates some directories; whether there were any.
    fn bring_some_names(&self, failed: &mut HashSet<u64>) -> Result<bool, VolumeError> {
        let dirs = self.next_directories(failed)?;
        if dirs.is_empty() {
            return Ok(false);
        }
        self.index.load_entries(&dirs, self.until())?;
        let large_root = dirs.contains(&ROOT_INODE) && self.index.children(ROOT_INODE)?.len() > BATCH;
        if large_root {
            // What of it is wanted first, who comes first is about to show.
            self.momentum.somebody_comes();
        }
        let mut ahead = 0;
        for (at, dir) in dirs.iter().enumerate() {
            self.make_way();
            if self.is_closed() {
                break;
            }
            if at >= ahead && self.momentum.window().is_some() {
                let next = dirs.get(at..).unwrap_or(&[]);
                ahead = at + next.len().min(AHEAD);
                self.fetch_for(next.get(..AHEAD).unwrap_or(next))?;
            }
            let began = Instant::now();
            if !self.bring_names_of(*dir)? {
                failed.insert(*dir);
            }
            if *dir == ROOT_INODE && !large_root {
                // Everybody needs it. What else, who comes first is about to show.
                self.momentum.somebody_comes();
            }
            self.pause(self.rest_of(began.elapsed()));
        }
        Ok(true)
    }

    /// Between two batches of a directory that nobody waits for, until `wanted` says that somebody does.
    pub(super) fn rest_until(&self, work: Duration, wanted: impl Fn() -> bool) {
        let rested = Instant::now() + self.rest_of(work);
        while !wanted() && (Instant::now() < rested || self.is_in_the_way()) {
            self.pause(TICK);
        }
    }

    /// How long to rest after work that nobody waits for: who waits for something goes first.
    fn rest_of(&self, work: Duration) -> Duration {
        let waits = self.requests_under_way() && self.momentum.window().is_none();
        if waits { (work * 2).min(Duration::from_millis(50)) } else { Duration::ZERO }
    }

    /// Whether what nobody waits for is to wait.
    fn is_in_the_way(&self) -> bool {
        !self.is_closed() && self.options.hydrate != Hydrate::Eager && !self.momentum.lets_names_come()
    }

    /// Waits until what nobody waits for may come.
    fn make_way(&self) {
        while self.is_in_the_way() {
            self.pause(TICK);
        }
    }

    /// Has the metadata and the data of directories at hand whose small files are to come with them: in a few round trips for
    /// all of them.
    fn fetch_for(&self, dirs: &[u64]) -> Result<(), VolumeError> {
        let mut inodes = Vec::new();
        for dir in dirs {
            if self.index.is_unpopulated(*dir)? {
                inodes.extend(self.index.children(*dir)?.into_iter().map(|(_, inode)| inode));
            }
        }
        self.index.load_inodes(&inodes, self.until())?;
        let mut files = Vec::new();
        for inode in inodes {
            match self.index.inode(inode)? {
                Some(record) if is_small(&record) && files.len() < momentum::FILES.1 => {
                    files.push((inode, record.size));
                }
                _ => {}
            }
        }
        // Without it everything comes all the same, only slower.
        if let Err(error) = self.fetch_ahead(&files) {
            tracing::debug!(%error, "nothing is read ahead");
        }
        Ok(())
    }

    fn next_directories(&self, failed: &HashSet<u64>) -> Result<Vec<u64>, VolumeError> {
        let mut dirs = Vec::new();
        while dirs.is_empty() {
            let Some(hot) = self.background.hot.lock().pop_front() else { break };
            if self.index.is_unpopulated(hot)? {
                if !failed.contains(&hot) {
                    dirs.push(hot);
                    // Those below it are next.
                    self.background.hot.lock().push_front(hot);
                }
                continue;
            }
            for (_, child) in self.index.children(hot)? {
                if self.index.is_unpopulated(child)? && !failed.contains(&child) {
                    dirs.push(child);
                }
            }
        }
        let mut first = 0;
        while dirs.is_empty() {
            let some = self.index.unpopulated(first, TOGETHER)?;
            let Some(last) = some.last() else { break };
            first = last.saturating_add(1);
            dirs.extend(some.into_iter().filter(|dir| !failed.contains(dir)));
        }
        Ok(dirs)
    }

    /// Populates a directory; whether it could be found.
    fn bring_names_of(&self, dir: u64) -> Result<bool, VolumeError> {
        let Some(seen) = self.index.seen(dir)? else { return Ok(false) };
        let Some(kernel) = self.index.kernel(seen.id.ino)?.filter(|kernel| kernel.inode == dir) else {
            return Ok(false);
        };
        // Where it is not to be found at once, a cut for each would be too much: the next one shows.
        match self.at_its_names(&kernel)? {
            Some(found) => self.populate_found(&found, self.until(), false).map(|()| true),
            None => Ok(false),
        }
    }

    /// Brings everything: names, then data. Blocking; for as long as the backend only refuses for now.
    ///
    /// # Errors
    /// What no waiting mends.
    pub fn bring_everything(&self) -> Result<(), VolumeError> {
        let activity = Progress { activity: "restoring".into(), ..Progress::default() };
        self.shared.progress.lock().replace(activity);
        let brought = self.bring_all_names().and_then(|()| self.bring_all_data());
        self.shared.progress.lock().take();
        brought
    }

    fn names_are_complete(&self) {
        let _links = self.populating.links();
        let released = self.release_all();
        if let Err(error) = released {
            tracing::warn!(%error, "files that were kept for names to come take room until the next start");
        }
        self.meter.unnamed_files.store(0, Ordering::Relaxed);
        self.table.names_are_complete();
    }

    /// Keeps no file any longer.
    fn release_all(&self) -> Result<(), VolumeError> {
        let failed = |e: std::io::Error| VolumeError::Failed(e.to_string());
        let Some(kept) = self.tree.kept() else { return Ok(()) };
        let names = kept.list(kept.root()).map_err(failed)?;
        // Each is called by the number of its inode.
        let mut inodes = names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok());
        inodes.try_for_each(|inode| self.release(inode))
    }

    /// Keeps a file no longer; that it has a name less is no change.
    fn release(&self, inode: u64) -> Result<(), VolumeError> {
        let Some(found) = self.at_its_place(inode)? else {
            self.stage.release(inode);
            return Ok(());
        };
        let failed = |e: std::io::Error| VolumeError::Failed(e.to_string());
        let own = Own::begin(self, inode, found.stat.id.ino, found.handle.as_fd()).map_err(failed)?;
        self.stage.release(inode);
        let mut changes = Changes::new();
        let _locked = own.end(&mut changes)?;
        self.index.apply_local(&changes)
    }

    fn bring_all_names(&self) -> Result<(), VolumeError> {
        let mut failed = HashSet::new();
        loop {
            match self.bring_some_names(&mut failed) {
                Ok(true) => {}
                Ok(false) => {
                    if self.index.names_complete()? {
                        self.names_are_complete();
                    }
                    return Ok(());
                }
                Err(error) => {
                    self.shared.backend_refuses(&error.to_string());
                    self.pause(REST);
                }
            }
            if let (true, Some(error)) = (self.is_closed(), self.shared.failure()) {
                return Err(error);
            }
        }
    }

    fn bring_all_data(&self) -> Result<(), VolumeError> {
        let (mut jobs, mut bytes, mut files) = (Vec::new(), 0, 0);
        let mut found = Vec::new();
        self.index.absentees(|absentee| {
            if let (Absent::Pieces(pieces), Some(_)) = (absentee.what, absentee.ino) {
                found.push((absentee.inode, pieces));
            }
            Ok(())
        })?;
        for (_, pieces) in &found {
            files += 1;
            bytes += pieces.count() * storeshim_protocol::residency::PIECE;
        }
        if let Some(progress) = self.shared.progress.lock().as_mut() {
            (progress.files_total, progress.bytes_total) = (files, bytes);
        }
        let (mut group, mut size) = (Vec::new(), 0);
        for (inode, pieces) in found {
            size += pieces.count() * storeshim_protocol::residency::PIECE;
            group.push(Job { inode, pieces });
            if group.len() >= FILES || size >= BYTES {
                jobs.push((std::mem::take(&mut group), std::mem::take(&mut size)));
            }
        }
        jobs.push((group, size));
        let next = std::sync::atomic::AtomicUsize::new(0);
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Some((group, size)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        for attempt in [true, false] {
                            let brought = self.bring_group(group);
                            match brought {
                                Err(_) if attempt && !self.is_closed() => self.pause(REST),
                                Err(error) => drop(failed.lock().get_or_insert(error)),
                                Ok(()) => break,
                            }
                        }
                        if let Some(progress) = self.shared.progress.lock().as_mut() {
                            progress.files_done += group.len() as u64;
                            progress.bytes_done += size;
                        }
                    }
                });
            }
        });
        // Programs that no hook sees would take what is missing for zeros: the mount is not shown to them.
        failed.lock().take().map_or(Ok(()), Err)
    }

    fn bring_group(&self, group: &[Job]) -> Result<(), VolumeError> {
        match group {
            [] => Ok(()),
            [one] => self.bring_pieces(one.inode, &one.pieces, false),
            many => self.bring(many, false),
        }
    }

    /// Brings all of a file.
    ///
    /// # Errors
    /// As [`Residency::hydrate`].
    pub fn bring_file(&self, inode: u64) -> Result<(), VolumeError> {
        let absent: Pieces = self.files.lock(inode).absent(&self.index)?;
        self.bring_pieces(inode, &absent, false)
    }

    /// The inode behind a path relative to the root, with what lies on the way; `None` where there is none.
    ///
    /// # Errors
    /// As [`Residency::descend`].
    pub fn at_path(&self, path: &std::path::Path) -> Result<Option<super::find::Inode>, VolumeError> {
        let names = names_of(path);
        self.descend_from_root(names.clone())?;
        let below = names.fold(Vec::new(), |below, name| crate::volume::look::join(&below, name));
        let Ok(handle) = self.tree.open_at(&below, libc::O_PATH) else { return Ok(None) };
        let Ok(stat) = self.tree.stat(handle.as_fd()) else { return Ok(None) };
        match self.find(stat.id.ino)? {
            Found::Here(found) => Ok(Some(found)),
            _ => Ok(None),
        }
    }
}
