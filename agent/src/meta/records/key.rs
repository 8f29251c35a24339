//! Keys of a volume's records, made and taken apart. See the table in [`super`].

use super::{ChunkHash, PackId};
use crate::meta::{MetaError, Result};

/// A key, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `v`
    Format,
    /// `h`
    Head,
    /// `i <inode>`
    Inode(u64),
    /// `d <dir> <name>`
    Dentry(u64, Vec<u8>),
    /// `b <inode> <block>`
    Block(u64, u64),
    /// `c <hash>`
    Chunk(ChunkHash),
    /// `p <pack>`
    Pack(PackId),
    /// `g <pack>`
    Garbage(PackId),
    /// `t`
    Totals,
    /// `q`
    Quota,
}

/// Prefix of all inodes.
pub const INODES: &[u8] = b"i";
/// Prefix of all directory entries.
pub const DENTRIES: &[u8] = b"d";
/// Prefix of all blocks.
pub const BLOCKS: &[u8] = b"b";
/// Prefix of all chunks.
pub const CHUNKS: &[u8] = b"c";
/// Prefix of all packs.
pub const PACKS: &[u8] = b"p";
/// Prefix of all packs to be deleted.
pub const GARBAGE: &[u8] = b"g";

fn join(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(kind);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

/// Key of [`super::Format`].
#[must_use]
pub fn format() -> Vec<u8> {
    join(b'v', &[])
}

/// Key of [`crate::meta::Head`].
#[must_use]
pub fn head() -> Vec<u8> {
    join(b'h', &[])
}

/// Key of [`super::Inode`].
#[must_use]
pub fn inode(inode: u64) -> Vec<u8> {
    join(b'i', &[&inode.to_be_bytes()])
}

/// Key of the entry `name` of the directory `dir`.
#[must_use]
pub fn dentry(dir: u64, name: &[u8]) -> Vec<u8> {
    join(b'd', &[&dir.to_be_bytes(), name])
}

/// Prefix of the entries of the directory `dir`.
#[must_use]
pub fn dentries_of(dir: u64) -> Vec<u8> {
    dentry(dir, b"")
}

/// Key of [`super::Block`] number `block` of a file.
#[must_use]
pub fn block(inode: u64, block: u64) -> Vec<u8> {
    join(b'b', &[&inode.to_be_bytes(), &block.to_be_bytes()])
}

/// Prefix of the blocks of a file.
#[must_use]
pub fn blocks_of(inode: u64) -> Vec<u8> {
    join(b'b', &[&inode.to_be_bytes()])
}

/// Key of [`super::Chunk`].
#[must_use]
pub fn chunk(hash: &ChunkHash) -> Vec<u8> {
    join(b'c', &[hash])
}

/// Key of [`super::Pack`].
#[must_use]
pub fn pack(id: &PackId) -> Vec<u8> {
    join(b'p', &[id])
}

/// Key that marks a pack for deletion.
#[must_use]
pub fn garbage(id: &PackId) -> Vec<u8> {
    join(b'g', &[id])
}

/// Key of [`super::Totals`].
#[must_use]
pub fn totals() -> Vec<u8> {
    join(b't', &[])
}

/// Key of [`super::Quota`].
#[must_use]
pub fn quota() -> Vec<u8> {
    join(b'q', &[])
}

/// Whether a key is one of the volume's, not of the engine or of a local index.
#[must_use]
pub fn is_record(key: &[u8]) -> bool {
    matches!(key.first(), Some(b'v' | b'h' | b'i' | b'd' | b'b' | b'c' | b'p' | b'g' | b't' | b'q'))
}

/// Takes a key apart.
///
/// # Errors
/// `Damaged`, naming the key, when it is none of ours.
pub fn parse(key: &[u8]) -> Result<Key> {
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).ok();
    let parsed = match key {
        [b'v'] => Some(Key::Format),
        [b'h'] => Some(Key::Head),
        [b'i', rest @ ..] => number(rest).map(Key::Inode),
        [b'd', rest @ ..] => rest
            .split_at_checked(8)
            .filter(|(_, name)| !name.is_empty())
            .and_then(|(dir, name)| Some(Key::Dentry(number(dir)?, name.to_vec()))),
        [b'b', rest @ ..] => rest
            .split_at_checked(8)
            .and_then(|(inode, block)| Some(Key::Block(number(inode)?, number(block)?))),
        [b'c', rest @ ..] => rest.try_into().ok().map(Key::Chunk),
        [b'p', rest @ ..] => rest.try_into().ok().map(Key::Pack),
        [b'g', rest @ ..] => rest.try_into().ok().map(Key::Garbage),
        [b't'] => Some(Key::Totals),
        [b'q'] => Some(Key::Quota),
        _ => None,
    };
    parsed.ok_or_else(|| {
        MetaError::Damaged(format!(
            "the metadata holds the unknown key {}; use the agent that wrote it, or restore the backend from a copy",
            show(key)
        ))
    })
}

/// A key for people: its letter and the rest in hexadecimal, shortened.
#[must_use]
pub fn show(key: &[u8]) -> String {
    const SHOWN: usize = 48;
    let hex = |bytes: &[u8]| bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect::<String>();
    let end = if key.len() > SHOWN + 1 { "…" } else { "" };
    match key.split_first() {
        Some((kind, rest)) if kind.is_ascii_lowercase() => {
            format!("{}:{}{end}", char::from(*kind), hex(rest))
        }
        _ => format!("0x{}{end}", hex(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Head;
    use crate::meta::records::{self, Format, Pack};
    use proptest::prelude::*;

    #[test]
    fn keys_come_back() {
        for (bytes, key) in [
            (format(), Key::Format),
            (head(), Key::Head),
            (inode(7), Key::Inode(7)),
            (dentry(1, b"a\n\xff"), Key::Dentry(1, b"a\n\xff".to_vec())),
            (block(1 << 40, 3), Key::Block(1 << 40, 3)),
            (chunk(&[3; 32]), Key::Chunk([3; 32])),
            (pack(&[4; 16]), Key::Pack([4; 16])),
            (garbage(&[5; 16]), Key::Garbage([5; 16])),
            (totals(), Key::Totals),
            (quota(), Key::Quota),
        ] {
            assert_eq!(parse(&bytes).unwrap(), key);
        }
        assert!(
            dentry(1, b"x").starts_with(&dentries_of(1)) && !dentry(2, b"x").starts_with(&dentries_of(1))
        );
        assert!(inode(255) < inode(256) && block(1, u64::MAX) < block(2, 0), "numbers sort as numbers");
    }

    #[test]
    fn records_come_back_and_damage_names_the_key() {
        let record = Pack { size: 9, live: 8 };
        let value = records::encode(&record).unwrap();
        let key = pack(&[0xee; 16]);
        assert_eq!(records::decode::<Pack>(&key, &value).unwrap(), record);
        for bad in [&[][..], &[1], &[2, 9, 8], &[1, 9, 8, 0], &value[..value.len() - 1]] {
            let error = records::decode::<Pack>(&key, bad).unwrap_err();
            assert!(matches!(&error, MetaError::Damaged(text) if text.contains("p:eeee")), "{error}");
        }
        assert!(records::decode_child(&dentry(1, b"x"), b"123").is_err());
        assert_eq!(records::decode_child(b"d", &records::encode_child(77)).unwrap(), 77);
        let head = Head { seq: 1, nonce: u128::MAX, cut_at_ns: 5 };
        assert_eq!(records::decode::<Head>(b"h", &records::encode(&head).unwrap()).unwrap(), head);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(key) = parse(&bytes) {
                let again = match key {
                    Key::Format => format(),
                    Key::Head => head(),
                    Key::Inode(number) => inode(number),
                    Key::Dentry(dir, name) => dentry(dir, &name),
                    Key::Block(number, index) => block(number, index),
                    Key::Chunk(hash) => chunk(&hash),
                    Key::Pack(id) => pack(&id),
                    Key::Garbage(id) => garbage(&id),
                    Key::Totals => totals(),
                    Key::Quota => quota(),
                };
                prop_assert_eq!(&again, &bytes);
            }
            let _ = records::decode::<Format>(&bytes, &bytes);
            let _ = show(&bytes);
        }
    }
}
