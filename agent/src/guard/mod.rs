//! Keeps programs that do not ask from absent files: a process beside the agent holds a fanotify group (`fanotify`), outlives
//! agents that are killed, and hands the group to the next one (`supervisor`, `wire`); here is the agent's end. It must not
//! know what is absent, nor how anything is brought.

pub mod fanotify;
pub mod supervisor;
mod wire;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use self::fanotify::{Group, Marked};
pub use self::wire::Access;
use self::wire::{Listener, Socket, ToAgent, ToGuard, VERSION};

/// Name of the socket in the state directory.
const SOCKET: &str = "guard.sock";
/// Name of a file that is marked to see whether that can be done.
const PROBE: &std::ffi::CStr = c"guard.probe";
/// Descriptors of a supervisor at most: the numbers of events are below.
const DESCRIPTORS: usize = 1 << 16;
/// Between two attempts to start a supervisor.
const AGAIN: Duration = Duration::from_secs(1);

/// Who is told that somebody waits. Must not block, and answers by [`Guard::answer`].
pub type Handler = Box<dyn Fn(Access) + Send + Sync>;

/// See the module. Where it is dropped without an end, the supervisor waits for the next agent.
pub struct Guard {
    core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Core {
    /// Our own duplicate: were it the last one, everything would open up.
    group: Group,
    /// The kernel tells of accesses to bytes.
    ranges: bool,
    state: PathBuf,
    dir: OwnedFd,
    handler: OnceLock<Handler>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    socket: Option<Arc<Socket>>,
    /// The supervisor, where this process has started it.
    child: Option<Child>,
    table: Option<(Arc<File>, u64)>,
    /// Who waits, and what he was answered where that could not be sent yet.
    told: HashMap<RawFd, Option<i32>>,
    /// What came before there was a handler.
    early: Vec<Access>,
    ended: bool,
}

/// What a supervisor is started with.
fn directory(state: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(state)?.into())
}

/// Connects to the supervisor of a state directory; its group comes with it.
fn meet(dir: &OwnedFd) -> io::Result<(Arc<Socket>, u32, Group)> {
    let socket = wire::connect(dir.as_fd(), SOCKET)?;
    let (_, uid) = socket.peer()?;
    if uid != nix::unistd::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    match socket.receive::<ToAgent>()? {
        Some((ToAgent::Hello { version }, Some(fd))) => Ok((Arc::new(socket), version, Group::from(fd))),
        _ => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

/// Starts a supervisor that holds `group`.
fn start(state: &Path, dir: &OwnedFd, group: &Group, reserved: &[RawFd]) -> io::Result<Child> {
    match std::fs::remove_file(state.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = Listener::bind(dir.as_fd(), SOCKET)?;
    let reserved: Vec<String> = reserved.iter().map(RawFd::to_string).collect();
    Command::new("/proc/self/exe")
        .arg0("storeshim")
        .arg("guard")
        .arg(state)
        .args(reserved)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(group.as_fd().try_clone_to_owned()?))
        .stdout(Stdio::from(OwnedFd::from(listener)))
        .stderr(Stdio::null())
        .spawn()
}

/// Whether a file beside the tree can be marked.
fn probe(state: &Path, dir: &OwnedFd, group: &Group, what: Marked) -> io::Result<()> {
    let path = state.join(PROBE.to_string_lossy().as_ref());
    let marked = File::create(&path).and_then(|file| {
        group.mark(dir.as_fd(), PROBE, what)?;
        group.unmark_handle(file.as_fd(), what)
    });
    let _ = std::fs::remove_file(&path);
    marked
}

/// Ends the supervisor that another agent has left, if there is one. To be called where no group is wanted any more.
pub fn dismiss(state: &Path) {
    if let Ok(dir) = directory(state)
        && let Ok((socket, _, group)) = meet(&dir)
        && group.unmark_all().is_ok()
        && socket.send(&ToGuard::Quit, None).is_ok()
    {
        // Until it has gone.
        while socket.receive::<ToAgent>().is_ok_and(|message| message.is_some()) {}
    }
}

impl Guard {
    /// Takes over the group that a supervisor holds since an agent before this one; `None` where there is none. To be called
    /// before anything of the tree is opened, which might wait for us.
    ///
    /// # Errors
    /// Where a thread cannot be started.
    pub fn take_over(state: &Path) -> io::Result<Option<Self>> {
        let Ok(dir) = directory(state) else { return Ok(None) };
        let Ok((socket, version, group)) = meet(&dir) else { return Ok(None) };
        if version != VERSION {
            // What it has told it tells in words of its own: that fails, and all that comes after is our own one's.
            let (pid, _) = socket.peer()?;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        }
        let inner = Inner { socket: Some(socket), ..Inner::default() };
        Self::begin(state, dir, group, inner).map(Some)
    }

    /// Makes a group, and has a supervisor hold it.
    ///
    /// # Errors
    /// Where the kernel, our rights or the filesystem do not allow it.
    pub fn create(state: &Path) -> io::Result<Self> {
        let group = Group::new()?;
        let dir = directory(state)?;
        probe(state, &dir, &group, Marked::File)?;
        let mut child = start(state, &dir, &group, &[])?;
        let (socket, _, _) = meet(&dir).inspect_err(|_| {
            // Nobody would ever ask for it.
            let _ = child.kill().and_then(|()| child.wait());
        })?;
        let inner = Inner { socket: Some(socket), child: Some(child), ..Inner::default() };
        Self::begin(state, dir, group, inner)
    }

    fn begin(state: &Path, dir: OwnedFd, group: Group, inner: Inner) -> io::Result<Self> {
        let core = Arc::new(Core {
            ranges: probe(state, &dir, &group, Marked::Bytes).is_ok(),
            group,
            state: state.to_path_buf(),
            dir,
            handler: OnceLock::new(),
            inner: Mutex::new(inner),
        });
        let own = Arc::clone(&core);
        let thread = std::thread::Builder::new().name("fanotify".into()).spawn(move || own.listen())?;
        Ok(Self { core, thread: Mutex::new(Some(thread)) })
    }

    /// Whether [`Marked::Bytes`] can be had.
    pub fn has_ranges(&self) -> bool {
        self.core.ranges
    }

    /// The marks.
    pub fn group(&self) -> &Group {
        &self.core.group
    }

    /// Who answers, from now on and what waits already; `table` is what clients see, and `control` the inode number of the
    /// control page, which every program under the shim has mapped. Once.
    pub fn serve(&self, table: Arc<File>, control: u64, handler: Handler) {
        let early = {
            let mut inner = self.core.inner();
            inner.table = Some((table, control));
            inner.show_table();
            // It is set once.
            let _ = self.core.handler.set(handler);
            std::mem::take(&mut inner.early)
        };
        early.into_iter().for_each(|access| self.core.handle(access));
    }

    /// Answers an access: 0, or it fails.
    pub fn answer(&self, id: RawFd, errno: i32) {
        let mut inner = self.core.inner();
        let Some(told) = inner.told.get_mut(&id) else { return };
        *told = Some(errno);
        inner.send_answers();
    }

    /// Ends the supervisor: nobody waits any more, and what waits fails.
    pub fn end(&self) {
        // First, so that what waits now is all there is.
        let _ = self.core.group.unmark_all();
        if self.part(Some(ToGuard::Quit)) {
            self.core.group.fail_rest(DESCRIPTORS as RawFd, &[], true);
            let _ = std::fs::remove_file(self.core.state.join(SOCKET));
        }
    }

    /// Ends the thread, and the connection or, by `message`, the supervisor; whether it had not ended before.
    fn part(&self, message: Option<ToGuard>) -> bool {
        {
            let mut inner = self.core.inner();
            inner.ended = true;
            match (&inner.socket, message) {
                // A supervisor that reads nothing is gone.
                (Some(socket), Some(message)) if socket.send(&message, None).is_ok() => {}
                (Some(socket), _) => socket.hang_up(),
                (None, _) => {}
            }
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A thread that panicked has taken the process with it.
        thread.is_some_and(|thread| thread.join().is_ok())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.part(None);
    }
}

impl Core {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, access: Access) {
        {
            let mut inner = self.inner();
            if self.handler.get().is_none() {
                return inner.early.push(access);
            }
        }
        if let Some(handler) = self.handler.get() {
            handler(access);
        }
    }

    fn listen(&self) {
        loop {
            let socket = self.inner().socket.clone();
            if let Some(socket) = socket {
                while let Ok(Some((message, _))) = socket.receive::<ToAgent>() {
                    if let ToAgent::Access(access) = message {
                        self.inner().told.insert(access.id, None);
                        self.handle(access);
                    }
                }
            }
            let child = {
                let mut inner = self.inner();
                inner.socket = None;
                inner.child.take()
            };
            let ended = self.inner().ended;
            if let Some(mut child) = child {
                // It has hung up, and so has ended or is about to; if we have, it goes on for the next agent.
                let _ = if ended { child.try_wait().map(drop) } else { child.wait().map(drop) };
            }
            if ended {
                return;
            }
            if let Err(error) = self.revive() {
                tracing::error!(
                    %error,
                    state = %self.state.display(),
                    "the process that guards absent files has ended and cannot be started again: programs without the shim \
                     wait until it can"
                );
                std::thread::sleep(AGAIN);
            }
        }
    }

    /// Another supervisor in the place of one that has ended. Nothing has opened up meanwhile: we have the group as well.
    fn revive(&self) -> io::Result<()> {
        tracing::warn!(state = %self.state.display(), "the process that guards absent files has ended, and is started again");
        let known: Vec<RawFd> = self.inner().told.keys().copied().collect();
        // What it had taken and not told: nobody knows what for.
        self.group.fail_rest(DESCRIPTORS as RawFd, &known, false);
        let child = start(&self.state, &self.dir, &self.group, &known)?;
        let met = meet(&self.dir);
        let mut inner = self.inner();
        inner.child = Some(child);
        inner.socket = Some(met?.0);
        inner.show_table();
        inner.send_answers();
        Ok(())
    }
}

impl Inner {
    fn show_table(&self) {
        if let (Some(socket), Some((file, control))) = (&self.socket, &self.table) {
            // One that is gone is followed by another.
            let _ = socket.send(&ToGuard::Table { control: *control }, Some(file.as_fd()));
        }
    }

    fn send_answers(&mut self) {
        let Self { socket: Some(socket), told, .. } = self else { return };
        told.retain(|id, answer| match *answer {
            Some(errno) => socket.send(&ToGuard::Answer { id: *id, errno }, None).is_err(),
            None => true,
        });
    }
}
