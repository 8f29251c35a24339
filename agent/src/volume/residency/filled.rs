//! Data of small files that come together with their names: who goes from file to file finds them whole, and neither asks nor
//! waits. It must not know how files are made.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use storeshim_protocol::residency::PIECE;

use super::Residency;
use super::file::pieces_of;
use super::wanted::{self, Item};
use crate::meta::records::Inode;
use crate::volume::VolumeError;
use crate::volume::entry::Parts;
use crate::volume::index::Until;

/// The largest file that comes so, in bytes.
const LARGEST: u64 = PIECE;
/// Names do not wait longer than this for data.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a file comes together with its name, where that is wanted: a small one with data, and with no other name, which may
/// be in the tree.
pub fn is_small(record: &Inode) -> bool {
    record.mode & libc::S_IFMT == libc::S_IFREG && record.links == 1 && (1..=LARGEST).contains(&record.size)
}

/// A file that has no name in the tree: its volume inode and its size.
pub type Unnamed = (u64, u64);

impl Residency {
    /// Fetches all of some small files. Nobody changes what the volume has of them meanwhile: they have no name yet. What is not
    /// here in time, or is damaged, is left out: whoever reads it is told why.
    pub(super) fn data_of(&self, files: &[Unnamed], urgent: bool) -> HashMap<u64, Parts> {
        match self.fetch_all(files, urgent) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "names come without data");
                HashMap::new()
            }
        }
    }

    /// Has what is said of some files in the metadata here, and reads of packs what will be wanted of them.
    ///
    /// # Errors
    /// Of this disk, and of the backend.
    pub(super) fn fetch_ahead(&self, files: &[Unnamed]) -> Result<(), VolumeError> {
        let until = Instant::now() + PATIENCE.min(self.options.patience / 2);
        let reads = self.reads_of(files, Some(until))?;
        let under_way: Vec<_> = reads
            .gets
            .iter()
            .map(|get| self.fetcher.get(get.pack, get.range.clone(), false, until))
            .collect();
        // Kept by the fetcher for a while.
        under_way.into_iter().for_each(|answer| _ = answer.recv_deadline(until));
        Ok(())
    }

    fn reads_of(&self, files: &[Unnamed], until: Until) -> Result<wanted::Reads, VolumeError> {
        let inodes: Vec<u64> = files.iter().map(|(inode, _)| *inode).collect();
        self.index.load_files(&inodes, until)?;
        let mut items = Vec::with_capacity(files.len());
        for (number, (inode, size)) in files.iter().enumerate() {
            items.extend(wanted::of_loaded(&self.index, number, *inode, &pieces_of(*size), *size)?);
        }
        Ok(wanted::reads(items))
    }

    fn fetch_all(&self, files: &[Unnamed], urgent: bool) -> Result<HashMap<u64, Parts>, VolumeError> {
        let until = Instant::now() + PATIENCE.min(self.options.patience / 2);
        let reads = self.reads_of(files, Some(until))?;
        let under_way: Vec<_> = reads
            .gets
            .iter()
            .map(|get| self.fetcher.get(get.pack, get.range.clone(), urgent, until))
            .collect();
        let mut found: Vec<Option<Parts>> = vec![Some(Parts::new()); files.len()];
        let mut take = |item: &Item, read: Result<Bytes, VolumeError>| {
            let Some(parts) = found.get_mut(item.file) else { return };
            match read {
                Ok(bytes) => parts.iter_mut().for_each(|parts| parts.push((item.at, bytes.clone()))),
                Err(_) => *parts = None,
            }
        };
        for item in &reads.inline {
            take(item, item.inline());
        }
        for (get, answer) in reads.gets.iter().zip(under_way) {
            match answer.recv_deadline(until) {
                Ok(Ok(bytes)) => get.unpack(&bytes, &mut take),
                Ok(Err(error)) => get.items.iter().for_each(|item| take(item, Err(error.clone()))),
                Err(_) => get.items.iter().for_each(|item| take(item, Err(late()))),
            }
        }
        let with_inodes = files.iter().zip(found);
        Ok(with_inodes.filter_map(|((inode, _), parts)| Some((*inode, parts?))).collect())
    }

    /// Whether `bytes` of data that nobody has asked for yet may come: nothing has to go for them.
    pub(super) fn has_room_ahead(&self, bytes: u64) -> bool {
        let taken = self.cache.taken(&self.index).saturating_add(bytes);
        taken <= self.cache.low() && self.lacking(bytes) == 0
    }
}

fn late() -> VolumeError {
    VolumeError::Failed("the data did not come in time".into())
}
