//! What of a mount is on this disk, as this process sees it: the agent's table, mapped read-only at the first need. It
//! must not know which call asks, nor how the agent brings anything here.

use core::sync::atomic::{AtomicPtr, Ordering};

use storeshim_protocol::control::FLAG_COMPLETE;
use storeshim_protocol::residency::Residency;
use storeshim_protocol::{MAX_MOUNTS, names};

use crate::control;
use crate::sys::{self, Errno, PathBuf, errno, k};

static TABLES: [AtomicPtr<Residency>; MAX_MOUNTS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_MOUNTS];

/// Whether something of the mount may not be here. `false` is what most processes see, for the price of one load.
#[inline(always)]
pub fn is_partial(index: usize) -> bool {
    control::mount(index).is_some_and(|mount| mount.flags.load(Ordering::Acquire) & FLAG_COMPLETE == 0)
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
