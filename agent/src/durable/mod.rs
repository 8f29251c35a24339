//! A volume's backend in a Durable Object: both engines over one lasting link. It must not know what values and packs mean,
//! nor how a volume's files are found (`Files` answers for them).

mod address;
mod commits;
mod connection;
mod engine;
mod files;
mod json;
mod link;
mod packs;
mod peers;
#[cfg(test)]
pub(crate) mod runtime;
#[cfg(test)]
mod tests;
mod transport;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

pub use self::address::is_durable;
pub use self::files::{Entries, Files, Part, file_error};
pub use self::link::Link;

use self::address::Address;
use self::engine::{DurableBlob, DurableMeta, Lease};
use self::packs::HttpPacks;
use crate::blob::{Blob, StoreError, redact};
use crate::meta::{Meta, MetaError};

/// A Durable Object that dials us is waited for this long at a time: its container has just started.
const DIALLED: Duration = Duration::from_secs(60);
/// A Worker that we dial is waited for this long at a time.
const DIALLING: Duration = Duration::from_secs(15);

/// An open volume in a Durable Object.
pub struct Durable {
    /// Its metadata.
    pub meta: Arc<dyn Meta>,
    /// Its packs.
    pub blob: Arc<dyn Blob>,
    /// What both go over.
    pub link: Arc<Link>,
}

/// Opens the volume at `url` as its writer, which fences whoever had it open before. Blocking; from a plain thread only.
///
/// # Errors
/// `Refused` for a malformed URL, a wrong token or a port that is taken; `Unavailable` when no Durable Object is reached.
pub fn open(url: &str) -> Result<Durable, MetaError> {
    let shown = redact(url);
    let handle = crate::blob::runtime().map_err(StoreError::Unavailable)?;
    let (http, patience, link) = match Address::parse(url, &|name| std::env::var(name).ok())? {
        Address::Listen(place) => {
            let listener = handle.block_on(peers::bind(place)).map_err(|error| {
                MetaError::Refused(format!(
                    "cannot listen on {place} for the Durable Object: {error}; choose a port that is free, and the \
                     same as the Worker's storagePort"
                ))
            })?;
            tracing::info!(%place, "waiting for the Durable Object to connect");
            let link = Link::new(handle.clone(), shown);
            handle.spawn(peers::accept(Arc::clone(&link), listener));
            (None, DIALLED, link)
        }
        Address::Remote(remote) => {
            let link = Link::new(handle.clone(), shown);
            handle.spawn(peers::dial(Arc::clone(&link), remote.clone()));
            (Some(HttpPacks::new(remote)), DIALLING, link)
        }
    };
    let lease = Arc::new(Lease(Arc::clone(&link)));
    link.wait_open(patience)?;
    Ok(Durable {
        meta: Arc::new(DurableMeta(Arc::clone(&lease))),
        blob: Arc::new(DurableBlob { lease, http }),
        link,
    })
}
