//! The system's edge: how the agent looks at a tree. Every path is resolved below the root's descriptor and
//! through no symbolic link, so nothing that an app does can lead the agent out of its tree. It must not know
//! what anything that it returns is used for.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::meta::records::Time;

/// What tells an inode from a later one with the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct FileId {
    /// Kernel inode number.
    pub ino: u64,
    /// Birth time in nanoseconds since 1970, 0 where the filesystem keeps none.
    pub btime_ns: i64,
}

/// A look at an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Which inode.
    pub id: FileId,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Last modification of data.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Names.
    pub links: u32,
    /// What it takes of the disk, in blocks of 512 bytes.
    pub blocks: u64,
    /// Device of the filesystem.
    pub dev: u64,
}

impl Stat {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFLNK
    }
}

/// Which of tree and prefix is to be swapped for the other.
type Order<'t> = fn(&'t [u8], &'t [u8]) -> (&'t [u8], &'t [u8]);

/// A tree, held by a descriptor of its root.
pub struct Tree {
    root: OwnedFd,
    path: PathBuf,
    /// Trees, this one first, and their logical prefixes, where these differ.
    spellings: Vec<(PathBuf, PathBuf)>,
    coarse_clock: bool,
    leases_see_mappings: bool,
    dev: u64,
    leases: OnceLock<Box<dyn Leases>>,
    kept: OnceLock<Box<Tree>>,
}

/// Who holds leases on files of a tree, so that nobody opens them: nor can this process, but for the descriptors by which they are
/// held.
pub trait Leases: Send + Sync {
    /// Whether there are any.
    fn any(&self) -> bool;
    /// The descriptor by which a file is held, of a kernel inode number: it reads and writes.
    fn lend(&self, ino: u64) -> Option<Arc<File>>;
}

/// A file that was opened to be read.
#[derive(Debug)]
pub struct Opened {
    file: File,
    /// Nobody else has it open: it is ours by a lease.
    alone: bool,
}

impl std::ops::Deref for Opened {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl From<OwnedFd> for Opened {
    fn from(fd: OwnedFd) -> Self {
        Self { file: File::from(fd), alone: false }
    }
}

impl Opened {
    /// As [`Tree::no_writers`].
    pub fn no_writers(&self) -> bool {
        self.alone || lease(&self.file, libc::F_RDLCK)
    }
}

/// Nanoseconds within which two changes can carry the same timestamp on a filesystem with jiffy timestamps.
pub const COARSE_TICK_NS: i64 = 20_000_000;

/// What ext filesystems keep in their root: theirs, not the volume's.
pub const LOST_AND_FOUND: &[u8] = b"lost+found";

impl Tree {
    /// Opens the tree at `path`; `prefix` is the logical prefix under which apps see it, `neighbours` are the trees and
    /// prefixes of the other mounts here.
    pub fn open(path: &Path, prefix: &Path, neighbours: &[(PathBuf, PathBuf)]) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let root = nix::fcntl::open(path, flags, Mode::empty())?;
        let path = path.canonicalize()?;
        let others =
            neighbours.iter().filter_map(|(tree, prefix)| Some((tree.canonicalize().ok()?, prefix.clone())));
        let mut spellings: Vec<_> =
            std::iter::once((path.clone(), prefix.to_path_buf())).chain(others).collect();
        spellings.retain(|(tree, prefix)| prefix.canonicalize().map_or(true, |real| real != *tree));
        spellings.dedup();
        let dev = statx(root.as_fd(), c"", libc::AT_EMPTY_PATH)?.dev;
        // A writable mapping there keeps the inode below open for writing, not the one that a lease is taken on.
        let kind = nix::sys::statfs::fstatfs(&root)?.filesystem_type().0;
        let leases_see_mappings =
            ![libc::OVERLAYFS_SUPER_MAGIC, libc::FUSE_SUPER_MAGIC, libc::NFS_SUPER_MAGIC]
                .iter()
                .any(|magic| i128::from(*magic) == i128::from(kind));
        Ok(Self {
            root,
            path,
            spellings,
            coarse_clock: coarse_clock(),
            leases_see_mappings,
            dev,
            leases: OnceLock::new(),
            kept: OnceLock::new(),
        })
    }

    /// The canonical path of the root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root's descriptor.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether timestamps are so coarse that a change may leave them as they were.
    pub fn coarse_clock(&self) -> bool {
        self.coarse_clock
    }

    /// Whether [`Tree::no_writers`] knows of writable mappings whose descriptor is closed.
    pub fn leases_see_mappings(&self) -> bool {
        self.leases_see_mappings
    }

    /// The tree's device.
    pub fn dev(&self) -> u64 {
        self.dev
    }

    /// Looks at `name` in `dir`, not following it; `None` where there is no such entry, or one that is not the
    /// volume's: another filesystem is mounted there.
    pub fn stat_at(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Stat>> {
        let name = cstring(name)?;
        let look = || statx(dir, &name, libc::AT_SYMLINK_NOFOLLOW);
        match look() {
            Err(e) if shut(&e) => self.with_permission(dir, 0o700, look).map(Some),
            Ok(stat) => Ok(Some(stat).filter(|s| s.dev == self.dev)),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Looks at an open file.
    pub fn stat(&self, file: BorrowedFd<'_>) -> io::Result<Stat> {
        statx(file, c"", libc::AT_EMPTY_PATH)
    }

    /// Opens the directory at `path` (relative to the root; empty is the root); `None` where it is gone or is
    /// something else by now.
    pub fn open_dir(&self, path: &[u8]) -> io::Result<Option<OwnedFd>> {
        absent_as_none(self.open_at(path, libc::O_RDONLY | libc::O_DIRECTORY))
    }

    /// Opens the regular file at `path` for reading; `None` as for [`Tree::open_dir`].
    pub fn open_file(&self, path: &[u8]) -> io::Result<Option<Opened>> {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let open = || {
            if let Some(held) = self.lent(path)? {
                return Ok(held);
            }
            match self.open_in_steps(path, flags) {
                // It is held since we asked.
                Err(e) if guarded(&e) => match self.lent(path)? {
                    Some(held) => Ok(held),
                    None => self.open_at(path, flags).map(Opened::from),
                },
                Err(e) if shut(&e) => self.open_shut(path, flags).map(Opened::from),
                other => other.map(Opened::from),
            }
        };
        absent_as_none(open())
    }

    /// Opens what its owner has shut: an agent that is not root, but the owner, opens each part of the path by giving
    /// itself permission for a moment. (That moves ctime, so look at the times afterwards.)
    fn open_shut(&self, path: &[u8], flags: i32) -> io::Result<OwnedFd> {
        let mut at = self.root.try_clone()?;
        let mut parts = path.split(|b| *b == b'/').filter(|p| !p.is_empty()).peekable();
        if parts.peek().is_none() {
            return self.with_permission(at.as_fd(), 0o700, || open_beneath(at.as_fd(), b".", flags));
        }
        while let Some(part) = parts.next() {
            let pass = |flags| match open_beneath(at.as_fd(), part, flags) {
                Err(e) if shut(&e) => {
                    self.with_permission(at.as_fd(), 0o700, || open_beneath(at.as_fd(), part, flags))
                }
                other => other,
            };
            let handle = pass(libc::O_PATH)?;
            if parts.peek().is_some() || flags & libc::O_PATH != 0 {
                at = handle;
                continue;
            }
            return match pass(flags) {
                Err(e) if shut(&e) => self.with_permission(handle.as_fd(), 0o600, || pass(flags)),
                other => other,
            };
        }
        Ok(at)
    }

    /// Opens what its owner has shut by giving the agent, which runs as that owner, permission for a moment.
    pub(super) fn with_permission<T>(
        &self,
        handle: BorrowedFd<'_>,
        bits: u32,
        open: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let mode = self.stat(handle)?.mode & 0o7777;
        let link = cstring(format!("/proc/self/fd/{}", handle.as_raw_fd()).as_bytes())?;
        let chmod = |mode| {
            // SAFETY: a valid C string and no other memory.
            check(unsafe { libc::chmod(link.as_ptr(), mode) })
        };
        chmod(mode | bits)?;
        let opened = open();
        chmod(mode)?;
        opened
    }

    /// Says who holds leases on its files: such a file is read by the descriptor of its lease. An attempt to open it would begin to
    /// end that, and whoever else wants to would come in.
    pub fn set_leases(&self, leases: Box<dyn Leases>) {
        // A tree has one residency.
        let _ = self.leases.set(leases);
    }

    /// Names the directory of the inodes that have lost all their names in this tree, and have another one that is not here
    /// yet: each stands there by its volume number.
    pub fn set_kept(&self, kept: Tree) {
        // Of two only the first is asked for.
        let _ = self.kept.set(Box::new(kept));
    }

    /// See [`Tree::set_kept`].
    pub fn kept(&self) -> Option<&Tree> {
        self.kept.get().map(Box::as_ref)
    }

    /// A file on which a lease is held.
    fn lent(&self, path: &[u8]) -> io::Result<Option<Opened>> {
        let Some(leases) = self.leases.get().filter(|leases| leases.any()) else { return Ok(None) };
        let handle = self.open_at(path, libc::O_PATH)?;
        let held = leases.lend(self.stat(handle.as_fd())?.id.ino);
        held.map(|held| Ok(Opened { file: held.try_clone()?, alone: true })).transpose()
    }

    /// Opens `path` below the root, in steps where it is longer than the kernel takes at once.
    pub fn open_at(&self, path: &[u8], flags: i32) -> io::Result<OwnedFd> {
        match self.open_in_steps(path, flags) {
            Err(e) if shut(&e) => self.open_shut(path, flags),
            Err(e) if guarded(&e) => {
                through_leases(Instant::now() + LEASES, || self.open_in_steps(path, flags), || Ok(()))
            }
            other => other,
        }
    }

    fn open_in_steps(&self, path: &[u8], flags: i32) -> io::Result<OwnedFd> {
        const STEP: usize = 3800;
        let mut base: Option<OwnedFd> = None;
        let mut rest = path;
        while rest.len() > STEP {
            let cut =
                rest.iter().take(STEP).rposition(|b| *b == b'/').ok_or(io::ErrorKind::InvalidFilename)?;
            let (head, tail) = rest.split_at(cut);
            let at = base.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            base = Some(open_beneath(at, head, libc::O_PATH | libc::O_DIRECTORY)?);
            rest = tail.get(1..).unwrap_or(&[]);
        }
        let at = base.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
        open_beneath(at, if rest.is_empty() { b"." } else { rest }, flags)
    }

    /// The names in a directory, without `.` and `..`, and without the `lost+found` that a filesystem keeps in its
    /// root.
    pub fn list(&self, dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
        // The position is shared with `dir`, whose owner reads it by this function alone.
        let own = dir.try_clone_to_owned()?;
        nix::unistd::lseek(&own, 0, nix::unistd::Whence::SeekSet)?;
        let is_root = statx(dir, c"", libc::AT_EMPTY_PATH)?.id.ino
            == statx(self.root(), c"", libc::AT_EMPTY_PATH)?.id.ino;
        let mut names = Vec::new();
        for entry in Dir::from_fd(own)?.iter() {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." && !(is_root && name == LOST_AND_FOUND) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The target of the link `name` in `dir`, as the app wrote it: one that leads into this tree by its real
    /// path is given by the logical prefix.
    pub fn read_link(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
        let target = nix::fcntl::readlinkat(dir, OsStr::from_bytes(name))?;
        Ok(self.to_logical(target.as_bytes()))
    }

    fn to_logical(&self, target: &[u8]) -> Vec<u8> {
        self.respell(target, |tree, prefix| (tree, prefix))
    }

    /// The inverse: what to write on this disk for a link whose target the app gave as `target`.
    pub fn to_physical(&self, target: &[u8]) -> Vec<u8> {
        self.respell(target, |tree, prefix| (prefix, tree))
    }

    fn respell<'t>(&'t self, target: &[u8], order: Order<'t>) -> Vec<u8> {
        let swapped = self.spellings.iter().find_map(|(tree, prefix)| {
            let (from, to) = order(tree.as_os_str().as_bytes(), prefix.as_os_str().as_bytes());
            swap_prefix(target, from, to)
        });
        swapped.unwrap_or_else(|| target.to_vec())
    }

    /// The extended attributes that a volume keeps (user.* and POSIX ACLs) of an open file or directory, sorted by
    /// name.
    pub fn xattrs(&self, file: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        // By the descriptor's path, since a descriptor that only names (O_PATH) cannot be asked itself.
        let path = cstring(format!("/proc/self/fd/{}", file.as_raw_fd()).as_bytes())?;
        let mut list = Vec::new();
        let names = match read_sized(&mut list, |p, n| {
            // SAFETY: `p` points to `n` writable bytes.
            unsafe { libc::listxattr(path.as_ptr(), p.cast(), n) }
        }) {
            Ok(()) => list,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTSUP | libc::ENOENT)) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut found = Vec::new();
        for name in names.split(|b| *b == 0).filter(|n| kept_xattr(n)) {
            let cname = cstring(name)?;
            let mut value = Vec::new();
            let got = read_sized(&mut value, |p, n| {
                // SAFETY: `p` points to `n` writable bytes.
                unsafe { libc::getxattr(path.as_ptr(), cname.as_ptr(), p.cast(), n) }
            });
            match got {
                Ok(()) => found.push((name.to_vec(), value)),
                // Removed meanwhile.
                Err(e) if e.raw_os_error() == Some(libc::ENODATA) => {}
                Err(e) => return Err(e),
            }
        }
        found.sort();
        Ok(found)
    }

    /// Whether nobody can write to the inode behind `file` any more, by any descriptor or mapping (the kernel's
    /// own answer: a read lease is refused while a writer exists, fcntl(2) F_SETLEASE).
    pub fn no_writers(&self, file: &File) -> bool {
        lease(file, libc::F_RDLCK)
    }

    /// As [`Tree::no_writers`], of anybody else who has it open at all.
    pub fn nobody_else(&self, file: &File) -> bool {
        lease(file, libc::F_WRLCK)
    }
}

/// Whether a lease can be taken, which is given up at once.
fn lease(file: &File, kind: i32) -> bool {
    // SAFETY: no memory is passed.
    let taken = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } == 0;
    if taken {
        // SAFETY: no memory is passed.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    }
    taken
}

/// Whether an extended attribute is part of a volume.
pub fn kept_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"system.posix_acl_access" || name == b"system.posix_acl_default"
}

/// Bytes as a C string; a NUL inside is an error that no entry of a tree can cause.
pub fn cstring(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidFilename))
}

/// Turns a C return value into a result.
pub fn check(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

fn swap_prefix(path: &[u8], from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let rest = path.strip_prefix(from).filter(|rest| rest.is_empty() || rest.starts_with(b"/"))?;
    Some([to, rest].concat())
}

fn shut(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EACCES)
}

/// For how long an open is tried again that meets a lease, and the pause before that.
pub const LEASES: Duration = Duration::from_millis(200);
const LEASE: Duration = Duration::from_millis(2);

/// Opens, without waiting, what the agent itself may hold a lease on for some calls, to ask who has the file open, or while bytes
/// come or go. `ask` is done whenever it meets one.
///
/// # Errors
/// Those of `open` and `ask`; EWOULDBLOCK where the lease stays.
pub fn through_leases<T>(
    until: Instant,
    open: impl Fn() -> io::Result<T>,
    ask: impl Fn() -> io::Result<()>,
) -> io::Result<T> {
    loop {
        match open() {
            Err(e) if guarded(&e) => {
                let late = Instant::now() >= until;
                ask()?;
                if late {
                    return Err(e);
                }
                std::thread::sleep(LEASE);
            }
            other => return other,
        }
    }
}

/// Somebody holds a lease on it.
fn guarded(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EWOULDBLOCK)
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV | libc::ENXIO))
}

fn absent_as_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS; plain openat(2) with O_NOFOLLOW on kernels before 5.6.
fn open_beneath(dir: BorrowedFd<'_>, path: &[u8], flags: i32) -> io::Result<OwnedFd> {
    let path = cstring(path)?;
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: open_how is plain integers, for which all zeros is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = flags as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
    // SAFETY: the path is a C string and `how` lives across the call; its true size is passed.
    let fd = unsafe {
        libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), &raw const how, size_of_val(&how))
    };
    let fd = if fd < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
        // SAFETY: the path is a C string.
        unsafe { libc::openat(dir.as_raw_fd(), path.as_ptr(), flags) }
    } else {
        fd as i32
    };
    check(fd)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn statx(dir: BorrowedFd<'_>, path: &CStr, flags: i32) -> io::Result<Stat> {
    // SAFETY: statx is plain integers, for which all zeros is a valid value.
    let mut x: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    // SAFETY: the path is a C string and `x` lives across the call.
    check(unsafe { libc::statx(dir.as_raw_fd(), path.as_ptr(), flags, mask, &raw mut x) })?;
    let time = |t: libc::statx_timestamp| Time { secs: t.tv_sec, nanos: t.tv_nsec };
    let btime_ns = if x.stx_mask & libc::STATX_BTIME == 0 {
        0
    } else {
        x.stx_btime.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(i64::from(x.stx_btime.tv_nsec))
    };
    Ok(Stat {
        id: FileId { ino: x.stx_ino, btime_ns },
        mode: u32::from(x.stx_mode),
        uid: x.stx_uid,
        gid: x.stx_gid,
        rdev: libc::makedev(x.stx_rdev_major, x.stx_rdev_minor),
        size: x.stx_size,
        mtime: time(x.stx_mtime),
        ctime: time(x.stx_ctime),
        links: x.stx_nlink,
        blocks: x.stx_blocks,
        dev: libc::makedev(x.stx_dev_major, x.stx_dev_minor),
    })
}

/// Calls a "size, then value" function until the value fits.
fn read_sized(buffer: &mut Vec<u8>, mut call: impl FnMut(*mut u8, usize) -> isize) -> io::Result<()> {
    loop {
        let need = call(std::ptr::null_mut(), 0);
        if need < 0 {
            return Err(io::Error::last_os_error());
        }
        buffer.resize(need as usize, 0);
        if need == 0 {
            return Ok(());
        }
        let got = call(buffer.as_mut_ptr(), buffer.len());
        if got >= 0 {
            buffer.truncate(got as usize);
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // Grown between the two calls: once more.
        if error.raw_os_error() != Some(libc::ERANGE) {
            return Err(error);
        }
    }
}

/// Kernels from 6.13 give a change after a look a timestamp of its own (multigrain timestamps).
fn coarse_clock() -> bool {
    let Ok(uts) = nix::sys::utsname::uname() else { return true };
    let release = uts.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) < (Some(6), Some(13))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_never_leave_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("tree/up")).unwrap();
        let tree = Tree::open(&dir.path().join("tree"), Path::new("/storage"), &[]).unwrap();
        assert!(tree.open_file(b"up/secret").unwrap().is_none());
        assert!(tree.open_file(b"../secret").unwrap().is_none());
        assert!(tree.open_dir(b"up").unwrap().is_none());
        assert!(tree.open_dir(b"").unwrap().is_some());
    }

    #[test]
    fn link_targets_are_stored_as_the_app_wrote_them() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path(), Path::new("/storage"), &[]).unwrap();
        let real = tree.path().join("a/b");
        assert_eq!(tree.to_logical(real.as_os_str().as_bytes()), b"/storage/a/b");
        assert_eq!(tree.to_physical(b"/storage/a/b"), real.as_os_str().as_bytes());
        assert_eq!(tree.to_physical(b"/storage2"), b"/storage2");
    }

    #[test]
    fn a_link_into_another_mount_is_stored_as_the_app_wrote_it() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let own = (dir.path().to_path_buf(), PathBuf::from("/storage"));
        let neighbours = [own, (other.path().to_path_buf(), PathBuf::from("/cache"))];
        let tree = Tree::open(dir.path(), Path::new("/storage"), &neighbours).unwrap();
        let real = other.path().canonicalize().unwrap().join("x");
        assert_eq!(tree.to_logical(real.as_os_str().as_bytes()), b"/cache/x");
        assert_eq!(tree.to_physical(b"/cache/x"), real.as_os_str().as_bytes());
        assert_eq!(tree.to_logical(b"/elsewhere"), b"/elsewhere");
    }

    #[test]
    fn what_its_owner_has_shut_is_opened_and_left_shut() {
        use std::os::unix::fs::PermissionsExt;
        // Root is refused nothing; the test says the same then.
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path(), dir.path(), &[]).unwrap();
        let (outer, file) = (dir.path().join("d"), dir.path().join("d/f"));
        std::fs::create_dir(&outer).unwrap();
        std::fs::write(&file, "x").unwrap();
        for (path, mode) in [(&file, 0o000), (&outer, 0o000)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        assert!(tree.open_file(b"d/f").unwrap().is_some());
        assert!(tree.open_dir(b"d").unwrap().is_some());
        assert!(tree.open_at(b"d/f", libc::O_PATH).is_ok());
        assert_eq!(std::fs::metadata(&outer).unwrap().permissions().mode() & 0o7777, 0);
        std::fs::set_permissions(&outer, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0);
    }

    #[test]
    fn a_lease_tells_whether_a_writer_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path(), dir.path(), &[]).unwrap();
        let writer = File::create(dir.path().join("f")).unwrap();
        let file = tree.open_file(b"f").unwrap().unwrap();
        assert!(!tree.no_writers(&file));
        drop(writer);
        assert!(tree.no_writers(&file));
    }

    #[test]
    fn paths_longer_than_the_kernel_takes_are_opened_in_steps() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path(), dir.path(), &[]).unwrap();
        let name = [b'n'; 200];
        let mut path = Vec::new();
        for _ in 0..30 {
            let at = tree.open_dir(&path).unwrap().unwrap();
            nix::sys::stat::mkdirat(&at, OsStr::from_bytes(&name), Mode::S_IRWXU).unwrap();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
        }
        assert!(path.len() > 4096);
        assert!(tree.open_dir(&path).unwrap().is_some());
    }
}
