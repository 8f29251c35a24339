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

mod local;
mod pieces;

pub use self::local::{
    Absent, Absentee, absent_key, set_absent, set_link, set_seen, set_unpopulated, unpopulated_key,
};
pub use self::pieces::Pieces;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use storeshim_protocol::OpenFlags;

use super::VolumeError;
use super::tree::FileId;
use crate::meta::Head;
use crate::meta::records::{self, Block, Chunk, ChunkHash, Inode, Pack, PackId, ROOT_INODE, Time, key};

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
    /// The look came so soon after the change that a later change could carry the same times.
    pub racy: bool,
}

/// BLAKE3, cut to 16 bytes, of each 64 KiB piece of a block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprints(pub Vec<[u8; 16]>);

/// Keys to set (`Some`) or delete.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

#[derive(Serialize, Deserialize)]
struct Undo {
    nonce: u128,
    before: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// How the index stands to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It describes the backend's head (cuts that had not become durable were rolled back).
    Current,
    /// Somebody else has committed since, or the backend is another volume's.
    Diverged,
}

/// See the module.
pub struct Index {
    db: Database,
    records: Keyspace,
}

const BASE: &[u8] = b"m";
const NEXT_INODE: &[u8] = b"n";

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

fn undo_key(seq: u64) -> Vec<u8> {
    tagged(b'u', &[seq])
}

fn tagged(tag: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = vec![tag];
    numbers.iter().for_each(|n| key.extend_from_slice(&n.to_be_bytes()));
    key
}

fn damaged(what: impl std::fmt::Display) -> VolumeError {
    VolumeError::Failed(format!(
        "the local index cannot be used ({what}); stop the agent and move the mount's state directory away: the \
         volume is then restored from its backend"
    ))
}

impl From<fjall::Error> for VolumeError {
    fn from(e: fjall::Error) -> Self {
        damaged(e)
    }
}

type Result<T> = std::result::Result<T, VolumeError>;

impl Index {
    /// Opens the index in directory `path`, or makes an empty one.
    pub fn open(path: &Path) -> Result<Self> {
        let db = Database::builder(path).cache_size(32 << 20).worker_threads(1).open()?;
        let records = db.keyspace("index", || KeyspaceCreateOptions::default().max_memtable_size(8 << 20))?;
        Ok(Self { db, records })
    }

    /// What the index stands for; `None` while it is empty.
    pub fn base(&self) -> Result<Option<Base>> {
        self.get(BASE)
    }

    /// Replaces the base, durably on this disk.
    pub fn set_base(&self, base: &Base) -> Result<()> {
        self.records.insert(BASE, encode(base)?)?;
        self.sync()
    }

    /// Makes everything durable on this disk.
    pub fn sync(&self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncData)?)
    }

    /// Forgets everything.
    pub fn clear(&self) -> Result<()> {
        self.records.clear()?;
        self.sync()
    }

    /// Value of `key`.
    pub fn raw(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.records.get(key)?.map(|v| v.to_vec()))
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        match self.records.get(key)? {
            Some(value) => postcard::from_bytes(&value).map(Some).map_err(damaged),
            None => Ok(None),
        }
    }

    fn record<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        match self.records.get(key)? {
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
        let key = key::dentry(dir, name);
        match self.records.get(&key)? {
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
            if let Some(ino) = key.get(1..).and_then(|k| k.try_into().ok()).map(u64::from_be_bytes) {
                found.insert(ino, OpenFlags(postcard::from_bytes(value).map_err(damaged)?));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Remembers them, for an agent that takes over from this one while the files stay open.
    pub fn set_suspects(
        &self,
        before: &HashMap<u64, OpenFlags>,
        now: &HashMap<u64, OpenFlags>,
    ) -> Result<()> {
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
            for pair in self.records.range(key::block(inode, first)..key::block(inode, end)) {
                if let key::Key::Block(_, number) = key::parse(&pair.key()?)? {
                    found.push(number);
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

    /// Calls `each` with every pair whose key starts with `prefix`, in order.
    pub fn scan(&self, prefix: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        for pair in self.records.prefix(prefix) {
            let (key, value) = pair.into_inner()?;
            each(&key, &value)?;
        }
        Ok(())
    }

    /// Writes changes that need no undo: while a tree is populated.
    pub fn load(&self, changes: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<()> {
        let mut batch = self.db.batch();
        for (key, value) in changes {
            batch.insert(&self.records, key, value);
        }
        Ok(batch.commit()?)
    }

    /// Takes over what a look saw that changes nothing of the volume: needs no undo.
    pub fn apply_local(&self, changes: &Changes) -> Result<()> {
        let mut batch = self.db.batch();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.records, key.clone(), value.clone()),
                None => batch.remove(&self.records, key.clone()),
            }
        }
        Ok(batch.commit()?)
    }

    /// Takes over what cut `seq` saw, remembering what was before until [`Index::confirm`].
    pub fn apply(&self, seq: u64, nonce: u128, changes: &Changes) -> Result<()> {
        let mut undo = Undo { nonce, before: Vec::with_capacity(changes.len()) };
        let mut batch = self.db.batch();
        for (key, value) in changes {
            undo.before.push((key.clone(), self.raw(key)?));
            match value {
                Some(value) => batch.insert(&self.records, key.clone(), value.clone()),
                None => batch.remove(&self.records, key.clone()),
            }
        }
        batch.insert(&self.records, undo_key(seq), encode(&undo)?);
        Ok(batch.commit()?)
    }

    /// Commit `seq` is durable in the backend.
    pub fn confirm(&self, seq: u64, nonce: u128) -> Result<()> {
        let Some(mut base) = self.base()? else { return Err(damaged("it has no base")) };
        (base.seq, base.nonce) = (seq, nonce);
        let mut batch = self.db.batch();
        batch.insert(&self.records, BASE, encode(&base)?);
        batch.remove(&self.records, undo_key(seq));
        Ok(batch.commit()?)
    }

    /// At start: compares with where the backend stands, confirms the cuts that became durable and rolls back those
    /// that did not (the last agent died before it knew, or before it could).
    pub fn reconcile(&self, volume_id: u128, head: Option<Head>) -> Result<Standing> {
        let Some(base) = self.base()? else { return Ok(Standing::Diverged) };
        if base.volume_id != volume_id {
            return Ok(Standing::Diverged);
        }
        let (seq, nonce) = head.map_or((0, 0), |h| (h.seq, h.nonce));
        let mut cuts: Vec<(u64, Undo)> = Vec::new();
        self.scan(b"u", |key, value| {
            if let Some(seq) = key.get(1..).and_then(|k| k.try_into().ok()).map(u64::from_be_bytes) {
                cuts.push((seq, postcard::from_bytes(value).map_err(damaged)?));
            }
            Ok(())
        })?;
        let ours = (base.seq, base.nonce) == (seq, nonce)
            || cuts.iter().any(|(s, undo)| *s == seq && undo.nonce == nonce);
        if !ours {
            return Ok(Standing::Diverged);
        }
        let mut stale = BTreeSet::new();
        for (cut, undo) in cuts.into_iter().rev() {
            let mut batch = self.db.batch();
            if cut > seq {
                stale.extend(undo.before.iter().filter_map(|(key, _)| match key::parse(key) {
                    Ok(key::Key::Inode(inode) | key::Key::Block(inode, _)) => Some(inode),
                    _ => None,
                }));
                for (key, value) in undo.before {
                    match value {
                        Some(value) => batch.insert(&self.records, key, value),
                        None => batch.remove(&self.records, key),
                    }
                }
            }
            batch.remove(&self.records, undo_key(cut));
            batch.commit()?;
        }
        // A look that found nothing new since may have been noted without an undo: what it saw describes data that is
        // not in the volume any more.
        for inode in stale {
            if let Some(seen) = self.seen(inode)? {
                self.records.insert(seen_key(inode), encode(&Seen { racy: true, ..seen })?)?;
            }
        }
        self.set_base(&Base { seq, nonce, ..base })?;
        Ok(Standing::Current)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Base {
        Base { volume_id: 7, seq: 0, nonce: 0, populated: true, boot_id: "b".into(), clean: false }
    }

    fn head(seq: u64, nonce: u128) -> Option<Head> {
        Some(Head { seq, nonce, cut_at_ns: 0 })
    }

    fn set(key: &[u8], value: Option<&[u8]>) -> Changes {
        Changes::from([(key.to_vec(), value.map(<[u8]>::to_vec))])
    }

    #[test]
    fn cuts_that_did_not_become_durable_are_rolled_back() {
        let dir = tempfile::tempdir().unwrap();
        {
            let index = Index::open(dir.path()).unwrap();
            index.set_base(&base()).unwrap();
            index.apply(1, 11, &set(b"i1", Some(b"one"))).unwrap();
            index.apply(2, 12, &set(b"i1", Some(b"two"))).unwrap();
            index.apply(3, 13, &set(b"i1", None)).unwrap();
        }
        let index = Index::open(dir.path()).unwrap();
        assert_eq!(index.raw(b"i1").unwrap(), None);
        assert_eq!(index.reconcile(7, head(2, 12)).unwrap(), Standing::Current);
        assert_eq!(index.raw(b"i1").unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(index.base().unwrap().unwrap().seq, 2);
        assert_eq!(index.reconcile(7, head(2, 12)).unwrap(), Standing::Current);
    }

    #[test]
    fn a_foreign_commit_is_a_divergence() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        assert_eq!(index.reconcile(7, None).unwrap(), Standing::Diverged);
        index.set_base(&base()).unwrap();
        index.apply(1, 11, &set(b"i1", Some(b"one"))).unwrap();
        assert_eq!(index.reconcile(7, head(1, 99)).unwrap(), Standing::Diverged);
        assert_eq!(index.reconcile(8, head(1, 11)).unwrap(), Standing::Diverged);
        assert_eq!(index.reconcile(7, head(1, 11)).unwrap(), Standing::Current);
    }
}
