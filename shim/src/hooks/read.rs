//! Reading through a descriptor. What is here is read as it is; where something may be missing, `reading` sees to it.

use core::ffi::{c_int, c_void};

use crate::act::Act;
use crate::fds;
use crate::hook::{answer, hook, real};
use crate::reading::{self, Read};
use crate::residency::{self, END};
use crate::sys::{self, k};

/// Makes a read: by `real` where nothing can be missing.
#[inline(always)]
fn any(fd: c_int, call: impl Fn() -> Read, mut real: impl FnMut() -> isize) -> isize {
    if fds::is_outside(fd) { real() } else { reading::read(&call(), Act::new(&mut |()| real())) }
}

hook! {
    unsafe fn read | __read(fd: c_int, out: *mut c_void, n: usize) -> isize => my_read {
        any(fd, || Read::here(fd, out, n), || real!(read)(fd, out, n))
    }
}

hook! {
    unsafe fn pread | pread64 | __pread64(fd: c_int, out: *mut c_void, n: usize, offset: i64) -> isize => my_pread {
        any(fd, || Read::there(fd, out, n, offset), || real!(pread)(fd, out, n, offset))
    }
}

hook! {
    /// Ends the program where the buffer is too small.
    unsafe fn __read_chk(fd: c_int, out: *mut c_void, n: usize, room: usize) -> isize => my_read_chk {
        if n > room { real!(__read_chk)(fd, out, n, room) } else { my_read(fd, out, n) }
    }
}

hook! {
    /// As above.
    unsafe fn __pread_chk | __pread64_chk(fd: c_int, out: *mut c_void, n: usize, offset: i64, room: usize) -> isize
        => my_pread_chk {
        if n > room { real!(__pread_chk)(fd, out, n, offset, room) } else { my_pread(fd, out, n, offset) }
    }
}

hook! {
    unsafe fn readv(fd: c_int, vectors: *const k::iovec, count: c_int) -> isize => my_readv {
        any(fd, || Read::vectors_here(fd, vectors, count), || real!(readv)(fd, vectors, count))
    }
}

hook! {
    unsafe fn preadv | preadv64(fd: c_int, vectors: *const k::iovec, count: c_int, offset: i64) -> isize => my_preadv {
        let call = || Read::vectors_there(k::__NR_preadv, fd, vectors, count, offset, 0);
        any(fd, call, || real!(preadv)(fd, vectors, count, offset))
    }
}

hook! {
    unsafe fn preadv2 | preadv64v2(fd: c_int, vectors: *const k::iovec, count: c_int, offset: i64, flags: c_int) -> isize
        => my_preadv2 {
        let call = || Read::vectors_there(k::__NR_preadv2, fd, vectors, count, offset, flags);
        any(fd, call, || real!(preadv2)(fd, vectors, count, offset, flags))
    }
}

hook! {
    /// Where data and holes are is the volume's to say: what is not here looks like a hole.
    unsafe fn lseek | lseek64 | __lseek | llseek(fd: c_int, offset: i64, whence: c_int) -> i64 => my_lseek {
        let hole = whence as u32 == k::SEEK_HOLE;
        if (hole || whence as u32 == k::SEEK_DATA)
            && offset >= 0
            && let Some(file) = residency::lacking(fd)
            && residency::held(file.mount, file.ino, 0, END).is_none()
        {
            reading::moved(fd);
            let ask = storeshim_protocol::request::Ask::Seek { ino: file.ino, start: offset as u64, hole };
            return answer(crate::ask::request(file.mount, ask).and_then(|at| sys::lseek(fd, at as i64, k::SEEK_SET)));
        }
        reading::moved(fd);
        let at = real!(lseek)(fd, offset, whence);
        reading::stands(fd, at);
        crate::quota::sought(fd, at);
        at
    }
}

/// The bytes that `n` from `offset` on are; to the file's end where there are none of them.
fn range(offset: i64, n: u64) -> (u64, u64) {
    let start = offset.max(0) as u64;
    (start, if n == 0 { END } else { start.saturating_add(n) })
}

hook! {
    unsafe fn readahead(fd: c_int, offset: i64, n: usize) -> isize => my_readahead {
        if let Some(file) = residency::lacking(fd) {
            let (start, end) = range(offset, (n as u64).max(1));
            residency::hint(file.mount, file.ino, start, end);
        }
        real!(readahead)(fd, offset, n)
    }
}

hook! {
    /// Answers an errno and does not set it.
    unsafe fn posix_fadvise | posix_fadvise64(fd: c_int, offset: i64, n: i64, advice: c_int) -> c_int => my_fadvise {
        if advice as u32 == k::POSIX_FADV_WILLNEED
            && let Some(file) = residency::lacking(fd)
        {
            let (start, end) = range(offset, n.max(0) as u64);
            residency::hint(file.mount, file.ino, start, end);
        }
        real!(posix_fadvise)(fd, offset, n, advice)
    }
}
