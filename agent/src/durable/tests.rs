//! Faults of connections, against a Durable Object that is played by the test; and packs on the real one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use storeshim_workerd::free_port;

use super::runtime;
use super::wire::frame::{ANSWER, ERROR, Frame, preamble, put_header};
use super::wire::messages::{self, Hello, op};
use super::wire::{Code, Decoder, Message, WireError};
use crate::blob::BlobError;
use crate::meta::{Batch, Meta, MetaError};

/// The other side of one connection.
struct Played {
    stream: TcpStream,
    decoder: Decoder,
}

impl Played {
    /// Dials the agent as a Durable Object does.
    fn dial(port: u16) -> Self {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&preamble()).unwrap();
        let mut played = Self { stream, decoder: Decoder::default() };
        let hello = Hello {
            role: 2,
            max_message: 32 << 20,
            max_requests: 64,
            max_bytes: 16 << 20,
            heartbeat_ms: 5000,
            program: "played".into(),
        };
        played.send(&Frame { op: op::HELLO, flags: 0, id: 0, epoch: 0 }, &hello.encode());
        played
    }

    fn send(&mut self, frame: &Frame, body: &[u8]) {
        let mut bytes = Vec::new();
        put_header(&mut bytes, frame, body.len());
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next message that is no sign of life; `None` at the end.
    fn next(&mut self) -> Option<Message> {
        loop {
            while let Some(message) = self.decoder.message().unwrap() {
                if message.frame.op != op::PING && message.frame.op != op::HELLO {
                    return Some(message);
                }
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(length) => self.decoder.buffer.extend_from_slice(&bytes[..length]),
            }
        }
    }

    fn answer(&mut self, request: &Message, body: &[u8]) {
        self.send(&Frame { flags: ANSWER, ..request.frame }, body);
    }

    fn refuse(&mut self, request: &Message, code: Code) {
        let body = messages::encode_error(&WireError::new(code, "as the test wants it"));
        self.send(&Frame { flags: ANSWER | ERROR, ..request.frame }, &body);
    }

    /// Answers the opening; the epoch that the agent says it holds.
    fn open(&mut self, epoch: u64, last: u64) -> u64 {
        let request = self.next().unwrap();
        assert_eq!(request.frame.op, op::OPEN);
        let held = u64::from_le_bytes(request.body[16..].try_into().unwrap());
        let body: Vec<u8> = [epoch, last, last].iter().flat_map(|number| number.to_le_bytes()).collect();
        self.answer(&request, &body);
        held
    }

    /// The next commit: the request, its number and its nonce.
    fn commit(&mut self) -> (Message, u64, Vec<u8>) {
        let request = self.next().unwrap();
        assert_eq!(request.frame.op, op::COMMIT);
        let number = u64::from_le_bytes(request.body[..8].try_into().unwrap());
        let nonce = request.body[8..24].to_vec();
        (request, number, nonce)
    }

    /// Why the agent ends the connection.
    fn goodbye(&mut self) -> WireError {
        let last = self.next().expect("a word in the end");
        assert_eq!(last.frame.op, op::GOODBYE);
        messages::decode_error(&last.body).unwrap()
    }
}

/// An agent's metadata, opened by a played Durable Object.
fn opened() -> (u16, Played, Arc<dyn Meta>) {
    let port = free_port().unwrap();
    let agent =
        std::thread::spawn(move || super::open(&format!("do://listen:{port}?bind=127.0.0.1")).unwrap().meta);
    let mut played = Played::dial(port);
    assert_eq!(played.open(7, 0), 0);
    (port, played, agent.join().unwrap())
}

fn batch() -> Batch {
    Batch { ops: vec![(b"key".to_vec(), Some(Bytes::from_static(b"value")))] }
}

const VERSION: [u8; 8] = [9, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn a_commit_whose_answer_is_lost_is_sent_again_as_it_was() {
    let (port, mut played, meta) = opened();
    let answers = [meta.submit(batch()), meta.submit(batch())];
    let (first, number, nonce) = played.commit();
    assert_eq!((number, first.frame.epoch), (1, 7));
    let second = played.commit();
    assert_eq!(second.1, 2);
    // Half an answer, and the connection is gone.
    let mut bytes = Vec::new();
    put_header(&mut bytes, &Frame { flags: ANSWER, ..first.frame }, 8);
    played.stream.write_all(&bytes[..20]).unwrap();
    drop(played);
    let mut again = Played::dial(port);
    assert_eq!(again.open(7, 2), 7, "it comes back to its epoch");
    for (number, nonce) in [(1, nonce), (2, second.2)] {
        let (request, sent, same) = again.commit();
        assert_eq!((sent, same), (number, nonce));
        again.answer(&request, &VERSION);
    }
    for answer in answers {
        answer.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
    }
}

#[test]
fn commits_that_are_refused_for_now_go_again_in_order() {
    let (_, mut played, meta) = opened();
    let answers = [meta.submit(batch()), meta.submit(batch())];
    for _ in 0..2 {
        let both = [played.commit(), played.commit()];
        assert_eq!([both[0].1, both[1].1], [1, 2]);
        both.iter().for_each(|(request, ..)| played.refuse(request, Code::Unavailable));
    }
    for expected in 1..=2 {
        let (request, number, _) = played.commit();
        assert_eq!(number, expected);
        played.answer(&request, &VERSION);
    }
    for answer in answers {
        answer.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
    }
}

#[test]
fn connections_that_take_one_anothers_place_hold_up_nobody() {
    let (port, _played, meta) = opened();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..100).for_each(|_| drop(Played::dial(port).next())));
        }
    });
    let mut last = Played::dial(port);
    assert_eq!(last.open(7, 0), 7);
    let answer = meta.submit(batch());
    let (request, ..) = last.commit();
    last.answer(&request, &VERSION);
    answer.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
}

#[test]
fn garbage_and_oversize_frames_end_the_connection_only() {
    let (port, mut played, meta) = opened();
    played.stream.write_all(&[0xff; 24]).unwrap();
    assert_eq!(played.goodbye().code, Code::Protocol);
    let mut large = Played::dial(port);
    large.open(7, 0);
    large.stream.write_all(&(64_u32 << 20).to_le_bytes()).unwrap();
    large.stream.write_all(&[op::PING; 1]).unwrap();
    large.stream.write_all(&[0; 19]).unwrap();
    assert_eq!(large.goodbye().code, Code::TooLarge);
    // Nobody speaks like that: it is closed, and the agent waits on.
    let mut other = TcpStream::connect(("127.0.0.1", port)).unwrap();
    other.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert_eq!(other.read(&mut [0; 10]).unwrap_or(0), 0);
    let mut well = Played::dial(port);
    well.open(7, 0);
    let answer = meta.submit(batch());
    let (request, ..) = well.commit();
    well.answer(&request, &VERSION);
    answer.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
}

#[test]
fn an_object_that_has_forgotten_commits_is_damaged() {
    let (port, mut played, meta) = opened();
    let answer = meta.submit(batch());
    let (request, ..) = played.commit();
    played.answer(&request, &VERSION);
    answer.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
    drop(played);
    Played::dial(port).open(7, 0);
    let answer = meta.submit(batch()).recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(
        matches!(&answer, Err(MetaError::Damaged(text)) if text.contains("earlier point in time")),
        "{answer:?}"
    );
}

#[test]
fn a_fenced_agent_stays_fenced() {
    let (_, mut played, meta) = opened();
    let answer = meta.submit(batch());
    let (request, ..) = played.commit();
    played.refuse(&request, Code::Fenced);
    assert!(matches!(answer.recv_timeout(Duration::from_secs(20)).unwrap(), Err(MetaError::Fenced)));
    assert!(matches!(meta.get(b"key", None), Err(MetaError::Fenced)));
    assert!(matches!(meta.submit(batch()).recv().unwrap(), Err(MetaError::Fenced)));
}

#[test]
fn a_record_that_no_message_can_hold_is_refused() {
    let (_, _played, meta) = opened();
    let ops = vec![(b"a".to_vec(), Some(Bytes::from(vec![0; 33 << 20])))];
    let answer = meta.submit(Batch { ops }).recv().unwrap();
    assert!(matches!(&answer, Err(MetaError::Refused(text)) if text.contains("does not fit")), "{answer:?}");
}

#[test]
fn a_commit_that_no_message_can_hold_is_made_in_its_turn() {
    runtime::with(|running| {
        for volume in [running.dialled(), running.websocket()] {
            let meta = volume.open().meta;
            let one = |at: u32| (at.to_be_bytes().to_vec(), Some(Bytes::from(vec![at as u8; 1000])));
            let many = |range: std::ops::Range<u32>| Batch { ops: range.map(one).collect() };
            let last =
                |number: u32| Batch { ops: vec![(b"last".to_vec(), Some(Bytes::from(number.to_string())))] };
            let batches = [
                last(1),
                many(1 << 16..(1 << 16) + 35_000),
                last(2),
                many(1 << 24..(1 << 24) + 9_000),
                last(3),
            ];
            let answers = batches.map(|batch| meta.submit(batch));
            for answer in answers {
                answer.recv().unwrap().unwrap();
            }
            drop(meta);
            let again = volume.open().meta;
            let mut pairs = 0;
            again
                .scan(b"", None, &mut |_, _| {
                    pairs += 1;
                    true
                })
                .unwrap();
            assert_eq!(pairs, 35_000 + 9_000 + 2, "with the format and the last one");
            assert_eq!(again.get(b"last", None).unwrap().as_deref(), Some(&b"3"[..]));
            let some = (1_u32 << 16) + 34_999;
            assert_eq!(again.get(&some.to_be_bytes(), None).unwrap().unwrap(), vec![some as u8; 1000]);
        }
    });
}

#[test]
fn packs_are_stored_read_by_range_and_deleted() {
    runtime::with(|running| {
        for volume in [running.dialled(), running.websocket()] {
            let blob = volume.open().blob;
            // Small ones over the connection, large ones over HTTP where there is any.
            for size in [10_usize, 1 << 20, 5 << 20] {
                let (id, mut bytes) = (rand::random(), vec![0; size]);
                blake3::Hasher::new().update(&size.to_le_bytes()).finalize_xof().fill(&mut bytes);
                let bytes = Bytes::from(bytes);
                assert!(matches!(blob.get(&id, 0..1), Err(BlobError::Missing(_))));
                blob.put(&id, bytes.clone()).unwrap();
                blob.put(&id, bytes.clone()).unwrap();
                let end = size as u64;
                assert_eq!(blob.get(&id, 0..end).unwrap(), bytes);
                assert_eq!(blob.get(&id, 2..5).unwrap(), bytes.slice(2..5));
                assert_eq!(blob.get(&id, 5..5).unwrap(), Bytes::new());
                for range in [end - 1..end + 1, end + 100..end + 101] {
                    let past = blob.get(&id, range);
                    assert!(matches!(past, Err(BlobError::Missing(_))), "{past:?}");
                }
                blob.delete(&id).unwrap();
                blob.delete(&id).unwrap();
                assert!(matches!(blob.get(&id, 0..end), Err(BlobError::Missing(_))));
            }
        }
    });
}

#[test]
fn packs_of_a_fenced_agent_are_refused() {
    runtime::with(|running| {
        for volume in [running.dialled(), running.websocket()] {
            let older = volume.open();
            let newer = volume.open();
            for size in [10, 3 << 20] {
                let answer = older.blob.put(&rand::random(), Bytes::from(vec![1; size]));
                assert!(matches!(answer, Err(BlobError::Fenced)), "{answer:?}");
            }
            newer.blob.put(&rand::random(), Bytes::from_static(b"on")).unwrap();
        }
    });
}
