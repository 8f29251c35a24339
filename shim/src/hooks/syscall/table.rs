//! Which number goes where: one line for each system call that takes a path, changes a file, or makes a descriptor or a
//! process. What is not here goes to the kernel as it is.

use core::ffi::{c_char, c_int, c_long};

use super::words::{Said, Words};
use crate::hook::{answer, fail};
use crate::hooks::{
    aio, attr, copy, cwd, dir, exec, fd, io, mmap, name, open, process, read, readlink, signal, socket,
    space, spawn, stat, sync, system,
};
use crate::sys::{Errno, errno, k};
use crate::{control, streams};

/// Declares the numbers that are routed and their routes: `NUMBER => hook(positions of its arguments);` or
/// `NUMBER => { expression };`.
macro_rules! routes {
    ($w:ident; $($number:ident => $hook:tt $(:: $rest:ident)* $(($($at:literal),*))?;)*) => {
        /// The numbers of this table.
        pub const NUMBERS: &[u32] = &[$(k::$number),*];

        /// Makes the call by its hook; `None` where this table has none.
        ///
        /// # Safety
        /// The contract of the call.
        pub unsafe fn route($w: Words) -> Option<c_long> {
            // SAFETY: the caller keeps the contract of the call, which is that of the hook.
            unsafe {
                Some(match $w.number as u32 {
                    $(k::$number => routes!(@ $w $hook $(:: $rest)* $(($($at),*))?),)*
                    _ => return None,
                })
            }
        }
    };
    (@ $w:ident $hook:ident $(:: $rest:ident)* ($($at:literal),*)) => {
        Said::word($hook $(:: $rest)* ($($w.get($at)),*))
    };
    (@ $w:ident $route:block) => { Said::word($route) };
}
#[cfg(target_arch = "x86_64")]
pub(super) use routes;

routes! { w;
    // Opening.
    __NR_openat => open::my_openat(0, 1, 2, 3);
    __NR_openat2 => open::my_openat2(0, 1, 2, 3);
    __NR_open_by_handle_at => { opened(w.call(), w.get(2)) };
    __NR_name_to_handle_at => { w.translated_at(0, 1) };

    // Descriptors.
    __NR_close => fd::my_close(0);
    __NR_close_range => fd::my_close_range(0, 1, 2);
    __NR_dup => fd::my_dup(0);
    __NR_dup3 => fd::my_dup3(0, 1, 2);
    __NR_fcntl => fd::my_fcntl(0, 1, 2);
    __NR_ioctl => io::my_ioctl(0, 1, 2);
    __NR_pidfd_getfd => { opened(w.call(), 0) };

    // Reading.
    __NR_read => read::my_read(0, 1, 2);
    __NR_pread64 => read::my_pread(0, 1, 2, 3);
    __NR_readv => read::my_readv(0, 1, 2);
    __NR_preadv => read::my_preadv(0, 1, 2, 3);
    __NR_preadv2 => read::my_preadv2(0, 1, 2, 3, 5);
    __NR_lseek => read::my_lseek(0, 1, 2);
    __NR_readahead => read::my_readahead(0, 1, 2);
    __NR_fadvise64 => { hinted(w) };

    // Writing. Vectors' offsets come in two halves, of which 64-bit machines use the first.
    __NR_write => io::my_write(0, 1, 2);
    __NR_pwrite64 => io::my_pwrite(0, 1, 2, 3);
    __NR_writev => io::my_writev(0, 1, 2);
    __NR_pwritev => io::my_pwritev(0, 1, 2, 3);
    __NR_pwritev2 => io::my_pwritev2(0, 1, 2, 3, 5);
    __NR_sendfile => copy::my_sendfile(0, 1, 2, 3);
    __NR_splice => copy::my_splice(0, 1, 2, 3, 4, 5);
    __NR_copy_file_range => copy::my_copy_file_range(0, 1, 2, 3, 4, 5);
    __NR_ftruncate => io::my_ftruncate(0, 1);
    __NR_truncate => attr::my_truncate(0, 1);
    __NR_fallocate => io::my_fallocate(0, 1, 2, 3);
    __NR_mmap => mmap::my_mmap(0, 1, 2, 3, 4, 5);
    __NR_mremap => mmap::my_mremap(0, 1, 2, 3, 4);

    // A ring would change files where no hook sees it; every user of it falls back.
    __NR_io_uring_setup => { no_ring(w) };
    __NR_io_uring_enter => { no_ring(w) };
    __NR_io_uring_register => { no_ring(w) };
    __NR_io_submit => { aio::submitting(w.get(1), w.get(2)).and_then(|_| w.call()) };

    // Barriers.
    __NR_fsync => sync::my_fsync(0);
    __NR_fdatasync => sync::my_fdatasync(0);
    __NR_sync => sync::my_sync();
    __NR_syncfs => sync::my_syncfs(0);
    __NR_msync => mmap::my_msync(0, 1, 2);

    // Names.
    __NR_mkdirat => name::my_mkdirat(0, 1, 2);
    __NR_mknodat => name::my_mknodat(0, 1, 2, 3);
    __NR_unlinkat => name::my_unlinkat(0, 1, 2);
    __NR_symlinkat => name::my_symlinkat(0, 1, 2);
    __NR_linkat => name::my_linkat(0, 1, 2, 3, 4);
    __NR_renameat => name::my_renameat(0, 1, 2, 3);
    __NR_renameat2 => name::my_renameat2(0, 1, 2, 3, 4);

    // Attributes.
    __NR_fchmod => attr::my_fchmod(0, 1);
    __NR_fchmodat => { attributes(w, 0) };
    __NR_fchmodat2 => { attributes(w, w.get(3)) };
    __NR_fchown => attr::my_fchown(0, 1, 2);
    __NR_fchownat => { attributes(w, w.get(4)) };
    __NR_utimensat => { attributes(w, w.get(3)) };
    __NR_setxattr => attr::my_setxattr(0, 1, 2, 3, 4);
    __NR_lsetxattr => attr::my_lsetxattr(0, 1, 2, 3, 4);
    __NR_fsetxattr => attr::my_fsetxattr(0, 1, 2, 3, 4);
    __NR_setxattrat => { attributes(w, w.get(2)) };
    __NR_removexattr => attr::my_removexattr(0, 1);
    __NR_lremovexattr => attr::my_lremovexattr(0, 1);
    __NR_fremovexattr => attr::my_fremovexattr(0, 1);
    __NR_removexattrat => { attributes(w, w.get(2)) };
    __NR_file_setattr => { attributes(w, w.get(4)) };

    // Questions.
    __NR_newfstatat => stat::my_fstatat(0, 1, 2, 3);
    __NR_fstat => stat::my_fstat(0, 1);
    __NR_getdents64 => dir::my_getdents64(0, 1, 2);
    __NR_statx => stat::my_statx(0, 1, 2, 3, 4);
    __NR_faccessat => { w.translated_at(0, 1) };
    __NR_faccessat2 => { w.translated_at(0, 1) };
    __NR_statfs => space::my_statfs(0, 1);
    __NR_fstatfs => space::my_fstatfs(0, 1);
    __NR_getxattr => { w.translated(0) };
    __NR_lgetxattr => { w.translated(0) };
    __NR_getxattrat => { w.translated_at(0, 1) };
    __NR_listxattr => { w.translated(0) };
    __NR_llistxattr => { w.translated(0) };
    __NR_listxattrat => { w.translated_at(0, 1) };
    __NR_file_getattr => { w.translated_at(0, 1) };
    __NR_readlinkat => readlink::my_readlinkat(0, 1, 2, 3);
    __NR_inotify_add_watch => dir::my_inotify_add_watch(0, 1, 2);
    __NR_fanotify_mark => { w.translated_at(3, 4) };

    // Where the process stands.
    __NR_getcwd => { getcwd(w.get(0), w.get(1)) };
    __NR_chdir => cwd::my_chdir(0);
    __NR_fchdir => cwd::my_fchdir(0);
    __NR_chroot => cwd::my_chroot(0);

    // Mounts and what else root does to paths.
    __NR_mount => system::my_mount(0, 1, 2, 3, 4);
    __NR_umount2 => { w.translated(0) };
    __NR_pivot_root => { w.translated_two(0, 1) };
    __NR_open_tree => { w.translated_at(0, 1) };
    __NR_open_tree_attr => { w.translated_at(0, 1) };
    __NR_move_mount => { w.translated_at(2, 3) };
    __NR_fspick => { w.translated_at(0, 1) };
    __NR_mount_setattr => { w.translated_at(0, 1) };
    __NR_swapon => { w.translated(0) };
    __NR_swapoff => { w.translated(0) };
    __NR_acct => { w.translated(0) };
    __NR_quotactl => { w.translated(1) };

    // Sockets with names; descriptors that messages bring.
    __NR_bind => socket::my_bind(0, 1, 2);
    __NR_connect => socket::my_connect(0, 1, 2);
    __NR_accept => socket::my_accept(0, 1, 2);
    __NR_accept4 => socket::my_accept4(0, 1, 2, 3);
    __NR_getsockname => socket::my_getsockname(0, 1, 2);
    __NR_getpeername => socket::my_getpeername(0, 1, 2);
    __NR_sendto => socket::my_sendto(0, 1, 2, 3, 4, 5);
    __NR_sendmsg => socket::my_sendmsg(0, 1, 2);
    __NR_sendmmsg => socket::my_sendmmsg(0, 1, 2, 3);
    __NR_recvfrom => socket::my_recvfrom(0, 1, 2, 3, 4, 5);
    __NR_recvmsg => fd::my_recvmsg(0, 1, 2);
    __NR_recvmmsg => fd::my_recvmmsg(0, 1, 2, 3, 4);

    // Processes, threads, and the signal of the second net.
    __NR_execve => exec::my_execve(0, 1, 2);
    __NR_execveat => exec::my_execveat(0, 1, 2, 3, 4);
    __NR_seccomp => { confined(w) };
    __NR_unshare => spawn::my_unshare(0);
    __NR_rt_sigaction => { signal::kernel_action(w) };
    __NR_rt_sigprocmask => { signal::kernel_mask(w) };
}

/// After a call that made a descriptor of a file which no path told: opened with `flags`, as far as they are known.
fn opened(done: crate::sys::Answer, flags: c_int) -> crate::sys::Answer {
    if let Ok(fd) = done {
        let fd = fd as c_int;
        open::led(fd, flags);
        if streams::has(fd) {
            return self::fd::taken(fd);
        }
    }
    done
}

fn hinted(w: Words) -> crate::sys::Answer {
    // SAFETY: takes no pointer.
    match unsafe { read::my_fadvise(w.get(0), w.get(1), w.get(2), w.get(3)) } {
        0 => Ok(0),
        number => Err(Errno(number)),
    }
}

fn confined(w: Words) -> c_long {
    process::before_confinement();
    // SAFETY: the app's own call.
    answer(unsafe { w.call() })
}

fn no_ring(w: Words) -> c_long {
    if control::table().is_some() {
        return fail(Errno::of(errno::ENOSYS));
    }
    // SAFETY: the app's own call.
    answer(unsafe { w.call() })
}

/// A call that changes attributes of what its first two arguments name: a descriptor alone where the path is null.
///
/// # Safety
/// The contract of the call.
unsafe fn attributes(w: Words, flags: c_int) -> c_int {
    let path: *const c_char = w.get(1);
    if crate::sys::leads_nowhere(path) {
        // SAFETY: as above.
        return attr::by_fd(w.get(0), || answer(unsafe { w.call() }));
    }
    attr::by_path(w.get(0), path, attr::follows(flags), |place| {
        // SAFETY: as above.
        answer(unsafe { w.with(0, place.dirfd as usize).with(1, place.path as usize).call() })
    })
}

/// getcwd(2) answers a length.
///
/// # Safety
/// `out` must have room for `size` bytes.
unsafe fn getcwd(out: *mut c_char, size: usize) -> c_long {
    // The kernel asks for room first.
    if size == 0 {
        return fail(Errno::of(errno::ERANGE));
    }
    if crate::sys::leads_nowhere(out) {
        return fail(Errno::of(errno::EFAULT));
    }
    // SAFETY: as above; the result is a C string.
    unsafe {
        let path = cwd::my_getcwd(out, size);
        if crate::sys::leads_nowhere(path) {
            -1
        } else {
            core::ffi::CStr::from_ptr(path).to_bytes().len() as c_long + 1
        }
    }
}
