//! Brings pieces of files: what the index says of them is fetched and checked, and written where nothing is yet. A piece is
//! shown as present, and remembered so, after its bytes are there. It must not know why they are wanted.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use storeshim_protocol::request::Pin;
use storeshim_protocol::residency::PIECE;

use super::Residency;
use super::file::{RUN, bytes_in};
use super::find::{Found, Inode};
use super::own::Own;
use super::pin::Pinned;
use super::table::Lacking;
use super::wanted::{self, Item, Source};
use crate::guard::fanotify::Marked;
use crate::volume::capture;
use crate::volume::index::{self, Changes, Doubt, For, Index, Pieces};
use crate::volume::look::same;
use crate::volume::{Hydrate, VolumeError};

/// Files up to this size come as a whole, in bytes.
pub const SMALL: u64 = 4 << 20;
/// Pieces that are written under one lock: 4 MiB, some milliseconds. Each slice has its own open, leases, times and changes of
/// the index.
const SLICE: u64 = RUN;
/// The same where the cache is so small that it would overflow by them: 1 MiB.
const SLICE_SMALL: u64 = 8;
/// Runs of one request that are noted as used.
const NOTED: u64 = 64;
/// How often data is looked for anew that the volume has meanwhile elsewhere, and a file that moves about.
const TRIES: u32 = 20;
/// How often the rings are drained until nothing waits for a busy sink, and the pause before the next time.
const DRAINS: u32 = 10;
const BUSY: Duration = Duration::from_micros(100);
/// For how long a lease is waited for under a file's lock, and then without it before the next time.
const LEASED: Duration = Duration::from_millis(10);
/// Between two looks for a file that moves about.
const MOVES: Duration = Duration::from_millis(5);

/// Pieces of a file that are wanted.
#[derive(Clone, Debug)]
pub struct Job {
    /// Volume inode.
    pub inode: u64,
    /// Which pieces; those that are here are left alone.
    pub pieces: Pieces,
}

/// A file of a bring, and what of it has arrived.
struct Target {
    found: Inode,
    pieces: Pieces,
    /// Where the index said that the bytes are, when they were asked for.
    sources: Vec<Source>,
    /// Items that are still to come.
    missing: usize,
    parts: Vec<(u64, Bytes)>,
    failed: Option<VolumeError>,
    /// What could not be read is elsewhere by now.
    moved: bool,
    done: bool,
}

impl Target {
    fn take(&mut self, index: &Index, item: &Item, read: Result<Bytes>) {
        match read {
            Ok(bytes) => self.parts.push((item.at, bytes)),
            Err(error) => {
                self.failed = Some(error);
                self.moved |= item.has_moved(index).unwrap_or(false);
            }
        }
        self.missing -= 1;
    }
}

type Result<T> = std::result::Result<T, VolumeError>;

impl Residency {
    /// Has the bytes `start..end` of the file behind a kernel inode number on this disk. Whatever is no regular file of the
    /// last cut lacks nothing.
    ///
    /// # Errors
    /// Where they could not be fetched for as long as patience goes, are damaged, or this disk does not take them.
    pub fn hydrate(&self, ino: u64, start: u64, end: u64, pin: Pin) -> Result<()> {
        self.meter.asked.fetch_add(1, Ordering::Relaxed);
        if pin != Pin::No {
            self.pin_early(ino, pin);
        }
        let losses = self.table.losses();
        let found = match self.find(ino)? {
            Found::Here(found) if found.stat.is_file() => found,
            Found::Here(_) => return Ok(()),
            // A file that the last cut does not know is wholly here: it gets a bitmap, so that nobody asks again.
            Found::New if self.is_lost(ino) => return Err(self.error_of_lost(ino)),
            Found::New => {
                self.table.show_new(ino, losses);
                return Ok(());
            }
            Found::Gone => return Err(self.error_of_lost(ino)),
        };
        let whole = found.stat.size <= SMALL || self.options.hydrate == Hydrate::OnOpen;
        let (start, end) = if whole { (0, u64::MAX) } else { (start, end) };
        let range = start / PIECE..end.min(found.stat.size).div_ceil(PIECE);
        let absent = self.ask(&found, &range, pin)?;
        if absent.is_empty() {
            self.meter.asked_hits.fetch_add(1, Ordering::Relaxed);
            self.look_ahead(&found, &range, false);
            return Ok(());
        }
        self.look_ahead(&found, &range, true);
        // What came, and went again at once, is asked for again by who does not find it.
        self.bring_pieces(found.inode, &absent, true)
    }

    /// Notes that a range was asked for, shows what is here of the file, and returns what is not.
    fn ask(&self, found: &Inode, range: &std::ops::Range<u64>, pin: Pin) -> Result<Pieces> {
        let now = self.files.now();
        let mut locked = self.files.lock(found.inode);
        let size = self.tree.stat(found.handle.as_fd()).map_or(found.stat.size, |stat| stat.size);
        // Who has cut a file that was evicted just before has not asked: what was behind its end now is nobody's, and may be
        // about to be written by who asks.
        let absent = &locked.state(&self.index)?.absent;
        if absent.end() > size.div_ceil(PIECE) {
            let before = absent.clone();
            let mut rest = before.clone();
            rest.remove(size.div_ceil(PIECE)..u64::MAX);
            self.keep_absent(&mut locked, found.stat.id.ino, &before, rest)?;
        }
        let state = locked.state(&self.index)?;
        state.pin(Pinned::by(pin, now));
        state.pin(self.cache.early.take(found.stat.id.ino));
        for run in range.start / RUN..range.end.div_ceil(RUN).min(range.start / RUN + NOTED) {
            state.used.insert(run, now);
        }
        let mut absent = Pieces::default();
        state.absent.within(range.clone()).for_each(|part| absent.add(part));
        let pieces = if state.absent.is_empty() { 1 } else { size.div_ceil(PIECE) };
        self.table.show(found.stat.id.ino, pieces, &state.absent);
        if let Some(uses) = self.uses.get() {
            uses.used(found.inode, range.start, range.end);
        }
        Ok(absent)
    }

    /// Brings pieces of files together: their reads are under way at once, and neighbours are read once. The first error is
    /// returned once all that could be brought is here.
    ///
    /// # Errors
    /// As [`Residency::hydrate`].
    pub fn bring(&self, jobs: &[Job], urgent: bool) -> Result<()> {
        let queued: u64 = jobs.iter().map(|job| job.pieces.count()).sum();
        self.meter.queued_pieces.fetch_add(queued as i64, Ordering::Relaxed);
        let mut brought = self.bring_together(jobs, urgent);
        for _ in 1..TRIES {
            let Ok(stale) = &brought else { break };
            if stale.is_empty() {
                break;
            }
            self.shared.count("stale_reads", stale.len() as u64);
            brought = self.bring_together(stale, urgent);
        }
        let brought = brought.and_then(|stale| match stale.first() {
            None => Ok(()),
            Some(job) => Err(VolumeError::Failed(format!(
                "the file with inode {} of the volume was changed and evicted again and again while it was read; raise \
                 cache_size",
                job.inode
            ))),
        });
        self.meter.queued_pieces.fetch_sub(queued as i64, Ordering::Relaxed);
        if let Err(error) = &brought {
            self.shared.count("failed_hydrations", 1);
            tracing::warn!(%error, "data could not be brought to this disk");
        }
        brought
    }

    /// Returns what is to be asked for anew: the volume has it elsewhere since.
    fn bring_together(&self, jobs: &[Job], urgent: bool) -> Result<Vec<Job>> {
        let until = Instant::now() + self.options.patience;
        let (mut targets, mut items) = (Vec::new(), Vec::<Item>::new());
        for job in jobs {
            let mut pieces = Pieces::default();
            let absent = self.files.lock(job.inode).absent(&self.index)?;
            job.pieces.iter().flat_map(|range| absent.within(range)).for_each(|part| pieces.add(part));
            if pieces.is_empty() {
                continue;
            }
            let found = match self.find_inode(job.inode)? {
                Some(found) => found,
                None if urgent => match self.find_moving(job.inode)? {
                    Some(found) => found,
                    None => continue,
                },
                // Who needs it says so.
                None => continue,
            };
            let wanted = wanted::of_file(
                &self.index,
                targets.len(),
                job.inode,
                &pieces,
                found.stat.size,
                Some(until),
            )?;
            targets.push(Target {
                found,
                pieces,
                sources: wanted.iter().map(Item::source).collect(),
                missing: wanted.len(),
                parts: Vec::new(),
                failed: None,
                moved: false,
                done: false,
            });
            items.extend(wanted);
        }
        let reads = wanted::reads(items);
        let under_way: Vec<_> = reads
            .gets
            .iter()
            .map(|get| self.fetcher.get(get.pack, get.range.clone(), urgent, until))
            .collect();
        let (mut failed, mut stale) = (None, Vec::new());
        let mut write = |target: &mut Target| match self.write(target) {
            Ok(()) => {}
            Err(Unwritten::Stale) => {
                stale.push(Job { inode: target.found.inode, pieces: target.pieces.clone() });
            }
            Err(error) => {
                let error = self.cannot_write(target.found.inode, error);
                failed.get_or_insert(error);
            }
        };
        for item in &reads.inline {
            let read = item.inline();
            if let Some(target) = targets.get_mut(item.file) {
                target.take(&self.index, item, read);
            }
        }
        targets.iter_mut().filter(|target| target.missing == 0).for_each(&mut write);
        for (get, answer) in reads.gets.iter().zip(under_way) {
            let fetched = if urgent {
                self.fetcher.wait(&answer, until, self.options.patience)
            } else {
                answer.recv().unwrap_or_else(|_| Err(VolumeError::closed()))
            };
            let mut take = |item: &Item, read: Result<Bytes>| {
                if let Some(target) = targets.get_mut(item.file) {
                    target.take(&self.index, item, read);
                }
            };
            match fetched {
                Ok(bytes) => get.unpack(&bytes, &mut take),
                Err(error) => get.items.iter().for_each(|item| take(item, Err(error.clone()))),
            }
            for item in &get.items {
                if let Some(target) =
                    targets.get_mut(item.file).filter(|target| target.missing == 0 && !target.done)
                {
                    write(target);
                }
            }
        }
        failed.map_or(Ok(stale), Err)
    }

    /// A file that was not where it was looked for: a program may be renaming it. `None` where nothing of it is absent any
    /// more, so that nobody need find it.
    fn find_moving(&self, inode: u64) -> Result<Option<Inode>> {
        for _ in 0..TRIES {
            std::thread::sleep(MOVES);
            if let Some(found) = self.find_inode(inode)? {
                return Ok(Some(found));
            }
            if self.files.lock(inode).absent(&self.index)?.is_empty() {
                return Ok(None);
            }
        }
        Err(self.error_of_lost(self.index.seen(inode)?.map_or(0, |seen| seen.id.ino)))
    }

    /// Whether the index says of some pieces what it said when they were asked for. The inode's lock is held: what is absent
    /// under it and has not moved was not evicted with other bytes meanwhile.
    fn is_current(&self, target: &Target, pieces: &Pieces) -> Result<bool> {
        let size = target.found.stat.size;
        let now = wanted::sources(&self.index, target.found.inode, pieces, size)?;
        let ends = |piece: u64| piece.saturating_mul(PIECE).min(size);
        let then = pieces
            .iter()
            .flat_map(|range| Source::within(&target.sources, ends(range.start), ends(range.end)));
        Ok(now.into_iter().eq(then))
    }

    /// Writes what has arrived of a file.
    fn write(&self, target: &mut Target) -> std::result::Result<(), Unwritten> {
        target.done = true;
        if let Some(error) = target.failed.take() {
            // What nothing refers to any more is deleted, and may have been stored anew.
            let _locked = self.files.lock(target.found.inode);
            let current = !target.moved && self.is_current(target, &target.pieces)?;
            return Err(if current { Unwritten::Index(error) } else { Unwritten::Stale });
        }
        let mut parts = std::mem::take(&mut target.parts);
        parts.sort_by_key(|(at, _)| *at);
        let slice = if self.is_roomy() { SLICE } else { SLICE_SMALL };
        for range in target.pieces.iter() {
            let mut at = range.start;
            while at < range.end {
                let next = (at + slice).min(range.end);
                self.write_slice(target, at..next, &parts)?;
                at = next;
            }
        }
        Ok(())
    }

    fn write_slice(
        &self,
        target: &Target,
        slice: std::ops::Range<u64>,
        parts: &[(u64, Bytes)],
    ) -> std::result::Result<(), Unwritten> {
        let bytes = (slice.end - slice.start) * PIECE;
        let _room = self.admit(bytes).ok_or(Unwritten::NoRoom)?;
        // That bytes are here must be noted once they are: whether that can be done is asked before.
        self.index.provide(0, For::More)?;
        let until = Instant::now() + self.options.patience;
        let (mut written, mut made_room) = (self.try_write(target, slice.clone(), parts), false);
        loop {
            match written {
                Err(Unwritten::NoRoom) if !made_room && self.make_room(bytes) => made_room = true,
                // Nobody else waits for this inode's lock meanwhile.
                Err(Unwritten::Leased) if Instant::now() < until => std::thread::sleep(LEASED),
                other => return other,
            }
            written = self.try_write(target, slice.clone(), parts);
        }
    }

    fn cannot_write(&self, inode: u64, error: Unwritten) -> VolumeError {
        let (why, what) = match error {
            Unwritten::NoRoom => (std::io::Error::from_raw_os_error(libc::ENOSPC), "make room"),
            Unwritten::Io(e) => (e, "mend the disk"),
            Unwritten::Leased => (
                std::io::Error::from_raw_os_error(libc::EWOULDBLOCK),
                "another program holds a lease on it (/proc/locks names it): end that one, or raise patience",
            ),
            Unwritten::Stale => (std::io::Error::from_raw_os_error(libc::ESTALE), "try again"),
            Unwritten::Index(e) => return e,
        };
        VolumeError::Failed(format!(
            "data of the file with inode {inode} of the volume cannot be written below {}: {why}; {what}",
            self.tree.path().display()
        ))
    }

    /// Under the inode's lock, and with no descriptor left behind it.
    fn try_write(
        &self,
        target: &Target,
        slice: std::ops::Range<u64>,
        parts: &[(u64, Bytes)],
    ) -> std::result::Result<(), Unwritten> {
        let found = &target.found;
        let ino = found.stat.id.ino;
        let mut locked = self.files.lock(found.inode);
        let mut wanted = Pieces::default();
        locked.state(&self.index)?.absent.within(slice).for_each(|part| wanted.add(part));
        if wanted.is_empty() {
            return Ok(());
        }
        // They may have come, been written by a program, been committed and evicted since they were asked for.
        if !self.is_current(target, &wanted)? {
            return Err(Unwritten::Stale);
        }
        // Nor does a plan hold beyond the end that the file had then.
        let planned = found.stat.size;
        if wanted.end().saturating_mul(PIECE) > planned && found.size_now(self)? > planned {
            return Err(Unwritten::Stale);
        }
        let leased = self.lend_guard(ino);
        let open = |flags| found.open_until(self, flags | libc::O_NONBLOCK, Instant::now() + LEASED);
        // Who has it open for writing may change it while its times are put back: no look may then rely on them, not even
        // one of an agent to come. Asked before our own descriptor counts as a writer, and again when it is gone.
        let reader = match &leased {
            Some(_) => None,
            None => Some(open(libc::O_RDONLY)?),
        };
        let has_writers = || reader.as_ref().is_some_and(|file| !self.tree.no_writers(file));
        if has_writers() {
            self.doubt(found.inode)?;
        }
        let opened = match &leased {
            Some(file) => file.try_clone()?,
            None => open(libc::O_RDWR)?,
        };
        let mut changes = Changes::new();
        let mut own = Own::with(self, locked, ino, opened.as_fd()).map_err(|(error, _)| error)?;
        let before = own.before;
        // Whoever was here before us has told nobody, or his change is still to be looked at: his bytes stand.
        let touched = self.index.seen(found.inode)?.is_none_or(|seen| !same(&seen, &before));
        let written = wanted.iter().try_for_each(|range| {
            let (start, end) = (range.start * PIECE, range.end.saturating_mul(PIECE).min(before.size));
            let taken =
                if touched && start < end { capture::segments(&opened, start, end)? } else { Vec::new() };
            parts
                .iter()
                .filter(|(at, bytes)| *at < end && at + bytes.len() as u64 > start)
                .try_for_each(|(at, bytes)| write_around(&opened, *at, bytes, start, end, &taken))
        });
        let written = written.map_err(Unwritten::from);
        let mut came = None;
        if written.is_ok() {
            let state = own.locked.state(&self.index)?;
            wanted.iter().for_each(|range| state.absent.remove(range));
            index::set_absent(&mut changes, found.inode, &state.absent)?;
            came = Some(state.absent.is_empty());
        }
        let locked = own.end(&mut changes)?;
        self.index.apply_local(&changes)?;
        drop(opened);
        // Who wrote and has closed it has told before he wrote. That is only in memory. A lease that still stands has kept
        // everybody out; one that was given up meanwhile let somebody in while the times were put back.
        let kept_out = leased.is_some() && self.lend_guard(ino).is_some();
        // It can write, and may be the last one of its guard: whoever has the lock next would take it for a program's.
        drop(leased);
        if has_writers() || !kept_out && self.is_told(ino) {
            self.doubt(found.inode)?;
        }
        if let Some(whole) = came {
            // The bytes are there, and that is remembered.
            for range in wanted.iter() {
                self.came(found.inode, ino, &range);
            }
            self.shared.count("hydrated_bytes", bytes_in(&wanted, before.size));
            if whole {
                self.table.whole(found.inode, ino, Lacking::Bytes);
                self.marks.whole(found.inode, ino, found.handle.as_fd(), Marked::File);
                // Who waits to execute it must find nobody who could write.
                self.guards.drop_guard(ino);
            }
            if let (Some(uses), Some(range)) = (self.uses.get(), wanted.iter().next()) {
                uses.used(found.inode, range.start, wanted.end());
            }
        }
        drop(locked);
        written
    }

    /// Whether somebody has told that a file changes, and no cut has looked at that yet.
    fn is_told(&self, ino: u64) -> bool {
        let told_all = (0..DRAINS).any(|_| {
            self.shared.gate().drain() || {
                std::thread::sleep(BUSY);
                false
            }
        });
        let sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        // Where it cannot be told now, it may be.
        !told_all || sink.inodes.contains_key(&ino) || self.shared.unsettled.is_being_cut(ino)
    }

    /// Has the next look at an inode compare its data, whatever its times say. Its lock is held.
    fn doubt(&self, inode: u64) -> Result<()> {
        let Some(seen) = self.index.seen(inode)?.filter(|seen| seen.doubt != Doubt::Racy) else {
            return Ok(());
        };
        let mut changes = Changes::new();
        let racy = index::Seen { doubt: Doubt::Racy, ..seen };
        changes.insert(index::seen_key(inode), Some(index::encode(&racy)?));
        self.index.apply_local(&changes)
    }
}

/// Why pieces were not written.
enum Unwritten {
    /// Somebody else holds a lease on the file.
    Leased,
    /// The disk is full.
    NoRoom,
    /// What was fetched is not what the volume has by now.
    Stale,
    Io(std::io::Error),
    Index(VolumeError),
}

impl From<std::io::Error> for Unwritten {
    fn from(e: std::io::Error) -> Self {
        match e.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::NoRoom,
            Some(libc::EWOULDBLOCK) => Self::Leased,
            _ => Self::Io(e),
        }
    }
}

impl From<VolumeError> for Unwritten {
    fn from(e: VolumeError) -> Self {
        Self::Index(e)
    }
}

/// Writes the part of `bytes`, which belong at `at`, that lies in `start..end` and in none of `taken`.
fn write_around(
    file: &std::fs::File,
    at: u64,
    bytes: &[u8],
    start: u64,
    end: u64,
    taken: &[(u64, u64)],
) -> std::io::Result<()> {
    let (mut from, to) = (at.max(start), (at + bytes.len() as u64).min(end));
    let behind = [(u64::MAX, u64::MAX)];
    for (low, high) in taken.iter().chain(&behind) {
        let upto = to.min(*low);
        if from < upto {
            let part = bytes.get((from - at) as usize..(upto - at) as usize).unwrap_or(&[]);
            file.write_all_at(part, from)?;
        }
        from = from.max(*high);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_written_around() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(20).unwrap();
        write_around(&file, 5, b"abcdefghij", 6, 14, &[(8, 9), (11, 12)]).unwrap();
        let mut read = [0; 20];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(&read, b"\0\0\0\0\0\0bc\0ef\0hi\0\0\0\0\0\0");
    }
}
