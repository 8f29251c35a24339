//! The second net, off unless the environment asks for it: system calls from anywhere but libc's text are handed to a
//! signal handler of ours by Syscall User Dispatch. Knows where calls may come from, and no call.
//!
//! One range of addresses is exempt for each thread: libc's text. Our own calls are made through an instruction in it
//! (`kernel::ELSEWHERE`), so they need no exemption, no selector and nothing of the thread's own.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::sys;

/// Where the exempt text begins, and its length in bytes; 0 while the net is off.
pub static EXEMPT: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Whether system calls outside libc are caught.
#[inline(always)]
pub fn is_on() -> bool {
    EXEMPT[1].load(Ordering::Relaxed) != 0
}

/// The signal that brings them, as a bit of a mask.
pub const SIGSYS_BIT: u64 = 1 << 30;

/// Arms the calling thread, where the net is on: a new thread and a forked child begin without it. A thread that was
/// started with the signal blocked would die of its first call.
pub extern "C" fn arm() {
    if is_on() {
        let [start, length] = &EXEMPT;
        sys::unblock_signals(SIGSYS_BIT);
        let _ = sys::dispatch_outside(start.load(Ordering::Relaxed), length.load(Ordering::Relaxed));
    }
}

/// Lets the calling thread's calls pass until it is armed again.
pub fn disarm() {
    if is_on() {
        let _ = sys::dispatch_nothing();
    }
}

#[cfg(target_arch = "x86_64")]
mod casting {
    use core::sync::atomic::Ordering;

    use super::{EXEMPT, SIGSYS_BIT};
    use crate::kernel::ELSEWHERE;
    use crate::loader;
    use crate::sys::{self, Errno, errno};

    /// Turns the net on for this process and its first thread. `handle` puts the handler of the signal in place.
    ///
    /// Errors: the kernel's where it has no such dispatch (EINVAL before Linux 5.11), ENOSYS where libc's text has not
    /// what is needed.
    pub fn cast(handle: impl FnOnce() -> bool) -> Result<(), Errno> {
        /// `syscall; ret`.
        const DOOR: [u8; 3] = [0x0f, 0x05, 0xc3];
        let missing = Errno::of(errno::ENOSYS);
        let text = loader::libc_text().ok_or(missing)?;
        let door = text.windows(DOOR.len()).position(|bytes| bytes == DOOR).ok_or(missing)?;
        let start = text.as_ptr() as usize;
        // Asked before anything is changed.
        sys::dispatch_nothing()?;
        if !handle() {
            return Err(missing);
        }
        ELSEWHERE.store(start + door, Ordering::Release);
        sys::unblock_signals(SIGSYS_BIT);
        let [from, length] = &EXEMPT;
        from.store(start, Ordering::Relaxed);
        length.store(text.len(), Ordering::Relaxed);
        sys::dispatch_outside(start, text.len()).map(|_| ())
    }
}
#[cfg(target_arch = "x86_64")]
pub use casting::cast;

/// No released kernel dispatches on this machine.
#[cfg(not(target_arch = "x86_64"))]
pub fn cast(_: impl FnOnce() -> bool) -> Result<(), sys::Errno> {
    Err(sys::Errno::of(sys::errno::EINVAL))
}
