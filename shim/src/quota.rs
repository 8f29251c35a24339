//! Growth of a volume that has a quota: the call that exceeds it fails, or does what fits. Far from the quota who adds
//! little asks nobody: what may be added without asking is one word of shared memory. It must not know how anything grows.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU64, Ordering};

use storeshim_protocol::request::Ask;
use storeshim_protocol::{Intent, MAX_MOUNTS};

use crate::fds::File;
use crate::sys::{self, Errno};
use crate::write::{Position, size_of_file};
use crate::{ask, control, fds, tell};

/// A hole of more bytes is asked for wherever there is a quota: of holes nothing is told but by the next cut.
const HOLE: u64 = 1 << 20;

/// What this process does in a mount with a quota.
struct Spending {
    /// Bytes that it has told since the agent was known to have looked; and [`FAR`].
    spent: AtomicU64,
    /// What the agent showed then; 0 where that is not known.
    shown: AtomicU64,
}

/// A descriptor was put so far behind a file's end that a write there adds more than it writes.
const FAR: u64 = 1 << 63;

static SPENDING: [Spending; MAX_MOUNTS] =
    [const { Spending { spent: AtomicU64::new(0), shown: AtomicU64::new(0) } }; MAX_MOUNTS];

/// This process tells that it writes `bytes`: an agent that has no time to look is asked in the end.
#[inline(always)]
pub fn spend(index: usize, bytes: u64) {
    if let Some(spending) = SPENDING.get(index) {
        spending.spent.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Spending {
    /// What was spent since the agent has looked, of which it shows `unasked` now.
    fn since_looked(&self, unasked: u64) -> u64 {
        let before = self.shown.swap(unasked, Ordering::Relaxed);
        if before != unasked && before != 0 {
            self.settle();
        }
        self.spent.load(Ordering::Relaxed)
    }

    /// The agent knows all that was spent.
    fn settle(&self) {
        self.spent.fetch_and(FAR, Ordering::Relaxed);
    }
}

/// How much of a write of `n` bytes at `position`, the first of `total`, may be made: all of it, or what still fits.
///
/// Errors: EDQUOT where nothing does.
#[inline(always)]
pub fn allowed(fd: c_int, file: &File, position: Position, n: usize, total: usize) -> Result<usize, Errno> {
    let most = match position {
        Position::At(offset) => offset.saturating_add(total as u64),
        _ => total as u64,
    };
    let spent = SPENDING.get(file.mount).map_or(0, |spending| spending.spent.load(Ordering::Relaxed));
    if most.saturating_add(spent) <= control::unasked(file.mount) {
        return Ok(n);
    }
    asked(fd, file, position, n, total)
}

#[cold]
#[inline(never)]
fn asked(fd: c_int, file: &File, position: Position, n: usize, total: usize) -> Result<usize, Errno> {
    if !file.known.writable() {
        return Ok(n);
    }
    let index = file.mount;
    let (start, size, unasked) = (position.start(fd), size_of_file(fd), control::unasked(index));
    let growth = |n: usize| start.saturating_add(n as u64).saturating_sub(size);
    let Some(spending) = SPENDING.get(index) else { return Ok(n) };
    let spent = spending.since_looked(unasked) & !FAR;
    if growth(total).saturating_add(spent) <= unasked && start.saturating_sub(size) <= HOLE {
        return Ok(n);
    }
    let bytes = growth(n);
    let asked = if bytes == 0 { Ok(()) } else { ask::grow(index, bytes).inspect(|()| spending.settle()) };
    let Err((errno, left)) = asked else { return Ok(n) };
    // What fits is written, as on a disk that fills up.
    let fits = (n as u64).saturating_sub(bytes.saturating_sub(left)) as usize;
    if left >= bytes || fits == 0 || growth(fits) > 0 && ask::grow(index, growth(fits)).is_err() {
        return Err(errno);
    }
    Ok(fits)
}

/// Before a file is made longer by a hole, or by bytes that no call writes: by `bytes`, which are not counted where there is no
/// quota.
///
/// Errors: EDQUOT where it does not fit.
#[inline]
pub fn grows(index: usize, ino: u64, bytes: impl FnOnce() -> u64) -> Result<(), Errno> {
    if control::unasked(index) == u64::MAX { Ok(()) } else { grows_by(index, ino, bytes()) }
}

#[cold]
#[inline(never)]
fn grows_by(index: usize, ino: u64, bytes: u64) -> Result<(), Errno> {
    if bytes == 0 {
        return Ok(());
    }
    if bytes <= HOLE.min(control::unasked(index)) {
        // Many such calls count as many small writes do.
        tell::note(index, &Intent::Written { ino, offset: u64::MAX, length: bytes });
        return Ok(());
    }
    ask::grow(index, bytes).map_err(|(errno, _)| errno)
}

/// By how much a file grows that will end at `end`.
pub fn beyond(fd: c_int, end: u64) -> u64 {
    end.saturating_sub(size_of_file(fd))
}

/// After `fd` was put to `at`: a write there may add more than it writes.
#[inline(always)]
pub fn sought(fd: c_int, at: i64) {
    if at > HOLE as i64 {
        sought_far(fd, at as u64);
    }
}

#[inline(never)]
fn sought_far(fd: c_int, at: u64) {
    if let Some(file) = fds::found(fd)
        && control::unasked(file.mount) != u64::MAX
        && beyond(fd, at) > HOLE
        && let Some(spending) = SPENDING.get(file.mount)
    {
        spending.spent.fetch_or(FAR, Ordering::Relaxed);
    }
}

/// Before a file that has no name gets one in mount `index`, which is when it begins to count.
///
/// Errors: EDQUOT where it does not fit.
#[cold]
#[inline(never)]
pub fn named(index: usize, stat: &sys::Stat) -> Result<(), Errno> {
    let bytes = if sys::is_regular(stat) { stat.st_size as u64 } else { 0 };
    ask::request(index, Ask::Grow { bytes, inodes: 1 }).map(|_| ())
}

/// Whether what a stream has written past all hooks, and the `pending` bytes of its buffer, fit the quota.
///
/// Errors: EDQUOT where they do not.
pub fn streamed(fd: c_int, pending: usize) -> Result<(), Errno> {
    let Some(file) = fds::found(fd) else { return Ok(()) };
    let unasked = control::unasked(file.mount);
    if unasked == u64::MAX || !file.known.writable() {
        return Ok(());
    }
    let size = size_of_file(fd);
    let pending = Position::of(&file).start(fd).saturating_add(pending as u64).checked_sub(size);
    // One that does not stand at the end, or that nothing was written to, has added nothing.
    let (Some(pending), true) = (pending, size.saturating_add(pending.unwrap_or(0)) > 0) else {
        return Ok(());
    };
    // What has come to more than a call may add unasked is more than the agent may know of.
    if size.saturating_add(pending) <= unasked {
        return Ok(());
    }
    ask::request(file.mount, Ask::Streamed { ino: file.ino, size, pending }).map(|_| ())
}
