//! The two halves of a volume's backend over a link: metadata and packs. They must not look into values or packs.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam::channel::{Receiver, bounded};

use super::link::{Body, Link, closed};
use super::packs::HttpPacks;
use super::wire::messages::{self, op};
use crate::blob::{self, Blob, BlobError, Counted, Kind};
use crate::meta::records::PackId;
use crate::meta::{self, Batch, Meta, MetaError, Until};

/// A page of a scan asks for this many pairs and bytes at most.
const PAGE: (u32, u32) = (4096, 1 << 20);
/// Packs, and parts of packs, of more bytes than this go over HTTP where there is any.
const OVER_HTTP: usize = 1 << 20;
/// Bytes of a pack that one message may have.
const LARGEST_PACK: u64 = (32 << 20) - (64 << 10);

/// Ends the link when both engines are gone.
pub struct Lease(pub Arc<Link>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.end(closed());
    }
}

/// A volume's metadata in a Durable Object.
pub struct DurableMeta(pub Arc<Lease>);

impl Meta for DurableMeta {
    fn get(&self, key: &[u8], until: Until) -> meta::Result<Option<Bytes>> {
        if key.len() > meta::LONGEST_KEY {
            return Ok(None);
        }
        let link = &self.0.0;
        link.health.count(Counted::Get);
        let answer = link.call(op::GET, messages::encode_get(key), 0, until)?;
        Ok(messages::decode_got(&answer)?)
    }

    fn scan(
        &self,
        prefix: &[u8],
        until: Until,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> meta::Result<()> {
        let link = &self.0.0;
        let mut after: Option<Bytes> = None;
        loop {
            link.health.count(Counted::List);
            let request = messages::encode_scan(prefix, after.as_deref(), PAGE.0, PAGE.1);
            let answer = link.call(op::SCAN, request, PAGE.1 as usize, until)?;
            let (more, pairs) = messages::decode_page(&answer)?;
            for (key, value) in &pairs {
                if !each(key, value) {
                    return Ok(());
                }
            }
            let Some((last, _)) = pairs.last().filter(|_| more) else { return Ok(()) };
            // Not a slice of the page, which it would keep in memory.
            after = Some(Bytes::copy_from_slice(last));
        }
    }

    fn submit(&self, batch: Batch) -> Receiver<meta::Result<()>> {
        let (to_caller, receiver) = bounded(1);
        if let Err(error) =
            batch.ops.iter().try_for_each(|(key, value)| meta::check_record(key, value.as_ref()))
        {
            let _ = to_caller.send(Err(error));
            return receiver;
        }
        self.0.0.commit(
            &batch.ops,
            Box::new(move |result| {
                // Whoever does not wait for its answer does not want it.
                let _ = to_caller.send(result.map_err(MetaError::from));
            }),
        );
        receiver
    }

    fn close(&self) -> meta::Result<()> {
        Ok(self.0.0.close()?)
    }
}

/// A volume's packs in a Durable Object, or behind it.
pub struct DurableBlob {
    /// The link.
    pub lease: Arc<Lease>,
    /// The way for large packs.
    pub http: Option<HttpPacks>,
}

impl DurableBlob {
    /// Tells the status how a request over HTTP went.
    fn watch<T>(&self, kind: Kind, result: super::wire::Result<T>) -> blob::Result<T> {
        let health = &self.lease.0.health;
        match &result {
            Err(error) if error.is_passing() => {
                health.count(Counted::Failure);
                health.ill(kind, error.to_string());
            }
            _ => health.well(kind),
        }
        Ok(result?)
    }
}

impl Blob for DurableBlob {
    fn put(&self, id: &PackId, bytes: Bytes) -> blob::Result<()> {
        let link = &self.lease.0;
        link.health.count(Counted::Put(bytes.len() as u64));
        match &self.http {
            Some(http) if bytes.len() > OVER_HTTP => {
                self.watch(Kind::Write, http.put(link.epoch(), id, &bytes))
            }
            _ => Ok(link.call(op::BLOB_PUT, Body(Bytes::copy_from_slice(id), bytes), 0, None).map(drop)?),
        }
    }

    fn get(&self, id: &PackId, range: Range<u64>) -> blob::Result<Bytes> {
        let link = &self.lease.0;
        let wanted = range.end.saturating_sub(range.start);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        link.health.count(Counted::Get);
        if wanted > LARGEST_PACK {
            return Err(BlobError::Refused(format!(
                "{wanted} bytes of a pack were asked for at once, where {LARGEST_PACK} are possible; this is a bug, report it"
            )));
        }
        if let Some(http) = self.http.as_ref().filter(|_| wanted > OVER_HTTP as u64) {
            return self.watch(Kind::Read, http.get(id, &range));
        }
        let expected = usize::try_from(wanted).unwrap_or(usize::MAX);
        let bytes =
            link.call(op::BLOB_GET, messages::encode_blob_get(id, range.start, range.end), expected, None)?;
        if bytes.len() as u64 == wanted {
            Ok(bytes)
        } else {
            Err(BlobError::Unavailable(format!("{} bytes of a pack came instead of {wanted}", bytes.len())))
        }
    }

    fn delete(&self, id: &PackId) -> blob::Result<()> {
        let link = &self.lease.0;
        link.health.count(Counted::Delete);
        Ok(link.call(op::BLOB_DELETE, id.to_vec(), 0, None).map(drop)?)
    }
}
