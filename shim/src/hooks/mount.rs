//! mount(2) and umount(2): for the privileged, and complete. What is mounted below a prefix is no part of the volume.

use core::ffi::{c_char, c_int, c_ulong, c_void};

use crate::hook::{fail, hook, path_hook, real};
use crate::place::{self, CWD};
use crate::sys::PathBuf;

hook! {
    /// The source is a path only where it is an absolute one: "tmpfs" and "proc" are names.
    unsafe fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong,
        data: *const c_void) -> c_int => my_mount {
        let (mut one, mut other) = (PathBuf::new(), PathBuf::new());
        let absolute = !crate::sys::leads_nowhere(source) && *source as u8 == b'/';
        let from = if absolute { place::at(CWD, source, &mut one).map(|place| place.path) } else { Ok(source) };
        match from.and_then(|from| place::at(CWD, target, &mut other).map(|to| (from, to.path))) {
            Ok((from, to)) => real!(mount)(from, to, kind, flags, data),
            Err(errno) => fail(errno),
        }
    }
}

path_hook! { fn umount(path) -> c_int => my_umount }
path_hook! { fn umount2(path, flags: c_int) -> c_int => my_umount2 }
