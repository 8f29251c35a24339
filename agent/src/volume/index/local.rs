//! Records that only this node has: what of the volume is not on this disk, and which kernel inode stands for what. It
//! must not know how anything gets here.

use super::{
    Changes, Index, Kernel, Pieces, Result, Seen, damaged, encode, kernel_key, link_key, number_in, seen_key,
};

/// Something of which not all is on this disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absentee {
    /// Volume inode.
    pub inode: u64,
    /// Kernel inode number; `None` where the tree has none for it.
    pub ino: Option<u64>,
    /// What is absent.
    pub what: Absent,
}

/// See [`Absentee`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The entries of a directory.
    Entries,
    /// Pieces of a file.
    Pieces(Pieces),
}

/// Key that marks a directory whose entries are not in the tree yet.
pub fn unpopulated_key(dir: u64) -> Vec<u8> {
    super::tagged(b'a', &[dir])
}

/// Key of a file's absent [`Pieces`].
pub fn absent_key(inode: u64) -> Vec<u8> {
    super::tagged(b'r', &[inode])
}

/// Notes whether a directory's entries are still to be brought into the tree.
pub fn set_unpopulated(changes: &mut Changes, dir: u64, unpopulated: bool) {
    changes.insert(unpopulated_key(dir), unpopulated.then(Vec::new));
}

/// Notes which pieces of a file are absent.
///
/// # Errors
/// Where they cannot be encoded, which is a bug.
pub fn set_absent(changes: &mut Changes, inode: u64, pieces: &Pieces) -> Result<()> {
    let value = (!pieces.is_empty()).then(|| encode(pieces)).transpose()?;
    changes.insert(absent_key(inode), value);
    Ok(())
}

/// Notes which kernel inode stands for `inode`, and what the last look at it saw.
///
/// # Errors
/// Where they cannot be encoded, which is a bug.
pub fn set_seen(changes: &mut Changes, inode: u64, seen: &Seen) -> Result<()> {
    changes.insert(kernel_key(seen.id.ino), Some(encode(&Kernel { id: seen.id, inode })?));
    changes.insert(seen_key(inode), Some(encode(seen)?));
    Ok(())
}

/// Notes that `name` in `dir` is a name of `inode` that is in the tree.
pub fn set_link(changes: &mut Changes, inode: u64, dir: u64, name: &[u8]) {
    changes.insert(link_key(inode, dir, name), Some(Vec::new()));
}

impl Index {
    /// Whether a directory's entries are not in the tree yet.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn is_unpopulated(&self, dir: u64) -> Result<bool> {
        Ok(self.records.contains_key(unpopulated_key(dir))?)
    }

    /// Pieces of a file that are not on this disk; `None` where it is wholly here.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn absent(&self, inode: u64) -> Result<Option<Pieces>> {
        self.get(&absent_key(inode))
    }

    /// Directories whose entries are not in the tree yet, at most `most` of them from `first` on, in order.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn unpopulated(&self, first: u64, most: usize) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        for pair in self.records.range(unpopulated_key(first)..vec![b'a' + 1]).take(most) {
            let key = pair.key()?;
            found.extend(number_in(b'a', &key));
        }
        Ok(found)
    }

    /// Whether every name of the volume is in the tree.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn names_complete(&self) -> Result<bool> {
        match self.records.prefix(b"a").next() {
            Some(pair) => pair.key().map(|_| false).map_err(damaged),
            None => Ok(true),
        }
    }

    /// How many inodes of the tree the index has met.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn seen_count(&self) -> Result<u64> {
        let mut count = 0;
        self.scan(b"s", |_, _| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }

    /// Calls `each` with everything of which not all is on this disk: directories first, each kind in the order of
    /// volume inode numbers.
    ///
    /// # Errors
    /// Where the index cannot be read, and those of `each`.
    pub fn absentees(&self, mut each: impl FnMut(Absentee) -> Result<()>) -> Result<()> {
        for tag in [b'a', b'r'] {
            self.scan(&[tag], |key, value| {
                let Some(inode) = number_in(tag, key) else {
                    return Ok(());
                };
                let what = match tag {
                    b'a' => Absent::Entries,
                    _ => Absent::Pieces(postcard::from_bytes(value).map_err(damaged)?),
                };
                let ino = self.seen(inode)?.map(|seen| seen.id.ino);
                each(Absentee { inode, ino, what })
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::records::Time;
    use crate::volume::index::Doubt;
    use crate::volume::tree::FileId;

    #[test]
    fn what_is_absent_is_found_with_its_kernel_inode() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        assert!(index.names_complete().unwrap());
        let mut changes = Changes::new();
        let id = FileId { ino: 77, btime_ns: 5 };
        let seen = Seen {
            id,
            size: 9,
            mtime: Time::default(),
            ctime: Time::default(),
            doubt: Doubt::None,
            blocks: 0,
        };
        set_seen(&mut changes, 4, &seen).unwrap();
        set_link(&mut changes, 4, 1, b"name");
        set_absent(&mut changes, 4, &Pieces::of(2..5)).unwrap();
        set_unpopulated(&mut changes, 3, true);
        index.apply_local(&changes).unwrap();
        assert!(index.is_unpopulated(3).unwrap() && !index.is_unpopulated(4).unwrap());
        assert!(!index.names_complete().unwrap());
        assert_eq!(index.absent(4).unwrap(), Some(Pieces::of(2..5)));
        assert_eq!(index.kernel(77).unwrap(), Some(Kernel { id, inode: 4 }));
        assert_eq!(index.links(4).unwrap(), [(1, b"name".to_vec())]);
        let mut found = Vec::new();
        index
            .absentees(|absentee| {
                found.push(absentee);
                Ok(())
            })
            .unwrap();
        let pieces = Absent::Pieces(Pieces::of(2..5));
        assert_eq!(
            found,
            [
                Absentee { inode: 3, ino: None, what: Absent::Entries },
                Absentee { inode: 4, ino: Some(77), what: pieces }
            ]
        );
        let mut changes = Changes::new();
        set_unpopulated(&mut changes, 3, false);
        set_absent(&mut changes, 4, &Pieces::default()).unwrap();
        index.apply_local(&changes).unwrap();
        assert!(index.names_complete().unwrap() && index.absent(4).unwrap().is_none());
    }
}
