//! Bad input and bad stores: each is refused by one clear error that says what to do, the agent ends with a status other
//! than 0 and not by a signal, and nothing in the store is lost by it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use storeshim_tests::installed::Foreign;
use storeshim_tests::node::{FileStore, Node, Said, Setup, User};
use storeshim_tests::programs::require;
use storeshim_tests::s3::{BUCKET, S3Server};
use storeshim_tests::tree::{Snapshot, assert_same};

/// The agent of a new node with this setup must refuse in these words.
#[track_caller]
fn refused(setup: Setup, words: &[&str]) {
    Node::new(setup).start_refused().refused(words);
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not tried: only root can make this situation");
    }
    root
}

// --- The URL and what is behind it ---

#[test]
fn unknown_scheme() {
    refused(Setup::identity("gopher://host/volume"), &["gopher", "s3|file"]);
}

#[test]
fn not_a_url() {
    refused(Setup::identity("just-words"), &["just-words", "url"]);
}

#[test]
fn s3_without_a_bucket() {
    let server = S3Server::start();
    refused(Setup::identity("s3://").with_s3(&server.endpoint()), &["s3://"]);
}

#[test]
fn wrong_credentials() {
    let server = S3Server::start();
    let setup = Setup::on_s3(&server).with_env("AWS_SECRET_ACCESS_KEY", "wrong");
    refused(setup, &["credential|signature|denied|forbidden|permission", BUCKET]);
    let setup = Setup::on_s3(&server).with_env("AWS_ACCESS_KEY_ID", "AKIANOBODY");
    refused(setup, &["credential|access key|denied|forbidden|permission", BUCKET]);
    assert!(server.keys().is_empty());
}

#[test]
fn missing_bucket() {
    let server = S3Server::start();
    let setup = Setup::identity("s3://no-such-bucket/volume").with_s3(&server.endpoint());
    refused(setup, &["no-such-bucket", "bucket", "exist|create|not found|no such"]);
}

#[test]
fn nobody_listens() {
    let server = S3Server::start();
    let setup = Setup::on_s3(&server);
    let address = server.address().to_string();
    drop(server);
    refused(setup, &[&address]);
}

#[test]
fn read_only_store() {
    let server = S3Server::start();
    server.knobs().read_only.store(true, Relaxed);
    refused(Setup::on_s3(&server), &["write|read-only", "permission|denied|read-only|policy"]);
}

#[test]
fn read_only_directory() {
    let store = FileStore::new();
    fs::set_permissions(store.path(), fs::Permissions::from_mode(0o555)).unwrap();
    refused(Setup::translated(store.url()), &["permission|read-only", &store.path().display().to_string()]);
}

/// A store that has become read-only still shows what it has kept, by a restart that refuses to write over it.
#[test]
fn a_store_that_became_read_only_keeps_what_it_has() {
    let server = S3Server::start();
    let mut node = Node::started(Setup::on_s3(&server));
    node.sh("echo kept > kept");
    node.survives("before");
    node.kill_agent();
    let keys = server.keys();
    server.knobs().read_only.store(true, Relaxed);
    node.start_refused().refused(&["write|read-only"]);
    assert_eq!(server.keys(), keys);
    server.knobs().heal();
    node.start();
    node.survives("after");
}

// --- Conditional writes ---

#[test]
fn store_that_ignores_if_none_match() {
    let server = S3Server::start();
    server.knobs().ignore_if_none_match.store(true, Relaxed);
    refused(Setup::on_s3(&server), &["conditional", "if-none-match|overwr|create"]);
}

/// Only what is needed may be asked for: whoever needs If-Match must notice its absence, nobody else has to.
#[test]
fn store_that_breaks_if_match() {
    let server = S3Server::start();
    server.knobs().ignore_if_match.store(true, Relaxed);
    let mut node = Node::new(Setup::on_s3(&server));
    if node.setup().reference {
        return; // The plain disk has no backend.
    }
    node.launch();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        assert!(std::time::Instant::now() < deadline, "neither ready nor refused");
        if node.log().to_lowercase().contains("conditional") {
            assert!(!node.await_exit().success());
            return;
        }
        if node.try_status().is_some_and(|status| status.to_string().contains("\"ready\"")) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // It went on, so it must be safe: the older of two agents is fenced all the same.
    node.sh("echo 1 > one; sync one");
    let second = Node::started(Setup::on_s3(&server));
    second.sh("echo 2 > two; sync two");
    assert_ne!(node.bash("echo late > late; sync late").code, 0, "two agents write to one volume");
}

#[test]
fn s3rver_is_refused() {
    let server = Foreign::s3rver();
    // Its only key pair.
    let setup = Setup::identity(format!("s3://{BUCKET}/volume"))
        .with_s3(&server.endpoint())
        .with_env("AWS_ACCESS_KEY_ID", "S3RVER")
        .with_env("AWS_SECRET_ACCESS_KEY", "S3RVER");
    refused(setup, &["conditional"]);
}

#[test]
fn rclone_serve_s3_is_refused() {
    let server = Foreign::rclone();
    let setup = Setup::identity(format!("s3://{BUCKET}/volume")).with_s3(&server.endpoint());
    refused(setup, &["conditional"]);
}

/// The counter-check: another implementation that keeps conditional writes is accepted and works.
#[test]
fn moto_is_accepted() {
    let server = Foreign::moto();
    let setup = Setup::identity(format!("s3://{BUCKET}/volume")).with_s3(&server.endpoint());
    let mut node = Node::started(setup);
    node.sh("for i in $(seq 50); do echo $i > $i; done; head -c 3000000 /dev/urandom > random; sync random");
    node.survives("moto");
}

// --- What lies in the store ---

/// A node whose volume holds enough for packs, flushed and stopped, with what it held.
fn volume_with_packs(store: &FileStore) -> Snapshot {
    let mut node = Node::started(Setup::identity(store.url()));
    node.sh(
        "head -c 12000000 /dev/urandom > random; for i in 1 2 3; do head -c 300000 /dev/urandom > small$i; done
         mkdir d; echo text > d/text",
    );
    node.flush();
    assert!(node.stop_agent().success());
    Snapshot::of(node.tree())
}

fn packs(store: &FileStore) -> Vec<PathBuf> {
    let files = store.files().into_iter();
    let packs = files.filter(|(path, _)| path.components().any(|part| part.as_os_str() == "packs"));
    let packs: Vec<PathBuf> = packs.map(|(path, _)| path).collect();
    assert!(!packs.is_empty(), "no packs in {:?}", store.files());
    packs
}

/// Does something bad to every pack: a restore must refuse, saying which pack is damaged; put right, everything is there.
fn damaged_packs(damage: fn(&Path), words: &[&str]) {
    let store = FileStore::new();
    let setup = Setup::identity(store.url());
    if setup.reference {
        return; // The plain disk has no packs.
    }
    let before = volume_with_packs(&store);
    let packs = packs(&store);
    let aside = tempfile::tempdir().unwrap();
    for (index, pack) in packs.iter().enumerate() {
        fs::copy(pack, aside.path().join(index.to_string())).unwrap();
        damage(pack);
    }
    let node = Node::new(setup.clone());
    let said = node.start_refused();
    said.refused(words);
    let text = format!("{}{}", said.out, said.err);
    let named = packs.iter().any(|pack| text.contains(pack.file_name().unwrap().to_str().unwrap()));
    assert!(named, "the error names no pack:\n{text}");
    for (index, pack) in packs.iter().enumerate() {
        fs::copy(aside.path().join(index.to_string()), pack).unwrap();
        chown(pack, setup.user.id(), setup.user.id()).unwrap();
    }
    let healthy = Node::started(setup);
    assert_same(&before, &Snapshot::of(healthy.tree()), "packs put right");
}

#[test]
fn corrupt_pack() {
    damaged_packs(
        |pack| {
            let file = fs::File::options().read(true).write(true).open(pack).unwrap();
            let middle = file.metadata().unwrap().len() / 2;
            let mut bytes = [0; 64];
            file.read_exact_at(&mut bytes, middle).unwrap();
            file.write_all_at(&bytes.map(|byte| !byte), middle).unwrap();
        },
        &["pack", "damage|corrupt|hash|checksum|decompress"],
    );
}

#[test]
fn truncated_pack() {
    damaged_packs(
        |pack| {
            let file = fs::File::options().write(true).open(pack).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        },
        &["pack", "short|truncated|damage|corrupt|missing"],
    );
}

#[test]
fn missing_pack() {
    damaged_packs(
        |pack| fs::remove_file(pack).unwrap(),
        &["pack", "missing|not found|not there|no such|gone"],
    );
}

/// A damaged volume must not harm what is still on the disk of a node that has it.
#[test]
fn a_damaged_store_leaves_the_tree_alone() {
    let store = FileStore::new();
    let mut node = Node::started(Setup::identity(store.url()));
    if node.setup().reference {
        return; // The plain disk has no packs.
    }
    node.sh("head -c 9000000 /dev/urandom > random; echo unsynced > text");
    node.flush();
    node.kill_agent();
    let before = Snapshot::of(node.tree());
    for pack in packs(&store) {
        fs::remove_file(pack).unwrap();
    }
    // It may notice or not (nothing needs to be read); the tree is whole in either case.
    node.launch();
    std::thread::sleep(Duration::from_secs(2));
    node.kill_agent();
    assert_same(&before, &Snapshot::of(node.tree()), "tree beside a damaged store");
}

#[test]
fn foreign_data_under_the_prefix() {
    let store = FileStore::new();
    fs::create_dir(store.path().join("photos")).unwrap();
    fs::write(store.path().join("photos/holiday.jpg"), "not ours").unwrap();
    fs::write(store.path().join("README"), "not ours").unwrap();
    let before = store.files();
    refused(Setup::translated(store.url()), &["not of a volume|not a storeshim|foreign"]);
    assert_eq!(store.files(), before);
}

/// A volume whose format is from the future must be refused, not guessed at. The version is the first number of the
/// record `v` of the metadata, after the byte that is the record's own version.
#[test]
fn unknown_format_version() {
    let store = FileStore::new();
    let setup = Setup::identity(store.url());
    if setup.reference {
        return; // The plain disk has no format.
    }
    let before = volume_with_packs(&store);
    let version = change_version(&store, 99);
    refused(setup.clone(), &["version 99", "knows version"]);
    assert_eq!(change_version(&store, version), 99);
    let healthy = Node::started(setup);
    assert_same(&before, &Snapshot::of(healthy.tree()), "version put right");
}

/// Sets the format version in a volume's metadata; returns what it was. Both fit into one byte.
fn change_version(store: &FileStore, version: u8) -> u8 {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let objects = object_store::local::LocalFileSystem::new_with_prefix(store.path()).unwrap();
        let db = slatedb::Db::open("meta", std::sync::Arc::new(objects)).await.unwrap();
        let mut record = db.get(b"v").await.unwrap().expect("a volume has a format").to_vec();
        let old = std::mem::replace(&mut record[1], version);
        db.put(b"v", record).await.unwrap();
        db.flush().await.unwrap();
        db.close().await.unwrap();
        old
    })
}

// --- This machine ---

/// A restore onto a disk that is too small: a clear error, and the volume is untouched.
#[test]
fn full_local_disk() {
    if !root() {
        return;
    }
    let store = FileStore::new();
    let setup = Setup::identity(store.url());
    if setup.reference {
        return; // The plain disk needs no restore.
    }
    let mut big = Node::started(setup.clone());
    big.sh("head -c 20000000 /dev/urandom > random");
    big.flush();
    assert!(big.stop_agent().success());
    let before = Snapshot::of(big.tree());
    let files = store.files();

    let small = Node::new(setup.clone());
    let mounted = Tmpfs::mount(small.tree(), "size=8m");
    let said = small.start_refused();
    said.refused(&["space|full", &small.tree().display().to_string()]);
    drop(mounted);
    for file in files.iter().filter(|(path, _)| path.components().any(|part| part.as_os_str() == "packs")) {
        assert!(store.files().contains(file), "{file:?} has gone");
    }
    let healthy = Node::started(setup);
    assert_same(&before, &Snapshot::of(healthy.tree()), "after a full disk");
}

struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, options: &str) -> Self {
        let none: Option<&str> = None;
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(none, at, Some("tmpfs"), flags, Some(options)).expect("root may");
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A disk that fills up under an app: the app gets ENOSPC from the kernel; the agent goes on, and what fitted is kept.
#[test]
fn disk_fills_up_under_an_app() {
    if !root() {
        return;
    }
    let store = FileStore::new();
    let mut node = Node::new(Setup::identity(store.url()));
    if node.setup().reference {
        return;
    }
    let mounted = Tmpfs::mount(node.tree(), "size=16m");
    node.start();
    let said = node.bash("echo small > small; head -c 30000000 /dev/zero > big");
    assert_ne!(said.code, 0);
    node.sh("rm big; echo after > after; sync after");
    node.flush();
    node.kill_agent();
    let before = Snapshot::of(node.tree());
    drop(mounted);
    let healthy = Node::started(Setup::identity(store.url()));
    assert_same(&before, &Snapshot::of(healthy.tree()), "after a disk had filled up");
}

#[test]
fn run_directory_of_another_user() {
    if !root() {
        return;
    }
    let store = FileStore::new();
    let node = Node::new(Setup::translated(store.url()).as_user(User::Ordinary));
    fs::create_dir(node.run_dir()).unwrap();
    fs::set_permissions(node.run_dir(), fs::Permissions::from_mode(0o777)).unwrap();
    chown(node.run_dir(), Some(1234), Some(1234)).unwrap();
    let words = [&*node.run_dir().display().to_string(), "user|owner|belongs|owned"];
    node.start_refused().refused(&words);
    assert_eq!(store.files(), []);
}

#[test]
fn second_agent_on_one_run_directory() {
    let store = FileStore::new();
    let node = Node::started(Setup::identity(store.url()));
    if Setup::identity("").reference {
        return; // The plain disk has no agents.
    }
    let other = FileStore::new();
    let mut command = node.bare_command();
    let state = tempfile::tempdir().unwrap();
    command.arg("agent").arg("--run-dir").arg(node.run_dir()).arg("--state-dir").arg(state.path());
    command.arg("--mount").arg(format!("/storage-second={}", other.url()));
    let pid = node.agent_pid().to_string();
    node.run_to_end(command, Duration::from_secs(30)).refused(&[&pid, "agent"]);
    node.sh("echo works > works; sync works");
}

#[test]
fn commands_without_an_agent() {
    let node = Node::new(Setup::identity("file:///nowhere"));
    for command in ["status", "flush"] {
        let command = node.agent_command(command);
        node.run_to_end(command, Duration::from_secs(30)).refused(&["no agent|not running", "run"]);
    }
}

// --- Settings ---

fn with_config(text: &str) -> Said {
    let node = Node::new(Setup::identity("file:///nowhere"));
    let path = node.outside().join("storeshim.toml");
    fs::write(&path, text).unwrap();
    let mut command = node.bare_command();
    command.arg("agent").arg("--run-dir").arg(node.run_dir()).arg("--state-dir").arg(node.state_dir());
    command.arg("--config").arg(path);
    node.run_to_end(command, Duration::from_secs(30))
}

#[test]
fn unknown_key_names_the_line() {
    let text = "[[mount]]\nprefix = \"/storage\"\nurl = \"file:///tmp/x\"\ndirty_limits = \"1GiB\"\n";
    with_config(text).refused(&["storeshim.toml", "line 4", "dirty_limits"]);
}

#[test]
fn malformed_value_names_the_line() {
    let text = "[[mount]]\nprefix = \"/storage\"\nurl = \"file:///tmp/x\"\nmax_lag = \"soon\"\n";
    with_config(text).refused(&["storeshim.toml", "line 4", "soon", "ms"]);
}

#[test]
fn not_toml_names_the_line() {
    with_config("[[mount]]\nprefix = \"/storage\nurl = 3\n").refused(&["storeshim.toml", "line 2"]);
}

#[test]
fn malformed_mount_flag() {
    for (key, value, word) in [("max_lag", "1", "max_lag|duration"), ("nonsense", "1", "nonsense")] {
        refused(Setup::identity("file:///nowhere").with(key, value), &[word]);
    }
}

#[test]
fn missing_config_file() {
    let node = Node::new(Setup::identity("file:///nowhere"));
    let mut command = node.bare_command();
    command.arg("agent").arg("--config").arg("/no/such/file.toml");
    node.run_to_end(command, Duration::from_secs(30)).refused(&["/no/such/file.toml"]);
}

#[test]
fn program_that_does_not_exist() {
    let store = FileStore::new();
    let node = Node::new(Setup::identity(store.url()));
    let mut command = node.agent_command("run");
    command.args(["--", "no-such-program"]);
    let said = node.run_to_end(command, Duration::from_secs(60));
    assert_eq!(said.code, 127, "{said:?}");
    assert!(said.err.contains("no-such-program"), "{said:?}");
}

/// The tools the tests of other servers need are there; a missing one is a failure by itself, not a silent pass.
#[test]
fn what_the_tests_need_is_there() {
    for program in
        ["cc", "make", "git", "sqlite3", "python3", "rsync", "node", "npm", "flock", "setsid", "tar"]
    {
        require(program);
    }
    assert!(
        Command::new("/usr/bin/python3").args(["-m", "venv", "--help"]).output().unwrap().status.success()
    );
}

/// A path is as long as the program spells it, and not as long as it is with the tree's name in it.
#[test]
fn a_path_that_the_kernel_does_not_take_is_refused() {
    let store = FileStore::new();
    let prefix = format!("/{}/storage", "longer-than-the-path-of-its-tree".repeat(4));
    let node = Node::started(Setup::translated(store.url()).at(prefix));
    node.python(
        "import errno
def refused(call, length):
    path = os.environ['STORAGE'] + '/a' * ((length - len(os.environ['STORAGE'])) // 2)
    path += '/' * (length - len(path))
    assert len(path) == length
    try:
        call(path)
    except OSError as error:
        return error.errno
for call in (os.stat, os.mkdir, os.unlink, os.listdir, lambda path: os.rename(path, 'x'), lambda path: open(path, 'w')):
    assert refused(call, 4095) == errno.ENOENT, call
    for length in (4096, 4097, 4150, 9000):
        assert refused(call, length) == errno.ENAMETOOLONG, (call, length, refused(call, length))",
    );
}
