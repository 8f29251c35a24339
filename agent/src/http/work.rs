//! Long work over the interface: its progress as lines of JSON, its result as the last of them, and an end to it when
//! whoever asked hangs up. It must not know what the work is.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinError, JoinHandle};

use super::server::refuse;
use crate::mounts::{MountsError, Worked};
use crate::volume::{Progress, Warmup, Watch};

/// Between two lines. It is by writing them that a connection is found closed.
const BEAT: Duration = Duration::from_millis(200);
/// Files that a warmup brings at the same time, where nobody says.
const PARALLEL: usize = 8;
/// Most files at the same time.
const PARALLEL_MAX: usize = 256;

/// What to bring to this disk: the body of `POST /v1/warmup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmupBody {
    /// Absolute paths below mounts.
    pub paths: Vec<PathBuf>,
    /// See [`Warmup::depth`].
    #[serde(default)]
    pub depth: Option<u32>,
    /// See [`Warmup::parallel`].
    #[serde(default)]
    pub parallel: Option<usize>,
}

impl WarmupBody {
    /// How it is to be done; the error is a sentence.
    pub(super) fn how(&self) -> Result<Warmup, String> {
        match self.parallel.unwrap_or(PARALLEL) {
            parallel @ 1..=PARALLEL_MAX => Ok(Warmup { depth: self.depth, parallel }),
            other => {
                Err(format!("{other} files at the same time cannot be brought; write 1 to {PARALLEL_MAX}"))
            }
        }
    }
}

/// What to drop from this disk: the body of `POST /v1/evict`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvictBody {
    /// Absolute paths below mounts.
    pub paths: Vec<PathBuf>,
}

/// A line of the answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line<T> {
    /// How far it is.
    Progress(Progress),
    /// The last line: what was done, path by path.
    Done(Vec<Worked<T>>),
    /// The last line: why it could not be done.
    Error(String),
}

/// What the work tells and is told.
#[derive(Default)]
struct Desk {
    progress: Mutex<Progress>,
    called_off: AtomicBool,
}

impl Watch for Desk {
    fn advanced(&self, progress: &Progress) {
        progress.clone_into(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn called_off(&self) -> bool {
        self.called_off.load(Ordering::Relaxed)
    }
}

/// Work under way. Dropping it calls the work off: that is what hanging up comes to.
struct UnderWay<T> {
    desk: Arc<Desk>,
    /// `None` once the last line is out.
    work: Option<JoinHandle<Result<Vec<Worked<T>>, MountsError>>>,
}

impl<T> Drop for UnderWay<T> {
    fn drop(&mut self) {
        self.desk.called_off.store(true, Ordering::Relaxed);
    }
}

impl<T: Serialize> UnderWay<T> {
    /// The next line; `None` after the last.
    async fn line(&mut self) -> Option<Line<T>> {
        let work = self.work.as_mut()?;
        let ended = tokio::select! {
            ended = work => ended,
            () = tokio::time::sleep(BEAT) => {
                let progress = self.desk.progress.lock().unwrap_or_else(PoisonError::into_inner);
                return Some(Line::Progress(progress.clone()));
            }
        };
        self.work = None;
        Some(match ended {
            Ok(Ok(done)) => Line::Done(done),
            Ok(Err(error)) => Line::Error(error.to_string()),
            Err(error) => Line::Error(abrupt(&error)),
        })
    }
}

fn abrupt(_: &JoinError) -> String {
    "the work ended abruptly; see the agent's log".to_owned()
}

/// Has `work` done in a thread of its own and answers with its lines. An error that comes at once is the answer's status.
pub(super) async fn answer<T: Serialize + Send + 'static>(
    work: impl FnOnce(&dyn Watch) -> Result<Vec<Worked<T>>, MountsError> + Send + 'static,
) -> Response {
    let desk = Arc::new(Desk::default());
    let at_work = Arc::clone(&desk);
    let work = tokio::task::spawn_blocking(move || work(&*at_work));
    let mut under_way = UnderWay { desk, work: Some(work) };
    let first = match under_way.line().await {
        Some(Line::Error(error)) => return refuse(StatusCode::CONFLICT, error),
        first => first,
    };
    let lines = futures::stream::unfold((first, under_way), |(line, mut under_way)| async {
        let mut text = match serde_json::to_string(&line?) {
            Ok(text) => text,
            // Paths that are no UTF-8 cannot be asked for, so none can stand in an answer.
            Err(error) => format!("{{\"error\":\"{error}\"}}"),
        };
        text.push('\n');
        let next = under_way.line().await;
        Some((Ok::<_, Infallible>(text), (next, under_way)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
