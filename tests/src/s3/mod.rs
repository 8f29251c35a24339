//! An S3 server in memory, real on the wire (signatures, checksums, multipart, ranges, listings, conditional
//! writes) and obedient in the test: faults and delays are set while it runs, and every request is counted. It
//! must not know storeshim.

mod body;
mod service;
mod store;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use object_store::ClientOptions;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::sync::oneshot;

/// Access key that every server of the harness accepts.
pub const ACCESS_KEY: &str = "AKIAE2ETESTS";
/// Secret of [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "not-a-secret-only-for-tests";
/// Bucket that exists from the start.
pub const BUCKET: &str = "volumes";

/// A client of [`BUCKET`] on the server at `endpoint`, with the environment's credentials and no bound on time.
///
/// # Errors
/// Where the environment has no credentials.
pub fn client(endpoint: &str) -> object_store::Result<AmazonS3> {
    AmazonS3Builder::from_env()
        .with_endpoint(endpoint)
        .with_bucket_name(BUCKET)
        .with_region("us-east-1")
        .with_virtual_hosted_style_request(false)
        .with_client_options(ClientOptions::new().with_allow_http(true).with_timeout_disabled())
        .build()
}

/// What the server does wrong, and when; all may change while it runs. Everything is off at first.
#[derive(Debug, Default)]
pub struct Knobs {
    /// Every request waits this long, in milliseconds.
    pub delay_ms: AtomicU64,
    /// Percentage of requests answered by 500 without being performed.
    pub internal_error_pct: AtomicU64,
    /// Percentage of requests answered by 503 SlowDown without being performed.
    pub slow_down_pct: AtomicU64,
    /// Percentage of requests answered by 429 without being performed.
    pub too_many_pct: AtomicU64,
    /// Percentage of writes that are performed and then answered by 500: the client cannot know which.
    pub ambiguous_pct: AtomicU64,
    /// `If-None-Match` is ignored, as s3rver and `rclone serve s3` do.
    pub ignore_if_none_match: AtomicBool,
    /// `If-Match` is ignored.
    pub ignore_if_match: AtomicBool,
    /// Every write is refused by AccessDenied.
    pub read_only: AtomicBool,
    /// Requests are taken and never answered while this is set.
    pub hang: AtomicBool,
    /// ETags are counters instead of MD5 sums, and MD5 sums are not checked: several times faster.
    pub fast_etag: AtomicBool,
}

impl Knobs {
    /// Turns off everything that makes requests fail or wait.
    pub fn heal(&self) {
        for rate in [
            &self.delay_ms,
            &self.internal_error_pct,
            &self.slow_down_pct,
            &self.too_many_pct,
            &self.ambiguous_pct,
        ] {
            rate.store(0, Ordering::Relaxed);
        }
        self.read_only.store(false, Ordering::Relaxed);
        self.hang.store(false, Ordering::Relaxed);
    }
}

/// Requests seen since the server's start, faulty ones included.
#[derive(Debug, Default)]
pub struct Counters {
    /// PutObject, CopyObject, UploadPart and the three multipart verbs: what providers bill as writes.
    pub puts: AtomicU64,
    /// GetObject.
    pub gets: AtomicU64,
    /// HeadObject and HeadBucket.
    pub heads: AtomicU64,
    /// Listings.
    pub lists: AtomicU64,
    /// DeleteObject and DeleteObjects.
    pub deletes: AtomicU64,
    /// Bytes received in bodies.
    pub bytes_in: AtomicU64,
    /// Bytes of objects that were sent.
    pub bytes_out: AtomicU64,
    /// Requests that a knob made fail.
    pub faults: AtomicU64,
}

impl Counters {
    /// Writes so far (see [`Counters::puts`]).
    pub fn puts(&self) -> u64 {
        self.puts.load(Ordering::Relaxed)
    }

    /// Requests of all kinds so far.
    pub fn all(&self) -> u64 {
        [&self.puts, &self.gets, &self.heads, &self.lists, &self.deletes]
            .iter()
            .map(|counter| counter.load(Ordering::Relaxed))
            .sum()
    }
}

/// A running server; dropping it stops it and forgets its objects.
pub struct S3Server {
    address: SocketAddr,
    knobs: Arc<Knobs>,
    counters: Arc<Counters>,
    store: Arc<store::Store>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts a server on a free port of the loopback, with [`BUCKET`] in it.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0", ACCESS_KEY, SECRET_KEY).expect("the loopback has a free port")
    }

    /// Starts a server on `address` that accepts this key pair. Fails where the address is taken.
    pub fn start_at(address: &str, access_key: &str, secret_key: &str) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (knobs, counters, store) =
            (Arc::new(Knobs::default()), Arc::new(Counters::default()), Arc::new(store::Store::default()));
        store.create_bucket(BUCKET);

        let api = service::Service {
            store: Arc::clone(&store),
            knobs: Arc::clone(&knobs),
            counters: Arc::clone(&counters),
            dice: AtomicU64::new(1),
        };
        let mut builder = S3ServiceBuilder::new(api);
        builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
        let api = builder.build();

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("s3".into()).spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = accept(listener, api) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { address, knobs, counters, store, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its endpoint, `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it does wrong.
    pub fn knobs(&self) -> &Knobs {
        &self.knobs
    }

    /// What it has seen.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Keys of [`BUCKET`] with their sizes in bytes, in order.
    pub fn keys(&self) -> Vec<(String, u64)> {
        self.store.keys(BUCKET)
    }

    /// Puts the files of a directory there as objects of [`BUCKET`] below `prefix`.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn load(&self, prefix: &str, dir: &Path) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let key = format!("{prefix}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.load(&key, &entry.path())?;
            } else {
                self.store.load(BUCKET, key, std::fs::read(entry.path())?.into());
            }
        }
        Ok(())
    }

    /// Waits for as long as the server runs.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, api: s3s::service::S3Service) {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let connection = http.serve_connection(TokioIo::new(stream), api.clone()).into_owned();
        tokio::spawn(async move {
            let _ = connection.await;
        });
    }
}
