use std::os::unix::fs::symlink;

use super::*;
use crate::mounts::fake::mount;

struct Setup {
    dir: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn mount(&self, prefix: &str) -> Mount {
        mount(self.path(prefix).to_str().unwrap(), "memory:///x")
    }

    fn take(&self, mount: &Mount) -> Result<Place, String> {
        Place::take(mount, &self.path("state"))
    }
}

#[test]
fn auto_without_the_directory_is_translated() {
    let setup = Setup::new();
    let mount = setup.mount("absent");
    let place = setup.take(&mount).unwrap();
    assert!(!place.identity);
    assert_eq!(place.tree, setup.path("state").join("mounts").join(state_name(&mount)).join("tree"));
    assert_eq!(place.tree.metadata().unwrap().mode() & 0o7777, 0o755);
    assert_eq!(place.volume.metadata().unwrap().mode() & 0o7777, 0o700);
    for parent in place.tree.ancestors().skip(1).take(3) {
        assert_eq!(parent.metadata().unwrap().mode() & 0o7777, 0o711, "{}", parent.display());
    }
}

#[test]
fn auto_takes_an_empty_directory_as_the_tree() {
    let setup = Setup::new();
    std::fs::create_dir(setup.path("storage")).unwrap();
    let place = setup.take(&setup.mount("storage")).unwrap();
    assert!(place.identity);
    assert_eq!(place.tree, setup.path("storage"));
}

#[test]
fn auto_follows_a_symbolic_link() {
    let setup = Setup::new();
    std::fs::create_dir(setup.path("data")).unwrap();
    symlink(setup.path("data"), setup.path("storage")).unwrap();
    let place = setup.take(&setup.mount("storage")).unwrap();
    assert!(place.identity);
    assert_eq!(place.tree, setup.path("data"));
}

#[test]
fn auto_leaves_foreign_files_alone() {
    let setup = Setup::new();
    std::fs::create_dir(setup.path("storage")).unwrap();
    std::fs::write(setup.path("storage/file"), "mine").unwrap();
    assert!(!setup.take(&setup.mount("storage")).unwrap().identity);
    // A file at the prefix is not a directory that could be the tree.
    std::fs::write(setup.path("plain"), "").unwrap();
    assert!(!setup.take(&setup.mount("plain")).unwrap().identity);
}

#[test]
fn a_tree_that_was_ours_stays_ours() {
    let setup = Setup::new();
    std::fs::create_dir(setup.path("storage")).unwrap();
    drop(setup.take(&setup.mount("storage")).unwrap());
    std::fs::write(setup.path("storage/file"), "of an app").unwrap();
    assert!(setup.take(&setup.mount("storage")).unwrap().identity);
}

#[test]
fn a_translated_tree_stays_when_the_prefix_appears() {
    let setup = Setup::new();
    let first = setup.take(&setup.mount("storage")).unwrap();
    std::fs::write(first.tree.join("unsynced"), "x").unwrap();
    std::fs::write(first.volume.join("index"), "x").unwrap();
    let tree = first.tree.clone();
    drop(first);
    std::fs::create_dir(setup.path("storage")).unwrap();
    let second = setup.take(&setup.mount("storage")).unwrap();
    assert_eq!((second.tree.as_path(), second.identity), (tree.as_path(), false));
    assert!(second.volume.join("index").exists());
}

/// A directory that has taken the place of our tree holds somebody else's files.
#[test]
fn a_replaced_directory_is_not_ours() {
    let setup = Setup::new();
    std::fs::create_dir(setup.path("storage")).unwrap();
    assert!(setup.take(&setup.mount("storage")).unwrap().identity);
    // The old root lives on under another name, so that its inode number is not used again.
    std::fs::rename(setup.path("storage"), setup.path("elsewhere")).unwrap();
    std::fs::create_dir(setup.path("storage")).unwrap();
    std::fs::write(setup.path("storage/file"), "mine").unwrap();
    assert!(!setup.take(&setup.mount("storage")).unwrap().identity);
}

#[test]
fn identity_makes_the_directory_or_says_what_to_do() {
    let setup = Setup::new();
    let mut mount = setup.mount("made");
    mount.placement = Placement::Identity;
    let place = setup.take(&mount).unwrap();
    assert!(place.identity && place.tree == setup.path("made"));

    std::fs::write(setup.path("plain"), "").unwrap();
    let mut mount = setup.mount("plain");
    mount.placement = Placement::Identity;
    let error = setup.take(&mount).unwrap_err();
    assert!(error.contains("plain") && error.contains("translated"), "{error}");
}

#[test]
fn a_given_tree_is_used() {
    let setup = Setup::new();
    let mut mount = setup.mount("storage");
    mount.tree = Some(setup.path("disk/tree"));
    let place = setup.take(&mount).unwrap();
    assert!(!place.identity && place.tree == setup.path("disk/tree"));
    drop(place);

    // The same tree behind the prefix needs no translation.
    symlink(setup.path("disk/tree"), setup.path("storage")).unwrap();
    let place = setup.take(&mount).unwrap();
    assert!(place.identity);
    drop(place);
    mount.placement = Placement::Translated;
    assert!(setup.take(&mount).unwrap_err().contains("placement is translated"));
    mount.placement = Placement::Identity;
    mount.tree = Some(setup.path("other"));
    assert!(setup.take(&mount).unwrap_err().contains("symbolic link"));
}

#[test]
fn a_second_agent_is_told_who_holds_the_state() {
    let setup = Setup::new();
    let mount = setup.mount("storage");
    let first = setup.take(&mount).unwrap();
    let error = setup.take(&mount).unwrap_err();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(first);
    setup.take(&mount).unwrap();
}

#[test]
fn names_are_readable_and_distinct() {
    let name = |prefix: &str, url: &str| state_name(&mount(prefix, url));
    assert!(name("/storage", "s3://a").starts_with("storage-"));
    assert!(name("/data/my files", "s3://a").starts_with("data-my-files-"));
    assert_ne!(name("/storage", "s3://a"), name("/storage", "s3://b"));
    assert_ne!(name("/a/b", "s3://a"), name("/a-b", "s3://a"));
    assert_eq!(name("/storage", "s3://u:old@a"), name("/storage", "s3://u:new@a"));
    assert!(!name(&format!("/{}", "é/".repeat(100)), "s3://a").contains('/'));
}
