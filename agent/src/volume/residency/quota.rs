//! Keeps a volume below its quota: says when clients are to ask before they let it grow, and answers them. What counts is
//! what the last cut saw, what was told since, and what has been granted and not been seen by a cut. It must not know what
//! grows, nor how a cut is made.
//!
//! Asking costs a round trip, so far from the quota clients do not: each process may add a part of what is left, by one call or
//! by many, until it is shown another number, which says that what it told was seen. How near is near depends on how fast the
//! volume grows.
//!
//! Who exceeds the quota gets EDQUOT, for bytes and for inodes, as a project quota of a filesystem gives it; ENOSPC stays for
//! a disk that is full.

use std::sync::Arc;
use std::time::{Duration, Instant};

use storeshim_protocol::request::Answer;

use crate::session::Reply;
use crate::volume::Quota;
use crate::volume::status::{Mutex, Shared};

/// Clients ask from so near to the quota on: bytes, inodes, and one in so many of either.
const NEAR_BYTES: u64 = 64 << 20;
const NEAR_INODES: u64 = 1000;
const NEAR_PART: u64 = 50;
/// The same of what is told between two looks: from where so many more like the last one would reach the quota.
const NEAR_LOOKS: u64 = 4;
/// All processes together add at most one in so many bytes of what is left from one look to the next without asking.
const UNASKED_PART: u64 = 2;
/// At least so many processes are assumed: they may all begin between two counts, and each then has its part.
const CLIENTS_LEAST: u64 = 16;
/// Between two counts of them.
const COUNTED: Duration = Duration::from_millis(50);
/// Between two looks at how near the quota is; and while it comes nearer.
const PAUSE: Duration = Duration::from_millis(25);
const SHORT_PAUSE: Duration = Duration::from_millis(5);
/// A grant is seen by the second cut that ends after it: the first may have looked before the call was made.
const CUTS: u64 = 2;
/// Where nothing is dirty, what was granted so long ago has not been used.
const UNUSED: Duration = Duration::from_secs(5);
/// What a refusal found is worth this long.
const REFUSED: Duration = Duration::from_millis(100);

/// What a volume holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in regular files, as their sizes say.
    pub bytes: u64,
    /// Inodes of all kinds.
    pub inodes: u64,
}

/// What has changed since the last cut, as far as was told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// Bytes that were to be written, also over others.
    pub bytes: u64,
    /// Names and inodes.
    pub entries: u64,
}

/// See the module.
pub struct Keeper {
    quota: Quota,
    shared: Arc<Shared>,
    /// Makes a cut, soon.
    cut: Box<dyn Fn() + Send + Sync>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    near: bool,
    /// What clients are shown that one call may add without asking; `None` before the first look.
    unasked: Option<u64>,
    /// How many processes were attached, and when.
    clients: Option<(Instant, u64)>,
    /// What was held at the last look.
    held: Usage,
    /// What was added from look to look lately.
    pace: Usage,
    /// It holds more than it may, which was said.
    over: bool,
    /// Until this many cuts have ended, there may be growth that was told and not asked for.
    unasked_until: u64,
    grants: Vec<Grant>,
    waiting: Vec<Waiting>,
    refused: Option<(Instant, u64, Usage)>,
}

struct Grant {
    usage: Usage,
    stream: Option<u64>,
    until: u64,
    at: Instant,
}

/// What somebody asks for.
struct Wanted {
    now: Usage,
    /// What of that cuts will not have seen.
    after_cuts: Usage,
    /// The inode that a stream has written to.
    stream: Option<u64>,
}

struct Waiting {
    wanted: Wanted,
    until: u64,
    reply: Box<dyn Reply>,
}

impl Usage {
    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            inodes: self.inodes.saturating_sub(other.inodes),
        }
    }

    fn max(self, other: Self) -> Self {
        Self { bytes: self.bytes.max(other.bytes), inodes: self.inodes.max(other.inodes) }
    }

    fn times(self, n: u64) -> Self {
        Self { bytes: self.bytes.saturating_mul(n), inodes: self.inodes.saturating_mul(n) }
    }

    /// By how much it exceeds the quota.
    pub fn excess(self, quota: &Quota) -> Self {
        self.minus(Self { bytes: quota.bytes.unwrap_or(u64::MAX), inodes: quota.inodes.unwrap_or(u64::MAX) })
    }

    /// Whether it fits, as far as `more` wants anything: who only deletes or renames is never refused. Who wants nothing asks
    /// whether what has been added already fits.
    fn fits(self, more: Self, quota: &Quota) -> bool {
        let excess = self.plus(more).excess(quota);
        let asks_for_all = more == Self::default();
        (excess.bytes == 0 || more.bytes == 0 && !asks_for_all) && (excess.inodes == 0 || more.inodes == 0)
    }
}

impl Keeper {
    /// A keeper of `quota`; `cut` asks for a cut and returns at once.
    pub fn new(quota: Quota, shared: &Arc<Shared>, cut: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { quota, shared: Arc::clone(shared), cut, inner: Mutex::default() }
    }

    /// Answers 0 where the volume may grow so, which is then reserved until a cut has seen it, and EDQUOT where not, with the
    /// bytes by which it may as the value. Never blocks: where it is close, the answer comes after the next cut.
    pub fn grow(&self, more: Usage, seen: Usage, told: Told, reply: Box<dyn Reply>) {
        self.ask(Wanted { now: more, after_cuts: more, stream: None }, seen, told, reply);
    }

    /// The same for a stream, which has added bytes to `ino` that no cut has seen, and has others pending.
    pub fn streamed(
        &self,
        ino: u64,
        (unseen, pending): (u64, u64),
        seen: Usage,
        told: Told,
        reply: Box<dyn Reply>,
    ) {
        let bytes = |bytes| Usage { bytes, inodes: 0 };
        let now = bytes(unseen.saturating_add(pending));
        self.ask(Wanted { now, after_cuts: bytes(pending), stream: Some(ino) }, seen, told, reply);
    }

    fn ask(&self, wanted: Wanted, seen: Usage, told: Told, reply: Box<dyn Reply>) {
        let more = wanted.now;
        let mut inner = self.inner.lock();
        let cuts = self.shared.unsettled.cuts();
        inner.expire(cuts);
        // What a stream had added when it asked before is among what it has added now.
        inner.grants.retain(|grant| grant.stream.is_none() || grant.stream != wanted.stream);
        let held = inner.held(seen, told, cuts);
        if held.fits(more, &self.quota) {
            inner.grant(more, wanted.stream, cuts);
            drop(inner);
            return reply.reply(0);
        }
        let again = inner.refused.is_some_and(|(at, at_cuts, least)| {
            let no_less = more.bytes >= least.bytes && more.inodes >= least.inodes;
            no_less && at_cuts == cuts && told.entries == 0 && at.elapsed() < REFUSED
        });
        if again {
            drop(inner);
            return reply.answer(self.refusal(held));
        }
        // Perhaps what was told overwrites what is there, or something was removed: a cut knows.
        inner.waiting.push(Waiting { wanted, until: cuts + CUTS, reply });
        drop(inner);
        (self.cut)();
    }

    /// Looks: shows clients when to ask, and answers those that wait for a cut. How long it is to be left alone then.
    pub fn tick(&self, seen: Usage, told: Told) -> Duration {
        let mut inner = self.inner.lock();
        let cuts = self.shared.unsettled.cuts();
        inner.expire(cuts);
        if told.entries == 0 {
            inner.grants.retain(|grant| grant.at.elapsed() < UNUSED);
        }
        let held = inner.held(seen, told, cuts);
        // What was there at the first look nobody has added just now.
        let added = if inner.unasked.is_none() { Usage::default() } else { held.minus(inner.held) };
        // It slows down by and by: what was told by then is not all that is on its way.
        inner.pace = added.max(
            inner
                .pace
                .minus(Usage { bytes: inner.pace.bytes.div_ceil(8), inodes: inner.pace.inodes.div_ceil(8) }),
        );
        inner.held = held;
        let near = self.is_near(held, inner.pace);
        if near && !inner.near {
            inner.unasked_until = cuts + CUTS;
        }
        let unasked = match self.quota.bytes {
            None => u64::MAX,
            Some(_) if near => 0,
            Some(most) => most.saturating_sub(held.bytes) / (UNASKED_PART * self.clients(&mut inner)),
        };
        if near != inner.near || inner.unasked != Some(unasked) {
            (inner.near, inner.unasked) = (near, Some(unasked));
            self.shared.gate().set_quota(near, unasked);
        }
        self.say_excess(&mut inner, seen);
        let due: Vec<Waiting> = inner.waiting.extract_if(.., |waiting| cuts >= waiting.until).collect();
        let more_cuts = !inner.waiting.is_empty();
        let mut answers = Vec::new();
        for Waiting { wanted, reply, .. } in due {
            let held = inner.held(seen, Told::default(), cuts);
            if held.fits(wanted.after_cuts, &self.quota) {
                inner.grant(wanted.after_cuts, wanted.stream, cuts);
                answers.push((reply, Answer { errno: 0, value: 0 }));
            } else {
                inner.refused = Some((Instant::now(), cuts, wanted.now));
                answers.push((reply, self.refusal(held)));
            }
        }
        drop(inner);
        for (reply, answer) in answers {
            if answer.errno != 0 {
                self.shared.count("quota_refusals", 1);
            }
            reply.answer(answer);
        }
        if more_cuts {
            (self.cut)();
        }
        if added == Usage::default() { PAUSE } else { SHORT_PAUSE }
    }

    /// By how much the volume exceeds its quota, as far as cuts have seen.
    pub fn excess(&self, seen: Usage) -> Usage {
        seen.excess(&self.quota)
    }

    /// How many processes to divide by: those attached, and at least [`CLIENTS_LEAST`].
    fn clients(&self, inner: &mut Inner) -> u64 {
        if inner.clients.is_none_or(|(at, _)| at.elapsed() >= COUNTED) {
            inner.clients = Some((Instant::now(), self.shared.gate().attached().len() as u64));
        }
        inner.clients.map_or(0, |(_, clients)| clients).max(CLIENTS_LEAST)
    }

    fn refusal(&self, held: Usage) -> Answer {
        let left = self.quota.bytes.map_or(0, |most| most.saturating_sub(held.bytes));
        Answer { errno: libc::EDQUOT, value: left }
    }

    /// Says once that there is more than may be: programs that do not ask have written it, or the quota is a new one.
    fn say_excess(&self, inner: &mut Inner, seen: Usage) {
        let excess = self.excess(seen);
        let over = excess != Usage::default();
        if over && !inner.over {
            tracing::warn!(
                bytes = excess.bytes,
                inodes = excess.inodes,
                "the volume is over its quota by so much: it does not grow until it fits; delete files, or raise the \
                 mount's quota_bytes or quota_inodes"
            );
        }
        inner.over = over;
    }

    /// Ends the wait of everybody without an answer: the next agent gives it.
    pub fn end(&self) {
        self.inner.lock().waiting.clear();
    }

    fn is_near(&self, held: Usage, pace: Usage) -> bool {
        let near = |held: u64, most: Option<u64>, least: u64| {
            most.is_some_and(|most| held.saturating_add(least.max(most / NEAR_PART)) >= most)
        };
        let coming = pace.times(NEAR_LOOKS);
        near(held.bytes, self.quota.bytes, NEAR_BYTES.max(coming.bytes))
            || near(held.inodes, self.quota.inodes, NEAR_INODES.max(coming.inodes))
    }
}

impl Inner {
    fn expire(&mut self, cuts: u64) {
        self.grants.retain(|grant| cuts < grant.until);
    }

    fn grant(&mut self, usage: Usage, stream: Option<u64>, cuts: u64) {
        self.grants.push(Grant { usage, stream, until: cuts + CUTS, at: Instant::now() });
    }

    /// All that the volume holds or may come to hold without asking again.
    fn held(&self, seen: Usage, told: Told, cuts: u64) -> Usage {
        let granted = self.grants.iter().fold(Usage::default(), |sum, grant| sum.plus(grant.usage));
        // While clients did not ask, only what they told is known; since they ask, that is among what was granted.
        let unasked = if self.near && cuts >= self.unasked_until {
            Usage::default()
        } else {
            Usage { bytes: told.bytes, inodes: told.entries }
        };
        seen.plus(granted).plus(unasked)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::volume::tests::idle_gate;

    struct To(crossbeam::channel::Sender<Answer>);
    impl Reply for To {
        fn answer(self: Box<Self>, answer: Answer) {
            let _ = self.0.send(answer);
        }
    }

    struct Test {
        keeper: Keeper,
        shared: Arc<Shared>,
        seen: Usage,
    }

    impl Test {
        fn new(bytes: u64, inodes: u64) -> Self {
            let shared = Shared::new(idle_gate());
            let quota = Quota { bytes: Some(bytes), inodes: Some(inodes) };
            let keeper = Keeper::new(quota, &shared, Box::new(|| ()));
            let test = Self { keeper, shared, seen: Usage::default() };
            test.tick();
            test.cuts(2);
            test
        }

        fn tick(&self) {
            self.keeper.tick(self.seen, Told { bytes: 0, entries: 1 });
        }

        fn cuts(&self, cuts: u64) {
            (0..cuts).for_each(|_| self.shared.unsettled.cut_ended(HashSet::new()));
        }

        /// The answer, once the cuts that it may wait for have been made.
        fn grow(&self, bytes: u64, inodes: u64) -> i32 {
            self.asked(bytes, inodes).errno
        }

        fn asked(&self, bytes: u64, inodes: u64) -> Answer {
            let (to, answer) = crossbeam::channel::bounded(1);
            let more = Usage { bytes, inodes };
            self.keeper.grow(more, self.seen, Told::default(), Box::new(To(to)));
            if answer.is_empty() {
                self.cuts(2);
                self.tick();
            }
            answer.try_recv().unwrap()
        }
    }

    #[test]
    fn the_call_that_exceeds_the_quota_is_refused() {
        let mut test = Test::new(1000, 10);
        assert_eq!(test.grow(600, 0), 0);
        assert_eq!(test.grow(300, 1), 0, "granted beside what was granted before");
        let (to, answer) = crossbeam::channel::bounded(1);
        let more = Usage { bytes: 200, inodes: 0 };
        test.keeper.grow(more, test.seen, Told::default(), Box::new(To(to)));
        assert!(answer.is_empty(), "a cut may find that it fits");
        test.seen = Usage { bytes: 900, inodes: 1 };
        test.cuts(2);
        test.tick();
        assert_eq!(answer.try_recv().unwrap(), Answer { errno: libc::EDQUOT, value: 100 });
        assert_eq!(test.grow(100, 9), 0, "up to the last byte and inode");
        test.seen = Usage { bytes: 1000, inodes: 10 };
        test.cuts(2);
        assert_eq!(test.grow(0, 1), libc::EDQUOT);
        assert_eq!(test.grow(1, 0), libc::EDQUOT);
        assert_eq!(test.grow(0, 0), 0);
        assert_eq!(test.shared.counter("quota_refusals"), 3);
    }

    #[test]
    fn what_was_removed_makes_room_after_a_cut() {
        let mut test = Test::new(1000, 10);
        test.seen.bytes = 1000;
        assert_eq!(test.grow(10, 0), libc::EDQUOT);
        test.seen.bytes = 500;
        test.cuts(1);
        assert_eq!(test.grow(10, 0), 0);
    }

    #[test]
    fn clients_ask_only_near_the_quota() {
        let test = Test::new(1 << 40, 1 << 20);
        let near = |bytes, inodes| test.keeper.is_near(Usage { bytes, inodes }, Usage::default());
        assert!(!near(0, 0) && !near(9 << 36, 9 << 16));
        assert!(near((1 << 40) - (1 << 33), 0) && near(0, (1 << 20) - 1000));
        assert!(!test.keeper.inner.lock().near);
    }

    #[test]
    fn the_faster_it_grows_the_sooner_clients_ask() {
        let test = Test::new(1 << 30, 1 << 20);
        let near = |bytes, inodes| {
            test.keeper.is_near(Usage { bytes: 1 << 29, inodes: 1 << 19 }, Usage { bytes, inodes })
        };
        assert!(!near(100 << 20, 100_000) && near(128 << 20, 0) && near(0, 1 << 17));
        let told = |bytes| test.keeper.tick(Usage::default(), Told { bytes, entries: 1 });
        assert_eq!(told(300 << 20), SHORT_PAUSE);
        assert!(test.keeper.inner.lock().near, "three more like that are beyond the quota");
        for _ in 0..40 {
            told(300 << 20);
        }
        assert_eq!(told(300 << 20), PAUSE);
        assert!(!test.keeper.inner.lock().near);
    }

    #[test]
    fn a_part_of_what_is_left_may_be_added_unasked() {
        let mut test = Test::new(1 << 40, 1 << 20);
        let unasked = |test: &Test| test.keeper.inner.lock().unasked.unwrap();
        assert_eq!(unasked(&test), (1 << 39) / CLIENTS_LEAST);
        test.seen.bytes = 1 << 39;
        test.tick();
        assert_eq!(unasked(&test), 0, "such a step may be followed by another one");
        for _ in 0..100 {
            test.tick();
        }
        assert_eq!(unasked(&test), (1 << 38) / CLIENTS_LEAST);
        assert_eq!(test.grow(1 << 38, 0), 0, "it was asked for");
        assert_eq!(test.grow(1 << 38, 0), 0, "to the last byte");
        test.seen.bytes = 1 << 40;
        assert_eq!(test.grow(1, 0), libc::EDQUOT);
    }

    #[test]
    fn who_is_refused_hears_what_is_left() {
        let mut test = Test::new(1000, 10);
        test.seen.bytes = 900;
        assert_eq!(test.asked(101, 0), Answer { errno: libc::EDQUOT, value: 100 });
        assert_eq!(test.asked(100, 0).errno, 0);
        test.seen.bytes = 2000;
        test.cuts(2);
        assert_eq!(test.asked(1, 0), Answer { errno: libc::EDQUOT, value: 0 });
    }

    #[test]
    fn what_a_stream_has_added_counts_before_a_cut_sees_it() {
        let mut test = Test::new(1000, 10);
        let streamed = |test: &Test, ino, unseen, pending| {
            let (to, answer) = crossbeam::channel::bounded(1);
            test.keeper.streamed(ino, (unseen, pending), test.seen, Told::default(), Box::new(To(to)));
            answer
        };
        let granted = Ok(Answer { errno: 0, value: 0 });
        assert_eq!(streamed(&test, 5, 600, 10).try_recv(), granted);
        assert_eq!(streamed(&test, 5, 610, 10).try_recv(), granted, "it is the same file");
        assert_eq!(streamed(&test, 6, 300, 80).try_recv(), granted, "to the last byte");
        let (answer, other) = (streamed(&test, 7, 0, 1), streamed(&test, 5, 700, 0));
        test.seen.bytes = 1000;
        test.cuts(2);
        test.tick();
        assert_eq!(answer.try_recv().unwrap().errno, libc::EDQUOT);
        assert_eq!(other.try_recv(), granted, "what it has written fits");
        test.seen.bytes = 1001;
        let answer = streamed(&test, 5, 0, 0);
        test.cuts(2);
        test.tick();
        assert_eq!(answer.try_recv().unwrap().errno, libc::EDQUOT);
    }

    #[test]
    fn who_wants_nothing_more_hears_whether_it_fits() {
        let mut test = Test::new(1000, 10);
        test.seen = Usage { bytes: 1000, inodes: 20 };
        assert_eq!(test.grow(0, 0), 0, "of inodes it is not");
        assert_eq!(test.keeper.excess(test.seen), Usage { bytes: 0, inodes: 10 });
        test.seen.bytes = 1001;
        assert_eq!(test.grow(0, 0), libc::EDQUOT);
        assert_eq!(test.grow(0, 1), libc::EDQUOT);
        test.seen.inodes = 1;
        assert_eq!(test.grow(0, 1), 0, "an inode has no bytes");
    }

    #[test]
    fn bytes_that_were_told_before_anybody_asked_count_until_they_are_seen() {
        let test = Test::new(1 << 30, 1 << 20);
        let told = Told { bytes: 1 << 30, entries: 1 };
        test.keeper.tick(Usage::default(), told);
        assert!(test.keeper.inner.lock().near);
        let held = |cuts| test.keeper.inner.lock().held(Usage::default(), told, cuts).bytes;
        let cuts = test.shared.unsettled.cuts();
        assert_eq!((held(cuts), held(cuts + CUTS)), (1 << 30, 0));
    }
}
