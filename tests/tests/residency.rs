//! Not everything is on this disk: what is touched comes when it is touched, what is not in use goes, and nobody sees a
//! difference but in time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use storeshim_tests::cold::filled;
use storeshim_tests::contents::CONTENTS;
use storeshim_tests::node::{FileStore, Node, Setup, find};
use storeshim_tests::programs::{Language, built, compiled, crate_dir, scale};
use storeshim_tests::proxy::Proxy;
use storeshim_tests::s3::{BUCKET, S3Server};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(120);

fn seconds(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

/// Runs Python in the volume, with what [`CONTENTS`] defines.
#[track_caller]
fn python(node: &Node, program: &str) -> String {
    node.python(&format!("{CONTENTS}\n{program}"))
}

/// Runs Python with `fails(read, seconds)`: there is EIO, after the patience of 2 s and before so many seconds.
#[track_caller]
fn fails(node: &Node, program: &str) {
    const FAILS: &str = "
import errno, time
def fails(read, seconds):
    began = time.time()
    try:
        read()
    except OSError as error:
        assert error.errno == errno.EIO, error
        assert 1 < time.time() - began < seconds, time.time() - began
    else:
        assert False, 'it was served without a backend'
";
    python(node, &format!("{FAILS}\n{program}"));
}

/// The machine is lost, and the volume is opened on an empty one.
fn begin_cold(node: &mut Node) {
    node.lose();
    node.start();
}

fn sent(server: &S3Server) -> u64 {
    server.counters().bytes_out.load(Relaxed)
}

/// A mount is ready when the volume's root is read; reading some costs some.
#[test]
fn a_cold_mount_fetches_what_is_touched() {
    let server = S3Server::start();
    let fill = "for i in range(200): make(f'd{i % 10}/f{i}', 50000)\nmake('big', 48 << 20)";
    let Some(mut node) = filled(Setup::on_s3(&server), fill) else { return };
    node.lose();
    let before = sent(&server);
    node.start();
    node.await_names();
    assert_eq!(node.sh("ls | wc -l; ls d3 | wc -l; stat -c %s big d3/f13"), "11\n20\n50331648\n50000\n");
    let opened = sent(&server) - before;
    assert!(opened < 4 * MIB, "{opened} bytes came for names alone");
    assert!(node.residency("resident_bytes") < MIB, "{:#}", node.status());

    python(&node, "right('d3/f13', 50000)");
    let small = sent(&server) - before - opened;
    assert!(small < 4 * MIB, "{small} bytes came for one of 50000");

    // Single pages, far from one another: no read-ahead.
    python(
        &node,
        "data = content('big', 48 << 20)
fd = os.open('big', os.O_RDONLY)
for at in (40 << 20, 7 << 20, 33 << 20, 1 << 20, 24 << 20, 47 << 20, 12 << 20):
    assert os.pread(fd, 4096, at) == data[at:at + 4096], at",
    );
    let random = sent(&server) - before - opened - small;
    assert!(random < 16 * MIB, "{random} bytes came for seven pages");
    println!("names {opened} bytes, a small file {small}, seven pages {random}");

    let resident = node.residency("resident_bytes");
    assert!(resident > 50000 && resident < 24 * MIB, "{:#}", node.status());
    assert!(node.residency("asked") > 0, "{:#}", node.status());
    python(&node, "right('big', 48 << 20)\nfor i in range(200): right(f'd{i % 10}/f{i}', 50000)");
    node.await_status("every file here", |status| {
        find(status, "resident_files").and_then(serde_json::Value::as_u64) == Some(201)
    });
    node.survives("a cold mount");
}

/// A backend that takes requests and never answers is one that cannot be read from, too.
#[test]
fn who_is_never_answered_hears_so_in_time() {
    let server = S3Server::start();
    let setup = Setup::on_s3(&server).with("patience", "2s");
    let fill = "for i in range(300): make(f'many/f{i}', 100)\nmake('g', 9 << 20)";
    let Some(mut node) = filled(setup, fill) else { return };
    begin_cold(&mut node);
    server.knobs().hang.store(true, Relaxed);
    fails(
        &node,
        "fails(lambda: open('many/f7', 'rb').read(), 10)\nfails(lambda: open('g', 'rb').read(), 10)",
    );
    server.knobs().heal();
    python(&node, "right('many/f7', 100)\nright('g', 9 << 20)");
}

/// Without the backend what is here is here, and what is not fails after the patience; nothing is ever wrong.
#[test]
fn a_read_that_cannot_be_served_fails_and_later_succeeds() {
    let server = S3Server::start();
    let setup = Setup::on_s3(&server).with("patience", "2s");
    let Some(mut node) = filled(setup, "make('apart/here', 300000)\nmake('f', 3 << 20)\nmake('g', 9 << 20)")
    else {
        return;
    };
    begin_cold(&mut node);
    node.await_names();
    // In a directory of its own: what lies beside a file that is read may be brought, too.
    python(&node, "right('apart/here', 300000)");
    server.knobs().internal_error_pct.store(100, Relaxed);
    fails(
        &node,
        "right('apart/here', 300000)
fails(lambda: open('f', 'rb').read(), 30)
fd = os.open('g', os.O_RDONLY)
fails(lambda: os.pread(fd, 10, 5 << 20), 30)
fails(lambda: mmap.mmap(fd, 0, prot=mmap.PROT_READ), 30)",
    );
    assert_ne!(node.bash("grep -c x f").code, 0);
    server.knobs().heal();
    python(&node, "right('f', 3 << 20)\nright('g', 9 << 20)");
    assert!(node.status_of("backend_error").is_null() || node.try_status().is_some());
}

/// A volume many times as large as the cache, read whole: every byte is right, and the disk never holds much more than
/// the cache.
#[test]
fn a_volume_passes_through_a_small_cache() {
    let (files, size) = (u64::from(scale("STORESHIM_CACHE_FILES", 40)), 15 * MIB);
    let cache = 64 * MIB;
    let store = FileStore::new();
    let setup = Setup::identity(store.url()).with("cache_size", "64MiB").with("dirty_limit", "32MiB");
    let fill = format!("for i in range({files}): make(f'{{i}}', {size})");
    let Some(mut node) = filled(setup, &fill) else { return };
    // What was written is in the backend; the cache is brought down to its size.
    node.await_status("a cache within its size", |status| {
        find(status, "resident_bytes").and_then(serde_json::Value::as_u64).is_some_and(|bytes| bytes <= cache)
    });
    for cold in [false, true] {
        if cold {
            begin_cold(&mut node);
        }
        let most = sampled(&node, || {
            python(&node, &format!("for i in range({files}): right(f'{{i}}', {size})"));
        });
        println!("{} MiB of {} were on this disk at most", most / MIB, files * size / MIB);
        assert!(most <= cache + 32 * MIB, "{most} bytes on this disk, with a cache of {cache}");
    }
    // By the disk's own account, too.
    let blocks: u64 =
        (0..files).map(|i| node.tree().join(i.to_string()).metadata().unwrap().blocks() * 512).sum();
    assert!(blocks <= cache + 32 * MIB, "{blocks} bytes are taken, with a cache of {cache}");
}

/// The most bytes that the status said were on this disk while `act` ran.
fn sampled(node: &Node, act: impl FnOnce()) -> u64 {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Relaxed) {
                let status = node.try_status();
                let bytes = status.as_ref().and_then(|status| find(status, "resident_bytes")?.as_u64());
                most = bytes.unwrap_or(0).max(most);
                seconds(0.05);
            }
            most
        });
        act();
        over.store(true, Relaxed);
        sampler.join().unwrap()
    })
}

/// The commands, and that they do what they say: what was warmed needs no backend, and what was evicted takes no room.
#[test]
fn warmup_and_evict() {
    let server = S3Server::start();
    let fill = "for d in 'ab':\n    for i in range(20): make(f'{d}/f{i}', 100000)\n    make(f'{d}/sub/deep', 6 << 20)";
    let Some(mut node) = filled(Setup::on_s3(&server).with("patience", "1s"), fill) else { return };
    node.bash("ln -s a link; mkfifo pipe; ln a/f1 a/again");
    node.flush();
    begin_cold(&mut node);
    assert_eq!(node.residency("resident_files"), 0, "what is not even named is not here");
    let said = node.work("warmup", &["a"]).succeeded();
    assert!(said.contains("21 files"), "{said}");
    let mut shallow = node.agent_command("warmup");
    shallow.args(["--depth", "0", "--parallel", "2"]).arg(node.prefix().join("b"));
    let said = node.run_to_end(shallow, LONG).succeeded();
    assert!(said.contains("20 files"), "{said}");
    server.knobs().hang.store(true, Relaxed);
    python(
        &node,
        "for d in 'ab':\n    for i in range(20): right(f'{d}/f{i}', 100000)\nright('a/sub/deep', 6 << 20)",
    );
    server.knobs().heal();
    let resident = node.residency("resident_bytes");
    assert!((40 * 100_000 + 6 * MIB..12 * MIB).contains(&resident), "{resident}");
    // The look at the start, which could not be committed so far: until it is, all may have changed.
    node.flush();

    // From a working directory below the prefix. A program that has just ended is in nobody's list for a moment.
    let mut said = String::new();
    for _ in 0..5 {
        let mut relative = node.agent_command("evict");
        relative.args(["../a/sub", "f3"]).current_dir(node.tree().join("b"));
        let now = node.run_to_end(relative, LONG).succeeded();
        said.push_str(&now);
        if !now.contains("kept") {
            break;
        }
        seconds(0.5);
    }
    let gone = |path: &str| node.tree().join(path).metadata().unwrap().blocks() == 0;
    assert!(said.contains("sub: 6.0 MiB of 1 file") && said.contains("b/f3: ") && gone("b/f3"), "{said}");
    assert!(gone("a/sub/deep"));
    python(&node, "right('a/sub/deep', 6 << 20)\nright('b/f3', 100000)");

    // What is not in the backend stays, and says so.
    server.knobs().hang.store(true, Relaxed);
    python(&node, "make('a/new', 200000)");
    // A cut has met it, and its commit does not get through.
    seconds(2.0);
    let said = node.work("evict", &[""]).succeeded();
    assert!(said.contains("kept: "), "{said}");
    assert!(node.tree().join("a/new").metadata().unwrap().blocks() * 512 >= 200_000, "{said}");
    server.knobs().heal();
    python(&node, "right('a/new', 200000)\nfor i in range(20): right(f'a/f{i}', 100000)");
    node.work("warmup", &["nothing/here"]).refused(&["nothing/here", "there is no"]);
    node.work("warmup", &["link/f1"]).refused(&["link/f1", "symbolic link"]);
    node.work("evict", &["pipe"]).refused(&["pipe", "neither a file nor a directory"]);
    let mut outside = node.agent_command("evict");
    outside.arg("/usr");
    node.run_to_end(outside, LONG).refused(&["/usr", "no mount"]);
    let mut outside = node.agent_command("warmup");
    outside.arg("x");
    node.run_to_end(outside, LONG).refused(&["no mount"]);
    node.survives("warmup and evict");
}

/// A mapped file stays; when it is let go it can be evicted.
#[test]
fn what_is_mapped_stays() {
    let store = FileStore::new();
    let Some(mut node) = filled(Setup::identity(store.url()), "make('m', 5 << 20)\nmake('other', 5 << 20)")
    else {
        return;
    };
    begin_cold(&mut node);
    let mut command = node.app("/usr/bin/python3");
    let hold = "
os.chdir(os.environ['STORAGE'])
import mmap, time
fd = os.open('m', os.O_RDONLY)
m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
os.close(fd)
out = os.environ['OUTSIDE']
open(out + '/mapped', 'w').close()
while not os.path.exists(out + '/check'): time.sleep(0.01)
assert m[:] == content('m', 5 << 20)";
    command.arg("-c").arg(format!("{CONTENTS}{hold}"));
    let mut app = node.spawn(command);
    let deadline = Instant::now() + LONG;
    while !node.outside().join("mapped").exists() {
        app.assert_running();
        assert!(Instant::now() < deadline, "nothing was mapped");
        seconds(0.01);
    }
    python(&node, "right('other', 5 << 20)");
    let said = node.work("evict", &[""]).succeeded();
    assert!(said.contains("kept: 5.0 MiB of 1 file: "), "{said}");
    assert!(node.tree().join("m").metadata().unwrap().blocks() * 512 >= 5 << 20);
    assert_eq!(node.tree().join("other").metadata().unwrap().blocks(), 0);
    // Also by the next agent, which was not there when it was mapped.
    node.kill_agent();
    node.start();
    node.work("evict", &[""]).succeeded();
    assert!(node.tree().join("m").metadata().unwrap().blocks() * 512 >= 5 << 20);
    std::fs::write(node.outside().join("check"), "").unwrap();
    app.wait(LONG);
    // The new agent lets nothing go before it has looked at everything once.
    let deadline = Instant::now() + LONG;
    while node.tree().join("m").metadata().unwrap().blocks() != 0 {
        assert!(Instant::now() < deadline, "{:#}", node.status());
        node.work("evict", &[""]).succeeded();
        seconds(0.2);
    }
    python(&node, "right('m', 5 << 20)");
}

/// The agent dies again and again while files come; readers wait for the next one and read what is right.
#[test]
fn agents_killed_while_files_come() {
    let server = S3Server::start();
    let fill = "for i in range(60): make(f's/{i}', 70000)\nmake('big', 40 << 20)";
    let Some(mut node) = filled(Setup::on_s3(&server), fill) else { return };
    server.knobs().delay_ms.store(30, Relaxed);
    begin_cold(&mut node);
    let read = |program: &str| {
        let mut command = node.app("/usr/bin/python3");
        command.arg("-c").arg(format!("{CONTENTS}\nos.chdir(os.environ['STORAGE'])\n{program}"));
        node.spawn(command)
    };
    let mut whole = read("right('big', 40 << 20)");
    let mut small = read("for i in range(60): right(f's/{i}', 70000)");
    let mut mapped = read(
        "import mmap, time
time.sleep(0.3)
fd = os.open('big', os.O_RDONLY)
assert mmap.mmap(fd, 0, prot=mmap.PROT_READ)[:] == content('big', 40 << 20)",
    );
    for kill in 0..6 {
        seconds(0.1 + 0.07 * f64::from(kill));
        node.kill_agent();
        node.start();
    }
    for app in [&mut whole, &mut small, &mut mapped] {
        app.wait(LONG);
    }
    node.survives("agents killed while files come");
}

/// A program that no hook sees finds what it opens.
#[test]
fn a_static_program_reads_what_is_right() {
    let store = FileStore::new();
    let fill = "for i in range(30): make(f'f{i}', 200000 + i)\nmake('big', 9 << 20)";
    let Some(mut node) = filled(Setup::identity(store.url()), fill) else { return };
    let program = built(Language::StaticC, &crate_dir().join("programs/plain_read.c"));
    let files: Vec<_> = (0..30)
        .map(|i| format!("f{i}"))
        .chain(["big".to_owned()])
        .map(|name| node.tree().join(name))
        .collect();
    let read = || {
        let mut command = Command::new(&program);
        command.args(&files);
        node.run_to_end(command, LONG).succeeded()
    };
    let expected = read();
    begin_cold(&mut node);
    node.await_names();
    node.await_status("guards", |status| find(status, "unguarded_files").is_some_and(|files| files == 0));
    let read = || {
        let mut command = Command::new(&program);
        command.args(&files);
        node.run_to_end(command, LONG).succeeded()
    };
    assert!(expected == read(), "a static program was shown something else:\n{expected}");
    // And what was evicted again.
    node.work("evict", &[""]).succeeded();
    assert!(expected == read(), "a static program was shown something else after an eviction");
}

/// Holes, blocks and sizes are the file's, whatever is here of it.
#[test]
fn what_is_said_of_a_file_is_the_files_truth() {
    let server = S3Server::start();
    let fill = "
make('dense', 3 << 20)
with open('sparse', 'wb') as f:
    for at in (0, 5 << 20, 20 << 20):
        f.seek(at); f.write(content(str(at), 1 << 20))
    f.truncate(24 << 20)
open('empty', 'w').close()";
    let Some(mut node) = filled(Setup::on_s3(&server), fill) else { return };
    let look = "
def map(name):
    fd, at, out = os.open(name, os.O_RDONLY), 0, []
    size = os.fstat(fd).st_size
    while at < size:
        try: data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError: break
        at = os.lseek(fd, data, os.SEEK_HOLE)
        out.append((data, at))
    return out
for name in ('dense', 'sparse', 'empty'):
    about = os.stat(name)
    print(name, about.st_size, about.st_mtime_ns, about.st_blocks >> 8, map(name))";
    let expected = python(&node, look);
    let du = node.sh("du -sm . | cut -f1");
    node.lose();
    let before = sent(&server);
    node.start();
    assert_eq!(node.sh("du -sm . | cut -f1"), du);
    let came = sent(&server) - before;
    assert!(came < MIB, "{came} bytes came to say how much there is");
    // A small file may come as a whole when it is opened.
    assert_eq!(python(&node, look), expected);
    let came = sent(&server) - before;
    assert!(came < 5 * MIB, "{came} bytes came to say where the holes are");
    python(&node, "assert open('sparse', 'rb').read().count(0) > 20 << 20\nright('dense', 3 << 20)");
    assert_eq!(python(&node, look), expected);
    node.survives("sparse files");
}

/// Files that are not here are written, cut, grown, emptied, removed, moved and linked; what comes back is what they became.
#[test]
fn what_is_not_here_is_changed() {
    let server = S3Server::start();
    let fill = "
for name in ('emptied', 'removed', 'cut', 'grown', 'appended', 'patched', 'moved', 'linked', 'mapped', 'moded', 'over'):
    make('d/' + name, 6 << 20)";
    let Some(mut node) = filled(Setup::on_s3(&server), fill) else { return };
    node.lose();
    let before = sent(&server);
    node.start();
    python(
        &node,
        "os.chdir('d')
open('emptied', 'w').close()
with open('emptied', 'w') as f: f.write('again')
os.remove('removed')
os.rename('moved', '../moved')
os.link('linked', '../link')
os.chmod('moded', 0o600)
os.rename('over', 'moded')",
    );
    node.flush();
    let came = sent(&server) - before;
    assert!(came < 4 * MIB, "{came} bytes came for what needs none");
    python(
        &node,
        "import mmap
os.chdir('d')
whole = lambda name: content('d/' + name, 6 << 20)
os.truncate('cut', 1000001)
os.truncate('grown', 7 << 20)
with open('appended', 'ab') as f: f.write(b'more')
fd = os.open('patched', os.O_RDWR)
os.pwrite(fd, b'patch', 3000000)
os.pwrite(fd, b'end', (6 << 20) - 1)
fd = os.open('mapped', os.O_RDWR)
m = mmap.mmap(fd, 0); m[777:780] = b'map'; m.close()",
    );
    let check = "
def same(name, expected):
    data = open(name, 'rb').read()
    assert data == expected, (name, len(data), len(expected))
whole = lambda name: content('d/' + name, 6 << 20)
same('d/emptied', b'again')
assert not os.path.exists('d/removed') and not os.path.exists('d/over') and not os.path.exists('d/moved')
same('d/cut', whole('cut')[:1000001])
same('d/grown', whole('grown') + bytes(1 << 20))
same('d/appended', whole('appended') + b'more')
p = bytearray(whole('patched')); p[3000000:3000005] = b'patch'; p[(6 << 20) - 1:] = b'end'
same('d/patched', bytes(p))
same('moved', whole('moved'))
same('d/linked', whole('linked')); assert os.path.samefile('d/linked', 'link')
p = bytearray(whole('mapped')); p[777:780] = b'map'
same('d/mapped', bytes(p))
same('d/moded', whole('over'))";
    node.flush();
    node.kill_agent();
    node.start();
    python(&node, check);
    begin_cold(&mut node);
    python(&node, check);
    node.survives("changes of what was not here");
}

/// The two other ways to hydrate.
#[test]
fn eager_and_on_open() {
    let server = S3Server::start();
    let fill = "for i in range(30): make(f'd/{i}', 100000)\nmake('big', 12 << 20)";
    let Some(mut node) = filled(Setup::on_s3(&server), fill) else { return };
    node.lose();
    node.setup().set("hydrate", "eager");
    node.start();
    server.knobs().hang.store(true, Relaxed);
    python(&node, "for i in range(30): right(f'd/{i}', 100000)\nright('big', 12 << 20)");
    server.knobs().heal();
    node.lose();
    node.setup().set("hydrate", "on-open");
    node.start();
    assert!(node.residency("resident_bytes") < MIB);
    node.sh("head -c 1 big > /dev/null");
    node.await_status("the whole of an opened file", |status| {
        find(status, "resident_bytes")
            .and_then(serde_json::Value::as_u64)
            .is_some_and(|bytes| bytes >= 12 << 20)
    });
}

/// What comes of saying nothing: where programs without the shim find the tree they find all of it, elsewhere nothing waits.
#[test]
fn by_itself_an_identity_mount_has_everything_and_a_translated_one_begins_at_once() {
    for (setup, whole) in [(Setup::identity as fn(String) -> Setup, true), (Setup::translated, false)] {
        let server = S3Server::start();
        let Some(mut node) = filled(
            setup(format!("s3://{BUCKET}/volume")).with_s3(&server.endpoint()),
            "make('d/f', 3 << 20)",
        ) else {
            return;
        };
        node.lose();
        node.setup().set("hydrate", "auto");
        node.start();
        assert_eq!(node.residency("resident_bytes") >= 3 * MIB, whole);
        python(&node, "right('d/f', 3 << 20)");
        // Not all of it would fit, so nothing waits for it.
        node.lose();
        node.setup().set("cache_size", "2MiB");
        node.start();
        assert!(node.residency("resident_bytes") < MIB);
        python(&node, "right('d/f', 3 << 20)");
    }
}

/// A backend whose connections break while files come.
#[test]
fn broken_connections_while_files_come() {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address());
    let setup = Setup::identity(format!("s3://{BUCKET}/volume")).with_s3(&proxy.endpoint());
    let fill = "for i in range(40): make(f'd/{i}', 120000)\nmake('big', 20 << 20)";
    let Some(mut node) = filled(setup, fill) else { return };
    begin_cold(&mut node);
    proxy.faults().half_answer_pct.store(15, Relaxed);
    proxy.faults().reset_request_pct.store(10, Relaxed);
    python(&node, "right('big', 20 << 20)\nfor i in range(40): right(f'd/{i}', 120000)");
    assert!(proxy.faults().done.load(Relaxed) > 0);
    proxy.faults().heal();
    node.survives("broken connections");
}

/// Names: a cold tree is listed, searched, missed and made new names in, in both placements, by an ordinary user as well.
#[test]
fn names_come_when_they_are_asked_for() {
    for setup in [Setup::translated as fn(String) -> Setup, Setup::identity] {
        let store = FileStore::new();
        let fill = "
for i in range(40): make(f'a/b{i}/c/d/f', 10)
os.symlink('a/b3/c', 'link')
os.makedirs('empty/dir')";
        let Some(mut node) = filled(setup(store.url()).with("max_lag", "100ms"), fill) else { return };
        let listed = node.sh("find . | LC_ALL=C sort");
        // Each touches another part; a few to each cold start.
        let firsts = [
            "test -f a/b7/c/d/f && ! test -e a/b7/c/d/g && ! test -e a/b7/x/y",
            "cat link/d/f > /dev/null; ! cat link/d/none 2> /dev/null; test -d link/../c",
            "cd a/b9/c/d; ls > /dev/null; test -f ../../../b8/c/d/f",
            "mkdir a/b5/c/new; echo new > a/b5/c/new/x; rm -r a/b5/c/new",
            "! mkdir a/b5/c 2> /dev/null; ! ln -s x a/b5/c/d/f 2> /dev/null; ! rmdir a/b5/c 2> /dev/null",
            "mv a/b4 empty/dir/b4; test -f empty/dir/b4/c/d/f; mv empty/dir/b4 a/b4",
            "mv a/b4/c/d a/b4/c/e; ls a/b4/c/e > /dev/null; mv a/b4/c/e a/b4/c/d",
            "rm -r empty; mkdir -p empty/dir",
            "cp -a a/b2 a/copy; diff -r a/b2 a/copy; rm -r a/copy",
        ];
        for first in firsts.chunks(3) {
            begin_cold(&mut node);
            for first in first {
                node.sh(first);
            }
            node.flush();
            assert_eq!(node.sh("find . | LC_ALL=C sort"), listed, "after: {first:?}");
        }
        begin_cold(&mut node);
        assert_eq!(node.sh("rm -r a; find . | LC_ALL=C sort"), ".\n./empty\n./empty/dir\n./link\n");
        node.survives("names");
    }
}

/// The machine went down without a farewell, and the disk had not written everything: files whose data is gone, whole or in
/// part, with all their attributes as they were. What is not what the volume has is fetched, before anybody sees it.
#[test]
fn an_unclean_reboot_that_lost_data() {
    if !nix::unistd::geteuid().is_root() {
        return; // Another boot is shown to the agent by a mount.
    }
    let store = FileStore::new();
    let fill = "for i in range(20): make(f'f{i}', 150000)\nmake('big', 9 << 20)\nmake('kept', 50000)";
    let Some(mut node) = filled(Setup::identity(store.url()), fill) else { return };
    // From here on the agent sees a boot of the test's choice.
    let boot = node.outside().join("boot");
    std::fs::write(&boot, "11111111-1111-1111-1111-111111111111\n").unwrap();
    let program = node.shim().with_file_name("storeshim");
    let real = program.with_file_name("storeshim-itself");
    std::fs::rename(&program, &real).unwrap();
    let script = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'mount --bind {} /proc/sys/kernel/random/boot_id && exec {} \"$@\"' sh \"$@\"\n",
        boot.display(),
        real.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    node.kill_agent();
    node.start();
    node.flush();
    node.await_names();
    node.kill_agent();
    // With the machine.
    node.kill_guards();
    let mut damage = node.app_without_shim("/usr/bin/python3");
    damage.arg("-c").arg(
        "import os
os.chdir(os.environ['STORAGE'])
def damaged(name, at, length):
    about = os.stat(name)
    fd = os.open(name, os.O_RDWR)
    os.pwrite(fd, bytes(length), at)
    os.close(fd)
    os.utime(name, ns=(about.st_atime_ns, about.st_mtime_ns))
damaged('big', 3 << 20, 4096)
damaged('big', (9 << 20) - 5000, 5000)
for i in range(10): damaged(f'f{i}', i * 10000, 4096)
damaged('f11', 0, 150000)",
    );
    node.run_to_end(damage, LONG).succeeded();
    std::fs::write(&boot, "22222222-2222-2222-2222-222222222222\n").unwrap();
    node.start();
    python(&node, "for i in range(20): right(f'f{i}', 150000)\nright('big', 9 << 20)\nright('kept', 50000)");
    node.flush();
    begin_cold(&mut node);
    python(&node, "for i in range(20): right(f'f{i}', 150000)\nright('big', 9 << 20)\nright('kept', 50000)");
}

/// The harness's own programs are as they should be: what reads zeros where there is data must be found.
#[test]
fn canary_a_hole_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (model, dir) = (folder.path().join("model"), folder.path().join("d"));
    std::fs::create_dir(&dir).unwrap();
    let torture = |arguments: &[&str]| {
        let mut command = Command::new(compiled("torture"));
        command.arg(arguments[0]).arg(&model).arg(&dir).args(&arguments[1..]);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(torture(&["make"]).0, Some(0));
    assert_eq!(torture(&["read", "1", "1"]).0, Some(0));
    assert_eq!(torture(&["write", "1", "1", "0", "1"]).0, Some(0));
    assert_eq!(torture(&["verify"]).0, Some(0));
    // File 8 is never written.
    let path = [dir.join("a/8"), dir.join("b/8")].into_iter().find(|path| path.exists()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for (damage, word) in [(vec![0; 4096], "ZEROS"), (whole[..4096].to_vec(), "wrong")] {
        let mut damaged = whole.clone();
        damaged[65536..65536 + 4096].copy_from_slice(&damage);
        std::fs::write(&path, &damaged).unwrap();
        for arguments in [&["verify"][..], &["read", "1", "60"]] {
            let (code, said) = torture(arguments);
            assert!(code == Some(1) && said.contains("file 8") && said.contains(word), "{said}");
        }
    }
}
