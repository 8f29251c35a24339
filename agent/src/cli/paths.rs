//! `storeshim warmup` and `storeshim evict`: what is asked of the agent for paths, and what it did. They must not know how it
//! is done.

use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use super::progress::Work;
use super::{FAILED, Failure, Settings, USAGE};
use crate::config::{Age, Bytes};
use crate::http::{Client, EvictBody, WarmupBody};
use crate::mounts::Worked;
use crate::volume::{Evicted, Warmed};

/// Arguments of `storeshim warmup`.
#[derive(Args)]
pub(super) struct Warmup {
    #[command(flatten)]
    agent: Reach,
    /// Levels of directories below PATH; 0: only what lies directly in it.
    #[arg(long, value_name = "N")]
    depth: Option<u32>,
    /// Files at the same time; the agent's default if not given.
    #[arg(long, value_name = "N")]
    parallel: Option<usize>,
    /// Files and directories below a mount.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Arguments of `storeshim evict`.
#[derive(Args)]
pub(super) struct Evict {
    #[command(flatten)]
    agent: Reach,
    /// Files and directories below a mount.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// How the agent is reached.
#[derive(Args)]
struct Reach {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's run directory.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

impl Reach {
    fn client(&self) -> Result<Client, Failure> {
        let settings =
            Settings { config: self.config.clone(), run_dir: self.run_dir.clone(), ..Settings::default() };
        Ok(Client::new(&settings.load()?.run_dir))
    }
}

/// Brings files here; 0 where every file is. A process that is ended calls the work off.
pub(super) fn warmup(arguments: &Warmup) -> Result<u8, Failure> {
    let client = arguments.agent.client()?;
    let paths = absolute(&arguments.paths)?;
    let body = WarmupBody { paths, depth: arguments.depth, parallel: arguments.parallel };
    let (mut work, began) = (Work::new("warmup"), Instant::now());
    let warmed = client.warmup(&body, |progress| work.show(progress))?;
    drop(work);
    for one in &warmed {
        println!("{}", warmed_line(one, began.elapsed()));
    }
    if warmed.len() < body.paths.len() {
        return Err(Failure::new(FAILED, "the agent ends, and the warmup with it"));
    }
    Ok(if warmed.iter().all(|one| one.done.failed == 0) { 0 } else { FAILED })
}

/// Drops from the agent's disk what need not be there.
pub(super) fn evict(arguments: &Evict) -> Result<u8, Failure> {
    let client = arguments.agent.client()?;
    let body = EvictBody { paths: absolute(&arguments.paths)? };
    let mut work = Work::new("evict");
    let evicted = client.evict(&body, |progress| work.show(progress))?;
    drop(work);
    for one in &evicted {
        print!("{}", evicted_lines(one));
    }
    if evicted.len() < body.paths.len() {
        return Err(Failure::new(FAILED, "the agent ends, and the eviction with it"));
    }
    Ok(0)
}

fn absolute(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    // Asked for once, and only where it is needed: it may be gone.
    let mut cwd = None;
    let mut make = |path: &PathBuf| -> Result<PathBuf, String> {
        if path.is_absolute() {
            return Ok(path.clone());
        }
        let cwd = match &cwd {
            Some(cwd) => cwd,
            None => cwd.insert(std::env::current_dir().map_err(|error| {
                format!("{}: the working directory cannot be told: {error}", path.display())
            })?),
        };
        Ok(below(cwd, path))
    };
    paths.iter().map(|path| make(path).map_err(|why| Failure::new(USAGE, why))).collect()
}

/// A relative path from the working directory on, which has no links in it: leading `..` are what they seem. Others are
/// left to the agent, which refuses them.
fn below(cwd: &Path, path: &Path) -> PathBuf {
    let mut parts = path.components().peekable();
    let mut made = cwd.to_owned();
    while let Some(part) = parts.next_if(|part| matches!(part, Component::ParentDir | Component::CurDir)) {
        if part == Component::ParentDir {
            made.pop();
        }
    }
    made.extend(parts);
    made
}

fn warmed_line(one: &Worked<Warmed>, took: Duration) -> String {
    let Warmed { files, bytes, gone, failed, why } = &one.done;
    let mut line = format!(
        "{}: {} with {} brought here in {}",
        shown(&one.path),
        counted(*files),
        Bytes(*bytes),
        Age(took)
    );
    if *gone > 0 {
        line.push_str(&format!("; {gone} of them did not stay: there is no room for all, raise cache_size"));
    }
    if *failed > 0 {
        line.push_str(&format!(
            "; {failed} could not be brought: {}",
            why.as_deref().unwrap_or("see the log")
        ));
    }
    line
}

fn evicted_lines(one: &Worked<Evicted>) -> String {
    let Evicted { files, bytes, kept } = &one.done;
    let mut lines =
        format!("{}: {} of {} dropped from this disk\n", shown(&one.path), Bytes(*bytes), counted(*files));
    for kept in kept {
        let files = counted(kept.files);
        lines.push_str(&format!("    kept: {} of {files}: {}\n", Bytes(kept.bytes), kept.why));
    }
    lines
}

/// A path in a line of its own, whatever is in it.
fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.contains(char::is_control) { text.escape_debug().to_string() } else { text.into_owned() }
}

fn counted(files: u64) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Kept;

    #[test]
    fn relative_paths_are_below_the_working_directory() {
        let cwd = Path::new("/storage/a");
        for (path, made) in [
            (".", "/storage/a"),
            ("x/y", "/storage/a/x/y"),
            ("../b", "/storage/b"),
            ("./../../x", "/x"),
            ("x/../y", "/storage/a/x/../y"),
        ] {
            assert_eq!(below(cwd, Path::new(path)), Path::new(made));
        }
        assert_eq!(absolute(&["/x/".into()]).unwrap(), [PathBuf::from("/x/")]);
    }

    #[test]
    fn the_lines_say_what_was_done_and_what_not() {
        let path = PathBuf::from("/storage/a");
        let warmed =
            Warmed { files: 1, bytes: 2048, failed: 2, gone: 0, why: Some("no route to host".into()) };
        assert_eq!(
            warmed_line(&Worked { path: path.clone(), done: warmed }, Duration::from_millis(1500)),
            "/storage/a: 1 file with 2.0 KiB brought here in 1.5s; 2 could not be brought: no route to host"
        );
        let warmed = Warmed { files: 9, bytes: 2048, gone: 8, ..Warmed::default() };
        assert_eq!(
            warmed_line(&Worked { path: "/storage/a\nb".into(), done: warmed }, Duration::from_millis(1500)),
            "/storage/a\\nb: 9 files with 2.0 KiB brought here in 1.5s; 8 of them did not stay: there is no room for all, \
             raise cache_size"
        );
        let kept = vec![Kept { why: "not in the backend yet".into(), files: 3, bytes: 1024 }];
        assert_eq!(
            evicted_lines(&Worked { path, done: Evicted { files: 2, bytes: 4096, kept } }),
            "/storage/a: 4.0 KiB of 2 files dropped from this disk\n    kept: 1.0 KiB of 3 files: not in the backend yet\n"
        );
    }
}
