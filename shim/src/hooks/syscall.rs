//! `syscall()`: numbers that have a hook of their own go there; everything else goes to the kernel from a function
//! without a frame, as in libc.

use core::ffi::{c_char, c_int, c_long};

use super::{aio, attr, copy, cwd, exec, fd, io, mmap, name, open, readlink, sync};
use crate::control;
use crate::hook::{answer, fail};
use crate::place::{self, CWD};
use crate::sys::{self, Errno, PathBuf, errno, k};

/// Bit per system call number: those that [`routed`] looks at.
static ROUTED: [u64; 8] = routed_numbers();

const fn routed_numbers() -> [u64; 8] {
    const COMMON: [u32; 63] = [
        k::__NR_openat,
        k::__NR_openat2,
        k::__NR_close,
        k::__NR_close_range,
        k::__NR_dup,
        k::__NR_dup3,
        k::__NR_fcntl,
        k::__NR_ioctl,
        k::__NR_write,
        k::__NR_pwrite64,
        k::__NR_writev,
        k::__NR_pwritev,
        k::__NR_pwritev2,
        k::__NR_sendfile,
        k::__NR_splice,
        k::__NR_copy_file_range,
        k::__NR_ftruncate,
        k::__NR_truncate,
        k::__NR_fallocate,
        k::__NR_fsync,
        k::__NR_fdatasync,
        k::__NR_sync,
        k::__NR_syncfs,
        k::__NR_msync,
        k::__NR_mkdirat,
        k::__NR_mknodat,
        k::__NR_unlinkat,
        k::__NR_symlinkat,
        k::__NR_linkat,
        k::__NR_renameat2,
        k::__NR_fchmod,
        k::__NR_fchmodat,
        k::__NR_fchmodat2,
        k::__NR_fchown,
        k::__NR_fchownat,
        k::__NR_utimensat,
        k::__NR_setxattr,
        k::__NR_lsetxattr,
        k::__NR_fsetxattr,
        k::__NR_removexattr,
        k::__NR_lremovexattr,
        k::__NR_fremovexattr,
        k::__NR_getxattr,
        k::__NR_lgetxattr,
        k::__NR_listxattr,
        k::__NR_llistxattr,
        k::__NR_newfstatat,
        k::__NR_statx,
        k::__NR_faccessat,
        k::__NR_faccessat2,
        k::__NR_statfs,
        k::__NR_readlinkat,
        k::__NR_getcwd,
        k::__NR_chdir,
        k::__NR_fchdir,
        k::__NR_execve,
        k::__NR_execveat,
        k::__NR_inotify_add_watch,
        k::__NR_name_to_handle_at,
        k::__NR_io_uring_setup,
        k::__NR_io_submit,
        k::__NR_mmap,
        k::__NR_chroot,
    ];
    let mut bits = [0u64; 8];
    let mut at = 0;
    while at < COMMON.len() {
        bits[COMMON[at] as usize / 64] |= 1 << (COMMON[at] % 64);
        at += 1;
    }
    #[cfg(target_arch = "x86_64")]
    {
        const OLD: [u32; 20] = [
            k::__NR_open,
            k::__NR_creat,
            k::__NR_dup2,
            k::__NR_mkdir,
            k::__NR_rmdir,
            k::__NR_mknod,
            k::__NR_unlink,
            k::__NR_symlink,
            k::__NR_link,
            k::__NR_rename,
            k::__NR_renameat,
            k::__NR_chmod,
            k::__NR_chown,
            k::__NR_lchown,
            k::__NR_utime,
            k::__NR_utimes,
            k::__NR_stat,
            k::__NR_lstat,
            k::__NR_access,
            k::__NR_readlink,
        ];
        let mut at = 0;
        while at < OLD.len() {
            bits[OLD[at] as usize / 64] |= 1 << (OLD[at] % 64);
            at += 1;
        }
    }
    bits
}

/// Arguments of a system call.
#[derive(Clone, Copy)]
struct Words([usize; 6]);

impl Words {
    fn path(&self, at: usize) -> *const c_char {
        self.word(at) as *const c_char
    }

    fn int(&self, at: usize) -> c_int {
        self.word(at) as c_int
    }

    fn word(&self, at: usize) -> usize {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// Makes the call as it is.
    ///
    /// # Safety
    /// The contract of the call.
    unsafe fn call(self, number: usize) -> c_long {
        let [a, b, c, d, e, f] = self.0;
        // SAFETY: as above.
        answer(unsafe { sys::raw(number, a, b, c, d, e, f) })
    }

    /// Makes the call with the path at `path` translated; `dirfd` is where the descriptor before it stands, if any.
    ///
    /// # Safety
    /// The contract of the call.
    unsafe fn translated(mut self, number: usize, dirfd: Option<usize>, path: usize) -> c_long {
        let mut room = PathBuf::new();
        let from = dirfd.map_or(CWD, |at| self.int(at));
        match place::at(from, self.path(path), &mut room) {
            Ok(place) => {
                if let Some(word) = self.0.get_mut(path) {
                    *word = place.path as usize;
                }
                if let Some(word) = dirfd.and_then(|at| self.0.get_mut(at)) {
                    *word = place.dirfd as usize;
                }
                // SAFETY: as above.
                unsafe { self.call(number) }
            }
            Err(errno) => fail(errno),
        }
    }
}

/// A system call that has a hook.
///
/// # Safety
/// The contract of the call.
unsafe extern "C" fn routed(
    number: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let w = Words([a, b, c, d, e, f]);
    // SAFETY: the caller keeps the contract of the call, which is that of the function.
    unsafe {
        match number as u32 {
            k::__NR_openat => open::my_openat(w.int(0), w.path(1), w.int(2), d as u32).into(),
            k::__NR_openat2 => answer(open::open_how(w.int(0), w.path(1), c as *const k::open_how, d)),
            k::__NR_close => fd::my_close(w.int(0)).into(),
            k::__NR_close_range => fd::my_close_range(a as u32, b as u32, w.int(2)).into(),
            k::__NR_dup => fd::my_dup(w.int(0)).into(),
            k::__NR_dup3 => fd::my_dup3(w.int(0), w.int(1), w.int(2)).into(),
            k::__NR_fcntl => fd::my_fcntl(w.int(0), w.int(1), c).into(),
            k::__NR_ioctl => io::my_ioctl(w.int(0), b as u64, c).into(),
            k::__NR_write => io::my_write(w.int(0), b as *const _, c) as c_long,
            k::__NR_pwrite64 => io::my_pwrite(w.int(0), b as *const _, c, d as i64) as c_long,
            k::__NR_writev => io::my_writev(w.int(0), b as *const _, w.int(2)) as c_long,
            // The kernel takes the offset in two halves, of which 64-bit machines use the first.
            k::__NR_pwritev => io::my_pwritev(w.int(0), b as *const _, w.int(2), d as i64) as c_long,
            k::__NR_pwritev2 => {
                io::my_pwritev2(w.int(0), b as *const _, w.int(2), d as i64, w.int(5)) as c_long
            }
            k::__NR_sendfile => copy::my_sendfile(w.int(0), w.int(1), c as *mut i64, d) as c_long,
            k::__NR_splice => {
                copy::my_splice(w.int(0), b as *mut i64, w.int(2), d as *mut i64, e, f as u32) as c_long
            }
            k::__NR_copy_file_range => {
                copy::my_copy_file_range(w.int(0), b as *mut i64, w.int(2), d as *mut i64, e, f as u32)
                    as c_long
            }
            k::__NR_mmap => mmap::my_mmap(a as *mut _, b, w.int(2), w.int(3), w.int(4), f as i64) as c_long,
            k::__NR_msync => mmap::my_msync(a as *mut _, b, w.int(2)).into(),
            k::__NR_ftruncate => io::my_ftruncate(w.int(0), b as i64).into(),
            k::__NR_truncate => attr::my_truncate(w.path(0), b as i64).into(),
            k::__NR_fallocate => io::my_fallocate(w.int(0), w.int(1), c as i64, d as i64).into(),
            k::__NR_fsync => sync::my_fsync(w.int(0)).into(),
            k::__NR_fdatasync => sync::my_fdatasync(w.int(0)).into(),
            k::__NR_syncfs => sync::my_syncfs(w.int(0)).into(),
            k::__NR_sync => {
                sync::my_sync();
                0
            }
            k::__NR_mkdirat => name::my_mkdirat(w.int(0), w.path(1), c as u32).into(),
            k::__NR_mknodat => name::my_mknodat(w.int(0), w.path(1), c as u32, d as u64).into(),
            k::__NR_unlinkat => name::my_unlinkat(w.int(0), w.path(1), w.int(2)).into(),
            k::__NR_symlinkat => name::my_symlinkat(w.path(0), w.int(1), w.path(2)).into(),
            k::__NR_linkat => name::my_linkat(w.int(0), w.path(1), w.int(2), w.path(3), w.int(4)).into(),
            k::__NR_renameat2 => {
                name::my_renameat2(w.int(0), w.path(1), w.int(2), w.path(3), e as u32).into()
            }
            k::__NR_fchmod => attr::my_fchmod(w.int(0), b as u32).into(),
            k::__NR_fchmodat => attr::my_fchmodat(w.int(0), w.path(1), c as u32, 0).into(),
            k::__NR_fchmodat2 => attr::by_path(w.int(0), w.path(1), attr::follows(w.int(3)), |place| {
                Words([place.dirfd as usize, place.path as usize, c, d, 0, 0]).call(number) as c_int
            })
            .into(),
            k::__NR_fchown => attr::my_fchown(w.int(0), b as u32, c as u32).into(),
            k::__NR_fchownat => attr::my_fchownat(w.int(0), w.path(1), c as u32, d as u32, w.int(4)).into(),
            k::__NR_utimensat if b == 0 => attr::by_fd(w.int(0), || w.call(number) as c_int).into(),
            k::__NR_utimensat => attr::my_utimensat(w.int(0), w.path(1), c as *const _, w.int(3)).into(),
            k::__NR_setxattr => attr::my_setxattr(w.path(0), w.path(1), c as *const _, d, w.int(4)).into(),
            k::__NR_lsetxattr => attr::my_lsetxattr(w.path(0), w.path(1), c as *const _, d, w.int(4)).into(),
            k::__NR_fsetxattr => attr::my_fsetxattr(w.int(0), w.path(1), c as *const _, d, w.int(4)).into(),
            k::__NR_removexattr => attr::my_removexattr(w.path(0), w.path(1)).into(),
            k::__NR_lremovexattr => attr::my_lremovexattr(w.path(0), w.path(1)).into(),
            k::__NR_fremovexattr => attr::my_fremovexattr(w.int(0), w.path(1)).into(),
            k::__NR_newfstatat
            | k::__NR_statx
            | k::__NR_faccessat
            | k::__NR_faccessat2
            | k::__NR_name_to_handle_at => w.translated(number, Some(0), 1),
            k::__NR_getxattr
            | k::__NR_lgetxattr
            | k::__NR_listxattr
            | k::__NR_llistxattr
            | k::__NR_statfs
            | k::__NR_chroot => w.translated(number, None, 0),
            k::__NR_inotify_add_watch => w.translated(number, None, 1),
            k::__NR_readlinkat => readlink::my_readlinkat(w.int(0), w.path(1), c as *mut c_char, d) as c_long,
            k::__NR_getcwd => getcwd(a as *mut c_char, b),
            k::__NR_chdir => cwd::my_chdir(w.path(0)).into(),
            k::__NR_fchdir => cwd::my_fchdir(w.int(0)).into(),
            k::__NR_execve => exec::my_execve(w.path(0), b as *const _, c as *const _).into(),
            k::__NR_execveat => {
                exec::my_execveat(w.int(0), w.path(1), c as *const _, d as *const _, w.int(4)).into()
            }
            // A ring would change files where no hook sees it; every user of it falls back.
            k::__NR_io_uring_setup if control::table().is_some() => fail(Errno::of(errno::ENOSYS)),
            k::__NR_io_submit => match aio::submitting(b as c_long, c as *const _) {
                Ok(_) => w.call(number),
                Err(errno) => fail(errno),
            },
            _ => old_routed(number, w),
        }
    }
}

/// getcwd(2) answers a length.
///
/// # Safety
/// `out` must have room for `size` bytes.
unsafe fn getcwd(out: *mut c_char, size: usize) -> c_long {
    if out.is_null() {
        return fail(Errno::of(errno::EFAULT));
    }
    // SAFETY: as above; the result is a C string.
    unsafe {
        let path = cwd::my_getcwd(out, size);
        if path.is_null() { -1 } else { core::ffi::CStr::from_ptr(path).to_bytes().len() as c_long + 1 }
    }
}

/// The numbers that only x86-64 has.
///
/// # Safety
/// The contract of the call.
#[cfg(target_arch = "x86_64")]
unsafe fn old_routed(number: usize, w: Words) -> c_long {
    // SAFETY: as above.
    unsafe {
        match number as u32 {
            k::__NR_open => open::my_open(w.path(0), w.int(1), w.word(2) as u32).into(),
            k::__NR_creat => open::my_creat(w.path(0), w.word(1) as u32).into(),
            k::__NR_dup2 => fd::my_dup2(w.int(0), w.int(1)).into(),
            k::__NR_mkdir => name::my_mkdir(w.path(0), w.word(1) as u32).into(),
            k::__NR_rmdir => name::my_rmdir(w.path(0)).into(),
            k::__NR_mknod => name::my_mknod(w.path(0), w.word(1) as u32, w.word(2) as u64).into(),
            k::__NR_unlink => name::my_unlink(w.path(0)).into(),
            k::__NR_symlink => name::my_symlink(w.path(0), w.path(1)).into(),
            k::__NR_link => name::my_link(w.path(0), w.path(1)).into(),
            k::__NR_rename => name::my_rename(w.path(0), w.path(1)).into(),
            k::__NR_renameat => name::my_renameat(w.int(0), w.path(1), w.int(2), w.path(3)).into(),
            k::__NR_chmod => attr::my_chmod(w.path(0), w.word(1) as u32).into(),
            k::__NR_chown => attr::my_chown(w.path(0), w.word(1) as u32, w.word(2) as u32).into(),
            k::__NR_lchown => attr::my_lchown(w.path(0), w.word(1) as u32, w.word(2) as u32).into(),
            k::__NR_utime => attr::my_utime(w.path(0), w.word(1) as *const _).into(),
            k::__NR_utimes => attr::my_utimes(w.path(0), w.word(1) as *const _).into(),
            k::__NR_stat | k::__NR_lstat | k::__NR_access => w.translated(number, None, 0),
            k::__NR_readlink => {
                readlink::my_readlink(w.path(0), w.word(1) as *mut c_char, w.word(2)) as c_long
            }
            _ => w.call(number),
        }
    }
}

/// Other machines have no others.
///
/// # Safety
/// The contract of the call.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn old_routed(number: usize, w: Words) -> c_long {
    // SAFETY: as above.
    unsafe { w.call(number) }
}

/// Sets errno from a kernel's answer.
extern "C" fn refused(number: c_int) -> c_long {
    fail(Errno(number))
}

/// Exported in libc's place. Without a frame, because some calls return twice.
///
/// # Safety
/// The contract of syscall(2).
#[cfg(all(not(test), target_arch = "x86_64"))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() {
    core::arch::naked_asm!(
        "cmp rdi, 512",
        "jae 2f",
        "lea rax, [rip + {table}]",
        "bt [rax], rdi",
        "jc {routed}",
        "2:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 3f",
        "ret",
        "3:",
        "neg eax",
        "mov edi, eax",
        "jmp {refused}",
        table = sym ROUTED, routed = sym routed, refused = sym refused)
}

/// Exported in libc's place. Without a frame, because some calls return twice.
///
/// # Safety
/// The contract of syscall(2).
#[cfg(all(not(test), target_arch = "aarch64"))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() {
    core::arch::naked_asm!(
        "cmp x0, #512",
        "b.hs 2f",
        "adrp x9, {table}",
        "add x9, x9, :lo12:{table}",
        "lsr x10, x0, #6",
        "ldr x9, [x9, x10, lsl #3]",
        "lsr x9, x9, x0",
        "tbz x9, #0, 2f",
        "b {routed}",
        "2:",
        "mov x8, x0",
        "mov x0, x1",
        "mov x1, x2",
        "mov x2, x3",
        "mov x3, x4",
        "mov x4, x5",
        "mov x5, x6",
        "svc #0",
        "cmn x0, #4095",
        "b.hs 3f",
        "ret",
        "3:",
        "neg w0, w0",
        "b {refused}",
        table = sym ROUTED, routed = sym routed, refused = sym refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_a_hook_are_routed_and_others_are_not() {
        let routed = |n: u32| ROUTED[n as usize / 64] >> (n % 64) & 1 == 1;
        assert!(routed(k::__NR_openat) && routed(k::__NR_statx) && routed(k::__NR_io_uring_setup));
        assert!(!routed(k::__NR_futex) && !routed(k::__NR_clone) && !routed(k::__NR_read));
    }
}
