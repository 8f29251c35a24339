//! Commits on their way to a Durable Object: what each is sent as, and how far it is. One that is too large for a message goes in
//! parts, which the object keeps aside until the last message makes all of them at once. It must not know what records mean,
//! nor what carries messages.

use bytes::Bytes;

use super::link::{Body, OnCommit};
use super::wire::frame;
use super::wire::messages::{self, Nonce, Ops, op};
use super::wire::{Code, Result, WireError};

/// Bytes of a commit that goes as one message. Far below what a message may have: the object does nothing else while it makes it.
const WHOLE: usize = 8 << 20;
/// Bytes of a part, but for a single larger record.
const PART: usize = 4 << 20;
/// What no message can have, with room for what leads its operations.
const LARGEST: usize = frame::MAX_MESSAGE - (64 << 10);

/// The messages of a commit, whose number is not known yet: it leads each of them.
pub struct Encoded(Vec<Vec<u8>>);

impl Encoded {
    /// Encodes the operations of a commit.
    ///
    /// # Errors
    /// `Refused` where a single record fits no message.
    pub fn new(ops: &Ops) -> Result<Self> {
        Self::with(ops, WHOLE, PART)
    }

    fn with(ops: &Ops, whole: usize, part: usize) -> Result<Self> {
        let nonce: Nonce = rand::random();
        if let Some(record) = ops.iter().map(size).find(|size| *size > LARGEST) {
            return Err(WireError::new(
                Code::Refused,
                format!(
                    "a metadata record of {record} bytes does not fit the {LARGEST} that a Durable Object takes at once; this is a \
                     bug, report it"
                ),
            ));
        }
        if ops.iter().map(size).sum::<usize>() <= whole {
            return Ok(Self(vec![messages::encode_commit(0, &nonce, ops)]));
        }
        let mut messages = Vec::new();
        let mut rest = ops;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|&operation| {
                bytes += size(operation);
                bytes <= part
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            messages.push(messages::encode_stage(0, &nonce, number_of(messages.len()), now));
            rest = later;
        }
        messages.push(messages::encode_commit_staged(0, &nonce, number_of(messages.len())));
        Ok(Self(messages))
    }
}

/// Bytes that an operation takes in a message.
fn size((key, value): &(Vec<u8>, Option<Bytes>)) -> usize {
    7 + key.len() + value.as_ref().map_or(0, Bytes::len)
}

fn number_of(part: usize) -> u32 {
    u32::try_from(part).unwrap_or(u32::MAX)
}

/// A commit that is not answered in its turn yet.
pub struct Commit {
    /// Its number in the epoch.
    pub number: u64,
    /// It was made, while one in front of it is not answered.
    pub made: bool,
    /// Parts, where there are any, and the message that makes it.
    messages: Vec<Body>,
    /// The message to be sent next.
    next: usize,
    /// Parts that the object has, from the first on.
    staged: usize,
    /// The last message was refused since the parts were sent.
    refused: bool,
    answer: Option<OnCommit>,
}

impl Commit {
    /// A commit with its number.
    pub fn new(number: u64, encoded: Encoded, answer: OnCommit) -> Self {
        let messages = encoded.0.into_iter().map(|mut body| {
            if let Some(place) = body.first_chunk_mut() {
                *place = number.to_le_bytes();
            }
            body.into()
        });
        let messages = messages.collect();
        Self { number, made: false, messages, next: 0, staged: 0, refused: false, answer: Some(answer) }
    }

    /// Bytes in all its messages.
    pub fn len(&self) -> usize {
        self.messages.iter().map(Body::len).sum()
    }

    /// The message to be sent next: what it asks for, and its body. `None` where all are on their way.
    pub fn upcoming(&self) -> Option<(u8, &Body)> {
        let body = self.messages.get(self.next).filter(|_| !self.made)?;
        let op = match self.messages.len() {
            1 => op::COMMIT,
            all if self.next + 1 < all => op::STAGE,
            _ => op::COMMIT_STAGED,
        };
        Some((op, body))
    }

    /// The upcoming message is sent; its place among the commit's.
    pub fn sent(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    /// Whether the message at a place is a part only.
    pub fn is_part(&self, place: usize) -> bool {
        place + 1 < self.messages.len()
    }

    /// The connection is another one. The object still has the parts that it said it has.
    pub fn again(&mut self) {
        self.next = self.staged;
    }

    /// The object has a part.
    pub fn part_taken(&mut self, place: usize) {
        if place == self.staged {
            self.staged += 1;
        }
    }

    /// The message at a place was refused for now. The last one a second time: perhaps the object does not have the parts any more.
    pub fn refused(&mut self, place: usize) {
        if !self.is_part(place) {
            if self.refused {
                self.staged = 0;
            }
            self.refused = !self.refused;
        }
        self.next = self.staged;
    }

    /// Tells who handed it over what became of it.
    pub fn answer(self, result: Result<()>) {
        if let Some(answer) = self.answer {
            answer(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ops(sizes: &[usize]) -> Vec<(Vec<u8>, Option<Bytes>)> {
        let one = |(at, size): (usize, &usize)| {
            (at.to_be_bytes().to_vec(), (size % 3 != 0).then(|| Bytes::from(vec![1; *size])))
        };
        sizes.iter().enumerate().map(one).collect()
    }

    fn commit(ops: &Ops, whole: usize, part: usize) -> Commit {
        Commit::new(9, Encoded::with(ops, whole, part).unwrap(), Box::new(|_| ()))
    }

    /// All that is to be sent from now on.
    fn rest(commit: &mut Commit) -> Vec<(u8, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some((op, body)) = commit.upcoming() {
            all.push((op, [&body.0[..], &body.1[..]].concat()));
            commit.sent();
        }
        all
    }

    proptest! {
        #[test]
        fn the_parts_together_are_the_commit(sizes in prop::collection::vec(0_usize..200, 1..60), part in 20_usize..400) {
            let ops = ops(&sizes);
            let mut commit = commit(&ops, 100, part);
            let mut sent = rest(&mut commit);
            let whole = messages::encode_commit(9, &[0; 16], &ops);
            let (op, last) = sent.pop().unwrap();
            if sent.is_empty() {
                prop_assert_eq!((op, &last[..8], &last[24..]), (op::COMMIT, &whole[..8], &whole[24..]));
            } else {
                prop_assert_eq!(op, op::COMMIT_STAGED);
                prop_assert_eq!(&last[24..], &u32::try_from(sent.len()).unwrap().to_le_bytes()[..]);
                let mut together = Vec::new();
                for (at, (op, body)) in sent.iter().enumerate() {
                    prop_assert_eq!((*op, &body[..24]), (op::STAGE, &last[..24]));
                    prop_assert_eq!(&body[24..28], &u32::try_from(at).unwrap().to_le_bytes()[..]);
                    together.extend_from_slice(&body[32..]);
                }
                prop_assert_eq!(&together[..], &whole[28..]);
            }
        }
    }

    #[test]
    fn what_the_object_has_is_not_sent_again_unless_it_lost_it() {
        let ops = ops(&[100; 10]);
        let mut commit = commit(&ops, 100, 250);
        let all = rest(&mut commit).len();
        assert!(all > 4);
        commit.part_taken(0);
        commit.part_taken(1);
        commit.again();
        assert_eq!(rest(&mut commit).len(), all - 2);
        commit.refused(2);
        assert_eq!(rest(&mut commit).len(), all - 2);
        (2..all - 1).for_each(|place| commit.part_taken(place));
        commit.refused(all - 1);
        assert_eq!(rest(&mut commit).len(), 1, "perhaps it was only busy");
        commit.refused(all - 1);
        assert_eq!(rest(&mut commit).len(), all, "everything anew");
        commit.made = true;
        commit.again();
        assert!(commit.upcoming().is_none());
    }

    #[test]
    fn a_record_that_fits_no_message_is_refused() {
        let huge = [(b"k".to_vec(), Some(Bytes::from(vec![0; LARGEST])))];
        let error = Encoded::new(&huge).err().unwrap();
        assert_eq!(error.code, Code::Refused);
        assert!(error.message.contains("record"), "{error}");
    }
}
