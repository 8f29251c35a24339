//! Where a file has data and where holes, and what it would take of a disk: as the volume has it where pieces are absent, as
//! the file itself has it where they are here. It must not know who asks.

use std::ops::Range;

use storeshim_protocol::residency::PIECE;

use super::Residency;
use super::find::Inode;
use crate::meta::records::BLOCK_SIZE;
use crate::volume::VolumeError;
use crate::volume::capture;
use crate::volume::index::Pieces;

/// What st_blocks counts in, and what a filesystem gives out at once.
const SECTOR: u64 = 512;
const PAGE: u64 = 4096;
/// Bytes of a file that are looked at in one step.
const STEP: u64 = 256 << 20;

/// An answer, or an errno.
type Answer = Result<Result<u64, i32>, VolumeError>;

impl Residency {
    /// Where data (or a hole) begins, from `start` on; see lseek(2), SEEK_DATA.
    ///
    /// # Errors
    /// Where index or tree cannot be read.
    pub fn seek(&self, ino: u64, start: u64, hole: bool) -> Answer {
        let Some(found) = self.find_any(ino)? else { return Ok(Err(libc::EIO)) };
        let size = found.stat.size;
        if start >= size {
            return Ok(Err(libc::ENXIO));
        }
        let mut at = start;
        while at < size {
            let upto = at.saturating_add(STEP).min(size);
            for data in self.data(&found, at..upto)? {
                match hole {
                    false => return Ok(Ok(data.start.max(start))),
                    true if data.start > at => return Ok(Ok(at)),
                    true => at = data.end,
                }
            }
            if hole && at < upto {
                return Ok(Ok(at));
            }
            at = upto;
        }
        Ok(if hole { Ok(size) } else { Err(libc::ENXIO) })
    }

    /// The number of 512-byte blocks that a file would take.
    ///
    /// # Errors
    /// As [`Residency::seek`].
    pub fn blocks(&self, ino: u64) -> Answer {
        let Some(found) = self.find_any(ino)? else { return Ok(Err(libc::EIO)) };
        let (mut at, mut pages, mut last) = (0, 0, u64::MAX);
        while at < found.stat.size {
            let upto = at.saturating_add(STEP).min(found.stat.size);
            for data in self.data(&found, at..upto)? {
                let (first, end) = (data.start / PAGE, data.end.div_ceil(PAGE));
                pages += end - first - u64::from(first == last);
                last = end - 1;
            }
            at = upto;
        }
        Ok(Ok(pages * PAGE / SECTOR))
    }

    /// The parts of `range` that have data, in order and merged.
    fn data(&self, found: &Inode, range: Range<u64>) -> Result<Vec<Range<u64>>, VolumeError> {
        let pieces = range.start / PIECE..range.end.div_ceil(PIECE);
        let mut absent = Pieces::default();
        self.files
            .lock(found.inode)
            .absent(&self.index)?
            .within(pieces.clone())
            .for_each(|part| absent.add(part));
        let mut data: Vec<Range<u64>> = Vec::new();
        let mut add = |start: u64, end: u64| match data.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ if start < end => data.push(start..end),
            _ => {}
        };
        let clip = |part: &Range<u64>| {
            (part.start * PIECE).max(range.start)..part.end.saturating_mul(PIECE).min(range.end)
        };
        let mut file = None;
        let mut at = pieces.start;
        while at < pieces.end {
            let part = absent.within(at..pieces.end).next();
            let (here, gone) = match part {
                Some(part) if part.start == at => (at..at, part),
                Some(part) => (at..part.start, part.start..part.start),
                None => (at..pieces.end, pieces.end..pieces.end),
            };
            if !here.is_empty() {
                let bytes = clip(&here);
                let file = match &file {
                    Some(file) => file,
                    None => file.insert(
                        {
                            let _locked = self.files.lock(found.inode);
                            self.open_to_look(found)
                        }
                        .map_err(|e| self.cannot_read(found, &e))?,
                    ),
                };
                let segments = capture::segments(file, bytes.start, bytes.end);
                segments.map_err(|e| self.cannot_read(found, &e))?.into_iter().for_each(|(s, e)| add(s, e));
            }
            if !gone.is_empty() {
                let bytes = clip(&gone);
                // Who is let in by the guard waits until nobody has it by this descriptor.
                file = None;
                self.index.load_file(found.inode, bytes.clone(), self.until())?;
                let blocks = bytes.start / BLOCK_SIZE..bytes.end.div_ceil(BLOCK_SIZE);
                for number in self.index.block_numbers(found.inode, blocks.start, blocks.end)? {
                    for extent in self.index.block(found.inode, number)?.unwrap_or_default().extents {
                        let start = number * BLOCK_SIZE + u64::from(extent.start);
                        let end = start + u64::from(extent.len);
                        if start < bytes.end && end > bytes.start {
                            add(start.max(bytes.start), end.min(bytes.end));
                        }
                    }
                }
            }
            at = here.end.max(gone.end);
        }
        Ok(data)
    }

    fn cannot_read(&self, found: &Inode, error: &std::io::Error) -> VolumeError {
        VolumeError::Failed(format!(
            "the file with inode {} of the volume cannot be read below {}: {error}; mend the disk",
            found.inode,
            self.tree.path().display()
        ))
    }
}
