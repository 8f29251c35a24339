//! The working directory and canonical names: the kernel's answers are turned round.

use core::ffi::{CStr, c_char, c_int, c_void};

use crate::absent;
use crate::detour;
use crate::hook::{fail, hook, real};
use crate::loader::{get_errno, set_errno};
use crate::place::{self, CWD};
use crate::sys::{self, Bytes, Errno, PathBuf, errno};

unsafe extern "C" {
    fn malloc(size: usize) -> *mut c_void;
    fn free(block: *mut c_void);
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
            None => turned_cwd(real!(getcwd)(out, size), out, size),
        }
    }
}

/// Turns round what libc has found for a working directory whose path is longer than the kernel tells: in place, or in
/// fresh memory where libc has given fresh memory.
///
/// # Safety
/// `found` must be null or what getcwd has answered for `out` and `size`.
unsafe fn turned_cwd(found: *mut c_char, out: *mut c_char, size: usize) -> *mut c_char {
    if found.is_null() || place::cwd_mount().is_none_or(|(_, entry)| entry.identity) {
        return found;
    }
    // SAFETY: getcwd answers a C string.
    let bytes = unsafe { CStr::from_ptr(found) }.to_bytes();
    let Some((head, tail)) = place::turned_parts(bytes) else { return found };
    let need = head.len() + tail.len() + 1;
    // SAFETY: libc's own memory where the app gave none, else the app's, of `size` bytes.
    unsafe {
        if need > bytes.len() + 1 && out.is_null() && size == 0 {
            let to = malloc(need).cast::<c_char>();
            if !to.is_null() {
                core::ptr::copy_nonoverlapping(tail.as_ptr().cast(), to.add(head.len()), tail.len() + 1);
                core::ptr::copy_nonoverlapping(head.as_ptr().cast(), to, head.len());
            }
            free(found.cast());
            return to;
        }
        if need > size && need > bytes.len() + 1 {
            return fail(Errno::of(errno::ERANGE));
        }
        core::ptr::copy(tail.as_ptr().cast(), found.add(head.len()), tail.len() + 1);
        core::ptr::copy_nonoverlapping(head.as_ptr().cast(), found, head.len());
    }
    found
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
    unsafe fn __getwd_chk(out: *mut c_char, room: usize) -> *mut c_char => my_getwd_chk {
        let mut own = PathBuf::new();
        match logical_cwd(&mut own) {
            Some(path) if !out.is_null() && path.len() < room => give(path, out, room),
            _ => real!(__getwd_chk)(out, room),
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
                let result = absent::found(place, || real!(chdir)(place.path));
                // Another thread may have looked in between.
                place::forget_cwd();
                if result != 0 {
                    return detour::by_link(place, |inside| my_chdir(inside)).unwrap_or(result);
                }
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
            Ok(place) => absent::found(place, || real!(chroot)(place.path)),
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
    call: &dyn Fn(*const c_char, *mut c_char) -> *mut c_char,
) -> *mut c_char {
    let mut room = PathBuf::new();
    let place = match place::at(CWD, path, &mut room) {
        Ok(place) => place,
        Err(errno) => return fail(errno),
    };
    let mut found = [0 as c_char; sys::PATH_MAX];
    let out_at = found.as_mut_ptr();
    let good = !absent::found(place, || call(place.path, out_at)).is_null();
    if !good {
        // SAFETY: the caller vouches for `out`.
        if let Some(done) = detour::by_link(place, |inside| unsafe { canonical(inside, out, call) }) {
            return done;
        }
    }
    // SAFETY: realpath has filled it with a C string, or left it empty.
    let found = unsafe { CStr::from_ptr(found.as_ptr()) }.to_bytes();
    let mut turned = PathBuf::new();
    let result = place::turned(found, &mut turned).unwrap_or(found);
    let size = if out.is_null() { 0 } else { sys::PATH_MAX };
    if good {
        // SAFETY: the caller vouches for `out`.
        return unsafe { give(result, out, size) };
    }
    if !out.is_null() && !result.is_empty() {
        // What could not be resolved is shown.
        let errno = get_errno();
        // SAFETY: as above.
        unsafe { give(result, out, size) };
        set_errno(errno);
    }
    core::ptr::null_mut()
}

hook! {
    unsafe fn realpath(path: *const c_char, out: *mut c_char) -> *mut c_char => my_realpath {
        canonical(path, out, &|path, room| real!(realpath)(path, room))
    }
}

hook! {
    unsafe fn __realpath_chk(path: *const c_char, out: *mut c_char, size: usize) -> *mut c_char => my_realpath_chk {
        if size < sys::PATH_MAX {
            // Ends the program, as the check demands.
            return real!(__realpath_chk)(path, out, size);
        }
        canonical(path, out, &|path, room| realpath::real()(path, room))
    }
}

hook! {
    unsafe fn canonicalize_file_name(path: *const c_char) -> *mut c_char => my_canonicalize_file_name {
        canonical(path, core::ptr::null_mut(), &|path, room| realpath::real()(path, room))
    }
}
