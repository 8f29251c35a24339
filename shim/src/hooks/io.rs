//! Writing through a descriptor. Reads of resident files are the kernel's alone and have no hook.

use core::ffi::{c_int, c_void};

use crate::fds::{self, File};
use crate::hook::{answer, hook, real};
use crate::sys::{self, Answer, Errno, errno, k};
use crate::write::{Position, piece, sliced, synced};
use crate::{control, gate};

#[inline(always)]
fn write_file(fd: c_int, file: &File, data: *const c_void, n: usize) -> Answer {
    let position = Position::of(file);
    let wrote = sliced(fd, file, position, n, |done, n, _| sys::write(fd, data.wrapping_byte_add(done), n));
    synced(file, false, wrote)
}

hook! {
    unsafe fn write | __write(fd: c_int, data: *const c_void, n: usize) -> isize => my_write {
        match fds::file(fd) {
            Some(file) => answer(write_file(fd, &file, data, n)),
            None => real!(write)(fd, data, n),
        }
    }
}

hook! {
    unsafe fn pwrite | pwrite64 | __pwrite64(fd: c_int, data: *const c_void, n: usize, offset: i64) -> isize
        => my_pwrite {
        match fds::file(fd) {
            Some(file) if offset >= 0 => {
                // Linux appends whatever the offset says where O_APPEND is set.
                let position = if file.known.appends() { Position::End } else { Position::At(offset as u64) };
                let wrote = sliced(fd, &file, position, n, |done, n, _| {
                    sys::pwrite(fd, data.wrapping_byte_add(done), n, offset.wrapping_add(done as i64))
                });
                answer(synced(&file, false, wrote))
            }
            _ => real!(pwrite)(fd, data, n, offset),
        }
    }
}

/// Writes vectors; `offset` -1 stands for the descriptor's position.
///
/// # Safety
/// `vectors` must point to `count` vectors.
unsafe fn write_vectors(
    fd: c_int,
    file: &File,
    vectors: *const k::iovec,
    count: c_int,
    offset: i64,
    flags: c_int,
) -> Answer {
    const COUNT_MAX: usize = 1024;
    let count = usize::try_from(count).map_err(|_| Errno::of(errno::EINVAL))?;
    let synchronous = flags as u32 & (k::RWF_SYNC | k::RWF_DSYNC) != 0;
    const NOAPPEND: u32 = 0x20;
    let appends = match flags as u32 {
        flags if flags & NOAPPEND != 0 => false,
        flags => file.known.appends() || flags & k::RWF_APPEND != 0,
    };
    let at = |done: usize| match offset {
        _ if appends => Position::End,
        -1 => Position::Cursor,
        _ => Position::At((offset as u64).saturating_add(done as u64)),
    };
    let here = |done: usize| if offset == -1 { -1 } else { offset.wrapping_add(done as i64) };
    if count > COUNT_MAX || sys::leads_nowhere(vectors) {
        return sys::writev_at(fd, vectors, count, offset, flags);
    }
    // SAFETY: the caller vouches for the vectors.
    let all = unsafe { core::slice::from_raw_parts(vectors, count) };
    let total = all.iter().fold(0usize, |sum, v| sum.saturating_add(v.iov_len as usize));
    let slice = at(0).slice();
    if total <= slice {
        let wrote = piece(fd, file, at(0), total, || sys::writev_at(fd, vectors, count, offset, flags));
        return synced(file, synchronous, wrote);
    }
    let mut done = 0usize;
    for vector in all {
        let len = vector.iov_len as usize;
        let mut within = 0usize;
        while within < len {
            let n = (len - within).min(slice);
            let part = k::iovec { iov_base: vector.iov_base.wrapping_byte_add(within), iov_len: n as _ };
            let wrote =
                piece(fd, file, at(done), n, || sys::writev_at(fd, &raw const part, 1, here(done), flags));
            match wrote {
                Ok(wrote) => {
                    done = done.saturating_add(wrote);
                    within += wrote;
                    if wrote < n {
                        return synced(file, synchronous, Ok(done));
                    }
                }
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => return synced(file, synchronous, Ok(done)),
            }
        }
    }
    synced(file, synchronous, Ok(done))
}

hook! {
    unsafe fn writev(fd: c_int, vectors: *const k::iovec, count: c_int) -> isize => my_writev {
        match fds::file(fd) {
            Some(file) => answer(write_vectors(fd, &file, vectors, count, -1, 0)),
            None => real!(writev)(fd, vectors, count),
        }
    }
}

hook! {
    unsafe fn pwritev | pwritev64(fd: c_int, vectors: *const k::iovec, count: c_int, offset: i64) -> isize
        => my_pwritev {
        match fds::file(fd) {
            Some(file) if offset >= 0 => answer(write_vectors(fd, &file, vectors, count, offset, 0)),
            _ => real!(pwritev)(fd, vectors, count, offset),
        }
    }
}

hook! {
    unsafe fn pwritev2 | pwritev64v2(fd: c_int, vectors: *const k::iovec, count: c_int, offset: i64, flags: c_int)
        -> isize => my_pwritev2 {
        match fds::file(fd) {
            Some(file) if offset >= -1 => answer(write_vectors(fd, &file, vectors, count, offset, flags)),
            _ => real!(pwritev2)(fd, vectors, count, offset, flags),
        }
    }
}

/// Gates and tells a change of everything from `start` on.
fn change_from(fd: c_int, start: i64, act: impl Fn() -> Answer) -> Option<Answer> {
    let file = fds::file(fd)?;
    control::throttle(file.mount);
    Some(gate::enter(file.mount, file.ino).and_then(|mut inside| {
        let start = start.max(0) as u64;
        inside.tell_range(file.ino, start, u64::MAX);
        let done = act();
        if inside.overtaken() {
            inside.tell_range(file.ino, start, u64::MAX);
        }
        done
    }))
}

hook! {
    unsafe fn ftruncate | ftruncate64(fd: c_int, length: i64) -> c_int => my_ftruncate {
        match change_from(fd, length, || sys::ftruncate(fd, length)) {
            Some(done) => answer(done),
            None => real!(ftruncate)(fd, length),
        }
    }
}

/// fallocate(2) on a file of a mount.
fn allocate(fd: c_int, file: &File, mode: c_int, offset: i64, length: i64) -> Answer {
    const SHIFTING: u32 = k::FALLOC_FL_COLLAPSE_RANGE | k::FALLOC_FL_INSERT_RANGE;
    let act = || sys::fallocate(fd, mode, offset, length);
    if mode as u32 & SHIFTING != 0 {
        return change_from(fd, offset, act).unwrap_or(Err(Errno::of(errno::EBADF)));
    }
    piece(fd, file, Position::At(offset.max(0) as u64), length.max(0) as usize, act)
}

hook! {
    unsafe fn fallocate | fallocate64(fd: c_int, mode: c_int, offset: i64, length: i64) -> c_int => my_fallocate {
        match fds::file(fd) {
            Some(file) => answer(allocate(fd, &file, mode, offset, length)),
            None => real!(fallocate)(fd, mode, offset, length),
        }
    }
}

hook! {
    /// Answers an errno and does not set it. Where the file system cannot allocate, libc writes zeros itself.
    unsafe fn posix_fallocate | posix_fallocate64(fd: c_int, offset: i64, length: i64) -> c_int
        => my_posix_fallocate {
        let Some(file) = fds::file(fd) else { return real!(posix_fallocate)(fd, offset, length) };
        let position = Position::At(offset.max(0) as u64);
        let done = piece(fd, &file, position, length.max(0) as usize, || {
            Ok(real!(posix_fallocate)(fd, offset, length) as usize)
        });
        match done {
            Ok(number) => number as c_int,
            Err(errno) => errno.0,
        }
    }
}

hook! {
    unsafe fn ioctl(fd: c_int, request: u64, argument: usize) -> c_int => my_ioctl {
        // What fallocate(2) does, by its older name: FS_IOC_UNRESVSP, FS_IOC_UNRESVSP64, FS_IOC_ZERO_RANGE, and the two that
        // may make a file longer.
        const RESERVE: u32 = 0x4030_5828;
        const RESERVE_64: u32 = 0x4030_582a;
        const PUNCH: u32 = 0x4030_5829;
        const PUNCH_64: u32 = 0x4030_582b;
        const ZERO: u32 = 0x4030_5839;
        match request as u32 {
            linux_raw_sys::ioctl::FICLONE | linux_raw_sys::ioctl::FICLONERANGE | RESERVE | RESERVE_64 | PUNCH
            | PUNCH_64 | ZERO => {
                match change_from(fd, 0, || sys::ioctl(fd, request, argument)) {
                    Some(done) => answer(done),
                    None => real!(ioctl)(fd, request, argument),
                }
            }
            linux_raw_sys::ioctl::FS_IOC_SETFLAGS | linux_raw_sys::ioctl::FS_IOC_FSSETXATTR => {
                super::attr::by_fd(fd, || real!(ioctl)(fd, request, argument))
            }
            _ => real!(ioctl)(fd, request, argument),
        }
    }
}
