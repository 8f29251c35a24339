//! Mappings: a shared one of a file that is open for writing changes the file without any call, and any is read without one.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering};

use storeshim_protocol::request::Pin;
use storeshim_protocol::{Intent, OpenFlags};

use crate::hook::{MAP_FAILED, fail, hook, real};
use crate::loader::set_errno;
use crate::sys::{self, Errno, k};
use crate::{ask, control, fds, gate, residency};

/// Bit per mount: this process (or the one that it was forked from) has mapped a file of it.
static MAPPED: AtomicU32 = AtomicU32::new(0);

/// Before `n` bytes of `fd` are mapped.
fn read_without_call(fd: c_int, offset: i64, n: usize) -> Result<(), Errno> {
    let start = offset.max(0) as u64;
    residency::pin(fd, start, start.saturating_add(n as u64))
}

/// The device, inode and offset of the file that is mapped at `at`.
#[cold]
#[inline(never)]
fn mapped_at(at: usize) -> Option<(u64, u64, u64)> {
    // What ends each field of a line: start, end, permissions, offset, major, minor, inode.
    const ENDS: [u8; 7] = *b"-   :  ";
    let flags = (k::O_RDONLY | k::O_CLOEXEC) as c_int;
    let fd = sys::openat(k::AT_FDCWD, c"/proc/self/maps".as_ptr(), flags, 0).ok()? as c_int;
    let (mut fields, mut field, mut found) = ([0u64; 7], 0usize, None);
    let (mut room, mut from) = ([0u8; 512], 0i64);
    while let (None, Ok(n @ 1..)) = (found, sys::pread(fd, &mut room, from)) {
        from += n as i64;
        for byte in room.iter().take(n) {
            if *byte == b'\n' {
                let [start, end, _, offset, major, minor, ino] = fields;
                if (start..end).contains(&(at as u64)) {
                    found =
                        Some((sys::device(major as u32, minor as u32), ino, offset + (at as u64 - start)));
                    break;
                }
                (fields, field) = ([0; 7], 0);
            } else if ENDS.get(field) == Some(byte) {
                field += 1;
            } else if let Some(value) = fields.get_mut(field) {
                let digit = (*byte as char).to_digit(16).map_or(0, u64::from);
                *value = value.wrapping_mul(if field == 6 { 10 } else { 16 }).wrapping_add(digit);
            }
        }
    }
    sys::close(fd);
    found
}

hook! {
    /// A mapping that grows reads more of its file.
    unsafe fn mremap(at: *mut c_void, old: usize, new: usize, flags: c_int, to: *mut c_void) -> *mut c_void
        => my_mremap {
        if new > old
            && residency::is_any_partial()
            && let Some((dev, ino, offset)) = mapped_at(at as usize)
            && ino != 0
            && let Some(table) = control::table()
        {
            let mut mounts = table.mounts().filter(|(index, entry)| entry.dev == dev && residency::is_partial(*index));
            let end = offset.saturating_add(new as u64);
            if let Some(errno) =
                mounts.find_map(|(index, _)| residency::bring(index, ino, offset, end, Pin::Open).err())
            {
                set_errno(errno);
                return MAP_FAILED;
            }
        }
        real!(mremap)(at, old, new, flags, to)
    }
}

hook! {
    /// A mapping that is not writable yet may become so (mprotect): what counts is the descriptor.
    unsafe fn mmap | mmap64 | __mmap(at: *mut c_void, n: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64)
        -> *mut c_void => my_mmap {
        if fd >= 0
            && flags as u32 & k::MAP_ANONYMOUS == 0
            && let Err(errno) = read_without_call(fd, offset, n)
        {
            set_errno(errno);
            return MAP_FAILED;
        }
        let kind = flags as u32 & k::MAP_TYPE;
        let shared = kind == k::MAP_SHARED || kind == k::MAP_SHARED_VALIDATE;
        if fd >= 0
            && shared
            && flags as u32 & k::MAP_ANONYMOUS == 0
            && let Some(file) = fds::found(fd).filter(|file| file.known.writable())
        {
            // The gate only for its answer: without an agent that can be told there is no mapping.
            match gate::enter(file.mount, file.ino) {
                Ok(inside) => inside.tell(&Intent::Opened { ino: file.ino, flags: OpenFlags::MAPPED }),
                Err(errno) => {
                    set_errno(errno);
                    return MAP_FAILED;
                }
            }
            MAPPED.fetch_or(1 << file.mount, Ordering::Relaxed);
        }
        real!(mmap)(at, n, protection, flags, fd, offset)
    }
}

hook! {
    unsafe fn msync(at: *mut c_void, n: usize, flags: c_int) -> c_int => my_msync {
        let mapped = MAPPED.load(Ordering::Relaxed);
        if mapped == 0 || flags as u32 & k::MS_SYNC == 0 {
            return real!(msync)(at, n, flags);
        }
        // Where all is remote, the kernel has only to check the arguments: the agent reads through the page cache.
        let remote = |index: &usize| mapped & 1 << index != 0 && !control::is_local(*index);
        let mounts = || 0..storeshim_protocol::MAX_MOUNTS;
        let all_remote = mounts().all(|index| mapped & 1 << index == 0 || remote(&index));
        let asked = if all_remote { flags & !(k::MS_SYNC as c_int) | k::MS_ASYNC as c_int } else { flags };
        let result = real!(msync)(at, n, asked);
        if result != 0 {
            return result;
        }
        for index in mounts().filter(remote) {
            if let Err(errno) = ask::barrier(index, 0) {
                return fail(errno);
            }
        }
        0
    }
}
