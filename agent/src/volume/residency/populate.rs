//! Populates one directory: its entries are made on the stage, known to the index, shown as absent to clients, and only then
//! moved to their names. The directory counts as populated from one write to the index on, in which all that is said of its
//! entries is true. Of a large one a single entry may come before that. It must not know who wants them.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Residency;
use super::file::pieces_of;
use super::filled;
use super::find::{self, Found};
use super::own::Own;
use super::populating::Turn;
use super::table::Lacking;
use crate::guard::fanotify::Marked;
use crate::meta::records::Inode;
use crate::volume::VolumeError;
use crate::volume::dirty::Names;
use crate::volume::entry::Parts;
use crate::volume::index::{self, Changes, Doubt, For, Pieces, Seen, Until};
use crate::volume::tree::{FileId, Stat};

/// Entries that are moved to their names under one lock. A directory with no more is not worth a single one.
pub const BATCH: usize = 256;

/// An entry to be made.
struct Entry {
    name: Vec<u8>,
    inode: u64,
    record: Inode,
    /// All bytes of a file that is to be made with them.
    data: Option<Parts>,
    /// Its name on the stage, once it is there.
    staged: String,
    /// It is another name of an inode that is in the tree, or was staged before.
    link: bool,
    /// Which inode it became.
    id: Option<FileId>,
}

type Result<T> = std::result::Result<T, VolumeError>;

impl Residency {
    /// Has the entries of the directory behind a kernel inode number in the tree. What is no directory, or has them, is done.
    ///
    /// # Errors
    /// Where the backend or this disk does not let it, for as long as patience goes.
    pub fn populate(&self, ino: u64) -> Result<()> {
        match self.find(ino)? {
            Found::Here(found) if found.stat.is_dir() => self.populate_found(&found, self.until(), true),
            _ => Ok(()),
        }
    }

    /// As [`Residency::populate`], of a directory that was found. `asked`: somebody waits for it.
    ///
    /// # Errors
    /// As there.
    pub fn populate_found(&self, found: &find::Inode, until: Until, asked: bool) -> Result<()> {
        let dir = found.inode;
        if !self.index.is_unpopulated(dir)? {
            self.show_populated(dir, found.stat.id.ino)?;
            return Ok(());
        }
        // Who waits for a single entry has his turn before.
        self.index.load_children(dir, until)?;
        let turn = self.populating.turn(dir);
        if self.index.is_unpopulated(dir)? {
            self.populate_in_turn(found, until, asked, &turn)
        } else {
            Ok(())
        }
    }

    pub(super) fn populate_in_turn(
        &self,
        found: &find::Inode,
        until: Until,
        asked: bool,
        turn: &Turn<'_>,
    ) -> Result<()> {
        let children = self.index.load_children(found.inode, until)?;
        self.bring_names(found, children, asked, turn)?;
        self.shared.count("populated_directories", 1);
        self.show_populated(found.inode, found.stat.id.ino)
    }

    /// A directory in a cell where something else is absent has a bitmap, so that nobody asks for it again.
    pub(super) fn show_populated(&self, dir: u64, ino: u64) -> Result<()> {
        let locked = self.files.lock(dir);
        if !self.index.is_unpopulated(dir)? {
            self.table.show(ino, 1, &Pieces::default());
        }
        drop(locked);
        Ok(())
    }

    /// Until when a reader waits.
    pub fn until(&self) -> Until {
        Some(Instant::now() + self.options.patience)
    }

    fn bring_names(
        &self,
        found: &find::Inode,
        children: Vec<(Vec<u8>, u64)>,
        asked: bool,
        turn: &Turn<'_>,
    ) -> Result<()> {
        let failed = |e: std::io::Error| self.cannot_populate(found.inode, &e);
        let ino = found.stat.id.ino;
        let fd = self.open_dir(found).map_err(failed)?;
        // Left by an agent that died half way, made by a program without the shim, or asked for before.
        let mut there: HashMap<Vec<u8>, Stat> = HashMap::new();
        for name in self.tree.list(fd.as_fd()).map_err(failed)? {
            if let Some(stat) = self.tree.stat_at(fd.as_fd(), &name).map_err(failed)? {
                there.insert(name, stat);
            }
        }
        let mut missing = Vec::with_capacity(children.len());
        let (mut ours, mut foreign) = (Vec::new(), Vec::new());
        for (name, inode) in children {
            match there.remove(&name) {
                None => missing.push((name, inode)),
                Some(stat) => {
                    let known = self.index.kernel(stat.id.ino)?;
                    if known.is_some_and(|k| k.id == stat.id && k.inode == inode) {
                        ours.push((inode, stat.id, name));
                    } else {
                        foreign.push(name);
                    }
                }
            }
        }
        foreign.extend(there.into_keys());
        let mut rest = &mut missing[..];
        while !rest.is_empty() {
            let began = Instant::now();
            let wanted = turn.wanted();
            let (some, after) = match bring_forward(rest, &wanted) {
                0 => rest.split_at_mut(BATCH.min(rest.len())),
                front => rest.split_at_mut(front),
            };
            self.bring_batch(found, &fd, some.iter_mut().map(std::mem::take).collect(), asked, &mut foreign)?;
            // They are there now, or there are none of these names.
            turn.are_found(&wanted);
            rest = after;
            if !rest.is_empty() && self.is_closed() {
                return Err(VolumeError::closed());
            }
            if !asked && !rest.is_empty() {
                self.rest_until(began.elapsed(), || !turn.wanted().is_empty());
            }
        }
        let mut changes = Changes::new();
        for (inode, id, name) in ours {
            index::set_link(&mut changes, inode, found.inode, &name);
            if self.index.seen(inode)?.is_none_or(|seen| seen.id != id) {
                foreign.push(name);
            }
        }
        index::set_unpopulated(&mut changes, found.inode, false);
        {
            let _locked = self.files.lock(found.inode);
            self.index.apply_local(&changes)?;
            self.table.whole(found.inode, ino, Lacking::Names);
            self.marks.whole(found.inode, ino, found.handle.as_fd(), Marked::Dir);
        }
        if !foreign.is_empty() {
            tracing::warn!(
                dir = ino,
                entries = foreign.len(),
                "a program without the shim has made entries in a directory that was not here yet: they stand before those \
                 of the volume"
            );
            self.shared.count("foreign_entries", foreign.len() as u64);
        }
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        foreign.iter().for_each(|name| sink.add_name(ino, name));
        match self.files.deferred(found.inode) {
            Some(Names::All) => sink.add_name(ino, b""),
            Some(Names::Some(names)) => names.iter().for_each(|name| sink.add_name(ino, name)),
            None => {}
        }
        Ok(())
    }

    /// Brings some entries.
    pub(super) fn bring_batch(
        &self,
        found: &find::Inode,
        fd: &OwnedFd,
        children: Vec<(Vec<u8>, u64)>,
        asked: bool,
        foreign: &mut Vec<Vec<u8>>,
    ) -> Result<()> {
        let mut batch = Vec::with_capacity(children.len());
        for (name, inode) in children {
            let Some(record) = self.index.inode(inode)? else {
                // Better all but one than none: the name is left out, and said.
                let name = String::from_utf8_lossy(&name).into_owned();
                tracing::error!(
                    dir = found.inode,
                    name,
                    "the volume has no inode for a name, which is left out of the tree"
                );
                continue;
            };
            let staged = String::new();
            batch.push(Entry { name, inode, record, data: None, staged, link: false, id: None });
        }
        if batch.is_empty() {
            return Ok(());
        }
        // Before names are in the tree: what they stand for is noted with what is held back for more than them.
        self.index.provide(0, For::More)?;
        let linked =
            |entry: &Entry| entry.record.links > 1 && entry.record.mode & libc::S_IFMT != libc::S_IFDIR;
        self.fill(&mut batch, asked)?;
        let _links = batch.iter().any(linked).then(|| self.populating.links());
        let placed = self
            .stage_all(&mut batch, found.inode)
            .and_then(|()| self.place_all(&mut batch, found, fd, foreign));
        for entry in batch.iter().filter(|entry| !entry.staged.is_empty()) {
            // What has its name in the tree is not there any more.
            if self.stage.clear(&entry.staged, entry.record.mode & libc::S_IFMT == libc::S_IFDIR)
                && let Some(id) = entry.id.filter(|_| entry.record.links == 1)
            {
                self.guards.drop_guard(id.ino);
            }
        }
        placed?;
        // Now they have names, by which programs without the shim may open them.
        let files = batch.iter().filter(|entry| entry.record.mode & libc::S_IFMT == libc::S_IFREG);
        let (filled, files): (Vec<&Entry>, Vec<&Entry>) = files.partition(|entry| entry.data.is_some());
        self.came_filled(&filled);
        files
            .into_iter()
            .filter(|entry| entry.record.size > 0 && !entry.link)
            .filter(|entry| !entry.id.is_some_and(|id| self.marks.has(id.ino) || self.guards.has(id.ino)))
            .for_each(|entry| self.guards.want(entry.inode));
        Ok(())
    }

    /// Files have come whole.
    fn came_filled(&self, filled: &[&Entry]) {
        self.shared.count("hydrated_bytes", filled.iter().map(|entry| entry.record.size).sum());
        self.shared.count("filled_files", filled.len() as u64);
        if let Some(uses) = self.uses.get() {
            filled.iter().for_each(|entry| uses.used(entry.inode, 0, pieces_of(entry.record.size).end()));
        }
    }

    pub(super) fn open_dir(&self, found: &find::Inode) -> std::io::Result<OwnedFd> {
        found.open(self, libc::O_RDONLY | libc::O_DIRECTORY).map(OwnedFd::from)
    }

    /// Fetches the data of those small files that are to come together with their names.
    fn fill(&self, batch: &mut [Entry], asked: bool) -> Result<()> {
        if self.momentum.window().is_none() {
            return Ok(());
        }
        let mut small = Vec::new();
        for entry in batch.iter().filter(|entry| filled::is_small(&entry.record)) {
            // What was here before is made as it was then.
            if self.index.seen(entry.inode)?.is_none() {
                small.push((entry.inode, entry.record.size));
            }
        }
        self.momentum.choose(&mut small, asked);
        if small.is_empty() || !self.has_room_ahead(small.iter().map(|(_, size)| size).sum()) {
            return Ok(());
        }
        let mut data = self.data_of(&small, asked);
        batch.iter_mut().for_each(|entry| entry.data = data.remove(&entry.inode));
        Ok(())
    }

    /// Makes an entry on the stage under `name`, with its data if it has any and this disk takes that; what stat(2) says of it.
    fn make(&self, entry: &mut Entry, name: &str) -> std::io::Result<Stat> {
        if let Some(parts) = entry.data.take() {
            match self.stage.make_filled(&self.tree, name, &entry.record, &parts) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {}
                made => {
                    // Kept, as what says that there is nothing absent.
                    entry.data = Some(Parts::new());
                    return made;
                }
            }
        }
        self.stage.make(&self.tree, name, &entry.record)
    }

    /// Makes entries on the stage, and lets index and clients know of them.
    fn stage_all(&self, batch: &mut [Entry], dir: u64) -> Result<()> {
        let mut staged: HashMap<u64, String> = HashMap::new();
        let mut changes = Changes::new();
        let (mut absent, mut placeholders) = (Vec::new(), Vec::new());
        for entry in batch.iter_mut() {
            let failed = |e: std::io::Error| self.cannot_populate(dir, &e);
            let name = self.stage.name();
            let kind = entry.record.mode & libc::S_IFMT;
            let old = self.index.seen(entry.inode)?;
            let mut made = None;
            let elsewhere = match &old {
                Some(_) if kind == libc::S_IFDIR => None,
                Some(_) if entry.record.links > 1 => self.find_inode(entry.inode)?,
                // A cut has seen that its other names are gone.
                Some(_) => self.at_its_place(entry.inode)?,
                None => None,
            };
            if let Some(first) = elsewhere {
                // Should it lose its other names before it has all of them, a cut finds it there.
                self.stage.keep(first.handle.as_fd(), entry.inode).map_err(failed)?;
                self.stage.link_handle(first.handle.as_fd(), &name).map_err(failed)?;
                (entry.link, entry.id) = (true, Some(first.stat.id));
            } else if let Some(first) = staged.get(&entry.inode) {
                self.stage.link(first, &name).map_err(failed)?;
                entry.link = true;
            } else {
                made = Some(self.make(entry, &name).map_err(failed)?);
                if entry.record.links > 1 && kind != libc::S_IFDIR {
                    // What stands there otherwise is of an agent that died before the index knew it.
                    self.stage.release(entry.inode);
                    self.stage.keep_staged(&name, entry.inode).map_err(failed)?;
                }
            }
            entry.staged.clone_from(&name);
            index::set_link(&mut changes, entry.inode, dir, &entry.name);
            if entry.link {
                // It may have lost its mark with a restart of the machine, while it had no name.
                if let (Some(id), Some(_)) = (entry.id, self.index.absent(entry.inode)?) {
                    self.mark_staged(&name, id.ino, Some(entry.record.size));
                }
                continue;
            }
            // Which of them are not made is skipped above.
            let Some(stat) = made else { continue };
            entry.id = Some(stat.id);
            if kind == libc::S_IFREG {
                self.meter.unnamed_files.fetch_sub(1, Ordering::Relaxed);
            }
            if let Some(old) = old {
                // Staged by an agent that died, or it had a name that is gone: that inode lacks nothing any more.
                self.forget(entry.inode, old.id.ino)?;
                self.guards.drop_guard(old.id.ino);
            }
            index::set_seen(&mut changes, entry.inode, &Seen::of(&stat, Doubt::None.moved()))?;
            // The bytes of what is filled are there already, checked, before anything says so.
            let absent_size =
                if kind == libc::S_IFREG && entry.data.is_none() { entry.record.size } else { 0 };
            let pieces = pieces_of(absent_size);
            index::set_absent(&mut changes, entry.inode, &pieces)?;
            index::set_unpopulated(&mut changes, entry.inode, kind == libc::S_IFDIR);
            if kind == libc::S_IFDIR || !pieces.is_empty() {
                let what = if kind == libc::S_IFREG { Lacking::Bytes } else { Lacking::Names };
                absent.push((entry.inode, stat.id.ino, what));
                let size = (kind == libc::S_IFREG).then_some(entry.record.size);
                if !self.mark_staged(&name, stat.id.ino, size) && kind == libc::S_IFREG {
                    placeholders.push((entry.inode, stat.id.ino, name.clone()));
                }
            }
            if entry.record.links > 1 && kind != libc::S_IFDIR {
                staged.insert(entry.inode, name);
            }
        }
        // Before any of them can be met, and before the index says so: who counts what is absent there meets them, too.
        absent.iter().for_each(|(inode, ino, what)| self.table.absent(*inode, *ino, *what));
        let applied = self.index.apply_local(&changes);
        if applied.is_err() {
            absent.iter().for_each(|(inode, ino, what)| self.table.whole(*inode, *ino, *what));
        }
        applied?;
        for (inode, ino, name) in placeholders {
            self.guard_placeholder(inode, ino, &name);
        }
        Ok(())
    }

    /// Gives staged entries their names, and notes what stat(2) says of them then.
    fn place_all(
        &self,
        batch: &mut [Entry],
        found: &find::Inode,
        fd: &OwnedFd,
        foreign: &mut Vec<Vec<u8>>,
    ) -> Result<()> {
        let failed = |e: std::io::Error| self.cannot_populate(found.inode, &e);
        let mut changes = Changes::new();
        {
            let own = Own::begin(self, found.inode, found.stat.id.ino, fd.as_fd()).map_err(failed)?;
            let mut place = || -> std::io::Result<()> {
                for entry in batch.iter() {
                    match self.stage.place(&entry.staged, fd.as_fd(), &entry.name) {
                        Ok(()) => self.stage.finish(fd.as_fd(), &entry.name, &entry.record)?,
                        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                            foreign.push(entry.name.clone());
                        }
                        Err(e) => return Err(e),
                    }
                }
                Ok(())
            };
            let placed = match place() {
                // Shut by its owner, whom the agent runs as.
                Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                    self.tree.with_permission(fd.as_fd(), 0o700, place)
                }
                other => other,
            };
            let _locked = own.end(&mut changes)?;
            self.index.apply_local(&changes)?;
            placed.map_err(failed)?;
        }
        for entry in batch.iter() {
            self.release_named(entry)?;
        }
        let mut changes = Changes::new();
        for entry in batch.iter() {
            // Their move has changed the last of their times.
            let Some(stat) = self.tree.stat_at(fd.as_fd(), &entry.name).map_err(failed)? else { continue };
            if entry.id == Some(stat.id) {
                let _locked = self.files.lock(entry.inode);
                if let Some(seen) = self.index.seen(entry.inode)?.filter(|seen| seen.id == stat.id)
                    && (seen.size, seen.mtime) == (stat.size, stat.mtime)
                {
                    changes.insert(
                        index::seen_key(entry.inode),
                        Some(index::encode(&Seen::of(&stat, seen.doubt.moved()))?),
                    );
                }
            }
        }
        self.index.apply_local(&changes)
    }

    /// What has all its names in the tree is kept for none.
    fn release_named(&self, entry: &Entry) -> Result<()> {
        let several = entry.record.links > 1 && entry.record.mode & libc::S_IFMT != libc::S_IFDIR;
        if several
            && let Some(record) = self.index.inode(entry.inode)?
            && self.index.links(entry.inode)?.len() as u64 >= u64::from(record.links)
        {
            self.stage.release(entry.inode);
        }
        Ok(())
    }

    pub(super) fn cannot_populate(&self, dir: u64, error: &std::io::Error) -> VolumeError {
        VolumeError::Failed(format!(
            "the directory with inode {dir} of the volume cannot be populated below {}: {error}; make room or mend the disk",
            self.tree.path().display()
        ))
    }
}

/// Moves entries with these names to the front; how many there are.
fn bring_forward(entries: &mut [(Vec<u8>, u64)], names: &HashSet<Vec<u8>>) -> usize {
    let mut front = 0;
    for at in 0..entries.len() {
        if front == names.len() {
            break;
        }
        if entries.get(at).is_some_and(|(name, _)| names.contains(name)) {
            entries.swap(front, at);
            front += 1;
        }
    }
    front
}
