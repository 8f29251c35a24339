//! Intents: where to look. A record is one 64-byte entry, followed for a long name by continuation entries.
//!
//! ```text
//! byte  0     1       2..4    4..6       6..8   8..16      16..24   24..32
//!       kind  mount   flags   name len   0      inode/dir  offset   length      (name: bytes 16.. on)
//! ```
//! The agent treats every record as hostile: one that does not decode counts as "look everywhere".

/// Longest directory entry name, in bytes (NAME_MAX of every Linux filesystem that matters).
pub const NAME_MAX: usize = 255;
/// 64-bit words in an entry.
pub const ENTRY_WORDS: usize = 8;
/// Name bytes in a record's first entry.
const NAME_HEAD: usize = 48;
/// Most entries that one record takes.
pub const ENTRIES_MAX: usize = 1 + (NAME_MAX - NAME_HEAD).div_ceil(ENTRY_WORDS * 8);

/// One entry of a ring.
pub type Entry = [u64; ENTRY_WORDS];

/// What the agent must know of an open for writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags(pub u16);

impl OpenFlags {
    /// Writes may happen that no hook sees: stdio, an inherited or passed descriptor.
    pub const UNSEEN: Self = Self(1 << 0);
    /// Every write goes to the end of the file (O_APPEND).
    pub const APPEND: Self = Self(1 << 1);
    /// A shared writable mapping exists: stores change the file without any call.
    pub const MAPPED: Self = Self(1 << 2);

    /// Both sets.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A hint of what may have changed, written before the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent<'a> {
    /// Inode `ino` was opened for writing.
    Opened {
        /// Kernel inode number.
        ino: u64,
        /// How writes may come.
        flags: OpenFlags,
    },
    /// Bytes `offset..offset + length` of `ino` may change; a `length` of `u64::MAX` reaches to the end, and
    /// beyond any end (truncation). An `offset` of `u64::MAX` only counts `length` bytes more, within what was told.
    Written {
        /// Kernel inode number.
        ino: u64,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Attributes of `ino` may change: mode, owner, times, extended attributes, link count.
    Attributes {
        /// Kernel inode number.
        ino: u64,
    },
    /// A descriptor of `ino` that could write was closed: perhaps the last.
    Closed {
        /// Kernel inode number.
        ino: u64,
    },
    /// Entry `name` of directory `dir` may appear, vanish or stand for another inode. An empty name means any
    /// of its entries.
    Name {
        /// Kernel inode number of the directory.
        dir: u64,
        /// The entry's name, without a slash.
        name: &'a [u8],
    },
}

const OPENED: u8 = 1;
const WRITTEN: u8 = 2;
const ATTRIBUTES: u8 = 3;
const CLOSED: u8 = 4;
const NAME: u8 = 5;

/// An encoded record.
pub struct Encoded {
    entries: [Entry; ENTRIES_MAX],
    count: usize,
}

impl Encoded {
    /// The entries to push, in order.
    #[inline(always)]
    pub fn entries(&self) -> &[Entry] {
        self.entries.get(..self.count).unwrap_or(&[])
    }
}

#[inline(always)]
fn header(kind: u8, mount: u8, flags: u16, name_len: u16) -> u64 {
    u64::from(kind) | u64::from(mount) << 8 | u64::from(flags) << 16 | u64::from(name_len) << 32
}

/// Encodes an intent without a name (the hot ones) as its single entry. `None` for [`Intent::Name`].
#[inline(always)]
pub fn encode_short(mount: u8, intent: &Intent<'_>) -> Option<Entry> {
    Some(match *intent {
        Intent::Opened { ino, flags } => [header(OPENED, mount, flags.0, 0), ino, 0, 0, 0, 0, 0, 0],
        Intent::Written { ino, offset, length } => {
            [header(WRITTEN, mount, 0, 0), ino, offset, length, 0, 0, 0, 0]
        }
        Intent::Attributes { ino } => [header(ATTRIBUTES, mount, 0, 0), ino, 0, 0, 0, 0, 0, 0],
        Intent::Closed { ino } => [header(CLOSED, mount, 0, 0), ino, 0, 0, 0, 0, 0, 0],
        Intent::Name { .. } => return None,
    })
}

/// Encodes any intent of mount `mount`. A name longer than [`NAME_MAX`] (which no filesystem will take) is
/// encoded as "any entry of that directory".
pub fn encode(mount: u8, intent: &Intent<'_>) -> Encoded {
    let mut entries = [[0u64; ENTRY_WORDS]; ENTRIES_MAX];
    if let (Some(entry), [first, ..]) = (encode_short(mount, intent), &mut entries) {
        *first = entry;
        return Encoded { entries, count: 1 };
    }
    let Intent::Name { dir, name } = *intent else { return Encoded { entries, count: 0 } };
    let name = if name.len() > NAME_MAX { &[][..] } else { name };
    let words = entries.as_flattened_mut();
    if let [head, inode, rest @ ..] = words {
        *head = header(NAME, mount, 0, name.len() as u16);
        *inode = dir;
        for (chunk, word) in name.chunks(8).zip(rest) {
            let mut bytes = [0u8; 8];
            if let Some(part) = bytes.get_mut(..chunk.len()) {
                part.copy_from_slice(chunk);
            }
            *word = u64::from_le_bytes(bytes);
        }
    }
    Encoded { entries, count: name_entries(name.len()) }
}

/// Entries that a [`Intent::Name`] record with a name of `len` bytes takes.
fn name_entries(len: usize) -> usize {
    1 + len.saturating_sub(NAME_HEAD).div_ceil(ENTRY_WORDS * 8)
}

/// How many entries the record that starts with `first` takes; `None` where it is not a record.
pub fn entries_of(first: &Entry) -> Option<usize> {
    let [head, ..] = *first;
    match head as u8 {
        OPENED | WRITTEN | ATTRIBUTES | CLOSED => Some(1),
        NAME => {
            let len = (head >> 32) as u16 as usize;
            (len <= NAME_MAX).then(|| name_entries(len))
        }
        _ => None,
    }
}

/// Decodes a whole record (as many entries as [`entries_of`] said) into its mount index and intent; the name
/// is put together in `buffer`. `None` where it is not one that [`encode`] makes.
pub fn decode<'a>(entries: &[Entry], buffer: &'a mut [u8; NAME_MAX]) -> Option<(u8, Intent<'a>)> {
    let first = entries.first()?;
    if entries_of(first)? != entries.len() {
        return None;
    }
    let [head, ino, offset, length, ..] = *first;
    let mount = (head >> 8) as u8;
    Some((
        mount,
        match head as u8 {
            OPENED => Intent::Opened { ino, flags: OpenFlags((head >> 16) as u16) },
            WRITTEN => Intent::Written { ino, offset, length },
            ATTRIBUTES => Intent::Attributes { ino },
            CLOSED => Intent::Closed { ino },
            _ => {
                let len = (head >> 32) as u16 as usize;
                let name = buffer.get_mut(..len)?;
                let words = entries.as_flattened().get(2..)?;
                for (chunk, word) in name.chunks_mut(8).zip(words) {
                    chunk.copy_from_slice(word.to_le_bytes().get(..chunk.len())?);
                }
                if name.contains(&b'/') || name.contains(&0) || name == b"." || name == b".." {
                    return None;
                }
                Intent::Name { dir: ino, name }
            }
        },
    ))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An intent that owns its name.
    #[derive(Clone, Debug)]
    enum Owned {
        Plain(Intent<'static>),
        Name(u64, Vec<u8>),
    }

    impl Owned {
        fn as_intent(&self) -> Intent<'_> {
            match self {
                Self::Plain(intent) => *intent,
                Self::Name(dir, name) => Intent::Name { dir: *dir, name },
            }
        }
    }

    fn intents() -> impl Strategy<Value = Owned> {
        let byte = any::<u8>().prop_filter("no part of a name", |b| *b != 0 && *b != b'/');
        prop_oneof![
            (any::<u64>(), any::<u16>())
                .prop_map(|(ino, flags)| Owned::Plain(Intent::Opened { ino, flags: OpenFlags(flags) })),
            (any::<u64>(), any::<u64>(), any::<u64>())
                .prop_map(|(ino, offset, length)| Owned::Plain(Intent::Written { ino, offset, length })),
            any::<u64>().prop_map(|ino| Owned::Plain(Intent::Attributes { ino })),
            any::<u64>().prop_map(|ino| Owned::Plain(Intent::Closed { ino })),
            (any::<u64>(), prop::collection::vec(byte, 0..=NAME_MAX))
                .prop_filter("special names", |(_, name)| name != b"." && name != b"..")
                .prop_map(|(dir, name)| Owned::Name(dir, name)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(mount: u8, intent in intents()) {
            let encoded = encode(mount, &intent.as_intent());
            let entries = encoded.entries();
            prop_assert_eq!(entries_of(&entries[0]), Some(entries.len()));
            let mut buffer = [0xaa; NAME_MAX];
            prop_assert_eq!(decode(entries, &mut buffer), Some((mount, intent.as_intent())));
            if let Some(short) = encode_short(mount, &intent.as_intent()) {
                prop_assert_eq!(&[short][..], entries);
            }
        }

        #[test]
        fn any_words_decode_to_a_sound_intent_or_to_none(
            head in prop_oneof![any::<u64>(), (0..8u64, 0..300u64).prop_map(|(k, n)| k | n << 32)],
            words in prop::collection::vec(any::<u64>(), ENTRY_WORDS * ENTRIES_MAX),
            count in 0..=ENTRIES_MAX,
        ) {
            let mut entries = [[0; ENTRY_WORDS]; ENTRIES_MAX];
            entries.as_flattened_mut().copy_from_slice(&words);
            entries[0][0] = head;
            let mut buffer = [0; NAME_MAX];
            let needed = entries_of(&entries[0]);
            prop_assert!(needed.is_none_or(|n| (1..=ENTRIES_MAX).contains(&n)));
            match decode(&entries[..count], &mut buffer) {
                Some((mount, intent)) => {
                    prop_assert_eq!(needed, Some(count));
                    if let Intent::Name { name, .. } = intent {
                        prop_assert!(name.len() <= NAME_MAX && !name.contains(&b'/') && !name.contains(&0));
                    }
                    let mut second = [0; NAME_MAX];
                    let again = encode(mount, &intent);
                    prop_assert_eq!(decode(again.entries(), &mut second), Some((mount, intent)));
                }
                None => prop_assert!(needed != Some(count) || head as u8 == NAME),
            }
        }
    }

    #[test]
    fn names_at_the_edges_of_entries() {
        for (len, entries) in [(0, 1), (48, 1), (49, 2), (112, 2), (113, 3), (NAME_MAX, ENTRIES_MAX)] {
            let name = vec![b'n'; len];
            let encoded = encode(1, &Intent::Name { dir: 5, name: &name });
            assert_eq!(encoded.entries().len(), entries, "a name of {len} bytes");
        }
    }

    #[test]
    fn a_name_that_no_filesystem_takes_means_any_name() {
        let name = [b'n'; NAME_MAX + 1];
        let mut buffer = [0; NAME_MAX];
        let encoded = encode(1, &Intent::Name { dir: 5, name: &name });
        assert_eq!(decode(encoded.entries(), &mut buffer), Some((1, Intent::Name { dir: 5, name: b"" })));
    }

    #[test]
    fn names_that_lead_elsewhere_do_not_decode() {
        for name in [&b"."[..], b"..", b"a/b", b"/", b"a\0b"] {
            let mut buffer = [0; NAME_MAX];
            let encoded = encode(0, &Intent::Name { dir: 5, name });
            assert_eq!(decode(encoded.entries(), &mut buffer), None, "{name:?}");
        }
    }
}
