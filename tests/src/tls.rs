//! TLS in front of a server on the loopback, with a certificate of an authority that nobody knows. It must not know what is sent.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::programs::{crate_dir, require};

/// See the module. Ends when dropped.
pub struct TlsFront {
    child: Child,
    directory: tempfile::TempDir,
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

/// A key of the kind that is made fastest.
const KEY: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

fn openssl(directory: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(directory).output().expect("openssl");
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl TlsFront {
    /// In front of the server on a port of this machine.
    #[track_caller]
    pub fn start(port: u16) -> Self {
        require("openssl");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let dir = directory.path();
        // Other users read the authority's certificate.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let authority = [
            "req",
            "-x509",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=tests",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ];
        openssl(dir, &[&authority[..], &KEY].concat());
        let asked = ["req", "-nodes", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "asked.pem"];
        openssl(dir, &[&asked[..], &KEY].concat());
        fs::write(dir.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").expect("it is ours");
        let signed =
            ["x509", "-req", "-in", "asked.pem", "-days", "2", "-extfile", "names", "-out", "cert.pem"];
        openssl(dir, &[&signed[..], &["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]].concat());
        let mut command = Command::new("/usr/bin/python3");
        command.arg(crate_dir().join("programs/scripts/tls_front.py"));
        command.arg(dir.join("cert.pem")).arg(dir.join("key.pem")).arg(port.to_string());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("python3");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe was asked for")).lines();
        let port = lines.next().expect("its port").expect("text").parse().expect("a number");
        let requests = Arc::default();
        let kept: Arc<Mutex<Vec<String>>> = Arc::clone(&requests);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Self { child, directory, port, requests }
    }

    /// Its host and port.
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// The certificate of the authority that signed its own.
    pub fn trusted(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The first line of each connection's first request.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
