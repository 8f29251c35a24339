//! Looks through one file in a process of its own, for an agent that meets programs of any user: whatever a file does to
//! its reader, to time or to memory, the agent does not feel it. It must not know where the file comes from.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::elf::Elf;
use super::raw;

/// Flag of `storeshim doctor` that makes it the process aside.
pub const FLAG: &str = "--past-libc";
/// A larger file is not looked through.
const SIZE_MAX: u64 = 512 << 20;
/// Address space of the process aside, in bytes: the largest file and what is kept of it.
const MEMORY_MAX: u64 = 3 << 30;
/// Processor time of the process aside, in seconds.
const TIME_MAX: u64 = 120;
/// The lowest priority: nice(2).
const NICE: i32 = 19;

/// What a file does past libc.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastLibc {
    /// Calls that name a path or change a file, sorted.
    pub calls: Vec<String>,
    /// It sets io_uring up or uses it.
    pub io_uring: bool,
    /// System call instructions whose number cannot be told.
    pub unknown: usize,
}

impl PastLibc {
    /// Whether there is something to tell of a program, or of a library. Of a library only what is certain: those that
    /// wait by inline calls with a number from elsewhere (libgomp) are in many programs.
    pub fn tells(&self, of_program: bool) -> bool {
        !self.calls.is_empty() || self.io_uring || of_program && self.unknown > 0
    }

    /// The calls, in one line.
    pub fn words(&self) -> String {
        let ring = self.io_uring.then(|| "io_uring".to_owned());
        let unknown = (self.unknown > 0).then(|| format!("{} whose number cannot be told", self.unknown));
        self.calls.iter().cloned().chain(ring).chain(unknown).collect::<Vec<_>>().join(", ")
    }
}

/// Looks through `file` in a process aside; waits for it. Parts of libc and the shim do nothing past libc: what they do
/// is libc's.
///
/// # Errors
/// It is no ELF file of this machine, too large, or takes more than it may: a sentence.
pub fn examine(file: File) -> Result<PastLibc, String> {
    let size = file.metadata().map_err(|error| format!("it cannot be read: {error}"))?.len();
    if size > SIZE_MAX {
        return Err(format!("it is larger than {} MiB", SIZE_MAX >> 20));
    }
    let output = Command::new("/proc/self/exe")
        .args(["doctor", FLAG])
        .env_clear()
        .current_dir("/")
        .stdin(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| format!("a process for it cannot be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("it could not be understood ({})", output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("the answer about it is none: {error}"))
}

/// The process aside: looks through its standard input; the answer as JSON.
///
/// # Errors
/// As for [`examine`].
pub fn answer() -> Result<String, String> {
    // Each is a safeguard only: where one cannot be had, the file is looked through without.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = setrlimit(Resource::RLIMIT_CPU, TIME_MAX, TIME_MAX);
    let _ = setrlimit(Resource::RLIMIT_AS, MEMORY_MAX, MEMORY_MAX);
    // SAFETY: a number, and no memory.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    let elf = Elf::read(Path::new("/proc/self/fd/0")).map_err(|error| error.to_string())?;
    let past = if raw::is_part_of_libc(&elf) { PastLibc::default() } else { of(&elf) };
    serde_json::to_string(&past).map_err(|error| error.to_string())
}

fn of(elf: &Elf) -> PastLibc {
    let raw = raw::raw_calls(elf);
    let calls = raw.calls.into_iter().map(str::to_owned).collect();
    PastLibc { calls, io_uring: raw.io_uring, unknown: raw.unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_in_one_line() {
        let past = PastLibc { calls: vec!["openat".into(), "renameat".into()], io_uring: true, unknown: 3 };
        assert_eq!(past.words(), "openat, renameat, io_uring, 3 whose number cannot be told");
        assert!(past.tells(false) && !PastLibc::default().tells(true));
        assert!(PastLibc { io_uring: true, ..PastLibc::default() }.tells(false));
        let unknown = PastLibc { unknown: 1, ..PastLibc::default() };
        assert!(unknown.tells(true) && !unknown.tells(false));
    }

    #[test]
    fn a_file_that_is_too_large_is_left_alone() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE_MAX + 1).unwrap();
        assert!(examine(file).unwrap_err().contains("larger than 512 MiB"));
    }
}
