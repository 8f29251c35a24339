//! The few system calls of the sessions that no library wraps: futexes, membarrier, and the probe of an OFD lock.
//! It must not know what the words and files mean.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds: the same clock in every process of this kernel, whatever its namespaces
/// (a time namespace that shifts it also shifts it for the clients in it, and is not supported).
pub(super) fn monotonic_ns() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    let nanos = Duration::from(now).as_nanos();
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

/// Why a futex wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// Somebody woke the word.
    Rung,
    /// The word differed already, the time ran out, or a signal came.
    Otherwise,
}

/// Sleeps while `word` is `value`, until it is woken or `timeout` has passed. The word may lie in memory that is
/// shared between processes.
pub(super) fn futex_wait(word: &AtomicU32, value: u32, timeout: Duration) -> Woken {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: timeout.subsec_nanos() as libc::c_long,
    };
    // SAFETY: the kernel reads the word and the timespec, both alive for the call, and writes nothing.
    let result = unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout, 0, 0)
    };
    if result == 0 { Woken::Rung } else { Woken::Otherwise }
}

/// Wakes everybody who waits on `word`.
pub(super) fn futex_wake_all(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE uses the address as a key only. It fails for an address that is gone, which then has no
    // waiters worth waking.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX, 0, 0, 0) };
}

/// Makes every running thread of every client that registered for it execute a full barrier: the costly half of
/// the gate (see `protocol::gate`). Where the kernel has neither form, clients could not register either and fence
/// themselves.
pub(super) fn membarrier() {
    for command in [libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED, libc::MEMBARRIER_CMD_GLOBAL] {
        // SAFETY: membarrier takes integers only.
        if unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } == 0 {
            break;
        }
    }
    fence(Ordering::SeqCst);
}

/// Whether another open file description holds a lock on the first byte of `file`: its client lives.
pub(super) fn is_locked(file: &File) -> io::Result<bool> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)) {
        Ok(_) => Ok(lock.l_type != libc::F_UNLCK as libc::c_short),
        Err(errno) => Err(errno.into()),
    }
}

/// Allocates `file` to `size` bytes, so that no store into a mapping of it can meet a full disk.
pub(super) fn allocate(file: &File, size: usize) -> io::Result<()> {
    let size = libc::off_t::try_from(size).map_err(|_| io::Error::from(Errno::EFBIG))?;
    // SAFETY: takes a descriptor that `file` keeps open, and integers.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, size) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
