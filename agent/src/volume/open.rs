//! Opening a volume: which of tree, index and backend can be trusted, and what must be done until all three agree.
//! Nothing that may be somebody's only copy is ever deleted: what cannot be used is set aside. It must not know how
//! a tree is populated or audited.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::index::{self, Base, Index, Kernel, Standing};
use super::restore::Restore;
use super::status::Shared;
use super::tree::{LOST_AND_FOUND, Tree};
use super::{Durability, VolumeError, VolumeOptions};
use crate::blob::Blob;
use crate::meta::records::{self, Format, ROOT_INODE, key};
use crate::meta::{Head, Meta};

/// A volume whose tree may be used.
pub struct Opened {
    /// The index, current.
    pub index: Index,
    /// The tree, populated.
    pub tree: Tree,
    /// Where the backend stands.
    pub head: Option<Head>,
    /// The volume is new and the tree may hold files already.
    pub adopt: bool,
}

type Result<T> = std::result::Result<T, VolumeError>;

/// What to do with the tree on this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Index and tree are those of the backend's head, or newer by what was not committed yet.
    Keep,
    /// Take the files that are there into a new volume.
    Adopt,
    /// Populate an empty tree.
    Restore,
    /// Set the tree aside, then populate.
    SetAside(&'static str),
}

/// Opens the volume. Blocking: restores where that is needed.
pub fn open(options: &VolumeOptions, meta: &dyn Meta, blob: &dyn Blob, shared: &Shared) -> Result<Opened> {
    let format = key::format();
    let value = meta.get(&format)?.ok_or_else(|| {
        VolumeError::Failed("the volume has no format record; restore the backend from a copy".into())
    })?;
    let Format { volume_id, .. } = records::decode(&format, &value)?;
    let head: Option<Head> = match meta.get(&key::head())? {
        Some(value) => Some(records::decode(&key::head(), &value)?),
        None => None,
    };
    let tree = Tree::open(&options.tree, &options.prefix, &options.neighbours.list())
        .map_err(|e| disk(&options.tree, &e))?;
    let index = Index::open(&options.state.join("index"))?;
    let boot_id = boot_id();
    let verdict = judge(options, &index, &tree, volume_id, head, &boot_id)?;
    tracing::info!(?verdict, seq = head.map_or(0, |h| h.seq), tree = %tree.path().display(), "opening the volume");
    let base = |populated| Base {
        volume_id,
        seq: head.map_or(0, |h| h.seq),
        nonce: head.map_or(0, |h| h.nonce),
        populated,
        boot_id: boot_id.clone(),
        clean: false,
        loaded: true,
        since: ROOT_INODE + 1,
    };
    match verdict {
        Verdict::Keep => {}
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
        Verdict::Restore => {}
    }
    if matches!(verdict, Verdict::Restore | Verdict::SetAside(_)) {
        index.clear()?;
        index.set_base(&base(false))?;
        let parallelism = options.upload_parallelism;
        Restore { meta, blob, index: &index, tree: &tree, shared, parallelism }.run()?;
    }
    let root = tree.stat(tree.root()).map_err(|e| disk(tree.path(), &e))?.id;
    index.load([(index::kernel_key(root.ino), index::encode(&Kernel { id: root, inode: ROOT_INODE })?)])?;
    index.set_base(&base(true))?;
    Ok(Opened { index, tree, head, adopt: verdict == Verdict::Adopt })
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
    let expected = !index.children(ROOT_INODE)?.is_empty();
    if expected && is_empty {
        // Programs that empty a tree while no agent runs are rare; disks that are lost are what we are for.
        return Ok(Verdict::Restore);
    }
    if !same_root {
        return Ok(Verdict::SetAside("it is not the directory that the agent had left"));
    }
    let same_boot = !boot_id.is_empty() && base.boot_id == boot_id;
    if !same_boot && !base.clean && options.durability == Durability::Remote && head.is_some() {
        return Ok(Verdict::SetAside(
            "the machine stopped without warning, and files that were not synced to this disk may have lost data",
        ));
    }
    Ok(Verdict::Keep)
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
