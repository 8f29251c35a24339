//! Barriers.

use core::ffi::c_int;

use crate::hook::{answer, hook, real};
use crate::sys::Answer;
use crate::{ask, control, fds};

/// The barrier for `fd`, `None` where it is the kernel's own.
fn barrier_of(fd: c_int) -> Option<Answer> {
    let known = fds::known(fd);
    let index = known.mount().filter(|index| !control::is_local(*index))?;
    // A name in the mount may have led out of it.
    let file = fds::file(fd)?;
    Some(ask::barrier(index, file.ino))
}

hook! {
    unsafe fn fsync(fd: c_int) -> c_int => my_fsync {
        match barrier_of(fd) {
            Some(done) => answer(done),
            None => real!(fsync)(fd),
        }
    }
}

hook! {
    unsafe fn fdatasync(fd: c_int) -> c_int => my_fdatasync {
        match barrier_of(fd) {
            Some(done) => answer(done),
            None => real!(fdatasync)(fd),
        }
    }
}

hook! {
    unsafe fn syncfs(fd: c_int) -> c_int => my_syncfs {
        match barrier_of(fd) {
            Some(done) => answer(done),
            None => real!(syncfs)(fd),
        }
    }
}

hook! {
    /// Cannot fail: a mount whose barrier does says so at the next fsync.
    unsafe fn sync() => my_sync {
        real!(sync)();
        if let Some(table) = control::table() {
            for (index, _) in table.mounts().filter(|(index, _)| !control::is_local(*index)) {
                let _ = ask::barrier(index, 0);
            }
        }
    }
}
