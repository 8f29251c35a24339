//! The one lasting link with a volume's Durable Object: what was asked and is not answered, the epoch that is held, and what
//! becomes of both when a connection breaks. It must not know what carries the bytes (`connection`, `transport`), nor
//! what a request means.
//!
//! Nothing is forgotten that was not answered: a new connection comes back to the same epoch with the same nonce, and what
//! is unanswered is sent again, commits in their order. A commit that was made and whose answer was lost is told by its
//! number and nonce and answered as it was the first time, so that being asked twice does nothing twice.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};

use super::commits::{Commit, Encoded};
use super::files::Files;
use super::wire::frame::{self, Frame, Message};
use super::wire::messages::{self, Nonce, Opened, op};
use super::wire::{Code, Result, WireError};
use crate::blob::{Counted, Health, Kind};
use crate::meta::{Until, left};

/// A read or a pack that is not answered within this is `Unavailable`; who asked may ask again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bounds of the pause before commits that were refused for now are sent again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A volume that is given back is waited for this long.
const GOODBYE: Duration = Duration::from_secs(5);

/// The body of a request: what leads it, and bytes that are not copied for it.
#[derive(Clone, Debug, Default)]
pub struct Body(pub Bytes, pub Bytes);

impl Body {
    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len() + self.1.len()
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Bytes::from(bytes), Bytes::new())
    }
}

/// A message that is to be sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// What leads it.
    pub frame: Frame,
    /// Its body.
    pub body: Body,
}

/// A request that may be asked again at any time.
struct Call {
    op: u8,
    body: Body,
    /// Bytes of the request and of the answer that it asks for.
    cost: usize,
    done: oneshot::Sender<Result<Bytes>>,
}

/// Called once, with what became of a commit; it must not block.
pub type OnCommit = Box<dyn FnOnce(Result<()>) + Send>;

/// What was sent over the present connection and is not answered.
enum Sent {
    Open,
    Commit(Piece),
    Call(Call),
}

/// A message of a commit.
#[derive(Clone, Copy)]
struct Piece {
    number: u64,
    place: usize,
    bytes: usize,
}

/// What the other side takes at once.
#[derive(Clone, Copy)]
struct Limits {
    requests: usize,
    bytes: usize,
}

struct State {
    nonce: Nonce,
    /// Ours; 0 before the volume was opened.
    epoch: u64,
    /// Commits of the volume, as last heard.
    version: u64,
    /// Counts connections; what an older one says is not heeded.
    connection: u64,
    /// The present connection has opened the volume.
    ready: bool,
    limits: Limits,
    next_id: u64,
    sent: HashMap<u64, Sent>,
    sent_bytes: usize,
    commits: VecDeque<Commit>,
    /// Number of the last commit that was handed over, and of the last that was answered.
    submitted: u64,
    acknowledged: u64,
    commits_refused: u32,
    commits_wait: Option<Instant>,
    calls: VecDeque<Call>,
    bulk: VecDeque<Call>,
    answers: VecDeque<Outgoing>,
    /// Requests of the Worker that are being answered.
    serving: usize,
    trouble: Option<String>,
    fatal: Option<WireError>,
    closing: bool,
    files: Option<Weak<dyn Files>>,
}

/// See the module. Connections and engines share it.
pub struct Link {
    state: Mutex<State>,
    changed: Condvar,
    /// There may be something to send.
    pub wake: Notify,
    /// Which connection is the present one; `u64::MAX` when there will be no other.
    present: watch::Sender<u64>,
    /// The runtime of its connections.
    pub handle: Handle,
    /// Counters and trouble, for the status.
    pub health: Arc<Health>,
    /// The volume's URL without secrets.
    pub shown: String,
}

impl Link {
    /// A link without a connection.
    pub fn new(handle: Handle, shown: String) -> Arc<Self> {
        let state = State {
            nonce: rand::random(),
            epoch: 0,
            version: 0,
            connection: 0,
            ready: false,
            limits: Limits { requests: 1, bytes: 1 },
            next_id: 0,
            sent: HashMap::new(),
            sent_bytes: 0,
            commits: VecDeque::new(),
            submitted: 0,
            acknowledged: 0,
            commits_refused: 0,
            commits_wait: None,
            calls: VecDeque::new(),
            bulk: VecDeque::new(),
            answers: VecDeque::new(),
            serving: 0,
            trouble: None,
            fatal: None,
            closing: false,
            files: None,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            wake: Notify::new(),
            present: watch::channel(0).0,
            handle,
            health: Arc::default(),
            shown,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What engines ask for. From plain threads only.

    /// Waits until the volume is open.
    pub fn wait_open(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        loop {
            if let Some(error) = &state.fatal {
                return Err(error.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ready {
                return Ok(());
            }
            if left.is_zero() {
                let trouble = state.trouble.clone().unwrap_or_else(|| "nobody has connected".into());
                return Err(WireError::unavailable(format!(
                    "the volume in '{}' could not be opened for {} s: {trouble}",
                    self.shown,
                    patience.as_secs()
                )));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks; waits for the answer, no longer than `until` then. `expected` is how many bytes are asked for.
    pub fn call(&self, op: u8, body: impl Into<Body>, expected: usize, until: Until) -> Result<Bytes> {
        let body = body.into();
        let (done, answer) = oneshot::channel();
        let call = Call { op, cost: body.len() + expected, body, done };
        {
            let mut state = self.state();
            if let Some(error) = &state.fatal {
                return Err(error.clone());
            }
            if op == op::BLOB_PUT { state.bulk.push_back(call) } else { state.calls.push_back(call) }
        }
        self.wake.notify_one();
        let patience = left(if op == op::CLOSE { GOODBYE } else { PATIENCE }, until);
        match self.handle.block_on(async { tokio::time::timeout(patience, answer).await }) {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(self.fatal().unwrap_or_else(closed)),
            Err(_) => {
                self.health.count(Counted::Failure);
                let trouble = self.health.last_error().unwrap_or_else(|| "no answer".into());
                Err(WireError::unavailable(format!(
                    "the Durable Object of '{}' did not answer for {} s: {trouble}",
                    self.shown,
                    patience.as_secs()
                )))
            }
        }
    }

    /// Hands over a commit; commits are made in this order.
    pub fn commit(&self, ops: &messages::Ops, answer: OnCommit) {
        // Without the lock.
        let encoded = Encoded::new(ops);
        let refused = {
            let mut state = self.state();
            match (state.fatal.clone(), encoded) {
                (Some(error), _) => Some((error, answer)),
                _ if state.closing => Some((closed(), answer)),
                (None, Ok(encoded)) => {
                    state.submitted += 1;
                    let commit = Commit::new(state.submitted, encoded, answer);
                    state.commits.push_back(commit);
                    None
                }
                (None, Err(error)) => {
                    // Those behind it would be made without it.
                    self.end_with(&mut state, error.clone());
                    Some((error, answer))
                }
            }
        };
        match refused {
            Some((error, answer)) => answer(Err(error)),
            None => self.wake.notify_one(),
        }
    }

    /// The volume's epoch that is ours; 0 before it was opened.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.state().epoch
    }

    /// How many commits the volume has, as last heard.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// Why nothing will ever be answered again.
    #[must_use]
    pub fn fatal(&self) -> Option<WireError> {
        self.state().fatal.clone()
    }

    /// Who answers what the Worker asks of files.
    pub fn serve_files(&self, files: Weak<dyn Files>) {
        self.state().files = Some(files);
    }

    /// Who answers what the Worker asks of files; an error while nobody does.
    pub fn files(&self) -> Result<Arc<dyn Files>> {
        self.state().files.as_ref().and_then(Weak::upgrade).ok_or_else(|| {
            WireError::unavailable(
                "the agent has not opened the volume yet, or is closing it; try again soon",
            )
        })
    }

    /// Waits for the commits that were handed over, gives the volume back and ends.
    pub fn close(&self) -> Result<()> {
        let ready = {
            let mut state = self.state();
            state.closing = true;
            while !state.commits.is_empty() && state.fatal.is_none() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if let Some(error) = &state.fatal {
                return if error.code == Code::Refused && *error == closed() {
                    Ok(())
                } else {
                    Err(error.clone())
                };
            }
            state.ready
        };
        if ready && let Err(error) = self.call(op::CLOSE, Vec::new(), 0, None) {
            // Everything is durable; the object learns from the next opening that we have gone.
            tracing::debug!(backend = self.shown, "the volume was not given back: {error}");
        }
        self.end(closed());
        Ok(())
    }

    /// Ends for good: everything is answered with `error` from now on.
    pub fn end(&self, error: WireError) {
        self.end_with(&mut self.state(), error);
    }

    fn end_with(&self, state: &mut State, error: WireError) {
        if state.fatal.is_some() {
            return;
        }
        for commit in state.commits.drain(..) {
            commit.answer(Err(error.clone()));
        }
        let sent = state
            .sent
            .drain()
            .filter_map(|(_, sent)| if let Sent::Call(call) = sent { Some(call) } else { None });
        for call in
            sent.collect::<Vec<_>>().into_iter().chain(state.calls.drain(..)).chain(state.bulk.drain(..))
        {
            let _ = call.done.send(Err(error.clone()));
        }
        state.ready = false;
        state.fatal = Some(error);
        self.present.send_replace(u64::MAX);
        self.changed.notify_all();
    }

    // What connections do.

    /// Ends once a connection is not the present one any more.
    pub async fn replaced(&self, connection: u64) {
        // What it returns is locked, and whoever sets it has the state locked: not to be kept while that is asked for.
        drop(self.present.subscribe().wait_for(|present| *present != connection).await);
    }

    /// Ends once there will be no other connection.
    pub async fn ended(&self) {
        drop(self.present.subscribe().wait_for(|present| *present == u64::MAX).await);
    }

    /// A new connection takes the place of any former one; its number, and its request to open the volume.
    pub fn begin(&self) -> Option<(u64, Outgoing)> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.fatal.is_some() {
            return None;
        }
        state.connection += 1;
        state.ready = false;
        state.answers.clear();
        state.serving = 0;
        state.commits.iter_mut().for_each(Commit::again);
        let mut again: Vec<_> = state.sent.drain().collect();
        again.sort_by_key(|(id, _)| *id);
        for (_, sent) in again.into_iter().rev() {
            if let Sent::Call(call) = sent {
                if call.op == op::BLOB_PUT {
                    state.bulk.push_front(call)
                } else {
                    state.calls.push_front(call)
                }
            }
        }
        state.sent_bytes = 0;
        state.next_id += 1;
        let id = state.next_id;
        state.sent.insert(id, Sent::Open);
        let body = messages::encode_open(&state.nonce, state.epoch).into();
        self.present.send_replace(state.connection);
        Some((state.connection, Outgoing { frame: Frame { op: op::OPEN, flags: 0, id, epoch: 0 }, body }))
    }

    /// What the other side takes at once.
    pub fn limit(&self, connection: u64, requests: u32, bytes: u32) {
        let mut state = self.state();
        if state.connection == connection {
            state.limits = Limits { requests: requests.max(1) as usize, bytes: bytes as usize };
        }
    }

    /// A connection has ended, or could not be made.
    pub fn lost(&self, connection: Option<u64>, why: &str) {
        let mut state = self.state();
        if state.fatal.is_some() || connection.is_some_and(|number| number != state.connection) {
            return;
        }
        state.ready = false;
        let trouble = format!("no connection with the Durable Object of '{}': {why}", self.shown);
        self.health.count(Counted::Failure);
        // Before the volume is open, whoever opens it tells.
        if state.epoch != 0 {
            self.health.ill(Kind::Write, trouble);
        }
        state.trouble = Some(why.to_owned());
        self.changed.notify_all();
    }

    /// Whether no other connection has taken this one's place.
    #[must_use]
    pub fn is_present(&self, connection: u64) -> bool {
        *self.present.borrow() == connection
    }

    /// The next message to be sent before any pack; or when to look again, if there is a time for it.
    pub fn next_urgent(&self, connection: u64) -> (Option<Outgoing>, Option<Instant>) {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.connection != connection {
            return (None, None);
        }
        if let Some(answer) = state.answers.pop_front() {
            return (Some(answer), None);
        }
        if !state.ready {
            return (None, None);
        }
        let wait = state.commits_wait.filter(|until| *until > Instant::now());
        if wait.is_none()
            && let Some(at) = state.commits.iter().position(|commit| commit.upcoming().is_some())
            && let Some((op, body)) = state.commits.get(at).and_then(Commit::upcoming)
            && state.has_room(body.len())
        {
            let (body, id) = (body.clone(), state.number(body.len()));
            if let Some(commit) = state.commits.get_mut(at) {
                let piece = Piece { number: commit.number, place: commit.sent(), bytes: body.len() };
                state.sent.insert(id, Sent::Commit(piece));
            }
            return (Some(state.request(op, id, body)), None);
        }
        (state.take_call(false), wait)
    }

    /// The next pack to be sent.
    pub fn next_bulk(&self, connection: u64) -> Option<Outgoing> {
        let mut state = self.state();
        if state.connection == connection && state.ready { state.take_call(true) } else { None }
    }

    /// An answer has come.
    pub fn answered(&self, connection: u64, message: Message) -> Result<()> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.connection != connection {
            return Ok(());
        }
        let Some(sent) = state.sent.remove(&message.frame.id) else { return Ok(()) };
        let answer = if message.frame.flags & frame::ERROR == 0 {
            Ok(message.body)
        } else {
            Err(messages::decode_error(&message.body)?)
        };
        if let Err(error) = &answer
            && error.code == Code::Fenced
        {
            tracing::error!(backend = self.shown, "no further commits: {error}");
            if let Sent::Call(call) = sent {
                let _ = call.done.send(Err(error.clone()));
            }
            self.end_with(state, error.clone());
            return Ok(());
        }
        match sent {
            Sent::Open => self.opened(state, answer)?,
            Sent::Commit(piece) => {
                state.sent_bytes = state.sent_bytes.saturating_sub(piece.bytes);
                self.committed(state, piece, answer)?;
            }
            Sent::Call(call) => {
                state.sent_bytes = state.sent_bytes.saturating_sub(call.cost);
                self.health.well(if call.op == op::BLOB_PUT { Kind::Write } else { Kind::Read });
                // Whoever has given up does not want it any more.
                let _ = call.done.send(answer);
            }
        }
        self.wake.notify_one();
        Ok(())
    }

    fn opened(&self, state: &mut State, answer: Result<Bytes>) -> Result<()> {
        let opened = match answer.and_then(|body| Opened::decode(&body)) {
            Ok(opened) => opened,
            // The connection ends with it, and the next one tries again.
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => {
                self.end_with(state, error);
                return Ok(());
            }
        };
        if opened.last < state.acknowledged || opened.last > state.submitted {
            let error = WireError::new(
                Code::Damaged,
                format!(
                    "the Durable Object of '{}' has commit {} of this agent as the last one, while {} was acknowledged and {} \
                     were sent; was it restored to an earlier point in time? start the agent again to take its state over",
                    self.shown, opened.last, state.acknowledged, state.submitted
                ),
            );
            self.end_with(state, error);
            return Ok(());
        }
        if state.epoch == 0 {
            tracing::info!(
                backend = self.shown,
                epoch = opened.epoch,
                "the Durable Object has opened the volume"
            );
        } else {
            tracing::info!(backend = self.shown, unanswered = state.commits.len(), "connected again");
        }
        (state.epoch, state.version, state.ready) = (opened.epoch, opened.version, true);
        state.trouble = None;
        self.health.well(Kind::Write);
        self.health.well(Kind::Read);
        self.changed.notify_all();
        Ok(())
    }

    /// A message of a commit was answered.
    fn committed(&self, state: &mut State, piece: Piece, answer: Result<Bytes>) -> Result<()> {
        let Piece { number, place, .. } = piece;
        let commit = state.commits.iter_mut().find(|commit| commit.number == number);
        let answer = match (answer, commit) {
            (Ok(_), Some(commit)) if commit.is_part(place) => {
                commit.part_taken(place);
                self.health.well(Kind::Write);
                return Ok(());
            }
            (answer, _) => answer.and_then(|body| messages::decode_version(&body)),
        };
        let version = match answer {
            Ok(version) => version,
            Err(error) if error.code == Code::Unavailable => {
                self.refused(state, piece, &error);
                return Ok(());
            }
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => {
                tracing::error!(backend = self.shown, "no further commits: {error}");
                self.end_with(state, error);
                return Ok(());
            }
        };
        state.version = state.version.max(version);
        (state.commits_refused, state.commits_wait) = (0, None);
        self.health.well(Kind::Write);
        if let Some(commit) = state.commits.iter_mut().find(|commit| commit.number == number) {
            commit.made = true;
        }
        while state.commits.front().is_some_and(|commit| commit.made) {
            if let Some(commit) = state.commits.pop_front() {
                state.acknowledged = commit.number;
                self.health.count(Counted::Put(commit.len() as u64));
                commit.answer(Ok(()));
            }
        }
        self.changed.notify_all();
        Ok(())
    }

    /// A message of a commit was refused for now. Those behind it are refused as well, because there is a gap; all go again, in
    /// order.
    fn refused(&self, state: &mut State, piece: Piece, error: &WireError) {
        if let Some(commit) = state.commits.iter_mut().find(|commit| commit.number == piece.number) {
            commit.refused(piece.place);
        }
        let pause = (RETRY.0 * (1 << state.commits_refused.min(8))).min(RETRY.1);
        if state.commits_wait.is_none_or(|until| until <= Instant::now()) {
            state.commits_wait = Some(Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0)));
            state.commits_refused += 1;
        }
        self.health.count(Counted::Failure);
        let text = format!("the Durable Object of '{}' refuses a commit: {error}", self.shown);
        self.health.ill(Kind::Write, text);
    }

    /// Takes on a request of the Worker, unless there are too many.
    pub fn take_on(&self, connection: u64, most: usize) -> Result<()> {
        let mut state = self.state();
        if state.connection == connection {
            state.serving += 1;
            if state.serving > most {
                return Err(WireError::new(
                    Code::TooLarge,
                    "more requests are under way than the greeting allows",
                ));
            }
        }
        Ok(())
    }

    /// Answers the Worker.
    pub fn answer(&self, connection: u64, request: &Frame, answer: Result<Vec<u8>>) {
        let (flags, body) = match answer {
            Ok(body) => (frame::ANSWER, body),
            Err(error) => (frame::ANSWER | frame::ERROR, messages::encode_error(&error)),
        };
        let mut state = self.state();
        if state.connection == connection {
            state.serving = state.serving.saturating_sub(1);
            state.answers.push_back(Outgoing { frame: Frame { flags, ..*request }, body: body.into() });
            drop(state);
            self.wake.notify_one();
        }
    }
}

impl State {
    /// Whether the other side takes a request of so many bytes now; one always, whatever its size.
    fn has_room(&self, cost: usize) -> bool {
        self.sent.is_empty()
            || (self.sent.len() < self.limits.requests && self.sent_bytes + cost <= self.limits.bytes)
    }

    fn number(&mut self, cost: usize) -> u64 {
        self.next_id += 1;
        self.sent_bytes += cost;
        self.next_id
    }

    fn request(&self, op: u8, id: u64, body: Body) -> Outgoing {
        Outgoing { frame: Frame { op, flags: 0, id, epoch: self.epoch }, body }
    }

    fn take_call(&mut self, bulk: bool) -> Option<Outgoing> {
        let queue = if bulk { &mut self.bulk } else { &mut self.calls };
        // Whoever asked has given up.
        queue.retain(|call| !call.done.is_closed());
        let cost = queue.front()?.cost;
        if !self.has_room(cost) {
            return None;
        }
        let call = if bulk { self.bulk.pop_front() } else { self.calls.pop_front() }?;
        let id = self.number(cost);
        let outgoing = self.request(call.op, id, call.body.clone());
        self.sent.insert(id, Sent::Call(call));
        Some(outgoing)
    }
}

/// What a closed link answers.
#[must_use]
pub fn closed() -> WireError {
    WireError::new(Code::Refused, "the volume is closed; open it again")
}
