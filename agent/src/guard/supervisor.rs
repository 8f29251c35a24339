//! The guard of a mount: a process that holds the fanotify group, so that nobody gets at absent bytes while an agent is
//! killed and another one started. It answers what it can tell itself, from the table that clients see, and leaves the rest to
//! the agent that is connected, or to the next one. It must not know what a volume is, and opens nothing of its tree.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use storeshim_protocol::names;

use super::fanotify::{Event, Group};
use super::wire::{Access, Listener, Socket, ToAgent, ToGuard, VERSION};
use super::{DESCRIPTORS, SOCKET};
use crate::session::ShownTable;

/// Threads that take events: the kernel opens each inode for that, and may have to wait for somebody's lease.
const THREADS: usize = 4;
/// Descriptors that are kept for other things than events.
const RESERVE: usize = 64;
/// How long the opening of a directory waits where there is no agent. Its names cannot be guarded from being looked up anyway,
/// and whoever removes a tree of which nobody takes care any more has to open it.
const GRACE: Duration = Duration::from_secs(3);
/// Processes that are remembered.
const CLIENTS: usize = 4096;
/// Between two looks at whether it is still needed.
const TICK: Duration = Duration::from_secs(1);

/// The end of a process that is not needed any more.
struct Ended;

/// See the module.
struct Supervisor {
    group: Group,
    inner: Mutex<Inner>,
    /// There is room for events again.
    room: Condvar,
    most: usize,
}

#[derive(Default)]
struct Inner {
    agent: Option<Agent>,
    /// Since when there is none.
    alone: Option<Instant>,
    table: Option<Arc<ShownTable>>,
    /// See [`ToGuard::Table`].
    control: u64,
    pending: BTreeMap<RawFd, Pending>,
    /// Where processes were seen to have the control page mapped: a name below /proc/PID/map_files.
    clients: HashMap<i32, String>,
}

struct Agent {
    socket: Arc<Socket>,
    pid: i32,
}

struct Pending {
    /// `None`: a supervisor before this one has told the agent, who has to answer.
    access: Option<Access>,
    sent: bool,
    /// Keeps its number from being given to another event. By it the agent finds a file that has lost its name.
    file: OwnedFd,
}

/// The process itself: standard input is the group, standard output the socket that agents connect to. `state` is the
/// directory in which that lies; `reserved` are the numbers of events that the agent knows of.
///
/// # Errors
/// Where it cannot do its work: a sentence.
pub fn run(state: &Path, reserved: &[RawFd]) -> Result<(), String> {
    let failed = |what: &str, error: std::io::Error| format!("the guard cannot {what}: {error}");
    let most = more_descriptors();
    // Numbers first: nothing else may take them.
    let mut inner = Inner::default();
    for id in reserved.iter().filter(|id| **id > 2) {
        // SAFETY: no memory is passed; a number that is taken already is none that was reserved.
        let fd = unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, *id) };
        if fd < 0 {
            return Err(failed("reserve a descriptor", std::io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just given us this descriptor.
        let file = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        if fd != *id {
            return Err("the guard was started with a descriptor too many".into());
        }
        inner.pending.insert(*id, Pending { access: None, sent: true, file });
    }
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
    let group = Group::from(own(std::io::stdin().as_fd()).map_err(|e| failed("have the group", e))?);
    let listener = Listener::from(own(std::io::stdout().as_fd()).map_err(|e| failed("have the socket", e))?);
    // Not the session's nor the terminal's: it outlives them.
    let _ = nix::unistd::setsid();
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE]);
    signals.thread_block().map_err(|e| failed("block signals", e.into()))?;
    // Whoever runs out of memory had better not take the one whose end opens everything. Not allowed to everybody.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let supervisor = Supervisor { group, inner: Mutex::new(inner), room: Condvar::new(), most };
    let path = state.join(SOCKET);
    let born = std::fs::symlink_metadata(&path).map_err(|e| failed("find its socket", e))?.ino();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            std::thread::Builder::new()
                .spawn_scoped(scope, || supervisor.take_events())
                .map_err(|e| failed("start a thread", e))?;
        }
        loop {
            if supervisor.serve(&listener).is_err() || supervisor.is_needless(&path, born) {
                // Those that wait for events are not waited for.
                std::process::exit(0);
            }
        }
    })
}

/// As many descriptors as are allowed; how many events may wait.
fn more_descriptors() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let most = hard.min(DESCRIPTORS as u64).max(soft.min(DESCRIPTORS as u64));
    let _ = setrlimit(Resource::RLIMIT_NOFILE, most, hard);
    let now = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |(soft, _)| soft);
    (now as usize).saturating_sub(RESERVE).max(1)
}

impl Supervisor {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_events(&self) {
        loop {
            let mut inner = self.inner();
            while inner.pending.len() >= self.most {
                inner = self.room.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
            drop(inner);
            match self.group.wait() {
                Ok(events) => events.into_iter().for_each(|event| self.take(event)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // One that could not be opened was denied by the kernel.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn take(&self, event: Event) {
        let id = event.file.as_raw_fd();
        let Ok(stat) = nix::sys::stat::fstat(&event.file) else {
            // Whatever it is, nothing can be brought for it.
            return self.answer(event.file, libc::EIO);
        };
        let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let access = Access { id, ino: stat.st_ino, is_dir, range: event.range, pid: event.pid };
        if self.may_pass(&access) {
            return self.answer(event.file, 0);
        }
        let mut inner = self.inner();
        if inner.is_agent(access.pid) {
            // It has come just now.
            return self.answer(event.file, 0);
        }
        let pending = Pending { access: Some(access), sent: false, file: event.file };
        inner.pending.insert(id, pending);
        inner.send();
        drop(inner);
        self.pass_orphans();
    }

    /// Lets through what waits for an agent that has gone since, and needs none: to be called whenever something may have begun to
    /// wait while there was one.
    fn pass_orphans(&self) {
        let waiting: Vec<Access> = {
            let inner = self.inner();
            if inner.agent.is_some() {
                return;
            }
            inner.waiting().collect()
        };
        for access in waiting.into_iter().filter(|access| self.may_pass(access)) {
            let mut inner = self.inner();
            if inner.pending.get(&access.id).and_then(|pending| pending.access) == Some(access) {
                self.finish(&mut inner, access.id, 0);
            }
        }
    }

    /// What needs no agent: its own accesses, bytes that are here, and the opening by programs that ask before they read.
    fn may_pass(&self, access: &Access) -> bool {
        let (table, control, orphan) = {
            let inner = self.inner();
            if inner.is_agent(access.pid) {
                return true;
            }
            (inner.table.clone(), inner.control, inner.agent.is_none())
        };
        let is_here = |start, end| {
            table.is_some_and(|table| !access.is_dir && table.check(access.ino, start, end).is_some())
        };
        match access.range {
            // A mark may outlive what was absent for a moment, and without an agent nothing goes.
            None => self.is_client(access.pid, control) || orphan && is_here(0, u64::MAX),
            Some((start, end)) => is_here(start, end),
        }
    }

    /// Whether a process is under the shim of the agent whose control page has the inode number `control`. Asked each time: it
    /// may have become another program.
    fn is_client(&self, pid: i32, control: u64) -> bool {
        if pid <= 0 || control == 0 {
            return false;
        }
        let known = self.inner().clients.get(&pid).cloned();
        let is_there = |place: String| {
            std::fs::metadata(format!("/proc/{pid}/map_files/{place}"))
                .is_ok_and(|meta| meta.ino() == control)
        };
        if known.is_some_and(is_there) {
            return true;
        }
        let maps = std::fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        let Some(place) = mapped_at(&maps, control, names::CONTROL) else { return false };
        let mut inner = self.inner();
        if inner.clients.len() >= CLIENTS {
            inner.clients.clear();
        }
        inner.clients.insert(pid, place);
        true
    }

    /// Answers the event with this descriptor, and lets its number be given again.
    fn answer(&self, mut file: OwnedFd, errno: i32) {
        // Where it stays open, the file is taken for one that is read.
        let _ = self.group.let_go(&mut file);
        // Who was killed waits no more.
        let _ = self.group.answer(file.as_raw_fd(), errno);
    }

    /// Waits for the agent, or for another one.
    fn serve(&self, listener: &Listener) -> Result<(), Ended> {
        let agent = self.inner().agent.as_ref().map(|agent| Arc::clone(&agent.socket));
        let poll = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // One that is negative is left out.
        let mut fds = [
            poll(listener.fd().as_raw_fd()),
            poll(agent.as_ref().map_or(-1, |agent| agent.fd().as_raw_fd())),
        ];
        // SAFETY: the array lives across the call, and is as long as is said.
        let ready =
            unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, TICK.as_millis() as i32) };
        if ready > 0
            && fds[1].revents != 0
            && let Some(socket) = agent
        {
            match socket.receive::<ToGuard>() {
                Ok(Some((message, fd))) => self.obey(message, fd)?,
                Ok(None) | Err(_) => self.agent_gone(),
            }
        }
        if ready > 0
            && fds[0].revents != 0
            && let Ok(socket) = listener.accept()
        {
            self.welcome(socket);
        }
        self.inner().send();
        Ok(())
    }

    /// Only the agent of this state directory gets here, whose owner alone may enter that.
    fn welcome(&self, socket: Socket) {
        let Ok((pid, uid)) = socket.peer() else { return };
        if uid != nix::unistd::geteuid().as_raw() {
            return;
        }
        self.agent_gone();
        let hello = ToAgent::Hello { version: VERSION };
        if socket.send(&hello, Some(self.group.as_fd())).is_err() {
            return;
        }
        let mut inner = self.inner();
        inner.agent = Some(Agent { socket: Arc::new(socket), pid });
        // It waits for itself.
        let own: Vec<RawFd> =
            inner.waiting().filter(|access| access.pid == pid).map(|access| access.id).collect();
        own.into_iter().for_each(|id| self.finish(&mut inner, id, 0));
        inner.send();
    }

    fn agent_gone(&self) {
        let mut inner = self.inner();
        if inner.agent.take().is_none() {
            return;
        }
        inner.alone = Some(Instant::now());
        inner.pending.values_mut().for_each(|pending| pending.sent = pending.access.is_none());
        // Nobody knows any more what these wait for.
        let unknown: Vec<RawFd> =
            inner.pending.iter().filter(|(_, pending)| pending.access.is_none()).map(|(id, _)| *id).collect();
        unknown.into_iter().for_each(|id| self.finish(&mut inner, id, libc::EIO));
        drop(inner);
        self.pass_orphans();
    }

    fn obey(&self, message: ToGuard, fd: Option<OwnedFd>) -> Result<(), Ended> {
        match message {
            ToGuard::Quit => {
                self.fail_all();
                return Err(Ended);
            }
            ToGuard::Table { control } => {
                let table = fd.and_then(|fd| ShownTable::of_file(&File::from(fd)).ok());
                let mut inner = self.inner();
                (inner.table, inner.control) = (table.map(Arc::new), control);
            }
            ToGuard::Answer { id, errno } => {
                let mut inner = self.inner();
                if inner.pending.contains_key(&id) {
                    self.finish(&mut inner, id, errno);
                }
            }
        }
        Ok(())
    }

    /// Answers an event, and lets its number be given again.
    fn finish(&self, inner: &mut Inner, id: RawFd, errno: i32) {
        if let Some(pending) = inner.pending.remove(&id) {
            self.answer(pending.file, errno);
        }
        self.room.notify_all();
    }

    fn fail_all(&self) {
        let mut inner = self.inner();
        let all: Vec<RawFd> = inner.pending.keys().copied().collect();
        all.into_iter().for_each(|id| self.finish(&mut inner, id, libc::EIO));
    }

    /// Without an agent: whether the mount is gone as well, or somebody has asked for the end.
    fn is_needless(&self, path: &Path, born: u64) -> bool {
        let mut inner = self.inner();
        if inner.agent.is_some() {
            return false;
        }
        if inner.alone.get_or_insert_with(Instant::now).elapsed() > GRACE {
            let dirs: Vec<RawFd> =
                inner.waiting().filter(|access| access.is_dir).map(|access| access.id).collect();
            dirs.into_iter().for_each(|id| self.finish(&mut inner, id, 0));
        }
        drop(inner);
        let gone = !std::fs::symlink_metadata(path).is_ok_and(|meta| meta.ino() == born);
        if gone || is_told_to_end() {
            self.fail_all();
            return true;
        }
        false
    }
}

/// SIGTERM waits until there is no agent.
fn is_told_to_end() -> bool {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is filled in before it is read.
    unsafe {
        libc::sigpending(set.as_mut_ptr()) == 0 && libc::sigismember(&set.assume_init(), libc::SIGTERM) == 1
    }
}

impl Inner {
    fn is_agent(&self, pid: i32) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.pid == pid)
    }

    fn waiting(&self) -> impl Iterator<Item = Access> + '_ {
        self.pending.values().filter_map(|pending| pending.access)
    }

    /// Tells the agent what it does not know yet.
    fn send(&mut self) {
        let Some(agent) = &self.agent else { return };
        for pending in self.pending.values_mut().filter(|pending| !pending.sent) {
            let Some(access) = pending.access else { continue };
            // It has much to read, or is gone: later.
            if agent.socket.send(&ToAgent::Access(access), None).is_err() {
                break;
            }
            pending.sent = true;
        }
    }
}

/// Where in a list of mappings (proc_pid_maps(5)) a file of that number and name is.
fn mapped_at(maps: &[u8], ino: u64, name: &str) -> Option<String> {
    maps.split(|byte| *byte == b'\n').filter(|line| line.ends_with(name.as_bytes())).find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let place = fields.next()?;
        let number = std::str::from_utf8(fields.nth(3)?).ok()?;
        (number.parse() == Ok(ino)).then(|| String::from_utf8_lossy(place).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::super::fanotify::Marked;
    use super::*;

    /// Who opens a file while the agent is dying is told to it and never answered. A file whose mark has only outlived what was
    /// absent needs no agent.
    #[test]
    fn what_is_here_is_let_through_when_the_agent_dies_before_it_answers() {
        let Ok(group) = Group::new() else {
            eprintln!("skipped: no fanotify here (it takes CAP_SYS_ADMIN)");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let own: OwnedFd = File::open(dir.path()).unwrap().into();
        let listener = Listener::bind(own.as_fd(), "s").unwrap();
        let _agent = super::super::wire::connect(own.as_fd(), "s").unwrap();
        let socket = Arc::new(listener.accept().unwrap());
        let table = crate::session::ResidencyTable::anonymous().unwrap();
        table.set_absent(8);
        let supervisor = Supervisor { group, inner: Mutex::default(), room: Condvar::new(), most: 8 };
        {
            let mut inner = supervisor.inner();
            inner.table = Some(Arc::new(ShownTable::of_file(&table.file()).unwrap()));
            inner.agent = Some(Agent { socket, pid: 1 });
            for ino in [7, 8] {
                let file: OwnedFd = File::open(dir.path()).unwrap().into();
                let access = Access { id: file.as_raw_fd(), ino, is_dir: false, range: None, pid: 0 };
                inner.pending.insert(access.id, Pending { access: Some(access), sent: true, file });
            }
        }
        supervisor.pass_orphans();
        assert_eq!(supervisor.inner().pending.len(), 2, "the agent may answer");
        supervisor.agent_gone();
        let waiting: Vec<u64> = supervisor.inner().waiting().map(|access| access.ino).collect();
        assert_eq!(waiting, [8]);
    }

    /// The agent opens what is marked to take it away, and asks who else has it open before it looks at anything else.
    #[test]
    fn who_was_answered_is_alone_with_the_file() {
        let Ok(group) = Group::new() else {
            eprintln!("skipped: no fanotify here (it takes CAP_SYS_ADMIN)");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = File::create(&path).unwrap();
        group.mark_handle(file.as_fd(), Marked::File).unwrap();
        drop(file);
        let supervisor = Supervisor { group, inner: Mutex::default(), room: Condvar::new(), most: 8 };
        let opener = {
            let path = path.clone();
            std::thread::spawn(move || File::open(path).unwrap())
        };
        supervisor.group.wait().unwrap().into_iter().for_each(|event| supervisor.take(event));
        let mut pending = std::mem::take(&mut supervisor.inner().pending);
        let (id, Pending { mut file, .. }) = pending.pop_first().unwrap();
        let open = || {
            let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten().map(|fd| fd.path());
            links.filter(|fd| std::fs::read_link(fd).is_ok_and(|link| link == path)).count()
        };
        assert_eq!(open(), 1, "who waits has no number yet, and is found by the event's");
        supervisor.group.let_go(&mut file).unwrap();
        assert_eq!((open(), file.as_raw_fd()), (0, id));
        // Nor is the number given to another one before the answer is through.
        supervisor.answer(file, 0);
        let own = opener.join().unwrap();
        assert_eq!(open(), 1);
        drop(own);
    }

    #[test]
    fn a_client_has_the_control_page_mapped() {
        let maps = b"7f00-7f01 r--p 00000000 fe:00 4711                       /usr/lib/x y\n\
                     7f02-7f03 rw-p 00000000 00:00 0 \n\
                     7f04-7f05 r--s 00000000 00:2a 12 /run/storeshim/control\n";
        assert_eq!(mapped_at(maps, 12, "control").unwrap(), "7f04-7f05");
        assert!(mapped_at(maps, 13, "control").is_none() && mapped_at(maps, 4711, "control").is_none());
    }
}
