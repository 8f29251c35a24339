//! The bodies of messages: numbers little-endian, bytes led by their length. Each is what docs/wire.md says under
//! "Bodies"; both sides are held to it by `worker/test/vectors.json`.

use bytes::Bytes;

use super::{Code, Result, WireError};

/// What a message is about. From 0x30 on the Worker asks; below, the agent.
pub mod op {
    #![allow(missing_docs, reason = "docs/wire.md has the table")]
    pub const HELLO: u8 = 0x01;
    pub const PING: u8 = 0x02;
    pub const GOODBYE: u8 = 0x03;
    pub const OPEN: u8 = 0x10;
    pub const COMMIT: u8 = 0x11;
    pub const GET: u8 = 0x12;
    pub const SCAN: u8 = 0x13;
    pub const CLOSE: u8 = 0x15;
    pub const STAGE: u8 = 0x16;
    pub const COMMIT_STAGED: u8 = 0x17;
    pub const BLOB_PUT: u8 = 0x20;
    pub const BLOB_GET: u8 = 0x21;
    pub const BLOB_DELETE: u8 = 0x22;
    pub const FILE_STAT: u8 = 0x30;
    pub const FILE_READ: u8 = 0x31;
    pub const FILE_LIST: u8 = 0x32;
    pub const FILE_WRITE: u8 = 0x33;
    pub const FILE_UNLINK: u8 = 0x34;
}

/// A random number that makes a retry recognisable.
pub type Nonce = [u8; 16];

/// Writes a body.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn u8(self, value: u8) -> Self {
        self.raw(&[value])
    }
    fn u16(self, value: u16) -> Self {
        self.raw(&value.to_le_bytes())
    }
    fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }
    fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }
    /// Longer ones are cut; callers have checked what must not be.
    fn short(self, bytes: &[u8]) -> Self {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.u16(length).raw(bytes.get(..usize::from(length)).unwrap_or_default())
    }
    fn long(self, bytes: &[u8]) -> Self {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).raw(bytes)
    }
}

impl Writer {
    fn ops(mut self, ops: &Ops) -> Self {
        self = self.u32(u32::try_from(ops.len()).unwrap_or(u32::MAX));
        for (key, value) in ops {
            self = self.short(key).u8(u8::from(value.is_some()));
            if let Some(value) = value {
                self = self.long(value);
            }
        }
        self
    }
}

/// Reads a body; what does not fit is a protocol error.
struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(what: &'static str, rest: &'a [u8]) -> Self {
        Self { what, rest }
    }

    fn bad(&self) -> WireError {
        WireError::garbage(&format!("a malformed message ({})", self.what))
    }

    fn raw(&mut self, length: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(length).ok_or_else(|| self.bad())?;
        self.rest = tail;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.raw(N)?.try_into().map_err(|_| self.bad())
    }
    fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64> {
        let value = u64::from_le_bytes(self.array()?);
        if value < 1 << 53 { Ok(value) } else { Err(self.bad()) }
    }
    fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.bad()),
        }
    }
    fn short(&mut self) -> Result<&'a [u8]> {
        let length = self.u16()?;
        self.raw(usize::from(length))
    }
    fn long(&mut self) -> Result<&'a [u8]> {
        let length = self.u32()?;
        self.raw(length as usize)
    }
    fn end<T>(self, value: T) -> Result<T> {
        if self.rest.is_empty() { Ok(value) } else { Err(self.bad()) }
    }
}

/// First message of either side: who it is and what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// 1 agent, 2 store.
    pub role: u8,
    /// Largest message that the sender takes.
    pub max_message: u32,
    /// Unanswered requests that it takes at once.
    pub max_requests: u32,
    /// Bytes of unanswered requests that it takes at once.
    pub max_bytes: u32,
    /// It sends something at least this often, in milliseconds.
    pub heartbeat_ms: u32,
    /// Program and version, for logs.
    pub program: String,
}

impl Hello {
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let numbers = Writer::default().u8(self.role).u32(self.max_message).u32(self.max_requests);
        numbers.u32(self.max_bytes).u32(self.heartbeat_ms).short(self.program.as_bytes()).0
    }

    /// From a body.
    ///
    /// # Errors
    /// `Protocol`.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut from = Reader::new("hello", body);
        let hello = Self {
            role: from.u8()?,
            max_message: from.u32()?,
            max_requests: from.u32()?,
            max_bytes: from.u32()?,
            heartbeat_ms: from.u32()?,
            program: String::from_utf8_lossy(from.short()?).into_owned(),
        };
        from.end(hello)
    }
}

/// An error's body.
#[must_use]
pub fn encode_error(error: &WireError) -> Vec<u8> {
    let mut cut = error.message.len().min(1000);
    while !error.message.is_char_boundary(cut) {
        cut -= 1;
    }
    let message = error.message.get(..cut).unwrap_or_default();
    Writer::default().u16(error.code as u16).u16(error.errno).short(message.as_bytes()).0
}

/// From an error's body.
///
/// # Errors
/// `Protocol`.
pub fn decode_error(body: &[u8]) -> Result<WireError> {
    let mut from = Reader::new("error", body);
    let (code, errno) = (Code::of(from.u16()?), from.u16()?);
    let message = String::from_utf8_lossy(from.short()?).into_owned();
    from.end(WireError { code, errno, message })
}

/// Body of an `OPEN`.
#[must_use]
pub fn encode_open(nonce: &Nonce, held: u64) -> Vec<u8> {
    Writer::default().raw(nonce).u64(held).0
}

/// Answer to an `OPEN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The epoch that is ours.
    pub epoch: u64,
    /// Number of the last commit made in it.
    pub last: u64,
    /// Commits of the volume, whoever made them.
    pub version: u64,
}

impl Opened {
    /// From a body.
    ///
    /// # Errors
    /// `Protocol`.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut from = Reader::new("open answer", body);
        let opened = Self { epoch: from.u64()?, last: from.u64()?, version: from.u64()? };
        from.end(opened)
    }
}

/// Operations of a commit.
pub type Ops = [(Vec<u8>, Option<Bytes>)];

/// Body of a `COMMIT`; its keys have at most 65,535 bytes.
#[must_use]
pub fn encode_commit(number: u64, nonce: &Nonce, ops: &Ops) -> Vec<u8> {
    Writer(Vec::with_capacity(28 + size(ops))).u64(number).raw(nonce).ops(ops).0
}

/// Body of a `STAGE`: part `part` of a commit.
#[must_use]
pub fn encode_stage(number: u64, nonce: &Nonce, part: u32, ops: &Ops) -> Vec<u8> {
    Writer(Vec::with_capacity(32 + size(ops))).u64(number).raw(nonce).u32(part).ops(ops).0
}

/// Body of a `COMMIT_STAGED`, of so many parts.
#[must_use]
pub fn encode_commit_staged(number: u64, nonce: &Nonce, parts: u32) -> Vec<u8> {
    Writer::default().u64(number).raw(nonce).u32(parts).0
}

fn size(ops: &Ops) -> usize {
    ops.iter().map(|(key, value)| 7 + key.len() + value.as_ref().map_or(0, Bytes::len)).sum()
}

/// A number that is a whole body: the answer to a `COMMIT`, the volume's version.
///
/// # Errors
/// `Protocol`.
pub fn decode_version(body: &[u8]) -> Result<u64> {
    let mut from = Reader::new("commit answer", body);
    let version = from.u64()?;
    from.end(version)
}

/// Body of a `GET`.
#[must_use]
pub fn encode_get(key: &[u8]) -> Vec<u8> {
    Writer::default().short(key).0
}

/// Answer to a `GET`.
///
/// # Errors
/// `Protocol`.
pub fn decode_got(body: &Bytes) -> Result<Option<Bytes>> {
    let mut from = Reader::new("get answer", body);
    let value = if from.flag()? { Some(body.slice_ref(from.long()?)) } else { None };
    from.end(value)
}

/// Body of a `SCAN`.
#[must_use]
pub fn encode_scan(prefix: &[u8], after: Option<&[u8]>, max_pairs: u32, max_bytes: u32) -> Vec<u8> {
    let to = Writer::default().short(prefix).u8(u8::from(after.is_some()));
    to.short(after.unwrap_or_default()).u32(max_pairs).u32(max_bytes).0
}

/// Answer to a `SCAN`: whether there are more, and key and value of each.
///
/// # Errors
/// `Protocol`.
pub fn decode_page(body: &Bytes) -> Result<(bool, Vec<(Bytes, Bytes)>)> {
    let mut from = Reader::new("scan answer", body);
    let more = from.flag()?;
    let mut pairs = Vec::new();
    for _ in 0..from.u32()? {
        pairs.push((body.slice_ref(from.short()?), body.slice_ref(from.long()?)));
    }
    from.end((more, pairs))
}

/// Body of a `BLOB_GET`.
#[must_use]
pub fn encode_blob_get(pack: &[u8; 16], start: u64, end: u64) -> Vec<u8> {
    Writer::default().raw(pack).u64(start).u64(end).0
}

/// What stat(2) tells of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Inode number.
    pub inode: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names.
    pub links: u32,
    /// Bytes.
    pub size: u64,
    /// Last modification, milliseconds since 1970.
    pub mtime_ms: i64,
    /// Version of the volume in which the file is so; 0 where changes may not be committed yet.
    pub version: u64,
}

impl Stat {
    fn put(&self, to: Writer) -> Writer {
        let to = to.u64(self.inode).u32(self.mode).u32(self.uid).u32(self.gid).u32(self.links);
        to.u64(self.size).raw(&self.mtime_ms.to_le_bytes()).u64(self.version)
    }

    /// The answer to `FILE_STAT` and `FILE_WRITE`; with bytes behind it, to `FILE_READ`.
    #[must_use]
    pub fn encode(&self, bytes: &[u8]) -> Vec<u8> {
        self.put(Writer(Vec::with_capacity(48 + bytes.len()))).raw(bytes).0
    }
}

/// The answer to `FILE_LIST`.
#[must_use]
pub fn encode_list(more: bool, entries: &[(Vec<u8>, Stat)]) -> Vec<u8> {
    let mut to = Writer::default().u8(u8::from(more)).u32(u32::try_from(entries.len()).unwrap_or(u32::MAX));
    for (name, stat) in entries {
        to = stat.put(to.short(name));
    }
    to.0
}

/// The last part of a write: make everything durable, then answer.
pub const WRITE_LAST: u32 = 1;
/// The parts are the whole new file.
pub const WRITE_REPLACE: u32 = 2;
/// Make missing directories.
pub const WRITE_PARENTS: u32 = 4;

/// What the Worker asks of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileRequest {
    /// A name's stat.
    Stat {
        /// A symbolic link at the end is followed.
        follow: bool,
        /// Relative to the volume's root.
        path: Bytes,
    },
    /// Some of a file.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes at most.
        length: u32,
        /// See above.
        path: Bytes,
    },
    /// A page of a directory.
    List {
        /// Entries at most.
        max: u32,
        /// Only names behind this one, unless it is empty.
        after: Bytes,
        /// See above.
        path: Bytes,
    },
    /// A part of a write.
    Write {
        /// Names the parts of one write.
        nonce: Nonce,
        /// [`WRITE_LAST`], [`WRITE_REPLACE`], [`WRITE_PARENTS`].
        flags: u32,
        /// Permission bits of a new file.
        mode: u32,
        /// Where the part belongs.
        offset: u64,
        /// See above.
        path: Bytes,
        /// The part.
        bytes: Bytes,
    },
    /// Takes a name away.
    Unlink {
        /// A directory with all that is in it may be meant.
        recursive: bool,
        /// See above.
        path: Bytes,
    },
}

impl FileRequest {
    /// The request in a message; `None` for an op that is none of these.
    ///
    /// # Errors
    /// `Protocol`.
    pub fn decode(op: u8, body: &Bytes) -> Result<Option<Self>> {
        let mut from = Reader::new("file request", body);
        let bytes = |from: &mut Reader<'_>| Ok(body.slice_ref(from.short()?));
        let request = match op {
            op::FILE_STAT => Self::Stat { follow: from.flag()?, path: bytes(&mut from)? },
            op::FILE_READ => Self::Read { offset: from.u64()?, length: from.u32()?, path: bytes(&mut from)? },
            op::FILE_LIST => {
                Self::List { max: from.u32()?, after: bytes(&mut from)?, path: bytes(&mut from)? }
            }
            op::FILE_WRITE => {
                let (nonce, flags, mode, offset) = (from.array()?, from.u32()?, from.u32()?, from.u64()?);
                let path = bytes(&mut from)?;
                let part = body.slice_ref(std::mem::take(&mut from.rest));
                Self::Write { nonce, flags, mode, offset, path, bytes: part }
            }
            op::FILE_UNLINK => Self::Unlink { recursive: from.flag()?, path: bytes(&mut from)? },
            _ => return Ok(None),
        };
        from.end(Some(request))
    }
}
