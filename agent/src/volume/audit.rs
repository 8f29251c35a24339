//! The audit: compares the whole tree with the index and says where to look, as if intents had told. It also names
//! programs that reach the tree without the shim. It must not know what a look then finds.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::VolumeError;
use super::dirty::DirtySet;
use super::index::{Doubt, Index, Seen};
use super::look::{join, same};
use super::tree::{Stat, Tree};
use crate::meta::records::ROOT_INODE;

/// What an audit found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Names and inodes that are not as in the index.
    pub dirty: DirtySet,
    /// There may be more: it stopped at its limit.
    pub more: bool,
}

/// Compares the tree with the index, entry by entry, until `limit` differences are found or `tick`, called once per
/// entry, says to stop. What changes meanwhile may be found or not.
pub fn scan(
    index: &Index,
    tree: &Tree,
    limit: u64,
    tick: &mut dyn FnMut() -> bool,
) -> Result<Findings, VolumeError> {
    let mut findings = Findings::default();
    let mut dirs = vec![(ROOT_INODE, Vec::new())];
    while let Some((dir, path)) = dirs.pop() {
        let scanned = scan_dir(index, tree, (dir, &path), &mut findings.dirty, &mut dirs, tick);
        match scanned {
            Ok(true) => {}
            Ok(false) => {
                findings.more = true;
                return Ok(findings);
            }
            // The look meets the same error, and makes it known.
            Err(CannotScan::Io) => {
                if let Some(seen) = index.seen(dir)? {
                    findings.dirty.add_name(seen.id.ino, b"");
                }
            }
            Err(CannotScan::Index(error)) => return Err(error),
        }
        if findings.dirty.entries() >= limit {
            findings.more = true;
            return Ok(findings);
        }
    }
    Ok(findings)
}

enum CannotScan {
    Io,
    Index(VolumeError),
}

impl From<io::Error> for CannotScan {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

impl From<VolumeError> for CannotScan {
    fn from(e: VolumeError) -> Self {
        Self::Index(e)
    }
}

fn scan_dir(
    index: &Index,
    tree: &Tree,
    (dir, path): (u64, &[u8]),
    dirty: &mut DirtySet,
    dirs: &mut Vec<(u64, Vec<u8>)>,
    tick: &mut dyn FnMut() -> bool,
) -> Result<bool, CannotScan> {
    let Some(fd) = tree.open_dir(path)? else { return Ok(true) };
    let own = tree.stat(fd.as_fd())?;
    let seen = index.seen(dir)?;
    if seen.is_some_and(|seen| seen.id != own.id) {
        return Ok(true);
    }
    if seen.is_none_or(|seen| !same(&seen, &own)) {
        dirty.add_inode(own.id.ino).untold = true;
    }
    if index.is_unpopulated(dir)? {
        // Its entries are still to come: there is nothing to compare them with.
        return Ok(true);
    }
    let mut known: HashMap<Vec<u8>, u64> = index.children(dir)?.into_iter().collect();
    for name in tree.list(fd.as_fd())? {
        if !tick() {
            return Ok(false);
        }
        let child = known.remove(&name);
        let Some(stat) = tree.stat_at(fd.as_fd(), &name)? else {
            if child.is_some() {
                dirty.add_name(own.id.ino, &name);
            }
            continue;
        };
        let seen = child.map(|child| index.seen(child)).transpose()?.flatten();
        let Some(child) = child.filter(|_| seen.is_some_and(|seen| seen.id == stat.id)) else {
            dirty.add_name(own.id.ino, &name);
            // One that moved here: the look will find where it is now, and what is in it is compared as ever.
            if let Some(moved) = index.kernel(stat.id.ino)?.filter(|k| k.id == stat.id) {
                if stat.is_dir() {
                    dirs.push((moved.inode, join(path, &name)));
                } else {
                    dirty.add_inode(stat.id.ino).untold = true;
                }
            }
            continue;
        };
        match seen {
            Some(seen) if seen.id == stat.id => {
                if !same(&seen, &stat) || may_hide_a_change(index, child, &seen, &stat)? {
                    dirty.add_inode(stat.id.ino).untold = true;
                }
                if stat.is_dir() {
                    dirs.push((child, join(path, &name)));
                }
            }
            _ => {}
        }
    }
    for name in known.into_keys() {
        dirty.add_name(own.id.ino, &name);
    }
    Ok(true)
}

/// Whether an inode whose times are as they were seen has to be looked at all the same.
fn may_hide_a_change(index: &Index, inode: u64, seen: &Seen, stat: &Stat) -> Result<bool, VolumeError> {
    Ok(match seen.doubt {
        Doubt::None => false,
        Doubt::Racy => true,
        Doubt::Attributes => index.inode(inode)?.is_none_or(|record| {
            let links = if stat.is_dir() { 1 } else { stat.links };
            (record.mode, record.uid, record.gid, record.mtime) != (stat.mode, stat.uid, stat.gid, stat.mtime)
                || stat.is_file() && record.size != stat.size
                || record.links < links
        }),
    })
}

/// Keeps a background audit to a small share of one CPU.
pub struct Pace {
    ticks: u32,
    since: Instant,
}

/// Entries between two looks at the clock.
const STRIDE: u32 = 64;
/// A background audit rests this many times as long as it works.
const REST: u32 = 4;

impl Pace {
    /// From now on.
    pub fn new() -> Self {
        Self { ticks: 0, since: Instant::now() }
    }

    /// To be called once per entry.
    pub fn tick(&mut self) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(STRIDE) {
            let worked = self.since.elapsed();
            std::thread::sleep((worked * REST).min(Duration::from_millis(200)));
            self.since = Instant::now();
        }
    }
}

/// Programs of this pid namespace that have something of the tree open, mapped or as their directory, and are not
/// among `attached`: "pid name". Only what /proc lets the agent see.
pub fn foreign(tree: &Path, dev: u64, attached: &[u32]) -> Vec<String> {
    let own = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if pid != own && !attached.contains(&pid) && reaches(&process.path(), tree, dev) {
            let comm = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{pid} {}", comm.trim_end()));
        }
    }
    found
}

fn reaches(process: &Path, tree: &Path, dev: u64) -> bool {
    let inside = |link: &Path| std::fs::read_link(link).is_ok_and(|target| target.starts_with(tree));
    // The cheap question first: most processes have nothing on the tree's device.
    let on_device = |link: &Path| std::fs::metadata(link).is_ok_and(|m| m.dev() == dev);
    let cwd = process.join("cwd");
    if inside(&cwd) {
        return true;
    }
    let Ok(fds) = std::fs::read_dir(process.join("fd")) else { return false };
    fds.flatten().any(|fd| on_device(&fd.path()) && inside(&fd.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_in_the_tree_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().canonicalize().unwrap();
        let dev = std::fs::metadata(&tree).unwrap().dev();
        let mut child = std::process::Command::new("sleep").arg("30").current_dir(&tree).spawn().unwrap();
        // The child is still us until its exec.
        let deadline = Instant::now() + Duration::from_secs(10);
        let expected = format!("{} sleep", child.id());
        let mut found = foreign(&tree, dev, &[]);
        while !found.contains(&expected) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            found = foreign(&tree, dev, &[]);
        }
        let attached = foreign(&tree, dev, &[child.id()]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&expected), "{found:?}");
        assert!(!attached.contains(&expected));
    }
}
