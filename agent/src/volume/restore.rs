//! Populates a whole tree from the backend, before an app runs: records into the index, names and inodes onto the
//! disk, data pack by pack in parallel, attributes last. Every chunk is checked against its name. It must not know
//! why the tree is populated.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::entry;
use super::index::{self, Doubt, Index, Kernel, Seen};
use super::status::Shared;
use super::tree::Tree;
use super::{Progress, VolumeError};
use crate::blob::{Blob, BlobError, pack};
use crate::meta::Meta;
use crate::meta::records::{self, BLOCK_SIZE, Chunk, ChunkHash, Inode, Location, PackId, ROOT_INODE, key};

type Result<T> = std::result::Result<T, VolumeError>;

/// Records taken into the index at once.
const BATCH: usize = 4096;
/// Two wanted ranges of a pack closer than this are read as one.
const GAP: u64 = 512 << 10;

/// What populating takes.
pub struct Restore<'a> {
    /// Records come from here.
    pub meta: &'a dyn Meta,
    /// Data comes from here.
    pub blob: &'a dyn Blob,
    /// Empty.
    pub index: &'a Index,
    /// Empty.
    pub tree: &'a Tree,
    /// Progress goes there.
    pub shared: &'a Shared,
    /// Packs read at the same time.
    pub parallelism: usize,
}

/// A piece of a file that lies in a pack.
struct Fetch {
    pack: PackId,
    offset: u32,
    chunk: ChunkHash,
    stored_len: u32,
    len: u32,
    codec: records::Codec,
    inode: u64,
    file_offset: u64,
    chunk_offset: u32,
    extent_len: u32,
}

impl Restore<'_> {
    /// Populates the tree. May be called again after a failure once tree and index were emptied.
    pub fn run(&self) -> Result<()> {
        self.shared.progress.lock().replace(Progress { activity: "restoring".into(), ..Progress::default() });
        self.records()?;
        let paths = self.names()?;
        let mut fetches = self.data(&paths)?;
        fetches.sort_unstable_by_key(|f| (f.pack, f.offset));
        self.fetch(&fetches, &paths)?;
        self.attributes(&paths)?;
        self.shared.progress.lock().take();
        Ok(())
    }

    fn progress(&self, change: impl FnOnce(&mut Progress)) {
        if let Some(progress) = self.shared.progress.lock().as_mut() {
            change(progress);
        }
    }

    /// Takes all records of the volume into the index.
    fn records(&self) -> Result<()> {
        let mut batch: Vec<(Vec<u8>, Vec<u8>)> = Vec::with_capacity(BATCH);
        let mut next = ROOT_INODE + 1;
        for prefix in [key::INODES, key::DENTRIES, key::BLOCKS, key::CHUNKS, key::PACKS, key::GARBAGE] {
            let mut failed = None;
            self.meta.scan(prefix, None, &mut |key, value| {
                let mut take = || -> Result<()> {
                    match key::parse(key)? {
                        key::Key::Dentry(dir, name) => {
                            let child = records::decode_child(key, value)?;
                            batch.push((index::link_key(child, dir, &name), Vec::new()));
                        }
                        key::Key::Inode(inode) => {
                            let record: Inode = records::decode(key, value)?;
                            next = next.max(inode.saturating_add(1));
                            if record.mode & libc::S_IFMT == libc::S_IFREG {
                                self.progress(|p| {
                                    p.files_total += 1;
                                    p.bytes_total += record.size;
                                });
                            }
                        }
                        _ => {}
                    }
                    batch.push((key.to_vec(), value.to_vec()));
                    if batch.len() >= BATCH { self.index.load(batch.drain(..)) } else { Ok(()) }
                };
                failed = take().err();
                failed.is_none()
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        let mut local = index::Changes::new();
        index::set_next_inode(&mut local, next)?;
        batch.extend(local.into_iter().filter_map(|(key, value)| Some((key, value?))));
        self.index.load(batch)
    }

    /// Makes every name. Returns each inode's first path; directories before what is in them.
    fn names(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut paths = vec![(ROOT_INODE, Vec::new())];
        let mut first: HashMap<u64, usize> = HashMap::new();
        let mut dirs = vec![(ROOT_INODE, Vec::new())];
        while let Some((dir, path)) = dirs.pop() {
            let fd = self
                .tree
                .open_dir(&path)
                .map_err(|e| local("opened", &path, &e))?
                .ok_or_else(|| local("opened", &path, &io::ErrorKind::NotFound.into()))?;
            for (name, inode) in self.index.children(dir)? {
                let child = if path.is_empty() { name.clone() } else { [&path, &b"/"[..], &name].concat() };
                if let Some(at) = first.get(&inode) {
                    let from = paths.get(*at).map_or(&[][..], |(_, p)| p.as_slice());
                    entry::link(self.tree, from, fd.as_fd(), &name)
                        .map_err(|e| local("linked", &child, &e))?;
                    continue;
                }
                let Some(record) = self.index.inode(inode)? else {
                    // Better all but one than none: the name is left out, and said.
                    let path = String::from_utf8_lossy(&child).into_owned();
                    tracing::error!(
                        path,
                        "the volume has no inode for a name, which is left out of the tree"
                    );
                    continue;
                };
                entry::make(self.tree, fd.as_fd(), &name, &record).map_err(|e| local("made", &child, &e))?;
                if record.mode & libc::S_IFMT == libc::S_IFDIR {
                    dirs.push((inode, child.clone()));
                } else if record.links > 1 {
                    first.insert(inode, paths.len());
                }
                paths.push((inode, child));
            }
        }
        Ok(paths)
    }

    /// Writes inline data and lists what is to be read from packs.
    fn data(&self, paths: &[(u64, Vec<u8>)]) -> Result<Vec<Fetch>> {
        let mut fetches = Vec::new();
        for (inode, path) in paths {
            for (number, block) in self.index.blocks(*inode)? {
                for extent in block.extents {
                    let chunk: Chunk = self.index.chunk(&extent.chunk)?.ok_or_else(|| missing(path))?;
                    let file_offset = number * BLOCK_SIZE + u64::from(extent.start);
                    match &chunk.location {
                        Location::Inline(stored) => {
                            let bytes = pack::read_chunk(
                                &extent.chunk,
                                chunk.len,
                                chunk.codec,
                                stored,
                                "the metadata",
                            )?;
                            self.write(path, &bytes, file_offset, extent.chunk_offset, extent.len)?;
                        }
                        Location::Pack { pack, offset } => fetches.push(Fetch {
                            pack: *pack,
                            offset: *offset,
                            chunk: extent.chunk,
                            stored_len: chunk.stored_len,
                            len: chunk.len,
                            codec: chunk.codec,
                            inode: *inode,
                            file_offset,
                            chunk_offset: extent.chunk_offset,
                            extent_len: extent.len,
                        }),
                    }
                }
            }
        }
        Ok(fetches)
    }

    fn write(&self, path: &[u8], chunk: &[u8], at: u64, from: u32, len: u32) -> Result<()> {
        let range = from as usize..(from as usize).saturating_add(len as usize);
        let bytes = chunk.get(range).ok_or_else(|| missing(path))?;
        let file = self.tree.open_at(path, libc::O_WRONLY).map_err(|e| local("opened", path, &e))?;
        std::fs::File::from(file).write_all_at(bytes, at).map_err(|e| local("written", path, &e))?;
        self.progress(|p| p.bytes_done += bytes.len() as u64);
        Ok(())
    }

    /// Reads packs in parallel and writes what is in them.
    fn fetch(&self, fetches: &[Fetch], paths: &[(u64, Vec<u8>)]) -> Result<()> {
        let by_inode: HashMap<u64, &[u8]> =
            paths.iter().map(|(inode, path)| (*inode, path.as_slice())).collect();
        let groups: Vec<&[Fetch]> = fetches.chunk_by(|a, b| a.pack == b.pack).collect();
        let (queue, work) = crossbeam::channel::unbounded();
        for group in groups {
            // Cannot fail: the receiver is ours.
            let _ = queue.send(group);
        }
        drop(queue);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.parallelism.max(1))
                .map(|_| {
                    let (work, by_inode) = (work.clone(), &by_inode);
                    scope.spawn(move || work.iter().try_for_each(|group| self.fetch_pack(group, by_inode)))
                })
                .collect();
            workers.into_iter().try_for_each(|w| {
                w.join().unwrap_or_else(|_| Err(VolumeError::Failed("a restoring thread died".into())))
            })
        })
    }

    fn fetch_pack(&self, group: &[Fetch], paths: &HashMap<u64, &[u8]>) -> Result<()> {
        let near =
            |a: &Fetch, b: &Fetch| u64::from(b.offset) <= u64::from(a.offset) + u64::from(a.stored_len) + GAP;
        for run in group.chunk_by(near) {
            let (Some(head), Some(end)) =
                (run.first(), run.iter().map(|f| u64::from(f.offset) + u64::from(f.stored_len)).max())
            else {
                continue;
            };
            let start = u64::from(head.offset);
            let bytes = self.read(&head.pack, start..end)?;
            for same in run.chunk_by(|a, b| a.offset == b.offset) {
                let Some(f) = same.first() else { continue };
                let from = (u64::from(f.offset) - start) as usize;
                let stored = bytes.get(from..from + f.stored_len as usize).unwrap_or(&[]);
                let place = format!("pack {:032x}", u128::from_be_bytes(f.pack));
                let chunk = pack::read_chunk(&f.chunk, f.len, f.codec, stored, &place)?;
                for f in same {
                    let path = paths.get(&f.inode).copied().unwrap_or(&[]);
                    self.write(path, &chunk, f.file_offset, f.chunk_offset, f.extent_len)?;
                }
            }
        }
        Ok(())
    }

    /// Reads from a pack, for as long as the backend only refuses for now.
    fn read(&self, pack: &PackId, range: std::ops::Range<u64>) -> Result<bytes::Bytes> {
        let mut pause = std::time::Duration::from_millis(100);
        loop {
            match self.blob.get(pack, range.clone()) {
                Ok(bytes) => {
                    self.shared.backend_answers();
                    return Ok(bytes);
                }
                Err(BlobError::Unavailable(why)) => self.shared.backend_refuses(&why),
                Err(error) => return Err(VolumeError::Failed(error.to_string())),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(std::time::Duration::from_secs(5));
        }
    }

    /// Sets owners, modes and times, children before their directories, and notes what stat(2) says in the end.
    fn attributes(&self, paths: &[(u64, Vec<u8>)]) -> Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        for (inode, path) in paths.iter().rev() {
            let Some(record) = self.index.inode(*inode)? else {
                // Only the root of a volume without any commit has no record.
                continue;
            };
            let (parent, name) = entry::split(path);
            let parent = self.tree.open_dir(parent).and_then(|dir| dir.ok_or(io::ErrorKind::NotFound.into()));
            parent
                .and_then(|parent| entry::set_attributes(parent.as_fd(), name, &record))
                .map_err(|e| local("given its attributes", path, &e))?;
            if record.mode & libc::S_IFMT == libc::S_IFREG {
                self.progress(|p| p.files_done += 1);
            }
        }
        for (inode, path) in paths {
            let handle = self.tree.open_at(path, libc::O_PATH).map_err(|e| local("opened", path, &e))?;
            let stat = self.tree.stat(handle.as_fd()).map_err(|e| local("looked at", path, &e))?;
            let kernel = Kernel { id: stat.id, inode: *inode };
            batch.push((index::kernel_key(stat.id.ino), index::encode(&kernel)?));
            if self.index.inode(*inode)?.is_some() {
                let seen = Seen::of(&stat, Doubt::None);
                batch.push((index::seen_key(*inode), index::encode(&seen)?));
            }
            if batch.len() >= BATCH {
                self.index.load(batch.drain(..))?;
            }
        }
        self.index.load(batch)
    }
}

fn local(what: &str, path: &[u8], error: &io::Error) -> VolumeError {
    let path = String::from_utf8_lossy(path);
    VolumeError::Failed(format!(
        "the tree cannot be populated: {path:?} could not be {what} on this disk: {error}; make room or mend the \
         disk, then start the agent again"
    ))
}

fn missing(path: &[u8]) -> VolumeError {
    let path = String::from_utf8_lossy(path);
    VolumeError::Failed(format!(
        "the volume's metadata is damaged: a record of {path:?} is missing; restore the backend from a copy"
    ))
}
