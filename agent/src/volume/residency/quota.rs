//! Keeps a volume below its quota: says when clients are to ask before they let it grow, and answers them. What counts is
//! what the last cut saw, what was told since, and what has been granted and not been seen by a cut. It must not know what
//! grows, nor how a cut is made.
//!
//! Who exceeds the quota gets EDQUOT, for bytes and for inodes, as a project quota of a filesystem gives it; ENOSPC stays for
//! a disk that is full.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::session::Reply;
use crate::volume::Quota;
use crate::volume::status::{Mutex, Shared};

/// Clients ask from so near to the quota on: bytes, inodes, and one in so many of either.
const NEAR_BYTES: u64 = 64 << 20;
const NEAR_INODES: u64 = 1000;
const NEAR_PART: u64 = 50;
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
    /// Until this many cuts have ended, there may be growth that was told and not asked for.
    unasked_until: u64,
    grants: Vec<Grant>,
    waiting: Vec<Waiting>,
    refused: Option<(Instant, u64, Usage)>,
}

struct Grant {
    usage: Usage,
    until: u64,
    at: Instant,
}

struct Waiting {
    usage: Usage,
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

    /// Whether it fits, as far as `more` wants anything: who only deletes or renames is never refused.
    fn fits(self, more: Self, quota: &Quota) -> bool {
        let all = self.plus(more);
        (more.bytes == 0 || quota.bytes.is_none_or(|most| all.bytes <= most))
            && (more.inodes == 0 || quota.inodes.is_none_or(|most| all.inodes <= most))
    }
}

impl Keeper {
    /// A keeper of `quota`; `cut` asks for a cut and returns at once.
    pub fn new(quota: Quota, shared: &Arc<Shared>, cut: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { quota, shared: Arc::clone(shared), cut, inner: Mutex::default() }
    }

    /// Answers 0 where the volume may grow so, which is then reserved until a cut has seen it, and EDQUOT where not. Never
    /// blocks: where it is close, the answer comes after the next cut.
    pub fn grow(&self, more: Usage, seen: Usage, told: Told, reply: Box<dyn Reply>) {
        let mut inner = self.inner.lock();
        let cuts = self.shared.unsettled.cuts();
        inner.expire(cuts);
        if inner.held(seen, told, cuts).fits(more, &self.quota) {
            inner.grants.push(Grant { usage: more, until: cuts + CUTS, at: Instant::now() });
            drop(inner);
            return reply.reply(0);
        }
        let again = inner.refused.is_some_and(|(at, at_cuts, least)| {
            let no_less = more.bytes >= least.bytes && more.inodes >= least.inodes;
            no_less && at_cuts == cuts && told.entries == 0 && at.elapsed() < REFUSED
        });
        if again {
            drop(inner);
            return reply.reply(libc::EDQUOT);
        }
        // Perhaps what was told overwrites what is there, or something was removed: a cut knows.
        inner.waiting.push(Waiting { usage: more, until: cuts + CUTS, reply });
        drop(inner);
        (self.cut)();
    }

    /// To be called every few milliseconds: shows clients whether to ask, and answers those that wait for a cut.
    pub fn tick(&self, seen: Usage, told: Told) {
        let mut inner = self.inner.lock();
        let cuts = self.shared.unsettled.cuts();
        inner.expire(cuts);
        if told.entries == 0 {
            inner.grants.retain(|grant| grant.at.elapsed() < UNUSED);
        }
        let near = self.is_near(inner.held(seen, told, cuts));
        if near && !inner.near {
            inner.unasked_until = cuts + CUTS;
        }
        if near != inner.near {
            inner.near = near;
            self.shared.gate().set_quota_near(near);
        }
        let due: Vec<Waiting> = inner.waiting.extract_if(.., |waiting| cuts >= waiting.until).collect();
        let more_cuts = !inner.waiting.is_empty();
        let mut answers = Vec::new();
        for Waiting { usage, reply, .. } in due {
            let held = inner.held(seen, Told::default(), cuts);
            if held.fits(usage, &self.quota) {
                inner.grants.push(Grant { usage, until: cuts + CUTS, at: Instant::now() });
                answers.push((reply, 0));
            } else {
                inner.refused = Some((Instant::now(), cuts, usage));
                answers.push((reply, libc::EDQUOT));
            }
        }
        drop(inner);
        for (reply, errno) in answers {
            if errno != 0 {
                self.shared.count("quota_refusals", 1);
            }
            reply.reply(errno);
        }
        if more_cuts {
            (self.cut)();
        }
    }

    /// Ends the wait of everybody without an answer: the next agent gives it.
    pub fn end(&self) {
        self.inner.lock().waiting.clear();
    }

    fn is_near(&self, held: Usage) -> bool {
        let near = |held: u64, most: Option<u64>, least: u64| {
            most.is_some_and(|most| held.saturating_add(least.max(most / NEAR_PART)) >= most)
        };
        near(held.bytes, self.quota.bytes, NEAR_BYTES) || near(held.inodes, self.quota.inodes, NEAR_INODES)
    }
}

impl Inner {
    fn expire(&mut self, cuts: u64) {
        self.grants.retain(|grant| cuts < grant.until);
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

    struct Answer(crossbeam::channel::Sender<i32>);
    impl Reply for Answer {
        fn answer(self: Box<Self>, answer: storeshim_protocol::request::Answer) {
            let _ = self.0.send(answer.errno);
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
            let (to, answer) = crossbeam::channel::bounded(1);
            self.keeper.grow(Usage { bytes, inodes }, self.seen, Told::default(), Box::new(Answer(to)));
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
        test.keeper.grow(Usage { bytes: 200, inodes: 0 }, test.seen, Told::default(), Box::new(Answer(to)));
        assert!(answer.is_empty(), "a cut may find that it fits");
        test.seen = Usage { bytes: 900, inodes: 1 };
        test.cuts(2);
        test.tick();
        assert_eq!(answer.try_recv().unwrap(), libc::EDQUOT);
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
        let near = |bytes, inodes| test.keeper.is_near(Usage { bytes, inodes });
        assert!(!near(0, 0) && !near(9 << 36, 9 << 16));
        assert!(near((1 << 40) - (1 << 33), 0) && near(0, (1 << 20) - 1000));
        assert!(!test.keeper.inner.lock().near);
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
