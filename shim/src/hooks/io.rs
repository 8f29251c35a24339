//! Writing through a descriptor, and what else changes the bytes behind one.

use core::ffi::{c_int, c_void};

use crate::act::Act;
use crate::fds::{self, File};
use crate::hook::{answer, fail, hook, real};
use crate::quota::{self, beyond, grows};
use crate::residency::{self, END};
use crate::sys::{self, Answer, Errno, errno, k};
use crate::write::{Needs, Position, entered, made_room, piece, size_of_file, sliced, synced};

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
    // Of so many bytes it is known that they fit.
    let mut granted = quota::allowed(fd, file, at(0), total.min(slice), total)?;
    let mut short = granted < total.min(slice);
    if granted == total {
        let wrote = piece(fd, file, at(0), total, || sys::writev_at(fd, vectors, count, offset, flags));
        return synced(file, synchronous, wrote);
    }
    let mut done = 0usize;
    for vector in all {
        let len = vector.iov_len as usize;
        let mut within = 0usize;
        while within < len {
            if granted == 0 && !short {
                let left = total.saturating_sub(done);
                granted = quota::allowed(fd, file, at(done), left.min(slice), left).unwrap_or(0);
                short = granted < left.min(slice);
            }
            let n = (len - within).min(granted);
            if n == 0 {
                return synced(file, synchronous, Ok(done));
            }
            let part = k::iovec { iov_base: vector.iov_base.wrapping_byte_add(within), iov_len: n as _ };
            let wrote =
                piece(fd, file, at(done), n, || sys::writev_at(fd, &raw const part, 1, here(done), flags));
            match wrote {
                Ok(wrote) => {
                    done = done.saturating_add(wrote);
                    within += wrote;
                    granted -= wrote.min(granted);
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

/// Gates and tells a change of what lies from `start` to `end`, once what it needs is here.
#[inline(always)]
fn change(
    fd: c_int,
    file: &File,
    (start, end): (i64, u64),
    needs: Needs,
    mut act: impl FnMut() -> Answer,
) -> Answer {
    change_by(fd, file, (start.max(0) as u64, end), needs, Act::new(&mut |()| act()))
}

#[inline(never)]
fn change_by(
    fd: c_int,
    file: &File,
    (start, end): (u64, u64),
    needs: Needs,
    mut act: Act<'_, (), Answer>,
) -> Answer {
    let mut inside = entered(fd, file, needs)?;
    inside.tell_range(file.ino, start, end);
    let done = act.run(());
    if inside.overtaken() {
        inside.tell_range(file.ino, start, end);
    }
    done
}

/// ftruncate(2) on a file of a mount.
#[inline(never)]
fn truncate(fd: c_int, file: &File, length: i64) -> Answer {
    let cuts = length >= 0 && file.known.writable();
    if cuts {
        grows(file.mount, file.ino, || beyond(fd, length as u64))?;
    }
    let needs = if cuts { Needs::Cut(length as u64) } else { Needs::Nothing };
    change(fd, file, (length, END), needs, || sys::ftruncate(fd, length))
}

hook! {
    unsafe fn ftruncate | ftruncate64(fd: c_int, length: i64) -> c_int => my_ftruncate {
        match fds::found(fd) {
            Some(file) => answer(truncate(fd, &file, length)),
            None => real!(ftruncate)(fd, length),
        }
    }
}

/// fallocate(2) on a file of a mount.
#[inline(never)]
fn allocate(fd: c_int, file: &File, mode: c_int, offset: i64, length: i64) -> Answer {
    const SHIFTING: u32 = k::FALLOC_FL_COLLAPSE_RANGE | k::FALLOC_FL_INSERT_RANGE;
    const CLEARING: u32 = k::FALLOC_FL_PUNCH_HOLE | k::FALLOC_FL_ZERO_RANGE;
    let mode_bits = mode as u32;
    let (start, length_bytes) = (offset.max(0) as u64, length.max(0) as u64);
    let end = start.saturating_add(length_bytes);
    // Room that is set aside changes no byte.
    let needs = match mode_bits {
        mode if mode & SHIFTING != 0 => Needs::Bytes(0, END),
        mode if mode & CLEARING != 0 => Needs::Bytes(start, end),
        _ => Needs::Nothing,
    };
    if mode_bits & k::FALLOC_FL_INSERT_RANGE != 0 {
        grows(file.mount, file.ino, || length_bytes)?;
    } else if mode_bits & (k::FALLOC_FL_KEEP_SIZE | SHIFTING) == 0 && file.known.writable() {
        grows(file.mount, file.ino, || beyond(fd, end))?;
    }
    let told = if mode_bits & SHIFTING != 0 { u64::MAX } else { end };
    let mut full = false;
    loop {
        let done = change(fd, file, (offset, told), needs, || sys::fallocate(fd, mode, offset, length));
        if done != Err(Errno::of(errno::ENOSPC)) || full || !made_room(file.mount, length_bytes) {
            return done;
        }
        full = true;
    }
}

hook! {
    unsafe fn fallocate | fallocate64(fd: c_int, mode: c_int, offset: i64, length: i64) -> c_int => my_fallocate {
        match fds::found(fd) {
            Some(file) => answer(allocate(fd, &file, mode, offset, length)),
            None => real!(fallocate)(fd, mode, offset, length),
        }
    }
}

hook! {
    /// Answers an errno and does not set it. Where the file system cannot allocate, libc writes zeros itself.
    unsafe fn posix_fallocate | posix_fallocate64(fd: c_int, offset: i64, length: i64) -> c_int
        => my_posix_fallocate {
        let Some(file) = fds::found(fd) else { return real!(posix_fallocate)(fd, offset, length) };
        let done = match allocate(fd, &file, 0, offset, length) {
            Err(e) if e == Errno::of(errno::EOPNOTSUPP) => {
                let end = offset.max(0).saturating_add(length.max(0)) as u64;
                let needs = Needs::Bytes(offset.max(0) as u64, end);
                change(fd, &file, (offset, END), needs, || {
                    match real!(posix_fallocate)(fd, offset, length) {
                        0 => Ok(0),
                        number => Err(Errno(number)),
                    }
                })
            }
            done => done,
        };
        done.map_or_else(|errno| errno.0, |_| 0)
    }
}

/// The head of FIDEDUPERANGE's argument; each target after it begins with its descriptor.
#[derive(Clone, Copy)]
#[repr(C)]
struct Dedupe {
    start: u64,
    length: u64,
    count: u16,
    reserved: [u16; 3],
}

/// One target, which begins with its descriptor.
type Target = [i64; 4];

/// Targets that any kernel takes: head and targets must fit a page, which are 64 KiB at most (it says ENOMEM to more).
const TARGETS_MAX: usize = ((64 << 10) - size_of::<Dedupe>()) / size_of::<Target>();

/// Copies that share what they copy, and where what is in a file is laid out: both look at it past all hooks. What the kernel
/// will refuse brings nothing.
#[inline(never)]
fn shared(fd: c_int, request: u32, argument: usize) -> Result<(), Errno> {
    use linux_raw_sys::ioctl::{FICLONE, FICLONERANGE, FIDEDUPERANGE, FS_IOC_FIEMAP};
    let source = match request {
        FICLONE => argument as c_int,
        FS_IOC_FIEMAP => fd,
        FIDEDUPERANGE => {
            let Some(head) = sys::peek::<Dedupe>(argument) else { return Ok(()) };
            let (count, first) = (usize::from(head.count), argument.wrapping_add(size_of::<Dedupe>()));
            for n in 0..if count <= TARGETS_MAX { count } else { 0 } {
                match sys::peek::<Target>(first.wrapping_add(n * size_of::<Target>())) {
                    Some([target, ..]) => residency::pin(target as c_int, 0, END)?,
                    None => return Ok(()),
                }
            }
            fd
        }
        // The structure begins with the source's descriptor.
        FICLONERANGE => match sys::peek::<i64>(argument) {
            Some(source) => source as c_int,
            None => return Ok(()),
        },
        _ => return Ok(()),
    };
    residency::pin(source, 0, END)
}

/// By how much a file grows that is to share what is in another one.
#[inline(never)]
fn cloned(fd: c_int, request: u32, argument: usize) -> u64 {
    use linux_raw_sys::ioctl::{FICLONE, FICLONERANGE};
    match request {
        FICLONE => beyond(fd, size_of_file(argument as c_int)),
        FICLONERANGE => {
            // A source, an offset there, a length, an offset here.
            let Some([source, from, length, to]) = sys::peek::<[u64; 4]>(argument) else { return 0 };
            let length =
                if length == 0 { size_of_file(source as c_int).saturating_sub(from) } else { length };
            beyond(fd, to.saturating_add(length))
        }
        _ => 0,
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
        if let Err(errno) = shared(fd, request as u32, argument) {
            return fail(errno);
        }
        match request as u32 {
            linux_raw_sys::ioctl::FICLONE | linux_raw_sys::ioctl::FICLONERANGE | RESERVE | RESERVE_64 | PUNCH
            | PUNCH_64 | ZERO => {
                match fds::found(fd) {
                    Some(file) if let Err(errno) = grows(file.mount, file.ino, || cloned(fd, request as u32, argument)) => {
                        fail(errno)
                    }
                    Some(file) => answer(change(fd, &file, (0, END), Needs::Bytes(0, END), || {
                        sys::ioctl(fd, request, argument)
                    })),
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
