//! What is particular to SlateDB: ambiguous answers of the store, foreign prefixes, and the number of requests.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use proptest::prelude::*;

use super::ahead::Ahead;
use crate::blob::faults::{Fault, Faulty};
use crate::blob::{Store, StoreOptions};
use crate::meta::records::{self, Format};
use crate::meta::{Batch, Meta, MetaError};

fn over(objects: Arc<dyn ObjectStore>) -> Store {
    Store::over(objects, "test:").unwrap()
}

fn put(meta: &dyn Meta, key: &[u8], value: &[u8]) -> crossbeam::channel::Receiver<crate::meta::Result<()>> {
    meta.submit(Batch { ops: vec![(key.to_vec(), Some(Bytes::copy_from_slice(value)))] })
}

fn contents(meta: &dyn Meta) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    meta.scan(b"k", None, &mut |key, value| {
        found.insert(key.to_vec(), value.to_vec());
        true
    })
    .unwrap();
    found
}

/// Commits under faults of the WAL's PUTs, then reads back through a healthy store.
fn survives(fault: impl FnMut(u32) -> Option<Fault> + Send + 'static) {
    survives_on(Arc::new(Faulty::default()), fault);
}

fn survives_on(store: Arc<Faulty>, mut fault: impl FnMut(u32) -> Option<Fault> + Send + 'static) {
    let meta = super::open(&over(Arc::clone(&store) as Arc<dyn ObjectStore>)).unwrap();
    let mut count = 0;
    store.plan(move |path| {
        if !path.as_ref().contains("/wal/") {
            return None;
        }
        count += 1;
        fault(count)
    });
    let mut model = BTreeMap::new();
    for round in 0..3_u8 {
        // Several in flight, and each round overwrites, so that a batch written again out of order would show.
        let answers: Vec<_> = (0..4_u8)
            .map(|number| {
                model.insert(vec![b'k', number % 2], vec![round, number]);
                put(&*meta, &[b'k', number % 2], &[round, number])
            })
            .collect();
        for answer in answers {
            answer.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
        }
        assert_eq!(contents(&*meta), model);
    }
    store.behave();
    let again = super::open(&over(Arc::clone(&store.inner) as Arc<dyn ObjectStore>)).unwrap();
    assert_eq!(contents(&*again), model);
    assert!(matches!(put(&*meta, b"k", b"stale").recv().unwrap(), Err(MetaError::Fenced)));
}

#[test]
fn lost_answers_are_no_conflicts() {
    survives(|count| (count % 2 == 1).then_some(Fault::LoseAnswer));
}

/// The batch is durable, but SlateDB must take it for another writer's: the marker tells that it is ours.
#[test]
fn lost_answers_of_a_store_without_attributes_are_found_out() {
    let store = Arc::new(Faulty::default());
    store.no_attributes.store(true, Ordering::Relaxed);
    survives_on(store, |count| (count % 4 == 1).then_some(Fault::LoseAnswer));
}

#[test]
fn refusals_are_tried_again() {
    survives(|count| (count % 4 != 0).then_some(Fault::Refuse));
}

#[test]
fn a_false_conflict_is_not_taken_for_a_fence() {
    survives(|count| (count % 3 == 1).then_some(Fault::FalseConflict));
}

#[test]
fn a_slow_store_is_waited_for() {
    survives(|_| Some(Fault::Hang(Duration::from_millis(100))));
}

#[test]
fn a_dead_store_keeps_commits_waiting_and_says_why() {
    let faulty = Arc::new(Faulty::default());
    let store = over(Arc::clone(&faulty) as Arc<dyn ObjectStore>);
    let meta = super::open(&store).unwrap();
    faulty.plan(|_| Some(Fault::Refuse));
    let answer = put(&*meta, b"k", b"1");
    assert!(answer.recv_timeout(Duration::from_millis(500)).is_err(), "no false success, no false failure");
    assert!(store.health().last_error().unwrap().contains("503"));
    assert_eq!(meta.get(b"k", None).unwrap(), None, "what is not durable is not shown");
    faulty.behave();
    answer.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
    assert_eq!(meta.get(b"k", None).unwrap().as_deref(), Some(&b"1"[..]));
    meta.close().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]
    /// Any mixture of faults on any object, with crashes in between: what was acknowledged is there, in order.
    #[test]
    fn nothing_acknowledged_is_lost(seed in any::<u64>(), rounds in 1_u8..4) {
        let store = Arc::new(Faulty::default());
        let mut state = seed | 1;
        store.plan(move |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match state >> 60 {
                0 | 1 => Some(Fault::LoseAnswer),
                2 => Some(Fault::Refuse),
                3 => Some(Fault::Hang(Duration::from_millis(20))),
                _ => None,
            }
        });
        let mut acknowledged = 0_u64;
        for _ in 0..rounds {
            let meta = super::open(&over(Arc::clone(&store) as Arc<dyn ObjectStore>)).unwrap();
            let seen = meta.get(b"k", None).unwrap().map_or(0, |value| u64::from_be_bytes(value.as_ref().try_into().unwrap()));
            // A commit in flight at the crash may have become durable.
            prop_assert!(seen == acknowledged || seen == acknowledged + 1, "{} after {}", seen, acknowledged);
            acknowledged = seen;
            for _ in 0..3 {
                put(&*meta, b"k", &(acknowledged + 1).to_be_bytes()).recv().unwrap().unwrap();
                acknowledged += 1;
            }
            let _in_flight = put(&*meta, b"k", &(acknowledged + 1).to_be_bytes());
        }
    }
}

#[test]
fn a_foreign_prefix_is_refused_and_left_alone() {
    let refusal = |name: &str| {
        let objects = Arc::new(InMemory::new());
        let store = over(Arc::clone(&objects) as Arc<dyn ObjectStore>);
        store.handle().block_on(objects.put(&Path::from(name), "mine".into())).unwrap();
        let error = super::open(&store).map(|_| ()).unwrap_err();
        let left = store.handle().block_on(objects.list_with_delimiter(None)).unwrap();
        assert_eq!(left.objects.len() + left.common_prefixes.len(), 1, "nothing was written");
        error
    };
    assert!(
        matches!(refusal("holiday/photo.jpg"), MetaError::Refused(text) if text.contains("holiday/photo.jpg"))
    );
    assert!(matches!(refusal("packs/ab/abcd"), MetaError::Damaged(text) if text.contains("no metadata")));
    assert!(matches!(refusal("meta/x"), MetaError::Refused(_)));
    let garbage = refusal("meta/manifest/00000000000000000001.manifest");
    assert!(matches!(&garbage, MetaError::Damaged(_)), "{garbage:?}");
}

#[test]
fn another_format_version_is_refused() {
    let store = Store::open("memory:other-format", &StoreOptions { probe: false, ..StoreOptions::default() })
        .unwrap();
    let meta = super::open(&store).unwrap();
    let key = records::key::format();
    let format: Format = records::decode(&key, &meta.get(&key, None).unwrap().unwrap()).unwrap();
    let newer = records::encode(&Format { version: 99, ..format }).unwrap();
    meta.submit(Batch { ops: vec![(key.clone(), Some(newer))] }).recv().unwrap().unwrap();
    meta.close().unwrap();
    let error = super::open(&store).map(|_| ()).unwrap_err();
    assert!(matches!(&error, MetaError::Damaged(text) if text.contains("version 99")), "{error}");
}

#[test]
fn ten_thousand_small_files_cost_few_requests() {
    let store = over(Arc::new(InMemory::new()));
    let meta = super::open(&store).unwrap();
    for part in 0..5_u64 {
        let mut ops = Vec::new();
        for file in 0..2000 {
            let inode = part * 2000 + file + 2;
            ops.push((records::key::inode(inode), Some(Bytes::from(vec![7; 60]))));
            ops.push((
                records::key::dentry(1, format!("file-{inode}").as_bytes()),
                Some(records::encode_child(inode)),
            ));
            ops.push((records::key::block(inode, 0), Some(Bytes::from(vec![8; 50]))));
            ops.push((
                records::key::chunk(blake3::hash(&inode.to_be_bytes()).as_bytes()),
                Some(Bytes::from(vec![9; 1500])),
            ));
        }
        meta.submit(Batch { ops }).recv().unwrap().unwrap();
    }
    meta.close().unwrap();
    let puts = store.health().counters()[0].1;
    assert!(puts <= 40, "{puts} PUTs for opening, 5 commits and closing");
    let before = store.health().counters()[1].1;
    let again = super::open(&store).unwrap();
    let mut found = 0;
    again
        .scan(b"", None, &mut |_, _| {
            found += 1;
            true
        })
        .unwrap();
    assert_eq!(found, 40_001);
    let gets = store.health().counters()[1].1 - before;
    assert!(gets <= 100, "{gets} GETs to open and read the whole volume");
    eprintln!("{puts} PUTs, {gets} GETs");
}

/// Long enough for memtable flushes, compactions and back-pressure to happen several times.
#[test]
#[ignore = "runs for a minute"]
fn a_minute_of_writing_through_compactions() {
    let directory = tempfile::tempdir().unwrap();
    let store =
        Store::open(&format!("file://{}", directory.path().display()), &StoreOptions::default()).unwrap();
    let meta = super::open(&store).unwrap();
    let begin = std::time::Instant::now();
    let (mut model, mut round, mut slowest) = (BTreeMap::new(), 0_u64, Duration::ZERO);
    while begin.elapsed() < Duration::from_secs(60) {
        round += 1;
        let mut ops = Vec::new();
        for number in 0..2000_u64 {
            let mut value = vec![0; 500];
            let key = (number * 7919 + round * 31) % 200_000;
            blake3::Hasher::new()
                .update(&round.to_le_bytes())
                .update(&key.to_le_bytes())
                .finalize_xof()
                .fill(&mut value);
            model.insert(key, round);
            ops.push(([&b"k"[..], &key.to_be_bytes()].concat(), Some(Bytes::from(value))));
        }
        let at = std::time::Instant::now();
        meta.submit(Batch { ops }).recv().unwrap().unwrap();
        slowest = slowest.max(at.elapsed());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let memory = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    eprintln!("{round} commits of 1 MB, slowest {slowest:?}, {memory}, {:?}", store.health().counters());
    meta.close().unwrap();
    let again = super::open(&store).unwrap();
    let mut found = BTreeMap::new();
    again
        .scan(b"k", None, &mut |key, value| {
            let key = u64::from_be_bytes(key[1..].try_into().unwrap());
            let mut expected = vec![0; 500];
            let round = model[&key];
            blake3::Hasher::new()
                .update(&round.to_le_bytes())
                .update(&key.to_le_bytes())
                .finalize_xof()
                .fill(&mut expected);
            assert_eq!(value, expected);
            found.insert(key, round);
            true
        })
        .unwrap();
    assert_eq!(found, model);
}

/// A volume of many records, and how its last writer ended.
fn many_records(store: &Arc<Faulty>, openings: u64, clean: bool) {
    let key = |n: u64| [b"d".as_slice(), &(1 + n / 1000).to_be_bytes(), &n.to_be_bytes()].concat();
    for opening in 0..openings {
        let meta = super::open(&over(Arc::clone(store) as Arc<dyn ObjectStore>)).unwrap();
        for part in 0..4 {
            let ops = (0..10_000).map(|n| (key(part * 10_000 + n), Some(Bytes::from_static(&[7; 60]))));
            let mut ops: Vec<_> = ops.collect();
            ops.push((records::key::head(), Some(Bytes::from_static(b"head"))));
            meta.submit(Batch { ops }).recv().unwrap().unwrap();
        }
        if clean || opening + 1 < openings {
            meta.close().unwrap();
        } else {
            // As if it were killed: nobody closes it, and it goes on thinking that it is the writer.
            std::mem::forget(meta);
        }
    }
}

/// What SlateDB looks at by itself, now and then.
const BACKGROUND: [&str; 4] = ["meta/manifest", "meta/gc/", "meta/compactions", "LIST"];

/// Opens a volume over a store that is far away: the round trips of the opening, of a record and of a directory.
fn a_cold_opening(openings: u64, clean: bool) -> [usize; 3] {
    let store = Arc::new(Faulty::default());
    many_records(&store, openings, clean);
    let mut meta = None;
    let opening = store.round_trips("opening", &[], || {
        meta = Some(super::open_and_probe(&over(Arc::clone(&store) as Arc<dyn ObjectStore>)).unwrap());
    });
    let meta = meta.unwrap();
    let records =
        store.round_trips("a record", &BACKGROUND, || drop(meta.get(&records::key::head(), None).unwrap()));
    let scan = store.round_trips("a directory", &BACKGROUND, || {
        let mut entries = 0;
        meta.scan(&[b"d".as_slice(), &1u64.to_be_bytes()].concat(), None, &mut |_, _| {
            entries += 1;
            true
        })
        .unwrap();
        assert_eq!(entries, 1000);
    });
    meta.submit(Batch { ops: vec![(b"k".to_vec(), Some(Bytes::from_static(b"mine")))] })
        .recv()
        .unwrap()
        .unwrap();
    [opening, records, scan]
}

#[test]
fn a_cold_opening_takes_few_round_trips() {
    let [opening, record, directory] = a_cold_opening(2, true);
    // The list of manifests; the newest; the claim; the fence. What is read of every volume is read beside that.
    assert!(opening <= 4 && record == 0 && directory <= 2, "{opening}, {record}, {directory}");
}

#[test]
fn an_opening_after_a_crash_takes_no_more() {
    let [opening, record, directory] = a_cold_opening(2, false);
    assert!(opening <= 4 && record == 0 && directory <= 2, "{opening}, {record}, {directory}");
}

/// An opening is overtaken after it has asked for what it needs: by a whole life of another agent, whose older manifests are
/// collected or not, and which is over or goes on.
fn overtaken(collect: bool, close: bool) {
    let store = over(Arc::new(InMemory::new()));
    let objects = store.objects();
    let first = super::open(&store).unwrap();
    put(&*first, b"k", b"first").recv().unwrap().unwrap();
    first.close().unwrap();

    let ahead = store.handle().block_on(async {
        let ahead = Arc::new(Ahead::begin(objects));
        assert!(ahead.has_manifests().await.unwrap());
        // All that it asks for at first has an answer.
        tokio::time::sleep(Duration::from_millis(50)).await;
        ahead
    });
    let other = super::open(&store).unwrap();
    put(&*other, b"k", b"other").recv().unwrap().unwrap();
    let mut other = Some(other);
    if close {
        other.take().unwrap().close().unwrap();
    }
    let manifests = || async {
        let mut names: Vec<_> = objects
            .list(Some(&Path::from("meta/manifest")))
            .map_ok(|object| object.location)
            .try_collect()
            .await
            .unwrap();
        names.sort();
        names
    };
    store.handle().block_on(async {
        let mut names = manifests().await;
        let newest = names.pop().unwrap();
        if collect {
            let number: u64 = newest.filename().unwrap().split('.').next().unwrap().parse().unwrap();
            let boundary = Path::from("meta/gc/manifest.boundary");
            objects.put(&boundary, (number - 1).to_string().into()).await.unwrap();
            for name in &names {
                objects.delete(name).await.unwrap();
            }
        }
        let cache = Arc::new(crate::meta::cache::Cache::new(1 << 20));
        let db =
            super::open::build_with(Arc::clone(&ahead) as Arc<dyn ObjectStore>, cache, None).await.unwrap();
        ahead.end();
        assert_eq!(
            db.get(b"k").await.unwrap().as_deref(),
            Some(&b"other"[..]),
            "it has seen what came before it"
        );
        assert!(manifests().await.pop().unwrap() > newest, "its claim is the newest");
        db.put(b"k", b"mine").await.unwrap();
        db.flush().await.unwrap();
        db.close().await.unwrap();
    });
    if let Some(other) = other {
        assert!(matches!(put(&*other, b"k", b"late").recv().unwrap(), Err(MetaError::Fenced)));
    }
    assert_eq!(super::open(&store).unwrap().get(b"k", None).unwrap().as_deref(), Some(&b"mine"[..]));
}

#[test]
fn an_opening_that_is_overtaken_by_a_closed_agent_sees_it() {
    overtaken(false, true);
}

#[test]
fn an_opening_that_is_overtaken_by_a_live_agent_fences_it() {
    overtaken(false, false);
}

#[test]
fn an_opening_that_is_overtaken_by_far_knows_it_from_the_boundary() {
    overtaken(true, true);
    overtaken(true, false);
}

/// What somebody has left beside the manifests whose name begins like one: a copy tool's, or the one of an agent that was
/// killed while it wrote to a directory.
#[test]
fn what_only_begins_like_a_manifest_is_none() {
    let objects = Arc::new(InMemory::new());
    let store = over(Arc::clone(&objects) as Arc<dyn ObjectStore>);
    let first = super::open(&store).unwrap();
    put(&*first, b"k", b"first").recv().unwrap().unwrap();
    first.close().unwrap();
    store.handle().block_on(async {
        let left = Path::parse("meta/manifest/00000000000000000099.manifest#1").unwrap();
        objects.put(&left, PutPayload::new()).await.unwrap();
    });
    let again = super::open(&store).unwrap();
    assert_eq!(again.get(b"k", None).unwrap().as_deref(), Some(&b"first"[..]));
    again.close().unwrap();
}

/// The newest manifest could not be read at first: the opening goes the long way, and is none the worse for it.
#[test]
fn an_opening_that_could_not_read_ahead_still_opens() {
    let faulty = Arc::new(Faulty::default());
    let store = over(Arc::clone(&faulty) as Arc<dyn ObjectStore>);
    let first = super::open(&store).unwrap();
    put(&*first, b"k", b"first").recv().unwrap().unwrap();
    first.close().unwrap();
    *faulty.refuse_get.lock().unwrap() = Some("meta/manifest/");
    let again = super::open(&store).unwrap();
    assert_eq!(again.get(b"k", None).unwrap().as_deref(), Some(&b"first"[..]));
    again.close().unwrap();
}

/// Agents that open one volume again and again, over a store that is slow and answers badly: what was acknowledged is there,
/// and nobody commits any more once somebody else's opening has returned.
#[test]
fn agents_that_race_for_a_volume_lose_nothing() {
    let store = Arc::new(Faulty::default());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    store.plan(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match state >> 59 {
            0 => Some(Fault::LoseAnswer),
            1 => Some(Fault::Refuse),
            n @ 2..8 => Some(Fault::Hang(Duration::from_millis(3 * n))),
            _ => None,
        }
    });
    drop(super::open(&over(Arc::clone(&store) as Arc<dyn ObjectStore>)).unwrap());
    store.delay_ms.store(3, Ordering::Relaxed);
    // Began and returned, of each opening; key, opening, and when it was submitted, of each commit.
    let (openings, acknowledged) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for agent in 0..3_u8 {
            let (store, openings, acknowledged) = (&store, &openings, &acknowledged);
            scope.spawn(move || {
                for opening in 0..6_u8 {
                    let began = Instant::now();
                    let meta = match super::open(&over(Arc::clone(store) as Arc<dyn ObjectStore>)) {
                        Ok(meta) => meta,
                        // Another one has claimed it meanwhile.
                        Err(MetaError::Fenced) => continue,
                        Err(error) => panic!("{error}"),
                    };
                    let times = (began, Instant::now());
                    openings.lock().unwrap().push(times);
                    for number in 0..4_u8 {
                        let submitted = Instant::now();
                        let key = [b'k', agent, opening, number];
                        match put(&*meta, &key, b"v").recv().unwrap() {
                            Ok(()) => acknowledged.lock().unwrap().push((key, times, submitted)),
                            Err(MetaError::Fenced) => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
        }
    });
    store.delay_ms.store(0, Ordering::Relaxed);
    store.behave();
    let last = super::open(&over(Arc::clone(&store.inner) as Arc<dyn ObjectStore>)).unwrap();
    let there = contents(&*last);
    let (openings, acknowledged) = (openings.into_inner().unwrap(), acknowledged.into_inner().unwrap());
    assert!(!acknowledged.is_empty());
    for (key, (_, returned), submitted) in &acknowledged {
        assert!(there.contains_key(key.as_slice()), "{key:?} was acknowledged and is lost");
        let later = openings.iter().find(|(began, taken)| began > returned && taken < submitted);
        assert!(later.is_none(), "{key:?} was committed by an agent that another one had replaced");
    }
}
