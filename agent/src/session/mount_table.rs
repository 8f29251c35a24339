//! The agent's side of the mount table in the control page: which entry a mount gets, and what is written there.
//!
//! Live clients hold indices, also over a change of agents, so an index stays with its prefix for as long as
//! anybody may hold it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};
use std::sync::atomic::Ordering;
use std::time::Duration;

use storeshim_protocol::control::{FLAG_IDENTITY, FLAG_LOCAL, PREFIX_MAX, TREE_MAX};
use storeshim_protocol::{Control, MAX_MOUNTS, Mount, MountState};

use super::error::SessionError;
use super::feed::Outbox;
use super::shared::Shared;
use super::table::{Claim, Table};
use super::{MountEntry, sys};

/// Remembers which entries a former agent has left.
pub(super) fn note_former(control: &Control, table: &mut Table) {
    for (mount, claim) in control.mounts().iter().zip(&mut table.claims) {
        if mount.state() != MountState::Absent {
            *claim = Claim::Former;
        }
    }
}

/// Gives up the entries that nobody has claimed.
pub(super) fn retire_unclaimed(control: &Control, table: &mut Table) {
    for (mount, claim) in control.mounts().iter().zip(&mut table.claims) {
        if *claim == Claim::Former {
            *claim = Claim::None;
            mount.state.store(MountState::Absent as u32, Ordering::Release);
            sys::futex_wake_all(&mount.state);
        }
    }
}

/// Shows a mount; see [`super::Sessions::add_mount`].
pub(super) fn add(shared: &Shared, entry: &MountEntry, outbox: Outbox) -> Result<usize, SessionError> {
    let refuse = |why: String| SessionError::Mount { prefix: entry.prefix.clone(), why };
    let prefix = plain_path(&entry.prefix, PREFIX_MAX).map_err(refuse)?;
    let tree = fs::canonicalize(&entry.tree).map_err(SessionError::io("resolve the tree", &entry.tree))?;
    let tree_bytes = plain_path(&tree, TREE_MAX).map_err(refuse)?;
    let root = fs::metadata(&tree).map_err(SessionError::io("look at the tree", &tree))?;
    if !root.is_dir() {
        return Err(refuse(format!("{} is not a directory: name one, or make it", tree.display())));
    }

    let control = &*shared.run.control;
    let mut table = shared.table();
    let (index, mount) = choose(control, &table, prefix).map_err(refuse)?;
    if same_path(mount, prefix, tree_bytes) {
        mount.state.store(MountState::Restoring as u32, Ordering::Release);
    } else {
        mount.state.store(MountState::Absent as u32, Ordering::SeqCst);
        if !mount.set_paths(prefix, tree_bytes) {
            return Err(refuse("its paths are too long".into()));
        }
    }
    let mut flags = 0;
    for (set, flag) in [(entry.local, FLAG_LOCAL), (entry.identity, FLAG_IDENTITY)] {
        flags |= if set { flag } else { 0 };
    }
    mount.flags.store(flags, Ordering::Relaxed);
    mount.set_unasked(u64::MAX);
    mount.request_timeout_ms.store(timeout_ms(entry.request_timeout), Ordering::Relaxed);
    mount.dev.store(root.dev(), Ordering::Relaxed);
    mount.root_ino.store(root.ino(), Ordering::Relaxed);
    mount.throttle.store(0, Ordering::Relaxed);
    mount.state.store(MountState::Restoring as u32, Ordering::Release);
    sys::futex_wake_all(&mount.state);
    control.mount_count.fetch_max(index as u32 + 1, Ordering::Release);
    table.outboxes.register(index, outbox);
    if let Some(claim) = table.claims.get_mut(index) {
        *claim = Claim::Ours;
    }
    Ok(index)
}

/// The entry of `prefix`, else one that was never used, else one that nobody can hold any more.
fn choose<'a>(control: &'a Control, table: &Table, prefix: &[u8]) -> Result<(usize, &'a Mount), String> {
    let used = control.mounts().len();
    let mut buffer = [0; PREFIX_MAX];
    let named = control
        .mounts()
        .iter()
        .enumerate()
        .find(|(_, mount)| mount.prefix(&mut buffer).and_then(|len| buffer.get(..len)) == Some(prefix));
    let claim = |index: usize| table.claims.get(index).copied().unwrap_or_default();
    if let Some((index, mount)) = named {
        return if claim(index) == Claim::Ours {
            Err("it is given twice: leave one of them out".into())
        } else {
            Ok((index, mount))
        };
    }
    let unused = control.mounts.iter().enumerate().nth(used);
    let free = || {
        control
            .mounts()
            .iter()
            .enumerate()
            .find(|(index, _)| claim(*index) == Claim::None && table.is_empty())
    };
    unused.or_else(free).ok_or_else(|| {
        format!(
            "an agent serves {MAX_MOUNTS} mounts at most: serve it from another agent with a run directory of its own"
        )
    })
}

fn same_path(mount: &Mount, prefix: &[u8], tree: &[u8]) -> bool {
    let mut buffer = [0; TREE_MAX];
    let same_prefix = mount.prefix(&mut buffer).and_then(|len| buffer.get(..len)) == Some(prefix);
    same_prefix && mount.tree(&mut buffer).and_then(|len| buffer.get(..len)) == Some(tree)
}

/// Milliseconds, rounded up so that only zero waits for ever.
fn timeout_ms(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

/// The bytes of an absolute path that says nothing twice; never the root.
fn plain_path(path: &Path, max: usize) -> Result<&[u8], String> {
    let bytes = path.as_os_str().as_bytes();
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    // Components leave out repeated and trailing slashes and single dots; put together again they must be the same.
    let clean: std::path::PathBuf = path.components().collect();
    if !path.is_absolute() || !plain || clean.as_os_str() != path.as_os_str() || bytes.len() < 2 {
        return Err(format!("{} must be an absolute path without ., .. or a trailing /", path.display()));
    }
    if bytes.len() > max {
        return Err(format!("{} is longer than {max} bytes", path.display()));
    }
    Ok(bytes)
}
