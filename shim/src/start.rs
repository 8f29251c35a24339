//! What happens when the library is loaded: as little as can be, since every process of a shell loop pays for it.

use core::ffi::c_int;

use crate::sys::{self, k};
use crate::{control, fds, hooks, residency};

/// Run by the loader before the app. (musl passes no arguments; none are used.)
#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

#[cfg_attr(test, allow(dead_code, reason = "the test's own process has no agent"))]
extern "C" fn start() {
    control::remember_run_dir();
    hooks::cast_net();
    for fd in 0..3 {
        tell_inherited(fd);
    }
}

/// What stdio reads from a standard stream and writes to it passes no hook. One that is a file of a mount must be told before
/// it is written to, and be here before it is read; the others cost one fstat.
fn tell_inherited(fd: c_int) {
    let Ok(flags) = sys::status_flags(fd) else { return };
    let flags = flags as u32;
    let writes = flags & k::O_ACCMODE != k::O_RDONLY;
    if !sys::fstat(fd).is_ok_and(|stat| sys::is_regular(&stat) && control::holds_device(stat.st_dev))
        || !(writes || residency::is_any_partial())
    {
        return;
    }
    // Looks the descriptor up, which tells it where it lies in a mount.
    let _ = fds::known(fd);
    if residency::keep(fd, flags).is_err() {
        control::complain(
            b"storeshim: a standard stream of this program is a file that could not be fetched: it cannot be used; see \
              `storeshim status`\n",
        );
        fds::withhold(fd);
    }
}
