//! The stand-in for the engine that starts containers: each is a plain process, with a directory that is lost with it. The
//! stand-in itself is a script of the Worker's tests; this starts it and asks it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{die_with_parent, installed, package};

/// See the module.
pub struct Engine {
    process: Child,
    directory: tempfile::TempDir,
}

impl Engine {
    /// Starts the stand-in; `command` is what every container runs, with `PORT_8000`, `PORT_8080` (where to listen in the
    /// place of these ports) and `DISK` (its own directory) in its environment. `path` takes the place of PATH: where Node is
    /// not the machine's own.
    ///
    /// # Errors
    /// Where Node or a package is missing.
    pub fn start(command: &[&str], path: Option<&OsStr>) -> Result<Self> {
        installed("tsx")?;
        let directory = tempfile::Builder::new().prefix("storeshim-engine-").tempdir()?;
        let mut node = Command::new("node");
        node.args(["--import", "tsx", "test/support/docker-main.ts"])
            .arg(directory.path().join("engine.sock"))
            .args(command)
            // The containers' disks go with ours, however the stand-in ends.
            .env("TMPDIR", directory.path())
            .current_dir(package())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(path) = path {
            node.env("PATH", path);
        }
        die_with_parent(&mut node);
        let mut process = node.spawn().context("node cannot be started; install Node 20 or later")?;
        let mut line = String::new();
        if let Some(stdout) = process.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        ensure!(line.trim() == "ready", "the stand-in for a container engine did not start");
        Ok(Self { process, directory })
    }

    /// Path of its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("engine.sock")
    }

    fn ask(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        write!(stream, "POST {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer of the stand-in")?;
        ensure!(head.contains(" 200"), "the stand-in says: {head} {body}");
        Ok(body.to_owned())
    }

    /// Kills every container as a lost machine would, with its disk; how many there were.
    ///
    /// # Errors
    /// Where the stand-in does not answer.
    pub fn kill_all(&self) -> Result<usize> {
        Ok(self.ask("/standin/kill")?.trim().parse()?)
    }

    /// From now on the engine says of the containers that run now that they have gone, while they do not: machines that
    /// linger.
    ///
    /// # Errors
    /// Where the stand-in does not answer.
    pub fn forget_all(&self) -> Result<usize> {
        Ok(self.ask("/standin/forget")?.trim().parse()?)
    }

    /// Containers that were started so far.
    ///
    /// # Errors
    /// Where the stand-in does not answer.
    pub fn starts(&self) -> Result<usize> {
        Ok(self.ask("/standin/starts")?.trim().parse()?)
    }

    /// The disks of the containers that run, the oldest first.
    ///
    /// # Errors
    /// Where the stand-in does not answer.
    pub fn disks(&self) -> Result<Vec<PathBuf>> {
        Ok(self.ask("/standin/disks")?.lines().map(|line| Path::new(line).to_path_buf()).collect())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It ends its containers first.
        let _ = self.ask("/standin/kill");
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
