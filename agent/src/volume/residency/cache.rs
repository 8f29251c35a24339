//! The bounded cache: how much of this disk the tree may take, how much it takes, and who waits for room. It must not know
//! how anything is evicted.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use storeshim_protocol::residency::PIECE;

use super::Residency;
use super::doubted::Doubted;
use super::file::{Files, RUN};
use super::in_use::InUse;
use super::lru::{Policy, Run};
use super::openers::Openers;
use super::pin::{Early, Unsure};
use crate::volume::index::{Index, Reserve};
use crate::volume::status::Mutex;
use crate::volume::{VolumeError, VolumeOptions, space};

/// Runs that the policy knows: 1 TiB of large files.
const RUNS: usize = 1 << 18;
/// Of what is free when a volume is opened, the tree may take so many percent.
const DEFAULT_PERCENT: u64 = 80;
/// The evictor begins so far below the cache's size, and goes on to [`LOW_PERCENT`] of it.
const HEADROOM: u64 = 64 << 20;
const LOW_PERCENT: u64 = 90;
/// But makes room for so many bytes at least, in a cache that is small.
const LEAST: u64 = 4 << 20;
/// What is kept free of the filesystem, whatever the cache's size is: for the index, and for programs that write.
const RESERVE: u64 = 256 << 20;
/// Of a small filesystem, one in so many bytes.
const RESERVE_PART: u64 = 32;
/// How long a fetch waits for room while nothing can be evicted: then it takes what it needs, for the size is an aim; but not
/// what the index needs.
const PATIENCE: Duration = Duration::from_secs(1);

/// See the module.
pub struct Cache {
    /// The files' clock.
    files: Arc<Files>,
    /// Bytes that the tree may take.
    size: AtomicU64,
    /// They were set, not derived from what is free.
    fixed: bool,
    /// What goes next.
    pub policy: Mutex<Policy>,
    /// Who has what open.
    pub openers: Mutex<Openers>,
    /// Who may read without asking.
    pub unsure: Unsure,
    /// What is to stay although the last cut did not know it.
    pub early: Early,
    /// Inode at which the search for files of which the policy does not know goes on.
    pub hand: AtomicU64,
    /// Something was evicted, or may be from now on.
    pub begun: AtomicBool,
    /// When the volume was opened, in seconds since 1970.
    started: i64,
    /// One eviction at a time.
    pub evicting: Mutex<()>,
    /// Bytes that were fetched and are not in the index's sum yet.
    coming: AtomicU64,
    /// What could not go when it was offered last.
    pub in_use: InUse,
    /// What could not go because nobody knows whether it has changed.
    pub doubted: Doubted,
    waiting: AtomicU64,
    /// Bytes that they wait for.
    wanted: AtomicU64,
    /// Why nothing can be evicted, while that is so.
    trouble: Mutex<Option<String>>,
    rounds: StdMutex<Rounds>,
    /// Wakes the evictor.
    called: Condvar,
    /// Wakes who waits for room. Not by the same: they call the evictor as well, and would wake one another without end.
    changed: Condvar,
}

#[derive(Default)]
struct Rounds {
    /// The evictor is to look now.
    wanted: bool,
    /// Of the last round: it found nothing more to evict.
    stuck: Option<Instant>,
    ended: bool,
}

/// Room for bytes that are about to come; it ends when they are here, or not to come.
pub struct Admitted<'c> {
    cache: &'c Cache,
    bytes: u64,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.cache.coming.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Cache {
    /// The cache of a mount.
    pub fn new(options: &VolumeOptions, files: &Arc<Files>) -> Self {
        let free = || space::of_directory(&options.tree).map_or(u64::MAX / 2, |space| space.free_bytes);
        let size = options.cache_size.unwrap_or_else(|| free() / 100 * DEFAULT_PERCENT);
        Self {
            files: Arc::clone(files),
            size: AtomicU64::new(size),
            fixed: options.cache_size.is_some(),
            policy: Mutex::new(Policy::new(RUNS)),
            openers: Mutex::default(),
            unsure: Unsure::default(),
            early: Early::default(),
            hand: AtomicU64::new(0),
            begun: AtomicBool::new(false),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64),
            evicting: Mutex::default(),
            coming: AtomicU64::new(0),
            in_use: InUse::default(),
            doubted: Doubted::default(),
            waiting: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            trouble: Mutex::default(),
            rounds: StdMutex::default(),
            called: Condvar::new(),
            changed: Condvar::new(),
        }
    }

    /// Bytes that the tree may take.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// What the tree took when the volume was opened is known.
    pub fn counted(&self, taken: u64) {
        if !self.fixed {
            self.size.fetch_add(taken, Ordering::Relaxed);
        }
    }

    /// From where on the evictor works.
    pub fn high(&self) -> u64 {
        self.size() - HEADROOM.min(self.size() / 20)
    }

    /// And how far.
    pub fn low(&self) -> u64 {
        let size = self.size();
        (size / 100 * LOW_PERCENT).min(size.saturating_sub(LEAST.min(size / 2)))
    }

    /// Bytes that the tree takes or is about to.
    pub fn taken(&self, index: &Index) -> u64 {
        index.resident().saturating_add(self.coming.load(Ordering::Relaxed))
    }

    /// Whether somebody waits for room.
    pub fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// The evictor is to look now.
    pub fn wake(&self) {
        self.call(&mut self.rounds());
    }

    fn call(&self, rounds: &mut Rounds) {
        rounds.wanted = true;
        self.called.notify_all();
    }

    /// A round of the evictor has failed, or not: shown by the status, and logged once.
    pub fn tell(&self, failed: Option<&VolumeError>) {
        let mut trouble = self.trouble.lock();
        match (failed, trouble.as_ref()) {
            (Some(error), None) => tracing::error!(%error, "nothing can be evicted for now; trying again"),
            (None, Some(_)) => tracing::info!("what can go is evicted again"),
            _ => {}
        }
        *trouble = failed.map(ToString::to_string);
    }

    /// Why nothing can be evicted, while that is so.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Ends the evictor, and every wait.
    pub fn end(&self) {
        self.rounds().ended = true;
        self.called.notify_all();
        self.changed.notify_all();
    }

    /// The evictor waits for its next round; `false` at the end.
    pub fn next_round(&self, pause: Duration) -> bool {
        let mut rounds = self.rounds();
        if !rounds.wanted && !rounds.ended {
            rounds = self.called.wait_timeout(rounds, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
        rounds.wanted = false;
        !rounds.ended
    }

    /// The evictor does nothing for a while, but not past the end.
    pub fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut rounds = self.rounds();
        while !rounds.ended && Instant::now() < until {
            rounds = self.called.wait_timeout(rounds, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A round is over; `stuck`: there is nothing more that could go now.
    pub fn round_ended(&self, stuck: bool) {
        self.rounds().stuck = stuck.then(Instant::now);
        self.changed.notify_all();
    }

    fn rounds(&self) -> std::sync::MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// Pieces of a file were asked for, or have come.
    pub fn used(&self, inode: u64, start: u64, end: u64) {
        let now = self.files.now();
        let mut policy = self.policy.lock();
        for run in start / RUN..end.div_ceil(RUN) {
            let (first, last) = (start.max(run * RUN), end.min((run + 1) * RUN));
            // Who reads behind the end of a file that was cut asks for less than nothing.
            policy.used(Run { inode, run }, last.saturating_sub(first) * PIECE, now);
        }
    }
}

impl Residency {
    /// Waits until `bytes` of data that was fetched may be written. Where nothing can be evicted, the cache grows beyond its
    /// size, but not to the last of this disk, which is for the index: then `None`. Not to be called with an inode's lock
    /// held.
    pub fn admit(&self, bytes: u64) -> Option<Admitted<'_>> {
        let cache = &self.cache;
        let is_on_disk = |kept: u64| {
            let coming = cache.coming.load(Ordering::Relaxed);
            self.free() >= bytes.saturating_add(coming).saturating_add(kept)
        };
        let kept = self.reserve() / 2;
        let fits = || cache.taken(&self.index).saturating_add(bytes) <= cache.size() && is_on_disk(kept);
        let began = Instant::now();
        let mut rounds = cache.rounds();
        if cache.taken(&self.index).saturating_add(bytes) > cache.high() {
            cache.call(&mut rounds);
        }
        cache.waiting.fetch_add(1, Ordering::Relaxed);
        cache.wanted.fetch_add(bytes, Ordering::Relaxed);
        let mut admitted = true;
        while !fits() && !rounds.ended {
            let stuck = rounds.stuck.is_some_and(|at| at > began || at.elapsed() < PATIENCE);
            if stuck || began.elapsed() > 10 * PATIENCE {
                if is_on_disk(self.index.reserve().map_or(0, Reserve::margin)) {
                    self.shared.count("admitted_beyond_the_cache", 1);
                    break;
                }
                if began.elapsed() > self.options.patience.min(10 * PATIENCE) {
                    admitted = false;
                    break;
                }
            }
            // A round that found nothing is not asked to look again at once.
            if rounds.stuck.is_none_or(|at| at.elapsed() >= PATIENCE / 20) {
                cache.call(&mut rounds);
            }
            rounds =
                cache.changed.wait_timeout(rounds, PATIENCE / 20).unwrap_or_else(PoisonError::into_inner).0;
        }
        cache.waiting.fetch_sub(1, Ordering::Relaxed);
        cache.wanted.fetch_sub(bytes, Ordering::Relaxed);
        admitted.then(|| {
            cache.coming.fetch_add(bytes, Ordering::Relaxed);
            Admitted { cache, bytes }
        })
    }

    /// Bytes that are to be evicted now: what the tree takes beyond its share, or what this disk lacks.
    pub fn excess(&self) -> u64 {
        let cache = &self.cache;
        let taken = cache.taken(&self.index);
        let over = if taken > cache.high() || cache.is_waited_for() && taken >= cache.low() {
            taken.saturating_sub(cache.low())
        } else {
            0
        };
        let waited = cache.is_waited_for().then(|| {
            cache.wanted.load(Ordering::Relaxed).saturating_add(cache.coming.load(Ordering::Relaxed))
        });
        over.max(self.lacking(waited.unwrap_or(0)))
    }

    /// Bytes that programs may still write on this disk; all, where it does not say.
    pub fn free(&self) -> u64 {
        space::of_directory(self.tree.path()).map_or(u64::MAX, |space| space.free_bytes)
    }

    /// Bytes of this disk that are kept free of data.
    fn reserve(&self) -> u64 {
        space::of_directory(self.tree.path()).map_or(0, |space| reserve_of(space.total_bytes))
    }

    /// Bytes that this disk lacks for `bytes`, what is kept free, and what the index has given up of its own.
    pub fn lacking(&self, bytes: u64) -> u64 {
        let Some(space) = space::of_directory(self.tree.path()) else { return 0 };
        let given_up = self.index.reserve().map_or(0, Reserve::missing);
        let reserve = reserve_of(space.total_bytes).saturating_add(given_up);
        // Only begun where half of it is gone, so that it is not done for every page.
        if bytes == 0 && space.free_bytes >= reserve / 2 {
            return 0;
        }
        bytes.saturating_add(reserve).saturating_sub(space.free_bytes)
    }

    /// Tells the policy of files that it does not know, the next ones in the order of their numbers. `false` once all have
    /// been told since `from`.
    pub fn find_more(&self, from: &mut Option<u64>) -> Result<bool, VolumeError> {
        const FILES: usize = 1024;
        let hand = self.cache.hand.load(Ordering::Relaxed);
        let found = self.index.resident_from(hand, FILES)?;
        let wrapped = found.len() < FILES;
        let next = found.last().map_or(0, |(inode, _)| inode + 1);
        self.cache.hand.store(if wrapped { 0 } else { next }, Ordering::Relaxed);
        let mut policy = self.cache.policy.lock();
        let now = self.files.now();
        for (inode, bytes) in found {
            let Some(seen) = self.index.seen(inode)? else { continue };
            let runs = seen.size.div_ceil(RUN * PIECE).max(1);
            for run in (0..runs.min(RUNS as u64 / 4)).map(|run| Run { inode, run }) {
                let bytes = (bytes / runs).max(1);
                // Written since we are here: that is a use.
                if seen.ctime.secs >= self.cache.started {
                    policy.used(run, bytes, now)
                } else {
                    policy.found(run, bytes)
                }
            }
        }
        let passed = |start: u64| if wrapped { start >= hand } else { (hand..next).contains(&start) };
        match *from {
            // The first step is where the circle begins.
            None => *from = Some(hand),
            Some(start) if passed(start) => return Ok(false),
            Some(_) => {}
        }
        Ok(true)
    }
}

/// What is kept free of data on a disk of so many bytes.
fn reserve_of(total: u64) -> u64 {
    RESERVE.min(total / RESERVE_PART)
}

/// Whether much of a part of a file is in the page cache, and clean: it was read, or has just been written by us. `false`
/// where the kernel does not tell (cachestat(2), since 6.5), and on tmpfs, where the page cache is all that there is of a file.
pub fn is_cached(file: &File, start: u64, len: u64) -> bool {
    const CACHESTAT: libc::c_long = 451;
    const PAGE: u64 = 4096;
    /// `struct cachestat_range`.
    #[repr(C)]
    struct Range {
        off: u64,
        len: u64,
    }
    /// `struct cachestat`.
    #[repr(C)]
    #[derive(Default)]
    struct Stat {
        cache: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = Range { off: start, len };
    let mut stat = Stat::default();
    // SAFETY: both structs are as the kernel has them, and live across the call.
    let done = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, 0) };
    let is_memory = || {
        nix::sys::statfs::fstatfs(file).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
    };
    let clean = stat.cache.saturating_sub(stat.dirty.saturating_add(stat.writeback));
    done == 0 && clean >= (len / PAGE / 8).max(1) && !is_memory()
}

/// Lets the kernel forget what it has cached of a part of a file: whether it is cached later says whether it was read since.
pub fn forget_cached(file: BorrowedFd<'_>, start: u64, len: u64) {
    // SAFETY: no memory is passed. It is a hint.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), start as i64, len as i64, libc::POSIX_FADV_DONTNEED) };
}
