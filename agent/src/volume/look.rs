//! A look at the tree: what the names and inodes of a dirty set are now, kept as an overlay over the index. One look
//! may take several rounds, each seeing what changed since the one before; the last is made in a freeze, and the
//! overlay is then the tree as it stood at that instant. It must not know how the overlay becomes a commit
//! (`plan`) or where captured bytes go.

mod data;
mod names;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use storeshim_protocol::OpenFlags;

use super::VolumeError;
use super::capture::{self, Before, CaptureError, Captured, Edit, PieceSink};
use super::dirty::{DirtyInode, DirtySet, Names};
use super::index::{Doubt, Fingerprints, Index, Kernel, Pieces, Seen};
use super::residency::file::Files;
use super::tree::{COARSE_TICK_NS, FileId, LOST_AND_FOUND, Stat, Tree};
use crate::meta::records::{Block, Chunk, ChunkHash, Inode, ROOT_INODE};

/// An inode as it was looked at.
#[derive(Debug)]
pub struct Looked {
    /// Its record; `links` is filled in from the names when the commit is planned.
    pub inode: Inode,
    /// What to compare the next look with.
    pub seen: Seen,
    /// Changes of its data since the index, in order.
    pub edits: Vec<Edit>,
    /// See [`Captured::unproven`].
    pub unproven: usize,
    /// New fingerprints of blocks; `None` where the old ones do not hold any more.
    pub fingerprints: BTreeMap<u64, Option<Fingerprints>>,
}

/// Something that could not be looked at.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Kernel inode, 0 where it is not known.
    pub ino: u64,
    /// A name of it: kernel inode of the directory, and the entry.
    pub name: Option<(u64, Vec<u8>)>,
    /// The sentence that the log and a failing barrier get.
    pub why: String,
}

/// What a look needs of the world.
pub struct Context<'a> {
    /// The last cut.
    pub index: &'a Index,
    /// The tree.
    pub tree: &'a Tree,
    /// What is absent of files, and the inodes' locks.
    pub files: &'a Files,
}

/// An overlay over the index. See the module.
pub struct Look<'a> {
    cx: Context<'a>,
    /// Directory entries that are not as in the index, by directory and name.
    pub dentries: BTreeMap<(u64, Vec<u8>), Option<u64>>,
    /// Inodes that were looked at and had changed.
    pub inodes: HashMap<u64, Looked>,
    /// Kernel inodes that the index does not know (by number).
    pub kernel: HashMap<u64, Kernel>,
    /// What could not be looked at.
    pub trouble: Vec<Trouble>,
    added_links: HashMap<u64, BTreeSet<(u64, Vec<u8>)>>,
    /// Paths of directories; with one, those of all above it.
    dir_paths: HashMap<u64, Vec<u8>>,
    /// Have no path, as long as no name changes.
    gone: HashSet<u64>,
    next_inode: u64,
    /// Past this, a look in a freeze gives up.
    pub deadline: Option<Instant>,
    /// Leaves what is in new directories to a later look.
    pub shallow: bool,
    ids: HashMap<u64, FileId>,
    /// Were not to be found where they were looked for: what was told of them is still to be looked at.
    missed: HashSet<u64>,
    /// Directories that were nowhere to be found, and what was told in them: moved since, if they were not deleted.
    unreached: Vec<(u64, Names)>,
    /// Names that intents meant by naming a symbolic link to them, by directory.
    through: HashSet<(u64, Box<[u8]>)>,
    first_new: u64,
}

/// Work of one round, by volume inode.
#[derive(Default)]
struct Todo {
    inodes: BTreeMap<u64, DirtyInode>,
    /// Looked at in this round already: told ranges add nothing.
    done: HashSet<u64>,
    dirs: Vec<(u64, Names)>,
    /// By kernel inode: directories that no look has met yet.
    unknown: Vec<(u64, Names)>,
    /// Found under another name than before, and how many names the kernel says that they have (0 for a directory).
    moved: HashMap<u64, u32>,
    /// Have lost a name.
    lost: HashSet<u64>,
}

type Result<T> = std::result::Result<T, CaptureError>;

impl From<VolumeError> for CaptureError {
    fn from(e: VolumeError) -> Self {
        Self::Store(e)
    }
}

impl<'a> Look<'a> {
    /// An empty overlay.
    pub fn new(cx: Context<'a>) -> std::result::Result<Self, VolumeError> {
        let next_inode = cx.index.next_inode()?;
        Ok(Self {
            cx,
            dentries: BTreeMap::new(),
            inodes: HashMap::new(),
            kernel: HashMap::new(),
            trouble: Vec::new(),
            added_links: HashMap::new(),
            dir_paths: HashMap::new(),
            gone: HashSet::new(),
            next_inode,
            deadline: None,
            shallow: false,
            ids: HashMap::new(),
            missed: HashSet::new(),
            unreached: Vec::new(),
            through: HashSet::new(),
            first_new: next_inode,
        })
    }

    /// The next free inode number after this look.
    pub fn next_inode(&self) -> u64 {
        self.next_inode
    }

    /// Looks at all that `work` names. Idempotent: the same work may be looked at again, in a later round.
    pub fn take(&mut self, work: &DirtySet, sink: &mut dyn PieceSink) -> Result<()> {
        let mut todo = Todo::default();
        for (kino, names) in &work.names {
            let mut known = self.all_known(*kino)?.peekable();
            if known.peek().is_none() {
                todo.unknown.push((*kino, names.clone()));
            }
            todo.dirs.extend(known.map(|dir| (dir, names.clone())));
        }
        self.look_dirs(&mut todo)?;
        for (kino, dirty) in &work.inodes {
            for inode in self.all_known(*kino)? {
                let mine = todo.inodes.entry(inode).or_default();
                let untold = mine.untold;
                mine.clone_from(dirty);
                mine.untold |= untold;
            }
        }
        // A few times over, where names move while they are looked at.
        for _ in 0..4 {
            while let Some((inode, dirty)) = todo.inodes.pop_first() {
                if !todo.done.contains(&inode) {
                    self.look_inode(inode, &dirty, sink)?;
                    todo.done.insert(inode);
                }
            }
            // Its name stands for nothing, or for another inode, by now: find out which.
            let missed: Vec<u64> = self.missed.iter().copied().collect();
            for inode in missed {
                self.recheck_links(inode, &mut todo)?;
                todo.done.remove(&inode);
            }
            if todo.dirs.is_empty() {
                break;
            }
            self.look_dirs(&mut todo)?;
        }
        Ok(())
    }

    /// Whether the inode's file is still open or mapped for writing somewhere.
    pub fn has_writers(&mut self, kino: u64) -> Result<bool> {
        for inode in self.all_known(kino)? {
            if let Some((tree, path)) = self.place_of(inode)?
                && let Some(file) = tree.open_file(&path)?
                && (!self.cx.tree.leases_see_mappings()
                    || self.cx.tree.stat(file.as_fd())?.id.ino != kino
                    || !file.no_writers())
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks at suspects again; whether any had changed. Two rounds in a row without a change are a double collect.
    pub fn changed_again(
        &mut self,
        suspects: &HashMap<u64, OpenFlags>,
        sink: &mut dyn PieceSink,
    ) -> Result<bool> {
        let mut any = false;
        for (kino, flags) in suspects {
            for inode in self.all_known(*kino)? {
                let dirty = DirtyInode { opened: Some(*flags), ..DirtyInode::default() };
                any |= self.look_inode(inode, &dirty, sink)?;
            }
        }
        Ok(any)
    }

    /// Kernel inodes that have a name and were not found by it to the end.
    pub fn missed(&self) -> std::result::Result<Vec<u64>, VolumeError> {
        let mut found = Vec::new();
        for inode in &self.missed {
            if !self.links_of(*inode)?.is_empty() {
                found.extend(self.id_of(*inode)?.map(|id| id.ino));
            }
        }
        Ok(found)
    }

    /// The volume inode behind a kernel inode, new ones of this look included.
    pub fn known(&self, kino: u64) -> std::result::Result<Option<u64>, VolumeError> {
        if let Some(kernel) = self.kernel.get(&kino) {
            return Ok(Some(kernel.inode));
        }
        Ok(self.cx.index.kernel(kino)?.map(|k| k.inode))
    }

    /// The volume inodes that a kernel inode number may mean: it may stand for a new one while intents still tell of the
    /// old one, which was deleted. And what this look has met may be the old one: the number was given out again since, to what
    /// the agent has brought.
    pub fn all_known(
        &self,
        kino: u64,
    ) -> std::result::Result<impl Iterator<Item = u64> + use<>, VolumeError> {
        let new = self.kernel.get(&kino).map(|k| k.inode);
        let old = self.cx.index.kernel(kino)?.map(|k| k.inode);
        Ok(new.into_iter().chain(old.filter(|old| new != Some(*old))))
    }

    /// Looks at all listed directories. One may be reachable only once the look at another has found where it is
    /// now, so this goes on while it gets anywhere. A directory that stays unreachable was deleted (its names are
    /// looked at once more, in case that was not told), or is new and was listed as a whole from its parent, or moves at
    /// this very time.
    fn look_dirs(&mut self, todo: &mut Todo) -> Result<()> {
        let (mut rechecked, mut followed, mut tried) = (HashSet::new(), HashSet::new(), HashSet::new());
        loop {
            let mut progress = false;
            let mut later = Vec::new();
            while let Some((dir, names)) = todo.dirs.pop() {
                match self.look_dir(dir, &names, todo) {
                    Ok(true) => progress = true,
                    Ok(false) => later.push((dir, names)),
                    Err(CaptureError::Io(e)) => self.note_trouble(dir, &e)?,
                    Err(error) => return Err(error),
                }
            }
            self.follow_names(todo, &mut followed)?;
            for (kino, names) in std::mem::take(&mut todo.unknown) {
                match self.known(kino)? {
                    Some(dir) => todo.dirs.push((dir, names)),
                    None => todo.unknown.push((kino, names)),
                }
            }
            if !progress {
                for (dir, _) in &later {
                    if rechecked.insert(*dir) {
                        self.recheck_links(*dir, todo)?;
                    }
                }
                if todo.dirs.is_empty() {
                    self.forsake(std::mem::take(&mut later), todo)?;
                    self.follow_names(todo, &mut followed)?;
                    todo.dirs.extend(self.come_back(&mut tried)?);
                    if todo.dirs.is_empty() {
                        return Ok(());
                    }
                }
            }
            todo.dirs.append(&mut later);
        }
    }

    /// Looks at entries of a directory; `false` where the directory is not to be found.
    fn look_dir(&mut self, dir: u64, names: &Names, todo: &mut Todo) -> Result<bool> {
        let Some(fd) = self.open_dir(dir)? else { return Ok(false) };
        if self.is_unpopulated(dir, names)? {
            todo.inodes.entry(dir).or_default();
            return Ok(true);
        }
        match names {
            Names::Some(set) => {
                for name in set {
                    self.look_name(dir, fd.as_fd(), name, todo)?;
                }
            }
            Names::All => {
                let mut gone = self.children(dir, self.cx.index.children(dir)?.into_iter().collect());
                for name in self.cx.tree.list(fd.as_fd())? {
                    gone.remove(&name);
                    self.look_name(dir, fd.as_fd(), &name, todo)?;
                    // Nobody told of this very name: what became of its inode is anybody's guess.
                    if let Some(child) = self.child(dir, &name)?
                        && let Some(dirty) = todo.inodes.get_mut(&child)
                    {
                        dirty.untold = true;
                    }
                }
                for (name, child) in gone {
                    self.set_dentry(dir, &name, None)?;
                    todo.lost.insert(child);
                }
            }
        }
        // Its own times have changed with its entries.
        todo.inodes.entry(dir).or_default();
        Ok(true)
    }

    fn look_name(&mut self, dir: u64, fd: BorrowedFd<'_>, name: &[u8], todo: &mut Todo) -> Result<()> {
        let stat = self.cx.tree.stat_at(fd, name)?;
        let stat = stat.filter(|_| dir != ROOT_INODE || name != LOST_AND_FOUND);
        let was = self.child(dir, name)?;
        let Some(stat) = stat else {
            todo.lost.extend(was);
            return self.set_dentry(dir, name, None);
        };
        let (inode, new) = self.inode_of(&stat, was)?;
        self.set_dentry(dir, name, Some(inode))?;
        todo.lost.extend(was.filter(|was| *was != inode));
        if new {
            todo.inodes.entry(inode).or_default();
            if stat.is_dir() && !self.shallow {
                todo.dirs.push((inode, Names::All));
            }
            return Ok(());
        }
        if was != Some(inode) {
            todo.moved.insert(inode, if stat.is_dir() { 0 } else { stat.links });
        }
        if self.seen(inode)?.is_none_or(|seen| !same(&seen, &stat) || seen.doubt != Doubt::None) {
            todo.inodes.entry(inode).or_default();
        } else if stat.is_symlink() {
            self.through_symlink(dir, fd, name, todo)?;
        }
        Ok(())
    }

    /// An intent that names a link which has not changed may mean the file that was created through it.
    fn through_symlink(&mut self, dir: u64, fd: BorrowedFd<'_>, name: &[u8], todo: &mut Todo) -> Result<()> {
        let target = self.cx.tree.to_physical(&self.cx.tree.read_link(fd, name)?);
        let Some(mut path) = self.path_of(dir)? else { return Ok(()) };
        let root = std::os::unix::ffi::OsStrExt::as_bytes(self.cx.tree.path().as_os_str());
        match target.strip_prefix(root).and_then(|rest| rest.strip_prefix(b"/")) {
            Some(inside) => path = inside.to_vec(),
            None if target.starts_with(b"/") => return Ok(()),
            None => path = join(&path, &target),
        }
        let cut = path.iter().rposition(|b| *b == b'/');
        let (parent, last) =
            cut.map_or((&[][..], &path[..]), |at| (&path[..at], path.get(at + 1..).unwrap_or(&[])));
        if let Some(parent) = self.cx.tree.open_dir(parent)?
            && let Some(parent) = self.meant(self.cx.tree.stat(parent.as_fd())?.id)?
            && self.cx.index.child(parent, last)?.is_none()
        {
            self.through.insert((parent, last.into()));
            if self.child(parent, last)?.is_none() {
                todo.dirs.push((parent, Names::Some(HashSet::from([last.into()]))));
            }
        }
        Ok(())
    }

    /// Looks at one inode and takes over what has changed; whether anything had.
    fn look_inode(&mut self, inode: u64, dirty: &DirtyInode, sink: &mut dyn PieceSink) -> Result<bool> {
        self.in_time()?;
        let mut dirty = dirty.clone();
        dirty.untold |= self.missed.remove(&inode);
        let mut changed = match self.path_of(inode)? {
            Some(path) => self.look_at(inode, (self.cx.tree, &path), &dirty, sink)?,
            None => {
                self.missed.insert(inode);
                false
            }
        };
        // What has lost its last name here is not lost while another one is to come, or is on its way.
        if self.missed.contains(&inode)
            && let Some((kept, name)) = self.kept(inode)?
        {
            self.missed.remove(&inode);
            changed = self.look_at(inode, (kept, &name), &dirty, sink)?;
        }
        Ok(changed)
    }

    fn look_at(
        &mut self,
        inode: u64,
        place: (&Tree, &[u8]),
        dirty: &DirtyInode,
        sink: &mut dyn PieceSink,
    ) -> Result<bool> {
        match self.look_path(inode, place, dirty, sink) {
            Err(CaptureError::Io(e)) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {
                self.missed.insert(inode);
                Ok(false)
            }
            Err(CaptureError::Io(e)) => self.note_trouble(inode, &e).map(|()| false),
            other => other,
        }
    }

    fn note_trouble(&mut self, inode: u64, error: &std::io::Error) -> Result<()> {
        let path = self.path_of(inode)?.unwrap_or_default();
        let ino = self.id_of(inode)?.map_or(0, |id| id.ino);
        let path = String::from_utf8_lossy(&path);
        let name = match self.links_of(inode)?.pop_first() {
            Some((dir, name)) => self.id_of(dir)?.map(|id| (id.ino, name)),
            None => None,
        };
        let why = format!(
            "the agent cannot read {path:?} in the tree ({error}), so it cannot be committed; make it readable"
        );
        self.trouble.push(Trouble { ino, name, why });
        Ok(())
    }

    fn look_path(
        &mut self,
        inode: u64,
        (tree, path): (&Tree, &[u8]),
        dirty: &DirtyInode,
        sink: &mut dyn PieceSink,
    ) -> Result<bool> {
        let files = self.cx.files;
        let handle = tree.open_at(path, libc::O_PATH)?;
        // The agent itself moves times while it brings data: under this lock they are what it left.
        let locked = files.lock(inode);
        let mut stat = tree.stat(handle.as_fd())?;
        if self.id_of(inode)?.is_some_and(|id| id != stat.id) {
            self.missed.insert(inode);
            return Ok(false);
        }
        let before = self.seen_by(inode, &stat)?;
        let unchanged = before.is_some_and(|seen| same(&seen, &stat));
        let doubted = before.is_some_and(|seen| seen.doubt != Doubt::None);
        let flags = dirty.opened.unwrap_or_default();
        let again = dirty.silent || flags.has(OpenFlags::MAPPED) || doubted;
        if unchanged && dirty.ranges.is_empty() && !again {
            return Ok(false);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
        let mut target = Vec::new();
        let mut xattrs = Vec::new();
        let mut captured = Captured::default();
        let mut writing = false;
        if stat.is_file() {
            let Some(file) = tree.open_file(path)? else {
                self.missed.insert(inode);
                return Ok(false);
            };
            // Before its data is read; and opening may have moved ctime, where the owner had shut the file.
            stat = tree.stat(file.as_fd())?;
            if self.id_of(inode)?.is_some_and(|id| id != stat.id) {
                return Ok(false);
            }
            // The kernel sets the time before it copies what is written: of a writer whom no gate holds, the data may come
            // after the time that was seen, by as long as he waits for a CPU. (An append moves the size after it.)
            let ungated = flags.has(OpenFlags::UNSEEN) && !flags.has(OpenFlags::APPEND) || dirty.untold;
            writing = ungated && !file.no_writers();
            let absent = locked.absent(self.cx.index)?;
            let known = Known { look: self, inode, absent };
            if !known.absent.is_empty() && !unchanged && before.is_some() {
                captured = capture::written_into(&file, stat.size, &known, sink)?;
            }
            // What is here stays here while a look lasts, and what comes meanwhile is not looked at.
            drop(locked);
            xattrs = tree.xattrs(file.as_fd())?;
            let more = self.capture(&known, &file, &stat, before, dirty, sink)?;
            captured.edits.extend(more.edits);
            captured.unproven += more.unproven;
            captured.fingerprints.extend(more.fingerprints);
        } else if stat.is_dir() {
            xattrs = tree.xattrs(handle.as_fd())?;
        } else if stat.is_symlink() {
            target = tree.read_link(handle.as_fd(), b"")?;
        }
        let age = now - (stat.ctime.secs.wrapping_mul(1_000_000_000) + i64::from(stat.ctime.nanos));
        let record = Inode {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            rdev: if matches!(stat.mode & libc::S_IFMT, libc::S_IFBLK | libc::S_IFCHR) {
                stat.rdev
            } else {
                0
            },
            size: if stat.is_dir() {
                0
            } else if stat.is_symlink() {
                target.len() as u64
            } else {
                stat.size
            },
            mtime: stat.mtime,
            links: 0,
            target,
            xattrs,
        };
        let changed = !unchanged
            || !captured.edits.is_empty()
            || doubted && !self.inodes.contains_key(&inode) && !self.is_as_recorded(inode, &record)?;
        if !changed && !doubted && !self.inodes.contains_key(&inode) && captured.fingerprints.is_empty() {
            return Ok(false);
        }
        let racy = age < COARSE_TICK_NS && tree.coarse_clock() || age < data::UNGATED_NS && writing;
        let seen = Seen::of(&stat, if racy { Doubt::Racy } else { Doubt::None });
        let slot = self.inodes.entry(inode).or_insert_with(|| Looked {
            inode: record.clone(),
            seen,
            edits: Vec::new(),
            unproven: 0,
            fingerprints: BTreeMap::new(),
        });
        slot.inode = record;
        slot.seen = seen;
        slot.edits.extend(captured.edits);
        slot.unproven += captured.unproven;
        slot.fingerprints.extend(captured.fingerprints);
        Ok(changed)
    }

    fn seen(&self, inode: u64) -> std::result::Result<Option<Seen>, VolumeError> {
        match self.inodes.get(&inode) {
            Some(looked) => Ok(Some(looked.seen)),
            None => self.cx.index.seen(inode),
        }
    }

    /// As [`Look::seen`], but for what the agent itself has moved since that was seen.
    fn seen_by(&self, inode: u64, stat: &Stat) -> std::result::Result<Option<Seen>, VolumeError> {
        let seen = self.seen(inode)?;
        if let (Some(seen), true) = (seen, self.inodes.contains_key(&inode))
            && !same(&seen, stat)
            && let Some(own) =
                self.cx.index.seen(inode)?.filter(|own| own.doubt != Doubt::None && same(own, stat))
            && (own.size, own.mtime) == (seen.size, seen.mtime)
        {
            return Ok(Some(own));
        }
        Ok(seen)
    }

    /// Whether a directory's entries are not here yet, so that nothing in it can be compared. What was told in it is looked
    /// at once they are.
    fn is_unpopulated(&self, dir: u64, names: &Names) -> Result<bool> {
        if !self.cx.index.is_unpopulated(dir)? {
            return Ok(false);
        }
        self.cx.files.defer(dir, names);
        let still = self.cx.index.is_unpopulated(dir)?;
        if !still {
            // Here by now, and perhaps nobody takes them any more.
            self.cx.files.deferred(dir);
        }
        Ok(still)
    }

    fn id_of(&self, inode: u64) -> std::result::Result<Option<FileId>, VolumeError> {
        if let Some(looked) = self.inodes.get(&inode) {
            return Ok(Some(looked.seen.id));
        }
        if let Some(seen) = self.cx.index.seen(inode)? {
            return Ok(Some(seen.id));
        }
        Ok(self.ids.get(&inode).copied())
    }

    /// The volume inode of what was just seen.
    fn meant(&self, id: FileId) -> Result<Option<u64>> {
        let new = self.kernel.get(&id.ino).copied();
        let its = |kernel: &Kernel| kernel.id == id;
        let found = match new.filter(its) {
            None => self.cx.index.kernel(id.ino)?.filter(its),
            found => found,
        };
        Ok(found.map(|kernel| kernel.inode))
    }

    /// The volume inode of what was just seen by a name that stood for `was`, and whether it is new.
    fn inode_of(&mut self, stat: &Stat, was: Option<u64>) -> Result<(u64, bool)> {
        let still = match was {
            // First what is known of the name: a number says less, for it is given out again.
            Some(was) if self.id_of(was)? == Some(stat.id) => Some(was),
            _ => self.meant(stat.id)?,
        };
        if let Some(inode) = still {
            if self.kernel.get(&stat.id.ino).is_some_and(|kernel| kernel.inode != inode) {
                self.kernel.remove(&stat.id.ino);
            }
            return Ok((inode, inode >= self.first_new && !self.inodes.contains_key(&inode)));
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        self.kernel.insert(stat.id.ino, Kernel { id: stat.id, inode });
        self.ids.insert(inode, stat.id);
        Ok((inode, true))
    }

    /// A freeze that looks for too long is given up.
    fn in_time(&self) -> Result<()> {
        if self.deadline.is_some_and(|d| Instant::now() > d) { Err(CaptureError::TooMuch) } else { Ok(()) }
    }
}

/// The data of a file as the index has it, as far as this look has not edited it.
struct Known<'l, 'a> {
    look: &'l Look<'a>,
    inode: u64,
    absent: Pieces,
}

impl Before for Known<'_, '_> {
    fn block(&self, block: u64) -> Result<Option<Block>> {
        let edited = self.look.inodes.get(&self.inode).is_some_and(|l| l.fingerprints.contains_key(&block));
        if edited { Ok(None) } else { Ok(self.look.cx.index.block(self.inode, block)?) }
    }

    fn chunk(&self, hash: &ChunkHash) -> Result<Option<Chunk>> {
        Ok(self.look.cx.index.chunk(hash)?)
    }

    fn absent(&self) -> &Pieces {
        &self.absent
    }

    fn fingerprints(&self, block: u64) -> Result<Option<Fingerprints>> {
        match self.look.inodes.get(&self.inode).and_then(|l| l.fingerprints.get(&block)) {
            Some(prints) => Ok(prints.clone()),
            None => Ok(self.look.cx.index.fingerprints(self.inode, block)?),
        }
    }

    fn blocks(&self, first: u64, end: u64) -> Result<Vec<u64>> {
        let mut blocks = self.look.cx.index.block_numbers(self.inode, first, end)?;
        if let Some(looked) = self.look.inodes.get(&self.inode) {
            blocks.extend(looked.fingerprints.range(first..end).map(|(block, _)| *block));
        }
        Ok(blocks)
    }

    fn in_time(&self) -> Result<()> {
        self.look.in_time()
    }
}

/// Whether an inode stands as it was seen.
pub fn same(seen: &Seen, stat: &Stat) -> bool {
    seen.id == stat.id && seen.size == stat.size && seen.mtime == stat.mtime && seen.ctime == stat.ctime
}

/// A path of two parts; an empty directory is the root.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}
