//! The lazily loaded index against a map: whatever is loaded when, and wherever the agent dies, it reads as one that has
//! everything.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::Receiver;
use proptest::prelude::*;

use super::*;
use crate::meta::records::{Codec, Extent, Location};
use crate::meta::{Batch, Head, Meta, MetaError};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// A backend that may refuse for a while, and counts what it is asked.
#[derive(Default)]
struct Backend {
    map: Mutex<Map>,
    refusals: AtomicU32,
    reads: AtomicUsize,
    /// Milliseconds that each read takes.
    delay: AtomicU32,
}

/// Of volume 7, in which nothing was committed.
pub(super) fn base() -> Base {
    Base {
        volume_id: 7,
        seq: 0,
        nonce: 0,
        populated: true,
        boot_id: "b".into(),
        clean: false,
        loaded: true,
        since: 2,
    }
}

impl Backend {
    fn read(&self) -> crate::meta::Result<Map> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            return Err(MetaError::Unavailable("not now".into()));
        }
        let map = self.map.lock().unwrap().clone();
        // What was read is out of date when it arrives.
        std::thread::sleep(std::time::Duration::from_millis(self.delay.load(Ordering::Relaxed).into()));
        Ok(map)
    }
}

impl Meta for Backend {
    fn get(&self, key: &[u8], _: Until) -> crate::meta::Result<Option<Bytes>> {
        Ok(self.read()?.get(key).map(|value| Bytes::copy_from_slice(value)))
    }
    fn scan(
        &self,
        prefix: &[u8],
        _: Until,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> crate::meta::Result<()> {
        for (key, value) in self.read()?.range(prefix.to_vec()..) {
            if !key.starts_with(prefix) || !each(key, value) {
                break;
            }
        }
        Ok(())
    }
    fn submit(&self, _: Batch) -> Receiver<crate::meta::Result<()>> {
        unreachable!("an index does not commit")
    }
    fn close(&self) -> crate::meta::Result<()> {
        Ok(())
    }
}

/// Numbers below this were given away before the index was emptied.
const SINCE: u64 = 300;
const VOLUME: u128 = 7;

fn lazy_base() -> Base {
    Base {
        volume_id: VOLUME,
        seq: 0,
        nonce: 0,
        populated: true,
        boot_id: "b".into(),
        clean: false,
        loaded: false,
        since: SINCE,
    }
}

fn hash(n: u8) -> ChunkHash {
    let mut hash = [n; 32];
    hash[0] = n % 3;
    hash
}

/// The record at a key of the kind, of the number, with content that depends on `salt`.
fn record(kind: u8, number: u64, salt: u8) -> (Vec<u8>, Vec<u8>) {
    let name = [b'n', salt % 5];
    match kind % 6 {
        0 => {
            let inode = Inode {
                mode: libc::S_IFREG,
                uid: salt.into(),
                gid: 0,
                rdev: 0,
                size: 1,
                mtime: Time::default(),
                links: 1,
                target: Vec::new(),
                xattrs: Vec::new(),
            };
            (key::inode(number), records::encode(&inode).unwrap().to_vec())
        }
        1 => (key::dentry(number, &name), records::encode_child(u64::from(salt)).to_vec()),
        2 => {
            let extent = Extent { start: 0, len: 1, chunk: hash(salt % 16), chunk_offset: 0 };
            let block = Block { extents: vec![extent] };
            (key::block(number, (salt % 4).into()), records::encode(&block).unwrap().to_vec())
        }
        3 => {
            let chunk = Chunk {
                refs: salt.into(),
                len: 1,
                stored_len: 1,
                codec: Codec::Raw,
                frames: Vec::new(),
                location: Location::Inline(vec![salt]),
            };
            (key::chunk(&hash(number as u8 % 16)), records::encode(&chunk).unwrap().to_vec())
        }
        4 => (
            key::pack(&[number as u8; 16]),
            records::encode(&Pack { size: 1, live: salt.into() }).unwrap().to_vec(),
        ),
        _ => (key::garbage(&[number as u8; 16]), vec![]),
    }
}

/// Numbers: neighbours, far ones, and some of this index's own time.
fn number(n: u8) -> u64 {
    match n % 12 {
        n @ 0..8 => 2 + u64::from(n),
        8 => 270,
        9 => 299,
        10 => SINCE,
        _ => SINCE + 5,
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Kind, number, salt, and whether it is a deletion.
    Cut(Vec<(u8, u8, u8, bool)>),
    /// The oldest commit under way becomes durable, and the agent hears of it or not.
    Durable(bool),
    Crash,
    Get(u8, u8, u8),
    Children(u8),
    Blocks(u8),
    LoadInodes(Vec<u8>),
    LoadFiles(Vec<u8>),
    LoadEntries(Vec<u8>),
    LoadFile(u8),
    /// Of the background, so many records.
    Background(u8),
    Refuse(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let numbers = || prop::collection::vec(any::<u8>(), 1..12);
    prop_oneof![
        6 => prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>(), any::<bool>()), 1..8).prop_map(Step::Cut),
        3 => any::<bool>().prop_map(Step::Durable),
        2 => Just(Step::Crash),
        6 => (any::<u8>(), any::<u8>(), any::<u8>()).prop_map(|(k, n, s)| Step::Get(k, n, s)),
        3 => any::<u8>().prop_map(Step::Children),
        3 => any::<u8>().prop_map(Step::Blocks),
        2 => numbers().prop_map(Step::LoadInodes),
        2 => numbers().prop_map(Step::LoadFiles),
        2 => numbers().prop_map(Step::LoadEntries),
        1 => any::<u8>().prop_map(Step::LoadFile),
        2 => any::<u8>().prop_map(Step::Background),
        1 => (0u8..3).prop_map(Step::Refuse),
    ]
}

struct World {
    dir: tempfile::TempDir,
    backend: Arc<Backend>,
    index: Option<Index>,
    /// As of the last cut.
    model: Map,
    /// Commits under way: number, nonce, changes.
    flying: VecDeque<(u64, u128, Changes)>,
    head: Option<Head>,
    seq: u64,
}

impl World {
    fn new(initial: Map) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backend = Arc::new(Backend { map: Mutex::new(initial.clone()), ..Backend::default() });
        let index = Index::open(dir.path()).unwrap();
        index.set_base(&lazy_base()).unwrap();
        index.set_source(backend.clone());
        let (flying, head) = (VecDeque::new(), None);
        Self { dir, backend, index: Some(index), model: initial, flying, head, seq: 0 }
    }

    fn index(&self) -> &Index {
        self.index.as_ref().unwrap()
    }

    fn cut(&mut self, changes: Changes) {
        self.seq += 1;
        let nonce = u128::from(self.seq) + 1000;
        self.index().apply(self.seq, nonce, &changes).unwrap();
        apply(&mut self.model, &changes);
        self.flying.push_back((self.seq, nonce, changes));
    }

    fn durable(&mut self, heard: bool) {
        let Some((seq, nonce, changes)) = self.flying.pop_front() else { return };
        apply(&mut self.backend.map.lock().unwrap(), &changes);
        self.head = Some(Head { seq, nonce, cut_at_ns: 0 });
        if heard {
            self.index().confirm(seq, nonce).unwrap();
        }
    }

    fn crash(&mut self) {
        self.index = None;
        let index = Index::open(self.dir.path()).unwrap();
        assert_eq!(index.reconcile(VOLUME, self.head).unwrap(), Standing::Current);
        index.set_source(self.backend.clone());
        self.index = Some(index);
        self.flying.clear();
        self.seq = self.head.map_or(0, |head| head.seq);
        self.model = self.backend.map.lock().unwrap().clone();
    }

    fn under(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let pairs = self.model.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        pairs.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn same_children(&self, dir: u64) {
        let expected: Vec<_> = self
            .under(&key::dentries_of(dir))
            .into_iter()
            .map(|(key, value)| (key[9..].to_vec(), records::decode_child(&key, &value).unwrap()))
            .collect();
        assert_eq!(self.index().children(dir).unwrap(), expected);
    }

    fn same_blocks(&self, inode: u64) {
        let expected: Vec<_> = self
            .under(&key::blocks_of(inode))
            .into_iter()
            .map(|(key, value)| {
                (
                    u64::from_be_bytes(key[9..].try_into().unwrap()),
                    records::decode::<Block>(&key, &value).unwrap(),
                )
            })
            .collect();
        assert_eq!(self.index().blocks(inode).unwrap(), expected);
        let numbers: Vec<u64> = expected.iter().map(|(number, _)| *number).collect();
        assert_eq!(self.index().block_numbers(inode, 0, u64::MAX).unwrap(), numbers);
    }

    fn same_everywhere(&self) {
        for n in 0..12 {
            self.same_children(number(n));
            self.same_blocks(number(n));
            for kind in 0..6 {
                for salt in 0..5 {
                    let (key, _) = record(kind, number(n), salt);
                    assert_eq!(
                        self.index().raw(&key).unwrap(),
                        self.model.get(&key).cloned(),
                        "{}",
                        key::show(&key)
                    );
                }
            }
        }
    }
}

fn apply(map: &mut Map, changes: &Changes) {
    for (key, value) in changes {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

fn numbers(list: &[u8]) -> Vec<u64> {
    list.iter().map(|n| number(*n)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_loaded_when_makes_no_difference(
        initial in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 0..60),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let initial = initial.into_iter().map(|(kind, n, salt)| record(kind, number(n % 10), salt)).collect();
        let mut world = World::new(initial);
        for step in &steps {
            match step {
                Step::Cut(ops) => {
                    let changes = ops.iter().map(|(kind, n, salt, delete)| {
                        let (key, value) = record(*kind, number(*n), *salt);
                        (key, (!delete).then_some(value))
                    });
                    let changes = changes.collect();
                    world.cut(changes);
                }
                Step::Durable(heard) => world.durable(*heard),
                Step::Crash => world.crash(),
                Step::Get(kind, n, salt) => {
                    let (key, _) = record(*kind, number(*n), *salt);
                    prop_assert_eq!(world.index().raw(&key).unwrap(), world.model.get(&key).cloned());
                }
                Step::Children(n) => world.same_children(number(*n)),
                Step::Blocks(n) => world.same_blocks(number(*n)),
                Step::LoadInodes(list) => world.index().load_inodes(&numbers(list), None).unwrap(),
                Step::LoadFiles(list) => world.index().load_files(&numbers(list), None).unwrap(),
                Step::LoadEntries(list) => world.index().load_entries(&numbers(list), None).unwrap(),
                Step::LoadFile(n) => world.index().load_file(number(*n), 0..9 << 20, None).unwrap(),
                Step::Background(most) => {
                    let mut left = *most;
                    let whole = world
                        .index()
                        .load_all(&mut |_| {
                            left = left.saturating_sub(1);
                            left > 0
                        })
                        .unwrap();
                    prop_assert_eq!(whole, world.index().is_loaded());
                }
                Step::Refuse(times) => world.backend.refusals.store((*times).into(), Ordering::Relaxed),
            }
        }
        world.same_everywhere();
        prop_assert!(world.index().load_all(&mut |_| true).unwrap());
        world.backend.reads.store(0, Ordering::Relaxed);
        world.same_everywhere();
        world.crash();
        world.same_everywhere();
        prop_assert_eq!(world.backend.reads.load(Ordering::Relaxed), 0, "all is here");
        prop_assert_eq!(world.index().records.prefix(b"x").count() + world.index().records.prefix(b"y").count(), 0);
    }
}

#[test]
fn what_arrives_late_overwrites_nothing() {
    let initial: Map = (0..6)
        .flat_map(|kind| (0..10).flat_map(move |n| (0..5).map(move |salt| record(kind, number(n), salt))))
        .collect();
    let mut world = World::new(initial);
    world.backend.delay.store(1, Ordering::Relaxed);
    let index = Arc::new(world.index.take().unwrap());
    let readers: Vec<_> = (0..4u8)
        .map(|reader| {
            let index = Arc::clone(&index);
            std::thread::spawn(move || {
                for turn in 0..60u8 {
                    match reader {
                        0 => drop(index.load_all(&mut |_| turn > 50).unwrap()),
                        1 => drop(index.children(number(turn)).unwrap()),
                        2 => index
                            .load_files(&[number(turn), number(turn + 1), number(turn + 2)], None)
                            .unwrap(),
                        _ => drop(index.raw(&record(turn, number(turn / 6), turn).0).unwrap()),
                    }
                }
            })
        })
        .collect();
    for round in 0..120u64 {
        let mix = |n: u64| (round * 31 + n * 17) as u8;
        let changes: Changes = (0..6)
            .map(|n| {
                let (key, value) = record(mix(n), number(mix(n) / 7), mix(n) / 3);
                (key, (mix(n) % 3 != 0).then_some(value))
            })
            .collect();
        index.apply(round + 1, 1, &changes).unwrap();
        apply(&mut world.model, &changes);
        for key in changes.keys() {
            assert_eq!(index.raw(key).unwrap(), world.model.get(key).cloned());
        }
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    world.index = Arc::into_inner(index);
    world.backend.delay.store(0, Ordering::Relaxed);
    world.same_everywhere();
    // None of it has become durable.
    world.crash();
    world.same_everywhere();
}

#[test]
fn neighbours_are_read_together() {
    let initial: Map = (2..5000).map(|n| record(0, n, 1)).chain((2..5000).map(|n| record(2, n, 1))).collect();
    let world = World::new(initial);
    world.index().change_base(|base| base.since = 5000).unwrap();
    let inodes: Vec<u64> = (2..5000).collect();
    world.index().load_inodes(&inodes, None).unwrap();
    assert!(world.backend.reads.swap(0, Ordering::Relaxed) <= 20, "some scans instead of 5000 gets");
    world.index().load_files(&inodes, None).unwrap();
    assert!(world.backend.reads.swap(0, Ordering::Relaxed) <= 21, "and a chunk that is not there");
    for inode in inodes {
        assert!(
            world.index().inode(inode).unwrap().is_some() && world.index().blocks(inode).unwrap().len() == 1
        );
    }
    assert_eq!(world.index().children(6000).unwrap().len(), 0);
    assert_eq!(
        world.backend.reads.load(Ordering::Relaxed),
        0,
        "nothing is asked twice, or of what is ours alone"
    );
}

#[test]
fn a_reader_with_little_patience_gets_an_error_and_may_come_again() {
    let world = World::new([record(0, 2, 1)].into_iter().collect());
    world.backend.refusals.store(1, Ordering::Relaxed);
    assert!(world.index().load_inodes(&[2], Some(std::time::Instant::now())).is_err());
    assert!(world.index().load_inodes(&[2], Some(std::time::Instant::now())).is_ok());
    world.backend.refusals.store(u32::MAX, Ordering::Relaxed);
    assert!(world.index().inode(2).unwrap().is_some(), "it is here");
    world.index().stop_loading();
    assert!(
        world.index().load_inodes(&[3], Some(std::time::Instant::now() + Duration::from_secs(60))).is_err()
    );
    world.backend.refusals.store(2, Ordering::Relaxed);
    assert!(world.index().inode(3).unwrap().is_none(), "a last cut reads what it needs");
    world.index().close_loading();
    assert!(world.index().inode(4).is_err());
}
