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

/// What tests call.
#[cfg(test)]
pub mod tests {
    use core::ffi::c_void;

    pub use super::attr::my_truncate;
    pub use super::copy::{my_copy_file_range, my_sendfile, my_splice};
    pub use super::fd::{my_fclose, my_fflush};
    pub use super::io::{my_fallocate, my_ftruncate, my_posix_fallocate, my_pwrite, my_write, my_writev};
    pub use super::mmap::{my_mmap, my_mremap};
    pub use super::name::my_linkat;
    pub use super::open::my_open;
    pub use super::read::{my_lseek, my_pread, my_preadv, my_preadv2, my_read, my_readv};
    pub use super::stdio::my_fopen;

    unsafe extern "C" {
        pub fn pipe(ends: *mut i32) -> i32;
        pub fn fwrite(from: *const c_void, size: usize, n: usize, stream: *mut c_void) -> usize;
    }
}
