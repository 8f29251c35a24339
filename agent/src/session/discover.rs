//! Finds ring files: which names in `rings/` are clients, which will become one, which are rubbish. Anybody may put
//! anything there, so nothing is opened that could block, and nothing is mapped before it has been checked.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use storeshim_protocol::RingFile;

use super::client::{Client, Ring};
use super::mapping::Mapping;
use super::sys;

/// A ring file that nobody has locked is given this long to be completed before it is removed.
const INCOMPLETE_MAX: Duration = Duration::from_secs(5);
/// What was found to be no ring is looked at again after this long: its owner may have died.
const REJECTED_FOR: Duration = Duration::from_secs(10);
/// Without a sign of change the directory is read this often.
const RESCAN: Duration = Duration::from_millis(100);
/// Timestamps of files are as coarse as this: a directory that changed so shortly before it was read may have changed
/// again since, without a trace.
const COARSE: Duration = Duration::from_millis(20);

/// What a scan has found out.
#[derive(Default)]
pub(super) struct Found {
    /// New clients, living or dead.
    pub(super) clients: Vec<Client>,
    /// Processes whose changes will not be told by a ring, and why.
    pub(super) unknown: Vec<String>,
}

/// What is known of the directory `rings/`.
pub(super) struct Discovery {
    dir: PathBuf,
    known: HashMap<OsString, Known>,
    scans: u64,
    scanned_at: Option<Instant>,
    /// The directory's time of change at the last scan, if it can be trusted to tell of the next one.
    settled: Option<SystemTime>,
    /// Files whose owners were at work on them at the last scan.
    incomplete: usize,
}

struct Known {
    /// Inode number as the directory gives it.
    ino: u64,
    scan: u64,
    /// Set for what is no ring: when to look again.
    rejected: Option<Instant>,
}

/// What a file in `rings/` is.
enum Kind {
    Ring(Box<Client>),
    /// Not complete, but may yet be.
    Incomplete,
    Gone,
    /// No ring; with a reason where a living process may be behind it.
    Rejected(Option<String>),
}

impl Discovery {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, known: HashMap::new(), scans: 0, scanned_at: None, settled: None, incomplete: 0 }
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether a file was not complete at the last scan.
    pub(super) fn awaits(&self) -> bool {
        self.incomplete > 0
    }

    /// Whether a scan may find something new. Cheap enough for every turn of the poll thread.
    pub(super) fn due(&self) -> bool {
        if self.incomplete > 0 || self.scanned_at.is_none_or(|at| at.elapsed() >= RESCAN) {
            return true;
        }
        let changed = fs::metadata(&self.dir).and_then(|meta| meta.modified()).ok();
        self.settled.is_none() || changed != self.settled
    }

    /// Reads the directory and examines what is new in it.
    pub(super) fn scan(&mut self) -> Found {
        let mut found = Found::default();
        let changed = fs::metadata(&self.dir).and_then(|meta| meta.modified()).ok();
        self.settled = changed.filter(|at| at.elapsed().is_ok_and(|age| age > COARSE));
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => {
                if self.scanned_at.is_none_or(|at| at.elapsed() >= RESCAN) {
                    tracing::error!(dir = ?self.dir, %error, "cannot read the directory of ring files");
                }
                found.unknown.push(format!("cannot read {}: {error}", self.dir.display()));
                self.scanned_at = Some(Instant::now());
                return found;
            }
        };
        self.scans += 1;
        self.incomplete = 0;
        let now = Instant::now();
        for entry in entries.flatten() {
            let (name, ino) = (entry.file_name(), entry.ino());
            let before = self.known.get_mut(&name).filter(|known| known.ino == ino);
            let again = match before {
                Some(known) => {
                    known.scan = self.scans;
                    if known.rejected.is_none_or(|until| now < until) {
                        continue;
                    }
                    true
                }
                None => false,
            };
            let rejected = match examine(&self.dir, &name) {
                Kind::Ring(client) => {
                    found.clients.push(*client);
                    None
                }
                Kind::Incomplete => {
                    self.incomplete += 1;
                    continue;
                }
                Kind::Gone => continue,
                Kind::Rejected(why) => {
                    if let Some(why) = why.filter(|_| !again) {
                        tracing::warn!(file = ?name, "{why}");
                        found.unknown.push(why);
                    }
                    Some(now + REJECTED_FOR)
                }
            };
            self.known.insert(name, Known { ino, scan: self.scans, rejected });
        }
        let scans = self.scans;
        self.known.retain(|_, known| known.scan == scans);
        self.scanned_at = Some(now);
        found
    }
}

fn examine(dir: &Path, name: &OsStr) -> Kind {
    let path = dir.join(name);
    // Neither a link, nor a pipe without a writer, nor a lease that somebody holds may lead us astray or make us wait.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(&path);
    let file = match file {
        Ok(file) => file,
        Err(error) => {
            return match error.raw_os_error() {
                Some(libc::ENOENT) => Kind::Gone,
                Some(libc::EWOULDBLOCK) => Kind::Incomplete,
                Some(libc::EACCES | libc::EPERM | libc::EMFILE | libc::ENFILE | libc::ENOMEM) => {
                    Kind::Rejected(Some(format!(
                        "cannot open the ring file of a process ({error}): its changes are found by audits only"
                    )))
                }
                _ => Kind::Rejected(None),
            };
        }
    };
    examine_file(&path, name, file).unwrap_or_else(|error| {
        Kind::Rejected(Some(format!(
            "cannot use the ring file of a process ({error}): its changes are found by audits only"
        )))
    })
}

fn examine_file(path: &Path, name: &OsStr, file: File) -> io::Result<Kind> {
    let meta = file.metadata()?;
    if !meta.is_file() || meta.nlink() > 1 {
        // A second name means that the file is really something else, which is not ours to write to.
        return Ok(Kind::Rejected(None));
    }
    // Looked at before the contents: what a process has written before it died is all there.
    let locked = sys::is_locked(&file)?;
    let expected = size_of::<RingFile>() as u64;
    if meta.len() == expected {
        let map = Mapping::<RingFile>::of_client(&file)?;
        if map.compatible() {
            return Ok(Kind::Ring(Box::new(Client::new(name.into(), Ring::new(map, file, meta.uid())))));
        }
        if map.magic.load(Ordering::Acquire) != 0 && locked {
            return Ok(Kind::Rejected(Some(
                "a process was started with another version of the library: its changes are found by audits only"
                    .into(),
            )));
        }
    }
    if locked {
        if meta.len() == 0 {
            // Its owner is about to let it grow, or may not (RLIMIT_FSIZE) and waits for us to do it.
            file.set_len(expected)?;
        }
        return Ok(Kind::Incomplete);
    }
    let changed = u64::try_from(meta.ctime()).ok().map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s));
    let age = changed.and_then(|at| at.elapsed().ok()).unwrap_or_default();
    if age < INCOMPLETE_MAX {
        return Ok(Kind::Incomplete);
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(Kind::Gone),
        Err(_) => Ok(Kind::Rejected(None)),
    }
}
