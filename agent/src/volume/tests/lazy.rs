//! A volume that comes piece by piece: clients that look before they read see what the volume has, or an error; never zeros,
//! never what was. And what is not here is never taken for a change.

use storeshim_protocol::request::Answer as Full;
use storeshim_protocol::residency::PIECE;

use proptest::prelude::*;

use super::*;

struct Whole(crossbeam::channel::Sender<Full>);
impl Reply for Whole {
    fn answer(self: Box<Self>, answer: Full) {
        let _ = self.0.send(answer);
    }
}

pub(super) struct Idle;
impl Watch for Idle {
    fn advanced(&self, _: &Progress) {}
    fn called_off(&self) -> bool {
        false
    }
}

/// Bytes that do not compress, and tell where they belong.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

impl Node {
    pub(super) fn lazy(url: &str) -> Self {
        Self::with(url, Hydrate::OnRead)
    }

    pub(super) fn ask(&self, ask: Ask) -> Full {
        let (to, answer) = crossbeam::channel::bounded(1);
        self.volume().request(ask, Box::new(Whole(to)));
        answer.recv_timeout(Duration::from_secs(30)).unwrap()
    }

    /// Has the directories of a path populated, as the shim does.
    fn reach(&self, path: &str) {
        let mut at = self.tree();
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        for part in std::iter::once("").chain(parent.split('/')) {
            at.push(part);
            let ino = fs::metadata(&at).unwrap().ino();
            if self.table.whole(ino).is_none() {
                assert_eq!(self.ask(Ask::Populate { ino }).errno, 0);
            }
        }
    }

    /// Reads bytes of a file, as the shim does.
    pub(super) fn read(&self, path: &str, start: u64, len: usize) -> Result<Vec<u8>, i32> {
        self.reach(path);
        self.read_here(path, start, len)
    }

    /// The same, of a file that is looked for by its name.
    pub(super) fn read_found(&self, path: &str, start: u64, len: usize) -> Result<Vec<u8>, i32> {
        let names = storeshim_protocol::request::Names::new(path.as_bytes()).unwrap();
        match self.ask(Ask::Find { ino: self.ino(""), names }).errno {
            0 => self.read_here(path, start, len),
            errno => Err(errno),
        }
    }

    fn read_here(&self, path: &str, start: u64, len: usize) -> Result<Vec<u8>, i32> {
        let file = fs::File::open(self.tree().join(path)).unwrap();
        let ino = file.metadata().unwrap().ino();
        loop {
            let end = start + len as u64;
            let stamp = match self.table.check(ino, start, end) {
                Some(stamp) => stamp,
                None => {
                    let stamp = self.table.stamp(ino);
                    match self.ask(Ask::Hydrate { ino, start, end, pin: Pin::No }).errno {
                        0 => stamp,
                        errno => return Err(errno),
                    }
                }
            };
            let mut bytes = vec![0; len];
            let mut done = 0;
            loop {
                match file.read_at(&mut bytes[done..], start + done as u64).unwrap() {
                    0 => break,
                    n => done += n,
                }
            }
            bytes.truncate(done);
            if self.table.still(stamp) {
                return Ok(bytes);
            }
        }
    }

    pub(super) fn all_of(&self, path: &str) -> Vec<u8> {
        self.reach(path);
        let size = fs::metadata(self.tree().join(path)).unwrap().size();
        self.read(path, 0, size as usize).unwrap()
    }

    fn blocks(&self, path: &str) -> u64 {
        fs::metadata(self.tree().join(path)).unwrap().blocks()
    }

    pub(super) fn counter(&self, name: &str) -> u64 {
        self.volume().status().counters.get(name).copied().unwrap_or(0)
    }

    /// Commits of changes of the tree: an agent also makes one for packs that an earlier one has left to be deleted.
    pub(super) fn changes(&self) -> u64 {
        self.counter("commits").saturating_sub(self.counter("sweeps"))
    }

    pub(super) fn all_names(&self) {
        let until = Instant::now() + Duration::from_secs(30);
        while !self.volume().status().residency.names_complete {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A volume with something in it.
fn filled(url: &str) -> Node {
    let node = Node::new(url);
    let tree = node.tree();
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/big"), noise(1, 12 << 20)).unwrap();
    for n in 0..20 {
        fs::write(tree.join(format!("a/small{n}")), noise(100 + n, 50_000)).unwrap();
    }
    fs::hard_link(tree.join("a/small0"), tree.join("a/b/link")).unwrap();
    std::os::unix::fs::symlink("a/small1", tree.join("sym")).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(32 << 20).unwrap();
    sparse.write_at(&noise(2, 300_000), 20 << 20).unwrap();
    fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o500)).unwrap();
    node.volume().flush().unwrap();
    node
}

#[test]
fn names_come_first_and_data_when_it_is_read() {
    let node = filled("memory:lazy");
    let mut here = snapshot(&node.tree());
    let there = Node::lazy("memory:lazy");
    there.reach("a/b/big");
    let meta = fs::metadata(there.tree().join("a/b/big")).unwrap();
    assert_eq!((meta.size(), meta.blocks()), (12 << 20, 0));
    assert_eq!(there.read("a/b/big", 5 << 20, 1000).unwrap(), noise(1, 12 << 20)[5 << 20..][..1000]);
    let got = there.blocks("a/b/big") * 512;
    assert!((PIECE..=4 * PIECE).contains(&got), "{got}");
    there.all_names();
    // What would be data of the volume is a hole of the tree; the volume's truth is told.
    let sparse = there.ino("sparse");
    assert_eq!(
        there.ask(Ask::Seek { ino: sparse, start: 0, hole: false }),
        Full { errno: 0, value: 20 << 20 }
    );
    let end = there.ask(Ask::Seek { ino: sparse, start: 20 << 20, hole: true }).value;
    assert!((300_000..310_000).contains(&(end - (20 << 20))), "{end}");
    assert_eq!(there.ask(Ask::Seek { ino: sparse, start: end, hole: false }).errno, libc::ENXIO);
    assert!(there.ask(Ask::Blocks { ino: sparse }).value * 512 >= 300_000);
    for path in here.keys() {
        if fs::symlink_metadata(there.tree().join(path)).unwrap().is_file() {
            there.all_of(path.to_str().unwrap());
        }
    }
    let mut restored = snapshot(&there.tree());
    let (a, b) = (here.remove(Path::new("sym")).unwrap(), restored.remove(Path::new("sym")).unwrap());
    assert_eq!((a.0, a.5), (b.0, b.5));
    assert!(here == restored, "names, attributes, data");
    assert!(there.blocks("sparse") * 512 < 1 << 20);
    there.volume().flush().unwrap();
    assert_eq!((there.changes(), missed(&there)), (0, 0), "nothing has changed");
    let until = Instant::now() + Duration::from_secs(10);
    while there.table.whole(there.ino("a/b/big")).is_none() {
        assert!(Instant::now() < until);
    }
}

#[test]
fn what_comes_is_no_change_however_often_one_looks() {
    let node = filled("memory:no-change");
    drop(node);
    let mut there = Node::lazy("memory:no-change");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for n in 0..20 {
                assert_eq!(there.all_of(&format!("a/small{n}")), noise(100 + n, 50_000));
            }
            for at in (0..12 << 20).step_by(1 << 20) {
                assert_eq!(
                    there.read("a/b/big", at, 1 << 20).unwrap(),
                    noise(1, 12 << 20)[at as usize..][..1 << 20]
                );
            }
        });
        while !reader.is_finished() {
            there.volume().flush().unwrap();
        }
    });
    there.volume().flush().unwrap();
    assert_eq!((there.changes(), missed(&there)), (0, 0));
    // The next agent believes none of it blindly, and finds nothing either.
    there.volume().shutdown();
    there.start().unwrap();
    there.volume().flush().unwrap();
    assert_eq!((there.changes(), missed(&there)), (0, 0));
    assert_eq!(there.all_of("a/b/big"), noise(1, 12 << 20));
}

#[test]
fn changes_of_files_that_are_partly_here_are_committed_and_nothing_else() {
    let node = filled("memory:partly");
    drop(node);
    let mut there = Node::lazy("memory:partly");
    let mut expected = noise(1, 12 << 20);
    there.read("a/b/big", 0, 10).unwrap();
    let path = there.tree().join("a/b/big");
    let ino = there.ino("a/b/big");
    // In the middle, told; at the end, told; attributes alone; all that without reading the rest.
    for (at, bytes) in [(6 << 20, vec![1; 10]), (12 << 20, vec![2; 1000])] {
        assert_eq!(
            there.ask(Ask::Hydrate { ino, start: at, end: at + bytes.len() as u64, pin: Pin::No }).errno,
            0
        );
        there.tell(Intent::Written { ino, offset: at, length: bytes.len() as u64 });
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&bytes, at).unwrap();
        expected.resize(expected.len().max(at as usize + bytes.len()), 0);
        expected[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        assert_eq!(there.barrier(), 0);
    }
    there.tell_name("a/b/big");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(there.barrier(), 0);
    assert!(there.blocks("a/b/big") * 512 < 8 << 20, "most of it is still absent");
    // Opened by who may have written anything: what is here is compared.
    there.tell(Intent::Opened { ino, flags: OpenFlags::UNSEEN });
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"untold", 100).unwrap();
    expected[100..106].copy_from_slice(b"untold");
    assert_eq!(there.barrier(), 0);
    // Cut, and then longer again: zeros are what is there.
    assert_eq!(there.ask(Ask::Resize { ino, size: (3 << 20) + 5 }).errno, 0);
    there.tell(Intent::Written { ino, offset: (3 << 20) + 5, length: u64::MAX });
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((3 << 20) + 5).unwrap();
    file.set_len(5 << 20).unwrap();
    expected.truncate((3 << 20) + 5);
    expected.resize(5 << 20, 0);
    assert_eq!(there.barrier(), 0);
    assert!(there.all_of("a/b/big") == expected);
    there.volume().flush().unwrap();
    let last = Node::new("memory:partly");
    assert!(fs::read(last.tree().join("a/b/big")).unwrap() == expected);
    assert_eq!(fs::metadata(last.tree().join("a/b/big")).unwrap().mode() & 0o777, 0o640);
    there.volume = None;
}

#[test]
fn what_is_renamed_or_removed_before_it_is_read_is_found_or_gone() {
    let node = filled("memory:renamed");
    drop(node);
    let there = Node::lazy("memory:renamed");
    there.reach("a/b/big");
    for (from, to) in [("a/b/big", "a/moved"), ("a", "z")] {
        there.tell_name(from);
        fs::rename(there.tree().join(from), there.tree().join(to)).unwrap();
        there.tell_name(to);
    }
    // No cut has seen it yet: one is made.
    assert_eq!(there.read("z/moved", 1 << 20, 100).unwrap(), noise(1, 12 << 20)[1 << 20..][..100]);
    // Its last name here goes; the other one, in a directory that nobody touched, does not.
    there.reach("z/small1");
    let ino = there.ino("z/small1");
    assert_eq!(there.ask(Ask::Unlink { ino }).errno, 0);
    there.tell_name("z/small1");
    fs::remove_file(there.tree().join("z/small1")).unwrap();
    // A new file may well get the number of the old one: it is whole.
    there.tell_name("new");
    fs::write(there.tree().join("new"), "new").unwrap();
    assert_eq!(there.all_of("new"), b"new");
    assert_eq!(there.barrier(), 0);
    there.volume().flush().unwrap();
    let last = Node::new("memory:renamed");
    assert!(!last.tree().join("z/small1").exists() && !last.tree().join("a").exists());
    assert_eq!(fs::read(last.tree().join("z/moved")).unwrap(), noise(1, 12 << 20));
    assert_eq!(fs::read(last.tree().join("z/b/link")).unwrap(), noise(100, 50_000));
    assert_eq!(fs::read(last.tree().join("new")).unwrap(), b"new");
}

#[test]
fn what_was_written_by_a_name_that_goes_is_committed_for_one_that_is_not_here_yet() {
    let node = Node::new("memory:other-name");
    let deep = (0..60).fold(String::from("x"), |path, n| format!("{path}/{n}"));
    fs::create_dir_all(node.tree().join(&deep)).unwrap();
    for name in ["closed", "open"] {
        fs::write(node.tree().join(name), noise(7, 300_000)).unwrap();
        fs::hard_link(node.tree().join(name), node.tree().join(&deep).join(name)).unwrap();
    }
    node.volume().flush().unwrap();
    drop(node);
    let there = Node::lazy("memory:other-name");
    there.reach("open");
    let unlink = |name: &str| {
        assert_eq!(there.ask(Ask::Unlink { ino: there.ino(name) }).errno, 0);
        there.tell_name(name);
        fs::remove_file(there.tree().join(name)).unwrap();
    };
    let write = |name: &str, file: &fs::File| {
        let ino = file.metadata().unwrap().ino();
        assert_eq!(there.ask(Ask::Hydrate { ino, start: 0, end: 10, pin: Pin::No }).errno, 0, "{name}");
        there.tell(Intent::Written { ino, offset: 0, length: 10 });
        file.write_all_at(b"0123456789", 0).unwrap();
    };
    let open = |name: &str| fs::File::options().write(true).open(there.tree().join(name)).unwrap();
    write("closed", &open("closed"));
    let file = open("open");
    unlink("closed");
    unlink("open");
    there.volume().flush().unwrap();
    write("open", &file);
    let early = !there.tree().join(&deep).join("open").exists();
    there.volume().flush().unwrap();
    println!("looked at before the other name was here: {early}");
    let last = Node::new("memory:other-name");
    let expected = [b"0123456789", &noise(7, 300_000)[10..]].concat();
    for name in ["closed", "open"] {
        assert!(fs::read(last.tree().join(&deep).join(name)).unwrap() == expected, "{name}");
        assert!(!last.tree().join(name).exists());
        assert!(there.all_of(&format!("{deep}/{name}")) == expected, "{name}");
    }
}

#[test]
fn who_has_a_file_open_when_its_name_goes_reads_on() {
    let node = filled("memory:unlinked");
    drop(node);
    let there = Node::lazy("memory:unlinked");
    there.reach("a/b/big");
    let file = fs::File::open(there.tree().join("a/b/big")).unwrap();
    let ino = there.ino("a/b/big");
    assert_eq!(there.ask(Ask::Unlink { ino }).errno, 0);
    there.tell_name("a/b/big");
    fs::remove_file(there.tree().join("a/b/big")).unwrap();
    let mut read = vec![0; 12 << 20];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == noise(1, 12 << 20));
    assert_eq!(there.barrier(), 0);
    assert_eq!(there.ask(Ask::Hydrate { ino, start: 0, end: u64::MAX, pin: Pin::No }).errno, 0);
}

#[test]
fn what_cannot_be_fetched_or_is_damaged_is_an_error_and_is_tried_again() {
    let node = filled("memory:faults");
    drop(node);
    let there = Node::lazy("memory:faults");
    there.all_names();
    there.faults.refuse.store(true, Ordering::Relaxed);
    let began = Instant::now();
    assert_eq!(there.read("a/b/big", 0, 10), Err(libc::EIO));
    assert!(began.elapsed() > Duration::from_millis(300), "not before patience is at its end");
    there.faults.refuse.store(false, Ordering::Relaxed);
    there.faults.damage.store(true, Ordering::Relaxed);
    assert_eq!(there.read("a/small3", 0, 10), Err(libc::EIO));
    assert_eq!(there.blocks("a/small3"), 0, "what is damaged is not written");
    there.faults.damage.store(false, Ordering::Relaxed);
    assert_eq!(there.all_of("a/b/big"), noise(1, 12 << 20));
    // What was read lately may be kept, damage and all: the bytes are fetched again where it is not.
    there.volume().flush().unwrap();
    assert_eq!(there.changes(), 0);
}

#[test]
fn many_readers_of_one_piece_fetch_it_once() {
    let node = filled("memory:once");
    drop(node);
    let there = Node::lazy("memory:once");
    there.all_names();
    there.faults.delay_ms.store(100, Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let at = 7 << 20;
                assert_eq!(there.read("a/b/big", at, 100).unwrap(), noise(1, 12 << 20)[at as usize..][..100]);
            });
        }
    });
    assert_eq!(there.faults.gets.load(Ordering::Relaxed), 1);
}

#[test]
fn who_reads_on_asks_seldom_and_who_jumps_gets_what_he_asks_for() {
    let node = filled("memory:ahead");
    drop(node);
    let there = Node::lazy("memory:ahead");
    there.all_names();
    let expected = noise(1, 12 << 20);
    for piece in [70, 20, 50] {
        there.read("a/b/big", piece * PIECE, 10).unwrap();
    }
    let blocks = there.blocks("a/b/big") * 512;
    assert!(blocks <= 3 * PIECE + 4096, "{blocks}");
    let before = there.volume().status().residency.asked;
    for at in (0..12 << 20).step_by(PIECE as usize) {
        assert!(
            there.read("a/b/big", at, PIECE as usize).unwrap() == expected[at as usize..][..PIECE as usize]
        );
    }
    let asked = there.volume().status().residency.asked - before;
    assert!(asked < 40, "{asked} of 96 pieces were asked for");
}

#[test]
fn a_directory_that_was_taken_for_empty_is_made_again() {
    let node = filled("memory:taken-for-empty");
    drop(node);
    // Before anything brings its names: whoever removes it takes it for empty.
    let there = Node::lazy("memory:taken-for-empty");
    there.reach("a/x");
    if fs::remove_dir(there.tree().join("a/b")).is_ok() {
        there.volume().flush().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while !there.tree().join("a/b").exists() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert_eq!(there.read("a/b/big", 0, 100).unwrap(), noise(1, 12 << 20)[..100]);
    let last = Node::new("memory:taken-for-empty");
    assert!(last.tree().join("a/b/link").exists());
}

#[derive(Clone, Debug)]
enum Step {
    Read(u8, u32, u32),
    Write(u8, u32, u32, u8),
    Truncate(u8, u32),
    Rename(u8, u8),
    Unlink(u8),
    Cut,
    Evict,
    Reopen,
    Lose,
}

const SIZE: u32 = 700_000;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let file = 0..4u8;
    let step = prop_oneof![
        6 => (file.clone(), 0..SIZE, 1..300_000u32).prop_map(|(f, at, len)| Step::Read(f, at, len)),
        4 => (file.clone(), 0..SIZE, 1..200_000u32, any::<u8>()).prop_map(|(f, at, len, b)| Step::Write(f, at, len, b)),
        2 => (file.clone(), 0..SIZE).prop_map(|(f, size)| Step::Truncate(f, size)),
        1 => (file.clone(), file.clone()).prop_map(|(a, b)| Step::Rename(a, b)),
        1 => file.prop_map(Step::Unlink),
        2 => Just(Step::Cut),
        3 => Just(Step::Evict),
        1 => Just(Step::Reopen),
        2 => Just(Step::Lose),
    ];
    prop::collection::vec(step, 1..25)
}

/// Files as they should be.
type Model = BTreeMap<u8, Vec<u8>>;

fn take(node: &mut Node, model: &mut Model, step: Step) {
    let name = |f: u8| format!("d/f{f}");
    let path = |node: &Node, f: u8| node.tree().join(name(f));
    node.reach("d/any");
    match step {
        Step::Read(f, at, len) => {
            let Some(bytes) = model.get(&f) else { return assert!(!path(node, f).exists()) };
            let (at, end) = ((at as usize).min(bytes.len()), (at as usize + len as usize).min(bytes.len()));
            assert!(node.read(&name(f), at as u64, end - at).unwrap() == bytes[at..end], "f{f} {at}..{end}");
        }
        Step::Write(f, at, len, byte) => {
            let (start, end) = (at as usize, at as usize + len as usize);
            let bytes = model.entry(f).or_default();
            bytes.resize(bytes.len().max(end), 0);
            bytes[start..end].fill(byte);
            let is_new = !path(node, f).exists();
            node.tell_name(&name(f));
            let file =
                fs::OpenOptions::new().write(true).create(true).truncate(false).open(path(node, f)).unwrap();
            let ino = node.ino(&name(f));
            if !is_new && node.table.check(ino, at.into(), end as u64).is_none() {
                assert_eq!(
                    node.ask(Ask::Hydrate { ino, start: at.into(), end: end as u64, pin: Pin::No }).errno,
                    0
                );
            }
            node.tell(Intent::Written { ino, offset: at.into(), length: len.into() });
            file.write_all_at(&vec![byte; len as usize], at.into()).unwrap();
        }
        Step::Truncate(f, size) => {
            let Some(bytes) = model.get_mut(&f) else { return };
            let shrinks = (size as usize) < bytes.len();
            bytes.resize(size as usize, 0);
            let ino = node.ino(&name(f));
            if shrinks && node.table.whole(ino).is_none() {
                assert_eq!(node.ask(Ask::Resize { ino, size: size.into() }).errno, 0);
            }
            node.tell(Intent::Written { ino, offset: size.into(), length: u64::MAX });
            fs::OpenOptions::new().write(true).open(path(node, f)).unwrap().set_len(size.into()).unwrap();
        }
        Step::Rename(a, b) => {
            let Some(bytes) = model.get(&a).cloned().filter(|_| a != b) else { return };
            model.remove(&a);
            model.insert(b, bytes);
            node.tell_name(&name(a));
            node.tell_name(&name(b));
            if path(node, b).exists() {
                assert_eq!(node.ask(Ask::Unlink { ino: node.ino(&name(b)) }).errno, 0);
            }
            fs::rename(path(node, a), path(node, b)).unwrap();
        }
        Step::Unlink(f) => {
            if model.remove(&f).is_some() {
                node.tell_name(&name(f));
                assert_eq!(node.ask(Ask::Unlink { ino: node.ino(&name(f)) }).errno, 0);
                fs::remove_file(path(node, f)).unwrap();
            }
        }
        Step::Cut => assert_eq!(node.barrier(), 0),
        Step::Evict => {
            assert_eq!(node.barrier(), 0);
            node.volume().evict(Path::new(""), &Idle).unwrap();
        }
        Step::Reopen => {
            node.volume().shutdown();
            node.start().unwrap();
        }
        Step::Lose => {
            node.volume().flush().unwrap();
            node.volume().shutdown();
            *node = Node::lazy(&node.url);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]

    /// Whatever happens to files that come and go piece by piece, a client that asks before it reads sees what was written.
    #[test]
    fn readers_see_what_was_written(steps in steps(), seed in any::<u64>()) {
        let mut node = Node::lazy(&format!("memory:lazy-{seed}"));
        let mut model = Model::new();
        fs::create_dir(node.tree().join("d")).unwrap();
        for f in 0..3u8 {
            let bytes = noise(seed ^ u64::from(f), SIZE as usize - f as usize * 200_000);
            fs::write(node.tree().join(format!("d/f{f}")), &bytes).unwrap();
            model.insert(f, bytes);
        }
        take(&mut node, &mut model, Step::Lose);
        for step in steps {
            take(&mut node, &mut model, step);
        }
        take(&mut node, &mut model, Step::Lose);
        for f in 0..4 {
            take(&mut node, &mut model, Step::Read(f, 0, u32::MAX));
        }
        node.volume().flush().unwrap();
        prop_assert_eq!(node.changes(), 0);
    }
}
