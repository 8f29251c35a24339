//! Descriptors that the shim did not open, or that are not where it left them, and processes of all kinds, on glibc and on
//! musl: every change is told, so that an audit finds nothing that was missed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use storeshim_tests::node::{FileStore, Node, Setup, User};
use storeshim_tests::programs::{Language, built, crate_dir, require, scale};
use storeshim_tests::ways::{self, missed, untold};
use storeshim_tests::writer::{Writer, verify};

const LIMIT: Duration = Duration::from_secs(60);

/// A node whose agent looks at what it is told of soon, and at everything only when it is asked to.
fn node(setup: impl FnOnce(String) -> Setup) -> Option<(FileStore, Node)> {
    let store = FileStore::new();
    let setup = setup(store.url()).with("max_lag", "50ms").with("audit_interval", "1h");
    // The reference run has no agent to tell.
    (!setup.reference).then(|| (store, Node::started(setup)))
}

/// A program of ours, where every user may run it.
fn program(node: &Node, language: Language, name: &str) -> PathBuf {
    let source = crate_dir().join("programs").join(name).with_extension("c");
    let copy = node.outside().join(format!("{name}-{language:?}"));
    fs::copy(built(language, &source), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

/// Every way of a program of ours: all succeed, all are told.
#[track_caller]
fn all_ways(setup: impl FnOnce(String) -> Setup, language: Language, name: &str) {
    let Some((_store, mut node)) = node(setup) else { return };
    // One way needs more descriptors than are remembered; only root may let itself have them.
    let most = 70_000;
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 1024, most);
    let program = program(&node, language, name);
    let outcome = ways::run(&node, &program, "ways");
    for spared in &outcome.spared {
        eprintln!("not tried: {spared}");
    }
    let allowed =
        |line: &String| line.contains("hard limit of descriptors") || line.contains("cannot be had here");
    assert!(outcome.spared.iter().all(allowed), "{:#?}", outcome.spared);
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    assert_eq!(outcome.missed, 0, "{:#?}", untold(&node));
    node.survives(name);
}

#[test]
fn descriptors_on_glibc() {
    all_ways(Setup::translated, Language::C, "descriptors");
}

#[test]
fn descriptors_on_musl() {
    all_ways(Setup::translated, Language::MuslC, "descriptors");
}

#[test]
fn descriptors_in_identity_placement() {
    all_ways(Setup::identity, Language::C, "descriptors");
}

#[test]
fn processes_on_glibc() {
    all_ways(Setup::translated, Language::C, "processes");
}

#[test]
fn processes_on_musl() {
    all_ways(Setup::translated, Language::MuslC, "processes");
}

/// Writers of records and of invariants (`durability.rs`) on musl: what was acknowledged is there after the loss of the
/// machine, and nothing was missed.
#[test]
fn processes_that_write_on_musl() {
    let Some((_store, mut node)) = node(Setup::translated) else { return };
    let fsync_writer = program(&node, Language::MuslC, "fsync_writer");
    let invariant = program(&node, Language::MuslC, "invariant");
    let mut writer = Writer::start_on(&node, "w", &fsync_writer);
    let mut others = Vec::new();
    for style in ["write", "stdio", "mmap", "names"] {
        node.sh(&format!("mkdir {style}"));
        let mut command = node.app(&invariant);
        command.arg(style).arg(node.prefix().join(style));
        others.push((style, node.spawn(command)));
    }
    writer.advances(30, LIMIT);
    for (_, app) in &mut others {
        app.assert_running();
    }
    // In the middle of everything.
    node.lose();
    drop((writer, others));
    node.start();
    assert!(verify(&node, "w") >= 30);
    for style in ["write", "stdio", "mmap", "names"] {
        let mut command = node.app(&invariant);
        command.args(["check", style]).arg(node.prefix().join(style));
        node.run_to_end(command, LIMIT).succeeded();
    }
}

/// As root, where the tests run as root: with users that change, and another root directory.
#[test]
fn processes_of_root() {
    all_ways(|url| Setup::translated(url).as_user(User::Current), Language::C, "processes");
}

#[test]
fn processes_in_identity_placement() {
    all_ways(Setup::identity, Language::C, "processes");
}

/// The canary: a static program tells nothing, and that is noticed.
#[test]
fn descriptors_that_nobody_tells_are_noticed() {
    let Some((_store, node)) = node(Setup::identity) else { return };
    node.sh("echo before > file");
    node.flush();
    let before = missed(&node);
    let touch = built(Language::StaticC, &crate_dir().join("programs/matrix/touch.c"));
    node.run_to_end(
        {
            let mut command = node.app(touch);
            command.arg(node.prefix().join("untold"));
            command
        },
        LIMIT,
    )
    .succeeded();
    node.flush();
    assert!(missed(&node) > before, "{:#?}", untold(&node));
}

/// bash's own redirections, each used after the agent has looked at the file and found nothing new.
#[test]
fn descriptors_of_a_shell() {
    let Some((_store, mut node)) = node(Setup::translated) else { return };
    node.sh("for name in append both group sub here string high numbered child fifo tee both2 exec source 255; do echo before > $name; done
             echo 'sleep 0.3; echo sourced' > lib");
    node.flush();
    let before = missed(&node);
    node.sh("exec 3>> append; sleep 0.3; echo more >&3; exec 3>&-
             exec 4<> both; sleep 0.3; read -r line <&4; echo \"$line again\" >&4; exec 4>&-
             { sleep 0.3; echo one; (echo two); echo three >&2; } >> group 2>&1 &
             (sleep 0.3; echo sub) >> sub & { sleep 0.3; cat; } >> here <<EOF &
a here-document
EOF
             { sleep 0.3; cat; } >> string <<< 'a here-string' &
             exec {fd}>> high; [ $fd -ge 10 ]; sleep 0.3; echo high >&$fd; exec {fd}>&-
             exec 9>> numbered; exec 10>&9 9>&-; sleep 0.3; echo moved >&10; exec 10>&-
             bash -c 'sleep 0.3; echo child; exec sh -c \"sleep 0.3; echo grandchild\"' >> child &
             echo through | tee >(sleep 0.3; cat >> fifo) > tee; sleep 0.3
             { sleep 0.3; printf a; /bin/echo b; printf c; } &>> both2 &
             (exec >> exec; sleep 0.3; echo executed; exec /bin/echo replaced) & . ./lib >> source &
             bash -c 'exec 255>> 255; sleep 0.3; echo out >&255' ; wait");
    node.flush();
    assert_eq!(missed(&node), before, "{:#?}", untold(&node));
    assert_eq!(
        node.sh("cat both group child 255"),
        "before\nbefore again\nbefore\none\ntwo\nthree\nbefore\nchild\ngrandchild\nbefore\nout\n"
    );
    node.survives("redirections");
}

/// A file that a program without the shim has opened is handed to one with it.
#[test]
fn descriptors_from_programs_without_the_shim() {
    let Some((_store, mut node)) = node(Setup::translated) else { return };
    node.sh("for name in sh cat sed python perl dd awk; do echo before > $name; done");
    node.flush();
    let before = missed(&node);
    for (name, words) in [
        ("sh", &["/bin/sh", "-c", "sleep 0.3; echo after"][..]),
        ("cat", &["/bin/cat", "/etc/hostname"]),
        ("sed", &["/bin/sed", "-n", "p", "/etc/hostname"]),
        ("python", &["/usr/bin/python3", "-c", "import time; time.sleep(.3); print('after')"]),
        ("perl", &["/usr/bin/perl", "-e", "$| = 1; print 'a'; sleep 1; print 'b'"]),
        ("dd", &["/bin/dd", "if=/etc/hostname", "status=none"]),
        ("awk", &["/usr/bin/awk", "{ print }", "/etc/hostname"]),
    ] {
        require(words[0]);
        let mut command = node.app(words[0]);
        let file = File::options().append(true).open(node.tree().join(name)).unwrap();
        command.args(&words[1..]).stdout(file).stderr(Stdio::null());
        // Opened by us, it is nobody's but the program's by now.
        assert!(command.status().unwrap().success(), "{words:?}");
    }
    node.flush();
    assert_eq!(missed(&node), before, "{:#?}", untold(&node));
    node.survives("foreign descriptors");
}

/// The library need not come by LD_PRELOAD, nor alone: children get it all the same.
#[test]
fn processes_preloaded_in_other_ways() {
    let Some((_store, mut node)) = node(Setup::translated) else { return };
    let other = built(Language::SharedC, &crate_dir().join("programs/other_library.c"));
    let copy = node.outside().join("libother.so");
    fs::copy(other, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let (shim, other) = (node.shim(), copy.to_str().unwrap().to_owned());
    let shim = shim.to_str().unwrap();
    let script = "echo one > $0-sh; /usr/bin/touch $0-touch; env -i /usr/bin/touch $0-env; LD_PRELOAD= /usr/bin/touch $0-empty";
    let loader = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let loader = loader.into_iter().find(|path| Path::new(path).exists()).expect("glibc has a loader");
    for (name, preload, words) in [
        ("by-the-loader", None, vec![loader, "--preload", shim, "/bin/sh"]),
        ("before-another", Some(format!("{shim}:{other}")), vec!["/bin/sh"]),
        ("after-another", Some(format!("{other} {shim}")), vec!["/bin/sh"]),
    ] {
        let mut command = node.app(words[0]);
        command.env_remove("LD_PRELOAD").envs(preload.map(|value| ("LD_PRELOAD", value)));
        command.args(&words[1..]).args(["-euc", script]).arg(node.prefix().join(name));
        let said = node.run_to_end(command, LIMIT);
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{name}");
        let made: Vec<bool> = ["sh", "touch", "env", "empty"]
            .map(|part| node.tree().join(format!("{name}-{part}")).exists())
            .to_vec();
        assert_eq!(made, [true; 4], "{name}");
    }
    node.flush();
    assert_eq!(missed(&node), 0, "{:#?}", untold(&node));
    node.survives("other ways of preloading");
}

/// /etc/ld.so.preload, in a mount namespace of its own: only there may it be anybody's.
#[test]
fn processes_preloaded_by_the_system() {
    let Some((_store, mut node)) = node(|url| Setup::translated(url).as_user(User::Current)) else { return };
    let (etc, shim) = (node.outside().join("etc"), node.shim());
    let mut command = node.app("/usr/bin/unshare");
    command.env_remove("LD_PRELOAD").env("SHIM", shim).env("ETC", etc).args(["-Urm", "/bin/bash", "-euc"]).arg(
        "cp -r /etc \"$ETC\" 2> /dev/null || [ -d \"$ETC\" ]; mount --bind \"$ETC\" /etc; echo \"$SHIM\" > /etc/ld.so.preload
         /bin/bash -euc 'echo by the system > $STORAGE/file; env -i /usr/bin/touch $STORAGE/touched; ls $STORAGE'",
    );
    let said = node.run_to_end(command, LIMIT);
    if said.code != 0 && said.err.contains("unshare") {
        eprintln!("not tried: there are no user namespaces here: {}", said.err);
        return;
    }
    assert_eq!(said.succeeded(), "file\ntouched\n");
    node.flush();
    assert_eq!(missed(&node), 0, "{:#?}", untold(&node));
    node.survives("/etc/ld.so.preload");
}

/// Thousands of processes that each make themselves known, change something and end: nothing is lost, nothing is left.
#[test]
fn heavy_processes_by_the_thousands() {
    let Some((_store, mut node)) = node(Setup::translated) else { return };
    let count = scale("STORESHIM_FORKS", 2000);
    let program = program(&node, Language::C, "short_processes");
    node.flush();
    let mut command = node.app(program);
    command.arg(node.prefix()).arg(count.to_string());
    node.run_to_end(command, LIMIT * 2).succeeded();
    node.flush();
    assert_eq!(missed(&node), 0, "{:#?}", untold(&node));
    let log = fs::read_to_string(node.tree().join("log")).unwrap();
    let mut numbers: Vec<u32> = log.lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..count), "{} lines", numbers.len());
    // The agent is done with a dead process as soon as it has read what that left.
    let rings = || fs::read_dir(node.run_dir().join("rings")).unwrap().count();
    let deadline = Instant::now() + LIMIT;
    while rings() > 0 {
        assert!(Instant::now() < deadline, "{} ring files are left", rings());
        std::thread::sleep(Duration::from_millis(20));
    }
    node.survives("thousands of processes");
}
