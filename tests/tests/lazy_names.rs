//! Names that are not on this disk yet: on a node that has nothing of its volume, whatever a program does with names must
//! come to what it would in an ordinary directory.
//!
//! Each script is run in an ordinary directory first, and then on a node that has just been lost, far from its store, so that
//! it meets directories which are still to be populated. What it says must be the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use storeshim_tests::node::{FileStore, Node, Setup};
use storeshim_tests::programs::{Language, built, crate_dir, require};
use storeshim_tests::s3::{BUCKET, S3Server};

/// How long the store takes for each answer, in milliseconds.
const FAR: u64 = 60;
/// Longest run of a script.
const PATIENCE: Duration = Duration::from_secs(180);

/// Both placements.
macro_rules! placements {
    ($($test:ident)+) => {$(
        mod $test {
            use super::*;

            #[test]
            fn translated() {
                let server = S3Server::start();
                let url = format!("s3://{BUCKET}/volume");
                super::$test(&server, Setup::translated(url).with_s3(&server.endpoint()).lazy());
            }

            #[test]
            fn identity() {
                let server = S3Server::start();
                super::$test(&server, Setup::on_s3(&server).lazy());
            }
        }
    )+};
}

placements!(another_name changes lists repository removal walkers);

/// A node that has nothing of the volume which `fill` has made.
fn cold(server: &S3Server, setup: Setup, fill: &str) -> Node {
    let mut node = Node::started(setup);
    node.sh(fill);
    node.flush();
    node.lose();
    server.knobs().delay_ms.store(FAR, Ordering::Relaxed);
    node.start();
    node
}

/// What `script` says in an ordinary directory that `fill` has filled.
fn ordinary(node: &Node, fill: &str, script: &str) -> String {
    let dir = node.outside().join("ordinary");
    let mut command = node.app_without_shim("/bin/bash");
    command
        .args(["-euo", "pipefail", "-c"])
        .arg(format!("mkdir -p \"{0}\"; cd \"{0}\"; export STORAGE={0}\n{fill}\n{script}", dir.display()));
    node.run_to_end(command, PATIENCE).succeeded()
}

/// The same of both.
#[track_caller]
fn says_the_same(node: &Node, fill: &str, script: &str) {
    let expected = ordinary(node, fill, script);
    let said = node.sh(script);
    assert!(!expected.is_empty(), "the script says nothing");
    same(&expected, &said, node);
}

#[track_caller]
fn same(expected: &str, said: &str, node: &Node) {
    if expected != said {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let (expected, said) = (lines(expected), lines(said));
        let first = expected.iter().zip(&said).position(|(a, b)| a != b);
        let at = first.unwrap_or_else(|| expected.len().min(said.len()));
        panic!(
            "line {}: expected {:?}, said {:?}\n--- said\n{}\n--- agent\n{}",
            at + 1,
            expected.get(at),
            said.get(at),
            said.join("\n"),
            node.log()
        );
    }
}

fn changes(server: &S3Server, setup: Setup) {
    const FILL: &str = "
        mkdir -p deep/a/b/c/d from/sub to/there full/inner empty excl lnk/one/sub lnk/two hard/one hard/two newline
        mkdir -p over/full over/from wild/a wild/b
        echo deep > deep/a/b/c/d/file
        echo moved > from/sub/file; echo kept > from/sub/kept; echo there > to/there/x
        echo x > full/inner/f
        echo taken > excl/taken
        echo one > lnk/one/sub/file; ln -s ../one/sub/file lnk/two/link; ln -s two lnk/dir; ln -s nowhere lnk/two/dangling
        echo hard > hard/one/name; ln hard/one/name hard/two/other
        printf x > newline/$'a\\nb'
        echo f > over/full/f; echo g > over/from/g
        touch wild/a/{1,2} wild/b/3";
    const SCRIPT: &str = "
        says() { if \"$@\" 2> err; then echo \"$1: done\"; else echo \"$1: $(sed 's/.*: //' err)\"; fi; rm -f err; }
        says stat -c '%s %F' deep/a/b/c/d/file
        says stat deep/a/none/none
        says mv from/sub/file to/there/file
        ls to/there from/sub
        says mv from/none to/there/none
        says rmdir full/inner
        says rmdir full
        says mv -T empty over/full
        says mv -T over/from over/full
        says mkdir excl/taken
        (set -C; echo no > excl/taken) 2> /dev/null || echo exists
        echo more >> excl/taken; echo new > excl/new
        cat excl/taken excl/new; ls excl
        cat lnk/dir/link
        readlink lnk/two/dangling
        [ -L lnk/two/dangling ] && [ ! -e lnk/two/dangling ] && echo dangling
        echo made > lnk/two/dangling; cat lnk/two/nowhere
        [ hard/one/name -ef hard/two/other ] && echo same
        cat hard/two/other; stat -c %h hard/two/other hard/one/name
        says ln hard/one/name deep/a/linked
        stat -c %h deep/a/linked
        ls newline | od -c; cat newline/$'a\\nb'
        echo wild/*/[123]; echo wild/none*
        (cd deep/a/b && pwd | sed \"s|$STORAGE||\" && ls ../b/c && cat ../../../excl/new)
        says rmdir empty
        says rm to/there/x
        ls to/there; ls";
    let node = cold(server, setup, FILL);
    says_the_same(&node, FILL, SCRIPT);
    let mut node = node;
    server.knobs().delay_ms.store(0, Ordering::Relaxed);
    // What is compared is the tree itself.
    node.flush();
    node.warm();
    node.survives("changes of names that were not here");
}

/// What was written by a name that went belongs to the other name, also where nobody has met that yet.
fn another_name(server: &S3Server, setup: Setup) {
    let fill = "mkdir -p a b/c/d/e/f/g; for i in 1 2 3; do echo old > a/$i; ln a/$i b/c/d/e/f/g/$i; done";
    let mut node = cold(server, setup, fill);
    node.sh("echo more >> a/1; rm a/1; exec 3>> a/2; rm a/2; echo more >&3; echo new > a/new; mv a/new a/3");
    node.flush();
    node.lose();
    node.start();
    assert_eq!(node.sh("cat b/c/d/e/f/g/{1,2,3}; ls a; cat a/3"), "old\nmore\nold\nmore\nold\n3\nnew\n");
    node.sh("rm -r a b");
}

fn lists(server: &S3Server, setup: Setup) {
    require("python3");
    const FILL: &str = "
        for top in ls find walk glob tar du cp scan; do
            mkdir -p $top/{a,b,c}/{x,y}/deep
            for dir in $top/{a,b,c}/{x,y}; do echo $dir > $dir/file; echo deep > $dir/deep/end; ln -s ../x $dir/link; done
        done";
    const SCRIPT: &str = "
        ls -R ls
        find find | sort
        find find -type f -size -100c | sort
        python3 -c \"
import os
for top, dirs, files in os.walk('walk'):
    dirs.sort()
    print(top, dirs, sorted(files))
\"
        shopt -s globstar; printf '%s\\n' glob/** glob/*/y/deep/*
        tar -c tar | tar -t | sort
        du -a --apparent-size du | cut -f 2 | sort
        cp -a cp copied; (cd copied; find . | sort; cat a/x/deep/end)
        python3 -c \"
import os
print(sorted(entry.name for entry in os.scandir('scan/b/y')), os.listdir(os.open('scan/c/x/deep', os.O_RDONLY)))
\"";
    let node = cold(server, setup, FILL);
    says_the_same(&node, FILL, SCRIPT);
}

/// libc's own walkers, which call no hooked function where they look.
fn walkers(server: &S3Server, setup: Setup) {
    const FILL: &str = "
        for top in deep-first plain followed globbed scanned words fts; do
            mkdir -p $top/{a,b}/{x,y}/deep
            for dir in $top/{a,b}/{x,y}; do echo $dir > $dir/e1; echo more > $dir/deep/e2; ln -s ../../b/x $dir/link; done
        done
        rm followed/*/*/link; mkdir -p away/in; echo 1 > away/in/file; ln -s ../../away followed/a/to";
    let program = crate_dir().join("programs/lazy_walk.c");
    let mut node = cold(server, setup, FILL);
    let dir = node.outside().join("ordinary");
    let sorted = |text: String| {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    for language in [Language::C, Language::MuslC] {
        let program = built(language, &program);
        let mut make = node.app_without_shim("/bin/bash");
        make.args(["-euc", &format!("rm -rf {0}; mkdir {0}; cd {0}; {FILL}", dir.display())]);
        node.run_to_end(make, PATIENCE).succeeded();
        let mut plainly = node.app_without_shim(&program);
        plainly.arg(&dir);
        let mut command = node.app(&program);
        command.arg(node.prefix());
        let expected = sorted(node.run_to_end(plainly, PATIENCE).succeeded());
        let said = sorted(node.run_to_end(command, PATIENCE).succeeded());
        assert!(expected.lines().count() > 60, "{expected}");
        same(&expected, &said, &node);
        node.lose();
        node.start();
    }
}

fn repository(server: &S3Server, setup: Setup) {
    require("git");
    const FILL: &str = "
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        export GIT_AUTHOR_DATE='2001-02-03T04:05:06Z' GIT_COMMITTER_DATE='2001-02-03T04:05:06Z'
        git init -q -b main repo; cd repo
        for i in {1..40}; do mkdir -p src/$((i % 7))/$i; echo $i > src/$((i % 7))/$i/file; done
        git add .; git commit -qm one; echo changed > src/1/1/file; git commit -qam two; cd ..";
    const SCRIPT: &str = "
        git -C repo status --porcelain; git -C repo log --oneline; git -C repo fsck 2>&1
        echo more > repo/src/3/new; rm -r repo/src/5; git -C repo status --porcelain | sort
        git -C repo stash -q -u; git -C repo status --porcelain; git -C repo stash pop -q; git -C repo status --porcelain | sort";
    let node = cold(server, setup, FILL);
    says_the_same(&node, FILL, SCRIPT);
}

fn removal(server: &S3Server, setup: Setup) {
    const FILL: &str = "
        mkdir -p keep gone/{a,b,c}/{d,e}/f; touch gone/{a,b,c}/{d,e}/f/{1,2,3} gone/{a,b}/x keep/file; chmod 555 gone/c/d/f
        mkdir -p other/{a,b}/c; echo x > other/a/c/x; ln other/a/c/x other/b/c/y";
    let mut node = cold(server, setup, FILL);
    node.sh("chmod 755 gone/c/d/f; rm -rf gone other/a; ls; ls keep; cat other/b/c/y");
    server.knobs().delay_ms.store(0, Ordering::Relaxed);
    node.flush();
    node.lose();
    node.start();
    assert_eq!(
        node.sh("find . | sort"),
        ".\n./keep\n./keep/file\n./other\n./other/b\n./other/b/c\n./other/b/c/y\n"
    );
    assert_eq!(node.sh("cat other/b/c/y"), "x\n");
    assert!(fs::read_dir(node.tree()).unwrap().count() >= 2);
}

/// Directories are populated under the hands of who goes through them, and change by that on this disk: however many there are, an
/// archiver finds none of them changed.
#[test]
fn an_archiver_finds_nothing_changed() {
    const FILL: &str = "python3 -c \"
import os
for n in range(3000):
    os.makedirs(f'{n // 50}/{n % 50}')
    open(f'{n // 50}/{n % 50}/file', 'w').write('text')
\"";
    let server = S3Server::start();
    let url = format!("s3://{BUCKET}/volume");
    let mut node = Node::started(Setup::translated(url).with_s3(&server.endpoint()).lazy());
    node.sh(FILL);
    node.flush();
    node.lose();
    node.start();
    let said = node.bash("set -o pipefail; tar -cf - . | tar -tf - | wc -l");
    assert_eq!((said.err.as_str(), said.out.trim()), ("", "6061"));
    said.succeeded();
}

/// The kernel gives a number out again at once: in one place directories and files come and go, and cuts are made all along,
/// while in others the agent makes what has not been here yet.
#[test]
fn numbers_that_are_given_out_again_stand_for_what_has_them_now() {
    [Setup::translated as fn(String) -> Setup, Setup::identity].into_iter().for_each(numbers);
}

fn numbers(placed: fn(String) -> Setup) {
    const FILL: &str = "
os.mkdir('churn')
for i in range(800):
    os.makedirs(f'a{i % 10}/b{i}/c/d')
    open(f'a{i % 10}/b{i}/c/d/f', 'w').write(f'{i}\\n')";
    const CHURN: &str = "
import time
me = [os.fork() for _ in range(2)]
end, i = time.time() + 1, 0
while time.time() < end:
    i += 1
    names = [f'churn/{os.getpid()}.{i}.{j}' for j in range(1 + i % 8)]
    for name in names:
        os.mkdir(name)
        open(name + '/x', 'w').close()
    time.sleep(0.001 * (i % 30))
    for name in names:
        os.unlink(name + '/x')
        os.rmdir(name)
for child in me if all(me) else []:
    assert os.waitpid(child, 0)[1] == 0";
    const LIST: &str = "find . | LC_ALL=C sort";
    // One that answers at once, so that there are many cuts.
    let store = FileStore::new();
    let mut node = Node::started(placed(store.url()).lazy().with("max_lag", "10ms"));
    node.python(FILL);
    node.flush();
    let before = node.sh(LIST);
    for _ in 0..2 {
        node.lose();
        node.start();
        node.python(CHURN);
        same(&before, &node.sh(LIST), &node);
        node.flush();
    }
    // What was committed meanwhile is right as well.
    node.lose();
    node.start();
    same(&before, &node.sh(LIST), &node);
    node.survives("numbers that were given out again");
}
