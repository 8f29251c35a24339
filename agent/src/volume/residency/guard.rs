//! Guards files of which something is absent against programs that do not ask: a lease on each, as far as there are descriptors
//! for it, so that who opens one waits until it is here as a whole. It must not know how anything gets here.
//!
//! The kernel waits for a lease to end no longer than /proc/sys/fs/lease-break-time says (45 s). What cannot be brought here
//! by then is opened all the same, and reads as zeros where it is absent: counted as `lease_overruns`. A file that somebody
//! has open already cannot be guarded at all.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use storeshim_protocol::request::{Answer, Ask, Pin};

use super::waiters::waiters;
use super::{Residency, find, lease, openers};
use crate::session::Reply;
use crate::volume::VolumeError;
use crate::volume::index::Absent;
use crate::volume::status::Mutex;

/// Files that are guarded at most, and one in so many of the descriptors that this process may have.
const MOST: u64 = 4096;
const PART: u64 = 4;
/// What waits to be guarded, at most: the newest.
const QUEUE: usize = MOST as usize;
/// New guards at a time, and the rest after them: a start may wish for thousands.
const STEP: usize = 64;
const REST: Duration = Duration::from_millis(20);
/// How often the leases themselves are asked: a signal may get lost.
const ROUND: Duration = Duration::from_secs(1);
/// When a file that could not be guarded is tried again: first, when it may have been closed again, and at last; between them each
/// pause is twice as long as the one before.
const AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// Files up to this size are fetched whole when a program opens them that will ask for what it reads.
const SMALL: u64 = 8 << 20;
/// Until then whoever wants to open a file stands in the kernel's list of those who wait: the signal comes before that.
const SEEN: Duration = Duration::from_millis(20);
/// Between the first two looks for him: he is on his way there, and waits for this. Each pause after it is twice as long: every
/// look reads the whole list, and holds up who changes it.
const LOOK: Duration = Duration::from_micros(200);
/// So long after he was let in, who opens a file has opened it.
const OPENING: Duration = Duration::from_millis(50);
/// See the module.
pub struct Guards {
    most: usize,
    inner: Mutex<Inner>,
    held: AtomicU64,
    /// The thread that holds the guards; 0: there is none.
    thread: AtomicI32,
}

#[derive(Default)]
struct Inner {
    /// By kernel inode number.
    held: HashMap<u64, Guard>,
    /// The same, the oldest first, and some that are not held any more.
    order: VecDeque<u64>,
    /// Volume inodes that are to be guarded, the newest last.
    queue: VecDeque<u64>,
    /// The same, but not before then: somebody is about to open them.
    opening: VecDeque<(Instant, u64)>,
}

struct Guard {
    inode: u64,
    file: Arc<File>,
    /// Somebody wants to open it.
    broken: Option<Broken>,
}

#[derive(Clone, Copy)]
struct Broken {
    since: Instant,
    /// It was looked for who that is.
    seen: bool,
    /// The file is being fetched for him.
    fetching: bool,
}

/// What could not be guarded for now.
#[derive(Default)]
struct Later {
    due: BTreeSet<(Instant, u64)>,
    /// When each of them is tried, or is being tried since, and the pause before that.
    tries: HashMap<u64, (Instant, Duration)>,
}

impl Later {
    /// A file was tried; `again`: it is to be tried again, where there are not more than `most`.
    fn judge(&mut self, inode: u64, again: bool, most: usize) {
        let before = self.tries.remove(&inode);
        if let Some((at, _)) = before {
            self.due.remove(&(at, inode));
        }
        if again && self.tries.len() < most {
            let pause = before.map_or(AGAIN.0, |(_, pause)| (pause * 2).min(AGAIN.1));
            let at = Instant::now() + pause;
            self.tries.insert(inode, (at, pause));
            self.due.insert((at, inode));
        }
    }

    /// Takes those that are to be tried now.
    fn due(&mut self, now: Instant) -> impl Iterator<Item = u64> + use<> {
        let rest = self.due.split_off(&(now, u64::MAX));
        std::mem::replace(&mut self.due, rest).into_iter().map(|(_, inode)| inode)
    }

    /// How long until the next one, if that is less than `most`.
    fn next(&self, most: Duration) -> Duration {
        self.due.first().map_or(most, |(at, _)| at.saturating_duration_since(Instant::now()).min(most))
    }
}

impl Broken {
    fn new() -> Self {
        Self { since: Instant::now(), seen: false, fetching: false }
    }
}

impl Default for Guards {
    fn default() -> Self {
        let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft) / PART;
        let (inner, held) = (Mutex::default(), AtomicU64::new(0));
        Self { most: most.min(MOST) as usize, inner, held, thread: AtomicI32::new(0) }
    }
}

impl Guards {
    /// A file of which something is absent is to be guarded. Returns at once.
    pub fn want(&self, inode: u64) {
        let mut inner = self.inner.lock();
        let first = inner.queue.is_empty();
        inner.queue.push_back(inode);
        if inner.queue.len() > QUEUE {
            inner.queue.pop_front();
        }
        drop(inner);
        if first {
            self.wake();
        }
    }

    /// Wakes the thread: until a file is guarded, who does not ask may open it.
    fn wake(&self) {
        let thread = self.thread.load(Ordering::Acquire);
        if thread != 0 {
            lease::wake(thread);
        }
    }

    /// Files that are guarded.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// The guard's descriptor of a file that somebody waits to open.
    pub fn waited_for(&self, ino: u64) -> Option<Arc<File>> {
        let inner = self.inner.lock();
        inner
            .held
            .get(&ino)
            .filter(|guard| lease::is_breaking(&guard.file))
            .map(|guard| Arc::clone(&guard.file))
    }

    /// Whether a kernel inode is guarded.
    pub fn has(&self, ino: u64) -> bool {
        self.inner.lock().held.contains_key(&ino)
    }

    /// Gives a guard up, of a kernel inode; whether there was one.
    pub fn drop_guard(&self, ino: u64) -> bool {
        self.take(ino).is_some()
    }

    /// The lease ends when what is returned is dropped.
    fn take(&self, ino: u64) -> Option<Guard> {
        let mut inner = self.inner.lock();
        let guard = inner.held.remove(&ino);
        self.held.store(inner.held.len() as u64, Ordering::Relaxed);
        guard
    }

    fn is_fetching(&self, ino: u64) -> bool {
        let inner = self.inner.lock();
        inner.held.get(&ino).and_then(|guard| guard.broken).is_some_and(|broken| broken.fetching)
    }

    fn insert(&self, ino: u64, guard: Guard) {
        let mut inner = self.inner.lock();
        inner.held.insert(ino, guard);
        inner.order.push_back(ino);
        let mut spared = 0;
        while inner.held.len() > self.most {
            let Some(oldest) = inner.order.pop_front() else { break };
            if spared < self.most
                && inner.held.get(&oldest).is_some_and(|guard| lease::is_breaking(&guard.file))
            {
                // Who waits there would read what is not here.
                inner.order.push_back(oldest);
                spared += 1;
            } else {
                inner.held.remove(&oldest);
            }
        }
        if inner.order.len() > 2 * self.most + STEP {
            let Inner { held, order, .. } = &mut *inner;
            order.retain(|ino| held.contains_key(ino));
        }
        self.held.store(inner.held.len() as u64, Ordering::Relaxed);
    }

    /// What was let go for somebody is to be guarded again; whether there is any more of that.
    fn reconsider(&self) -> bool {
        let mut inner = self.inner.lock();
        while let Some((_, inode)) = inner.opening.pop_front_if(|(at, _)| *at <= Instant::now()) {
            inner.queue.push_back(inode);
        }
        !inner.opening.is_empty()
    }

    fn of_descriptor(&self, fd: i32) -> Option<u64> {
        let inner = self.inner.lock();
        inner.held.iter().find(|(_, guard)| guard.file.as_raw_fd() == fd).map(|(ino, _)| *ino)
    }

    fn broken(&self) -> Vec<u64> {
        let inner = self.inner.lock();
        inner.held.iter().filter(|(_, guard)| lease::is_breaking(&guard.file)).map(|(ino, _)| *ino).collect()
    }

    fn fetching(&self, ino: u64, fetching: bool) {
        if let Some(broken) = self.inner.lock().held.get_mut(&ino).and_then(|guard| guard.broken.as_mut()) {
            broken.fetching = fetching;
        }
    }

    /// Of which it was not to be seen yet who wants to open them.
    fn unseen(&self) -> Vec<u64> {
        let inner = self.inner.lock();
        let unseen = |guard: &Guard| guard.broken.is_some_and(|broken| !broken.seen);
        inner.held.iter().filter(|(_, guard)| unseen(guard)).map(|(ino, _)| *ino).collect()
    }

    /// Those of which nothing may be absent any more.
    fn some(&self) -> Vec<(u64, u64)> {
        self.inner.lock().held.iter().map(|(ino, guard)| (*ino, guard.inode)).collect()
    }
}

impl Residency {
    /// The descriptor by which a guard is held: the file can be read and written by it. Another one would break the lease.
    pub fn lend_guard(&self, ino: u64) -> Option<Arc<File>> {
        self.guards.inner.lock().held.get(&ino).map(|guard| Arc::clone(&guard.file))
    }

    /// A file to read it, by its guard if it has one. Its lock is held.
    ///
    /// # Errors
    /// Those of open(2).
    pub(super) fn open_to_look(&self, found: &find::Inode) -> std::io::Result<Arc<File>> {
        match self.lend_guard(found.stat.id.ino) {
            Some(file) => Ok(file),
            None => found.open(self, libc::O_RDONLY | libc::O_NONBLOCK).map(Arc::new),
        }
    }

    /// Whether all of these processes ask before they read.
    fn all_ask(&self, pids: &[u32]) -> bool {
        let (own, hooked) = (std::process::id(), self.shared.gate().hooked());
        // Nor does this process read what it has not asked for.
        pids.iter().all(|pid| *pid == own || openers::is_hooked(*pid, &hooked))
    }

    /// Guards a file that has no name yet but `name` on the stage, once the index knows what it lacks: there is no moment in which who
    /// opens it would find zeros. Where that fails it is tried when it has one.
    pub(super) fn guard_placeholder(&self, inode: u64, ino: u64, name: &str) {
        let thread = self.guards.thread.load(Ordering::Acquire);
        if thread == 0 {
            return;
        }
        // It has another name that is kept, perhaps, by which it can be found.
        let _locked = self.files.lock(inode);
        if let Ok(file) = self.stage.open_file(name)
            && lease::watch(&file, thread).is_ok()
        {
            self.guards.insert(ino, Guard { inode, file: Arc::new(file), broken: None });
        }
    }

    /// Guards a file of which something has just gone, by a descriptor that has a lease on it already: there is no moment in
    /// which who opens it would find zeros. Its lock is held.
    pub(super) fn guard_on(&self, inode: u64, ino: u64, file: File) {
        let thread = self.guards.thread.load(Ordering::Acquire);
        if thread != 0 && lease::tell(&file, thread).is_ok() {
            // Who came before that has told nobody.
            let broken = lease::is_breaking(&file).then(Broken::new);
            self.guards.insert(ino, Guard { inode, file: Arc::new(file), broken });
            if broken.is_some() {
                self.guards.wake();
            }
        }
    }

    /// Guards what is absent already: the files that were populated last, as far as numbers tell.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn guard_known(&self) -> Result<(), VolumeError> {
        self.index.absentees(|absentee| {
            if matches!(absentee.what, Absent::Pieces(_)) {
                self.guards.want(absentee.inode);
            }
            Ok(())
        })
    }

    /// From now on the calling thread is told when a lease is to end; what [`Residency::keep_guards`] needs. `None` where it cannot
    /// be.
    pub fn listen(&self) -> Option<lease::Signals> {
        let signals = lease::listen()?;
        self.guards.thread.store(nix::unistd::gettid().as_raw(), Ordering::Release);
        Some(signals)
    }

    /// Holds the leases, in the thread that has listened, until it is `ended`.
    pub fn keep_guards(self: &Arc<Self>, signals: &lease::Signals, ended: &dyn Fn() -> bool) {
        let mut looked = Instant::now();
        let (mut look, mut stepped) = (LOOK, Instant::now());
        let mut later = Later::default();
        while !ended() {
            // Looks are more frequent than steps.
            let steps = if look == LOOK || stepped.elapsed() >= REST { STEP } else { 0 };
            if steps > 0 {
                stepped = Instant::now();
            }
            for _ in 0..steps {
                let Some(inode) = self.guards.inner.lock().queue.pop_back() else { break };
                later.judge(inode, self.guard(inode).is_some_and(|again| again), self.guards.most);
            }
            for inode in later.due(Instant::now()) {
                later.judge(inode, self.guard(inode).is_some_and(|again| again), self.guards.most);
            }
            let unseen = self.guards.unseen();
            unseen.iter().for_each(|ino| self.guard_broken(*ino));
            let opening = self.guards.reconsider();
            let pause = match (unseen.is_empty(), opening || !self.guards.inner.lock().queue.is_empty()) {
                (false, _) => look,
                (true, true) => REST,
                (true, false) => later.next(5 * REST),
            };
            look = if unseen.is_empty() { LOOK } else { (look * 2).min(REST / 2) };
            if let Some(fd) = lease::wait(signals, pause)
                && let Some(ino) = self.guards.of_descriptor(fd)
            {
                self.guard_broken(ino);
            }
            if looked.elapsed() >= ROUND {
                looked = Instant::now();
                self.settle_lost();
                self.tidy_marks();
                self.guards.broken().into_iter().for_each(|ino| self.guard_broken(ino));
                for (ino, inode) in self.guards.some() {
                    if self.files.try_lock(inode).is_some_and(|locked| {
                        locked.absent(&self.index).is_ok_and(|absent| absent.is_empty())
                    }) {
                        self.guards.drop_guard(ino);
                    }
                }
            }
        }
        self.guards.thread.store(0, Ordering::Release);
        let mut inner = self.guards.inner.lock();
        *inner = Inner::default();
    }

    /// Takes the lease of one file; whether to try it again later. `None`: it needs none.
    fn guard(&self, inode: u64) -> Option<bool> {
        let Some(found) = self.at_its_place(inode).ok()? else {
            // It has moved, and the next cut says where to.
            return Some(self.index.absent(inode).ok()?.is_some());
        };
        let ino = found.stat.id.ino;
        // Held until the guard is known: who brings data under it finds either no lease, or whose it is.
        let Some(locked) = self.files.try_lock(inode) else { return Some(true) };
        let absent = !locked.absent(&self.index).ok()?.is_empty();
        if !found.stat.is_file() || !absent || self.marks.has(ino) || self.guards.has(ino) {
            return None;
        }
        // What is open for writing cannot be executed: who wants to waits, and with its last piece the guard goes.
        let file = match found.open_until(self, libc::O_RDWR | libc::O_NONBLOCK, Instant::now()) {
            Ok(file) => file,
            // A lease that is ending.
            Err(error) => return Some(error.raw_os_error() == Some(libc::EWOULDBLOCK)),
        };
        match lease::watch(&file, nix::unistd::gettid().as_raw()) {
            Ok(()) => {
                self.guards.insert(ino, Guard { inode, file: Arc::new(file), broken: None });
                None
            }
            Err(error) => Some(error.raw_os_error() == Some(libc::EAGAIN)),
        }
    }

    /// Lets in who asks before he reads, and does not wait for a lease: an open with O_NONBLOCK. Whoever else waits there would go
    /// in with him: if one of them does not ask, all of the file comes first.
    ///
    /// # Errors
    /// As [`Residency::hydrate`].
    pub fn let_in(self: &Arc<Self>, ino: u64) -> Result<(), VolumeError> {
        if self.guards.is_fetching(ino) || !self.all_ask(&waiters(ino)) {
            self.hydrate(ino, 0, u64::MAX, Pin::Open)?;
        }
        if let Some(inode) = self.let_go(ino) {
            self.expect(ino, inode);
        }
        Ok(())
    }

    /// Ends a guard for who asks before he reads; of which inode. It is guarded again when he has opened it and closed it.
    fn let_go(&self, ino: u64) -> Option<u64> {
        let guard = self.guards.take(ino)?;
        // A look may have it by the same descriptor for long. Who brings data has the lock and relies on the lease: then it ends
        // with the last descriptor.
        if let Some(_locked) = self.files.try_lock(guard.inode) {
            lease::release(guard.file.as_fd());
        }
        // Before he has opened it a new lease would stop him again; on older kernels (before 6.1 or so) without a word.
        self.guards.inner.lock().opening.push_back((Instant::now() + OPENING, guard.inode));
        Some(guard.inode)
    }

    /// Who opens a small file will read it.
    fn expect(self: &Arc<Self>, ino: u64, inode: u64) {
        if self.index.seen(inode).is_ok_and(|seen| seen.is_some_and(|seen| seen.size <= SMALL)) {
            self.request(Ask::Hint { ino, start: 0, end: u64::MAX }, Box::new(Ignored));
        }
    }

    /// Somebody wants to open a file, or did when a signal was sent whose descriptor may be another guard's by now.
    fn guard_broken(self: &Arc<Self>, ino: u64) {
        let waiters = waiters(ino);
        let (inode, Broken { since, fetching, .. }) = {
            let mut inner = self.guards.inner.lock();
            let Some(guard) = inner.held.get_mut(&ino) else { return };
            if !lease::is_breaking(&guard.file) {
                return;
            }
            if guard.broken.is_none() {
                self.shared.count("lease_breaks", 1);
            }
            let broken = guard.broken.get_or_insert_with(Broken::new);
            broken.seen |= !waiters.is_empty() || broken.since.elapsed() >= SEEN;
            if !broken.seen {
                return;
            }
            (guard.inode, *broken)
        };
        // Whoever is still not to be seen is in another pid namespace, or has not waited: he may come again.
        if !waiters.is_empty() && self.all_ask(&waiters) {
            self.let_go(ino);
            if !waiters.contains(&std::process::id()) {
                self.expect(ino, inode);
            }
            return;
        }
        if since.elapsed() >= lease::break_time() {
            self.shared.count("lease_overruns", 1);
            tracing::warn!(
                ino,
                pids = ?waiters,
                "a program without the shim has opened a file that could not be brought here in the time that the kernel \
                 gives: what is absent of it reads as zeros; start the program under the shim, or warm the file up first"
            );
            self.guards.drop_guard(ino);
            return;
        }
        if !fetching {
            self.guards.fetching(ino, true);
            let reply = Whole { residency: Arc::downgrade(self), ino };
            self.request(Ask::Hydrate { ino, start: 0, end: u64::MAX, pin: Pin::Open }, Box::new(reply));
        }
    }
}

/// Lets a file go once it is here.
struct Whole {
    residency: Weak<Residency>,
    ino: u64,
}

impl Reply for Whole {
    fn answer(self: Box<Self>, answer: Answer) {
        let Some(residency) = self.residency.upgrade() else { return };
        if answer.errno == 0 {
            residency.guards.drop_guard(self.ino);
        } else {
            // Whoever waits goes on waiting while there is time: the next round tries again.
            residency.guards.fetching(self.ino, false);
        }
    }
}

struct Ignored;
impl Reply for Ignored {
    fn answer(self: Box<Self>, _: Answer) {}
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn who_waits_at_a_guard_does_not_lose_it_to_newer_ones() {
        let dir = tempfile::tempdir().unwrap();
        lease::listen().unwrap();
        let guards = Guards { most: 2, ..Guards::default() };
        let make = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "x").unwrap();
            let file = File::open(&path).unwrap();
            lease::watch(&file, nix::unistd::gettid().as_raw()).unwrap();
            (path, Arc::new(file))
        };
        let insert = |ino: u64, file: &Arc<File>| {
            guards.insert(ino, Guard { inode: ino, file: Arc::clone(file), broken: None });
        };
        let (path, waited) = make("waited");
        insert(1, &waited);
        let opener = std::thread::spawn(move || std::fs::read(&path).unwrap());
        while !lease::is_breaking(&waited) {
            std::thread::sleep(Duration::from_millis(1));
        }
        for (ino, name) in (2..).zip(["a", "b", "c"]) {
            insert(ino, &make(name).1);
        }
        let held: std::collections::BTreeSet<u64> = guards.some().into_iter().map(|(ino, _)| ino).collect();
        assert_eq!((held, guards.held()), ([1, 4].into(), 2));
        assert!(!opener.is_finished());
        guards.drop_guard(1);
        drop(waited);
        assert_eq!(opener.join().unwrap(), b"x");
    }

    #[test]
    fn what_cannot_be_guarded_is_tried_less_and_less_often() {
        let mut later = Later::default();
        let tried = |later: &mut Later| later.due(Instant::now() + 2 * AGAIN.1).collect::<Vec<u64>>();
        for pause in [AGAIN.0, 2 * AGAIN.0, 4 * AGAIN.0] {
            // It may be wanted besides.
            later.judge(5, true, 9);
            assert_eq!(later.tries[&5].1, pause);
            assert!(later.next(AGAIN.1) <= pause);
            assert_eq!(tried(&mut later), [5]);
        }
        (0..20).for_each(|_| later.judge(5, true, 9));
        later.judge(6, true, 1);
        assert_eq!((later.tries[&5].1, tried(&mut later)), (AGAIN.1, vec![5]));
        later.judge(5, false, 9);
        assert!(tried(&mut later).is_empty());
        later.judge(5, true, 9);
        assert_eq!(later.tries[&5].1, AGAIN.0);
    }
}
