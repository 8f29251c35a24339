//! The real runtime of Workers (workerd, from npm) on this machine: started, asked over HTTP, killed as a power cut would. It
//! must not know storeshim's agent.

mod config;
mod engine;

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use config::{Class, Worker};
pub use engine::Engine;

/// Set where the runtime must be there, so that a test which lacks it fails instead of being skipped.
const REQUIRED: &str = "STORESHIM_REQUIRE_WORKERD";
/// The token that the Workers of tests let in.
pub const TOKEN: &str = "the-token-of-the-tests";
/// The runtime answers within this.
const PATIENCE: Duration = Duration::from_secs(20);

/// The repository's Worker package.
#[must_use]
pub fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../worker")
}

/// A program of the package's dependencies; says how to install them where it is not there.
fn installed(path: &str) -> Result<PathBuf> {
    let program = package().join("node_modules").join(path);
    ensure!(program.exists(), "{path} is not installed: run `npm install --no-save` in worker/");
    Ok(program)
}

/// Why the runtime cannot be had here, where it cannot. Where it is required, that is a panic: a test's failure.
#[must_use]
pub fn missing() -> Option<String> {
    let found = installed("@cloudflare/workerd-linux-64/bin/workerd")
        .and(installed("@esbuild/linux-x64/bin/esbuild"));
    let why = found.err()?.to_string();
    assert!(std::env::var_os(REQUIRED).is_none(), "{why} ({REQUIRED} is set)");
    Some(why)
}

/// A port that nobody listens on. Below those that the kernel gives to connections (ip(7), `ip_local_port_range`), which could take it
/// before it is listened on.
///
/// # Errors
/// Where there is none.
pub fn free_port() -> Result<u16> {
    let ports = (0..100).map(|_| 10_000 + RandomState::new().hash_one(0) as u16 % 22_000);
    ports
        .into_iter()
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .context("no port is free; end what listens on them")
}

/// A running runtime with its disk, which outlives its process.
pub struct Runtime {
    directory: tempfile::TempDir,
    disk: PathBuf,
    process: Option<Child>,
    port: u16,
    client: ureq::Agent,
}

impl Runtime {
    /// Bundles a Worker and starts it, with its objects' storage in `disk`, or in a directory that goes with the runtime.
    ///
    /// # Errors
    /// Where a program is missing or the runtime does not answer.
    pub fn start(worker: &Worker<'_>, disk: Option<&Path>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("storeshim-workerd-").tempdir()?;
        let bundled = Command::new(installed("@esbuild/linux-x64/bin/esbuild")?)
            .arg(worker.entry)
            .args([
                "--bundle",
                "--format=esm",
                "--target=es2023",
                "--log-level=error",
                "--external:cloudflare:*",
            ])
            .arg("--conditions=workerd,worker,browser,import")
            .arg(format!("--alias:storeshim-worker={}", package().join("src/index.ts").display()))
            .arg(format!("--outfile={}", directory.path().join("worker.js").display()))
            .env("NODE_PATH", package().join("node_modules"))
            .status()?;
        ensure!(bundled.success(), "esbuild cannot bundle {}", worker.entry.display());
        std::fs::write(directory.path().join("config.capnp"), worker.configuration(TOKEN))?;
        let disk = disk.map_or_else(|| directory.path().join("disk"), Path::to_path_buf);
        std::fs::create_dir_all(&disk)?;
        let client = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut runtime = Self { directory, disk, process: None, port: free_port()?, client };
        runtime.run()?;
        Ok(runtime)
    }

    /// Starts the process, on the same port as before.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn run(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(installed("@cloudflare/workerd-linux-64/bin/workerd")?);
        command
            .args(["serve", "config.capnp", "--experimental"])
            .arg("--socket-addr")
            .arg(format!("http=127.0.0.1:{}", self.port))
            .arg("--directory-path")
            .arg(format!("disk={}", self.disk.display()))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        die_with_parent(&mut command);
        let mut child = command.spawn()?;
        let deadline = Instant::now() + PATIENCE;
        while self.client.get(self.url("/")).call().is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("workerd ended ({status}): {}", self.said());
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                bail!("workerd does not answer: {}", self.said());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.process = Some(child);
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// What the runtime has said so far.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Host and port.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// An address in the Worker.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.authority())
    }

    /// Asks the Worker, with its token; status and body.
    ///
    /// # Errors
    /// Where there is no answer.
    pub fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(self.url(path))
            .header("authorization", format!("Bearer {TOKEN}"))
            .body(body)?;
        let mut answer = self.client.run(request).with_context(|| format!("{method} {path}"))?;
        Ok((answer.status().as_u16(), answer.body_mut().with_config().limit(1 << 30).read_to_vec()?))
    }

    /// The text of an answer that must be a good one.
    ///
    /// # Errors
    /// Where there is none, or another one.
    pub fn get(&self, path: &str) -> Result<String> {
        let (status, body) = self.ask("GET", path, b"")?;
        let text = String::from_utf8_lossy(&body).into_owned();
        ensure!((200..300).contains(&status), "GET {path}: {status} {text}");
        Ok(text)
    }

    /// Kills the process as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops the process for a while, or lets it go on: objects that do not answer.
    pub fn pause(&self, paused: bool) {
        let signal = if paused { libc::SIGSTOP } else { libc::SIGCONT };
        if let Some(pid) = self.process.as_ref().and_then(|child| i32::try_from(child.id()).ok()) {
            // SAFETY: our own child, which nobody has waited for.
            unsafe { libc::kill(pid, signal) };
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A test that is killed takes what it started with it.
fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is a plain system call, which a forked child may make.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}
