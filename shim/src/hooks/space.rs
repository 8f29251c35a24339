//! Size and free space: of the volume, as the agent has published them, in place of the local disk's.

use core::ffi::{c_char, c_int};
use core::mem::offset_of;

use crate::absent;
use crate::control;
use crate::fds;
use crate::hook::{fail, hook, real};
use crate::hooks::open::of_mount;
use crate::place::{self, CWD, Place};
use crate::sys::{self, PathBuf, k};

/// struct statfs of both libcs and of the kernel, as far as it is used.
pub type StatFs = k::statfs64;

/// struct statvfs of both libcs, as far as it is used.
#[repr(C)]
pub struct StatVfs {
    bsize: u64,
    frsize: u64,
    blocks: u64,
    bfree: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    favail: u64,
}

/// What a volume offers, in blocks of some size and in inodes.
struct Space {
    blocks: u64,
    free: u64,
    inodes: u64,
    free_inodes: u64,
}

/// What mount `index` offers in blocks of `block` bytes; `None` until the agent has said it.
fn space(index: usize, block: u64) -> Option<Space> {
    let said = control::mount(index)?.space()?;
    let block = block.max(1);
    Some(Space {
        blocks: said.total_bytes / block,
        free: said.free_bytes / block,
        inodes: said.total_inodes,
        free_inodes: said.free_inodes,
    })
}

/// # Safety
/// `out` must be what a successful statfs has filled in.
unsafe fn fill(mount: Option<usize>, out: *mut StatFs) {
    // SAFETY: as above.
    unsafe {
        let frsize = (*out).f_frsize as u64;
        let block = if frsize == 0 { (*out).f_bsize as u64 } else { frsize };
        if let Some(space) = mount.and_then(|index| space(index, block)) {
            (*out).f_blocks = space.blocks as _;
            (*out).f_bfree = space.free as _;
            (*out).f_bavail = space.free as _;
            (*out).f_files = space.inodes as _;
            (*out).f_ffree = space.free_inodes as _;
        }
    }
}

/// # Safety
/// `out` must be what a successful statvfs has filled in.
unsafe fn fill_vfs(mount: Option<usize>, out: *mut StatVfs) {
    // SAFETY: as above.
    unsafe {
        if let Some(space) = mount.and_then(|index| space(index, (*out).frsize)) {
            ((*out).blocks, (*out).bfree, (*out).bavail) = (space.blocks, space.free, space.free);
            ((*out).files, (*out).ffree, (*out).favail) =
                (space.inodes, space.free_inodes, space.free_inodes);
        }
    }
}

/// The mount that a path lies in, by its names or by those that links lead to; not where a link leads out again.
fn mount_of(place: &Place) -> Option<usize> {
    let index = place.mount?;
    let stat = sys::stat_at(place.dirfd, place.path, 0).ok()?;
    of_mount(index, &stat).then_some(index)
}

hook! {
    unsafe fn statfs | statfs64 | __statfs(path: *const c_char, out: *mut StatFs) -> c_int => my_statfs {
        let mut room = PathBuf::new();
        match place::target(CWD, path, true, &mut room) {
            Ok(place) => {
                let done = absent::found(place, || real!(statfs)(place.path, out));
                if done == 0 {
                    fill(mount_of(&place), out);
                }
                done
            }
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    unsafe fn fstatfs | fstatfs64(fd: c_int, out: *mut StatFs) -> c_int => my_fstatfs {
        let done = real!(fstatfs)(fd, out);
        if done == 0 {
            fill(fds::known(fd).mount(), out);
        }
        done
    }
}

hook! {
    unsafe fn statvfs | statvfs64(path: *const c_char, out: *mut StatVfs) -> c_int => my_statvfs {
        let mut room = PathBuf::new();
        match place::target(CWD, path, true, &mut room) {
            Ok(place) => {
                let done = absent::found(place, || real!(statvfs)(place.path, out));
                if done == 0 {
                    fill_vfs(mount_of(&place), out);
                }
                done
            }
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    unsafe fn fstatvfs | fstatvfs64(fd: c_int, out: *mut StatVfs) -> c_int => my_fstatvfs {
        let done = real!(fstatvfs)(fd, out);
        if done == 0 {
            fill_vfs(fds::known(fd).mount(), out);
        }
        done
    }
}

// The layouts are part of the interface of both libcs on 64-bit machines.
const _: () = assert!(offset_of!(StatFs, f_frsize) == 72 && offset_of!(StatVfs, favail) == 56);
