//! System calls: the only place that makes them. They never touch errno, allocate or lock, so they are safe in a
//! signal handler, in a vfork child and before libc is ready. Knows nothing of mounts.
//!
//! A path or buffer that came from the app is passed on as it came: the kernel checks it (EFAULT), as it does for
//! libc.

use core::arch::asm;
use core::ffi::{c_char, c_int, c_void};
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU32;

pub use linux_raw_sys::{errno, general as k};

use crate::kernel;
pub use crate::room::{Bytes, PATH_MAX, PathBuf};

/// An errno, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The errno with this kernel number.
    pub const fn of(number: u32) -> Self {
        Self(number as i32)
    }
}

const EFAULT: i32 = errno::EFAULT as i32;

/// What a system call answers: a non-negative word or an errno.
pub type Answer = Result<usize, Errno>;

/// What is asked about a file. Not its times: the kernel notes who has seen them, and the next change then pays for a
/// finer clock (half a microsecond on Linux 6.13 and later).
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Device, as stat(2) numbers it.
    pub st_dev: u64,
    /// Inode.
    pub st_ino: u64,
    /// Type and permissions.
    pub st_mode: u32,
    /// Names that it has.
    pub st_nlink: u64,
    /// Length in bytes.
    pub st_size: i64,
}

/// Makes a system call with all six arguments.
///
/// # Safety
/// Memory that the kernel writes must be the caller's to be written to.
#[inline(always)]
pub unsafe fn raw(n: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> Answer {
    // SAFETY: as above.
    let answer = unsafe { kernel::call(n, a, b, c, d, e, f) };
    if kernel::ERRORS.contains(&answer) {
        return Err(Errno(-answer as i32));
    }
    Ok(answer as usize)
}

/// A system call whose memory arguments the kernel only reads, or that has none.
macro_rules! call {
    ($nr:ident $(, $arg:expr)*) => { call!(@ $nr; $($arg),*; 0, 0, 0, 0, 0, 0) };
    (@ $nr:ident; $($a:expr),*; $($zero:expr),*) => { call!(@@ $nr; [] [$($a,)* $($zero,)*]) };
    (@@ $nr:ident; [] [$a:expr, $b:expr, $c:expr, $d:expr, $e:expr, $f:expr, $($rest:tt)*]) => {
        // SAFETY: the kernel writes to no memory here but what is borrowed mutably for this call, or what the
        // caller of an unsafe function vouched for.
        unsafe {
            raw(k::$nr as usize, $a as usize, $b as usize, $c as usize, $d as usize, $e as usize, $f as usize)
        }
    };
}

/// The thread pointer: a value that no two living threads of a process share.
#[inline(always)]
pub fn thread_pointer() -> u64 {
    let tp: u64;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the first word of the TCB is its own address on both libcs (the ABI demands it).
    unsafe {
        asm!("mov {}, fs:0", out(reg) tp, options(nostack, preserves_flags, readonly));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads a register.
    unsafe {
        asm!("mrs {}, tpidr_el0", out(reg) tp, options(nostack, preserves_flags, nomem));
    }
    tp
}

/// About where the stack pointer is.
#[inline(always)]
pub fn stack_pointer() -> usize {
    let sp: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads a register.
    unsafe {
        asm!("mov {}, rsp", out(reg) sp, options(nostack, preserves_flags, nomem));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads a register.
    unsafe {
        asm!("mov {}, sp", out(reg) sp, options(nostack, preserves_flags, nomem));
    }
    sp
}

/// openat(2).
pub fn openat(dirfd: c_int, path: *const c_char, flags: c_int, mode: u32) -> Answer {
    call!(__NR_openat, dirfd, path, flags, mode)
}

/// Whether the effective user may run what `path` names.
pub fn may_run(dirfd: c_int, path: *const c_char) -> Answer {
    call!(__NR_faccessat2, dirfd, path, k::X_OK, k::AT_EACCESS)
}

/// pread(2).
pub fn pread(fd: c_int, out: &mut [u8], offset: i64) -> Answer {
    call!(__NR_pread64, fd, out.as_mut_ptr(), out.len(), offset)
}

/// openat2(2).
pub fn openat2(dirfd: c_int, path: *const c_char, how: *const k::open_how, size: usize) -> Answer {
    call!(__NR_openat2, dirfd, path, how, size)
}

/// close(2).
pub fn close(fd: c_int) {
    // Nothing to be done about an error: the descriptor is gone either way.
    let _ = call!(__NR_close, fd);
}

/// What [`Stat`] holds of the file that `path` names, `flags` as those of fstatat(2).
#[inline(never)]
pub fn stat_at(dirfd: c_int, path: *const c_char, flags: u32) -> Result<Stat, Errno> {
    const MASK: u32 = k::STATX_TYPE | k::STATX_MODE | k::STATX_NLINK | k::STATX_INO | k::STATX_SIZE;
    let mut out = MaybeUninit::<k::statx>::uninit();
    match call!(__NR_statx, dirfd, path, flags, MASK, out.as_mut_ptr()) {
        Ok(_) => {
            // SAFETY: the kernel has filled it.
            let out = unsafe { out.assume_init() };
            Ok(Stat {
                st_dev: device(out.stx_dev_major, out.stx_dev_minor),
                st_ino: out.stx_ino,
                st_mode: u32::from(out.stx_mode),
                st_nlink: u64::from(out.stx_nlink),
                st_size: out.stx_size as i64,
            })
        }
        // Filters that are older than the call forbid it.
        Err(Errno(number)) if number as u32 == errno::ENOSYS || number as u32 == errno::EPERM => {
            old_stat_at(dirfd, path, flags)
        }
        Err(errno) => Err(errno),
    }
}

/// A device, as stat(2) numbers it.
pub fn device(major: u32, minor: u32) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

#[cold]
fn old_stat_at(dirfd: c_int, path: *const c_char, flags: u32) -> Result<Stat, Errno> {
    let mut out = MaybeUninit::<k::stat>::uninit();
    call!(__NR_newfstatat, dirfd, path, out.as_mut_ptr(), flags)?;
    // SAFETY: the kernel has filled it.
    let out = unsafe { out.assume_init() };
    Ok(Stat {
        st_dev: out.st_dev,
        st_ino: out.st_ino,
        st_mode: out.st_mode,
        st_nlink: out.st_nlink as _,
        st_size: out.st_size,
    })
}

/// What [`Stat`] holds of the file behind `fd`.
pub fn fstat(fd: c_int) -> Result<Stat, Errno> {
    if fd < 0 {
        // With an empty path, AT_FDCWD is no descriptor but the working directory.
        return Err(Errno::of(errno::EBADF));
    }
    stat_at(fd, c"".as_ptr(), k::AT_EMPTY_PATH)
}

/// Whether a stat is one of a regular file.
pub fn is_regular(stat: &Stat) -> bool {
    stat.st_mode & k::S_IFMT == k::S_IFREG
}

/// Whether a stat is one of a directory.
pub fn is_directory(stat: &Stat) -> bool {
    stat.st_mode & k::S_IFMT == k::S_IFDIR
}

/// readlinkat(2) into `out`; the part that was filled.
pub fn readlink_at(dirfd: c_int, path: *const c_char, out: &mut Bytes) -> Result<&[u8], Errno> {
    let n = call!(__NR_readlinkat, dirfd, path, out.at(), PATH_MAX)?;
    Ok(out.filled(n))
}

/// getcwd(2) into `out`: the path without its NUL.
pub fn getcwd(out: &mut Bytes) -> Result<&[u8], Errno> {
    let n = call!(__NR_getcwd, out.at(), PATH_MAX)?;
    Ok(out.filled(n.saturating_sub(1)))
}

/// Whether a pointer is one of those that can lead nowhere: near NULL, or an error's number for one. The kernel answers it
/// with EFAULT.
#[inline(always)]
pub fn leads_nowhere<T>(pointer: *const T) -> bool {
    const PAGE: usize = 4096;
    pointer.addr().wrapping_add(PAGE) < 2 * PAGE
}

/// What lies at an address that the app handed; `None` where that cannot be read, which is for the kernel to say. For
/// structures whose length the app says itself, so that a wrong one is an error and not the end of the app. By
/// process_vm_readv(2); where a sandbox forbids that, the app is believed.
pub fn peek<T: Copy>(address: usize) -> Option<T> {
    if leads_nowhere(address as *const T) {
        return None;
    }
    let mut value = MaybeUninit::<T>::uninit();
    let (here, there) = (
        k::iovec { iov_base: value.as_mut_ptr().cast(), iov_len: size_of::<T>() as _ },
        k::iovec { iov_base: address as *mut c_void, iov_len: size_of::<T>() as _ },
    );
    match call!(__NR_process_vm_readv, getpid(), &raw const here, 1, &raw const there, 1) {
        Ok(n) if n == size_of::<T>() => {}
        Ok(_) | Err(Errno(EFAULT)) => return None,
        Err(_) => {
            // SAFETY: the app vouches for its pointer.
            value.write(unsafe { (address as *const T).read_unaligned() });
        }
    }
    // SAFETY: all of its bytes were written; callers ask for plain numbers.
    Some(unsafe { value.assume_init() })
}

/// mkdirat(2).
pub fn mkdirat(dirfd: c_int, path: *const c_char, mode: u32) -> Answer {
    call!(__NR_mkdirat, dirfd, path, mode)
}

/// mknodat(2).
pub fn mknodat(dirfd: c_int, path: *const c_char, mode: u32, dev: u64) -> Answer {
    call!(__NR_mknodat, dirfd, path, mode, dev)
}

/// unlinkat(2).
pub fn unlinkat(dirfd: c_int, path: *const c_char, flags: c_int) -> Answer {
    call!(__NR_unlinkat, dirfd, path, flags)
}

/// symlinkat(2).
pub fn symlinkat(target: *const c_char, dirfd: c_int, path: *const c_char) -> Answer {
    call!(__NR_symlinkat, target, dirfd, path)
}

/// linkat(2).
pub fn linkat(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: c_int) -> Answer {
    call!(__NR_linkat, a, from, b, to, flags)
}

/// renameat2(2), as renameat(2) where no flag is set: old kernels and seccomp filters know only that.
pub fn renameat2(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: u32) -> Answer {
    #[cfg(target_arch = "x86_64")]
    if flags == 0 {
        return call!(__NR_renameat, a, from, b, to);
    }
    call!(__NR_renameat2, a, from, b, to, flags)
}

/// truncate(2).
pub fn truncate(path: *const c_char, length: i64) -> Answer {
    call!(__NR_truncate, path, length)
}

/// lseek(2).
#[inline(always)]
pub fn lseek(fd: c_int, offset: i64, whence: u32) -> Answer {
    call!(__NR_lseek, fd, offset, whence)
}

/// write(2).
pub fn write(fd: c_int, data: *const c_void, n: usize) -> Answer {
    call!(__NR_write, fd, data, n)
}

/// pwrite64(2).
pub fn pwrite(fd: c_int, data: *const c_void, n: usize, offset: i64) -> Answer {
    call!(__NR_pwrite64, fd, data, n, offset)
}

/// pwritev2(2) with an offset, or writev(2) for offset -1; `flags` as the kernel's RWF_*.
pub fn writev_at(fd: c_int, vectors: *const k::iovec, count: usize, offset: i64, flags: c_int) -> Answer {
    match (offset, flags) {
        (-1, 0) => call!(__NR_writev, fd, vectors, count),
        (_, 0) => call!(__NR_pwritev, fd, vectors, count, offset, 0),
        _ => call!(__NR_pwritev2, fd, vectors, count, offset, 0, flags),
    }
}

/// fallocate(2).
pub fn fallocate(fd: c_int, mode: c_int, offset: i64, length: i64) -> Answer {
    call!(__NR_fallocate, fd, mode, offset, length)
}

/// ioctl(2) of a request that writes nothing back.
pub fn ioctl(fd: c_int, request: u64, argument: usize) -> Answer {
    call!(__NR_ioctl, fd, request, argument)
}

/// sendfile(2); moves `offset` on where it is not null.
pub fn sendfile(out: c_int, input: c_int, offset: *mut i64, n: usize) -> Answer {
    call!(__NR_sendfile, out, input, offset, n)
}

/// copy_file_range(2); moves the offsets on where they are not null.
pub fn copy_file_range(a: c_int, from: *mut i64, b: c_int, to: *mut i64, n: usize, flags: u32) -> Answer {
    call!(__NR_copy_file_range, a, from, b, to, n, flags)
}

/// bind(2).
pub fn bind(socket: c_int, address: *const c_void, length: u32) -> Answer {
    call!(__NR_bind, socket, address, length)
}

/// splice(2); moves the offsets on where they are not null.
pub fn splice(a: c_int, from: *mut i64, b: c_int, to: *mut i64, n: usize, flags: u32) -> Answer {
    call!(__NR_splice, a, from, b, to, n, flags)
}

/// Waits until `fd` can be read from.
pub fn wait_readable(fd: c_int) -> Result<(), Errno> {
    const POLLIN: i16 = 1;
    let mut poll = k::pollfd { fd, events: POLLIN, revents: 0 };
    call!(__NR_ppoll, &raw mut poll, 1, 0, 0, 8).map(|_| ())
}

/// Ends the process as abort(3) would.
pub fn abort() -> ! {
    raise(k::SIGABRT);
    loop {
        let _ = call!(__NR_exit_group, 134);
    }
}

/// Sends the process a signal.
pub fn raise(signal: u32) {
    let _ = call!(__NR_kill, getpid(), signal);
}

/// dup3(2) without flags.
pub fn replace(fd: c_int, by: c_int) -> Answer {
    call!(__NR_dup3, by, fd, 0)
}

/// fcntl(2) F_GETFL.
pub fn status_flags(fd: c_int) -> Answer {
    call!(__NR_fcntl, fd, k::F_GETFL)
}

/// ftruncate(2).
pub fn ftruncate(fd: c_int, length: i64) -> Answer {
    call!(__NR_ftruncate, fd, length)
}

/// Takes the OFD write lock of byte 0; does not wait.
pub fn lock_first_byte(fd: c_int) -> Answer {
    let lock = k::flock64 { l_type: k::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 1, l_pid: 0 };
    call!(__NR_fcntl, fd, k::F_OFD_SETLK, &raw const lock)
}

/// mmap(2) of a shared file (`fd`) or, for `fd` -1, of private zeroed memory.
pub fn map(fd: c_int, length: usize, write: bool) -> Result<*mut c_void, Errno> {
    let protection = k::PROT_READ | if write { k::PROT_WRITE } else { 0 };
    let kind = if fd < 0 { k::MAP_PRIVATE | k::MAP_ANONYMOUS } else { k::MAP_SHARED };
    call!(__NR_mmap, 0, length, protection, kind, fd, 0).map(|at| at as *mut c_void)
}

/// munmap(2).
///
/// # Safety
/// Nothing may use the mapping any more.
pub unsafe fn unmap(at: *mut c_void, length: usize) {
    let _ = call!(__NR_munmap, at, length);
}

/// madvise(2) with MADV_DONTFORK or MADV_WIPEONFORK.
pub fn advise(at: *mut c_void, length: usize, advice: u32) -> Answer {
    call!(__NR_madvise, at, length, advice)
}

/// Registers the process for global expedited membarriers.
pub fn register_membarrier() -> Answer {
    call!(__NR_membarrier, k::membarrier_cmd::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED as u32, 0, 0)
}

/// Waits while `*word == value`, at most `timeout_ns`. Shared futex.
pub fn futex_wait(word: *const AtomicU32, value: u32, timeout_ns: u64) -> Answer {
    let time = timespec(timeout_ns);
    call!(__NR_futex, word, k::FUTEX_WAIT, value, &raw const time)
}

/// Wakes all who wait on `word`; how many they were.
pub fn futex_wake(word: *const AtomicU32) -> usize {
    call!(__NR_futex, word, k::FUTEX_WAKE, i32::MAX).unwrap_or(0)
}

/// sched_yield(2).
pub fn yield_now() {
    let _ = call!(__NR_sched_yield);
}

/// Sleeps; a signal cuts it short.
pub fn sleep_ns(ns: u64) {
    let time = timespec(ns);
    let _ = call!(__NR_nanosleep, &raw const time, 0);
}

fn timespec(ns: u64) -> k::__kernel_timespec {
    k::__kernel_timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn now_ns() -> u64 {
    let mut time = timespec(0);
    // The clock always exists; if a filter forbids it, time stands still and waits end by their slices.
    let _ = call!(__NR_clock_gettime, k::CLOCK_MONOTONIC, &raw mut time);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// Random bytes for a name; falls back on clock and address where getrandom(2) is filtered.
pub fn random() -> u64 {
    let mut value = 0u64;
    if call!(__NR_getrandom, &raw mut value, 8, 0) == Ok(8) {
        return value;
    }
    now_ns().wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ thread_pointer()
}

/// getpid(2).
pub fn getpid() -> u32 {
    call!(__NR_getpid).unwrap_or(0) as u32
}

/// geteuid(2).
pub fn geteuid() -> u32 {
    call!(__NR_geteuid).unwrap_or(0) as u32
}

/// The size in bytes above which this process may not let a file grow.
pub fn file_size_limit() -> u64 {
    limits(k::RLIMIT_FSIZE).map_or(u64::MAX, |limits| limits.rlim_cur)
}

/// Lets this process have as many descriptors as it may let itself have.
pub fn raise_descriptor_limit() {
    if let Some(limits) = limits(k::RLIMIT_NOFILE) {
        let most = k::rlimit64 { rlim_cur: limits.rlim_max, rlim_max: limits.rlim_max };
        let _ = call!(__NR_prlimit64, 0, k::RLIMIT_NOFILE, &raw const most, 0);
    }
}

fn limits(which: u32) -> Option<k::rlimit64> {
    let mut out = MaybeUninit::<k::rlimit64>::uninit();
    call!(__NR_prlimit64, 0, which, 0, out.as_mut_ptr()).ok()?;
    // SAFETY: the kernel has filled it.
    Some(unsafe { out.assume_init() })
}

/// Waits for the end of a child that tells nobody of it.
pub fn reap(pid: i32) {
    const WCLONE: u32 = 0x8000_0000;
    while call!(__NR_wait4, pid, 0, WCLONE, 0) == Err(Errno::of(errno::EINTR)) {}
}

/// The calling thread's name.
pub fn comm() -> [u8; 16] {
    const PR_GET_NAME: u32 = 16;
    let mut name = [0u8; 16];
    let _ = call!(__NR_prctl, PR_GET_NAME, name.as_mut_ptr());
    name
}

/// Blocks every signal; returns the mask to give back to [`set_signals`].
pub fn block_signals() -> u64 {
    let all = u64::MAX;
    let mut before = 0u64;
    let _ = call!(__NR_rt_sigprocmask, k::SIG_SETMASK, &raw const all, &raw mut before, 8);
    before
}

/// Sets the signal mask.
pub fn set_signals(mask: u64) {
    let _ = call!(__NR_rt_sigprocmask, k::SIG_SETMASK, &raw const mask, 0, 8);
}

/// execveat(2) with the program's path; answers only where it failed.
pub fn execveat(
    dirfd: c_int,
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    flags: c_int,
) -> Errno {
    let answer = if flags == 0 && dirfd == k::AT_FDCWD {
        call!(__NR_execve, path, argv, envp)
    } else {
        call!(__NR_execveat, dirfd, path, argv, envp, flags)
    };
    answer.err().unwrap_or(Errno(0))
}

/// The name of a descriptor's link under /proc, NUL-terminated.
pub fn fd_link(fd: c_int) -> [u8; 32] {
    link(b"/proc/self/fd/", fd)
}

fn link(head: &[u8], fd: c_int) -> [u8; 32] {
    let mut name = [0u8; 32];
    let mut digits = [0u8; 10];
    let mut n = 0usize;
    let mut value = fd.unsigned_abs();
    for digit in &mut digits {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
        n += 1;
        if value == 0 {
            break;
        }
    }
    let head = head.iter();
    for (to, from) in name.iter_mut().zip(head.chain(digits.iter().take(n).rev())) {
        *to = *from;
    }
    name
}

/// The path of a descriptor as the kernel names it.
pub fn fd_path(fd: c_int, out: &mut Bytes) -> Result<&[u8], Errno> {
    // A thread may have descriptors of its own; /proc/self shows those of the first one.
    readlink_at(k::AT_FDCWD, link(b"/proc/thread-self/fd/", fd).as_ptr().cast(), out)
}

/// Takes the signals of `mask` out of the calling thread's mask.
pub fn unblock_signals(mask: u64) {
    let _ = call!(__NR_rt_sigprocmask, k::SIG_UNBLOCK, &raw const mask, 0, 8);
}

const PR_SET_SYSCALL_USER_DISPATCH: u32 = 59;

/// prctl(2): calls of this thread from outside `length` bytes at `start` become SIGSYS.
pub fn dispatch_outside(start: usize, length: usize) -> Answer {
    call!(__NR_prctl, PR_SET_SYSCALL_USER_DISPATCH, 1, start, length, 0)
}

/// prctl(2): no call of this thread does.
pub fn dispatch_nothing() -> Answer {
    call!(__NR_prctl, PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn both_ways_to_ask_say_what_the_standard_library_says() {
        for path in [c"/", c"/dev/null", c"/proc/self/exe"] {
            let name = path.to_str().unwrap();
            let expected = std::fs::metadata(name).unwrap();
            for ask in [stat_at, old_stat_at] {
                let found = ask(k::AT_FDCWD, path.as_ptr(), 0).unwrap();
                assert_eq!(found.st_dev, expected.dev(), "{name}");
                assert_eq!(found.st_ino, expected.ino(), "{name}");
                assert_eq!(found.st_mode, expected.mode(), "{name}");
                assert_eq!(found.st_nlink, expected.nlink(), "{name}");
                assert_eq!(found.st_size as u64, expected.size(), "{name}");
            }
        }
        assert_eq!(fstat(-1).unwrap_err(), Errno::of(errno::EBADF));
        assert_eq!(fstat(k::AT_FDCWD).unwrap_err(), Errno::of(errno::EBADF));
    }

    #[test]
    fn what_leads_nowhere_is_left_to_the_kernel() {
        let nowhere = [0, 8, 4095, usize::MAX, usize::MAX - 4094];
        assert!(nowhere.iter().all(|at| leads_nowhere(core::ptr::without_provenance::<u8>(*at))));
        assert!(!leads_nowhere(c"".as_ptr()) && !leads_nowhere(core::ptr::without_provenance::<u8>(4096)));
    }
}
