//! Leases (fcntl(2), F_SETLEASE): the kernel's own answer to who has a file open, and a way to be told before somebody opens
//! it. It must not know what files are.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// How long the kernel waits where it does not say.
const BREAK_TIME: Duration = Duration::from_secs(45);

/// What the attempt to be alone with a file came to.
#[derive(Debug)]
pub enum Alone<'f> {
    /// Nobody else has it open, and who opens it waits until this is dropped.
    Yes(Held<'f>),
    /// Somebody has it open, or mapped.
    No,
    /// This filesystem or user gets no leases.
    Unknown,
}

/// A lease that ends when this is dropped.
#[derive(Debug)]
pub struct Held<'f>(BorrowedFd<'f>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        release(self.0);
    }
}

impl Alone<'_> {
    /// The lease, if there is one, goes on until its descriptor is closed; whether there is.
    pub fn keep(self) -> bool {
        match self {
            Self::Yes(held) => {
                std::mem::forget(held);
                true
            }
            Self::No | Self::Unknown => false,
        }
    }
}

/// Tries to be alone with a file: an F_WRLCK lease. No other descriptor of it must be open in this process.
pub fn alone<'f>(file: BorrowedFd<'f>) -> Alone<'f> {
    match set(file, libc::F_WRLCK) {
        Ok(()) => Alone::Yes(Held(file)),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Alone::No,
        Err(_) => Alone::Unknown,
    }
}

/// Keeps a lease that somebody wants to end from ending this process: SIGIO does that to who does not care.
pub fn ignore_signals() {
    // SAFETY: ignoring a signal touches no memory.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}

/// Ends a lease.
pub fn release(file: BorrowedFd<'_>) {
    // It is of this process, or there is none.
    let _ = set(file, libc::F_UNLCK);
}

/// Whether somebody waits for this lease to end.
pub fn is_breaking(file: &File) -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) != libc::F_WRLCK }
}

/// Takes a lease on a file that nobody else has open, of which a thread of this process is told by `signal` when somebody wants to
/// open it: see [`tell`].
///
/// # Errors
/// EAGAIN where it is open; where the kernel gives no leases.
pub fn watch(file: &File, thread: i32) -> io::Result<()> {
    tell(file, thread)?;
    set(std::os::fd::AsFd::as_fd(file), libc::F_WRLCK)
}

/// Has a thread of this process told, which has to [`listen`], when somebody wants to open a file on which there is a lease, or will
/// be (F_SETSIG).
///
/// # Errors
/// Those of fcntl(2).
pub fn tell(file: &File, thread: i32) -> io::Result<()> {
    const F_SETSIG: libc::c_int = 10;
    const F_SETOWN_EX: libc::c_int = 15;
    /// `struct f_owner_ex`, fcntl(2).
    #[repr(C)]
    struct Owner {
        kind: libc::c_int,
        pid: libc::pid_t,
    }
    // A thread: F_OWNER_TID.
    let owner = Owner { kind: 0, pid: thread };
    let fd = file.as_raw_fd();
    // SAFETY: the struct is the kernel's, and lives across the call; the other call passes no memory.
    let told = unsafe {
        libc::fcntl(fd, F_SETOWN_EX, &raw const owner) == 0 && libc::fcntl(fd, F_SETSIG, signal()) == 0
    };
    if told { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How long the kernel waits for a lease to end (proc_sys_fs(5)).
pub fn break_time() -> Duration {
    let text = std::fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap_or_default();
    text.trim().parse().map_or(BREAK_TIME, Duration::from_secs)
}

/// What a thread waits for that is told of leases.
pub type Signals = libc::sigset_t;

/// By it a thread is told: as one of a queue, which is not lost where another one waits already.
fn signal() -> i32 {
    libc::SIGRTMIN() + 7
}

/// From now on this thread can be told: it is not interrupted, and has to [`wait`]. `None` where it cannot.
pub fn listen() -> Option<Signals> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is filled in before it is used, and the calls keep no pointer.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal());
        let set = set.assume_init();
        (libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) == 0).then_some(set)
    }
}

/// Ends a thread's [`wait`].
pub fn wake(thread: i32) {
    // SAFETY: no memory is passed. Where the thread has just ended, nobody is told.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
}

/// Waits to be told; the descriptor by which the lease is held, or was. `None` where the time was over, or it was woken.
pub fn wait(signals: &Signals, pause: Duration) -> Option<i32> {
    let pause = libc::timespec { tv_sec: pause.as_secs() as i64, tv_nsec: i64::from(pause.subsec_nanos()) };
    /// The part of `siginfo_t` that SIGPOLL and its like fill in; sigaction(2).
    #[repr(C)]
    struct Poll {
        head: [i32; 4],
        band: i64,
        fd: i32,
        rest: [u8; 100],
    }
    // SAFETY: integers, for which zeros are valid; it is as large as `siginfo_t`, and the call keeps no pointer.
    unsafe {
        let mut info: Poll = std::mem::zeroed();
        const { assert!(size_of::<Poll>() == size_of::<libc::siginfo_t>()) };
        let got = libc::sigtimedwait(signals, (&raw mut info).cast(), &raw const pause);
        let [_, _, code, _] = info.head;
        (got > 0 && code != libc::SI_TKILL).then_some(info.fd)
    }
}

fn set(file: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn nobody_is_alone_with_what_another_has_open() {
        ignore_signals();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        assert!(matches!(alone(file.as_fd()), Alone::Yes(_)));
        let other = File::open(&path).unwrap();
        assert!(matches!(alone(file.as_fd()), Alone::No));
        drop(other);
        let held = alone(file.as_fd());
        assert!(matches!(held, Alone::Yes(_)) && !is_breaking(&file));
        // Whoever opens it waits until it is let go.
        let opener = std::thread::spawn(move || std::fs::read(&path).unwrap());
        while !is_breaking(&file) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!opener.is_finished());
        drop(held);
        assert_eq!(opener.join().unwrap(), b"x");
    }

    /// Two threads of the agent at one file: the one asks whether somebody has it open while the other opens it.
    #[test]
    fn an_open_that_does_not_wait_gets_past_a_short_lease_of_our_own() {
        use std::os::unix::fs::OpenOptionsExt;

        ignore_signals();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let file = File::options().read(true).open(&path).unwrap();
        let (held, told) = std::sync::mpsc::channel();
        let holder = std::thread::spawn(move || {
            let lease = alone(file.as_fd());
            held.send(matches!(lease, Alone::Yes(_))).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(30));
        });
        assert!(told.recv().unwrap());
        let open = || File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::EWOULDBLOCK));
        let later = || std::time::Instant::now() + crate::volume::tree::LEASES;
        assert!(crate::volume::tree::through_leases(later(), open, || Ok(())).is_ok());
        holder.join().unwrap();
    }

    #[test]
    fn a_signal_says_which_lease() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let signals = listen().unwrap();
        let file = File::open(&path).unwrap();
        watch(&file, nix::unistd::gettid().as_raw()).unwrap();
        assert_eq!(wait(&signals, Duration::ZERO), None);
        let opener = std::thread::spawn(move || std::fs::read(&path).unwrap());
        assert_eq!(wait(&signals, Duration::from_secs(10)), Some(file.as_raw_fd()));
        let ino = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        assert_eq!(super::super::waiters::waiters(ino), [std::process::id()]);
        release(file.as_fd());
        assert_eq!(opener.join().unwrap(), b"x");
    }
}
