//! Tests of what needs a run directory: one is made for the test process, which then attaches as any other.

use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use storeshim_protocol::control::FLAG_COMPLETE;
use storeshim_protocol::intent::{ENTRIES_MAX, Entry, decode};
use storeshim_protocol::{CONTROL_MAGIC, Control, Intent, MountState, NAME_MAX, OpenFlags, VERSION, names};

use crate::attach::{self, Seat};
use crate::sys::{self, PathBuf};
use crate::{ask, control, fds, gate, place, tell};

pub struct Run {
    pub control: &'static Control,
    pub tree: String,
    /// That of mount 1, /lazy, which is not complete: on another device, where there is one.
    pub lazy: String,
}

pub fn base() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("storeshim-shim-test-{}", std::process::id()))
}

/// Where the tree of mount 1 lies.
pub fn lazy_base() -> std::path::PathBuf {
    let elsewhere = std::path::Path::new("/dev/shm");
    if elsewhere.is_dir() {
        elsewhere.join(format!("storeshim-shim-test-{}", std::process::id()))
    } else {
        base().join("lazy")
    }
}

extern "C" fn remove_base() {
    let _ = std::fs::remove_dir_all(lazy_base());
    let _ = std::fs::remove_dir_all(base());
}

unsafe extern "C" {
    fn atexit(last: extern "C" fn()) -> i32;
}

/// The agent's side of the test: two mounts, /storage, which is complete, and /lazy; both translated.
pub fn run() -> &'static Run {
    static RUN: OnceLock<Run> = OnceLock::new();
    RUN.get_or_init(|| {
        let base = base();
        // SAFETY: a function without arguments that stays where it is.
        unsafe { atexit(remove_base) };
        let tree = base.join("tree");
        std::fs::create_dir_all(base.join(names::RINGS)).unwrap();
        std::fs::create_dir_all(&tree).unwrap();
        let tree = tree.canonicalize().unwrap();
        std::fs::write(base.join(names::DOORBELL), [0u8; 4096]).unwrap();
        let file = std::fs::File::create_new(base.join(names::CONTROL)).unwrap();
        file.set_len(size_of::<Control>() as u64).unwrap();
        drop(file);
        let mut path = PathBuf::new();
        path.push(base.join(names::CONTROL).to_str().unwrap().as_bytes()).unwrap();
        let fd = sys::openat(place::CWD, path.c_str(), 2, 0).unwrap() as i32;
        let at = sys::map(fd, size_of::<Control>(), true).unwrap();
        sys::close(fd);
        // SAFETY: a mapping of a whole page that stays for the test's life.
        let page = unsafe { &*at.cast::<Control>() };
        let lazy = lazy_base().join("tree");
        std::fs::create_dir_all(&lazy).unwrap();
        let lazy = lazy.canonicalize().unwrap();
        let show = |index: usize, prefix: &[u8], tree: &std::path::Path, flags, timeout| {
            let mount = &page.mounts[index];
            let meta = std::fs::metadata(tree).unwrap();
            assert!(mount.set_paths(prefix, tree.to_str().unwrap().as_bytes()));
            mount.dev.store(meta.dev(), Ordering::Relaxed);
            mount.root_ino.store(meta.ino(), Ordering::Relaxed);
            mount.interval.store(1, Ordering::Relaxed);
            mount.flags.store(flags, Ordering::Relaxed);
            mount.request_timeout_ms.store(timeout, Ordering::Relaxed);
            mount.state.store(MountState::Ready as u32, Ordering::Release);
        };
        show(0, b"/storage", &tree, FLAG_COMPLETE, 50);
        show(1, b"/lazy", &lazy, 0, 10_000);
        page.version.store(VERSION, Ordering::Relaxed);
        page.size.store(size_of::<Control>() as u32, Ordering::Relaxed);
        page.agent_uid.store(sys::geteuid(), Ordering::Relaxed);
        page.heartbeat_ns.store(u64::MAX, Ordering::Relaxed);
        page.mount_count.store(2, Ordering::Release);
        page.magic.store(CONTROL_MAGIC, Ordering::Release);
        // SAFETY: the first test to come here does so before any code of the library reads the environment.
        unsafe { std::env::set_var(names::ENV_RUN_DIR, &base) };
        assert!(control::control().is_some(), "the page just made is found");
        let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
        Run { control: page, tree: text(tree), lazy: text(lazy) }
    })
}

pub fn seat() -> Seat {
    run();
    attach::seat(attach::ring().unwrap()).unwrap()
}

/// What this thread has told since the last call.
fn told() -> Vec<String> {
    let mut out = Vec::new();
    seat()
        .slot
        .drain(|record: &[Entry]| {
            assert!(record.len() <= ENTRIES_MAX);
            let mut buffer = [0u8; NAME_MAX];
            out.push(match decode(record, &mut buffer).expect("only whole records are pushed") {
                (0, Intent::Name { dir, name }) => format!("name {dir} {}", String::from_utf8_lossy(name)),
                (0, Intent::Written { offset, length: u64::MAX, .. }) => format!("written {offset}.."),
                (0, Intent::Written { offset, length, .. }) => {
                    format!("written {offset}..{}", offset + length)
                }
                (0, other) => format!("{other:?}"),
                (mount, _) => panic!("mount {mount}"),
            });
        })
        .unwrap();
    out
}

fn resolved(path: &str) -> (Option<usize>, String) {
    run();
    let mut room = PathBuf::new();
    let path = std::ffi::CString::new(path).unwrap();
    let place = place::at(place::CWD, path.as_ptr(), &mut room).unwrap();
    // SAFETY: a C string of this function.
    let real = unsafe { std::ffi::CStr::from_ptr(place.path) }.to_str().unwrap().to_owned();
    (place.mount, real)
}

#[test]
fn paths_are_translated_at_the_border_and_nowhere_else() {
    let tree = &run().tree;
    // The kernel is asked where the part before `..` leads.
    std::fs::create_dir_all(format!("{tree}/a")).unwrap();
    assert_eq!(resolved("/storage"), (Some(0), tree.clone()));
    assert_eq!(resolved("/storage/a/../b"), (Some(0), format!("{tree}/a/../b")));
    assert_eq!(resolved("//storage/./a"), (Some(0), format!("{tree}/./a")));
    assert_eq!(resolved("/storagex/a"), (None, "/storagex/a".into()));
    assert_eq!(resolved(&format!("{tree}/a")), (Some(0), format!("{tree}/a")));
    assert_eq!(resolved("/tmp/../storage/f"), (Some(0), format!("{tree}/f")));
    assert_eq!(resolved("/storage/../etc/passwd"), (None, "/etc/passwd".into()));
    assert_eq!(resolved("/storage/.."), (None, "/".into()));
    // What leads nowhere is for the kernel to refuse.
    assert_eq!(resolved("/nothing/../storage/f"), (None, "/nothing/../storage/f".into()));
    assert_eq!(resolved("/proc/../storage/f"), (Some(0), format!("{tree}/f")));
    assert_eq!(resolved("/proc/./..//../storage/../storage/f"), (Some(0), format!("{tree}/f")));
    // The kernel says where a link leads, and so where `..` does.
    std::fs::create_dir_all(format!("{tree}/deep/er")).unwrap();
    let _ = std::os::unix::fs::symlink("deep/er", format!("{tree}/jump"));
    assert_eq!(resolved("/storage/deep/../../storage/b"), (Some(0), format!("{tree}/b")));
    assert_eq!(resolved("/storage/jump/../../b"), (Some(0), format!("{tree}/jump/../../b")));
    assert_eq!(resolved("/storage/jump/../../../etc"), (None, "/etc".into()));
    assert_eq!(resolved("/storage/jump/../../../storage/../storage/b"), (Some(0), format!("{tree}/b")));
    let long = format!("/storage/{}", "x".repeat(4090));
    let long = std::ffi::CString::new(long).unwrap();
    assert!(place::at(place::CWD, long.as_ptr(), &mut PathBuf::new()).is_err());
}

#[test]
fn what_the_kernel_gives_back_is_turned_round() {
    let tree = &run().tree;
    let turned = |path: &str| {
        place::turned(path.as_bytes(), &mut PathBuf::new()).map(|p| String::from_utf8_lossy(p).into_owned())
    };
    assert_eq!(turned(tree), Some("/storage".into()));
    assert_eq!(turned(&format!("{tree}/a/b")), Some("/storage/a/b".into()));
    assert_eq!(turned(&format!("{tree}x")), None);
    assert_eq!(turned("/etc"), None);
}

#[test]
fn a_range_is_told_once_in_an_interval() {
    let seat = seat();
    let _ = told();
    let push = |interval, ino, start, end| tell::push_range(&seat, 0, interval, ino, start, end);
    push(7, 100, 10, 20);
    push(7, 100, 100, 4096);
    push(7, 100, 4096, 4097);
    push(7, 100, 0, 8192);
    assert_eq!(told(), ["written 0..4096", "written 4096..8192"]);
    push(8, 100, 0, 1);
    assert_eq!(told(), ["written 0..4096"], "a new interval knows nothing of the old one");
    push(8, 101, 0, u64::MAX);
    assert!(tell::has_told_all(&seat, 0, 8, 101) && !tell::has_told_all(&seat, 0, 9, 101));
    push(8, 101, 1 << 40, (1 << 40) + 5);
    assert_eq!(told(), ["written 0.."]);
    push(8, 102, 5000, u64::MAX);
    assert!(!tell::has_told_all(&seat, 0, 8, 102) && tell::has_told_end(&seat, 0, 8, 102));
    assert_eq!(told(), ["written 4096.."]);
}

/// Whatever is left out was told before: each written page is in the union of what was pushed in its interval.
#[test]
fn nothing_is_left_out_that_was_not_told() {
    let seat = seat();
    let _ = told();
    let mut random = 88_172_645_463_325_252u64;
    let mut next = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    for interval in 1..200u32 {
        let mut pushed = Vec::new();
        let mut wanted = Vec::new();
        for _ in 0..60 {
            let ino = 1 + next(3);
            let start = next(40) * 2048;
            let end = if next(12) == 0 { u64::MAX } else { start + 1 + next(3) * 4096 };
            wanted.push((ino, start, end));
            tell::push_range(&seat, 0, interval, ino, start, end);
            let mut buffer = [0u8; NAME_MAX];
            seat.slot
                .drain(|record| match decode(record, &mut buffer) {
                    Some((0, Intent::Written { ino, offset, length })) => {
                        pushed.push((ino, offset, offset.saturating_add(length)));
                    }
                    other => panic!("{other:?}"),
                })
                .unwrap();
            for (ino, start, end) in &wanted {
                let mut at = *start;
                while at < *end {
                    let Some(to) =
                        pushed.iter().filter(|p| p.0 == *ino && p.1 <= at && p.2 > at).map(|p| p.2).max()
                    else {
                        panic!("byte {at} of {ino} was not told");
                    };
                    at = to;
                }
            }
        }
    }
}

#[test]
fn a_call_inside_a_call_leaves_the_gate_to_the_outer_one() {
    let seat = seat();
    let outer = gate::enter(0, 42).unwrap();
    assert!(seat.slot.gate.is_inside());
    assert_eq!(seat.slot.subject.load(Ordering::Relaxed), 42);
    {
        // As a signal handler would, from further down the stack.
        #[inline(never)]
        fn handler() {
            let inner = gate::enter(0, 43).unwrap();
            inner.tell(&Intent::Opened { ino: 43, flags: OpenFlags::UNSEEN });
        }
        handler();
    }
    assert!(seat.slot.gate.is_inside(), "the handler's call has not opened the gate");
    drop(outer);
    assert!(!seat.slot.gate.is_inside());
}

#[test]
fn a_push_inside_a_push_is_not_lost() {
    let seat = seat();
    let ring = attach::ring().unwrap();
    // As if interrupted somewhat further up the stack.
    seat.slot.pushing.store(sys::stack_pointer() as u32 + 4096, Ordering::Relaxed);
    tell::push(&seat, 0, &Intent::Attributes { ino: 5 });
    seat.slot.pushing.store(0, Ordering::Relaxed);
    assert_eq!(ring.look_everywhere.swap(0, Ordering::Relaxed), 1);
}

#[test]
fn a_thread_gives_its_slot_back() {
    run();
    let ring = attach::ring().unwrap();
    for _ in 0..200 {
        std::thread::spawn(|| drop(gate::enter(0, 1).unwrap())).join().unwrap();
    }
    let taken = ring.slots.iter().filter(|slot| slot.owner.load(Ordering::Relaxed) != 0).count();
    assert!(taken < 40, "{taken} slots are taken after 200 threads have ended");
}

#[test]
fn a_request_without_an_answer_times_out() {
    run();
    let start = std::time::Instant::now();
    assert_eq!(ask::barrier(0, 1), Err(sys::Errno(110)));
    assert!(start.elapsed().as_millis() >= 50);
}

#[test]
fn a_descriptor_from_elsewhere_is_told_when_it_is_met() {
    use std::os::fd::AsRawFd;
    let tree = &run().tree;
    let _ = told();
    let file = std::fs::File::create(format!("{tree}/elsewhere")).unwrap();
    let ino = file.metadata().unwrap().ino();
    let dir = std::fs::metadata(tree).unwrap().ino();
    let found = fds::file(file.as_raw_fd()).unwrap();
    assert_eq!((found.mount, found.ino, found.known.writable()), (0, ino, true));
    let all = told();
    assert!(all.iter().any(|t| t.contains("Opened")), "{all:?}");
    assert!(all.contains(&format!("name {dir} elsewhere")), "{all:?}");
    let outside = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(fds::file(outside.as_raw_fd()).is_none());
}

#[test]
fn a_forked_child_attaches_anew() {
    unsafe extern "C" {
        fn fork() -> i32;
        fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
        fn _exit(status: i32) -> !;
    }
    run();
    let before = attach::ring().unwrap().pid.load(Ordering::Relaxed);
    // SAFETY: the child makes system calls only and ends.
    unsafe {
        let child = fork();
        if child == 0 {
            let fresh = attach::attached().is_none();
            let pid = attach::ring().map_or(0, |ring| ring.pid.load(Ordering::Relaxed));
            _exit(if fresh && pid != 0 && pid != before { 0 } else { 1 });
        }
        let mut status = -1;
        waitpid(child, &raw mut status, 0);
        assert_eq!(status, 0);
    }
    assert_eq!(run().control.mount_count.load(Ordering::Relaxed), 2);
}
