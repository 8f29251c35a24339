//! The bounded cache over a real tree: what goes comes back as it was, and nobody reads zeros in between.

mod full;

use std::ops::Range;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64};

use bytes::Bytes;
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use storeshim_protocol::residency::PIECE;

use super::*;
use crate::blob::BlobError;
use crate::meta::records::PackId;
use crate::session::Hooked;

/// A gate that stops who asks it, as the shim does.
struct Gate {
    table: Arc<ResidencyTable>,
    writers: RwLock<()>,
    complete: AtomicBool,
    near: AtomicBool,
    /// A call does not leave it.
    inside: AtomicBool,
    hooked: Hooked,
}

struct Closed<'g>(
    #[expect(dead_code, reason = "what ends with it is the freeze")] std::sync::RwLockWriteGuard<'g, ()>,
);
impl Frozen for Closed<'_> {
    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(2)
    }
}

impl Gatekeeper for Gate {
    fn freeze<'a>(&'a self, sink: &mut dyn IntentSink) -> Box<dyn Frozen + 'a> {
        if self.inside.load(Ordering::SeqCst) {
            sink.straggler(0, "somebody");
        }
        Box::new(Closed(self.writers.write().unwrap()))
    }
    fn drain(&self) -> bool {
        true
    }
    fn attached(&self) -> Vec<u32> {
        Vec::new()
    }
    fn set_state(&self, _: MountState) {}
    fn set_complete(&self, complete: bool) {
        self.complete.store(complete, Ordering::SeqCst);
    }
    fn set_throttle(&self, _: u32) {}
    fn set_space(&self, _: &Space) {}
    fn set_quota(&self, near: bool, _: u64) {
        self.near.store(near, Ordering::SeqCst);
    }
    fn hooked(&self) -> Hooked {
        self.hooked.clone()
    }
    fn residency(&self) -> std::result::Result<Arc<ResidencyTable>, String> {
        Ok(Arc::clone(&self.table))
    }
}

/// A store whose reads take a while, and fail now and then.
struct Slow {
    store: Arc<dyn Blob>,
    most: Duration,
    failing: AtomicBool,
}

impl Blob for Slow {
    fn put(&self, id: &PackId, bytes: Bytes) -> std::result::Result<(), BlobError> {
        self.store.put(id, bytes)
    }
    fn get(&self, id: &PackId, range: Range<u64>) -> std::result::Result<Bytes, BlobError> {
        std::thread::sleep(self.most * rand::rng().random_range(0..100) / 100);
        if self.failing.load(Ordering::Relaxed) && rand::rng().random_range(0..10) == 0 {
            return Err(BlobError::Unavailable("it does not answer".into()));
        }
        self.store.get(id, range)
    }
    fn delete(&self, id: &PackId) -> std::result::Result<(), BlobError> {
        self.store.delete(id)
    }
}

struct Site {
    _dir: tempfile::TempDir,
    tree: PathBuf,
    gate: Arc<Gate>,
    sink: Arc<Mutex<DirtySet>>,
    volume: Arc<Volume>,
    blob: Arc<Slow>,
}

#[derive(Default)]
struct How {
    cache_size: Option<u64>,
    quota: Quota,
    most: Duration,
    tree: Option<PathBuf>,
    /// Beside the tree by default only where that is in the site's own directory.
    state: Option<PathBuf>,
}

impl Site {
    fn new(name: &str, how: How) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = how.tree.unwrap_or_else(|| dir.path().join("tree"));
        fs::create_dir_all(&tree).unwrap();
        let state = how.state.unwrap_or_else(|| dir.path().join("state"));
        fs::create_dir_all(&state).unwrap();
        let store = Store::open(&format!("memory:{name}"), &StoreOptions::default()).unwrap();
        let meta = crate::meta::open(&store).unwrap();
        let options = VolumeOptions {
            tree: tree.clone(),
            state: state.clone(),
            cache_size: how.cache_size,
            quota: how.quota,
            ..options()
        };
        let gate = Arc::new(Gate {
            table: Arc::new(ResidencyTable::anonymous().unwrap()),
            writers: RwLock::new(()),
            complete: AtomicBool::new(false),
            near: AtomicBool::new(false),
            inside: AtomicBool::new(false),
            hooked: Hooked::default(),
        });
        let shared = Shared::new(Arc::<Gate>::clone(&gate));
        let blob = Arc::new(Slow { store: Arc::new(store), most: how.most, failing: AtomicBool::new(false) });
        let sink: Arc<Mutex<DirtySet>> = Arc::default();
        let journal = Arc::new(Journal::open(&state));
        let local = Local::open(&options).unwrap();
        let volume =
            Volume::open(options, local, meta, Arc::<Slow>::clone(&blob), shared, Arc::clone(&sink), journal)
                .unwrap();
        let site = Self { _dir: dir, tree, gate, sink, volume, blob };
        site.volume.flush().unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tree.join(name)
    }

    fn ino(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().ino()
    }

    fn ask(&self, ask: Ask) -> i32 {
        let (to, answer) = crossbeam::channel::bounded(1);
        self.volume.request(ask, Box::new(Answer(to)));
        answer.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    fn evict(&self, path: &str) -> Evicted {
        self.volume.evict(Path::new(path), &Nobody).unwrap()
    }

    fn bring(&self, name: &str) {
        let ask = Ask::Hydrate { ino: self.ino(name), start: 0, end: u64::MAX, pin: Pin::No };
        assert_eq!(self.ask(ask), 0);
    }

    fn count(&self, name: &str) -> u64 {
        self.volume.status().counters.get(name).copied().unwrap_or(0)
    }

    /// Reads as a hooked program does.
    fn read(&self, file: &fs::File, ino: u64, start: u64, bytes: &mut [u8]) {
        let end = start + bytes.len() as u64;
        loop {
            let complete = self.gate.complete.load(Ordering::SeqCst);
            if complete {
                file.read_exact_at(bytes, start).unwrap();
                if self.gate.complete.load(Ordering::SeqCst) {
                    return;
                }
                continue;
            }
            let stamp = self.gate.table.check(ino, start, end).unwrap_or_else(|| {
                let stamp = self.gate.table.stamp(ino);
                assert_eq!(self.ask(Ask::Hydrate { ino, start, end, pin: Pin::No }), 0);
                stamp
            });
            file.read_exact_at(bytes, start).unwrap();
            if self.gate.table.still(stamp) {
                return;
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.volume.shutdown();
    }
}

struct Nobody;
impl Watch for Nobody {
    fn advanced(&self, _: &Progress) {}
    fn called_off(&self) -> bool {
        false
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// What only a change of the file may change.
fn looks(path: &Path) -> (u64, i64, i64, u32) {
    let meta = fs::metadata(path).unwrap();
    (meta.size(), meta.mtime(), meta.mtime_nsec(), meta.mode())
}

#[test]
fn what_is_evicted_takes_no_room_and_comes_back_as_it_was() {
    let site = Site::new("evict-comes-back", How::default());
    fs::create_dir(site.path("d")).unwrap();
    let data = [("big", noise((9 << 20) + 77, 1)), ("d/small", noise(5, 2)), ("d/odd", noise(300_001, 3))];
    for (name, bytes) in &data {
        fs::write(site.path(name), bytes).unwrap();
    }
    fs::write(site.path("empty"), "").unwrap();
    let seq = site.volume.flush().unwrap();
    let resident = site.volume.status().residency.resident_bytes;
    assert!((9 << 20..10 << 20).contains(&resident), "{resident}");
    assert!(site.gate.complete.load(Ordering::SeqCst));
    let before: Vec<_> = data.iter().map(|(name, _)| looks(&site.path(name))).collect();
    let evicted = site.evict("");
    assert_eq!((evicted.files, evicted.kept.as_slice()), (3, [].as_slice()));
    assert_eq!(evicted.bytes, data.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    assert!(!site.gate.complete.load(Ordering::SeqCst));
    for ((name, _), before) in data.iter().zip(&before) {
        assert_eq!(fs::metadata(site.path(name)).unwrap().blocks(), 0, "{name}");
        assert_eq!(looks(&site.path(name)), *before, "{name}");
        assert!(site.gate.table.check(site.ino(name), 0, 1).is_none());
    }
    assert_eq!(site.volume.status().residency.resident_bytes, 0);
    assert_eq!(site.evict("").files, 0, "there is nothing more");
    assert_eq!(site.volume.flush().unwrap(), seq, "nothing of the volume has changed");
    for ((name, bytes), before) in data.iter().zip(&before) {
        site.bring(name);
        assert!(fs::read(site.path(name)).unwrap() == *bytes, "{name}");
        assert_eq!(looks(&site.path(name)), *before, "{name}");
    }
    assert_eq!(site.volume.flush().unwrap(), seq, "nothing of the volume has changed");
    assert_eq!(site.count("evictions"), 3);
    assert_eq!(site.evict("d").files, 2);
    assert!(site.volume.evict(Path::new("nowhere"), &Nobody).is_err());
    let how = Warmup { depth: None, parallel: 3 };
    let warmed = site.volume.warm(Path::new(""), how, &Nobody).unwrap();
    assert_eq!((warmed.files, warmed.failed), (4, 0));
    assert!(fs::read(site.path("d/odd")).unwrap() == data[2].1);
}

#[test]
fn what_the_backend_does_not_have_stays() {
    let site = Site::new("evict-dirty", How::default());
    fs::write(site.path("f"), noise(200_000, 1)).unwrap();
    site.volume.flush().unwrap();
    let writer = fs::File::options().write(true).open(site.path("f")).unwrap();
    // Through stdio, say: nobody tells when it is written.
    site.sink.lock().unwrap().intent(Intent::Opened { ino: site.ino("f"), flags: OpenFlags::UNSEEN });
    let evicted = site.evict("f");
    assert_eq!((evicted.files, evicted.kept.len()), (0, 1), "{evicted:?}");
    writer.write_at(b"new", 100_000).unwrap();
    drop(writer);
    // A cut finds it changed, the next one that nobody can write to it any more, and one more that nothing has come since.
    let until = Instant::now() + Duration::from_secs(20);
    while site.evict("f").files == 0 {
        assert!(Instant::now() < until);
        site.volume.flush().unwrap();
    }
    site.bring("f");
    assert_eq!(&fs::read(site.path("f")).unwrap()[100_000..100_003], b"new");
}

#[test]
fn what_was_written_and_not_told_stays() {
    let site = Site::new("evict-untold", How::default());
    fs::write(site.path("f"), noise(200_000, 1)).unwrap();
    site.volume.flush().unwrap();
    fs::File::options().write(true).open(site.path("f")).unwrap().write_at(b"new", 9).unwrap();
    let evicted = site.evict("f");
    assert_eq!((evicted.files, evicted.kept.first().map(|kept| kept.files)), (0, Some(1)));
    assert_eq!(&fs::read(site.path("f")).unwrap()[9..12], b"new");
}

#[test]
fn what_is_pinned_or_open_without_the_shim_stays() {
    let site = Site::new("evict-pinned", How::default());
    for name in ["pinned", "open"] {
        fs::write(site.path(name), noise(200_000, 1)).unwrap();
    }
    site.volume.flush().unwrap();
    assert_eq!(
        site.ask(Ask::Hydrate { ino: site.ino("pinned"), start: 0, end: u64::MAX, pin: Pin::Soon }),
        0
    );
    let stdin = fs::File::open(site.path("open")).unwrap();
    let mut child = std::process::Command::new("sleep").arg("30").stdin(stdin).spawn().unwrap();
    let evicted = site.evict("");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((evicted.files, evicted.kept.len()), (0, 2), "{evicted:?}");
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(site.evict("open").files, 1, "nobody has it open any more");
}

/// Who reads a file through stdio or maps it has it open when he says so: what he has closed may go at once, or a cache would be
/// as large as what is read in some seconds.
#[test]
fn what_was_pinned_by_who_had_it_open_goes_once_it_is_closed() {
    let site = Site::new("evict-closed", How::default());
    fs::write(site.path("f"), noise(200_000, 1)).unwrap();
    site.volume.flush().unwrap();
    let stdin = fs::File::open(site.path("f")).unwrap();
    assert_eq!(site.ask(Ask::Hydrate { ino: site.ino("f"), start: 0, end: u64::MAX, pin: Pin::Open }), 0);
    let mut child = std::process::Command::new("sleep").arg("30").stdin(stdin).spawn().unwrap();
    let evicted = site.evict("f");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((evicted.files, evicted.kept.len()), (0, 1), "{evicted:?}");
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(site.evict("f").files, 1);
}

/// Who asks for a file to stay may do so before the cut that first knows it.
#[test]
fn what_was_pinned_before_a_cut_knew_it_stays() {
    let site = Site::new("evict-pinned-early", How::default());
    fs::write(site.path("f"), noise(200_000, 1)).unwrap();
    site.gate.complete.store(false, Ordering::SeqCst);
    assert_eq!(site.ask(Ask::Hydrate { ino: site.ino("f"), start: 0, end: u64::MAX, pin: Pin::Soon }), 0);
    site.volume.flush().unwrap();
    let evicted = site.evict("");
    assert_eq!((evicted.files, evicted.kept.len()), (0, 1), "{evicted:?}");
}

/// A program may have a file open for long before it asks for anything, which is when it becomes known.
#[test]
fn who_has_a_nameless_file_open_keeps_it_though_nobody_knows_him() {
    let site = Site::new("evict-nameless", How::default());
    let data = noise(200_000, 1);
    fs::write(site.path("f"), &data).unwrap();
    site.volume.flush().unwrap();
    assert_eq!(site.evict("f").files, 1);
    let stdin = fs::File::open(site.path("f")).unwrap();
    let mut child = std::process::Command::new("sleep").arg("30").stdin(stdin).spawn().unwrap();
    fs::remove_file(site.path("f")).unwrap();
    site.volume.flush().unwrap();
    let read = fs::read(format!("/proc/{}/fd/0", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(read == data);
    assert_eq!(site.count("rescued_files"), 1);
}

/// Of whom the agent sees nothing: better an error than zeros.
#[test]
fn who_opens_a_file_that_is_being_buried_hears_that_it_is_lost() {
    let site = Site::new("evict-lost", How::default());
    fs::write(site.path("f"), noise(200_000, 1)).unwrap();
    site.volume.flush().unwrap();
    assert_eq!(site.evict("f").files, 1);
    // The agent does not look at the process that it is itself.
    let (file, ino) = (fs::File::open(site.path("f")).unwrap(), site.ino("f"));
    fs::remove_file(site.path("f")).unwrap();
    site.volume.flush().unwrap();
    assert!(site.gate.table.check(ino, 0, 1).is_none());
    assert_eq!(site.ask(Ask::Hydrate { ino, start: 0, end: 1, pin: Pin::No }), libc::EIO);
    drop(file);
}

/// He asked before the file was cut, and is heard behind it.
#[test]
fn who_reads_behind_the_end_uses_nothing() {
    let site = Site::new("evict-behind", How::default());
    fs::write(site.path("f"), noise(72 * PIECE as usize, 1)).unwrap();
    site.volume.flush().unwrap();
    let (start, end) = (74 * PIECE, 75 * PIECE);
    assert_eq!(site.ask(Ask::Hydrate { ino: site.ino("f"), start, end, pin: Pin::No }), 0);
}

#[test]
fn the_cache_keeps_its_bound() {
    let site = Site::new("evict-bound", How { cache_size: Some(16 << 20), ..How::default() });
    for n in 0..12 {
        fs::write(site.path(&format!("f{n}")), noise(4 << 20, n)).unwrap();
    }
    site.volume.flush().unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while site.volume.status().residency.resident_bytes > 16 << 20 {
        assert!(Instant::now() < until, "{:?}", site.volume.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    for n in (0..12).rev() {
        let name = format!("f{n}");
        let (file, ino) = (fs::File::open(site.path(&name)).unwrap(), site.ino(&name));
        let mut bytes = vec![0; 4 << 20];
        site.read(&file, ino, 0, &mut bytes);
        assert!(bytes == noise(4 << 20, n), "{name}");
        let resident = site.volume.status().residency.resident_bytes;
        assert!(resident <= 17 << 20, "{resident}");
    }
    assert!(site.count("evicted_bytes") >= 32 << 20);
}

/// It may be inside because of the data: a truncate(2) waits at the mark of a file that has just been evicted.
#[test]
fn data_does_not_wait_for_room_that_a_call_inside_the_gate_keeps() {
    let site = Site::new("evict-inside", How { cache_size: Some(8 << 20), ..How::default() });
    let names: Vec<String> = (0..4).map(|n| format!("f{n}")).collect();
    (0..).zip(&names).for_each(|(n, name)| fs::write(site.path(name), noise(4 << 20, n)).unwrap());
    site.volume.flush().unwrap();
    site.evict("");
    site.gate.inside.store(true, Ordering::SeqCst);
    let began = Instant::now();
    names.iter().for_each(|name| site.bring(name));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(site.count("admitted_beyond_the_cache") > 0, "{:?}", site.volume.status());
    site.gate.inside.store(false, Ordering::SeqCst);
}

/// Who waits calls the evictor now and then, and wakes nobody else: of many that wait each would wake all others, and be woken.
#[test]
fn who_waits_for_room_does_not_wake_the_others() {
    const WAITERS: u64 = 24;
    let site = Site::new("evict-waiters", How { cache_size: Some(4 << 20), ..How::default() });
    let names: Vec<String> = (0..WAITERS).map(|n| format!("f{n}")).collect();
    (0..).zip(&names).for_each(|(n, name)| fs::write(site.path(name), noise(1 << 20, n)).unwrap());
    site.volume.flush().unwrap();
    site.evict("");
    // Nothing can go, and those that wait wait until that is sure.
    site.gate.inside.store(true, Ordering::SeqCst);
    let switches = || {
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
        usage.voluntary_context_switches()
    };
    let before = switches();
    std::thread::scope(|scope| names.iter().for_each(|name| _ = scope.spawn(|| site.bring(name))));
    let switched = switches() - before;
    assert!(site.count("admitted_beyond_the_cache") > 0, "{:?}", site.volume.status());
    // Some for each read, question and look.
    assert!(switched < 4000, "{switched}");
    site.gate.inside.store(false, Ordering::SeqCst);
}

/// Readers and writers that keep to the protocol, an evictor with no mercy, a store that is slow and fails.
#[test]
fn nobody_reads_zeros() {
    const FILES: u64 = 4;
    const SIZE: u64 = 6 << 20;
    let site = Site::new("evict-zeros", How { most: Duration::from_millis(6), ..How::default() });
    // Each page says which it is, and how often it was written.
    let page = |file: u64, at: u64, version: u64| {
        let mut bytes = noise(4096, file << 32 | at);
        bytes[..8].copy_from_slice(&(version + 1).to_le_bytes());
        bytes
    };
    for file in 0..FILES {
        let bytes: Vec<u8> = (0..SIZE / 4096).flat_map(|at| page(file, at, 0)).collect();
        fs::write(site.path(&format!("f{file}")), bytes).unwrap();
    }
    site.volume.flush().unwrap();
    site.blob.failing.store(true, Ordering::Relaxed);
    let versions: Vec<AtomicU64> = (0..FILES * SIZE / 4096).map(|_| AtomicU64::new(0)).collect();
    let version = |file: u64, at: u64| &versions[(file * SIZE / 4096 + at) as usize];
    let (over, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(6);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (site, over, reads) = (&site, &over, &reads);
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(reader);
                let mut bytes = vec![0; 4096];
                while !over.load(Ordering::Relaxed) {
                    let file = rng.random_range(0..FILES);
                    let name = format!("f{file}");
                    let (open, ino) = (fs::File::open(site.path(&name)).unwrap(), site.ino(&name));
                    for _ in 0..20 {
                        let at = rng.random_range(0..SIZE / 4096);
                        let least = version(file, at).load(Ordering::SeqCst);
                        site.read(&open, ino, at * 4096, &mut bytes);
                        let most = version(file, at).load(Ordering::SeqCst) + 1;
                        let seen = u64::from_le_bytes(bytes[..8].try_into().unwrap()).wrapping_sub(1);
                        assert!(
                            (least..=most).contains(&seen),
                            "{name} {at}: {seen} not in {least}..={most}"
                        );
                        assert!(bytes == page(file, at, seen), "{name} {at}");
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let (site_ref, over_ref) = (&site, &over);
        scope.spawn(move || {
            let mut rng = SmallRng::seed_from_u64(99);
            let began = Instant::now();
            while !over_ref.load(Ordering::Relaxed) {
                // One after another, so that the backend has what is in the others.
                let file = began.elapsed().as_millis() as u64 / 700 % FILES;
                let (name, at) = (format!("f{file}"), rng.random_range(0..SIZE / 4096));
                let ino = site_ref.ino(&name);
                let open = fs::File::options().read(true).write(true).open(site_ref.path(&name)).unwrap();
                // What a write touches has to be here before, as the shim sees to it; and checks once more in the gate.
                loop {
                    let (start, end) = (at * 4096, (at + 1) * 4096);
                    let pieces = start / PIECE * PIECE..(end.div_ceil(PIECE) * PIECE).min(SIZE);
                    site_ref.read(
                        &open,
                        ino,
                        pieces.start,
                        &mut vec![0; (pieces.end - pieces.start) as usize],
                    );
                    let _inside = site_ref.gate.writers.read().unwrap();
                    if site_ref.gate.table.check(ino, pieces.start, pieces.end).is_none()
                        && !site_ref.gate.complete.load(Ordering::SeqCst)
                    {
                        continue;
                    }
                    site_ref.sink.lock().unwrap().intent(Intent::Written {
                        ino,
                        offset: start,
                        length: 4096,
                    });
                    let next = version(file, at).load(Ordering::SeqCst) + 1;
                    open.write_all_at(&page(file, at, next), start).unwrap();
                    version(file, at).store(next, Ordering::SeqCst);
                    break;
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        // On a machine that is busy it takes longer until something is settled, and open nowhere.
        let at_last = until + Duration::from_secs(60);
        while Instant::now() < until || site.count("evictions") <= 10 && Instant::now() < at_last {
            site.evict("");
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(site.count("evictions") > 10, "{:?}", site.volume.status().counters);
    assert!(reads.load(Ordering::Relaxed) > 100);
    site.blob.failing.store(false, Ordering::Relaxed);
    site.volume.flush().unwrap();
    // And the backend has what was written.
    let elsewhere = Site::new("evict-zeros", How::default());
    for file in 0..FILES {
        let name = format!("f{file}");
        let how = Warmup { depth: None, parallel: 2 };
        assert_eq!(elsewhere.volume.warm(Path::new(""), how, &Nobody).unwrap().failed, 0);
        let bytes = fs::read(elsewhere.path(&name)).unwrap();
        for at in 0..SIZE / 4096 {
            let expected = page(file, at, version(file, at).load(Ordering::SeqCst));
            let is = &bytes[(at * 4096) as usize..][..4096];
            assert!(is == expected, "{name} {at}: {:?} {:?}", &is[..16], &expected[..16]);
        }
    }
}

/// A program without the shim gets the right bytes of what is not here, by the kernel's lease.
#[test]
fn who_does_not_ask_waits_until_it_is_here() {
    let site = Site::new("evict-unhooked", How { most: Duration::from_millis(300), ..How::default() });
    let bytes = noise(1 << 20, 1);
    fs::write(site.path("f"), &bytes).unwrap();
    site.volume.flush().unwrap();
    assert_eq!(site.evict("f").files, 1);
    let until = Instant::now() + Duration::from_secs(20);
    while site.volume.status().residency.unguarded_files > 0 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(10));
    }
    let read = std::process::Command::new("cat").arg(site.path("f")).output().unwrap();
    assert!(read.stdout == bytes, "{} bytes", read.stdout.len());
    assert!(site.count("lease_breaks") >= 1);
    assert_eq!(site.count("lease_overruns"), 0);
}

#[test]
fn the_agents_own_looks_do_not_wait_for_its_guards() {
    let site = Site::new("evict-own", How::default());
    fs::write(site.path("f"), noise(1 << 20, 1)).unwrap();
    site.volume.flush().unwrap();
    assert_eq!(site.evict("f").files, 1);
    let until = Instant::now() + Duration::from_secs(20);
    while site.volume.status().residency.unguarded_files > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::set_permissions(site.path("f"), fs::Permissions::from_mode(0o640)).unwrap();
    site.sink.lock().unwrap().intent(Intent::Attributes { ino: site.ino("f") });
    let began = Instant::now();
    let seq = site.volume.flush().unwrap();
    assert!(seq > 0 && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(site.volume.status().reason, None);
    site.bring("f");
    assert!(fs::read(site.path("f")).unwrap() == noise(1 << 20, 1));
}

#[test]
fn a_volume_does_not_outgrow_its_quota() {
    let quota = Quota { bytes: Some(10 << 20), inodes: Some(1000) };
    let site = Site::new("evict-quota", How { quota, ..How::default() });
    let until = Instant::now() + Duration::from_secs(10);
    while !site.gate.near.load(Ordering::SeqCst) {
        assert!(Instant::now() < until, "it is so small that it is near from the start");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(site.ask(Ask::Grow { bytes: 6 << 20, inodes: 1 }), 0);
    fs::write(site.path("f"), noise(6 << 20, 1)).unwrap();
    site.sink
        .lock()
        .unwrap()
        .intent(Intent::Name { dir: fs::metadata(&site.tree).unwrap().ino(), name: b"f" });
    assert_eq!(site.ask(Ask::Grow { bytes: 6 << 20, inodes: 1 }), libc::EDQUOT);
    assert_eq!(site.ask(Ask::Grow { bytes: 3 << 20, inodes: 0 }), 0);
    fs::remove_file(site.path("f")).unwrap();
    site.sink
        .lock()
        .unwrap()
        .intent(Intent::Name { dir: fs::metadata(&site.tree).unwrap().ino(), name: b"f" });
    assert_eq!(site.ask(Ask::Grow { bytes: 6 << 20, inodes: 1 }), 0, "what was removed makes room");
    assert_eq!(site.ask(Ask::Grow { bytes: 0, inodes: 2000 }), libc::EDQUOT);
}

/// A disk that is full is made room on. Needs to mount a small filesystem, which not everybody may.
#[test]
fn a_full_disk_is_made_room_on() {
    let disk = tempfile::tempdir().unwrap();
    let tmpfs = nix::mount::mount(
        Some("tmpfs"),
        disk.path(),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=24m"),
    );
    if let Err(error) = tmpfs {
        eprintln!("skipped: nothing can be mounted here ({error})");
        return;
    }
    let unmount = Unmount(disk.path().to_path_buf());
    {
        let site = Site::new("evict-full", How { tree: Some(disk.path().join("tree")), ..How::default() });
        for n in 0..4 {
            fs::write(site.path(&format!("f{n}")), noise(5 << 20, n)).unwrap();
        }
        site.volume.flush().unwrap();
        let filler = fs::File::create(disk.path().join("filler")).unwrap();
        let mut filled = 0;
        while filler.write_at(&[1; 65536], filled).is_ok_and(|n| n == 65536) {
            filled += 65536;
        }
        assert_eq!(site.ask(Ask::Room { bytes: 4 << 20 }), 0);
        assert!(filler.write_at(&[1; 65536], filled).is_ok_and(|n| n == 65536));
        assert_eq!(site.ask(Ask::Room { bytes: 1 << 30 }), libc::ENOSPC);
        drop(filler);
        fs::remove_file(disk.path().join("filler")).unwrap();
        for n in 0..4 {
            let name = format!("f{n}");
            let (file, ino) = (fs::File::open(site.path(&name)).unwrap(), site.ino(&name));
            let mut bytes = vec![0; 5 << 20];
            site.read(&file, ino, 0, &mut bytes);
            assert!(bytes == noise(5 << 20, n));
        }
    }
    drop(unmount);
}

struct Unmount(PathBuf);
impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
