//! Names of one file of which only some are in the tree.

use super::*;

/// Has the entries of a directory brought into the tree, as a hooked program would.
fn populate(node: &Node, dir: &str) {
    let (to, answer) = crossbeam::channel::bounded(1);
    node.volume().request(Ask::Populate { ino: node.ino(dir) }, Box::new(Answer(to)));
    assert_eq!(answer.recv_timeout(Duration::from_secs(30)).unwrap(), 0);
}

#[test]
fn a_file_lives_on_by_a_name_that_is_not_in_the_tree_yet() {
    let url = "memory:other-name";
    let first = Node::new(url);
    let tree = first.tree();
    for dir in ["a", "b", "c"] {
        fs::create_dir(tree.join(dir)).unwrap();
    }
    fs::write(tree.join("a/one"), "linked").unwrap();
    fs::hard_link(tree.join("a/one"), tree.join("b/two")).unwrap();
    fs::write(tree.join("c/alone"), "alone").unwrap();
    first.volume().flush().unwrap();
    first.volume().shutdown();
    let node = Node::with(url, Hydrate::OnRead);
    for dir in ["", "a", "c"] {
        populate(&node, dir);
    }
    node.tell_name("a/one");
    fs::remove_file(node.tree().join("a/one")).unwrap();
    node.tell_name("c/alone");
    fs::remove_file(node.tree().join("c/alone")).unwrap();
    assert_eq!(node.barrier(), 0);
    assert_eq!(node.volume().status().files, 1, "one has no name left, the other has one");
    let there = Node::new(url);
    assert_eq!(fs::read(there.tree().join("b/two")).unwrap(), b"linked");
    assert_eq!(fs::metadata(there.tree().join("b/two")).unwrap().nlink(), 1);
    assert!(!there.tree().join("a/one").exists() && !there.tree().join("c/alone").exists());
}

#[test]
fn a_directory_that_goes_takes_what_was_never_brought_here() {
    let url = "memory:gone-unseen";
    let first = Node::new(url);
    fs::create_dir_all(first.tree().join("dir/deep/deeper")).unwrap();
    for n in 0..20 {
        fs::write(first.tree().join(format!("dir/deep/deeper/{n}")), vec![n; 300_000]).unwrap();
    }
    fs::write(first.tree().join("kept"), "kept").unwrap();
    first.volume().flush().unwrap();
    first.volume().shutdown();
    let node = Node::with(url, Hydrate::OnRead);
    for dir in ["", "dir", "dir/deep", "dir/deep/deeper"] {
        populate(&node, dir);
    }
    node.tell_name("dir");
    fs::remove_dir_all(node.tree().join("dir")).unwrap();
    assert_eq!(node.barrier(), 0);
    node.volume().flush().unwrap();
    let status = node.volume().status();
    assert_eq!((status.files, status.bytes), (1, 4));
    let there = Node::new(url);
    assert_eq!(snapshot(&there.tree()).len(), 1);
    let status = there.volume().status();
    assert_eq!((status.files, status.bytes), (1, 4), "as the totals say");
}
