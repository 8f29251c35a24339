//! Many records at once, in as few round trips to the backend as can be: neighbours by one scan, the others side by
//! side. It must not know what they are wanted for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Index, Result, joined};
use crate::meta::Until;
use crate::meta::records::{self, BLOCK_SIZE, Block, ChunkHash, PackId, key};

/// Reads of the backend under way at once.
const PARALLEL: usize = 32;
/// Single records that one of them asks for together, at most.
const TOGETHER: usize = 64;
/// From so many wanted records among 256 neighbours on, these are scanned.
const FEW: usize = 3;
/// From so many among 65,536 neighbours on, these are.
const MANY: usize = 4096;
/// Blocks that a scan of many files takes in before the files are read one by one: one of them is large.
const BLOCKS_MAX: usize = 16_384;
/// A file with more blocks is not read as a whole.
const LARGE: u64 = 4096;
/// Of a scan of chunks at least one in so many is wanted.
const SPARSE: u64 = 64;

impl Index {
    /// Has the entries of a directory and their inodes' records here; the entries, in order of their names.
    ///
    /// # Errors
    /// Of this disk, and of the backend, which is asked again `until` then.
    pub fn load_children(&self, dir: u64, until: Until) -> Result<Vec<(Vec<u8>, u64)>> {
        self.load_range(&key::dentries_of(dir), until)?;
        let children = self.children(dir)?;
        let inodes: Vec<u64> = children.iter().map(|(_, inode)| *inode).collect();
        self.load_inodes(&inodes, until)?;
        Ok(children)
    }

    /// Whether a directory has no more than `few` entries, which are here then, and the inode of the one that is called `name`:
    /// in the time that one of the two takes.
    ///
    /// # Errors
    /// As [`Index::load_children`].
    pub fn few_or_child(
        &self,
        dir: u64,
        few: usize,
        name: &[u8],
        until: Until,
    ) -> Result<(bool, Option<u64>)> {
        let prefix = key::dentries_of(dir);
        if let Some(is_few) = self.known_few(&prefix, few)? {
            return Ok((is_few, self.child_until(dir, name, until)?));
        }
        std::thread::scope(|scope| {
            let child = scope.spawn(|| self.child_until(dir, name, until));
            let is_few = self.stream_few(&prefix, few, until);
            let child = joined(child);
            Ok((is_few?, child?))
        })
    }

    /// Has the extents of a file's blocks here, if there are no more than `few`.
    ///
    /// # Errors
    /// As [`Index::load_children`].
    pub fn load_few_blocks(&self, inode: u64, few: usize, until: Until) -> Result<()> {
        let prefix = key::blocks_of(inode);
        match self.known_few(&prefix, few)? {
            Some(_) => Ok(()),
            None => self.stream_few(&prefix, few, until).map(drop),
        }
    }

    /// Whether there are no more than `few` records under `prefix`, if what is here says so.
    fn known_few(&self, prefix: &[u8], few: usize) -> Result<Option<bool>> {
        if self.records.prefix(prefix).take(few + 1).count() > few {
            return Ok(Some(false));
        }
        Ok(self.has_range(prefix)?.then_some(true))
    }

    /// The same, from the backend: if there are no more, they are here then.
    fn stream_few(&self, prefix: &[u8], few: usize, until: Until) -> Result<bool> {
        let mut count = 0;
        let whole = self.stream(prefix, until, &mut |_| {
            count += 1;
            count <= few
        })?;
        if whole {
            self.take_in(&[], Some(prefix))?;
        }
        Ok(whole)
    }

    /// Has the entries of many directories here, without their inodes' records.
    ///
    /// # Errors
    /// As [`Index::load_children`].
    pub fn load_entries(&self, dirs: &[u64], until: Until) -> Result<()> {
        self.load_ranges(b'd', dirs, until)
    }

    /// Has the records of many inodes here.
    ///
    /// # Errors
    /// As [`Index::load_children`].
    pub fn load_inodes(&self, inodes: &[u64], until: Until) -> Result<()> {
        let mut wanted = BTreeSet::new();
        if !self.is_loaded() {
            for inode in inodes {
                if !self.knows(&key::inode(*inode))? {
                    wanted.insert(*inode);
                }
            }
        }
        let mut tasks = Vec::new();
        let wanted: Vec<u64> = wanted.into_iter().collect();
        for far in wanted.chunk_by(|a, b| a >> 16 == b >> 16) {
            if let (true, Some(first)) = (far.len() >= MANY, far.first()) {
                tasks.push(Task::Scan(near(b'i', *first, 6)));
                continue;
            }
            for close in far.chunk_by(|a, b| a >> 8 == b >> 8) {
                match close.first() {
                    Some(first) if close.len() >= FEW => tasks.push(Task::Scan(near(b'i', *first, 7))),
                    _ => tasks.extend(close.iter().map(|inode| Task::Get(key::inode(*inode)))),
                }
            }
        }
        self.run(&tasks, until)
    }

    /// Has the extents of a file's blocks here, and the records of the chunks that they name: all of them, or of a large
    /// file those of the bytes `range` alone.
    ///
    /// # Errors
    /// As [`Index::load_children`].
    pub fn load_file(&self, inode: u64, range: Range<u64>, until: Until) -> Result<()> {
        if self.is_loaded() {
            return Ok(());
        }
        let blocks = range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE);
        if blocks.end > LARGE {
            let tasks: Vec<Task> =
                blocks.clone().map(|number| Task::Get(key::block(inode, number))).collect();
            self.run(&tasks, until)?;
        } else {
            self.load_range(&key::blocks_of(inode), until)?;
        }
        let mut chunks = HashSet::new();
        let pairs = self.records.range(key::block(inode, blocks.start)..key::block(inode, blocks.end));
        for pair in pairs {
            let (key, value) = pair.into_inner()?;
            chunks_of(&key, &value, &mut chunks)?;
        }
        self.load_chunks(chunks, until)
    }

    /// As [`Index::load_file`], for all of many files.
    ///
    /// # Errors
    /// As [`Index::load_children`].
    pub fn load_files(&self, inodes: &[u64], until: Until) -> Result<()> {
        if self.is_loaded() {
            return Ok(());
        }
        self.load_blocks(inodes, until)?;
        let mut chunks = HashSet::new();
        for inode in inodes {
            self.scan(&key::blocks_of(*inode), |key, value| chunks_of(key, value, &mut chunks))?;
        }
        self.load_chunks(chunks, until)
    }

    /// Has the extents of all blocks of many files here, without the records of their chunks.
    ///
    /// # Errors
    /// As [`Index::load_children`].
    pub fn load_blocks(&self, inodes: &[u64], until: Until) -> Result<()> {
        self.load_ranges(b'b', inodes, until)
    }

    /// Has the records of many packs here.
    ///
    /// # Errors
    /// As [`Index::load_children`].
    pub fn load_packs(&self, packs: &[PackId], until: Until) -> Result<()> {
        let mut tasks = Vec::new();
        for pack in packs {
            let key = key::pack(pack);
            if !self.knows(&key)? {
                tasks.push(Task::Get(key));
            }
        }
        self.run(&tasks, until)
    }

    /// Has the records under `kind` of many numbers here, each number's as a whole.
    fn load_ranges(&self, kind: u8, numbers: &[u64], until: Until) -> Result<()> {
        let mut wanted = BTreeSet::new();
        for number in numbers {
            if !self.has_range(&near(kind, *number, 8))? {
                wanted.insert(*number);
            }
        }
        let wanted: Vec<u64> = wanted.into_iter().collect();
        let mut tasks = Vec::new();
        for close in wanted.chunk_by(|a, b| a >> 8 == b >> 8) {
            if close.len() >= FEW {
                tasks.push(Task::Ranges(kind, close.to_vec()));
            } else {
                tasks.extend(close.iter().map(|number| Task::Range(near(kind, *number, 8))));
            }
        }
        self.run(&tasks, until)
    }

    /// Has the records of many chunks here.
    ///
    /// # Errors
    /// As [`Index::load_children`].
    pub fn load_chunks(&self, chunks: HashSet<ChunkHash>, until: Until) -> Result<()> {
        if self.is_loaded() {
            return Ok(());
        }
        let mut wanted: BTreeMap<u8, Vec<ChunkHash>> = BTreeMap::new();
        for hash in chunks {
            if !self.knows(&key::chunk(&hash))? {
                wanted.entry(hash.first().copied().unwrap_or(0)).or_default().push(hash);
            }
        }
        // Chunks lie in the order of their names, which is none: a scan meets others, too.
        let all = self.totals()?.map_or(u64::MAX, |totals| totals.files.max(totals.bytes / BLOCK_SIZE));
        let mut tasks = Vec::new();
        for (first, hashes) in wanted {
            if hashes.len() >= FEW && all / 256 <= SPARSE * hashes.len() as u64 {
                tasks.push(Task::Chunks(first, hashes.len() * SPARSE as usize * 2));
            }
            tasks.extend(hashes.into_iter().map(|hash| Task::Get(key::chunk(&hash))));
        }
        // What a scan has brought is not asked for again.
        let (scans, gets): (Vec<Task>, Vec<Task>) =
            tasks.into_iter().partition(|task| matches!(task, Task::Chunks(..)));
        self.run(&scans, until)?;
        self.run(&gets, until)
    }

    /// Does all tasks, several at a time.
    fn run(&self, tasks: &[Task], until: Until) -> Result<()> {
        if let [task] = tasks {
            return self.step(task, until);
        }
        let (gets, others): (Vec<&Task>, Vec<&Task>) =
            tasks.iter().partition(|task| matches!(task, Task::Get(_)));
        let together = gets.len().div_ceil(PARALLEL).clamp(1, TOGETHER);
        let jobs: Vec<&[&Task]> = others.chunks(1).chain(gets.chunks(together)).collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..PARALLEL.min(jobs.len()))
                .map(|_| {
                    scope.spawn(|| {
                        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                            if let Err(error) = self.work(job, until) {
                                // The others need not begin what is left.
                                next.store(jobs.len(), Ordering::Relaxed);
                                return Err(error);
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(joined)
        })
    }

    /// Does one task, or several that are single records.
    fn work(&self, job: &[&Task], until: Until) -> Result<()> {
        if let [task] = job {
            return self.step(task, until);
        }
        let key = |task: &&Task| if let Task::Get(key) = task { Some(key.clone()) } else { None };
        let keys: Vec<Vec<u8>> = job.iter().filter_map(key).collect();
        self.look_up_many(&keys, until)
    }

    fn step(&self, task: &Task, until: Until) -> Result<()> {
        match task {
            Task::Get(key) => self.look_up(key, until).map(drop),
            Task::Scan(prefix) => self.stream(prefix, until, &mut |_| true).map(drop),
            Task::Range(prefix) => self.load_range(prefix, until),
            Task::Chunks(first, most) => {
                let mut seen = 0;
                let scan = &mut |_: &[u8]| {
                    seen += 1;
                    seen < *most
                };
                self.stream(&[b'c', *first], until, scan).map(drop)
            }
            Task::Ranges(kind, numbers) => {
                let Some(first) = numbers.first() else { return Ok(()) };
                let (mut seen, mut passed) = (0, *first);
                let whole = self.stream(&near(*kind, *first, 7), until, &mut |key| {
                    seen += 1;
                    passed = key.get(1..9).and_then(|n| n.try_into().ok()).map_or(0, u64::from_be_bytes);
                    seen < BLOCKS_MAX
                })?;
                for number in numbers {
                    if whole || *number < passed {
                        self.take_in(&[], Some(&near(*kind, *number, 8)))?;
                    } else {
                        self.load_range(&near(*kind, *number, 8), until)?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// A read of the backend.
enum Task {
    /// One record.
    Get(Vec<u8>),
    /// All under a prefix, of which only some may be wanted.
    Scan(Vec<u8>),
    /// All under a prefix that is a range of its own.
    Range(Vec<u8>),
    /// The ranges of these neighbours, of a kind.
    Ranges(u8, Vec<u64>),
    /// Chunks whose names begin with this byte, up to so many.
    Chunks(u8, usize),
}

/// Prefix of the records of `kind` whose numbers share the first `bytes` bytes with `number`.
fn near(kind: u8, number: u64, bytes: usize) -> Vec<u8> {
    let mut prefix = vec![kind];
    prefix.extend(number.to_be_bytes().iter().take(bytes));
    prefix
}

fn chunks_of(key: &[u8], value: &[u8], chunks: &mut HashSet<ChunkHash>) -> Result<()> {
    let block: Block = records::decode(key, value)?;
    chunks.extend(block.extents.iter().map(|extent| extent.chunk));
    Ok(())
}
