//! The promises that are numbers or manners: lag, requests, drains, exit statuses, daemons, programs without the shim,
//! large and many things, secrets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use storeshim_tests::node::{FileStore, Node, Said, Setup, find};
use storeshim_tests::programs::{require, scale};
use storeshim_tests::s3::{S3Server, SECRET_KEY};
use storeshim_tests::writer::{Writer, verify};

const SOON: Duration = Duration::from_secs(30);

fn seconds(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

/// A started node, or `None` in the reference run, for tests that are about the agent only.
fn agent(setup: Setup) -> Option<Node> {
    (!setup.reference).then(|| Node::started(setup))
}

// --- Lag and durability ---

/// Promise 2: what nobody synced is in the backend within `max_lag` (here the default of 1 s, and slack for a busy
/// machine).
#[test]
fn unsynced_changes_arrive_within_max_lag() {
    let store = FileStore::new();
    let Some(mut node) = agent(Setup::translated(store.url())) else { return };
    for round in 0..3 {
        node.sh(&format!("echo {round} > unsynced; mkdir dir{round}; mv dir{round} moved{round}"));
        seconds(2.5);
        node.lose();
        node.start();
        assert_eq!(node.sh("cat unsynced"), format!("{round}\n"));
        assert!(node.tree().join(format!("moved{round}")).is_dir());
    }
}

/// stdio and shared mappings pass no hook when they write; they are bound by the same lag while they are open.
#[test]
fn unhooked_writes_of_open_files_arrive_too() {
    let store = FileStore::new();
    let Some(mut node) = agent(Setup::translated(store.url())) else { return };
    let mut command = node.app("/usr/bin/python3");
    command.arg("-c").arg(
        "import mmap, os, time
os.chdir(os.environ['STORAGE'])
f = open('mapped', 'wb+'); f.truncate(4096); m = mmap.mmap(f.fileno(), 4096)
inherited = os.open('inherited', os.O_WRONLY | os.O_CREAT)
time.sleep(2.5)
m[0:6] = b'mapped'
pid = os.spawnlp(os.P_NOWAIT, 'sed', 'sed', '-n', 'p;w ' + os.environ['STORAGE'] + '/by-sed', '/etc/hostname')
os.waitpid(pid, 0)
open(os.environ['OUTSIDE'] + '/written', 'w').close()
time.sleep(60)",
    );
    let app = node.spawn(command);
    wait_for(&node, "written");
    seconds(3.0);
    node.lose();
    drop(app);
    node.start();
    assert_eq!(&fs::read(node.tree().join("mapped")).unwrap()[..6], b"mapped");
    assert_eq!(fs::read(node.tree().join("by-sed")).unwrap(), fs::read("/etc/hostname").unwrap());
}

#[track_caller]
fn wait_for(node: &Node, name: &str) {
    let deadline = Instant::now() + SOON;
    while !node.outside().join(name).exists() {
        assert!(Instant::now() < deadline, "no {name} after {SOON:?}");
        seconds(0.005);
    }
}

/// Durability `local`: fsync does not wait for the backend, which follows.
#[test]
fn local_durability_does_not_wait() {
    let server = S3Server::start();
    let Some(mut node) = agent(Setup::on_s3(&server).with("durability", "local")) else { return };
    server.knobs().hang.store(true, Relaxed);
    let mut writer = Writer::start(&node, "w");
    writer.advances(50, SOON);
    writer.finish();
    assert!(node.status_of("dirty_age_ms").as_u64().unwrap() > 0);
    server.knobs().heal();
    node.survives("local durability");
    assert!(verify(&node, "w") >= 50);
}

/// With `local` an agent that dies takes nothing with it: the tree stays, and the next agent finds what is in it.
#[test]
fn local_durability_outlives_the_agent() {
    let server = S3Server::start();
    let Some(mut node) = agent(Setup::on_s3(&server).with("durability", "local").with("max_lag", "1h"))
    else {
        return;
    };
    let mut writer = Writer::start(&node, "w");
    writer.advances(50, SOON);
    node.kill_agent();
    writer.advances(50, SOON);
    writer.finish();
    node.start();
    node.survives("local durability over an agent's death");
    assert!(verify(&node, "w") >= 100);
}

/// SIGTERM drains: what was never synced is in the backend when the agent has ended.
#[test]
fn sigterm_drains() {
    let store = FileStore::new();
    let Some(mut node) = agent(Setup::translated(store.url()).with("max_lag", "1h")) else { return };
    node.sh("head -c 5000000 /dev/urandom > random; mkdir -p a/b; echo unsynced > a/b/c");
    let before = fs::read(node.tree().join("random")).unwrap();
    let status = node.stop_agent();
    assert!(status.success(), "{status}");
    node.lose();
    node.start();
    assert_eq!(node.sh("cat a/b/c"), "unsynced\n");
    assert!(fs::read(node.tree().join("random")).unwrap() == before);
}

/// SIGTERM under live apps: their barriers wait for the next agent; descriptors, mappings and locks hold.
#[test]
fn graceful_restart_under_live_apps() {
    let store = FileStore::new();
    let Some(mut node) = agent(Setup::identity(store.url())) else { return };
    let mut writer = Writer::start(&node, "w");
    for _ in 0..4 {
        writer.advances(5, SOON);
        assert!(node.stop_agent().success());
        writer.app().assert_running();
        node.start();
    }
    writer.advances(5, SOON);
    assert_eq!(node.bash("! flock -n w/lock true").code, 0, "the lock was lost");
    writer.finish();
    node.survives("graceful restarts");
    verify(&node, "w");
}

// --- Requests ---

/// Small files travel together: 10,000 of them cost at most a PUT per 100, everything counted.
#[test]
fn heavy_untar_of_ten_thousand_small_files() {
    let server = S3Server::start();
    let Some(mut node) = agent(Setup::on_s3(&server)) else { return };
    let mut command = node.app_without_shim("/usr/bin/python3");
    command.arg("-c").arg(
        "import io, os, tarfile
with tarfile.open(os.environ['OUTSIDE'] + '/small.tar', 'w') as tar:
    for i in range(10000):
        data = os.urandom(16).hex().encode() * (1 + i % 60)
        info = tarfile.TarInfo(f'd{i % 100}/f{i}')
        info.size = len(data); info.mtime = 1600000000 + i
        tar.addfile(info, io.BytesIO(data))",
    );
    Said::from(command.output().unwrap()).succeeded();
    node.flush();
    let before = server.counters().puts();
    node.sh("tar -xf \"$OUTSIDE/small.tar\"");
    node.flush();
    let puts = server.counters().puts() - before;
    println!("{puts} PUTs for 10,000 files");
    assert!(puts <= 100, "{puts} PUTs for 10,000 files");
    node.survives("untar");
}

/// A small fsync is one PUT (and the odd one for the store's own book-keeping).
#[test]
fn a_small_fsync_costs_about_one_put() {
    let server = S3Server::start();
    let Some(node) = agent(Setup::on_s3(&server).with("max_lag", "1h")) else { return };
    node.sh("echo 0 > f; sync f");
    let before = server.counters().puts();
    node.python(
        "with open('f', 'ab', buffering=0) as f:
    for i in range(40):
        f.write(b'record %d\\n' % i)
        os.fsync(f.fileno())",
    );
    let puts = server.counters().puts() - before;
    assert!((40..=60).contains(&puts), "{puts} PUTs for 40 fsyncs");
}

/// A small change in a large file costs about what was changed, not the file.
#[test]
fn a_small_change_in_a_large_file_is_cheap() {
    let server = S3Server::start();
    let Some(mut node) = agent(Setup::on_s3(&server)) else { return };
    node.sh("head -c 100000000 /dev/urandom > big");
    node.flush();
    let before = server.counters().bytes_in.load(Relaxed);
    node.python(
        "fd = os.open('big', os.O_WRONLY)
for i in range(3):
    os.pwrite(fd, b'x' * 4096, 30_000_000 + i * 4096)
os.fsync(fd)",
    );
    let bytes = server.counters().bytes_in.load(Relaxed) - before;
    assert!(bytes <= 6 << 20, "{bytes} bytes sent for 12 KiB changed");
    node.survives("a small change");
}

/// What is stored already is not sent again: a copy costs its metadata.
#[test]
fn copies_are_not_sent_again() {
    let server = S3Server::start();
    let Some(mut node) = agent(Setup::on_s3(&server)) else { return };
    node.sh("head -c 24000000 /dev/urandom > original");
    node.flush();
    let before = server.counters().bytes_in.load(Relaxed);
    node.sh("cp original copy; mv original renamed");
    node.flush();
    let bytes = server.counters().bytes_in.load(Relaxed) - before;
    assert!(bytes <= 2 << 20, "{bytes} bytes sent for a copy of 24 MB");
    node.survives("copies");
}

/// What compresses is compressed.
#[test]
fn text_is_compressed() {
    let server = S3Server::start();
    let Some(mut node) = agent(Setup::on_s3(&server)) else { return };
    node.flush();
    let before = server.counters().bytes_in.load(Relaxed);
    node.sh("seq 3000000 > text");
    node.flush();
    let bytes = server.counters().bytes_in.load(Relaxed) - before;
    assert!(bytes <= 12 << 20, "{bytes} bytes sent for 23 MB of text");
    node.survives("text");
}

/// While nothing changes nothing is written.
#[test]
fn idle_costs_no_puts() {
    let server = S3Server::start();
    let Some(node) = agent(Setup::on_s3(&server).with("audit_interval", "1s")) else { return };
    node.sh("mkdir d; for i in $(seq 200); do echo $i > d/$i; done");
    node.flush();
    // The compactor takes up its work some seconds after the opening, which costs a few, once.
    seconds(7.0);
    let before = server.counters().puts();
    seconds(5.0);
    node.sh("cat d/* > /dev/null; ls -lR > /dev/null");
    seconds(1.0);
    let puts = server.counters().puts() - before;
    assert!(puts <= 2, "{puts} PUTs while nothing changed");
}

// --- Programs without the shim ---

/// Promise 7: the background audit finds what programs without the shim did, within the audit interval.
#[test]
fn changes_without_the_shim_are_picked_up_by_the_audit() {
    let store = FileStore::new();
    let Some(mut node) = agent(Setup::identity(store.url()).with("audit_interval", "1s")) else { return };
    node.sh("mkdir d; echo old > d/changed; echo old > d/removed; echo old > d/same-size; sync d");
    node.flush();
    let mut command = node.app_without_shim("/bin/bash");
    command.arg("-c").arg(
        "cd \"$STORAGE\"; echo foreign > new; echo longer than before > d/changed; rm d/removed; mkdir e; ln new e/link
         touch -r d/same-size \"$OUTSIDE/time\"; echo NEW > d/same-size; touch -r \"$OUTSIDE/time\" d/same-size",
    );
    assert!(command.status().unwrap().success());
    // Twice the interval (it may just have begun), the lag, and slack.
    seconds(5.0);
    node.lose();
    node.start();
    let seen = node.sh("cat new d/changed d/same-size; ls d; stat -c %h e/link");
    assert_eq!(seen, "foreign\nlonger than before\nNEW\nchanged\nsame-size\n2\n");
}

#[test]
fn changes_without_the_shim_are_picked_up_at_flush() {
    let store = FileStore::new();
    let Some(mut node) = agent(Setup::translated(store.url()).with("audit_interval", "1h")) else { return };
    node.sh("echo old > old");
    node.flush();
    let mut command = node.app_without_shim("/bin/bash");
    command
        .arg("-c")
        .arg("cd \"$STORAGE\"; echo foreign > new; echo more >> old; chmod 600 old; mkfifo fifo");
    assert!(command.status().unwrap().success());
    node.survives("changes without the shim");
    assert_eq!(node.sh("cat new old; stat -c %a old"), "foreign\nold\nmore\n600\n");
}

/// A program without the shim that is in the tree is named in `status`.
#[test]
fn programs_without_the_shim_are_named() {
    let store = FileStore::new();
    let Some(mut node) = agent(Setup::identity(store.url()).with("audit_interval", "500ms")) else { return };
    let mut command = node.app_without_shim("/usr/bin/python3");
    command.arg("-c").arg(
        "import os, time
f = open(os.environ['STORAGE'] + '/held', 'w', buffering=1)
while True:
    f.write('line\\n')
    time.sleep(0.05)",
    );
    let app = node.spawn(command);
    let pid = app.pid().to_string();
    node.await_status("the program's name", |status| {
        find(status, "foreign").is_some_and(|list| list.to_string().contains(&pid))
    });
    let named = node.status_of("foreign").to_string();
    assert!(named.contains("python3"), "{named}");
    drop(app);
    node.survives("a foreign writer");
}

// --- `storeshim run` ---

fn run(node: &Node, script: &str) -> Command {
    let mut command = node.agent_command("run");
    command.env("STORAGE", node.prefix()).env("OUTSIDE", node.outside());
    command.args(["--", "/bin/sh", "-c", script]);
    command
}

#[test]
fn run_needs_no_agent_and_leaves_everything_in_the_store() {
    let store = FileStore::new();
    let setup = Setup::translated(store.url());
    if setup.reference {
        return; // The plain disk has no agent.
    }
    let mut node = Node::new(setup);
    let said = node.run_to_end(run(&node, "echo hello > $STORAGE/f; cat $STORAGE/f; echo oops >&2"), SOON);
    assert_eq!((said.code, said.out.as_str()), (0, "hello\n"), "{said:?}");
    assert!(said.err.contains("oops"));
    node.lose();
    let said = node.run_to_end(run(&node, "cat $STORAGE/f; echo again >> $STORAGE/f"), SOON);
    assert_eq!((said.code, said.out.as_str()), (0, "hello\n"), "{said:?}");
    node.lose();
    let said = node.run_to_end(run(&node, "cat $STORAGE/f"), SOON);
    assert_eq!(said.out, "hello\nagain\n", "{said:?}");
}

#[test]
fn run_passes_the_exit_status_through() {
    let store = FileStore::new();
    let Some(node) = agent(Setup::identity(store.url())) else { return };
    for (script, code) in
        [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
    {
        assert_eq!(node.run_to_end(run(&node, script), SOON).code, code, "{script}");
    }
    // Standard input is the program's.
    let mut command = run(&node, "cat > $STORAGE/in; cat $STORAGE/in");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"piped in").unwrap();
    assert_eq!(Said::from(child.wait_with_output().unwrap()).succeeded(), "piped in");
}

#[test]
fn run_passes_signals_on() {
    let store = FileStore::new();
    let Some(node) = agent(Setup::identity(store.url())) else { return };
    for (name, signal, code) in [
        ("TERM", Signal::SIGTERM, 42),
        ("INT", Signal::SIGINT, 43),
        ("HUP", Signal::SIGHUP, 44),
        ("USR1", Signal::SIGUSR1, 45),
    ] {
        let script = format!("trap 'exit {code}' {name}; : > $OUTSIDE/{name}; while :; do sleep 0.05; done");
        let mut child = run(&node, &script).spawn().unwrap();
        wait_for(&node, name);
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "SIG{name}: {status}");
    }
}

#[test]
fn two_runs_share_one_agent() {
    let store = FileStore::new();
    let setup = Setup::translated(store.url());
    if setup.reference {
        return; // The plain disk has no agent.
    }
    let node = Node::new(setup);
    let mut first =
        run(&node, ": > $OUTSIDE/up; while [ ! -e $STORAGE/from-second ]; do sleep 0.05; done; echo seen")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
    wait_for(&node, "up");
    let second = node.run_to_end(run(&node, "echo x > $STORAGE/from-second"), SOON);
    assert_eq!(second.code, 0, "{second:?}");
    let deadline = Instant::now() + SOON;
    while first.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = first.kill();
            panic!("the first run never saw the second one's file");
        }
        seconds(0.02);
    }
    assert_eq!(Said::from(first.wait_with_output().unwrap()).succeeded(), "seen\n");
}

// --- Awkward apps ---

/// Children that throw the environment away are under the shim all the same.
#[test]
fn children_with_an_empty_environment() {
    let store = FileStore::new();
    let mut node = Node::started(Setup::translated(store.url()));
    node.sh("env -i /bin/sh -c \"echo one > $STORAGE/one\"
             env -i PATH=/usr/bin:/bin sh -c \"env -i /usr/bin/touch $STORAGE/two\"
             env -u LD_PRELOAD sh -c \"echo three > $STORAGE/three\"");
    node.python(
        "import subprocess
p = os.environ['STORAGE']
subprocess.run(['/bin/sh', '-c', f'echo four > {p}/four'], env={}, check=True)
if os.fork() == 0:
    os.execve('/bin/sh', ['sh', '-c', f'echo five > {p}/five'], {'A': 'b'})
os.wait()
os.waitpid(os.posix_spawn('/bin/sh', ['sh', '-c', f'echo six > {p}/six'], {}), 0)",
    );
    assert_eq!(node.sh("ls | tr '\\n' ' '"), "five four one six three two ");
    node.survives("empty environments");
}

/// A daemon: own session, all descriptors closed, its parents gone.
#[test]
fn daemons() {
    require("setsid");
    let store = FileStore::new();
    let mut node = Node::started(Setup::translated(store.url()));
    node.python(
        "import time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(0, 1024)
    time.sleep(0.5)
    fd = os.open(os.environ['STORAGE'] + '/daemon', os.O_WRONLY | os.O_CREAT)
    os.write(fd, b'alive')
    os.fsync(fd)
    os.close(os.open(os.environ['OUTSIDE'] + '/daemon-done', os.O_CREAT | os.O_WRONLY))
    os._exit(0)",
    );
    node.sh("setsid -f sh -c 'exec <&- >&- 2>&-; sleep 0.3; echo alive > $STORAGE/setsid; : > $OUTSIDE/setsid-done'");
    wait_for(&node, "daemon-done");
    wait_for(&node, "setsid-done");
    node.survives("daemons");
    assert_eq!(node.sh("cat daemon"), "alive");
}

#[test]
fn descriptors_passed_between_processes() {
    let store = FileStore::new();
    let mut node = Node::started(Setup::translated(store.url()));
    node.python(
        "import array, socket, subprocess
a, b = socket.socketpair()
if os.fork() == 0:
    data, ancillary, _, _ = a.recvmsg(1, socket.CMSG_SPACE(4))
    fd = array.array('i', ancillary[0][2])[0]
    os.write(fd, b'through a socket')
    os.fsync(fd)
    os._exit(0)
fd = os.open('passed', os.O_RDWR | os.O_CREAT)
b.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])
os.close(fd)
assert os.wait()[1] == 0
with open('inherited', 'w') as f:
    subprocess.run(['/bin/echo', 'by a child'], stdout=f, check=True)
with open('inherited') as f:
    assert subprocess.run(['/bin/cat'], stdin=f, check=True, capture_output=True).stdout == b'by a child\\n'",
    );
    node.survives("passed descriptors");
}

/// Nothing is left behind by processes that come and go.
#[test]
fn heavy_short_processes_leave_nothing_behind() {
    let store = FileStore::new();
    let Some(mut node) = agent(Setup::translated(store.url())) else { return };
    let count = scale("STORESHIM_PROCESSES", 1500);
    let descriptors = |node: &Node| fs::read_dir(format!("/proc/{}/fd", node.agent_pid())).unwrap().count();
    let maps = |node: &Node| fs::read(format!("/proc/{}/maps", node.agent_pid())).unwrap().len();
    node.sh("mkdir d; for i in $(seq 20); do /bin/touch d/$i; done");
    node.flush();
    let (fds, map) = (descriptors(&node), maps(&node));
    node.sh(&format!("for i in $(seq {count}); do /bin/touch d/$((i % 50)); done"));
    node.flush();
    seconds(1.0);
    assert!(descriptors(&node) <= fds + 16, "{fds} descriptors became {}", descriptors(&node));
    assert!(maps(&node) <= map * 2 + 8192, "{map} bytes of mappings became {}", maps(&node));
    let rings = fs::read_dir(node.run_dir().join("rings")).unwrap().count();
    assert!(rings <= 16, "{rings} ring files are left");
    node.survives("short processes");
}

/// A sparse file far larger than memory or patience: holes cost nothing anywhere.
#[test]
fn heavy_sparse_file_of_five_gib() {
    let server = S3Server::start();
    let mut node = Node::started(Setup::on_s3(&server));
    let before = server.counters().bytes_in.load(Relaxed);
    node.python(
        "with open('sparse', 'wb') as f:
    f.truncate(5 << 30)
    for at in (0, 1 << 30, (3 << 30) + 12345, (5 << 30) - 5):
        f.seek(at)
        f.write(b'spots')",
    );
    node.survives("a sparse file");
    let bytes = server.counters().bytes_in.load(Relaxed) - before;
    assert!(bytes < 32 << 20, "{bytes} bytes sent for four spots");
}

/// A mount that holds nothing is restored as nothing.
#[test]
fn an_empty_volume() {
    let store = FileStore::new();
    let Some(mut node) = agent(Setup::translated(store.url())) else { return };
    node.flush();
    node.lose();
    node.start();
    assert_eq!(node.sh("ls -A"), "");
}

// --- Manners ---

/// Promise 8: credentials are in the agent only.
#[test]
fn secrets_do_not_leak() {
    let server = S3Server::start();
    let Some(node) = agent(Setup::on_s3(&server)) else { return };
    node.sh("echo x > x; sync x");
    let mut places = vec![
        ("log".to_owned(), node.log().into_bytes()),
        ("status".to_owned(), node.status().to_string().into_bytes()),
    ];
    let cmdline = format!("/proc/{}/cmdline", node.agent_pid());
    places.push((cmdline.clone(), fs::read(cmdline).unwrap()));
    let mut folders = vec![node.run_dir()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => match fs::read(entry.path()) {
                    Ok(bytes) => places.push((entry.path().display().to_string(), bytes)),
                    // The ring of a process that has just ended.
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
                },
                _ => {}
            }
        }
    }
    for (place, bytes) in places {
        assert!(!String::from_utf8_lossy(&bytes).contains(SECRET_KEY), "the secret key is in {place}");
    }
}

/// The agent treats its clients' rings as hostile: garbage in one harms nobody else.
#[test]
fn garbage_in_a_ring_harms_nobody_else() {
    let store = FileStore::new();
    let Some(mut node) = agent(Setup::identity(store.url())) else { return };
    let mut writer = Writer::start(&node, "w");
    let mut command = node.app("/usr/bin/python3");
    command.arg("-c").arg(
        "import os, time
f = open(os.environ['STORAGE'] + '/mine', 'w')
for line in open('/proc/self/maps'):
    part = line.split(None, 5)
    if len(part) == 6 and '/rings/' in part[5] and 'w' in part[1]:
        start, end = (int(x, 16) for x in part[0].split('-'))
        import ctypes
        for _ in range(50):
            ctypes.memmove(start + 64, os.urandom(end - start - 64), end - start - 64)
            time.sleep(0.01)
os._exit(0)",
    );
    let mut vandal = node.spawn(command);
    writer.advances(20, SOON);
    let deadline = Instant::now() + SOON;
    while vandal.ended().is_none() {
        assert!(Instant::now() < deadline, "the vandal hangs");
        seconds(0.02);
    }
    writer.advances(20, SOON);
    writer.finish();
    node.survives("garbage in a ring");
    verify(&node, "w");
}

#[test]
fn status_is_for_people_too() {
    let store = FileStore::new();
    let Some(node) = agent(Setup::translated(store.url())) else { return };
    node.sh("echo x > x; sync x");
    let said = node.run_to_end(node.agent_command("status"), SOON).succeeded();
    for word in [&*node.prefix().display().to_string(), "ready", &store.url()] {
        assert!(said.contains(word), "no `{word}` in:\n{said}");
    }
    let status = node.status();
    assert_eq!(find(&status, "pid").unwrap().as_i64().unwrap(), i64::from(node.agent_pid().as_raw()));
    assert!(find(&status, "files").unwrap().as_u64().unwrap() >= 1);
}
