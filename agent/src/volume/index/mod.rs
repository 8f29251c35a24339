//! The local index: the volume's metadata as of the last cut, and which kernel inode stands for which of its
//! inodes. An embedded database that survives the agent's death at any instant; after a power cut it may be
//! older than the tree. It must not know the tree or the backend; [`Index::reconcile`] is told where the
//! backend stands.
//!
//! Besides the backend's own records (same keys, `meta::records`) it holds
//!
//! ```text
//! k <kernel inode:8>            Kernel: birth time, volume inode
//! s <inode:8>                   Seen: what stat(2) said when the inode was last looked at
//! l <inode:8> <dir:8> <name>    a name of the inode (empty value)
//! f <inode:8> <block:8>         fingerprints of a block's 64 KiB pieces (files that change unseen)
//! w <kernel inode:8>            flags of a suspect: a file that may be written without an intent
//! n                             next volume inode number
//! u <seq:8>                     Undo: values as they were before cut `seq`, until that commit is durable
//! m                             Base: what this index stands for
//! a <inode:8>                   a directory whose entries are not in the tree yet (empty value)
//! r <inode:8>                   Pieces of a file that are not on this disk; none: it is wholly here
//! ```
//! `l` are the names that are in the tree: one in a directory that is not populated yet has none.

//!
//! While not every record of the volume is here ([`Base::loaded`]) there are also
//!
//! ```text
//! x <key>                       a tombstone: the backend's record of this key is out of date, or there is none
//! y <prefix>                    all records of the backend under this prefix were taken in
//! ```

mod bulk;
mod lazy;
mod local;
mod numbers;
mod pieces;
mod reserve;
mod resident;
#[cfg(test)]
mod tests;
mod undo;

use self::lazy::Lazy;
pub use self::local::{Absent, absent_key, set_absent, set_link, set_seen, set_unpopulated, unpopulated_key};
use self::numbers::Numbers;
pub use self::pieces::Pieces;
pub use self::reserve::{For, Reserve};
use self::resident::Resident;
pub use self::undo::Standing;
pub use crate::meta::Until;

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::OnceLock;

use fjall::config::PartitioningPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use storeshim_protocol::OpenFlags;

use super::VolumeError;
use super::tree::{FileId, Stat};
use crate::meta::records::{
    self, Block, Chunk, ChunkHash, Inode, Pack, PackId, ROOT_INODE, Time, Totals, key,
};

/// What the index stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Volume whose metadata this is.
    pub volume_id: u128,
    /// Last commit known to be durable; 0 before the first.
    pub seq: u64,
    /// That commit's nonce.
    pub nonce: u128,
    /// Whether the tree was populated whole; if not, a restore was interrupted.
    pub populated: bool,
    /// The boot (/proc/sys/kernel/random/boot_id) in which the tree was written.
    pub boot_id: String,
    /// Whether the agent drained, synced the disk and left.
    pub clean: bool,
    /// Whether every record of the volume is here. If not, one that was never touched is read from the backend.
    pub loaded: bool,
    /// Lowest inode number that the volume had not given away when this index was emptied: of this and all higher ones
    /// every record is here.
    pub since: u64,
}

/// The volume inode behind a kernel inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Tells a later file with the same number apart.
    pub id: FileId,
    /// Volume inode.
    pub inode: u64,
}

/// What the last look at an inode saw: equal values mean that it has not changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The kernel inode.
    pub id: FileId,
    /// Its size in bytes.
    pub size: u64,
    /// Its last modification.
    pub mtime: Time,
    /// Its last change.
    pub ctime: Time,
    /// Whether its times may hide a change.
    pub doubt: Doubt,
    /// What a regular file takes of this disk, in blocks of 512 bytes.
    pub blocks: u64,
}

/// Why an inode that stands as it was [`Seen`] may have changed all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doubt {
    /// It has not.
    #[default]
    None,
    /// The look came so soon after the change that a later change could carry the same times.
    Racy,
    /// The agent has written to it itself, which moved its times: what was done to its attributes just then shows in its
    /// record alone, and data whose writer nobody told of only in size and modification time.
    Attributes,
}

impl Doubt {
    /// The doubt that is left once the agent has moved an inode's times itself.
    #[must_use]
    pub fn moved(self) -> Self {
        match self {
            Self::Racy => Self::Racy,
            Self::None | Self::Attributes => Self::Attributes,
        }
    }
}

impl Seen {
    /// What a look saw.
    pub fn of(stat: &Stat, doubt: Doubt) -> Self {
        let blocks = if stat.is_file() { stat.blocks } else { 0 };
        Self { id: stat.id, size: stat.size, mtime: stat.mtime, ctime: stat.ctime, doubt, blocks }
    }
}

/// BLAKE3, cut to 16 bytes, of each 64 KiB piece of a block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprints(pub Vec<[u8; 16]>);

/// Keys to set (`Some`) or delete.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// See the module.
pub struct Index {
    db: Database,
    records: Keyspace,
    lazy: Lazy,
    resident: Resident,
    numbers: Numbers,
    reserve: OnceLock<Reserve>,
}

const BASE: &[u8] = b"m";
const NEXT_INODE: &[u8] = b"n";

/// The number in a key that has this tag and one number.
fn number_in(tag: u8, key: &[u8]) -> Option<u64> {
    key.strip_prefix(&[tag])?.try_into().ok().map(u64::from_be_bytes)
}

/// Key of a [`Kernel`].
pub fn kernel_key(ino: u64) -> Vec<u8> {
    tagged(b'k', &[ino])
}

/// Key of a [`Seen`].
pub fn seen_key(inode: u64) -> Vec<u8> {
    tagged(b's', &[inode])
}

/// Key of a suspect's flags.
fn suspect_key(ino: u64) -> Vec<u8> {
    tagged(b'w', &[ino])
}

/// Key of one name of an inode.
pub fn link_key(inode: u64, dir: u64, name: &[u8]) -> Vec<u8> {
    let mut key = tagged(b'l', &[inode, dir]);
    key.extend_from_slice(name);
    key
}

/// Key of [`Fingerprints`].
pub fn fingerprints_key(inode: u64, block: u64) -> Vec<u8> {
    tagged(b'f', &[inode, block])
}

fn tagged(tag: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = vec![tag];
    numbers.iter().for_each(|n| key.extend_from_slice(&n.to_be_bytes()));
    key
}

fn damaged(what: impl std::fmt::Display) -> VolumeError {
    VolumeError::Failed(format!(
        "the local index cannot be used ({what}); stop the agent, move the directory `index` of the mount's state \
         directory away and start it again: the volume is then restored from its backend, and the tree set aside with what \
         may not be there yet"
    ))
}

impl From<fjall::Error> for VolumeError {
    fn from(e: fjall::Error) -> Self {
        // Of the latter the cause was met by a thread of the database, which has logged it.
        if is_full(&e) || matches!(e, fjall::Error::Poisoned) {
            return Self::Failed(format!(
                "the local index could not be written ({e}), most likely since the disk of the mount's state directory is \
                 full: make room there, then restart the agent; nothing is lost, and nothing is to be moved away"
            ));
        }
        damaged(e)
    }
}

/// Whether an error is that of a full disk.
fn is_full(error: &fjall::Error) -> bool {
    let error = match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error,
        _ => return false,
    };
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

type Result<T> = std::result::Result<T, VolumeError>;

/// Blocks that are kept in memory, in bytes.
const CACHE: u64 = 32 << 20;
/// Changes that are kept in memory until they are written as a table, in bytes.
const MEMTABLE: u64 = 8 << 20;
/// On a small disk they are one in so many of what is held in reserve, and at least so many bytes.
const MEMTABLE_PART: u64 = 4;
const MEMTABLE_LEAST: u64 = 256 << 10;

impl Index {
    /// Opens the index in directory `path`, or makes an empty one.
    pub fn open(path: &Path) -> Result<Self> {
        let memtable = (reserve::size_on(path.parent().unwrap_or(path)) / MEMTABLE_PART).max(MEMTABLE_LEAST);
        let db = Database::builder(path).cache_size(CACHE).worker_threads(1).open()?;
        let records = db.keyspace("index", || {
            // A table of 64 MiB has a filter of several, which the cache cannot keep: in one block it would be read, and its
            // checksum computed, for each look-up. In parts of 4 KiB a look-up reads what it needs.
            KeyspaceCreateOptions::default()
                .max_memtable_size(MEMTABLE.min(memtable))
                .filter_block_partitioning_policy(PartitioningPolicy::all(true))
                .index_block_partitioning_policy(PartitioningPolicy::all(true))
        })?;
        let index = Self {
            db,
            records,
            lazy: Lazy::new(),
            resident: Resident::default(),
            numbers: Numbers::default(),
            reserve: OnceLock::new(),
        };
        let base = index.base()?;
        index.lazy.stand(base.as_ref());
        if index.is_loaded() {
            index.forget_loading()?;
        }
        Ok(index)
    }

    /// Holds room back for the changes to come. To be called once.
    pub fn hold(&self, reserve: Reserve) {
        let _ = self.reserve.set(reserve);
    }

    /// What is held back, if anything.
    pub fn reserve(&self) -> Option<&Reserve> {
        self.reserve.get()
    }

    /// Whether `bytes` of changes may be made now.
    ///
    /// # Errors
    /// [`VolumeError::NoRoom`] where this disk is full.
    pub fn provide(&self, bytes: u64, what: For) -> Result<()> {
        self.reserve.get().map_or(Ok(()), |reserve| reserve.provide(bytes, what))
    }

    /// What the index stands for; `None` while it is empty.
    pub fn base(&self) -> Result<Option<Base>> {
        self.get(BASE)
    }

    /// Replaces the base, durably on this disk.
    pub fn set_base(&self, base: &Base) -> Result<()> {
        let _writing = self.lazy.writing();
        self.write_base(base)
    }

    /// Changes the base if there is one, durably on this disk.
    pub fn change_base(&self, change: impl FnOnce(&mut Base)) -> Result<()> {
        let _writing = self.lazy.writing();
        match self.base()? {
            Some(mut base) => {
                change(&mut base);
                self.write_base(&base)
            }
            None => Ok(()),
        }
    }

    /// See [`Index::set_base`]; `writing` is held.
    fn write_base(&self, base: &Base) -> Result<()> {
        self.records.insert(BASE, encode(base)?)?;
        self.sync()?;
        self.lazy.stand(Some(base));
        Ok(())
    }

    /// Makes everything durable on this disk.
    pub fn sync(&self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncData)?)
    }

    /// Forgets everything.
    pub fn clear(&self) -> Result<()> {
        let _writing = self.lazy.writing();
        if self.records.is_empty()? {
            // Each file that the database gives up or begins costs this disk some syncs.
            self.lazy.stand(None);
            return Ok(());
        }
        self.records.clear()?;
        self.lazy.stand(None);
        self.sync()
    }

    /// Value of `key`, be it the volume's or this node's.
    pub fn raw(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.look_up(key, None)
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        match self.records.get(key)? {
            Some(value) => postcard::from_bytes(&value).map(Some).map_err(damaged),
            None => Ok(None),
        }
    }

    fn record<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        match self.look_up(key, None)? {
            Some(value) => records::decode(key, &value).map(Some).map_err(damaged),
            None => Ok(None),
        }
    }

    /// An inode's record.
    pub fn inode(&self, inode: u64) -> Result<Option<Inode>> {
        self.record(&key::inode(inode))
    }

    /// The extents of a block.
    pub fn block(&self, inode: u64, block: u64) -> Result<Option<Block>> {
        self.record(&key::block(inode, block))
    }

    /// A chunk's record.
    pub fn chunk(&self, hash: &ChunkHash) -> Result<Option<Chunk>> {
        self.record(&key::chunk(hash))
    }

    /// A pack's record.
    pub fn pack(&self, pack: &PackId) -> Result<Option<Pack>> {
        self.record(&key::pack(pack))
    }

    /// The inode that `name` stands for in `dir`.
    pub fn child(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        self.child_until(dir, name, None)
    }

    fn child_until(&self, dir: u64, name: &[u8], until: Until) -> Result<Option<u64>> {
        let key = key::dentry(dir, name);
        match self.look_up(&key, until)? {
            Some(value) => records::decode_child(&key, &value).map(Some).map_err(damaged),
            None => Ok(None),
        }
    }

    /// The volume inode behind a kernel inode number, whatever its birth time.
    pub fn kernel(&self, ino: u64) -> Result<Option<Kernel>> {
        self.get(&kernel_key(ino))
    }

    /// What the last look at an inode saw.
    pub fn seen(&self, inode: u64) -> Result<Option<Seen>> {
        self.get(&seen_key(inode))
    }

    /// A block's fingerprints.
    pub fn fingerprints(&self, inode: u64, block: u64) -> Result<Option<Fingerprints>> {
        self.get(&fingerprints_key(inode, block))
    }

    /// The next free inode number.
    pub fn next_inode(&self) -> Result<u64> {
        Ok(self.get(NEXT_INODE)?.unwrap_or(ROOT_INODE + 1))
    }

    /// The entries of a directory, in order of their names.
    pub fn children(&self, dir: u64) -> Result<Vec<(Vec<u8>, u64)>> {
        let prefix = key::dentries_of(dir);
        self.load_range(&prefix, None)?;
        let mut found = Vec::new();
        self.scan(&prefix, |key, value| {
            let name = key.get(prefix.len()..).unwrap_or(&[]).to_vec();
            found.push((name, records::decode_child(key, value).map_err(damaged)?));
            Ok(())
        })?;
        Ok(found)
    }

    /// The names of an inode that are in the tree: directory and name.
    pub fn links(&self, inode: u64) -> Result<Vec<(u64, Vec<u8>)>> {
        let prefix = tagged(b'l', &[inode]);
        let mut found = Vec::new();
        self.scan(&prefix, |key, _| {
            if let Some((dir, name)) = key.get(prefix.len()..).and_then(|rest| rest.split_first_chunk::<8>())
            {
                found.push((u64::from_be_bytes(*dir), name.to_vec()));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The numbers and extents of a file's blocks, in order.
    pub fn blocks(&self, inode: u64) -> Result<Vec<(u64, Block)>> {
        let prefix = key::blocks_of(inode);
        self.load_range(&prefix, None)?;
        let mut found = Vec::new();
        self.scan(&prefix, |key, value| {
            if let Some((number, [])) = key.get(prefix.len()..).and_then(|rest| rest.split_first_chunk::<8>())
            {
                found.push((u64::from_be_bytes(*number), records::decode(key, value).map_err(damaged)?));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Files that could be written without an intent when the last cut was made, and how.
    pub fn suspects(&self) -> Result<HashMap<u64, OpenFlags>> {
        let mut found = HashMap::new();
        self.scan(b"w", |key, value| {
            if let Some(ino) = number_in(b'w', key) {
                found.insert(ino, OpenFlags(postcard::from_bytes(value).map_err(damaged)?));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Whether a kernel inode is one of them.
    pub fn is_suspect(&self, ino: u64) -> Result<bool> {
        Ok(self.records.contains_key(suspect_key(ino))?)
    }

    /// Remembers them, for an agent that takes over from this one while the files stay open.
    pub fn set_suspects(
        &self,
        before: &HashMap<u64, OpenFlags>,
        now: &HashMap<u64, OpenFlags>,
    ) -> Result<()> {
        self.provide((before.len() + now.len()) as u64 * PER_CHANGE, For::Room)?;
        let mut batch = self.db.batch();
        for (ino, flags) in now.iter().filter(|(ino, flags)| before.get(ino) != Some(flags)) {
            batch.insert(&self.records, suspect_key(*ino), encode(&flags.0)?);
        }
        for ino in before.keys().filter(|ino| !now.contains_key(ino)) {
            batch.remove(&self.records, suspect_key(*ino));
        }
        Ok(batch.commit()?)
    }

    /// Numbers of a file's blocks in `first..end` that have a record.
    pub fn block_numbers(&self, inode: u64, first: u64, end: u64) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        if first < end {
            self.load_range(&key::blocks_of(inode), None)?;
            for pair in self.records.range(key::block(inode, first)..key::block(inode, end)) {
                if let key::Key::Block(_, number) = key::parse(&pair.key()?)? {
                    found.push(number);
                }
            }
        }
        Ok(found)
    }

    /// As [`Index::blocks`], of those in `first..end`.
    pub fn blocks_within(&self, inode: u64, first: u64, end: u64) -> Result<Vec<(u64, Block)>> {
        let mut found = Vec::new();
        if first < end {
            self.load_range(&key::blocks_of(inode), None)?;
            for pair in self.records.range(key::block(inode, first)..key::block(inode, end)) {
                let (key, value) = pair.into_inner()?;
                if let key::Key::Block(_, number) = key::parse(&key)? {
                    found.push((number, records::decode(&key, &value).map_err(damaged)?));
                }
            }
        }
        Ok(found)
    }

    /// Keys of a file's fingerprints.
    pub fn fingerprint_keys(&self, inode: u64) -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        self.scan(&tagged(b'f', &[inode]), |key, _| {
            found.push(key.to_vec());
            Ok(())
        })?;
        Ok(found)
    }

    /// What the volume holds, as of the last cut; `None` where that was never counted.
    pub fn totals(&self) -> Result<Option<Totals>> {
        self.record(&key::totals())
    }

    /// Calls `each` with every pair whose key starts with `prefix` and that is in this index, in order.
    pub fn scan(&self, prefix: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        for pair in self.records.prefix(prefix) {
            let (key, value) = pair.into_inner()?;
            each(&key, &value)?;
        }
        Ok(())
    }

    /// Writes records that need no undo and that nobody changes meanwhile.
    pub fn load(&self, changes: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<()> {
        let mut batch = self.db.batch();
        for (key, value) in changes {
            batch.insert(&self.records, key, value);
        }
        Ok(batch.commit()?)
    }

    /// Takes over records of this node alone, which change nothing of the volume and need no undo.
    pub fn apply_local(&self, changes: &Changes) -> Result<()> {
        // What is not refused here the database would meet itself, and take nothing any more.
        self.provide(size_of(changes), For::Room)?;
        let _numbers = self.numbers.note(changes)?;
        self.write(changes)
    }

    /// The same of what a cut saw that changes nothing of the volume.
    pub fn apply_seen(&self, changes: &Changes) -> Result<()> {
        self.provide(size_of(changes), For::Room)?;
        let (_numbers, changes) = self.numbers.still(changes)?;
        self.write(&changes)
    }

    fn write(&self, changes: &Changes) -> Result<()> {
        let _counted = self.resident.change(&self.records, changes)?;
        let mut batch = self.db.batch();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.records, key.clone(), value.clone()),
                None => batch.remove(&self.records, key.clone()),
            }
        }
        Ok(batch.commit()?)
    }
}

/// What a change takes besides its key and its value, in bytes.
const PER_CHANGE: u64 = 64;

fn size_of_change(key: &[u8], value: Option<&[u8]>) -> u64 {
    (key.len() + value.map_or(0, <[u8]>::len)) as u64 + PER_CHANGE
}

fn size_of(changes: &Changes) -> u64 {
    changes.iter().map(|(key, value)| size_of_change(key, value.as_deref())).sum()
}

/// What a thread has found that reads metadata beside its caller.
///
/// # Errors
/// Its own, and one where it died.
pub fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(VolumeError::Failed("a thread that reads metadata died".into())))
}

/// Encodes a local record.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(damaged)
}

/// Sets the next free inode number.
pub fn set_next_inode(changes: &mut Changes, next: u64) -> Result<()> {
    changes.insert(NEXT_INODE.to_vec(), Some(encode(&next)?));
    Ok(())
}
