//! After the machine has stopped without warning: is what came from the backend still on this disk? None of it was
//! synced, so data blocks, sizes and names of what nobody changed here may be lost although the index has them. What is
//! lost becomes absent and comes again. Only what the agent wrote itself, or what stands as the last cut saw it, is judged:
//! the rest is what a program left, and the audit's. It must not know how anything comes back.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use storeshim_protocol::residency::PIECE;

use super::index::{self, Changes, Doubt, Index, Pieces, Seen};
use super::look::join;
use super::status::Shared;
use super::tree::{FileId, Stat, Tree, check};
use super::{Progress, VolumeError};
use crate::blob::pack::frame_hash;
use crate::meta::records::{BLOCK_SIZE, Chunk, Extent, FRAME_SIZE, Inode, ROOT_INODE, Time};

type Result<T> = std::result::Result<T, VolumeError>;

/// Files that are checked side by side before the next ones are looked for.
const BATCH: usize = 4096;

/// Checks the tree against the index, before anybody uses either. Blocking, for as long as reading all of it takes; what is
/// compared with comes from the backend where it is not here.
///
/// # Errors
/// Of the index; a file that cannot be read is said, and left to the audit.
pub fn verify(index: &Index, tree: &Tree, shared: &Shared) -> Result<()> {
    tracing::warn!(tree = %tree.path().display(), "the machine stopped without warning; checking what was not synced");
    shared.progress.lock().replace(Progress { activity: "verifying".into(), ..Progress::default() });
    let verifier = Verifier { index, tree, shared, pieces: AtomicU64::new(0), files: AtomicU64::new(0) };
    let names = verifier.walk();
    shared.progress.lock().take();
    let (names, pieces, files) = (names?, verifier.pieces.into_inner(), verifier.files.into_inner());
    // All of it before the first cut looks at the tree.
    index.sync()?;
    shared.count("lost_pieces", pieces);
    shared.count("lost_names", names);
    if pieces > 0 || names > 0 {
        tracing::warn!(
            pieces,
            files,
            names,
            "data that had come from the backend was lost from this disk; it comes again"
        );
    }
    Ok(())
}

struct Verifier<'a> {
    index: &'a Index,
    tree: &'a Tree,
    shared: &'a Shared,
    /// Pieces that were lost.
    pieces: AtomicU64,
    /// Files that have lost some.
    files: AtomicU64,
}

/// A file to be checked.
struct Candidate {
    inode: u64,
    path: Vec<u8>,
    seen: Seen,
    stat: Stat,
}

/// A name that the index has in the tree and the tree has not.
struct Lost {
    dir: u64,
    id: FileId,
}

impl Verifier<'_> {
    /// Goes through the tree; how many names were lost.
    fn walk(&self) -> Result<u64> {
        let (mut lost, mut elsewhere) = (Vec::new(), HashSet::new());
        let mut candidates = Vec::new();
        let mut dirs = vec![(ROOT_INODE, Vec::new())];
        while let Some((dir, path)) = dirs.pop() {
            if self.index.is_unpopulated(dir)? {
                continue;
            }
            let children = self.index.children(dir)?;
            let inodes: Vec<u64> = children.iter().map(|(_, inode)| *inode).collect();
            self.index.load_inodes(&inodes, None)?;
            let Ok(Some(fd)) = self.tree.open_dir(&path) else { continue };
            let mut others: HashSet<Vec<u8>> =
                self.tree.list(fd.as_fd()).unwrap_or_default().into_iter().collect();
            for (name, inode) in children {
                // Without either it was not in the tree.
                let Some(seen) = self.index.seen(inode)? else { continue };
                let Ok(stat) = self.tree.stat_at(fd.as_fd(), &name) else { continue };
                let Some(stat) = stat.filter(|stat| stat.id == seen.id) else {
                    if stat.is_none() && self.is_ours(inode, &seen)? {
                        lost.push(Lost { dir, id: seen.id });
                    }
                    continue;
                };
                others.remove(&name);
                let path = join(&path, &name);
                if stat.is_dir() {
                    dirs.push((inode, path));
                } else if stat.is_file() {
                    candidates.push(Candidate { inode, path, seen, stat });
                }
            }
            for name in others {
                elsewhere.extend(self.tree.stat_at(fd.as_fd(), &name).ok().flatten().map(|stat| stat.id));
            }
            if candidates.len() >= BATCH {
                self.check_all(&std::mem::take(&mut candidates))?;
            }
        }
        self.check_all(&candidates)?;
        // What a program has moved is not lost.
        lost.retain(|name| !elsewhere.contains(&name.id));
        let mut changes = Changes::new();
        for name in &lost {
            // Populated again; what is there is taken over.
            index::set_unpopulated(&mut changes, name.dir, true);
        }
        self.index.apply_local(&changes)?;
        Ok(lost.len() as u64)
    }

    /// Whether nobody but the agent has touched an inode since it came here, as far as any cut has seen.
    fn is_ours(&self, inode: u64, seen: &Seen) -> Result<bool> {
        if seen.doubt == Doubt::Attributes || self.index.is_unpopulated(inode)? {
            return Ok(true);
        }
        let absent = self.index.absent(inode)?.unwrap_or_default();
        Ok(seen.doubt == Doubt::None && absent.count() > 0 && absent.count() >= seen.size.div_ceil(PIECE))
    }

    fn check_all(&self, candidates: &[Candidate]) -> Result<()> {
        let inodes: Vec<u64> = candidates.iter().map(|candidate| candidate.inode).collect();
        self.index.load_blocks(&inodes, None)?;
        let next = AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.min(candidates.len()))
                .map(|_| {
                    scope.spawn(|| {
                        while let Some(candidate) = candidates.get(next.fetch_add(1, Ordering::Relaxed)) {
                            self.check(candidate)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| {
                let died = || Err(VolumeError::Failed("a thread that checks the tree died".into()));
                worker.join().unwrap_or_else(|_| died())
            })
        })
    }

    fn check(&self, candidate: &Candidate) -> Result<()> {
        let Candidate { inode, path, seen, stat } = candidate;
        let Some(record) = self.index.inode(*inode)? else { return Ok(()) };
        let stands = |size: u64, mtime: Time| stat.size == size && stat.mtime == mtime;
        let absent = self.index.absent(*inode)?.unwrap_or_default();
        let all = Pieces::of(0..record.size.div_ceil(PIECE));
        let lost = if stands(seen.size, seen.mtime) && seen.doubt != Doubt::Racy {
            // ctime is left out: the agent moves it with each piece that it brings, and the disk may have an older one.
            match self.lost(*inode, path, stat.size, &absent) {
                Ok(lost) => lost,
                Err(Check::Index(error)) => return Err(error),
                Err(Check::Io(error)) => {
                    let path = String::from_utf8_lossy(path).into_owned();
                    tracing::warn!(path, %error, "a file cannot be checked");
                    return Ok(());
                }
            }
        } else if self.is_ours(*inode, seen)? && !stands(record.size, record.mtime) {
            // Its own size or times are lost, and with them whatever says which data is.
            all
        } else {
            return Ok(());
        };
        if self.shared.progress.lock().as_mut().map(|progress| progress.files_done += 1).is_none()
            || lost.is_empty()
        {
            return Ok(());
        }
        self.give_up(candidate, &record, absent, &lost)
    }

    /// Pieces that are not absent, and whose bytes are not those of their chunks.
    fn lost(
        &self,
        inode: u64,
        path: &[u8],
        size: u64,
        absent: &Pieces,
    ) -> std::result::Result<Pieces, Check> {
        let mut lost = Pieces::default();
        let all = size.div_ceil(PIECE);
        if absent.count() >= all {
            return Ok(lost);
        }
        self.index.load_file(inode, 0..size, None)?;
        let Some(file) = self.tree.open_file(path)? else { return Ok(lost) };
        let mut bytes = vec![0; FRAME_SIZE as usize];
        for (number, block) in self.index.blocks(inode)? {
            for extent in block.extents {
                let Some(chunk) = self.index.chunk(&extent.chunk)? else { continue };
                let at = number * BLOCK_SIZE + u64::from(extent.start);
                for frame in frames_of(&chunk, &extent) {
                    let start = at + u64::from(frame.skipped);
                    let end = (start + u64::from(frame.len)).min(size);
                    let pieces = start / PIECE..end.div_ceil(PIECE);
                    let here = pieces.end.saturating_sub(pieces.start)
                        > absent.within(pieces.clone()).map(|range| range.end - range.start).sum::<u64>();
                    if here && !frame.holds(&file, start, end, &mut bytes)? {
                        lost.add(pieces);
                    }
                }
            }
        }
        absent.iter().for_each(|range| lost.remove(range));
        Ok(lost)
    }

    /// Makes pieces absent. In this order: a crash between two steps leaves a file of which more is absent than need be.
    fn give_up(
        &self,
        candidate: &Candidate,
        record: &Inode,
        mut absent: Pieces,
        lost: &Pieces,
    ) -> Result<()> {
        lost.iter().for_each(|range| absent.add(range));
        let mut changes = Changes::new();
        index::set_absent(&mut changes, candidate.inode, &absent)?;
        self.index.apply_local(&changes)?;
        self.index.sync()?;
        match self.empty(candidate, record, lost) {
            Ok(stat) => {
                let mut changes = Changes::new();
                index::set_seen(&mut changes, candidate.inode, &Seen::of(&stat, Doubt::Attributes))?;
                self.index.apply_local(&changes)?;
            }
            Err(error) => {
                let path = String::from_utf8_lossy(&candidate.path).into_owned();
                tracing::warn!(path, %error, "lost data cannot be removed from a file");
            }
        }
        self.pieces.fetch_add(lost.count(), Ordering::Relaxed);
        self.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn empty(&self, candidate: &Candidate, record: &Inode, lost: &Pieces) -> io::Result<Stat> {
        let file = File::from(self.tree.open_at(&candidate.path, libc::O_RDWR | libc::O_NONBLOCK)?);
        file.set_len(record.size)?;
        for range in lost.iter() {
            let offset = |piece: u64| libc::off_t::try_from(piece * PIECE).map_err(io::Error::other);
            let (start, end) = (offset(range.start)?, offset(range.end)?);
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: a descriptor and numbers.
            check(unsafe { libc::fallocate(file.as_raw_fd(), mode, start, end - start) })?;
        }
        let mtime = TimeSpec::new(record.mtime.secs, i64::from(record.mtime.nanos));
        futimens(&file, &TimeSpec::UTIME_OMIT, &mtime)?;
        self.tree.stat(file.as_fd())
    }
}

enum Check {
    Index(VolumeError),
    Io(io::Error),
}

impl From<VolumeError> for Check {
    fn from(e: VolumeError) -> Self {
        Self::Index(e)
    }
}

impl From<io::Error> for Check {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

/// What an extent shows of one frame of its chunk.
struct Shown {
    /// Bytes of the extent before it.
    skipped: u32,
    len: u32,
    /// `None` where the extent does not show all of the frame, so that nothing can be said.
    hash: Option<[u8; 16]>,
}

impl Shown {
    /// Whether the file has these bytes; what cannot be told it does not have.
    fn holds(&self, file: &File, start: u64, end: u64, bytes: &mut [u8]) -> io::Result<bool> {
        let Some(hash) = self.hash.filter(|_| end - start == u64::from(self.len)) else { return Ok(false) };
        let Some(bytes) = bytes.get_mut(..self.len as usize) else { return Ok(false) };
        match file.read_exact_at(bytes, start) {
            Ok(()) => Ok(frame_hash(bytes) == hash),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The frames of a chunk that an extent shows, in order.
fn frames_of(chunk: &Chunk, extent: &Extent) -> Vec<Shown> {
    let first = extent.chunk_offset;
    let end = first.saturating_add(extent.len).min(chunk.len);
    let mut shown = Vec::new();
    let mut at = first;
    while at < end {
        let number = at / FRAME_SIZE;
        let (from, upto) = (number * FRAME_SIZE, (number + 1).saturating_mul(FRAME_SIZE).min(chunk.len));
        let hash = match chunk.frames.get(number as usize) {
            Some(frame) => Some(frame.hash),
            None if chunk.frames.is_empty() => extent.chunk.first_chunk().copied(),
            None => None,
        };
        let stop = upto.min(end);
        shown.push(Shown {
            skipped: at - first,
            len: stop - at,
            hash: hash.filter(|_| at == from && stop == upto),
        });
        at = stop;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::records::{Codec, Frame, Location};

    #[test]
    fn an_extent_vouches_for_the_frames_that_it_shows_whole() {
        let frame = |n: u8| Frame { stored_len: 1, hash: [n; 16] };
        let chunk = Chunk {
            refs: 1,
            len: 3 * FRAME_SIZE - 5,
            stored_len: 3,
            codec: Codec::Raw,
            frames: vec![frame(0), frame(1), frame(2)],
            location: Location::Inline(Vec::new()),
        };
        let shown = |chunk_offset, len| {
            let extent = Extent { start: 0, len, chunk: [9; 32], chunk_offset };
            let shown = frames_of(&chunk, &extent);
            shown.iter().map(|s| (s.skipped, s.len, s.hash.map(|h| h[0]))).collect::<Vec<_>>()
        };
        let f = FRAME_SIZE;
        assert_eq!(shown(0, 3 * f - 5), [(0, f, Some(0)), (f, f, Some(1)), (2 * f, f - 5, Some(2))]);
        assert_eq!(shown(10, 2 * f), [(0, f - 10, None), (f - 10, f, Some(1)), (2 * f - 10, 10, None)]);
        let small = Chunk { len: 7, frames: Vec::new(), ..chunk.clone() };
        let extent = Extent { start: 0, len: 7, chunk: [9; 32], chunk_offset: 0 };
        assert_eq!(frames_of(&small, &extent).first().and_then(|s| s.hash), Some([9; 16]));
    }
}
