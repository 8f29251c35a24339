//! What is told of a file by one of its names, or in a directory that moves or goes, is told of it all.

use std::fs;
use std::sync::Arc;

use super::*;

#[test]
fn what_is_told_of_one_name_is_told_of_the_file() {
    let mut node = Node::new("memory:one-name");
    let tree = node.tree();
    for (name, other) in [("a", "b"), ("c", "d"), ("e", "f")] {
        fs::write(tree.join(name), name).unwrap();
        fs::hard_link(tree.join(name), tree.join(other)).unwrap();
    }
    fs::write(tree.join("g"), "g").unwrap();
    node.volume().flush().unwrap();
    let before = missed(&node);
    // Each moves ctime of the file behind the other name; by the audit of a later cut, and by that of the same.
    for barrier in [true, false] {
        let (gone, over, source) = if barrier { ("a", "c", "e") } else { ("b", "d", "f") };
        fs::remove_file(tree.join(gone)).unwrap();
        node.tell_name(gone);
        fs::rename(tree.join("g"), tree.join(over)).unwrap();
        node.tell_name("g");
        node.tell_name(over);
        fs::rename(tree.join(source), tree.join("g")).unwrap();
        node.tell_name(source);
        node.tell_name("g");
        if barrier {
            assert_eq!(node.barrier(), 0);
        }
        node.volume().flush().unwrap();
        assert_eq!(missed(&node), before);
    }
    // Not told of any name, though every byte is as it was.
    fs::hard_link(tree.join("g"), tree.join("h")).unwrap();
    node.volume().flush().unwrap();
    assert_ne!(missed(&node), before);
    same_elsewhere(&mut node);
}

#[test]
fn what_is_told_in_a_directory_that_went_is_told_of_its_files_other_names() {
    for barrier in [true, false] {
        let mut node = Node::new(&format!("memory:went-{barrier}"));
        let tree = node.tree();
        for dir in ["a", "a/b", "c", "c/d"] {
            fs::create_dir(tree.join(dir)).unwrap();
        }
        for (name, other) in [("a/1", "1"), ("a/b/2", "2"), ("c/d/3", "3"), ("4", "5")] {
            fs::write(tree.join(name), name).unwrap();
            fs::hard_link(tree.join(name), tree.join(other)).unwrap();
        }
        node.volume().flush().unwrap();
        let before = missed(&node);
        // rm -r a; a new directory may well get the number of the old one. One in another moves out of it.
        for name in ["a/1", "a/b/2"] {
            node.tell_name(name);
            fs::remove_file(tree.join(name)).unwrap();
        }
        for name in ["a/b", "a"] {
            node.tell_name(name);
            fs::remove_dir(tree.join(name)).unwrap();
        }
        for name in ["new", "newer"] {
            node.tell_name(name);
            fs::create_dir(tree.join(name)).unwrap();
        }
        for name in ["c/d", "moved", "c"] {
            node.tell_name(name);
        }
        fs::rename(tree.join("c/d"), tree.join("moved")).unwrap();
        fs::remove_dir(tree.join("c")).unwrap();
        for name in ["moved/3", "moved/new"] {
            node.tell_name(name);
        }
        fs::remove_file(tree.join("moved/3")).unwrap();
        fs::write(tree.join("moved/new"), "n").unwrap();
        if barrier {
            assert_eq!(node.barrier(), 0);
        }
        node.volume().flush().unwrap();
        assert_eq!(missed(&node), before, "barrier: {barrier}");
        fs::remove_file(tree.join("4")).unwrap();
        node.volume().flush().unwrap();
        assert_ne!(missed(&node), before, "nobody told");
        same_elsewhere(&mut node);
    }
}

#[test]
fn what_was_told_in_a_directory_that_moves_meanwhile_is_not_forgotten() {
    let mut node = Node::new("memory:moving-directory");
    let tree = node.tree();
    fs::create_dir(tree.join("a")).unwrap();
    node.volume().flush().unwrap();
    let (sink, root, from, to) = (Arc::clone(&node.sink), node.ino(""), tree.join("a"), tree.join("b"));
    node.tell_name("a/told");
    fs::write(tree.join("a/told"), "t").unwrap();
    // Too much for a freeze: the look comes after it, and after the move.
    for i in 0..100u64 {
        node.tell(Intent::Attributes { ino: 1_000_000_000 + i });
    }
    node.at_thaw.lock().unwrap().push(Box::new(move || {
        for name in [b"a", b"b"] {
            sink.lock().unwrap().intent(Intent::Name { dir: root, name });
        }
        fs::rename(from, to).unwrap();
    }));
    assert_eq!(node.barrier(), 0);
    assert!(node.at_thaw.lock().unwrap().is_empty());
    node.volume().flush().unwrap();
    assert_eq!(missed(&node), 0);
    same_elsewhere(&mut node);
}

/// Something is lost right before each freeze of a cut, the last one, too: no barrier may be answered before it is found.
#[test]
fn what_is_lost_in_the_last_round_of_a_cut_is_looked_for() {
    for rounds in [1, 5, 6, 7, 11, 12, 20] {
        let mut node = Node::new(&format!("memory:lost-{rounds}"));
        let tree = node.tree();
        (0..rounds).for_each(|i| fs::write(tree.join(format!("f{i}")), "before").unwrap());
        node.volume().flush().unwrap();
        let sink = Arc::clone(&node.sink);
        let lose = move |i: usize| {
            fs::write(tree.join(format!("f{i}")), format!("after {i}")).unwrap();
            sink.lock().unwrap().look_everywhere("a ring was full");
        };
        node.at_freeze.lock().unwrap().extend((0..rounds).map(|i| {
            let lose = lose.clone();
            Box::new(move || lose(i)) as Box<dyn FnOnce() + Send>
        }));
        // The one that is answered when nothing is lost any more covers all.
        while !node.at_freeze.lock().unwrap().is_empty() {
            assert_eq!(node.barrier(), 0);
        }
        same_elsewhere(&mut node);
    }
}
