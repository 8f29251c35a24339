//! Makes entries where nobody sees them: with their attributes, and known to the index, before they get their names in the
//! tree. It must not know which directory they are for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use crate::meta::records::Inode;
use crate::volume::entry::{self, Parts};
use crate::volume::tree::{Stat, Tree, check, cstring};

/// A private directory of the tree's filesystem, in which entries are made.
pub struct Stage {
    dir: OwnedFd,
    kept: OwnedFd,
    next: AtomicU64,
    root: bool,
}

impl Stage {
    /// Makes the stage in the state directory. What an agent that died has left there has never been seen by anybody, and is
    /// removed.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn open(state: &Path) -> io::Result<Self> {
        let path = state.join("stage");
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let dir = nix::fcntl::open(&path, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let kept = state.join("kept");
        match std::fs::create_dir(&kept) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => std::fs::set_permissions(&kept, std::os::unix::fs::PermissionsExt::from_mode(0o700))?,
        }
        let kept = nix::fcntl::open(&kept, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { dir, kept, next: AtomicU64::new(0), root: nix::unistd::geteuid().is_root() })
    }

    /// Whether what is made here can be moved into the tree, and whether the tree's filesystem tells holes from data: without
    /// either a volume has to be restored whole.
    ///
    /// # Errors
    /// The reason, as a part of a sentence.
    pub fn fits(state: &Path, tree: &Tree) -> Result<(), String> {
        let probe = || -> io::Result<bool> {
            let stage = Self::open(state)?;
            let name = stage.name();
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
            let file = nix::fcntl::openat(&stage.dir, name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
            let file = std::fs::File::from(file);
            file.set_len(1 << 20)?;
            std::os::unix::fs::FileExt::write_all_at(&file, b"x", 512 << 10)?;
            let data = crate::volume::capture::segments(&file, 0, 1 << 20)?;
            let tells = matches!(data.as_slice(), [(start, end)] if *start > 0 && *end < 1 << 20);
            // Only a move shows whether there is a border of mounts between the two.
            let there = format!(".storeshim-{}", std::process::id());
            let moved = stage.place(&name, tree.root(), there.as_bytes());
            if moved.is_ok() {
                unlinkat(tree.root(), there.as_str(), UnlinkatFlags::NoRemoveDir)?;
            }
            stage.clear(&name, false);
            Ok(tells && moved.is_ok())
        };
        match probe() {
            Ok(true) => Ok(()),
            Ok(false) => Err(
                "its filesystem does not tell holes from data, or it is not on one filesystem with the state directory"
                    .into(),
            ),
            Err(e) => Err(format!("no files can be made in {}: {e}", state.display())),
        }
    }

    /// A name that nothing here has.
    pub fn name(&self) -> String {
        self.next.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// The stage's descriptor.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Keeps a file for names of it that are not in the tree yet, whatever becomes of those that are: by its volume inode, see
    /// [`Tree::set_kept`].
    ///
    /// # Errors
    /// Those of linkat(2).
    pub fn keep(&self, handle: BorrowedFd<'_>, inode: u64) -> io::Result<()> {
        let name = inode.to_string();
        match link_handle(handle, self.kept.as_fd(), &name) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let there = nix::sys::stat::fstatat(&self.kept, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                if there.st_ino == nix::sys::stat::fstat(handle)?.st_ino {
                    return Ok(());
                }
                // Of an agent that died before the index knew it.
                self.release(inode);
                link_handle(handle, self.kept.as_fd(), &name)
            }
            other => other,
        }
    }

    /// The same of a file that is on the stage.
    ///
    /// # Errors
    /// Those of linkat(2).
    pub fn keep_staged(&self, name: &str, inode: u64) -> io::Result<()> {
        Ok(linkat(&self.dir, name, &self.kept, inode.to_string().as_str(), AtFlags::empty())?)
    }

    /// Keeps it no longer: it has its names, or is gone.
    pub fn release(&self, inode: u64) {
        // Most are not kept.
        let _ = unlinkat(&self.kept, inode.to_string().as_str(), UnlinkatFlags::NoRemoveDir);
    }

    /// Makes an inode as `record` says, with its attributes and without data; what stat(2) says of it then.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn make(&self, tree: &Tree, name: &str, record: &Inode) -> io::Result<Stat> {
        if record.mode & libc::S_IFMT == libc::S_IFREG {
            return self.make_filled(tree, name, record, &Parts::new());
        }
        self.make_other(tree, name, record)?;
        tree.stat_at(self.dir.as_fd(), name.as_bytes())?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The same of a regular file, with its bytes in `parts`.
    ///
    /// # Errors
    /// As there.
    pub fn make_filled(&self, tree: &Tree, name: &str, record: &Inode, parts: &Parts) -> io::Result<Stat> {
        let file = entry::make_file(self.dir.as_fd(), name.as_bytes(), record, parts)?;
        tree.stat(file.as_fd())
    }

    fn make_other(&self, tree: &Tree, name: &str, record: &Inode) -> io::Result<()> {
        let dir = self.dir.as_fd();
        entry::make(tree, dir, name.as_bytes(), record)?;
        if record.mode & libc::S_IFMT == libc::S_IFDIR && !self.root {
            // One that its owner may not change cannot be moved: see `finish`.
            let open = Inode { mode: record.mode | libc::S_IRWXU, ..record.clone() };
            return entry::set_attributes(dir, name.as_bytes(), &open);
        }
        entry::set_attributes(dir, name.as_bytes(), record)
    }

    /// Sets, at its place, what would have hindered the move of a directory there.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn finish(&self, dir: BorrowedFd<'_>, name: &[u8], record: &Inode) -> io::Result<()> {
        if record.mode & libc::S_IFMT == libc::S_IFDIR
            && !self.root
            && record.mode & libc::S_IRWXU != libc::S_IRWXU
        {
            return entry::set_attributes(dir, name, record);
        }
        Ok(())
    }

    /// Another name here for what has one.
    ///
    /// # Errors
    /// Those of linkat(2).
    pub fn link(&self, from: &str, name: &str) -> io::Result<()> {
        Ok(linkat(&self.dir, from, &self.dir, name, AtFlags::empty())?)
    }

    /// Another name here for an inode of the tree.
    ///
    /// # Errors
    /// Those of linkat(2).
    pub fn link_handle(&self, handle: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        link_handle(handle, self.dir.as_fd(), name)
    }

    /// Gives an entry its name in the tree; an error of kind `AlreadyExists` where somebody has taken that.
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub fn place(&self, name: &str, dir: BorrowedFd<'_>, to: &[u8]) -> io::Result<()> {
        let (from, to) = (cstring(name.as_bytes())?, cstring(to)?);
        let rename = |flags: u32| {
            // SAFETY: two C strings.
            let done = unsafe {
                libc::syscall(
                    libc::SYS_renameat2,
                    self.dir.as_raw_fd(),
                    from.as_ptr(),
                    dir.as_raw_fd(),
                    to.as_ptr(),
                    flags,
                )
            };
            check(done as i32).map(drop)
        };
        match rename(libc::RENAME_NOREPLACE) {
            // A filesystem without the notion: whoever makes the same name in this very moment loses it.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                // SAFETY: a C string; `stat` is not read.
                let there = unsafe {
                    libc::faccessat(dir.as_raw_fd(), to.as_ptr(), libc::F_OK, libc::AT_SYMLINK_NOFOLLOW)
                };
                if there == 0 {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                rename(0)
            }
            other => other,
        }
    }

    /// A regular file, open for reading and writing.
    ///
    /// # Errors
    /// Those of open(2): EACCES where its mode shuts out its owner, whom we run as.
    pub fn open_file(&self, name: &str) -> io::Result<std::fs::File> {
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(std::fs::File::from(nix::fcntl::openat(&self.dir, name, flags, Mode::empty())?))
    }

    /// Removes what did not get its name; whether it was here.
    pub fn clear(&self, name: &str, is_dir: bool) -> bool {
        let flags = if is_dir { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        // It is removed at the next start, if not now.
        unlinkat(&self.dir, name, flags).is_ok()
    }
}

fn link_handle(handle: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
    Ok(linkat(nix::fcntl::AT_FDCWD, link.as_str(), dir, name, AtFlags::AT_SYMLINK_FOLLOW)?)
}
