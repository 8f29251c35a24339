//! The residency table of one mount, as the agent writes it and clients see it. It must not know what is resident.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use storeshim_protocol::residency::Residency;

use super::mapping::Mapping;

/// See the module.
pub struct ResidencyTable {
    mapping: Mapping<Residency>,
    file: Arc<File>,
}

/// The table of another process, for reading.
pub struct ShownTable(Mapping<Residency>);

impl ShownTable {
    /// The table in a file.
    ///
    /// # Errors
    /// Where it cannot be mapped or is none.
    pub fn of_file(file: &File) -> io::Result<Self> {
        Mapping::of_agent(file).map(Self)
    }
}

impl Deref for ShownTable {
    type Target = Residency;

    fn deref(&self) -> &Residency {
        &self.0
    }
}

impl ResidencyTable {
    /// The table in a file of the run directory.
    pub(super) fn of_file(file: &File) -> io::Result<Self> {
        Ok(Self { mapping: Mapping::of_own(file)?, file: Arc::new(file.try_clone()?) })
    }

    /// The file, for another process to map.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// A table that no client sees.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn anonymous() -> io::Result<Self> {
        let file = File::from(memfd_create("residency", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(size_of::<Residency>() as u64)?;
        Self::of_file(&file)
    }
}

impl Deref for ResidencyTable {
    type Target = Residency;

    fn deref(&self) -> &Residency {
        &self.mapping
    }
}
