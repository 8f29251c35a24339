//! Programs that tests drive: those of the system, which must be there, and our own small C programs, compiled
//! once. It must not know nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Where programs are looked for; nothing below a home directory, which ordinary users may not enter.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Packages that hold a program of another name, as Debian has them.
const PACKAGES: [(&str, &str); 8] = [
    ("gcc", "build-essential"),
    ("make", "build-essential"),
    ("cc", "build-essential"),
    ("node", "nodejs"),
    ("setfattr", "attr"),
    ("find", "findutils"),
    ("setsid", "util-linux"),
    ("npm", "npm"),
];

/// Fails the test, saying what to install, unless `program` is there. A test never passes by not running.
#[track_caller]
pub fn require(program: &str) {
    if PATH.split(':').any(|folder| Path::new(folder).join(program).exists()) {
        return;
    }
    let package = PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package);
    panic!("this test needs `{program}`, which is not installed: apt-get install {package}");
}

/// The folder of this crate.
pub fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder below target for things that are built or installed once and kept.
pub fn cache_dir() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| crate_dir().join("../target"), PathBuf::from)
        .join("e2e");
    fs::create_dir_all(&target).expect("the target folder is writable");
    target
}

/// Compiles `tests/programs/NAME.c` unless that is done already, and returns the program.
#[track_caller]
pub fn compiled(name: &str) -> PathBuf {
    static LOCK: Mutex<()> = Mutex::new(());
    let _guard = LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    require("cc");
    let source = crate_dir().join("programs").join(name).with_extension("c");
    let text = fs::read(&source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
    // Named by its content, so that an old one is never run, and moved into place, so that a half one is not.
    let hash = blake3::hash(&text).to_hex();
    let program = cache_dir().join(format!("{name}-{}", &hash[..16]));
    if program.exists() {
        return program;
    }
    let fresh = cache_dir().join(format!("{name}.{}", std::process::id()));
    let flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"];
    let output = Command::new("cc").args(flags).arg(&fresh).arg(&source).output().expect("cc runs");
    assert!(output.status.success(), "cc {source:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&fresh, &program).expect("the same folder");
    program
}

/// A number from the environment, for tests that can be made longer than CI wants them.
pub fn scale(variable: &str, default: u32) -> u32 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
        Err(_) => default,
    }
}
