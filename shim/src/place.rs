//! Where a path of the app really lies: in which mount, and under which name the kernel knows it.
//!
//! In identity placement the name stays as it is. In the translated placement the logical prefix is swapped for
//! the tree; `..` is left to the kernel except where it crosses a mount's border (see `detour`).

use core::ffi::{CStr, c_char, c_int};
use core::sync::atomic::{AtomicU32, Ordering};

use crate::absent;
use crate::control::{self, Entry, Table};
use crate::detour;
use crate::fds;
use crate::outside;
use crate::paths::{self, Match};
use crate::sys::{self, Bytes, Errno, PathBuf, errno, k};

/// The working directory's pseudo descriptor.
pub const CWD: c_int = k::AT_FDCWD;

/// A path as the kernel is to be given it.
#[derive(Clone, Copy)]
pub struct Place {
    /// The mount that it lies in, as far as names tell.
    pub mount: Option<usize>,
    /// What a relative path starts from.
    pub dirfd: c_int,
    /// The app's own string, or one in the room that was lent.
    pub path: *const c_char,
}

/// What is known of a directory that relative paths start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It lies in this mount.
    In(usize),
    /// It lies elsewhere.
    Outside,
    /// It lies elsewhere, above some logical prefix.
    Above,
}

impl Class {
    /// The class of a directory or file with this path, as the kernel names it.
    #[inline(never)]
    pub fn of(table: &Table, path: &[u8]) -> Self {
        let mut class = Self::Outside;
        for (index, entry) in table.mounts() {
            if matches!(paths::below(entry.tree(), path), Match::Below(_))
                || entry.identity && matches!(paths::below(entry.prefix(), path), Match::Below(_))
            {
                return Self::In(index);
            }
            if path == b"/" || matches!(paths::below(path, entry.prefix()), Match::Below(_)) {
                class = Self::Above;
            }
        }
        class
    }
}

/// The working directory's class in the low byte: 0 unknown, 1 outside, 2 above, 3 + index. Above it how often it was
/// forgotten.
static CWD_CLASS: AtomicU32 = AtomicU32::new(0);

/// To be called before and after the working directory changes. An answer that another thread got from the kernel before
/// the change is not remembered after it.
pub fn forget_cwd() {
    let _ = CWD_CLASS
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| Some((word | 0xff).wrapping_add(1)));
}

fn cwd_class(table: &Table) -> Class {
    match CWD_CLASS.load(Ordering::Relaxed) & 0xff {
        0 => classify_cwd(table),
        1 => Class::Outside,
        2 => Class::Above,
        n => Class::In(n as usize - 3),
    }
}

#[cold]
fn classify_cwd(table: &Table) -> Class {
    let before = CWD_CLASS.load(Ordering::SeqCst);
    let mut room = Bytes::new();
    let class = match sys::getcwd(&mut room) {
        Ok(path) => Class::of(table, path),
        // Deleted, or deeper than the kernel tells: too much told is better than too little.
        Err(_) => match sys::stat_at(CWD, c"".as_ptr(), k::AT_EMPTY_PATH) {
            Ok(stat) => table
                .mounts()
                .find(|(_, entry)| entry.dev == stat.st_dev)
                .map_or(Class::Outside, |(index, _)| Class::In(index)),
            Err(_) => Class::Outside,
        },
    };
    if fds::may_remember() {
        let word = match class {
            Class::Outside => 1,
            Class::Above => 2,
            Class::In(index) => index as u32 + 3,
        };
        // Only where it was not forgotten meanwhile.
        let _ = CWD_CLASS.compare_exchange(
            before & !0xff,
            before & !0xff | word,
            Ordering::SeqCst,
            Ordering::Relaxed,
        );
    }
    class
}

/// The mount that the working directory lies in, and the mount's description.
pub fn cwd_mount() -> Option<(usize, &'static Entry)> {
    let table = control::table()?;
    match cwd_class(table) {
        Class::In(index) => table.get(index).map(|entry| (index, entry)),
        _ => None,
    }
}

/// The mount that a directory's descriptor leads to.
pub fn mount_of(dirfd: c_int) -> Option<usize> {
    let table = control::table()?;
    match if dirfd == CWD { cwd_class(table) } else { fds::class(table, dirfd) } {
        Class::In(index) => Some(index),
        _ => None,
    }
}

/// Whether a place outside every mount can lead into one by a symbolic link only: no `..` in it, and it does not start
/// above a prefix.
pub fn leads_in_by_link_only(place: Place) -> bool {
    if place.mount.is_some() || sys::leads_nowhere(place.path) {
        return false;
    }
    // SAFETY: as in `at`.
    let path = unsafe { CStr::from_ptr(place.path) }.to_bytes();
    let starts_outside = || {
        let Some(table) = control::table() else { return true };
        let class = if place.dirfd == CWD { cwd_class(table) } else { fds::class(table, place.dirfd) };
        class == Class::Outside
    };
    !paths::has_two_dots(path) && (path.starts_with(b"/") || starts_outside())
}

/// Where `path` lies, taken from `dirfd`. `room` holds the translation while it is used.
///
/// Errors: ENAMETOOLONG where the translation has no room; ETIMEDOUT where the mount was not restored in time.
#[inline(never)]
pub fn at(dirfd: c_int, path: *const c_char, room: &mut PathBuf) -> Result<Place, Errno> {
    let same = Place { mount: None, dirfd, path };
    let Some(table) = control::table() else { return Ok(same) };
    if sys::leads_nowhere(path) {
        return Ok(same);
    }
    // SAFETY: the app handed a C string, as the function that it called demands.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    let place = if let [b'/', ..] = bytes {
        absolute(table, same, bytes, room)?
    } else {
        relative(table, same, bytes, room)?
    };
    if let Some(index) = place.mount {
        control::wait_restored(index)?;
    }
    Ok(place)
}

fn absolute(table: &Table, same: Place, path: &[u8], room: &mut PathBuf) -> Result<Place, Errno> {
    let odd = paths::is_odd(path);
    if odd && table.translates && paths::has_dotdot(path) {
        return detour::absolute(table, same, path, room);
    }
    let below = if odd { paths::below } else { paths::plainly_below };
    for (index, entry) in table.mounts_inline() {
        if let Match::Below(rest) = below(entry.prefix(), path) {
            if path.len() >= sys::PATH_MAX {
                // With a tree's shorter name in it the kernel might take it.
                return Err(Errno::of(errno::ENAMETOOLONG));
            }
            return below_prefix(index, entry, same, rest, room);
        }
        if !entry.identity
            && let Match::Below(_) = below(entry.tree(), path)
        {
            return Ok(Place { mount: Some(index), ..same });
        }
    }
    Ok(same)
}

fn below_prefix(
    index: usize,
    entry: &Entry,
    same: Place,
    rest: &[u8],
    room: &mut PathBuf,
) -> Result<Place, Errno> {
    if entry.identity {
        return Ok(Place { mount: Some(index), ..same });
    }
    if paths::join(room, entry.tree(), rest).is_err() {
        far_below(entry, rest, room)?;
    }
    Ok(Place { mount: Some(index), dirfd: CWD, path: room.c_str() })
}

/// A path as long as the kernel takes, which is too long with the tree's name instead of the prefix: begun at a directory
/// on its way.
#[cold]
#[inline(never)]
fn far_below(entry: &Entry, rest: &[u8], room: &mut PathBuf) -> Result<(), Errno> {
    let too_long = Errno::of(errno::ENAMETOOLONG);
    let half = rest.get(..sys::PATH_MAX / 2).unwrap_or(rest);
    let cut = half.iter().rposition(|byte| *byte == b'/').ok_or(too_long)?;
    let (head, tail) = rest.split_at_checked(cut).ok_or(too_long)?;
    paths::join(room, entry.tree(), head)?;
    let flags = k::O_PATH | k::O_DIRECTORY | k::O_CLOEXEC;
    let head = Place { mount: None, dirfd: CWD, path: room.c_str() };
    let fd = absent::reached(head, || sys::openat(CWD, head.path, flags as c_int, 0))?;
    room.start_at(fd as c_int, tail)
}

fn relative(table: &Table, same: Place, path: &[u8], room: &mut PathBuf) -> Result<Place, Errno> {
    let class = if same.dirfd == CWD { cwd_class(table) } else { fds::class(table, same.dirfd) };
    match class {
        Class::In(index) => {
            let translated = table.get(index).is_some_and(|entry| !entry.identity);
            if translated && paths::has_two_dots(path) && paths::has_dotdot(path) {
                return detour::from_inside(table, index, same, path, room);
            }
            Ok(Place { mount: Some(index), ..same })
        }
        Class::Above if table.translates && !path.is_empty() => from_above(table, same, path, room),
        Class::Outside if table.translates && paths::has_two_dots(path) && paths::has_dotdot(path) => {
            detour::from_outside(table, same, path, room)
        }
        _ => Ok(same),
    }
}

/// A relative path from a directory above some prefix: joined to where it starts from, and then looked at whole.
#[cold]
#[inline(never)]
fn from_above(table: &Table, same: Place, path: &[u8], room: &mut PathBuf) -> Result<Place, Errno> {
    let mut base_room = Bytes::new();
    let base = if same.dirfd == CWD {
        sys::getcwd(&mut base_room)
    } else {
        sys::fd_path(same.dirfd, &mut base_room)
    };
    let Ok(base) = base else { return Ok(same) };
    let mut whole = PathBuf::new();
    paths::join(&mut whole, base, b"/")?;
    whole.push(path)?;
    let found = absolute(table, Place { mount: None, dirfd: CWD, path: same.path }, whole.bytes(), room)?;
    // Nothing was translated: it starts and ends outside.
    if core::ptr::eq(found.path, room.c_str()) { Ok(found) } else { Ok(Place { mount: found.mount, ..same }) }
}

/// As [`at`], but the path always stands in `room`: for those who must take it apart.
#[inline(never)]
pub fn owned(dirfd: c_int, path: *const c_char, room: &mut PathBuf) -> Result<Place, Errno> {
    let place = at(dirfd, path, room)?;
    if place.mount.is_some() && core::ptr::eq(place.path, path) {
        // SAFETY: as in `at`.
        let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
        room.clear();
        room.push(bytes)?;
        return Ok(Place { path: room.c_str(), ..place });
    }
    Ok(place)
}

/// As [`owned`], for a call that changes the entry which `path` names. A path that no prefix begins may lead into a mount
/// all the same, by a symbolic link or `..` on its way: the kernel is asked where its directory lies. The path stands in
/// `room` where the place has a mount.
#[inline(never)]
pub fn entry(dirfd: c_int, path: *const c_char, room: &mut PathBuf) -> Result<Place, Errno> {
    let place = by_links(owned(dirfd, path, room)?, None);
    let Some(table) = control::table().filter(|_| place.mount.is_none() && !sys::leads_nowhere(path)) else {
        return Ok(place);
    };
    if !core::ptr::eq(place.path, room.c_str()) {
        // SAFETY: as in `at`.
        let bytes = unsafe { CStr::from_ptr(place.path) }.to_bytes();
        room.clear();
        if room.push(bytes).is_err() {
            return Ok(place);
        }
    }
    let (start, _) = paths::last_component(room.bytes());
    if start == 0 {
        // What lies right in a directory was classed by that directory's real path.
        return Ok(place);
    }
    let index = room.with_head(start, |head| really(table, place.dirfd, head, true));
    match index {
        Ok(Some(index)) => {
            control::wait_restored(index)?;
            Ok(Place { mount: Some(index), dirfd: place.dirfd, path: room.c_str() })
        }
        Err(e) if e == Errno::of(errno::ENOENT) => entry_by_link(place, start, room),
        _ => Ok(place),
    }
}

/// As [`entry`], where the directory of the name that begins at `start` in `room` was not found.
#[cold]
#[inline(never)]
fn entry_by_link(place: Place, start: usize, room: &mut PathBuf) -> Result<Place, Errno> {
    let mut path = PathBuf::new();
    let followed = room.with_head(start, |head| detour::follow(Place { path: head, ..place }, &mut path));
    if followed.is_none() || path.push(room.bytes().get(start..).unwrap_or(&[])).is_err() {
        return Ok(place);
    }
    entry(CWD, path.c_str(), room).and_then(|found| kept(found, &path, room))
}

/// As [`target`], where nothing was found.
#[cold]
#[inline(never)]
fn target_by_link(place: Place, room: &mut PathBuf) -> Result<Place, Errno> {
    let mut path = PathBuf::new();
    match detour::follow(place, &mut path) {
        Some(()) => at(CWD, path.c_str(), room).and_then(|found| kept(found, &path, room)),
        None => Ok(place),
    }
}

/// A place whose path may be `path`, which is about to go: then it stands in `room`.
fn kept(found: Place, path: &PathBuf, room: &mut PathBuf) -> Result<Place, Errno> {
    if !core::ptr::eq(found.path, path.c_str()) {
        return Ok(found);
    }
    room.clear();
    room.push(path.bytes())?;
    Ok(Place { path: room.c_str(), ..found })
}

/// As [`at`], for a call that changes what `path` names (behind a symbolic link too, where `follow` says so): also finds
/// the mount of a file to which another name than one below the prefix leads.
pub fn target(dirfd: c_int, path: *const c_char, follow: bool, room: &mut PathBuf) -> Result<Place, Errno> {
    let place = by_links(at(dirfd, path, room)?, Some(follow));
    let Some(table) = control::table().filter(|_| place.mount.is_none() && !sys::leads_nowhere(path)) else {
        return Ok(place);
    };
    let mount = match really(table, place.dirfd, place.path, follow) {
        Ok(mount) => mount,
        Err(e) if e == Errno::of(errno::ENOENT) => return target_by_link(place, room),
        Err(_) => None,
    };
    if let Some(index) = mount {
        control::wait_restored(index)?;
    }
    Ok(Place { mount, ..place })
}

/// Corrects the mount of a place where trees share a device, and a link on the way may lead from one into another: by what
/// is there, behind a last link where `follow` says so, or by its directory where that says nothing.
#[inline(always)]
pub fn by_links(place: Place, follow: Option<bool>) -> Place {
    match control::table().filter(|table| table.shares_device && place.mount.is_some()) {
        Some(table) => seek(table, place, follow),
        None => place,
    }
}

#[cold]
#[inline(never)]
fn seek(table: &Table, place: Place, follow: Option<bool>) -> Place {
    let itself = follow.and_then(|follow| really(table, place.dirfd, place.path, follow).ok().flatten());
    let found = itself.or_else(|| {
        let mut path = PathBuf::new();
        // SAFETY: a place in a mount has a C string.
        path.push(unsafe { CStr::from_ptr(place.path) }.to_bytes()).ok()?;
        let (start, _) = paths::last_component(path.bytes());
        // What lies right in a directory was classed by that directory's real path.
        (start != 0)
            .then(|| path.with_head(start, |head| really(table, place.dirfd, head, true)).ok().flatten())?
    });
    Place { mount: found.or(place.mount), ..place }
}

/// Whether the kernel finds `path`, which lies on the device of some tree, outside of every mount.
pub fn is_outside(dirfd: c_int, path: *const c_char) -> bool {
    control::table().is_some_and(|table| matches!(really(table, dirfd, path, true), Ok(None) | Err(_)))
}

/// The mount that the kernel finds `path` in. One look where nothing on that device is a tree, or where the same was
/// found outside lately. Errors: the kernel's, where it does not find it.
#[inline(never)]
fn really(table: &Table, dirfd: c_int, path: *const c_char, follow: bool) -> Result<Option<usize>, Errno> {
    let now = outside::now(table);
    let nofollow = if follow { 0 } else { k::AT_SYMLINK_NOFOLLOW };
    let stat = absent::stat_at(dirfd, path, nofollow)?;
    let device = table.mounts().find(|(_, entry)| entry.dev == stat.st_dev).map(|(device, _)| device);
    let device = device.filter(|device| !outside::is_known(*device, stat.st_ino, now));
    Ok(device.and_then(|device| ask(table, dirfd, path, follow, device, now)))
}

/// The mount that the directory `path`, which is there, lies in.
pub fn mount_at(dirfd: c_int, path: *const c_char) -> Option<usize> {
    let table = control::table()?;
    let stat = sys::stat_at(dirfd, path, 0).ok()?;
    let (device, _) = table.mounts().find(|(_, entry)| entry.dev == stat.st_dev)?;
    let now = outside::now(table);
    if outside::is_known(device, stat.st_ino, now) {
        return None;
    }
    ask(table, dirfd, path, true, device, now)
}

/// The mount that the file at `place` lies in, as the kernel finds it; a last link is followed only in a mount.
pub fn mount_of_file(place: Place) -> Option<usize> {
    really(control::table()?, place.dirfd, place.path, true).ok().flatten()
}

#[cold]
#[inline(never)]
fn ask(
    table: &Table,
    dirfd: c_int,
    path: *const c_char,
    follow: bool,
    device: usize,
    now: u16,
) -> Option<usize> {
    let nofollow = if follow { 0 } else { k::O_NOFOLLOW };
    let fd = sys::openat(dirfd, path, (k::O_PATH | k::O_CLOEXEC | nofollow) as c_int, 0).ok()? as c_int;
    let mut bytes = Bytes::new();
    let class = sys::fd_path(fd, &mut bytes).map(|path| Class::of(table, path));
    // What the descriptor leads to, and not what the name led to a moment before.
    let stat = if matches!(class, Ok(Class::Outside | Class::Above)) { sys::fstat(fd).ok() } else { None };
    sys::close(fd);
    match (class, stat) {
        (Ok(Class::In(index)), _) => Some(index),
        // No /proc to ask, as in a chroot: too much told is better than too little.
        (Err(_), _) => Some(device),
        (_, Some(stat)) if table.get(device).is_some_and(|entry| entry.dev == stat.st_dev) => {
            outside::remember(device, stat.st_ino, now);
            None
        }
        _ => None,
    }
}

/// Turns a path that the kernel gave back round: one below a tree becomes one below its logical prefix, in `out`.
/// `None` where the path is to stay as it is.
pub fn turned<'o>(real: &[u8], out: &'o mut PathBuf) -> Option<&'o [u8]> {
    let (prefix, rest) = turned_parts(real)?;
    paths::join(out, prefix, rest).ok()?;
    Some(out.bytes())
}

/// As [`turned`]: the logical prefix, and what of `real` is below it.
pub fn turned_parts(real: &[u8]) -> Option<(&'static [u8], &[u8])> {
    // Byte for byte: what the kernel gives back is canonical, and anything else was written by someone.
    control::table()?.mounts().filter(|(_, entry)| !entry.identity).find_map(|(_, entry)| {
        match paths::plainly_below(entry.tree(), real) {
            Match::Below(rest) => Some((entry.prefix(), rest)),
            Match::Outside => None,
        }
    })
}

/// Turns a link's target that the app gives into what the kernel can follow. `None` where it is to stay as it is: it leads
/// elsewhere, or is spelled in a way that would not be read back as it was written.
pub fn real_target<'o>(target: &[u8], out: &'o mut PathBuf) -> Option<Result<&'o PathBuf, Errno>> {
    let table = control::table()?;
    table
        .mounts()
        .filter(|(_, entry)| !entry.identity)
        .find_map(|(_, entry)| match paths::plainly_below(entry.prefix(), target) {
            Match::Below(rest) => Some(paths::join(out, entry.tree(), rest)),
            Match::Outside => None,
        })
        .map(|joined| joined.map(|()| &*out))
}

/// Whether a path, as it is given to the kernel, names the root of a mount by itself: that can be neither removed nor
/// moved, as where a filesystem is mounted.
pub fn is_root(path: &[u8]) -> bool {
    let (_, end) = paths::last_component(path);
    let path = path.get(..end).unwrap_or(path);
    control::table().is_some_and(|table| {
        table.mounts().any(|(_, entry)| path == entry.tree() || entry.identity && path == entry.prefix())
    })
}
