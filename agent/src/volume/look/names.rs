//! Names in a look: which entry stands for which inode, which names an inode has, and by which path it is reached: the
//! overlay and the index together. It must not know what an inode holds.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

use super::{Look, Result, Todo, VolumeError, join};
use crate::meta::records::{Inode, ROOT_INODE};
use crate::volume::capture::Edit;
use crate::volume::dirty::Names;
use crate::volume::tree::Tree;

impl Look<'_> {
    /// As [`Look::differs`], where that is certain: data of which nothing tells whether it is as it was counts for nothing.
    pub fn differs_surely(&self, inode: u64) -> std::result::Result<bool, VolumeError> {
        let Some(looked) = self.inodes.get(&inode) else { return Ok(false) };
        if looked.edits.len() > looked.unproven {
            return Ok(true);
        }
        Ok(self.cx.index.seen(inode)?.is_none_or(|seen| seen.id != looked.seen.id)
            || !self.is_as_recorded(inode, &looked.inode)?)
    }

    /// Whether an inode was found otherwise than the index has it.
    pub fn differs(&self, inode: u64) -> std::result::Result<bool, VolumeError> {
        let Some(looked) = self.inodes.get(&inode) else { return Ok(false) };
        if !looked.edits.is_empty() || self.cx.index.seen(inode)?.is_none_or(|seen| seen.id != looked.seen.id)
        {
            return Ok(true);
        }
        // Not by its times: the agent moves the last one of them itself, and whoever changed nothing else did no harm.
        Ok(!self.is_as_recorded(inode, &looked.inode)?)
    }

    /// What a look has found of an inode that its record does not say, for people who look for the cause.
    pub fn difference(&self, inode: u64) -> std::result::Result<String, VolumeError> {
        let (Some(looked), Some(record)) = (self.inodes.get(&inode), self.cx.index.inode(inode)?) else {
            return Ok("all of it".into());
        };
        let found = &looked.inode;
        let mut what = Vec::new();
        if let Some(start) = looked.edits.iter().map(Edit::start).min() {
            what.push(format!("data from byte {start} on, in {} parts", looked.edits.len()));
        }
        if found.size != record.size {
            what.push(format!("its size ({} was {})", found.size, record.size));
        }
        if found.mtime != record.mtime {
            what.push(format!("its time of modification ({:?} was {:?})", found.mtime, record.mtime));
        }
        if (found.mode, found.uid, found.gid) != (record.mode, record.uid, record.gid) {
            what.push("its mode or owner".into());
        }
        if found.xattrs != record.xattrs {
            what.push("its attributes".into());
        }
        Ok(if what.is_empty() { "nothing that is recorded".into() } else { what.join(", ") })
    }

    /// Whether an inode's record says what a look has found, but for the number of its names.
    pub(super) fn is_as_recorded(&self, inode: u64, found: &Inode) -> std::result::Result<bool, VolumeError> {
        let record = self.cx.index.inode(inode)?;
        Ok(record.is_some_and(|record| Inode { links: found.links, ..record } == *found))
    }

    /// The inodes that an entry of a directory stands for, before this look and after it.
    pub fn behind(
        &self,
        dir: u64,
        name: &[u8],
    ) -> std::result::Result<impl Iterator<Item = u64> + use<>, VolumeError> {
        let before = self.cx.index.child(dir, name)?;
        let after = self.dentries.get(&(dir, name.to_vec())).copied().flatten();
        Ok(before.into_iter().chain(after))
    }

    /// As [`Look::behind`], for all entries of a directory.
    pub fn all_behind(&self, dir: u64) -> std::result::Result<HashSet<u64>, VolumeError> {
        let mut inodes: HashSet<u64> =
            self.cx.index.children(dir)?.into_iter().map(|(_, child)| child).collect();
        let of_dir = self.dentries.range((dir, Vec::new())..).take_while(|((d, _), _)| *d == dir);
        inodes.extend(of_dir.filter_map(|(_, child)| *child));
        Ok(inodes)
    }

    /// Whether an intent meant this entry by naming a symbolic link to it.
    pub fn was_meant(&self, dir: u64, name: &[u8]) -> bool {
        self.through.contains(&(dir, name.into()))
    }

    /// Whether an intent meant some entry of this directory by naming a symbolic link to it.
    pub fn was_meant_in(&self, dir: u64) -> bool {
        self.through.iter().any(|(parent, _)| *parent == dir)
    }

    /// The entries of a directory after this look, where `known` are those that the index has.
    pub fn children(&self, dir: u64, mut known: HashMap<Vec<u8>, u64>) -> HashMap<Vec<u8>, u64> {
        for ((_, name), child) in self.dentries.range((dir, Vec::new())..).take_while(|((d, _), _)| *d == dir)
        {
            match child {
                Some(child) => known.insert(name.clone(), *child),
                None => known.remove(name),
            };
        }
        known
    }

    /// What follows from names that have come or gone, for all inodes but those of `before`: each once, since a file may
    /// have tens of thousands of names.
    pub(super) fn follow_names(&mut self, todo: &mut Todo, before: &mut HashSet<u64>) -> Result<()> {
        for (inode, count) in std::mem::take(&mut todo.moved) {
            // It has another name from before: does that still stand? (A rename that was not told, a hard link.) They all do
            // where they are as many as the kernel says.
            if before.insert(inode) && self.links_of(inode)?.len() as u64 != u64::from(count) {
                self.recheck_links(inode, todo)?;
            }
        }
        for inode in std::mem::take(&mut todo.lost) {
            // Its times have changed with its link count.
            if !todo.inodes.contains_key(&inode) && !self.links_of(inode)?.is_empty() {
                todo.inodes.entry(inode).or_default();
            }
        }
        Ok(())
    }

    /// Has the names of an inode looked at: do they still stand?
    pub(super) fn recheck_links(&mut self, inode: u64, todo: &mut Todo) -> Result<()> {
        let mut by_dir: HashMap<u64, HashSet<Box<[u8]>>> = HashMap::new();
        for (dir, name) in self.links_of(inode)? {
            by_dir.entry(dir).or_default().insert(name.into());
        }
        todo.dirs.extend(by_dir.into_iter().map(|(dir, names)| (dir, Names::Some(names))));
        Ok(())
    }

    /// Takes what was told in directories that no name leads to any more as they were deleted: empty. What was in them may
    /// have other names, or be elsewhere.
    pub(super) fn forsake(&mut self, dirs: Vec<(u64, Names)>, todo: &mut Todo) -> Result<()> {
        let mut gone = HashSet::new();
        for (dir, _) in &dirs {
            if self.path_of(*dir)?.is_none() {
                gone.insert(*dir);
            }
        }
        for (dir, names) in dirs {
            let told: Vec<Vec<u8>> = match &names {
                _ if !gone.contains(&dir) => Vec::new(),
                Names::Some(names) => names.iter().map(|name| name.to_vec()).collect(),
                Names::All => {
                    let known = self.cx.index.children(dir)?.into_iter().collect();
                    self.children(dir, known).into_keys().collect()
                }
            };
            for name in told {
                if let Some(child) = self.child(dir, &name)? {
                    self.set_dentry(dir, &name, None)?;
                    todo.lost.insert(child);
                }
            }
            self.unreached.push((dir, names));
        }
        Ok(())
    }

    /// What was told in directories that were nowhere to be found and to which a name leads now: it was only a move,
    /// whose other half this round told, or they have another way. Each of `tried` has been tried.
    pub(super) fn come_back(&mut self, tried: &mut HashSet<u64>) -> Result<Vec<(u64, Names)>> {
        let mut back = Vec::new();
        for (dir, names) in std::mem::take(&mut self.unreached) {
            if !tried.contains(&dir) && self.path_of(dir)?.is_some() {
                back.push((dir, names));
            } else {
                self.unreached.push((dir, names));
            }
        }
        tried.extend(back.iter().map(|(dir, _)| *dir));
        Ok(back)
    }

    pub(super) fn child(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        match self.dentries.get(&(dir, name.to_vec())) {
            Some(child) => Ok(*child),
            None => Ok(self.cx.index.child(dir, name)?),
        }
    }

    pub(super) fn set_dentry(&mut self, dir: u64, name: &[u8], child: Option<u64>) -> Result<()> {
        let old = self.child(dir, name)?;
        if old == child {
            return Ok(());
        }
        if let Some(old) = old {
            if let Some(links) = self.added_links.get_mut(&old) {
                links.remove(&(dir, name.to_vec()));
            }
            if self.dir_paths.contains_key(&old) {
                self.dir_paths.clear();
            }
        }
        self.gone.clear();
        if let Some(child) = child {
            self.added_links.entry(child).or_default().insert((dir, name.to_vec()));
        }
        self.dentries.insert((dir, name.to_vec()), child);
        Ok(())
    }

    /// The names of an inode, by the overlay and the index together.
    pub fn links_of(&self, inode: u64) -> std::result::Result<BTreeSet<(u64, Vec<u8>)>, VolumeError> {
        let mut links = self.added_links.get(&inode).cloned().unwrap_or_default();
        if inode >= self.first_new {
            return Ok(links);
        }
        for (dir, name) in self.cx.index.links(inode)? {
            let link = (dir, name);
            if self.dentries.get(&link).is_none_or(|child| *child == Some(inode)) {
                links.insert(link);
            }
        }
        Ok(links)
    }

    /// A path of the inode from the root; `None` where no name of it is left. What the way up has shown is remembered: of
    /// a tree that was deleted, every directory is asked for, many times over.
    pub(super) fn path_of(&mut self, inode: u64) -> Result<Option<Vec<u8>>> {
        let mut way: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut at = inode;
        let mut path = loop {
            if at == ROOT_INODE {
                break Vec::new();
            }
            if at != inode
                && let Some(path) = self.dir_paths.get(&at)
            {
                break path.clone();
            }
            // A cycle can only come from renames that were not told, looked at half way.
            let link = if self.gone.contains(&at) || way.len() > 8192 {
                None
            } else {
                self.links_of(at)?.pop_first()
            };
            let Some((dir, name)) = link else {
                self.gone.insert(at);
                self.gone.extend(way.iter().map(|(below, _)| *below));
                return Ok(None);
            };
            way.push((at, name));
            at = dir;
        };
        while let Some((at, name)) = way.pop() {
            path = join(&path, &name);
            if at != inode {
                self.dir_paths.insert(at, path.clone());
            }
        }
        Ok(Some(path))
    }

    pub(super) fn open_dir(&mut self, dir: u64) -> Result<Option<OwnedFd>> {
        let Some(path) = self.path_of(dir)? else { return Ok(None) };
        let Some(fd) = self.cx.tree.open_dir(&path)? else { return Ok(None) };
        let id = self.cx.tree.stat(fd.as_fd())?.id;
        Ok(self.id_of(dir)?.is_none_or(|known| known == id).then_some(fd))
    }
}

impl<'a> Look<'a> {
    /// Where an inode is to be found: below the root by its path, or among those whose remaining names are not here yet.
    pub(super) fn place_of(&mut self, inode: u64) -> Result<Option<(&'a Tree, Vec<u8>)>> {
        match self.path_of(inode)? {
            Some(path) => Ok(Some((self.cx.tree, path))),
            None => self.kept(inode),
        }
    }

    /// Whether it stands among those whose remaining names are not here yet, or just come.
    pub(super) fn kept(&self, inode: u64) -> Result<Option<(&'a Tree, Vec<u8>)>> {
        if self.cx.index.names_complete()? {
            return Ok(None);
        }
        let name = inode.to_string().into_bytes();
        let is_kept = |kept: &&Tree| kept.stat_at(kept.root(), &name).is_ok_and(|stat| stat.is_some());
        Ok(self.cx.tree.kept().filter(is_kept).map(|kept| (kept, name)))
    }
}
