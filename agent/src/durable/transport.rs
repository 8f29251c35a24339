//! What carries the bytes: a TCP connection that was accepted, or a WebSocket that we opened. It must not know what they
//! say, but for their first ones, by which a listener tells the protocols apart.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::{self, Message};

use super::address::Remote;
use super::wire::{Code, WireError, frame};

/// A connection must stand within this.
const CONNECT: Duration = Duration::from_secs(10);
/// Bytes that are read at once at least.
const READ: usize = 64 << 10;
/// Largest frame of the JSON protocol, in bytes.
pub const MAX_JSON: usize = 16 << 20;

/// A stream of bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}
/// An open WebSocket.
pub type Socket = WebSocketStream<Box<dyn Io>>;

/// Where bytes come from.
pub enum Source {
    /// A TCP connection.
    Tcp(OwnedReadHalf),
    /// A WebSocket.
    Web(SplitStream<Socket>),
}

/// Where bytes go.
pub enum Sink {
    /// A TCP connection.
    Tcp(OwnedWriteHalf),
    /// A WebSocket.
    Web(SplitSink<Socket, Message>),
}

/// Both halves of a TCP connection.
///
/// # Errors
/// Where the connection is over already.
pub fn tcp(stream: TcpStream) -> io::Result<(Source, Sink)> {
    stream.set_nodelay(true)?;
    let (source, sink) = stream.into_split();
    Ok((Source::Tcp(source), Sink::Tcp(sink)))
}

impl Source {
    /// Appends what has come; 0 at the end.
    ///
    /// # Errors
    /// Where the connection broke.
    pub async fn read(&mut self, to: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => {
                to.reserve(READ);
                half.read_buf(to).await
            }
            Self::Web(half) => loop {
                match half.next().await {
                    None | Some(Ok(Message::Close(_))) => return Ok(0),
                    Some(Ok(Message::Binary(bytes))) if !bytes.is_empty() => {
                        to.extend_from_slice(&bytes);
                        return Ok(bytes.len());
                    }
                    // Pings are answered by the library.
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(io::Error::other(error)),
                }
            },
        }
    }
}

impl Sink {
    /// Sends bytes; ends when more may be sent.
    ///
    /// # Errors
    /// Where the connection broke.
    pub async fn write(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Tcp(half) => {
                half.write_all(bytes).await?;
                bytes.clear();
                Ok(())
            }
            Self::Web(half) => {
                let message = Message::Binary(Bytes::from(std::mem::take(bytes)));
                half.send(message).await.map_err(io::Error::other)
            }
        }
    }

    /// Ends the connection after what was sent.
    pub async fn close(&mut self) {
        // Whoever has gone need not be told.
        match self {
            Self::Tcp(half) => drop(half.shutdown().await),
            Self::Web(half) => drop(half.close().await),
        }
    }
}

/// Which protocol a connection's first bytes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// docs/wire.md's frames.
    Binary,
    /// JSON objects led by their length.
    Json,
    /// Neither.
    Garbage,
}

/// What the first bytes tell; `None` while there are too few.
#[must_use]
pub fn detect(first: &[u8]) -> Option<Kind> {
    let [byte, ..] = first else { return None };
    if *byte == frame::MAGIC[0] {
        return Some(Kind::Binary);
    }
    let [a, b, c, d, begin, ..] = first else { return None };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    Some(if (2..=MAX_JSON).contains(&length) && *begin == b'{' { Kind::Json } else { Kind::Garbage })
}

/// Certificates as this machine trusts them.
///
/// # Errors
/// A sentence where they cannot be loaded.
pub fn tls() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(BuilderVerifierExt::with_platform_verifier)
        .map_err(|error| {
            format!("the certificates of this machine cannot be used: {error}; install ca-certificates")
        })?;
    Ok(Arc::new(config.with_no_client_auth()))
}

/// Connects to a Worker. `Refused` is final: the token is wrong, or there is no such Worker.
///
/// # Errors
/// Where there is no connection.
pub async fn connect(remote: &Remote) -> Result<(Source, Sink), WireError> {
    match tokio::time::timeout(CONNECT, handshake(remote)).await {
        Ok(done) => done,
        Err(_) => Err(WireError::unavailable(format!(
            "the Worker at {} did not answer for {} s",
            remote.authority(),
            CONNECT.as_secs()
        ))),
    }
}

async fn handshake(remote: &Remote) -> Result<(Source, Sink), WireError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        WireError::unavailable(format!("cannot {what} {}: {error}", remote.authority()))
    };
    let stream = TcpStream::connect((remote.host.as_str(), remote.port)).await;
    let stream = stream.map_err(|error| failed("connect to the Worker at", &error))?;
    stream.set_nodelay(true).map_err(|error| failed("connect to the Worker at", &error))?;
    let io: Box<dyn Io> = if remote.tls {
        let config = tls().map_err(|error| WireError::new(Code::Refused, error))?;
        let name = rustls::pki_types::ServerName::try_from(remote.host.clone()).map_err(|error| {
            WireError::new(Code::Refused, format!("'{}' is no host name: {error}", remote.host))
        })?;
        let connector = tokio_rustls::TlsConnector::from(config);
        let tls = connector.connect(name, stream).await;
        Box::new(tls.map_err(|error| match untrusted(remote, &error) {
            Some(refusal) => refusal,
            None => failed("agree on encryption with the Worker at", &error),
        })?)
    } else {
        Box::new(stream)
    };
    let mut request = remote
        .url("ws", "agent")
        .into_client_request()
        .map_err(|error| WireError::new(Code::Refused, format!("the volume's URL is malformed: {error}")))?;
    let bearer = HeaderValue::from_str(&format!("Bearer {}", remote.token.0))
        .map_err(|_| WireError::new(Code::Refused, "the token cannot be sent in a header; choose another"))?;
    request.headers_mut().insert("authorization", bearer);
    match tokio_tungstenite::client_async(request, io).await {
        Ok((socket, _)) => {
            let (sink, source) = socket.split();
            Ok((Source::Web(source), Sink::Web(sink)))
        }
        Err(tungstenite::Error::Http(answer)) => {
            Err(refusal(remote, answer.status(), answer.body().as_deref()))
        }
        Err(error) => Err(failed("open a WebSocket to the Worker at", &error)),
    }
}

/// The refusal of a certificate that nobody vouches for, if that is what is wrong.
fn untrusted(remote: &Remote, error: &io::Error) -> Option<WireError> {
    let why = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    matches!(why, rustls::Error::InvalidCertificate(_)).then(|| {
        let sentence = format!(
            "the Worker at {} shows a certificate that this machine does not trust ({why}); if an authority of your own has \
             signed it, name a file with that authority's certificate in SSL_CERT_FILE",
            remote.authority()
        );
        WireError::new(Code::Refused, sentence)
    })
}

/// What an HTTP answer in the place of a WebSocket means.
fn refusal(remote: &Remote, status: StatusCode, body: Option<&[u8]>) -> WireError {
    let said = said(body.unwrap_or_default());
    let sentence = format!("the Worker at {} answers {status}: {said}", remote.authority());
    match status {
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::NOT_FOUND
        | StatusCode::UPGRADE_REQUIRED => WireError::new(Code::Refused, sentence),
        _ => WireError::unavailable(sentence),
    }
}

/// The sentence in a Worker's answer.
#[must_use]
pub fn said(body: &[u8]) -> String {
    let json = serde_json::from_slice::<serde_json::Value>(body).ok();
    let told = json.as_ref().and_then(|json| json.get("error")?.as_str());
    crate::blob::condense(told.unwrap_or(&String::from_utf8_lossy(body.get(..1000).unwrap_or(body))))
}
