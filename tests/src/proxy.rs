//! A TCP proxy on the loopback that breaks connections in the ways networks do, as told while it runs. It must
//! not know HTTP: what it breaks, it breaks at any byte.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What goes wrong; percentages are of connections' turns (a request sent, an answer begun). All off at first.
#[derive(Debug, Default)]
pub struct Faults {
    /// Each piece of data waits this long, in milliseconds, in both directions.
    pub delay_ms: AtomicU64,
    /// Connections are taken and then nothing moves on any of them: a network that has gone.
    pub black_hole: AtomicBool,
    /// Connections are reset as soon as they are made: a server that has gone.
    pub refuse: AtomicBool,
    /// Percentage of pieces of a request at which the connection is reset: the server saw half a request.
    pub reset_request_pct: AtomicU64,
    /// Percentage of answers that end in the middle of their first piece.
    pub half_answer_pct: AtomicU64,
    /// Percentage of answers that are thrown away with the connection: the request *was performed*, and the client
    /// cannot know.
    pub cut_answer_pct: AtomicU64,
    /// How often any of these happened.
    pub done: AtomicU64,
}

impl Faults {
    /// Turns everything off. Connections that stood still go on.
    pub fn heal(&self) {
        for rate in [&self.delay_ms, &self.reset_request_pct, &self.half_answer_pct, &self.cut_answer_pct] {
            rate.store(0, Ordering::Relaxed);
        }
        self.black_hole.store(false, Ordering::Relaxed);
        self.refuse.store(false, Ordering::Relaxed);
    }

    fn happens(&self, pct: &AtomicU64) -> bool {
        let happens = rand::random_range(0..100) < pct.load(Ordering::Relaxed);
        if happens {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        happens
    }
}

/// A running proxy; dropping it ends it with its connections.
pub struct Proxy {
    address: SocketAddr,
    faults: Arc<Faults>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy on a free port in front of `server`.
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let faults = Arc::new(Faults::default());
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (faults, stop) = (Arc::clone(&faults), Arc::clone(&stop));
            std::thread::spawn(move || accept(&listener, server, &faults, &stop))
        };
        Self { address, faults, stop, thread: Some(thread) }
    }

    /// Its endpoint, `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accept.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, server: SocketAddr, faults: &Arc<Faults>, stop: &Arc<AtomicBool>) {
    for client in listener.incoming() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(client) = client else { continue };
        if faults.refuse.load(Ordering::Relaxed) {
            faults.done.fetch_add(1, Ordering::Relaxed);
            reset(&client);
            continue;
        }
        let Ok(upstream) = TcpStream::connect(server) else { continue };
        let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
        let (Ok(client_too), Ok(upstream_too)) = (client.try_clone(), upstream.try_clone()) else { continue };
        let line = |from, to, answers| Line {
            from,
            to,
            answers,
            faults: Arc::clone(faults),
            stop: Arc::clone(stop),
        };
        let (requests, answers) = (line(client, upstream, false), line(upstream_too, client_too, true));
        std::thread::spawn(move || requests.carry());
        std::thread::spawn(move || answers.carry());
    }
}

/// Ends a connection by RST, as a crash or a firewall does, instead of FIN.
fn reset(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is a `linger` of the size given; the descriptor is open for as long as `stream`.
    unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        );
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// One direction of one connection.
struct Line {
    from: TcpStream,
    to: TcpStream,
    answers: bool,
    faults: Arc<Faults>,
    stop: Arc<AtomicBool>,
}

impl Line {
    fn carry(mut self) {
        let _ = self.from.set_read_timeout(Some(Duration::from_millis(100)));
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = match self.from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    if self.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    continue;
                }
                Err(_) => break,
            };
            std::thread::sleep(Duration::from_millis(self.faults.delay_ms.load(Ordering::Relaxed)));
            while self.faults.black_hole.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
            if !self.pass(&buffer[..length]) {
                reset(&self.from);
                reset(&self.to);
                return;
            }
        }
        let _ = self.to.shutdown(Shutdown::Write);
    }

    /// False where the connection is to be reset.
    fn pass(&mut self, piece: &[u8]) -> bool {
        if self.answers {
            if self.faults.happens(&self.faults.cut_answer_pct) {
                return false;
            }
            if self.faults.happens(&self.faults.half_answer_pct) {
                let _ = self.to.write_all(&piece[..piece.len() / 2]);
                return false;
            }
        } else if self.faults.happens(&self.faults.reset_request_pct) {
            let _ = self.to.write_all(&piece[..piece.len() / 2]);
            return false;
        }
        self.to.write_all(piece).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each line by `ok LINE` and counts them.
    fn echo() -> (SocketAddr, Arc<AtomicU64>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    count.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.write_all(&[b"ok ", &buffer[..length]].concat());
                }
            }
        });
        (address, seen)
    }

    fn ask(proxy: &Proxy) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(proxy.address())?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        stream.write_all(b"hello\n")?;
        let mut buffer = [0; 64];
        match stream.read(&mut buffer)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            length => Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
        }
    }

    #[test]
    fn passes_when_healthy_and_again_when_healed() {
        let proxy = Proxy::start(echo().0);
        assert_eq!(ask(&proxy).unwrap(), "ok hello\n");
        proxy.faults().refuse.store(true, Ordering::Relaxed);
        assert!(ask(&proxy).is_err());
        proxy.faults().heal();
        assert_eq!(ask(&proxy).unwrap(), "ok hello\n");
    }

    #[test]
    fn cut_answer_means_performed() {
        let (address, seen) = echo();
        let proxy = Proxy::start(address);
        proxy.faults().cut_answer_pct.store(100, Ordering::Relaxed);
        assert!(ask(&proxy).is_err());
        assert_eq!(seen.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn half_answer_and_half_request() {
        let proxy = Proxy::start(echo().0);
        proxy.faults().half_answer_pct.store(100, Ordering::Relaxed);
        assert!(ask(&proxy).map_or(true, |answer| answer == "ok h"));
        proxy.faults().heal();
        proxy.faults().reset_request_pct.store(100, Ordering::Relaxed);
        // What is behind may have answered the half before the connection was reset.
        assert!(ask(&proxy).map_or(true, |answer| answer != "ok hello\n"));
    }

    #[test]
    fn black_hole_holds_and_lets_go() {
        let proxy = Proxy::start(echo().0);
        proxy.faults().black_hole.store(true, Ordering::Relaxed);
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        stream.write_all(b"x").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut byte = [0];
        assert!(stream.read(&mut byte).is_err());
        proxy.faults().heal();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(stream.read(&mut byte).unwrap(), 1);
    }
}
