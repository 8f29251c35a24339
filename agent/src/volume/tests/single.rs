//! Single entries of a large directory that is not populated yet.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use storeshim_protocol::request::Names;

use super::lazy::Idle;
use super::*;

pub(super) const FILES: usize = 1000;

pub(super) fn file(number: usize) -> String {
    format!("large/file-{number}")
}

/// A volume with a large directory, and what its tree looks like.
pub(super) fn made(url: &str) -> Snapshot {
    let node = Node::new(url);
    fs::create_dir(node.tree().join("large")).unwrap();
    for number in 0..FILES {
        fs::write(node.tree().join(file(number)), format!("content {number}")).unwrap();
    }
    fs::hard_link(node.tree().join(file(5)), node.tree().join("large/linked")).unwrap();
    node.volume().flush().unwrap();
    node.volume().shutdown();
    snapshot(&node.tree())
}

impl Node {
    fn find(&self, dir: &str, name: &str) -> i32 {
        let names = Names::new(name.as_bytes()).unwrap();
        self.ask(Ask::Find { ino: self.ino(dir), names }).errno
    }

    /// A file's bytes, of an entry that was found.
    fn content(&self, number: usize) -> Vec<u8> {
        let (ino, end) = (self.ino(&file(number)), u64::MAX);
        assert_eq!(self.ask(Ask::Hydrate { ino, start: 0, end, pin: Pin::No }).errno, 0);
        fs::read(self.tree().join(file(number))).unwrap()
    }

    pub(super) fn names(&self, dir: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.tree().join(dir)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// A node where a single entry has come, and not the others: those come by themselves after a while, on a slow machine before.
pub(super) fn with_one(url: &str, name: &str) -> Node {
    for _ in 0..5 {
        let there = Node::lazy(url);
        assert_eq!(there.ask(Ask::Populate { ino: there.ino("") }).errno, 0);
        assert_eq!(there.find("large", name), 0);
        if there.names("large").len() == 1 {
            assert_eq!(there.counter("single_entries"), 1);
            return there;
        }
        there.volume().shutdown();
    }
    panic!("all entries came before a single one");
}

#[test]
fn one_entry_comes_without_the_others_and_they_come_after_it() {
    let url = "memory:single";
    let here = made(url);
    let there = with_one(url, "file-777");
    assert_eq!(there.names("large"), BTreeSet::from(["file-777".to_owned()]));
    assert!(there.table.whole(there.ino("large")).is_none(), "clients go on asking");
    assert_eq!(there.content(777), b"content 777");
    // Once more, one that there is not, and one with two names.
    assert_eq!(there.find("large", "file-777"), 0);
    assert_eq!(there.find("large", "file-1001"), 0);
    assert!(!there.tree().join(file(1001)).exists());
    for name in ["linked", "file-5"] {
        assert_eq!(there.find("large", name), 0);
    }
    assert_eq!(there.ino("large/linked"), there.ino(&file(5)));
    there.all_names();
    for number in 0..FILES {
        there.content(number);
    }
    assert!(here == snapshot(&there.tree()));
    there.volume().flush().unwrap();
    assert_eq!((there.changes(), there.counter("foreign_entries")), (0, 0));
}

#[test]
fn what_changes_beside_names_that_are_still_to_come_is_committed() {
    let url = "memory:single-changes";
    made(url);
    let mut there = with_one(url, "file-3");
    there.content(3);
    there.tell(Intent::Opened { ino: there.ino(&file(3)), flags: OpenFlags::UNSEEN });
    fs::write(there.tree().join(file(3)), "changed").unwrap();
    assert_eq!(there.barrier(), 0);
    there.volume().shutdown();
    // The next agent finds the directory half populated.
    there.start().unwrap();
    there.all_names();
    assert_eq!(there.names("large").len(), FILES + 1);
    assert_eq!(there.counter("foreign_entries"), 0);
    assert_eq!(there.content(3), b"changed");
    assert_eq!(there.content(4), b"content 4");
    let restored = Node::new(url);
    assert_eq!(fs::read(restored.tree().join(file(3))).unwrap(), b"changed");
    assert_eq!(restored.names("large").len(), FILES + 1);
}

#[test]
fn one_file_of_a_large_directory_is_warmed_alone() {
    let url = "memory:single-warm";
    made(url);
    let there = with_one(url, "file-3");
    let how = Warmup { depth: None, parallel: 1 };
    let warmed = there.volume().warm(Path::new(&file(4)), how, &Idle).unwrap();
    assert_eq!((warmed.files, warmed.gone, warmed.failed), (1, 0, 0));
    assert_eq!(fs::read(there.tree().join(file(4))).unwrap(), b"content 4");
    assert_eq!(there.counter("single_entries"), 2, "the way to it brings it, and not all beside it");
}

#[test]
fn one_request_brings_all_names_of_a_way() {
    let url = "memory:single-way";
    let node = Node::new(url);
    fs::create_dir_all(node.tree().join("a/b/c")).unwrap();
    for dir in ["", "a", "a/b", "a/b/c"] {
        (0..300).for_each(|n| fs::write(node.tree().join(dir).join(n.to_string()), "some").unwrap());
    }
    std::os::unix::fs::symlink("c", node.tree().join("a/b/link")).unwrap();
    node.volume().flush().unwrap();
    node.volume().shutdown();
    let there = Node::lazy(url);
    assert_eq!(there.find("", "a/b/c/7"), 0);
    assert_eq!(fs::metadata(there.tree().join("a/b/c/7")).unwrap().size(), 4);
    // It ends where there is no way on.
    for path in ["a/7/8/9", "a/b/none/c", "a/b/link/8", "a/../b", "a/b/c/../9"] {
        assert_eq!(there.find("", path), 0, "{path}");
    }
    assert!(there.tree().join("a/7").exists() && there.tree().join("a/b/link").is_symlink());
    there.all_names();
    for dir in ["", "a", "a/b", "a/b/c"] {
        assert_eq!(there.names(dir), node.names(dir));
    }
    there.volume().flush().unwrap();
    assert_eq!((there.changes(), there.counter("foreign_entries")), (0, 0));
}

#[test]
fn entries_are_found_while_all_of_them_come() {
    let url = "memory:single-meanwhile";
    made(url);
    let there = Node::lazy(url);
    assert_eq!(there.ask(Ask::Populate { ino: there.ino("") }).errno, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(there.ask(Ask::Populate { ino: there.ino("large") }).errno, 0));
        for seeker in 0..4 {
            let there = &there;
            scope.spawn(move || {
                for number in (seeker..FILES).step_by(97) {
                    assert_eq!(there.find("large", &format!("file-{number}")), 0);
                    assert!(there.tree().join(file(number)).exists(), "{number}");
                }
            });
        }
    });
    assert_eq!(there.names("large").len(), FILES + 1);
    there.volume().flush().unwrap();
    assert_eq!((there.changes(), there.counter("foreign_entries")), (0, 0));
}

#[test]
fn an_entry_that_cannot_be_had_is_an_error_and_comes_later() {
    let url = "memory:single-refused";
    made(url);
    let there = Node::lazy(url);
    assert_eq!(there.ask(Ask::Populate { ino: there.ino("") }).errno, 0);
    there.faults.refuse.store(true, Ordering::Relaxed);
    // Where it is known already it is found all the same.
    assert!([0, libc::EIO].contains(&there.find("large", "file-9")));
    there.faults.refuse.store(false, Ordering::Relaxed);
    assert_eq!(there.find("large", "file-9"), 0);
    assert_eq!(there.content(9), b"content 9");
}
