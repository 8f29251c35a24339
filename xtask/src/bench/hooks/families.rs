//! The list of what is measured. It must not know how.

/// An operation.
pub struct Operation {
    /// Its name in the program `calls`.
    pub call: &'static str,
    /// Its name in the table.
    pub what: &'static str,
    /// Calls in a round.
    pub count: u32,
    /// Largest ratio to native.
    pub target: f64,
}

/// What a wrapper may cost.
const HOOK: f64 = 1.10;
/// An open for writing asks for the file's inode, which is a system call beside one.
const WRITER: f64 = 1.40;
/// A new file: its directory is asked for, too.
const CREATION: f64 = 1.25;
/// A mapping that may be written to is told, and must find out whose it is.
const MAPPING: f64 = 1.35;

const fn operation(call: &'static str, what: &'static str, count: u32, target: f64) -> Operation {
    Operation { call, what, count, target }
}

const fn hook(call: &'static str, what: &'static str, count: u32) -> Operation {
    operation(call, what, count, HOOK)
}

/// A family's name and its operations.
pub type Family = (&'static str, &'static [Operation]);

/// Names of the families, for a message.
pub fn names() -> String {
    FAMILIES.map(|(family, _)| family).join(", ")
}

/// Everything. Calls are so many that a round takes a millisecond or so.
pub const FAMILIES: [Family; 14] = [
    (
        "open",
        &[
            hook("open", "open to read + close", 500),
            hook("openat", "openat, relative + close", 500),
            hook("open-miss", "open of nothing", 500),
            operation("open-write", "open to write + close", 500, WRITER),
            operation("open-there", "open with O_CREAT of a file that is there + close", 500, WRITER),
            operation("open-trunc", "open with O_TRUNC + close", 200, WRITER),
            operation("creat", "creat of a file that is there + close", 200, WRITER),
            operation("open-new", "open of a new file + close", 100, CREATION),
            operation("create", "create + write 4 KiB + close + unlink", 100, CREATION),
        ],
    ),
    (
        "stdio",
        &[
            hook("fopen-read", "fopen to read + fclose", 300),
            operation("fopen-write", "fopen to write + fclose", 200, WRITER),
            operation("fopen-append", "fopen to append + fclose", 300, WRITER),
        ],
    ),
    (
        "stat",
        &[
            hook("stat", "stat", 1000),
            hook("stat-miss", "stat of nothing", 1000),
            hook("stat-relative", "stat, relative", 1000),
            hook("lstat", "lstat", 1000),
            hook("fstat", "fstat", 2000),
            hook("fstatat", "fstatat, relative", 1000),
            hook("statx", "statx", 1000),
            hook("statx-miss", "statx of nothing", 1000),
            hook("access", "access", 1000),
            hook("access-miss", "access to nothing", 1000),
            hook("statfs", "statfs", 1000),
            hook("statvfs", "statvfs", 1000),
        ],
    ),
    (
        "walk",
        &[
            hook("opendir", "opendir + readdir (8 files) + closedir", 150),
            hook("scandir", "scandir (8 files)", 150),
            hook("nftw", "nftw (8 files)", 80),
            hook("fts", "fts (8 files)", 80),
            hook("glob", "glob (8 files)", 150),
        ],
    ),
    (
        "names",
        &[
            hook("mkdir", "mkdir", 60),
            hook("rmdir", "rmdir", 60),
            hook("mknod", "mknod", 60),
            hook("mkfifo", "mkfifo", 60),
            hook("rename", "rename", 60),
            hook("link", "link", 60),
            hook("symlink", "symlink", 60),
            hook("unlink", "unlink", 100),
            hook("unlinkat", "unlinkat, relative", 100),
            hook("remove", "remove", 100),
            hook("readlink", "readlink", 1000),
        ],
    ),
    (
        "attributes",
        &[
            hook("chmod", "chmod", 500),
            hook("fchmod", "fchmod", 500),
            hook("chown", "chown", 500),
            hook("fchown", "fchown", 500),
            hook("utimensat", "utimensat", 500),
            hook("utimes", "utimes", 500),
            hook("futimens", "futimens", 500),
            hook("truncate", "truncate", 250),
            hook("ftruncate", "ftruncate", 250),
            hook("setxattr", "setxattr", 300),
            hook("fsetxattr", "fsetxattr", 300),
            hook("getxattr", "getxattr", 500),
            hook("listxattr", "listxattr", 500),
        ],
    ),
    (
        "cwd",
        &[
            hook("chdir", "chdir", 1000),
            hook("fchdir", "fchdir", 2000),
            hook("getcwd", "getcwd", 1000),
            hook("realpath", "realpath", 300),
        ],
    ),
    (
        "process",
        &[
            hook("fork", "fork + wait", 5),
            hook("exec", "vfork + exec of /bin/true + wait", 4),
            hook("spawn", "posix_spawn of /bin/true + wait", 4),
            hook("spawn-inside", "posix_spawn of a program there + wait", 4),
            hook("spawn-to-file", "posix_spawn of /bin/true, output to a file + wait", 4),
        ],
    ),
    (
        "library",
        &[
            hook("dlopen", "dlopen of a library there + dlclose", 20),
            hook("dlopen-again", "dlopen of a loaded library + dlclose", 3000),
        ],
    ),
    (
        "write",
        &[
            hook("write-1", "write 1 B", 1000),
            hook("write-4096", "write 4 KiB", 500),
            hook("write-65536", "write 64 KiB", 60),
            hook("pwrite-1", "pwrite 1 B", 1000),
            hook("pwrite-4096", "pwrite 4 KiB", 500),
            hook("pwrite-65536", "pwrite 64 KiB", 60),
            hook("writev-1", "writev 1 B", 1000),
            hook("writev-4096", "writev 4 KiB", 500),
            hook("writev-65536", "writev 64 KiB", 60),
            hook("pwritev2-1", "pwritev2 1 B", 1000),
            hook("pwritev2-4096", "pwritev2 4 KiB", 500),
            hook("pwritev2-65536", "pwritev2 64 KiB", 60),
            hook("append", "write 4 KiB to the end", 250),
            hook("fallocate", "fallocate", 250),
        ],
    ),
    (
        "copy",
        &[
            hook("sendfile", "lseek + sendfile 4 KiB", 500),
            hook("splice", "write to a pipe + splice 4 KiB", 500),
            hook("copy_file_range", "copy_file_range 4 KiB", 500),
        ],
    ),
    (
        "read",
        &[
            hook("read", "read 4 KiB", 1000),
            hook("pread", "pread 4 KiB", 1000),
            hook("lseek", "lseek", 5000),
            operation("mmap-write", "mmap, shared and writable + munmap", 500, MAPPING),
            hook("mmap-read", "mmap, private + munmap", 500),
            hook("msync-async", "msync, MS_ASYNC", 2000),
            hook("msync", "store + msync, MS_SYNC", 2),
            hook("fsync", "pwrite 4 KiB + fsync (durability local)", 4),
            hook("fsync-clean", "fdatasync (durability local)", 4),
        ],
    ),
    (
        "descriptors",
        &[
            hook("dup", "dup + close", 2000),
            hook("dup2", "dup2 over a descriptor", 2000),
            hook("fcntl-getfl", "fcntl F_GETFL", 5000),
            hook("fcntl-setfl", "fcntl F_SETFL", 3000),
            hook("fcntl-lock", "fcntl F_SETLK", 1000),
            hook("flock", "flock", 2000),
            hook("ioctl", "ioctl", 5000),
        ],
    ),
    (
        "others",
        &[
            hook("bind", "bind of a unix socket", 60),
            hook("connect", "connect to a unix socket", 500),
            hook("inotify", "inotify_add_watch", 1000),
            operation("mkstemp", "mkstemp + close + unlink", 60, CREATION),
            hook("mkdtemp", "mkdtemp + rmdir", 40),
            hook("syscall", "syscall(SYS_gettid)", 5000),
            hook("syscall-stat", "syscall(SYS_newfstatat)", 1000),
            hook("syscall-open", "syscall(SYS_openat) + syscall(SYS_close)", 500),
        ],
    ),
];
