//! What is known of each descriptor: a flat table that is only ever a memory of what the kernel says. An entry that
//! is not known is looked up at its first use, so a descriptor may come from anywhere.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use storeshim_protocol::{Intent, OpenFlags};

use crate::control::{self, Table};
use crate::place::Class;
use crate::sys::{self, Bytes, Errno, Stat, k};
use crate::{names, residency, tell};

/// Descriptors that are remembered; higher ones are looked up each time.
const REMEMBERED: usize = 65_536;

static TABLE: [AtomicU64; REMEMBERED] = [const { AtomicU64::new(0) }; REMEMBERED];
/// One more than the highest descriptor that was ever remembered.
static HIGH: AtomicU32 = AtomicU32::new(0);
/// vfork children on their way to exec: they share our memory but not our descriptors, so nothing is remembered.
pub static BORROWED: AtomicU32 = AtomicU32::new(0);

/// Whether what is learned now holds for this process.
#[inline(always)]
pub fn may_remember() -> bool {
    BORROWED.load(Ordering::Relaxed) == 0
}

/// An entry: class in the low byte, flags above it, the inode number in the upper 48 bits (0: not known).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known(u64);

const OUTSIDE: u64 = 1;
const ABOVE: u64 = 2;
const FIRST_MOUNT: u64 = 3;
const WRITABLE: u64 = 1 << 8;
const APPENDS: u64 = 1 << 9;
const SYNC: u64 = 1 << 10;
/// There was another descriptor of the same open file in this process.
const TWIN: u64 = 1 << 11;
const INO_SHIFT: u32 = 16;

impl Known {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self(0);

    /// A descriptor of a file in mount `index` opened with `flags`, whose inode is not known yet.
    pub fn opened(index: usize, flags: c_int) -> Self {
        let flags = flags as u32;
        let mut word = FIRST_MOUNT + index as u64;
        if flags & k::O_ACCMODE != k::O_RDONLY && flags & k::O_PATH == 0 {
            word |= WRITABLE;
        }
        if flags & k::O_APPEND != 0 {
            word |= APPENDS;
        }
        // O_SYNC contains the bit of O_DSYNC.
        if flags & k::O_DSYNC != 0 {
            word |= SYNC;
        }
        Self(word)
    }

    /// The same with its inode.
    #[must_use]
    pub fn with_ino(self, ino: u64) -> Self {
        let shifted = ino << INO_SHIFT;
        // An inode number of more than 48 bits is asked for again each time.
        if shifted >> INO_SHIFT == ino { Self(self.0 & ((1 << INO_SHIFT) - 1) | shifted) } else { self }
    }

    /// The mount.
    #[inline(always)]
    pub fn mount(self) -> Option<usize> {
        (self.0 & 0xff).checked_sub(FIRST_MOUNT).map(|index| index as usize)
    }

    /// The inode number, where it is known.
    #[inline(always)]
    pub fn ino(self) -> Option<u64> {
        match self.0 >> INO_SHIFT {
            0 => None,
            ino => Some(ino),
        }
    }

    /// Opened for writing.
    #[inline(always)]
    pub fn writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    /// Every write goes to the end.
    #[inline(always)]
    pub fn appends(self) -> bool {
        self.0 & APPENDS != 0
    }

    /// Every write is a barrier.
    #[inline(always)]
    pub fn syncs(self) -> bool {
        self.0 & SYNC != 0
    }
}

#[inline(always)]
fn entry(fd: c_int) -> Option<&'static AtomicU64> {
    TABLE.get(fd as usize)
}

/// Remembers that `fd` is of no mount.
#[inline(always)]
pub fn remember_outside(fd: c_int) {
    // Without an agent nothing is remembered: one may come.
    if control::known_control().is_some() {
        remember(fd, Known(OUTSIDE));
    } else {
        forget(fd);
    }
}

/// Remembers `known` of `fd`.
#[inline(always)]
pub fn remember(fd: c_int, known: Known) {
    if may_remember()
        && let Some(entry) = entry(fd)
    {
        entry.store(known.0, Ordering::Relaxed);
        if fd as u32 >= HIGH.load(Ordering::Relaxed) {
            HIGH.fetch_max(fd as u32 + 1, Ordering::Relaxed);
        }
    }
}

/// Remembers what was found out of `fd`, of which `word` was known when the kernel was asked; not where that has changed
/// meanwhile: the number may stand for another file.
fn learn(fd: c_int, word: u64, known: Known) {
    if may_remember()
        && let Some(entry) = entry(fd)
        && entry.compare_exchange(word, known.0, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    {
        HIGH.fetch_max(fd as u32 + 1, Ordering::Relaxed);
    }
}

/// Whether `fd` is known to be of no mount.
#[inline(always)]
pub fn is_outside(fd: c_int) -> bool {
    entry(fd).is_some_and(|entry| entry.load(Ordering::Relaxed) == OUTSIDE)
}

/// Whether `fd` may be a file of a mount of which something is not here.
pub fn may_lack(fd: c_int) -> bool {
    match entry(fd).map_or(0, |entry| entry.load(Ordering::Relaxed)) {
        0 => residency::is_any_partial(),
        word => Known(word).mount().is_some_and(residency::is_partial),
    }
}

/// Whether `fd` still is `file`, which was found behind it: another thread may have closed the number, and opened another
/// file by it.
#[inline]
pub fn is_still(fd: c_int, file: &File) -> bool {
    // What was read is ordered before the look.
    fence(Ordering::Acquire);
    entry(fd).is_some_and(|entry| entry.load(Ordering::Relaxed) == file.known.0) || is_now(fd, file)
}

#[cold]
fn is_now(fd: c_int, file: &File) -> bool {
    sys::fstat(fd).is_ok_and(|stat| stat.st_ino == file.ino && control::is_on(file.mount, &stat))
}

/// Forgets `fd`, whose number stands or will stand for something else; what was known of it.
#[inline(always)]
pub fn forget(fd: c_int) -> Known {
    match entry(fd) {
        // A plain load first: most entries are unknown, and their cache line need not be dirtied.
        Some(entry) if entry.load(Ordering::Relaxed) != 0 => Known(entry.swap(0, Ordering::SeqCst)),
        _ => Known::UNKNOWN,
    }
}

/// Forgets `first..=last`, handing each entry that was known to `f`.
pub fn forget_range(first: u32, last: u32, mut f: impl FnMut(Known)) {
    let end = HIGH.load(Ordering::Relaxed).min(last.saturating_add(1));
    for fd in first..end {
        let known = forget(fd as c_int);
        if known != Known::UNKNOWN {
            f(known);
        }
    }
}

/// From now on, for good, nothing is remembered, because threads of this process have descriptors of their own.
pub fn remember_nothing() {
    BORROWED.fetch_add(1, Ordering::SeqCst);
    forget_range(0, u32::MAX, |_| ());
}

/// Descriptors that are searched for a twin.
const SEARCHED: usize = 256;

/// Whether another descriptor of this process, which is still open, writes to the file of `gone`, which was forgotten
/// just now: its end will be the end. Two threads that close two twins cannot both be told so.
#[inline(always)]
pub fn lives_on(gone: Known) -> bool {
    gone.0 & TWIN != 0 && has_twin(gone)
}

#[inline(never)]
fn has_twin(gone: Known) -> bool {
    const SAME: u64 = !((1 << INO_SHIFT) - 1) | WRITABLE | 0xff;
    let high = HIGH.load(Ordering::Relaxed) as usize;
    // Our own entry was emptied before; whoever empties the twin's sees that, or we see theirs empty.
    fence(Ordering::SeqCst);
    high <= SEARCHED
        && gone.ino().is_some()
        && TABLE.iter().take(high).any(|entry| (entry.load(Ordering::Relaxed) ^ gone.0) & SAME == 0)
}

/// `new` is a duplicate of `old`: what is known of one holds for the other.
pub fn duplicate(old: c_int, new: c_int) {
    if may_remember() {
        let word = entry(old).map_or(0, |entry| entry.load(Ordering::Relaxed));
        let twins = if Known(word).writable() { word | TWIN } else { word };
        if word != twins
            && let Some(entry) = entry(old)
        {
            // Only where it is still the same: another thread may have closed it.
            let _ = entry.compare_exchange(word, twins, Ordering::Relaxed, Ordering::Relaxed);
        }
        remember(new, Known(twins));
    } else {
        forget(new);
    }
}

/// Tells that writes to `fd`, where it is a file of a mount, will come which pass no hook.
pub fn tell_unseen(fd: c_int) {
    let Some(file) = found(fd).filter(|file| file.known.writable()) else { return };
    let flags =
        if file.known.appends() { OpenFlags::UNSEEN.with(OpenFlags::APPEND) } else { OpenFlags::UNSEEN };
    tell::note(file.mount, &Intent::Opened { ino: file.ino, flags });
}

/// As [`tell_unseen`]; what is read or written so is brought before, and stays.
///
/// Errors: those of [`residency::keep`].
#[inline(never)]
pub fn leave(fd: c_int) -> Result<(), Errno> {
    // Looks the descriptor up, which tells it where it lies in a mount.
    let _ = known(fd);
    // Not what is remembered: that knows no difference between one that only writes and one that reads as well.
    if let Ok(flags) = sys::status_flags(fd) {
        residency::keep(fd, flags as u32)?;
    }
    tell_unseen(fd);
    Ok(())
}

/// Puts a descriptor that can neither read nor write where `fd` was, whose file cannot be brought: a stream that goes on
/// with the number hears of it, and takes no zeros for the file.
#[cold]
pub fn withhold(fd: c_int) {
    forget(fd);
    let nothing = sys::openat(k::AT_FDCWD, c"/".as_ptr(), (k::O_PATH | k::O_CLOEXEC) as c_int, 0);
    let replaced = nothing.and_then(|nothing| {
        let replaced = sys::replace(fd, nothing as c_int);
        sys::close(nothing as c_int);
        replaced
    });
    if replaced.is_err() {
        // No descriptor is left: better none than that one.
        sys::close(fd);
    }
}

/// Notes that O_APPEND was set or cleared on `fd`. Its duplicates, in other processes too, share the flag and do not
/// learn of it: where they say that they write is no longer true, so the file counts as written unseen from now on.
pub fn set_appends(fd: c_int, appends: bool) {
    let Some(entry) = entry(fd) else { return };
    let word = entry.load(Ordering::Relaxed);
    if Known(word).mount().is_some() && Known(word).appends() != appends {
        tell_unseen(fd);
        entry.store(if appends { word | APPENDS } else { word & !APPENDS }, Ordering::Relaxed);
        tell_unseen(fd);
    }
}

/// What is known of `fd`, looked up where nothing is.
#[inline(always)]
pub fn known(fd: c_int) -> Known {
    let word = entry(fd).map_or(0, |entry| entry.load(Ordering::Relaxed));
    if word != 0 { Known(word) } else { look_up(fd) }
}

#[cold]
fn look_up(fd: c_int) -> Known {
    let outside = Known(OUTSIDE);
    if fd < 0 {
        return outside;
    }
    // The cheap question first: most unknown descriptors are pipes, sockets and terminals, for which no agent
    // need be looked for.
    let Ok(stat) = sys::fstat(fd) else { return outside };
    let directory = sys::is_directory(&stat);
    if !directory && !sys::is_regular(&stat) {
        learn(fd, 0, outside);
        return outside;
    }
    // Without an agent nothing is remembered: one may come.
    let Some(table) = control::table() else { return outside };
    let class = class_of_file(table, fd, &stat);
    let known = match class {
        Class::In(index) => {
            let flags = sys::status_flags(fd).unwrap_or(0) as c_int;
            Known::opened(index, flags).with_ino(stat.st_ino)
        }
        Class::Above => Known(ABOVE),
        Class::Outside => outside,
    };
    learn(fd, 0, known);
    if known.writable()
        && let Some(index) = known.mount()
    {
        // It was opened where we did not see it: by another program, or through a name outside the mount.
        let flags =
            if known.appends() { OpenFlags::UNSEEN.with(OpenFlags::APPEND) } else { OpenFlags::UNSEEN };
        tell::note(index, &Intent::Opened { ino: stat.st_ino, flags });
        names::tell_by_path(index, fd);
    }
    known
}

/// The class of the file behind `fd`.
fn class_of_file(table: &Table, fd: c_int, stat: &Stat) -> Class {
    let same_dev = table.mounts().find(|(_, entry)| entry.dev == stat.st_dev);
    if same_dev.is_none() && !sys::is_directory(stat) {
        return Class::Outside;
    }
    let mut room = Bytes::new();
    match (sys::fd_path(fd, &mut room), same_dev) {
        (Ok(path), Some(_)) => Class::of(table, path),
        (Ok(path), None) => match Class::of(table, path) {
            Class::In(_) => Class::Outside,
            class => class,
        },
        // No /proc to ask (a chroot, a process that has changed its user): too much told is better than too little.
        (Err(_), Some((index, _))) => Class::In(index),
        (Err(_), None) => Class::Outside,
    }
}

/// The class of a directory descriptor.
pub fn class(table: &Table, fd: c_int) -> Class {
    let known = known(fd);
    match (known.mount(), known.0 & 0xff) {
        (Some(index), _) if table.get(index).is_some() => Class::In(index),
        (_, ABOVE) => Class::Above,
        _ => Class::Outside,
    }
}

/// A file or directory of a mount behind a descriptor.
#[derive(Clone, Copy)]
pub struct File {
    /// The mount's index.
    pub mount: usize,
    /// The inode.
    pub ino: u64,
    /// What else is known.
    pub known: Known,
}

/// The file behind `fd` where it lies in a mount; finds its inode at the first time.
#[inline(always)]
pub fn file(fd: c_int) -> Option<File> {
    let known = known(fd);
    let mount = known.mount()?;
    match known.ino() {
        Some(ino) => Some(File { mount, ino, known }),
        None => find_ino(fd, mount, known),
    }
}

/// What is known of the file behind `fd`, without a look.
#[inline(always)]
pub fn remembered(fd: c_int) -> Option<File> {
    let known = Known(entry(fd)?.load(Ordering::Relaxed));
    Some(File { mount: known.mount()?, ino: known.ino()?, known })
}

/// As [`file`], for calls that take their time.
#[inline(never)]
pub fn found(fd: c_int) -> Option<File> {
    file(fd)
}

/// As [`file`], also for a FIFO or a device, which is not remembered: its attributes are all that an agent wants to know.
pub fn file_of_any_kind(fd: c_int) -> Option<File> {
    found(fd).or_else(|| special(fd))
}

#[cold]
#[inline(never)]
fn special(fd: c_int) -> Option<File> {
    let stat = sys::fstat(fd).ok().filter(|stat| !sys::is_regular(stat) && !sys::is_directory(stat))?;
    let table = control::table()?;
    match class_of_file(table, fd, &stat) {
        Class::In(mount) => {
            let known = Known::opened(mount, 0).with_ino(stat.st_ino);
            Some(File { mount, ino: stat.st_ino, known })
        }
        _ => None,
    }
}

/// The first use of a descriptor that was opened by a name in a mount: the name may have led elsewhere.
#[cold]
fn find_ino(fd: c_int, mount: usize, known: Known) -> Option<File> {
    let stat = sys::fstat(fd).ok()?;
    let dev = control::table()?.get(mount)?.dev;
    if stat.st_dev != dev || !(sys::is_regular(&stat) || sys::is_directory(&stat)) {
        learn(fd, known.0, Known(OUTSIDE));
        return None;
    }
    let word = known.0;
    let known = known.with_ino(stat.st_ino);
    learn(fd, word, known);
    Some(File { mount, ino: stat.st_ino, known })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_keeps_what_it_was_given() {
        for index in 0..storeshim_protocol::MAX_MOUNTS {
            for flags in
                [k::O_RDONLY, k::O_WRONLY, k::O_RDWR | k::O_APPEND, k::O_WRONLY | k::O_SYNC, k::O_PATH]
            {
                let known = Known::opened(index, flags as c_int).with_ino(0x1234_5678_9abc);
                assert_eq!(known.mount(), Some(index));
                assert_eq!(known.ino(), Some(0x1234_5678_9abc));
                assert_eq!(known.writable(), flags & k::O_ACCMODE != 0);
                assert_eq!(known.appends(), flags & k::O_APPEND != 0);
                assert_eq!(known.syncs(), flags & k::O_DSYNC != 0);
            }
        }
    }

    #[test]
    fn an_inode_that_does_not_fit_is_not_known() {
        let known = Known::opened(0, 2).with_ino(1 << 48);
        assert_eq!(known.ino(), None);
        assert_eq!(known.mount(), Some(0));
        assert_eq!(Known::opened(0, 2).with_ino((1 << 48) - 1).ino(), Some((1 << 48) - 1));
    }

    #[test]
    fn the_last_of_twins_is_the_end() {
        let known = Known::opened(0, 2).with_ino(0xfeed);
        let (a, b) = (200, 201);
        remember(a, known);
        assert!(!lives_on(forget(a)), "it had no twin");
        remember(a, known);
        duplicate(a, b);
        // The test below raises the number of descriptors beyond what is searched; then every end is told.
        let searched = HIGH.load(Ordering::Relaxed) as usize <= SEARCHED;
        assert_eq!(lives_on(forget(a)), searched);
        assert!(!lives_on(forget(b)));
        // A twin to read is none.
        let read = Known::opened(0, 0).with_ino(0xfeed);
        remember(a, Known(known.0 | TWIN));
        remember(b, read);
        assert!(!lives_on(forget(a)));
        forget(b);
    }

    #[test]
    fn a_range_is_forgotten_up_to_what_was_remembered() {
        remember(60_001, Known::opened(1, 1));
        remember(60_003, Known(OUTSIDE));
        let mut seen = 0;
        forget_range(60_000, u32::MAX, |_| seen += 1);
        assert_eq!(seen, 2);
        assert_eq!(forget(60_001), Known::UNKNOWN);
    }
}
