//! The engine as a whole, over a real tree and an in-memory backend: what is committed is what was there.

mod evict;
mod far;
mod files;
mod filled;
mod lazy;
mod links;
mod mapped;
mod model;
mod names;
mod single;
mod verify;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use storeshim_protocol::request::{Ask, Pin};
use storeshim_protocol::{Intent, MountState, OpenFlags};

use super::*;
use crate::blob::{Blob, Store, StoreOptions};
use crate::session::{self, IntentSink, Reply};

/// What a test does at the instant when a gate opens, or is about to close, the last one first.
type AtThaw = Arc<Mutex<Vec<Box<dyn FnOnce() + Send>>>>;

/// A gate without anybody behind it: intents are put into the sink by the test.
#[derive(Default)]
struct OpenGate {
    state: AtomicU32,
    space: Mutex<Space>,
    at_thaw: AtThaw,
    at_freeze: AtThaw,
    table: AnonymousTable,
}

/// Settings for tests, to be changed where it matters.
pub(super) fn options() -> VolumeOptions {
    VolumeOptions {
        tree: PathBuf::new(),
        prefix: "/storage".into(),
        identity: false,
        neighbours: Arc::default(),
        state: PathBuf::new(),
        durability: Durability::Remote,
        max_lag: Duration::from_millis(50),
        dirty_limit: 1 << 30,
        audit_interval: Duration::from_secs(3600),
        upload_parallelism: 2,
        hydrate: Hydrate::OnRead,
        cache_size: None,
        patience: Duration::from_secs(20),
        guard: Guarding::Leases,
        quota: Quota::default(),
    }
}

/// A gate for tests of parts that only need to have one.
pub(super) fn idle_gate() -> Arc<dyn Gatekeeper> {
    Arc::new(OpenGate::default())
}

struct AnonymousTable(Arc<ResidencyTable>);
impl Default for AnonymousTable {
    fn default() -> Self {
        Self(Arc::new(ResidencyTable::anonymous().unwrap()))
    }
}

struct Open(AtThaw);
impl Frozen for Open {
    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(2)
    }
}
impl Drop for Open {
    fn drop(&mut self) {
        let act = self.0.lock().unwrap().pop();
        if let Some(act) = act {
            act();
        }
    }
}

impl Gatekeeper for OpenGate {
    fn freeze<'a>(&'a self, _: &mut dyn IntentSink) -> Box<dyn Frozen + 'a> {
        let act = self.at_freeze.lock().unwrap().pop();
        if let Some(act) = act {
            act();
        }
        Box::new(Open(Arc::clone(&self.at_thaw)))
    }
    fn drain(&self) -> bool {
        true
    }
    fn attached(&self) -> Vec<u32> {
        Vec::new()
    }
    fn set_state(&self, state: MountState) {
        self.state.store(state as u32, Ordering::Relaxed);
    }
    fn set_complete(&self, _: bool) {}
    fn set_throttle(&self, _: u32) {}
    fn set_space(&self, space: &Space) {
        *self.space.lock().unwrap() = *space;
    }
    fn residency(&self) -> std::result::Result<Arc<ResidencyTable>, String> {
        Ok(Arc::clone(&self.table.0))
    }
}

struct Answer(crossbeam::channel::Sender<i32>);
impl Reply for Answer {
    fn answer(self: Box<Self>, answer: storeshim_protocol::request::Answer) {
        let _ = self.0.send(answer.errno);
    }
}

struct Node {
    dir: tempfile::TempDir,
    sink: Arc<Mutex<DirtySet>>,
    volume: Option<Arc<Volume>>,
    url: String,
    /// What is used instead of a store of that URL.
    store: Option<Arc<crate::blob::faults::Faulty>>,
    at_thaw: AtThaw,
    at_freeze: AtThaw,
    hydrate: Hydrate,
    /// Clients keep it mapped while agents come and go.
    table: Arc<ResidencyTable>,
    faults: Arc<Faults>,
    durability: Durability,
    patience: Duration,
}

/// What befalls reads of packs.
#[derive(Default)]
struct Faults {
    refuse: AtomicBool,
    damage: AtomicBool,
    gets: AtomicU32,
    delay_ms: AtomicU32,
}

struct Faulty(Store, Arc<Faults>);
impl Blob for Faulty {
    fn put(&self, id: &crate::meta::records::PackId, bytes: bytes::Bytes) -> crate::blob::Result<()> {
        self.0.put(id, bytes)
    }
    fn get(
        &self,
        id: &crate::meta::records::PackId,
        range: std::ops::Range<u64>,
    ) -> crate::blob::Result<bytes::Bytes> {
        self.1.gets.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(self.1.delay_ms.load(Ordering::Relaxed).into()));
        if self.1.refuse.load(Ordering::Relaxed) {
            return Err(crate::blob::BlobError::Unavailable("it refuses".into()));
        }
        let bytes = self.0.get(id, range)?;
        if self.1.damage.load(Ordering::Relaxed) {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            return Ok(bytes.into());
        }
        Ok(bytes)
    }
    fn delete(&self, id: &crate::meta::records::PackId) -> crate::blob::Result<()> {
        self.0.delete(id)
    }
}

impl Node {
    /// A node that has everything, so that tests may look into its tree.
    fn new(url: &str) -> Self {
        Self::with(url, Hydrate::Eager)
    }

    fn with(url: &str, hydrate: Hydrate) -> Self {
        let mut node = Self::stopped(url, hydrate);
        node.start().unwrap();
        node
    }

    /// A node whose agent was not started yet.
    fn stopped(url: &str, hydrate: Hydrate) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tree")).unwrap();
        fs::create_dir_all(dir.path().join("state")).unwrap();
        Self {
            dir,
            sink: Arc::default(),
            volume: None,
            url: url.into(),
            store: None,
            at_thaw: AtThaw::default(),
            at_freeze: AtThaw::default(),
            hydrate,
            table: Arc::new(ResidencyTable::anonymous().unwrap()),
            faults: Arc::default(),
            durability: Durability::Remote,
            patience: Duration::from_millis(800),
        }
    }

    fn start(&mut self) -> Result<(), VolumeError> {
        // The index is open once at a time.
        self.volume = None;
        let store = match &self.store {
            Some(store) => Store::over(Arc::clone(store) as Arc<dyn object_store::ObjectStore>, &self.url),
            None => Store::open(&self.url, &StoreOptions::default()),
        }
        .map_err(|e| VolumeError::Failed(e.to_string()))?;
        let meta = crate::meta::open(&store)?;
        let options = VolumeOptions {
            tree: self.tree(),
            state: self.dir.path().join("state"),
            durability: self.durability,
            hydrate: self.hydrate,
            patience: self.patience,
            ..options()
        };
        let shared = Shared::new(Arc::new(OpenGate {
            at_thaw: Arc::clone(&self.at_thaw),
            at_freeze: Arc::clone(&self.at_freeze),
            table: AnonymousTable(Arc::clone(&self.table)),
            ..OpenGate::default()
        }));
        let blob: Arc<dyn Blob> = Arc::new(Faulty(store, Arc::clone(&self.faults)));
        let journal = Arc::new(Journal::open(&self.dir.path().join("state")));
        let local = Local::open(&options)?;
        self.volume =
            Some(Volume::open(options, local, meta, blob, shared, Arc::clone(&self.sink), journal)?);
        Ok(())
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn volume(&self) -> &Volume {
        self.volume.as_ref().unwrap()
    }

    fn tell(&self, intent: Intent<'_>) {
        self.sink.lock().unwrap().intent(intent);
    }

    fn barrier(&self) -> i32 {
        let (to, answer) = crossbeam::channel::bounded(1);
        self.volume().request(Ask::Barrier { ino: 0 }, Box::new(Answer(to)));
        answer.recv_timeout(Duration::from_secs(30)).unwrap()
    }

    fn ino(&self, path: &str) -> u64 {
        fs::symlink_metadata(self.tree().join(path)).unwrap().ino()
    }

    fn tell_name(&self, path: &str) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.tell(Intent::Name { dir: self.ino(dir), name: name.as_bytes() });
    }
}

/// Path → what a restored tree must have in common with the original.
type Snapshot = BTreeMap<PathBuf, (u32, u64, i64, i64, u64, Vec<u8>)>;

fn snapshot(root: &Path) -> Snapshot {
    fn walk(dir: &Path, root: &Path, out: &mut Snapshot) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let m = fs::symlink_metadata(&path).unwrap();
            let data = match m.mode() & libc::S_IFMT {
                libc::S_IFREG => fs::read(&path).unwrap(),
                libc::S_IFLNK => fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                _ => Vec::new(),
            };
            let links = if m.is_dir() { 1 } else { m.nlink() };
            out.insert(
                path.strip_prefix(root).unwrap().into(),
                (m.mode(), links, m.mtime(), m.mtime_nsec(), if m.is_dir() { 0 } else { m.size() }, data),
            );
            if m.is_dir() {
                walk(&path, root, out);
            }
        }
    }
    let mut out = Snapshot::new();
    walk(root, root, &mut out);
    out
}

fn same_elsewhere(node: &mut Node) {
    let here = snapshot(&node.tree());
    let there = Node::new(&node.url);
    let restored = snapshot(&there.tree());
    for (path, what) in &here {
        assert_eq!(restored.get(path), Some(what), "{}", path.display());
    }
    assert_eq!(here.len(), restored.len());
}

fn missed(node: &Node) -> u64 {
    node.volume().status().counters.get("missed_changes").copied().unwrap_or(0)
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let mut node = Node::new("memory:comes-back");
    let tree = node.tree();
    fs::create_dir_all(tree.join("a/b/empty")).unwrap();
    fs::write(tree.join("a/hello"), "hello").unwrap();
    fs::write(tree.join("a/big"), vec![7u8; 9 << 20]).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_at(b"x", 40 << 20).unwrap();
    fs::hard_link(tree.join("a/hello"), tree.join("a/b/link")).unwrap();
    std::os::unix::fs::symlink("a/hello", tree.join("sym")).unwrap();
    std::os::unix::fs::symlink(tree.canonicalize().unwrap().join("a"), tree.join("inside")).unwrap();
    fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o500)).unwrap();
    assert!(node.volume().flush().unwrap() > 0);
    let status = node.volume().status();
    assert_eq!((status.files, status.dirty_entries), (3, 0));
    let restored = Node::new("memory:comes-back");
    let mut here = snapshot(&tree);
    let mut there = snapshot(&restored.tree());
    // An absolute link into the tree leads into the tree of each node.
    let (a, b) = (here.remove(Path::new("inside")).unwrap(), there.remove(Path::new("inside")).unwrap());
    assert_eq!((a.0, a.2, a.3), (b.0, b.2, b.3));
    assert!(restored.tree().join("inside/hello").exists());
    assert_eq!(here, there);
    assert!(fs::metadata(restored.tree().join("sparse")).unwrap().blocks() < 100);
    // The older of the two is fenced, once the newer is there.
    fs::write(restored.tree().join("newer"), "n").unwrap();
    restored.volume().flush().unwrap();
    fs::write(tree.join("late"), "late").unwrap();
    node.tell_name("late");
    assert_eq!(node.barrier(), libc::ESTALE);
    assert_eq!(node.volume().status().state, "fenced");
    node.volume().shutdown();
    // Its disk holds the late file, which the volume does not: set aside, not lost.
    node.start().unwrap();
    assert!(!tree.join("late").exists() && tree.join("a/hello").exists() && tree.join("newer").exists());
    assert!(node.volume().status().reason.unwrap().contains("set aside"));
}

#[test]
fn told_ranges_are_all_that_is_read() {
    let mut node = Node::new("memory:ranges");
    let path = node.tree().join("db");
    let file = fs::File::create(&path).unwrap();
    file.write_all_at(&vec![1; 20 << 20], 0).unwrap();
    node.volume().flush().unwrap();
    let before = node.volume().status().counters.get("pack_bytes").copied();
    let ino = node.ino("db");
    for i in 0..50u64 {
        let at = i * 7919 * 41 % (20 << 20);
        file.write_all_at(&i.to_le_bytes(), at).unwrap();
        node.tell(Intent::Written { ino, offset: at, length: 8 });
        assert_eq!(node.barrier(), 0);
    }
    assert_eq!(
        node.volume().status().counters.get("pack_bytes").copied(),
        before,
        "small commits are inline"
    );
    same_elsewhere(&mut node);
}

#[test]
fn renames_and_links_end_where_they_end() {
    let mut node = Node::new("memory:renames");
    let tree = node.tree();
    fs::create_dir_all(tree.join("x/y")).unwrap();
    fs::create_dir_all(tree.join("z")).unwrap();
    fs::write(tree.join("x/y/f"), "f").unwrap();
    fs::hard_link(tree.join("x/y/f"), tree.join("z/g")).unwrap();
    node.volume().flush().unwrap();
    // All within one interval: a directory moves, something appears in it, a link of a file in it goes elsewhere.
    for path in ["x", "z/moved", "z/moved/y/new", "x/y/f", "z/g", "z/h"] {
        if let Some((dir, _)) = path.rsplit_once('/')
            && tree.join(dir).exists()
        {
            node.tell_name(path);
        } else if !path.contains('/') {
            node.tell_name(path);
        }
    }
    fs::rename(tree.join("x"), tree.join("z/moved")).unwrap();
    node.tell_name("z/moved/y/new");
    fs::write(tree.join("z/moved/y/new"), "new").unwrap();
    fs::rename(tree.join("z/g"), tree.join("z/h")).unwrap();
    assert_eq!(node.barrier(), 0);
    same_elsewhere(&mut node);
}

#[test]
fn deep_directories_that_went_are_not_walked_again_and_again() {
    let mut node = Node::new("memory:deep");
    let (chains, depth) = (5, 100);
    let paths: Vec<Vec<String>> = (0..chains)
        .map(|chain| (1..=depth).map(|n| format!("{chain}{}", "/123".repeat(n))).collect())
        .collect();
    for path in (0..chains).map(|n| n.to_string()).chain(paths.iter().flatten().cloned()) {
        node.tell_name(&path);
        fs::create_dir(node.tree().join(path)).unwrap();
    }
    assert_eq!(node.barrier(), 0);
    let started = Instant::now();
    for path in paths.iter().flat_map(|chain| chain.iter().rev()) {
        node.tell_name(path);
        fs::remove_dir(node.tree().join(path)).unwrap();
    }
    assert_eq!(node.barrier(), 0);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    same_elsewhere(&mut node);
}

#[test]
fn an_agent_that_died_finds_what_it_missed() {
    let mut node = Node::new("memory:died");
    fs::write(node.tree().join("kept"), "1").unwrap();
    node.volume().flush().unwrap();
    node.volume().shutdown();
    fs::write(node.tree().join("kept"), "2").unwrap();
    fs::write(node.tree().join("new"), "n").unwrap();
    node.start().unwrap();
    assert_eq!(node.barrier(), 0);
    assert_eq!(missed(&node), 0, "nobody was to tell of these");
    same_elsewhere(&mut node);
}

#[test]
fn a_file_that_stays_open_is_looked_at_by_the_next_agent_too() {
    let mut node = Node::new("memory:suspect");
    let mut file = fs::File::create(node.tree().join("log")).unwrap();
    node.tell_name("log");
    node.tell(Intent::Opened { ino: node.ino("log"), flags: OpenFlags::UNSEEN });
    assert_eq!(node.barrier(), 0);
    node.volume().shutdown();
    node.start().unwrap();
    assert_eq!(node.barrier(), 0);
    // As stdio does: no intent tells of it.
    file.write_all(b"untold").unwrap();
    assert_eq!(node.barrier(), 0);
    same_elsewhere(&mut node);
}

#[test]
fn a_lost_disk_is_populated_again_and_not_committed_as_emptiness() {
    let mut node = Node::new("memory:lost");
    fs::write(node.tree().join("f"), "1").unwrap();
    node.volume().flush().unwrap();
    node.volume().shutdown();
    fs::remove_file(node.tree().join("f")).unwrap();
    node.start().unwrap();
    assert_eq!(fs::read(node.tree().join("f")).unwrap(), b"1");
}

#[test]
fn what_no_intent_tells_is_found_by_the_audit() {
    let node = Node::new("memory:untold");
    node.volume().flush().unwrap();
    fs::write(node.tree().join("untold"), "u").unwrap();
    node.volume().flush().unwrap();
    assert_ne!(missed(&node), 0);
}

#[test]
fn what_a_suspect_does_is_not_missed() {
    let mut node = Node::new("memory:suspected");
    let path = node.tree().join("log");
    fs::write(&path, "1").unwrap();
    std::os::unix::fs::symlink("target", node.tree().join("link")).unwrap();
    node.volume().flush().unwrap();
    let before = missed(&node);
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    node.tell(Intent::Opened { ino: node.ino("log"), flags: OpenFlags::UNSEEN });
    assert_eq!(node.barrier(), 0);
    for _ in 0..3 {
        file.write_all(b"as stdio does").unwrap();
        node.volume().flush().unwrap();
    }
    drop(file);
    node.volume().flush().unwrap();
    // A file that is created through a link is told by the link's name.
    node.tell_name("link");
    fs::write(node.tree().join("link"), "t").unwrap();
    node.volume().flush().unwrap();
    node.volume().flush().unwrap();
    assert_eq!(missed(&node), before);
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"!").unwrap();
    node.volume().flush().unwrap();
    assert_eq!(missed(&node), before + 1, "a program without the shim");
    same_elsewhere(&mut node);
}

#[test]
fn where_intents_were_lost_no_range_is_trusted() {
    let mut node = Node::new("memory:untrusted");
    let file = fs::File::create(node.tree().join("db")).unwrap();
    file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
    node.volume().flush().unwrap();
    let ino = node.ino("db");
    // The intent of this one was drained by an agent that was killed (or the ring was full).
    file.write_all_at(b"lost?", 0).unwrap();
    node.tell(Intent::Written { ino, offset: 500_000, length: 5 });
    file.write_all_at(b"told!", 500_000).unwrap();
    node.sink.lock().unwrap().look_everywhere("a full ring");
    assert_eq!(node.barrier(), 0);
    node.volume().flush().unwrap();
    same_elsewhere(&mut node);
}

#[test]
fn where_nothing_was_told_no_append_is_trusted() {
    let mut node = Node::new("memory:appended");
    let path = node.tree().join("log");
    fs::write(&path, vec![1; 1000]).unwrap();
    let ino = node.ino("log");
    node.tell_name("log");
    node.tell(Intent::Opened { ino, flags: OpenFlags::UNSEEN.with(OpenFlags::APPEND) });
    let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    assert_eq!(node.barrier(), 0);
    // copytruncate by a program without the shim, then more than before is appended
    file.set_len(0).unwrap();
    (&file).write_all(&vec![2; 3000]).unwrap();
    node.volume().flush().unwrap();
    node.volume().flush().unwrap();
    same_elsewhere(&mut node);
}

#[test]
fn what_was_told_of_a_suspect_is_looked_at_though_its_times_were_seen() {
    let mut node = Node::new("memory:seen");
    let path = node.tree().join("log");
    fs::write(&path, vec![1; 100_000]).unwrap();
    let ino = node.ino("log");
    node.tell_name("log");
    node.tell(Intent::Opened { ino, flags: OpenFlags::UNSEEN.with(OpenFlags::APPEND) });
    // Keeps it a suspect, whose data is thought to grow at its end.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(node.barrier(), 0);
    // A look outside the freeze meets a write of another program, whose intent the next freeze brings.
    file.write_all_at(b"written", 50_000).unwrap();
    assert_eq!(node.barrier(), 0);
    node.tell(Intent::Written { ino, offset: 49_152, length: 4096 });
    assert_eq!(node.barrier(), 0);
    same_elsewhere(&mut node);
}

#[test]
fn what_was_told_of_a_file_that_moves_meanwhile_is_not_forgotten() {
    let mut node = Node::new("memory:moving");
    let tree = node.tree();
    let file = fs::File::create(tree.join("a")).unwrap();
    file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
    node.volume().flush().unwrap();
    assert_eq!(node.barrier(), 0);
    let ino = node.ino("a");
    std::thread::sleep(Duration::from_millis(300));
    let (sink, root) = (Arc::clone(&node.sink), node.ino(""));
    let file2 = file.try_clone().unwrap();
    {
        let mut s = node.sink.lock().unwrap();
        node.at_thaw.lock().unwrap().push(Box::new(move || {
            let mut s = sink.lock().unwrap();
            for name in [b"a", b"b"] {
                s.intent(Intent::Name { dir: root, name });
            }
            fs::rename(tree.join("a"), tree.join("b")).unwrap();
            s.intent(Intent::Written { ino, offset: 500_000, length: 5 });
            file2.write_all_at(b"told2", 500_000).unwrap();
        }));
        s.intent(Intent::Written { ino, offset: 0, length: 5 });
        file.write_all_at(b"told1", 0).unwrap();
        for i in 0..100u64 {
            s.intent(Intent::Attributes { ino: 1_000_000_000 + i });
        }
    }
    assert_eq!(node.barrier(), 0);
    assert_eq!(node.barrier(), 0);
    assert!(node.at_thaw.lock().unwrap().is_empty());
    node.volume().flush().unwrap();
    same_elsewhere(&mut node);
}

#[test]
fn files_that_vanish_while_looked_at_leave_a_volume_that_can_be_restored() {
    let node = Node::new("memory:churn");
    let tree = node.tree();
    for i in 0..3000 {
        fs::write(tree.join(format!("keep{i}")), "k").unwrap();
    }
    node.volume().flush().unwrap();
    fs::write(tree.join("gone"), "g").unwrap();
    let t2 = tree.clone();
    // A program without the shim deletes its file while the cut looks, after the names and before the inodes.
    for i in 0..3000 {
        fs::write(tree.join(format!("new{i}")), "k").unwrap();
    }
    node.at_thaw.lock().unwrap().push(Box::new(move || {
        std::thread::spawn(move || {
            for i in 0..3000 {
                let _ = fs::remove_file(t2.join(format!("new{i}")));
                std::thread::sleep(Duration::from_micros(100));
            }
        });
    }));
    node.volume().flush().unwrap();
    node.volume().shutdown();
    let there = std::panic::catch_unwind(|| Node::new("memory:churn").tree().exists());
    assert!(there.is_ok());
}

#[test]
fn a_huge_hole_is_nothing() {
    let mut node = Node::new("memory:huge");
    let file = fs::File::create(node.tree().join("huge")).unwrap();
    file.set_len(15 << 40).unwrap();
    file.write_all_at(b"end", (15 << 40) - 3).unwrap();
    node.volume().flush().unwrap();
    node.tell(Intent::Opened { ino: node.ino("huge"), flags: OpenFlags::MAPPED });
    assert_eq!(node.barrier(), 0);
    node.tell(Intent::Written { ino: node.ino("huge"), offset: 4096, length: u64::MAX });
    file.set_len(4096).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    assert_eq!(node.barrier(), 0);
    same_elsewhere(&mut node);
}
