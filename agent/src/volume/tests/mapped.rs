//! Files that change through mappings, which no intent tells of.

use super::*;

#[test]
fn the_last_store_through_a_mapping_is_committed() {
    let mut node = Node::new("memory:mapped");
    let path = node.tree().join("m");
    fs::write(&path, vec![1; 8192]).unwrap();
    node.tell_name("m");
    let ino = node.ino("m");
    node.tell(Intent::Opened { ino, flags: OpenFlags::MAPPED });
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // SAFETY: nobody truncates the file while the mapping lives.
    let mut mapping = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
    mapping[0] = 2;
    assert_eq!(node.barrier(), 0);
    assert_eq!(node.barrier(), 0);
    assert_eq!(node.barrier(), 0);
    node.at_thaw.lock().unwrap().push(Box::new(move || {
        mapping[0] = 3;
        drop((mapping, file));
    }));
    for _ in 0..6 {
        assert_eq!(node.barrier(), 0);
    }
    node.volume().flush().unwrap();
    same_elsewhere(&mut node);
}

#[test]
fn a_mapping_that_only_a_session_of_the_last_agent_heard_of_is_known_to_the_next() {
    let mut node = Node::new("memory:heard");
    let path = node.tree().join("m");
    fs::write(&path, vec![1; 8192]).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // SAFETY: nobody truncates the file while the mapping lives.
    let mut mapping = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
    mapping[0] = 2;
    node.volume().flush().unwrap();
    node.volume().shutdown();
    node.volume = None;
    let state = node.dir.path().join("state");
    session::Journal::unseen(&Journal::open(&state), node.ino("m"), OpenFlags::MAPPED);
    node.start().unwrap();
    assert_eq!(node.barrier(), 0);
    assert!(Journal::open(&state).entries().is_empty(), "the index knows it now");
    mapping[0] = 3;
    assert_eq!(node.barrier(), 0);
    same_elsewhere(&mut node);
}

/// The kernel sets a file's times before it copies what write(2) is handed. Who writes through stdio can lose the CPU in between: a
/// look meanwhile sees the new times and the old data, and the times never move again. (A store to a page that is dirty does
/// the same to the file here.)
#[test]
fn what_stdio_writes_after_its_time_was_seen_is_committed() {
    for (closes, url) in [(false, "memory:stdio-open"), (true, "memory:stdio-closed")] {
        let mut node = Node::new(url);
        let path = node.tree().join("s");
        fs::write(&path, vec![1; 8192]).unwrap();
        node.tell_name("s");
        node.tell(Intent::Opened { ino: node.ino("s"), flags: OpenFlags::UNSEEN });
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // SAFETY: nobody truncates the file while the mapping lives.
        let mut mapping = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        mapping[0] = 2;
        assert_eq!(node.barrier(), 0);
        mapping[0] = 3;
        let writer = (mapping, file);
        if closes {
            // Longer than any write(2) waits for a CPU, and then some looks that find nothing new.
            std::thread::sleep(Duration::from_millis(2100));
            drop(writer);
            for _ in 0..4 {
                assert_eq!(node.barrier(), 0);
            }
        } else {
            assert_eq!(node.barrier(), 0);
            drop(writer);
        }
        same_elsewhere(&mut node);
    }
}
