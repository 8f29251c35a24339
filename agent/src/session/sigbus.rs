//! Survives clients that truncate a file which the agent has mapped. Touching a page beyond the end of a file is
//! SIGBUS; the handler here puts zero pages in the place of the whole mapping, marks it as lost, and lets the
//! access go on. It must not know what the mappings hold.
//!
//! The handler walks a list of entries that are only ever added and reused, so that it needs no lock.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A guarded range of addresses. Entries live for ever; `start` 0 marks a free one.
struct Entry {
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
    next: *const Entry,
}

// SAFETY: `next` is written before the entry is published and never again, and entries are never freed.
unsafe impl Sync for Entry {}

static HEAD: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());
static CHANGES: Mutex<()> = Mutex::new(());
static FORMER: OnceLock<libc::sigaction> = OnceLock::new();

/// Guards a mapping for as long as it lives; drop it before the mapping goes.
pub(super) struct Guard(&'static Entry);

impl Guard {
    /// Guards `len` bytes from `start`: a mapping that only this process's own accesses reach, and whose contents
    /// may be replaced by zeros at any moment.
    pub(super) fn new(start: usize, len: usize) -> Self {
        let _one_at_a_time = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        FORMER.get_or_init(install);
        let entry = entries().find(|entry| entry.start.load(Ordering::Relaxed) == 0).unwrap_or_else(|| {
            let entry = Box::leak(Box::new(Entry {
                start: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                lost: AtomicBool::new(false),
                next: HEAD.load(Ordering::Relaxed),
            }));
            HEAD.store(ptr::from_mut(entry), Ordering::Release);
            entry
        });
        entry.lost.store(false, Ordering::Relaxed);
        entry.len.store(len, Ordering::Relaxed);
        entry.start.store(start, Ordering::Release);
        Self(entry)
    }

    /// Whether the mapping's contents were lost.
    pub(super) fn lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Release);
    }
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    let mut next = HEAD.load(Ordering::Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: null or an entry, and entries are never freed.
        let entry = unsafe { next.as_ref() }?;
        next = entry.next;
        Some(entry)
    })
}

/// Installs the handler; returns what was there.
fn install() -> libc::sigaction {
    // SAFETY: both structures are plain data for which zero is a value, and are filled before they are used; the
    // handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut former: libc::sigaction = std::mem::zeroed();
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, &raw mut former);
        former
    }
}

/// Async-signal-safe: atomics, mmap and sigaction only.
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo of a SIGBUS, which has an address.
    let address = unsafe { (*info).si_addr() } as usize;
    for entry in entries() {
        let start = entry.start.load(Ordering::Acquire);
        let len = entry.len.load(Ordering::Relaxed);
        if start == 0 || address < start || address - start >= len {
            continue;
        }
        // SAFETY: errno belongs to this thread.
        let errno = unsafe { *libc::__errno_location() };
        // SAFETY: the range is a mapping of ours that `Guard::new`'s caller has given over to be replaced.
        let replaced = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        if replaced != libc::MAP_FAILED {
            entry.lost.store(true, Ordering::Release);
            return;
        }
        break;
    }
    pass_on(signal, info, context);
}

/// Does what would have been done without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let former = FORMER.get();
    match former {
        Some(former) if former.sa_sigaction != libc::SIG_DFL && former.sa_sigaction != libc::SIG_IGN => {
            if former.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: with SA_SIGINFO the word is a function of this type.
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    unsafe { std::mem::transmute(former.sa_sigaction) };
                handler(signal, info, context);
            } else {
                // SAFETY: without SA_SIGINFO the word is a function of this type.
                let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(former.sa_sigaction) };
                handler(signal);
            }
        }
        // The access is made again on return, and the default action ends the process.
        // SAFETY: signal(2) takes integers only.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
        },
    }
}
