//! Attributes: mode, owner, times, extended attributes; and truncation by path.

use core::ffi::{c_char, c_int, c_void};

use storeshim_protocol::Intent;
use storeshim_protocol::control::FLAG_COMPLETE;

use crate::absent::{self, Before};
use crate::act::Act;
use crate::gate::Inside;
use crate::hook::{answer, fail, hook, path_hook, real};
use crate::hooks::open::of_mount;
use crate::place::{self, CWD, Place};
use crate::quota::grows;
use crate::residency::Held;
use crate::sys::{self, Errno, PathBuf, k};
use crate::write::{TO_RESIZE, resizing_opened};
use crate::{control, fds, gate, residency};

/// Calls `act` with the place of `path`, inside the gate where it is in a mount, after the attributes of what it names
/// were told.
#[inline(always)]
pub fn by_path(
    dirfd: c_int,
    path: *const c_char,
    follow: bool,
    mut act: impl FnMut(Place) -> c_int,
) -> c_int {
    // One copy of the code for all the calls there are.
    by_path_of(dirfd, path, follow, Act::new(&mut act))
}

#[inline(never)]
fn by_path_of(dirfd: c_int, path: *const c_char, follow: bool, mut act: Act<'_, Place, c_int>) -> c_int {
    let mut room = PathBuf::new();
    let place = match place::target(dirfd, path, follow, &mut room) {
        Ok(place) => place,
        Err(errno) => return fail(errno),
    };
    let Some(index) = place.mount else { return act.run(place) };
    // AT_EMPTY_PATH: some of these take a descriptor by an empty path; with another path it says nothing.
    let flags = k::AT_EMPTY_PATH | if follow { 0 } else { k::AT_SYMLINK_NOFOLLOW };
    let (mut before, mut waited) = (Before::new(index), false);
    let (mut inside, ino) = loop {
        let inside = match gate::enter(index, 0) {
            Ok(inside) => inside,
            Err(errno) => return fail(errno),
        };
        let found = sys::stat_at(place.dirfd, place.path, flags);
        let ino = found.ok().filter(|stat| of_mount(index, stat)).map(|stat| stat.st_ino);
        match ino {
            Some(ino) if !waited && residency::is_moving(index, ino) => {
                inside.leave();
                residency::wait_moved(index, ino);
                waited = true;
            }
            None if found.is_err() && before.seeks() => {
                inside.leave();
                if let Err(errno) = before.ask(place) {
                    return fail(errno);
                }
            }
            _ => break (inside, ino),
        }
    };
    let tell = |inside: &gate::Inside| {
        if let Some(ino) = ino {
            inside.tell(&Intent::Attributes { ino });
        }
    };
    inside.is_about(ino.unwrap_or(0));
    tell(&inside);
    let result = act.run(place);
    if inside.overtaken() {
        tell(&inside);
    }
    result
}

/// The same for a descriptor.
#[inline(always)]
pub fn by_fd(fd: c_int, mut act: impl FnMut() -> c_int) -> c_int {
    by_fd_of(fd, Act::new(&mut |()| act()))
}

#[inline(never)]
fn by_fd_of(fd: c_int, mut act: Act<'_, (), c_int>) -> c_int {
    let Some(file) = fds::file_of_any_kind(fd) else { return act.run(()) };
    if residency::is_moving(file.mount, file.ino) {
        residency::wait_moved(file.mount, file.ino);
    }
    let mut inside = match gate::enter(file.mount, file.ino) {
        Ok(inside) => inside,
        Err(errno) => return fail(errno),
    };
    inside.tell(&Intent::Attributes { ino: file.ino });
    let result = act.run(());
    if inside.overtaken() {
        inside.tell(&Intent::Attributes { ino: file.ino });
    }
    result
}

/// Whether AT_* flags let a symbolic link be followed.
pub fn follows(flags: c_int) -> bool {
    flags as u32 & k::AT_SYMLINK_NOFOLLOW == 0
}

/// Declares hooks that change attributes: of what a path names (`follow` or `nofollow`), below a descriptor with
/// flags, or of a descriptor.
macro_rules! attribute_hooks {
    ($(path $follow:literal $name:ident($($arg:ident : $type:ty),*) => $mine:ident;)*) => {$(
        hook! {
            unsafe fn $name(path: *const c_char $(, $arg: $type)*) -> c_int => $mine {
                by_path(CWD, path, $follow, |place| real!($name)(place.path $(, $arg)*))
            }
        }
    )*};
    ($(at $name:ident($($arg:ident : $type:ty),*) => $mine:ident;)*) => {$(
        hook! {
            unsafe fn $name(dirfd: c_int, path: *const c_char $(, $arg: $type)*, flags: c_int) -> c_int => $mine {
                by_path(dirfd, path, follows(flags), |place| {
                    real!($name)(place.dirfd, place.path $(, $arg)*, flags)
                })
            }
        }
    )*};
    ($(fd $name:ident($($arg:ident : $type:ty),*) => $mine:ident;)*) => {$(
        hook! {
            unsafe fn $name(fd: c_int $(, $arg: $type)*) -> c_int => $mine {
                by_fd(fd, || real!($name)(fd $(, $arg)*))
            }
        }
    )*};
}

attribute_hooks! {
    path true chmod(mode: u32) => my_chmod;
    path false lchmod(mode: u32) => my_lchmod;
    path true chown(uid: u32, gid: u32) => my_chown;
    path false lchown(uid: u32, gid: u32) => my_lchown;
    path true utime(times: *const c_void) => my_utime;
    path true utimes(times: *const c_void) => my_utimes;
    path false lutimes(times: *const c_void) => my_lutimes;
    path true setxattr(name: *const c_char, value: *const c_void, size: usize, flags: c_int) => my_setxattr;
    path false lsetxattr(name: *const c_char, value: *const c_void, size: usize, flags: c_int) => my_lsetxattr;
    path true removexattr(name: *const c_char) => my_removexattr;
    path false lremovexattr(name: *const c_char) => my_lremovexattr;
}

attribute_hooks! {
    at fchmodat(mode: u32) => my_fchmodat;
    at fchownat(uid: u32, gid: u32) => my_fchownat;
}

attribute_hooks! {
    fd fchmod(mode: u32) => my_fchmod;
    fd fchown(uid: u32, gid: u32) => my_fchown;
    fd futimens(times: *const c_void) => my_futimens;
    fd futimes(times: *const c_void) => my_futimes;
    fd fsetxattr(name: *const c_char, value: *const c_void, size: usize, flags: c_int) => my_fsetxattr;
    fd fremovexattr(name: *const c_char) => my_fremovexattr;
}

hook! {
    unsafe fn utimensat(dirfd: c_int, path: *const c_char, times: *const c_void, flags: c_int) -> c_int
        => my_utimensat {
        if path.is_null() {
            // The kernel's form for a descriptor; libc refuses it.
            return by_fd(dirfd, || real!(utimensat)(dirfd, path, times, flags));
        }
        by_path(dirfd, path, follows(flags), |place| real!(utimensat)(place.dirfd, place.path, times, flags))
    }
}

hook! {
    unsafe fn futimesat(dirfd: c_int, path: *const c_char, times: *const c_void) -> c_int => my_futimesat {
        if path.is_null() {
            return by_fd(dirfd, || real!(futimesat)(dirfd, path, times));
        }
        by_path(dirfd, path, true, |place| real!(futimesat)(place.dirfd, place.path, times))
    }
}

path_hook! { fn getxattr(path, name: *const c_char, value: *mut c_void, size: usize) -> isize => my_getxattr }
path_hook! { fn lgetxattr(path, name: *const c_char, value: *mut c_void, size: usize) -> isize => my_lgetxattr }
path_hook! { fn listxattr(path, list: *mut c_char, size: usize) -> isize => my_listxattr }
path_hook! { fn llistxattr(path, list: *mut c_char, size: usize) -> isize => my_llistxattr }

/// Makes a call that libcs have no name for yet, or only the newest; it changes attributes.
///
/// # Safety
/// The contract of the call.
#[inline(never)]
unsafe fn new_change(number: u32, flags: usize, words: [usize; 6]) -> c_int {
    let [dirfd, path, a, b, c, d] = words;
    let act = |place: Place| {
        // SAFETY: the caller keeps the contract of the call.
        answer(unsafe { sys::raw(number as usize, place.dirfd as usize, place.path as usize, a, b, c, d) })
    };
    let (dirfd, path) = (dirfd as c_int, path as *const c_char);
    if path.is_null() {
        // The kernel's form for a descriptor.
        return by_fd(dirfd, || act(Place { mount: None, dirfd, path }));
    }
    by_path(dirfd, path, follows(flags as c_int), act)
}

hook! {
    unsafe fn setxattrat(dirfd: c_int, path: *const c_char, flags: usize, name: usize, value: usize, size: usize)
        -> c_int => my_setxattrat {
        new_change(k::__NR_setxattrat, flags, [dirfd as usize, path as usize, flags, name, value, size])
    }
}

hook! {
    unsafe fn removexattrat(dirfd: c_int, path: *const c_char, flags: usize, name: usize) -> c_int
        => my_removexattrat {
        new_change(k::__NR_removexattrat, flags, [dirfd as usize, path as usize, flags, name, 0, 0])
    }
}

hook! {
    unsafe fn file_setattr(dirfd: c_int, path: *const c_char, value: usize, size: usize, flags: usize) -> c_int
        => my_file_setattr {
        new_change(k::__NR_file_setattr, flags, [dirfd as usize, path as usize, value, size, flags, 0])
    }
}

/// The same for a call that only asks.
///
/// # Safety
/// The contract of the call.
#[inline(never)]
unsafe fn new_question(number: u32, dirfd: c_int, path: *const c_char, [a, b, c, d]: [usize; 4]) -> isize {
    let mut room = PathBuf::new();
    match place::at(dirfd, path, &mut room) {
        // SAFETY: the caller keeps the contract of the call.
        Ok(place) => answer(absent::reached(place, || unsafe {
            sys::raw(number as usize, place.dirfd as usize, place.path as usize, a, b, c, d)
        })),
        Err(errno) => fail(errno),
    }
}

hook! {
    unsafe fn getxattrat(dirfd: c_int, path: *const c_char, flags: usize, name: usize, value: usize, size: usize)
        -> isize => my_getxattrat {
        new_question(k::__NR_getxattrat, dirfd, path, [flags, name, value, size])
    }
}

hook! {
    unsafe fn listxattrat(dirfd: c_int, path: *const c_char, flags: usize, list: usize, size: usize) -> isize
        => my_listxattrat {
        new_question(k::__NR_listxattrat, dirfd, path, [flags, list, size, 0])
    }
}

hook! {
    unsafe fn file_getattr(dirfd: c_int, path: *const c_char, value: usize, size: usize, flags: usize) -> c_int
        => my_file_getattr {
        new_question(k::__NR_file_getattr, dirfd, path, [value, size, flags, 0]) as c_int
    }
}

/// What is to be asked before the file at `place` gets another size.
#[inline(never)]
fn truncating(index: usize, place: Place, size: u64) -> Result<Held, Errno> {
    let held = Held::complete(index);
    if control::flags(index) & FLAG_COMPLETE != 0 && control::unasked(index) == u64::MAX {
        return Ok(held);
    }
    let always = Held::always(index);
    let Ok(stat) = sys::stat_at(place.dirfd, place.path, 0) else { return Ok(always) };
    if !sys::is_regular(&stat) {
        return Ok(always);
    }
    let opened = sys::openat(place.dirfd, place.path, (TO_RESIZE | k::O_LARGEFILE) as c_int, 0);
    let held = resizing_opened(index, opened, size)?;
    if opened.is_ok() {
        grows(index, stat.st_ino, || size.saturating_sub(stat.st_size as u64))?;
    }
    Ok(held)
}

/// Enters the gate for truncate(2), once that holds.
#[inline(never)]
fn entered_to_truncate(index: usize, place: Place, length: i64) -> Result<Inside, Errno> {
    loop {
        let held = match u64::try_from(length) {
            Ok(size) => truncating(index, place, size)?,
            Err(_) => Held::always(index),
        };
        control::throttle(index);
        let inside = gate::enter(index, 0)?;
        if held.still() {
            return Ok(inside);
        }
    }
}

hook! {
    unsafe fn truncate | truncate64(path: *const c_char, length: i64) -> c_int => my_truncate {
        let mut room = PathBuf::new();
        let place = match place::target(CWD, path, true, &mut room) {
            Ok(place) => place,
            Err(errno) => return fail(errno),
        };
        let Some(index) = place.mount else { return real!(truncate)(place.path, length) };
        if let Err(errno) = absent::present(place) {
            return fail(errno);
        }
        let mut inside = match entered_to_truncate(index, place, length) {
            Ok(inside) => inside,
            Err(errno) => return fail(errno),
        };
        let ino = sys::stat_at(place.dirfd, place.path, 0).ok().filter(|s| of_mount(index, s)).map(|s| s.st_ino);
        inside.is_about(ino.unwrap_or(0));
        if let Some(ino) = ino {
            inside.tell_range(ino, length.max(0) as u64, u64::MAX);
        }
        let done = sys::truncate(place.path, length);
        if let (Some(ino), true) = (ino, inside.overtaken()) {
            inside.tell_range(ino, length.max(0) as u64, u64::MAX);
        }
        answer(done)
    }
}
