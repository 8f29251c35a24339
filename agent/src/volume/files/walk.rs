//! From a path to a directory and a name in it, as programs see the tree: symbolic links are followed, never out of it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::durable::file_error;
use crate::durable::wire::{Result, WireError};

use super::super::tree::{Stat, Tree, check, cstring};

/// Symbolic links followed in one path, as on Linux.
const MOST_LINKS: usize = 40;

/// Where a path has led.
pub struct Place {
    /// The directory.
    pub dir: OwnedFd,
    /// The name in it; `.` for the root.
    pub name: Vec<u8>,
    /// What it stands for; `None` where there is no such name.
    pub found: Option<Stat>,
}

/// An error of a call on `path`, for people and with its number.
pub fn failed(path: &[u8], error: &io::Error) -> WireError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    file_error(errno, &format!("'{}': {}", String::from_utf8_lossy(path), error))
}

/// An error of ours about `path`.
pub fn refused(path: &[u8], errno: i32, what: &str) -> WireError {
    file_error(errno, &format!("'{}' {what}", String::from_utf8_lossy(path)))
}

/// openat(2), never through a symbolic link at the end.
pub fn open(dir: BorrowedFd<'_>, name: &[u8], flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let name = cstring(name)?;
    // SAFETY: the name is a C string.
    let fd = check(unsafe {
        libc::openat(dir.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC | libc::O_NOFOLLOW, mode)
    })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Walks `path` from the tree's root. `bring` is called with a directory and the names that are wanted below it, divided by `/`,
/// before the first of them is believed to be absent.
pub fn walk(
    tree: &Tree,
    prefix: &[u8],
    path: &[u8],
    follow: bool,
    bring: &dyn Fn(BorrowedFd<'_>, &[u8]) -> Result<()>,
) -> Result<Place> {
    let wrong = |error: io::Error| failed(path, &error);
    let names = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").map(<[u8]>::to_vec).collect()
    };
    let mut todo: VecDeque<Vec<u8>> = names(path).into();
    let root = || tree.root().try_clone_to_owned().map_err(wrong);
    let mut above = Vec::new();
    let mut here = root()?;
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == b".." {
            here = above.pop().map_or_else(root, Ok)?;
            continue;
        }
        let mut found = tree.stat_at(here.as_fd(), &name).map_err(wrong)?;
        if found.is_none() {
            let wanted: Vec<&[u8]> = std::iter::once(&name).chain(&todo).map(Vec::as_slice).collect();
            bring(here.as_fd(), &wanted.join(&b'/'))?;
            found = tree.stat_at(here.as_fd(), &name).map_err(wrong)?;
        }
        let Some(stat) = found else {
            if todo.is_empty() {
                return Ok(Place { dir: here, name, found: None });
            }
            return Err(refused(path, libc::ENOENT, "lies in a directory that does not exist"));
        };
        if stat.is_symlink() && (follow || !todo.is_empty()) {
            links += 1;
            if links > MOST_LINKS {
                return Err(refused(path, libc::ELOOP, "leads through too many symbolic links"));
            }
            let target = tree.read_link(here.as_fd(), &name).map_err(wrong)?;
            let inside = match target.strip_prefix(b"/") {
                None => &target[..],
                Some(_) => {
                    let below = target.strip_prefix(prefix).filter(|r| r.is_empty() || r.starts_with(b"/"));
                    let leads_out =
                        || refused(path, libc::ENOENT, "leads out of the volume by a symbolic link");
                    let below = below.ok_or_else(leads_out)?;
                    (here, above) = (root()?, Vec::new());
                    below
                }
            };
            names(inside).into_iter().rev().for_each(|name| todo.push_front(name));
        } else if todo.is_empty() {
            return Ok(Place { dir: here, name, found });
        } else if stat.is_dir() {
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            let below = open(here.as_fd(), &name, flags, 0).map_err(wrong)?;
            above.push(std::mem::replace(&mut here, below));
        } else {
            return Err(refused(path, libc::ENOTDIR, "leads through something that is no directory"));
        }
    }
    let found = Some(tree.stat(here.as_fd()).map_err(wrong)?);
    Ok(Place { dir: here, name: b".".to_vec(), found })
}
