//! How many round trips a node that has nothing takes to show the first byte.

use super::*;
use crate::blob::faults::Faulty as Far;

/// A volume of directories with small files, over a store that can be far away; whether its last agent had the time to put
/// its log in order.
fn filled(dirs: usize, files: usize, clean: bool) -> Arc<Far> {
    let store = Arc::new(Far::default());
    let mut node = Node::stopped("far:", Hydrate::Eager);
    node.store = Some(Arc::clone(&store));
    node.start().unwrap();
    for dir in 0..dirs {
        let dir = node.tree().join(format!("{dir}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..files {
            fs::write(dir.join(format!("file-{file}")), format!("{} {file}", dir.display())).unwrap();
        }
    }
    node.volume().flush().unwrap();
    drop(node.volume.take());
    if clean {
        let objects = Arc::clone(&store) as Arc<dyn object_store::ObjectStore>;
        crate::meta::open(&Store::over(objects, "far:").unwrap()).unwrap().close().unwrap();
    }
    store
}

/// What SlateDB looks at by itself, also while it opens; the tests of the engine count that.
const BACKGROUND: [&str; 5] = ["meta/manifest", "meta/gc/", "meta/compactions", "LIST", "DELETE"];

/// The opening, and the first byte of a file.
fn first_byte(store: &Arc<Far>, path: &str) -> [usize; 2] {
    let mut node = Node::stopped("far:", Hydrate::OnRead);
    node.store = Some(Arc::clone(store));
    node.patience = Duration::from_secs(60);
    let opening = store.round_trips("opening", &BACKGROUND, || node.start().unwrap());
    let byte = store.round_trips("first byte", &BACKGROUND, || drop(node.read_found(path, 0, 1).unwrap()));
    [opening, byte]
}

#[test]
fn the_first_byte_is_near() {
    let [opening, byte] = first_byte(&filled(20, 200, true), "7/file-50");
    assert!(opening <= 3 && byte <= 6, "opening {opening}, first byte {byte}");
}

#[test]
fn the_first_byte_of_a_large_directory_is_as_near() {
    let [opening, byte] = first_byte(&filled(20, 1000, true), "7/file-50");
    // Its name; it and its extents; the chunk; the pack.
    assert!(opening <= 3 && byte <= 5, "opening {opening}, first byte {byte}");
}

#[test]
fn the_first_byte_is_near_after_a_crash() {
    let [opening, byte] = first_byte(&filled(20, 200, false), "7/file-50");
    assert!(opening <= 3 && byte <= 6, "opening {opening}, first byte {byte}");
}

#[test]
fn who_asks_for_a_name_hears_in_time_that_nobody_answers() {
    let store = filled(20, 200, true);
    let mut node = Node::stopped("far:", Hydrate::OnRead);
    node.store = Some(Arc::clone(&store));
    node.start().unwrap();
    store.delay_ms.store(20_000, Ordering::Relaxed);
    let began = Instant::now();
    let found = node.read_found("7/file-50", 0, 1);
    // What is on its way already may still come: then it is found.
    assert!(matches!(found, Err(libc::EIO) | Ok(_)), "{found:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    store.delay_ms.store(0, Ordering::Relaxed);
}
