//! Opening a volume: which of tree, index and backend can be trusted, and what must be done until all three agree.
//! Nothing that may be somebody's only copy is ever deleted: what cannot be used is set aside. It must not know how
//! a tree is populated or audited.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;

use super::entry;
use super::index::{self, Base, Changes, Doubt, Index, Kernel, Reserve, Seen, Standing, joined};
use super::residency;
use super::restore::Restore;
use super::status::Shared;
use super::tree::{LOST_AND_FOUND, Tree};
use super::{Durability, Quota, VolumeError, VolumeOptions};
use crate::blob::Blob;
use crate::meta::records::{self, Format, Inode, ROOT_INODE, Totals, key};
use crate::meta::{Batch, Head, Meta, MetaError};

/// What this node knows of a volume: opened while its backend is reached, since that takes a disk some time.
pub struct Local(Index);

impl Local {
    /// Opens what is in the volume's state directory, or makes it.
    ///
    /// # Errors
    /// Of this disk.
    pub fn open(options: &VolumeOptions) -> Result<Self> {
        // First: where the disk is full, this is what the index has for its opening.
        let reserve = Reserve::open(&options.state)?;
        let index = Index::open(&options.state.join("index"))?;
        index.hold(reserve);
        Ok(Self(index))
    }
}

/// A volume whose tree may be used.
pub struct Opened {
    /// The index, current.
    pub index: Index,
    /// The tree: all that is in it is of the volume, or younger.
    pub tree: Tree,
    /// Where the backend stands.
    pub head: Option<Head>,
    /// What the volume holds.
    pub totals: Totals,
    /// The volume is new and the tree may hold files already.
    pub adopt: bool,
    /// The machine has stopped without warning: what came from the backend may be lost from this disk again.
    pub doubtful: bool,
}

type Result<T> = std::result::Result<T, VolumeError>;

/// What to do with the tree on this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Index and tree are those of the backend's head, or newer by what was not committed yet.
    Keep,
    /// The same, but files that nobody synced to this disk may have lost data.
    KeepInDoubt,
    /// Take the files that are there into a new volume.
    Adopt,
    /// Populate an empty tree.
    Restore,
    /// Set the tree aside, then populate.
    SetAside(&'static str),
}

/// What is read of every volume, in one go.
struct Start {
    quota: Option<records::Quota>,
    volume_id: u128,
    head: Option<Head>,
    totals: Option<Totals>,
    root: Option<Inode>,
}

impl Start {
    fn read(meta: &dyn Meta) -> Result<Self> {
        let (format, head, totals, root, quota) = std::thread::scope(|scope| {
            let head = scope.spawn(|| get(meta, &key::head()));
            let totals = scope.spawn(|| get(meta, &key::totals()));
            let root = scope.spawn(|| get(meta, &key::inode(ROOT_INODE)));
            let quota = scope.spawn(|| get(meta, &key::quota()));
            let format: Result<Option<Format>> = get(meta, &key::format());
            (format, joined(head), joined(totals), joined(root), joined(quota))
        });
        let format = format?.ok_or_else(|| {
            VolumeError::Failed("the volume has no format record; restore the backend from a copy".into())
        })?;
        let volume_id = format.volume_id;
        Ok(Self { quota: quota?, volume_id, head: head?, totals: totals?, root: root? })
    }
}

fn get<T: DeserializeOwned>(meta: &dyn Meta, key: &[u8]) -> Result<Option<T>> {
    Ok(meta.get(key, None)?.map(|value| records::decode(key, &value)).transpose()?)
}

/// Numbers in records that others than agents read are below this.
const LARGEST_NUMBER: u64 = (1 << 53) - 1;

/// Leaves the quota in the volume, so that it holds while no agent runs.
fn keep_quota(meta: &dyn Meta, quota: Quota, kept: Option<records::Quota>) -> Result<()> {
    let most = |number: Option<u64>| number.map(|most| most.min(LARGEST_NUMBER));
    let wanted = records::Quota { bytes: most(quota.bytes), inodes: most(quota.inodes) };
    let value = (wanted != records::Quota::default()).then_some(wanted);
    if value == kept {
        return Ok(());
    }
    let value = value.map(|value| records::encode(&value)).transpose()?;
    let answer = meta.submit(Batch { ops: vec![(key::quota(), value)] }).recv();
    Ok(answer.unwrap_or_else(|_| Err(MetaError::Unavailable("the metadata engine has stopped".into())))?)
}

/// Opens the volume. Blocking: where all is restored before anybody may see it, for as long as that takes.
pub fn open(
    options: &VolumeOptions,
    local: Local,
    meta: &Arc<dyn Meta>,
    blob: &dyn Blob,
    shared: &Shared,
) -> Result<Opened> {
    let start = Start::read(&**meta)?;
    keep_quota(&**meta, options.quota, start.quota)?;
    let (volume_id, head) = (start.volume_id, start.head);
    let tree = Tree::open(&options.tree, &options.prefix, &options.neighbours.list())
        .map_err(|e| disk(&options.tree, &e))?;
    let Local(index) = local;
    index.set_source(Arc::clone(meta));
    let boot_id = boot_id();
    let verdict = judge(options, &index, &tree, volume_id, head, &boot_id)?;
    tracing::info!(?verdict, seq = head.map_or(0, |h| h.seq), tree = %tree.path().display(), "opening the volume");
    match verdict {
        Verdict::Keep | Verdict::KeepInDoubt | Verdict::Restore => {}
        Verdict::Adopt => index.clear()?,
        Verdict::SetAside(why) => {
            let aside = set_aside(&tree, &options.state).map_err(|e| disk(tree.path(), &e))?;
            let notice = format!(
                "the tree found on this disk was set aside in {}: {why}; look there for changes that never reached the \
                 backend, then delete it",
                aside.display()
            );
            tracing::warn!("{notice}");
            *shared.notice.lock() = Some(notice);
        }
    }
    let (seq, nonce) = head.map_or((0, 0), |h| (h.seq, h.nonce));
    let (clean, loaded, since) = (false, true, ROOT_INODE + 1);
    let base =
        Base { volume_id, seq, nonce, populated: true, boot_id: boot_id.clone(), clean, loaded, since };
    match verdict {
        Verdict::Restore | Verdict::SetAside(_) if may_be_lazy(options, &tree) => {
            begin(&index, &tree, &start, &base)?;
        }
        Verdict::Restore | Verdict::SetAside(_) => {
            index.clear()?;
            index.set_base(&Base { populated: false, ..base.clone() })?;
            let parallelism = options.upload_parallelism;
            Restore { meta: &**meta, blob, index: &index, tree: &tree, shared, parallelism }.run()?;
            index.set_base(&base)?;
        }
        Verdict::Adopt => index.set_base(&base)?,
        Verdict::Keep | Verdict::KeepInDoubt => index.change_base(|base| {
            base.boot_id.clone_from(&boot_id);
            base.clean = false;
        })?,
    }
    let root = tree.stat(tree.root()).map_err(|e| disk(tree.path(), &e))?.id;
    index.load([(index::kernel_key(root.ino), index::encode(&Kernel { id: root, inode: ROOT_INODE })?)])?;
    let totals = count(&index)?;
    let (adopt, doubtful) = (verdict == Verdict::Adopt, verdict == Verdict::KeepInDoubt);
    Ok(Opened { index, tree, head, totals, adopt, doubtful })
}

/// Whether a directory can be populated, and a file hydrated, when it is first touched; else everything is brought here before
/// the mount is ready.
fn may_be_lazy(options: &VolumeOptions, tree: &Tree) -> bool {
    let fits = residency::fits(&options.state, tree);
    if let Err(why) = &fits {
        tracing::warn!(tree = %tree.path().display(), %why, "the tree is restored as a whole before it is ready");
    }
    fits.is_ok()
}

/// Begins with an empty tree: the root is there and nothing in it, all else comes when it is touched.
fn begin(index: &Index, tree: &Tree, start: &Start, base: &Base) -> Result<()> {
    index.clear()?;
    let mut changes = Changes::new();
    if let Some(root) = &start.root {
        entry::set_attributes(tree.root(), b".", root).map_err(|e| disk(tree.path(), &e))?;
        let stat = tree.stat(tree.root()).map_err(|e| disk(tree.path(), &e))?;
        // The times of its own change are young: a change that follows at once may carry the same.
        index::set_seen(&mut changes, ROOT_INODE, &Seen::of(&stat, Doubt::Attributes))?;
        changes.insert(key::inode(ROOT_INODE), Some(records::encode(root)?.to_vec()));
    }
    // Until it is known which numbers are given away, none is known to be free.
    let since = start.totals.map_or(u64::MAX, |totals| totals.next_inode);
    if let Some(totals) = &start.totals {
        changes.insert(key::totals(), Some(records::encode(totals)?.to_vec()));
        index::set_next_inode(&mut changes, totals.next_inode)?;
    }
    index::set_unpopulated(&mut changes, ROOT_INODE, true);
    index.load(changes.into_iter().filter_map(|(key, value)| Some((key, value?))))?;
    // Last, and it makes all of these durable: without it the next opening begins anew.
    index.set_base(&Base { loaded: false, since, ..base.clone() })
}

/// What the volume holds. A volume whose commits never said so is read as a whole, once.
fn count(index: &Index) -> Result<Totals> {
    if let Some(totals) = index.totals()? {
        return Ok(totals);
    }
    index.load_all(&mut |_| true)?;
    let mut totals = Totals { next_inode: index.next_inode()?, ..Totals::default() };
    index.scan(key::INODES, |key, value| {
        let record: Inode = records::decode(key, value)?;
        if let key::Key::Inode(inode) = key::parse(key)? {
            totals.next_inode = totals.next_inode.max(inode.saturating_add(1));
        }
        totals.inodes += 1;
        if record.mode & libc::S_IFMT == libc::S_IFREG {
            totals.files += 1;
            totals.bytes = totals.bytes.saturating_add(record.size);
        }
        Ok(())
    })?;
    let mut changes = Changes::new();
    index::set_next_inode(&mut changes, totals.next_inode)?;
    changes.insert(key::totals(), Some(records::encode(&totals)?.to_vec()));
    index.load(changes.into_iter().filter_map(|(key, value)| Some((key, value?))))?;
    Ok(totals)
}

fn judge(
    options: &VolumeOptions,
    index: &Index,
    tree: &Tree,
    volume_id: u128,
    head: Option<Head>,
    boot_id: &str,
) -> Result<Verdict> {
    let names = tree.list(tree.root()).map_err(|e| disk(tree.path(), &e))?;
    let is_empty = names.is_empty();
    let Some(base) = index.base()? else {
        return Ok(match (head, is_empty) {
            (None, _) => Verdict::Adopt,
            (Some(_), true) => Verdict::Restore,
            (Some(_), false) => {
                Verdict::SetAside("the agent's state is lost, so it is not known how old the tree is")
            }
        });
    };
    if !base.populated && base.volume_id == volume_id {
        return Ok(if is_empty {
            Verdict::Restore
        } else {
            Verdict::SetAside("a restore was interrupted half way, so it is not whole")
        });
    }
    if index.reconcile(volume_id, head)? == Standing::Diverged {
        return Ok(match (head, is_empty) {
            (_, true) => Verdict::Restore,
            (_, false) => Verdict::SetAside("another agent has committed to this volume since"),
        });
    }
    let root = tree.stat(tree.root()).map_err(|e| disk(tree.path(), &e))?.id;
    let same_root = index.seen(ROOT_INODE)?.is_none_or(|seen| seen.id == root);
    // A root that is not populated yet is empty, or half made: population goes on from there.
    let expected = !index.is_unpopulated(ROOT_INODE)? && !index.children(ROOT_INODE)?.is_empty();
    if expected && is_empty {
        // Programs that empty a tree while no agent runs are rare; disks that are lost are what we are for.
        return Ok(Verdict::Restore);
    }
    if !same_root {
        return Ok(Verdict::SetAside("it is not the directory that the agent had left"));
    }
    let same_boot = !boot_id.is_empty() && base.boot_id == boot_id;
    match options.durability {
        _ if same_boot || base.clean || head.is_none() => Ok(Verdict::Keep),
        Durability::Remote => Ok(Verdict::SetAside(
            "the machine stopped without warning, and files that were not synced to this disk may have lost data",
        )),
        Durability::Local => Ok(Verdict::KeepInDoubt),
    }
}

/// Moves everything in the tree to a new directory of the state directory.
fn set_aside(tree: &Tree, state: &Path) -> io::Result<PathBuf> {
    let stamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let aside = state.join("aside").join(stamp.to_string());
    std::fs::create_dir_all(&aside)?;
    for entry in std::fs::read_dir(tree.path())? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes() != LOST_AND_FOUND {
            std::fs::rename(entry.path(), aside.join(entry.file_name()))?;
        }
    }
    Ok(aside)
}

fn disk(path: &Path, e: &io::Error) -> VolumeError {
    VolumeError::Failed(format!(
        "the tree {} cannot be used: {e}; it must be a directory that the agent's user may read and write, on one \
         filesystem with the state directory",
        path.display()
    ))
}

/// Names this boot of the machine (proc(5), /proc/sys/kernel/random/boot_id).
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
