//! What a power cut takes away that nobody changed comes again.

use super::*;
use crate::volume::index::Index;

/// As if the machine had stopped without warning since.
fn power_cut(node: &mut Node) {
    node.volume().shutdown();
    node.volume = None;
    let index = Index::open(&node.dir.path().join("state/index")).unwrap();
    index
        .change_base(|base| {
            base.boot_id = "another".into();
            base.clean = false;
        })
        .unwrap();
}

fn lost(node: &Node, counter: &str) -> u64 {
    node.volume().status().counters.get(counter).copied().unwrap_or(0)
}

/// A node whose files came from the backend, with `local` durability.
fn restored(url: &str, fill: impl FnOnce(&Path)) -> (Node, Snapshot) {
    let first = Node::new(url);
    fill(&first.tree());
    first.volume().flush().unwrap();
    first.volume().shutdown();
    let mut node = Node::new(url);
    node.durability = Durability::Local;
    let before = snapshot(&node.tree());
    power_cut(&mut node);
    (node, before)
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn lost_data_comes_again_and_is_not_taken_for_a_change() {
    let (mut node, before) = restored("memory:lost-data", |tree| {
        fs::create_dir(tree.join("dir")).unwrap();
        fs::write(tree.join("dir/large"), noise(6 << 20)).unwrap();
        fs::write(tree.join("small"), noise(1000)).unwrap();
        fs::write(tree.join("kept"), noise(300_000)).unwrap();
    });
    for (path, at, len) in [("dir/large", 3 << 20, 200_000), ("small", 0, 1000)] {
        let file = fs::OpenOptions::new().write(true).open(node.tree().join(path)).unwrap();
        let times = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(&vec![0; len], at).unwrap();
        file.set_modified(times).unwrap();
    }
    node.start().unwrap();
    assert_eq!(lost(&node, "lost_pieces"), 3, "two of the large file, and the small one");
    assert_eq!(node.barrier(), 0);
    assert!(snapshot(&node.tree()) == before, "everything is there again");
    same_elsewhere(&mut node);
}

#[test]
fn lost_sizes_and_names_come_again() {
    let (mut node, before) = restored("memory:lost-names", |tree| {
        fs::create_dir_all(tree.join("dir/below")).unwrap();
        fs::write(tree.join("dir/below/file"), noise(500_000)).unwrap();
        fs::write(tree.join("dir/name"), noise(100)).unwrap();
        fs::write(tree.join("size"), noise(400_000)).unwrap();
    });
    fs::File::create(node.tree().join("size")).unwrap();
    fs::remove_file(node.tree().join("dir/name")).unwrap();
    node.start().unwrap();
    assert_eq!(lost(&node, "lost_names"), 1);
    assert_eq!(lost(&node, "lost_pieces"), 4);
    assert_eq!(node.barrier(), 0);
    let after = snapshot(&node.tree());
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    // A program has changed the directory, by removing the name.
    assert!(before.iter().all(|(path, was)| path == Path::new("dir") || after.get(path) == Some(was)));
    same_elsewhere(&mut node);
}

#[test]
fn what_a_program_changed_before_the_power_cut_stays_changed() {
    let (mut node, _) = restored("memory:lost-not", |tree| {
        fs::write(tree.join("file"), noise(400_000)).unwrap();
        fs::write(tree.join("moved"), noise(1000)).unwrap();
    });
    node.start().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    node.tell(Intent::Opened { ino: node.ino("file"), flags: OpenFlags::default() });
    fs::write(node.tree().join("file"), noise(500_000)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(node.barrier(), 0);
    power_cut(&mut node);
    fs::rename(node.tree().join("moved"), node.tree().join("there")).unwrap();
    node.start().unwrap();
    assert_eq!((lost(&node, "lost_pieces"), lost(&node, "lost_names")), (0, 0));
    assert_eq!(node.barrier(), 0);
    assert_eq!(fs::read(node.tree().join("file")).unwrap(), noise(500_000));
    assert!(node.tree().join("there").exists() && !node.tree().join("moved").exists());
    same_elsewhere(&mut node);
}
