//! Calls that let a volume grow that has a quota, and an agent that answers what still fits.

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use storeshim_protocol::intent::{Entry, decode};
use storeshim_protocol::request::{Answer, Ask};
use storeshim_protocol::{Control, Intent, NAME_MAX};

use crate::attach;
use crate::attached_tests::{run, seat};
use crate::hooks::tests as hooks;
use crate::loader::get_errno;
use crate::sys::{self, k};

/// Bytes that the volume may still grow by.
static LEFT: AtomicU64 = AtomicU64::new(0);
static ASKED: Mutex<Vec<Ask>> = Mutex::new(Vec::new());
const EDQUOT: i32 = 122;

/// A volume that may grow by `left`, and `unasked` of that without asking. Each of these tests has a process of its own.
fn bounded(left: u64, unasked: u64) -> Option<&'static Control> {
    std::env::var_os("NEXTEST")?;
    let control = run().control;
    control.mounts[0].set_unasked(unasked);
    control.mounts[0].request_timeout_ms.store(10_000, Ordering::SeqCst);
    LEFT.store(left, Ordering::SeqCst);
    std::thread::spawn(|| {
        loop {
            serve();
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    });
    Some(control)
}

fn serve() {
    let Some(ring) = attach::attached() else { return };
    for slot in ring.used() {
        let Some((ticket, Ok(request))) = slot.request().pending() else { continue };
        assert!(!slot.gate.is_inside(), "nobody waits inside the gate: {:?}", request.ask);
        ASKED.lock().unwrap().push(request.ask);
        let left = LEFT.load(Ordering::SeqCst);
        let bytes = match request.ask {
            Ask::Grow { bytes, .. } => bytes,
            Ask::Streamed { size, pending, .. } => size + pending,
            _ => 0,
        };
        let answer = if bytes <= left {
            LEFT.store(left - bytes, Ordering::SeqCst);
            Answer { errno: 0, value: 0 }
        } else {
            Answer { errno: EDQUOT, value: left }
        };
        if slot.request().reply(ticket, answer) {
            sys::futex_wake(slot.request().word());
        }
    }
}

fn asked() -> Vec<Ask> {
    std::mem::take(&mut ASKED.lock().unwrap())
}

fn grew(bytes: u64) -> Ask {
    Ask::Grow { bytes, inodes: 0 }
}

fn path(name: &str) -> CString {
    CString::new(format!("/storage/{name}")).unwrap()
}

fn open(name: &str, flags: u32) -> i32 {
    let create = if flags & k::O_TMPFILE == k::O_TMPFILE { 0 } else { k::O_CREAT };
    // SAFETY: a C string.
    let fd = unsafe { hooks::my_open(path(name).as_ptr(), (flags | k::O_RDWR | create) as i32, 0o600) };
    assert!(fd >= 0, "{:?}", get_errno());
    fd
}

/// What a call has answered, an error as its negative number.
fn said(answer: isize) -> isize {
    if answer < 0 { -get_errno().0 as isize } else { answer }
}

fn write(fd: i32, n: usize) -> isize {
    // SAFETY: a valid buffer.
    said(unsafe { hooks::my_write(fd, vec![7u8; n].as_ptr().cast(), n) })
}

fn write_at(fd: i32, n: usize, at: i64) -> isize {
    // SAFETY: a valid buffer.
    said(unsafe { hooks::my_pwrite(fd, vec![7u8; n].as_ptr().cast(), n, at) })
}

#[test]
fn only_a_call_that_adds_much_asks() {
    let Some(_) = bounded(2000, 1000) else { return };
    let fd = open("much", 0);
    assert_eq!((write(fd, 1000), write_at(fd, 1000, 0)), (1000, 1000));
    assert_eq!(asked(), []);
    assert_eq!(write_at(fd, 1000, 500), 1000, "far behind, but no growth of more");
    assert_eq!(asked(), []);
    assert_eq!(write(fd, 1501), 1501);
    assert_eq!(asked(), [grew(1001)], "what it adds, not what it writes");
    assert_eq!(write_at(fd, 1, 1 << 40), -EDQUOT as isize);
    assert_eq!(sys::fstat(fd).unwrap().st_size, 2501);
    let read_only = open("much", k::O_RDONLY);
    asked();
    // SAFETY: valid arguments.
    unsafe {
        let fd = hooks::my_open(path("much").as_ptr(), k::O_RDONLY as i32, 0);
        assert_eq!(write(fd, 5000), -9);
    }
    assert_eq!(asked(), []);
    sys::close(read_only);
}

#[test]
fn many_calls_that_add_little_ask_once_the_agent_does_not_look() {
    let Some(control) = bounded(4 << 20, 3 << 20) else { return };
    let fd = open("little", 0);
    for _ in 0..3 {
        assert_eq!(write(fd, 1 << 20), 1 << 20);
    }
    assert_eq!(asked(), []);
    assert_eq!(write_at(fd, 1 << 20, 0), 1 << 20, "in place");
    assert_eq!(asked(), []);
    assert_eq!(write(fd, 1 << 20), 1 << 20);
    assert_eq!(asked(), [grew(1 << 20)]);
    assert_eq!(write(fd, 1 << 20), 1 << 20);
    assert_eq!(asked(), [], "with its answer it has looked");
    for unasked in (3 << 20..).take(9) {
        control.mounts[0].set_unasked(unasked);
        assert_eq!((write(fd, 1 << 20), asked().len()), (1 << 20, 0), "it has looked again");
    }
}

#[test]
fn a_large_write_asks_as_it_goes_and_ends_with_the_quota() {
    let Some(control) = bounded((2 << 20) + 5, 1 << 20) else { return };
    let fd = open("large", 0);
    assert_eq!(write(fd, 4 << 20), (2 << 20) + 5);
    assert_eq!(asked(), [grew(1 << 20), grew(1 << 20), grew(1 << 20), grew(5)]);
    control.mounts[0].set_unasked(0);
    assert_eq!(write(fd, 1), -EDQUOT as isize);
    assert_eq!(write_at(fd, 10, (2 << 20) - 1), 6, "what lies in the file is written");
    LEFT.store(100, Ordering::SeqCst);
    let (mut a, mut b) = ([1u8; 60], [2u8; 60]);
    let vectors = [&mut a, &mut b].map(|part| k::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: 60 });
    let end = sys::lseek(fd, 0, k::SEEK_END).unwrap() as u64;
    // SAFETY: valid vectors.
    assert_eq!(said(unsafe { hooks::my_writev(fd, vectors.as_ptr(), 2) }), 100);
    assert_eq!(sys::fstat(fd).unwrap().st_size as u64, end + 100);
    let fd = open("appended", k::O_APPEND);
    LEFT.store(50, Ordering::SeqCst);
    assert_eq!((write(fd, 60), write(fd, 1)), (50, -EDQUOT as isize));
}

#[test]
fn holes_are_asked_for_or_told() {
    let Some(control) = bounded(0, 1 << 30) else { return };
    let fd = open("holes", 0);
    asked();
    // SAFETY: no pointers but a C string.
    unsafe {
        assert_eq!(said(hooks::my_ftruncate(fd, 3000) as isize), 0);
        assert_eq!(asked(), []);
        assert_eq!(said(hooks::my_ftruncate(fd, 8 << 20) as isize), -EDQUOT as isize);
        assert_eq!(said(hooks::my_truncate(path("holes").as_ptr(), 8 << 20) as isize), -EDQUOT as isize);
        assert_eq!(said(hooks::my_fallocate(fd, 0, 0, 8 << 20) as isize), -EDQUOT as isize);
        assert_eq!(hooks::my_posix_fallocate(fd, 0, 8 << 20), EDQUOT);
        assert_eq!(said(hooks::my_lseek(fd, 8 << 20, k::SEEK_SET as i32) as isize), 8 << 20);
    }
    assert_eq!(write(fd, 1), -EDQUOT as isize, "a hole before it");
    assert_eq!(sys::fstat(fd).unwrap().st_size, 3000);
    let mut told = false;
    let drained = seat().slot.drain(|record: &[Entry]| {
        let mut buffer = [0u8; NAME_MAX];
        let intent = decode(record, &mut buffer).expect("whole records");
        told |= matches!(intent, (0, Intent::Written { offset: u64::MAX, length: 3000, .. }));
    });
    assert!(drained.is_ok() && told, "3000 bytes of growth count");
    control.mounts[0].set_unasked(u64::MAX);
    // SAFETY: no pointers.
    assert_eq!(unsafe { hooks::my_ftruncate(fd, 1 << 40) }, 0, "without a quota");
}

#[test]
fn a_file_without_a_name_is_asked_for_when_it_gets_one() {
    let Some(_) = bounded(5000, 1 << 20) else { return };
    let fd = open("", k::O_TMPFILE);
    assert_eq!(write(fd, 5001), 5001);
    let own = CString::new(format!("/proc/self/fd/{fd}")).unwrap();
    let link = |name: &str| {
        // SAFETY: C strings.
        let linked = unsafe {
            hooks::my_linkat(-100, own.as_ptr(), -100, path(name).as_ptr(), k::AT_SYMLINK_FOLLOW as i32)
        };
        said(linked as isize)
    };
    open("taken", 0);
    assert_eq!(link("taken"), -17);
    assert_eq!(link("named"), -EDQUOT as isize);
    LEFT.store(5001, Ordering::SeqCst);
    asked();
    assert_eq!(link("named"), 0);
    assert_eq!(asked(), [Ask::Grow { bytes: 5001, inodes: 1 }]);
    assert_eq!(link("again"), 0);
    assert_eq!(asked(), [], "it has a name");
}

#[test]
fn a_stream_is_refused_when_it_is_flushed_or_closed() {
    let Some(control) = bounded(1000, 500) else { return };
    let on_disk = |name: &str| std::fs::read(PathBuf::from(&run().tree).join(name)).unwrap().len();
    // SAFETY: C strings, and streams that are open.
    unsafe {
        let stream = hooks::my_fopen(path("stream").as_ptr(), c"w".as_ptr());
        let put = |text: &[u8]| hooks::fwrite(text.as_ptr().cast(), 1, text.len(), stream);
        assert_eq!(put(&[b'x'; 400]), 400);
        assert_eq!((hooks::my_fflush(stream), asked()), (0, vec![]), "little");
        assert_eq!(put(&[b'x'; 200]), 200);
        assert_eq!((hooks::my_fflush(stream), asked().len()), (0, 1));
        control.mounts[0].set_unasked(0);
        assert_eq!(put(&[b'x'; 500]), 500);
        assert_eq!(said(hooks::my_fflush(stream) as isize), -EDQUOT as isize);
        assert_eq!(said(hooks::my_fclose(stream) as isize), -EDQUOT as isize);
        assert_eq!(on_disk("stream"), 600, "what does not fit is not written");
        LEFT.store(0, Ordering::SeqCst);
        asked();
        for mode in [c"r", c"r+"] {
            let stream = hooks::my_fopen(path("stream").as_ptr(), mode.as_ptr());
            assert_eq!(hooks::my_fclose(stream), 0);
        }
        assert_eq!(asked(), [], "nothing was added");
    }
}
