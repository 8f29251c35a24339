//! What the Worker sees and does of a tree, of which not all is here, and that it never leaves it.

use std::os::unix::fs::symlink;

use super::single::{FILES, file, made, with_one};
use super::*;
use crate::durable::{Files, Part};
use crate::volume::files::TreeFiles;

impl Node {
    fn files(&self) -> TreeFiles {
        let options = VolumeOptions { tree: self.tree(), state: self.dir.path().join("state"), ..options() };
        let volume = Arc::clone(self.volume.as_ref().unwrap());
        TreeFiles::new(volume, &options, Arc::clone(&self.sink) as _, Box::new(|| 0)).unwrap()
    }
}

fn errno(error: &crate::durable::wire::WireError) -> i32 {
    i32::from(error.errno)
}

#[test]
fn a_file_of_a_large_directory_is_read_without_the_others() {
    let url = "memory:files-alone";
    made(url);
    let there = with_one(url, "file-3");
    let files = there.files();
    let (stat, bytes) = files.read(file(4).as_bytes(), 0, 100).unwrap();
    assert_eq!((bytes.as_slice(), stat.size), (&b"content 4"[..], 9));
    assert_eq!(there.counter("single_entries"), 2);
    let missing = files.stat(b"large/nothing", true).unwrap_err();
    assert_eq!(errno(&missing), libc::ENOENT);
    let (more, entries) = files.list(b"large", b"", 10).unwrap();
    assert!(more && entries.len() == 10, "who lists it has all of it");
    assert_eq!(there.names("large").len(), FILES + 1);
}

#[test]
fn what_is_removed_or_replaced_beside_names_that_are_still_to_come_stays_so() {
    let url = "memory:files-removed";
    made(url);
    let there = with_one(url, "file-3");
    let files = there.files();
    files.unlink(file(3).as_bytes(), false).unwrap();
    let part = Part {
        nonce: Default::default(),
        last: true,
        replace: true,
        parents: false,
        mode: 0o600,
        offset: 0,
        bytes: b"replaced",
    };
    files.write(file(4).as_bytes(), &part).unwrap();
    there.all_names();
    let restored = Node::new(url);
    for node in [&there, &restored] {
        assert_eq!(node.names("large").len(), FILES, "one has gone for good");
        assert!(!node.tree().join(file(3)).exists());
        assert_eq!(fs::read(node.tree().join(file(4))).unwrap(), b"replaced");
    }
}

#[test]
fn no_link_leads_out_of_the_tree() {
    let there = Node::new("memory:files-links");
    let tree = there.tree();
    fs::create_dir(tree.join("dir")).unwrap();
    fs::write(tree.join("dir/f"), "inside").unwrap();
    let secret = there.dir.path().join("secret");
    fs::write(&secret, "outside").unwrap();
    symlink(&secret, tree.join("absolute")).unwrap();
    symlink("../../secret", tree.join("dir/upwards")).unwrap();
    symlink("/storage/dir/f", tree.join("logical")).unwrap();
    symlink("dir/../dir/f", tree.join("relative")).unwrap();
    symlink("round", tree.join("round")).unwrap();
    let files = there.files();
    for inside in ["logical", "relative", "dir/f"] {
        assert_eq!(files.read(inside.as_bytes(), 0, 100).unwrap().1, b"inside", "{inside}");
    }
    for (path, wanted) in [
        ("absolute", libc::ENOENT),
        ("dir/upwards", libc::ENOENT),
        ("round", libc::ELOOP),
        ("dir/f/below", libc::ENOTDIR),
        ("no/such", libc::ENOENT),
    ] {
        assert_eq!(errno(&files.read(path.as_bytes(), 0, 100).unwrap_err()), wanted, "{path}");
    }
    assert_eq!(fs::read(secret).unwrap(), b"outside");
}
