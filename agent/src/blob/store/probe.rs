//! Finds out whether a backend can keep a volume: write, read, delete, and above all *conditional writes*, on which
//! fencing rests. A backend that ignores "only if it does not exist" would let two agents overwrite each other's
//! commits. It must not leave anything behind.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::StoreError;
use super::error::{explain, s3_code};

/// Concurrent creates of one object. Servers that check and then write without a lock let several win.
const RACERS: usize = 8;

/// A probe that failed tries to remove its object for this long: the error is waited for.
const CLEANUP: Duration = Duration::from_secs(2);

/// Probes `store`; `shown` names it in errors.
pub(super) async fn probe(store: &Arc<dyn ObjectStore>, shown: &str) -> Result<(), StoreError> {
    let key = Path::from(format!("probe/{:032x}", rand::random::<u128>()));
    let alone = Path::from(format!("{key}-alone"));
    // Also after a failure: the objects may be there although an answer was lost.
    if let Err(error) = race(store, &key, &alone, shown).await {
        let cleanup = async { tokio::join!(store.delete(&key), store.delete(&alone)) };
        let _ = tokio::time::timeout(CLEANUP, cleanup).await;
        return Err(error);
    }
    let (one, other) = tokio::join!(remove(store, &key, shown), remove(store, &alone, shown));
    one.and(other)
}

async fn race(store: &Arc<dyn ObjectStore>, key: &Path, alone: &Path, shown: &str) -> Result<(), StoreError> {
    let bodies: Vec<Bytes> =
        (0..RACERS).map(|_| Bytes::from(format!("{:032x}", rand::random::<u128>()))).collect();
    // One write alone comes first: its error is about the backend, not about the race.
    if let Err(error) = put_new(store, alone, Bytes::from_static(b"alone")).await {
        return Err(verdict(store, alone, shown, &error).await);
    }
    // What need not come one after another goes side by side: whoever opens a volume waits for this.
    let answers = join_all(bodies.iter().map(|body| put_new(store, key, body.clone()))).await;
    let mut winners = Vec::new();
    for (body, answer) in bodies.iter().zip(answers) {
        match answer {
            Ok(()) => winners.push(body.clone()),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Err(error) => return Err(verdict(store, key, shown, &error).await),
        }
    }
    if winners.len() > 1 {
        let many = format!("{} of {RACERS} racing writes of one object succeeded", winners.len());
        return Err(unsafe_store(shown, &many));
    }
    let read = async { store.get(key).await?.bytes().await };
    let (stored, late) = tokio::join!(read, put_new(store, key, Bytes::from_static(b"late")));
    if late.is_ok() {
        return Err(unsafe_store(shown, "an existing object was overwritten"));
    }
    let stored = match stored {
        Ok(stored) => stored,
        Err(error) if is_denied(&error) => {
            return Err(StoreError::Refused(format!(
                "the backend '{shown}' lets us write but not read ({}); grant s3:GetObject or read permission on the \
                 directory",
                explain(&error)
            )));
        }
        Err(Error::NotFound { .. }) => {
            return Err(unsafe_store(shown, "an object that was written cannot be read back"));
        }
        Err(error) => return Err(unavailable(shown, &error)),
    };
    match winners.as_slice() {
        [winner] if *winner == stored => {}
        // A create that was sent twice (its first answer was lost) reports its own success as "exists already".
        [] if bodies.contains(&stored) => {}
        [] => return Err(unsafe_store(shown, "a racing write was lost")),
        _ => return Err(unsafe_store(shown, "a later write replaced an earlier one")),
    }
    match late {
        Ok(()) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(()),
        Err(error) => Err(verdict(store, key, shown, &error).await),
    }
}

async fn remove(store: &Arc<dyn ObjectStore>, key: &Path, shown: &str) -> Result<(), StoreError> {
    match store.delete(key).await {
        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) if is_denied(&error) => Err(StoreError::Refused(format!(
            "the backend '{shown}' does not let us delete objects ({}); grant s3:DeleteObject or write permission on \
             the directory",
            explain(&error)
        ))),
        Err(error) => Err(unavailable(shown, &error)),
    }
}

async fn put_new(store: &Arc<dyn ObjectStore>, key: &Path, body: Bytes) -> object_store::Result<()> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.put_opts(key, PutPayload::from_bytes(body), options).await.map(|_| ())
}

fn unsafe_store(shown: &str, what: &str) -> StoreError {
    StoreError::Refused(format!(
        "the backend '{shown}' does not honour conditional writes ({what}), so two agents could destroy each other's \
         commits; use a server that supports If-None-Match on PUT"
    ))
}

fn unavailable(shown: &str, error: &Error) -> StoreError {
    StoreError::Unavailable(format!(
        "the backend '{shown}' does not answer as it should: {}; check its address and state",
        explain(error)
    ))
}

/// What a failed write says about the backend.
async fn verdict(store: &Arc<dyn ObjectStore>, key: &Path, shown: &str, error: &Error) -> StoreError {
    let code = s3_code(error).unwrap_or_default();
    let said = explain(error);
    match code.as_str() {
        "NoSuchBucket" => return missing_bucket(shown),
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" => {
            return wrong_credentials(shown, &code);
        }
        "NotImplemented" => return unsafe_store(shown, "it answers NotImplemented"),
        _ => {}
    }
    if is_denied(error) {
        // Reading tells a read-only backend from one that knows us not at all.
        return match store.head(key).await {
            Ok(_) | Err(Error::NotFound { .. }) => StoreError::Refused(format!(
                "the backend '{shown}' is read-only for us ({said}); grant s3:PutObject and s3:DeleteObject or write \
                 permission on the directory"
            )),
            Err(_) => wrong_credentials(shown, if code.is_empty() { &said } else { &code }),
        };
    }
    match error {
        Error::NotFound { .. } => missing_bucket(shown),
        Error::NotSupported { .. } | Error::NotImplemented { .. } => unsafe_store(shown, &said),
        _ if said.contains("169.254.169.254") || said.contains("instance metadata") => {
            StoreError::Refused(format!(
                "there are no credentials for the backend '{shown}'; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or \
                 write ~/.aws/credentials"
            ))
        }
        _ => unavailable(shown, error),
    }
}

fn missing_bucket(shown: &str) -> StoreError {
    StoreError::Refused(format!(
        "the bucket of the backend '{shown}' does not exist; create it or correct the URL"
    ))
}

fn wrong_credentials(shown: &str, said: &str) -> StoreError {
    StoreError::Refused(format!(
        "the backend '{shown}' does not accept our credentials ({said}); check AWS_ACCESS_KEY_ID, \
         AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and the profile in ~/.aws/credentials"
    ))
}

/// Whether permissions are the reason, also in a local directory.
fn is_denied(error: &Error) -> bool {
    use std::error::Error as _;
    if matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) {
        return true;
    }
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
            );
        }
        source = inner.source();
    }
    false
}
