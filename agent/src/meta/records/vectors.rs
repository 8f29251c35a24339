//! Samples of every kind of record, of chunks and of a pack, as bytes: `worker/test/records.json`, which the Worker's tests
//! read. A change of the format that one side does not follow fails on that side. After a deliberate one:
//! `STORESHIM_WRITE_VECTORS=1 cargo test -p storeshim-agent --lib vectors`.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Block, Chunk, ChunkHash, Codec, Extent, FORMAT_VERSION, Format, Frame, Inode, Location, Pack, Quota,
    Time, Totals, encode, encode_child, key,
};
use crate::blob::pack::{Encoded, PackWriter};
use crate::meta::Head;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../worker/test/records.json")
}

/// One record: its kind, its key, what it says (numbers beyond 2^53 as text), its bytes.
fn record<T: Serialize>(kind: &str, key: &[u8], says: Value, record: &T) -> Value {
    json!({ "kind": kind, "key": hex(key), "says": says, "hex": hex(&encode(record).unwrap()) })
}

/// A chunk as it is stored, and the size of what it must come back as; its name says the rest.
fn chunk(bytes: &[u8]) -> Value {
    let hash = *blake3::hash(bytes).as_bytes();
    let encoded = Encoded::new(hash, bytes).unwrap();
    let codec = if encoded.codec == Codec::Zstd { "zstd" } else { "raw" };
    let frames: Vec<_> =
        encoded.frames.iter().map(|frame| json!([frame.stored_len, hex(&frame.hash)])).collect();
    json!({
        "hash": hex(&hash), "len": encoded.len, "codec": codec, "frames": frames, "stored": hex(&encoded.stored)
    })
}

/// Bytes that look random, or with few letters like a text that compresses somewhat.
fn noise(seed: u8, len: usize, letters: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes.iter().map(|byte| if letters == 0 { *byte } else { b'a' + byte % letters }).collect()
}

fn inode(mode: u32, size: u64, secs: i64) -> Inode {
    let mtime = Time { secs, nanos: 123_456_789 };
    Inode { mode, uid: 1000, gid: 70_000, rdev: 0, size, mtime, links: 1, target: vec![], xattrs: vec![] }
}

fn records() -> Vec<Value> {
    let (hash, pack): (ChunkHash, [u8; 16]) = ([0xc5; 32], [0xab; 16]);
    let xattrs = vec![(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), vec![])];
    let linked = Inode { links: 300, xattrs, ..inode(0o100_600, 5 << 40, 1_763_000_000) };
    let symlink = Inode { target: b"../target".to_vec(), ..inode(0o120_777, 9, -5) };
    let extents = vec![
        Extent { start: 0, len: 10, chunk: hash, chunk_offset: 0 },
        Extent { start: 4096, len: (4 << 20) - 4096, chunk: [0; 32], chunk_offset: 70_000 },
    ];
    let inline = Location::Inline(b"stored".to_vec());
    let inline =
        Chunk { refs: 3, len: 6, stored_len: 6, codec: Codec::Raw, frames: vec![], location: inline };
    let packed = Location::Pack { pack, offset: 1 << 20 };
    let frames =
        vec![Frame { stored_len: 70_000, hash: [0xd6; 16] }, Frame { stored_len: 7_777, hash: [0xe7; 16] }];
    let packed =
        Chunk { refs: 1, len: 200_000, stored_len: 77_777, codec: Codec::Zstd, frames, location: packed };
    let head = Head { seq: 1 << 33, nonce: u128::MAX, cut_at_ns: 1_763_000_000_123_456_789 };
    vec![
        record(
            "format",
            &key::format(),
            json!({ "version": FORMAT_VERSION, "volumeId": "5" }),
            &Format { version: FORMAT_VERSION, volume_id: 5 },
        ),
        record(
            "head",
            &key::head(),
            json!({ "seq": 1_u64 << 33, "nonce": u128::MAX.to_string(), "cutAt": "1763000000123456789" }),
            &head,
        ),
        record(
            "inode",
            &key::inode(7),
            json!({ "mode": 0o100_600, "uid": 1000, "gid": 70_000, "rdev": 0, "size": 5_u64 << 40,
                    "mtime": { "secs": 1_763_000_000, "nanos": 123_456_789 }, "links": 300, "target": "0x",
                    "xattrs": [["0x757365722e61", "0x31"], ["0x757365722e62", "0x"]] }),
            &linked,
        ),
        record(
            "inode",
            &key::inode(1 << 40),
            json!({ "mode": 0o120_777, "uid": 1000, "gid": 70_000, "rdev": 0, "size": 9,
                    "mtime": { "secs": -5, "nanos": 123_456_789 }, "links": 1, "target": "0x2e2e2f746172676574",
                    "xattrs": [] }),
            &symlink,
        ),
        record(
            "block",
            &key::block(7, 3),
            json!([{ "start": 0, "len": 10, "chunk": format!("0x{}", "c5".repeat(32)), "chunkOffset": 0 },
                   { "start": 4096, "len": (4 << 20) - 4096, "chunk": format!("0x{}", "00".repeat(32)),
                     "chunkOffset": 70_000 }]),
            &Block { extents },
        ),
        record(
            "chunk",
            &key::chunk(&hash),
            json!({ "refs": 3, "len": 6, "storedLen": 6, "codec": "raw", "frames": [],
                    "location": { "inline": "0x73746f726564" } }),
            &inline,
        ),
        record(
            "chunk",
            &key::chunk(&hash),
            json!({ "refs": 1, "len": 200_000, "storedLen": 77_777, "codec": "zstd",
                    "frames": [{ "storedLen": 70_000, "hash": format!("0x{}", "d6".repeat(16)) },
                               { "storedLen": 7_777, "hash": format!("0x{}", "e7".repeat(16)) }],
                    "location": { "pack": format!("0x{}", "ab".repeat(16)), "offset": 1 << 20 } }),
            &packed,
        ),
        record(
            "pack",
            &key::pack(&pack),
            json!({ "size": 16 << 20, "live": 12_345_678 }),
            &Pack { size: 16 << 20, live: 12_345_678 },
        ),
        record(
            "totals",
            &key::totals(),
            json!({ "nextInode": 1_u64 << 40, "inodes": 12, "files": 7, "bytes": 5_u64 << 40 }),
            &Totals { next_inode: 1 << 40, inodes: 12, files: 7, bytes: 5 << 40 },
        ),
        record(
            "quota",
            &key::quota(),
            json!({ "bytes": 10_u64 << 30, "inodes": null }),
            &Quota { bytes: Some(10 << 30), inodes: None },
        ),
        json!({ "kind": "child", "key": hex(&key::dentry(1, b"name")), "says": 258, "hex": hex(&encode_child(258)) }),
    ]
}

#[test]
fn the_worker_reads_what_we_write() {
    let chunks = [
        chunk(b""),
        chunk(b"too short to be compressed"),
        chunk(&noise(1, 300, 0)),
        chunk(&b"storeshim ".repeat(1000)),
        chunk(&noise(2, 20_000, 11)),
        chunk(&[vec![0; 1 << 20], noise(3, 2000, 60)].concat()),
        chunk(&vec![7; 4 << 20]),
        // The least that has two frames: one that compresses, one that does not.
        chunk(&noise(7, (128 << 10) + 1, 3)),
        chunk(&noise(8, (128 << 10) + 1, 0)),
    ];
    let mut pack = PackWriter::new();
    let stored = [noise(4, 100, 0), noise(5, 1, 0), noise(6, 300, 0)];
    for bytes in &stored {
        let encoded = Encoded::new(*blake3::hash(bytes).as_bytes(), bytes).unwrap();
        assert_eq!(encoded.codec, Codec::Raw);
        pack.append(&encoded).unwrap();
    }
    let (pack, _) = pack.finish();
    let made = json!({
        "records": records(),
        "chunks": chunks,
        "pack": { "chunks": stored.map(|bytes| hex(&bytes)), "hex": hex(&pack) },
    });
    if std::env::var_os("STORESHIM_WRITE_VECTORS").is_some() {
        std::fs::write(file(), format!("{}\n", serde_json::to_string_pretty(&made).unwrap())).unwrap();
    }
    let kept: Value = serde_json::from_slice(&std::fs::read(file()).unwrap()).unwrap();
    assert_eq!(kept, made, "worker/test/records.json is of another format: see this module's doc");
}
