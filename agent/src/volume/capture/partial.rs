//! Captures of files of which only some pieces are on this disk. What is absent is neither read nor taken for a hole; what
//! somebody has written into it all the same is found by asking the file where it has data. It must not know how pieces
//! come and go.

use std::fs::File;
use std::ops::Range;

use storeshim_protocol::residency::PIECE as ABSENT_PIECE;

use super::{Before, CaptureError, Captured, Edit, PIECE, PieceSink, read_data, read_into, segments};
use crate::blob::pack;
use crate::meta::records::{BLOCK_SIZE, Block, FRAME_SIZE};
use crate::volume::index::Pieces;

/// The parts of the bytes `start..end` that are here, in order.
pub(super) fn present(absent: &Pieces, start: u64, end: u64) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut at = start;
    for gone in absent.within(start / ABSENT_PIECE..end.div_ceil(ABSENT_PIECE)) {
        let (from, to) = (gone.start * ABSENT_PIECE, gone.end.saturating_mul(ABSENT_PIECE));
        if at < from {
            found.push(at..from.min(end));
        }
        at = to.max(at);
    }
    if at < end {
        found.push(at..end);
    }
    found
}

/// Whether something of the bytes `start..end` is absent.
pub(super) fn is_torn(absent: &Pieces, start: u64, end: u64) -> bool {
    absent.within(start / ABSENT_PIECE..end.div_ceil(ABSENT_PIECE)).next().is_some()
}

/// Captures what was written into absent pieces by somebody who did not ask for them. Nobody may hydrate the file meanwhile.
pub fn written_into(
    file: &File,
    size: u64,
    before: &dyn Before,
    sink: &mut dyn PieceSink,
) -> Result<Captured, CaptureError> {
    let mut found = Captured::default();
    for gone in before.absent().iter() {
        let (start, end) = (gone.start * ABSENT_PIECE, gone.end.saturating_mul(ABSENT_PIECE).min(size));
        for (from, to) in segments(file, start, end.max(start))? {
            read_data(file, from, to, before, &mut found, sink)?;
        }
    }
    Ok(found)
}

/// Compares what is here of a block of which something is absent.
pub(super) fn compare_block(
    file: &File,
    range: Range<u64>,
    before: &dyn Before,
    found: &mut Captured,
    sink: &mut dyn PieceSink,
) -> Result<(), CaptureError> {
    let block = range.start / BLOCK_SIZE;
    let extents = before.block(block)?;
    let mut prints = before.fingerprints(block)?;
    let had_prints = prints.is_some();
    let mut any = false;
    for part in present(before.absent(), range.start, range.end) {
        let mut at = part.start;
        while at < part.end {
            let end = ((at / ABSENT_PIECE + 1) * ABSENT_PIECE).min(part.end);
            let segments = segments(file, at, end)?;
            let mut bytes = vec![0u8; (end - at) as usize];
            for (from, to) in &segments {
                let part = bytes.get_mut((from - at) as usize..(to - at) as usize);
                read_into(file, *from, part.unwrap_or(&mut []))?;
            }
            let stored = if had_prints {
                Some(true)
            } else {
                is_as_stored(extents.as_ref(), before, at - range.start, &bytes)?
            };
            let mut changed = stored != Some(true);
            let edits = found.edits.len();
            if let Some(prints) = &mut prints {
                for (n, piece) in bytes.chunks(PIECE as usize).enumerate() {
                    let hash = blake3::hash(piece);
                    let print = hash.as_bytes().first_chunk::<16>().copied().unwrap_or_default();
                    match prints.0.get_mut(((at - range.start) / PIECE) as usize + n) {
                        Some(old) if *old == print => {}
                        Some(old) => (*old, changed) = (print, true),
                        None => changed = true,
                    }
                }
            }
            if changed {
                any = true;
                found.edits.push(Edit::Hole { start: at, end });
                for (from, to) in segments {
                    let part = bytes.get((from - at) as usize..(to - at) as usize).unwrap_or(&[]);
                    found.edits.push(Edit::Data { start: from, piece: sink.piece(part.to_vec())? });
                }
            }
            if stored.is_none() {
                found.unproven += found.edits.len() - edits;
            }
            at = end;
        }
    }
    if any {
        found.fingerprints.insert(block, prints);
    }
    Ok(())
}

/// Whether the bytes at `at` of a block are those of the frame that its only chunk has there; `None` where it has more, or other ones
/// than whole frames, so that nothing tells.
fn is_as_stored(
    block: Option<&Block>,
    before: &dyn Before,
    at: u64,
    bytes: &[u8],
) -> Result<Option<bool>, CaptureError> {
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let Some(block) = block else { return Ok(Some(is_zero(bytes))) };
    if !block
        .extents
        .iter()
        .any(|e| u64::from(e.start) < at + bytes.len() as u64 && u64::from(e.start) + u64::from(e.len) > at)
    {
        return Ok(Some(is_zero(bytes)));
    }
    let [extent] = block.extents.as_slice() else { return Ok(None) };
    if (extent.start, extent.chunk_offset) != (0, 0) {
        return Ok(None);
    }
    let Some(chunk) = before.chunk(&extent.chunk)?.filter(|chunk| chunk.len == extent.len) else {
        return Ok(None);
    };
    // A chunk that ends before these bytes do: what is beyond it is a hole.
    let Some(len) = u64::from(extent.len).checked_sub(at) else { return Ok(None) };
    let (inside, beyond) = bytes.split_at((bytes.len() as u64).min(len) as usize);
    let same = match chunk.frames.get((at / u64::from(FRAME_SIZE)) as usize) {
        Some(frame) => pack::frame_hash(inside) == frame.hash,
        None => chunk.frames.is_empty() && at == 0 && blake3::hash(inside).as_bytes() == &extent.chunk,
    };
    Ok(Some(same && is_zero(beyond)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_here_is_what_is_not_absent() {
        const P: u64 = ABSENT_PIECE;
        let mut absent = Pieces::of(1..2);
        absent.add(4..9);
        assert_eq!(present(&absent, 0, 10 * P), [0..P, 2 * P..4 * P, 9 * P..10 * P]);
        assert_eq!(present(&absent, P + 5, 2 * P + 7).first(), Some(&(2 * P..2 * P + 7)));
        assert!(present(&absent, 5 * P, 6 * P + 1).is_empty());
        assert_eq!(present(&Pieces::default(), 3, 4).first(), Some(&(3..4)));
        assert!(is_torn(&absent, 0, P + 1) && !is_torn(&absent, 0, P));
    }
}
