//! What the keys and values of a volume's metadata mean. Engines do not look inside.
//!
//! ```text
//! key                              value
//! v                                Format: version, volume id, settings      (written once, at creation)
//! h                                Head: seq, nonce, time of the cut         (every commit)
//! i <inode:8>                      Inode
//! d <dir:8> <name>                 child inode number, 8 bytes
//! b <inode:8> <block:8>            Block: the extents of one 4 MiB block of a file
//! c <hash:32>                      Chunk: where its bytes are, how many extents use it
//! p <pack:16>                      Pack: size and live bytes
//! g <pack:16>                      a pack without live bytes, to be deleted   (empty value)
//! t                                Totals: what the volume holds, next inode  (every commit)
//! q                                Quota: what it may grow to                 (when it changes)
//! 0x00                             reserved for the engine
//! ```
//! Numbers in keys are big-endian, so that ranges are in their order. Values are postcard, led by one byte of
//! record version.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{MetaError, Result};

/// Version of everything in this module; a volume with another one is refused.
pub const FORMAT_VERSION: u32 = 2;
/// Bytes of a file that one [`Block`] describes.
pub const BLOCK_SIZE: u64 = 4 << 20;
/// Bytes of a chunk that one [`Frame`] holds (fewer in the last one): the least that can be read and checked alone.
pub const FRAME_SIZE: u32 = 128 << 10;
/// The root directory's inode number.
pub const ROOT_INODE: u64 = 1;

/// A chunk's name: BLAKE3 of its uncompressed bytes.
pub type ChunkHash = [u8; 32];
/// A pack's name: random, so that a retried upload overwrites only itself.
pub type PackId = [u8; 16];

/// The volume itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// [`FORMAT_VERSION`].
    pub version: u32,
    /// Random, made with the volume.
    pub volume_id: u128,
}

/// A point in time, as stat(2) gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since 1970.
    pub secs: i64,
    /// Nanoseconds, below 1e9.
    pub nanos: u32,
}

/// Everything of an inode but its names and its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// File type and permission bits (`st_mode`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, else 0.
    pub rdev: u64,
    /// Size in bytes (of the target for a symbolic link, 0 for a directory).
    pub size: u64,
    /// Last modification.
    pub mtime: Time,
    /// Names that the inode has (1 for a directory).
    pub links: u32,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
    /// Extended attributes (user.* and POSIX ACLs), sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A piece of a block that has data. What no extent covers is a hole (reads as zeros).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte, counted from the block's start.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
    /// The chunk that holds the bytes.
    pub chunk: ChunkHash,
    /// First byte within the chunk.
    pub chunk_offset: u32,
}

/// The extents of one block, sorted, not overlapping.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// See [`Extent`].
    pub extents: Vec<Extent>,
}

/// How a chunk's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// As they are.
    Raw,
    /// One zstd frame for each [`FRAME_SIZE`] bytes, one after another.
    Zstd,
}

/// Where a chunk's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Location {
    /// In the record itself.
    Inline(Vec<u8>),
    /// In a pack.
    Pack {
        /// Which.
        pack: PackId,
        /// First stored byte within the pack.
        offset: u32,
    },
}

/// A part of a stored chunk that can be read and checked without the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Length as stored; the frames of a chunk lie one after another.
    pub stored_len: u32,
    /// BLAKE3 of its uncompressed bytes, the first half.
    pub hash: [u8; 16],
}

/// A stored chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Extents that use it.
    pub refs: u32,
    /// Length of the chunk's bytes.
    pub len: u32,
    /// Length as stored.
    pub stored_len: u32,
    /// How it is stored.
    pub codec: Codec,
    /// Its parts, in order; none where the chunk is not longer than [`FRAME_SIZE`] and so its own only part.
    pub frames: Vec<Frame>,
    /// Where it is stored.
    pub location: Location,
}

/// A pack object in the blob store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Size of the object in bytes.
    pub size: u64,
    /// Bytes of chunks that are in use.
    pub live: u64,
}

/// What the volume holds, so that an agent knows it without reading every record. Absent in a volume without commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// The next free inode number.
    pub next_inode: u64,
    /// Inodes of all kinds.
    pub inodes: u64,
    /// Regular files.
    pub files: u64,
    /// Bytes in regular files, as their sizes say.
    pub bytes: u64,
}

/// What the volume may grow to, for whoever changes it without this agent; `None` is without limit. Absent where neither has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Bytes in regular files, as their sizes say.
    pub bytes: Option<u64>,
    /// Inodes of all kinds.
    pub inodes: Option<u64>,
}

/// The version byte that leads every value.
const RECORD_VERSION: u8 = 1;

/// A record's value.
///
/// # Errors
/// `Refused` when a record is too large to encode, which none is.
pub fn encode<T: Serialize>(record: &T) -> Result<Bytes> {
    postcard::to_extend(record, vec![RECORD_VERSION]).map(Bytes::from).map_err(|error| {
        MetaError::Refused(format!("a metadata record cannot be encoded ({error}); this is a bug, report it"))
    })
}

/// The record in `value`, which was stored at `key`.
///
/// # Errors
/// `Damaged`, naming the key, when the value is of an unknown version, malformed, or longer than the record.
pub fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T> {
    let damaged = |what: &str| {
        MetaError::Damaged(format!(
            "the metadata record {} {what}; use the agent that wrote it, or restore the backend from a copy",
            key::show(key)
        ))
    };
    match value.split_first() {
        None => Err(damaged("is empty")),
        Some((&RECORD_VERSION, body)) => match postcard::take_from_bytes(body) {
            Ok((record, [])) => Ok(record),
            Ok(_) => Err(damaged("has bytes behind its end")),
            Err(_) => Err(damaged("is malformed")),
        },
        Some((version, _)) => Err(damaged(&format!("has the unknown version {version}"))),
    }
}

/// The value of a directory entry: the child's inode number.
#[must_use]
pub fn encode_child(inode: u64) -> Bytes {
    Bytes::copy_from_slice(&inode.to_be_bytes())
}

/// See [`encode_child`].
///
/// # Errors
/// `Damaged`, naming the key, when the value does not have 8 bytes.
pub fn decode_child(key: &[u8], value: &[u8]) -> Result<u64> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| {
        MetaError::Damaged(format!(
            "the directory entry {} has {} bytes instead of 8; restore the backend from a copy",
            key::show(key),
            value.len()
        ))
    })
}

pub mod key;

#[cfg(test)]
mod vectors;
