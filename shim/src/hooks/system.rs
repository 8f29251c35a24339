//! What only an administrator does with paths, and what libc keeps the path of: translated, where nothing else is to be
//! done.

use core::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};

use crate::absent;
use crate::gate;
use crate::hook::{fail, hook, path_hook, real};
use crate::hooks::open::of_mount;
use crate::place::{self, CWD};
use crate::sys::{self, PathBuf};

path_hook! { fn acct(path) -> c_int => my_acct }
path_hook! { fn swapon(path, flags: c_int) -> c_int => my_swapon }
path_hook! { fn swapoff(path) -> c_int => my_swapoff }
path_hook! { fn umount(path) -> c_int => my_umount }
path_hook! { fn umount2(path, flags: c_int) -> c_int => my_umount2 }
path_hook! { fn uselib(path) -> c_int => my_uselib }
path_hook! { fn quotactl[command: c_int](path, id: c_int, out: *mut c_void) -> c_int => my_quotactl }
path_hook! { fn open_tree(@dirfd, path, flags: c_uint) -> c_int => my_open_tree }
path_hook! { fn fspick(@dirfd, path, flags: c_uint) -> c_int => my_fspick }
path_hook! {
    fn mount_setattr(@dirfd, path, flags: c_uint, attributes: *mut c_void, size: usize) -> c_int => my_mount_setattr
}
path_hook! { fn fanotify_mark[fd: c_int, flags: c_uint, mask: u64](@dirfd, path) -> c_int => my_fanotify_mark }
path_hook! { fn utmpname(path) -> c_int => my_utmpname }
path_hook! { fn utmpxname(path) -> c_int => my_utmpxname }

/// Calls `act` with both paths translated.
///
/// # Safety
/// Each path must be null or a C string.
unsafe fn with_both(
    a: (c_int, *const c_char),
    b: (c_int, *const c_char),
    act: impl FnOnce(place::Place, place::Place) -> c_int,
) -> c_int {
    let (mut one, mut other) = (PathBuf::new(), PathBuf::new());
    match (place::at(a.0, a.1, &mut one), place::at(b.0, b.1, &mut other)) {
        (Ok(a), Ok(b)) => act(a, b),
        (Err(errno), _) | (_, Err(errno)) => fail(errno),
    }
}

hook! {
    /// The source is a path only where it is an absolute one: "tmpfs" and "proc" are names.
    unsafe fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void)
        -> c_int => my_mount {
        if sys::leads_nowhere(source) || *source as u8 != b'/' {
            let mut room = PathBuf::new();
            return match place::at(CWD, target, &mut room) {
                Ok(place) => real!(mount)(source, place.path, kind, flags, data),
                Err(errno) => fail(errno),
            };
        }
        with_both((CWD, source), (CWD, target), |a, b| real!(mount)(a.path, b.path, kind, flags, data))
    }
}

hook! {
    unsafe fn pivot_root(new: *const c_char, old: *const c_char) -> c_int => my_pivot_root {
        with_both((CWD, new), (CWD, old), |a, b| {
            let done = real!(pivot_root)(a.path, b.path);
            place::forget_cwd();
            done
        })
    }
}

hook! {
    unsafe fn move_mount(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: c_uint) -> c_int
        => my_move_mount {
        with_both((a, from), (b, to), |a, b| real!(move_mount)(a.dirfd, a.path, b.dirfd, b.path, flags))
    }
}

hook! {
    /// A name without a slash is searched for, not opened.
    unsafe fn catopen(name: *const c_char, flag: c_int) -> isize => my_catopen {
        let mut room = PathBuf::new();
        if name.is_null() || !CStr::from_ptr(name).to_bytes().contains(&b'/') {
            return real!(catopen)(name, flag);
        }
        match place::at(CWD, name, &mut room) {
            Ok(place) => absent::found(place, || real!(catopen)(place.path, flag)),
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    /// The answer is the app's own string where that was translated.
    unsafe fn bindtextdomain(domain: *const c_char, directory: *const c_char) -> *mut c_char => my_bindtextdomain {
        let mut room = PathBuf::new();
        match place::at(CWD, directory, &mut room) {
            Ok(place) => {
                let bound = real!(bindtextdomain)(domain, place.path);
                let translated = !core::ptr::eq(place.path, directory);
                if translated && !bound.is_null() { directory.cast_mut() } else { bound }
            }
            Err(errno) => fail(errno),
        }
    }
}

/// Calls `act`, by which libc appends to the file at `path`.
///
/// # Safety
/// `path` must be null or a C string.
#[inline(never)]
unsafe fn appending(path: *const c_char, act: &dyn Fn(*const c_char)) {
    let mut room = PathBuf::new();
    let Ok(place) = place::target(CWD, path, true, &mut room) else { return };
    if absent::present(place).is_err() {
        return;
    }
    let Some(index) = place.mount else { return act(place.path) };
    let Ok(mut inside) = gate::enter(index, 0) else { return };
    let found = sys::stat_at(place.dirfd, place.path, 0).ok().filter(|stat| of_mount(index, stat));
    if let Some(stat) = &found {
        inside.tell_range(stat.st_ino, stat.st_size as u64, u64::MAX);
    }
    act(place.path);
    if let (Some(stat), true) = (&found, inside.overtaken()) {
        inside.tell_range(stat.st_ino, stat.st_size as u64, u64::MAX);
    }
}

hook! {
    unsafe fn updwtmp(path: *const c_char, entry: *const c_void) => my_updwtmp {
        appending(path, &|path| real!(updwtmp)(path, entry));
    }
}

hook! {
    unsafe fn updwtmpx(path: *const c_char, entry: *const c_void) => my_updwtmpx {
        appending(path, &|path| real!(updwtmpx)(path, entry));
    }
}
