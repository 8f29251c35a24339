//! Holds this side of the protocol to `worker/test/vectors.json`, which the Worker's side is held to as well.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::frame::{self, Decoder, Frame};
use super::messages::{self as m, FileRequest, Stat};
use super::{Code, WireError};

#[derive(Deserialize)]
struct Vectors {
    preamble: String,
    messages: Vec<Sample>,
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Sample {
    name: String,
    shape: String,
    op: u8,
    flags: u8,
    id: u64,
    epoch: u64,
    value: Value,
    hex: String,
}

#[derive(Deserialize)]
struct Refused {
    name: String,
    error: String,
    hex: String,
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

fn vectors() -> Vectors {
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../worker/test/vectors.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    unhex(value.as_str().unwrap().strip_prefix("0x").unwrap())
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn nonce(value: &Value) -> [u8; 16] {
    bytes(value).try_into().unwrap()
}

fn ops(value: &Value) -> Vec<(Vec<u8>, Option<Bytes>)> {
    let ops = value["ops"].as_array().unwrap().iter();
    ops.map(|op| (bytes(&op[0]), op[1].is_string().then(|| Bytes::from(bytes(&op[1]))))).collect()
}

fn stat(value: &Value) -> Stat {
    let part = |name: &str| number(&value[name]);
    Stat {
        inode: part("inode"),
        mode: part("mode") as u32,
        uid: part("uid") as u32,
        gid: part("gid") as u32,
        links: part("links") as u32,
        size: part("size"),
        mtime_ms: value["mtime"].as_i64().unwrap(),
        version: part("version"),
    }
}

/// Encodes what this side sends, decodes what it receives, and both where it does both.
fn check(sample: &Sample, body: &Bytes) {
    let value = &sample.value;
    let sent = |made: Vec<u8>| assert_eq!(made, body.to_vec(), "{}", sample.name);
    let file = || FileRequest::decode(sample.op, body).unwrap().unwrap();
    let raw = |name: &str| Bytes::from(bytes(&value[name]));
    match sample.shape.as_str() {
        "Hello" => {
            let hello = m::Hello::decode(body).unwrap();
            assert_eq!(u64::from(hello.max_bytes), number(&value["maxBytes"]));
            assert_eq!(hello.program, value["name"].as_str().unwrap());
            sent(hello.encode());
        }
        "Empty" => assert!(body.is_empty()),
        "Failure" => {
            let error = m::decode_error(body).unwrap();
            assert_eq!(error.code as u64, number(&value["code"]));
            assert_eq!(u64::from(error.errno), number(&value["errno"]));
            assert_eq!(error.message, value["message"].as_str().unwrap());
            sent(m::encode_error(&error));
        }
        "OpenRequest" => sent(m::encode_open(&nonce(&value["nonce"]), number(&value["held"]))),
        "OpenAnswer" => {
            let opened = m::Opened::decode(body).unwrap();
            assert_eq!(
                [opened.epoch, opened.last, opened.version],
                ["epoch", "last", "version"].map(|n| number(&value[n]))
            );
        }
        "CommitRequest" => {
            sent(m::encode_commit(number(&value["number"]), &nonce(&value["nonce"]), &ops(value)));
        }
        "StageRequest" => {
            let (part, nonce) = (number(&value["part"]) as u32, nonce(&value["nonce"]));
            sent(m::encode_stage(number(&value["number"]), &nonce, part, &ops(value)));
        }
        "CommitStagedRequest" => {
            let (parts, nonce) = (number(&value["parts"]) as u32, nonce(&value["nonce"]));
            sent(m::encode_commit_staged(number(&value["number"]), &nonce, parts));
        }
        "CommitAnswer" => assert_eq!(m::decode_version(body).unwrap(), number(value)),
        "GetRequest" => sent(m::encode_get(&bytes(value))),
        "GetAnswer" => {
            let expected = value.is_string().then(|| Bytes::from(bytes(value)));
            assert_eq!(m::decode_got(body).unwrap(), expected);
        }
        "ScanRequest" => {
            let after = value["after"].is_string().then(|| bytes(&value["after"]));
            let (pairs, most) = (number(&value["maxPairs"]) as u32, number(&value["maxBytes"]) as u32);
            sent(m::encode_scan(&bytes(&value["prefix"]), after.as_deref(), pairs, most));
        }
        "ScanAnswer" => {
            let (more, pairs) = m::decode_page(body).unwrap();
            assert_eq!(more, value["more"].as_bool().unwrap());
            let expected = value["pairs"].as_array().unwrap().iter();
            let expected: Vec<_> =
                expected.map(|pair| (Bytes::from(bytes(&pair[0])), Bytes::from(bytes(&pair[1])))).collect();
            assert_eq!(pairs, expected);
        }
        "BlobGetRequest" => {
            sent(m::encode_blob_get(&nonce(&value["pack"]), number(&value["start"]), number(&value["end"])));
        }
        "BlobPutRequest" => sent([&nonce(&value["pack"])[..], &bytes(&value["bytes"])].concat()),
        "BlobDeleteRequest" => sent(bytes(value)),
        "FileStatRequest" => {
            let follow = value["follow"].as_bool().unwrap();
            assert_eq!(file(), FileRequest::Stat { follow, path: raw("path") });
        }
        "FileStatAnswer" => sent(stat(value).encode(&[])),
        "FileReadRequest" => {
            let (offset, length) = (number(&value["offset"]), number(&value["length"]) as u32);
            assert_eq!(file(), FileRequest::Read { offset, length, path: raw("path") });
        }
        "FileReadAnswer" => sent(stat(&value["stat"]).encode(&bytes(&value["bytes"]))),
        "FileListRequest" => {
            let max = number(&value["max"]) as u32;
            assert_eq!(file(), FileRequest::List { max, after: raw("after"), path: raw("path") });
        }
        "FileListAnswer" => {
            let entries = value["entries"].as_array().unwrap().iter();
            let entries: Vec<_> =
                entries.map(|entry| (bytes(&entry["name"]), stat(&entry["stat"]))).collect();
            sent(m::encode_list(value["more"].as_bool().unwrap(), &entries));
        }
        "FileWriteRequest" => {
            let part = |name: &str| number(&value[name]);
            let expected = FileRequest::Write {
                nonce: nonce(&value["nonce"]),
                flags: part("flags") as u32,
                mode: part("mode") as u32,
                offset: part("offset"),
                path: raw("path"),
                bytes: raw("bytes"),
            };
            assert_eq!(file(), expected);
        }
        "FileUnlinkRequest" => {
            let recursive = value["recursive"].as_bool().unwrap();
            assert_eq!(file(), FileRequest::Unlink { recursive, path: raw("path") });
        }
        // The change log is read by other agents, which there are none of yet.
        "ChangesRequest" | "ChangesAnswer" => {}
        other => panic!("{}: no such shape here: {other}", sample.name),
    }
}

#[test]
fn both_sides_speak_the_same_bytes() {
    let vectors = vectors();
    assert_eq!(frame::preamble().to_vec(), unhex(&vectors.preamble));
    let mut shapes = BTreeMap::new();
    for sample in &vectors.messages {
        let mut decoder = Decoder::default();
        decoder.buffer.extend_from_slice(&frame::preamble());
        decoder.buffer.extend_from_slice(&unhex(&sample.hex));
        let message = decoder.message().unwrap().unwrap();
        let (op, flags, id, epoch) = (sample.op, sample.flags, sample.id, sample.epoch);
        assert_eq!(message.frame, Frame { op, flags, id, epoch }, "{}", sample.name);
        assert!(decoder.is_idle() && decoder.message().unwrap().is_none());
        let mut made = Vec::new();
        frame::put_header(&mut made, &message.frame, message.body.len());
        made.extend_from_slice(&message.body);
        assert_eq!(made, unhex(&sample.hex), "{}", sample.name);
        check(sample, &message.body);
        *shapes.entry(sample.shape.clone()).or_insert(0) += 1;
    }
    assert!(shapes.len() >= 20, "{shapes:?}");
}

#[test]
fn bad_streams_are_refused_as_on_the_other_side() {
    for sample in vectors().refused {
        let mut decoder = Decoder::default();
        decoder.buffer.extend_from_slice(&unhex(&sample.hex));
        let error: WireError = loop {
            match decoder.message() {
                Err(error) => break error,
                Ok(Some(_)) => {}
                Ok(None) => panic!("{}: not refused", sample.name),
            }
        };
        let wanted = match sample.error.as_str() {
            "Protocol" => Code::Protocol,
            "Version" => Code::Version,
            "TooLarge" => Code::TooLarge,
            other => panic!("{other}"),
        };
        assert_eq!(error.code, wanted, "{}", sample.name);
    }
}
