//! The asking side, for the command line: blocking, one connection per question.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::server::ErrorBody;
use super::socket_path;
use super::work::{EvictBody, Line, WarmupBody};
use crate::mounts::{AgentStatus, FlushStatus, Worked};
use crate::volume::{Evicted, Progress, Warmed};

/// How long an answer that needs no work may take.
const QUICK: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no agent is running on {}; start one with `storeshim agent --mount /storage=URL`", .0.display())]
    NoAgent(PathBuf),
    /// The agent ends and takes nobody in.
    #[error("the agent is about to end; try again in a moment")]
    Ending,
    /// It is there and says no, or broke off: a sentence.
    #[error("{0}")]
    Failed(String),
}

/// Talks to the agent of a run directory.
#[derive(Clone, Debug)]
pub struct Client {
    run_dir: PathBuf,
}

/// A hold at the agent: it is let go when this is dropped or the process dies.
#[derive(Debug)]
pub struct HoldConnection {
    _stream: UnixStream,
}

impl Client {
    /// A client of the agent on `run_dir`; does not look whether there is one.
    pub fn new(run_dir: &Path) -> Self {
        Self { run_dir: run_dir.to_owned() }
    }

    /// The agent's status.
    pub fn status(&self) -> Result<AgentStatus, ClientError> {
        self.ask(Method::GET, "/v1/status", Some(QUICK))
    }

    /// Brings the mount at `prefix`, or all, into the backend. Returns when that is done, however long it takes.
    pub fn flush(&self, prefix: Option<&str>) -> Result<Vec<FlushStatus>, ClientError> {
        let target = match prefix {
            None => "/v1/flush".to_owned(),
            Some(prefix) => format!("/v1/flush?mount={}", percent_encode(prefix)),
        };
        self.ask(Method::POST, &target, None)
    }

    /// Has the agent bring what is at paths to its disk; `each` sees how far it is, a few times a second. To end the work
    /// early, end the process.
    pub fn warmup(
        &self,
        body: &WarmupBody,
        each: impl FnMut(&Progress),
    ) -> Result<Vec<Worked<Warmed>>, ClientError> {
        self.work("/v1/warmup", body, each)
    }

    /// Has the agent drop from its disk what is at paths and need not be there. As [`Client::warmup`].
    pub fn evict(
        &self,
        body: &EvictBody,
        each: impl FnMut(&Progress),
    ) -> Result<Vec<Worked<Evicted>>, ClientError> {
        self.work("/v1/evict", body, each)
    }

    /// Asks the agent to end, at once or when nobody uses it any more.
    pub fn shutdown(&self, when_idle: bool) -> Result<AgentStatus, ClientError> {
        let when = if when_idle { "idle" } else { "now" };
        self.ask(Method::POST, &format!("/v1/shutdown?when={when}"), Some(QUICK))
    }

    /// Takes a hold.
    pub fn hold(&self) -> Result<HoldConnection, ClientError> {
        let broken = |error: std::io::Error| ClientError::Failed(format!("the agent broke off: {error}"));
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(QUICK)).map_err(broken)?;
        stream.write_all(b"GET /v1/hold HTTP/1.1\r\nhost: agent\r\n\r\n").map_err(broken)?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).map_err(broken)?;
        match line.split(' ').nth(1) {
            Some("200") => Ok(HoldConnection { _stream: stream }),
            Some("503") | None => Err(ClientError::Ending),
            Some(_) => Err(ClientError::Failed(format!("the agent does not understand: {}", line.trim()))),
        }
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        let path = socket_path(&self.run_dir);
        UnixStream::connect(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
                ClientError::NoAgent(self.run_dir.clone())
            }
            ErrorKind::PermissionDenied => ClientError::Failed(format!(
                "the agent on {} belongs to another user; use that user's account or another run_dir",
                self.run_dir.display()
            )),
            _ => ClientError::Failed(format!("cannot connect to {}: {error}", path.display())),
        })
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        limit: Option<Duration>,
    ) -> Result<T, ClientError> {
        let stream = self.connect()?;
        let (status, body) = runtime()?.block_on(async {
            let answer = async { rest_of(exchange(stream, method, target, Bytes::new()).await?).await };
            match limit {
                None => answer.await,
                Some(limit) => tokio::time::timeout(limit, answer)
                    .await
                    .unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs()))),
            }
            .map_err(|error| self.broke_off(&error))
        })?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| self.broke_off(&error));
        }
        Err(self.refusal(status, &body))
    }

    /// A question whose answer is lines; see [`Line`].
    fn work<T: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
        mut each: impl FnMut(&Progress),
    ) -> Result<Vec<Worked<T>>, ClientError> {
        let stream = self.connect()?;
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Failed(error.to_string()))?;
        runtime()?.block_on(async {
            let exchanged = exchange(stream, Method::POST, target, body.into()).await;
            let mut response = exchanged.map_err(|error| self.broke_off(&error))?;
            if !response.status().is_success() {
                let (status, body) = rest_of(response).await.map_err(|error| self.broke_off(&error))?;
                return Err(self.refusal(status, &body));
            }
            let mut text = Vec::new();
            while let Some(frame) = response.frame().await {
                let frame = frame.map_err(|error| self.broke_off(&error))?;
                text.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    match serde_json::from_slice(&line).map_err(|error| self.broke_off(&error))? {
                        Line::Progress(progress) => each(&progress),
                        Line::Done(done) => return Ok(done),
                        Line::Error(error) => return Err(ClientError::Failed(error)),
                    }
                }
            }
            Err(self.broke_off(&"in the middle of the work"))
        })
    }

    fn broke_off(&self, error: &dyn std::fmt::Display) -> ClientError {
        ClientError::Failed(format!("the agent on {} broke off: {error}", self.run_dir.display()))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) => ClientError::Failed(body.error),
            Err(_) => self.broke_off(&status),
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| ClientError::Failed(format!("cannot start a runtime: {error}")))
}

async fn rest_of(response: Response<Incoming>) -> Result<(StatusCode, Bytes), String> {
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    target: &str,
    body: Bytes,
) -> Result<Response<Incoming>, String> {
    stream.set_nonblocking(true).map_err(|error| error.to_string())?;
    let stream = tokio::net::UnixStream::from_std(stream).map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "agent")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// A query value with everything but the plainest characters escaped.
fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
