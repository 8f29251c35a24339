//! Directories. Names that come out of one are relative, so only what goes in is translated.

use core::ffi::{c_char, c_int, c_uint, c_void};

use crate::hook::{answer, fail, hook, real};
use crate::place::{self, CWD};
use crate::sys::{self, PathBuf, k};
use crate::{absent, detour, fds};

unsafe extern "C" {
    fn dirfd(stream: *mut c_void) -> c_int;
}

hook! {
    unsafe fn opendir(path: *const c_char) -> *mut c_void => my_opendir {
        let mut room = PathBuf::new();
        match place::at(CWD, path, &mut room) {
            Ok(place) => {
                let stream = absent::found(place, || real!(opendir)(place.path));
                if stream.is_null() {
                    return detour::by_link(place, |inside| my_opendir(inside)).unwrap_or(stream);
                }
                fds::forget(dirfd(stream));
                if let Err(errno) = absent::listing(dirfd(stream)) {
                    my_closedir(stream);
                    return fail(errno);
                }
                stream
            }
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    unsafe fn closedir(stream: *mut c_void) -> c_int => my_closedir {
        if !stream.is_null() {
            fds::forget(dirfd(stream));
        }
        real!(closedir)(stream)
    }
}

hook! {
    unsafe fn fdopendir(fd: c_int) -> *mut c_void => my_fdopendir {
        match absent::listing(fd) {
            Ok(()) => real!(fdopendir)(fd),
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    unsafe fn getdents64 | getdents(fd: c_int, out: *mut c_void, size: usize) -> isize => my_getdents64 {
        // By the kernel, because each libc has one of the names.
        answer(absent::listing(fd).and_then(|()| {
            sys::raw(k::__NR_getdents64 as usize, fd as usize, out as usize, size.min(c_int::MAX as usize), 0, 0, 0)
        }))
    }
}

hook! {
    unsafe fn getdirentries | getdirentries64(fd: c_int, out: *mut c_void, size: usize, base: *mut i64) -> isize
        => my_getdirentries {
        match absent::listing(fd) {
            Ok(()) => real!(getdirentries)(fd, out, size, base),
            Err(errno) => fail(errno),
        }
    }
}

/// Has what libc is about to list brought, and calls `act` with its place.
#[inline(never)]
fn listing(dirfd: c_int, path: *const c_char, act: &dyn Fn(place::Place) -> c_int) -> c_int {
    let mut room = PathBuf::new();
    match place::at(dirfd, path, &mut room).and_then(|place| absent::listing_at(place).map(|()| place)) {
        Ok(place) => act(place),
        Err(errno) => fail(errno),
    }
}

hook! {
    unsafe fn scandir | scandir64(path: *const c_char, list: *mut c_void, filter: *const c_void, order: *const c_void)
        -> c_int => my_scandir {
        listing(CWD, path, &|place| real!(scandir)(place.path, list, filter, order))
    }
}

hook! {
    unsafe fn scandirat | scandirat64(dirfd: c_int, path: *const c_char, list: *mut c_void, filter: *const c_void,
        order: *const c_void) -> c_int => my_scandirat {
        listing(dirfd, path, &|place| real!(scandirat)(place.dirfd, place.path, list, filter, order))
    }
}

hook! {
    /// What comes later is to be news, and not what was there already.
    unsafe fn inotify_add_watch(fd: c_int, path: *const c_char, mask: c_uint) -> c_int => my_inotify_add_watch {
        listing(CWD, path, &|place| real!(inotify_add_watch)(fd, place.path, mask))
    }
}
