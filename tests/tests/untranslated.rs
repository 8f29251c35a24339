//! The translated placement, seen from the kernel: ordinary programs work on absolute paths below a prefix that does not
//! exist, under strace. No path below the prefix may reach the kernel, and what a program says must be what it says
//! about a directory of the local disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use storeshim_tests::node::{FileStore, Node, Said, Setup, User};
use storeshim_tests::programs::{Language, built, crate_dir, require, rustix};
use storeshim_tests::strace::{Call, calls, traced};

const LIMIT: Duration = Duration::from_secs(90);

/// A program.
struct Program<'p> {
    /// It and its arguments; `$STORAGE` is where it is to work.
    words: Vec<&'p str>,
    /// Under the second net, which catches bare system calls.
    net: bool,
}

/// What the kernel saw of a traced program.
struct Seen {
    said: Said,
    calls: Vec<Call>,
    processes: usize,
}

/// A node whose prefix no other path contains. (initdb wants a user that has a name.)
fn node() -> (FileStore, Node) {
    require("strace");
    let store = FileStore::new();
    let unique = format!("/storage-{}-{:08x}", std::process::id(), rand::random::<u32>());
    let node = Node::started(Setup::translated(store.url()).at(unique).as_user(User::Nobody));
    (store, node)
}

/// A fresh folder of the node's user.
fn folder(node: &mut Node, name: &str) -> PathBuf {
    let path = node.outside().join(name);
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    if let Some(id) = node.setup().user.id() {
        chown(&path, Some(id), Some(id)).unwrap();
    }
    path
}

impl<'p> Program<'p> {
    fn new(words: Vec<&'p str>) -> Self {
        Self { words, net: false }
    }

    fn in_words(&self, folder: &Path) -> Vec<String> {
        self.words.iter().map(|word| word.replace("$STORAGE", folder.to_str().unwrap())).collect()
    }

    /// What it says about a directory of the local disk.
    fn natively(&self, node: &mut Node) -> Said {
        let folder = folder(node, "native");
        let words = self.in_words(&folder);
        let mut command = node.app_without_shim(&words[0]);
        command.args(&words[1..]).env("STORAGE", &folder).current_dir(&folder);
        normal(node.run_to_end(command, LIMIT), &folder)
    }

    /// What it says and does under shim and strace.
    fn traced(&self, node: &mut Node) -> Seen {
        let (prefix, shim) = (node.prefix().to_owned(), node.shim());
        let output = folder(node, "strace").join("trace");
        let words = self.in_words(&prefix);
        // strace itself is not under the shim, and cannot enter a directory that does not exist.
        let net = Path::new(if self.net { "sud" } else { "" });
        let variables =
            [("LD_PRELOAD", shim.as_path()), ("STORAGE", prefix.as_path()), ("STORESHIM_NET", net)];
        let mut inside = vec!["/bin/sh", "-c", "cd \"$STORAGE\" && exec \"$@\"", "sh"];
        inside.extend(words.iter().map(String::as_str));
        let strace = traced(node.app_without_shim("strace"), &output, &variables, &inside);
        let said = normal(node.run_to_end(strace, LIMIT), &prefix);
        let (calls, processes) = calls(&output);
        Seen { said, calls, processes }
    }
}

/// What was said, without where.
fn normal(said: Said, folder: &Path) -> Said {
    let folder = folder.to_str().unwrap();
    Said { out: said.out.replace(folder, "$STORAGE"), err: said.err.replace(folder, "$STORAGE"), ..said }
}

/// Calls that gave the kernel a path with the prefix in it.
fn untranslated<'c>(calls: &'c [Call], prefix: &Path) -> Vec<&'c Call> {
    let name = prefix.file_name().unwrap().to_str().unwrap();
    // A relative path can lead there from the root, and by `..` from anywhere.
    let below = |path: &String| {
        let leads = path.starts_with('/')
            || path.starts_with(name)
            || path.starts_with("..")
            || path.contains("/../");
        leads && path.split('/').any(|component| component == name)
    };
    calls.iter().filter(|call| call.paths().iter().any(below)).collect()
}

/// The whole judgement of one program.
#[track_caller]
fn judge(program: &Program<'_>) {
    let (_store, mut node) = node();
    if node.setup().reference {
        return; // Without the shim there is nothing to translate.
    }
    let native = program.natively(&mut node);
    assert_eq!(native.code, 0, "the program fails on the local disk:\n{}\n{}", native.out, native.err);
    let seen = program.traced(&mut node);
    let found = untranslated(&seen.calls, node.prefix());
    let shown: Vec<String> = found
        .iter()
        .map(|call| format!("{} {:?} = {}", call.name, call.paths(), call.result))
        .take(20)
        .collect();
    assert!(found.is_empty(), "{} untranslated:\n{}\n{}", found.len(), shown.join("\n"), seen.said.err);
    same("standard error", &native.err, &seen.said.err);
    same("standard output", &native.out, &seen.said.out);
    assert_eq!(seen.said.code, 0, "it succeeds on the local disk only");
    let made = |call: &&Call| call.name == "io_uring_setup" && !call.result.starts_with('-');
    assert_eq!(seen.calls.iter().filter(made).count(), 0, "work of an io_uring passes every hook");
    let tree = node.tree().to_str().unwrap().to_owned();
    let below = seen.calls.iter().flat_map(Call::paths).filter(|path| path.starts_with(&tree)).count();
    assert!(below > 0, "no call below the tree: {} calls, {} processes", seen.calls.len(), seen.processes);
    node.survives("a traced program");
}

/// Fails the test, showing where two outputs part.
#[track_caller]
fn same(what: &str, native: &str, shim: &str) {
    if native == shim {
        return;
    }
    let at = native.lines().zip(shim.lines()).take_while(|(a, b)| a == b).count();
    let after = |text: &str| text.lines().skip(at).take(8).collect::<Vec<_>>().join("\n");
    panic!(
        "{what} differs from line {}:\nnatively:\n{}\nunder the shim:\n{}",
        at + 1,
        after(native),
        after(shim)
    );
}

/// A script of the matrix. A variable that is not set ends it: `$STORAGE` is what keeps it where it belongs.
#[track_caller]
fn script(interpreter: &str, name: &str) {
    require(interpreter);
    interpreted(&[interpreter, "-eu"], name);
}

fn source(name: &str) -> PathBuf {
    crate_dir().join("programs/matrix").join(name)
}

/// A program of the matrix in a language that is run by an interpreter.
#[track_caller]
fn interpreted(interpreter: &[&str], name: &str) {
    require(interpreter[0]);
    let copy = tempfile::Builder::new().prefix("storeshim-source-").tempdir().unwrap();
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = copy.path().join(name);
    fs::copy(source(name), &file).unwrap();
    let mut words = interpreter.to_vec();
    words.extend([file.to_str().unwrap(), "$STORAGE"]);
    judge(&Program::new(words));
}

/// `program`, copied to where every user may run it.
fn public(program: &Path) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::Builder::new().prefix("storeshim-program-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join(program.file_name().unwrap());
    let copied = std::process::Command::new("cp").arg("-r").args([program, &copy]).status().unwrap();
    assert!(copied.success());
    (folder, copy)
}

/// A program of the matrix that is compiled.
#[track_caller]
fn compiled(language: Language, name: &str) {
    let (_folder, program) = public(&built(language, &source(name)));
    judge(&Program::new(vec![program.to_str().unwrap(), "$STORAGE"]));
}

#[test]
fn untranslated_bash() {
    script("bash", "shell.bash");
}

#[test]
fn untranslated_dash() {
    script("dash", "shell.dash");
}

#[test]
fn untranslated_coreutils() {
    script("bash", "coreutils.bash");
}

#[test]
fn untranslated_finders_and_archives() {
    for program in ["find", "tar", "rsync", "gzip", "grep", "sed", "awk"] {
        require(program);
    }
    script("bash", "finders.bash");
}

#[test]
fn untranslated_git() {
    require("git");
    script("bash", "git.bash");
}

#[test]
fn untranslated_sqlite() {
    require("sqlite3");
    script("bash", "sqlite.bash");
}

#[test]
fn untranslated_postgres() {
    script("bash", "postgres.bash");
}

#[test]
fn untranslated_perl() {
    interpreted(&["perl"], "files.pl");
}

#[test]
fn untranslated_python() {
    interpreted(&["/usr/bin/python3", "-B"], "files.py");
}

#[test]
fn untranslated_node() {
    interpreted(&["node"], "files.js");
}

#[test]
fn untranslated_java() {
    require("java");
    let (_folder, classes) = public(&built(Language::Java, &source("Files.java")));
    let options = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"];
    let mut words = options.to_vec();
    words.extend([classes.to_str().unwrap(), "Files", "$STORAGE"]);
    judge(&Program::new(words));
}

#[test]
fn untranslated_cpp() {
    compiled(Language::Cpp, "files.cpp");
}

#[test]
fn untranslated_rust() {
    compiled(Language::Rust, "files.rs");
}

/// rustix through libc is like any other program.
#[test]
fn untranslated_rustix_through_libc() {
    let (_folder, program) = public(&rustix(true));
    judge(&Program::new(vec![program.to_str().unwrap(), "$STORAGE"]));
}

/// The second net catches rustix's own system calls.
#[cfg(target_arch = "x86_64")]
#[test]
fn untranslated_rustix_in_the_second_net() {
    let (_folder, program) = public(&rustix(false));
    judge(&Program { words: vec![program.to_str().unwrap(), "$STORAGE"], net: true });
}

/// The exception, and a canary: rustix's own system calls pass every hook, so strace must show untranslated paths, and
/// the program must find nothing there.
#[test]
fn untranslated_raw_system_calls_are_seen() {
    let (_store, mut node) = node();
    if node.setup().reference {
        return; // Nothing is translated, and nothing is not.
    }
    let (_folder, program) = public(&rustix(false));
    let program = Program::new(vec![program.to_str().unwrap(), "$STORAGE"]);
    program.natively(&mut node).succeeded();
    let seen = program.traced(&mut node);
    let found = untranslated(&seen.calls, node.prefix());
    assert!(found.iter().any(|call| call.name.starts_with("mkdir")), "{found:?}");
    assert_ne!(seen.said.code, 0, "the prefix does not exist: {}", seen.said.out);
}

/// Another canary: a static program knows no shim.
#[test]
fn untranslated_static_programs_are_seen() {
    let (_store, mut node) = node();
    if node.setup().reference {
        return; // As above.
    }
    let (_folder, program) = public(&built(Language::StaticC, &source("touch.c")));
    let program = Program::new(vec![program.to_str().unwrap(), "$STORAGE/touched"]);
    program.natively(&mut node).succeeded();
    let seen = program.traced(&mut node);
    let found = untranslated(&seen.calls, node.prefix());
    assert_eq!(found.len(), 1, "{found:?}");
    assert_ne!(seen.said.code, 0);
}
