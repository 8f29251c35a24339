//! Making, removing and moving names.

use core::ffi::{CStr, c_char, c_int};

use crate::absent::Change;
use crate::hook::{answer, fail, hook, real};
use crate::names::{Kind, Side, change, change_two};
use crate::place::{self, CWD};
use crate::sys::{self, Answer, Errno, PathBuf, errno, k};

hook! {
    unsafe fn mkdir(path: *const c_char, mode: u32) -> c_int => my_mkdir {
        let mut room = PathBuf::new();
        match change(Change::Create, CWD, path, &mut room, |dirfd, path| sys::mkdirat(dirfd, path, mode)) {
            Ok(done) => answer(done),
            Err(place) => real!(mkdir)(place.path, mode),
        }
    }
}

hook! {
    unsafe fn mkdirat(dirfd: c_int, path: *const c_char, mode: u32) -> c_int => my_mkdirat {
        let mut room = PathBuf::new();
        match change(Change::Create, dirfd, path, &mut room, |dirfd, path| sys::mkdirat(dirfd, path, mode)) {
            Ok(done) => answer(done),
            Err(place) => real!(mkdirat)(place.dirfd, place.path, mode),
        }
    }
}

/// unlinkat(2); but a mount cannot be removed.
fn remove_at(dirfd: c_int, path: *const c_char, flags: u32) -> Answer {
    // SAFETY: `change` hands a C string of ours.
    if flags & k::AT_REMOVEDIR != 0 && place::is_root(unsafe { CStr::from_ptr(path) }.to_bytes()) {
        return Err(Errno::of(errno::EBUSY));
    }
    sys::unlinkat(dirfd, path, flags as c_int)
}

hook! {
    unsafe fn rmdir(path: *const c_char) -> c_int => my_rmdir {
        let mut room = PathBuf::new();
        match change(Change::Remove, CWD, path, &mut room, |dirfd, path| remove_at(dirfd, path, k::AT_REMOVEDIR)) {
            Ok(done) => answer(done),
            Err(place) => real!(rmdir)(place.path),
        }
    }
}

hook! {
    unsafe fn unlink(path: *const c_char) -> c_int => my_unlink {
        let mut room = PathBuf::new();
        match change(Change::Remove, CWD, path, &mut room, |dirfd, path| sys::unlinkat(dirfd, path, 0)) {
            Ok(done) => answer(done),
            Err(place) => real!(unlink)(place.path),
        }
    }
}

hook! {
    unsafe fn unlinkat(dirfd: c_int, path: *const c_char, flags: c_int) -> c_int => my_unlinkat {
        let mut room = PathBuf::new();
        match change(Change::Remove, dirfd, path, &mut room, |dirfd, path| remove_at(dirfd, path, flags as u32)) {
            Ok(done) => answer(done),
            Err(place) => real!(unlinkat)(place.dirfd, place.path, flags),
        }
    }
}

hook! {
    unsafe fn remove(path: *const c_char) -> c_int => my_remove {
        let mut room = PathBuf::new();
        let either = |dirfd, path| match sys::unlinkat(dirfd, path, 0) {
            Err(e) if e == Errno::of(errno::EISDIR) => remove_at(dirfd, path, k::AT_REMOVEDIR),
            done => done,
        };
        match change(Change::Remove, CWD, path, &mut room, either) {
            Ok(done) => answer(done),
            Err(place) => real!(remove)(place.path),
        }
    }
}

hook! {
    unsafe fn mknod(path: *const c_char, mode: u32, dev: u64) -> c_int => my_mknod {
        let mut room = PathBuf::new();
        match change(Change::Create, CWD, path, &mut room, |dirfd, path| sys::mknodat(dirfd, path, mode, dev)) {
            Ok(done) => answer(done),
            Err(place) => real!(mknod)(place.path, mode, dev),
        }
    }
}

hook! {
    unsafe fn mknodat(dirfd: c_int, path: *const c_char, mode: u32, dev: u64) -> c_int => my_mknodat {
        let mut room = PathBuf::new();
        match change(Change::Create, dirfd, path, &mut room, |dirfd, path| sys::mknodat(dirfd, path, mode, dev)) {
            Ok(done) => answer(done),
            Err(place) => real!(mknodat)(place.dirfd, place.path, mode, dev),
        }
    }
}

hook! {
    unsafe fn __xmknod(version: c_int, path: *const c_char, mode: u32, dev: *const u64) -> c_int => my_xmknod {
        let mut room = PathBuf::new();
        match change(Change::Create, CWD, path, &mut room, |dirfd, path| sys::mknodat(dirfd, path, mode, *dev)) {
            Ok(done) => answer(done),
            Err(place) => real!(__xmknod)(version, place.path, mode, dev),
        }
    }
}

hook! {
    unsafe fn __xmknodat(version: c_int, dirfd: c_int, path: *const c_char, mode: u32, dev: *const u64) -> c_int
        => my_xmknodat {
        let mut room = PathBuf::new();
        match change(Change::Create, dirfd, path, &mut room, |dirfd, path| sys::mknodat(dirfd, path, mode, *dev)) {
            Ok(done) => answer(done),
            Err(place) => real!(__xmknodat)(version, place.dirfd, place.path, mode, dev),
        }
    }
}

hook! {
    unsafe fn mkfifo(path: *const c_char, mode: u32) -> c_int => my_mkfifo {
        let mut room = PathBuf::new();
        match change(Change::Create, CWD, path, &mut room, |dirfd, path| sys::mknodat(dirfd, path, mode | k::S_IFIFO, 0)) {
            Ok(done) => answer(done),
            Err(place) => real!(mkfifo)(place.path, mode),
        }
    }
}

hook! {
    unsafe fn mkfifoat(dirfd: c_int, path: *const c_char, mode: u32) -> c_int => my_mkfifoat {
        let mut room = PathBuf::new();
        match change(Change::Create, dirfd, path, &mut room, |dirfd, path| sys::mknodat(dirfd, path, mode | k::S_IFIFO, 0)) {
            Ok(done) => answer(done),
            Err(place) => real!(mkfifoat)(place.dirfd, place.path, mode),
        }
    }
}

hook! {
    unsafe fn symlink(target: *const c_char, path: *const c_char) -> c_int => my_symlink {
        my_symlinkat(target, CWD, path)
    }
}

hook! {
    /// A target below a logical prefix is stored as one below its tree, so that the kernel can follow it; readlink
    /// gives it back as it was written.
    unsafe fn symlinkat(target: *const c_char, dirfd: c_int, path: *const c_char) -> c_int => my_symlinkat {
        let mut target_room = PathBuf::new();
        let mut room = PathBuf::new();
        let target = if !sys::leads_nowhere(target) && *target as u8 == b'/' {
            match place::real_target(CStr::from_ptr(target).to_bytes(), &mut target_room) {
                None => target,
                Some(Ok(real)) => real.c_str(),
                Some(Err(errno)) => return fail(errno),
            }
        } else {
            target
        };
        match change(Change::Create, dirfd, path, &mut room, |dirfd, path| sys::symlinkat(target, dirfd, path)) {
            Ok(done) => answer(done),
            Err(place) => real!(symlinkat)(target, place.dirfd, place.path),
        }
    }
}

/// A call with two paths.
macro_rules! two {
    ($kind:expr, $a:expr, $from:expr, $b:expr, $to:expr, $act:expr, $outside:expr) => {{
        let (mut one, mut other) = (PathBuf::new(), PathBuf::new());
        let from = Side { dirfd: $a, path: $from, room: &mut one };
        let to = Side { dirfd: $b, path: $to, room: &mut other };
        match change_two($kind, from, to, $act) {
            Ok(done) => answer(done),
            Err((from, to)) => $outside(from, to),
        }
    }};
}

hook! {
    unsafe fn rename(from: *const c_char, to: *const c_char) -> c_int => my_rename {
        two!(Kind::Rename, CWD, from, CWD, to,
            |a: place::Place, b: place::Place| sys::renameat2(a.dirfd, a.path, b.dirfd, b.path, 0),
            |a: place::Place, b: place::Place| real!(rename)(a.path, b.path))
    }
}

hook! {
    unsafe fn renameat(a: c_int, from: *const c_char, b: c_int, to: *const c_char) -> c_int => my_renameat {
        two!(Kind::Rename, a, from, b, to,
            |a: place::Place, b: place::Place| sys::renameat2(a.dirfd, a.path, b.dirfd, b.path, 0),
            |a: place::Place, b: place::Place| real!(renameat)(a.dirfd, a.path, b.dirfd, b.path))
    }
}

hook! {
    unsafe fn renameat2(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: u32) -> c_int
        => my_renameat2 {
        two!(Kind::Rename, a, from, b, to,
            |a: place::Place, b: place::Place| sys::renameat2(a.dirfd, a.path, b.dirfd, b.path, flags),
            |a: place::Place, b: place::Place| real!(renameat2)(a.dirfd, a.path, b.dirfd, b.path, flags))
    }
}

hook! {
    unsafe fn link(from: *const c_char, to: *const c_char) -> c_int => my_link {
        two!(Kind::Link { follow: false }, CWD, from, CWD, to,
            |a: place::Place, b: place::Place| sys::linkat(a.dirfd, a.path, b.dirfd, b.path, 0),
            |a: place::Place, b: place::Place| real!(link)(a.path, b.path))
    }
}

hook! {
    unsafe fn linkat(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: c_int) -> c_int => my_linkat {
        two!(Kind::Link { follow: flags as u32 & k::AT_SYMLINK_FOLLOW != 0 }, a, from, b, to,
            |a: place::Place, b: place::Place| sys::linkat(a.dirfd, a.path, b.dirfd, b.path, flags),
            |a: place::Place, b: place::Place| real!(linkat)(a.dirfd, a.path, b.dirfd, b.path, flags))
    }
}
