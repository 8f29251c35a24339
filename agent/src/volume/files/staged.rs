//! Files that come in parts and take their place in the tree as a whole: until then they lie in the agent's state. What is
//! found there at the start nobody was promised.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, renameat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::walk::open;
use crate::durable::wire::messages::{Nonce, Stat};

/// Parts of a write that is not finished within this are dropped.
const PATIENCE: Duration = Duration::from_secs(60);
/// Finished writes whose answers are remembered.
const REMEMBERED: usize = 256;

#[derive(Default)]
struct State {
    begun: HashMap<Nonce, Instant>,
    done: VecDeque<(Nonce, Stat)>,
}

/// See the module.
pub struct Staged {
    directory: PathBuf,
    state: Mutex<State>,
}

impl Staged {
    pub fn new(directory: PathBuf) -> io::Result<Self> {
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(&directory)?,
        }
        Ok(Self { directory, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, nonce: &Nonce) -> PathBuf {
        self.directory.join(nonce.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// Takes a part; bytes that are there now.
    pub fn add(&self, nonce: &Nonce, offset: u64, bytes: &[u8]) -> io::Result<u64> {
        let stale: Vec<Nonce> = {
            let mut state = self.state();
            state.begun.insert(*nonce, Instant::now());
            let stale = state.begun.iter().filter(|(_, at)| at.elapsed() > PATIENCE).map(|(nonce, _)| *nonce);
            let stale: Vec<Nonce> = stale.collect();
            state.begun.retain(|nonce, _| !stale.contains(nonce));
            stale
        };
        for nonce in stale {
            // What cannot be removed now goes at the next start.
            let _ = std::fs::remove_file(self.path(&nonce));
        }
        let file = File::options().create(true).truncate(false).write(true).open(self.path(nonce))?;
        let held = file.metadata()?.len();
        if offset > held {
            let lost = "the parts in front of this one were dropped, because the write took too long; write it again";
            return Err(io::Error::other(lost));
        }
        file.write_all_at(bytes, offset)?;
        Ok(held.max(offset + bytes.len() as u64))
    }

    /// The file that was put together.
    pub fn file(&self, nonce: &Nonce) -> io::Result<File> {
        File::options().read(true).write(true).open(self.path(nonce))
    }

    /// Puts the file into its place, as a whole; a descriptor of it there.
    pub fn put(&self, nonce: &Nonce, file: &File, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
        let path = self.path(nonce);
        file.sync_all()?;
        match renameat(AT_FDCWD, &path, dir, OsStr::from_bytes(name)) {
            Ok(()) => {
                self.state().begun.remove(nonce);
                file.as_fd().try_clone_to_owned()
            }
            Err(nix::Error::EXDEV) => {
                let put = copy(file, nonce, dir, name)?;
                std::fs::remove_file(path)?;
                self.state().begun.remove(nonce);
                Ok(put)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What a finished write was answered.
    pub fn answered(&self, nonce: &Nonce) -> Option<Stat> {
        self.state().done.iter().find(|(done, _)| done == nonce).map(|(_, stat)| *stat)
    }

    /// Remembers what a finished write was answered.
    pub fn done(&self, nonce: Nonce, stat: Stat) {
        let mut state = self.state();
        state.done.push_back((nonce, stat));
        if state.done.len() > REMEMBERED {
            state.done.pop_front();
        }
    }
}

/// The same where the agent's state lies on another filesystem than the tree: under a name of its own for a moment.
fn copy(file: &File, nonce: &Nonce, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let meta = file.metadata()?;
    let hex: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
    let passing = format!(".storeshim-{hex}");
    let fd = open(dir, passing.as_bytes(), libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC, 0o600)?;
    let copied = (|| {
        use std::os::unix::fs::MetadataExt;
        let mut from = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
        let mut to = File::from(fd.try_clone()?);
        io::copy(&mut from, &mut to)?;
        super::own(fd.as_fd(), meta.uid(), meta.gid(), meta.mode() & 0o7777)?;
        to.sync_all()?;
        Ok(renameat(dir, passing.as_str(), dir, OsStr::from_bytes(name))?)
    })();
    if copied.is_err() {
        // Nobody was promised it.
        let _ = unlinkat(dir, passing.as_str(), UnlinkatFlags::NoRemoveDir);
    }
    copied.map(|()| fd)
}
