//! What an audit needs besides looking: to be slow on purpose, and to name programs that reach the tree without
//! the shim. It must not know what is found.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Keeps a background audit to a small share of one CPU.
pub struct Pace {
    background: bool,
    ticks: u32,
    since: Instant,
}

/// Entries between two looks at the clock.
const STRIDE: u32 = 64;
/// A background audit rests this many times as long as it works.
const REST: u32 = 4;

impl Pace {
    /// `background`: rest between; otherwise go as fast as it goes.
    pub fn new(background: bool) -> Self {
        Self { background, ticks: 0, since: Instant::now() }
    }

    /// To be called once per entry.
    pub fn tick(&mut self) {
        self.ticks += 1;
        if self.background && self.ticks.is_multiple_of(STRIDE) {
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
