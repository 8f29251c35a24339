//! A quota holds, whatever a volume grows by: one large call, a file without a name, a stream.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use storeshim_tests::contents::CONTENTS;
use storeshim_tests::node::{FileStore, Node, Setup, find};
use storeshim_tests::programs::require;

const HELPERS: &str = "
import errno, fcntl, time
def refused(act):
    try:
        act()
    except OSError as error:
        assert error.errno == errno.EDQUOT, error
    else:
        assert False, 'beyond the quota'
def all_of(act):
    # By as many calls as it takes, until one fails.
    done = 0
    try:
        while True:
            n = act(done)
            if n == 0: return done
            done += n
    except OSError as error:
        assert error.errno == errno.EDQUOT, error
    return done
";

/// A node whose volume may grow to so much, and its store.
fn bounded(bytes: &str) -> Option<(Node, FileStore)> {
    let store = FileStore::new();
    let setup = Setup::identity(store.url()).with("quota_bytes", bytes);
    if setup.reference {
        return None;
    }
    require("python3");
    Some((Node::started(setup), store))
}

#[track_caller]
fn python(node: &Node, program: &str) {
    node.python(&format!("{CONTENTS}\n{HELPERS}\n{program}"));
}

/// Far from the quota, where small calls ask nobody.
#[test]
fn a_quota_is_not_passed_by_one_call() {
    let Some((mut node, _store)) = bounded("100MiB") else { return };
    python(
        &node,
        "
fd = os.open('f', os.O_RDWR | os.O_CREAT)
refused(lambda: os.ftruncate(fd, 1 << 40))
refused(lambda: os.truncate('f', 1 << 40))
refused(lambda: os.posix_fallocate(fd, 0, 1 << 30))
refused(lambda: os.pwrite(fd, b'x', 1 << 40))
os.lseek(fd, 1 << 40, os.SEEK_SET)
refused(lambda: os.write(fd, b'x'))
os.lseek(fd, 0, os.SEEK_SET)
assert os.fstat(fd).st_size == 0
zeros = bytes(160 << 20)
assert os.pwrite(fd, zeros, 0) == 100 << 20
refused(lambda: os.pwrite(fd, b'x', 100 << 20))
assert os.pwrite(fd, b'x', 5) == 1, 'in place'
os.ftruncate(fd, 0)
# Many at a time, of which none is large.
for i in range(40):
    g = os.open(f'g{i}', os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(g, 5 << 20)
    except OSError as error:
        assert error.errno == errno.EDQUOT, error
    os.close(g)
held = sum(os.stat(f'g{i}').st_size for i in range(40))
assert held == 100 << 20, held",
    );
    node.survives("one call beyond a quota");
}

/// What fits is written, to the last byte; also by appends and copies.
#[test]
fn a_write_beyond_the_quota_is_a_short_one() {
    let Some((mut node, _store)) = bounded("10MiB") else { return };
    python(
        &node,
        "
left = (10 << 20) - 3
open('three', 'wb', buffering=0).write(b'abc')
data = content('data', 12 << 20)
source = '/var/tmp/storeshim-quota-%d' % os.getpid()
with open(source, 'wb') as f: f.write(data)
inside = os.open(source, os.O_RDONLY)
os.unlink(source)
def write(fd): return lambda done: os.write(fd, data[done:])
def append(fd):
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return write(fd)
def vectors(fd): return lambda done: os.writev(fd, [data[done:done + 100], data[done + 100:]])
def send(fd): return lambda done: os.sendfile(fd, inside, done, 12 << 20)
def copy(fd): return lambda done: os.copy_file_range(inside, fd, 1 << 40, done)
def piped(fd):
    def one(done):
        r, w = os.pipe()
        os.write(w, data[done:done + 60000])
        os.close(w)
        try: return os.splice(r, fd, 1 << 20)
        finally: os.close(r)
    return one
for way in (write, append, vectors, send, copy, piped):
    fd = os.open('f', os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    done = all_of(way(fd))
    assert done == os.fstat(fd).st_size == left, (way, done, left)
    os.lseek(fd, 0, os.SEEK_SET)
    assert os.read(fd, 12 << 20) == data[:left], way
    os.close(fd)
os.unlink('f')
# As much as a copy asks for is not what it takes.
os.ftruncate(os.open('all but', os.O_RDWR | os.O_CREAT), left - 50)
small = os.open('/dev/shm/storeshim-quota-%d' % os.getpid(), os.O_RDWR | os.O_CREAT)
os.unlink('/dev/shm/storeshim-quota-%d' % os.getpid())
os.write(small, data[:50])
fd = os.open('small', os.O_RDWR | os.O_CREAT)
assert all_of(lambda done: os.sendfile(fd, small, done, 1 << 30)) == 50
empty = os.open('empty', os.O_RDWR | os.O_CREAT)
assert os.copy_file_range(empty, fd, 1 << 30) == 0",
    );
    node.survives("short writes");
}

/// A file that has no name counts when it gets one.
#[test]
fn a_file_without_a_name_is_held_to_the_quota_when_it_gets_one() {
    let Some((mut node, _store)) = bounded("10MiB") else { return };
    python(
        &node,
        "
fd = os.open('.', os.O_TMPFILE | os.O_RDWR)
def grow(fd, size):
    # Cuts go by, and with them what was granted.
    done, until = 0, time.time() + 20
    while done < size and time.time() < until:
        try: done += os.write(fd, bytes(1 << 20))
        except OSError as error: assert error.errno == errno.EDQUOT, error
    return done
grow(fd, 20 << 20)
assert os.fstat(fd).st_size > 10 << 20
refused(lambda: os.link(f'/proc/self/fd/{fd}', 'named', src_dir_fd=fd, follow_symlinks=True))
assert not os.path.exists('named')
os.close(fd)
fd = os.open('.', os.O_TMPFILE | os.O_RDWR)
assert grow(fd, 6 << 20) == 6 << 20
os.link(f'/proc/self/fd/{fd}', 'named', src_dir_fd=fd, follow_symlinks=True)
other = os.open('.', os.O_TMPFILE | os.O_RDWR)
grow(other, 4 << 20)
os.ftruncate(other, 4 << 20)
os.link(f'/proc/self/fd/{other}', 'other', src_dir_fd=fd, follow_symlinks=True)
third = os.open('.', os.O_TMPFILE | os.O_RDWR)
try: os.write(third, b'x')
except OSError as error: assert error.errno == errno.EDQUOT, error
# A second name of what is there is no growth.
os.link('named', 'again')",
    );
    node.survives("files without a name");
}

/// What stdio writes passes no hook; whoever wrote too much hears of it when the stream is flushed or closed, and nobody else
/// grows the volume until it fits again.
#[test]
fn what_stdio_writes_beyond_the_quota_is_said_and_stops_the_rest() {
    let Some((mut node, _store)) = bounded("10MiB") else { return };
    let said = node.bash("head -c 40000000 /dev/zero > h");
    assert!(said.code != 0 && said.err.contains("quota"), "{said:?}");
    let said = node.bash("seq 100000000 103000000 > s");
    assert_ne!(said.code, 0, "{said:?}");
    node.await_status("an excess", |status| {
        find(status, "over_quota_bytes").is_some_and(|bytes| bytes.as_u64() > Some(1000))
    });
    let said = node.work("status", &[]).succeeded();
    assert!(said.contains("over its quota"), "{said}");
    python(
        &node,
        "
refused(lambda: os.ftruncate(os.open('new', os.O_RDWR | os.O_CREAT), 5000))
refused(lambda: os.write(os.open('new', os.O_RDWR | os.O_CREAT), b'x'))
fd = os.open('h', os.O_RDWR)
assert os.pwrite(fd, b'x', 3) == 1
stat = os.statvfs('.')
assert stat.f_bavail == 0, stat
os.unlink('h')
os.unlink('s')
assert os.write(os.open('new', os.O_RDWR | os.O_CREAT), bytes(9 << 20)) == 9 << 20",
    );
    // To the last byte, and what is small as well.
    let said = node.bash("head -c 1048576 /dev/zero > rest && head -c 10 /dev/zero > more");
    assert!(said.code != 0, "{said:?}");
    python(&node, "assert os.path.getsize('rest') == 1 << 20\nassert os.path.getsize('more') == 0");
    node.survives("streams beyond a quota");
}

/// A quota below what is there lets everything be done but growth.
#[test]
fn a_quota_below_what_is_there_refuses_growth_alone() {
    let store = FileStore::new();
    let setup = Setup::identity(store.url());
    if setup.reference {
        return;
    }
    require("python3");
    let mut node = Node::started(setup.clone());
    node.python(&format!("{CONTENTS}\nmake('f', 3 << 20)\nmake('g', 3 << 20)\nos.truncate('g', 8 << 20)"));
    node.flush();
    node.survives("without a quota");
    drop(node);
    let mut node = Node::started(setup.with("quota_bytes", "4MiB").with("quota_inodes", "2"));
    python(
        &node,
        "
stat = os.statvfs('.')
assert (stat.f_blocks * stat.f_frsize, stat.f_bavail, stat.f_files, stat.f_ffree) == (4 << 20, 0, 2, 0), stat
right('f', 3 << 20)
fd = os.open('f', os.O_RDWR)
assert os.pwrite(fd, content('f', 3 << 20), 0) == 3 << 20
refused(lambda: os.pwrite(fd, b'x', 3 << 20))
refused(lambda: os.open('n', os.O_WRONLY | os.O_CREAT))
refused(lambda: os.mkdir('n'))
os.link('f', 'second name')
os.rename('second name', 'third name')
os.truncate('g', 100)
# A hole counts as what is shown of it.
refused(lambda: os.truncate('g', 1 + (1 << 20)))
os.truncate('g', 1 << 20)
os.unlink('third name')
os.unlink('g')
refused(lambda: os.open('n', os.O_WRONLY | os.O_CREAT))",
    );
    node.survives("a quota below what is there");
}

/// Writers that begin at once, far from the quota, each by small calls: they exceed it by a call each at most.
#[test]
fn many_writers_at_once_end_at_the_quota() {
    let Some((mut node, _store)) = bounded("400MiB") else { return };
    python(
        &node,
        "
import threading
data = bytes(1 << 20)
def fill(name):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT)
    try:
        while True: os.write(fd, data)
    except OSError as error:
        assert error.errno == errno.EDQUOT, error
threads = []
for child in range(4):
    if os.fork() == 0:
        mine = [threading.Thread(target=fill, args=(f'f{child}-{i}',)) for i in range(3)]
        for thread in mine: thread.start()
        for thread in mine: thread.join()
        os._exit(0)
for child in range(4):
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
held = sum(os.stat(name).st_size for name in os.listdir('.'))
# Each may have been about to write when it was told to ask.
assert 300 << 20 < held <= (400 + 12) << 20, held",
    );
    node.survives("many writers");
}

#[test]
fn a_quota_is_kept_and_shown() {
    let store = FileStore::new();
    let setup = Setup::identity(store.url()).with("quota_bytes", "8MiB").with("quota_inodes", "50");
    if setup.reference {
        return;
    }
    require("python3");
    let mut node = Node::started(setup.lazy());
    python(
        &node,
        "make('first', 3 << 20)
import errno
def refused(act):
    try:
        act()
    except OSError as error:
        assert error.errno in (errno.EDQUOT, errno.ENOSPC), error
    else:
        assert False, 'beyond the quota'
def grow():
    with open('second', 'wb', buffering=0) as f:
        for i in range(80): f.write(content(str(i), 100000))
refused(grow)
size = os.path.getsize('second')
assert (4 << 20) < size <= (5 << 20), size
refused(lambda: os.truncate('first', 7 << 20))
assert os.statvfs('.').f_blocks * os.statvfs('.').f_frsize == 8 << 20, os.statvfs('.')
# What is free follows the commits.
import time
free = lambda: os.statvfs('.').f_bavail * os.statvfs('.').f_frsize
deadline = time.time() + 20
while free() > (5 << 20) - size + 65536:
    assert time.time() < deadline, os.statvfs('.')
    time.sleep(0.1)
os.remove('second')
make('third', 4 << 20)
made = 0
def many():
    global made
    for i in range(60):
        open(f'n{i}', 'x').close()
        made += 1
refused(many)
assert 40 <= made <= 50, made
assert os.statvfs('.').f_files == 50
os.remove('n0')
open('again', 'x').close()",
    );
    node.survives("a quota");
    // What is there already counts, and more is refused, after a restore as well.
    node.flush();
    node.lose();
    node.start();
    let said = node.bash("head -c 3000000 /dev/zero > more");
    assert_ne!(said.code, 0, "{said:?}");
    python(&node, "right('first', 3 << 20)\nright('third', 4 << 20)");
}
