//! Preamble, frames, and messages put together from them. Every length is checked before memory is taken for it.

use std::collections::HashMap;

use bytes::{Buf, Bytes, BytesMut};

use super::{Code, Result, WireError};

/// The first bytes on a connection, from either side.
pub const MAGIC: [u8; 8] = *b"SSWIRE\r\n";
/// Bytes of the preamble.
pub const PREAMBLE: usize = 16;
/// The version of the protocol that this side speaks, lowest and highest.
const VERSION: u16 = 1;
/// Bytes of a frame in front of its body.
pub const HEADER: usize = 24;
/// Largest body of one frame; longer messages go in several.
pub const MAX_BODY: usize = 1 << 20;
/// Largest message, all its frames together.
pub const MAX_MESSAGE: usize = 32 << 20;
/// Numbers of 64 bits are below this, so that every language can count with them.
const MAX_NUMBER: u64 = 1 << 53;

/// Answers the request of this number.
pub const ANSWER: u8 = 1;
/// An answer that is an error.
pub const ERROR: u8 = 2;
/// The message goes on in another frame.
pub const MORE: u8 = 4;

/// What leads a frame, and a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is about: [`super::messages::op`].
    pub op: u8,
    /// [`ANSWER`], [`ERROR`], [`MORE`].
    pub flags: u8,
    /// Number of the request, counted by the side that asks; 0 where nothing is answered.
    pub id: u64,
    /// Epoch under which a request is made; 0 for none.
    pub epoch: u64,
}

/// A frame or a whole message with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// See [`Frame`].
    pub frame: Frame,
    /// The body.
    pub body: Bytes,
}

/// The preamble of this side.
#[must_use]
pub fn preamble() -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    let (magic, rest) = bytes.split_at_mut(8);
    magic.copy_from_slice(&MAGIC);
    for (place, byte) in rest.iter_mut().zip([VERSION, VERSION].into_iter().flat_map(u16::to_le_bytes)) {
        *place = byte;
    }
    bytes
}

/// Appends a frame's header for a body of `length` bytes.
pub fn put_header(to: &mut Vec<u8>, frame: &Frame, length: usize) {
    // At most MAX_BODY.
    let length = u32::try_from(HEADER - 4 + length).unwrap_or(u32::MAX);
    to.extend_from_slice(&length.to_le_bytes());
    to.extend_from_slice(&[frame.op, frame.flags, 0, 0]);
    to.extend_from_slice(&frame.id.to_le_bytes());
    to.extend_from_slice(&frame.epoch.to_le_bytes());
}

/// Cuts a stream of bytes, however it arrives, into the preamble and frames.
#[derive(Debug, Default)]
pub struct Decoder {
    /// What has been received and is not cut yet.
    pub buffer: BytesMut,
    /// The preamble has arrived.
    greeted: bool,
}

impl Decoder {
    /// A decoder of a stream of which `first` was read already.
    #[must_use]
    pub fn after(first: BytesMut) -> Self {
        Self { buffer: first, greeted: false }
    }

    /// The next frame; `None` until more bytes have come.
    ///
    /// # Errors
    /// For what cannot be a frame; the stream is of no use any more.
    pub fn message(&mut self) -> Result<Option<Message>> {
        if !self.greeted && !self.take_preamble()? {
            return Ok(None);
        }
        let Some(mut header) = self.buffer.get(..HEADER) else { return Ok(None) };
        let length = header.get_u32_le() as usize;
        let (op, flags, zero) = (header.get_u8(), header.get_u8(), header.get_u16_le());
        let (id, epoch) = (header.get_u64_le(), header.get_u64_le());
        if length < HEADER - 4 || zero != 0 || flags & !(ANSWER | ERROR | MORE) != 0 {
            return Err(WireError::garbage("bytes that are no frame"));
        }
        let body = length - (HEADER - 4);
        if body > MAX_BODY {
            return Err(WireError::new(
                Code::TooLarge,
                format!(
                    "a frame of {length} bytes was announced, where {} are allowed; split it",
                    HEADER - 4 + MAX_BODY
                ),
            ));
        }
        if id >= MAX_NUMBER || epoch >= MAX_NUMBER {
            return Err(WireError::garbage("a number beyond 2^53"));
        }
        if self.buffer.len() < HEADER + body {
            self.buffer.reserve(HEADER + body - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let body = self.buffer.split_to(body).freeze();
        Ok(Some(Message { frame: Frame { op, flags, id, epoch }, body }))
    }

    fn take_preamble(&mut self) -> Result<bool> {
        // Garbage is told by its first byte, not only when 16 have come.
        if self.buffer.iter().zip(MAGIC).any(|(got, wanted)| *got != wanted) {
            return Err(WireError::garbage("bytes that are not the protocol's first ones"));
        }
        let Some(mut rest) = self.buffer.get(MAGIC.len()..PREAMBLE) else { return Ok(false) };
        let (lowest, highest) = (rest.get_u16_le(), rest.get_u16_le());
        if highest.min(VERSION) < lowest.max(VERSION) {
            return Err(WireError::new(
                Code::Version,
                format!(
                    "the other side speaks versions {lowest} to {highest} of the protocol, this side {VERSION}; update the \
                     older of agent and Worker"
                ),
            ));
        }
        self.buffer.advance(PREAMBLE);
        self.greeted = true;
        Ok(true)
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// Puts messages together from their frames, which may alternate with those of other messages.
#[derive(Debug, Default)]
pub struct Assembler {
    begun: HashMap<(u8, u64, u8), BytesMut>,
    held: usize,
}

impl Assembler {
    /// Takes a frame; gives the message when it is whole.
    ///
    /// # Errors
    /// `TooLarge` where what is half received exceeds [`MAX_MESSAGE`].
    pub fn push(&mut self, part: Message) -> Result<Option<Message>> {
        let Message { mut frame, body } = part;
        let key = (frame.flags & ANSWER, frame.id, frame.op);
        let more = frame.flags & MORE != 0;
        if !more && !self.begun.contains_key(&key) {
            return Ok(Some(Message { frame, body }));
        }
        self.held += body.len();
        if self.held > MAX_MESSAGE {
            return Err(WireError::new(
                Code::TooLarge,
                format!("a message is larger than {MAX_MESSAGE} bytes, or too many are half sent; split it"),
            ));
        }
        let message = self.begun.entry(key).or_default();
        message.extend_from_slice(&body);
        if more {
            return Ok(None);
        }
        let body = self.begun.remove(&key).unwrap_or_default().freeze();
        self.held -= body.len();
        frame.flags &= !MORE;
        Ok(Some(Message { frame, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_all(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Message>> {
        let (mut decoder, mut found, mut rest) = (Decoder::default(), Vec::new(), bytes);
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (head, tail) = rest.split_at((*cuts.next().unwrap()).clamp(1, rest.len()));
            decoder.buffer.extend_from_slice(head);
            while let Some(message) = decoder.message()? {
                found.push(message);
            }
            rest = tail;
        }
        Ok(found)
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(
            frames in prop::collection::vec((any::<u8>(), 0u8..8, 0u64..MAX_NUMBER, 0u64..MAX_NUMBER, 0usize..5000), 0..8),
            cuts in prop::collection::vec(1usize..3000, 1..5),
        ) {
            let mut bytes = preamble().to_vec();
            let mut sent = Vec::new();
            for (op, flags, id, epoch, length) in frames {
                let frame = Frame { op, flags, id, epoch };
                put_header(&mut bytes, &frame, length);
                bytes.resize(bytes.len() + length, op);
                sent.push(Message { frame, body: Bytes::from(vec![op; length]) });
            }
            prop_assert_eq!(decode_all(&bytes, &cuts).unwrap(), sent);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_all(&noise, &[7]);
            let _ = decode_all(&[&preamble()[..], &noise].concat(), &[50]);
        }
    }

    #[test]
    fn messages_of_several_frames_may_alternate() {
        let mut assembler = Assembler::default();
        let part = |id, flags, body: &'static [u8]| Message {
            frame: Frame { op: 1, flags, id, epoch: 3 },
            body: Bytes::from_static(body),
        };
        assert_eq!(assembler.push(part(1, MORE, b"a")).unwrap(), None);
        assert_eq!(assembler.push(part(2, MORE | ANSWER, b"x")).unwrap(), None);
        assert_eq!(assembler.push(part(3, 0, b"whole")).unwrap().unwrap().body, "whole");
        assert_eq!(assembler.push(part(1, 0, b"b")).unwrap().unwrap().body, "ab");
        assert_eq!(assembler.push(part(2, ANSWER, b"y")).unwrap().unwrap(), part(2, ANSWER, b"xy"));
        let large: &'static [u8] = Box::leak(vec![0; MAX_BODY].into_boxed_slice());
        for _ in 0..32 {
            assert_eq!(assembler.push(part(9, MORE, large)).unwrap(), None);
        }
        assert_eq!(assembler.push(part(9, MORE, large)).unwrap_err().code, Code::TooLarge);
    }
}
