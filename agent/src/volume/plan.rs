//! Turns a look into a commit: the records that change, the chunks' reference counts, the packs' live bytes. Pure
//! bookkeeping over the index and the overlay; it must not touch the tree or the backend.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;

use super::VolumeError;
use super::capture::{Edit, Piece};
use super::index::{self, Changes, Index};
use super::look::{Look, Looked};
use crate::meta::records::{
    self, BLOCK_SIZE, Block, Chunk, ChunkHash, Extent, Inode, Pack, PackId, ROOT_INODE, Totals, key,
};

type Result<T> = std::result::Result<T, VolumeError>;

/// The chunks that a cut brought.
pub trait NewChunks {
    /// Stores a piece that is still in memory.
    fn store(&mut self, bytes: &[u8]) -> Result<ChunkHash>;
    /// All bytes are there: decides what goes inline and what into packs.
    fn finish(&mut self) -> Result<()>;
    /// The record of a new chunk, with no references; `None` where it is not new.
    fn record(&self, hash: &ChunkHash) -> Option<Chunk>;
    /// The packs that were begun in this cut, with their sizes.
    fn packs(&self) -> Vec<(PackId, u64)>;
}

/// What a commit is made of.
#[derive(Debug, Default)]
pub struct Plan {
    /// Everything that changes in the index; the backend's records among it are the batch.
    pub changes: Changes,
    /// Packs without live bytes after this commit: to be deleted once it is durable.
    pub dead_packs: Vec<PackId>,
    /// Regular files more (or fewer) than before.
    pub files: i64,
    /// Bytes of regular files more (or fewer) than before.
    pub bytes: i64,
    /// Inodes of all kinds more (or fewer) than before.
    pub inodes: i64,
    /// The next free inode number.
    pub next_inode: u64,
    /// Inodes that the volume has no more: volume inode, and the kernel inode number that stood for it.
    pub dead: Vec<(u64, u64)>,
    /// Directories from which one has vanished that was not populated yet: it is to be made again. Volume inode, and kernel
    /// inode number.
    pub vanished: Vec<(u64, u64)>,
}

impl Plan {
    /// Whether nothing of the volume changes.
    pub fn is_empty(&self) -> bool {
        !self.changes.keys().any(|k| key::is_record(k))
    }

    /// The inodes whose records or data change.
    pub fn inodes(&self) -> HashSet<u64> {
        self.changes
            .keys()
            .filter_map(|key| match key::parse(key) {
                Ok(key::Key::Inode(inode) | key::Key::Block(inode, _)) => Some(inode),
                _ => None,
            })
            .collect()
    }

    /// Adds what the volume holds after this commit, if it held `before`; returns it.
    pub fn count(&mut self, before: Totals) -> Result<Totals> {
        let totals = Totals {
            next_inode: before.next_inode.max(self.next_inode),
            inodes: before.inodes.saturating_add_signed(self.inodes),
            files: before.files.saturating_add_signed(self.files),
            bytes: before.bytes.saturating_add_signed(self.bytes),
        };
        self.changes.insert(key::totals(), Some(encode(&totals)?));
        Ok(totals)
    }

    /// The operations of the metadata batch.
    pub fn operations(&self) -> Vec<(Vec<u8>, Option<Bytes>)> {
        self.changes
            .iter()
            .filter(|(k, _)| key::is_record(k))
            .map(|(key, value)| (key.clone(), value.clone().map(Bytes::from)))
            .collect()
    }
}

/// Plans the commit of a finished look.
pub fn plan(index: &Index, mut look: Look<'_>, chunks: &mut dyn NewChunks) -> Result<Plan> {
    let mut planner = Planner {
        index,
        plan: Plan::default(),
        refs: HashMap::new(),
        chunks,
        dead: HashSet::new(),
        names: HashMap::new(),
        complete: index.names_complete()?,
        lost: HashMap::new(),
        vanished: BTreeSet::new(),
    };
    let touched = planner.bury(&mut look)?;
    planner.names(&look)?;
    let mut looked = std::mem::take(&mut look.inodes);
    for inode in &touched {
        if !planner.dead.contains(inode) && !looked.contains_key(inode) {
            planner.links(*inode, &look)?;
        }
    }
    let edited: Vec<u64> =
        looked.iter().filter(|(_, seen)| !seen.edits.is_empty()).map(|(inode, _)| *inode).collect();
    index.load_blocks(&edited, None)?;
    let mut inodes: Vec<(u64, Looked)> = looked.drain().collect();
    inodes.sort_by_key(|(inode, _)| *inode);
    for (inode, seen) in inodes {
        if !planner.dead.contains(&inode) {
            planner.inode(inode, seen, &look)?;
        }
    }
    let dead: Vec<u64> = planner.dead.iter().copied().collect();
    index.load_files(&dead, None)?;
    planner.make_again()?;
    for inode in dead {
        planner.delete(inode)?;
    }
    planner.references()?;
    let mut plan = planner.plan;
    // What ends as it was is no change.
    let mut same = Vec::new();
    for (key, value) in &plan.changes {
        if index.raw(key)? == *value {
            same.push(key.clone());
        }
    }
    same.iter().for_each(|key| drop(plan.changes.remove(key)));
    plan.next_inode = look.next_inode();
    if look.next_inode() != index.next_inode()? {
        index::set_next_inode(&mut plan.changes, look.next_inode())?;
    }
    Ok(plan)
}

fn encode<T: serde::Serialize>(record: &T) -> Result<Vec<u8>> {
    Ok(records::encode(record)?.to_vec())
}

struct Planner<'a> {
    index: &'a Index,
    plan: Plan,
    /// Change of each chunk's reference count.
    refs: HashMap<ChunkHash, i64>,
    chunks: &'a mut dyn NewChunks,
    dead: HashSet<u64>,
    /// Names that each inode has got or lost.
    names: HashMap<u64, i64>,
    /// Every name of the volume is in the tree: the names that a look knows are all.
    complete: bool,
    /// Names that directories had before this look which are not populated yet, and that stand for something else after it.
    lost: HashMap<u64, Vec<(u64, Vec<u8>)>>,
    /// Directories from which one has vanished that was not populated.
    vanished: BTreeSet<u64>,
}

impl Planner<'_> {
    /// Finds the inodes that have no name left, and everything below such directories. Returns all inodes whose names
    /// changed.
    fn bury(&mut self, look: &mut Look<'_>) -> Result<BTreeSet<u64>> {
        let mut touched = BTreeSet::new();
        for ((dir, name), child) in &look.dentries {
            let old = self.index.child(*dir, name)?;
            if old != *child {
                old.into_iter().for_each(|old| *self.names.entry(old).or_default() -= 1);
                child.iter().for_each(|child| *self.names.entry(*child).or_default() += 1);
            }
            if let Some(old) = old.filter(|old| Some(*old) != *child)
                && !self.complete
                && self.index.is_unpopulated(old)?
            {
                self.lost.entry(old).or_default().push((*dir, name.clone()));
            }
            touched.extend(old.into_iter().chain(*child));
        }
        // Also inodes that were met under a name which is not theirs any more.
        let mut asked: BTreeSet<u64> = touched.iter().chain(look.inodes.keys()).copied().collect();
        while !asked.is_empty() {
            let level: Vec<u64> = std::mem::take(&mut asked).into_iter().collect();
            self.index.load_inodes(&level, None)?;
            let mut dirs = Vec::new();
            for inode in level {
                if inode == ROOT_INODE
                    || self.dead.contains(&inode)
                    || self.count_names(inode, look)? > 0
                    || self.keep_unpopulated(inode, look)
                {
                    continue;
                }
                self.dead.insert(inode);
                let is_dir = |record: Inode| record.mode & libc::S_IFMT == libc::S_IFDIR;
                if self.index.inode(inode)?.is_none_or(is_dir) {
                    dirs.push(inode);
                }
            }
            self.index.load_entries(&dirs, None)?;
            for dir in dirs {
                let known = self.index.children(dir)?.into_iter().collect();
                for (name, child) in look.children(dir, known) {
                    look.dentries.insert((dir, name), None);
                    *self.names.entry(child).or_default() -= 1;
                    touched.insert(child);
                    asked.insert(child);
                }
            }
        }
        Ok(touched)
    }

    /// A directory that was not populated has all its entries in the volume only. Whoever removes it through the shim has it
    /// populated first, so this was a program that took it for empty: it keeps its name.
    fn keep_unpopulated(&mut self, inode: u64, look: &mut Look<'_>) -> bool {
        let mut kept = false;
        for link in self.lost.get(&inode).into_iter().flatten() {
            if !self.dead.contains(&link.0) && look.dentries.get(link).is_some_and(Option::is_none) {
                look.dentries.remove(link);
                *self.names.entry(inode).or_default() += 1;
                self.vanished.insert(link.0);
                kept = true;
            }
        }
        kept
    }

    /// Has the directories populated anew from which one has vanished that was not.
    fn make_again(&mut self) -> Result<()> {
        for dir in std::mem::take(&mut self.vanished) {
            if let Some(seen) = self.index.seen(dir)?.filter(|_| !self.dead.contains(&dir)) {
                self.plan.vanished.push((dir, seen.id.ino));
                index::set_unpopulated(&mut self.plan.changes, dir, true);
            }
        }
        Ok(())
    }

    /// Names that an inode has after this commit. Those in directories that are not populated yet are names like all others,
    /// though no look finds them; and a name that is brought into the tree just now is none more.
    fn count_names(&self, inode: u64, look: &Look<'_>) -> Result<u64> {
        let found = look.links_of(inode)?.iter().filter(|(dir, _)| !self.dead.contains(dir)).count() as u64;
        if self.complete {
            return Ok(found);
        }
        let before = self.index.inode(inode)?.map_or(0, |record| u64::from(record.links));
        let change = self.names.get(&inode).copied().unwrap_or(0);
        Ok(before.saturating_add_signed(change).max(found))
    }

    fn names(&mut self, look: &Look<'_>) -> Result<()> {
        for ((dir, name), child) in &look.dentries {
            let child = child.filter(|c| !self.dead.contains(c) && !self.dead.contains(dir));
            // Without its inode a name is damage: one that vanished or could not be read since its name was seen is left
            // out, and looked at again by the next cut.
            let child = match child {
                Some(c) if !look.inodes.contains_key(&c) && self.index.inode(c)?.is_none() => None,
                child => child,
            };
            let old = self.index.child(*dir, name)?;
            if let Some(old) = old.filter(|old| Some(*old) != child) {
                self.set(index::link_key(old, *dir, name), None);
            }
            match child {
                Some(child) => {
                    self.set(key::dentry(*dir, name), Some(records::encode_child(child).to_vec()));
                    self.set(index::link_key(child, *dir, name), Some(Vec::new()));
                }
                None => self.set(key::dentry(*dir, name), None),
            }
        }
        Ok(())
    }

    /// An inode of which only the number of names changed.
    fn links(&mut self, inode: u64, look: &Look<'_>) -> Result<()> {
        if let Some(mut record) = self.index.inode(inode)? {
            record.links = self.count_links(inode, look)?;
            self.set(key::inode(inode), Some(encode(&record)?));
        }
        Ok(())
    }

    fn count_links(&self, inode: u64, look: &Look<'_>) -> Result<u32> {
        Ok(self.count_names(inode, look)?.clamp(1, u64::from(u32::MAX)) as u32)
    }

    fn inode(&mut self, inode: u64, looked: Looked, look: &Look<'_>) -> Result<()> {
        let mut record = looked.inode;
        record.links = self.count_links(inode, look)?;
        let old = self.index.inode(inode)?;
        self.plan.inodes += i64::from(old.is_none());
        if record.mode & libc::S_IFMT == libc::S_IFREG {
            self.plan.files += i64::from(old.is_none());
            self.plan.bytes += record.size as i64 - old.as_ref().map_or(0, |o| o.size as i64);
            self.extents(inode, record.size, old.as_ref().map_or(0, |o| o.size), looked.edits)?;
        }
        for (block, prints) in looked.fingerprints {
            let value =
                prints.filter(|_| block * BLOCK_SIZE < record.size).map(|p| index::encode(&p)).transpose()?;
            self.set(index::fingerprints_key(inode, block), value);
        }
        self.set(key::inode(inode), Some(encode(&record)?));
        self.set(index::seen_key(inode), Some(index::encode(&looked.seen)?));
        let kernel = index::Kernel { id: looked.seen.id, inode };
        self.set(index::kernel_key(looked.seen.id.ino), Some(index::encode(&kernel)?));
        Ok(())
    }

    /// Applies edits to a file's extents.
    fn extents(&mut self, inode: u64, size: u64, old_size: u64, edits: Vec<Edit>) -> Result<()> {
        let mut blocks: BTreeMap<u64, Block> = BTreeMap::new();
        for edit in edits {
            match edit {
                Edit::Hole { start, end } => {
                    let (first, last) = (start / BLOCK_SIZE, end.div_ceil(BLOCK_SIZE));
                    for number in self.index.block_numbers(inode, first, last)? {
                        self.load(&mut blocks, inode, number)?;
                    }
                    for (number, block) in blocks.range_mut(first..last) {
                        let base = number * BLOCK_SIZE;
                        let low = start.saturating_sub(base) as u32;
                        cut_out(&mut block.extents, low, (end - base).min(BLOCK_SIZE) as u32);
                    }
                }
                Edit::Data { start, piece } => {
                    let (chunk, len) = match piece {
                        Piece::Stored { chunk, len } => (chunk, len),
                        Piece::Raw(bytes) => (self.chunks.store(&bytes)?, bytes.len() as u32),
                    };
                    let block = self.load(&mut blocks, inode, start / BLOCK_SIZE)?;
                    let start = (start % BLOCK_SIZE) as u32;
                    cut_out(&mut block.extents, start, start.saturating_add(len));
                    let at = block.extents.partition_point(|e| e.start < start);
                    block.extents.insert(at, Extent { start, len, chunk, chunk_offset: 0 });
                }
            }
        }
        if size < old_size {
            // The block with the new end, and all beyond it.
            for number in self.index.block_numbers(inode, size / BLOCK_SIZE, u64::MAX)? {
                if let std::collections::btree_map::Entry::Vacant(_) = blocks.entry(number) {
                    self.load(&mut blocks, inode, number)?;
                    self.set(index::fingerprints_key(inode, number), None);
                }
            }
        }
        for (number, mut block) in blocks {
            let end = size.saturating_sub(number * BLOCK_SIZE).min(BLOCK_SIZE) as u32;
            cut_out(&mut block.extents, end, u32::MAX);
            let old = self.index.block(inode, number)?.unwrap_or_default();
            old.extents.iter().for_each(|e| *self.refs.entry(e.chunk).or_default() -= 1);
            block.extents.iter().for_each(|e| *self.refs.entry(e.chunk).or_default() += 1);
            let value = (!block.extents.is_empty()).then(|| encode(&block)).transpose()?;
            self.set(key::block(inode, number), value);
        }
        Ok(())
    }

    /// A block as it is so far.
    fn load<'b>(
        &self,
        blocks: &'b mut BTreeMap<u64, Block>,
        inode: u64,
        number: u64,
    ) -> Result<&'b mut Block> {
        Ok(match blocks.entry(number) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(self.index.block(inode, number)?.unwrap_or_default())
            }
        })
    }

    fn delete(&mut self, inode: u64) -> Result<()> {
        let Some(record) = self.index.inode(inode)? else { return Ok(()) };
        self.plan.inodes -= 1;
        if record.mode & libc::S_IFMT == libc::S_IFREG {
            self.plan.files -= 1;
            self.plan.bytes -= record.size as i64;
        }
        for (number, block) in self.index.blocks(inode)? {
            block.extents.iter().for_each(|e| *self.refs.entry(e.chunk).or_default() -= 1);
            self.set(key::block(inode, number), None);
        }
        for key in self.index.fingerprint_keys(inode)? {
            self.set(key, None);
        }
        if let Some(seen) = self.index.seen(inode)? {
            self.plan.dead.push((inode, seen.id.ino));
            let kernel = index::kernel_key(seen.id.ino);
            // The number may stand for a new inode already.
            let ours = self.index.kernel(seen.id.ino)?.is_some_and(|k| k.inode == inode);
            if ours && !self.plan.changes.contains_key(&kernel) {
                self.set(kernel, None);
            }
        }
        self.set(index::seen_key(inode), None);
        self.set(index::unpopulated_key(inode), None);
        self.set(index::absent_key(inode), None);
        self.set(key::inode(inode), None);
        Ok(())
    }

    /// Brings chunks and packs up to date with the changed references.
    fn references(&mut self) -> Result<()> {
        self.chunks.finish()?;
        let mut packs: BTreeMap<PackId, Pack> = BTreeMap::new();
        for (id, size) in self.chunks.packs() {
            packs.insert(id, Pack { size, live: 0 });
        }
        self.index.load_chunks(self.refs.keys().copied().collect(), None)?;
        self.load_packs()?;
        for (hash, delta) in std::mem::take(&mut self.refs) {
            if delta == 0 {
                continue;
            }
            let old = self.index.chunk(&hash)?;
            let Some(mut chunk) = old.clone().or_else(|| self.chunks.record(&hash)) else {
                let name = blake3::Hash::from_bytes(hash).to_hex();
                return Err(VolumeError::Failed(format!("chunk {name} is used but neither stored nor new")));
            };
            chunk.refs = i64::from(chunk.refs).saturating_add(delta).clamp(0, i64::from(u32::MAX)) as u32;
            if let records::Location::Pack { pack, .. } = chunk.location {
                let record = match packs.entry(pack) {
                    std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        entry.insert(self.index.pack(&pack)?.unwrap_or(Pack { size: 0, live: 0 }))
                    }
                };
                let stored = u64::from(chunk.stored_len);
                match (old.is_some(), chunk.refs > 0) {
                    (false, true) => record.live += stored,
                    (true, false) => record.live = record.live.saturating_sub(stored),
                    _ => {}
                }
            }
            let value = (chunk.refs > 0).then(|| encode(&chunk)).transpose()?;
            self.set(key::chunk(&hash), value);
        }
        for (id, pack) in packs {
            if pack.live > 0 {
                self.set(key::pack(&id), Some(encode(&pack)?));
            } else {
                self.set(key::pack(&id), None);
                self.set(key::garbage(&id), Some(Vec::new()));
                self.plan.dead_packs.push(id);
            }
        }
        Ok(())
    }

    /// Has the packs here whose live bytes may change.
    fn load_packs(&self) -> Result<()> {
        let mut packs = BTreeSet::new();
        for hash in self.refs.keys() {
            if let Some(Chunk { location: records::Location::Pack { pack, .. }, .. }) =
                self.index.chunk(hash)?
            {
                packs.insert(pack);
            }
        }
        self.index.load_packs(&packs.into_iter().collect::<Vec<_>>(), None)
    }

    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.plan.changes.insert(key, value);
    }
}

/// Removes `start..end` from a block's extents, splitting those that cross its borders.
fn cut_out(extents: &mut Vec<Extent>, start: u32, end: u32) {
    let mut kept = Vec::with_capacity(extents.len() + 1);
    for extent in extents.drain(..) {
        let extent_end = extent.start.saturating_add(extent.len);
        if extent_end <= start || extent.start >= end {
            kept.push(extent);
            continue;
        }
        if extent.start < start {
            kept.push(Extent { len: start - extent.start, ..extent.clone() });
        }
        if extent_end > end {
            let skip = end - extent.start;
            kept.push(Extent {
                start: end,
                len: extent_end - end,
                chunk_offset: extent.chunk_offset + skip,
                ..extent
            });
        }
    }
    *extents = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Extents against an array of bytes, each naming the chunk and the offset that it should come from.
        #[test]
        fn extents_read_as_the_last_writer_left_them(
            writes in prop::collection::vec((0u32..100, 1u32..40, any::<bool>()), 1..20)
        ) {
            let mut extents: Vec<Extent> = Vec::new();
            let mut model = [None; 160];
            for (i, (start, len, hole)) in writes.into_iter().enumerate() {
                cut_out(&mut extents, start, start + len);
                if !hole {
                    let at = extents.partition_point(|e| e.start < start);
                    extents.insert(at, Extent { start, len, chunk: [i as u8; 32], chunk_offset: 0 });
                }
                for k in 0..len {
                    model[(start + k) as usize] = (!hole).then_some((i as u8, k));
                }
            }
            let mut read = [None; 160];
            let mut last = 0;
            for e in &extents {
                prop_assert!(e.start >= last && e.len > 0);
                last = e.start + e.len;
                for k in 0..e.len {
                    read[(e.start + k) as usize] = Some((e.chunk[0], e.chunk_offset + k));
                }
            }
            prop_assert_eq!(model, read);
        }
    }
}
