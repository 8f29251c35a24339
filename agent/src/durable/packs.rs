//! Packs over HTTP, for agents that reach their Worker over the network: a large pack has a connection of its own there and
//! holds up no commit. It must not know what a pack holds.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ureq::http::{Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::address::Remote;
use super::transport::said;
use super::wire::{Code, Result, WireError};
use crate::meta::records::PackId;

/// A connection must stand within this.
const CONNECT: Duration = Duration::from_secs(10);
/// A Worker that is silent for this long does not answer any more.
const SILENCE: Duration = Duration::from_secs(60);
/// A pack must be sent within this: 16 MiB at 0.5 Mbit/s.
const SEND: Duration = Duration::from_secs(300);

/// The packs of one volume behind a Worker.
pub struct HttpPacks {
    remote: Remote,
    agent: Agent,
}

impl HttpPacks {
    /// Connects at the first request.
    #[must_use]
    pub fn new(remote: Remote) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .timeout_send_body(Some(SEND))
            .timeout_recv_response(Some(SILENCE))
            .timeout_recv_body(Some(SEND))
            .user_agent(concat!("storeshim/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { remote, agent: Agent::new_with_config(config) }
    }

    fn url(&self, pack: &PackId) -> String {
        let name: String = pack.iter().map(|byte| format!("{byte:02x}")).collect();
        self.remote.url("http", &format!("packs/{name}"))
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.remote.token.0)
    }

    /// Stores a pack durably.
    ///
    /// # Errors
    /// As the Worker says, or `Unavailable` where it is not reached.
    pub fn put(&self, epoch: u64, pack: &PackId, bytes: &Bytes) -> Result<()> {
        let request = self.agent.put(self.url(pack)).header("authorization", self.bearer());
        let answer = request.header("storeshim-epoch", epoch.to_string()).send(&bytes[..]);
        self.judge("write", answer).map(drop)
    }

    /// Reads a part of a pack.
    ///
    /// # Errors
    /// As the Worker says, or `Unavailable` where it is not reached.
    pub fn get(&self, pack: &PackId, range: &Range<u64>) -> Result<Bytes> {
        let last = range.end.saturating_sub(1);
        let request = self.agent.get(self.url(pack)).header("authorization", self.bearer());
        let answer = request.header("range", format!("bytes={}-{last}", range.start)).call();
        let mut body = self.judge("read", answer)?;
        let wanted = range.end - range.start;
        let bytes = body
            .with_config()
            .limit(wanted + 1)
            .read_to_vec()
            .map_err(|error| self.unreached("read", &error))?;
        if bytes.len() as u64 != wanted {
            return Err(WireError::unavailable(format!(
                "{} bytes of a pack came from the Worker at {} instead of {wanted}",
                bytes.len(),
                self.remote.authority()
            )));
        }
        Ok(Bytes::from(bytes))
    }

    fn unreached(&self, what: &str, error: &ureq::Error) -> WireError {
        WireError::unavailable(format!(
            "cannot {what} a pack at the Worker at {}: {error}",
            self.remote.authority()
        ))
    }

    fn judge(&self, what: &str, answer: std::result::Result<Response<Body>, ureq::Error>) -> Result<Body> {
        let answer = answer.map_err(|error| self.unreached(what, &error))?;
        let status = answer.status();
        let mut body = answer.into_body();
        if status.is_success() {
            return Ok(body);
        }
        let text = body.with_config().limit(64 << 10).read_to_vec().unwrap_or_default();
        let code = match status {
            StatusCode::CONFLICT => Code::Fenced,
            StatusCode::INTERNAL_SERVER_ERROR if is_missing(&text) => Code::Missing,
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => Code::Refused,
            // Also a token that was changed: the Worker may get the old one back.
            _ => Code::Unavailable,
        };
        let authority = self.remote.authority();
        Err(WireError::new(
            code,
            format!("the Worker at {authority} does not {what} a pack ({status}): {}", said(&text)),
        ))
    }
}

fn is_missing(body: &[u8]) -> bool {
    let json = serde_json::from_slice::<serde_json::Value>(body).ok();
    json.as_ref()
        .and_then(|json| json.get("code")?.as_str())
        .is_some_and(|code| matches!(code, "Missing" | "Damaged"))
}
