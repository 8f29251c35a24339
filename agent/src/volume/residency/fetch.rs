//! Reads ranges of packs, several at a time: those that somebody waits for before those that are read ahead, each range
//! once however many want it. It must not know what is in a pack.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rand::RngExt;

use crate::blob::{Blob, BlobError};
use crate::meta::records::PackId;
use crate::volume::VolumeError;
use crate::volume::status::Shared;

/// Reads under way at once.
const THREADS: usize = 16;
/// So many of them are kept for what somebody waits for.
const RESERVED: usize = 4;
/// Bounds of the pause between two tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Longest wait for reads under way, at the end, and between two looks at whether they are over.
const STOP: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(1);
/// Bytes that were read lately and are kept: neighbours in a pack are often wanted one after another.
const RECENT: usize = 16 << 20;

/// What became of a read.
pub type Fetched = Result<Bytes, VolumeError>;

/// See the module.
pub struct Fetcher {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Inner {
    blob: Arc<dyn Blob>,
    shared: Arc<Shared>,
    queue: Mutex<Queue>,
    more: Condvar,
    /// Wakes those that pause, at the end.
    ended: Condvar,
    /// When something was read last.
    read: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Queue {
    flights: Vec<Flight>,
    next: u64,
    /// Reads ahead that are under way.
    ahead: usize,
    recent: VecDeque<(PackId, Range<u64>, Bytes)>,
    recent_bytes: usize,
    stopped: bool,
}

/// A read that is queued or under way.
struct Flight {
    number: u64,
    pack: PackId,
    range: Range<u64>,
    urgent: bool,
    started: bool,
    /// Until when it is tried again.
    until: Instant,
    /// Until when who asked first waited: later it is not to be relied on any more.
    due: Instant,
    waiters: Vec<(Range<u64>, Sender<Fetched>)>,
}

impl Fetcher {
    /// Starts the reading threads.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(blob: &Arc<dyn Blob>, shared: &Arc<Shared>) -> std::io::Result<Self> {
        let inner = Arc::new(Inner {
            blob: Arc::clone(blob),
            shared: Arc::clone(shared),
            queue: Mutex::default(),
            more: Condvar::new(),
            ended: Condvar::new(),
            read: Mutex::new(None),
        });
        let mut threads = Vec::with_capacity(THREADS);
        for n in 0..THREADS {
            let inner = Arc::clone(&inner);
            threads.push(std::thread::Builder::new().name(format!("fetch-{n}")).spawn(move || inner.run())?);
        }
        Ok(Self { inner, threads: Mutex::new(threads) })
    }

    /// Reads a range of a pack; while the backend refuses for now, again `until` then. `urgent`: somebody waits for it.
    pub fn get(&self, pack: PackId, range: Range<u64>, urgent: bool, until: Instant) -> Receiver<Fetched> {
        let (to, answer) = bounded(1);
        let mut queue = self.inner.queue();
        let within = |outer: &Range<u64>| outer.start <= range.start && range.end <= outer.end;
        if queue.stopped {
            let _ = to.send(Err(VolumeError::closed()));
        } else if let Some((_, outer, bytes)) =
            queue.recent.iter().find(|(p, outer, _)| *p == pack && within(outer))
        {
            let _ = to.send(Ok(part_of(bytes, outer, &range)));
        } else if let Some(flight) = queue
            .flights
            .iter_mut()
            .find(|f| f.pack == pack && within(&f.range) && (!f.started || Instant::now() < f.due))
        {
            flight.until = flight.until.max(until);
            flight.urgent |= urgent;
            flight.waiters.push((range, to));
        } else {
            let number = queue.next;
            queue.next += 1;
            let waiters = vec![(range.clone(), to)];
            let flight = Flight { number, pack, range, urgent, started: false, until, due: until, waiters };
            queue.flights.push(flight);
        }
        drop(queue);
        self.inner.more.notify_one();
        answer
    }

    /// Waits for what [`Fetcher::get`] has promised somebody who waits: until `until`, and beyond that for as long as something is
    /// read at all within `patience`. (Many may wait for a slow backend.)
    ///
    /// # Errors
    /// Those of the read; one where nothing came.
    pub fn wait(&self, answer: &Receiver<Fetched>, until: Instant, patience: Duration) -> Fetched {
        let mut deadline = until;
        loop {
            match answer.recv_deadline(deadline) {
                Ok(fetched) => return fetched,
                Err(RecvTimeoutError::Disconnected) => return Err(VolumeError::closed()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let read = *self.inner.read.lock().unwrap_or_else(PoisonError::into_inner);
            match read.map(|read| read + patience).filter(|later| *later > Instant::now()) {
                Some(later) => deadline = later,
                None => {
                    let why = format!("the backend has not answered for {} s", patience.as_secs_f32());
                    self.inner.shared.backend_refuses(&why);
                    return Err(VolumeError::Failed(why));
                }
            }
        }
    }

    /// Gives up what is queued, and ends the threads.
    pub fn stop(&self) {
        self.inner.queue().stopped = true;
        self.inner.more.notify_all();
        self.inner.ended.notify_all();
        let deadline = Instant::now() + STOP;
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(TICK);
            }
            // One that the backend does not answer is left to its request: nobody waits for it.
            if thread.is_finished() {
                // A thread that panicked has taken the process with it.
                let _ = thread.join();
            }
        }
    }
}

fn part_of(bytes: &Bytes, outer: &Range<u64>, range: &Range<u64>) -> Bytes {
    let (start, end) = ((range.start - outer.start) as usize, (range.end - outer.start) as usize);
    // What is shorter than asked is found out by its hash.
    bytes.slice(start.min(bytes.len())..end.min(bytes.len()))
}

impl Inner {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some((number, pack, range, ahead)) = self.take() {
            let fetched = self.fetch(number, &pack, &range);
            let mut queue = self.queue();
            queue.ahead -= usize::from(ahead);
            let Some(at) = queue.flights.iter().position(|f| f.number == number) else { continue };
            let flight = queue.flights.swap_remove(at);
            if let Ok(bytes) = &fetched {
                queue.remember(pack, range.clone(), bytes.clone());
            }
            drop(queue);
            for (part, to) in flight.waiters {
                // Whoever asked may have given up.
                let _ = to
                    .send(fetched.as_ref().map(|bytes| part_of(bytes, &range, &part)).map_err(Clone::clone));
            }
            // A place for a read ahead may be free.
            self.more.notify_one();
        }
    }

    /// The next flight to start; `None` at the end.
    fn take(&self) -> Option<(u64, PackId, Range<u64>, bool)> {
        let mut queue = self.queue();
        loop {
            if queue.stopped {
                for flight in queue.flights.drain(..) {
                    flight.waiters.into_iter().for_each(|(_, to)| _ = to.send(Err(VolumeError::closed())));
                }
                return None;
            }
            let may_read_ahead = queue.ahead < THREADS - RESERVED;
            let open = |f: &&mut Flight| !f.started && (f.urgent || may_read_ahead);
            if let Some(flight) = queue.flights.iter_mut().filter(open).min_by_key(|f| (!f.urgent, f.number))
            {
                flight.started = true;
                let taken = (flight.number, flight.pack, flight.range.clone(), !flight.urgent);
                queue.ahead += usize::from(taken.3);
                return Some(taken);
            }
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn fetch(&self, number: u64, pack: &PackId, range: &Range<u64>) -> Fetched {
        let mut pause = RETRY.0;
        loop {
            let why = match self.blob.get(pack, range.clone()) {
                Ok(bytes) => {
                    self.shared.backend_answers();
                    *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                    self.shared.count("gets", 1);
                    self.shared.count("got_bytes", bytes.len() as u64);
                    return Ok(bytes);
                }
                Err(BlobError::Unavailable(why)) => why,
                Err(BlobError::Fenced) => return Err(VolumeError::Fenced),
                Err(BlobError::Missing(why) | BlobError::Refused(why)) => {
                    return Err(VolumeError::Failed(why));
                }
            };
            self.shared.backend_refuses(&why);
            let pause_now = pause.mul_f64(rand::rng().random_range(0.5..1.5));
            pause = (pause * 2).min(RETRY.1);
            let queue = self.queue();
            let until = queue.flights.iter().find(|f| f.number == number).map(|f| f.until);
            if queue.stopped || until.is_none_or(|until| Instant::now() + pause_now >= until) {
                return Err(VolumeError::Failed(why));
            }
            // Not slept through: the volume may be closed meanwhile.
            drop(self.ended.wait_timeout(queue, pause_now));
        }
    }
}

impl Queue {
    fn remember(&mut self, pack: PackId, range: Range<u64>, bytes: Bytes) {
        self.recent_bytes += bytes.len();
        self.recent.push_back((pack, range, bytes));
        while self.recent_bytes > RECENT
            && let Some((_, _, bytes)) = self.recent.pop_front()
        {
            self.recent_bytes -= bytes.len();
        }
    }
}
