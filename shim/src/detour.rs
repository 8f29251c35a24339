//! Paths whose `..` crosses the border of a mount that is translated. There the kernel cannot walk alone: a tree's
//! parent is not the directory that the logical prefix stands in, and the prefix itself does not exist.
//!
//! Nothing is resolved lexically: the kernel is asked where the part before each such `..` leads. The same for a symbolic link
//! that was made without the shim, in an image say, and names the prefix: the kernel does not find it, and we do.

use core::ffi::{CStr, c_char, c_int};

use crate::absent;
use crate::act::Act;
use crate::control::{self, Entry, Table};
use crate::hook::Reply;
use crate::loader::{get_errno, set_errno};
use crate::paths::{self, Match};
use crate::place::{CWD, Class, Place};
use crate::sys::{self, Bytes, Errno, PathBuf, errno, k};

/// Links on the way of a path that are followed, as the kernel does.
const LINKS: usize = 40;

/// After a call has not found `place`, which lies outside every mount: where a symbolic link on its way names a path below
/// a translated prefix, `again` is called with the path that this makes; its answer.
#[inline(always)]
pub fn by_link<R: Reply>(place: Place, mut again: impl FnMut(*const c_char) -> R) -> Option<R> {
    // One copy of the code for all the calls there are.
    by_link_then(place, Act::new(&mut |path| again(path).word())).map(R::good)
}

#[cold]
#[inline(never)]
fn by_link_then(place: Place, mut again: Act<'_, *const c_char, usize>) -> Option<usize> {
    let missing = Errno::of(errno::ENOENT);
    if place.mount.is_some() || get_errno() != missing || sys::leads_nowhere(place.path) {
        return None;
    }
    let mut path = PathBuf::new();
    let found = follow(place, &mut path);
    if found.is_none() {
        set_errno(missing);
    }
    found.map(|()| again.run(path.c_str()))
}

/// As [`by_link`], where no call has failed yet but the kernel was asked: the path is put into `path`.
#[cold]
#[inline(never)]
pub fn follow(place: Place, path: &mut PathBuf) -> Option<()> {
    let table = control::table().filter(|table| table.translates)?;
    let how = k::open_how {
        flags: u64::from(k::O_PATH | k::O_CLOEXEC),
        mode: 0,
        resolve: u64::from(k::RESOLVE_NO_SYMLINKS),
    };
    // One call says whether there is a link at all: most of what is missing is just missing.
    match sys::openat2(place.dirfd, place.path, &raw const how, size_of::<k::open_how>()) {
        Err(e) if e == Errno::of(errno::ELOOP) => {}
        Ok(fd) => {
            sys::close(fd as c_int);
            return None;
        }
        Err(_) => return None,
    }
    path.clear();
    // SAFETY: the app handed a C string.
    path.push(unsafe { CStr::from_ptr(place.path) }.to_bytes()).ok()?;
    let mut dirfd = place.dirfd;
    for _ in 0..LINKS {
        let mut bytes = Bytes::new();
        let (start, end, target) = first_link(dirfd, path, &mut bytes)?;
        let mut whole = PathBuf::new();
        if target.starts_with(b"/") {
            dirfd = CWD;
        } else {
            whole.push(path.bytes().get(..start)?).ok()?;
        }
        whole.push(target).and_then(|()| whole.push(path.bytes().get(end..).unwrap_or(&[]))).ok()?;
        path.clear();
        path.push(whole.bytes()).ok()?;
        let below = |entry: &Entry| matches!(paths::below(entry.prefix(), target), Match::Below(_));
        if table.mounts().any(|(_, entry)| !entry.identity && below(entry)) {
            return Some(());
        }
    }
    None
}

/// The first part of the path that is a symbolic link: where it begins and ends, and its target.
fn first_link<'b>(
    dirfd: c_int,
    path: &mut PathBuf,
    bytes: &'b mut Bytes,
) -> Option<(usize, usize, &'b [u8])> {
    let mut end = 0;
    loop {
        let rest = path.bytes().get(end..)?;
        let start = end + rest.iter().position(|byte| *byte != b'/')?;
        let rest = path.bytes().get(start..)?;
        end = start + rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        match path.with_head(end, |head| sys::readlink_at(dirfd, head, bytes).map(<[u8]>::len)) {
            Ok(n) => return Some((start, end, bytes.filled(n))),
            Err(e) if e == Errno::of(errno::EINVAL) => {}
            Err(_) => return None,
        }
    }
}

/// Where an absolute path with `..` lies; `same` is the answer where nothing is to be translated.
#[cold]
#[inline(never)]
pub fn absolute(table: &Table, same: Place, path: &[u8], room: &mut PathBuf) -> Result<Place, Errno> {
    let mut here = PathBuf::new();
    here.push(path)?;
    walk(table, same, &mut here, room)
}

/// Where a relative path with `..`, taken from a directory of translated mount `index`, lies.
#[cold]
#[inline(never)]
pub fn from_inside(
    table: &Table,
    index: usize,
    same: Place,
    path: &[u8],
    room: &mut PathBuf,
) -> Result<Place, Errno> {
    room.clear();
    room.push(path)?;
    let Some((entry, at)) = leaves(table, same.dirfd, room) else {
        // The kernel walks it best from where the app stands.
        return Ok(Place { mount: Some(index), ..same });
    };
    let mut here = PathBuf::new();
    step_out(entry, room.bytes().get(at..).unwrap_or(&[]), &mut here)?;
    walk(table, same, &mut here, room).map(|place| settled(place, &here, room))
}

/// Where a relative path with `..`, taken from a directory outside, lies.
#[cold]
#[inline(never)]
pub fn from_outside(table: &Table, same: Place, path: &[u8], room: &mut PathBuf) -> Result<Place, Errno> {
    let mut here = PathBuf::new();
    here.push(path)?;
    match enters_by_dots(table, same.dirfd, &mut here) {
        Some(whole) => {
            let found = walk(table, same, &mut { whole }, room)?;
            Ok(if core::ptr::eq(found.path, room.c_str()) { found } else { same })
        }
        None => Ok(same),
    }
}

/// A place outside that is spelled otherwise than the app did stands in `room`.
fn settled(place: Place, here: &PathBuf, room: &mut PathBuf) -> Place {
    if core::ptr::eq(place.path, room.c_str()) {
        return place;
    }
    room.clear();
    // It has fitted into a room of the same size.
    let _ = room.push(here.bytes());
    Place { mount: place.mount, dirfd: CWD, path: room.c_str() }
}

/// Follows the absolute, logical path in `here` in and out of mounts. The place stands in `room` where a mount is left or
/// entered; otherwise it is `same`. Ends, because each turn uses up a `..`.
fn walk(table: &Table, same: Place, here: &mut PathBuf, room: &mut PathBuf) -> Result<Place, Errno> {
    let mut left_one = false;
    loop {
        let Some((index, entry, rest)) = enters(table, here) else {
            return Ok(if left_one { settled(same_outside(same), here, room) } else { same });
        };
        if entry.identity || rest == 0 {
            let place = Place { mount: Some(index), ..same };
            return Ok(if left_one { settled(place, here, room) } else { place });
        }
        paths::join(room, entry.tree(), here.bytes().get(rest..).unwrap_or(&[]))?;
        let Some((left, at)) = leaves(table, CWD, room) else {
            return Ok(Place { mount: Some(index), dirfd: CWD, path: room.c_str() });
        };
        step_out(left, room.bytes().get(at..).unwrap_or(&[]), here)?;
        left_one = true;
    }
}

fn same_outside(same: Place) -> Place {
    Place { mount: None, ..same }
}

/// The mount that the absolute path in `path` leads into, and where what is below it begins (0: the path is the tree's
/// own). A detour that leads there is written out in `path`.
fn enters<'t>(table: &'t Table, path: &mut PathBuf) -> Option<(usize, &'t Entry, usize)> {
    if let Some(found) = begins(table, path.bytes()) {
        return Some(found);
    }
    let whole = enters_by_dots(table, CWD, path)?;
    path.clear();
    path.push(whole.bytes()).ok()?;
    begins(table, path.bytes())
}

fn begins<'t>(table: &'t Table, path: &[u8]) -> Option<(usize, &'t Entry, usize)> {
    table.mounts().find_map(|(index, entry)| {
        if let Match::Below(rest) = paths::below(entry.prefix(), path) {
            return Some((index, entry, path.len() - rest.len()));
        }
        let own = !entry.identity && matches!(paths::below(entry.tree(), path), Match::Below(_));
        own.then_some((index, entry, 0))
    })
}

/// A path, taken from `dirfd`, of which a `..` leads to a directory above some prefix, and the rest to that prefix: the
/// same path with the part up to that `..` as the kernel names it.
fn enters_by_dots(table: &Table, dirfd: c_int, path: &mut PathBuf) -> Option<PathBuf> {
    let mut from = 0;
    while let Some((_, end)) = paths::next_dotdot(path.bytes(), from) {
        from = end;
        let rest = path.bytes().get(end..).unwrap_or(&[]);
        if !table.mounts().any(|(_, entry)| !entry.identity && paths::may_finish(entry.prefix(), rest)) {
            continue;
        }
        let mut bytes = Bytes::new();
        let Some(head) = path.with_head(end, |head| {
            let fd = sys::openat(dirfd, head, (k::O_PATH | k::O_CLOEXEC) as c_int, 0).ok()? as c_int;
            let real = sys::fd_path(fd, &mut bytes).ok();
            sys::close(fd);
            real
        }) else {
            continue;
        };
        // Inside of a tree the kernel knows the way.
        if matches!(Class::of(table, head), Class::In(_)) {
            continue;
        }
        let mut whole = PathBuf::new();
        let rest = path.bytes().get(end..).unwrap_or(&[]);
        whole.push(head).and_then(|()| whole.push(rest)).ok()?;
        if begins(table, whole.bytes()).is_some() {
            return Some(whole);
        }
    }
    None
}

/// The first `..` of the path, taken from `dirfd`, that is applied to the root of a translated tree: whose, and where
/// what follows it begins. What the links on the way contain is the kernel's.
fn leaves<'t>(table: &'t Table, dirfd: c_int, path: &mut PathBuf) -> Option<(&'t Entry, usize)> {
    let mut from = 0;
    while let Some((start, end)) = paths::next_dotdot(path.bytes(), from) {
        from = end;
        let stat = if start == 0 {
            sys::stat_at(dirfd, c"".as_ptr(), k::AT_EMPTY_PATH)
        } else {
            path.with_head(start, |head| absent::stat_at(dirfd, head, 0))
        };
        // Where it leads nowhere, the kernel will say so.
        let stat = stat.ok()?;
        let root = table
            .mounts()
            .find(|(_, entry)| !entry.identity && entry.root_ino == stat.st_ino && entry.dev == stat.st_dev);
        if let Some((_, entry)) = root {
            return Some((entry, end));
        }
    }
    None
}

/// Writes the path that goes on with `rest` from the directory that a prefix stands in. Where that does not exist
/// either, further `..` are taken at once.
fn step_out(entry: &Entry, rest: &[u8], out: &mut PathBuf) -> Result<(), Errno> {
    let (mut base, mut rest) = (paths::parent(entry.prefix()), rest);
    while let Some(next) = paths::strip_dotdot(rest) {
        let mut path = PathBuf::new();
        paths::join(&mut path, base, b"/")?;
        if sys::stat_at(CWD, path.c_str(), 0).is_ok() {
            break;
        }
        (base, rest) = (paths::parent(base), next);
    }
    paths::join(out, base, if rest.is_empty() { b"/" } else { rest })
}
