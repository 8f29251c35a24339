//! Where a mount's tree and state lie: chooses the placement, makes the directories, takes the lock, and keeps
//! the note that says which tree the state belongs to. It must not know what is in either.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{AccessFlags, eaccess};
use serde::{Deserialize, Serialize};

use crate::config::{Mount, Placement};

/// A mount's places, with the lock that keeps other agents off.
#[derive(Debug)]
pub struct Place {
    /// Root of the tree, canonical.
    pub tree: PathBuf,
    /// The tree is the prefix itself.
    pub identity: bool,
    /// The engine's private directory.
    pub volume: PathBuf,
    _lock: Flock<File>,
}

/// Which tree was ours before: the path alone does not say, a directory can be replaced. (Whether the index fits
/// the tree is for the engine to judge.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    prefix: String,
    url: String,
    tree: PathBuf,
    root: RootId,
}

/// Identity of a tree's root directory on its filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RootId {
    ino: u64,
    /// Nanoseconds since 1970; `None` where the filesystem does not keep it.
    born: Option<u128>,
}

impl RootId {
    fn of(tree: &Path) -> Result<Self, String> {
        let meta = tree.metadata().map_err(|error| trouble("look at the tree", tree, &error))?;
        let born = meta.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Self { ino: meta.ino(), born: born.map(|age| age.as_nanos()) })
    }
}

/// The directory name of a mount's state: readable, and different for every prefix and volume.
pub fn state_name(mount: &Mount) -> String {
    let readable: String = mount
        .prefix
        .trim_start_matches('/')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
        .take(40)
        .collect();
    // Without credentials: a renewed password must not orphan the state.
    let identity = format!("{}\0{}", mount.prefix, mount.public_url());
    let hash = blake3::hash(identity.as_bytes()).to_hex();
    format!("{readable}-{}", hash.get(..12).unwrap_or_default())
}

impl Place {
    /// Makes or finds the places of `mount` below `state_dir`. The error is a sentence.
    pub fn take(mount: &Mount, state_dir: &Path) -> Result<Self, String> {
        // Searchable by everybody, because a translated tree lies below; what is private is so by itself.
        for dir in [state_dir.to_owned(), state_dir.join("mounts")] {
            make_dir(&dir, 0o711)?;
        }
        let home = state_dir.join("mounts").join(state_name(mount));
        make_dir(&home, 0o711)?;
        let lock = take_lock(&home.join("lock"), mount)?;

        let note_path = home.join("note.json");
        let note = read_note(&note_path)?.filter(|note| {
            // A tree that is gone or was replaced is not the one that the state describes.
            RootId::of(&note.tree).is_ok_and(|root| root == note.root)
        });
        let (tree, identity) =
            choose(mount, &home.join("tree"), note.as_ref().map(|note| note.tree.as_path()))?;
        let volume = home.join("volume");
        let now = Note {
            prefix: mount.prefix.clone(),
            url: mount.public_url(),
            tree: tree.clone(),
            root: RootId::of(&tree)?,
        };
        if note.as_ref() != Some(&now) {
            if let Some(old) = note.filter(|old| old.tree != tree) {
                tracing::warn!(
                    prefix = mount.prefix, old = %old.tree.display(), new = %tree.display(),
                    "the mount's tree has moved; changes in the old tree that were not committed stay there"
                );
            }
            write_note(&note_path, &now)?;
        }
        make_dir(&volume, 0o700)?;
        Ok(Self { tree, identity, volume, _lock: lock })
    }
}

/// The tree of `mount`, made where it may be made, and whether it is the prefix itself. `own` is where a
/// translated tree goes; `before` is the tree that the state belongs to.
fn choose(mount: &Mount, own: &Path, before: Option<&Path>) -> Result<(PathBuf, bool), String> {
    let prefix = Path::new(&mount.prefix);
    let at_prefix = prefix.canonicalize().ok().filter(|path| path.is_dir());
    let tree = match (mount.placement, &mount.tree) {
        (Placement::Identity, Some(tree)) => {
            let made = make_tree(tree)?;
            if at_prefix.as_ref() != Some(&made) {
                return Err(format!(
                    "mount {}: placement is identity, but {} is not the tree {}; make it a symbolic link to the \
                     tree, or leave `tree` out",
                    mount.prefix,
                    mount.prefix,
                    tree.display()
                ));
            }
            made
        }
        (Placement::Identity, None) => make_tree(prefix).map_err(|why| {
            format!(
                "mount {}: placement is identity and {why}; create the directory in the image, or choose \
                 placement = \"translated\"",
                mount.prefix
            )
        })?,
        (Placement::Translated, Some(tree)) | (Placement::Auto, Some(tree)) => make_tree(tree)?,
        (Placement::Translated, None) => make_tree(own)?,
        (Placement::Auto, None) => match (before, &at_prefix) {
            (Some(before), _) => make_tree(before)?,
            (None, Some(dir)) if may_become_tree(dir) => dir.clone(),
            (None, _) => make_tree(own)?,
        },
    };
    let identity = at_prefix.as_ref() == Some(&tree) || prefix.canonicalize().is_ok_and(|path| path == tree);
    if identity && mount.placement == Placement::Translated {
        return Err(format!(
            "mount {}: placement is translated, but the tree {} is what the prefix points to; choose another \
             tree, or placement = \"identity\"",
            mount.prefix,
            tree.display()
        ));
    }
    if eaccess(&tree, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        return Err(format!(
            "mount {}: the agent may not write its tree {}; give it to the agent's user",
            mount.prefix,
            tree.display()
        ));
    }
    Ok((tree, identity))
}

/// Whether a directory that was not ours before may be taken as a tree: empty and ours to write.
fn may_become_tree(dir: &Path) -> bool {
    eaccess(dir, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
        && std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn make_tree(path: &Path) -> Result<PathBuf, String> {
    make_dir(path, 0o755)?;
    path.canonicalize().map_err(|error| trouble("find the tree", path, &error))
}

/// Makes a directory and its parents; one that is there keeps its mode.
fn make_dir(path: &Path, mode: u32) -> Result<(), String> {
    if path.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|error| trouble("create the directory", path, &error))?;
    // The umask may have taken bits that the apps need.
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| trouble("set the mode of", path, &error))
}

fn take_lock(path: &Path, mount: &Mount) -> Result<Flock<File>, String> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| trouble("open the lock file", path, &error))?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, nix::errno::Errno::EAGAIN)) => {
            let mut holder = String::new();
            // Only for the message; a holder that has not written its id yet is "another agent".
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another agent".to_owned(),
                pid => format!("another agent (pid {pid})"),
            };
            return Err(format!(
                "mount {}: {holder} uses the same state in {}; stop it, or give this one another state_dir",
                mount.prefix,
                path.parent().unwrap_or(path).display()
            ));
        }
        Err((_, errno)) => return Err(trouble("lock", path, &errno.into())),
    };
    let pid = std::process::id().to_string();
    let write = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(pid.as_bytes()));
    write.map_err(|error| trouble("write", path, &error))?;
    Ok(lock)
}

fn read_note(path: &Path) -> Result<Option<Note>, String> {
    match std::fs::read(path) {
        // A note that cannot be read names no tree: the state is made anew, which is always safe.
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(trouble("read", path, &error)),
    }
}

/// Replaces the note durably: it must not be older than the index that it vouches for.
fn write_note(path: &Path, note: &Note) -> Result<(), String> {
    let next = path.with_extension("next");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(&serde_json::to_vec_pretty(note)?)?;
        file.sync_all()?;
        std::fs::rename(&next, path)?;
        File::open(path.parent().unwrap_or(path))?.sync_all()
    };
    write().map_err(|error| trouble("write", path, &error))
}

fn trouble(what: &str, path: &Path, error: &std::io::Error) -> String {
    let help = match error.kind() {
        ErrorKind::PermissionDenied => "; give it to the agent's user or choose another place",
        ErrorKind::StorageFull => "; make room on that disk",
        _ => "",
    };
    format!("cannot {what} {}: {error}{help}", path.display())
}

#[cfg(test)]
mod tests;
