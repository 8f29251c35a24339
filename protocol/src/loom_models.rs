//! Every interleaving and every weak-memory outcome of the protocol's three conversations, by loom:
//! `RUST_BACKTRACE=0 RUSTFLAGS="--cfg loom" cargo test -p storeshim-protocol --release --lib loom` (a backtrace never
//! ends on loom's stacks).
//!
//! The membarrier of the agent is modelled by full fences on both sides (see `sync`). loom runs loads in order, so
//! it cannot show an entry that is overwritten before an earlier load of it: the pair of release and acquire on
//! `tail` rests on argument alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arc_with_non_send_sync,
    reason = "tests, which clippy does not recognise behind this cfg; and loom's cells are shared on purpose"
)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;

use crate::control::Mount;
use crate::intent::{Intent, NAME_MAX, decode, encode_short};
use crate::request::{Answer, Ask, Request, RequestCell};
use crate::residency::{Residency, places_of};
use crate::ring::{ENTRIES, Full, Slot};

fn model(body: impl Fn() + Send + Sync + 'static) {
    bounded(3, body);
}

/// With at most so many switches between threads that none of them had to make.
fn bounded(switches: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(body);
}

/// Runs both at once. Each in a thread of its own: what one thread does right after it began another is hardly ever overtaken
/// by that in loom 0.7, so that half of what can happen would not be tried.
fn side_by_side<A: 'static, B: 'static>(
    one: impl FnOnce() -> A + 'static,
    other: impl FnOnce() -> B + 'static,
) -> (A, B) {
    let (one, other) = (thread::spawn(one), thread::spawn(other));
    (one.join().unwrap(), other.join().unwrap())
}

fn record(ino: u64) -> [u64; 8] {
    encode_short(0, &Intent::Written { ino, offset: ino * 10, length: ino * 100 }).unwrap()
}

/// Records come out whole, once, in order, whatever the interleaving; what did not fit was reported.
#[test]
fn ring_push_and_drain() {
    model(|| {
        // The counters wrap on the way.
        let slot = Arc::new(Slot::new(u32::MAX - 1));
        let pushed = ENTRIES as u64 + 1;
        let produce = {
            let slot = Arc::clone(&slot);
            move || (1..=pushed).filter(|ino| slot.push(&[record(*ino)]) == Err(Full)).collect::<Vec<_>>()
        };
        let drain = {
            let slot = Arc::clone(&slot);
            move || drained(&slot)
        };
        let (refused, mut told) = side_by_side(produce, drain);
        told.extend(drained(&slot));
        let expected: Vec<u64> = (1..=pushed).filter(|ino| !refused.contains(ino)).collect();
        assert_eq!(told, expected);
    });
}

fn drained(slot: &Slot) -> Vec<u64> {
    let mut told = Vec::new();
    slot.drain(|record| {
        let mut buffer = [0; NAME_MAX];
        let Some((0, Intent::Written { ino, offset, length })) = decode(record, &mut buffer) else {
            panic!("a torn record");
        };
        assert_eq!((offset, length), (ino * 10, ino * 100), "a torn record");
        told.push(ino);
    })
    .expect("an honest producer's ring is never corrupt");
    told
}

/// Inside a freeze nobody changes anything, and what was pushed before it is drained in it.
fn gate_against_freeze(fenced: bool) {
    model(move || {
        struct World {
            mount: Mount,
            slot: Slot,
            tree: UnsafeCell<u64>,
        }
        let world = Arc::new(World { mount: Mount::new(), slot: Slot::new(0), tree: UnsafeCell::new(0) });
        let client = {
            let world = Arc::clone(&world);
            move || {
                let World { mount, slot, tree } = &*world;
                for ino in 1..=2 {
                    if !slot.gate.try_enter(0, mount, fenced) {
                        break;
                    }
                    slot.push(&[record(ino)]).unwrap();
                    // SAFETY: what the model is about: loom fails where this meets the agent's look.
                    tree.with_mut(|tree| unsafe { *tree = ino });
                    slot.gate.leave();
                }
            }
        };
        let agent = move || {
            let World { mount, slot, tree } = &*world;
            mount.frozen.store(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            while slot.gate.look().inside().is_some() {
                thread::yield_now();
            }
            let mut told = 0;
            slot.drain(|record| told = record[0][1]).unwrap();
            mount.interval.fetch_add(1, Ordering::Release);
            // SAFETY: as above.
            let seen = tree.with(|tree| unsafe { *tree });
            assert_eq!(seen, told, "the freeze shows a change that was not told, or the reverse");
            mount.frozen.store(0, Ordering::SeqCst);
        };
        side_by_side(client, agent);
    });
}

#[test]
fn gate_against_freeze_with_membarrier() {
    gate_against_freeze(false);
}

#[test]
fn gate_against_freeze_with_fences() {
    gate_against_freeze(true);
}

/// A client that enters after the thaw sees the new interval.
#[test]
fn gate_shows_the_interval() {
    model(|| {
        let mount = Arc::new(Mount::new());
        mount.frozen.store(1, Ordering::SeqCst);
        let client = {
            let mount = Arc::clone(&mount);
            move || {
                let slot = Slot::new(0);
                if slot.gate.try_enter(0, &mount, true) {
                    assert_eq!(mount.interval.load(Ordering::Relaxed), 1);
                }
            }
        };
        let agent = move || {
            mount.interval.fetch_add(1, Ordering::Release);
            mount.frozen.store(0, Ordering::SeqCst);
        };
        side_by_side(client, agent);
    });
}

/// A client that gives up and asks anew gets the answer to what it asked last, whenever the agent answers what.
#[test]
fn request_abandoned_and_asked_anew() {
    model(|| {
        let cell = Arc::new(RequestCell::new());
        // What the agent has seen asked last: an answer to `ino` is the errno `ino`.
        let agent = {
            let cell = Arc::clone(&cell);
            move || {
                let mut held = Vec::new();
                for _ in 0..2 {
                    if let Some((ticket, Ok(Request { mount, ask: Ask::Barrier { ino } }))) = cell.pending() {
                        assert_eq!(u64::from(mount), ino, "half of one request and half of another");
                        held.push((ticket, ino));
                    }
                    thread::yield_now();
                }
                // Answered late and in the order of asking: the stale one first.
                for (ticket, ino) in held {
                    cell.reply(ticket, Answer { errno: ino as i32, value: ino });
                }
            }
        };
        let client = {
            let cell = Arc::clone(&cell);
            move || {
                let ask = |ino: u64| cell.post(Request { mount: ino as u8, ask: Ask::Barrier { ino } });
                let first = ask(1);
                let answer = cell.abandon();
                assert!(answer.is_none_or(|answer| answer == Answer { errno: 1, value: 1 }));
                let second = ask(2);
                assert_ne!(first, second);
                if let Some(answer) = cell.take_reply() {
                    assert_eq!(
                        answer,
                        Answer { errno: 2, value: 2 },
                        "the answer to a request that was given up"
                    );
                }
            }
        };
        side_by_side(agent, client);
        if let Some(answer) = cell.take_reply() {
            assert_eq!(answer, Answer { errno: 2, value: 2 });
        }
    });
}

/// What the client wrote before it asked, the agent sees; what the agent wrote before it answered, the client sees.
#[test]
fn request_carries_both_ways() {
    model(|| {
        let shared = Arc::new((RequestCell::new(), AtomicU64::new(0), AtomicU64::new(0)));
        let agent = {
            let shared = Arc::clone(&shared);
            move || {
                let (cell, asked, answered) = &*shared;
                if let Some((ticket, _)) = cell.pending() {
                    assert_eq!(asked.load(Ordering::Relaxed), 7);
                    answered.store(8, Ordering::Relaxed);
                    assert!(cell.reply(ticket, Answer { errno: 0, value: 9 }));
                }
            }
        };
        let client = move || {
            let (cell, asked, answered) = &*shared;
            asked.store(7, Ordering::Relaxed);
            let _ = cell.post(Request { mount: 0, ask: Ask::Barrier { ino: 0 } });
            if let Some(answer) = cell.take_reply() {
                assert_eq!(answer.value, 9);
                assert_eq!(answered.load(Ordering::Relaxed), 8);
            }
        };
        side_by_side(agent, client);
    });
}

/// A reader never believes the zeros of an eviction, however often a piece goes and comes while it reads.
fn never_zeros(slot: bool) {
    // To the agent, back to the reader between two of its steps, to the bytes that go, and back to read them.
    bounded(6, move || {
        struct World {
            residency: Box<Residency>,
            /// The piece on the disk; 0 is a hole.
            disk: AtomicU64,
        }
        const INO: u64 = 1;
        let world = Arc::new(World { residency: Residency::new(), disk: AtomicU64::new(7) });
        if slot {
            world.residency.set_absent(INO);
            let place = places_of(INO).next().unwrap();
            assert!(world.residency.give(place, INO, 1, 0) && world.residency.set_piece(INO, 0, true));
        }
        let agent = {
            let world = Arc::clone(&world);
            move || {
                let World { residency, disk } = &*world;
                residency.set_absent(INO);
                residency.set_piece(INO, 0, false);
                residency.evicting(INO);
                // The kernel's locks order a hole after what its maker did before.
                fence(Ordering::Release);
                disk.store(0, Ordering::Relaxed);
                disk.store(7, Ordering::Release);
                if slot {
                    residency.set_piece(INO, 0, true);
                } else {
                    residency.set_whole(INO);
                }
            }
        };
        let reader = move || {
            let World { residency, disk } = &*world;
            if let Some(stamp) = residency.check(INO, 0, 1) {
                let read = disk.load(Ordering::Relaxed);
                if residency.still(stamp) {
                    assert_eq!(read, 7, "a reader took a hole for data");
                }
            }
        };
        side_by_side(agent, reader);
    });
}

#[test]
fn never_zeros_of_a_whole_file() {
    never_zeros(false);
}

#[test]
fn never_zeros_of_a_file_in_part() {
    never_zeros(true);
}

/// Who sees one byte of a piece sees all of them, if nothing was brought meanwhile.
#[test]
fn half_a_piece_is_never_calm() {
    bounded(4, move || {
        struct World {
            residency: Box<Residency>,
            /// A piece on the disk, by halves; 0 is a hole.
            disk: [AtomicU64; 2],
        }
        const INO: u64 = 1;
        let world =
            Arc::new(World { residency: Residency::new(), disk: std::array::from_fn(|_| AtomicU64::new(0)) });
        world.residency.set_absent(INO);
        let agent = {
            let world = Arc::clone(&world);
            move || {
                let World { residency, disk } = &*world;
                residency.set_moving(INO, true);
                disk[0].store(7, Ordering::Release);
                disk[1].store(7, Ordering::Release);
                residency.set_moving(INO, false);
            }
        };
        let reader = move || {
            let World { residency, disk } = &*world;
            let stamp = residency.stamp(INO);
            let read = [1, 0].map(|half| disk[half].load(Ordering::Acquire));
            if residency.is_calm(stamp) {
                assert_eq!(read[0], read[1], "a reader took half a piece for the whole");
            }
        };
        side_by_side(agent, reader);
    });
}

/// A slot that changes hands never answers for the file that it was given to with the bits of another one.
#[test]
fn slots_change_hands() {
    model(|| {
        let residency = Arc::new(Residency::new());
        let place = places_of(1).next().unwrap();
        residency.set_absent(1);
        residency.set_absent(2);
        assert!(residency.give(place, 1, 1, 0));
        let agent = {
            let residency = Arc::clone(&residency);
            // Both inodes may stand in either of the model's two slots.
            move || assert!(residency.give(place, 2, 1, 0) && residency.set_piece(2, 0, true))
        };
        let reader = move || assert_eq!(residency.check(1, 0, 1), None, "nothing of it was ever here");
        side_by_side(agent, reader);
    });
}
