//! Who has which files of a tree open or mapped, as far as /proc tells (proc_pid_fd(5), proc_pid_maps(5)). It must not know
//! what follows from it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use storeshim_protocol::names;

use crate::session::Hooked;
use crate::volume::Gatekeeper;

/// A look at /proc is worth this long.
const WORTH: Duration = Duration::from_millis(500);
/// Bytes of a list of mappings that are read at most.
const MAPS_MAX: u64 = 64 << 20;

/// What a look at /proc has found.
#[derive(Debug, Default)]
pub struct Openers {
    /// By kernel inode number.
    open: HashMap<u64, Use>,
    /// A process that cannot be looked into: it may have anything open, or mapped.
    blind: Option<String>,
    at: Option<Instant>,
}

/// How a file is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// A process has it mapped.
    pub mapped: bool,
    /// A process has it open or mapped that does not ask before it reads.
    pub unhooked: bool,
}

impl Openers {
    /// Looks at all processes but this one.
    pub fn look(dev: u64, gate: &dyn Gatekeeper) -> Self {
        let mut found = Self { at: Some(Instant::now()), ..Self::default() };
        let hooked = gate.hooked();
        let mut rings = HashSet::new();
        let Ok(processes) = fs::read_dir("/proc") else {
            found.blind = Some("/proc cannot be read".into());
            return found;
        };
        for process in processes.flatten() {
            let pid = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            if pid.is_some_and(|pid| pid != std::process::id()) {
                found.look_into(&process.path(), dev, &hooked, &mut rings);
            }
        }
        // One that is attached and not to be seen is in another pid namespace; others may be there as well.
        if found.blind.is_none() && hooked.rings.iter().any(|ring| !rings.contains(ring)) {
            found.blind =
                Some("a program that asks is in another pid namespace, where others may be as well".into());
        }
        found
    }

    /// The same while it is worth something, else a new look.
    pub fn fresh(&mut self, dev: u64, gate: &dyn Gatekeeper) -> &Self {
        if self.at.is_none_or(|at| at.elapsed() > WORTH) {
            *self = Self::look(dev, gate);
        }
        self
    }

    /// Whether it was made before `at`, or never.
    pub fn is_older(&self, at: Instant) -> bool {
        self.at.is_none_or(|made| made < at)
    }

    /// How a file is used that somebody has open; `None` where that cannot be told.
    pub fn of(&self, ino: u64) -> Option<Use> {
        if self.blind.is_some() { None } else { self.open.get(&ino).copied() }
    }

    /// Whether nobody had a file open, for all that can be told.
    pub fn is_closed(&self, ino: u64) -> bool {
        self.blind.is_none() && self.at.is_some() && !self.open.contains_key(&ino)
    }

    /// Kernel inode numbers of the files that somebody has open or mapped, as far as can be told.
    pub fn all(&self) -> impl Iterator<Item = u64> + '_ {
        self.open.keys().copied()
    }

    /// Whether there are processes that cannot be looked into.
    pub fn is_blind(&self) -> bool {
        self.blind.is_some()
    }

    /// Why it cannot be told who has what open, if so: the first of the processes, for people.
    pub fn why_blind(&self) -> Option<&str> {
        self.blind.as_deref()
    }

    fn cannot_look_into(&mut self, process: &Path) {
        self.blind.get_or_insert_with(|| {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            let pid = process.file_name().unwrap_or_default().to_string_lossy();
            format!("process {pid} ({}) does not let itself be looked into", name.trim_end())
        });
    }

    fn look_into(&mut self, process: &Path, dev: u64, hooked: &Hooked, rings: &mut HashSet<u64>) {
        let mut files: HashMap<u64, bool> = HashMap::new();
        match fs::read_dir(process.join("fd")) {
            Ok(fds) => {
                for fd in fds.flatten() {
                    if let Ok(meta) = fs::metadata(fd.path())
                        && meta.dev() == dev
                        && meta.is_file()
                    {
                        files.entry(meta.ino()).or_insert(false);
                    }
                }
            }
            Err(error) if has_ended(&error) => return,
            Err(_) => self.cannot_look_into(process),
        }
        // The device of a mapping is not that of stat(2) on overlayfs and btrfs: a number alone may be another file's,
        // which is then spared as well.
        let mut asks = false;
        match fs::File::open(process.join("maps")) {
            Ok(maps) => mapped(&mut BufReader::new(std::io::Read::take(maps, MAPS_MAX)), |ino, path| {
                asks |= ino == hooked.control && path.ends_with(names::CONTROL.as_bytes());
                rings.insert(ino);
                files.insert(ino, true);
            }),
            Err(error) if has_ended(&error) => return,
            Err(_) => self.cannot_look_into(process),
        }
        for (ino, mapped) in files {
            let of = self.open.entry(ino).or_default();
            of.mapped |= mapped;
            of.unhooked |= !asks;
        }
    }
}

/// Whether a process with this pid is under the shim: it asks before it reads.
pub fn is_hooked(pid: u32, hooked: &Hooked) -> bool {
    let mut asks = false;
    if let Ok(maps) = fs::File::open(format!("/proc/{pid}/maps")) {
        mapped(&mut BufReader::new(std::io::Read::take(maps, MAPS_MAX)), |ino, path| {
            asks |= ino == hooked.control && path.ends_with(names::CONTROL.as_bytes());
        });
    }
    asks && hooked.control != 0
}

fn has_ended(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Calls `each` with the inode number and the path of every mapped file.
fn mapped(maps: &mut dyn BufRead, mut each: impl FnMut(u64, &[u8])) {
    let mut line = Vec::new();
    while matches!(maps.read_until(b'\n', &mut line), Ok(n) if n > 0) {
        let mut fields = line.trim_ascii_end().splitn(6, |byte| *byte == b' ');
        let ino = fields.nth(4).and_then(|ino| std::str::from_utf8(ino).ok()?.parse::<u64>().ok());
        if let Some(ino) = ino.filter(|ino| *ino != 0) {
            each(ino, fields.next().unwrap_or_default().trim_ascii_start());
        }
        line.clear();
    }
}

#[cfg(test)]
impl Openers {
    /// What a look would have found.
    pub fn made_up(open: &[u64], blind: bool) -> Self {
        Self {
            open: open.iter().map(|ino| (*ino, Use::default())).collect(),
            blind: blind.then(|| "made up".into()),
            at: Some(Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::tests::idle_gate;

    #[test]
    fn what_another_process_has_open_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "x").unwrap();
        let meta = fs::metadata(&path).unwrap();
        let gate = idle_gate();
        assert_eq!(Openers::look(meta.dev(), &*gate).open.get(&meta.ino()), None);
        let stdin = fs::File::open(&path).unwrap();
        let mut child = std::process::Command::new("sleep").arg("30").stdin(stdin).spawn().unwrap();
        let found = Openers::look(meta.dev(), &*gate);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.open.get(&meta.ino()), Some(&Use { mapped: false, unhooked: true }));
    }

    #[test]
    fn mappings_name_their_inode() {
        let text = b"7f00-7f01 r--p 00000000 fe:00 4711                       /usr/lib/x y\n\
                     7f02-7f03 rw-p 00000000 00:00 0 \n\
                     7f04-7f05 rw-s 00000000 00:2a 12 /dev/shm/f\n";
        let mut found = Vec::new();
        mapped(&mut &text[..], |ino, path| found.push((ino, path.to_vec())));
        assert_eq!(found, [(4711, b"/usr/lib/x y".to_vec()), (12, b"/dev/shm/f".to_vec())]);
    }
}
