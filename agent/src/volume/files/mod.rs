//! A volume's files for somebody who is no program on this machine: the Worker of its Durable Object. It changes the tree as
//! a hooked program does, intents first, and answers when the change is durable in the backend.

mod staged;
mod walk;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crossbeam::channel::{Sender, bounded};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};
use storeshim_protocol::Intent;
use storeshim_protocol::request::{Answer, Ask, Names, Pin};

use self::staged::Staged;
use self::walk::{Place, failed, open, refused, walk};
use super::cut::Sink;
use super::tree::{self, LEASES, Tree, through_leases};
use super::{Durability, Volume, VolumeError, VolumeOptions};
use crate::durable::wire::messages::Stat;
use crate::durable::wire::{Result, WireError};
use crate::durable::{Entries, Files, Part};
use crate::session::{IntentSink, Reply};

/// Inode numbers go over the wire below this; some filesystems have larger ones.
const INODES: u64 = 1 << 53;

/// See the module.
pub struct TreeFiles {
    tree: Tree,
    prefix: Vec<u8>,
    volume: Arc<Volume>,
    sink: Sink,
    durability: Durability,
    staged: Staged,
    /// How many commits the volume has.
    version: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// Answers whoever waits in this process.
struct Waiting(Sender<Answer>);

impl Reply for Waiting {
    fn answer(self: Box<Self>, answer: Answer) {
        // Whoever asked may have gone.
        let _ = self.0.send(answer);
    }
}

impl TreeFiles {
    /// The files of an open volume. `version` tells how many commits the backend has.
    ///
    /// # Errors
    /// Where the tree or the place for half-written files cannot be opened.
    pub fn new(
        volume: Arc<Volume>,
        options: &VolumeOptions,
        sink: Sink,
        version: Box<dyn Fn() -> u64 + Send + Sync>,
    ) -> std::result::Result<Self, VolumeError> {
        let wrong = |error: io::Error| {
            VolumeError::Failed(format!("the files in {} cannot be shown: {error}", options.tree.display()))
        };
        let tree = Tree::open(&options.tree, &options.prefix, &options.neighbours.list()).map_err(wrong)?;
        let staged = Staged::new(options.state.join("incoming")).map_err(wrong)?;
        let prefix = options.prefix.as_os_str().as_encoded_bytes().to_vec();
        Ok(Self { tree, prefix, volume, sink, durability: options.durability, staged, version })
    }

    /// Asks the volume as a program does; what it does not know of is all here.
    fn ask(&self, path: &[u8], ask: Ask) -> Result<()> {
        let (to, answer) = bounded(1);
        self.volume.request(ask, Box::new(Waiting(to)));
        match answer.recv().map_or(libc::EIO, |answer| answer.errno) {
            0 | libc::ENOSYS => Ok(()),
            errno => Err(refused(path, errno, "cannot be brought to this disk")),
        }
    }

    /// Asks whether the volume may grow by so much; for a quota. To be called before anything changes.
    fn grow(&self, path: &[u8], bytes: u64, inodes: u64) -> Result<()> {
        if (bytes, inodes) == (0, 0) {
            return Ok(());
        }
        let (to, answer) = bounded(1);
        self.volume.request(Ask::Grow { bytes, inodes }, Box::new(Waiting(to)));
        match answer.recv().map_or(libc::EIO, |answer| answer.errno) {
            0 | libc::ENOSYS => Ok(()),
            libc::EDQUOT => Err(refused(
                path,
                libc::EDQUOT,
                "does not fit the volume's quota; delete files, or raise the mount's quota_bytes or quota_inodes",
            )),
            errno => Err(refused(path, errno, "cannot be written")),
        }
    }

    fn tell(&self, intent: Intent<'_>) {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).intent(intent);
    }

    fn populate(&self, path: &[u8], dir: BorrowedFd<'_>) -> Result<()> {
        let stat = self.tree.stat(dir).map_err(|error| failed(path, &error))?;
        self.ask(path, Ask::Populate { ino: stat.id.ino })
    }

    fn walk(&self, path: &[u8], follow: bool) -> Result<Place> {
        walk(&self.tree, &self.prefix, path, follow, &|dir, wanted| match Names::new(wanted) {
            Some(names) => {
                let stat = self.tree.stat(dir).map_err(|error| failed(path, &error))?;
                self.ask(path, Ask::Find { ino: stat.id.ino, names })
            }
            // More than a question holds.
            None => self.populate(path, dir),
        })
    }

    /// The name that a path stands for, which has to exist.
    fn find(&self, path: &[u8], follow: bool) -> Result<(Place, tree::Stat)> {
        let place = self.walk(path, follow)?;
        let found = place.found.ok_or_else(|| refused(path, libc::ENOENT, "does not exist"))?;
        Ok((place, found))
    }

    /// A file's descriptor, with what is asked of it here, and here for as long as the descriptor lives.
    fn open_here(
        &self,
        path: &[u8],
        place: &Place,
        flags: i32,
        bytes: (u64, u64),
    ) -> Result<(File, tree::Stat)> {
        let wrong = |error: io::Error| failed(path, &error);
        // A pipe must not hold us up, nor a lease by which the volume guards the file from programs that do not ask.
        let open = || open(place.dir.as_fd(), &place.name, flags | libc::O_NONBLOCK, 0);
        let ask = || {
            if let Some(stat) = self.tree.stat_at(place.dir.as_fd(), &place.name)? {
                // What does not succeed is met by the open.
                let _ = self.ask(path, Ask::Open { ino: stat.id.ino });
            }
            Ok(())
        };
        let file = through_leases(Instant::now() + LEASES, open, ask).map_err(wrong)?;
        let stat = self.tree.stat(file.as_fd()).map_err(wrong)?;
        if !stat.is_file() {
            return Err(no_file(path, &stat));
        }
        let (start, end) = (bytes.0, bytes.1.min(stat.size));
        if start < end {
            self.ask(path, Ask::Hydrate { ino: stat.id.ino, start, end, pin: Pin::Open })?;
        }
        Ok((File::from(file), stat))
    }

    /// To be called before a name is made, replaced or removed: what is removed from a directory of which only single entries
    /// are here would come back with the others.
    fn name_changes(&self, path: &[u8], place: &Place) -> Result<()> {
        self.populate(path, place.dir.as_fd())?;
        let dir = self.tree.stat(place.dir.as_fd()).map_err(|error| failed(path, &error))?.id.ino;
        self.tell(Intent::Name { dir, name: &place.name });
        Ok(())
    }

    /// Waits until everything is durable in the backend.
    fn settle(&self, path: &[u8]) -> Result<()> {
        if self.durability == Durability::Remote {
            let (to, answer) = bounded(1);
            self.volume.request(Ask::Barrier { ino: 0 }, Box::new(Waiting(to)));
            return match answer.recv().map_or(libc::EIO, |answer| answer.errno) {
                0 => Ok(()),
                errno => {
                    Err(refused(path, errno, "was changed here, but that is not durable yet; try again"))
                }
            };
        }
        self.volume.flush().map(drop).map_err(|error| {
            let shown = String::from_utf8_lossy(path);
            WireError::unavailable(format!(
                "'{shown}' was changed here, but that is not durable yet: {error}"
            ))
        })
    }

    /// The directory that a path's last name lies in, made where it is missing and may be.
    fn parent(&self, path: &[u8], make: bool) -> Result<()> {
        let Some(at) = path.iter().rposition(|byte| *byte == b'/') else { return Ok(()) };
        let above = path.get(..at).unwrap_or_default();
        if !make {
            return Ok(());
        }
        self.parent(above, make)?;
        let place = self.walk(above, true)?;
        match place.found {
            Some(stat) if stat.is_dir() => Ok(()),
            Some(_) => Err(refused(above, libc::ENOTDIR, "is not a directory")),
            None => {
                self.grow(above, 0, 1)?;
                self.name_changes(above, &place)?;
                let made = make_dir(&self.tree, &place);
                made.map_err(|error| failed(above, &error))
            }
        }
    }

    fn write_into(&self, path: &[u8], part: &Part<'_>) -> Result<Place> {
        let wrong = |error: io::Error| failed(path, &error);
        self.parent(path, part.parents)?;
        let place = self.walk(path, true)?;
        if place.found.is_none() {
            self.grow(path, 0, 1)?;
            self.name_changes(path, &place)?;
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
            let file = open(place.dir.as_fd(), &place.name, flags, part.mode).map_err(wrong)?;
            self.give(&place, file.as_fd(), part.mode).map_err(wrong)?;
        }
        let end = part.offset.saturating_add(part.bytes.len() as u64);
        let (file, stat) = self.open_here(path, &place, libc::O_WRONLY, (part.offset, end))?;
        if !part.bytes.is_empty() {
            self.grow(path, end.saturating_sub(stat.size), 0)?;
            let (ino, offset, length) = (stat.id.ino, part.offset, part.bytes.len() as u64);
            self.tell(Intent::Written { ino, offset, length });
            file.write_all_at(part.bytes, part.offset).map_err(wrong)?;
        }
        Ok(place)
    }

    /// A new file belongs to whom its directory belongs to.
    fn give(&self, place: &Place, file: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
        let dir = self.tree.stat(place.dir.as_fd())?;
        own(file, dir.uid, dir.gid, mode)
    }

    /// Puts a whole new file in the place of what the path names.
    fn replace(&self, path: &[u8], part: &Part<'_>) -> Result<Place> {
        let wrong = |error: io::Error| failed(path, &error);
        self.parent(path, part.parents)?;
        let place = self.walk(path, true)?;
        let file = self.staged.file(&part.nonce).map_err(wrong)?;
        let held = place.found.as_ref().map_or(0, |old| old.size);
        let wanted = self.tree.stat(file.as_fd()).map_err(wrong)?.size;
        match &place.found {
            Some(old) if !old.is_file() => return Err(no_file(path, old)),
            found => self.grow(path, wanted.saturating_sub(held), u64::from(found.is_none()))?,
        }
        match &place.found {
            Some(old) => {
                own(file.as_fd(), old.uid, old.gid, old.mode & 0o7777).map_err(wrong)?;
                // Whoever has it open goes on reading it.
                self.ask(path, Ask::Unlink { ino: old.id.ino })?;
            }
            None => self.give(&place, file.as_fd(), part.mode).map_err(wrong)?,
        }
        self.name_changes(path, &place)?;
        let new = self.staged.put(&part.nonce, &file, place.dir.as_fd(), &place.name).map_err(wrong)?;
        self.tell(Intent::Written {
            ino: self.tree.stat(new.as_fd()).map_err(wrong)?.id.ino,
            offset: 0,
            length: u64::MAX,
        });
        Ok(place)
    }

    fn remove(&self, path: &[u8], place: &Place, recursive: bool) -> Result<()> {
        let wrong = |error: io::Error| failed(path, &error);
        let Some(found) = &place.found else { return Ok(()) };
        if !found.is_dir() {
            if found.is_file() {
                self.ask(path, Ask::Unlink { ino: found.id.ino })?;
            }
            self.name_changes(path, place)?;
            return unlink(place, UnlinkatFlags::NoRemoveDir).map_err(wrong);
        }
        if !recursive {
            return Err(refused(
                path,
                libc::EISDIR,
                "is a directory; ask for it to be removed with all that is in it",
            ));
        }
        let dir =
            open(place.dir.as_fd(), &place.name, libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(wrong)?;
        self.populate(path, dir.as_fd())?;
        for name in self.tree.list(dir.as_fd()).map_err(wrong)? {
            let found = self.tree.stat_at(dir.as_fd(), &name).map_err(wrong)?;
            let below = Place { dir: dir.try_clone().map_err(wrong)?, name, found };
            self.remove(path, &below, true)?;
        }
        self.name_changes(path, place)?;
        unlink(place, UnlinkatFlags::RemoveDir).map_err(wrong)
    }

    fn stat_of(&self, path: &[u8], place: &Place, version: u64) -> Result<Stat> {
        let found =
            self.tree.stat_at(place.dir.as_fd(), &place.name).map_err(|error| failed(path, &error))?;
        found
            .map(|stat| to_wire(&stat, version))
            .ok_or_else(|| refused(path, libc::ENOENT, "was removed meanwhile"))
    }
}

impl Files for TreeFiles {
    fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    fn stat(&self, path: &[u8], follow: bool) -> Result<Stat> {
        Ok(to_wire(&self.find(path, follow)?.1, 0))
    }

    fn read(&self, path: &[u8], offset: u64, length: usize) -> Result<(Stat, Vec<u8>)> {
        let wrong = |error: io::Error| failed(path, &error);
        let (place, found) = self.find(path, true)?;
        if !found.is_file() {
            return Err(no_file(path, &found));
        }
        let end = offset.saturating_add(length as u64);
        let (file, stat) = self.open_here(path, &place, libc::O_RDONLY, (offset, end))?;
        let wanted = usize::try_from(stat.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(length);
        let (mut bytes, mut read) = (vec![0; wanted], 0);
        while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset.saturating_add(read as u64)) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(wrong(error)),
            }
        }
        bytes.truncate(read);
        Ok((to_wire(&stat, 0), bytes))
    }

    fn list(&self, path: &[u8], after: &[u8], most: usize) -> Result<(bool, Entries)> {
        let wrong = |error: io::Error| failed(path, &error);
        let (place, found) = self.find(path, true)?;
        if !found.is_dir() {
            return Err(refused(path, libc::ENOTDIR, "is not a directory; read it as a file"));
        }
        let dir =
            open(place.dir.as_fd(), &place.name, libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(wrong)?;
        self.populate(path, dir.as_fd())?;
        let mut names = self.tree.list(dir.as_fd()).map_err(wrong)?;
        names.retain(|name| name.as_slice() > after);
        names.sort_unstable();
        let more = names.len() > most;
        names.truncate(most);
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            // One that has gone meanwhile is not there.
            if let Some(stat) = self.tree.stat_at(dir.as_fd(), &name).map_err(wrong)? {
                entries.push((name, to_wire(&stat, 0)));
            }
        }
        Ok((more, entries))
    }

    fn write(&self, path: &[u8], part: &Part<'_>) -> Result<Stat> {
        if let Some(stat) = self.staged.answered(&part.nonce).filter(|_| part.last) {
            return Ok(stat);
        }
        if path.is_empty() {
            return Err(refused(b"/", libc::EISDIR, "is the volume's root; name a file in it"));
        }
        let place = if part.replace {
            let wrong = |error: io::Error| failed(path, &error);
            let held = self.staged.add(&part.nonce, part.offset, part.bytes).map_err(wrong)?;
            if !part.last {
                return Ok(Stat { size: held, mode: libc::S_IFREG | part.mode, ..Stat::default() });
            }
            self.replace(path, part)?
        } else {
            self.write_into(path, part)?
        };
        if !part.last {
            return self.stat_of(path, &place, 0);
        }
        self.settle(path)?;
        let stat = self.stat_of(path, &place, (self.version)())?;
        self.staged.done(part.nonce, stat);
        Ok(stat)
    }

    fn unlink(&self, path: &[u8], recursive: bool) -> Result<()> {
        if path.is_empty() {
            return Err(refused(b"/", libc::EPERM, "is the volume's root, which stays; name what is in it"));
        }
        let (place, _) = self.find(path, false)?;
        self.remove(path, &place, recursive)?;
        self.settle(path)
    }
}

fn no_file(path: &[u8], stat: &tree::Stat) -> WireError {
    let errno = if stat.is_dir() { libc::EISDIR } else { libc::EINVAL };
    refused(path, errno, "is not a regular file; choose another name")
}

fn to_wire(stat: &tree::Stat, version: u64) -> Stat {
    Stat {
        inode: stat.id.ino % INODES,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        links: stat.links,
        size: stat.size.min(INODES - 1),
        mtime_ms: stat
            .mtime
            .secs
            .saturating_mul(1000)
            .saturating_add(i64::from(stat.mtime.nanos / 1_000_000)),
        version,
    }
}

/// Gives a file its owner and its mode. An agent that may not give files away keeps them.
fn own(file: BorrowedFd<'_>, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    match nix::unistd::fchown(file, Some(uid), Some(gid)) {
        Ok(()) | Err(nix::Error::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    // Behind the owner, whose change takes the set-id bits away.
    Ok(nix::sys::stat::fchmod(file, nix::sys::stat::Mode::from_bits_truncate(mode))?)
}

fn make_dir(tree: &Tree, place: &Place) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(&place.name);
    match nix::sys::stat::mkdirat(place.dir.as_fd(), name, nix::sys::stat::Mode::from_bits_truncate(0o755)) {
        Ok(()) => {}
        // Somebody else was as fast.
        Err(nix::Error::EEXIST) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let above = tree.stat(place.dir.as_fd())?;
    let (uid, gid) = (Uid::from_raw(above.uid), Gid::from_raw(above.gid));
    match fchownat(place.dir.as_fd(), name, Some(uid), Some(gid), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EPERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn unlink(place: &Place, flags: UnlinkatFlags) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    Ok(unlinkat(place.dir.as_fd(), std::ffi::OsStr::from_bytes(&place.name), flags)?)
}
