//! What every metadata engine must do, whatever it is built on. Each engine is one [`Engine`]; each property is one
//! function, run for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::{Batch, Meta, MetaError};
use crate::blob::{Store, StoreOptions};
use crate::durable::runtime::{self, Volume};

/// A volume that can be opened again and again.
trait Engine {
    fn open(&self) -> Arc<dyn Meta>;

    /// Another volume of the same kind, which is new.
    fn other(&self) -> Box<dyn Engine + '_>;
}

/// SlateDB on one store.
struct Slate {
    url: String,
    again: fn() -> Slate,
    _directory: Option<tempfile::TempDir>,
}

/// A Durable Object on the real runtime.
impl Engine for Volume<'_> {
    fn open(&self) -> Arc<dyn Meta> {
        Self::open(self).meta
    }

    fn other(&self) -> Box<dyn Engine + '_> {
        Box::new(self.other())
    }
}

impl Engine for Slate {
    fn open(&self) -> Arc<dyn Meta> {
        let options = StoreOptions { probe: self.url.starts_with("s3:"), ..StoreOptions::default() };
        super::open(&Store::open(&self.url, &options).unwrap()).unwrap()
    }

    fn other(&self) -> Box<dyn Engine + '_> {
        Box::new((self.again)())
    }
}

fn memory() -> Slate {
    Slate { url: format!("memory:{:032x}", rand::random::<u128>()), again: memory, _directory: None }
}

fn file() -> Slate {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}/volume", directory.path().display());
    Slate { url, again: file, _directory: Some(directory) }
}

/// A real server: a fresh prefix under the URL in `STORESHIM_TEST_S3_URL`, such as
/// `s3://bucket/tests?endpoint=http://127.0.0.1:9000`, with credentials in the environment.
fn s3() -> Slate {
    let base = std::env::var("STORESHIM_TEST_S3_URL").expect("STORESHIM_TEST_S3_URL names a test bucket");
    let (place, query) = base.split_once('?').unwrap_or((&base, ""));
    Slate { url: format!("{place}/{:032x}?{query}", rand::random::<u128>()), again: s3, _directory: None }
}

/// Runs a property on every engine.
macro_rules! conform {
    ($($property:ident),* $(,)?) => {
        mod slate_memory { $(#[test] fn $property() { super::$property(&super::memory()); })* }
        mod slate_s3 { $(
            #[test] #[ignore = "needs a server: set STORESHIM_TEST_S3_URL"] fn $property() { super::$property(&super::s3()); }
        )* }
        mod slate_file { $(#[test] fn $property() { super::$property(&super::file()); })* }
        mod durable_dialled { $(#[test] fn $property() {
            super::runtime::with(|runtime| super::$property(&runtime.dialled()));
        })* }
        mod durable_websocket { $(#[test] fn $property() {
            super::runtime::with(|runtime| super::$property(&runtime.websocket()));
        })* }
    };
}

conform!(
    a_new_volume_holds_its_format_only,
    commits_survive_and_keep_their_order,
    deletes_and_overwrites,
    scans_respect_their_prefix,
    large_values_and_batches,
    the_older_opening_is_fenced,
    submissions_after_close_are_answered,
    impossible_records_are_refused,
    random_histories_match_a_map,
);

type Op<'a> = (&'a [u8], Option<&'a [u8]>);

fn batch(ops: &[Op<'_>]) -> Batch {
    Batch { ops: ops.iter().map(|(key, value)| (key.to_vec(), value.map(Bytes::copy_from_slice))).collect() }
}

fn commit(meta: &dyn Meta, ops: &[Op<'_>]) {
    meta.submit(batch(ops)).recv().unwrap().unwrap();
}

/// Everything under `prefix`, but for the volume's format.
fn all(meta: &dyn Meta, prefix: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (mut found, mut last) = (BTreeMap::new(), None);
    meta.scan(prefix, None, &mut |key, value| {
        assert!(last.as_deref() < Some(key), "keys come in order, once each");
        last = Some(key.to_vec());
        if key != b"v" {
            found.insert(key.to_vec(), value.to_vec());
        }
        true
    })
    .unwrap();
    found
}

fn a_new_volume_holds_its_format_only(engine: &dyn Engine) {
    let first = engine.open();
    let format = first.get(b"v", None).unwrap().unwrap();
    assert!(all(&*first, b"").is_empty());
    first.close().unwrap();
    assert_eq!(engine.open().get(b"v", None).unwrap(), Some(format), "the same volume is opened again");
}

fn commits_survive_and_keep_their_order(engine: &dyn Engine) {
    let meta = engine.open();
    // All in flight at once: answers come in order, and each key's last writer wins.
    let answers: Vec<_> = (0..50_u8)
        .map(|number| meta.submit(batch(&[(b"last", Some(&[number])), (&[b'i', number], Some(b"x"))])))
        .collect();
    answers[49].recv().unwrap().unwrap();
    assert!(answers[..49].iter().all(|earlier| earlier.len() == 1), "an earlier commit is not durable yet");
    assert_eq!(meta.get(b"last", None).unwrap().as_deref(), Some(&[49][..]));
    // Not closed: as after a crash.
    let again = engine.open();
    assert_eq!(again.get(b"last", None).unwrap().as_deref(), Some(&[49][..]));
    assert_eq!(all(&*again, b"i").len(), 50);
    drop(meta);
}

fn deletes_and_overwrites(engine: &dyn Engine) {
    let meta = engine.open();
    commit(&*meta, &[(b"a", Some(b"1")), (b"b", Some(b"2")), (b"c", Some(b""))]);
    commit(&*meta, &[(b"a", None), (b"b", Some(b"3")), (b"never", None)]);
    // One after the other: opening fences the older one, which may notice before it is read.
    for open in [&(|| Arc::clone(&meta)) as &dyn Fn() -> _, &|| engine.open()] {
        let meta: Arc<dyn Meta> = open();
        assert_eq!(meta.get(b"a", None).unwrap(), None);
        assert_eq!(meta.get(b"b", None).unwrap().as_deref(), Some(&b"3"[..]));
        assert_eq!(meta.get(b"c", None).unwrap().as_deref(), Some(&b""[..]), "an empty value is a value");
        assert_eq!(all(&*meta, b"").len(), 2);
    }
}

fn scans_respect_their_prefix(engine: &dyn Engine) {
    let meta = engine.open();
    let keys: [&[u8]; 9] =
        [b"d", b"d\x00", b"d\x00\xff", b"d\xff", b"d\xff\xff", b"e", b"\xff", b"\xff\xff", b"\xff\xff\x01"];
    commit(&*meta, &keys.map(|key| (key, Some(key))));
    for prefix in [&b""[..], b"d", b"d\x00", b"d\xff", b"\xff", b"\xff\xff", b"e", b"f", b"\x01"] {
        let expected = keys.iter().filter(|key| key.starts_with(prefix)).count();
        assert_eq!(all(&*meta, prefix).len(), expected, "{prefix:?}");
    }
    let mut seen = 0;
    meta.scan(b"d", None, &mut |_, _| {
        seen += 1;
        // A reader may ask further from within.
        assert!(meta.get(b"e", None).unwrap().is_some());
        seen < 2
    })
    .unwrap();
    assert_eq!(seen, 2);
}

fn large_values_and_batches(engine: &dyn Engine) {
    let meta = engine.open();
    let mut value = vec![0; 10 << 20];
    blake3::Hasher::new().update(b"large").finalize_xof().fill(&mut value);
    commit(&*meta, &[(b"large", Some(&value))]);
    let many: Vec<_> =
        (0..10_000_u32).map(|key| (key.to_be_bytes().to_vec(), Some(Bytes::from(vec![1; 100])))).collect();
    meta.submit(Batch { ops: many }).recv().unwrap().unwrap();
    for open in [&(|| Arc::clone(&meta)) as &dyn Fn() -> _, &|| engine.open()] {
        let meta: Arc<dyn Meta> = open();
        assert_eq!(meta.get(b"large", None).unwrap().as_deref(), Some(&value[..]));
        assert_eq!(all(&*meta, b"\0").len(), 10_000);
    }
}

fn the_older_opening_is_fenced(engine: &dyn Engine) {
    let older = engine.open();
    commit(&*older, &[(b"a", Some(b"old"))]);
    let newer = engine.open();
    commit(&*newer, &[(b"a", Some(b"new"))]);
    let refused = older.submit(batch(&[(b"a", Some(b"stale")), (b"b", Some(b"stale"))])).recv().unwrap();
    assert!(matches!(refused, Err(MetaError::Fenced)), "{refused:?}");
    assert!(matches!(older.submit(batch(&[(b"a", None)])).recv().unwrap(), Err(MetaError::Fenced)));
    assert!(matches!(older.get(b"a", None), Err(MetaError::Fenced)));
    assert_eq!(all(&*newer, b""), BTreeMap::from([(b"a".to_vec(), b"new".to_vec())]));
    commit(&*newer, &[(b"c", Some(b"on"))]);
    newer.close().unwrap();
    assert_eq!(all(&*engine.open(), b"").len(), 2);
}

fn submissions_after_close_are_answered(engine: &dyn Engine) {
    let meta = engine.open();
    let answer = meta.submit(batch(&[(b"a", Some(b"1"))]));
    meta.close().unwrap();
    meta.close().unwrap();
    answer.recv().unwrap().unwrap();
    assert!(meta.submit(batch(&[(b"b", Some(b"2"))])).recv().unwrap().is_err());
    assert!(matches!(meta.get(b"a", None), Err(MetaError::Refused(_))));
    assert_eq!(all(&*engine.open(), b"").len(), 1);
}

fn impossible_records_are_refused(engine: &dyn Engine) {
    let meta = engine.open();
    for key in [vec![], vec![b'x'; 70_000], vec![0]] {
        let answer = meta.submit(Batch { ops: vec![(key, None)] }).recv().unwrap();
        assert!(matches!(answer, Err(MetaError::Refused(_))));
    }
    // An empty batch is a commit like any other.
    meta.submit(Batch::default()).recv().unwrap().unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    CloseAndOpen,
    CrashAndOpen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0xff_u8)], 1..4);
    let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20));
    prop_oneof![
        8 => proptest::collection::btree_map(key, value, 0..6).prop_map(|ops| Step::Commit(ops.into_iter().collect())),
        1 => Just(Step::CloseAndOpen),
        1 => Just(Step::CrashAndOpen),
    ]
}

fn random_histories_match_a_map(kind: &dyn Engine) {
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in proptest::collection::vec(step(), 1..25))| {
        let engine = kind.other();
        let (mut meta, mut model) = (engine.open(), BTreeMap::new());
        for step in steps {
            match step {
                Step::Commit(ops) => {
                    for (key, value) in ops.clone() {
                        match value {
                            Some(value) => model.insert(key, value),
                            None => model.remove(&key),
                        };
                    }
                    let ops = ops.into_iter().map(|(key, value)| (key, value.map(Bytes::from))).collect();
                    meta.submit(Batch { ops }).recv().unwrap().unwrap();
                }
                Step::CloseAndOpen => {
                    meta.close().unwrap();
                    meta = engine.open();
                }
                Step::CrashAndOpen => meta = engine.open(),
            }
            prop_assert_eq!(&all(&*meta, b""), &model);
            prop_assert_eq!(all(&*meta, b"a").len(), model.keys().filter(|key| key.starts_with(b"a")).count());
        }
    });
}
