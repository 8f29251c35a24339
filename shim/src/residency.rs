//! What of a mount is on this disk, as this process sees it: the agent's table, mapped read-only at the first need, and the
//! question to the agent for what the table does not show. It must not know which call asks, nor how the agent brings
//! anything here.

use core::ffi::c_int;
use core::sync::atomic::{AtomicPtr, Ordering};

use storeshim_protocol::control::FLAG_COMPLETE;
use storeshim_protocol::request::{Ask, Pin};
use storeshim_protocol::residency::{Residency, Stamp};
use storeshim_protocol::{MAX_MOUNTS, names};

use crate::fds::{self, File};
use crate::place::{self, Place};
use crate::sys::{self, Errno, PathBuf, errno, k};
use crate::{absent, ask, control};

/// The end of any file.
pub const END: u64 = u64::MAX;
/// Longest wait for a file's times to be believed, in nanoseconds: an agent that died may have left it so.
const MOVING_MAX_NS: u64 = 2_000_000_000;

static TABLES: [AtomicPtr<Residency>; MAX_MOUNTS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_MOUNTS];

/// Whether something of the mount may not be here. `false` is what most processes see, for the price of one load.
#[inline(always)]
pub fn is_partial(index: usize) -> bool {
    control::flags(index) & FLAG_COMPLETE == 0
}

/// Whether something of any mount may not be here.
#[inline(never)]
pub fn is_any_partial() -> bool {
    control::control().is_some_and(|control| {
        let mut mounts = control.mounts().iter();
        mounts.any(|mount| mount.flags.load(Ordering::Acquire) & FLAG_COMPLETE == 0)
    })
}

/// Says whether bytes are still here that were when it was given.
#[derive(Clone, Copy)]
pub struct Held {
    index: usize,
    /// `None` where the mount was complete, or there is no table.
    stamp: Option<Stamp>,
    complete: bool,
}

impl Held {
    /// Where the mount is complete: it holds for as long as that is so.
    #[inline(always)]
    pub fn complete(index: usize) -> Self {
        Self { index, stamp: None, complete: true }
    }

    /// Where nothing need stay.
    pub fn always(index: usize) -> Self {
        Self { index, stamp: None, complete: false }
    }

    /// Whether none of the bytes have gone since.
    #[inline(never)]
    #[must_use]
    pub fn still(&self) -> bool {
        match (self.complete, self.stamp) {
            (true, _) => !is_partial(self.index),
            (_, Some(stamp)) => table(self.index).is_some_and(|table| table.still(stamp)),
            // Without a table bytes are asked for to stay.
            _ => true,
        }
    }
}

/// Whether all of a file is here, of a cell where nothing is missing.
#[inline(never)]
pub fn whole(index: usize, ino: u64) -> Option<Held> {
    let stamp = table(index)?.whole(ino)?;
    Some(Held { index, stamp: Some(stamp), complete: false })
}

/// Whether the bytes `start..end` of a file are here, as far as the table shows.
#[inline(never)]
pub fn held(index: usize, ino: u64, start: u64, end: u64) -> Option<Held> {
    let stamp = table(index)?.check(ino, start, end)?;
    Some(Held { index, stamp: Some(stamp), complete: false })
}

/// Says that bytes will be read soon.
#[inline(never)]
pub fn hint(index: usize, ino: u64, start: u64, end: u64) {
    if held(index, ino, start, end).is_none() {
        let _ = ask::request(index, Ask::Hint { ino, start, end });
    }
}

/// Sees to it that the bytes `start..end` of a file of a mount that is partial are here, and stay here as `pin` says. Never to be
/// called inside the gate.
///
/// Errors: those of [`ask::request`].
#[inline(never)]
pub fn bring(index: usize, ino: u64, start: u64, end: u64, pin: Pin) -> Result<Held, Errno> {
    let table = table(index);
    let known = match pin {
        Pin::No => table.and_then(|table| table.check(ino, start, end)),
        Pin::Open | Pin::Soon => None,
    };
    let stamp = match known {
        Some(stamp) => Some(stamp),
        None => {
            // Before the question: what goes after the answer is noticed.
            let stamp = table.map(|table| table.stamp(ino));
            // Nothing tells without a table that they have gone.
            let pin = if pin == Pin::No && stamp.is_none() { Pin::Open } else { pin };
            ask::request(index, Ask::Hydrate { ino, start, end, pin })?;
            stamp
        }
    };
    Ok(Held { index, stamp, complete: false })
}

/// Sees to it that the file behind `fd` is here from `start` to `end` and stays: it is going to be read where no hook
/// sees it. Nothing where it is a file of no mount, or one of a complete mount.
///
/// Errors: as [`bring`].
pub fn pin(fd: c_int, start: u64, end: u64) -> Result<(), Errno> {
    match lacking(fd) {
        Some(file) => bring(file.mount, file.ino, start, end, Pin::Open).map(|_| ()),
        None => Ok(()),
    }
}

/// The same for a stream's file, which was opened with `flags`. What a stream writes to stays without being asked for, but
/// what it touches must be here.
#[inline(never)]
pub fn keep(fd: c_int, flags: u32) -> Result<(), Errno> {
    let Some(file) = lacking(fd) else { return Ok(()) };
    let reads = flags & k::O_ACCMODE != k::O_WRONLY;
    let end_only = !reads && flags & k::O_APPEND != 0;
    let start = if end_only { sys::fstat(fd).map_or(0, |stat| stat.st_size as u64) } else { 0 };
    bring(file.mount, file.ino, start, END, Pin::open_if(reads)).map(|_| ())
}

/// The same for a file that is to be opened by its name, all of it, wherever links lead.
pub fn pin_place(place: Place) -> Result<(), Errno> {
    let Some(table) = control::table().filter(|_| is_any_partial()) else { return Ok(()) };
    absent::present(place)?;
    let Ok(stat) = sys::stat_at(place.dirfd, place.path, k::AT_EMPTY_PATH) else {
        // For the kernel to refuse.
        return Ok(());
    };
    let may_lack =
        |index: usize| table.get(index).is_some_and(|entry| entry.dev == stat.st_dev) && is_partial(index);
    if !sys::is_regular(&stat) || !table.mounts().any(|(index, _)| may_lack(index)) {
        return Ok(());
    }
    // SAFETY: a look at it has succeeded.
    let is_descriptor = unsafe { *place.path } == 0;
    let own = place.mount.filter(|_| is_descriptor || !table.shares_device);
    match own.or_else(|| place::mount_at(place.dirfd, place.path)).filter(|index| may_lack(*index)) {
        Some(index) => bring(index, stat.st_ino, 0, END, Pin::Soon).map(|_| ()),
        None => Ok(()),
    }
}

/// The file behind `fd` where some of it may not be here.
#[inline(never)]
pub fn lacking(fd: c_int) -> Option<File> {
    if !fds::may_lack(fd) {
        return None;
    }
    fds::found(fd).filter(|file| is_partial(file.mount))
}

/// Whether the agent is just writing into an inode: its times are then not its own.
#[inline]
pub fn is_moving(index: usize, ino: u64) -> bool {
    is_partial(index) && table(index).is_some_and(|table| table.is_moving(ino))
}

/// Waits while it does.
#[inline]
pub fn wait_moved(index: usize, ino: u64) {
    if let Some(table) = table(index)
        && table.is_moving(ino)
    {
        wait_while_moving(table, ino);
    }
}

#[cold]
#[inline(never)]
fn wait_while_moving(table: &Residency, ino: u64) {
    let start = sys::now_ns();
    while table.is_moving(ino)
        && control::agent_lives()
        && sys::now_ns().saturating_sub(start) < MOVING_MAX_NS
    {
        sys::sleep_ns(20_000);
    }
}

/// The table of a mount. `None` where it cannot be mapped: everything is to be asked for.
#[inline]
pub fn table(index: usize) -> Option<&'static Residency> {
    let known = TABLES.get(index)?;
    let at = known.load(Ordering::Acquire);
    // SAFETY: once mapped, a table stays mapped.
    if at.is_null() { map(index, known).ok() } else { Some(unsafe { &*at }) }
}

#[cold]
fn map(index: usize, known: &'static AtomicPtr<Residency>) -> Result<&'static Residency, Errno> {
    let digit = [b'0'.wrapping_add(index as u8)];
    let mut path = PathBuf::new();
    control::run_path(&mut path, &[b"/", names::RESIDENCY.as_bytes(), &digit])?;
    let fd = sys::openat(k::AT_FDCWD, path.c_str(), (k::O_RDONLY | k::O_CLOEXEC) as i32, 0)? as i32;
    let size = size_of::<Residency>();
    let long_enough = sys::fstat(fd).is_ok_and(|stat| stat.st_size as usize >= size);
    let mapped = if long_enough { sys::map(fd, size, false) } else { Err(Errno::of(errno::ENOENT)) };
    sys::close(fd);
    let at = mapped?.cast::<Residency>();
    match known.compare_exchange(core::ptr::null_mut(), at, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: a read-only mapping of the table's size, all of whose fields are atomics; it is never unmapped.
        Ok(_) => Ok(unsafe { &*at }),
        Err(first) => {
            // SAFETY: nobody has seen our mapping; the other thread's stays.
            Ok(unsafe {
                sys::unmap(at.cast(), size);
                &*first
            })
        }
    }
}
