//! Names that are not in a tree yet: a directory is a placeholder until the agent has populated it. What is found is
//! right, so only a call that does not find something, lists, or is about to make or remove a name asks here. It must not
//! know which call that is.
//!
//! Nothing here may be called inside the gate, but [`Before::lacks`]: the agent may have to close it to answer.

use core::ffi::{CStr, c_char, c_int};
use core::sync::atomic::Ordering;

use storeshim_protocol::control::{FLAG_COMPLETE, FLAG_NAMES, FLAG_QUOTA_NEAR};
use storeshim_protocol::request::{Ask, Names};

use crate::control::{self, Table};
use crate::hook::Reply;
use crate::loader::{get_errno, set_errno};
use crate::names::Entry;
use crate::place::{self, CWD, Place};
use crate::sys::{self, Answer, Bytes, Errno, PathBuf, Stat, errno, k};
use crate::{ask, fds, residency};

/// Links on the way of a path that are followed, as the kernel does.
const LINKS: usize = 40;

const MISSING: Errno = Errno::of(errno::ENOENT);

/// Whether some directory of mount `index` may lack entries.
#[inline(always)]
pub fn lacks_names(index: usize) -> bool {
    control::mount(index)
        .is_some_and(|mount| mount.flags.load(Ordering::Acquire) & (FLAG_COMPLETE | FLAG_NAMES) == 0)
}

/// The same of any mount: links lead everywhere.
pub fn some_lacks_names() -> bool {
    control::table().is_some_and(|table| table.mounts().any(|(index, _)| lacks_names(index)))
}

/// Whether all that belongs to an inode is here, as far as clients can tell: a directory that was populated has a bitmap,
/// too, where its cell says nothing.
pub fn is_whole(index: usize, ino: u64) -> bool {
    residency::table(index).is_some_and(|table| table.check(ino, 0, u64::MAX).is_some())
}

/// Has the entries of directory `ino` of mount `index` brought, where they may not be there. Whether that was asked.
///
/// Errors: those of [`ask::request`].
pub fn populate(index: usize, ino: u64) -> Result<bool, Errno> {
    let lacks = lacks_entries(index, ino);
    if lacks {
        ask::request(index, Ask::Populate { ino })?;
    }
    Ok(lacks)
}

/// Whether directory `ino` of mount `index` may lack entries.
fn lacks_entries(index: usize, ino: u64) -> bool {
    lacks_names(index) && !is_whole(index, ino)
}

/// The same of the one entry to which `path` leads from there, and perhaps of what it leads to then.
///
/// Errors: as [`populate`].
fn find(index: usize, ino: u64, path: &[u8]) -> Result<bool, Errno> {
    if !lacks_entries(index, ino) {
        return Ok(false);
    }
    let Some(names) = Names::new(path) else { return Ok(false) };
    ask::request(index, Ask::Find { ino, names }).map(|_| true)
}

/// Makes a call of libc's on what `place` names; once more where it has not found it though it is there.
#[inline(always)]
pub fn found<R: Reply + PartialEq>(place: Place, act: impl Fn() -> R) -> R {
    let mut twice = false;
    loop {
        let done = act();
        if done != R::FAILED || twice || !again(place) {
            return done;
        }
        twice = true;
    }
}

/// After a call of libc's on `place` has failed: whether it is to be made once more. Sets errno where the agent could not
/// say.
#[cold]
#[inline(never)]
pub fn again(place: Place) -> bool {
    if get_errno() != MISSING {
        return false;
    }
    let brought = bring(place);
    set_errno(brought.err().unwrap_or(MISSING));
    brought == Ok(true)
}

/// As [`found`], for a system call.
#[inline(always)]
pub fn reached(place: Place, act: impl Fn() -> Answer) -> Answer {
    let mut twice = false;
    loop {
        let done = act();
        if done != Err(MISSING) || twice || !bring(place)? {
            return done;
        }
        twice = true;
    }
}

/// [`sys::stat_at`] of what may have to be brought first.
#[inline(never)]
pub fn stat_at(dirfd: c_int, path: *const c_char, flags: u32) -> Result<Stat, Errno> {
    match sys::stat_at(dirfd, path, flags) {
        Err(e) if e == MISSING && bring(Place { mount: None, dirfd, path })? => {
            sys::stat_at(dirfd, path, flags)
        }
        done => done,
    }
}

/// After the kernel has not found `place`: has the entries on its way brought until it is there or is known to be missing.
/// Whether the call may find more when it is made once more.
#[cold]
#[inline(never)]
pub fn bring(place: Place) -> Result<bool, Errno> {
    let mut path = PathBuf::new();
    // SAFETY: the app handed a C string, or it is one of ours.
    let bring = !sys::leads_nowhere(place.path)
        && some_lacks_names()
        && path.push(unsafe { CStr::from_ptr(place.path) }.to_bytes()).is_ok();
    let Some(table) = control::table().filter(|_| bring) else { return Ok(false) };
    let mut way = Way { table, mount: place.mount, dirfd: place.dirfd, path, more: false };
    for _ in 0..=LINKS {
        match way.follow()? {
            End::Link => {}
            End::There => return Ok(true),
            End::Missing => break,
        }
    }
    Ok(way.more)
}

/// A path that is walked as the kernel does.
struct Way<'t> {
    table: &'t Table,
    mount: Option<usize>,
    dirfd: c_int,
    path: PathBuf,
    /// Something has come, or is there that may not have been there before.
    more: bool,
}

/// Where a walk has come to.
enum End {
    /// To a link, whose target stands in its place now.
    Link,
    /// To the end of the path.
    There,
    /// To a name that is none, or that cannot be followed.
    Missing,
}

impl Way<'_> {
    fn follow(&mut self) -> Result<End, Errno> {
        let Some(mut at) = self.deepest() else { return Ok(End::Missing) };
        loop {
            let rest = self.path.bytes().get(at..).unwrap_or(&[]);
            let Some(skip) = rest.iter().position(|byte| *byte != b'/') else { return Ok(End::There) };
            let start = at + skip;
            let rest = self.path.bytes().get(start..).unwrap_or(&[]);
            let end = start + rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            let mut target = Bytes::new();
            let mut link = self.read_link(end, &mut target);
            if link == Err(MISSING) {
                let Ok(dir) = self.stat(start) else { return Ok(End::Missing) };
                self.find(start, &dir)?;
                link = self.read_link(end, &mut target);
            }
            match link {
                Ok(n) => return Ok(self.splice(start, end, target.filled(n))),
                Err(e) if e == Errno::of(errno::EINVAL) => at = end,
                Err(_) => return Ok(End::Missing),
            }
        }
    }

    /// How long the target of the link is that stands before `end`.
    fn read_link(&mut self, end: usize, target: &mut Bytes) -> Result<usize, Errno> {
        let dirfd = self.dirfd;
        self.path.with_head(end, |head| sys::readlink_at(dirfd, head, target).map(<[u8]>::len))
    }

    /// Where what follows the deepest directory that the kernel finds begins.
    fn deepest(&mut self) -> Option<usize> {
        let mut end = self.path.bytes().len();
        loop {
            let (start, _) = crate::paths::last_component(self.path.bytes().get(..end)?);
            if start == 0 {
                return Some(0);
            }
            match self.stat(start) {
                Ok(_) => return Some(start),
                Err(e) if e == MISSING => end = start,
                Err(_) => return None,
            }
        }
    }

    /// Calls `act` with what stands before `start` as a path of its own.
    fn head<R>(&mut self, start: usize, act: impl FnOnce(c_int, *const c_char) -> R) -> R {
        let dirfd = self.dirfd;
        if start == 0 {
            act(dirfd, c".".as_ptr())
        } else {
            self.path.with_head(start, |head| act(dirfd, head))
        }
    }

    #[inline(never)]
    fn stat(&mut self, start: usize) -> Result<Stat, Errno> {
        self.head(start, |dirfd, head| sys::stat_at(dirfd, head, 0))
    }

    /// Has the entry at `start` brought into the directory before it, of which this is the stat.
    fn find(&mut self, start: usize, stat: &Stat) -> Result<(), Errno> {
        let (table, mount) = (self.table, self.mount);
        let here = |index: usize| table.get(index).is_some_and(|entry| entry.dev == stat.st_dev);
        let lacks = |index| here(index) && lacks_entries(index, stat.st_ino);
        if !table.mounts().any(|(index, _)| lacks(index)) {
            return Ok(());
        }
        // A cell and a device have others, too.
        let own = mount.filter(|index| !table.shares_device && here(*index));
        if let Some(index) = own.or_else(|| self.head(start, place::mount_at)) {
            self.more |= find(index, stat.st_ino, self.path.bytes().get(start..).unwrap_or(&[]))?;
        }
        Ok(())
    }

    /// Puts a link's target where the link stands.
    fn splice(&mut self, start: usize, end: usize, target: &[u8]) -> End {
        let mut whole = PathBuf::new();
        let absolute = target.starts_with(b"/");
        let head = if absolute { &[] } else { self.path.bytes().get(..start).unwrap_or(&[]) };
        let tail = self.path.bytes().get(end..).unwrap_or(&[]);
        // For a call that does not follow the last link, this is the end.
        self.more |= tail.iter().all(|byte| *byte == b'/');
        if [head, target, tail].iter().any(|part| whole.push(part).is_err()) {
            return End::Missing;
        }
        if absolute {
            self.dirfd = CWD;
        }
        self.path = whole;
        End::Link
    }
}

/// Before a call that looks for what `place` names where no hook stands, or may create it: has it, or the directory that it
/// would lie in, brought.
pub fn present(place: Place) -> Result<(), Errno> {
    if some_lacks_names() && sys::stat_at(place.dirfd, place.path, 0).err() == Some(MISSING) {
        bring(place)?;
    }
    Ok(())
}

/// Before the entries of the directory behind `fd` are read: has them brought.
#[inline(always)]
pub fn listing(fd: c_int) -> Result<(), Errno> {
    if some_lacks_names() { list(fd) } else { Ok(()) }
}

#[cold]
#[inline(never)]
fn list(fd: c_int) -> Result<(), Errno> {
    match fds::file(fd) {
        Some(file) => populate(file.mount, file.ino).map(|_| ()),
        None => Ok(()),
    }
}

/// As [`listing`], for a directory that somebody else is about to open by its path. Silent where there is none.
pub fn listing_at(place: Place) -> Result<(), Errno> {
    if !some_lacks_names() {
        return Ok(());
    }
    let flags = k::O_RDONLY | k::O_DIRECTORY | k::O_CLOEXEC | k::O_PATH;
    match reached(place, || sys::openat(place.dirfd, place.path, flags as c_int, 0)) {
        Ok(fd) => {
            let fd = fd as c_int;
            fds::forget(fd);
            let listed = list(fd);
            fds::forget(fd);
            sys::close(fd);
            listed
        }
        Err(Errno(number)) if matches!(number as u32, errno::ENOENT | errno::ENOTDIR | errno::EACCES) => {
            Ok(())
        }
        Err(errno) => Err(errno),
    }
}

/// What becomes of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A new inode gets it.
    Create,
    /// An inode that there is already gets it, or loses it to another directory.
    Move,
    /// It goes, or what it names is replaced.
    Remove,
}

/// What is asked of the agent before names of a mount change: all that it answers lies in the past when the gate is
/// entered.
pub struct Before {
    index: usize,
    /// Inodes that were asked about. A cell is shared: that an inode is not whole may be said for ever.
    asked: [u64; 8],
    count: usize,
    brought: bool,
    grown: bool,
    need: Need,
}

/// What is lacking.
#[derive(Clone, Copy)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is no allocation, and nothing is written where nothing is needed"
)]
enum Need {
    Nothing,
    /// The directory of the name, which may be there.
    Way,
    Answer(Ask),
}

impl Before {
    /// Nothing was asked yet.
    #[inline(always)]
    pub fn new(index: usize) -> Self {
        Self { index, asked: [0; 8], count: 0, brought: false, grown: false, need: Need::Nothing }
    }

    /// Inside the gate: whether something is to be asked before the entry that `path` names, taken from `dirfd`, may
    /// change: then the gate is to be left and [`Before::ask`] called. `entry` is `None` where its directory was not found.
    #[inline(always)]
    pub fn lacks(&mut self, change: Change, entry: Option<Entry>, dirfd: c_int, path: *const c_char) -> bool {
        const ALL: u32 = FLAG_COMPLETE | FLAG_QUOTA_NEAR;
        let flags =
            control::mount(self.index).map_or(FLAG_COMPLETE, |mount| mount.flags.load(Ordering::Acquire));
        flags & ALL != FLAG_COMPLETE && self.needs(flags, change, entry, dirfd, path)
    }

    #[cold]
    #[inline(never)]
    fn needs(
        &mut self,
        flags: u32,
        change: Change,
        entry: Option<Entry>,
        dirfd: c_int,
        path: *const c_char,
    ) -> bool {
        let names = flags & (FLAG_COMPLETE | FLAG_NAMES) == 0;
        self.need = match entry {
            None if names && !self.brought => Need::Way,
            Some(entry) if names && self.may_lack(entry.dir) => {
                Need::Answer(Ask::Populate { ino: entry.dir })
            }
            _ if change == Change::Remove && flags & FLAG_COMPLETE == 0 => self.of_victim(names, dirfd, path),
            _ if change == Change::Create && flags & FLAG_QUOTA_NEAR != 0 && !self.grown => {
                Need::Answer(Ask::Grow { bytes: 0, inodes: 1 })
            }
            _ => Need::Nothing,
        };
        !matches!(self.need, Need::Nothing)
    }

    fn may_lack(&self, ino: u64) -> bool {
        !self.asked.contains(&ino) && !is_whole(self.index, ino)
    }

    /// What is asked about something whose name goes: a directory's entries, or it would look empty; a file's bytes, if it
    /// lives on without a name.
    fn of_victim(&self, names: bool, dirfd: c_int, path: *const c_char) -> Need {
        match sys::stat_at(dirfd, path, k::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if !self.may_lack(stat.st_ino) => Need::Nothing,
            Ok(stat) if sys::is_directory(&stat) && names => Need::Answer(Ask::Populate { ino: stat.st_ino }),
            Ok(stat) if sys::is_regular(&stat) && stat.st_nlink == 1 => {
                Need::Answer(Ask::Unlink { ino: stat.st_ino })
            }
            _ => Need::Nothing,
        }
    }

    /// Inside the gate: whether `place`, which was not found, is still to be looked for.
    #[inline(always)]
    pub fn seeks(&mut self) -> bool {
        let seeks = !self.brought && lacks_names(self.index);
        if seeks {
            self.need = Need::Way;
        }
        seeks
    }

    /// Outside the gate: asks what was found lacking. Errors: the agent's, which are the call's.
    #[cold]
    #[inline(never)]
    pub fn ask(&mut self, place: Place) -> Result<(), Errno> {
        match self.need {
            Need::Nothing => Ok(()),
            Need::Way => {
                self.brought = true;
                bring(place).map(|_| ())
            }
            Need::Answer(Ask::Grow { bytes, inodes }) => {
                self.grown = true;
                let refused = ask::request(self.index, Ask::Grow { bytes, inodes }).err();
                // Something of that name: nothing is made, and the call says so.
                let taken = || sys::stat_at(place.dirfd, place.path, k::AT_SYMLINK_NOFOLLOW).is_ok();
                refused.filter(|_| !taken()).map_or(Ok(()), Err)
            }
            Need::Answer(ask) => {
                if let (Ask::Populate { ino } | Ask::Unlink { ino }, Some(place)) =
                    (ask, self.asked.get_mut(self.count % 8))
                {
                    *place = ino;
                    self.count += 1;
                }
                ask::request(self.index, ask).map(|_| ())
            }
        }
    }
}
