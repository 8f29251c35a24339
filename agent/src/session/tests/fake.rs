//! A client as the shim is one, in this process or in a child of its own.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use storeshim_protocol::intent::encode;
use storeshim_protocol::request::{Ask, Request};
use storeshim_protocol::{Control, Doorbell, Intent, RING_MAGIC, RingFile, Slot, VERSION};

use super::super::mapping::Mapping;
use super::super::sys;
use super::wait_until;

pub(super) struct FakeClient {
    pub(super) file: File,
    pub(super) ring: Mapping<RingFile>,
    pub(super) control: Mapping<Control>,
    doorbell: Mapping<Doorbell>,
    slot: usize,
}

fn map<T: super::super::mapping::Shared>(path: &Path) -> Mapping<T> {
    Mapping::of_own(&OpenOptions::new().read(true).write(true).open(path).unwrap()).unwrap()
}

/// Makes a ring file that is locked but not complete.
pub(super) fn begin(dir: &Path) -> File {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = dir.join("rings").join(format!("{}-{number}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).unwrap();
    lock(&file);
    file
}

pub(super) fn lock(file: &File) {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
}

impl FakeClient {
    pub(super) fn attach(dir: &Path) -> Self {
        let file = begin(dir);
        Self::complete(dir, file)
    }

    pub(super) fn complete(dir: &Path, file: File) -> Self {
        file.set_len(size_of::<RingFile>() as u64).unwrap();
        let ring = Mapping::<RingFile>::of_client(&file).unwrap();
        ring.version.store(VERSION, Ordering::Relaxed);
        ring.size.store(size_of::<RingFile>() as u32, Ordering::Relaxed);
        ring.pid.store(std::process::id(), Ordering::Relaxed);
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"fake");
        for (word, bytes) in ring.comm.iter().zip(comm.chunks(8)) {
            word.store(u64::from_le_bytes(bytes.try_into().unwrap()), Ordering::Relaxed);
        }
        let (slot, _) = ring.claim(1).unwrap();
        ring.magic.store(RING_MAGIC, Ordering::Release);
        let control = map(&dir.join("control"));
        let doorbell = map(&dir.join("doorbell"));
        Self { file, ring, control, doorbell, slot }
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.ring.slots[self.slot]
    }

    pub(super) fn push(&self, mount: usize, intent: Intent<'_>) {
        push(&self.ring, self.slot(), mount, intent);
    }

    /// Enters the gate of `mount`, waiting while it is frozen.
    pub(super) fn enter(&self, mount: usize) {
        enter(&self.control, self.slot(), mount, true);
    }

    pub(super) fn leave(&self) {
        self.slot().gate.leave();
    }

    pub(super) fn ring_doorbell(&self) {
        fence(Ordering::SeqCst);
        if self.control.sleeping.load(Ordering::SeqCst) != 0 {
            sys::futex_wake_all(&self.doorbell.word);
        }
    }

    pub(super) fn post(&self, mount: usize) -> u32 {
        let word = self.slot().request().post(Request { mount: mount as u8, ask: Ask::Barrier { ino: 0 } });
        self.ring_doorbell();
        word
    }

    /// Waits for the answer; panics where a wake-up found the request unanswered.
    pub(super) fn wait(&self, word: u32) -> i32 {
        let cell = self.slot().request();
        let begun = Instant::now();
        loop {
            if let Some(answer) = cell.take_reply() {
                return answer.errno;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "no answer");
            let woken = sys::futex_wait(cell.word(), word, Duration::from_secs(1));
            if woken == sys::Woken::Rung {
                assert_ne!(cell.word().load(Ordering::Acquire), word, "woken for nothing");
            }
        }
    }
}

pub(super) fn push(ring: &RingFile, slot: &Slot, mount: usize, intent: Intent<'_>) {
    if slot.push(encode(mount as u8, &intent).entries()).is_err() {
        ring.look_everywhere.store(1, Ordering::Release);
    }
}

pub(super) fn enter(control: &Control, slot: &Slot, mount: usize, fenced: bool) {
    let entry = &control.mounts[mount];
    while !slot.gate.try_enter(mount, entry, fenced) {
        sys::futex_wait(&entry.frozen, 1, Duration::from_millis(100));
    }
}

/// A client in a process of its own, which does what `mode` says and then waits to be killed.
pub(super) struct ChildClient(Child);

impl ChildClient {
    pub(super) fn spawn(dir: &Path, mode: &str) -> Self {
        let ready = dir.join("ready");
        let _ = fs::remove_file(&ready);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "session::tests::fake::child_process", "--ignored", "--nocapture"])
            .env("STORESHIM_TEST_RUN", dir)
            .env("STORESHIM_TEST_MODE", mode)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the child is ready", || ready.exists());
        Self(child)
    }

    pub(super) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
#[ignore = "the body of a child process of other tests"]
fn child_process() {
    let Some(dir) = std::env::var_os("STORESHIM_TEST_RUN").map(PathBuf::from) else { return };
    let client = FakeClient::attach(&dir);
    client.push(0, Intent::Attributes { ino: 77 });
    match std::env::var("STORESHIM_TEST_MODE").as_deref() {
        Ok("inside") => client.enter(0),
        Ok("overflow") => client.ring.overflow_inside.store(1, Ordering::Release),
        _ => {}
    }
    fs::write(dir.join("ready"), "").unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}
