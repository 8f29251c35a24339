//! The system calls that matter to a mount, by number: those that name a path, change a file, or move a descriptor.
//! Numbers: `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h` of Linux.

use super::elf::Machine;
use Kind::{Change, Descriptor, Path, Process, Ring};

/// What a system call does to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It takes a path (or an address that holds one), or answers with one.
    Path,
    /// It changes a file through its descriptor, or asks for its durability.
    Change,
    /// It makes, moves or closes a descriptor.
    Descriptor,
    /// It makes a process.
    Process,
    /// It does all of that through shared memory, where nothing can see it.
    Ring,
}

/// One system call.
#[derive(Debug)]
pub struct Call {
    x86_64: u32,
    aarch64: u32,
    /// Its name.
    pub name: &'static str,
    /// What it does to a mount.
    pub kind: Kind,
}

/// The number of what this machine does not have.
const NONE: u32 = u32::MAX;

const fn row(x86_64: u32, aarch64: u32, name: &'static str, kind: Kind) -> Call {
    Call { x86_64, aarch64, name, kind }
}

/// All that matter.
static CALLS: &[Call] = &[
    row(1, 64, "write", Change),
    row(2, NONE, "open", Path),
    row(3, 57, "close", Descriptor),
    row(4, NONE, "stat", Path),
    row(6, NONE, "lstat", Path),
    row(16, 29, "ioctl", Descriptor),
    row(18, 68, "pwrite64", Change),
    row(20, 66, "writev", Change),
    row(21, NONE, "access", Path),
    row(26, 227, "msync", Change),
    row(32, 23, "dup", Descriptor),
    row(33, NONE, "dup2", Descriptor),
    row(40, 71, "sendfile", Change),
    row(42, 203, "connect", Path),
    row(44, 206, "sendto", Path),
    row(46, 211, "sendmsg", Path),
    row(47, 212, "recvmsg", Descriptor),
    row(49, 200, "bind", Path),
    row(56, 220, "clone", Process),
    row(57, NONE, "fork", Process),
    row(58, NONE, "vfork", Process),
    row(59, 221, "execve", Path),
    row(72, 25, "fcntl", Descriptor),
    row(74, 82, "fsync", Change),
    row(75, 83, "fdatasync", Change),
    row(76, 45, "truncate", Path),
    row(77, 46, "ftruncate", Change),
    row(79, 17, "getcwd", Path),
    row(80, 49, "chdir", Path),
    row(81, 50, "fchdir", Path),
    row(82, NONE, "rename", Path),
    row(83, NONE, "mkdir", Path),
    row(84, NONE, "rmdir", Path),
    row(85, NONE, "creat", Path),
    row(86, NONE, "link", Path),
    row(87, NONE, "unlink", Path),
    row(88, NONE, "symlink", Path),
    row(89, NONE, "readlink", Path),
    row(90, NONE, "chmod", Path),
    row(91, 52, "fchmod", Change),
    row(92, NONE, "chown", Path),
    row(93, 55, "fchown", Change),
    row(94, NONE, "lchown", Path),
    row(132, NONE, "utime", Path),
    row(133, NONE, "mknod", Path),
    row(134, NONE, "uselib", Path),
    row(137, 43, "statfs", Path),
    row(138, 44, "fstatfs", Descriptor),
    row(155, 41, "pivot_root", Path),
    row(161, 51, "chroot", Path),
    row(162, 81, "sync", Change),
    row(163, 89, "acct", Path),
    row(165, 40, "mount", Path),
    row(166, 39, "umount2", Path),
    row(167, 224, "swapon", Path),
    row(168, 225, "swapoff", Path),
    row(179, 60, "quotactl", Path),
    row(188, 5, "setxattr", Path),
    row(189, 6, "lsetxattr", Path),
    row(190, 7, "fsetxattr", Change),
    row(191, 8, "getxattr", Path),
    row(192, 9, "lgetxattr", Path),
    row(194, 11, "listxattr", Path),
    row(195, 12, "llistxattr", Path),
    row(197, 14, "removexattr", Path),
    row(198, 15, "lremovexattr", Path),
    row(199, 16, "fremovexattr", Change),
    row(209, 2, "io_submit", Change),
    row(235, NONE, "utimes", Path),
    row(254, 27, "inotify_add_watch", Path),
    row(257, 56, "openat", Path),
    row(258, 34, "mkdirat", Path),
    row(259, 33, "mknodat", Path),
    row(260, 54, "fchownat", Path),
    row(261, NONE, "futimesat", Path),
    row(262, 79, "newfstatat", Path),
    row(263, 35, "unlinkat", Path),
    row(264, 38, "renameat", Path),
    row(265, 37, "linkat", Path),
    row(266, 36, "symlinkat", Path),
    row(267, 78, "readlinkat", Path),
    row(268, 53, "fchmodat", Path),
    row(269, 48, "faccessat", Path),
    row(275, 76, "splice", Change),
    row(276, 77, "tee", Change),
    row(277, 84, "sync_file_range", Change),
    row(278, 75, "vmsplice", Change),
    row(280, 88, "utimensat", Path),
    row(285, 47, "fallocate", Change),
    row(292, 24, "dup3", Descriptor),
    row(296, 70, "pwritev", Change),
    row(299, 243, "recvmmsg", Descriptor),
    row(301, 263, "fanotify_mark", Path),
    row(303, 264, "name_to_handle_at", Path),
    row(304, 265, "open_by_handle_at", Path),
    row(306, 267, "syncfs", Change),
    row(307, 269, "sendmmsg", Path),
    row(316, 276, "renameat2", Path),
    row(322, 281, "execveat", Path),
    row(326, 285, "copy_file_range", Change),
    row(328, 287, "pwritev2", Change),
    row(332, 291, "statx", Path),
    row(425, 425, "io_uring_setup", Ring),
    row(426, 426, "io_uring_enter", Ring),
    row(427, 427, "io_uring_register", Ring),
    row(428, 428, "open_tree", Path),
    row(429, 429, "move_mount", Path),
    row(433, 433, "fspick", Path),
    row(435, 435, "clone3", Process),
    row(436, 436, "close_range", Descriptor),
    row(437, 437, "openat2", Path),
    row(439, 439, "faccessat2", Path),
    row(442, 442, "mount_setattr", Path),
    row(452, 452, "fchmodat2", Path),
    row(463, 463, "setxattrat", Path),
    row(464, 464, "getxattrat", Path),
    row(465, 465, "listxattrat", Path),
    row(466, 466, "removexattrat", Path),
    row(467, 467, "open_tree_attr", Path),
    row(468, 468, "file_getattr", Path),
    row(469, 469, "file_setattr", Path),
];

/// One more than the highest number that is looked at.
pub const LIMIT: u32 = 512;

/// The system call with this number, if it matters.
pub fn call(machine: Machine, number: u32) -> Option<&'static Call> {
    if number == NONE {
        return None;
    }
    match machine {
        Machine::X86_64 => CALLS.iter().find(|call| call.x86_64 == number),
        Machine::Aarch64 => CALLS.iter().find(|call| call.aarch64 == number),
        Machine::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_this_machine() {
        let here: [(libc::c_long, &str); 12] = [
            (libc::SYS_openat, "openat"),
            (libc::SYS_renameat2, "renameat2"),
            (libc::SYS_statx, "statx"),
            (libc::SYS_copy_file_range, "copy_file_range"),
            (libc::SYS_pwritev2, "pwritev2"),
            (libc::SYS_fsetxattr, "fsetxattr"),
            (libc::SYS_bind, "bind"),
            (libc::SYS_execveat, "execveat"),
            (libc::SYS_io_uring_setup, "io_uring_setup"),
            (libc::SYS_close_range, "close_range"),
            (libc::SYS_faccessat2, "faccessat2"),
            (libc::SYS_msync, "msync"),
        ];
        for (number, name) in here {
            let found = call(Machine::HERE, u32::try_from(number).unwrap());
            assert_eq!(found.map(|call| call.name), Some(name));
        }
        assert!(call(Machine::HERE, u32::try_from(libc::SYS_getpid).unwrap()).is_none());
    }

    #[test]
    fn no_number_stands_twice() {
        for number in 0..LIMIT {
            assert!(CALLS.iter().filter(|call| call.x86_64 == number).count() < 2, "{number}");
            assert!(CALLS.iter().filter(|call| call.aarch64 == number).count() < 2, "{number}");
        }
    }
}
