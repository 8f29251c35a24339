//! The residency table of one mount, as the agent writes it and clients see it. It must not know what is resident.

use std::fs::File;
use std::io;
use std::ops::Deref;

use nix::sys::memfd::{MFdFlags, memfd_create};
use storeshim_protocol::residency::Residency;

use super::mapping::Mapping;

/// See the module.
pub struct ResidencyTable(Mapping<Residency>);

impl ResidencyTable {
    /// The table in a file of the run directory.
    pub(super) fn of_file(file: &File) -> io::Result<Self> {
        Mapping::of_own(file).map(Self)
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
        &self.0
    }
}
