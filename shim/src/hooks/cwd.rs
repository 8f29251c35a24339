//! The working directory and canonical names: the kernel's answers are turned round.

use core::ffi::{c_char, c_int, c_void};

use crate::hook::{fail, hook, path_hook, real};
use crate::place::{self, CWD};
use crate::sys::{self, Bytes, Errno, PathBuf, errno};

unsafe extern "C" {
    fn malloc(size: usize) -> *mut c_void;
}

/// Copies `path` and a NUL into `out`, which has room for `size` bytes, or into fresh memory of at least that size
/// where `out` is null. Null and ERANGE where it does not fit.
///
/// # Safety
/// `out` must be null or have that room.
pub unsafe fn give(path: &[u8], out: *mut c_char, size: usize) -> *mut c_char {
    let need = path.len() + 1;
    let to = if out.is_null() {
        if size != 0 && size < need {
            return fail(Errno::of(errno::ERANGE));
        }
        // SAFETY: the app frees it, as it would libc's.
        unsafe { malloc(need.max(size)) }.cast::<c_char>()
    } else if size < need {
        return fail(Errno::of(errno::ERANGE));
    } else {
        out
    };
    if !to.is_null() {
        // SAFETY: there is room for the bytes and the NUL.
        unsafe {
            core::ptr::copy_nonoverlapping(path.as_ptr().cast(), to, path.len());
            to.add(path.len()).write(0);
        }
    }
    to
}

/// The working directory as the app knows it, where it lies in a mount that is translated.
fn logical_cwd(out: &mut PathBuf) -> Option<&[u8]> {
    let (_, entry) = place::cwd_mount()?;
    if entry.identity {
        return None;
    }
    let mut bytes = Bytes::new();
    place::turned(sys::getcwd(&mut bytes).ok()?, out)
}

hook! {
    unsafe fn getcwd(out: *mut c_char, size: usize) -> *mut c_char => my_getcwd {
        let mut room = PathBuf::new();
        match logical_cwd(&mut room) {
            Some(_) if !out.is_null() && size == 0 => fail(Errno::of(errno::EINVAL)),
            Some(path) => give(path, out, size),
            None => real!(getcwd)(out, size),
        }
    }
}

hook! {
    unsafe fn __getcwd_chk(out: *mut c_char, size: usize, room: usize) -> *mut c_char => my_getcwd_chk {
        let mut own = PathBuf::new();
        match logical_cwd(&mut own) {
            Some(path) if size <= room => give(path, out, size),
            _ => real!(__getcwd_chk)(out, size, room),
        }
    }
}

hook! {
    unsafe fn getwd(out: *mut c_char) -> *mut c_char => my_getwd {
        let mut room = PathBuf::new();
        match logical_cwd(&mut room) {
            Some(path) if !out.is_null() => give(path, out, sys::PATH_MAX),
            _ => real!(getwd)(out),
        }
    }
}

hook! {
    unsafe fn get_current_dir_name() -> *mut c_char => my_get_current_dir_name {
        let mut room = PathBuf::new();
        match logical_cwd(&mut room) {
            Some(path) => give(path, core::ptr::null_mut(), 0),
            None => real!(get_current_dir_name)(),
        }
    }
}

hook! {
    unsafe fn chdir(path: *const c_char) -> c_int => my_chdir {
        let mut room = PathBuf::new();
        match place::at(CWD, path, &mut room) {
            Ok(place) => {
                place::forget_cwd();
                let result = real!(chdir)(place.path);
                // Another thread may have looked in between.
                place::forget_cwd();
                result
            }
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    unsafe fn fchdir(fd: c_int) -> c_int => my_fchdir {
        place::forget_cwd();
        let result = real!(fchdir)(fd);
        place::forget_cwd();
        result
    }
}

hook! {
    /// From there the run directory cannot be reached any more.
    unsafe fn chroot(path: *const c_char) -> c_int => my_chroot {
        super::process::before_confinement();
        let mut room = PathBuf::new();
        match place::at(CWD, path, &mut room) {
            Ok(place) => real!(chroot)(place.path),
            Err(errno) => fail(errno),
        }
    }
}

/// Finds the canonical name of `path` by `call` (path, room of PATH_MAX bytes), and turns it round.
///
/// # Safety
/// `out` must be null or have PATH_MAX bytes of room.
unsafe fn canonical(
    path: *const c_char,
    out: *mut c_char,
    call: impl FnOnce(*const c_char, *mut c_char) -> *mut c_char,
) -> *mut c_char {
    let mut room = PathBuf::new();
    let place = match place::at(CWD, path, &mut room) {
        Ok(place) => place,
        Err(errno) => return fail(errno),
    };
    let mut found = [0 as c_char; sys::PATH_MAX];
    if call(place.path, found.as_mut_ptr()).is_null() {
        return core::ptr::null_mut();
    }
    // SAFETY: realpath has filled it with a C string.
    let found = unsafe { core::ffi::CStr::from_ptr(found.as_ptr()) }.to_bytes();
    let mut turned = PathBuf::new();
    let result = place::turned(found, &mut turned).unwrap_or(found);
    let size = if out.is_null() { 0 } else { sys::PATH_MAX };
    // SAFETY: the caller vouches for `out`.
    unsafe { give(result, out, size) }
}

hook! {
    unsafe fn realpath(path: *const c_char, out: *mut c_char) -> *mut c_char => my_realpath {
        canonical(path, out, |path, room| real!(realpath)(path, room))
    }
}

hook! {
    unsafe fn __realpath_chk(path: *const c_char, out: *mut c_char, size: usize) -> *mut c_char => my_realpath_chk {
        if size < sys::PATH_MAX {
            // Ends the program, as the check demands.
            return real!(__realpath_chk)(path, out, size);
        }
        canonical(path, out, |path, room| realpath::real()(path, room))
    }
}

hook! {
    unsafe fn canonicalize_file_name(path: *const c_char) -> *mut c_char => my_canonicalize_file_name {
        canonical(path, core::ptr::null_mut(), |path, room| realpath::real()(path, room))
    }
}
