//! Leases (fcntl(2), F_SETLEASE): the kernel's own answer to who has a file open, and a way to be told before somebody opens
//! it. It must not know what files are.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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

/// Takes a lease on a file that nobody has open, of which the calling thread is told by `signal` when somebody wants to open
/// it.
///
/// # Errors
/// EAGAIN where it is open; where the kernel gives no leases.
pub fn watch(file: &File, signal: libc::c_int) -> io::Result<()> {
    tell(file, nix::unistd::gettid().as_raw(), signal)?;
    set(std::os::fd::AsFd::as_fd(file), libc::F_WRLCK)
}

/// Has a thread of this process told by `signal` when somebody wants to open a file on which there is a lease, or will be
/// (F_SETSIG; the descriptor is in si_fd).
///
/// # Errors
/// Those of fcntl(2).
pub fn tell(file: &File, thread: i32, signal: libc::c_int) -> io::Result<()> {
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
        libc::fcntl(fd, F_SETOWN_EX, &raw const owner) == 0 && libc::fcntl(fd, F_SETSIG, signal) == 0
    };
    if told { Ok(()) } else { Err(io::Error::last_os_error()) }
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
        assert!(crate::volume::tree::through_leases(later(), open, || Ok(false)).is_ok());
        holder.join().unwrap();
    }
}
