//! Keeps room: the evictor's thread, the answers to who has none, and what of all that is shown. It must not know how
//! anything is evicted.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use storeshim_protocol::request::Ask;

use super::cache::Cache;
use super::quota::{Keeper, Told, Usage};
use super::{Residency, Status, Uses, lease};
use crate::session::Reply;
use crate::volume::tree::Leases;
use crate::volume::{Guarding, VolumeError};

/// Between two looks at how full the cache is, if nobody calls.
const PAUSE: Duration = Duration::from_millis(200);
/// After a round that failed: the first pause, and the longest one.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// For how long calls that do not leave the gate may keep data waiting for room.
const LATE: Duration = Duration::from_millis(100);

/// The residency as hydration sees it from below.
struct Below(Weak<Residency>);

impl Uses for Below {
    fn used(&self, inode: u64, start: u64, end: u64) {
        if let Some(residency) = self.0.upgrade() {
            residency.cache.used(inode, start, end);
        }
    }

    fn make_room(&self, bytes: u64) -> bool {
        let Some(residency) = self.0.upgrade() else { return false };
        residency.shared.count("disk_full", 1);
        residency.has_room(bytes)
    }
}

impl Leases for Below {
    fn any(&self) -> bool {
        self.0.upgrade().is_some_and(|residency| residency.guards.held() > 0)
    }

    fn lend(&self, ino: u64) -> Option<Arc<File>> {
        self.0.upgrade().and_then(|residency| residency.lend_guard(ino))
    }
}

/// What one round leaves to the next.
#[derive(Default)]
struct Rounds {
    /// What is here was counted.
    counted: bool,
    /// Since when calls inside the gate have been in the way of everything.
    late: Option<Instant>,
}

/// Makes rounds until the cache ends or a `round` says so by `None`; else it says whether more is to go than can. One that fails
/// is not the last: a cache without bounds would fill this disk.
fn keep_room(cache: &Cache, mut round: impl FnMut() -> Result<Option<bool>, VolumeError>) {
    let mut pause = BACKOFF.0;
    while cache.next_round(PAUSE) {
        let done = round();
        cache.tell(done.as_ref().err());
        match done {
            Ok(None) => return,
            Ok(Some(stuck)) => {
                pause = BACKOFF.0;
                cache.round_ended(stuck);
            }
            Err(_) => {
                cache.round_ended(true);
                cache.rest(pause);
                pause = (pause * 2).min(BACKOFF.1);
            }
        }
    }
}

impl Residency {
    /// Starts what bounds the volume: the evictor, the guards, the quota's keeper.
    ///
    /// # Errors
    /// Where a thread cannot be started.
    pub(super) fn keep_bounds(self: &Arc<Self>) -> Result<(), VolumeError> {
        lease::ignore_signals();
        // What was told to an agent before us we do not know.
        self.doubt_openers();
        for tree in std::iter::once(&*self.tree).chain(self.tree.kept()) {
            tree.set_leases(Box::new(Below(Arc::downgrade(self))));
        }
        // It is set once.
        let _ = self.uses.set(Arc::new(Below(Arc::downgrade(self))));
        if let Some(reserve) = self.index.reserve() {
            let weak = Arc::downgrade(self);
            reserve.on_short(Box::new(move || {
                if let Some(own) = weak.upgrade() {
                    own.cache.wake();
                }
            }));
        }
        self.spawn("evict", |own| {
            let mut rounds = Rounds::default();
            // What is here is to be counted before anybody asks.
            own.cache.wake();
            keep_room(&own.cache, || match own.shared.failure() {
                None => own.round(&mut rounds).map(Some),
                Some(_) => Ok(None),
            });
        })?;
        let (listens, listening) = std::sync::mpsc::channel();
        self.spawn("guard", move |own| {
            let signals = if own.options.guard == Guarding::Off { None } else { own.listen() };
            // Who waits for that has ended, if nobody hears it.
            let _ = listens.send(());
            if let Some(signals) = signals {
                own.keep_guards(&signals, &|| own.is_closed());
            }
        })?;
        // Before anything gets its name: who would open it then is to be heard of. The thread sends in any case.
        let _ = listening.recv();
        if self.options.guard != Guarding::Off {
            // Of a million files that takes a while, in which others wait at leases.
            self.spawn("guard-known", |own| {
                if let Err(error) = own.mark_known().and_then(|()| own.guard_known()) {
                    tracing::warn!(%error, "what was absent at the start is not guarded");
                }
            })?;
        }
        let quota = self.options.quota;
        if quota.bytes.is_some() || quota.inodes.is_some() {
            let wanted = Arc::new(AtomicBool::new(false));
            let cut = Arc::clone(&wanted);
            let cut = Box::new(move || cut.store(true, Ordering::Release));
            let _ = self.quota.set(Keeper::new(quota, &self.shared, cut));
            self.spawn("quota", move |own| {
                while !own.is_closed() {
                    if wanted.swap(false, Ordering::AcqRel) {
                        own.settle();
                    }
                    let Some(quota) = own.quota.get() else { return };
                    std::thread::sleep(quota.tick(own.usage(), own.told()));
                }
            })?;
        }
        Ok(())
    }

    /// Evicts what is to go now; whether more is to go than can.
    fn round(&self, rounds: &mut Rounds) -> Result<bool, VolumeError> {
        if !rounds.counted {
            while !self.index.count_resident()? {
                if self.is_closed() {
                    return Ok(false);
                }
            }
            self.cache.counted(self.index.resident());
            rounds.counted = true;
        }
        let excess = self.excess();
        let mut stuck = false;
        if excess > 0 {
            // Who waits for room has no time for what may have been read lately.
            let mut gone = self.evict(excess, true)?;
            if gone.bytes == 0 && self.lacking(0) > 0 {
                // The disk itself is full.
                gone = self.evict(excess, false)?;
            }
            rounds.late = (gone.bytes == 0 && gone.late).then(|| rounds.late.unwrap_or_else(Instant::now));
            // One of them may itself wait for data that waits for room: a truncate(2) of a marked file, say.
            let blocked = rounds.late.is_some_and(|since| since.elapsed() > LATE);
            stuck = gone.bytes == 0 && (blocked || !gone.late);
            if stuck || self.excess() == 0 {
                self.cache.in_use.settle();
            }
        } else {
            rounds.late = None;
            self.look_who_is_in_use();
        }
        if let Some(reserve) = self.index.reserve() {
            reserve.restore();
        }
        Ok(stuck)
    }

    /// Whether there is room for `bytes` on this disk, once what can go has gone.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let (lacking, free) = (self.lacking(bytes), self.free());
        if lacking == 0 || bytes > free.saturating_add(self.index.resident()) {
            return lacking == 0;
        }
        match self.evict(lacking, false) {
            // A filesystem may take its time to say so.
            Ok(gone) => free.saturating_add(gone.bytes) >= bytes || self.free() >= bytes,
            Err(error) => {
                tracing::warn!(%error, "this disk is full, and nothing can be evicted");
                false
            }
        }
    }

    /// Answers [`Ask::Room`], [`Ask::Grow`] and [`Ask::Streamed`]; the first may take its time.
    pub(super) fn ask_for_room(&self, ask: Ask, reply: Box<dyn Reply>) {
        match ask {
            Ask::Room { bytes } => {
                self.shared.count("disk_full", 1);
                reply.reply(if self.has_room(bytes) { 0 } else { libc::ENOSPC });
            }
            Ask::Grow { bytes, inodes } => match self.quota.get() {
                Some(quota) => {
                    let more = Usage { bytes, inodes };
                    quota.grow(more, self.usage(), self.told(), reply);
                }
                None => reply.reply(0),
            },
            Ask::Streamed { ino, size, pending } => match self.quota.get() {
                Some(quota) => {
                    let unseen = size.saturating_sub(self.seen_size(ino));
                    quota.streamed(ino, (unseen, pending), self.usage(), self.told(), reply);
                }
                None => reply.reply(0),
            },
            _ => reply.reply(libc::EINVAL),
        }
    }

    /// How long a file was when a cut saw it last; one that cannot be looked up counts as new.
    fn seen_size(&self, ino: u64) -> u64 {
        let size = |ino| Some(self.index.inode(self.index.kernel(ino).ok()??.inode).ok()??.size);
        size(ino).unwrap_or(0)
    }

    /// What the last cut saw.
    fn usage(&self) -> Usage {
        let bytes = self.shared.bytes.load(Ordering::Relaxed).max(0) as u64;
        Usage { bytes, inodes: self.shared.inodes.load(Ordering::Relaxed) }
    }

    fn told(&self) -> Told {
        let sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let cutting = self.shared.cutting_bytes.load(Ordering::Relaxed);
        let entries = sink.entries() + self.shared.unsettled.entries();
        Told { bytes: sink.bytes.saturating_add(cutting), entries }
    }

    /// Adds what is known here to a status.
    pub(super) fn bounds(&self, status: Status) -> Status {
        let excess = self.quota.get().map_or(Usage::default(), |quota| quota.excess(self.usage()));
        Status {
            over_quota_bytes: excess.bytes,
            over_quota_inodes: excess.inodes,
            resident_bytes: self.index.resident(),
            cache_size: self.cache.size(),
            pinned_bytes: self.bytes_in_use(),
            unguarded_files: self.absent_files().saturating_sub(self.guards.held() + self.marks.held()),
            guard: self.marks.guarded(),
            eviction_error: self.cache.trouble(),
            ..status
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::tests::options;

    #[test]
    fn a_round_that_fails_is_told_and_is_not_the_last() {
        let cache = Cache::new(&options(), &Arc::default());
        let mut rounds = 0;
        keep_room(&cache, || {
            rounds += 1;
            let why = "the index does not answer";
            match rounds {
                1 | 2 => {
                    assert_eq!(cache.trouble().as_deref(), (rounds == 2).then_some(why));
                    Err(VolumeError::Failed(why.into()))
                }
                3 => Ok(Some(false)),
                4 => {
                    assert_eq!(cache.trouble(), None);
                    Ok(Some(true))
                }
                _ => Ok(None),
            }
        });
        assert_eq!(rounds, 5);
        cache.end();
        keep_room(&cache, || unreachable!("it has ended"));
    }
}
