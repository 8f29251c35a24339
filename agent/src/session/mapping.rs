//! A file mapped as one of the protocol's structures: the only place where memory becomes a `&Control`, a
//! `&Doorbell` or a `&RingFile`.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;

use memmap2::{MmapOptions, MmapRaw};
use storeshim_protocol::residency::Residency;
use storeshim_protocol::{Control, Doorbell, RingFile};

use super::sigbus::Guard;

/// A structure that may be seen through a shared mapping.
///
/// # Safety
/// Implementors are `repr(C)`, consist of atomics only, and so are valid whatever the bytes are and whoever
/// changes them meanwhile; they need no more than a page's alignment and have nothing to drop.
pub(super) unsafe trait Shared {}

// SAFETY: `repr(C, align(4096))`, atomics only.
unsafe impl Shared for Control {}
// SAFETY: as above.
unsafe impl Shared for Doorbell {}
// SAFETY: as above.
unsafe impl Shared for Residency {}
// SAFETY: as above.
unsafe impl Shared for RingFile {}

/// A shared mapping of a `T`.
pub(super) struct Mapping<T> {
    // Declared before the mapping: dropped before it.
    guard: Option<Guard>,
    memory: MmapRaw,
    layout: PhantomData<T>,
}

impl<T: Shared> Mapping<T> {
    /// Maps a file of our own, which nobody else can truncate.
    pub(super) fn of_own(file: &File) -> io::Result<Self> {
        let memory = MmapOptions::new().len(Self::checked_len(file)?).map_raw(file)?;
        Ok(Self { guard: None, memory, layout: PhantomData })
    }

    /// Maps a client's file: when it is truncated the mapping turns into zeros and is [`Mapping::lost`].
    pub(super) fn of_client(file: &File) -> io::Result<Self> {
        let memory = MmapOptions::new().len(Self::checked_len(file)?).map_raw(file)?;
        let guard = Guard::new(memory.as_mut_ptr() as usize, memory.len());
        Ok(Self { guard: Some(guard), memory, layout: PhantomData })
    }

    /// Maps the file of an agent, which may be another process, for reading only.
    pub(super) fn of_agent(file: &File) -> io::Result<Self> {
        let memory = MmapOptions::new().len(Self::checked_len(file)?).map_raw_read_only(file)?;
        Ok(Self { guard: None, memory, layout: PhantomData })
    }

    /// Whether the file was truncated under the mapping, which since then is private zeros.
    pub(super) fn lost(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::lost)
    }

    fn checked_len(file: &File) -> io::Result<usize> {
        let len = file.metadata()?.len();
        if len != size_of::<T>() as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it has {len} bytes where {} are expected", size_of::<T>()),
            ));
        }
        Ok(size_of::<T>())
    }
}

impl<T: Shared> Deref for Mapping<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping is readable and writable, page aligned, as long as a `T`, and lives as long as
        // `self`; `T: Shared` allows any bytes and concurrent change. A file that is cut short later gives SIGBUS,
        // which ends the process or, for client files, is turned into zeros by the guard.
        unsafe { &*self.memory.as_mut_ptr().cast::<T>() }
    }
}
