//! Who goes from file to file finds small files whole with their names: as the volume has them, and no change of it.

use super::lazy::noise;
use super::*;

const DIRS: u64 = 12;
const FILES: u64 = 40;

fn path(dir: u64, file: u64) -> String {
    format!("dir{dir}/file{file}")
}

/// Of sizes that end in the middle of a page, at its end, and at that of a piece; empty ones, and holes.
fn bytes(dir: u64, file: u64) -> Vec<u8> {
    let sizes = [0, 1, 100, 4096, 50_000, 128 << 10, (128 << 10) + 1];
    noise(dir * 1000 + file, sizes[(file % 7) as usize])
}

fn many(url: &str) -> Node {
    let node = Node::new(url);
    for dir in 0..DIRS {
        fs::create_dir(node.tree().join(format!("dir{dir}"))).unwrap();
        for file in 0..FILES {
            let file_path = node.tree().join(path(dir, file));
            fs::write(&file_path, bytes(dir, file)).unwrap();
            fs::set_permissions(&file_path, fs::Permissions::from_mode(0o400 + file as u32 % 64)).unwrap();
        }
        let sparse = fs::File::create(node.tree().join(format!("dir{dir}/sparse"))).unwrap();
        sparse.write_at(b"x", 60_000).unwrap();
        sparse.set_len(100_000).unwrap();
        fs::hard_link(node.tree().join(path(dir, 4)), node.tree().join(format!("dir{dir}/other"))).unwrap();
    }
    node.volume().flush().unwrap();
    node
}

fn read_all(there: &Node) {
    for dir in 0..DIRS {
        for file in 0..FILES {
            assert!(there.all_of(&path(dir, file)) == bytes(dir, file), "{}", path(dir, file));
        }
        let sparse = there.all_of(&format!("dir{dir}/sparse"));
        assert!(
            sparse.len() == 100_000
                && sparse[60_000] == b'x'
                && sparse.iter().filter(|b| **b != 0).count() == 1
        );
        assert!(there.all_of(&format!("dir{dir}/other")) == bytes(dir, 4));
    }
}

#[test]
fn small_files_come_with_their_names_behind_who_goes_through_them() {
    let node = many("memory:with-names");
    let here = snapshot(&node.tree());
    drop(node);
    let mut there = Node::lazy("memory:with-names");
    read_all(&there);
    // How many depends on who is faster: where the machine is busy, names have come before.
    let filled = there.counter("filled_files");
    assert!(filled >= FILES / 2, "{filled} came with their names");
    there.all_names();
    assert!(here == snapshot(&there.tree()), "names, attributes, data");
    // Nor does this agent or the next one take any of it for a change.
    there.volume().flush().unwrap();
    assert_eq!((there.changes(), missed(&there)), (0, 0));
    there.volume().shutdown();
    there.start().unwrap();
    there.volume().flush().unwrap();
    assert_eq!((there.changes(), missed(&there)), (0, 0));
    read_all(&there);
}

#[test]
fn names_come_without_data_that_cannot_be_had() {
    let node = many("memory:names-alone");
    drop(node);
    let there = Node::lazy("memory:names-alone");
    for file in 0..FILES {
        there.all_of(&path(0, file));
    }
    there.faults.damage.store(true, Ordering::Relaxed);
    let ino = there.ino("dir1");
    assert_eq!(there.ask(Ask::Populate { ino }).errno, 0, "names are no data");
    assert_eq!(fs::metadata(there.tree().join(path(1, 4))).unwrap().size(), 50_000);
    there.faults.damage.store(false, Ordering::Relaxed);
    there.faults.refuse.store(true, Ordering::Relaxed);
    let ino = there.ino("dir5");
    assert_eq!(there.ask(Ask::Populate { ino }).errno, 0);
    there.faults.refuse.store(false, Ordering::Relaxed);
    there.volume().flush().unwrap();
    assert_eq!((there.changes(), missed(&there)), (0, 0));
    // Damage may be kept for a moment where it was read just now: the bytes are never shown.
    for dir in [5, 6, 7] {
        for file in 0..FILES {
            match there.read(&path(dir, file), 0, 200_000) {
                Ok(read) => assert!(read == bytes(dir, file)),
                Err(errno) => assert_eq!(errno, libc::EIO),
            }
        }
    }
}
