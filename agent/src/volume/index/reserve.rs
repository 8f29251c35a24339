//! Room for the index on a disk that fills up. The index must be able to note what goes before anything can go, and what was
//! committed before it may go; and its database, once it has met a full disk, takes nothing any more. So it is asked
//! before each change whether there is room, and a file beside it holds some back that nobody else can take: it is made
//! shorter when there is too little, and longer when there is enough again. It must not know what is written, nor how room
//! is made.
//!
//! It goes in small parts: who fills the disk takes at once what it gives up.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::Result;
use crate::volume::VolumeError;
use crate::volume::tree::check;

/// What the file holds, in bytes: twice a table that is written from memory, its merge with others of its level, and the
/// changes until room was made.
const SIZE: u64 = 32 << 20;
/// Of a small disk it takes one in so many bytes.
const PART: u64 = 32;
/// By so many bytes at least it is made shorter or longer.
const STEP: u64 = 128 << 10;
/// Beyond what is written there are to be so many bytes for the last changes: a block and its like, in several files.
const LAST: u64 = 64 << 10;

/// What a change is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// What makes room, or lets it be made: evictions and cuts. It may take all that is held back.
    Room,
    /// All else: it leaves half.
    More,
}

/// See the module.
pub struct Reserve {
    path: PathBuf,
    file: File,
    /// Bytes that it is to hold.
    size: u64,
    /// Bytes that it holds.
    held: Mutex<u64>,
    /// This filesystem cannot set blocks aside: there is nothing to wait for.
    impossible: AtomicBool,
    /// Wakes who makes room.
    short: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Reserve {
    /// The reserve in the state directory `state`. Where its disk is full already, it is given up: an index that is opened
    /// writes.
    ///
    /// # Errors
    /// Where its file cannot be made.
    pub fn open(state: &Path) -> Result<Self> {
        let path = state.join("reserve");
        let failed = |e: io::Error| {
            VolumeError::Failed(format!("the file {} cannot be opened: {e}; mend the disk", path.display()))
        };
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let held = file.metadata().map_err(failed)?.len();
        let size = size_on(state);
        let reserve = Self {
            path,
            file,
            size,
            held: Mutex::new(held),
            impossible: AtomicBool::new(false),
            short: OnceLock::new(),
        };
        {
            let mut held = reserve.held();
            let target = if reserve.free() < size / 2 { 0 } else { size };
            if *held > target {
                reserve.resize(&mut held, target);
            }
        }
        reserve.restore();
        Ok(reserve)
    }

    /// Bytes that are to be free before anything but [`For::Room`] is written: room for what the index keeps in memory.
    pub fn margin(&self) -> u64 {
        self.size / 2
    }

    /// Bytes that it lacks and may have again.
    pub fn missing(&self) -> u64 {
        if self.impossible.load(Ordering::Relaxed) {
            return 0;
        }
        self.size.saturating_sub(*self.held())
    }

    /// Has `wake` called whenever there is too little room. It must not wait. To be called once.
    pub fn on_short(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = self.short.set(wake);
    }

    /// Whether `bytes` may be written; gives up what that takes.
    ///
    /// # Errors
    /// [`VolumeError::NoRoom`] where there is too little even so.
    pub fn provide(&self, bytes: u64, what: For) -> Result<()> {
        // A table and the journal get it both.
        let bytes = bytes.saturating_mul(2);
        let (wanted, least, kept) = match what {
            For::Room => (bytes + LAST, bytes + LAST, 0),
            For::More => (bytes + self.margin(), bytes + self.margin() / 2, self.size / 2),
        };
        if self.free() >= wanted.max(self.margin()) {
            return Ok(());
        }
        if let Some(wake) = self.short.get() {
            wake();
        }
        let mut held = self.held();
        let lacking = wanted.saturating_sub(self.free());
        if lacking > 0 {
            let rest = held.saturating_sub(lacking.next_multiple_of(STEP)).max(kept.min(*held));
            self.resize(&mut held, rest);
        }
        if self.free() >= least {
            return Ok(());
        }
        Err(VolumeError::NoRoom(format!(
            "there is no room left for the local index on the disk of {}: make room there; nothing is lost",
            self.path.parent().unwrap_or(&self.path).display()
        )))
    }

    /// Takes back what was given up, as far as there is room.
    pub fn restore(&self) {
        let missing = self.missing();
        let mut held = self.held();
        let spare = self.free().saturating_sub(self.margin()).min(missing);
        if missing > 0 && spare >= STEP.min(missing) {
            let longer = *held + spare;
            self.resize(&mut held, longer);
        }
    }

    fn resize(&self, held: &mut u64, to: u64) {
        let done = if to <= *held {
            self.file.set_len(to)
        } else {
            // SAFETY: no memory is passed.
            check(unsafe { libc::fallocate(self.file.as_raw_fd(), 0, 0, to as i64) }).map(drop)
        };
        match done {
            Ok(()) => *held = to,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                // The index has what is free.
                self.impossible.store(true, Ordering::Relaxed);
            }
            Err(error) => tracing::debug!(%error, path = %self.path.display(), "the reserve stays as it is"),
        }
    }

    /// Bytes that may be written on its disk; all, where that does not say.
    fn free(&self) -> u64 {
        nix::sys::statvfs::fstatvfs(self.file.as_fd())
            .map_or(u64::MAX, |stat| stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    fn held(&self) -> MutexGuard<'_, u64> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reserve on the disk of `path` is to hold, in bytes.
pub fn size_on(path: &Path) -> u64 {
    crate::volume::space::of_directory(path).map_or(SIZE, |space| SIZE.min(space.total_bytes / PART))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_up_what_is_needed_and_takes_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(dir.path()).unwrap();
        let len = || dir.path().join("reserve").metadata().unwrap().len();
        if reserve.missing() > 0 || len() == 0 {
            eprintln!("skipped: this filesystem cannot set blocks aside");
            return;
        }
        assert_eq!((len(), reserve.margin()), (reserve.size, reserve.size / 2));
        // More than there is.
        let woken = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let wake = std::sync::Arc::clone(&woken);
        reserve.on_short(Box::new(move || _ = wake.fetch_add(1, Ordering::Relaxed)));
        let much = reserve.free() + (1 << 40);
        assert!(matches!(reserve.provide(much, For::More), Err(VolumeError::NoRoom(_))));
        assert_eq!((len(), reserve.missing()), (reserve.size / 2, reserve.size.div_ceil(2)), "half is kept");
        assert!(matches!(reserve.provide(much, For::Room), Err(VolumeError::NoRoom(_))));
        assert_eq!((len(), woken.load(Ordering::Relaxed)), (0, 2));
        assert!(reserve.provide(1, For::More).is_ok());
        reserve.restore();
        assert_eq!((len(), reserve.missing()), (reserve.size, 0));
        drop(reserve);
        assert_eq!(Reserve::open(dir.path()).unwrap().missing(), 0);
    }
}
