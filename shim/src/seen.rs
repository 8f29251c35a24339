//! What stat says of a file that is not wholly here, or that the agent is just writing into: the volume's truth, not this
//! disk's. It must not know which of the many calls asked.

use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use storeshim_protocol::request::Ask;

use crate::act::Act;
use crate::place::{self, Place};
use crate::respell::Stat;
use crate::sys::{self, k};
use crate::{absent, ask, control, fds, residency};

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;
/// How often what moves is looked at again.
const LOOKS: usize = 100;
/// A block, as stat counts them.
const BLOCK: u64 = 512;
/// What a file system gives out at a time.
const PAGE: u64 = 4096;
/// Of a file up to this size, in bytes, nobody is asked how many blocks it has.
const SMALL: u64 = 64 << 10;

/// Where a call has put what it found out.
#[derive(Clone, Copy)]
pub enum Out {
    /// Into a struct stat.
    Stat(*mut Stat),
    /// Into a struct statx.
    Extended(*mut k::statx),
}

/// What is asked of it.
struct Facts {
    dev: u64,
    ino: u64,
    mode: u32,
    size: u64,
    /// The blocks, where they were asked for.
    blocks: Option<u64>,
    /// All that is below was.
    times: bool,
    links: u64,
    owner: u64,
    modified: u64,
    changed: u64,
}

/// Nanoseconds since 1970.
fn time(seconds: i64, nanoseconds: u64) -> u64 {
    (seconds as u64).wrapping_mul(SECOND).wrapping_add(nanoseconds)
}

impl Out {
    /// # Safety
    /// A successful call must have filled it.
    unsafe fn facts(self) -> Facts {
        // SAFETY: as above.
        unsafe {
            match self {
                Self::Stat(stat) => Facts {
                    dev: (*stat).st_dev,
                    ino: (*stat).st_ino,
                    mode: (*stat).st_mode,
                    size: (*stat).st_size as u64,
                    blocks: Some((*stat).st_blocks as u64),
                    times: true,
                    links: (*stat).st_nlink as _,
                    owner: u64::from((*stat).st_uid) << 32 | u64::from((*stat).st_gid),
                    modified: time((*stat).st_mtime as _, (*stat).st_mtime_nsec as _),
                    changed: time((*stat).st_ctime as _, (*stat).st_ctime_nsec as _),
                },
                Self::Extended(stat) => Facts {
                    dev: sys::device((*stat).stx_dev_major, (*stat).stx_dev_minor),
                    ino: (*stat).stx_ino,
                    mode: u32::from((*stat).stx_mode),
                    size: (*stat).stx_size,
                    blocks: Some((*stat).stx_blocks).filter(|_| (*stat).stx_mask & k::STATX_BLOCKS != 0),
                    times: !(*stat).stx_mask & k::STATX_BASIC_STATS & !k::STATX_ATIME & !k::STATX_BLOCKS == 0,
                    links: u64::from((*stat).stx_nlink),
                    owner: u64::from((*stat).stx_uid) << 32 | u64::from((*stat).stx_gid),
                    modified: time((*stat).stx_mtime.tv_sec, u64::from((*stat).stx_mtime.tv_nsec)),
                    changed: time((*stat).stx_ctime.tv_sec, u64::from((*stat).stx_ctime.tv_nsec)),
                },
            }
        }
    }

    /// # Safety
    /// It must be valid.
    unsafe fn set_blocks(self, blocks: u64) {
        // SAFETY: as above.
        unsafe {
            match self {
                Self::Stat(stat) => (*stat).st_blocks = blocks as _,
                Self::Extended(stat) => (*stat).stx_blocks = blocks,
            }
        }
    }

    /// # Safety
    /// It must be valid.
    unsafe fn set_links(self, links: u32) {
        // SAFETY: as above.
        unsafe {
            match self {
                Self::Stat(stat) => (*stat).st_nlink = links as _,
                Self::Extended(stat) => (*stat).stx_nlink = links,
            }
        }
    }

    /// # Safety
    /// It must be valid.
    unsafe fn set_changed(self, time: u64) {
        let (seconds, nanoseconds) = ((time / SECOND) as i64, time % SECOND);
        // SAFETY: as above.
        unsafe {
            match self {
                Self::Stat(stat) => {
                    (*stat).st_ctime = seconds as _;
                    (*stat).st_ctime_nsec = nanoseconds as _;
                }
                Self::Extended(stat) => {
                    (*stat).stx_ctime.tv_sec = seconds;
                    (*stat).stx_ctime.tv_nsec = nanoseconds as u32;
                }
            }
        }
    }

    /// Whether it is of a symbolic link.
    ///
    /// # Safety
    /// A successful call must have filled it.
    #[inline(always)]
    pub unsafe fn is_link(self) -> bool {
        // SAFETY: as above.
        let mode = unsafe {
            match self {
                Self::Stat(stat) => (*stat).st_mode,
                Self::Extended(stat) => u32::from((*stat).stx_mode),
            }
        };
        mode & k::S_IFMT == k::S_IFLNK
    }

    /// # Safety
    /// It must be valid.
    pub unsafe fn set_size(self, size: usize) {
        // SAFETY: as above.
        unsafe {
            match self {
                Self::Stat(stat) => (*stat).st_size = size as _,
                Self::Extended(stat) => (*stat).stx_size = size as u64,
            }
        }
    }
}

impl Facts {
    /// Whether some mount on its device says so of an inode of this number.
    fn may_differ(&self) -> bool {
        let Some(table) = control::table() else { return false };
        table.mounts().any(|(index, entry)| {
            entry.dev == self.dev
                && residency::is_partial(index)
                && (residency::is_moving(index, self.ino) || !absent::is_whole(index, self.ino))
        })
    }
}

impl Facts {
    /// Whether they may be those of a moment at which the agent was bringing the file, or evicting it, which is over by now:
    /// its data seems to have been written when the inode was changed (the agent puts that time back), or all is here and
    /// there were fewer blocks than bytes.
    fn is_doubtful(&self, whole: bool) -> bool {
        self.mode & k::S_IFMT == k::S_IFREG
            && (self.changed.abs_diff(self.modified) < SECOND
                || whole && self.blocks.is_some_and(|blocks| blocks.saturating_mul(BLOCK) < self.size))
    }
}

/// What this process was told of the last change of inodes that were not wholly here: what the agent brings moves it, and
/// programs (tar, say) compare it before and after they have read. It is told again for as long as all else is the same.
///
/// The first word is the facts' and the second's sum, so that words of two writers are never taken for one's.
static TOLD: [[AtomicU64; 2]; 512] = [const { [const { AtomicU64::new(0) }; 2] }; 512];
/// Something was told.
static ANY_TOLD: AtomicBool = AtomicBool::new(false);

impl Facts {
    /// What stays the same while an inode is brought, as a number; of a directory, its entries count as its links.
    fn tag(&self) -> u64 {
        let (links, size) =
            if self.mode & k::S_IFMT == k::S_IFDIR { (0, 0) } else { (self.links, self.size) };
        let words = [self.dev, self.ino, u64::from(self.mode), self.owner, links, size, self.modified];
        words
            .into_iter()
            .fold(1, |sum: u64, word| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
    }

    /// From now on the time of the last change is told as it is.
    fn forget(&self) {
        let tag = self.tag();
        let Some([sum, time]) = TOLD.get(tag as usize % TOLD.len()) else { return };
        if sum.load(Ordering::Relaxed) ^ time.load(Ordering::Relaxed) == tag {
            sum.store(0, Ordering::Relaxed);
        }
    }

    /// Tells the same time of the last change as before.
    ///
    /// # Safety
    /// `out` must be where the facts stand.
    unsafe fn steady(&self, out: Out, whole: bool) {
        if !self.times {
            return;
        }
        let tag = self.tag();
        let Some([sum, time]) = TOLD.get(tag as usize % TOLD.len()) else { return };
        let told = time.load(Ordering::Relaxed);
        if sum.load(Ordering::Relaxed) ^ told == tag {
            // SAFETY: as above.
            unsafe { out.set_changed(told) };
        } else if !whole {
            time.store(self.changed, Ordering::Relaxed);
            sum.store(self.changed ^ tag, Ordering::Relaxed);
            ANY_TOLD.store(true, Ordering::Relaxed);
        }
    }
}

/// Whether what a look has found may have to be corrected.
#[inline(always)]
pub fn may_differ() -> bool {
    residency::is_any_partial() || ANY_TOLD.load(Ordering::Relaxed)
}

/// What was looked at.
#[derive(Clone, Copy)]
pub enum Subject {
    /// A descriptor.
    Descriptor(c_int),
    /// What a path names.
    Path(Place),
}

impl Subject {
    /// The mount, where it is one whose device is `dev`.
    fn mount(self, dev: u64) -> Option<usize> {
        let table = control::table()?;
        let here = |index: &usize| table.get(*index).is_some_and(|entry| entry.dev == dev);
        if !table.mounts().any(|(index, _)| here(&index)) {
            return None;
        }
        let found = match self {
            Self::Descriptor(fd) => fds::file(fd).map(|file| file.mount),
            // SAFETY: a look at it has succeeded.
            Self::Path(place) if unsafe { *place.path } == 0 => {
                return Self::Descriptor(place.dirfd).mount(dev);
            }
            Self::Path(place) if place.mount.is_some() && !table.shares_device => place.mount,
            Self::Path(place) => place::mount_of_file(place),
        };
        found.filter(here)
    }

    /// Whether it is a descriptor that can be read: of a directory, whose entries will come in any case, and which changes by that.
    /// Who looks at it now, and once more when he has been through all that is below it (tar does), is told of the time after
    /// they have come: one that has to be remembered until then may be forgotten over all the others.
    fn is_to_be_listed(self) -> bool {
        match self {
            Self::Descriptor(fd) => sys::status_flags(fd).is_ok_and(|flags| flags as u32 & k::O_PATH == 0),
            // SAFETY: a look at it has succeeded.
            Self::Path(place) if unsafe { *place.path } == 0 => {
                Self::Descriptor(place.dirfd).is_to_be_listed()
            }
            Self::Path(_) => false,
        }
    }
}

/// After a successful look at `subject`: corrects what stands in `out`; `look` looks once more. What the hook answers.
///
/// # Safety
/// A successful call must have filled `out`, as `look` does.
#[cold]
#[inline(never)]
pub unsafe fn correct(subject: Subject, out: Out, mut look: Act<'_, (), c_int>) -> c_int {
    let (mut before, mut asked) = (None, false);
    for _ in 0..LOOKS {
        // SAFETY: as above.
        let facts = unsafe { out.facts() };
        let differs = facts.may_differ();
        let index = if differs {
            subject.mount(facts.dev).filter(|index| residency::is_partial(*index))
        } else {
            None
        };
        if differs && index.is_none() {
            return 0;
        }
        let moving = index.filter(|index| residency::is_moving(*index, facts.ino));
        let whole = index.is_none_or(|index| absent::is_whole(index, facts.ino));
        let is_listed = facts.mode & k::S_IFMT == k::S_IFDIR && subject.is_to_be_listed();
        if let Some(index) = index.filter(|_| is_listed && !whole)
            && !core::mem::replace(&mut asked, true)
            && absent::populate(index, facts.ino) == Ok(true)
        {
            let done = look.run(());
            if done != 0 {
                return done;
            }
            continue;
        }
        // A look that was made when nothing moved any more tells whether this one was, too.
        let now = Some((facts.tag(), facts.blocks, facts.changed));
        if moving.is_none() && (before == now || !facts.is_doubtful(whole) || !residency::is_any_partial()) {
            // SAFETY: as above.
            unsafe {
                match (index.filter(|_| !whole), facts.mode & k::S_IFMT) {
                    (Some(index), k::S_IFREG) => correct_blocks(index, &facts, out),
                    // What it holds may be directories, which count as its links: as many as can be told is one, by which
                    // programs know that nothing is said.
                    (Some(index), k::S_IFDIR) if absent::lacks_names(index) => out.set_links(1),
                    _ => {}
                }
                if is_listed && whole {
                    facts.forget();
                } else {
                    facts.steady(out, whole);
                }
            }
            return 0;
        }
        if let Some(index) = moving {
            residency::wait_moved(index, facts.ino);
        }
        before = now;
        let done = look.run(());
        if done != 0 {
            return done;
        }
    }
    0
}

/// # Safety
/// That of [`correct`].
unsafe fn correct_blocks(index: usize, facts: &Facts, out: Out) {
    if facts.blocks.is_none() || facts.size == 0 {
        return;
    }
    // So many where there is no hole. To fail would be worse than to miss one.
    let most = facts.size.checked_next_multiple_of(PAGE).unwrap_or(facts.size) / BLOCK;
    let blocks = if facts.size <= SMALL {
        most
    } else {
        ask::request(index, Ask::Blocks { ino: facts.ino }).map_or(most, |blocks| blocks as u64)
    };
    // SAFETY: as above.
    unsafe { out.set_blocks(blocks) };
}
