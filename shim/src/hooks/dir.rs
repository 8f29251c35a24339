//! Directories and walkers. Names that come out of a directory are relative, so only what goes in is translated;
//! the walkers that hand out whole paths (ftw, fts) show those of the tree.

use core::ffi::{c_char, c_int, c_uint, c_void};
use core::mem::MaybeUninit;

use crate::fds;
use crate::hook::{fail, hook, path_hook, real};
use crate::place::{self, CWD};
use crate::sys::PathBuf;

path_hook! { fn scandir(path, list: *mut c_void, filter: *const c_void, order: *const c_void) -> c_int => my_scandir }
path_hook! { fn scandir64(path, list: *mut c_void, filter: *const c_void, order: *const c_void) -> c_int => my_scandir64 }
path_hook! {
    fn scandirat(@dirfd, path, list: *mut c_void, filter: *const c_void, order: *const c_void) -> c_int => my_scandirat
}
path_hook! {
    fn scandirat64(@dirfd, path, list: *mut c_void, filter: *const c_void, order: *const c_void) -> c_int
        => my_scandirat64
}
path_hook! { fn ftw(path, each: *const c_void, depth: c_int) -> c_int => my_ftw }
path_hook! { fn ftw64(path, each: *const c_void, depth: c_int) -> c_int => my_ftw64 }
path_hook! { fn nftw(path, each: *const c_void, depth: c_int, flags: c_int) -> c_int => my_nftw }
path_hook! { fn nftw64(path, each: *const c_void, depth: c_int, flags: c_int) -> c_int => my_nftw64 }

unsafe extern "C" {
    fn dirfd(stream: *mut c_void) -> c_int;
}

hook! {
    unsafe fn opendir(path: *const c_char) -> *mut c_void => my_opendir {
        let mut room = PathBuf::new();
        match place::at(CWD, path, &mut room) {
            Ok(place) => {
                let stream = real!(opendir)(place.path);
                if !stream.is_null() {
                    fds::forget(dirfd(stream));
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

/// Roots that a fts walk is translated for; with more it sees them as they are.
const ROOTS: usize = 8;

/// Calls `open` with the roots translated.
///
/// # Safety
/// `roots` must be an array of C strings that ends with null.
unsafe fn with_roots(
    roots: *const *const c_char,
    open: impl FnOnce(*const *const c_char) -> *mut c_void,
) -> *mut c_void {
    let mut rooms = [const { MaybeUninit::<PathBuf>::uninit() }; ROOTS];
    let mut translated = [core::ptr::null::<c_char>(); ROOTS + 1];
    for (at, (room, to)) in rooms.iter_mut().zip(&mut translated).enumerate() {
        // SAFETY: the end has not come yet.
        let root = unsafe { *roots.add(at) };
        if root.is_null() {
            return open(translated.as_ptr());
        }
        match place::at(CWD, root, room.write(PathBuf::new())) {
            Ok(place) => *to = place.path,
            Err(errno) => return fail(errno),
        }
    }
    // SAFETY: as many roots as there are rooms were not null.
    if unsafe { (*roots.add(ROOTS)).is_null() } { open(translated.as_ptr()) } else { open(roots) }
}

type Compare = *const c_void;

hook! {
    unsafe fn fts_open(roots: *const *const c_char, options: c_int, order: Compare) -> *mut c_void => my_fts_open {
        with_roots(roots, |roots| real!(fts_open)(roots, options, order))
    }
}

hook! {
    unsafe fn fts64_open(roots: *const *const c_char, options: c_int, order: Compare) -> *mut c_void
        => my_fts64_open {
        with_roots(roots, |roots| real!(fts64_open)(roots, options, order))
    }
}

/// glob_t of both libcs, as far as it is used. musl reserves the space of the functions and does not call them.
#[repr(C)]
pub struct Glob {
    count: usize,
    paths: *mut *mut c_char,
    offset: usize,
    flags: c_int,
    close: usize,
    read: usize,
    open: usize,
    lstat: usize,
    stat: usize,
}

const GLOB_ALTDIRFUNC: c_int = 1 << 9;

/// Turns the paths that a glob has found round, in place; one that would grow stays as it is.
///
/// # Safety
/// `out` must be what a glob with this result left.
unsafe fn turn_found(result: c_int, out: *mut Glob) {
    if result != 0 {
        return;
    }
    // SAFETY: as above: an array of C strings, which are the app's to change.
    unsafe {
        for at in 0..(*out).count {
            let path = *(*out).paths.add((*out).offset.wrapping_add(at));
            let old = core::ffi::CStr::from_ptr(path).to_bytes();
            let mut room = PathBuf::new();
            match place::turned(old, &mut room) {
                Some(new) if new.len() <= old.len() => {
                    super::cwd::give(new, path, old.len() + 1);
                }
                _ => {}
            }
        }
    }
}

/// Globs with directories opened by our functions, so that the pattern and what it finds stay logical.
///
/// # Safety
/// The contract of glob(3).
unsafe fn glob_with(
    pattern: *const c_char,
    flags: c_int,
    out: *mut Glob,
    call: impl Fn(*const c_char, c_int) -> c_int,
) -> c_int {
    let mut room = PathBuf::new();
    let translated = match place::at(CWD, pattern, &mut room) {
        Ok(place) => !core::ptr::eq(place.path, pattern),
        Err(_) => false,
    };
    if !translated || out.is_null() || flags & GLOB_ALTDIRFUNC != 0 {
        return call(pattern, flags);
    }
    static READ: crate::loader::Real = crate::loader::Real::new();
    static GLIBC: crate::loader::Real = crate::loader::Real::new();
    if GLIBC.look_up(c"gnu_get_libc_version").is_none() {
        // musl knows no such functions: what it finds is turned round afterwards.
        let result = call(room.c_str(), flags);
        // SAFETY: a glob that has not failed has filled `out` in.
        unsafe { turn_found(result, out) };
        return result;
    }
    // SAFETY: `out` is the app's glob_t.
    unsafe {
        (*out).close = my_closedir as *const () as usize;
        (*out).read = READ.address(c"readdir64");
        (*out).open = my_opendir as *const () as usize;
        (*out).lstat = super::stat::my_lstat as *const () as usize;
        (*out).stat = super::stat::my_stat as *const () as usize;
    }
    call(pattern, flags | GLOB_ALTDIRFUNC)
}

hook! {
    unsafe fn glob(pattern: *const c_char, flags: c_int, error: *const c_void, out: *mut Glob) -> c_int => my_glob {
        glob_with(pattern, flags, out, |pattern, flags| real!(glob)(pattern, flags, error, out))
    }
}

hook! {
    unsafe fn glob64(pattern: *const c_char, flags: c_int, error: *const c_void, out: *mut Glob) -> c_int
        => my_glob64 {
        glob_with(pattern, flags, out, |pattern, flags| real!(glob64)(pattern, flags, error, out))
    }
}

hook! {
    unsafe fn inotify_add_watch(fd: c_int, path: *const c_char, mask: c_uint) -> c_int => my_inotify_add_watch {
        let mut room = PathBuf::new();
        match place::at(CWD, path, &mut room) {
            Ok(place) => real!(inotify_add_watch)(fd, place.path, mask),
            Err(errno) => fail(errno),
        }
    }
}
