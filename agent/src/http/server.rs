//! The serving side.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

use super::work::{self, EvictBody, WarmupBody};
use super::{Agent, metrics, socket_path};

/// How often a hold's connection is written to, which is how the death of its holder is noticed.
const HOLD_BEAT: Duration = Duration::from_millis(500);
/// Longest body of a request, in bytes.
const BODY_MAX: usize = 16 << 20;
/// Longest path of a unix socket on Linux, in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// Why the interface cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(String);

/// An error as clients get it.
#[derive(Serialize, Deserialize)]
pub(super) struct ErrorBody {
    /// A sentence.
    pub(super) error: String,
}

pub(super) fn refuse(status: StatusCode, error: impl ToString) -> Response {
    (status, Json(ErrorBody { error: error.to_string() })).into_response()
}

/// Serves `agent` on the socket of `run_dir` until the process ends. The caller holds the run directory's lock,
/// so a socket that is there is a dead agent's. Ready to answer when this returns; must be called in a runtime.
pub fn serve<A: Agent>(run_dir: &Path, agent: Arc<A>) -> Result<(), ServeError> {
    let listener = bind(run_dir)?;
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/flush", post(flush))
        .route("/v1/warmup", post(warmup))
        .route("/v1/evict", post(evict))
        .route("/v1/hold", get(hold))
        .route("/v1/shutdown", post(shutdown))
        .route("/metrics", get(metrics))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such thing here") })
        .with_state(agent);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the status interface has ended; mounts are served on");
        }
    });
    Ok(())
}

/// Binds under another name first: nobody may connect before the permissions are set.
fn bind(run_dir: &Path) -> Result<UnixListener, ServeError> {
    let path = socket_path(run_dir);
    let next = path.with_extension("next");
    if next.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(ServeError(format!(
            "the path {} is too long for a unix socket ({SOCKET_PATH_MAX} bytes); choose a shorter run_dir",
            next.display()
        )));
    }
    // Root's socket is also for root's group; a user's is the user's.
    let mode = if nix::unistd::geteuid().is_root() { 0o660 } else { 0o600 };
    let bound = || {
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&next)?;
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&next, &path)?;
        Ok(listener)
    };
    bound().map_err(|error| ServeError(format!("cannot make the socket {}: {error}", path.display())))
}

async fn status<A: Agent>(State(agent): State<Arc<A>>) -> Response {
    Json(agent.status()).into_response()
}

async fn metrics<A: Agent>(State(agent): State<Arc<A>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, metrics::render(&agent.status())).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlushQuery {
    mount: Option<String>,
}

async fn flush<A: Agent>(State(agent): State<Arc<A>>, Query(query): Query<FlushQuery>) -> Response {
    let flushed = tokio::task::spawn_blocking(move || agent.flush(query.mount.as_deref())).await;
    match flushed {
        Ok(Ok(mounts)) => Json(mounts).into_response(),
        Ok(Err(error)) => refuse(StatusCode::CONFLICT, error),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the flush ended abruptly; see the agent's log"),
    }
}

async fn warmup<A: Agent>(State(agent): State<Arc<A>>, body: Body) -> Response {
    let body: WarmupBody = match parsed(body).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    match body.how() {
        Ok(how) => work::answer(move |watch| agent.warm(&body.paths, how, watch)).await,
        Err(error) => refuse(StatusCode::BAD_REQUEST, error),
    }
}

async fn evict<A: Agent>(State(agent): State<Arc<A>>, body: Body) -> Response {
    match parsed::<EvictBody>(body).await {
        Ok(body) => work::answer(move |watch| agent.evict(&body.paths, watch)).await,
        Err(refused) => refused,
    }
}

/// A body in JSON, whatever it says that it is.
async fn parsed<T: DeserializeOwned>(body: Body) -> Result<T, Response> {
    let bytes = axum::body::to_bytes(body, BODY_MAX).await;
    let bytes = bytes.map_err(|error| refuse(StatusCode::BAD_REQUEST, error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}

/// An answer without an end: what it holds is let go when the connection is closed.
async fn hold<A: Agent>(State(agent): State<Arc<A>>) -> Response {
    let Some(hold) = agent.hold() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent is about to end");
    };
    let beats = futures::stream::unfold(hold, |hold| async {
        tokio::time::sleep(HOLD_BEAT).await;
        Some((Ok::<_, std::convert::Infallible>("\n"), hold))
    });
    Body::from_stream(beats).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShutdownQuery {
    #[serde(default)]
    when: When,
}

/// When the agent ends.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum When {
    #[default]
    Now,
    Idle,
}

async fn shutdown<A: Agent>(State(agent): State<Arc<A>>, Query(query): Query<ShutdownQuery>) -> Response {
    match query.when {
        When::Now => agent.stop_now(),
        When::Idle => agent.stop_when_idle(),
    }
    Json(agent.status()).into_response()
}
