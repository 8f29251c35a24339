//! Every function that stands in libc's place, one family per file.

#[cfg(test)]
mod absent_tests;
mod aio;
mod attr;
mod copy;
mod cwd;
mod dir;
mod exec;
mod fd;
mod fts;
mod ftw;
mod glob;
mod io;
mod mmap;
mod name;
mod open;
mod other;
mod process;
mod read;
mod readlink;
mod script;
mod signal;
mod socket;
mod space;
mod spawn;
mod stat;
mod stdio;
mod sync;
mod syscall;
mod system;
mod temp;
mod thread;
mod trap;
mod words;

use storeshim_protocol::names;

use crate::sys::{Errno, errno};
use crate::{control, net};

/// Casts the second net where the environment asks for it; what is wrong is said on standard error, and the program
/// runs without it.
pub fn cast_net() {
    let Some(value) = control::variable(names::ENV_NET.as_bytes()).filter(|value| !value.is_empty()) else {
        return;
    };
    let failure: &[u8] = if value != names::NET_SUD.as_bytes() {
        b"storeshim: STORESHIM_NET must be sud or empty: this program runs without the second net\n"
    } else {
        match net::cast(|| signal::handle(0)) {
            Ok(()) => return thread::arm_children(),
            Err(e) if e == Errno::of(errno::EINVAL) => {
                b"storeshim: this kernel has no Syscall User Dispatch (Linux 5.11 or newer on x86-64 has): this \
                  program runs without the second net; unset STORESHIM_NET\n"
            }
            Err(_) => {
                b"storeshim: the text of this program's libc could not be found: it runs without the second net; \
                  unset STORESHIM_NET\n"
            }
        }
    };
    control::complain(failure);
}
