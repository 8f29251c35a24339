//! Every door: whichever libc call a program uses, it must not be able to tell a mount from an ordinary directory.
//!
//! Each program in `programs/doors` goes through one family of calls and says what happened, with its directory's name
//! taken out. What it says in a mount must be what it says in an ordinary directory, word for word. All that it changed was
//! told: an audit finds nothing more. Then the machine is lost, and the tree must come back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use storeshim_tests::node::{FileStore, Node, Setup};
use storeshim_tests::programs::{Language, built, crate_dir, require};
use storeshim_tests::s3::S3Server;
use storeshim_tests::ways::{missed, untold};

/// Longest run of a door program.
const PATIENCE: Duration = Duration::from_secs(120);

/// One program on each libc in each placement. A new family is a file in `programs/doors` and a name here.
macro_rules! families {
    ($($family:ident)+) => {$(
        mod $family {
            use super::*;

            #[test]
            fn translated() {
                let store = FileStore::new();
                says_the_same(Language::C, stringify!($family), Setup::translated(store.url()));
            }

            #[test]
            fn identity() {
                let store = FileStore::new();
                says_the_same(Language::C, stringify!($family), Setup::identity(store.url()));
            }

            #[test]
            fn musl_translated() {
                let store = FileStore::new();
                says_the_same(Language::MuslC, stringify!($family), Setup::translated(store.url()));
            }

            #[test]
            fn musl_identity() {
                let store = FileStore::new();
                says_the_same(Language::MuslC, stringify!($family), Setup::identity(store.url()));
            }
        }
    )+};
}

families!(names links back walk attributes nowhere);

/// Directories for a run, made by the node's user.
fn directory(node: &Node, path: &Path) -> PathBuf {
    let mut make = node.app_without_shim("mkdir");
    make.arg("-p").arg(path);
    node.run_to_end(make, PATIENCE).succeeded();
    path.to_path_buf()
}

fn says_the_same(language: Language, family: &str, setup: Setup) {
    let program = built(language, &crate_dir().join("programs/doors").join(family).with_extension("c"));
    let mut node = Node::started(setup);
    let outside = node.outside();
    // Of the same name, since some answers show the last component alone.
    let ordinary = directory(&node, &outside.join("ordinary").join(node.prefix().file_name().unwrap()));
    let beside =
        [directory(&node, &outside.join("one/beside")), directory(&node, &outside.join("other/beside"))];

    let run = |mut command: Command, root: &Path, beside: &Path| {
        command.arg(root).arg(beside);
        node.run_to_end(command, PATIENCE).succeeded()
    };
    let expected = run(node.app_without_shim(&program), &ordinary, &beside[0]);
    let said = run(node.app(&program), node.prefix(), &beside[1]);
    assert!(expected.lines().count() > 50, "the program did not do its work:\n{expected}");
    compare(&expected, &said, node.tree());
    node.flush();
    assert_eq!(missed(&node), 0, "{:#?}", untold(&node));
    node.survives(family);
}

/// Fails the test at the first lines that differ.
#[track_caller]
fn compare(expected: &str, said: &str, tree: &Path) {
    for (number, (expected, said)) in expected.lines().zip(said.lines()).enumerate() {
        assert_eq!(
            said,
            expected,
            "line {}: the left is from the mount (tree {tree:?}), the right from an ordinary directory",
            number + 1
        );
    }
    assert_eq!(said.lines().count(), expected.lines().count(), "one of them says more");
}

#[test]
#[should_panic(expected = "line 2")]
fn canary_a_path_of_the_tree_is_seen() {
    compare("one\n<root>/a\n", "one\n/var/tree/a\n", Path::new("/var/tree"));
}

/// Total and available bytes, as `df` and as Python know them.
fn space(node: &Node) -> [(u64, u64); 2] {
    let text = node.sh("df -B1 --output=size,avail \"$STORAGE\" | tail -1");
    let mut words = text.split_whitespace().map(|word| word.parse().unwrap());
    let df = (words.next().unwrap(), words.next().unwrap());
    let text = node.python(
        "import shutil
fd = os.open('.', os.O_RDONLY)
assert os.statvfs('.')[:6] == os.fstatvfs(fd)[:6] == os.statvfs('/proc/self/cwd')[:6]
use = shutil.disk_usage('.')
print(use.total, use.free)",
    );
    let mut words = text.split_whitespace().map(|word| word.parse().unwrap());
    [df, (words.next().unwrap(), words.next().unwrap())]
}

#[test]
fn an_object_store_has_room_for_all() {
    require("df");
    let server = S3Server::start();
    let node = Node::started(Setup::on_s3(&server));
    node.sh("head -c 5000000 /dev/zero > five; sync five");
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let [df, python] = space(&node);
        assert_eq!([df.0, python.0], [1 << 50; 2], "1 PiB in all");
        // What is left follows the commits, a moment later.
        if df.0 - df.1 >= 5_000_000 {
            assert_eq!(df, python);
            assert!(df.0 - df.1 < 6_000_000, "{} bytes are used", df.0 - df.1);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{df:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Elsewhere it is the disk's.
    let text = node.sh("df -B1 --output=size / | tail -1");
    assert_ne!(text.trim(), (1u64 << 50).to_string());
}

#[test]
fn a_directory_has_the_room_of_its_filesystem() {
    let store = FileStore::new();
    let node = Node::started(Setup::translated(store.url()));
    let disk = nix::sys::statvfs::statvfs(store.path()).unwrap();
    let total = disk.blocks() * disk.fragment_size();
    let free = disk.blocks_available() * disk.fragment_size();
    for (seen_total, seen_free) in space(&node) {
        assert_eq!(seen_total, total);
        assert!(seen_free.abs_diff(free) < total / 10, "{seen_free} of {free}");
    }
}

/// What a mount's border stops, in either placement.
fn border(setup: Setup) {
    let mut node = Node::started(setup);
    node.python(
        "import errno, shutil
outside = os.environ['OUTSIDE']
def refused(call, *arguments, expected=errno.EXDEV):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == expected, (call, arguments, error)
    else:
        raise AssertionError((call, arguments))
for name in 'in', outside + '/out':
    open(name, 'w').write(name)
refused(os.rename, 'in', outside + '/x')
refused(os.rename, outside + '/out', 'x')
refused(os.link, 'in', outside + '/x')
refused(os.link, outside + '/out', 'x')
refused(os.link, outside + '/none', 'x', expected=errno.ENOENT)
refused(os.link, outside + '/out', 'in', expected=errno.EEXIST)
refused(os.rmdir, os.environ['STORAGE'], expected=errno.EBUSY)
refused(os.rename, os.environ['STORAGE'], outside + '/x')
refused(os.rename, os.environ['STORAGE'], os.environ['STORAGE'] + '/in', expected=errno.EBUSY)
# A way round by a link does not help.
os.symlink(os.environ['STORAGE'], outside + '/way')
refused(os.rename, outside + '/out', outside + '/way/x')
os.rename(outside + '/way/in', 'moved')
# Programs that can do with it.
shutil.move(outside + '/out', 'out')
shutil.move('moved', outside + '/moved')
assert open('out').read() == outside + '/out' and open(outside + '/moved').read() == 'in'
",
    );
    node.sh("mv out \"$OUTSIDE\"; mv \"$OUTSIDE/moved\" .; test \"$(ls)\" = moved");
    node.survives("border");
}

#[test]
fn border_translated() {
    let store = FileStore::new();
    border(Setup::translated(store.url()));
}

#[test]
fn border_identity() {
    let store = FileStore::new();
    border(Setup::identity(store.url()));
}

/// A link into another mount is in the volume as it was written: another machine has other trees.
#[test]
fn a_link_from_one_mount_into_another() {
    let (one, other) = (FileStore::new(), FileStore::new());
    let elsewhere = PathBuf::from(format!("/second-volume-{}", std::process::id()));
    let machine = || {
        let place = tempfile::tempdir().unwrap();
        std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let second = format!(
            "{}={},placement=translated,tree={}",
            elsewhere.display(),
            other.url(),
            place.path().join("tree").display()
        );
        (Node::started(Setup::translated(one.url()).with_mount(second)), place)
    };
    let (first, _place) = machine();
    if first.tree() == first.prefix() {
        return;
    }
    let script = format!(
        "second={}
         for i in $(seq 100); do test -d $second && break; sleep 0.1; done
         mkdir $second/d; echo there > $second/d/f; ln -s $second/d link; ln -s \"$STORAGE\"/link $second/back
         cat link/f $second/back/f
         readlink link $second/back
         mv link/f . 2>/dev/null && cat f
         python3 -c 'import os; os.link(\"f\", \"link/g\")' 2>&1 | grep -o 'Errno 18'",
        elsewhere.display()
    );
    let said = first.bash(&script);
    let expected = format!(
        "there\nthere\n{0}/d\n{1}/link\nthere\nErrno 18\n",
        elsewhere.display(),
        first.prefix().display()
    );
    assert_eq!(said.out, expected, "{}", said.err);
    first.flush();
    drop(first);
    let (second, place) = machine();
    // Whoever touches the other mount waits until it is restored.
    let text = second.sh(&format!("ls {}/d > /dev/null; readlink link", elsewhere.display()));
    assert_eq!(text.trim(), elsewhere.join("d").display().to_string());
    // On that machine's disk it leads where that machine has the other volume.
    let real = std::fs::read_link(second.tree().join("link")).unwrap();
    assert_eq!(real, place.path().join("tree/d").canonicalize().unwrap());
}

/// Links that an image brings: from an ordinary directory to below the prefix, made where there was no shim.
fn links_that_were_there(setup: Setup) {
    let node = Node::started(setup);
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let link = |to: PathBuf, name: &str| std::os::unix::fs::symlink(to, place.path().join(name)).unwrap();
    link(node.prefix().join("data"), "link");
    link(node.prefix().join("data/new"), "file");
    link("link".into(), "again");
    link("circle".into(), "circle");
    let script = format!(
        "here={}
         mkdir -p data/sub && echo hello > data/f
         cat $here/link/f $here/again/f; ls $here/link; ls $here/again/
         echo one > $here/file && echo two >> $here/link/new && cat data/new
         mkdir $here/link/made && mv $here/again/new $here/link/made/moved && cat data/made/moved
         ln -s ../f $here/link/sub/up && cat $here/again/sub/up && readlink $here/link/sub/up
         chmod 600 $here/link/f && stat -c '%a %s' data/f && touch -d @7 $here/link/f && stat -c %Y data/f
         truncate -s 2 $here/again/f && cat data/f && echo
         (cd $here/link/sub && pwd -P && cat up | head -c 2) && realpath $here/again/f
         cp /bin/true $here/link/prog && $here/again/prog && echo ran
         python3 -c 'import os, sys; here = sys.argv[1] + \"/link/\"
open(here + \"p\", \"a\").write(\"more\")
os.rename(here + \"p\", here + \"q\")
print(os.stat(here + \"q\").st_size, os.path.exists(here + \"none\"))
import subprocess; subprocess.run([here + \"prog\"], check=True)' $here
         rm $here/link/prog $here/again/made/moved && rmdir $here/link/made && find $here/link/ | sort | sed s:$here::
         (cat $here/circle/x 2>&1 || true) | grep -o 'Too many levels'
         (cat $here/none/x 2>&1 || true) | grep -o 'No such file'",
        place.path().display()
    );
    let said = node.bash(&script);
    let prefix = node.prefix().display().to_string();
    let expected = format!(
        "hello\nhello\nf\nsub\nf\nsub\none\ntwo\none\ntwo\nhello\n../f\n600 6\n7\nhe\n{prefix}/data/sub\nhe{prefix}/data/f\nran\n\
         4 False\n/link/\n/link/f\n/link/q\n/link/sub\n/link/sub/up\nToo many levels\nNo such file\n"
    );
    assert_eq!(said.out, expected, "{}", said.err);
    node.flush();
    assert_eq!(missed(&node), 0, "{:#?}", untold(&node));
}

#[test]
fn links_that_were_there_translated() {
    let store = FileStore::new();
    links_that_were_there(Setup::translated(store.url()));
}

#[test]
fn links_that_were_there_identity() {
    let store = FileStore::new();
    links_that_were_there(Setup::identity(store.url()));
}
