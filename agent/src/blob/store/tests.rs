//! Each way in which a backend can be unfit is told apart, and a fit one is left as it was found.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::*;
use crate::blob::faults::{Fault, Faulty};

fn probe(store: &Arc<Faulty>) -> Result<(), StoreError> {
    Store::over(Arc::clone(store) as Arc<dyn ObjectStore>, "faulty:").unwrap().probe()
}

fn probe_with(flags: &[fn(&Faulty) -> &AtomicBool]) -> String {
    let store = Arc::new(Faulty::default());
    for flag in flags {
        flag(&store).store(true, Ordering::Relaxed);
    }
    match probe(&store) {
        Err(StoreError::Refused(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_fit_backend_passes_and_nothing_is_left_behind() {
    let store = Arc::new(Faulty::default());
    probe(&store).unwrap();
    let left: Vec<_> =
        crate::blob::runtime().unwrap().block_on(store.inner.list(None).try_collect()).unwrap();
    assert!(left.is_empty(), "{left:?}");
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}/a/b", directory.path().display());
    let store = Store::open(&url, &StoreOptions::default()).unwrap();
    let left: Vec<_> = store.handle().block_on(store.objects().list(None).try_collect()).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn unfit_backends_are_told_apart() {
    assert!(probe_with(&[|store| &store.ignore_conditions]).contains("conditional writes"));
    assert!(probe_with(&[|store| &store.check_without_lock]).contains("racing writes"));
    assert!(probe_with(&[|store| &store.forbid_writes]).contains("read-only"));
    assert!(probe_with(&[|store| &store.forbid_reads]).contains("write but not read"));
    assert!(probe_with(&[|store| &store.forbid_deletes]).contains("delete"));
    assert!(
        probe_with(&[|store| &store.forbid_writes, |store| &store.forbid_reads]).contains("our credentials")
    );
    assert!(probe_with(&[|store| &store.no_bucket]).contains("does not exist"));
}

#[test]
fn lost_answers_do_not_condemn_a_backend() {
    let store = Arc::new(Faulty::default());
    // The second attempt within object_store finds what the first one wrote.
    let mut count = 0;
    store.plan(move |_| {
        count += 1;
        (count == 2).then_some(Fault::FalseConflict)
    });
    probe(&store).unwrap();
    store.plan(|_| Some(Fault::Refuse));
    assert!(matches!(probe(&store), Err(StoreError::Unavailable(text)) if text.contains("503 SlowDown")));
}

#[test]
fn trouble_is_shown_while_it_lasts() {
    let faulty = Arc::new(Faulty::default());
    let store = Store::over(Arc::clone(&faulty) as Arc<dyn ObjectStore>, "faulty:").unwrap();
    let put = || store.handle().block_on(store.objects().put(&Path::from("x"), "y".into()));
    faulty.plan(|_| Some(Fault::Refuse));
    put().unwrap_err();
    let trouble = store.health().last_error().unwrap();
    assert!(trouble.contains("refuses to write x") && trouble.contains("503"), "{trouble}");
    // Reading works, but that does not make writing work.
    let _ = store.handle().block_on(store.objects().get(&Path::from("x")));
    assert!(store.health().last_error().is_some());
    faulty.behave();
    put().unwrap();
    assert_eq!(store.health().last_error(), None);
    assert_eq!(store.health().counters()[0], ("puts", 2));
}

#[test]
fn a_directory_that_cannot_be_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), b"").unwrap();
    for name in ["file", "file/below"] {
        let url = format!("file://{}/{name}", directory.path().display());
        let error = Store::open(&url, &StoreOptions::default()).unwrap_err().to_string();
        assert!(error.contains("make it a directory that this user can write"), "{error}");
    }
}

#[test]
fn memory_is_found_again_by_name() {
    let options = StoreOptions::default();
    let first = Store::open("memory:found-again", &options).unwrap();
    first.handle().block_on(first.objects().put(&Path::from("k"), "v".into())).unwrap();
    let second = Store::open("memory:found-again", &options).unwrap();
    assert!(second.handle().block_on(second.objects().head(&Path::from("k"))).is_ok());
    let other = Store::open("memory:another", &options).unwrap();
    assert!(other.handle().block_on(other.objects().head(&Path::from("k"))).is_err());
}
