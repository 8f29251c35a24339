//! A volume's backend by its URL: an object store with SlateDB on it, or a Durable Object. It must not know what either
//! stores.

use std::sync::Arc;

use crate::blob::{Blob, Health, Store, StoreOptions};
use crate::durable::{self, Link};
use crate::meta::{self, Meta, MetaError};

/// Both halves of an open backend, and how it fares.
pub struct Backend {
    /// Metadata; this agent is its writer.
    pub meta: Arc<dyn Meta>,
    /// Packs.
    pub blob: Arc<dyn Blob>,
    /// Counters and current trouble.
    pub health: Arc<Health>,
    /// The link with a Durable Object, whose Worker asks for files.
    pub link: Option<Arc<Link>>,
}

impl Backend {
    /// Opens the volume at `url`, which fences whoever had it open before. Blocking; from a plain thread only.
    ///
    /// # Errors
    /// As [`Store::open`], [`meta::open`] and [`durable::open`] say; never with a credential.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self, MetaError> {
        if durable::is_durable(url) {
            let durable::Durable { meta, blob, link } = durable::open(url)?;
            return Ok(Self { meta, blob, health: Arc::clone(&link.health), link: Some(link) });
        }
        // A volume that is there is opened while its store is probed: a cold start waits for the slower of both.
        let store = Store::open(url, &StoreOptions { probe: false, ..options.clone() })?;
        let meta = if options.probe { meta::open_and_probe(&store)? } else { meta::open(&store)? };
        let health = Arc::clone(store.health());
        Ok(Self { meta, blob: Arc::new(store), health, link: None })
    }
}
