//! Calls that change names: which entry of which directory, told before the kernel is asked.

use core::ffi::{c_char, c_int};

use storeshim_protocol::Intent;

use crate::absent::{self, Before, Change};
use crate::act::Act;
use crate::gate::{self, Inside};
use crate::place::{self, Place};
use crate::sys::{self, Answer, Bytes, Errno, PathBuf, errno, k};
use crate::{control, fds, paths, quota, tell};

/// An entry of a directory of a mount: the directory's inode, and where the name stands in the path. An empty name
/// is any entry.
#[derive(Clone, Copy)]
pub struct Entry {
    /// The directory's inode.
    pub dir: u64,
    start: usize,
    end: usize,
}

impl Entry {
    /// Finds the entry that `room`, taken from `dirfd`, names. `None` where its directory does not exist or is not of
    /// mount `index`.
    pub fn find(index: usize, dirfd: c_int, room: &mut PathBuf) -> Option<Self> {
        let dev = control::table()?.get(index)?.dev;
        let (start, end) = paths::last_component(room.bytes());
        let name = room.bytes().get(start..end).unwrap_or(&[]);
        let stat = if matches!(name, b"" | b"." | b"..") {
            let stat = sys::stat_at(dirfd, room.c_str(), k::AT_EMPTY_PATH).ok()?;
            return (stat.st_dev == dev).then_some(Self { dir: stat.st_ino, start: 0, end: 0 });
        } else if start == 0 {
            // What is behind a descriptor stays the same, wherever its directory is moved to.
            if let Some(file) =
                (dirfd >= 0).then(|| fds::file(dirfd)).flatten().filter(|file| file.mount == index)
            {
                return Some(Self { dir: file.ino, start, end });
            }
            sys::stat_at(dirfd, c"".as_ptr(), k::AT_EMPTY_PATH).ok()?
        } else {
            // With its slash, so that `/` stays `/`.
            room.with_head(start, |head| sys::stat_at(dirfd, head, 0)).ok()?
        };
        (stat.st_dev == dev).then_some(Self { dir: stat.st_ino, start, end })
    }

    /// The entry that `other` names, where it is spelled as one of the same directory as this one in `room`.
    fn sibling(self, room: &PathBuf, other: &PathBuf) -> Option<Self> {
        let (start, end) = paths::last_component(other.bytes());
        let (mine, theirs) = (room.bytes().get(..self.start)?, other.bytes().get(..start)?);
        let name = other.bytes().get(start..end)?;
        let plain = !matches!(name, b"" | b"." | b"..") && self.end != 0;
        (plain && mine == theirs).then_some(Self { dir: self.dir, start, end })
    }

    /// The intent that tells it.
    #[inline(always)]
    pub fn intent<'r>(&self, room: &'r PathBuf) -> Intent<'r> {
        Intent::Name { dir: self.dir, name: room.bytes().get(self.start..self.end).unwrap_or(&[]) }
    }
}

/// Tells that an entry may change; one that could not be found is reported by [`settle`].
#[inline(always)]
fn tell_entry(inside: &Inside, entry: Option<Entry>, room: &PathBuf) {
    if let Some(entry) = entry {
        inside.tell(&entry.intent(room));
    }
}

/// A change that succeeded though its directory could not be found before: somebody made it meanwhile.
fn settle(entry: Option<Entry>, answer: Answer) {
    if entry.is_none() && answer.is_ok() {
        tell::lost();
    }
}

/// Runs `act`, which changes the entry that `path` names, inside the gate and told. `Err` gives the place back where
/// it is in no mount: the function behind is then called with it.
pub fn change(
    kind: Change,
    dirfd: c_int,
    path: *const c_char,
    room: &mut PathBuf,
    mut act: impl FnMut(c_int, *const c_char) -> Answer,
) -> Result<Answer, Place> {
    // One copy of the code for all the calls there are.
    change_by(kind, dirfd, path, room, Act::new(&mut |(dirfd, path)| act(dirfd, path)))
}

#[inline(never)]
fn change_by(
    kind: Change,
    dirfd: c_int,
    path: *const c_char,
    room: &mut PathBuf,
    mut act: Act<'_, (c_int, *const c_char), Answer>,
) -> Result<Answer, Place> {
    let place = match place::entry(dirfd, path, room) {
        Ok(place) => place,
        Err(errno) => return Ok(Err(errno)),
    };
    let Some(index) = place.mount else { return Err(place) };
    let place = Place { path: room.c_str(), ..place };
    let mut before = Before::new(index);
    let (mut inside, entry) = loop {
        let inside = match gate::enter(index, 0) {
            Ok(inside) => inside,
            Err(errno) => return Ok(Err(errno)),
        };
        let entry = Entry::find(index, place.dirfd, room);
        if !before.lacks(kind, entry, place.dirfd, room.c_str()) {
            break (inside, entry);
        }
        inside.leave();
        if let Err(errno) = before.ask(place) {
            return Ok(Err(errno));
        }
    };
    inside.is_about(entry.map_or(0, |entry| entry.dir));
    tell_entry(&inside, entry, room);
    let answer = act.run((place.dirfd, room.c_str()));
    if inside.overtaken() {
        tell_entry(&inside, entry, room);
    }
    settle(entry, answer);
    Ok(answer)
}

/// What becomes of the first path's file in a call with two paths.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It moves.
    Rename,
    /// It gets a second name; the flag says whether a symbolic link is followed to it.
    Link {
        /// AT_SYMLINK_FOLLOW.
        follow: bool,
    },
}

/// One side of a call with two paths.
pub struct Side<'r> {
    /// What a relative path starts from.
    pub dirfd: c_int,
    /// The app's path.
    pub path: *const c_char,
    /// Room for its translation.
    pub room: &'r mut PathBuf,
}

/// As [`change`] for two paths. `Err` gives both places back where neither is in a mount.
pub fn change_two(
    kind: Kind,
    from: Side<'_>,
    to: Side<'_>,
    mut act: impl FnMut(Place, Place) -> Answer,
) -> Result<Answer, (Place, Place)> {
    change_two_by(kind, from, to, Act::new(&mut |(a, b)| act(a, b)))
}

#[inline(never)]
fn change_two_by(
    kind: Kind,
    from: Side<'_>,
    to: Side<'_>,
    mut act: Act<'_, (Place, Place), Answer>,
) -> Result<Answer, (Place, Place)> {
    if sys::leads_nowhere(from.path) || sys::leads_nowhere(to.path) {
        return Ok(Err(Errno::of(errno::EFAULT)));
    }
    let places = place::entry(from.dirfd, from.path, from.room)
        .and_then(|a| place::entry(to.dirfd, to.path, to.room).map(|b| (a, b)));
    let (mut a, b) = match places {
        Ok(places) => places,
        Err(errno) => return Ok(Err(errno)),
    };
    if a.mount.is_none() && b.mount.is_some() && kind == (Kind::Link { follow: true }) {
        // The way to name a file that has none (O_TMPFILE): it is linked to by its descriptor's link below /proc.
        match place::target(from.dirfd, from.path, true, from.room) {
            Ok(place) => a = place,
            Err(errno) => return Ok(Err(errno)),
        }
    }
    let index = match (a.mount, b.mount) {
        (None, None) => return Err((a, b)),
        (Some(one), Some(other)) if one == other => one,
        // A volume is a file system of its own.
        _ => return Ok(Err(across(kind, a, b))),
    };
    if kind == Kind::Rename && (place::is_root(from.room.bytes()) || place::is_root(to.room.bytes())) {
        return Ok(Err(Errno::of(errno::EBUSY)));
    }
    if !same_directory(a, from.room, b, to.room)
        && (leads_out(index, a, from.room) || leads_out(index, b, to.room))
    {
        return Ok(Err(across(kind, a, b)));
    }
    let (mut before_old, mut before_new) = (Before::new(index), Before::new(index));
    let mut counted = false;
    let (mut inside, old, new, file) = loop {
        let inside = match gate::enter(index, 0) {
            Ok(inside) => inside,
            Err(errno) => return Ok(Err(errno)),
        };
        let old = if kind == Kind::Rename { Entry::find(index, a.dirfd, from.room) } else { None };
        let new = match old {
            Some(old) if a.dirfd == b.dirfd => old.sibling(from.room, to.room),
            _ => None,
        };
        let new = new.or_else(|| Entry::find(index, b.dirfd, to.room));
        // The link count of a file with two names changes.
        let (file, lacks) = match kind {
            Kind::Rename => (None, before_old.lacks(Change::Move, old, a.dirfd, a.path)),
            Kind::Link { follow } => {
                let follow = if follow { 0 } else { k::AT_SYMLINK_NOFOLLOW };
                let file = sys::stat_at(a.dirfd, a.path, follow | k::AT_EMPTY_PATH).ok();
                let seeks = file.is_none() && before_old.seeks();
                (file, seeks)
            }
        };
        if let Some(stat) = file.filter(|stat| !counted && stat.st_nlink == 0 && control::has_quota(index)) {
            inside.leave();
            counted = true;
            let there = |b: Place| absent::stat_at(b.dirfd, b.path, k::AT_SYMLINK_NOFOLLOW).is_ok();
            match quota::named(index, &stat) {
                Err(errno) if !there(b) => return Ok(Err(errno)),
                _ => continue,
            }
        }
        let goes = if kind == Kind::Rename { Change::Remove } else { Change::Move };
        let (before, place) = if lacks {
            (&mut before_old, a)
        } else if before_new.lacks(goes, new, b.dirfd, b.path) {
            (&mut before_new, b)
        } else {
            break (inside, old, new, file);
        };
        inside.leave();
        if let Err(errno) = before.ask(place) {
            return Ok(Err(errno));
        }
    };
    let tell = |inside: &Inside| {
        tell_entry(inside, old, from.room);
        tell_entry(inside, new, to.room);
        if let Some(stat) = &file {
            inside.tell(&Intent::Attributes { ino: stat.st_ino });
        }
    };
    tell(&inside);
    let answer = act.run((a, b));
    if inside.overtaken() {
        tell(&inside);
    }
    if kind == Kind::Rename {
        settle(old, answer);
    }
    settle(new, answer);
    Ok(answer)
}

/// Whether two entries are spelled as ones of the same directory.
fn same_directory(a: Place, one: &PathBuf, b: Place, other: &PathBuf) -> bool {
    let head = |path: &'_ PathBuf| paths::last_component(path.bytes()).0;
    a.dirfd == b.dirfd && one.bytes().get(..head(one)) == other.bytes().get(..head(other))
}

/// Whether a symbolic link leads to the entry's directory out of every mount, to another place of the same device: what is
/// moved from there comes with descriptors and directories that are known as ones outside.
#[inline(never)]
fn leads_out(index: usize, place: Place, room: &mut PathBuf) -> bool {
    let (start, end) = paths::last_component(room.bytes());
    // A descriptor by an empty path or a link of its own is looked at as what it is, and the working directory was
    // classed by its real path.
    if end == 0 || start == 0 && place.dirfd == place::CWD || !core::ptr::eq(place.path, room.c_str()) {
        return false;
    }
    let dev = control::table().and_then(|table| table.get(index)).map(|entry| entry.dev);
    let outside = |dirfd, head| {
        absent::stat_at(dirfd, head, 0).is_ok_and(|stat| Some(stat.st_dev) == dev)
            && place::is_outside(dirfd, head)
    };
    if start == 0 {
        outside(place.dirfd, c".".as_ptr())
    } else {
        room.with_head(start, |head| outside(place.dirfd, head))
    }
}

/// What the kernel says of a rename or a link from one file system to another.
#[cold]
fn across(kind: Kind, from: Place, to: Place) -> Errno {
    let border = Errno::of(errno::EXDEV);
    let Kind::Link { follow } = kind else { return border };
    let follow = if follow { 0 } else { k::AT_SYMLINK_NOFOLLOW };
    if let Err(errno) = absent::stat_at(from.dirfd, from.path, follow | k::AT_EMPTY_PATH) {
        return errno;
    }
    match absent::stat_at(to.dirfd, to.path, k::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Errno::of(errno::EEXIST),
        Err(_) => border,
    }
}

/// Tells the name that the kernel gives for `fd`: for a file of mount `index` that came by another way than a name in
/// it.
pub fn tell_by_path(index: usize, fd: c_int) {
    let mut bytes = Bytes::new();
    let Ok(path) = sys::fd_path(fd, &mut bytes) else { return tell::lost() };
    let mut room = PathBuf::new();
    if room.push(path).is_err() {
        return tell::lost();
    }
    // No entry: a file that has no name any more.
    if let Some(entry) = Entry::find(index, place::CWD, &mut room) {
        tell::note(index, &entry.intent(&room));
    }
}
