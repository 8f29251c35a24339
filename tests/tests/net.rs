//! System calls that pass by libc. Without the second net their changes are found by the audit, and named; with
//! `--net=sud` they go the way of hooked calls: paths are translated, and nothing is missed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use storeshim_tests::node::{FileStore, Node, Setup, User, find};
use storeshim_tests::programs::{Language, built, compiled, crate_dir, require, rustix};

const LIMIT: Duration = Duration::from_secs(180);

/// A node whose programs are told of by their intents alone: no audit comes in between.
fn node(setup: Setup) -> Option<Node> {
    (!setup.reference).then(|| Node::started(setup.with("audit_interval", "1h")))
}

/// The program, with the net or without.
fn app(node: &Node, program: impl AsRef<Path>, net: bool) -> Command {
    let mut command = node.app(program.as_ref());
    if net {
        command.env("STORESHIM_NET", "sud");
    }
    command
}

/// Changes that only the audit has found.
fn missed(node: &Node) -> u64 {
    node.flush();
    node.status_of("counters").get("missed_changes").and_then(serde_json::Value::as_u64).unwrap_or(0)
}

#[track_caller]
fn run(node: &Node, command: Command) -> String {
    node.run_to_end(command, LIMIT).succeeded()
}

/// Inline calls from threads, signal handlers, children of every kind, with every signal blocked and on other stacks.
#[test]
fn inline_calls_are_caught() {
    let musl = built(Language::MuslC, &crate_dir().join("programs/raw_calls.c"));
    let glibc = compiled("raw_calls");
    for (setup, program) in [
        (Setup::translated as fn(String) -> Setup, &glibc),
        (Setup::identity, &glibc),
        (Setup::translated, &musl),
    ] {
        let store = FileStore::new();
        let Some(mut node) = node(setup(store.url())) else { return };
        node.sh("mkdir -p inline");
        let before = missed(&node);
        let mut command = app(&node, program, true);
        command.arg(node.prefix().join("inline"));
        assert_eq!(run(&node, command), "all is well\n");
        assert_eq!(missed(&node), before, "{}", node.log());
        node.survives("inline calls");
    }
}

/// The canary: without the net the same program cannot even begin under translation, and where it can, its changes are
/// missed by the intents, found by the audit, and said to be.
#[test]
fn without_the_net_inline_calls_are_found_by_the_audit() {
    let store = FileStore::new();
    let Some(translated) = node(Setup::translated(store.url())) else { return };
    let mut command = app(&translated, compiled("raw_calls"), false);
    command.arg(translated.prefix());
    translated.run_to_end(command, LIMIT).refused(&["main"]);
    drop(translated);

    let store = FileStore::new();
    let Some(mut node) = node(Setup::identity(store.url())) else { return };
    for program in [compiled("raw_calls"), rustix(false)] {
        let before = missed(&node);
        let mut command = app(&node, program, false);
        command.arg(node.prefix());
        run(&node, command);
        assert!(missed(&node) > before, "the audit counts them");
        assert!(node.log().contains("system calls of its own in a hooked one"), "{}", node.log());
    }
    node.survives("inline calls without the net");
}

/// What the status says of programs that make calls past libc, of the process `pid` if one is given.
fn named(status: &serde_json::Value, pid: Option<&str>) -> Vec<String> {
    let list = find(status, "past_libc").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    let words = list.iter().filter_map(serde_json::Value::as_str).map(str::to_owned);
    words.filter(|words| pid.is_none_or(|pid| words.split(' ').next() == Some(pid))).collect()
}

/// Such a program is named soon after its start, each program once, also one that never attaches; one that uses libc, or
/// that runs under the net, is not.
#[test]
fn programs_that_pass_by_libc_are_named_at_once() {
    let store = FileStore::new();
    let Some(mut node) = node(Setup::identity(store.url())) else { return };
    if std::env::var_os("STORESHIM_E2E_NET").is_some() {
        return; // All programs run under the net then.
    }
    let start = |program: &Path, arguments: &[&Path], net: bool| {
        let mut command = app(&node, program, net);
        command.args(arguments);
        node.spawn(command)
    };
    let (plain, raw, musl, rust) = (
        Path::new("/bin/sleep"),
        compiled("raw_calls"),
        built(Language::MuslC, &crate_dir().join("programs/raw_calls.c")),
        rustix(false),
    );
    let stay = Path::new("stay");
    node.sh("mkdir innocent netted raw");
    let folder = |name: &str| node.prefix().join(name);
    let mut apps = [
        start(plain, &[Path::new("600")], false),
        start(&rustix(true), &[&folder("innocent"), stay], false),
        start(&rust, &[&folder("netted"), stay], true),
    ];
    // Long enough for every one of them to be looked at.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(named(&node.status(), None), [] as [String; 0], "{}", node.log());
    assert!(apps.iter_mut().all(|app| app.ended().is_none()), "a program that has ended shows nothing");
    drop(apps);

    let raws = [start(&raw, &[stay], false), start(&raw, &[stay], false), start(&musl, &[stay], false)];
    let rusts = start(&rust, &[&folder("raw"), stay], false);
    let began = std::time::Instant::now();
    node.await_status("the programs' names", |status| named(status, None).len() >= 3);
    assert!(began.elapsed() < Duration::from_secs(30), "at once is not {:?}", began.elapsed());
    let status = node.status();
    assert_eq!(named(&status, None).len(), 3, "{status:#}");
    let said = named(&status, Some(&rusts.pid().to_string())).join("");
    assert!(said.contains("whose number cannot be told (in ") && said.contains(&plain_path(&rust)), "{said}");
    let said = named(&status, Some(&raws[2].pid().to_string())).join("");
    assert!(said.contains("renameat") || said.contains("whose number cannot be told"), "{said}");
    assert!(said.contains(&plain_path(&musl)), "{said}");
    assert_eq!(node.log().matches("a program makes system calls past libc").count(), 3, "{}", node.log());
    let mut human = node.agent_command("status");
    let human = String::from_utf8(human.output().unwrap().stdout).unwrap();
    assert!(human.contains("--net=sud") && human.contains(&said), "{human}");
    drop((raws, rusts));
    node.survives("programs that were named");
}

/// As the kernel names it.
fn plain_path(path: &Path) -> String {
    path.canonicalize().unwrap().display().to_string()
}

/// rustix is what Rust programs (cargo, uutils) make inline calls with.
#[test]
fn a_rustix_program_is_caught() {
    let store = FileStore::new();
    let Some(mut node) = node(Setup::translated(store.url())) else { return };
    let before = missed(&node);
    let mut command = app(&node, rustix(false), true);
    command.arg(node.prefix());
    run(&node, command);
    assert_eq!(missed(&node), before, "{}", node.log());
    node.survives("rustix");
}

/// Programs that never heard of it run under the net as they do without.
#[test]
fn ordinary_programs_run_under_the_net() {
    let store = FileStore::new();
    let Some(mut node) = node(Setup::translated(store.url())) else { return };
    for program in ["node", "python3", "git", "sqlite3", "gcc"] {
        require(program);
    }
    let before = missed(&node);
    let mut command = app(&node, "/bin/bash", true);
    command.arg("-euc").arg(
        "cd \"$STORAGE\"
        mkdir -p work && cd work
        git init -q repo && cd repo && echo text > file && git add file
        git -c user.name=a -c user.email=a@b commit -qm message && git gc -q && git fsck
        cd .. && sqlite3 db 'create table t(x); insert into t values (1); select * from t' | grep -q 1
        printf 'int main(void) { return 0; }' > main.c && gcc -o main main.c && ./main
        node -e 'const fs = require(\"fs\"); fs.writeFileSync(\"node\", \"text\");
            fs.promises.stat(process.env.STORAGE + \"/work/node\").then(s => process.exit(s.size == 4 ? 0 : 1))'
        python3 -c 'import os, subprocess, threading
def write(name): open(name, \"w\").write(name)
threads = [threading.Thread(target=write, args=(\"thread%d\" % i,)) for i in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
subprocess.run([\"cp\", \"thread0\", os.environ[\"STORAGE\"] + \"/work/copy\"], check=True, env={})'
        (cd repo && setsid sh -c 'echo daemon > ../daemon') && test -s daemon",
    );
    run(&node, command);
    assert_eq!(missed(&node), before, "{}", node.log());
    node.survives("ordinary programs under the net");
}

/// cargo and rustc, which are those that build this test.
#[test]
fn cargo_builds_under_the_net() {
    let store = FileStore::new();
    let Some(mut node) = node(Setup::translated(store.url()).as_user(User::Current)) else { return };
    let before = missed(&node);
    let mut command = app(&node, "/bin/bash", true);
    for name in ["HOME", "PATH", "CARGO_HOME", "RUSTUP_HOME"] {
        command.env_remove(name);
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env_remove("CARGO_TARGET_DIR").arg("-euc").arg(
        "cargo init -q --vcs none --name hello \"$STORAGE/hello\"
        cd \"$STORAGE/hello\" && cargo build -q --offline && ./target/debug/hello",
    );
    assert_eq!(run(&node, command), "Hello, world!\n");
    assert_eq!(missed(&node), before, "{}", node.log());
    node.survives("cargo under the net");
}

/// `storeshim run --net=sud` asks for it; a wrong word in the variable is said and harmless.
#[test]
fn the_net_is_asked_for() {
    let store = FileStore::new();
    let Some(node) = node(Setup::translated(store.url())) else { return };
    let mut command = app(&node, "/bin/true", false);
    command.env("STORESHIM_NET", "trawl");
    let said = node.run_to_end(command, LIMIT);
    assert!(said.code == 0 && said.err.contains("STORESHIM_NET must be sud"), "{said:?}");
}

/// By number through libc's `syscall()`: each call answers what it answers on an ordinary file system, and tells what it
/// changes.
#[test]
fn calls_by_number_are_as_on_an_ordinary_file_system() {
    for setup in [Setup::translated, Setup::identity] {
        for net in [false, true] {
            let store = FileStore::new();
            let Some(mut node) = node(setup(store.url())) else { return };
            let plain = node.outside().join("plain");
            let owned = node.prefix().join("numbers");
            node.sh("mkdir numbers; mkdir \"$OUTSIDE/plain\"");
            let mut expected = node.app_without_shim(compiled("by_number"));
            expected.arg(&plain);
            let expected = run(&node, expected);
            let mut command = app(&node, compiled("by_number"), net);
            command.arg(&owned);
            assert_eq!(run(&node, command), expected);
            // A rename is told by its names; an audit in the same cut would count the inode's own change time.
            node.await_status("all is committed", |status| {
                find(status, "dirty_bytes").and_then(serde_json::Value::as_u64) == Some(0)
                    && find(status, "dirty_age_ms").is_none_or(|age| age.as_u64().is_none_or(|age| age == 0))
            });
            assert_eq!(missed(&node), 0, "{}", node.log());
            node.survives("calls by number");
        }
    }
}

/// An io_uring changes files without calls: its users are made to fall back.
#[test]
fn there_is_no_io_uring() {
    let store = FileStore::new();
    let Some(node) = node(Setup::translated(store.url())) else { return };
    let said = node.python(
        "import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
os.stat(os.environ['STORAGE'])
for number in (425, 426, 427):
    assert libc.syscall(number, 1, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == errno.ENOSYS
print('refused')",
    );
    assert_eq!(said, "refused\n");
}
