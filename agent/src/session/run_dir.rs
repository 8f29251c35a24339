//! The run directory: makes or checks it, locks it for one agent, and maps `control` and `doorbell`. It must not
//! know clients or mounts.
//!
//! Clients take their orders from the control page, so everything in the directory has to be the agent's own: a
//! page that another user could replace or truncate would give that user power over every client.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use storeshim_protocol::residency::Residency;
use storeshim_protocol::{CONTROL_MAGIC, Control, Doorbell, MountState, VERSION, names};

use super::error::SessionError;
use super::mapping::Mapping;
use super::residency::ResidencyTable;
use super::sys;

const LOCK: &str = "agent.lock";
const STICKY: u32 = 0o1000;

/// A run directory that this agent serves.
pub(super) struct RunDir {
    pub(super) control: Mapping<Control>,
    pub(super) doorbell: Mapping<Doorbell>,
    /// The directory of ring files.
    pub(super) rings: PathBuf,
    /// The directory itself.
    dir: PathBuf,
    lock: Mutex<Option<Flock<File>>>,
}

impl RunDir {
    /// Makes or checks everything, takes the lock, and shows clients that an agent is back.
    pub(super) fn open(path: &Path) -> Result<Self, SessionError> {
        let dir = prepare_directory(path)?;
        let lock = take_lock(&dir)?;
        let rings = prepare_rings(&dir)?;
        let doorbell = open_doorbell(&dir)?;
        let control = open_control(&dir)?;
        Ok(Self { control, doorbell, rings, dir, lock: Mutex::new(Some(lock)) })
    }

    /// Maps the residency table of a mount: the former agent's, since clients keep theirs, or a new one.
    pub(super) fn residency(&self, mount: usize) -> Result<ResidencyTable, SessionError> {
        let path = self.dir.join(format!("{}{mount}", names::RESIDENCY));
        let io = |what| SessionError::io(what, &path);
        let file = open_own(&path, true).map_err(io("open"))?;
        check_owner(&path, file.metadata().map_err(io("look at"))?.uid())?;
        file.set_permissions(Permissions::from_mode(0o644)).map_err(io("set the mode of"))?;
        let size = size_of::<Residency>();
        file.set_len(size as u64).and_then(|()| sys::allocate(&file, size)).map_err(io("allocate"))?;
        ResidencyTable::of_file(&file).map_err(io("map"))
    }

    /// Inode number of the control page, which every client has mapped.
    pub(super) fn control_ino(&self) -> io::Result<u64> {
        Ok(fs::metadata(self.dir.join(names::CONTROL))?.ino())
    }

    /// Lets another agent have the directory.
    pub(super) fn unlock(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// How old the heartbeat is that the agent of the run directory `path` shows to its clients; `None` where there is no
/// control page of this layout.
pub fn heartbeat_age(path: &Path) -> Option<Duration> {
    let file = File::open(path.join(names::CONTROL)).ok()?;
    let control = Mapping::<Control>::of_agent(&file).ok()?;
    if control.magic.load(Ordering::Acquire) != CONTROL_MAGIC {
        return None;
    }
    let beat = control.heartbeat_ns.load(Ordering::Acquire);
    Some(Duration::from_nanos(sys::monotonic_ns().saturating_sub(beat)))
}

fn our_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn check_owner(path: &Path, uid: u32) -> Result<(), SessionError> {
    let ours = our_uid();
    if uid == ours { Ok(()) } else { Err(SessionError::NotOurs { path: path.into(), uid, ours }) }
}

/// Makes the directory or checks that nobody else can replace what is in it; returns its absolute path.
fn prepare_directory(path: &Path) -> Result<PathBuf, SessionError> {
    let io = |what| SessionError::io(what, path);
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(io("create the run directory"))?;
    let link = fs::symlink_metadata(path).map_err(io("look at the run directory"))?;
    if link.is_symlink() && link.uid() != 0 {
        check_owner(path, link.uid())?;
    }
    let dir = fs::canonicalize(path).map_err(io("resolve the run directory"))?;
    let meta = fs::metadata(&dir).map_err(io("look at the run directory"))?;
    let mode = meta.permissions().mode();
    if meta.uid() == 0 && our_uid() != 0 && mode & STICKY != 0 {
        return Ok(dir);
    }
    check_owner(&dir, meta.uid())?;
    if mode & 0o022 != 0 && mode & STICKY == 0 {
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).map_err(io("restrict the run directory"))?;
    }
    Ok(dir)
}

fn take_lock(dir: &Path) -> Result<Flock<File>, SessionError> {
    let path = dir.join(LOCK);
    let io = |what| SessionError::io(what, &path);
    let file = open_own(&path, true).map_err(io("open the lock file"))?;
    check_owner(&path, file.metadata().map_err(io("look at the lock file"))?.uid())?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0)
                .and_then(|()| writeln!(lock, "{}", std::process::id()))
                .map_err(io("write the lock file"))?;
            Ok(lock)
        }
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.take(32).read_to_string(&mut pid);
            let pid = pid.trim();
            let pid = if pid.is_empty() { "unknown" } else { pid };
            Err(SessionError::Busy { path: dir.into(), pid: pid.into() })
        }
        Err((_, errno)) => Err(io("lock")(errno.into())),
    }
}

/// Opens a file of ours for reading and writing; never through a link, never waiting for a pipe or a lease.
fn open_own(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

fn prepare_rings(dir: &Path) -> Result<PathBuf, SessionError> {
    let path = dir.join(names::RINGS);
    let io = |what| SessionError::io(what, &path);
    match fs::create_dir(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(io("create")(e)),
    }
    let meta = fs::symlink_metadata(&path).map_err(io("look at"))?;
    check_owner(&path, meta.uid())?;
    if !meta.is_dir() {
        return Err(io("use")(io::ErrorKind::NotADirectory.into()));
    }
    fs::set_permissions(&path, Permissions::from_mode(0o1777)).map_err(io("set the mode of"))?;
    Ok(path)
}

/// Readable to all, writable only to us: see [`Doorbell`].
fn open_doorbell(dir: &Path) -> Result<Mapping<Doorbell>, SessionError> {
    let path = dir.join(names::DOORBELL);
    let io = |what| SessionError::io(what, &path);
    let file = open_own(&path, true).map_err(io("open"))?;
    check_owner(&path, file.metadata().map_err(io("look at"))?.uid())?;
    file.set_permissions(Permissions::from_mode(0o644)).map_err(io("set the mode of"))?;
    file.set_len(size_of::<Doorbell>() as u64)
        .and_then(|()| sys::allocate(&file, size_of::<Doorbell>()))
        .map_err(io("allocate"))?;
    Mapping::of_own(&file).map_err(io("map"))
}

/// Maps the former agent's page where its layout is ours, so that live clients keep theirs; else puts a new one in
/// its place by one rename.
fn open_control(dir: &Path) -> Result<Mapping<Control>, SessionError> {
    let path = dir.join(names::CONTROL);
    let io = |what| SessionError::io(what, &path);
    match open_own(&path, false) {
        Ok(file) => {
            let meta = file.metadata().map_err(io("look at"))?;
            check_owner(&path, meta.uid())?;
            if meta.is_file() && meta.len() == size_of::<Control>() as u64 {
                let control = Mapping::<Control>::of_own(&file).map_err(io("map"))?;
                if control.compatible() {
                    file.set_permissions(Permissions::from_mode(0o644)).map_err(io("set the mode of"))?;
                    take_over(&control);
                    return Ok(control);
                }
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(io("open")(e)),
    }
    let new = dir.join(format!("{}.new", names::CONTROL));
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(SessionError::io("remove", &new)(e)),
        _ => {}
    }
    let file = open_own(&new, true).map_err(SessionError::io("create", &new))?;
    file.set_permissions(Permissions::from_mode(0o644)).map_err(SessionError::io("set the mode of", &new))?;
    file.set_len(size_of::<Control>() as u64)
        .and_then(|()| sys::allocate(&file, size_of::<Control>()))
        .map_err(SessionError::io("allocate", &new))?;
    let control = Mapping::<Control>::of_own(&file).map_err(SessionError::io("map", &new))?;
    control.version.store(VERSION, Ordering::Relaxed);
    control.size.store(size_of::<Control>() as u32, Ordering::Relaxed);
    take_over(&control);
    control.magic.store(CONTROL_MAGIC, Ordering::Release);
    fs::rename(&new, &path).map_err(io("put in place"))?;
    Ok(control)
}

/// Shows that this agent serves the page now. What the former one may have left half done (a freeze, a throttle)
/// ends; its mounts wait, as mounts do that are not ready, until they are added again.
fn take_over(control: &Control) {
    control.generation.fetch_add(1, Ordering::Relaxed);
    control.agent_pid.store(std::process::id(), Ordering::Relaxed);
    control.agent_uid.store(our_uid(), Ordering::Relaxed);
    control.sleeping.store(0, Ordering::Relaxed);
    control.heartbeat_ns.store(sys::monotonic_ns(), Ordering::Relaxed);
    for mount in control.mounts() {
        if mount.state() != MountState::Absent {
            mount.state.store(MountState::Restoring as u32, Ordering::Release);
            sys::futex_wake_all(&mount.state);
        }
        for word in [&mount.throttle, &mount.frozen] {
            word.store(0, Ordering::SeqCst);
            sys::futex_wake_all(word);
        }
    }
}
