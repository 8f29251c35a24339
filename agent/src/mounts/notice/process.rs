//! What /proc says of a process that concerns its program: the file, its libraries, whether it is under the shim of this
//! run directory. Everything comes from the process and may be anything, at any length. It must not judge.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use storeshim_protocol::names;

/// Bytes of a list of mappings, or of an environment, that are read at most.
const TEXT_MAX: u64 = 16 << 20;
/// Libraries that are looked at per process.
const LIBRARIES_MAX: usize = 2000;
/// What the shim's file is called.
const SHIM: &[u8] = b"libstoreshim.so";

/// What a file must change in to be another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
}

impl FileId {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        }
    }

    #[cfg(test)]
    pub(super) fn made_up(number: usize) -> Self {
        Self { dev: 0, ino: number as u64, size: 0, modified: (0, 0) }
    }
}

/// Where the agent serves.
#[derive(Debug)]
pub(super) struct Served {
    run_dir: PathBuf,
    control: Option<u64>,
}

impl Served {
    /// The run directory of an agent that has begun to serve it.
    pub(super) fn at(run_dir: &Path) -> Self {
        let control = fs::metadata(run_dir.join(names::CONTROL)).map(|meta| meta.ino()).ok();
        Self { run_dir: run_dir.canonicalize().unwrap_or_else(|_| run_dir.to_owned()), control }
    }
}

/// A library that a process has mapped with the right to run it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Library {
    /// Where it is, as the process sees it.
    pub(super) path: PathBuf,
    ino: u64,
}

/// A process, by its directory in /proc.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    dir: PathBuf,
}

impl Process {
    /// All processes but this one.
    pub(super) fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        numbers.filter(|pid| *pid != std::process::id()).map(Self::of).collect()
    }

    pub(super) fn of(pid: u32) -> Self {
        Self { pid, dir: PathBuf::from(format!("/proc/{pid}")) }
    }

    /// Which program it runs; `None` for threads of the kernel, and where that is not for this user to know.
    pub(super) fn program(&self) -> Option<FileId> {
        fs::metadata(self.dir.join("exe")).map(|meta| FileId::of(&meta)).ok()
    }

    /// Path of its program, as the process sees it.
    pub(super) fn path(&self) -> PathBuf {
        fs::read_link(self.dir.join("exe")).unwrap_or_default()
    }

    /// Its name; nothing in it moves a terminal's cursor.
    pub(super) fn comm(&self) -> String {
        let comm = fs::read(self.dir.join("comm")).unwrap_or_default();
        plain(&String::from_utf8_lossy(&comm))
    }

    /// The program's file.
    pub(super) fn open_program(&self) -> Option<File> {
        open(&self.dir.join("exe"))
    }

    /// The file of one of its libraries, unless another has taken its name.
    pub(super) fn open_library(&self, library: &Library) -> Option<File> {
        let inside = library.path.strip_prefix("/").ok()?;
        let file = open(&self.dir.join("root").join(inside))?;
        // The device that mappings show is not that of stat(2) on overlayfs and btrfs.
        file.metadata().is_ok_and(|meta| meta.ino() == library.ino).then_some(file)
    }

    /// The libraries of a process that is under the shim and this agent; `None` for any other.
    pub(super) fn libraries(&self, served: &Served) -> Option<BTreeSet<Library>> {
        let maps = BufReader::new(File::open(self.dir.join("maps")).ok()?.take(TEXT_MAX));
        let own = self.path();
        let mut libraries = BTreeSet::new();
        let (mut shim, mut control) = (false, false);
        for line in maps.split(b'\n') {
            let Ok(line) = line else { break };
            let Some((library, runs)) = mapping(&line) else { continue };
            let name = library.path.file_name().unwrap_or_default().as_bytes();
            shim |= name == SHIM;
            control |= name == names::CONTROL.as_bytes() && Some(library.ino) == served.control;
            if runs && library.path != own && libraries.len() < LIBRARIES_MAX {
                libraries.insert(library);
            }
        }
        // The page is mapped by the first call that asks for a mount, which calls past libc do not.
        let is_ours = control || shim && self.names_run_dir(served);
        is_ours.then_some(libraries)
    }

    fn names_run_dir(&self, served: &Served) -> bool {
        match self.variable(names::ENV_RUN_DIR) {
            Some(value) => Path::new(OsStr::from_bytes(&value))
                .canonicalize()
                .is_ok_and(|run_dir| run_dir == served.run_dir),
            None => false,
        }
    }

    /// Whether it was started under the second net.
    pub(super) fn has_net(&self) -> bool {
        self.variable(names::ENV_NET).is_some_and(|value| value == names::NET_SUD.as_bytes())
    }

    /// A variable of the environment that it was started with.
    fn variable(&self, name: &str) -> Option<Vec<u8>> {
        let file = File::open(self.dir.join("environ")).ok()?;
        let entries = BufReader::new(file.take(TEXT_MAX)).split(0);
        entries.map_while(Result::ok).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(value.to_vec())
        })
    }
}

/// `text` without what moves a cursor.
pub(super) fn plain(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Opens a regular file; what has taken its place cannot make us wait.
fn open(path: &Path) -> Option<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    file.metadata().is_ok_and(|meta| meta.is_file()).then_some(file)
}

/// A line of /proc/PID/maps: the file, and whether it may be run. Source: proc_pid_maps(5).
fn mapping(line: &[u8]) -> Option<(Library, bool)> {
    let mut rest = line;
    let mut fields = [&[][..]; 5];
    for field in &mut fields {
        let end = rest.iter().position(|byte| *byte == b' ')?;
        let (head, tail) = rest.split_at_checked(end)?;
        (*field, rest) = (head, tail.trim_ascii_start());
    }
    let [_, rights, _, _, ino] = fields;
    let ino = std::str::from_utf8(ino).ok()?.parse().ok()?;
    let is_file = ino != 0 && rest.starts_with(b"/") && !rest.ends_with(b" (deleted)");
    is_file.then(|| {
        let path = PathBuf::from(OsStr::from_bytes(rest));
        (Library { path, ino }, rights.get(2) == Some(&b'x'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read() {
        let line = b"7f39262b2000-7f3926408000 r-xp 00026000 fe:00 326279                     /usr/lib/a b/libc.so.6";
        let (library, runs) = mapping(line).unwrap();
        assert_eq!(
            (library.path.as_path(), library.ino, runs),
            (Path::new("/usr/lib/a b/libc.so.6"), 326279, true)
        );
        assert!(!mapping(b"7f-80 r--p 00000000 fe:00 7 /x").unwrap().1);
        for other in [
            &b"7f3926532000-7f3926534000 r-xp 00000000 00:00 0                          [vdso]"[..],
            b"7f3926532000-7f3926534000 r-xp 00000000 00:00 0 ",
            b"7f-80 r-xp 00000000 fe:00 7 /gone (deleted)",
            b"7f-80 r-xp 00000000 fe:00 x /x",
            b"7f-80 r-xp",
            b"",
        ] {
            assert_eq!(mapping(other), None, "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn this_process_is_under_no_shim() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(names::CONTROL), "").unwrap();
        let own = Process::of(std::process::id());
        assert_eq!(own.libraries(&Served::at(dir.path())), None);
        assert_eq!(own.program(), fs::metadata("/proc/self/exe").map(|meta| FileId::of(&meta)).ok());
        assert!(own.open_program().is_some() && !own.has_net() && own.variable("PATH").is_some());
        assert!(Process::all().iter().all(|process| process.pid != own.pid));
    }

    #[test]
    fn names_move_no_cursor() {
        assert_eq!(plain("a\x1b[2Jb\n"), "a?[2Jb");
    }
}
