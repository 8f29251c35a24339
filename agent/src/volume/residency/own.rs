//! What the agent itself does to an inode of the tree: nobody is to notice it by its times, and no look is to take it for a
//! change, nor to miss what somebody else did meanwhile. It must not know what is done.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use super::Residency;
use super::file::Locked;
use super::table::Moving;
use crate::volume::VolumeError;
use crate::volume::index::{self, Changes, Seen};
use crate::volume::look::same;
use crate::volume::tree::{Stat, check, cstring};

/// An inode that the agent is just changing: its lock is held, and clients know that its times are not its own.
pub struct Own<'r, 'f> {
    residency: &'r Residency,
    // Ends before the lock does.
    moving: Moving<'r>,
    /// The inode's lock.
    pub locked: Locked<'r>,
    file: BorrowedFd<'f>,
    /// As it stood before.
    pub before: Stat,
}

impl<'r, 'f> Own<'r, 'f> {
    /// Takes the lock of an inode that is open as `file`, and shows that it moves.
    ///
    /// # Errors
    /// Where it cannot be looked at.
    pub fn begin(residency: &'r Residency, inode: u64, ino: u64, file: BorrowedFd<'f>) -> io::Result<Self> {
        Self::with(residency, residency.files.lock(inode), ino, file).map_err(|(error, _)| error)
    }

    /// As [`Own::begin`], with the lock taken already.
    ///
    /// # Errors
    /// As there; the lock comes back.
    pub fn with(
        residency: &'r Residency,
        locked: Locked<'r>,
        ino: u64,
        file: BorrowedFd<'f>,
    ) -> Result<Self, (io::Error, Locked<'r>)> {
        let moving = residency.table.moving(ino);
        match residency.tree.stat(file) {
            Ok(before) => Ok(Self { residency, moving, locked, file, before }),
            Err(error) => Err((error, locked)),
        }
    }

    /// Puts the time of modification back, and notes what stat(2) says now. Where somebody else had changed the inode before,
    /// that stays to be found.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn end(self, changes: &mut Changes) -> Result<Locked<'r>, VolumeError> {
        let Self { residency, moving, locked, file, before } = self;
        let noted = note(residency, locked.inode(), file, before, changes);
        drop(moving);
        noted.map(|()| locked)
    }

    /// The lock, where nothing was done.
    pub fn leave(self) -> Locked<'r> {
        self.locked
    }
}

fn note(
    residency: &Residency,
    inode: u64,
    file: BorrowedFd<'_>,
    before: Stat,
    changes: &mut Changes,
) -> Result<(), VolumeError> {
    // What cannot be done leaves a difference that the next audit finds.
    if set_mtime(file, before).is_err() {
        return Ok(());
    }
    let Ok(mut after) = residency.tree.stat(file) else { return Ok(()) };
    // Who writes to a file without the privilege takes these bits from it (write(2)).
    if after.mode != before.mode && after.mode | SET_IDS == before.mode | SET_IDS {
        if set_mode(file, before.mode).is_err() {
            return Ok(());
        }
        let Ok(again) = residency.tree.stat(file) else { return Ok(()) };
        after = again;
    }
    if let Some(seen) = residency.index.seen(inode)?
        && same(&seen, &before)
        && (after.size, after.mtime) == (before.size, before.mtime)
    {
        let seen = Seen::of(&after, seen.doubt.moved());
        changes.insert(index::seen_key(inode), Some(index::encode(&seen)?));
    }
    Ok(())
}

const SET_IDS: u32 = libc::S_ISUID | libc::S_ISGID;

fn set_mode(file: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    let link = cstring(format!("/proc/self/fd/{}", file.as_raw_fd()).as_bytes())?;
    // SAFETY: a C string.
    check(unsafe { libc::chmod(link.as_ptr(), mode & 0o7777) }).map(drop)
}

fn set_mtime(file: BorrowedFd<'_>, before: Stat) -> io::Result<()> {
    let mtime = TimeSpec::new(before.mtime.secs, i64::from(before.mtime.nanos));
    match futimens(file, &TimeSpec::UTIME_OMIT, &mtime) {
        // A descriptor that only names.
        Err(nix::errno::Errno::EBADF) => {
            let link = cstring(format!("/proc/self/fd/{}", file.as_raw_fd()).as_bytes())?;
            let times = [*TimeSpec::UTIME_OMIT.as_ref(), *mtime.as_ref()];
            // SAFETY: a C string, and two times.
            check(unsafe { libc::utimensat(libc::AT_FDCWD, link.as_ptr(), times.as_ptr(), 0) }).map(drop)
        }
        other => Ok(other?),
    }
}
