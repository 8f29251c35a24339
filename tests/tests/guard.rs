//! Programs without the shim, or without any libc, that meet files of which nothing is here yet: they wait as long as it takes,
//! whoever dies meanwhile, and read what the volume has, or an error; never zeros.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use storeshim_tests::cold::{cold, filled};
use storeshim_tests::contents::CONTENTS;
use storeshim_tests::node::{Node, Said, Setup, find};
use storeshim_tests::programs::{Language, built, crate_dir};
use storeshim_tests::s3::S3Server;

const LONG: Duration = Duration::from_secs(120);

/// A node with nothing of the volume that `fill` has made; `None` where absent files cannot be marked on this machine.
fn marked(setup: Setup, fill: &str) -> Option<Node> {
    let node = cold(setup, fill)?;
    if !["open", "pre-access"].iter().any(|guard| node.status_of("guard") == *guard) {
        eprintln!("skipped: absent files cannot be marked here (it takes CAP_SYS_ADMIN)");
        return None;
    }
    Some(node)
}

/// The same by leases, once all of it is guarded.
fn leased(setup: Setup, fill: &str) -> Option<Node> {
    guarded(setup.with("guard", "leases"), fill)
}

/// The same in whatever way.
fn guarded(setup: Setup, fill: &str) -> Option<Node> {
    let mut node = cold(setup, fill)?;
    node.await_status("the guard", |status| find(status, "unguarded_files").is_some_and(|n| n == 0));
    Some(node)
}

/// Python in the tree, and no shim.
fn unhooked(node: &Node, program: &str) -> Command {
    let mut command = node.app_without_shim("/usr/bin/python3");
    command.arg("-c").arg(format!("import os\nos.chdir(os.environ['STORAGE'])\n{CONTENTS}\n{program}"));
    command
}

#[track_caller]
fn python(node: &Node, program: &str) -> String {
    node.run_to_end(unhooked(node, program), LONG).succeeded()
}

fn counter(node: &Node, name: &str) -> u64 {
    node.status_of(name).as_u64().unwrap_or(0)
}

#[test]
fn absent_files_are_read_right_in_every_way() {
    in_every_way("auto");
}

#[test]
fn absent_bytes_are_read_right_in_every_way() {
    in_every_way("pre-access");
}

fn in_every_way(guard: &str) {
    let server = S3Server::start();
    let fill = "import shutil
for name, size in ('whole', 300000), ('large', 9 << 20), ('mapped', 5 << 20), ('copied', 6 << 20), ('direct', 1 << 20): make(name, size)
for name in 'sent', 'cut', 'written', 'd/e/f': make(name, 700000)
shutil.copy('/bin/echo', 'echo')
with open('sparse', 'wb') as f:
    f.truncate(8 << 20); f.seek(5 << 20); f.write(b'x' * 1000)";
    let Some(mut node) = marked(Setup::on_s3(&server).with("guard", guard), fill) else { return };
    assert_eq!(node.residency("unguarded_files"), 0, "{:#}", node.status());
    let static_c = built(Language::StaticC, &crate_dir().join("programs/direct_read.c"));
    python(
        &node,
        "import subprocess
right('whole', 300000)
right('d/e/f', 700000)
data = content('large', 9 << 20)
fd = os.open('large', os.O_RDONLY)
for at in (8 << 20, 1 << 20, 4000001):
    same('large', os.pread(fd, 5000, at), data[at:at + 5000])
with mmap.mmap(os.open('mapped', os.O_RDONLY), 0, prot=mmap.PROT_READ) as m:
    same('mapped', m[:], content('mapped', 5 << 20))
# It looks for holes.
subprocess.run(['cp', 'copied', os.environ['OUTSIDE'] + '/copy'], check=True)
same('copied', open(os.environ['OUTSIDE'] + '/copy', 'rb').read(), content('copied', 6 << 20))
out = os.open(os.environ['OUTSIDE'] + '/sent', os.O_RDWR | os.O_CREAT)
assert os.sendfile(out, os.open('sent', os.O_RDONLY), 0, 700000) == 700000
same('sent', os.pread(out, 700000, 0), content('sent', 700000))
os.truncate('cut', 400001)
same('cut', open('cut', 'rb').read(), content('cut', 700000)[:400001])
with open('written', 'r+b') as f:
    f.seek(200000); f.write(b'new')
same('written', open('written', 'rb').read(), content('written', 700000)[:200000] + b'new' + content('written', 700000)[200003:])
sparse = open('sparse', 'rb').read()
assert len(sparse) == 8 << 20 and sparse.count(0) == (8 << 20) - 1000 and sparse[5 << 20:][:1000] == b'x' * 1000
assert subprocess.run(['./echo', 'it', 'runs'], check=True, capture_output=True).stdout == b'it runs\\n'",
    );
    let mut direct = node.app_without_shim(static_c);
    direct.arg(node.tree().join("direct"));
    let said = node.run_to_end(direct, LONG).succeeded();
    let expected = node.python(&format!("{CONTENTS}\nprint(sum(content('direct', 1 << 20)))"));
    assert_eq!(said, expected);
    let asked = counter(&node, "guarded_accesses");
    assert!(asked > 0, "{:#}", node.status());
    // What is here as a whole costs nothing, and what was written without the shim is the volume's.
    python(&node, "right('whole', 300000)\nright('large', 9 << 20)\nright('copied', 6 << 20)");
    assert_eq!(counter(&node, "guarded_accesses"), asked);
    node.survives("readers without the shim");
}

/// A file that is too large to come whole comes as it is read.
#[test]
fn a_large_file_comes_in_parts() {
    let server = S3Server::start();
    let setup = Setup::on_s3(&server).with("cache_size", "48MiB");
    let Some(node) = marked(setup, "make('large', 40 << 20)") else { return };
    let before = server.counters().bytes_out.load(Relaxed);
    python(
        &node,
        "data = content('large', 40 << 20)
fd = os.open('large', os.O_RDONLY)
for at in (39 << 20, 3 << 20, 21 << 20, 12000001):
    same('large', os.pread(fd, 70000, at), data[at:at + 70000])
with mmap.mmap(fd, 1 << 20, prot=mmap.PROT_READ, offset=32 << 20) as m:
    same('large', m[:], data[32 << 20:33 << 20])",
    );
    let came = server.counters().bytes_out.load(Relaxed) - before;
    assert!(came < 24 << 20, "{came} bytes came");
    python(&node, "right('large', 40 << 20)");
}

/// A program under the shim opens a file, and one without a loader gets the descriptor.
#[test]
fn a_descriptor_that_is_handed_on_is_guarded() {
    let server = S3Server::start();
    let setup = Setup::on_s3(&server).with("guard", "pre-access");
    let Some(node) = marked(setup, "make('f', 9 << 20)") else { return };
    if node.status_of("guard") != "pre-access" {
        eprintln!("skipped: bytes cannot be marked here (it takes Linux 6.14)");
        return;
    }
    let expected = node.python(&format!("{CONTENTS}\nprint(sum(content('f', 9 << 20)))"));
    let program = built(Language::StaticC, &crate_dir().join("programs/direct_read.c"));
    assert_eq!(node.sh(&format!("exec {} <f", program.display())), expected);
}

/// An unpopulated directory is populated when somebody lists it.
#[test]
fn a_directory_is_populated_when_it_is_opened() {
    let server = S3Server::start();
    let Some(node) = marked(Setup::on_s3(&server), "for i in range(50): make(f'a/b/{i}', 10)") else {
        return;
    };
    assert_eq!(python(&node, "print(len(os.listdir('a/b')))"), "50\n");
}

/// What was evicted is guarded again.
#[test]
fn what_was_evicted_comes_back() {
    let server = S3Server::start();
    let Some(node) = marked(Setup::on_s3(&server), "make('a', 3 << 20)\nmake('b', 9 << 20)") else { return };
    for _ in 0..2 {
        python(&node, "right('a', 3 << 20)\nright('b', 9 << 20)");
        // What was opened without the shim stays for so long at least.
        std::thread::sleep(Duration::from_secs(11));
        let prefix = node.prefix().display().to_string();
        let said = node.work("evict", &[&prefix]);
        assert!(node.residency("resident_bytes") == 0, "{said:?}\n{:#}", node.status());
    }
    python(&node, "right('b', 9 << 20)\nright('a', 3 << 20)");
}

#[test]
fn a_read_that_cannot_be_served_is_an_error() {
    let server = S3Server::start();
    let Some(node) = marked(Setup::on_s3(&server).with("patience", "2s"), "make('f', 3 << 20)") else {
        return;
    };
    server.knobs().internal_error_pct.store(100, Relaxed);
    python(
        &node,
        "import errno
try:
    open('f', 'rb').read()
except OSError as error:
    assert error.errno == errno.EIO, error
else:
    assert False, 'it was served without a backend'",
    );
    server.knobs().heal();
    python(&node, "right('f', 3 << 20)");
    assert!(counter(&node, "guarded_failures") > 0, "{:#}", node.status());
}

#[test]
fn many_readers_at_once() {
    let server = S3Server::start();
    let Some(node) = marked(Setup::on_s3(&server), "for i in range(24): make(f'f{i}', 400000)") else {
        return;
    };
    let program = "order = list(range(24))\nrandom.shuffle(order)\nfor i in order: right(f'f{i}', 400000)";
    let readers: Vec<_> =
        (0..8).map(|_| unhooked(&node, program).stderr(Stdio::piped()).spawn().unwrap()).collect();
    node.python(&format!("{CONTENTS}\n{program}"));
    for reader in readers {
        let output = reader.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A reader that waits for a backend that does not answer, and what `act` does meanwhile; he must read what is right.
fn meanwhile(act: impl FnOnce(&mut Node), again: bool) {
    let server = S3Server::start();
    let Some(mut node) = marked(Setup::on_s3(&server), "make('f', 3 << 20)\nmake('g', 5 << 20)") else {
        return;
    };
    python(&node, "right('g', 5 << 20)");
    server.knobs().internal_error_pct.store(100, Relaxed);
    let mut reader = unhooked(&node, "right('f', 3 << 20)").stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + LONG;
    while counter(&node, "guarded_accesses") == 0 || !waits(reader.id()) {
        assert!(Instant::now() < until && reader.try_wait().unwrap().is_none(), "{:#}", node.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    act(&mut node);
    assert!(reader.try_wait().unwrap().is_none(), "he has not waited");
    // What is here is nobody's concern.
    python(&node, "right('g', 5 << 20)");
    server.knobs().heal();
    if again {
        node.start();
    }
    let output = reader.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), node.log());
}

fn waits(pid: u32) -> bool {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("wchan"));
    text.is_ok_and(|text| text.contains("fanotify"))
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") D "))
}

#[test]
fn readers_outlive_the_agent() {
    meanwhile(
        |node| {
            node.kill_agent();
            std::thread::sleep(Duration::from_millis(1500));
        },
        true,
    );
}

#[test]
fn readers_outlive_the_process_that_holds_the_marks() {
    let act = |node: &mut Node| {
        for _ in 0..3 {
            let before = node.guards();
            assert_eq!(before.len(), 1);
            before.iter().for_each(|pid| kill(*pid, Signal::SIGKILL).unwrap());
            let until = Instant::now() + LONG;
            // Looked at once: between two looks the one that was killed may go.
            while Some(node.guards()).filter(|now| now.len() == 1 && *now != before).is_none() {
                assert!(Instant::now() < until, "it was not started again");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    meanwhile(act, false);
}

/// A reader without the shim who reads `name`, and waits.
fn waiting(node: &Node, name: &str) -> std::process::Child {
    let mut reader =
        unhooked(node, &format!("right('{name}', 3 << 20)")).stderr(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + LONG;
    while !waits(reader.id()) {
        assert!(Instant::now() < until && reader.try_wait().unwrap().is_none(), "he does not wait");
        std::thread::sleep(Duration::from_millis(5));
    }
    reader
}

/// Who waits can be killed; and after an orderly end nobody waits, and no process is left.
#[test]
fn nobody_is_stuck() {
    let server = S3Server::start();
    let fill = "for name in 'abc': make(f'{name}/f', 3 << 20)";
    let Some(mut node) = marked(Setup::on_s3(&server), fill) else { return };
    server.knobs().internal_error_pct.store(100, Relaxed);
    let mut reader = waiting(&node, "a/f");
    node.kill_agent();
    reader.kill().unwrap();
    reader.wait().unwrap();
    let mut reader = waiting(&node, "b/f");
    server.knobs().heal();
    node.start();
    assert!(reader.wait().unwrap().success());
    server.knobs().internal_error_pct.store(100, Relaxed);
    let mut reader = waiting(&node, "c/f");
    server.knobs().heal();
    node.stop_agent();
    // He was served just before the end, or has failed.
    reader.wait().unwrap();
    assert!(node.guards().is_empty());
}

/// An open that does not wait is no reason to bring all of a file: who asks before he reads is let in.
#[test]
fn who_does_not_wait_at_a_guard_is_let_in_if_he_asks() {
    let server = S3Server::start();
    let Some(node) = leased(Setup::on_s3(&server), "make('f', 64 << 20)") else { return };
    node.python(&format!(
        "{CONTENTS}
fd = os.open('f', os.O_RDONLY | os.O_NONBLOCK)
assert os.read(fd, 4096) == content('f', 64 << 20)[:4096]"
    ));
    let brought = counter(&node, "hydrated_bytes");
    assert!(brought < 32 << 20, "{brought} bytes came");
}

/// Somebody who does not ask waits to read a file of which nothing is here, and then `meanwhile` happens.
fn stranger(meanwhile: impl FnOnce(&Node)) {
    const SIZE: u64 = 24 << 20;
    let server = S3Server::start();
    let Some(node) = leased(Setup::on_s3(&server), "make('f', 24 << 20)") else { return };
    let path = node.tree().join("f");
    server.knobs().delay_ms.store(700, Relaxed);
    std::thread::scope(|scope| {
        let stranger = scope.spawn(|| Command::new("/bin/cat").arg(&path).output().unwrap().stdout);
        std::thread::sleep(Duration::from_millis(200));
        meanwhile(&node);
        let read = stranger.join().unwrap();
        assert_eq!(read.len() as u64, SIZE);
        // They are random.
        let zeros = read.iter().filter(|byte| **byte == 0).count() as u64;
        assert!(zeros < SIZE / 128, "{zeros} bytes are 0");
    });
}

/// A name may go while somebody waits to read the file behind it.
#[test]
fn what_loses_its_name_is_read_by_who_waits_for_it() {
    for guard in ["auto", "leases"] {
        const SIZE: usize = 9 << 20;
        let server = S3Server::start();
        let setup = Setup::on_s3(&server).with("guard", guard);
        let Some(node) = guarded(setup, "make('f', 9 << 20)") else { return };
        let path = node.tree().join("f");
        server.knobs().delay_ms.store(500, Relaxed);
        std::thread::scope(|scope| {
            let stranger = scope.spawn(|| Command::new("/bin/cat").arg(&path).output().unwrap());
            std::thread::sleep(Duration::from_millis(200));
            node.python("import os\nos.remove('f')");
            node.flush();
            let read = stranger.join().unwrap().stdout;
            let zeros = read.iter().filter(|byte| **byte == 0).count();
            assert!(
                read.len() == SIZE && zeros < SIZE / 128,
                "{guard}: {zeros} of {} bytes are 0",
                read.len()
            );
        });
    }
}

/// What a program under the shim has opened and given another name is guarded again once it is closed.
#[test]
fn what_was_opened_and_moved_is_guarded_again() {
    let server = S3Server::start();
    let Some(mut node) = leased(Setup::on_s3(&server).with("max_lag", "60s"), "make('f', 64 << 20)") else {
        return;
    };
    node.python("import os\nfd = os.open('f', os.O_RDONLY)\nos.pread(fd, 1, 0)\nos.rename('f', 'g')");
    // Until the next cut nobody knows where it is.
    std::thread::sleep(Duration::from_millis(500));
    node.flush();
    node.await_status("the guard", |status| find(status, "unguarded_files").is_some_and(|n| n == 0));
}

/// Who does not ask waits at the same guard: he does not go in behind one who does.
#[test]
fn who_is_let_in_lets_in_nobody_else() {
    stranger(|node| {
        node.python("import os\nfd = os.open('f', os.O_RDONLY | os.O_NONBLOCK)\nos.read(fd, 4096)");
    });
}

/// Nor behind the agent itself, which looks at a file that has changed.
#[test]
fn a_look_lets_in_nobody() {
    stranger(|node| {
        node.python("os.chmod('f', 0o600)");
        node.flush();
    });
}

#[test]
fn an_eviction_lets_in_nobody() {
    stranger(|node| {
        node.python("os.utime('f')");
        (0..5).for_each(|_| drop(node.work("evict", &["f"])));
    });
}

/// What can be executed cannot be open for writing at the same time, not even by the agent: it comes, and then it is run.
#[test]
fn an_absent_program_is_run_and_read_by_who_does_not_ask() {
    let server = S3Server::start();
    let fill = "
import shutil
make('f', 24 << 20)
shutil.copy('/usr/bin/python3', 'python')
for name in ('f', 'python'): os.chmod(name, 0o755)";
    let Some(node) = leased(Setup::on_s3(&server), fill) else { return };
    server.knobs().delay_ms.store(300, Relaxed);
    let run = |program: &str, arguments: &[&str]| {
        Said::from(Command::new(program).args(arguments).output().unwrap()).succeeded()
    };
    let path = |name: &str| node.tree().join(name).display().to_string();
    assert_eq!(run(&path("python"), &["-c", "print(6 * 7)"]), "42\n");
    let expected = node.python(&format!(
        "{CONTENTS}\nimport hashlib\nprint(hashlib.sha256(content('f', 24 << 20)).hexdigest())"
    ));
    assert_eq!(run("/usr/bin/sha256sum", &[&path("f")]).split(' ').next(), Some(expected.trim()));
}

/// Between a file that is here and one of which nothing is there is no moment in which who does not ask finds zeros; nor while the
/// agent looks at what was touched.
#[test]
fn what_is_being_evicted_is_guarded_at_once() {
    let server = S3Server::start();
    let setup = Setup::on_s3(&server).with("guard", "leases");
    let Some(node) = cold(setup, "for n in range(40): make(f'f{n}', 300000)") else { return };
    node.warm();
    let (tree, ended) = (node.tree(), AtomicBool::new(false));
    let reads = || {
        let mut reads = 0;
        while !ended.load(Relaxed) {
            for n in 0..40 {
                let read = match std::fs::read(tree.join(format!("f{n}"))) {
                    // It is under its other name.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    read => read.unwrap(),
                };
                let zeros = read.iter().filter(|byte| **byte == 0).count();
                assert!(zeros < read.len() / 64, "{zeros} bytes of f{n} are 0, in read {reads}");
                reads += 1;
            }
        }
        reads
    };
    let touches = "
for n in range(40):
    if random.random() < .3: os.utime(f'f{n}')
    if random.random() < .2:
        os.rename(f'f{n}', 'other')
        os.rename('other', f'f{n}')";
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + Duration::from_secs(10);
            while Instant::now() < end {
                node.work("evict", &[""]).succeeded();
            }
            ended.store(true, Relaxed);
        });
        scope.spawn(|| {
            while !ended.load(Relaxed) {
                node.python(&format!("import os, random{touches}"));
            }
        });
        let readers: Vec<_> = (0..3).map(|_| scope.spawn(reads)).collect();
        assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 40));
    });
    assert!(counter(&node, "evicted_bytes") > 0, "{:#}", node.status());
}

/// Nor is it left alone for a moment when the agent looks at it.
#[test]
fn what_is_looked_at_stays_guarded() {
    let server = S3Server::start();
    let Some(node) = leased(Setup::on_s3(&server), "make('f', 300000)") else { return };
    for _ in 0..20 {
        node.python("import os\nos.utime('f')");
        node.flush();
        assert_eq!(node.residency("unguarded_files"), 0, "{:#}", node.status());
    }
}

/// Nor between the moment in which a file gets its name and the one from which it is guarded.
#[test]
fn what_gets_its_name_is_guarded_already() {
    const FILES: usize = 200;
    let server = S3Server::start();
    let setup = Setup::on_s3(&server).with("guard", "leases");
    let fill = "for n in range(200): make(f'd/f{n}', 300000)";
    let Some(mut node) = filled(setup, fill) else { return };
    node.lose();
    let tree = node.tree().to_path_buf();
    std::thread::scope(|scope| {
        // From the end: names come in their order, and who waits for one misses those that come meanwhile.
        let readers: Vec<_> = (0..4)
            .map(|part| {
                let tree = &tree;
                scope.spawn(move || {
                    for n in (part * FILES / 4..(part + 1) * FILES / 4).rev().step_by(7) {
                        let path = tree.join(format!("d/f{n}"));
                        let until = Instant::now() + LONG;
                        let read = loop {
                            match std::fs::read(&path) {
                                Ok(read) => break read,
                                Err(error) => assert!(Instant::now() < until, "{}: {error}", path.display()),
                            }
                        };
                        assert_eq!(read.len(), 300_000);
                        let zeros = read.iter().filter(|byte| **byte == 0).count();
                        assert!(zeros < read.len() / 64, "{zeros} bytes of f{n} are 0");
                    }
                })
            })
            .collect();
        node.start();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}
