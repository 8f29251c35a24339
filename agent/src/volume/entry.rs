//! Entries of a directory as their records say: made, linked, given their attributes. Nothing follows a symbolic link.
//! It must not know why an entry is made, nor what a file holds.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat};

use super::tree::{Tree, check, cstring};
use crate::meta::records::Inode;

/// Bytes of a file, each part with its offset.
pub type Parts = Vec<(u64, Bytes)>;

/// Makes `name` in `dir`: of the right kind and size, a file without data, and for the agent alone until
/// [`set_attributes`].
///
/// # Errors
/// Of this disk; `AlreadyExists` where the name is taken.
pub fn make(tree: &Tree, dir: BorrowedFd<'_>, name: &[u8], record: &Inode) -> io::Result<()> {
    let os = OsStr::from_bytes(name);
    match record.mode & libc::S_IFMT {
        libc::S_IFDIR => mkdirat(dir, os, Mode::S_IRWXU)?,
        libc::S_IFLNK => symlinkat(OsStr::from_bytes(&tree.to_physical(&record.target)), dir, os)?,
        libc::S_IFREG => new_file(dir, name)?.set_len(record.size)?,
        kind => mknodat(dir, os, SFlag::from_bits_truncate(kind), Mode::S_IRUSR, record.rdev)?,
    }
    Ok(())
}

/// Makes the regular file `name` in `dir` with its attributes and those of its bytes that are given, each part with the offset
/// where it belongs; what no part holds is a hole.
///
/// # Errors
/// As [`make`]; then there is nothing.
pub fn make_file(dir: BorrowedFd<'_>, name: &[u8], record: &Inode, parts: &Parts) -> io::Result<File> {
    let file = new_file(dir, name)?;
    let filled = || -> io::Result<()> {
        let mut end = 0;
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at)?;
            end = end.max(at.saturating_add(bytes.len() as u64));
        }
        if end != record.size {
            file.set_len(record.size)?;
        }
        // Last are the times, which all else would move.
        set_attributes_of_file(&file, name, record)
    };
    match filled() {
        Ok(()) => Ok(file),
        Err(error) => {
            let _ = nix::unistd::unlinkat(dir, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir);
            Err(error)
        }
    }
}

/// Makes `name` in `dir` another name of the inode at the path `from` (in the tree).
///
/// # Errors
/// Of this disk; `NotFound` where there is nothing at `from`.
pub fn link(tree: &Tree, from: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let (parent, last) = split(from);
    let parent = tree.open_dir(parent)?.ok_or(io::ErrorKind::NotFound)?;
    Ok(linkat(parent, OsStr::from_bytes(last), dir, OsStr::from_bytes(name), AtFlags::empty())?)
}

/// Sets owner, extended attributes, mode and modification time of `name` in `dir`; `.` is the directory itself. What
/// this filesystem or user namespace does not have is said, and no reason to withhold the entry.
///
/// # Errors
/// Of this disk.
pub fn set_attributes(dir: BorrowedFd<'_>, name: &[u8], record: &Inode) -> io::Result<()> {
    let handle = open(dir, name, libc::O_PATH | libc::O_NOFOLLOW)?;
    let by_fd = cstring(format!("/proc/self/fd/{}", handle.as_raw_fd()).as_bytes())?;
    // Only root can give files away; an ordinary user's agent keeps them as its own.
    if nix::unistd::geteuid().is_root() {
        let (uid, gid) = (Uid::from_raw(record.uid), Gid::from_raw(record.gid));
        let given = fchownat(&handle, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH);
        unless_unsupported(given.map_err(io::Error::from), "owner", name)?;
    }
    for (attribute, value) in &record.xattrs {
        let attribute = cstring(attribute)?;
        // SAFETY: two C strings, and a value with its own length.
        let set = unsafe {
            libc::setxattr(by_fd.as_ptr(), attribute.as_ptr(), value.as_ptr().cast(), value.len(), 0)
        };
        unless_unsupported(check(set), "extended attribute", name)?;
    }
    if record.mode & libc::S_IFMT != libc::S_IFLNK {
        // SAFETY: a C string.
        check(unsafe { libc::chmod(by_fd.as_ptr(), record.mode & 0o7777) })?;
    }
    let mtime = TimeSpec::new(record.mtime.secs, i64::from(record.mtime.nanos));
    Ok(utimensat(dir, OsStr::from_bytes(name), &mtime, &mtime, UtimensatFlags::NoFollowSymlink)?)
}

/// As [`set_attributes`], of a regular file that is open.
fn set_attributes_of_file(file: &File, name: &[u8], record: &Inode) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        let given = fchown(file, Some(Uid::from_raw(record.uid)), Some(Gid::from_raw(record.gid)));
        unless_unsupported(given.map_err(io::Error::from), "owner", name)?;
    }
    for (attribute, value) in &record.xattrs {
        let attribute = cstring(attribute)?;
        // SAFETY: a C string, and a value with its own length.
        let set = unsafe {
            libc::fsetxattr(file.as_raw_fd(), attribute.as_ptr(), value.as_ptr().cast(), value.len(), 0)
        };
        unless_unsupported(check(set), "extended attribute", name)?;
    }
    fchmod(file, Mode::from_bits_truncate(record.mode & 0o7777))?;
    let mtime = TimeSpec::new(record.mtime.secs, i64::from(record.mtime.nanos));
    Ok(futimens(file, &mtime, &mtime)?)
}

/// A path's directory (empty for the root) and its last name; that of the root itself is `.`.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => {
            path.split_at_checked(at).map_or((&[], path), |(dir, name)| (dir, name.get(1..).unwrap_or(&[])))
        }
        None if path.is_empty() => (&[], b"."),
        None => (&[], path),
    }
}

/// A new file, for the agent alone.
fn new_file(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW;
    open(dir, name, flags).map(File::from)
}

fn open(dir: BorrowedFd<'_>, name: &[u8], flags: i32) -> io::Result<OwnedFd> {
    let name = cstring(name)?;
    // SAFETY: a C string, and a mode as O_CREAT wants it.
    let fd = check(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC, 0o600) })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn unless_unsupported<T>(result: io::Result<T>, what: &str, name: &[u8]) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTSUP | libc::EINVAL | libc::EPERM)) => {
            let name = String::from_utf8_lossy(name).into_owned();
            tracing::warn!(%error, name, what, "cannot be restored on this filesystem");
            Ok(())
        }
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}
