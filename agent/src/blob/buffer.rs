//! Memory for what is read from packs. A fresh buffer of some MiB costs more in page faults than the copy into it; those that
//! were used are used again, and stand on large pages. It must not know what is read.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use memmap2::{Advice, MmapMut};

/// Bytes of a buffer that is used again: the largest read.
const SIZE: usize = 4 << 20;
/// What is smaller than this is taken from the allocator: a whole buffer for it would be a waste.
const LARGE: usize = 3 << 20;
/// Buffers that are kept while nobody uses them: 32 MiB.
const KEPT: usize = 8;

static FREE: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());

/// Takes bytes one piece after another.
pub struct Buffer(Room);

enum Room {
    /// Of the allocator.
    Own(Vec<u8>),
    /// Of [`SIZE`] bytes, and how many of them are filled.
    Large(Option<MmapMut>, usize),
}

impl Buffer {
    /// Room for `len` bytes, or more.
    #[must_use]
    pub fn for_bytes(len: usize) -> Self {
        let large = (LARGE..=SIZE).contains(&len).then(large).flatten();
        Self(match large {
            Some(map) => Room::Large(Some(map), 0),
            None => Room::Own(Vec::with_capacity(len)),
        })
    }

    /// Appends bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Room::Own(vec) => vec.extend_from_slice(bytes),
            Room::Large(map, filled) => {
                let end = *filled + bytes.len();
                match map.as_mut().and_then(|map| map.get_mut(*filled..end)) {
                    Some(room) => {
                        room.copy_from_slice(bytes);
                        *filled = end;
                    }
                    // More than was spoken of.
                    None => self.0 = Room::Own([self.as_ref(), bytes].concat()),
                }
            }
        }
    }

    /// What was appended. The memory is used again when the last part of it is dropped.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

/// One that is free, or a new one; `None` where the system refuses it.
fn large() -> Option<MmapMut> {
    let free = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    free.or_else(|| {
        let map = MmapMut::map_anon(SIZE).ok()?;
        // A wish: without it, it is slower.
        let _ = map.advise(Advice::HugePage);
        Some(map)
    })
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Room::Own(vec) => vec,
            Room::Large(map, filled) => map.as_ref().and_then(|map| map.get(..*filled)).unwrap_or(&[]),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Self::Large(map, _) = self
            && let Some(map) = map.take()
        {
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < KEPT {
                free.push(map);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_comes_back_however_much_was_spoken_of() {
        for (spoken, real) in [(0, 10), (10, 10), (LARGE, SIZE), (SIZE, SIZE + 10), (SIZE + 1, SIZE + 1)] {
            let bytes: Vec<u8> = (0..real).map(|at| (at % 251) as u8).collect();
            let mut buffer = Buffer::for_bytes(spoken);
            bytes.chunks(100_003).for_each(|part| buffer.extend(part));
            assert!(buffer.freeze() == bytes, "{real} bytes where {spoken} were spoken of");
        }
    }

    #[test]
    fn a_part_outlives_the_whole_and_is_not_written_over() {
        let mut buffer = Buffer::for_bytes(SIZE);
        buffer.extend(&[7; LARGE]);
        let part = buffer.freeze().slice(5..10);
        let others: Vec<Bytes> = (0..2 * KEPT)
            .map(|_| {
                let mut other = Buffer::for_bytes(SIZE);
                other.extend(&[8; LARGE]);
                other.freeze()
            })
            .collect();
        assert_eq!(part, [7; 5].as_slice());
        drop(others);
    }
}
