//! Reads what changed of a file's data, as edits of its extents. It must not know why it is asked to.

mod partial;

pub use self::partial::written_into;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::dirty::Ranges;
use super::index::{Fingerprints, Pieces};
use crate::meta::records::{BLOCK_SIZE, Block, Chunk, ChunkHash};

/// Bytes of a file that one fingerprint covers.
pub const PIECE: u64 = 64 << 10;
/// Told ranges are widened to this, so that neighbouring small writes become one chunk.
const PAGE: u64 = 4096;
/// A block with more extents than this is captured whole the next time that it changes.
const FRAGMENTS_MAX: usize = 48;

/// Bytes that were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Still in memory.
    Raw(Vec<u8>),
    /// Handed to the chunk store already.
    Stored {
        /// Name of the chunk.
        chunk: ChunkHash,
        /// Its length.
        len: u32,
    },
}

/// A change of a file's extents; later ones win. No data crosses the border of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Data from byte `start` on.
    Data {
        /// First byte.
        start: u64,
        /// The bytes.
        piece: Piece,
    },
    /// No data in `start..end`, which may cross blocks.
    Hole {
        /// First byte.
        start: u64,
        /// Byte after the last.
        end: u64,
    },
}

impl Edit {
    /// Its first byte.
    pub fn start(&self) -> u64 {
        match self {
            Self::Data { start, .. } | Self::Hole { start, .. } => *start,
        }
    }
}

/// Where captured bytes go. In a freeze they are kept in memory (nothing must take long); outside they are stored
/// at once, so that memory stays bounded however large the change is.
pub trait PieceSink {
    /// Takes bytes over.
    fn piece(&mut self, bytes: Vec<u8>) -> Result<Piece, CaptureError>;
}

/// Why a capture ended early.
#[derive(Debug)]
pub enum CaptureError {
    /// The tree could not be read.
    Io(io::Error),
    /// More than a freeze may take: look outside of it first.
    TooMuch,
    /// The chunk store gave up; the reason is its own.
    Store(super::VolumeError),
}

impl From<io::Error> for CaptureError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

/// What is known of the data as it was before, block by block.
pub trait Before {
    /// Extents of a block, where they are certain (not touched by edits of this cut).
    fn block(&self, block: u64) -> Result<Option<Block>, CaptureError>;
    /// A chunk that extents name.
    fn chunk(&self, hash: &ChunkHash) -> Result<Option<Chunk>, CaptureError>;
    /// Pieces that are not on this disk.
    fn absent(&self) -> &Pieces;
    /// Fingerprints of a block's pieces.
    fn fingerprints(&self, block: u64) -> Result<Option<Fingerprints>, CaptureError>;
    /// Numbers of the blocks in `first..end` of which anything is known.
    fn blocks(&self, first: u64, end: u64) -> Result<Vec<u64>, CaptureError>;
    /// To be asked once per block: an error where the look has lasted long enough.
    fn in_time(&self) -> Result<(), CaptureError>;
}

/// What a capture found.
#[derive(Debug, Default)]
pub struct Captured {
    /// See [`Edit`].
    pub edits: Vec<Edit>,
    /// How many of them may say what stood there before: nothing is known by which the two could be compared.
    pub unproven: usize,
    /// Fingerprints: new ones, or `None` for a block whose old ones do not hold any more.
    pub fingerprints: BTreeMap<u64, Option<Fingerprints>>,
}

/// Captures the told ranges, widened to pages and clipped to `size`.
pub fn ranges(
    file: &File,
    size: u64,
    ranges: &Ranges,
    before: &dyn Before,
    sink: &mut dyn PieceSink,
) -> Result<Captured, CaptureError> {
    let mut wide = Ranges::default();
    for (start, end) in ranges.iter() {
        wide.add(start / PAGE * PAGE, end.div_ceil(PAGE).saturating_mul(PAGE).min(size));
    }
    let mut found = Captured::default();
    let mut by_block: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for (start, end) in wide.iter() {
        if end - start > BLOCK_SIZE {
            read(file, start, end, before, &mut found, sink)?;
        } else {
            each_block(start, end, |block, start, end| {
                by_block.entry(block).or_default().push((start, end));
                Ok(())
            })?;
        }
    }
    for (block, parts) in by_block {
        let fragments = before.block(block)?.map_or(0, |b| b.extents.len());
        let touched: u64 = parts.iter().map(|(start, end)| end - start).sum();
        if fragments + parts.len() > FRAGMENTS_MAX || touched > BLOCK_SIZE / 2 {
            let end = ((block + 1) * BLOCK_SIZE).min(size);
            read(file, block * BLOCK_SIZE, end, before, &mut found, sink)?;
        } else {
            for (start, end) in parts {
                read(file, start, end, before, &mut found, sink)?;
            }
        }
    }
    Ok(found)
}

/// Captures `from..size`: all of a new file, or what was appended.
pub fn tail(
    file: &File,
    from: u64,
    size: u64,
    before: &dyn Before,
    sink: &mut dyn PieceSink,
) -> Result<Captured, CaptureError> {
    let mut found = Captured::default();
    read(file, from, size, before, &mut found, sink)?;
    Ok(found)
}

/// Reads all of the file and captures what is not as it was.
pub fn compare(
    file: &File,
    size: u64,
    before: &dyn Before,
    sink: &mut dyn PieceSink,
) -> Result<Captured, CaptureError> {
    let mut found = Captured::default();
    // However large the file: only blocks that have data, or had.
    let mut blocks: BTreeSet<u64> = before.blocks(0, size.div_ceil(BLOCK_SIZE))?.into_iter().collect();
    for (start, end) in segments(file, 0, size)? {
        blocks.extend(start / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE));
    }
    for block in blocks {
        before.in_time()?;
        let (start, end) = (block * BLOCK_SIZE, ((block + 1) * BLOCK_SIZE).min(size));
        if partial::is_torn(before.absent(), start, end) {
            partial::compare_block(file, start..end, before, &mut found, sink)?;
            continue;
        }
        let segments = segments(file, start, end)?;
        let mut prints = Vec::new();
        let mut bytes = vec![0u8; (end - start) as usize];
        for (from, to) in &segments {
            let part = bytes.get_mut((from - start) as usize..(to - start) as usize);
            read_into(file, *from, part.unwrap_or(&mut []))?;
        }
        for piece in bytes.chunks(PIECE as usize) {
            let hash = blake3::hash(piece);
            prints.push(hash.as_bytes().first_chunk::<16>().copied().unwrap_or_default());
        }
        let old = before.fingerprints(block)?;
        if old.is_none() && is_same_chunk(before.block(block)?, start, &segments, &bytes) {
            found.fingerprints.insert(block, Some(Fingerprints(prints)));
            continue;
        }
        let proven = old.is_some() || is_one_chunk(before.block(block)?.as_ref());
        let edits = found.edits.len();
        let changed = |i: usize| old.as_ref().is_none_or(|o| o.0.get(i) != prints.get(i));
        let mut i = 0;
        let mut any = false;
        while i < prints.len() {
            let first = i;
            while i < prints.len() && changed(i) {
                i += 1;
            }
            if i > first {
                any = true;
                let (low, high) = (start + first as u64 * PIECE, (start + i as u64 * PIECE).min(end));
                found.edits.push(Edit::Hole { start: low, end: high });
                for (from, to) in &segments {
                    let (from, to) = ((*from).max(low), (*to).min(high));
                    if from < to {
                        let part = bytes.get((from - start) as usize..(to - start) as usize).unwrap_or(&[]);
                        found.edits.push(Edit::Data { start: from, piece: sink.piece(part.to_vec())? });
                    }
                }
            }
            i = i.max(first + 1);
        }
        if !proven {
            found.unproven += found.edits.len() - edits;
        }
        if any || old.is_none() {
            found.fingerprints.insert(block, Some(Fingerprints(prints)));
        }
    }
    Ok(found)
}

/// Whether a block has no data, or one chunk from its beginning on: its bytes then can be compared with that.
fn is_one_chunk(block: Option<&Block>) -> bool {
    match block.map(|block| block.extents.as_slice()) {
        None | Some([]) => true,
        Some([extent]) => extent.chunk_offset == 0,
        Some(_) => false,
    }
}

/// Whether a block is one chunk that has these very bytes.
fn is_same_chunk(block: Option<Block>, start: u64, segments: &[(u64, u64)], bytes: &[u8]) -> bool {
    let (Some(block), [(from, to)]) = (block, segments) else { return false };
    let [extent] = block.extents.as_slice() else { return false };
    let base = start / BLOCK_SIZE * BLOCK_SIZE;
    let data = bytes.get((from - start) as usize..(to - start) as usize).unwrap_or(&[]);
    u64::from(extent.start) + base == *from
        && u64::from(extent.len) == to - from
        && extent.chunk_offset == 0
        && blake3::hash(data).as_bytes() == &extent.chunk
}

/// Calls `each` with the parts of `start..end` that lie in one block each.
fn each_block(
    start: u64,
    end: u64,
    mut each: impl FnMut(u64, u64, u64) -> Result<(), CaptureError>,
) -> Result<(), CaptureError> {
    let mut at = start;
    while at < end {
        let block = at / BLOCK_SIZE;
        let next = ((block + 1) * BLOCK_SIZE).min(end);
        each(block, at, next)?;
        at = next;
    }
    Ok(())
}

/// Captures what is here of `start..end`.
fn read(
    file: &File,
    start: u64,
    end: u64,
    before: &dyn Before,
    found: &mut Captured,
    sink: &mut dyn PieceSink,
) -> Result<(), CaptureError> {
    partial::present(before.absent(), start, end)
        .into_iter()
        .try_for_each(|part| read_present(file, part.start, part.end, before, found, sink))
}

/// Captures bytes that are data from end to end.
fn read_data(
    file: &File,
    start: u64,
    end: u64,
    before: &dyn Before,
    found: &mut Captured,
    sink: &mut dyn PieceSink,
) -> Result<(), CaptureError> {
    each_block(start, end, |block, from, to| {
        before.in_time()?;
        let mut bytes = vec![0u8; (to - from) as usize];
        read_into(file, from, &mut bytes)?;
        found.edits.push(Edit::Data { start: from, piece: sink.piece(bytes)? });
        found.fingerprints.insert(block, None);
        Ok(())
    })
}

fn read_present(
    file: &File,
    start: u64,
    end: u64,
    before: &dyn Before,
    found: &mut Captured,
    sink: &mut dyn PieceSink,
) -> Result<(), CaptureError> {
    let hole = |from: u64, to: u64, found: &mut Captured| -> Result<(), CaptureError> {
        if from < to {
            found.edits.push(Edit::Hole { start: from, end: to });
            for block in before.blocks(from / BLOCK_SIZE, to.div_ceil(BLOCK_SIZE))? {
                found.fingerprints.insert(block, None);
            }
        }
        Ok(())
    };
    let mut hole_from = start;
    for (from, to) in segments(file, start, end)? {
        hole(hole_from, from, found)?;
        read_data(file, from, to, before, found, sink)?;
        hole_from = to;
    }
    hole(hole_from, end, found)
}

/// Reads `bytes.len()` bytes; what lies beyond the end of the file (truncated meanwhile) stays zero.
fn read_into(file: &File, start: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|r| !r.is_empty()) {
        match file.read_at(rest, start + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The parts of `start..end` that have data (lseek(2) SEEK_DATA, SEEK_HOLE), in order.
pub fn segments(file: &File, start: u64, end: u64) -> io::Result<Vec<(u64, u64)>> {
    let seek = |at: u64, whence| {
        // SAFETY: no memory is passed. Nobody reads at the offset that this moves.
        let found = unsafe { libc::lseek(file.as_raw_fd(), at as i64, whence) };
        if found < 0 { Err(io::Error::last_os_error()) } else { Ok(found as u64) }
    };
    let mut found = Vec::new();
    let mut at = start;
    while at < end {
        let data = match seek(at, libc::SEEK_DATA) {
            Ok(data) => data.min(end),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => break,
            // A filesystem without the notion: all is data.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => at,
            Err(e) => return Err(e),
        };
        let hole = seek(data, libc::SEEK_HOLE).unwrap_or(end).clamp(data, end);
        if data < hole {
            found.push((data, hole));
        }
        at = hole.max(at + 1);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use crate::meta::records::Extent;

    struct Keep;
    impl PieceSink for Keep {
        fn piece(&mut self, bytes: Vec<u8>) -> Result<Piece, CaptureError> {
            Ok(Piece::Raw(bytes))
        }
    }

    #[derive(Default)]
    struct Known(BTreeMap<u64, Fingerprints>, Pieces, Option<Block>);
    impl Before for Known {
        fn chunk(&self, _: &ChunkHash) -> Result<Option<Chunk>, CaptureError> {
            Ok(None)
        }
        fn absent(&self) -> &Pieces {
            &self.1
        }
        fn block(&self, _: u64) -> Result<Option<Block>, CaptureError> {
            Ok(self.2.clone())
        }
        fn fingerprints(&self, block: u64) -> Result<Option<Fingerprints>, CaptureError> {
            Ok(self.0.get(&block).cloned())
        }
        fn blocks(&self, first: u64, end: u64) -> Result<Vec<u64>, CaptureError> {
            Ok(self.0.range(first..end).map(|(block, _)| *block).collect())
        }
        fn in_time(&self) -> Result<(), CaptureError> {
            Ok(())
        }
    }

    fn data(edits: &[Edit]) -> Vec<(u64, usize)> {
        edits
            .iter()
            .filter_map(|e| match e {
                Edit::Data { start, piece: Piece::Raw(bytes) } => Some((*start, bytes.len())),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn holes_are_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_at(b"x", 32 << 20).unwrap();
        let found = tail(&file, 0, 64 << 20, &Known::default(), &mut Keep).unwrap();
        assert_eq!(data(&found.edits), [(32 << 20, 4096)]);
    }

    #[test]
    fn emptiness_costs_nothing() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(15 << 40).unwrap();
        let mut all = Ranges::default();
        all.add(0, u64::MAX);
        let found = ranges(&file, 15 << 40, &all, &Known::default(), &mut Keep).unwrap();
        assert_eq!(found.edits, [Edit::Hole { start: 0, end: 15 << 40 }]);
        assert!(compare(&file, 15 << 40, &Known::default(), &mut Keep).unwrap().edits.is_empty());
    }

    /// A block that was written in parts, on a node that has not read it itself: it is taken up, but nobody is accused of a change.
    #[test]
    fn what_cannot_be_compared_is_captured_and_not_called_changed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 400_000]).unwrap();
        let extent = |start, len| Extent { start, len, chunk: [7; 32], chunk_offset: 0 };
        let two = Block { extents: vec![extent(0, 200_000), extent(200_000, 200_000)] };
        let one = Block { extents: vec![extent(0, 400_000)] };
        let torn = Pieces::of(3..4);
        let whole = Pieces::default;
        for (block, absent, unproven) in
            [(two.clone(), whole(), true), (two, torn, true), (one, whole(), false)]
        {
            let found =
                compare(&file, 400_000, &Known(BTreeMap::new(), absent, Some(block)), &mut Keep).unwrap();
            assert!(!found.edits.is_empty());
            assert_eq!(found.unproven, if unproven { found.edits.len() } else { 0 });
        }
    }

    #[test]
    fn told_ranges_cost_pages() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 10 << 20]).unwrap();
        let mut told = Ranges::default();
        told.add(5_000_000, 5_000_010);
        told.add(10 << 20, u64::MAX);
        let found = ranges(&file, 10 << 20, &told, &Known::default(), &mut Keep).unwrap();
        assert_eq!(data(&found.edits), [(5_000_000 / 4096 * 4096, 4096)]);
    }

    #[test]
    fn comparing_finds_the_piece_that_changed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 6 << 20]).unwrap();
        let first = compare(&file, 6 << 20, &Known::default(), &mut Keep).unwrap();
        assert_eq!(data(&first.edits), [(0, 4 << 20), (4 << 20, 2 << 20)]);
        let prints = first.fingerprints.into_iter().filter_map(|(b, f)| Some((b, f?)));
        let mut known = Known(prints.collect(), Pieces::default(), None);
        let again = compare(&file, 6 << 20, &known, &mut Keep).unwrap();
        assert!(again.edits.is_empty() && again.fingerprints.is_empty());
        file.write_at(b"!", 5 << 20).unwrap();
        let found = compare(&file, 6 << 20, &known, &mut Keep).unwrap();
        assert_eq!(data(&found.edits), [(5 << 20, PIECE as usize)]);
        // The block is partly absent, and nobody may have written there.
        known.1 = Pieces::of(40..48);
        let found = compare(&file, 6 << 20, &known, &mut Keep).unwrap();
        assert!(found.edits.is_empty(), "{:?}", data(&found.edits));
        file.write_at(b"!", 4 << 20).unwrap();
        let found = compare(&file, 6 << 20, &known, &mut Keep).unwrap();
        assert_eq!(data(&found.edits), [(4 << 20, 2 * PIECE as usize)]);
    }

    #[test]
    fn what_is_absent_is_no_hole_and_what_was_written_there_is_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        let known = Known(BTreeMap::new(), Pieces::of(0..16), None);
        let found = tail(&file, 0, 4 << 20, &known, &mut Keep).unwrap();
        assert_eq!(found.edits, [Edit::Hole { start: 2 << 20, end: 4 << 20 }]);
        assert!(written_into(&file, 4 << 20, &known, &mut Keep).unwrap().edits.is_empty());
        file.write_at(b"x", 1 << 20).unwrap();
        file.write_at(b"x", 3 << 20).unwrap();
        let found = written_into(&file, 4 << 20, &known, &mut Keep).unwrap();
        assert_eq!(data(&found.edits), [(1 << 20, 4096)]);
    }
}
