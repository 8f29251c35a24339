//! The program that is run: where it is, what is put into its environment, where it starts.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use storeshim_protocol::names::{ENV_NET, ENV_RUN_DIR, NET_SUD};

use super::OWN_FAILURE;
use crate::cli::Failure;
use crate::doctor::machine::has_dispatch;
use crate::mounts::MountStatus;

/// File name of the shim.
const SHIM: &str = "libstoreshim.so";
/// Variable that names the shim where it is not beside the executable.
const ENV_SHIM: &str = "STORESHIM_SHIM";

/// What catches system calls that pass by libc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Net {
    /// Syscall User Dispatch.
    Sud,
}

impl Net {
    /// Whether this machine has it.
    pub(super) fn check(self) -> Result<(), Failure> {
        if has_dispatch() {
            return Ok(());
        }
        Err(Failure::new(
            OWN_FAILURE,
            "--net=sud needs Syscall User Dispatch, which x86-64 has since Linux 5.11: run without --net",
        ))
    }
}

/// What is to be run.
pub(super) struct Program<'a> {
    /// Program and arguments.
    pub(super) command: &'a [OsString],
    /// The net below the hooks.
    pub(super) net: Option<Net>,
    /// Where it starts.
    pub(super) chdir: Option<&'a Path>,
    /// The library to preload.
    pub(super) shim: &'a Path,
    /// The agent's run directory.
    pub(super) run_dir: &'a Path,
    /// The agent's mounts.
    pub(super) mounts: &'a [MountStatus],
}

impl Program<'_> {
    /// Its name, for messages.
    pub(super) fn name(&self) -> String {
        self.command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The command, ready to be spawned.
    pub(super) fn command(&self) -> Result<Command, Failure> {
        let (name, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| Failure::new(OWN_FAILURE, "there is no program to run"))?;
        // This process has no shim: what lies below a mount is found by its physical path.
        let mut command = Command::new(physical(self.mounts, Path::new(name)));
        command.arg0(name).args(arguments);
        command.env("LD_PRELOAD", preload(self.shim, std::env::var_os("LD_PRELOAD").as_deref())?);
        command.env(ENV_RUN_DIR, self.run_dir);
        if let Some(Net::Sud) = self.net {
            command.env(ENV_NET, NET_SUD);
        }
        if let Some(dir) = self.chdir {
            let physical = physical(self.mounts, dir);
            if !physical.is_dir() {
                let message = format!("cannot start in {}: it is not a directory", dir.display());
                return Err(Failure::new(OWN_FAILURE, message));
            }
            command.current_dir(physical).env("PWD", dir);
        }
        Ok(command)
    }
}

/// A path with the prefix of its mount replaced by the mount's tree.
pub(in crate::cli) fn physical(mounts: &[MountStatus], path: &Path) -> PathBuf {
    let below = |mount: &MountStatus| {
        let rest = path.strip_prefix(&mount.prefix).ok()?;
        Some(if rest.as_os_str().is_empty() { mount.tree.clone() } else { mount.tree.join(rest) })
    };
    mounts.iter().find_map(below).unwrap_or_else(|| path.to_owned())
}

/// The value of LD_PRELOAD with the shim in front of what was there.
fn preload(shim: &Path, before: Option<&OsStr>) -> Result<OsString, Failure> {
    if shim.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b':' | b' ')) {
        return Err(Failure::new(
            OWN_FAILURE,
            format!(
                "the loader cannot preload {}: a path in LD_PRELOAD must not hold a space or a colon; put the \
                 library elsewhere and name it in {ENV_SHIM}",
                shim.display()
            ),
        ));
    }
    let mut value = shim.as_os_str().to_owned();
    let others = before.map(OsStr::as_bytes).unwrap_or_default().split(|byte| matches!(byte, b':' | b' '));
    // One of ours that is there already (nested runs) must not be loaded twice.
    for other in others.filter(|other| !other.is_empty() && !other.ends_with(SHIM.as_bytes())) {
        value.push(":");
        value.push(OsStr::from_bytes(other));
    }
    Ok(value)
}

/// Finds the shim: `STORESHIM_SHIM`, or beside this executable, or in the `lib` directories next to its own.
pub(in crate::cli) fn find_shim() -> Result<PathBuf, Failure> {
    let named = std::env::var_os(ENV_SHIM).filter(|path| !path.is_empty()).map(PathBuf::from);
    let here = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    find_shim_in(named, here.as_deref()).map_err(|message| Failure::new(OWN_FAILURE, message))
}

fn find_shim_in(named: Option<PathBuf>, here: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(named) = named {
        let found = named.canonicalize().ok().filter(|path| path.is_file());
        return found.ok_or_else(|| format!("{ENV_SHIM} names {}, which is not a file", named.display()));
    }
    let here = here.ok_or_else(|| format!("cannot tell where this program is; name {SHIM} in {ENV_SHIM}"))?;
    ["", "../lib", "../lib/storeshim"]
        .iter()
        .filter_map(|place| here.join(place).join(SHIM).canonicalize().ok())
        .find(|path| path.is_file())
        .ok_or_else(|| {
            format!("there is no {SHIM} beside {} or in ../lib; name it in {ENV_SHIM}", here.display())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::mount_status;

    #[test]
    fn the_shim_comes_first_and_once() {
        let shim = Path::new("/usr/lib/libstoreshim.so");
        let value = |before: &str| preload(shim, Some(OsStr::new(before))).unwrap();
        assert_eq!(preload(shim, None).unwrap(), "/usr/lib/libstoreshim.so");
        assert_eq!(value("/x/jemalloc.so"), "/usr/lib/libstoreshim.so:/x/jemalloc.so");
        assert_eq!(value("/old/libstoreshim.so /x/a.so:b.so"), "/usr/lib/libstoreshim.so:/x/a.so:b.so");
        assert!(preload(Path::new("/my libs/libstoreshim.so"), None).is_err());
    }

    #[test]
    fn the_shim_is_found_where_it_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for sub in ["bin", "lib"] {
            std::fs::create_dir(root.join(sub)).unwrap();
        }
        let bin = root.join("bin");
        let error = find_shim_in(None, Some(&bin)).unwrap_err();
        assert!(error.contains("STORESHIM_SHIM"), "{error}");
        std::fs::write(root.join("lib/libstoreshim.so"), "").unwrap();
        assert_eq!(find_shim_in(None, Some(&bin)).unwrap(), root.join("lib/libstoreshim.so"));
        std::fs::write(root.join("bin/libstoreshim.so"), "").unwrap();
        assert_eq!(find_shim_in(None, Some(&bin)).unwrap(), root.join("bin/libstoreshim.so"));
        let named = root.join("lib/libstoreshim.so");
        assert_eq!(find_shim_in(Some(named.clone()), Some(&bin)).unwrap(), named);
        assert!(find_shim_in(Some(root.join("absent")), Some(&bin)).is_err());
    }

    #[test]
    fn paths_below_a_mount_are_found_in_its_tree() {
        let mounts = [mount_status("/storage"), mount_status("/data")];
        for (logical, expected) in [
            ("/storage", "/trees/storage"),
            ("/storage/", "/trees/storage"),
            ("/data/bin/tool", "/trees/data/bin/tool"),
            ("/storage2/x", "/storage2/x"),
            ("tool", "tool"),
        ] {
            assert_eq!(physical(&mounts, Path::new(logical)), Path::new(expected));
        }
    }
}
