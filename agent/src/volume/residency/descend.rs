//! Follows names from a directory downwards and has only them in the tree, however many others lie beside them. It must not know
//! who asks.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::Residency;
use super::find::{self, Found};
use super::populate::BATCH;
use crate::volume::VolumeError;
use crate::volume::index::{Until, joined};

/// Blocks of a file at the end of the way whose extents are read ahead.
const BLOCKS: usize = 64;

/// The names that a path relative to the root leads through.
pub fn names_of(path: &Path) -> impl Iterator<Item = &[u8]> + Clone {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.as_bytes()),
        _ => None,
    })
}

type Result<T> = std::result::Result<T, VolumeError>;

impl Residency {
    /// Has what `names` lead to from the directory behind a kernel inode number in the tree: each is the name of an entry in
    /// the one before it. Ends where there is no such entry, or it is no directory of the volume.
    ///
    /// # Errors
    /// Where the backend or this disk does not let it, for as long as patience goes.
    pub fn descend<'n>(&self, ino: u64, names: impl Iterator<Item = &'n [u8]> + Clone + Send) -> Result<()> {
        let (mut ino, mut names, until) = (ino, names, self.until());
        while let Some(name) = names.next() {
            let found = match self.find(ino)? {
                Found::Here(found) if found.stat.is_dir() => found,
                _ => break,
            };
            if self.index.is_unpopulated(found.inode)? {
                self.find_entry(&found, name, &names, until)?;
            } else {
                self.show_populated(found.inode, ino)?;
            }
            self.note_populated(ino);
            let Ok(Some(below)) = self.tree.stat_at(found.handle.as_fd(), name) else { break };
            ino = below.id.ino;
        }
        Ok(())
    }

    /// The same from the root on.
    ///
    /// # Errors
    /// As there.
    pub fn descend_from_root<'n>(&self, names: impl Iterator<Item = &'n [u8]> + Clone + Send) -> Result<()> {
        match self.tree.stat(self.tree.root()) {
            Ok(root) => self.descend(root.id.ino, names),
            // Whoever needs it finds nothing below it.
            Err(_) => Ok(()),
        }
    }

    /// Has the entry `name` of a directory that is not populated in the tree; `after` are the names that are wanted below it.
    fn find_entry<'n>(
        &self,
        found: &find::Inode,
        name: &[u8],
        after: &(impl Iterator<Item = &'n [u8]> + Clone + Send),
        until: Until,
    ) -> Result<()> {
        let dir = found.inode;
        let (few, child) = self.index.few_or_child(dir, BATCH, name, until)?;
        if self.index.is_loaded() {
            return self.bring_entry(found, name, few, child, until);
        }
        let after = after.clone();
        std::thread::scope(|scope| {
            if let Some(child) = child {
                // What this one needs is asked for meanwhile.
                scope.spawn(move || self.look_ahead_of(child, after, until));
            }
            self.bring_entry(found, name, few, child, until)
        })
    }

    fn bring_entry(
        &self,
        found: &find::Inode,
        name: &[u8],
        few: bool,
        child: Option<u64>,
        until: Until,
    ) -> Result<()> {
        let dir = found.inode;
        let Some(turn) = self.populating.turn_unless_found(dir, name) else { return Ok(()) };
        if !self.index.is_unpopulated(dir)? {
            return Ok(());
        }
        if few {
            return self.populate_in_turn(found, until, true, &turn);
        }
        let Some(inode) = child else { return Ok(()) };
        let fd = self.open_dir(found).map_err(|e| self.cannot_populate(dir, &e))?;
        let there = self.tree.stat_at(fd.as_fd(), name).map_err(|e| self.cannot_populate(dir, &e))?;
        if there.is_some() {
            return Ok(());
        }
        self.index.load_inodes(&[inode], until)?;
        self.shared.count("single_entries", 1);
        // Whatever was faster is met again when all others come.
        self.bring_batch(found, &fd, vec![(name.to_vec(), inode)], true, &mut Vec::new())
    }

    /// Has the metadata of what `names` lead to from `inode` in the index. What fails is met by who needs it.
    fn look_ahead_of<'n>(&self, inode: u64, names: impl Iterator<Item = &'n [u8]>, until: Until) {
        let (mut at, mut below) = (inode, Vec::new());
        for name in names {
            match self.index.few_or_child(at, BATCH, name, until) {
                Ok((_, Some(child))) => at = child,
                _ => break,
            }
            below.push(at);
        }
        let ahead = std::thread::scope(|scope| {
            let inodes = scope.spawn(|| self.index.load_inodes(&below, until));
            let blocks = self.index.load_few_blocks(at, BLOCKS, until);
            joined(inodes).and(blocks)
        });
        if let Err(error) = ahead {
            tracing::debug!(%error, inode, "not all that is needed next is read ahead");
        }
    }
}
