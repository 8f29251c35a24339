//! Asking about a path: translated, nothing told.

use core::ffi::{c_char, c_int, c_long, c_void};

use crate::detour;
use crate::hook::{answer, fail, hook, path_hook, real};
use crate::place::{self, CWD};
use crate::respell::{self, Stat};
use crate::sys::{self, Errno, PathBuf, errno, k};

/// Declares a hook that translates a path, and corrects the size of a symbolic link that it finds.
macro_rules! link_hook {
    ($name:ident | $alias:ident ($($pre:ident : $pt:ty),* ; $($dirfd:ident)? ; $($post:ident : $ot:ty),*)
        => $mine:ident) => {
        hook! {
            unsafe fn $name | $alias ($($pre: $pt,)* $($dirfd: c_int,)? path: *const c_char, out: *mut Stat
                $(, $post: $ot)*) -> c_int => $mine {
                let mut room = PathBuf::new();
                #[allow(unused_mut, unused_assignments, reason = "not each of them has a descriptor")]
                let mut from = CWD;
                $(from = $dirfd;)?
                let place = match place::at(from, path, &mut room) {
                    Ok(place) => place,
                    Err(errno) => return fail(errno),
                };
                $(let $dirfd = place.dirfd;)?
                let done = real!($name)($($pre,)* $($dirfd,)? place.path, out $(, $post)*);
                if done == 0 {
                    respell::correct_size(place.dirfd, place.path, out);
                } else if let Some(done) = detour::by_link(place, |path| {
                    $(let $dirfd = CWD;)?
                    $mine($($pre,)* $($dirfd,)? path, out $(, $post)*)
                }) {
                    return done;
                }
                done
            }
        }
    };
}

path_hook! { fn stat | stat64(path, out: *mut c_void) -> c_int => my_stat }
link_hook! { lstat | lstat64(;;) => my_lstat }
link_hook! { fstatat | fstatat64(; dirfd; flags: c_int) => my_fstatat }

hook! {
    unsafe fn statx(dirfd: c_int, path: *const c_char, flags: c_int, mask: u32, out: *mut k::statx) -> c_int
        => my_statx {
        let mut room = PathBuf::new();
        let place = match place::at(dirfd, path, &mut room) {
            Ok(place) => place,
            Err(errno) => return fail(errno),
        };
        // By the kernel, because not every libc has it; unless the kernel has not.
        let asked = sys::raw(k::__NR_statx as usize, place.dirfd as usize, place.path as usize, flags as usize,
            mask as usize, out as usize, 0);
        let done = match asked {
            Err(e) if e == Errno::of(errno::ENOSYS) => real!(statx)(place.dirfd, place.path, flags, mask, out),
            asked => answer(asked),
        };
        if done == 0 {
            respell::correct_statx(place.dirfd, place.path, out);
        } else if let Some(done) = detour::by_link(place, |path| my_statx(CWD, path, flags, mask, out)) {
            return done;
        }
        done
    }
}

// Programs linked against glibc before 2.33.
path_hook! { fn __xstat | __xstat64[version: c_int](path, out: *mut c_void) -> c_int => my_xstat }
link_hook! { __lxstat | __lxstat64(version: c_int;;) => my_lxstat }
link_hook! { __fxstatat | __fxstatat64(version: c_int; dirfd; flags: c_int) => my_fxstatat }

path_hook! { fn access(path, mode: c_int) -> c_int => my_access }
path_hook! { fn faccessat(@dirfd, path, mode: c_int, flags: c_int) -> c_int => my_faccessat }
path_hook! { fn eaccess(path, mode: c_int) -> c_int => my_eaccess }
path_hook! { fn euidaccess(path, mode: c_int) -> c_int => my_euidaccess }

path_hook! { fn pathconf(path, name: c_int) -> c_long => my_pathconf }
path_hook! { fn ftok(path, project: c_int) -> c_int => my_ftok }
path_hook! { fn name_to_handle_at(@dirfd, path, handle: *mut c_void, id: *mut c_int, flags: c_int) -> c_int => my_handle }
