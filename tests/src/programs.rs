//! Programs that tests drive: those of the system, which must be there, and our own small C programs, compiled
//! once. It must not know nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where programs are looked for; nothing below a home directory, which ordinary users may not enter.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Packages that hold a program of another name, as Debian has them.
const PACKAGES: [(&str, &str); 13] = [
    ("gcc", "build-essential"),
    ("musl-gcc", "musl-tools"),
    ("java", "default-jdk-headless"),
    ("javac", "default-jdk-headless"),
    ("awk", "mawk"),
    ("make", "build-essential"),
    ("cc", "build-essential"),
    ("node", "nodejs"),
    ("openssl", "openssl"),
    ("setfattr", "attr"),
    ("find", "findutils"),
    ("setsid", "util-linux"),
    ("npm", "npm"),
];

/// Fails the test, saying what to install, unless `program` is there. A test never passes by not running.
#[track_caller]
pub fn require(program: &str) {
    if program.starts_with('/') && Path::new(program).exists() {
        return;
    }
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

/// What a program of ours is written in, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// C, on this machine's libc.
    C,
    /// C, on musl, as a dynamic program.
    MuslC,
    /// C, without a loader.
    StaticC,
    /// C, as a library.
    SharedC,
    /// C++.
    Cpp,
    /// Rust, by std alone.
    Rust,
    /// Java; a folder of classes.
    Java,
}

impl Language {
    /// The compiler and its arguments before the name of what it is to write.
    fn command(self) -> (&'static str, &'static [&'static str]) {
        const C: [&str; 7] = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"];
        match self {
            Self::C => ("cc", &C),
            Self::MuslC => ("musl-gcc", &C),
            Self::StaticC => ("cc", &["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o"]),
            Self::SharedC => {
                ("cc", &["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            }
            Self::Cpp => ("g++", &["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]),
            Self::Rust => ("rustc", &["--edition", "2024", "-C", "debuginfo=0", "-D", "warnings", "-o"]),
            Self::Java => ("javac", &["-d"]),
        }
    }
}

/// Compiles `tests/programs/NAME.c` unless that is done already, and returns the program.
#[track_caller]
pub fn compiled(name: &str) -> PathBuf {
    built(Language::C, &crate_dir().join("programs").join(name).with_extension("c"))
}

/// Compiles `source` unless that is done already, and returns the program.
#[track_caller]
pub fn built(language: Language, source: &Path) -> PathBuf {
    let (compiler, flags) = language.command();
    if language != Language::Rust {
        require(compiler);
    }
    let mut text = fs::read(source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
    text.extend(headers_beside(source));
    let name = source.file_stem().expect("a source has a name").to_string_lossy();
    once(&format!("{name}-{language:?}"), &text, |fresh| {
        let output = Command::new(compiler).args(flags).arg(fresh).arg(source).output();
        let output = output.unwrap_or_else(|error| panic!("{compiler} does not run: {error}"));
        assert!(
            output.status.success(),
            "{compiler} {source:?}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    })
}

/// What a source may include of its own folder.
fn headers_beside(source: &Path) -> Vec<u8> {
    let folder = source.parent().and_then(|folder| fs::read_dir(folder).ok());
    let mut headers: Vec<_> = folder.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    headers.retain(|path| path.extension().is_some_and(|extension| extension == "h"));
    headers.sort();
    headers.into_iter().filter_map(|path| fs::read(path).ok()).flatten().collect()
}

/// The program in `tests/programs/rustix`, making its system calls through libc or by itself.
#[track_caller]
pub fn rustix(through_libc: bool) -> PathBuf {
    let folder = crate_dir().join("programs/rustix");
    let read = |name: &str| fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let text = [read("Cargo.toml"), read("Cargo.lock"), read("src/main.rs")].concat();
    let (name, flags) =
        if through_libc { ("rustix-libc", "--cfg=rustix_use_libc") } else { ("rustix-raw", "") };
    once(name, &text, |fresh| {
        let target = cache_dir().join(format!("build-{name}"));
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(folder.join("Cargo.toml"));
        // Flags of its own, and not those of the build that runs the tests.
        cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", flags).env("CARGO_TARGET_DIR", &target);
        let output = cargo.output().expect("cargo runs");
        assert!(
            output.status.success(),
            "cargo build {folder:?}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        fs::copy(target.join("debug/rustix-files"), fresh).expect("it was just built");
    })
}

/// What `make` makes of `source` at the place it is given, made once and kept.
#[track_caller]
fn once(name: &str, source: &[u8], make: impl FnOnce(&Path)) -> PathBuf {
    // Named by its content, so that an old one is never run, and moved into place, so that a half one is not.
    let hash = blake3::hash(source).to_hex();
    let made = cache_dir().join(format!("{name}-{}", &hash[..16]));
    // Tests are threads or processes, as the runner likes it: such a lock holds for both.
    let lock = fs::File::create(cache_dir().join(format!("{name}.lock"))).expect("the folder is writable");
    lock.lock().expect("a file of ours can be locked");
    if made.exists() {
        return made;
    }
    let fresh = cache_dir().join(format!("{name}.{}", std::process::id()));
    make(&fresh);
    fs::rename(&fresh, &made).expect("the same folder");
    made
}

/// A number from the environment, for tests that can be made longer than CI wants them.
pub fn scale(variable: &str, default: u32) -> u32 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
        Err(_) => default,
    }
}
