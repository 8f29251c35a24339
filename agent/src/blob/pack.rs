//! The layout of a pack: stored chunks one after another, and a trailer that lists them, so that a pack can be checked
//! without the volume's metadata. It must not know where packs are kept or what a chunk is used for.
//!
//! ```text
//!  0            first chunk as stored (raw bytes, or a zstd frame for each 128 KiB)
//!  …            second chunk, and so on, without gaps
//!  T            trailer: one entry of 48 bytes per chunk, in order of offset
//!               ┌──────────────────┬──────────┬──────────┬────────────┬─────────┬──────────┐
//!               │ BLAKE3 of bytes  │ offset   │ length   │ stored len │ codec   │ zero     │
//!               │ 32               │ u32      │ u32      │ u32        │ u8      │ 3        │
//!               └──────────────────┴──────────┴──────────┴────────────┴─────────┴──────────┘
//!  end - 48     footer
//!               ┌──────────────────┬──────────┬──────────┬──────────────────────────────────┐
//!               │ BLAKE3 of        │ entries  │ version  │ magic "SSPACK\0\n"               │
//!               │ trailer 32       │ u32      │ u32 = 1  │ 8                                │
//!               └──────────────────┴──────────┴──────────┴──────────────────────────────────┘
//!  end
//! ```
//! Numbers are little-endian. The hash in the footer covers all entries, the entry count and the version; each chunk is
//! covered by its own name. Readers of single chunks need neither trailer nor footer.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use bytes::Bytes;

use crate::meta::records::{Chunk, ChunkHash, Codec, FRAME_SIZE, Frame, Location, PackId};

/// Largest pack, in bytes, trailer included.
pub const MAX_PACK: usize = 16 << 20;
/// Largest chunk, in bytes, before compression.
pub const MAX_CHUNK: usize = 4 << 20;

const MAGIC: &[u8; 8] = b"SSPACK\0\n";
const VERSION: u32 = 1;
const ENTRY: usize = 48;
const FOOTER: usize = 48;
/// Fast enough for the commit path: about 400 MB/s per core.
const LEVEL: i32 = 1;
/// What is smaller than this does not gain enough to be worth a frame.
const WORTH_TRYING: usize = 64;

/// Why a chunk or a pack cannot be used; the sentence names it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The stored bytes are not what was stored: restore them from a copy.
    #[error("{0}")]
    Damaged(String),
    /// The chunk does not fit: finish this pack and begin another one.
    #[error("a chunk of {0} bytes does not fit into the pack; finish the pack first")]
    Full(usize),
    /// The chunk is larger than any chunk may be.
    #[error("a chunk of {0} bytes is larger than 4 MiB; this is a bug, report it")]
    TooLarge(usize),
}

/// One chunk of a pack, as its trailer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of the chunk.
    pub hash: ChunkHash,
    /// First stored byte within the pack.
    pub offset: u32,
    /// Length of the chunk's bytes.
    pub len: u32,
    /// Length as stored.
    pub stored_len: u32,
    /// How it is stored.
    pub codec: Codec,
}

impl Entry {
    /// The chunk's record, with `refs` extents that use it. A pack does not know `frames`: they are [`Encoded`]'s.
    #[must_use]
    pub fn record(&self, frames: Vec<Frame>, pack: PackId, refs: u32) -> Chunk {
        Chunk {
            refs,
            len: self.len,
            stored_len: self.stored_len,
            codec: self.codec,
            frames,
            location: Location::Pack { pack, offset: self.offset },
        }
    }
}

/// A chunk in the form in which it is stored.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Name: BLAKE3 of the bytes before compression.
    pub hash: ChunkHash,
    /// Length before compression.
    pub len: u32,
    /// How `stored` is to be read.
    pub codec: Codec,
    /// Its parts, where it has more than one.
    pub frames: Vec<Frame>,
    /// The stored bytes.
    pub stored: Vec<u8>,
}

impl Encoded {
    /// Compresses a chunk if that saves a tenth at least. `hash` is its name, which the caller knows already from
    /// looking whether the chunk is stored. Costly; call it from as many threads as there are.
    ///
    /// # Errors
    /// [`PackError::TooLarge`].
    pub fn new(hash: ChunkHash, bytes: &[u8]) -> Result<Self, PackError> {
        let len = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= MAX_CHUNK);
        let len = len.ok_or(PackError::TooLarge(bytes.len()))?;
        let (codec, stored, ends) = compress(bytes).unwrap_or_else(|| {
            let ends = bytes.chunks(FRAME_SIZE as usize).scan(0, |end, part| {
                *end += part.len();
                Some(*end)
            });
            (Codec::Raw, bytes.to_vec(), ends.collect())
        });
        let frames = if ends.len() > 1 { frames(bytes, &ends) } else { Vec::new() };
        Ok(Self { hash, len, codec, frames, stored })
    }
}

/// The chunk as a zstd frame for each part, and where each ends; `None` where that saves less than a tenth.
fn compress(bytes: &[u8]) -> Option<(Codec, Vec<u8>, Vec<usize>)> {
    if bytes.len() < WORTH_TRYING {
        return None;
    }
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).ok()?;
    let (mut stored, mut ends) = (Vec::with_capacity(bytes.len()), Vec::new());
    for part in bytes.chunks(FRAME_SIZE as usize) {
        stored.extend_from_slice(&compressor.compress(part).ok()?);
        ends.push(stored.len());
    }
    (stored.len() <= bytes.len() - bytes.len() / 10).then_some((Codec::Zstd, stored, ends))
}

fn frames(bytes: &[u8], ends: &[usize]) -> Vec<Frame> {
    let mut start = 0;
    let parts = bytes.chunks(FRAME_SIZE as usize).zip(ends);
    parts
        .map(|(part, end)| {
            // Below the chunk's length, which is below 4 MiB.
            let stored_len = u32::try_from(end - std::mem::replace(&mut start, *end)).unwrap_or(u32::MAX);
            Frame { stored_len, hash: frame_hash(part) }
        })
        .collect()
}

/// What a [`Frame`] of these bytes has as its hash.
#[must_use]
pub fn frame_hash(part: &[u8]) -> [u8; 16] {
    blake3::hash(part).as_bytes().first_chunk().copied().unwrap_or_default()
}

/// Builds a pack.
#[derive(Debug, Default)]
pub struct PackWriter {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl PackWriter {
    /// An empty pack.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing has been appended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Size of the pack if it were finished now, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len() + self.entries.len() * ENTRY + FOOTER
    }

    /// Whether a chunk of `stored` bytes still fits.
    #[must_use]
    pub fn fits(&self, stored: usize) -> bool {
        self.size() + ENTRY + stored <= MAX_PACK
    }

    /// Appends a chunk and says where it is. Callers append each chunk once.
    ///
    /// # Errors
    /// [`PackError::Full`]; the pack is unchanged.
    pub fn append(&mut self, chunk: &Encoded) -> Result<Entry, PackError> {
        let full = PackError::Full(chunk.stored.len());
        if !self.fits(chunk.stored.len()) {
            return Err(full);
        }
        let (Ok(offset), Ok(stored_len)) =
            (u32::try_from(self.bytes.len()), u32::try_from(chunk.stored.len()))
        else {
            return Err(full);
        };
        let entry = Entry { hash: chunk.hash, offset, len: chunk.len, stored_len, codec: chunk.codec };
        self.bytes.extend_from_slice(&chunk.stored);
        self.entries.push(entry);
        Ok(entry)
    }

    /// The finished pack and its chunks.
    #[must_use]
    pub fn finish(self) -> (Bytes, Vec<Entry>) {
        let Self { mut bytes, entries } = self;
        let start = bytes.len();
        bytes.reserve_exact(entries.len() * ENTRY + FOOTER);
        for entry in &entries {
            bytes.extend_from_slice(&entry.hash);
            for number in [entry.offset, entry.len, entry.stored_len] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(&[u8::from(entry.codec == Codec::Zstd), 0, 0, 0]);
        }
        // At most 16 MiB / 48 entries, so the count fits.
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let hash = trailer_hash(bytes.get(start..).unwrap_or_default(), count, VERSION);
        bytes.extend_from_slice(&hash);
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(MAGIC);
        (Bytes::from(bytes), entries)
    }
}

fn trailer_hash(entries: &[u8], count: u32, version: u32) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(entries).update(&count.to_le_bytes()).update(&version.to_le_bytes());
    *hasher.finalize().as_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a chunk from what is stored of it, checked against its length and name: `stored` itself where it is not
/// compressed. `place` says where it was read, such as "pack 00ff…", for the error.
///
/// # Errors
/// [`PackError::Damaged`], naming chunk and place.
pub fn read_chunk<'s>(
    hash: &ChunkHash,
    len: u32,
    codec: Codec,
    stored: &'s [u8],
    place: &str,
) -> Result<Cow<'s, [u8]>, PackError> {
    let damaged = |what: &str| {
        PackError::Damaged(format!(
            "the chunk {} in {place} is damaged ({what}); restore the object from a copy of the backend",
            hex(hash)
        ))
    };
    let wanted = len as usize;
    // Also a bound on the memory that a hostile length can claim.
    if wanted > MAX_CHUNK {
        return Err(damaged("its length is impossible"));
    }
    let bytes = match codec {
        Codec::Raw => Cow::Borrowed(stored),
        Codec::Zstd => {
            Cow::Owned(decompress(stored, wanted).ok_or_else(|| damaged("it does not decompress"))?)
        }
    };
    if bytes.len() != wanted {
        return Err(damaged(&format!("it has {} bytes instead of {wanted}", bytes.len())));
    }
    if blake3::hash(&bytes).as_bytes() != hash {
        return Err(damaged("its content does not match its name"));
    }
    Ok(bytes)
}

/// Which stored bytes of a chunk hold `wanted` (bytes of the chunk, within its length), and which bytes of the chunk
/// they hold: whole frames around `wanted`.
///
/// # Errors
/// [`PackError::Damaged`] where the record contradicts itself, or `wanted` is not within the chunk.
pub fn frames_around(chunk: &Chunk, wanted: Range<u32>) -> Result<Part, PackError> {
    let damaged =
        || PackError::Damaged("a chunk's record contradicts itself; restore the backend from a copy".into());
    if wanted.start > wanted.end || wanted.end > chunk.len || chunk.len as usize > MAX_CHUNK {
        return Err(damaged());
    }
    if chunk.frames.is_empty() {
        return Ok(Part { frames: 0..0, bytes: 0..chunk.len, stored: 0..chunk.stored_len });
    }
    if chunk.frames.len() != chunk.len.div_ceil(FRAME_SIZE) as usize {
        return Err(damaged());
    }
    let frames = (wanted.start / FRAME_SIZE) as usize..wanted.end.div_ceil(FRAME_SIZE) as usize;
    let stored_end = |count: usize| {
        let lens = chunk.frames.iter().take(count).map(|f| u64::from(f.stored_len));
        u32::try_from(lens.sum::<u64>()).map_err(|_| damaged())
    };
    if stored_end(chunk.frames.len())? != chunk.stored_len {
        return Err(damaged());
    }
    let start = frames.start as u32 * FRAME_SIZE;
    let end = (frames.end as u32 * FRAME_SIZE).min(chunk.len);
    Ok(Part { stored: stored_end(frames.start)?..stored_end(frames.end)?, bytes: start..end, frames })
}

/// A part of a chunk: whole frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which frames; empty for a chunk without frames, which is read whole.
    frames: Range<usize>,
    /// Which bytes of the chunk.
    pub bytes: Range<u32>,
    /// Where they are, counted from the chunk's first stored byte.
    pub stored: Range<u32>,
}

/// What a frame holds, of `len` bytes at most; `None` where it is none. A context is many times as dear as a small frame, so each
/// thread keeps its own.
fn decompress(frame: &[u8], len: usize) -> Option<Vec<u8>> {
    thread_local! {
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            None => context.insert(zstd::bulk::Decompressor::new().ok()?),
        };
        context.decompress(frame, len).ok()
    })
}

/// The bytes of a part from what is stored of it, each frame checked against its hash: `stored` itself where it is not
/// compressed. `hash` is the chunk's name; `place` says where it was read.
///
/// # Errors
/// [`PackError::Damaged`], naming chunk and place.
pub fn read_part<'s>(
    hash: &ChunkHash,
    chunk: &Chunk,
    part: &Part,
    stored: &'s [u8],
    place: &str,
) -> Result<Cow<'s, [u8]>, PackError> {
    if part.frames.is_empty() {
        return read_chunk(hash, chunk.len, chunk.codec, stored, place);
    }
    let damaged = |what: &str| {
        PackError::Damaged(format!(
            "the chunk {} in {place} is damaged ({what}); restore the object from a copy of the backend",
            hex(hash)
        ))
    };
    let mut unpacked = Vec::new();
    if chunk.codec == Codec::Zstd {
        unpacked.reserve_exact((part.bytes.end - part.bytes.start) as usize);
    }
    let mut rest = stored;
    for (number, frame) in chunk.frames.iter().enumerate().take(part.frames.end).skip(part.frames.start) {
        let (here, behind) =
            rest.split_at_checked(frame.stored_len as usize).ok_or_else(|| damaged("it is too short"))?;
        rest = behind;
        let len = (chunk.len - number as u32 * FRAME_SIZE).min(FRAME_SIZE) as usize;
        let read = match chunk.codec {
            Codec::Raw => Cow::Borrowed(here),
            Codec::Zstd => {
                Cow::Owned(decompress(here, len).ok_or_else(|| damaged("a frame does not decompress"))?)
            }
        };
        if read.len() != len || frame_hash(&read) != frame.hash {
            return Err(damaged("the content of a frame does not match its hash"));
        }
        if let Cow::Owned(read) = read {
            unpacked.extend_from_slice(&read);
        }
    }
    Ok(match chunk.codec {
        // Frames lie one after another.
        Codec::Raw => Cow::Borrowed(stored.get(..stored.len() - rest.len()).unwrap_or_default()),
        Codec::Zstd => Cow::Owned(unpacked),
    })
}

/// The chunks that a pack lists, its trailer checked; the chunks themselves are checked by [`read_chunk`]. `place` says
/// where the pack was read.
///
/// # Errors
/// [`PackError::Damaged`] for anything but a complete pack of a known version.
pub fn entries(pack: &[u8], place: &str) -> Result<Vec<Entry>, PackError> {
    let damaged = |what: &str| {
        PackError::Damaged(format!(
            "{place} is damaged ({what}); restore the object from a copy of the backend"
        ))
    };
    let (rest, footer) =
        pack.split_last_chunk::<FOOTER>().ok_or_else(|| damaged("it is too short for a pack"))?;
    let (hash, numbers) = footer.split_at(32);
    let (count, version) = (number(numbers, 0), number(numbers, 4));
    if !footer.ends_with(MAGIC) {
        return Err(damaged("its end is missing, or it is not a pack"));
    }
    if version != VERSION {
        return Err(PackError::Damaged(format!(
            "{place} has the pack version {version}, this agent knows version {VERSION}; use the agent that wrote it"
        )));
    }
    let trailer_len = (count as usize).checked_mul(ENTRY).filter(|len| *len <= rest.len());
    let start = trailer_len.map(|len| rest.len() - len).ok_or_else(|| damaged("its trailer is truncated"))?;
    let (_, trailer) = rest.split_at(start);
    if trailer_hash(trailer, count, version) != hash {
        return Err(damaged("its trailer does not match its hash"));
    }
    let mut entries = Vec::with_capacity(trailer.len() / ENTRY);
    let mut end = 0_u64;
    for raw in trailer.as_chunks::<ENTRY>().0 {
        let (hash, numbers) = raw.split_at(32);
        let codec = match numbers.get(12..) {
            Some([0, 0, 0, 0]) => Codec::Raw,
            Some([1, 0, 0, 0]) => Codec::Zstd,
            _ => return Err(damaged("a chunk has an unknown codec")),
        };
        let entry = Entry {
            hash: hash.try_into().unwrap_or_default(),
            offset: number(numbers, 0),
            len: number(numbers, 4),
            stored_len: number(numbers, 8),
            codec,
        };
        if u64::from(entry.offset) != end {
            return Err(damaged("its chunks do not lie one after another"));
        }
        end += u64::from(entry.stored_len);
        entries.push(entry);
    }
    if end != start as u64 {
        return Err(damaged("its chunks do not fill it"));
    }
    Ok(entries)
}

/// Checks a whole pack: trailer and every chunk.
///
/// # Errors
/// [`PackError::Damaged`] for the first thing that is wrong.
pub fn check(pack: &[u8], place: &str) -> Result<Vec<Entry>, PackError> {
    let entries = entries(pack, place)?;
    for entry in &entries {
        let start = entry.offset as usize;
        let stored = pack.get(start..start + entry.stored_len as usize).unwrap_or_default();
        read_chunk(&entry.hash, entry.len, entry.codec, stored, place)?;
    }
    Ok(entries)
}

/// The little-endian number at `at`; 0 past the end, which no caller reaches.
fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(bytes: &[u8]) -> Encoded {
        Encoded::new(*blake3::hash(bytes).as_bytes(), bytes).unwrap()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&len.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn chunks_come_back_and_only_what_shrinks_is_compressed() {
        let (text, noise) = (b"storeshim ".repeat(1000), noise(5000));
        let mut writer = PackWriter::new();
        let first = writer.append(&encode(&text)).unwrap();
        let second = writer.append(&encode(&noise)).unwrap();
        let third = writer.append(&encode(b"")).unwrap();
        assert_eq!((first.codec, second.codec), (Codec::Zstd, Codec::Raw));
        let size = writer.size();
        let (pack, listed) = writer.finish();
        assert_eq!((pack.len(), listed.as_slice()), (size, &[first, second, third][..]));
        assert_eq!(check(&pack, "pack x").unwrap(), listed);
        let stored = &pack[first.offset as usize..(first.offset + first.stored_len) as usize];
        assert_eq!(read_chunk(&first.hash, first.len, first.codec, stored, "x").unwrap(), text);
    }

    #[test]
    fn a_full_pack_says_so_and_stays_whole() {
        let mut writer = PackWriter::new();
        let chunk = encode(&noise(MAX_CHUNK));
        for _ in 0..3 {
            writer.append(&chunk).unwrap();
        }
        assert_eq!(writer.append(&chunk), Err(PackError::Full(MAX_CHUNK)));
        let (pack, listed) = writer.finish();
        assert!(pack.len() <= MAX_PACK && listed.len() == 3);
        check(&pack, "x").unwrap();
        assert!(matches!(Encoded::new([0; 32], &vec![0; MAX_CHUNK + 1]), Err(PackError::TooLarge(_))));
    }

    #[test]
    fn damage_is_named() {
        let text = b"abc".repeat(100);
        let chunk = encode(&text);
        let text_of = |result: Result<Cow<'_, [u8]>, PackError>| result.unwrap_err().to_string();
        let wrong = text_of(read_chunk(&chunk.hash, chunk.len, Codec::Raw, &chunk.stored, "pack 00ff"));
        assert!(wrong.contains("pack 00ff") && wrong.contains(&hex(&chunk.hash)), "{wrong}");
        assert!(
            text_of(read_chunk(&[7; 32], chunk.len, chunk.codec, &chunk.stored, "p"))
                .contains("match its name")
        );
        // A frame that claims to be larger than the chunk must not be unpacked beyond it.
        let bomb = zstd::bulk::compress(&vec![0; 3 << 20], 1).unwrap();
        assert!(
            text_of(read_chunk(&chunk.hash, 10, Codec::Zstd, &bomb, "p")).contains("does not decompress")
        );
        assert!(
            text_of(read_chunk(&chunk.hash, u32::MAX, Codec::Zstd, &bomb, "p"))
                .contains("length is impossible")
        );
    }

    #[test]
    fn a_part_of_a_chunk_is_read_and_checked_alone() {
        let len = 5 * FRAME_SIZE as usize + 1000;
        for bytes in [b"storeshim ".repeat(len / 10), noise(len)] {
            let chunk = encode(&bytes);
            let mut writer = PackWriter::new();
            let entry = writer.append(&chunk).unwrap();
            let record = entry.record(chunk.frames.clone(), [1; 16], 1);
            assert_eq!(record.frames.len(), 6);
            assert_eq!(read_chunk(&chunk.hash, chunk.len, chunk.codec, &chunk.stored, "p").unwrap(), bytes);
            for wanted in [0..1, 100..300_000, 400_000..chunk.len, FRAME_SIZE..2 * FRAME_SIZE, 0..chunk.len] {
                let part = frames_around(&record, wanted.clone()).unwrap();
                assert!(part.bytes.start <= wanted.start && part.bytes.end >= wanted.end);
                let stored = &chunk.stored[part.stored.start as usize..part.stored.end as usize];
                let read = read_part(&chunk.hash, &record, &part, stored, "p").unwrap();
                assert_eq!(*read, bytes[part.bytes.start as usize..part.bytes.end as usize]);
                let mut changed = stored.to_vec();
                changed[stored.len() / 2] ^= 1;
                assert!(read_part(&chunk.hash, &record, &part, &changed, "p").is_err());
                assert!(read_part(&chunk.hash, &record, &part, &stored[1..], "p").is_err());
            }
            let one = frames_around(&record, 100..200).unwrap();
            assert!(one.stored.end - one.stored.start <= FRAME_SIZE, "no more than a frame is read");
            assert!(frames_around(&record, 0..chunk.len + 1).is_err());
            let torn = Chunk { frames: record.frames[1..].to_vec(), ..record.clone() };
            assert!(frames_around(&torn, 0..1).is_err());
            let lying = Chunk { stored_len: record.stored_len + 1, ..record };
            assert!(frames_around(&lying, 0..1).is_err());
        }
        let small = encode(&noise(FRAME_SIZE as usize));
        assert!(small.frames.is_empty(), "what is one frame needs no list");
    }

    proptest! {
        #[test]
        fn no_truncation_or_change_goes_unnoticed(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8),
            cut in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let mut writer = PackWriter::new();
            for chunk in &chunks {
                writer.append(&encode(chunk)).unwrap();
            }
            let (pack, listed) = writer.finish();
            prop_assert_eq!(check(&pack, "p").unwrap(), listed);
            let at = cut.index(pack.len());
            prop_assert!(check(&pack[..at], "p").is_err());
            let mut changed = pack.to_vec();
            changed[at] ^= 1 << bit;
            prop_assert!(check(&changed, "p").is_err());
        }

        #[test]
        fn hostile_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), count in any::<u32>()) {
            let _ = check(&bytes, "p");
            // The same with a footer that is right but for what it covers.
            let hash = trailer_hash(&bytes, count, VERSION);
            bytes.extend_from_slice(&hash);
            bytes.extend_from_slice(&count.to_le_bytes());
            bytes.extend_from_slice(&VERSION.to_le_bytes());
            bytes.extend_from_slice(MAGIC);
            let _ = check(&bytes, "p");
        }

        #[test]
        fn hostile_entries_never_panic(raw in proptest::collection::vec(any::<[u8; 48]>(), 0..6), front in 0_usize..100) {
            let mut bytes = vec![0; front];
            let trailer: Vec<u8> = raw.concat();
            let count = u32::try_from(raw.len()).unwrap();
            bytes.extend_from_slice(&trailer);
            bytes.extend_from_slice(&trailer_hash(&trailer, count, VERSION));
            bytes.extend_from_slice(&count.to_le_bytes());
            bytes.extend_from_slice(&VERSION.to_le_bytes());
            bytes.extend_from_slice(MAGIC);
            let _ = check(&bytes, "p");
        }
    }
}
