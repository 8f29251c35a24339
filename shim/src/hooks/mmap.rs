//! Mappings: a shared one of a file that is open for writing changes the file without any call.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering};

use storeshim_protocol::{Intent, OpenFlags};

use crate::hook::{MAP_FAILED, fail, hook, real};
use crate::loader::set_errno;
use crate::sys::k;
use crate::{ask, control, fds, gate};

/// Bit per mount: this process (or the one that it was forked from) has mapped a file of it.
static MAPPED: AtomicU32 = AtomicU32::new(0);

hook! {
    /// A mapping that is not writable yet may become so (mprotect): what counts is the descriptor.
    unsafe fn mmap | mmap64 | __mmap(at: *mut c_void, n: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64)
        -> *mut c_void => my_mmap {
        let kind = flags as u32 & k::MAP_TYPE;
        let shared = kind == k::MAP_SHARED || kind == k::MAP_SHARED_VALIDATE;
        if fd >= 0
            && shared
            && flags as u32 & k::MAP_ANONYMOUS == 0
            && let Some(file) = fds::file(fd).filter(|file| file.known.writable())
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
