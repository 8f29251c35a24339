//! Ordinary programs, unchanged, in a volume: each does its work, then the machine is lost, and the store must bring
//! back the tree byte for byte and metadata for metadata.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use storeshim_tests::node::{FileStore, Node, Setup, User};
use storeshim_tests::programs::{crate_dir, require};
use storeshim_tests::s3::S3Server;
use storeshim_tests::tree::{Snapshot, assert_same};

/// Runs a piece of work on a node and loses the node afterwards.
fn proves(setup: Setup, occasion: &str, work: fn(&Node)) {
    let mut node = Node::started(setup);
    work(&node);
    node.survives(occasion);
}

/// One work on each kind of machine: `translated` as an ordinary user, `identity` as whoever runs the tests, both on a
/// directory store; `s3` is identity on a real S3 server.
macro_rules! workloads {
    ($($name:ident: $($place:ident),+;)+) => {$(
        mod $name {
            $(workloads!(@one $name $place);)+
        }
    )+};
    (@one $name:ident translated) => {
        #[test]
        fn translated() {
            let store = super::FileStore::new();
            super::proves(super::Setup::translated(store.url()), stringify!($name), super::$name);
        }
    };
    (@one $name:ident identity) => {
        #[test]
        fn identity() {
            let store = super::FileStore::new();
            super::proves(super::Setup::identity(store.url()), stringify!($name), super::$name);
        }
    };
    (@one $name:ident s3) => {
        #[test]
        fn s3() {
            let server = super::S3Server::start();
            super::proves(super::Setup::on_s3(&server), stringify!($name), super::$name);
        }
    };
}

workloads! {
    sqlite_rollback: translated, identity, s3;
    sqlite_wal: translated, identity;
    git: translated, identity, s3;
    python: translated, identity, s3;
    archives_and_copies: translated, identity;
    find_and_sed: translated, identity;
    shell: translated, identity;
    gcc_and_make: translated, identity;
    node_fs: translated, identity;
    many_writers: translated, identity;
    weird_tree: translated, identity, s3;
    working_directories: translated, identity;
}

/// The root user can also use a prefix that does not exist.
#[test]
fn weird_tree_translated_as_root() {
    let store = FileStore::new();
    proves(Setup::translated(store.url()).as_user(User::Current), "weird tree", weird_tree);
}

/// An ordinary user can also have the tree at the prefix itself.
#[test]
fn weird_tree_identity_as_an_ordinary_user() {
    let store = FileStore::new();
    proves(Setup::identity(store.url()).as_user(User::Ordinary), "weird tree", weird_tree);
}

fn script(name: &str) -> String {
    let path = crate_dir().join("programs/scripts").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn sqlite(node: &Node, journal: &str) {
    require("sqlite3");
    node.sh(&format!(
        "sqlite3 db 'pragma journal_mode={journal}' 'create table t (id integer primary key, v blob)'
         for i in 1 2 3 4 5 6 7 8 9 10; do
             sqlite3 db \"insert into t (v) with recursive n(i) as (select 1 union all select i+1 from n where i<1000)
                          select randomblob(100) from n\"
         done
         sqlite3 db 'begin' 'delete from t where id % 3 = 0' 'rollback'
         sqlite3 db 'create index i on t (v)' 'delete from t where id % 7 = 0' 'vacuum'
         test \"$(sqlite3 db 'pragma integrity_check')\" = ok
         test \"$(sqlite3 db 'select count(*) from t')\" = 8572
         sqlite3 db .dump > dump.sql
         sqlite3 copy < dump.sql
         sqlite3 db '.backup backup'
         test \"$(sqlite3 backup 'pragma integrity_check')\" = ok"
    ));
}

fn sqlite_rollback(node: &Node) {
    sqlite(node, "delete");
}

fn sqlite_wal(node: &Node) {
    sqlite(node, "wal");
    // Two connections at once: the shared memory of a WAL database is a shared mapping of a file in the volume.
    node.sh("for writer in 1 2 3; do
                 (for i in $(seq 30); do
                      sqlite3 -cmd '.timeout 20000' db 'insert into t (v) values (randomblob(50))'
                  done) &
             done
             wait
             test \"$(sqlite3 db 'select count(*) from t')\" = 8662
             test \"$(sqlite3 db 'pragma integrity_check')\" = ok");
}

fn git(node: &Node) {
    require("git");
    node.sh("git config --global user.name a; git config --global user.email a@b; git config --global gc.auto 0
             git init -q repo; cd repo
             mkdir -p $(seq -f 'dir%g' 20)
             for d in $(seq 20); do
                 for f in $(seq 100); do echo \"file $f in $d\" > dir$d/file$f; done
             done
             git add .; git commit -qm first
             git mv dir1 renamed; echo more >> dir2/file1; git rm -q dir3/file1; git commit -qam second
             git branch other HEAD~; git checkout -q other; echo other > other; git add other; git commit -qm third
             git checkout -q -; git merge -q --no-edit other
             git gc -q; git fsck --strict
             test -z \"$(git status --porcelain)\"
             test \"$(git ls-files | wc -l)\" = 2000
             cd ..
             git clone -q repo clone; git clone -q --bare repo bare.git
             test -z \"$(git -C clone status --porcelain)\"
             git -C clone fsck --strict
             git -C clone worktree add -q ../worktree other
             git -C clone stash list
             test \"$(git -C bare.git rev-list --count --all)\" = 4");
}

fn python(node: &Node) {
    node.python(&script("standard_library.py"));
}

fn archives_and_copies(node: &Node) {
    require("tar");
    require("rsync");
    node.sh("mkdir source; cp -r /usr/include/linux /usr/include/asm-generic source/
         ln -s linux/fs.h source/link; ln source/linux/fs.h source/hard
         truncate -s 3M source/sparse; echo end >> source/sparse; mkdir source/empty; mkfifo source/pipe
         touch -d '2001-02-03 04:05:06.123456789' source/linux/stat.h source/empty
         cp -a source copy
         tar -C source -cf tar.tar .; mkdir untar; tar -C untar -xpf tar.tar
         tar -C source -czf - . | (mkdir pipe; tar -C pipe -xzf -)
         rsync -aHS source/ synced/; rsync -aHS --delete --checksum source/ synced/
         rm -r synced/linux; rsync -aHS source/ synced/
         rsync -a source/linux/ \"$OUTSIDE/linux/\"; rsync -a --inplace \"$OUTSIDE/linux/\" back/
         diff -r --no-dereference --exclude pipe source copy
         diff -r --no-dereference --exclude pipe source untar
         diff -r --no-dereference --exclude pipe source synced
         diff -r source/linux back
         mv copy \"$OUTSIDE/moved\"; mv \"$OUTSIDE/moved\" returned
         rm -rf untar/linux; cp -al returned hardlinked");
}

fn find_and_sed(node: &Node) {
    node.sh(
        "for i in $(seq 300); do mkdir -p d$((i % 10)); echo \"line one $i\" > d$((i % 10))/f$i.txt; done
         find . -name 'f*.txt' -exec sed -i 's/one/two/' {} +
         test \"$(grep -rl 'line two' . | wc -l)\" = 300
         find . -name 'f1*.txt' -print0 | xargs -0 chmod 600
         find . -name 'f2*.txt' -newermt 2000-01-01 -delete
         find d3 -type f -exec touch -d '2010-01-01 00:00:00.5' {} +
         find \"$STORAGE\" -type f | sort > list; test -s list
         sed -n '1,5p' list | tee head > /dev/null
         sort -R list | sort -o list; split -l 10 list piece.; cat piece.* | cmp - list
         awk '{print length($0)}' list > lengths; gzip -k list; gunzip -c list.gz | cmp - list
         dd if=/dev/urandom of=random bs=64k count=20 status=none conv=fsync
         dd if=/dev/zero of=random bs=1k seek=100 count=3 conv=notrunc status=none
         install -m 711 random installed; truncate -s 100k installed
         ln -sfn d1 current; ln -sfn d2 current; mkdir -p a/b/c && rmdir -p a/b/c",
    );
}

fn shell(node: &Node) {
    node.sh(
        "echo one > file; echo two >> file; cat < file > copy; { echo three; echo four; } >> file
         cat > here <<END
a here-document
with $STORAGE
END
         cat <<< 'a here-string' > string
         exec 7<> both; echo through seven >&7; exec 7>&-
         exec 8>> append; (echo from a child >&8); bash -c 'echo from a grandchild >&8'; exec 8>&-
         set -o noclobber; ! (echo no > file) 2> /dev/null; echo yes >| file.new; set +o noclobber
         for i in $(seq 100); do echo $i; done | while read -r n; do echo $((n * n)); done > squares
         test \"$(tail -1 squares)\" = 10000
         ( trap 'echo trapped > trapped' EXIT; true )
         diff <(sort squares) <(sort squares | uniq)
         coproc cat; echo through a coprocess >&${COPROC[1]}; exec {COPROC[1]}>&-; cat <&${COPROC[0]} > coprocess
         printf '%s' 'no newline' > 'a name with spaces'; : > empty; mkdir $'new\\nline'; > $'new\\nline/x'
         umask 027; echo private > private; mkdir shared; pushd shared > /dev/null; pwd > where; popd > /dev/null
         test \"$(cat shared/where)\" = \"$STORAGE/shared\"
         test \"$(pwd)\" = \"$STORAGE\"
         echo 'echo \"I am $0\"' > script; chmod +x script; ./script > output
         mkfifo pipe; cat pipe > from-pipe & echo 'through a pipe' > pipe; wait
         sh -c 'echo background > background' & wait",
    );
}

fn gcc_and_make(node: &Node) {
    require("gcc");
    require("make");
    node.sh("mkdir -p project/src project/include; cd project
         for i in $(seq 12); do
             echo \"int f$i(void);\" >> include/all.h
             printf '#include \"all.h\"\\nint f%s(void) { return %s; }\\n' $i $i > src/f$i.c
         done
         { echo '#include <stdio.h>'; echo '#include \"all.h\"'; echo 'int main(void) { int s = 0;'
           for i in $(seq 12); do echo \"s += f$i();\"; done
           echo 'printf(\"%d\\n\", s); return 0; }'; } > src/main.c
         cat > Makefile <<'END'
SOURCES := $(wildcard src/*.c)
OBJECTS := $(SOURCES:src/%.c=build/%.o)
build/sum: build/libf.a build/main.o
	$(CC) -o $@ build/main.o -Lbuild -lf
build/libf.a: $(filter-out build/main.o,$(OBJECTS))
	ar rcs $@ $^
build/%.o: src/%.c | build
	$(CC) -Iinclude -MMD -g -c -o $@ $<
build:
	mkdir -p $@
-include $(OBJECTS:.o=.d)
END
         make -s -j2; test \"$(./build/sum)\" = 78
         make -s -q
         sleep 0.01; touch include/all.h; ! make -q; make -s -j2
         gcc -shared -fPIC -Iinclude -o build/libf.so src/f1.c
         \"$STORAGE/project/build/sum\" > result; test \"$(cat result)\" = 78");
}

fn node_fs(node: &Node) {
    require("node");
    let program = node.outside().join("node_fs.js");
    std::fs::write(&program, script("node_fs.js")).unwrap();
    node.sh("exec node \"$OUTSIDE/node_fs.js\"");
}

fn many_writers(node: &Node) {
    require("flock");
    node.sh("mkdir queue done; echo 0 > counter
         worker() {
             for i in $(seq 25); do
                 ( flock 9; n=$(cat counter); echo $((n + 1)) > counter ) 9> lock
                 echo \"$1 $i\" >> log
                 echo \"$1 $i\" > queue/.draft.$1.$i; mv queue/.draft.$1.$i queue/$1.$i
                 mv queue/$1.$i done/ && rm -f latest.$1 && ln -s done/$1.$i latest.$1
             done
         }
         for w in $(seq 8); do worker $w & done; wait
         test \"$(cat counter)\" = 200
         test \"$(wc -l < log)\" = 200; test \"$(sort -u log | wc -l)\" = 200
         test \"$(ls done | wc -l)\" = 200; test -z \"$(ls -A queue)\"");
}

fn weird_tree(node: &Node) {
    node.python(&script("weird_tree.py"));
}

fn working_directories(node: &Node) {
    node.python(
        "
import subprocess
root = os.environ['STORAGE']
os.makedirs('a/b/c')
os.symlink('a/b', 'short')
os.chdir('short/c')
assert os.getcwd() == root + '/a/b/c', os.getcwd()
open('../sibling', 'w').write('up')
assert os.path.exists(root + '/a/b/sibling')
assert os.path.realpath('..') == root + '/a/b'
assert os.readlink(root + '/short') == 'a/b'
assert subprocess.check_output(['/bin/pwd', '-P'], text=True).strip() == root + '/a/b/c'
assert subprocess.check_output(['/bin/pwd'], cwd=root + '/a', text=True).strip() == root + '/a'
fd = os.open(root + '/a', os.O_RDONLY)
os.fchdir(fd)
assert os.getcwd() == root + '/a'
os.rename(root + '/a', root + '/renamed')
assert os.getcwd() == root + '/renamed', os.getcwd()
inner = os.open('made', os.O_CREAT | os.O_WRONLY, dir_fd=fd)
os.write(inner, b'relative')
os.mkdir('inner', dir_fd=fd)
os.link('made', 'linked', src_dir_fd=fd, dst_dir_fd=fd)
assert sorted(os.listdir(fd)) == ['b', 'inner', 'linked', 'made']
assert sorted(e.name for e in os.scandir(root)) == ['renamed', 'short']
try:
    os.mkdir(root)
    raise SystemExit('mkdir of the prefix succeeded')
except FileExistsError:
    pass
absolute = os.path.join(root, 'renamed', 'made')
os.symlink(absolute, root + '/absolute')
assert os.readlink(root + '/absolute') == absolute
assert open(root + '/absolute').read() == 'relative'
",
    );
}

/// A tree may be deeper than the longest path: it is made by walking, and must come back.
#[test]
fn deeper_than_the_longest_path() {
    let store = FileStore::new();
    let setup = Setup::translated(store.url());
    if setup.reference {
        return; // cp -a cannot.
    }
    proves(setup, "deep tree", |node| {
        node.python(
            "
for level in range(60):
    name = f'{level:02}' + 'd' * 120
    os.mkdir(name)
    os.chdir(name)
open('bottom', 'w').write('found')
",
        );
    });
}

/// The store is all there is: a second machine in another place shows the same tree.
#[test]
fn another_machine_in_another_placement() {
    let store = FileStore::new();
    let mut first = Node::started(Setup::translated(store.url()));
    if first.setup().reference {
        return; // The plain disk has no second machine.
    }
    first.sh("mkdir d; echo hello > d/f; ln -s f d/l; chmod 640 d/f; touch -d '2020-01-01 00:00:00.25' d/f");
    first.flush();
    first.kill_agent();
    let before = Snapshot::of(first.tree());
    let second = Node::started(Setup::identity(store.url()));
    assert_same(&before, &Snapshot::of(second.tree()), "another placement");
}
