//! What a tree is, byte for byte and metadata for metadata, and in what two trees differ. It must not know
//! storeshim.

mod attributes;
mod content;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub use content::Content;

/// A path inside a tree, relative to its root; the root itself is empty.
pub type Name = PathBuf;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File(Content),
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(OsString),
    /// A named pipe.
    Fifo,
    /// A bound socket.
    Socket,
    /// A character or block device and its number.
    Device(u64),
}

impl Kind {
    fn word(&self) -> &'static str {
        match self {
            Kind::File(_) => "file",
            Kind::Directory => "directory",
            Kind::Symlink(_) => "symlink",
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
            Kind::Device(_) => "device",
        }
    }
}

/// Everything about a name that a restore must bring back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is, and its content.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner and group; `None` where this process is not root, so that no restore could bring them back.
    pub owner: Option<(u32, u32)>,
    /// Modification time in nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Every name of the same inode where there are several, in order.
    pub links: Vec<Name>,
    /// Extended attributes in the `user.` namespace.
    pub attributes: BTreeMap<OsString, Vec<u8>>,
    /// Bytes allocated on disk (only compared roughly: see [`diff`]).
    pub allocated: u64,
}

/// A tree as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every name, the root included.
    pub entries: BTreeMap<Name, Entry>,
}

impl Snapshot {
    /// Looks at everything below `root`. Where a file's mode forbids reading it, it is made readable for the
    /// moment, so no agent should be looking at the same time.
    pub fn of(root: &Path) -> Self {
        let mut walk = Walk { entries: BTreeMap::new(), inodes: BTreeMap::new() };
        walk.visit(PathBuf::new(), root);
        let Walk { mut entries, inodes, .. } = walk;
        for mut names in inodes.into_values().filter(|names| names.len() > 1) {
            names.sort();
            for name in &names {
                if let Some(entry) = entries.get_mut(name) {
                    entry.links = names.clone();
                }
            }
        }
        Self { entries }
    }

    /// Names in it, the root not counted.
    pub fn len(&self) -> usize {
        self.entries.len().saturating_sub(1)
    }

    /// True where there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

struct Walk {
    entries: BTreeMap<Name, Entry>,
    inodes: BTreeMap<(u64, u64), Vec<Name>>,
}

impl Walk {
    /// Looks at `name`, which `path` leads to: each directory is reached through the descriptor of the one above, so
    /// that a tree may be deeper than the longest path.
    fn visit(&mut self, name: Name, path: &Path) {
        let metadata = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("stat {name:?}: {error}"));
        let readable = Readable::make(path, &metadata);
        let kind = kind(path, &metadata);
        if matches!(kind, Kind::Directory) {
            let folder = fs::File::open(path).unwrap_or_else(|error| panic!("open {name:?}: {error}"));
            let inside = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
            let list = fs::read_dir(&inside).unwrap_or_else(|error| panic!("list {name:?}: {error}"));
            for child in list {
                let child = child.unwrap_or_else(|error| panic!("list {name:?}: {error}")).file_name();
                self.visit(name.join(&child), &inside.join(&child));
            }
        } else {
            self.inodes.entry((metadata.dev(), metadata.ino())).or_default().push(name.clone());
        }
        let attributes = attributes::user(path);
        drop(readable);
        let entry = Entry {
            mode: metadata.mode() & 0o7777,
            owner: nix::unistd::geteuid().is_root().then(|| (metadata.uid(), metadata.gid())),
            mtime_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
            links: Vec::new(),
            attributes,
            allocated: metadata.blocks() * 512,
            kind,
        };
        self.entries.insert(name, entry);
    }
}

fn kind(path: &Path, metadata: &Metadata) -> Kind {
    let file_type = metadata.file_type();
    if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_symlink() {
        Kind::Symlink(fs::read_link(path).expect("a symlink is readable").into_os_string())
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else if file_type.is_socket() {
        Kind::Socket
    } else if file_type.is_file() {
        Kind::File(Content::of(path))
    } else {
        Kind::Device(metadata.rdev())
    }
}

/// Gives the owner permission to read for as long as it lives.
struct Readable<'a>(Option<(&'a Path, u32)>);

impl<'a> Readable<'a> {
    fn make(path: &'a Path, metadata: &Metadata) -> Self {
        let needed = if metadata.is_dir() { 0o500 } else { 0o400 };
        let forbidden = !metadata.file_type().is_symlink() && metadata.mode() & needed != needed;
        if !forbidden || nix::unistd::geteuid().is_root() {
            return Self(None);
        }
        let mode = metadata.mode() & 0o7777;
        fs::set_permissions(path, fs::Permissions::from_mode(mode | needed)).expect("it is ours");
        Self(Some((path, mode)))
    }
}

impl Drop for Readable<'_> {
    fn drop(&mut self) {
        if let Some((path, mode)) = self.0 {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
        }
    }
}

/// One thing in which two trees differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which name.
    pub name: Name,
    /// In what, for people.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_os_str().as_bytes().escape_ascii();
        write!(
            f,
            "{}: {}",
            if self.name.as_os_str().is_empty() { "(root)".into() } else { name.to_string() },
            self.what
        )
    }
}

/// Everything in which `after` differs from `before`, in order of names; empty where they are the same.
///
/// Space on disk may differ a little between filesystems and moments, so that only a file which has grown by more
/// than a quarter and 256 KiB differs: holes have become zeros.
pub fn diff(before: &Snapshot, after: &Snapshot) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (name, old) in &before.entries {
        let mut add = |what: String| differences.push(Difference { name: name.clone(), what });
        let Some(new) = after.entries.get(name) else {
            add(format!("missing ({})", old.kind.word()));
            continue;
        };
        match (&old.kind, &new.kind) {
            (Kind::File(old), Kind::File(new)) => old.diff(new).into_iter().for_each(&mut add),
            (old, new) if old != new && old.word() == new.word() => add(format!("{old:?} became {new:?}")),
            (old, new) if old != new => add(format!("{} became {}", old.word(), new.word())),
            _ => {}
        }
        if old.mode != new.mode {
            add(format!("mode {:04o} became {:04o}", old.mode, new.mode));
        }
        if old.owner.is_some() && new.owner.is_some() && old.owner != new.owner {
            add(format!("owner {:?} became {:?}", old.owner, new.owner));
        }
        if old.mtime_ns != new.mtime_ns {
            add(format!("mtime {} became {} (ns)", old.mtime_ns, new.mtime_ns));
        }
        if old.links != new.links {
            add(format!("hard links {:?} became {:?}", old.links, new.links));
        }
        if old.attributes != new.attributes {
            add(format!("attributes {:?} became {:?}", old.attributes, new.attributes));
        }
        if new.allocated > old.allocated + old.allocated / 4 + (256 << 10) {
            add(format!("allocated bytes {} became {}", old.allocated, new.allocated));
        }
    }
    for (name, new) in &after.entries {
        if !before.entries.contains_key(name) {
            let what = format!("appeared ({})", new.kind.word());
            differences.push(Difference { name: name.clone(), what });
        }
    }
    differences
}

/// Fails the test, naming every difference, unless the trees are the same.
#[track_caller]
pub fn assert_same(before: &Snapshot, after: &Snapshot, occasion: &str) {
    let differences = diff(before, after);
    if differences.is_empty() {
        return;
    }
    let shown: Vec<String> = differences.iter().take(40).map(ToString::to_string).collect();
    panic!(
        "{occasion}: {} difference(s) in {} names:\n  {}{}",
        differences.len(),
        before.len(),
        shown.join("\n  "),
        if differences.len() > 40 { "\n  …" } else { "" },
    );
}

#[cfg(test)]
mod canaries;
