//! Takes clean pieces of files from this disk. What is dirty, on its way to the backend, or read where no hook sees it, stays.
//! It happens inside a freeze of the gate, so that hooked writers are out and all that they did is known; a file that nobody
//! has open is held by a mark or a lease meanwhile. It must not know why anything is to go.
//!
//! Of each file, under its lock: what will be absent is written to the index, clients are told that it goes, and only then
//! are its bytes removed. Whoever dies in between leaves bytes that count as absent: they are fetched again.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use storeshim_protocol::request::Pin;
use storeshim_protocol::residency::PIECE;

use super::Residency;
use super::file::{Locked, RUN, bytes_in, pieces_of};
use super::lease::{self, Alone};
use super::lru::{Offer, Run, Verdict};
use super::openers::Openers;
use super::own::Own;
use super::ready::{Hands, Ready};
use super::table::Lacking;
use crate::volume::index::{self, Changes, Doubt};
use crate::volume::look::same;
use crate::volume::tree::check;
use crate::volume::{DirtySet, VolumeError};

/// Runs that are made ready for one freeze.
const BATCH: usize = 64;
/// How long one freeze may take away.
const FREEZE: Duration = Duration::from_millis(4);
/// After a freeze writers go on for so many times as long, but not longer than this is waited.
const REST: u32 = 2;
const REST_MAX: Duration = Duration::from_millis(20);
/// Between the moment from which clients look at the table and the first eviction: who had looked whether it must has begun to
/// read by then, and is seen.
const GRACE: Duration = Duration::from_millis(100);

/// Why something stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stays {
    /// There is nothing of it on this disk.
    Nothing,
    /// It was changed, and the backend does not have that yet.
    Dirty,
    /// It is mapped, executed, or read through stdio.
    Pinned,
    /// A program has it open that does not ask before it reads.
    Unhooked,
    /// It is open, and it cannot be told by whom.
    Unknown,
    /// It was read lately.
    Used,
    /// It moves, or another one has taken its place.
    Moving,
    /// This filesystem cannot make holes in files.
    Solid,
    /// There was no time left.
    Late,
}

impl Stays {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Nothing => "not here",
            Self::Dirty => "not in the backend yet",
            Self::Pinned => "pinned: mapped, executing, or open through stdio",
            Self::Unhooked => "open without the shim",
            Self::Unknown => "open, and it cannot be told by whom",
            Self::Used => "read lately",
            Self::Moving => "being moved",
            Self::Solid => "the filesystem cannot make holes in files",
            Self::Late => "no time left",
        }
    }
}

/// What came of a search for what can go.
#[derive(Clone, Copy, Debug)]
pub struct Evicted {
    /// Bytes that went.
    pub bytes: u64,
    /// Something stays only because calls were in the way: it may go in a moment.
    pub late: bool,
}

/// What became of one file.
#[derive(Debug, Default)]
pub struct Gone {
    /// Bytes that went.
    pub bytes: u64,
    /// Bytes of the same runs that stay, and why.
    pub stays: Option<(Stays, u64)>,
}

impl Gone {
    /// All of it stays.
    pub fn stays(why: Stays, bytes: u64) -> Self {
        Self { bytes: 0, stays: Some((why, bytes)) }
    }
}

impl Residency {
    /// Evicts until `bytes` have gone, what was used longest ago first. `mercy`: what was read lately stays.
    ///
    /// # Errors
    /// Where the index cannot be used.
    pub fn evict(&self, bytes: u64, mercy: bool) -> Result<Evicted, VolumeError> {
        let _one_at_a_time = self.cache.evicting.lock();
        self.begin_evicting();
        let (mut gone, mut examined, mut from, mut exhausted) = (0, 0usize, None, false);
        let mut late = false;
        while gone < bytes && self.shared.failure().is_none() {
            let known = self.cache.policy.lock().len();
            // Twice round: what was tried in the first round goes in the second.
            let offers = if examined > 2 * known { Vec::new() } else { self.offers(bytes - gone) };
            if offers.is_empty() {
                if exhausted {
                    break;
                }
                exhausted = !self.find_more(&mut from)?;
                if self.cache.policy.lock().len() > known {
                    examined = 0;
                }
                continue;
            }
            examined += offers.len();
            for outcome in self.evict_offers(&offers, mercy)? {
                if outcome.bytes > 0 {
                    (gone, examined) = (gone + outcome.bytes, 0);
                }
                late |= matches!(outcome.stays, Some((Stays::Late, _)));
            }
        }
        Ok(Evicted { bytes: gone, late })
    }

    /// Evicts what can go of some files; what became of each.
    ///
    /// # Errors
    /// As [`Residency::evict`].
    pub fn evict_inodes(&self, inodes: &[u64]) -> Result<Vec<(u64, Gone)>, VolumeError> {
        let _one_at_a_time = self.cache.evicting.lock();
        self.begin_evicting();
        let mut placed = Vec::new();
        for inode in inodes {
            let size = self.index.seen(*inode)?.map_or(0, |seen| seen.size);
            let runs = (0..size.div_ceil(RUN * PIECE)).collect();
            placed.extend(self.place(*inode, runs)?);
        }
        let marked = Instant::now();
        let mut ready: Vec<(u64, Ready)> =
            placed.into_iter().map(|one| (one.found.inode, self.make_ready(one, marked))).collect();
        let mut done = BTreeMap::new();
        while let Some(outcome) = self.freeze_and_evict(&mut ready)? {
            for (inode, gone) in outcome {
                let sum: &mut Gone = done.entry(inode).or_default();
                sum.bytes += gone.bytes;
                sum.stays = gone.stays;
            }
        }
        Ok(done.into_iter().collect())
    }

    /// From now on clients look at the table. Who opened a file while nothing was absent may read it without asking.
    fn begin_evicting(&self) {
        if self.cache.begun.swap(true, Ordering::SeqCst) {
            return;
        }
        self.marks.begin();
        let was_complete = self.table.is_complete();
        self.table.evictions_begin();
        if was_complete {
            std::thread::sleep(GRACE);
            self.doubt_openers();
        }
    }

    /// What is asked to stay may be of a file that only the next cut will know.
    pub(super) fn pin_early(&self, ino: u64, pin: Pin) {
        self.cache.early.pin(ino, pin, self.files.now(), || {
            let openers = Openers::look(self.tree.dev(), self.shared.gate());
            (!openers.is_blind()).then(|| openers.all().collect())
        });
    }

    /// Nobody was asked for what is open now.
    pub(super) fn doubt_openers(&self) {
        let openers = Openers::look(self.tree.dev(), self.shared.gate());
        self.cache.unsure.doubt(&openers);
        *self.cache.openers.lock() = openers;
    }

    fn offers(&self, bytes: u64) -> Vec<Offer> {
        let mut policy = self.cache.policy.lock();
        let (mut offers, mut sum) = (Vec::new(), 0);
        while sum < bytes && offers.len() < BATCH {
            let Some(offer) = policy.next() else { break };
            sum += offer.bytes;
            offers.push(offer);
        }
        offers
    }

    fn evict_offers(&self, offers: &[Offer], mercy: bool) -> Result<Vec<Gone>, VolumeError> {
        let mut by_inode: BTreeMap<u64, Vec<&Offer>> = BTreeMap::new();
        offers.iter().for_each(|offer| by_inode.entry(offer.run.inode).or_default().push(offer));
        let (mut placed, mut done) = (Vec::new(), Vec::new());
        for (inode, offers) in by_inode {
            let all = || offers.iter().map(|offer| offer.run.run).collect::<Vec<u64>>();
            // Before anything that is dear, and before the kernel is told to forget what somebody reads.
            if self.is_held(inode) {
                let bytes = offers.iter().map(|offer| offer.bytes).sum();
                done.push(Gone::stays(Stays::Pinned, bytes));
                self.judge_runs(inode, &all(), &Gone::stays(Stays::Pinned, bytes));
                continue;
            }
            let mut runs = Vec::new();
            for offer in &offers {
                if !mercy || self.may_go(offer)? {
                    runs.push(offer.run.run);
                }
            }
            runs.sort_unstable();
            if runs.is_empty() {
                continue;
            }
            match self.place(inode, runs.clone())? {
                Some(one) => placed.push(one),
                None => self.judge_runs(inode, &runs, &Gone::stays(Stays::Nothing, 0)),
            }
        }
        let marked = Instant::now();
        let mut ready: Vec<(u64, Ready)> =
            placed.into_iter().map(|one| (one.found.inode, self.make_ready(one, marked))).collect();
        // Nobody need wait at the gate for those of which it is known.
        for (inode, one) in ready.extract_if(.., |(_, one)| one.stays.is_some()) {
            let gone = one.stays.map_or_else(Gone::default, |why| one.stay(why));
            self.judge_runs(inode, &one.runs, &gone);
            done.push(gone);
        }
        while let Some(outcome) = self.freeze_and_evict(&mut ready)? {
            done.extend(outcome.into_iter().map(|(_, gone)| gone));
        }
        Ok(done)
    }

    /// Closes the gate once and takes away as much of `ready` as there is time for; what became of it. `None` at the end.
    fn freeze_and_evict(
        &self,
        ready: &mut Vec<(u64, Ready)>,
    ) -> Result<Option<Vec<(u64, Gone)>>, VolumeError> {
        if ready.is_empty() {
            return Ok(None);
        }
        let mut outcome = Vec::new();
        let closed = Instant::now();
        let mut fresh = DirtySet::default();
        let frozen = self.shared.gate().freeze(&mut fresh);
        // Somebody is inside.
        let late = !fresh.stragglers.is_empty();
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).merge(fresh);
        let until = (closed + FREEZE).min(frozen.deadline());
        while let Some((inode, one)) = ready.pop() {
            let gone =
                if late { Ok(one.stay(Stays::Late)) } else { self.take_away(inode, &one, frozen.deadline()) };
            match gone {
                Ok(gone) => {
                    if one.open {
                        self.shared.count("evicted_while_open", gone.bytes);
                    }
                    outcome.push((inode, one.runs, gone));
                }
                Err(error) => {
                    drop(frozen);
                    let gone = outcome.iter().filter(|(_, _, gone)| gone.bytes > 0).map(|(gone, ..)| *gone);
                    // It may have gone in part.
                    gone.chain([inode]).for_each(|inode| self.guards.want(inode));
                    return Err(error);
                }
            }
            if Instant::now() > until {
                break;
            }
        }
        drop(frozen);
        let paused = closed.elapsed();
        self.shared.paused(paused);
        self.look_at_doubted();
        std::thread::sleep((paused * REST).min(REST_MAX));
        for (inode, runs, gone) in &outcome {
            self.judge_runs(*inode, runs, gone);
            if gone.bytes > 0 {
                self.guards.want(*inode);
            }
        }
        Ok(Some(outcome.into_iter().map(|(inode, _, gone)| (inode, gone)).collect()))
    }

    /// Tells the policy and the counters what became of the runs of a file.
    fn judge_runs(&self, inode: u64, runs: &[u64], gone: &Gone) {
        let (verdict, bytes) = match gone.stays {
            None => (Verdict::Evicted, 0),
            Some((Stays::Nothing | Stays::Moving, _)) => (Verdict::Nothing, 0),
            Some((_, bytes)) => (Verdict::Busy, bytes / runs.len().max(1) as u64),
        };
        let mut policy = self.cache.policy.lock();
        runs.iter().for_each(|run| policy.judge(Run { inode, run: *run }, verdict, bytes));
        drop(policy);
        let used = matches!(gone.stays, Some((Stays::Pinned | Stays::Unhooked | Stays::Unknown, _)));
        self.cache.in_use.judge(inode, used);
        if gone.bytes > 0 {
            self.shared.count("evictions", 1);
            self.shared.count("evicted_bytes", gone.bytes);
        }
        match gone.stays {
            _ if used => self.shared.count("evict_skipped_open", 1),
            Some((Stays::Dirty, _)) => self.shared.count("evict_skipped_dirty", 1),
            _ => {}
        }
    }

    /// Takes the runs of a file from this disk. The gate is closed, until `deadline` for sure.
    fn take_away(&self, inode: u64, one: &Ready, deadline: Instant) -> Result<Gone, VolumeError> {
        let ino = one.found.stat.id.ino;
        if let Some(why) = one.stays {
            return Ok(one.stay(why));
        }
        if !self.is_clean(ino, inode)? {
            return Ok(one.stay(Stays::Dirty));
        }
        // Before it is opened: whoever has the lock takes a descriptor that can write for a program's, and a lease of ours would
        // keep him from the file that he waits for.
        let locked = self.files.lock(inode);
        if let Some(file) = self.lend_guard(ino) {
            if lease::is_breaking(&file) {
                return Ok(one.stay(Stays::Moving));
            }
            let (gone, locked) = self.take_from(inode, one, (&file, Hands::Nobody), locked, deadline)?;
            drop((file, locked));
            return Ok(gone);
        }
        let file = match one.found.open_until(self, libc::O_RDWR | libc::O_NONBLOCK, deadline) {
            Ok(file) => file,
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => return Ok(one.stay(Stays::Pinned)),
            Err(_) => return Ok(one.stay(Stays::Moving)),
        };
        let lease = lease::alone(file.as_fd());
        let hands = Hands::from(&lease);
        if matches!(hands, Hands::Somebody) && !one.open {
            // Since we have looked.
            return Ok(one.stay(Stays::Used));
        }
        // Who opens a marked file is pinned or brings it again, under the lock. A lease would only hold up who takes events,
        // for whom the holder of that lock may wait.
        let lease = one.kept.is_none().then_some(lease);
        let (gone, locked) = self.take_from(inode, one, (&file, hands), locked, deadline)?;
        let stays = lease.filter(|_| gone.bytes > 0).is_some_and(Alone::keep);
        if stays {
            self.guard_on(inode, ino, file);
        } else {
            drop(file);
        }
        drop(locked);
        Ok(gone)
    }

    /// Whether the backend has what is in a file, as far as anybody told. The gate is closed.
    fn is_clean(&self, ino: u64, inode: u64) -> Result<bool, VolumeError> {
        // Of a backend that is not ours any more nothing is known.
        if self.shared.failure().is_some() {
            return Ok(false);
        }
        let told = {
            let sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
            sink.everywhere.is_some() || sink.inodes.contains_key(&ino)
        };
        Ok(!told && self.shared.unsettled.is_settled(ino, inode) && !self.index.is_suspect(ino)?)
    }

    /// Returns the lock as well: the file is to be closed under it.
    fn take_from<'r>(
        &'r self,
        inode: u64,
        one: &Ready,
        (file, hands): (&File, Hands),
        mut locked: Locked<'r>,
        deadline: Instant,
    ) -> Result<(Gone, Locked<'r>), VolumeError> {
        let ino = one.found.stat.id.ino;
        let is_alone = matches!(hands, Hands::Nobody);
        // Who has pinned it since that look is known by when he did.
        let is_closed =
            is_alone || matches!(hands, Hands::Unknown) && self.cache.openers.lock().is_closed(ino);
        let now = self.files.now();
        let state = locked.state(&self.index)?;
        state.pin(self.cache.early.take(ino));
        if let Some(pinned) = state.pinned {
            if !is_closed || !pinned.is_over(now, is_alone) {
                return Ok((one.stay(Stays::Pinned), locked));
            }
            state.pinned = None;
        }
        // Where the agent was held up, writers go on.
        if Instant::now() > deadline {
            return Ok((one.stay(Stays::Late), locked));
        }
        let own = match Own::with(self, locked, ino, file.as_fd()) {
            Ok(own) => own,
            Err((_, locked)) => return Ok((one.stay(Stays::Moving), locked)),
        };
        self.take_pieces(inode, one, own, file)
    }

    fn take_pieces<'r>(
        &'r self,
        inode: u64,
        one: &Ready,
        mut own: Own<'r, '_>,
        file: &File,
    ) -> Result<(Gone, Locked<'r>), VolumeError> {
        let (ino, size) = (one.found.stat.id.ino, own.before.size);
        let stays = |own: Own<'r, '_>, why| Ok((one.stay(why), own.leave()));
        let unchanged = match self.index.seen(inode)? {
            Some(seen) if same(&seen, &own.before) && seen.doubt == Doubt::Racy => {
                self.cache.doubted.add(ino);
                false
            }
            Some(seen) if same(&seen, &own.before) => {
                // What moved the times besides us shows in the record alone.
                let record = self.index.inode(inode)?;
                record.is_some_and(|record| (record.size, record.mtime) == (size, own.before.mtime))
            }
            _ => false,
        };
        if !unchanged {
            return stays(own, Stays::Dirty);
        }
        let state = own.locked.state(&self.index)?;
        let all = pieces_of(size).end();
        let going = one.pieces(all, &state.absent);
        if going.is_empty() {
            return stays(own, Stays::Nothing);
        }
        let was_whole = state.absent.is_empty();
        let mut absent = state.absent.clone();
        going.iter().for_each(|range| absent.add(range));
        let mut persisted = Changes::new();
        index::set_absent(&mut persisted, inode, &absent)?;
        if was_whole {
            // Before the index says so: who counts what is absent there meets it, too.
            self.table.absent(inode, ino, Lacking::Bytes);
        }
        if let Err(error) = self.index.apply_local(&persisted) {
            if was_whole {
                self.table.whole(inode, ino, Lacking::Bytes);
            }
            return Err(error);
        }
        state.absent.clone_from(&absent);
        let bytes = bytes_in(&going, size);
        for range in going.iter() {
            self.table.going(ino, range.start, range.end);
        }
        let mut solid = false;
        for range in going.iter() {
            solid |= punch(file, range).is_err();
        }
        self.table.show(ino, all, &absent);
        let mut changes = Changes::new();
        let locked = own.end(&mut changes)?;
        self.index.apply_local(&changes)?;
        // What could not be removed counts as absent all the same, and is fetched again.
        Ok((Gone { bytes, stays: solid.then_some((Stays::Solid, bytes)) }, locked))
    }
}

/// Makes a hole of some pieces; the size of the file stays.
fn punch(file: &File, pieces: Range<u64>) -> std::io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (start, len) = (pieces.start * PIECE, (pieces.end - pieces.start) * PIECE);
    // SAFETY: no memory is passed.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, start as i64, len as i64) }).map(drop)
}
