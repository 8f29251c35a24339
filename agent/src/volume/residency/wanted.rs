//! From pieces of a file to ranges of packs, and back: which stored bytes hold what is wanted, which of them are read
//! together, and what they say once they are here, checked against their hashes. It must not know who wants them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use storeshim_protocol::residency::PIECE;

use crate::blob::pack::{self, Part};
use crate::meta::records::{BLOCK_SIZE, Chunk, ChunkHash, Location, PackId};
use crate::volume::VolumeError;
use crate::volume::index::{Index, Pieces, Until};

/// Two ranges of a pack that lie closer than this are read as one, in bytes.
const GAP: u64 = 128 << 10;
/// Bytes of a pack that are read at once.
pub const GET_MAX: u64 = 4 << 20;

/// Bytes of a file that lie in one chunk.
#[derive(Clone)]
pub struct Item {
    /// Which of the files that are wanted together.
    pub file: usize,
    /// Where they belong in it.
    pub at: u64,
    len: u32,
    /// Their first byte, counted from the part's.
    skip: u32,
    hash: ChunkHash,
    chunk: Arc<Chunk>,
    part: Part,
}

/// Bytes of a file, and where they are in a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    at: u64,
    len: u32,
    hash: ChunkHash,
    /// The first of them in the chunk.
    first: u32,
}

/// Bytes of a pack that are read at once, and what is in them.
pub struct Get {
    /// Which pack.
    pub pack: PackId,
    /// Which bytes of it.
    pub range: Range<u64>,
    /// In the order of where they lie.
    pub items: Vec<Item>,
}

/// Who takes the bytes of items, or what is wrong with them.
pub type Take<'t> = dyn FnMut(&Item, Result<Bytes, VolumeError>) + 't;

/// What a list of items comes down to.
#[derive(Default)]
pub struct Reads {
    /// Is in the metadata.
    pub inline: Vec<Item>,
    /// Is to be read.
    pub gets: Vec<Get>,
}

fn damaged(inode: u64) -> VolumeError {
    VolumeError::Failed(format!(
        "the volume's metadata is damaged: a record of the file with inode {inode} is missing; restore the backend from a copy"
    ))
}

/// What is to be read for `pieces` of a file of `size` bytes, which is number `file` of those that are wanted together.
///
/// # Errors
/// Where the index cannot be read, or contradicts itself.
pub fn of_file(
    index: &Index,
    file: usize,
    inode: u64,
    pieces: &Pieces,
    size: u64,
    until: Until,
) -> Result<Vec<Item>, VolumeError> {
    let span = pieces.iter().next().map_or(0, |range| range.start)..pieces.end();
    let bytes = |piece: u64| piece.saturating_mul(PIECE).min(size);
    if bytes(span.start) < bytes(span.end) {
        index.load_file(inode, bytes(span.start)..bytes(span.end), until)?;
    }
    of_loaded(index, file, inode, pieces, size)
}

/// As [`of_file`], of a file of which all that is needed of the metadata is here.
///
/// # Errors
/// As there.
pub fn of_loaded(
    index: &Index,
    file: usize,
    inode: u64,
    pieces: &Pieces,
    size: u64,
) -> Result<Vec<Item>, VolumeError> {
    let mut chunks: HashMap<ChunkHash, Arc<Chunk>> = HashMap::new();
    let sources = sources(index, inode, pieces, size)?;
    let mut items = Vec::with_capacity(sources.len());
    for Source { at, len, hash, first } in sources {
        let chunk = match chunks.get(&hash) {
            Some(chunk) => Arc::clone(chunk),
            None => {
                let chunk = Arc::new(index.chunk(&hash)?.ok_or_else(|| damaged(inode))?);
                chunks.insert(hash, Arc::clone(&chunk));
                chunk
            }
        };
        let part = pack::frames_around(&chunk, first..first.saturating_add(len))?;
        let skip = first - part.bytes.start;
        items.push(Item { file, at, len, skip, hash, chunk, part });
    }
    Ok(items)
}

/// Where the index says that the bytes of `pieces` of a file of `size` bytes are, in order.
///
/// # Errors
/// As [`of_file`].
pub fn sources(index: &Index, inode: u64, pieces: &Pieces, size: u64) -> Result<Vec<Source>, VolumeError> {
    let mut sources = Vec::new();
    let bytes = |piece: u64| piece.saturating_mul(PIECE).min(size);
    for range in pieces.iter() {
        let (start, end) = (bytes(range.start), bytes(range.end));
        for (number, block) in index.blocks_within(inode, start / BLOCK_SIZE, end.div_ceil(BLOCK_SIZE))? {
            let base = number * BLOCK_SIZE;
            for extent in block.extents {
                let from = (base + u64::from(extent.start)).max(start);
                let to = (base + u64::from(extent.start) + u64::from(extent.len)).min(end);
                if from >= to {
                    continue;
                }
                let first = u64::from(extent.chunk_offset) + (from - base - u64::from(extent.start));
                let Ok(first) = u32::try_from(first) else { return Err(damaged(inode)) };
                // Fits: it is a part of an extent.
                sources.push(Source { at: from, len: (to - from) as u32, hash: extent.chunk, first });
            }
        }
    }
    Ok(sources)
}

/// Puts together what lies near one another.
pub fn reads(items: Vec<Item>) -> Reads {
    let mut reads = Reads::default();
    let mut packed: Vec<(PackId, Range<u64>, Item)> = Vec::with_capacity(items.len());
    for item in items {
        match &item.chunk.location {
            Location::Inline(_) => reads.inline.push(item),
            Location::Pack { pack, offset } => {
                let stored = &item.part.stored;
                let range =
                    u64::from(*offset) + u64::from(stored.start)..u64::from(*offset) + u64::from(stored.end);
                packed.push((*pack, range, item));
            }
        }
    }
    packed.sort_by_key(|(pack, range, _)| (*pack, range.start, range.end));
    for (pack, range, item) in packed {
        match reads.gets.last_mut() {
            Some(get)
                if get.pack == pack
                    && range.start <= get.range.end + GAP
                    && range.end.max(get.range.end) - get.range.start <= GET_MAX =>
            {
                get.range.end = get.range.end.max(range.end);
                get.items.push(item);
            }
            _ => reads.gets.push(Get { pack, range, items: vec![item] }),
        }
    }
    reads
}

impl Source {
    /// What of `sources` lies in `start..end`.
    pub fn within(sources: &[Self], start: u64, end: u64) -> impl Iterator<Item = Self> + '_ {
        sources.iter().filter_map(move |source| {
            let (from, to) = (source.at.max(start), (source.at + u64::from(source.len)).min(end));
            // Both fit: they are parts of an extent.
            (from < to).then(|| Self {
                at: from,
                len: (to - from) as u32,
                hash: source.hash,
                first: source.first + (from - source.at) as u32,
            })
        })
    }
}

impl Item {
    /// Whether their chunk is not where it was any more.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn has_moved(&self, index: &Index) -> Result<bool, VolumeError> {
        Ok(index.chunk(&self.hash)?.is_none_or(|now| now.location != self.chunk.location))
    }

    /// Where they come from.
    pub fn source(&self) -> Source {
        Source { at: self.at, len: self.len, hash: self.hash, first: self.part.bytes.start + self.skip }
    }

    /// The bytes of an item in the metadata.
    ///
    /// # Errors
    /// Where they are damaged.
    pub fn inline(&self) -> Result<Bytes, VolumeError> {
        let Location::Inline(stored) = &self.chunk.location else { return Ok(Bytes::new()) };
        let (start, end) = (self.part.stored.start as usize, self.part.stored.end as usize);
        let stored = stored.get(start..end).unwrap_or(&[]);
        let bytes = pack::read_part(&self.hash, &self.chunk, &self.part, stored, "the metadata")?;
        Ok(self.of_part(&Bytes::from(bytes.into_owned())))
    }

    fn of_part(&self, part: &Bytes) -> Bytes {
        let start = self.skip as usize;
        let end = start + self.len as usize;
        if end <= part.len() { part.slice(start..end) } else { Bytes::new() }
    }
}

impl Get {
    /// Calls `each` with every item's bytes, or with what is wrong with them. Those that are not compressed are parts of what
    /// was `read`: they are not copied, and keep its memory.
    pub fn unpack(&self, read: &Bytes, each: &mut Take<'_>) {
        let place = format!("pack {:032x}", u128::from_be_bytes(self.pack));
        let mut last: Option<(&Item, Result<Bytes, VolumeError>)> = None;
        for item in &self.items {
            let same = |before: &Item| before.hash == item.hash && before.part == item.part;
            let part = match last.take().filter(|(before, _)| same(before)) {
                Some((_, part)) => part,
                None => self.part(item, read, &place),
            };
            each(item, part.as_ref().map(|part| item.of_part(part)).map_err(Clone::clone));
            last = Some((item, part));
        }
    }

    fn part(&self, item: &Item, read: &Bytes, place: &str) -> Result<Bytes, VolumeError> {
        let Location::Pack { offset, .. } = item.chunk.location else { return Ok(Bytes::new()) };
        let stored = &item.part.stored;
        let start = (u64::from(offset) + u64::from(stored.start)).saturating_sub(self.range.start) as usize;
        let stored = read.get(start..start + (stored.end - stored.start) as usize).unwrap_or(&[]);
        Ok(match pack::read_part(&item.hash, &item.chunk, &item.part, stored, place)? {
            Cow::Borrowed(part) => read.slice_ref(part),
            Cow::Owned(part) => part.into(),
        })
    }
}
