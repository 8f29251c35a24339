//! The comparator compared: each kind of difference made by hand must be found, and nothing else.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::time::{Duration, SystemTime};

use super::*;

/// A small tree with one of each.
fn plant(root: &Path) {
    fs::create_dir(root.join("dir")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("dir/file"), vec![7; 200_000]).unwrap();
    fs::write(root.join("one"), "one").unwrap();
    fs::hard_link(root.join("one"), root.join("two")).unwrap();
    symlink("one", root.join("link")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    sparse.write_all_at(b"data", 4 << 20).unwrap();
    set_attribute(&root.join("one"), c"user.colour", b"red");
}

fn set_attribute(path: &Path, name: &std::ffi::CStr, value: &[u8]) {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: two C strings and a buffer of the length given.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Keeps the mtime of `path` while `change` is made, so that only the change itself is to be seen.
fn keeping_mtime(path: &Path, change: impl FnOnce()) {
    let metadata = fs::symlink_metadata(path).unwrap();
    change();
    let time = SystemTime::UNIX_EPOCH + Duration::new(metadata.mtime() as u64, metadata.mtime_nsec() as u32);
    File::open(path).unwrap().set_modified(time).unwrap();
}

/// Plants a tree, lets `change` change it, and returns what the comparator says.
fn seen(change: impl FnOnce(&Path)) -> Vec<String> {
    let root = tempfile::tempdir().unwrap();
    plant(root.path());
    let before = Snapshot::of(root.path());
    keeping_mtime(root.path(), || change(root.path()));
    diff(&before, &Snapshot::of(root.path())).iter().map(ToString::to_string).collect()
}

#[track_caller]
fn assert_only(found: &[String], expected: &[&str]) {
    let matches = |found: &String, expected: &str| found.starts_with(expected);
    let same = found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| matches(a, b));
    assert!(same, "found {found:#?}, expected {expected:#?}");
}

#[test]
fn nothing_changed() {
    assert_only(&seen(|_| {}), &[]);
}

#[test]
fn one_byte_in_the_third_block() {
    let found = seen(|root| {
        let path = root.join("dir/file");
        keeping_mtime(&path, || {
            File::options().write(true).open(&path).unwrap().write_all_at(b"x", 131_072).unwrap();
        });
    });
    assert_only(&found, &["dir/file: content differs in 1 of 4 blocks, first within bytes 131072..196608"]);
}

#[test]
fn zeros_instead_of_data() {
    let found = seen(|root| {
        let path = root.join("dir/file");
        keeping_mtime(&path, || {
            File::options().write(true).open(&path).unwrap().write_all_at(&[0; 65_536], 0).unwrap();
        });
    });
    assert_only(
        &found,
        &["dir/file: content differs in 1 of 4 blocks, first within bytes 0..65536, which are zeros"],
    );
}

#[test]
fn one_byte_shorter() {
    let found = seen(|root| {
        let path = root.join("dir/file");
        keeping_mtime(&path, || File::options().write(true).open(&path).unwrap().set_len(199_999).unwrap());
    });
    assert_only(&found, &["dir/file: size 200000 became 199999"]);
}

#[test]
fn mode() {
    let found = seen(|root| {
        fs::set_permissions(root.join("dir/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    });
    assert_eq!(found.len(), 1);
    assert!(found[0].ends_with("became 4711"), "{found:?}");
}

#[test]
fn owner() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    assert_only(
        &seen(|root| std::os::unix::fs::lchown(root.join("link"), Some(1), Some(2)).unwrap()),
        &["link: owner Some((0, 0)) became Some((1, 2))"],
    );
}

#[test]
fn one_nanosecond() {
    let found = seen(|root| {
        let file = File::open(root.join("dir")).unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        file.set_modified(time + Duration::from_nanos(1)).unwrap();
    });
    assert_only(&found, &["dir: mtime "]);
}

#[test]
fn symlink_target() {
    let found = seen(|root| {
        fs::remove_file(root.join("link")).unwrap();
        symlink("two", root.join("link")).unwrap();
    });
    assert_only(&found, &["link: Symlink(\"one\") became Symlink(\"two\")", "link: mtime "]);
}

#[test]
fn hard_link_became_a_copy() {
    let found = seen(|root| {
        let mtime = fs::metadata(root.join("one")).unwrap().modified().unwrap();
        fs::remove_file(root.join("two")).unwrap();
        fs::write(root.join("two"), "one").unwrap();
        File::open(root.join("two")).unwrap().set_modified(mtime).unwrap();
        set_attribute(&root.join("two"), c"user.colour", b"red");
    });
    assert_only(&found, &["one: hard links", "two: hard links"]);
}

#[test]
fn attribute_value() {
    let found = seen(|root| set_attribute(&root.join("two"), c"user.colour", b"blue"));
    assert_only(&found, &["one: attributes", "two: attributes"]);
}

#[test]
fn hole_became_zeros() {
    let found = seen(|root| {
        let path = root.join("sparse");
        keeping_mtime(&path, || {
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&vec![0; 4 << 20], 0).unwrap();
            file.sync_all().unwrap();
        });
    });
    assert_only(&found, &["sparse: allocated bytes "]);
}

#[test]
fn type_changed() {
    let found = seen(|root| {
        let path = root.join("fifo");
        fs::remove_file(&path).unwrap();
        fs::write(path, "").unwrap();
    });
    assert!(found[0].starts_with("fifo: fifo became file"), "{found:?}");
}

#[test]
fn missing_and_new() {
    let found = seen(|root| {
        fs::remove_dir(root.join("empty")).unwrap();
        fs::write(root.join("new\n\u{e9}"), "").unwrap();
    });
    assert_only(&found, &["empty: missing (directory)", "new\\n\\xc3\\xa9: appeared (file)"]);
}
