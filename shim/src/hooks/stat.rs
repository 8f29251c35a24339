//! Asking about a path or a descriptor: translated, nothing told; and corrected where the answer is that of this disk only.

use core::ffi::{c_char, c_int, c_long, c_void};

use crate::act::Act;
use crate::hook::{answer, fail, hook, path_hook, real};
use crate::place::{self, CWD, Place};
use crate::respell::{self, Stat};
use crate::seen::{self, Out, Subject};
use crate::sys::{self, Errno, PathBuf, errno, k};
use crate::{absent, detour};

/// Looks at a path by `act` (a place): translated, and corrected where what is there is not what the app knows.
///
/// # Safety
/// `act` must fill `out` where it succeeds.
#[inline(always)]
unsafe fn look(dirfd: c_int, path: *const c_char, out: Out, mut act: impl FnMut(Place) -> c_int) -> c_int {
    // One copy of the code for all the calls there are.
    // SAFETY: as above.
    unsafe { look_by(dirfd, path, out, Act::new(&mut act)) }
}

#[inline(never)]
unsafe fn look_by(dirfd: c_int, path: *const c_char, out: Out, mut act: Act<'_, Place, c_int>) -> c_int {
    let mut room = PathBuf::new();
    let place = match place::at(dirfd, path, &mut room) {
        Ok(place) => place,
        Err(errno) => return fail(errno),
    };
    let mut done = act.run(place);
    if done != 0 && absent::again(place) {
        done = act.run(place);
    }
    if done != 0 {
        // SAFETY: as above.
        return detour::by_link(place, |path| unsafe {
            look_by(CWD, path, out, Act::new(&mut |place| act.run(place)))
        })
        .unwrap_or(done);
    }
    // SAFETY: it has succeeded.
    unsafe {
        if out.is_link()
            && let Some(size) = respell::link_size(place.dirfd, place.path)
        {
            // As long as what readlink gives.
            out.set_size(size);
        }
        if seen::may_differ() {
            return seen::correct(Subject::Path(place), out, Act::new(&mut |()| act.run(place)));
        }
    }
    0
}

/// The same for a descriptor.
///
/// # Safety
/// `act` must fill `out` where it succeeds.
#[inline(always)]
unsafe fn look_at(fd: c_int, out: *mut Stat, mut act: impl FnMut() -> c_int) -> c_int {
    let done = act();
    if done != 0 || !seen::may_differ() {
        return done;
    }
    // SAFETY: as above.
    unsafe { seen::correct(Subject::Descriptor(fd), Out::Stat(out), Act::new(&mut |()| act())) }
}

hook! {
    unsafe fn stat | stat64(path: *const c_char, out: *mut Stat) -> c_int => my_stat {
        look(CWD, path, Out::Stat(out), |place| real!(stat)(place.path, out))
    }
}

hook! {
    unsafe fn lstat | lstat64(path: *const c_char, out: *mut Stat) -> c_int => my_lstat {
        look(CWD, path, Out::Stat(out), |place| real!(lstat)(place.path, out))
    }
}

hook! {
    unsafe fn fstatat | fstatat64(dirfd: c_int, path: *const c_char, out: *mut Stat, flags: c_int) -> c_int
        => my_fstatat {
        look(dirfd, path, Out::Stat(out), |place| real!(fstatat)(place.dirfd, place.path, out, flags))
    }
}

hook! {
    unsafe fn statx(dirfd: c_int, path: *const c_char, flags: c_int, mask: u32, out: *mut k::statx) -> c_int
        => my_statx {
        look(dirfd, path, Out::Extended(out), |place| {
            // By the kernel, because not every libc has it; unless the kernel has not.
            let asked = sys::raw(k::__NR_statx as usize, place.dirfd as usize, place.path as usize, flags as usize,
                mask as usize, out as usize, 0);
            match asked {
                Err(e) if e == Errno::of(errno::ENOSYS) => real!(statx)(place.dirfd, place.path, flags, mask, out),
                asked => answer(asked),
            }
        })
    }
}

hook! {
    unsafe fn fstat | fstat64 | __fstat64(fd: c_int, out: *mut Stat) -> c_int => my_fstat {
        // By the kernel, because not every libc has it.
        look_at(fd, out, || answer(sys::raw(k::__NR_fstat as usize, fd as usize, out as usize, 0, 0, 0, 0)))
    }
}

// Programs linked against glibc before 2.33.
hook! {
    unsafe fn __xstat | __xstat64(version: c_int, path: *const c_char, out: *mut Stat) -> c_int => my_xstat {
        look(CWD, path, Out::Stat(out), |place| real!(__xstat)(version, place.path, out))
    }
}

hook! {
    unsafe fn __lxstat | __lxstat64(version: c_int, path: *const c_char, out: *mut Stat) -> c_int => my_lxstat {
        look(CWD, path, Out::Stat(out), |place| real!(__lxstat)(version, place.path, out))
    }
}

hook! {
    unsafe fn __fxstatat | __fxstatat64(version: c_int, dirfd: c_int, path: *const c_char, out: *mut Stat, flags: c_int)
        -> c_int => my_fxstatat {
        look(dirfd, path, Out::Stat(out), |place| real!(__fxstatat)(version, place.dirfd, place.path, out, flags))
    }
}

hook! {
    unsafe fn __fxstat | __fxstat64(version: c_int, fd: c_int, out: *mut Stat) -> c_int => my_fxstat {
        look_at(fd, out, || real!(__fxstat)(version, fd, out))
    }
}

path_hook! { fn access(path, mode: c_int) -> c_int => my_access }
path_hook! { fn faccessat(@dirfd, path, mode: c_int, flags: c_int) -> c_int => my_faccessat }
path_hook! { fn eaccess(path, mode: c_int) -> c_int => my_eaccess }
path_hook! { fn euidaccess(path, mode: c_int) -> c_int => my_euidaccess }

path_hook! { fn pathconf(path, name: c_int) -> c_long => my_pathconf }
path_hook! { fn ftok(path, project: c_int) -> c_int => my_ftok }
path_hook! { fn name_to_handle_at(@dirfd, path, handle: *mut c_void, id: *mut c_int, flags: c_int) -> c_int => my_handle }
