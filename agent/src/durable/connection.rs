//! One connection with the Durable Object, from the greeting to its end: reads, writes, and listens for signs of life. What
//! is asked and answered over it is the link's; it must not outlive it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::link::{Link, Outgoing};
use super::transport::{Sink, Source};
use super::wire::frame::{self, ANSWER, Frame, MAX_BODY, MAX_MESSAGE, MORE, Message};
use super::wire::messages::{self, FileRequest, Hello, op};
use super::wire::{Assembler, Code, Decoder, Result, WireError};

/// A sign of life is sent this often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Signs of life that may be missing in a row.
const MISSES: u32 = 3;
/// What we take at once: unanswered requests, and their bytes.
const MAX_REQUESTS: u32 = 64;
const MAX_BYTES: u32 = 16 << 20;
/// A peer that does not take our last words within this does not get them.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What reader, writer and watch of a connection share.
struct Shared {
    link: Arc<Link>,
    number: u64,
    /// Beats since something was heard. Counted, not timed: a process that was stopped was itself deaf.
    missed: AtomicU32,
    /// The other side's heartbeat in milliseconds.
    heartbeat: AtomicU32,
    /// A sign of life is due.
    beat: AtomicBool,
    /// The other side has told us why the connection ends.
    told: AtomicBool,
}

/// Serves a connection until it ends; why it did. `first` is what was read from it already.
pub async fn serve(link: &Arc<Link>, mut source: Source, sink: Sink, first: BytesMut) -> Option<WireError> {
    let (number, open) = link.begin()?;
    let shared = Arc::new(Shared {
        link: Arc::clone(link),
        number,
        missed: AtomicU32::new(0),
        heartbeat: AtomicU32::new(0),
        beat: AtomicBool::new(false),
        told: AtomicBool::new(false),
    });
    let mut writer = Writer { sink, buffer: Vec::new(), whole: true };
    let why = tokio::select! {
        why = shared.read(&mut source, first) => why,
        why = shared.write(&mut writer, open) => why,
        why = shared.watch() => why,
        () = link.replaced(number) => match link.fatal() {
            Some(error) => error,
            None => WireError::unavailable("another connection has taken its place"),
        },
    };
    let ours =
        matches!(why.code, Code::Protocol | Code::Version | Code::TooLarge | Code::Silent | Code::Refused);
    if ours && writer.whole && !shared.told.load(Ordering::Relaxed) {
        let goodbye = Frame { op: op::GOODBYE, flags: 0, id: 0, epoch: 0 };
        let goodbye = Outgoing { frame: goodbye, body: messages::encode_error(&why).into() };
        let words = writer.send(&goodbye, None);
        // Whoever does not listen need not know.
        let _ = tokio::time::timeout(LAST_WORDS, words).await;
    }
    let _ = tokio::time::timeout(LAST_WORDS, writer.sink.close()).await;
    link.lost(Some(number), &why.message);
    Some(why)
}

impl Shared {
    async fn read(&self, source: &mut Source, first: BytesMut) -> WireError {
        let mut decoder = Decoder::after(first);
        let mut assembler = Assembler::default();
        let mut greeted = false;
        loop {
            loop {
                let part = match decoder.message() {
                    Ok(None) => break,
                    Ok(Some(part)) => part,
                    Err(error) => return error,
                };
                let taken = match assembler.push(part) {
                    Ok(None) => Ok(()),
                    Ok(Some(message)) => self.take(message, &mut greeted),
                    Err(error) => Err(error),
                };
                if let Err(error) = taken {
                    return error;
                }
            }
            match source.read(&mut decoder.buffer).await {
                Ok(0) if decoder.is_idle() => return WireError::unavailable("the other side has closed it"),
                Ok(0) => return WireError::unavailable("it broke within a frame"),
                Ok(_) => self.missed.store(0, Ordering::Relaxed),
                Err(error) => return WireError::unavailable(format!("it broke: {error}")),
            }
        }
    }

    fn take(&self, message: Message, greeted: &mut bool) -> Result<()> {
        let Frame { op, flags, id, .. } = message.frame;
        if flags & ANSWER != 0 {
            return self.link.answered(self.number, message);
        }
        match op {
            op::PING => Ok(()),
            op::GOODBYE => {
                let why = messages::decode_error(&message.body)?;
                self.told.store(true, Ordering::Relaxed);
                if why.code == Code::Fenced {
                    tracing::error!(backend = self.link.shown, "no further commits: {why}");
                    self.link.end(why.clone());
                }
                Err(why)
            }
            op::HELLO if !*greeted => {
                let hello = Hello::decode(&message.body)?;
                if hello.role != 2 {
                    return Err(WireError::garbage("the greeting of something that is no Durable Object"));
                }
                *greeted = true;
                self.heartbeat.store(hello.heartbeat_ms, Ordering::Relaxed);
                self.link.limit(self.number, hello.max_requests, hello.max_bytes);
                tracing::debug!(program = hello.program, "greeted");
                Ok(())
            }
            _ if *greeted && id != 0 => self.serve_request(message),
            _ => Err(WireError::garbage("a message where it may not be")),
        }
    }

    /// Answers a request of the Worker, in a thread that may block.
    fn serve_request(&self, message: Message) -> Result<()> {
        self.link.take_on(self.number, MAX_REQUESTS as usize * 2)?;
        let Some(request) = FileRequest::decode(message.frame.op, &message.body)? else {
            let op = message.frame.op;
            let unknown = format!("the request {op} is unknown to this agent; update it");
            self.link.answer(self.number, &message.frame, Err(WireError::new(Code::Refused, unknown)));
            return Ok(());
        };
        let (link, number, frame) = (Arc::clone(&self.link), self.number, message.frame);
        self.link.handle.spawn_blocking(move || {
            let answer = link.files().and_then(|files| files.serve(request));
            link.answer(number, &frame, answer);
        });
        Ok(())
    }

    async fn write(&self, writer: &mut Writer, open: Outgoing) -> WireError {
        match self.write_on(writer, open).await {
            Ok(()) => WireError::unavailable("it was given up"),
            Err(error) => WireError::unavailable(format!("it broke: {error}")),
        }
    }

    async fn write_on(&self, writer: &mut Writer, open: Outgoing) -> std::io::Result<()> {
        let hello = Hello {
            role: 1,
            max_message: MAX_MESSAGE as u32,
            max_requests: MAX_REQUESTS,
            max_bytes: MAX_BYTES,
            heartbeat_ms: HEARTBEAT.as_millis() as u32,
            program: concat!("storeshim/", env!("CARGO_PKG_VERSION")).into(),
        };
        writer.buffer.extend_from_slice(&frame::preamble());
        let greeting = Frame { op: op::HELLO, flags: 0, id: 0, epoch: 0 };
        writer.send(&Outgoing { frame: greeting, body: hello.encode().into() }, None).await?;
        writer.send(&open, None).await?;
        let mut pack: Option<(Outgoing, usize)> = None;
        loop {
            if !self.link.is_present(self.number) {
                // What woke us was meant for the other one.
                self.link.wake.notify_one();
                return Ok(());
            }
            self.beat(writer).await?;
            let (urgent, later) = self.link.next_urgent(self.number);
            if let Some(message) = urgent {
                writer.send(&message, Some(self)).await?;
                continue;
            }
            if pack.is_none() {
                pack = self.link.next_bulk(self.number).map(|message| (message, 0));
            }
            if let Some((message, at)) = pack.take() {
                // Frame by frame, so that a commit never waits for a whole pack.
                let next = writer.send_frame(&message, at).await?;
                pack = next.map(|at| (message, at));
                continue;
            }
            let woken = self.link.wake.notified();
            match later {
                Some(until) => {
                    let wait = until.saturating_duration_since(Instant::now());
                    let _ = tokio::time::timeout(wait, woken).await;
                }
                None => woken.await,
            }
        }
    }

    /// Sends a sign of life where one is due.
    async fn beat(&self, writer: &mut Writer) -> std::io::Result<()> {
        if self.beat.swap(false, Ordering::Relaxed) {
            let ping = Frame { op: op::PING, flags: 0, id: 0, epoch: 0 };
            writer.send_frame(&Outgoing { frame: ping, body: Vec::new().into() }, 0).await?;
        }
        Ok(())
    }

    async fn watch(&self) -> WireError {
        let mut beats = tokio::time::interval(HEARTBEAT);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        beats.tick().await;
        loop {
            beats.tick().await;
            self.beat.store(true, Ordering::Relaxed);
            self.link.wake.notify_one();
            let theirs = Duration::from_millis(self.heartbeat.load(Ordering::Relaxed).into());
            let patience = MISSES * theirs.max(HEARTBEAT);
            let missed = self.missed.fetch_add(1, Ordering::Relaxed) + 1;
            if missed * HEARTBEAT > patience {
                let seconds = patience.as_secs();
                return WireError::new(
                    Code::Silent,
                    format!(
                        "nothing was heard from the Durable Object for {seconds} s, so the connection is given up"
                    ),
                );
            }
        }
    }
}

/// Puts messages on the wire.
struct Writer {
    sink: Sink,
    /// What the next write sends.
    buffer: Vec<u8>,
    /// No frame is half sent.
    whole: bool,
}

impl Writer {
    /// Sends a whole message, with signs of life between its frames.
    async fn send(&mut self, message: &Outgoing, shared: Option<&Shared>) -> std::io::Result<()> {
        let mut next = Some(0);
        while let Some(at) = next {
            next = self.send_frame(message, at).await?;
            if let Some(shared) = shared {
                shared.beat(self).await?;
            }
        }
        Ok(())
    }

    /// Sends the frame that begins at byte `at` of a message's body; where the next one begins.
    async fn send_frame(&mut self, message: &Outgoing, at: usize) -> std::io::Result<Option<usize>> {
        let body = &message.body;
        let end = body.len().min(at + MAX_BODY);
        let more = if end < body.len() { MORE } else { 0 };
        let header = Frame { flags: message.frame.flags | more, ..message.frame };
        frame::put_header(&mut self.buffer, &header, end - at);
        let border = body.0.len();
        if at < border {
            self.buffer.extend_from_slice(body.0.get(at..end.min(border)).unwrap_or_default());
        }
        if end > border {
            let part = at.saturating_sub(border)..end - border;
            self.buffer.extend_from_slice(body.1.get(part).unwrap_or_default());
        }
        self.whole = false;
        self.sink.write(&mut self.buffer).await?;
        self.whole = true;
        Ok((end < body.len()).then_some(end))
    }
}
