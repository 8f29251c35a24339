//! Reading symbolic links: a target below a tree is turned round, be it one that a program stored or one of the
//! kernel's (/proc/self/cwd, exe, fd/N).

use core::ffi::{c_char, c_int};

use crate::hook::{answer, fail, hook, real};
use crate::place::{self, CWD, Place};
use crate::sys::{self, Answer, Bytes, PathBuf};
use crate::{absent, control, detour};

/// Reads the link, turned round; `None` where no mount is translated.
///
/// # Safety
/// `out` must have room for `size` bytes.
unsafe fn turned_link(place: Place, out: *mut c_char, size: usize) -> Option<Answer> {
    if !control::table()?.translates || size == 0 || sys::leads_nowhere(out) {
        return None;
    }
    let mut bytes = Bytes::new();
    let target = match sys::readlink_at(place.dirfd, place.path, &mut bytes) {
        Ok(target) => target,
        Err(errno) => return Some(Err(errno)),
    };
    let mut room = PathBuf::new();
    let target = place::turned(target, &mut room).unwrap_or(target);
    let n = target.len().min(size);
    // SAFETY: the caller vouches for `size` bytes.
    unsafe { core::ptr::copy_nonoverlapping(target.as_ptr().cast(), out, n) };
    Some(Ok(n))
}

#[inline(always)]
unsafe fn read(
    dirfd: c_int,
    path: *const c_char,
    out: *mut c_char,
    size: usize,
    otherwise: impl Fn(Place) -> isize,
) -> isize {
    let mut room = PathBuf::new();
    match place::at(dirfd, path, &mut room) {
        Ok(place) => {
            let done = absent::found(place, || {
                // SAFETY: the caller vouches for `out`.
                match unsafe { turned_link(place, out, size) } {
                    Some(done) => answer(done),
                    None => otherwise(place),
                }
            });
            if done >= 0 {
                return done;
            }
            // SAFETY: as above.
            detour::by_link(place, |inside| unsafe { my_readlink(inside, out, size) }).unwrap_or(done)
        }
        Err(errno) => fail(errno),
    }
}

hook! {
    unsafe fn readlink(path: *const c_char, out: *mut c_char, size: usize) -> isize => my_readlink {
        read(CWD, path, out, size, |place| real!(readlink)(place.path, out, size))
    }
}

hook! {
    unsafe fn readlinkat(dirfd: c_int, path: *const c_char, out: *mut c_char, size: usize) -> isize => my_readlinkat {
        read(dirfd, path, out, size, |place| real!(readlinkat)(place.dirfd, place.path, out, size))
    }
}

hook! {
    unsafe fn __readlink_chk(path: *const c_char, out: *mut c_char, size: usize, room: usize) -> isize
        => my_readlink_chk {
        if size > room {
            // Ends the program, as the check demands.
            return real!(__readlink_chk)(path, out, size, room);
        }
        my_readlink(path, out, size)
    }
}

hook! {
    unsafe fn __readlinkat_chk(dirfd: c_int, path: *const c_char, out: *mut c_char, size: usize, room: usize) -> isize
        => my_readlinkat_chk {
        if size > room {
            return real!(__readlinkat_chk)(dirfd, path, out, size, room);
        }
        my_readlinkat(dirfd, path, out, size)
    }
}
