//! A TCP proxy on the loopback that stands for distance: every byte arrives later by a fixed time, in both directions, and
//! nothing else changes. As many bytes as anybody likes are on their way at a time, so neither throughput nor the number of
//! connections is limited by it. It must not know HTTP.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A running proxy; dropping it ends it. Connections that are open then end with their peers.
pub struct Distance {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Distance {
    /// Starts a proxy on a free port in front of `server`; `round_trip` is what it adds to a question and its answer together.
    pub fn start(server: SocketAddr, round_trip: Duration) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A client that is gone, or a server: the client sees that its connection ends.
                let _ = client.and_then(|client| connect(client, server, round_trip / 2));
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accept.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn connect(client: TcpStream, server: SocketAddr, delay: Duration) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
    carry(client, server, delay);
    carry(server_too, client_too, delay);
    Ok(())
}

/// One direction: one thread takes what comes and the other hands it on when it is due.
fn carry(from: TcpStream, to: TcpStream, delay: Duration) {
    let (send, receive) = channel();
    std::thread::spawn(move || take(from, &send, delay));
    std::thread::spawn(move || hand_on(&receive, to));
}

/// Bytes, and when they arrive; no bytes are the end.
type Piece = (Instant, Vec<u8>);

fn take(mut from: TcpStream, send: &Sender<Piece>, delay: Duration) {
    loop {
        let mut bytes = vec![0; 128 << 10];
        let length = from.read(&mut bytes).unwrap_or(0);
        bytes.truncate(length);
        if send.send((Instant::now() + delay, bytes)).is_err() || length == 0 {
            return;
        }
    }
}

fn hand_on(receive: &Receiver<Piece>, mut to: TcpStream) {
    for (due, bytes) in receive {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if bytes.is_empty() {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    // Nobody takes them any more: the other side is to know.
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        let _ = stream.write_all(&buffer[..length]);
                    }
                });
            }
        });
        address
    }

    #[test]
    fn an_answer_is_late_by_a_round_trip() {
        let proxy = Distance::start(echo(), Duration::from_millis(60)).unwrap();
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        for _ in 0..2 {
            let began = Instant::now();
            stream.write_all(b"hello").unwrap();
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"hello");
            assert!(began.elapsed() >= Duration::from_millis(60), "{:?}", began.elapsed());
        }
    }

    /// 16 MiB in pieces of at most 128 KiB: at one piece per delay it would take 12 s.
    #[test]
    fn much_is_on_its_way_at_the_same_time() {
        let proxy = Distance::start(echo(), Duration::from_millis(200)).unwrap();
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let began = Instant::now();
        let sent = std::thread::spawn(move || {
            writer.write_all(&vec![7; 16 << 20]).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        sent.join().unwrap();
        assert!(back.len() == 16 << 20 && back.iter().all(|byte| *byte == 7));
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    }
}
