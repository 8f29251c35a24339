//! The agent as images have it, linked statically: in roots of the kinds of image that docker/Dockerfile makes, and with what the
//! C library would otherwise ask the machine for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use storeshim_tests::node::{FileStore, Node, Said, Setup, built};
use storeshim_tests::programs::{crate_dir, require};

/// What a name is resolved within.
const LIMIT: Duration = Duration::from_secs(30);

/// The agent that `cargo xtask test` has linked.
fn agent() -> PathBuf {
    let named = std::env::var_os("STORESHIM_STATIC_BIN").map(PathBuf::from);
    let program = named.unwrap_or_else(|| crate_dir().join("../target/static/debug/storeshim"));
    assert!(program.exists(), "there is no {}: run the tests by `cargo xtask test`", program.display());
    program
}

/// Roots are entered by chroot(2).
fn is_root() -> bool {
    let is = nix::unistd::geteuid().is_root();
    if !is {
        eprintln!("skipped: only root can change its root directory");
    }
    is
}

fn checked(image: &str) {
    if !is_root() {
        return;
    }
    let script = crate_dir().join("../docker/check.sh");
    let shim = built("libstoreshim.so", "STORESHIM_SHIM");
    let said = Said::from(Command::new(script).arg(image).arg(agent()).arg(shim).output().unwrap());
    assert!(said.succeeded().contains("/storage outlives the disk"));
}

#[test]
fn the_image_of_debian_keeps_its_storage() {
    checked("debian");
}

#[test]
fn the_image_of_alpine_keeps_its_storage() {
    require("musl-gcc");
    require("busybox");
    checked("alpine");
}

/// No library can be preloaded into this agent: its self-test is done by the shell.
#[test]
fn doctor_tries_a_mount_by_the_shell() {
    for setup in [Setup::identity as fn(String) -> Setup, Setup::translated] {
        let store = FileStore::new();
        let setup = setup(store.url());
        let user = setup.user.id();
        let node = Node::started(setup);
        // Beside the other one, where its user may enter.
        let dynamic = node.agent_command("doctor");
        let program = Path::new(dynamic.get_program()).with_file_name("linked-statically");
        fs::copy(agent(), &program).unwrap();
        let mut command = Command::new(program);
        command.args(dynamic.get_args()).env_clear();
        command.envs(dynamic.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(id) = user {
            command.uid(id).gid(id);
        }
        let said = node.run_to_end(command, LIMIT);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        for words in
            ["by /bin/sh", "fsync is answered, rename", "lies in the tree", "no change that was not told"]
        {
            assert!(said.out.contains(words), "no `{words}` in\n{}{}", said.out, said.err);
        }
        assert_eq!(fs::read_dir(node.tree()).unwrap().count(), 0, "something is left behind");
    }
}

/// Answers every question for an address of `name` with this machine's own, until the process ends.
fn serve_names(socket: UdpSocket, name: &str) {
    let asked: Vec<u8> =
        name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let question = &query[12..length];
            // A name, its end, a type, a class.
            let end = question.iter().position(|byte| *byte == 0).unwrap();
            let is_known = question[..end] == asked;
            let is_found = is_known && question[end + 1..end + 3] == [0, 1];
            let code = if is_known { 0x80 } else { 0x83 };
            let mut answer = [&query[..2], &[0x81, code, 0, 1, 0, u8::from(is_found), 0, 0, 0, 0]].concat();
            answer.extend_from_slice(&question[..end + 5]);
            if is_found {
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
}

/// An image's root without any library.
fn root_without_libraries() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for directory in ["bin", "dev", "etc", "run", "storage", "tmp", "var/lib"] {
        fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    for (device, minor) in [("null", 3), ("random", 8), ("urandom", 9)] {
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        let number = nix::sys::stat::makedev(1, minor);
        let path = root.path().join("dev").join(device);
        nix::sys::stat::mknod(&path, nix::sys::stat::SFlag::S_IFCHR, mode, number).unwrap();
    }
    fs::copy(agent(), root.path().join("bin/storeshim")).unwrap();
    root
}

/// Whether an agent in this root connects to `host`.
fn connects(root: &Path, host: &str) -> bool {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut agent = Command::new("/bin/storeshim");
    agent
        .arg("agent")
        .args(["--mount", &format!("/storage=do+ws://{host}:{port}/container/x,placement=identity")])
        .env_clear()
        .env("STORESHIM_TOKEN", "any")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let into = root.to_owned();
    // SAFETY: two plain system calls.
    unsafe {
        agent.pre_exec(move || {
            nix::unistd::chroot(&into)?;
            nix::unistd::chdir("/")?;
            Ok(())
        });
    }
    let mut agent = agent.spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    let mut connected = false;
    while !connected && Instant::now() < deadline && agent.try_wait().unwrap().is_none() {
        connected = listener.accept().is_ok();
        thread::sleep(Duration::from_millis(20));
    }
    let _ = agent.kill();
    agent.wait().unwrap();
    connected
}

/// Names are found in /etc/hosts and by DNS, and what else a machine's nsswitch.conf names is let be: such a module is made for
/// the machine's own C library.
#[test]
fn names_are_resolved_without_a_library() {
    if !is_root() {
        return;
    }
    require("cc");
    let root = root_without_libraries();
    let etc = root.path().join("etc");
    // An address of its own, so that the machine's own server is not in the way.
    let server = Ipv4Addr::new(127, 53, (std::process::id() >> 8) as u8, std::process::id() as u8);
    serve_names(UdpSocket::bind((server, 53)).unwrap(), "named.example");
    fs::write(etc.join("resolv.conf"), format!("nameserver {server}\n")).unwrap();
    fs::write(etc.join("hosts"), "127.0.0.1 hosted.example\n").unwrap();
    assert!(connects(root.path(), "hosted.example"));
    assert!(connects(root.path(), "named.example"), "as in an image without nsswitch.conf");
    // A module that ends whoever loads it.
    let trap = "void __attribute__((constructor)) f(void) { __builtin_trap(); }";
    fs::write(root.path().join("trap.c"), trap).unwrap();
    fs::create_dir_all(root.path().join("lib")).unwrap();
    let module = root.path().join("lib/libnss_trap.so.2");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-nostdlib", "-o"]).arg(module).arg(root.path().join("trap.c"));
    assert!(compiler.status().unwrap().success());
    fs::write(etc.join("nsswitch.conf"), "hosts: trap files dns\n").unwrap();
    assert!(connects(root.path(), "named.example"), "a module was loaded");
}
