//! Brings the metadata that nobody asked for yet, in the background: the rest of the index, and then what earlier agents
//! left to be deleted. It must not hold up whoever waits for a record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};

use super::VolumeError;
use super::index::Index;
use super::status::Shared;
use crate::blob::Blob;
use crate::meta::records::{PackId, key};

/// Records between two looks at the clock.
const STRIDE: u32 = 512;
/// It rests this many times as long as it works.
const REST: u32 = 1;
/// It makes way for somebody who waits for this long, then takes in a little all the same.
const COURTESY: Duration = Duration::from_millis(100);
/// Pause after an error of the backend that should be final, or of this disk.
const PAUSE: Duration = Duration::from_secs(30);

/// See the module.
pub struct Loader {
    index: Arc<Index>,
    blob: Arc<dyn Blob>,
    shared: Arc<Shared>,
    /// Packs without live bytes, dead before this agent was.
    garbage: Vec<PackId>,
    swept: Sender<PackId>,
}

impl Loader {
    /// To be made before the first commit: what is garbage then is garbage in the backend. Names on `swept` each pack that
    /// it has deleted.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn new(
        index: &Arc<Index>,
        blob: &Arc<dyn Blob>,
        shared: &Arc<Shared>,
        swept: Sender<PackId>,
    ) -> Result<Self, VolumeError> {
        let mut garbage = Vec::new();
        index.scan(key::GARBAGE, |key, _| {
            note(key, &mut garbage);
            Ok(())
        })?;
        let (index, blob, shared) = (Arc::clone(index), Arc::clone(blob), Arc::clone(shared));
        Ok(Self { index, blob, shared, garbage, swept })
    }

    /// Works until it is through or `ended` hangs up.
    pub fn run(mut self, ended: &Receiver<()>) {
        let started = Instant::now();
        let unloaded = !self.index.is_loaded();
        let (mut records, mut since) = (0u32, Instant::now());
        let (index, garbage) = (&self.index, &mut self.garbage);
        loop {
            let loaded = index.load_all(&mut |key| {
                // The backend shows only what is durable there, so it was dead before.
                note(key, garbage);
                records += 1;
                if !records.is_multiple_of(STRIDE) {
                    return true;
                }
                let courtesy = Instant::now() + COURTESY;
                let mut rest = since.elapsed() * REST;
                let mut over = is_over(ended, rest.min(COURTESY));
                while !over && index.is_waited_for() && Instant::now() < courtesy {
                    rest = Duration::from_millis(2);
                    over = is_over(ended, rest);
                }
                since = Instant::now();
                !over
            });
            match loaded {
                Ok(true) => break,
                Ok(false) => return,
                Err(error) => {
                    if self.shared.failure().is_some() {
                        return;
                    }
                    tracing::warn!(%error, "the volume's metadata could not be loaded in the background; trying again");
                    if is_over(ended, PAUSE) {
                        return;
                    }
                }
            }
        }
        if unloaded {
            let seconds = started.elapsed().as_secs();
            tracing::info!(records, seconds, "all of the volume's metadata is on this disk");
        }
        self.sweep(ended);
    }

    /// Deletes what is dead; what cannot be deleted now is left to the next agent.
    fn sweep(self, ended: &Receiver<()>) {
        for id in self.garbage {
            if is_over(ended, Duration::ZERO) || self.shared.failure().is_some() {
                return;
            }
            if self.blob.delete(&id).is_ok() && self.swept.send(id).is_err() {
                return;
            }
        }
    }
}

fn note(key: &[u8], garbage: &mut Vec<PackId>) {
    if let Ok(key::Key::Garbage(id)) = key::parse(key) {
        garbage.push(id);
    }
}

fn is_over(ended: &Receiver<()>, wait: Duration) -> bool {
    !matches!(ended.recv_timeout(wait), Err(RecvTimeoutError::Timeout))
}
