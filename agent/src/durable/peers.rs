//! How connections come about: a Durable Object dials us again and again, or we dial its Worker again and again. It must
//! not know what is said over them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::address::Remote;
use super::link::Link;
use super::transport::{self, Kind};
use super::wire::Code;
use super::{connection, json};

/// Pauses between attempts: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A connection that held for this long begins the pauses anew.
const STABLE: Duration = Duration::from_secs(5);
/// Whoever connects and says nothing is let go after this: a Durable Object that found JSON listens for 30 s.
const FIRST_WORDS: Duration = Duration::from_secs(45);
/// Connections at once, whatever they speak.
const MOST: usize = 32;
/// A port that a former link has just left is waited for this long.
const PORT_PATIENCE: Duration = Duration::from_secs(2);

/// Takes the port that a Durable Object dials.
///
/// # Errors
/// Where it cannot be had.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let deadline = Instant::now() + PORT_PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(PAUSE.0).await;
            }
            other => return other,
        }
    }
}

/// Lets Durable Objects in until the link ends.
pub async fn accept(link: Arc<Link>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(MOST));
    loop {
        let accepted = tokio::select! {
            () = link.ended() => return,
            accepted = listener.accept() => accepted,
        };
        match (accepted, Arc::clone(&room).try_acquire_owned()) {
            (Ok((stream, from)), Ok(permit)) => {
                let link = Arc::clone(&link);
                tokio::spawn(async move {
                    tokio::select! {
                        () = welcome(&link, stream, from) => {}
                        () = link.ended() => {}
                    }
                    drop(permit);
                });
            }
            (Ok((_, from)), Err(_)) => {
                tracing::warn!(%from, "a connection was closed: there are {MOST} already");
            }
            (Err(error), _) => {
                // No descriptors, or a connection that was gone at once.
                link.lost(None, &format!("no connection can be accepted: {error}"));
                tokio::time::sleep(PAUSE.1).await;
            }
        }
    }
}

async fn welcome(link: &Arc<Link>, stream: TcpStream, from: SocketAddr) {
    let Ok((mut source, sink)) = transport::tcp(stream) else { return };
    let mut first = BytesMut::new();
    let words = async {
        loop {
            if let Some(kind) = transport::detect(&first) {
                return Some(kind);
            }
            if !matches!(source.read(&mut first).await, Ok(length) if length > 0) {
                return None;
            }
        }
    };
    match tokio::time::timeout(FIRST_WORDS, words).await {
        Ok(Some(Kind::Binary)) => {
            tracing::debug!(%from, "a Durable Object has connected");
            if let Some(why) = connection::serve(link, source, sink, first).await {
                tracing::info!(%from, "the connection with the Durable Object ended: {why}");
            }
        }
        Ok(Some(Kind::Json)) => {
            tracing::info!(%from, "somebody who speaks JSON has connected");
            json::serve(link, source, sink, first).await;
        }
        Ok(Some(Kind::Garbage)) => {
            let begin = first.iter().take(16).flat_map(|byte| std::ascii::escape_default(*byte));
            let begin: String = begin.map(char::from).collect();
            tracing::warn!(%from, "a connection was closed: it began with '{begin}', which is no protocol of ours");
        }
        // The port is looked at by whoever waits for it; the next dial is not far.
        Ok(None) | Err(_) => {}
    }
}

/// Keeps a connection with a Worker until the link ends.
pub async fn dial(link: Arc<Link>, remote: Remote) {
    let mut pause = PAUSE.0;
    while link.fatal().is_none() {
        let began = Instant::now();
        let connected = tokio::select! {
            connected = transport::connect(&remote) => connected,
            () = link.ended() => return,
        };
        match connected {
            Ok((source, sink)) => {
                if let Some(why) = connection::serve(&link, source, sink, BytesMut::new()).await {
                    tracing::info!(
                        backend = link.shown,
                        "the connection with the Durable Object ended: {why}"
                    );
                }
            }
            Err(error) if error.code == Code::Refused && link.epoch() == 0 => return link.end(error),
            Err(error) => link.lost(None, &error.message),
        }
        if began.elapsed() > STABLE {
            pause = PAUSE.0;
        }
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => {}
            () = link.ended() => return,
        }
        pause = (2 * pause).min(PAUSE.1);
    }
}
