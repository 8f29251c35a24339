//! Reads and writes that others make for the app: the threads of libc's POSIX AIO, the kernel's AIO (libaio) and io_uring. No
//! hook sees them done, so a file that they write to is told as written unseen, and what they touch is brought before and
//! stays; a barrier that could not be kept is refused.

use core::ffi::{c_int, c_long, c_uint, c_void};

use crate::hook::{fail, hook, real};
use crate::sys::{self, Answer, Errno, errno, k};
use crate::{control, fds, reading, residency};

/// Both libcs' aiocb on 64-bit machines, as far as it is used.
#[repr(C)]
pub struct Control {
    fd: c_int,
    operation: c_int,
    priority: c_int,
    buffer: *mut c_void,
    n: usize,
    rest: [u64; 12],
    offset: i64,
}

const _: () = assert!(core::mem::offset_of!(Control, offset) == 128);

const LIO_READ: c_int = 0;
const LIO_WRITE: c_int = 1;

/// Before `n` bytes of `fd` are read or written elsewhere.
fn bring(fd: c_int, offset: i64, n: u64) -> Result<(), Errno> {
    let start = offset.max(0) as u64;
    residency::pin(fd, start, start.saturating_add(n))
}

/// Before libc writes.
fn writing(block: &Control) -> Result<(), Errno> {
    if synchronous(block.fd) {
        return Err(Errno::of(errno::EINVAL));
    }
    bring(block.fd, block.offset, block.n as u64)?;
    fds::tell_unseen(block.fd);
    Ok(())
}

hook! {
    unsafe fn aio_read | aio_read64(block: *mut Control) -> c_int => my_aio_read {
        if let Some(block) = block.as_ref()
            && let Err(errno) = bring(block.fd, block.offset, block.n as u64)
        {
            return fail(errno);
        }
        real!(aio_read)(block)
    }
}

/// Whether a barrier for `fd` is one of the agent.
fn remote(fd: c_int) -> bool {
    fds::found(fd).is_some_and(|file| !control::is_local(file.mount))
}

/// Whether writes through `fd` promise more than an asynchronous write can keep.
fn synchronous(fd: c_int) -> bool {
    fds::known(fd).syncs() && remote(fd)
}

hook! {
    unsafe fn aio_write | aio_write64(block: *mut Control) -> c_int => my_aio_write {
        if let Some(block) = block.as_ref()
            && let Err(errno) = writing(block)
        {
            return fail(errno);
        }
        real!(aio_write)(block)
    }
}

hook! {
    /// EINVAL is what POSIX has for a file of which synchronised I/O is not supported.
    unsafe fn aio_fsync | aio_fsync64(operation: c_int, block: *mut Control) -> c_int => my_aio_fsync {
        match block.as_ref() {
            Some(block) if remote(block.fd) => fail(Errno::of(errno::EINVAL)),
            _ => real!(aio_fsync)(operation, block),
        }
    }
}

hook! {
    unsafe fn lio_listio | lio_listio64(mode: c_int, list: *const *mut Control, n: c_int, event: *mut c_void) -> c_int
        => my_lio_listio {
        for at in 0..if list.is_null() { 0 } else { n.max(0) as usize } {
            let Some(block) = (*list.add(at)).as_ref() else { continue };
            let ready = match block.operation {
                LIO_READ => bring(block.fd, block.offset, block.n as u64),
                LIO_WRITE => writing(block),
                _ => Ok(()),
            };
            if let Err(errno) = ready {
                return fail(errno);
            }
        }
        real!(lio_listio)(mode, list, n, event)
    }
}

/// The kernel's iocb.
#[repr(C)]
pub struct KernelControl {
    data: u64,
    key: u32,
    write_flags: u32,
    operation: u16,
    priority: i16,
    fd: c_int,
    buffer: u64,
    n: u64,
    offset: i64,
    rest: [u64; 2],
}

/// Before io_submit(2): tells the files that it writes to, and brings what it reads.
///
/// Errors: those of [`residency::pin`]; EINVAL where it asks for a barrier, which an old kernel has none of either.
///
/// # Safety
/// `list` must hold `n` iocbs.
pub unsafe fn submitting(n: c_long, list: *const *const KernelControl) -> Answer {
    const PREAD: u16 = 0;
    const PREADV: u16 = 7;
    const PWRITE: u16 = 1;
    const FSYNC: u16 = 2;
    const FDSYNC: u16 = 3;
    const PWRITEV: u16 = 8;
    const SYNCS: u32 = 2 | 4;
    for at in 0..if sys::leads_nowhere(list) { 0 } else { n.max(0) as usize } {
        // SAFETY: the caller vouches for the list.
        let Some(block) = (unsafe { (*list.add(at)).as_ref() }).filter(|block| !sys::leads_nowhere(*block))
        else {
            continue;
        };
        if matches!(block.operation, PREAD | PWRITE | PREADV | PWRITEV) {
            let n = match block.operation {
                PREAD | PWRITE => block.n,
                // SAFETY: the app vouches for its vectors.
                _ => unsafe { reading::total_of(block.buffer as *const k::iovec, block.n as usize) as u64 },
            };
            bring(block.fd, block.offset, n)?;
        }
        let refused = match block.operation {
            FSYNC | FDSYNC => remote(block.fd),
            PWRITE | PWRITEV => {
                fds::tell_unseen(block.fd);
                synchronous(block.fd) || block.write_flags & SYNCS != 0 && remote(block.fd)
            }
            _ => false,
        };
        if refused {
            return Err(Errno::of(errno::EINVAL));
        }
    }
    Ok(0)
}

hook! {
    /// libaio's, which answers the negative errno.
    unsafe fn io_submit(context: *mut c_void, n: c_long, list: *const *const KernelControl) -> c_int
        => my_io_submit {
        match submitting(n, list) {
            Ok(_) => real!(io_submit)(context, n, list),
            Err(errno) => -errno.0,
        }
    }
}

/// liburing makes its system calls itself; told that there is no io_uring, its users fall back as those of
/// `syscall()` do.
macro_rules! no_ring {
    ($(fn $name:ident($($arg:ident : $type:ty),*) => $mine:ident;)*) => {$(
        hook! {
            unsafe fn $name($($arg: $type),*) -> c_int => $mine {
                if control::table().is_some() { -(errno::ENOSYS as c_int) } else { real!($name)($($arg),*) }
            }
        }
    )*};
}

no_ring! {
    fn io_uring_setup(entries: c_uint, parameters: *mut c_void) => my_ring_setup;
    fn io_uring_queue_init(entries: c_uint, ring: *mut c_void, flags: c_uint) => my_queue_init;
    fn io_uring_queue_init_params(entries: c_uint, ring: *mut c_void, parameters: *mut c_void) => my_queue_params;
    fn io_uring_queue_init_mem(
        entries: c_uint, ring: *mut c_void, parameters: *mut c_void, memory: *mut c_void, size: usize
    ) => my_queue_mem;
}
