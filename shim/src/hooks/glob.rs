//! glob. glibc is given our functions to look with, so that pattern and results stay the app's; musl, which takes none, is
//! given the tree's spelling, and its results are respelled.

use core::ffi::{CStr, c_char, c_int, c_void};

use super::{dir, stat};
use crate::absent;
use crate::control;
use crate::hook::{fail, hook, real};
use crate::loader::{self, Real};
use crate::place::{CWD, Place};
use crate::respell::{self, Respell};
use crate::sys::PathBuf;

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

unsafe extern "C" {
    /// Gives back what a glob has found.
    pub fn globfree(found: *mut Glob);
}

const GLOB_APPEND: c_int = 1 << 5;
const GLOB_ALTDIRFUNC: c_int = 1 << 9;

/// # Safety
/// The contract of glob(3).
unsafe fn glob_with(
    pattern: *const c_char,
    flags: c_int,
    out: *mut Glob,
    call: impl Fn(*const c_char, c_int, *mut Glob) -> c_int,
) -> c_int {
    let translates = control::table().is_some_and(|table| table.translates);
    if !(translates || absent::some_lacks_names()) || pattern.is_null() || out.is_null() {
        return call(pattern, flags, out);
    }
    if !loader::is_glibc() {
        // SAFETY: the caller keeps the contract of glob(3).
        return unsafe { respelled(pattern, flags, out, call) };
    }
    if flags & GLOB_ALTDIRFUNC != 0 {
        // The app's own functions look, and what they call is hooked.
        return call(pattern, flags, out);
    }
    static READ: Real = Real::new();
    // SAFETY: `out` is the app's glob_t, whose functions nobody reads without that flag.
    unsafe {
        (*out).close = dir::my_closedir as *const () as usize;
        (*out).read = READ.address(c"readdir64");
        (*out).open = dir::my_opendir as *const () as usize;
        (*out).lstat = stat::my_lstat as *const () as usize;
        (*out).stat = stat::my_stat as *const () as usize;
        let result = call(pattern, flags | GLOB_ALTDIRFUNC, out);
        (*out).flags &= !GLOB_ALTDIRFUNC;
        result
    }
}

/// Has all directories brought that a glob of `pattern` is about to look into.
fn prepare(pattern: &[u8], flags: c_int, call: &dyn Fn(*const c_char, c_int, *mut Glob) -> c_int) {
    const GLOB_NOCHECK: c_int = 1 << 4;
    const GLOB_DOOFFS: c_int = 1 << 3;
    let mut at = 0;
    while absent::some_lacks_names()
        && let Some(slash) = pattern.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'/'))
    {
        at += slash + 1;
        let mut head = PathBuf::new();
        let mut found = core::mem::MaybeUninit::<Glob>::zeroed();
        let flags = flags & !(GLOB_APPEND | GLOB_NOCHECK | GLOB_DOOFFS);
        if head.push(pattern.get(..at).unwrap_or(&[])).is_err()
            || call(head.c_str(), flags, found.as_mut_ptr()) != 0
        {
            continue;
        }
        // SAFETY: a glob that has succeeded has left an array of C strings.
        unsafe {
            let found = found.assume_init_mut();
            for path in (0..found.count).map(|at| *found.paths.add(at)) {
                // What cannot be listed is not found.
                let _ = absent::listing_at(Place { mount: None, dirfd: CWD, path });
            }
            globfree(found);
        }
    }
}

/// Globs in the tree's spelling and turns what is found round.
///
/// # Safety
/// The contract of glob(3).
unsafe fn respelled(
    pattern: *const c_char,
    flags: c_int,
    out: *mut Glob,
    call: impl Fn(*const c_char, c_int, *mut Glob) -> c_int,
) -> c_int {
    const GLOB_ABORTED: c_int = 2;
    let (mut room, mut long) = (PathBuf::new(), PathBuf::new());
    // SAFETY: `pattern` is a C string.
    let app = unsafe { CStr::from_ptr(pattern) }.to_bytes();
    let spelling = match respell::root(pattern, &mut room) {
        Ok(None) => {
            prepare(app, flags, &call);
            return call(pattern, flags, out);
        }
        // Results are as long as the pattern's beginning, and so become no longer.
        Ok(Some((real, _))) => {
            respell::padded(&mut long, real, app.len()).map(|()| Respell::new(app, long.bytes()))
        }
        Err(errno) => Err(errno),
    };
    let spelling = match spelling {
        Ok(spelling) => spelling,
        Err(errno) => {
            let _: c_int = fail(errno);
            return GLOB_ABORTED;
        }
    };
    // SAFETY: with GLOB_APPEND `out` holds the results of earlier calls.
    let old = if flags & GLOB_APPEND != 0 { unsafe { (*out).count } } else { 0 };
    prepare(long.bytes(), flags, &call);
    let result = call(long.c_str(), flags, out);
    if result == 0 {
        // SAFETY: a glob that has succeeded has left an array of C strings, which are the app's to change.
        unsafe {
            for at in old..(*out).count {
                let path = *(*out).paths.add((*out).offset.wrapping_add(at));
                let mut whole = PathBuf::new();
                let found = CStr::from_ptr(path).to_bytes();
                let (head, tail) = spelling.parts(app, found);
                if whole.push(head).and_then(|()| whole.push(tail)).is_ok()
                    && whole.bytes().len() <= found.len()
                {
                    super::cwd::give(whole.bytes(), path, found.len() + 1);
                }
            }
        }
    }
    result
}

hook! {
    unsafe fn glob | glob64(pattern: *const c_char, flags: c_int, error: *const c_void, out: *mut Glob) -> c_int
        => my_glob {
        glob_with(pattern, flags, out, |pattern, flags, out| real!(glob)(pattern, flags, error, out))
    }
}
