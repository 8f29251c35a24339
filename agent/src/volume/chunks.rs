//! The chunks that a cut brings: named, looked up, compressed, put together into packs that go up while the cut is
//! still being made. What is little stays inline, so that a small commit is one PUT. It must not know which file
//! a chunk belongs to.

use std::collections::HashMap;

use super::VolumeError;
use super::capture::{CaptureError, Piece, PieceSink};
use super::commit::{Ticket, Uploader};
use super::index::Index;
use super::plan::NewChunks;
use crate::blob::pack::{Encoded, PackError, PackWriter};
use crate::meta::records::{Chunk, ChunkHash, Frame, Location, PackId};

/// New chunks of one cut that together take no more than this are kept in the metadata, in bytes as stored.
const INLINE_MAX: usize = 192 << 10;

/// See the module.
pub struct ChunkStore<'a> {
    index: &'a Index,
    uploader: &'a Uploader,
    /// Not in a pack yet.
    loose: Vec<Encoded>,
    loose_bytes: usize,
    packed: bool,
    pack: PackWriter,
    /// Of each chunk of `pack`, in its order.
    frames: Vec<Vec<Frame>>,
    new: HashMap<ChunkHash, Option<Chunk>>,
    packs: Vec<(PackId, u64)>,
    uploads: Vec<Ticket>,
    /// Bytes as stored, for the status.
    pub stored: u64,
}

impl From<PackError> for VolumeError {
    fn from(e: PackError) -> Self {
        Self::Failed(e.to_string())
    }
}

impl<'a> ChunkStore<'a> {
    /// A store for one cut.
    pub fn new(index: &'a Index, uploader: &'a Uploader) -> Self {
        Self {
            index,
            uploader,
            loose: Vec::new(),
            loose_bytes: 0,
            packed: false,
            pack: PackWriter::new(),
            frames: Vec::new(),
            new: HashMap::new(),
            packs: Vec::new(),
            uploads: Vec::new(),
            stored: 0,
        }
    }

    /// The uploads that the commit has to wait for.
    pub fn take_uploads(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.uploads)
    }

    fn pack_loose(&mut self) -> Result<(), VolumeError> {
        self.packed = true;
        self.loose_bytes = 0;
        for chunk in std::mem::take(&mut self.loose) {
            self.append(chunk)?;
        }
        Ok(())
    }

    fn append(&mut self, chunk: Encoded) -> Result<(), VolumeError> {
        if !self.pack.fits(chunk.stored.len()) {
            self.send_pack();
        }
        self.pack.append(&chunk)?;
        self.frames.push(chunk.frames);
        Ok(())
    }

    fn send_pack(&mut self) {
        let pack = std::mem::take(&mut self.pack);
        if pack.is_empty() {
            return;
        }
        let id: PackId = rand::random();
        let (bytes, entries) = pack.finish();
        for (entry, frames) in entries.iter().zip(std::mem::take(&mut self.frames)) {
            self.new.insert(entry.hash, Some(entry.record(frames, id, 0)));
        }
        self.packs.push((id, bytes.len() as u64));
        self.uploads.push(self.uploader.send(id, bytes));
    }
}

impl NewChunks for ChunkStore<'_> {
    fn store(&mut self, bytes: &[u8]) -> Result<ChunkHash, VolumeError> {
        let hash = *blake3::hash(bytes).as_bytes();
        if self.new.contains_key(&hash) || self.index.chunk(&hash)?.is_some() {
            return Ok(hash);
        }
        self.new.insert(hash, None);
        let chunk = Encoded::new(hash, bytes)?;
        self.stored += chunk.stored.len() as u64;
        if self.packed {
            self.append(chunk)?;
        } else {
            self.loose_bytes += chunk.stored.len();
            self.loose.push(chunk);
            if self.loose_bytes > INLINE_MAX {
                self.pack_loose()?;
            }
        }
        Ok(hash)
    }

    fn finish(&mut self) -> Result<(), VolumeError> {
        for chunk in std::mem::take(&mut self.loose) {
            let record = Chunk {
                refs: 0,
                len: chunk.len,
                stored_len: chunk.stored.len() as u32,
                codec: chunk.codec,
                frames: chunk.frames,
                location: Location::Inline(chunk.stored),
            };
            self.new.insert(chunk.hash, Some(record));
        }
        self.send_pack();
        Ok(())
    }

    fn record(&self, hash: &ChunkHash) -> Option<Chunk> {
        self.new.get(hash).cloned().flatten()
    }

    fn packs(&self) -> Vec<(PackId, u64)> {
        self.packs.clone()
    }
}

impl PieceSink for ChunkStore<'_> {
    fn piece(&mut self, bytes: Vec<u8>) -> Result<Piece, CaptureError> {
        let len = bytes.len() as u32;
        let chunk = self.store(&bytes)?;
        Ok(Piece::Stored { chunk, len })
    }
}
