//! Keeps room: the evictor's thread, the answers to who has none, and what of all that is shown. It must not know how
//! anything is evicted.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use storeshim_protocol::request::Ask;

use super::quota::{Keeper, Told, Usage};
use super::{Residency, Status, Uses, lease};
use crate::session::Reply;
use crate::volume::{Guarding, VolumeError};

/// Between two looks at how full the cache is, if nobody calls.
const PAUSE: Duration = Duration::from_millis(200);
/// For how long calls that do not leave the gate may keep data waiting for room.
const LATE: Duration = Duration::from_millis(100);
/// Between two looks at how near the quota is.
const QUOTA_PAUSE: Duration = Duration::from_millis(25);

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

    fn leased(&self, ino: u64) -> Option<Arc<File>> {
        self.0.upgrade().and_then(|residency| residency.lend_guard(ino))
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
        let weak = Arc::downgrade(self);
        self.tree.set_unguard(Box::new(move |ino| weak.upgrade().is_some_and(|own| own.unguard(ino))));
        // It is set once.
        let _ = self.uses.set(Arc::new(Below(Arc::downgrade(self))));
        self.spawn("evict", |own| {
            if let Err(error) = own.keep_room() {
                tracing::error!(%error, "nothing is evicted any more");
                own.cache.end();
            }
        })?;
        self.spawn("guard", |own| {
            if own.options.guard == Guarding::Off {
                return;
            }
            if let Err(error) = own.mark_known().and_then(|()| own.guard_known()) {
                tracing::warn!(%error, "what was absent at the start is not guarded");
            }
            own.keep_guards(&|| own.is_closed());
        })?;
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
                    if let Some(quota) = own.quota.get() {
                        quota.tick(own.usage(), own.told());
                    }
                    std::thread::sleep(QUOTA_PAUSE);
                }
            })?;
        }
        Ok(())
    }

    fn keep_room(&self) -> Result<(), VolumeError> {
        while !self.index.count_resident()? {
            if self.is_closed() {
                return Ok(());
            }
        }
        self.cache.counted(self.index.resident());
        // Since when calls inside the gate have been in the way of everything.
        let mut late: Option<Instant> = None;
        while self.cache.next_round(PAUSE) && self.shared.failure().is_none() {
            let excess = self.excess();
            if excess > 0 {
                // Who waits for room has no time for what may have been read lately.
                let gone = self.evict(excess, true)?;
                late = (gone.bytes == 0 && gone.late).then(|| late.unwrap_or_else(Instant::now));
                // One of them may itself wait for data that waits for room: a truncate(2) of a marked file, say.
                let blocked = late.is_some_and(|since| since.elapsed() > LATE);
                self.cache.round_ended(gone.bytes == 0 && (blocked || !gone.late));
            } else {
                late = None;
                self.look_who_is_in_use();
                self.cache.round_ended(false);
            }
        }
        Ok(())
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

    /// Answers [`Ask::Room`] and [`Ask::Grow`]; the former may take its time.
    pub(super) fn ask_for_room(&self, ask: Ask, reply: Box<dyn Reply>) {
        match ask {
            Ask::Room { bytes } => {
                self.shared.count("disk_full", 1);
                reply.reply(if self.has_room(bytes) { 0 } else { libc::ENOSPC });
            }
            Ask::Grow { bytes, inodes } => match self.quota.get() {
                Some(quota) => quota.grow(Usage { bytes, inodes }, self.usage(), self.told(), reply),
                None => reply.reply(0),
            },
            _ => reply.reply(libc::EINVAL),
        }
    }

    /// What the last cut saw.
    fn usage(&self) -> Usage {
        let bytes = self.shared.bytes.load(Ordering::Relaxed).max(0) as u64;
        Usage { bytes, inodes: self.shared.inodes.load(Ordering::Relaxed) }
    }

    fn told(&self) -> Told {
        let sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let cutting = self.shared.cutting_bytes.load(Ordering::Relaxed);
        Told { bytes: sink.bytes.saturating_add(cutting), entries: sink.entries() }
    }

    /// Adds what is known here to a status.
    pub(super) fn bounds(&self, status: Status) -> Status {
        let absent = self.meter.absent_files.load(Ordering::Relaxed).max(0) as u64;
        Status {
            resident_bytes: self.index.resident(),
            cache_size: self.cache.size(),
            pinned_bytes: self.bytes_in_use(),
            unguarded_files: absent.saturating_sub(self.guards.held() + self.marks.held()),
            guard: self.marks.guarded(),
            ..status
        }
    }
}
