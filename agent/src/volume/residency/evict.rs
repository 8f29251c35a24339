//! Takes clean pieces of files from this disk. What is dirty, on its way to the backend, or read where no hook sees it, stays.
//! It happens inside a freeze of the gate, so that hooked writers are out and all that they did is known; a file that nobody
//! has open is held by a mark or a lease meanwhile. It must not know why anything is to go.
//!
//! Of each file, under its lock: what will be absent is written to the index, clients are told that it goes, and only then
//! are its bytes removed. Whoever dies in between leaves bytes that count as absent: they are fetched again.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use storeshim_protocol::request::Pin;
use storeshim_protocol::residency::PIECE;

use super::cache::{forget_cached, is_cached};
use super::file::{Locked, RUN, bytes_in, pieces_of};
use super::lease::{self, Alone};
use super::lru::{Offer, Run, Verdict};
use super::openers::Openers;
use super::own::Own;
use super::preaccess::Kept;
use super::{Residency, find};
use crate::volume::index::{self, Changes, Doubt, Pieces};
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

/// A file of which something may go.
pub struct Ready {
    found: find::Inode,
    /// Which of its runs.
    runs: Vec<u64>,
    /// Why it does not go, if it does not.
    stays: Option<Stays>,
    /// Somebody has it open, who asks before he reads.
    open: bool,
    /// Who opens it without asking waits for the agent.
    kept: Option<Kept>,
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
    fn stays(why: Stays, bytes: u64) -> Self {
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
        let mut in_use: HashMap<u64, u64> = HashMap::new();
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
            for (inode, outcome) in self.evict_offers(&offers, mercy)? {
                if outcome.bytes > 0 {
                    (gone, examined) = (gone + outcome.bytes, 0);
                }
                late |= matches!(outcome.stays, Some((Stays::Late, _)));
                if let Some((Stays::Pinned | Stays::Unhooked | Stays::Unknown, bytes)) = outcome.stays {
                    in_use.insert(inode, bytes);
                }
            }
        }
        self.cache.pinned.store(in_use.values().sum(), Ordering::Relaxed);
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

    fn evict_offers(&self, offers: &[Offer], mercy: bool) -> Result<Vec<(u64, Gone)>, VolumeError> {
        let mut by_inode: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for offer in offers {
            if !mercy || self.may_go(offer)? {
                by_inode.entry(offer.run.inode).or_default().push(offer.run.run);
            }
        }
        let mut placed = Vec::new();
        for (inode, mut runs) in by_inode {
            runs.sort_unstable();
            match self.place(inode, runs.clone())? {
                Some(one) => placed.push(one),
                None => self.judge_runs(inode, &runs, &Gone::stays(Stays::Nothing, 0)),
            }
        }
        let marked = Instant::now();
        let mut ready: Vec<(u64, Ready)> =
            placed.into_iter().map(|one| (one.found.inode, self.make_ready(one, marked))).collect();
        let mut done = Vec::new();
        while let Some(outcome) = self.freeze_and_evict(&mut ready)? {
            done.extend(outcome);
        }
        Ok(done)
    }

    /// Whether a run was not read since it was offered last.
    fn may_go(&self, offer: &Offer) -> Result<bool, VolumeError> {
        let Run { inode, run } = offer.run;
        let Some(found) = self.at_its_place(inode)? else { return Ok(true) };
        let Ok(file) = found.open(self, libc::O_RDONLY | libc::O_NONBLOCK) else { return Ok(true) };
        let (start, len) = (run * RUN * PIECE, RUN * PIECE);
        let end = found.stat.size.min(start + len);
        if !is_cached(&file, start, end.saturating_sub(start)) {
            return Ok(true);
        }
        forget_cached(file.as_fd(), start, len);
        let verdict = if offer.tried { Verdict::Used } else { Verdict::Tried };
        self.cache.policy.lock().judge(offer.run, verdict, end.saturating_sub(start));
        Ok(false)
    }

    /// The inode in the tree, where the last cut saw it.
    pub(super) fn at_its_place(&self, inode: u64) -> Result<Option<find::Inode>, VolumeError> {
        let Some(seen) = self.index.seen(inode)? else { return Ok(None) };
        let Some(kernel) = self.index.kernel(seen.id.ino)?.filter(|kernel| kernel.inode == inode) else {
            return Ok(None);
        };
        self.at_its_names(&kernel)
    }

    /// The file whose runs may go, marked: who opens it from now on is waited for. `None`: nothing of it is in the tree.
    fn place(&self, inode: u64, runs: Vec<u64>) -> Result<Option<Ready>, VolumeError> {
        let Some(found) = self.at_its_place(inode)?.filter(|found| found.stat.is_file()) else {
            return Ok(None);
        };
        let kept = self.keep_mark(&found);
        Ok(Some(Ready { found, runs, stays: None, open: false, kept }))
    }

    /// What can be found out of a file before the gate is closed; `marked` is when all were that are.
    fn make_ready(&self, mut ready: Ready, marked: Instant) -> Ready {
        let since = ready.kept.as_ref().map(|_| marked);
        let ino = ready.found.stat.id.ino;
        self.unguard(ino);
        (ready.open, ready.stays) = match ready.found.open(self, libc::O_RDONLY | libc::O_NONBLOCK) {
            Ok(file) => match lease::alone(file.as_fd()) {
                Alone::Yes(_) => {
                    self.cache.unsure.met_closed(ino);
                    (false, None)
                }
                Alone::No => match self.in_use(ino, false, since) {
                    // Who had it open a moment ago, the agent itself perhaps, is gone by now.
                    Some(Stays::Unknown) if is_alone_soon(&file) => {
                        self.cache.unsure.met_closed(ino);
                        (false, None)
                    }
                    stays => (true, stays),
                },
                Alone::Unknown => (true, self.in_use(ino, true, since)),
            },
            // Somebody else's lease, or it is gone.
            Err(_) => (false, Some(Stays::Moving)),
        };
        ready
    }

    /// Whether a file that somebody has open, or may have where no lease tells, must stay.
    /// From `since` on nobody begins to use it unseen.
    fn in_use(&self, ino: u64, no_leases: bool, since: Option<Instant>) -> Option<Stays> {
        let mut openers = self.cache.openers.lock();
        if since.is_some_and(|since| openers.is_older(since)) {
            *openers = Openers::look(self.tree.dev(), self.shared.gate());
        }
        let openers = openers.fresh(self.tree.dev(), self.shared.gate());
        match openers.of(ino) {
            Some(of) if of.mapped => Some(Stays::Pinned),
            Some(of) if of.unhooked => Some(Stays::Unhooked),
            Some(_) if self.cache.unsure.may_be_pinned(ino) => Some(Stays::Pinned),
            Some(_) => None,
            None if no_leases && !openers.is_blind() => None,
            None => Some(Stays::Unknown),
        }
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
                Ok(gone) => outcome.push((inode, one.runs, gone)),
                Err(error) => {
                    drop(frozen);
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
        if gone.bytes > 0 {
            self.shared.count("evictions", 1);
            self.shared.count("evicted_bytes", gone.bytes);
        }
        match gone.stays {
            Some((Stays::Pinned | Stays::Unhooked | Stays::Unknown, _)) => {
                self.shared.count("evict_skipped_open", 1);
            }
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
        match one.found.open(self, libc::O_RDWR | libc::O_NONBLOCK) {
            Ok(file) => self.take_from(inode, one, &file, deadline),
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => Ok(one.stay(Stays::Pinned)),
            Err(_) => Ok(one.stay(Stays::Moving)),
        }
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

    fn take_from(
        &self,
        inode: u64,
        one: &Ready,
        file: &File,
        deadline: Instant,
    ) -> Result<Gone, VolumeError> {
        let ino = one.found.stat.id.ino;
        let lease = lease::alone(file.as_fd());
        if matches!(lease, Alone::No) && !one.open {
            // Since we have looked.
            return Ok(one.stay(Stays::Used));
        }
        let is_alone = matches!(lease, Alone::Yes(_));
        // Who has pinned it since that look is known by when he did.
        let is_closed =
            is_alone || matches!(lease, Alone::Unknown) && self.cache.openers.lock().is_closed(ino);
        // Who opens a marked file is pinned or brings it again, under the lock. A lease would only hold up who takes events,
        // for whom the holder of that lock may wait.
        let _lease = one.kept.is_none().then_some(lease);
        let mut locked = self.files.lock(inode);
        let now = self.files.now();
        let state = locked.state(&self.index)?;
        state.pin(self.cache.early.take(ino));
        if let Some(pinned) = state.pinned {
            if !is_closed || !pinned.is_over(now, is_alone) {
                return Ok(one.stay(Stays::Pinned));
            }
            state.pinned = None;
        }
        // Where the agent was held up, writers go on.
        if Instant::now() > deadline {
            return Ok(one.stay(Stays::Late));
        }
        let own = match Own::with(self, locked, ino, file.as_fd()) {
            Ok(own) => own,
            Err(_) => return Ok(one.stay(Stays::Moving)),
        };
        self.take_pieces(inode, one, own, file)
    }

    fn take_pieces(
        &self,
        inode: u64,
        one: &Ready,
        mut own: Own<'_, '_>,
        file: &File,
    ) -> Result<Gone, VolumeError> {
        let (ino, size) = (one.found.stat.id.ino, own.before.size);
        let stays = |own: Own<'_, '_>, why| {
            self.table.moving(ino, false);
            drop(own);
            Ok(one.stay(why))
        };
        let unchanged = match self.index.seen(inode)? {
            Some(seen) if same(&seen, &own.before) && seen.doubt != Doubt::Racy => {
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
        self.index.apply_local(&persisted)?;
        state.absent.clone_from(&absent);
        if was_whole {
            self.table.absent(inode, ino);
            self.meter.absent_files.fetch_add(1, Ordering::Relaxed);
        }
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
        let locked: Locked<'_> = own.end(&mut changes)?;
        self.index.apply_local(&changes)?;
        drop(locked);
        // What could not be removed counts as absent all the same, and is fetched again.
        Ok(Gone { bytes, stays: solid.then_some((Stays::Solid, bytes)) })
    }
}

/// Whether a file is in nobody's hands any more in some milliseconds.
fn is_alone_soon(file: &File) -> bool {
    (0..10).any(|_| {
        std::thread::sleep(Duration::from_millis(2));
        matches!(lease::alone(file.as_fd()), Alone::Yes(_))
    })
}

impl Ready {
    fn stay(&self, why: Stays) -> Gone {
        let size = self.found.stat.size;
        let bytes = bytes_in(&self.pieces(pieces_of(size).end(), &Pieces::default()), size);
        Gone::stays(why, bytes)
    }

    /// The pieces of the runs of a file of `all` pieces, without `absent`.
    fn pieces(&self, all: u64, absent: &Pieces) -> Pieces {
        let mut pieces = Pieces::default();
        for run in &self.runs {
            pieces.add((run * RUN).min(all)..((run + 1) * RUN).min(all));
        }
        absent.iter().for_each(|range| pieces.remove(range));
        pieces
    }
}

/// Makes a hole of some pieces; the size of the file stays.
fn punch(file: &File, pieces: Range<u64>) -> std::io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (start, len) = (pieces.start * PIECE, (pieces.end - pieces.start) * PIECE);
    // SAFETY: no memory is passed.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, start as i64, len as i64) }).map(drop)
}
