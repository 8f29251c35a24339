//! Calls on files that are here in part, and an agent that brings their pieces, or takes them away.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use storeshim_protocol::control::{FLAG_COMPLETE, FLAG_NAMES};
use storeshim_protocol::names;
use storeshim_protocol::request::{Answer, Ask, Pin};
use storeshim_protocol::residency::{PIECE, Residency, places_of};

use crate::attach;
use crate::attached_tests::{base, run};
use crate::hooks::tests as hooks;
use crate::loader::get_errno;
use crate::place::CWD;
use crate::reading::{self, Read};
use crate::sys::{self, Errno, k};
use crate::write::{Position, piece};
use crate::{fds, residency};

/// A file of the volume.
struct Whole {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Pieces that are in the tree.
    here: Vec<bool>,
    /// It has a slot in the table.
    slot: bool,
    pinned: bool,
}

/// The agent's side of mount 1.
struct Agent {
    table: &'static Residency,
    files: Mutex<HashMap<u64, Whole>>,
    asked: Mutex<Vec<Ask>>,
    /// What is answered to whatever is asked, instead of doing it.
    refuses: AtomicU64,
    words: AtomicU64,
}

fn agent() -> &'static Agent {
    static AGENT: OnceLock<Agent> = OnceLock::new();
    AGENT.get_or_init(|| {
        let path = (run(), base().join(format!("{}1", names::RESIDENCY))).1;
        let file = std::fs::File::create_new(&path).unwrap();
        file.set_len(size_of::<Residency>() as u64).unwrap();
        let name = CString::new(path.to_str().unwrap()).unwrap();
        let fd = sys::openat(CWD, name.as_ptr(), k::O_RDWR as i32, 0).unwrap() as i32;
        let at = sys::map(fd, size_of::<Residency>(), true).unwrap();
        sys::close(fd);
        run().control.mounts[1].flags.fetch_or(FLAG_NAMES, Ordering::SeqCst);
        std::thread::spawn(|| {
            loop {
                agent().serve();
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
        });
        Agent {
            // SAFETY: a mapping of the whole table that stays for the test's life.
            table: unsafe { &*at.cast::<Residency>() },
            files: Mutex::default(),
            asked: Mutex::default(),
            refuses: AtomicU64::new(0),
            words: AtomicU64::new(0),
        }
    })
}

impl Agent {
    fn serve(&self) {
        let Some(ring) = attach::attached() else { return };
        for slot in ring.used() {
            let Some((ticket, Ok(request))) = slot.request().pending() else { continue };
            assert!(!slot.gate.is_inside(), "nobody waits inside the gate: {:?}", request.ask);
            self.asked.lock().unwrap().push(request.ask);
            let mut answer = Answer { errno: self.refuses.load(Ordering::SeqCst) as i32, value: 0 };
            if answer.errno == 0 {
                match request.ask {
                    Ask::Hydrate { ino, start, end, pin } => self.hydrate(ino, start, end, pin),
                    Ask::Resize { ino, size } => self.resize(ino, size),
                    Ask::Seek { start, .. } => answer.value = start + 5,
                    Ask::Grow { bytes, .. } if bytes > 100 => answer.errno = 122,
                    _ => {}
                }
            }
            if slot.request().reply(ticket, answer) {
                sys::futex_wake(slot.request().word());
            }
        }
    }

    fn hydrate(&self, ino: u64, start: u64, end: u64, pin: Pin) {
        let mut files = self.files.lock().unwrap();
        let Some(file) = files.get_mut(&ino) else { return };
        file.pinned |= pin != Pin::No;
        let target = std::fs::File::options().write(true).open(&file.path).unwrap();
        for piece in 0..file.here.len() {
            let at = piece as u64 * PIECE;
            if file.here[piece] || at >= end || at + PIECE <= start {
                continue;
            }
            let last = (at + PIECE).min(file.bytes.len() as u64);
            target.write_all_at(&file.bytes[at as usize..last as usize], at).unwrap();
            file.here[piece] = true;
            if file.slot {
                assert!(self.table.set_piece(ino, piece as u64, true));
            }
        }
    }

    fn resize(&self, ino: u64, size: u64) {
        self.hydrate(ino, size.saturating_sub(1), size, Pin::No);
        let mut files = self.files.lock().unwrap();
        let file = files.get_mut(&ino).unwrap();
        let target = std::fs::File::options().write(true).open(&file.path).unwrap();
        target.set_len(size).unwrap();
        let first = size.div_ceil(PIECE) as usize;
        file.here.iter_mut().skip(first).for_each(|here| *here = true);
    }

    /// Takes a piece away, as in a freeze: no call is inside the gate.
    fn evict(&self, ino: u64, piece: u64) {
        let mut files = self.files.lock().unwrap();
        let file = files.get_mut(&ino).unwrap();
        if file.pinned || !std::mem::replace(&mut file.here[piece as usize], false) {
            return;
        }
        self.table.set_absent(ino);
        if file.slot {
            assert!(self.table.set_piece(ino, piece, false));
        }
        self.table.evicting(ino);
        let target = std::fs::File::options().write(true).open(&file.path).unwrap();
        let mode = (k::FALLOC_FL_PUNCH_HOLE | k::FALLOC_FL_KEEP_SIZE) as i32;
        sys::fallocate(target.as_raw_fd(), mode, (piece * PIECE) as i64, PIECE as i64).unwrap();
    }

    fn asked(&self) -> Vec<Ask> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

/// Some bytes, none of them zero.
fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at / 97 + at) % 255) as u8 + 1).collect()
}

/// A file of `len` bytes of which nothing is here; its path for the app, and its inode.
fn cold_file(name: &str, len: usize, slot: bool) -> (CString, u64) {
    let agent = agent();
    let path = PathBuf::from(&run().lazy).join(name);
    let file = std::fs::File::create_new(&path).unwrap();
    file.set_len(len as u64).unwrap();
    let ino = file.metadata().unwrap().ino();
    let pieces = (len as u64).div_ceil(PIECE);
    agent.table.set_absent(ino);
    if slot {
        let word = agent.words.fetch_add(pieces.div_ceil(64), Ordering::SeqCst) as u32;
        assert!(agent.table.give(places_of(ino).next().unwrap(), ino, pieces, word));
    }
    let here = vec![false; pieces as usize];
    let whole = Whole { path, bytes: content(len), here, slot, pinned: false };
    agent.files.lock().unwrap().insert(ino, whole);
    (CString::new(format!("/lazy/{name}")).unwrap(), ino)
}

fn cold(name: &str, len: usize) -> (CString, u64) {
    cold_file(name, len, true)
}

fn open(path: &CString, flags: u32) -> i32 {
    // SAFETY: a C string.
    let fd = unsafe { hooks::my_open(path.as_ptr(), flags as i32, 0o600) };
    assert!(fd >= 0, "{path:?}: {:?}", get_errno());
    fd
}

fn pread(fd: i32, n: usize, offset: u64) -> Result<Vec<u8>, Errno> {
    let mut out = vec![0u8; n];
    // SAFETY: room for the answer.
    let got = unsafe { hooks::my_pread(fd, out.as_mut_ptr().cast(), n, offset as i64) };
    out.truncate(usize::try_from(got).map_err(|_| get_errno())?);
    Ok(out)
}

fn read(fd: i32, n: usize) -> Vec<u8> {
    let mut out = vec![0u8; n];
    // SAFETY: room for the answer.
    let got = unsafe { hooks::my_read(fd, out.as_mut_ptr().cast(), n) };
    out.truncate(usize::try_from(got).unwrap_or_else(|_| panic!("{:?}", get_errno())));
    out
}

/// These tests change flags of the mount and its table: each has a process of its own.
fn alone() -> bool {
    std::env::var_os("NEXTEST").is_some()
}

#[test]
fn only_what_is_read_is_brought_and_once() {
    if !alone() {
        return;
    }
    let (path, ino) = cold("read", 1_000_000);
    let bytes = content(1_000_000);
    let fd = open(&path, k::O_RDONLY);
    assert_eq!(pread(fd, 100, 5).unwrap(), bytes[5..105]);
    assert_eq!(pread(fd, 100, PIECE - 50).unwrap(), bytes[PIECE as usize - 50..PIECE as usize + 50]);
    assert_eq!(pread(fd, 100, 5).unwrap(), bytes[5..105]);
    let asked = agent().asked();
    let ask = |start, end| Ask::Hydrate { ino, start, end, pin: Pin::No };
    assert_eq!(asked, [ask(5, 105), ask(PIECE - 50, PIECE + 50)]);
    // At the position, over several pieces, to the end and beyond.
    assert_eq!(read(fd, 300_000), bytes[..300_000]);
    assert_eq!(read(fd, 300_000), bytes[300_000..600_000]);
    assert_eq!(read(fd, 900_000), bytes[600_000..]);
    assert_eq!(read(fd, 10), b"");
    assert_eq!(pread(fd, 10, 999_995).unwrap(), bytes[999_995..]);
    assert_eq!(pread(fd, 10, 5 << 20).unwrap(), b"");
}

#[test]
fn vectors_of_every_kind_are_filled() {
    if !alone() {
        return;
    }
    let len = 20 << 20;
    let (path, _) = cold("vectors", len);
    let bytes = content(len);
    let fd = open(&path, k::O_RDONLY);
    let (mut a, mut b, mut c) = (vec![0u8; 7], vec![0u8; 12 << 20], vec![0u8; 0]);
    let vector = |v: &mut Vec<u8>| k::iovec { iov_base: v.as_mut_ptr().cast(), iov_len: v.len() as u64 };
    let all = [vector(&mut a), vector(&mut c), vector(&mut b)];
    // SAFETY: room for the answers.
    unsafe {
        assert_eq!(hooks::my_readv(fd, all.as_ptr(), 3), 7 + (12 << 20));
        assert!(a == bytes[..7] && b == bytes[7..7 + (12 << 20)]);
        assert_eq!(hooks::my_preadv(fd, all.as_ptr(), 1, 1_000_000), 7);
        assert_eq!(a, bytes[1_000_000..1_000_007]);
        let (path, ino) = cold("nowait", 1000);
        let fd = open(&path, k::O_RDONLY);
        agent().asked();
        assert_eq!(hooks::my_preadv2(fd, all.as_ptr(), 1, 10, k::RWF_NOWAIT as i32), -1);
        assert_eq!(get_errno(), Errno::of(sys::errno::EAGAIN));
        assert_eq!(agent().asked(), [Ask::Hint { ino, start: 10, end: 17 }]);
        assert_eq!(hooks::my_preadv2(fd, all.as_ptr(), 1, 10, 0), 7);
        assert_eq!(a, bytes[10..17]);
        assert_eq!(hooks::my_preadv2(fd, all.as_ptr(), 1, -1, 0), 7, "at the position");
        assert_eq!(a, bytes[..7]);
        assert_eq!(hooks::my_preadv(fd, all.as_ptr(), 1, -1), -1);
        assert_eq!(hooks::my_readv(fd, all.as_ptr(), -1), -1);
    }
}

/// Ends what waits for it, also after a failure.
struct Stops<'s>(&'s AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Readers of all kinds, while pieces are taken away all the time.
fn campaign(slot: bool) {
    let len = 24 * PIECE as usize + 777;
    let (path, ino) = cold_file(if slot { "campaign" } else { "slotless" }, len, slot);
    let bytes = content(len);
    let (stop, lost) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| {
            let mut random = 12345u64;
            while !stop.load(Ordering::Relaxed) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                agent().evict(ino, (random >> 33) % 25);
                lost.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_micros(20));
            }
        });
        let readers: Vec<_> = (0..3u64)
            .map(|reader| {
                let (path, bytes) = (&path, &bytes);
                scope.spawn(move || {
                    let fd = open(path, k::O_RDONLY);
                    let mut random = reader + 1;
                    let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
                    let mut rounds = 0;
                    while std::time::Instant::now() < until {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let at = (random >> 20) as usize % len;
                        let n = 1 + (random >> 7) as usize % 400_000;
                        let right = &bytes[at..(at + n).min(len)];
                        if reader == 0 {
                            assert!(sys::lseek(fd, at as i64, k::SEEK_SET).is_ok());
                            assert!(read(fd, n) == right, "{at} {n} at the position");
                        } else {
                            assert!(pread(fd, n, at as u64).unwrap() == right, "{at} {n}");
                        }
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        for reader in readers {
            assert!(reader.join().unwrap() > 5);
        }
    });
    assert!(lost.into_inner() > 100);
}

#[test]
fn no_zeros_are_read_while_pieces_go() {
    if alone() {
        campaign(true);
    }
}

#[test]
fn no_zeros_are_read_without_a_slot() {
    if alone() {
        campaign(false);
    }
}

#[test]
fn a_position_that_threads_share_gives_each_record_to_one() {
    if !alone() {
        return;
    }
    const RECORD: usize = 5000;
    let records = 400;
    let (path, ino) = cold("records", RECORD * records);
    let bytes = content(RECORD * records);
    let fd = open(&path, k::O_RDONLY);
    let stop = AtomicBool::new(false);
    let mut all: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                (0..15).for_each(|piece| agent().evict(ino, piece));
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        let record = read(fd, RECORD);
                        if record.is_empty() {
                            return mine;
                        }
                        mine.push(record);
                    }
                })
            })
            .collect();
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
    });
    let mut right: Vec<Vec<u8>> = bytes.chunks(RECORD).map(<[u8]>::to_vec).collect();
    all.sort();
    right.sort();
    assert!(all == right);
}

#[test]
fn a_position_that_is_moved_in_between_is_found_again() {
    if !alone() {
        return;
    }
    let len = 30 * PIECE as usize;
    let (path, ino) = cold("moved", len);
    let bytes = content(len);
    let fd = open(&path, k::O_RDWR);
    assert_eq!(read(fd, 100), bytes[..100]);
    // Past all hooks, to where nothing is.
    sys::lseek(fd, 9 * PIECE as i64, k::SEEK_SET).unwrap();
    assert_eq!(read(fd, 100), bytes[9 * PIECE as usize..][..100]);
    assert_eq!(read(fd, 100), bytes[9 * PIECE as usize + 100..][..100]);
    // SAFETY: valid arguments.
    unsafe {
        assert_eq!(hooks::my_lseek(fd, 20 * PIECE as i64, k::SEEK_SET as i32), 20 * PIECE as i64);
        assert_eq!(read(fd, 50), bytes[20 * PIECE as usize..][..50]);
        assert_eq!(hooks::my_write(fd, b"12345".as_ptr().cast(), 5), 5);
    }
    assert_eq!(read(fd, 50), bytes[20 * PIECE as usize + 55..][..50]);
    let here = agent().files.lock().unwrap()[&ino].here.iter().filter(|here| **here).count();
    assert_eq!(here, 3);
}

#[test]
fn what_cannot_be_brought_is_an_error_until_it_can() {
    if !alone() {
        return;
    }
    let (path, _) = cold("error", 1000);
    let fd = open(&path, k::O_RDWR);
    agent().refuses.store(5, Ordering::SeqCst);
    assert_eq!(pread(fd, 10, 0), Err(Errno(5)));
    // SAFETY: valid buffers.
    unsafe {
        assert_eq!(hooks::my_pwrite(fd, b"x".as_ptr().cast(), 1, 3), -1);
        assert_eq!(get_errno(), Errno(5));
        assert!(hooks::my_fopen(path.as_ptr(), c"r".as_ptr()).is_null());
        assert_eq!(get_errno(), Errno(5));
        assert_eq!(hooks::my_mmap(std::ptr::null_mut(), 100, 1, 2, fd, 0), crate::hook::MAP_FAILED,);
    }
    agent().refuses.store(0, Ordering::SeqCst);
    assert_eq!(pread(fd, 10, 0).unwrap(), content(10));
}

#[test]
fn a_write_brings_what_it_touches_before() {
    if !alone() {
        return;
    }
    let len = 10 * PIECE as usize + 100;
    let (path, ino) = cold("written", len);
    let mut right = content(len);
    let fd = open(&path, k::O_RDWR);
    // SAFETY: valid buffers.
    unsafe {
        assert_eq!(hooks::my_pwrite(fd, b"abc".as_ptr().cast(), 3, PIECE as i64 - 1), 3);
        assert_eq!(sys::lseek(fd, 5 * PIECE as i64 + 7, k::SEEK_SET).unwrap(), 5 * PIECE as usize + 7);
        assert_eq!(hooks::my_write(fd, b"defg".as_ptr().cast(), 4), 4);
        let append = open(&path, k::O_WRONLY | k::O_APPEND);
        assert_eq!(hooks::my_write(append, b"end".as_ptr().cast(), 3), 3);
        let hole = (k::FALLOC_FL_PUNCH_HOLE | k::FALLOC_FL_KEEP_SIZE) as i32;
        assert_eq!(hooks::my_fallocate(fd, hole, 3 * PIECE as i64 + 10, 10), 0);
    }
    right[PIECE as usize - 1..][..3].copy_from_slice(b"abc");
    right[5 * PIECE as usize + 7..][..4].copy_from_slice(b"defg");
    right[3 * PIECE as usize + 10..][..10].fill(0);
    right.extend_from_slice(b"end");
    let here: Vec<usize> = agent().files.lock().unwrap()[&ino]
        .here
        .iter()
        .enumerate()
        .filter_map(|(piece, here)| here.then_some(piece))
        .collect();
    assert_eq!(here, [0, 1, 3, 5, 10]);
    assert!(pread(fd, len + 10, 0).unwrap() == right);
}

#[test]
fn writers_and_an_evictor_leave_nothing_but_the_model() {
    if !alone() {
        return;
    }
    let len = 6 * PIECE as usize;
    let (path, ino) = cold("model", len);
    let mut right = content(len);
    let fd = open(&path, k::O_RDWR);
    let mut random = 99u64;
    for _ in 0..300 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (random >> 20) as usize % (len - 10);
        let piece = (random >> 50) % 6;
        // What is dirty stays: it is in the volume before it goes.
        agent().files.lock().unwrap().get_mut(&ino).unwrap().bytes.copy_from_slice(&right);
        agent().evict(ino, piece);
        // SAFETY: valid buffers.
        assert_eq!(unsafe { hooks::my_pwrite(fd, b"0123456789".as_ptr().cast(), 10, at as i64) }, 10);
        right[at..at + 10].copy_from_slice(b"0123456789");
        agent().files.lock().unwrap().get_mut(&ino).unwrap().bytes.copy_from_slice(&right);
        let at = (random >> 30) as usize % len;
        assert!(pread(fd, 1000, at as u64).unwrap() == right[at..(at + 1000).min(len)]);
    }
}

#[test]
fn cutting_asks_before_and_growing_does_not() {
    if !alone() {
        return;
    }
    let (path, ino) = cold("cut", 1_000_000);
    let fd = open(&path, k::O_RDWR);
    let resize = |size| [Ask::Resize { ino, size }];
    agent().asked();
    // SAFETY: C strings.
    unsafe {
        assert_eq!(hooks::my_ftruncate(fd, 2_000_000), 0);
        assert_eq!(hooks::my_ftruncate(fd, -1), -1);
        assert_eq!(hooks::my_truncate(path.as_ptr(), -1), -1);
        assert_eq!(agent().asked(), []);
        assert_eq!(hooks::my_ftruncate(fd, 500_000), 0);
        assert_eq!(agent().asked(), resize(500_000));
        assert_eq!(hooks::my_truncate(path.as_ptr(), 300_000), 0);
        assert_eq!(agent().asked(), resize(300_000));
        assert_eq!(pread(fd, 400_000, 0).unwrap(), content(300_000));
        agent().asked();
        let (path, ino) = cold("emptied", 1_000_000);
        let fd = open(&path, k::O_WRONLY | k::O_CREAT | k::O_TRUNC);
        assert_eq!(agent().asked(), [Ask::Resize { ino, size: 0 }]);
        assert_eq!(sys::fstat(fd).unwrap().st_size, 0);
        // Not where it cannot be opened.
        let (path, _) = cold("kept", 1000);
        let flags = (k::O_WRONLY | k::O_TRUNC | k::O_DIRECTORY) as i32;
        assert_eq!(hooks::my_open(path.as_ptr(), flags, 0), -1);
        assert_eq!(agent().asked(), []);
        assert_eq!(pread(open(&path, k::O_RDONLY), 2000, 0).unwrap(), content(1000));
    }
}

#[test]
fn what_goes_before_a_cut_begins_is_asked_for_after_all() {
    if !alone() {
        return;
    }
    let (path, ino) = cold("cut-late", 1_000_000);
    let (fd, frozen) = (open(&path, k::O_RDWR), &run().control.mounts[1].frozen);
    let cuts: [&(dyn Fn() -> i32 + Sync); 3] = [
        // SAFETY: a descriptor.
        &|| unsafe { hooks::my_ftruncate(fd, 500_000) },
        // SAFETY: a C string.
        &|| unsafe { hooks::my_truncate(path.as_ptr(), 400_000) },
        &|| open(&path, k::O_WRONLY | k::O_TRUNC).min(0),
    ];
    for (cut, size) in cuts.into_iter().zip([500_000, 400_000, 0]) {
        agent().hydrate(ino, 0, u64::MAX, Pin::No);
        frozen.store(1, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let done = scope.spawn(cut);
            // It has found all of it here, and waits for the gate.
            std::thread::sleep(std::time::Duration::from_millis(100));
            agent().evict(ino, 3);
            frozen.store(0, Ordering::SeqCst);
            assert_eq!((done.join().unwrap(), agent().asked()), (0, vec![Ask::Resize { ino, size }]));
        });
    }
}

#[test]
fn copies_bring_their_source() {
    if !alone() {
        return;
    }
    let len = 5 << 20;
    let bytes = content(len);
    let (path, _) = cold("source", len);
    let input = open(&path, k::O_RDONLY);
    let inside = std::fs::File::create_new(PathBuf::from(&run().lazy).join("copy")).unwrap();
    let outside = std::fs::File::create_new(base().join("copy")).unwrap();
    // SAFETY: valid descriptors and offsets.
    unsafe {
        let mut from = 3i64;
        let n = len - 3;
        let fd = inside.as_raw_fd();
        assert_eq!(
            hooks::my_copy_file_range(input, &raw mut from, fd, std::ptr::null_mut(), n, 0),
            n as isize
        );
        assert_eq!(from, len as i64);
        assert!(std::fs::read(PathBuf::from(&run().lazy).join("copy")).unwrap() == bytes[3..]);
        let (path, ino) = cold("source2", len);
        let input = open(&path, k::O_RDONLY);
        assert_eq!(hooks::my_sendfile(outside.as_raw_fd(), input, std::ptr::null_mut(), len), len as isize);
        assert!(std::fs::read(base().join("copy")).unwrap() == bytes);
        assert!(!agent().files.lock().unwrap()[&ino].pinned, "a file that is copied to a file is not pinned");
        let (path, ino) = cold("source3", 50_000);
        let input = open(&path, k::O_RDONLY);
        let mut pipe = [0; 2];
        assert_eq!(hooks::pipe(pipe.as_mut_ptr()), 0);
        let null = std::ptr::null_mut();
        assert_eq!(hooks::my_splice(input, null, pipe[1], null, 50_000, 0), 50_000);
        assert!(agent().files.lock().unwrap()[&ino].pinned);
        assert!(read(pipe[0], 50_000) == bytes[..50_000]);
    }
}

#[test]
fn what_is_read_without_a_call_is_here_and_stays() {
    if !alone() {
        return;
    }
    let len = 3 * PIECE as usize;
    let bytes = content(len);
    let (path, ino) = cold("mapped", len);
    let fd = open(&path, k::O_RDONLY);
    let pinned = |ino: &u64| agent().files.lock().unwrap()[ino].pinned;
    // SAFETY: valid arguments; the mapping is of the file's length.
    unsafe {
        let at = hooks::my_mmap(std::ptr::null_mut(), len, 1, 2, fd, 0);
        assert!(pinned(&ino));
        assert!(std::slice::from_raw_parts(at.cast::<u8>(), len) == bytes);
        let (path, ino) = cold("grows", len);
        let fd = open(&path, k::O_RDONLY);
        let at = hooks::my_mmap(std::ptr::null_mut(), 4096, 1, 2, fd, 0);
        assert!(!agent().files.lock().unwrap()[&ino].here[2]);
        let at = hooks::my_mremap(at, 4096, len, 1, std::ptr::null_mut());
        assert!(std::slice::from_raw_parts(at.cast::<u8>(), len) == bytes);
        let (path, ino) = cold("stream", len);
        assert!(!hooks::my_fopen(path.as_ptr(), c"r".as_ptr()).is_null());
        assert!(pinned(&ino) && agent().files.lock().unwrap()[&ino].here == [true; 3]);
        let (path, ino) = cold("appended", len - 5);
        assert!(!hooks::my_fopen(path.as_ptr(), c"a".as_ptr()).is_null());
        assert_eq!(agent().files.lock().unwrap()[&ino].here, [false, false, true]);
    }
}

#[test]
fn data_and_holes_are_the_volumes() {
    if !alone() {
        return;
    }
    let (path, ino) = cold("holes", 1_000_000);
    let fd = open(&path, k::O_RDONLY);
    agent().asked();
    // SAFETY: no pointers.
    unsafe {
        assert_eq!(hooks::my_lseek(fd, 70, k::SEEK_DATA as i32), 75);
        assert_eq!(hooks::my_lseek(fd, 0, k::SEEK_CUR as i32), 75);
        assert_eq!(agent().asked(), [Ask::Seek { ino, start: 70, hole: false }]);
        pread(fd, 1_000_000, 0).unwrap();
        assert_eq!(hooks::my_lseek(fd, 70, k::SEEK_DATA as i32), 70, "the kernel's, where all is here");
    }
}

#[test]
fn room_is_asked_for_once_and_growth_near_the_quota() {
    if !alone() {
        return;
    }
    let (path, _) = cold("full", 10);
    let fd = open(&path, k::O_RDWR);
    let file = fds::file(fd).unwrap();
    agent().asked();
    let mut tries = 0;
    let full = piece(fd, &file, Position::At(0), 5, || {
        tries += 1;
        Err(Errno::of(sys::errno::ENOSPC))
    });
    assert_eq!((full, tries), (Err(Errno::of(sys::errno::ENOSPC)), 2));
    assert_eq!(agent().asked().last(), Some(&Ask::Room { bytes: 5 }));
    run().control.mounts[1].set_unasked(0);
    let write = |n: usize, at: i64| {
        let data = vec![7u8; n];
        // SAFETY: a valid buffer.
        unsafe { hooks::my_pwrite(fd, data.as_ptr().cast(), n, at) }
    };
    assert_eq!(write(10, 0), 10, "it does not grow");
    assert_eq!(write(100, 10), 100);
    assert_eq!(write(101, 110), -1);
    assert_eq!(get_errno(), Errno(122));
    // SAFETY: no pointers.
    unsafe {
        assert_eq!(hooks::my_ftruncate(fd, 1000), -1);
        assert_eq!(hooks::my_truncate(path.as_ptr(), 1000), -1);
        assert_eq!(hooks::my_truncate(path.as_ptr(), 120), 0);
        assert_eq!(hooks::my_fallocate(fd, 0, 0, 1000), -1);
    }
}

#[test]
fn what_went_while_a_complete_mount_was_read_is_read_again() {
    if !alone() {
        return;
    }
    let (path, ino) = cold("complete", 1000);
    agent().hydrate(ino, 0, 1000, Pin::No);
    let flags = &run().control.mounts[1].flags;
    flags.fetch_or(FLAG_COMPLETE, Ordering::SeqCst);
    let fd = open(&path, k::O_RDONLY);
    assert!(!fds::may_lack(fd));
    // As if taken away just before the real read, which has given zeros.
    flags.fetch_and(!FLAG_COMPLETE, Ordering::SeqCst);
    agent().evict(ino, 0);
    let mut out = [0u8; 100];
    sys::lseek(fd, 100, k::SEEK_SET).unwrap();
    assert_eq!(reading::again(&Read::here(fd, out.as_mut_ptr().cast(), 100), 100), Some(Ok(100)));
    assert_eq!(out, content(100)[..]);
    let held = residency::Held::complete(1);
    assert!(!held.still());
}

#[test]
fn a_descriptor_that_is_another_file_by_now_is_not_taken_for_the_former() {
    if !alone() {
        return;
    }
    let (path, _) = cold("former", 1000);
    let (other, _) = cold("latter", 1000);
    let fd = open(&path, k::O_RDONLY);
    assert_eq!(pread(fd, 10, 0).unwrap(), content(10));
    // As with system calls that pass by.
    let new = open(&other, k::O_RDONLY);
    let file = fds::file(fd).unwrap();
    sys::replace(fd, new).unwrap();
    fds::forget(fd);
    assert!(!fds::is_still(fd, &file));
    assert_eq!(pread(fd, 10, 0).unwrap(), content(10));
}
