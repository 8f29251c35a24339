//! Requests: the few calls that wait for the agent. One at a time per thread, in the thread's slot.
//!
//! One word carries the whole state, so that no answer can meet the wrong question:
//!
//! ```text
//! bits 0..2  phase: IDLE → (client) PENDING → (agent) DONE → (client) IDLE
//! bits 2..14 the answer, 0 or an errno, while DONE
//! bits 14..  number of the request, raised by every post
//! ```
//! A client that gives up and asks anew has a new number, and an answer to the former request finds no taker.
//! All requests are idempotent, so an agent that takes over serves whatever it finds PENDING, and a client never
//! has to know that there was a change.

use crate::intent::NAME_MAX;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

const IDLE: u32 = 0;
const PENDING: u32 = 1;
const DONE: u32 = 2;

const PHASE_MASK: u32 = 0b11;
const ANSWER_SHIFT: u32 = 2;
const ANSWER_MASK: u32 = 0xfff;
const NUMBER_SHIFT: u32 = 14;

/// EIO: what an answer that is no errno turns into.
const EIO: u32 = 5;

/// A question about one mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Mount index.
    pub mount: u8,
    /// What is asked.
    pub ask: Ask,
}

/// 64-bit words that the longest path takes.
const PATH_WORDS: usize = NAME_MAX.div_ceil(8);

/// Names of entries below a directory, one within the other: 1 to [`NAME_MAX`] bytes, without NUL, of which the first is one
/// that an entry may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Names {
    len: u8,
    bytes: [u8; NAME_MAX],
}

impl Names {
    /// The names in a relative path, as far as there is room for them. `None` where no entry can be called as the first one.
    #[must_use]
    pub fn new(path: &[u8]) -> Option<Self> {
        let mut names = Self { len: 0, bytes: [0; NAME_MAX] };
        let mut len = path.len();
        while len > NAME_MAX {
            len = path.get(..len)?.iter().rposition(|byte| *byte == b'/')?;
        }
        names.bytes.get_mut(..len)?.copy_from_slice(path.get(..len)?);
        names.len = len as u8;
        (!names.bytes().contains(&0) && names.iter().next().is_some()).then_some(names)
    }

    /// As they stand in the path.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// The names, up to the first that no entry has.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.bytes().split(|byte| *byte == b'/').take_while(|name| !matches!(*name, b"" | b"." | b".."))
    }
}

impl core::fmt::Debug for Names {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "\"{}\"", self.bytes().escape_ascii())
    }
}

/// What is asked. Inodes are kernel inode numbers of the tree's filesystem, so that a rename in between changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "who asks cannot allocate, and waits for the answer in any case"
)]
pub enum Ask {
    /// Answer when all that was done on this mount before is durable at the mount's level.
    Barrier {
        /// The inode that fsync was called on, 0 for all: a hint for mappings, never a limit of what is covered.
        ino: u64,
    },
    /// Answer when all entries of a directory are there.
    Populate {
        /// The directory.
        ino: u64,
    },
    /// Answer when the entry of a directory that has the first of the names is there, if there is one. Of the others those may
    /// come that lie below it.
    Find {
        /// The directory.
        ino: u64,
        /// Where the walk goes.
        names: Names,
    },
    /// Answer when bytes of a file are on this disk.
    Hydrate {
        /// The file.
        ino: u64,
        /// First byte.
        start: u64,
        /// One past the last byte; `u64::MAX` for the end of the file.
        end: u64,
        /// Whether they stay.
        pin: Pin,
    },
    /// Bytes of a file will be read soon: answer at once, and bring them.
    Hint {
        /// The file.
        ino: u64,
        /// First byte.
        start: u64,
        /// One past the last byte; `u64::MAX` for the end of the file.
        end: u64,
    },
    /// Answer when a file may be cut or grown to `size`: nothing is brought in beyond it any more, and what lies before it
    /// in the same piece is here.
    Resize {
        /// The file.
        ino: u64,
        /// Its coming size in bytes.
        size: u64,
    },
    /// A name of a file is about to go, perhaps its last one, while somebody may have it open.
    Unlink {
        /// The file.
        ino: u64,
    },
    /// Who asks before he reads is about to open a file, and was kept from it: answer when nothing of ours does any more.
    Open {
        /// The file.
        ino: u64,
    },
    /// Where data or a hole begins (lseek(2), SEEK_DATA and SEEK_HOLE), as the volume has it. The value is the offset;
    /// ENXIO as there.
    Seek {
        /// The file.
        ino: u64,
        /// From this byte on.
        start: u64,
        /// A hole is sought, not data.
        hole: bool,
    },
    /// The value is the number of 512-byte blocks that the file would take (stat(2), st_blocks).
    Blocks {
        /// The file.
        ino: u64,
    },
    /// This disk has no room: answer when `bytes` may be written, or ENOSPC.
    Room {
        /// How much.
        bytes: u64,
    },
    /// The volume has a quota: answer 0 when it may grow by so much, EDQUOT when not; by how many bytes it may is the value then.
    Grow {
        /// By so many bytes.
        bytes: u64,
        /// And by so many inodes.
        inodes: u64,
    },
    /// A stream has made a file so long, past all hooks, and is about to add more: answer 0 when all that fits the volume's
    /// quota, EDQUOT when not.
    Streamed {
        /// The file.
        ino: u64,
        /// How long it is now.
        size: u64,
        /// By how many bytes it will be longer.
        pending: u64,
    },
}

/// Whether bytes that are asked for stay here: who asks may read them where no hook sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// They may go at any time.
    No,
    /// While anybody has the file open or mapped. Who asks has.
    Open,
    /// The same, and for some seconds at least: who asks opens the file by its name only then.
    Soon,
}

impl Pin {
    /// For who has the file open.
    #[must_use]
    pub const fn open_if(stays: bool) -> Self {
        if stays { Self::Open } else { Self::No }
    }

    const fn bits(self) -> u64 {
        match self {
            Self::No => 0,
            Self::Open => 1,
            Self::Soon => 2,
        }
    }
}

/// A thread's request area.
#[repr(C)]
pub struct RequestCell {
    /// Futex word; see the module.
    state: AtomicU32,
    reserved: AtomicU32,
    head: AtomicU64,
    body: [AtomicU64; 3],
    /// Of a question that has one.
    names: [AtomicU64; PATH_WORDS],
    /// Of an answer that has one: written by the agent before the phase becomes DONE.
    value: AtomicU64,
}

/// An answer: 0 or an errno, and a value where the question asks for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0 or an errno.
    pub errno: i32,
    /// See [`Ask`]; 0 where nothing was asked for.
    pub value: u64,
}

/// Names one posting of a request: what an answer is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u32);

const BARRIER: u8 = 1;
const POPULATE: u8 = 2;
const HYDRATE: u8 = 3;
const RESIZE: u8 = 4;
const UNLINK: u8 = 5;
const SEEK: u8 = 6;
const BLOCKS: u8 = 7;
const ROOM: u8 = 8;
const GROW: u8 = 9;
const HINT: u8 = 10;
const FIND: u8 = 11;
const STREAMED: u8 = 12;
const OPEN: u8 = 13;

impl Request {
    fn encode(self) -> (u64, [u64; 3]) {
        let (kind, flags, body) = match self.ask {
            Ask::Barrier { ino } => (BARRIER, 0, [ino, 0, 0]),
            Ask::Populate { ino } => (POPULATE, 0, [ino, 0, 0]),
            Ask::Find { ino, names } => (FIND, u64::from(names.len), [ino, 0, 0]),
            Ask::Hydrate { ino, start, end, pin } => (HYDRATE, pin.bits(), [ino, start, end]),
            Ask::Hint { ino, start, end } => (HINT, 0, [ino, start, end]),
            Ask::Resize { ino, size } => (RESIZE, 0, [ino, size, 0]),
            Ask::Unlink { ino } => (UNLINK, 0, [ino, 0, 0]),
            Ask::Open { ino } => (OPEN, 0, [ino, 0, 0]),
            Ask::Seek { ino, start, hole } => (SEEK, u64::from(hole), [ino, start, 0]),
            Ask::Blocks { ino } => (BLOCKS, 0, [ino, 0, 0]),
            Ask::Room { bytes } => (ROOM, 0, [bytes, 0, 0]),
            Ask::Grow { bytes, inodes } => (GROW, 0, [bytes, inodes, 0]),
            Ask::Streamed { ino, size, pending } => (STREAMED, 0, [ino, size, pending]),
        };
        (u64::from(kind) | u64::from(self.mount) << 8 | flags << 16, body)
    }

    /// `names` gives so many bytes of them.
    fn decode(head: u64, body: [u64; 3], names: impl FnOnce(usize) -> Option<Names>) -> Result<Self, ()> {
        let [first, second, third] = body;
        let ask = match (head as u8, head >> 16) {
            (BARRIER, 0) => Ask::Barrier { ino: first },
            (POPULATE, 0) => Ask::Populate { ino: first },
            (FIND, len) => Ask::Find { ino: first, names: names(len as usize).ok_or(())? },
            (HYDRATE, flags) => {
                let pin = [Pin::No, Pin::Open, Pin::Soon].into_iter().find(|pin| pin.bits() == flags);
                Ask::Hydrate { ino: first, start: second, end: third, pin: pin.ok_or(())? }
            }
            (HINT, 0) => Ask::Hint { ino: first, start: second, end: third },
            (RESIZE, 0) => Ask::Resize { ino: first, size: second },
            (UNLINK, 0) => Ask::Unlink { ino: first },
            (OPEN, 0) => Ask::Open { ino: first },
            (SEEK, flags @ (0 | 1)) => Ask::Seek { ino: first, start: second, hole: flags == 1 },
            (BLOCKS, 0) => Ask::Blocks { ino: first },
            (ROOM, 0) => Ask::Room { bytes: first },
            (GROW, 0) => Ask::Grow { bytes: first, inodes: second },
            (STREAMED, 0) => Ask::Streamed { ino: first, size: second, pending: third },
            _ => return Err(()),
        };
        Ok(Self { mount: (head >> 8) as u8, ask })
    }
}

impl RequestCell {
    /// Client: posts a request and returns the word to wait on: ring the doorbell, then wait on
    /// [`RequestCell::word`] while it has the returned value. A request that is still out is given up.
    #[must_use]
    pub fn post(&self, request: Request) -> u32 {
        let number = (self.state.load(Ordering::Relaxed) >> NUMBER_SHIFT).wrapping_add(1) << NUMBER_SHIFT;
        // The phase leaves PENDING before the body changes: an agent that reads a changed body also sees that.
        self.state.store(number | IDLE, Ordering::Relaxed);
        fence(Ordering::Release);
        let (head, body) = request.encode();
        self.head.store(head, Ordering::Relaxed);
        for (word, value) in self.body.iter().zip(body) {
            word.store(value, Ordering::Relaxed);
        }
        if let Ask::Find { names, .. } = &request.ask {
            for (word, bytes) in self.names.iter().zip(names.bytes.chunks(8)) {
                let mut value = [0; 8];
                value.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                word.store(u64::from_le_bytes(value), Ordering::Relaxed);
            }
        }
        self.state.store(number | PENDING, Ordering::Release);
        number | PENDING
    }

    /// The futex word.
    pub fn word(&self) -> &AtomicU32 {
        &self.state
    }

    /// Client: the answer, once. `None` while it is out.
    pub fn take_reply(&self) -> Option<Answer> {
        let state = self.state.load(Ordering::Acquire);
        if state & PHASE_MASK != DONE {
            return None;
        }
        let value = self.value.load(Ordering::Relaxed);
        self.state.store(state >> NUMBER_SHIFT << NUMBER_SHIFT, Ordering::Relaxed);
        Some(Answer { errno: (state >> ANSWER_SHIFT & ANSWER_MASK) as i32, value })
    }

    /// Client: gives a request up (timeout). An answer that came just before is returned after all; one that
    /// comes later is dropped.
    pub fn abandon(&self) -> Option<Answer> {
        let state = self.state.load(Ordering::Relaxed);
        let idle = state >> NUMBER_SHIFT << NUMBER_SHIFT;
        if state & PHASE_MASK == PENDING
            && self.state.compare_exchange(state, idle, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            return None;
        }
        self.take_reply()
    }

    /// Agent: the pending request, if there is one, and the ticket to answer it with. `Err(())` is one that does
    /// not decode: answer EINVAL.
    pub fn pending(&self) -> Option<(Ticket, Result<Request, ()>)> {
        let state = self.state.load(Ordering::Acquire);
        if state & PHASE_MASK != PENDING {
            return None;
        }
        let head = self.head.load(Ordering::Relaxed);
        let body =
            core::array::from_fn(|at| self.body.get(at).map_or(0, |word| word.load(Ordering::Relaxed)));
        let request = Request::decode(head, body, |len| self.names(len));
        fence(Ordering::Acquire);
        if self.state.load(Ordering::Relaxed) != state {
            // Given up while we read, perhaps with a new body half written: the next look finds what is posted.
            return None;
        }
        Some((Ticket(state), request))
    }

    fn names(&self, len: usize) -> Option<Names> {
        let mut bytes = [0; PATH_WORDS * 8];
        for (to, word) in bytes.chunks_mut(8).zip(&self.names).take(len.div_ceil(8)) {
            to.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        Names::new(bytes.get(..len)?).filter(|names| usize::from(names.len) == len)
    }

    /// Agent: answers (an errno that is none becomes EIO). `true`: wake the futex now; `false`: the client has given
    /// this request up. Of one cell, one thread at a time may answer.
    ///
    /// A value is believed by who takes the answer that came with it: an answer that finds no taker leaves one that
    /// nobody reads.
    pub fn reply(&self, ticket: Ticket, answer: Answer) -> bool {
        if self.state.load(Ordering::Relaxed) != ticket.0 {
            return false;
        }
        self.value.store(answer.value, Ordering::Relaxed);
        let answer = u32::try_from(answer.errno).ok().filter(|e| *e <= ANSWER_MASK).unwrap_or(EIO);
        let done = (ticket.0 & !PHASE_MASK) | DONE | answer << ANSWER_SHIFT;
        self.state.compare_exchange(ticket.0, done, Ordering::Release, Ordering::Relaxed).is_ok()
    }
}

#[cfg(any(test, fuzzing))]
impl RequestCell {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU32::new(0),
            reserved: AtomicU32::new(0),
            head: AtomicU64::new(0),
            body: core::array::from_fn(|_| AtomicU64::new(0)),
            names: core::array::from_fn(|_| AtomicU64::new(0)),
            value: AtomicU64::new(0),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn barrier(ino: u64) -> Request {
        Request { mount: 3, ask: Ask::Barrier { ino } }
    }

    fn errno(errno: i32) -> Answer {
        Answer { errno, value: 0 }
    }

    #[test]
    fn every_question_arrives_as_it_was_asked() {
        let (ino, start, end) = (u64::MAX, 1 << 40, u64::MAX);
        let asks = [
            Ask::Barrier { ino },
            Ask::Populate { ino },
            Ask::Find { ino, names: Names::new(&[b'n'; NAME_MAX]).unwrap() },
            Ask::Find { ino, names: Names::new("eight 8ü".as_bytes()).unwrap() },
            Ask::Find { ino, names: Names::new(b".../two").unwrap() },
            Ask::Hydrate { ino, start, end, pin: Pin::Open },
            Ask::Hydrate { ino, start, end, pin: Pin::Soon },
            Ask::Hydrate { ino, start, end, pin: Pin::No },
            Ask::Hint { ino, start, end },
            Ask::Resize { ino, size: 7 },
            Ask::Unlink { ino },
            Ask::Open { ino },
            Ask::Seek { ino, start, hole: true },
            Ask::Seek { ino, start, hole: false },
            Ask::Blocks { ino },
            Ask::Room { bytes: 5 },
            Ask::Grow { bytes: 5, inodes: 6 },
            Ask::Streamed { ino, size: 5, pending: 6 },
        ];
        let cell = RequestCell::new();
        for ask in asks {
            let request = Request { mount: 7, ask };
            let _ = cell.post(request);
            let (ticket, read) = cell.pending().unwrap();
            assert_eq!(read, Ok(request));
            assert!(cell.reply(ticket, Answer { errno: 0, value: u64::MAX }));
            assert_eq!(cell.take_reply(), Some(Answer { errno: 0, value: u64::MAX }));
        }
    }

    #[test]
    fn a_request_is_answered_once() {
        let cell = RequestCell::new();
        assert!(cell.pending().is_none());
        let word = cell.post(barrier(9));
        assert_eq!(cell.word().load(Ordering::Relaxed), word);
        assert_eq!(cell.take_reply(), None);
        let (ticket, request) = cell.pending().unwrap();
        assert_eq!(request, Ok(barrier(9)));
        assert_eq!(cell.pending().unwrap().0, ticket, "it stays pending until it is answered");
        assert!(cell.reply(ticket, errno(116)));
        assert_ne!(cell.word().load(Ordering::Relaxed), word);
        assert!(!cell.reply(ticket, errno(0)), "a second answer must change nothing");
        assert_eq!(cell.take_reply(), Some(errno(116)));
        assert_eq!(cell.take_reply(), None);
    }

    #[test]
    fn an_answer_to_an_abandoned_request_does_not_meet_the_next_one() {
        let cell = RequestCell::new();
        let first = cell.post(barrier(1));
        let (old, _) = cell.pending().unwrap();
        assert_eq!(cell.abandon(), None);
        assert!(!cell.reply(old, errno(0)));
        let second = cell.post(barrier(2));
        assert_ne!(first, second);
        assert!(!cell.reply(old, errno(0)));
        assert_eq!(cell.take_reply(), None);
        let (new, request) = cell.pending().unwrap();
        assert_eq!(request, Ok(barrier(2)));
        assert!(cell.reply(new, errno(5)));
        assert_eq!(cell.abandon(), Some(errno(5)), "an answer that came first is not lost");
    }

    #[test]
    fn what_is_no_errno_becomes_eio() {
        for (given, taken) in [(0, 0), (4095, 4095), (4096, 5), (-1, 5), (i32::MIN, 5)] {
            let cell = RequestCell::new();
            let _ = cell.post(barrier(0));
            let (ticket, _) = cell.pending().unwrap();
            assert!(cell.reply(ticket, errno(given)));
            assert_eq!(cell.take_reply(), Some(errno(taken)));
        }
    }

    #[test]
    fn numbers_wrap_without_reaching_the_phase() {
        let cell = RequestCell::new();
        cell.state.store(u32::MAX << NUMBER_SHIFT, Ordering::Relaxed);
        let word = cell.post(barrier(0));
        assert_eq!(word, PENDING);
    }

    #[test]
    fn names_end_where_no_entry_follows_and_where_there_is_no_room() {
        let names = |path: &[u8]| {
            Names::new(path)
                .map(|names| names.iter().map(<[u8]>::to_vec).collect::<Vec<_>>())
                .unwrap_or_default()
        };
        for path in [&b""[..], b".", b"../a", b"/", b"/a", b"a\0", &[b'n'; NAME_MAX + 1]] {
            assert!(names(path).is_empty(), "{}", path.escape_ascii());
        }
        assert_eq!(names(b"a/b\n/c"), [&b"a"[..], b"b\n", b"c"]);
        assert_eq!(names(b"a//b"), [b"a"]);
        assert_eq!(names(b"a/b/../c"), [b"a", b"b"]);
        let long = [&[b'x'; 200][..], b"/", &[b'y'; 54], b"/", &[b'z'; 300]].concat();
        assert_eq!(names(&long), [vec![b'x'; 200], vec![b'y'; 54]]);
        assert_eq!(names(&long[..255]).len(), 2);
        let cell = RequestCell::new();
        let _ =
            cell.post(Request { mount: 0, ask: Ask::Find { ino: 1, names: Names::new(b"a\n").unwrap() } });
        cell.names[0].store(u64::from_le_bytes(*b"/\n\0\0\0\0\0\0"), Ordering::Relaxed);
        assert_eq!(cell.pending().unwrap().1, Err(()));
    }

    #[test]
    fn an_unknown_request_is_pending_but_does_not_decode() {
        let cell = RequestCell::new();
        let _ = cell.post(barrier(0));
        for head in [
            77,
            0,
            1 << 16 | u64::from(BARRIER),
            3 << 16 | u64::from(HYDRATE),
            2 << 16 | u64::from(SEEK),
            u64::from(FIND),
            256 << 16 | u64::from(FIND),
            u64::MAX,
        ] {
            cell.head.store(head, Ordering::Relaxed);
            assert_eq!(cell.pending().unwrap().1, Err(()));
        }
    }
}
