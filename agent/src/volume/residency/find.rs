//! From a kernel inode number, which is all that a request carries, to the inode in the tree. It must not know what is asked
//! of it.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Residency;
use crate::meta::records::ROOT_INODE;
use crate::volume::VolumeError;
use crate::volume::index::Kernel;
use crate::volume::look::join;
use crate::volume::tree::{FileId, LEASES, Stat, check, cstring, through_leases};

/// Names of an inode that are tried, and directories on the way up.
const NAMES_TRIED: usize = 16;
const DEPTH_MAX: usize = 8192;
/// How often an inode is looked for that the last cut knows elsewhere, and the pause before that.
const ROUNDS: u32 = 3;
const MOVES: Duration = Duration::from_millis(2);

/// What a request means.
pub enum Found {
    /// An inode of the last cut.
    Here(Inode),
    /// The last cut has not met it: made since, on this disk, and so wholly here.
    New,
    /// It was in the last cut, and is nowhere to be found.
    Gone,
}

/// An inode of the tree.
pub struct Inode {
    /// Volume inode.
    pub inode: u64,
    /// A descriptor that names it and opens nothing (O_PATH).
    pub handle: OwnedFd,
    /// As it stood when it was found.
    pub stat: Stat,
}

impl Inode {
    /// Its size now, in bytes.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn size_now(&self, residency: &Residency) -> io::Result<u64> {
        Ok(residency.tree.stat(self.handle.as_fd())?.size)
    }

    /// Opens the file, on which there is no guard: see [`Residency::lend_guard`]. An own descriptor that can write hinders leases and
    /// exec(2): to be closed under the lock under which it was opened.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(&self, residency: &Residency, flags: i32) -> io::Result<std::fs::File> {
        self.open_until(residency, flags, Instant::now() + LEASES)
    }

    /// The same, with an instant until which a lease is waited for.
    ///
    /// # Errors
    /// As there; EWOULDBLOCK where the lease stays.
    pub fn open_until(&self, residency: &Residency, flags: i32, until: Instant) -> io::Result<std::fs::File> {
        let link = cstring(format!("/proc/self/fd/{}", self.handle.as_raw_fd()).as_bytes())?;
        let open = || -> io::Result<std::fs::File> {
            // SAFETY: a C string.
            let fd = check(unsafe { libc::open(link.as_ptr(), flags | libc::O_CLOEXEC | libc::O_NOCTTY) })?;
            // SAFETY: the kernel has just given us this descriptor.
            Ok(std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
        };
        let open = || through_leases(until, open, || Ok(()));
        match open() {
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                residency.tree.with_permission(self.handle.as_fd(), 0o600, open)
            }
            other => other,
        }
    }
}

impl Residency {
    /// The inode behind a kernel inode number. Where the last cut does not know where it is now, one is made.
    ///
    /// # Errors
    /// Where the index or the tree cannot be read.
    pub fn find(&self, ino: u64) -> Result<Found, VolumeError> {
        for round in 0..ROUNDS {
            if round > 0 {
                // It may have been moved while it was looked for.
                std::thread::sleep(MOVES);
            }
            let Some(kernel) = self.index.kernel(ino)? else { return Ok(Found::New) };
            if let Some(found) = self.at_its_names(&kernel)? {
                return Ok(Found::Here(found));
            }
            // Renamed, deleted, or another file of that number. Who asks has it open, mostly.
            match self.held(ino).or_else(|| self.waited_for(ino)).or_else(|| self.walk(ino)) {
                Some((handle, stat)) if stat.id == kernel.id => {
                    return Ok(Found::Here(Inode { inode: kernel.inode, handle, stat }));
                }
                // A number is given out again: what the index says of it may be older than what was found.
                Some(_) if self.index.kernel(ino)?.is_some_and(|now| now.id != kernel.id) => {}
                Some(_) => return Ok(Found::New),
                None => {}
            }
        }
        Ok(if self.index.kernel(ino)?.is_some() { Found::Gone } else { Found::New })
    }

    /// The inode of the tree that stands for a volume inode.
    ///
    /// # Errors
    /// As [`Residency::find`].
    pub fn find_inode(&self, inode: u64) -> Result<Option<Inode>, VolumeError> {
        let Some(seen) = self.index.seen(inode)? else { return Ok(None) };
        match self.find(seen.id.ino)? {
            Found::Here(found) if found.inode == inode => Ok(Some(found)),
            _ => Ok(None),
        }
    }

    /// As [`Residency::find`], also of an inode that the last cut has not met.
    ///
    /// # Errors
    /// As there.
    pub fn find_any(&self, ino: u64) -> Result<Option<Inode>, VolumeError> {
        if let Found::Here(found) = self.find(ino)? {
            return Ok(Some(found));
        }
        self.settle();
        if let Found::Here(found) = self.find(ino)? {
            return Ok(Some(found));
        }
        let found = self.held(ino).or_else(|| self.walk(ino));
        // Of no volume inode, and so lacking nothing.
        Ok(found.map(|(handle, stat)| Inode { inode: u64::MAX, handle, stat }))
    }

    /// Looks where the index says.
    pub(super) fn at_its_names(&self, kernel: &Kernel) -> Result<Option<Inode>, VolumeError> {
        if kernel.inode == ROOT_INODE {
            return Ok(self.open_if(b"", kernel.id).map(|(handle, stat)| Inode {
                inode: ROOT_INODE,
                handle,
                stat,
            }));
        }
        for (dir, name) in self.index.links(kernel.inode)?.into_iter().take(NAMES_TRIED) {
            if let Some(parent) = self.path_of(dir)?
                && let Some((handle, stat)) = self.open_if(&join(&parent, &name), kernel.id)
            {
                return Ok(Some(Inode { inode: kernel.inode, handle, stat }));
            }
        }
        // Its other names are not here yet.
        let kept = self
            .tree
            .kept()
            .and_then(|kept| kept.open_at(kernel.inode.to_string().as_bytes(), libc::O_PATH).ok());
        let Some(handle) = kept else { return Ok(None) };
        let Ok(stat) = self.tree.stat(handle.as_fd()) else { return Ok(None) };
        Ok((stat.id == kernel.id).then_some(Inode { inode: kernel.inode, handle, stat }))
    }

    /// The path of a directory, as of the last cut.
    pub(super) fn path_of(&self, dir: u64) -> Result<Option<Vec<u8>>, VolumeError> {
        let (mut way, mut at) = (Vec::new(), dir);
        while at != ROOT_INODE {
            let Some((parent, name)) =
                self.index.links(at)?.into_iter().next().filter(|_| way.len() < DEPTH_MAX)
            else {
                return Ok(None);
            };
            way.push(name);
            at = parent;
        }
        Ok(Some(way.iter().rev().fold(Vec::new(), |path, name| join(&path, name))))
    }

    fn open_if(&self, path: &[u8], id: FileId) -> Option<(OwnedFd, Stat)> {
        let handle = self.tree.open_at(path, libc::O_PATH).ok()?;
        let stat = self.tree.stat(handle.as_fd()).ok()?;
        (stat.id == id).then_some((handle, stat))
    }

    /// Looks everywhere in the tree: slow, and seldom needed.
    pub(super) fn walk(&self, ino: u64) -> Option<(OwnedFd, Stat)> {
        let mut dirs = vec![self.tree.path().to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                use std::os::unix::fs::DirEntryExt;
                if entry.ino() == ino {
                    let path = entry.path();
                    let below = path.strip_prefix(self.tree.path()).ok()?;
                    let below = std::os::unix::ffi::OsStrExt::as_bytes(below.as_os_str());
                    let handle = self.tree.open_at(below, libc::O_PATH).ok()?;
                    let stat = self.tree.stat(handle.as_fd()).ok()?;
                    if stat.id.ino == ino {
                        return Some((handle, stat));
                    }
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    dirs.push(entry.path());
                }
            }
        }
        None
    }

    /// Looks for a file without a name in the hands of programs: of those first that are attached, since who asks for it is
    /// one of them.
    pub(super) fn held(&self, ino: u64) -> Option<(OwnedFd, Stat)> {
        self.held_by_programs().filter(|open| open.ino == ino).find_map(|open| open.handle(self))
    }

    /// A guarded file that somebody waits to open, whether it has a name or not.
    pub(super) fn waited_for(&self, ino: u64) -> Option<(OwnedFd, Stat)> {
        let guard = self.guards.waited_for(ino)?;
        Open { ino, path: format!("/proc/self/fd/{}", guard.as_raw_fd()).into() }.handle(self)
    }

    /// Files of the tree that programs have open, by their descriptors, wherever the agent may look (proc_pid_fd(5)). Also
    /// of those that are not attached: a program may have a file open for long before it asks for anything, and after a
    /// start of the agent none is known yet.
    pub(super) fn held_by_programs(&self) -> impl Iterator<Item = Open> {
        let attached: HashSet<u32> = self.shared.gate().attached().into_iter().collect();
        let (own, dev) = (std::process::id(), self.tree.dev());
        let first = attached.clone();
        let others =
            std::iter::once(()).flat_map(|()| std::fs::read_dir("/proc").into_iter().flatten().flatten());
        let others = others.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let others = others.filter(move |pid| *pid != own && !attached.contains(pid));
        first.into_iter().chain(others).flat_map(move |pid| {
            let fds = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"));
            fds.into_iter().flatten().flatten().filter_map(move |fd| {
                let path = fd.path();
                let meta = std::fs::metadata(&path).ok()?;
                (meta.dev() == dev).then(|| Open { ino: meta.ino(), path })
            })
        })
    }
}

/// A file of the tree's filesystem that a program had open a moment ago.
pub(super) struct Open {
    /// Kernel inode number.
    pub ino: u64,
    path: PathBuf,
}

impl Open {
    /// A descriptor that names it, if the program has it still.
    pub(super) fn handle(&self, residency: &Residency) -> Option<(OwnedFd, Stat)> {
        let path = cstring(std::os::unix::ffi::OsStrExt::as_bytes(self.path.as_os_str())).ok()?;
        // SAFETY: a C string.
        let opened = check(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) }).ok()?;
        // SAFETY: the kernel has just given us this descriptor.
        let handle = unsafe { OwnedFd::from_raw_fd(opened) };
        let stat = residency.tree.stat(handle.as_fd()).ok()?;
        (stat.id.ino == self.ino).then_some((handle, stat))
    }
}
