//! Calls on a mount whose directories are placeholders, and an agent that populates them.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use storeshim_protocol::control::{FLAG_NAMES, FLAG_QUOTA_NEAR};
use storeshim_protocol::names;
use storeshim_protocol::request::{Answer, Ask};
use storeshim_protocol::residency::Residency;

use super::*;
use crate::attach;
use crate::attached_tests::{base, lazy_base, run};
use crate::loader::get_errno;
use crate::place::CWD;
use crate::sys::{self, k};

/// The agent's side of mount 1.
struct Agent {
    table: &'static Residency,
    /// Directories of the tree that are placeholders, by inode number.
    placeholders: Mutex<HashMap<u64, PathBuf>>,
    /// What was asked.
    asked: Mutex<Vec<Ask>>,
    /// What is answered to it instead of doing it.
    refused: Mutex<HashMap<u64, i32>>,
    /// Directories whose cells stay absent for ever, because others are in them.
    shared: Mutex<Vec<u64>>,
}

fn volume() -> PathBuf {
    base().join("volume")
}

fn tree() -> PathBuf {
    PathBuf::from(&run().lazy)
}

fn agent() -> &'static Agent {
    static AGENT: OnceLock<Agent> = OnceLock::new();
    AGENT.get_or_init(|| {
        let path = (run(), base().join(format!("{}1", names::RESIDENCY))).1;
        let file = std::fs::File::create_new(&path).unwrap();
        file.set_len(size_of::<Residency>() as u64).unwrap();
        let name = CString::new(path.to_str().unwrap()).unwrap();
        let fd = sys::openat(CWD, name.as_ptr(), k::O_RDWR as i32, 0).unwrap() as i32;
        let at = sys::map(fd, size_of::<Residency>(), true).unwrap();
        sys::close(fd);
        // SAFETY: a mapping of the whole table that stays for the test's life.
        let table = unsafe { &*at.cast::<Residency>() };
        std::thread::spawn(|| {
            loop {
                agent().serve();
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        });
        Agent {
            table,
            placeholders: Mutex::default(),
            asked: Mutex::default(),
            refused: Mutex::default(),
            shared: Mutex::default(),
        }
    })
}

impl Agent {
    fn serve(&self) {
        let Some(ring) = attach::attached() else { return };
        for slot in ring.used() {
            let Some((ticket, Ok(request))) = slot.request().pending() else { continue };
            if request.mount != 1 {
                continue;
            }
            assert!(!slot.gate.is_inside(), "nobody waits inside the gate: {:?}", request.ask);
            self.asked.lock().unwrap().push(request.ask);
            let answer = match request.ask {
                Ask::Populate { ino } => Answer { errno: self.populate(ino), value: 0 },
                Ask::Find { ino, names } => {
                    Answer { errno: self.find(ino, names.iter().next().unwrap()), value: 0 }
                }
                Ask::Unlink { ino } => Answer { errno: self.refusal(ino), value: 0 },
                Ask::Blocks { .. } => Answer { errno: 0, value: 77 },
                Ask::Grow { .. } => Answer { errno: 122, value: 0 },
                _ => Answer { errno: 0, value: 0 },
            };
            if slot.request().reply(ticket, answer) {
                sys::futex_wake(slot.request().word());
            }
        }
    }

    fn refusal(&self, ino: u64) -> i32 {
        self.refused.lock().unwrap().get(&ino).copied().unwrap_or(0)
    }

    fn populate(&self, ino: u64) -> i32 {
        let refusal = self.refusal(ino);
        if refusal != 0 {
            return refusal;
        }
        let taken = self.placeholders.lock().unwrap().remove(&ino);
        if let Some(path) = taken {
            for entry in std::fs::read_dir(volume().join(&path)).unwrap() {
                self.place(&path.join(entry.unwrap().file_name()));
            }
            if !self.shared.lock().unwrap().contains(&ino) {
                self.table.set_whole(ino);
            }
        }
        0
    }

    /// Of directories that are called `large` one entry comes alone.
    fn find(&self, ino: u64, name: &[u8]) -> i32 {
        let dir = self.placeholders.lock().unwrap().get(&ino).cloned();
        let Some(dir) = dir.filter(|dir| dir.ends_with("large")) else { return self.populate(ino) };
        let path = dir.join(std::ffi::OsStr::from_bytes(name));
        if self.refusal(ino) == 0 && volume().join(&path).symlink_metadata().is_ok() {
            self.place(&path);
        }
        self.refusal(ino)
    }

    /// Makes a placeholder for what the volume has at `path`, if there is none.
    fn place(&self, path: &Path) {
        let (from, to) = (volume().join(path), tree().join(path));
        if to.symlink_metadata().is_ok() {
            return;
        }
        let made = lazy_base().join("made");
        let meta = from.symlink_metadata().unwrap();
        if meta.is_symlink() {
            return symlink(from.read_link().unwrap(), to).unwrap();
        }
        if meta.is_dir() {
            std::fs::create_dir(&made).unwrap();
        } else {
            std::fs::File::create_new(&made).unwrap().set_len(meta.len()).unwrap();
        }
        let ino = made.metadata().unwrap().ino();
        if meta.is_dir() {
            self.placeholders.lock().unwrap().insert(ino, path.to_owned());
        }
        if meta.is_dir() || meta.len() > 0 {
            self.table.set_absent(ino);
        }
        std::fs::rename(made, to).unwrap();
    }

    /// What was asked about what lies at `path` of the tree.
    fn asked(&self, path: &str) -> Vec<Ask> {
        let ino = tree().join(path).symlink_metadata().unwrap().ino();
        let about = |ask: &&Ask| match **ask {
            Ask::Populate { ino: asked }
            | Ask::Find { ino: asked, .. }
            | Ask::Unlink { ino: asked }
            | Ask::Blocks { ino: asked } => asked == ino,
            _ => false,
        };
        self.asked.lock().unwrap().iter().filter(about).copied().collect()
    }
}

/// A volume with these files (and directories: those that end with a slash; and links: `name>target`) below `/lazy/test`,
/// which is itself a placeholder.
fn lazy(test: &str, files: &[&str]) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap();
    let top = volume().join(test);
    std::fs::create_dir_all(&top).unwrap();
    for file in files {
        let (name, target) = file.split_once('>').unwrap_or((file, ""));
        let path = top.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        if name.ends_with('/') {
            std::fs::create_dir_all(path).unwrap();
        } else if target.is_empty() {
            std::fs::write(path, b"data").unwrap();
        } else {
            symlink(target, path).unwrap();
        }
    }
    agent().place(Path::new(test));
}

fn c(path: &str) -> CString {
    CString::new(path).unwrap()
}

/// What a call answered: 0 or more, or its errno as a negative number.
fn said(done: i32) -> i32 {
    if done == -1 { -get_errno().0 } else { done }
}

fn stat(path: &str) -> Result<k::stat, i32> {
    let mut out = std::mem::MaybeUninit::uninit();
    // SAFETY: room for the answer.
    match said(unsafe { stat::my_lstat(c(path).as_ptr(), out.as_mut_ptr()) }) {
        // SAFETY: filled.
        0 => Ok(unsafe { out.assume_init() }),
        errno => Err(-errno),
    }
}

fn open(path: &str, flags: u32) -> i32 {
    // SAFETY: a C string.
    said(unsafe { open::my_open(c(path).as_ptr(), flags as i32, 0o600) })
}

fn is_there(path: &str) -> bool {
    tree().join(path).symlink_metadata().is_ok()
}

#[test]
fn what_lies_deep_is_found_at_the_first_look() {
    lazy("deep", &["a/b/c/file", "a/other/x"]);
    assert!(stat("/lazy/deep/a/b/c/file").unwrap().st_size == 4);
    assert!(!is_there("deep/a/other/x"), "only what is on the way is populated");
    assert_eq!(stat("/lazy/deep/a/b/c/none").err(), Some(2));
    assert_eq!(stat("/lazy/deep/a/b/none/none").err(), Some(2));
    assert_eq!(stat("/lazy/deep/a/b/c/file/none").err(), Some(20));
    for path in ["deep", "deep/a", "deep/a/b", "deep/a/b/c"] {
        assert_eq!(agent().asked(path).len(), 1, "{path}");
    }
}

#[test]
fn of_a_large_directory_comes_what_is_looked_for_until_names_change_or_are_listed() {
    lazy("single", &["large/file", "large/sub/file", "large/link>sub", "large/other"]);
    assert!(stat("/lazy/single/large/file").is_ok());
    assert!(stat("/lazy/single/large/link/file").is_ok());
    assert_eq!(stat("/lazy/single/large/none").err(), Some(2));
    assert_eq!(stat("/lazy/single/large/file/none").err(), Some(20));
    let long = "n".repeat(256);
    assert_eq!(stat(&format!("/lazy/single/large/{long}")).err(), Some(36));
    assert!(is_there("single/large/sub") && !is_there("single/large/other"));
    let populates = || {
        agent().asked("single/large").into_iter().filter(|ask| matches!(ask, Ask::Populate { .. })).count()
    };
    assert_eq!(populates(), 0);
    // SAFETY: a C string.
    unsafe { assert_eq!(said(name::my_unlink(c("/lazy/single/large/file").as_ptr())), 0) };
    assert_eq!(populates(), 1);
    assert!(is_there("single/large/other") && !is_there("single/large/file"));
}

#[test]
fn a_cell_that_is_shared_is_asked_for_again_but_not_for_ever() {
    lazy("shared", &["a/file"]);
    let ino = tree().join("shared").metadata().unwrap().ino();
    agent().shared.lock().unwrap().push(ino);
    assert!(stat("/lazy/shared/a/file").is_ok());
    assert_eq!(stat("/lazy/shared/none").err(), Some(2));
    // SAFETY: a C string.
    unsafe { assert_eq!(said(name::my_mkdir(c("/lazy/shared/new").as_ptr(), 0o700)), 0) };
    assert_eq!(said(open("/lazy/shared/fresh", k::O_CREAT | k::O_EXCL)).signum(), 1);
    assert!(agent().asked("shared").len() >= 4);
}

#[test]
fn links_are_followed_through_what_is_not_there_yet() {
    lazy(
        "links",
        &[
            "one/file",
            "two/link>../one/file",
            "two/dir>../one",
            "far>two/dir/file",
            "gone>two/none",
            "loop>loop",
        ],
    );
    let text = |path: &str| {
        let fd = open(path, k::O_RDONLY);
        if fd >= 0 {
            sys::close(fd);
        }
        fd
    };
    assert!(text("/lazy/links/far") >= 0);
    lazy("links2", &["one/file", "two/link>../one/file", "two/dir>../one"]);
    assert!(text("/lazy/links2/two/link") >= 0);
    lazy("links3", &["one/sub/file", "two/dir>../one"]);
    assert!(text("/lazy/links3/two/dir/sub/../sub/file") >= 0);
    assert_eq!(text("/lazy/links/gone"), -2);
    assert_eq!(text("/lazy/links/loop"), -40);
    // A link itself, of which nobody follows the target.
    lazy("links4", &["d/dangling>nowhere"]);
    assert!(stat("/lazy/links4/d/dangling").is_ok());
    // From outside, and by a logical name.
    lazy("links5", &["d/e/file"]);
    let outside = base().join("to-lazy");
    symlink("/lazy/links5/d", &outside).unwrap();
    assert!(text(&format!("{}/e/file", outside.display())) >= 0);
    lazy("links6", &["d/e/file"]);
    let outside = base().join("to-tree");
    symlink(tree().join("links6"), &outside).unwrap();
    assert!(text(&format!("{}/d/e/file", outside.display())) >= 0);
}

#[test]
fn dots_lead_where_they_would_if_all_were_there() {
    lazy("dots", &["a/b/file"]);
    // The tree's parent is not the prefix's.
    assert!(stat("/lazy/dots/a/b/../../../../proc/self/stat").is_ok());
    lazy("dots2", &["a/b/file"]);
    assert!(stat("/lazy/dots2/a/../a/b/./file").is_ok());
}

#[test]
fn relative_paths_begin_where_they_do() {
    lazy("relative", &["a/b/file"]);
    let fd = open("/lazy/relative", k::O_RDONLY | k::O_DIRECTORY);
    assert!(fd >= 0);
    // SAFETY: a C string.
    let found = said(unsafe { open::my_openat(fd, c("a/b/file").as_ptr(), 0, 0) });
    assert!(found >= 0, "{found}");
    sys::close(found);
    sys::close(fd);
}

#[test]
fn a_name_that_is_there_is_not_created_again() {
    lazy("create", &["d/file", "e/sub/", "f/link>../d/file", "g/file"]);
    let creates = k::O_CREAT | k::O_WRONLY;
    assert_eq!(open("/lazy/create/d/file", creates | k::O_EXCL), -17);
    // SAFETY: a C string.
    unsafe { assert_eq!(said(name::my_mkdir(c("/lazy/create/e/sub").as_ptr(), 0o700)), -17) };
    let before = open("/lazy/create/f/link", creates);
    assert!(before >= 0);
    assert_eq!(sys::fstat(before).unwrap().st_size, 4, "what the link leads to was opened, not made");
    sys::close(before);
    let there = open("/lazy/create/g/file", creates);
    assert_eq!(sys::fstat(there).unwrap().st_size, 4);
    sys::close(there);
    let new = open("/lazy/create/g/new", creates);
    assert!(new >= 0 && sys::fstat(new).unwrap().st_size == 0);
    sys::close(new);
    assert_eq!(open("/lazy/create/none/new", creates), -2);
}

#[test]
fn a_link_from_outside_creates_nothing_that_is_there() {
    lazy("led", &["d/file"]);
    let outside = base().join("led");
    symlink(tree().join("led/d"), &outside).unwrap();
    let fd = open(&format!("{}/file", outside.display()), k::O_CREAT | k::O_WRONLY);
    assert!(fd >= 0);
    assert_eq!(sys::fstat(fd).unwrap().st_size, 4);
    sys::close(fd);
}

#[test]
fn a_directory_that_only_looks_empty_is_not_removed() {
    lazy("rmdir", &["full/file", "empty/", "over/file", "dir/"]);
    // SAFETY: C strings.
    unsafe {
        assert_eq!(said(name::my_rmdir(c("/lazy/rmdir/full").as_ptr())), -39);
        assert_eq!(said(name::my_rename(c("/lazy/rmdir/dir").as_ptr(), c("/lazy/rmdir/over").as_ptr())), -39);
        assert_eq!(said(name::my_rmdir(c("/lazy/rmdir/empty").as_ptr())), 0);
        assert_eq!(said(name::my_rmdir(c("/lazy/rmdir/none").as_ptr())), -2);
    }
}

#[test]
fn names_move_between_directories_that_were_not_populated() {
    lazy("rename", &["from/sub/file", "to/there/x", "other/y", "link/"]);
    // SAFETY: C strings.
    unsafe {
        let rename = |from: &str, to: &str| {
            said(name::my_rename(
                c(&format!("/lazy/rename/{from}")).as_ptr(),
                c(&format!("/lazy/rename/{to}")).as_ptr(),
            ))
        };
        assert_eq!(rename("from/sub/file", "to/there/file"), 0);
        assert!(is_there("rename/to/there/x"), "where a name comes to, all others are");
        assert_eq!(rename("from/none", "to/z"), -2);
        assert_eq!(rename("other/y", "none/z"), -2);
        let link = |from: &str, to: &str| {
            said(name::my_link(
                c(&format!("/lazy/rename/{from}")).as_ptr(),
                c(&format!("/lazy/rename/{to}")).as_ptr(),
            ))
        };
        assert_eq!(link("other/y", "link/y"), 0);
        assert_eq!(link("other/none", "link/none"), -2);
        assert_eq!(said(name::my_unlink(c("/lazy/rename/link/y").as_ptr())), 0);
    }
}

#[test]
fn a_file_that_is_not_here_is_asked_for_before_its_last_name_goes() {
    lazy("unlink", &["absent", "replaced", "new", "refused"]);
    assert!(stat("/lazy/unlink/absent").is_ok());
    let ino_of = |name: &str| tree().join("unlink").join(name).metadata().unwrap().ino();
    let (absent, replaced, refused) = (ino_of("absent"), ino_of("replaced"), ino_of("refused"));
    agent().refused.lock().unwrap().insert(refused, 5);
    // SAFETY: C strings.
    unsafe {
        assert_eq!(said(name::my_unlink(c("/lazy/unlink/absent").as_ptr())), 0);
        assert_eq!(
            said(name::my_rename(c("/lazy/unlink/new").as_ptr(), c("/lazy/unlink/replaced").as_ptr())),
            0
        );
        assert_eq!(said(name::my_unlink(c("/lazy/unlink/refused").as_ptr())), -5);
    }
    let asked = agent().asked.lock().unwrap();
    for ino in [absent, replaced, refused] {
        assert_eq!(asked.iter().filter(|ask| **ask == Ask::Unlink { ino }).count(), 1);
    }
    assert!(is_there("unlink/refused"));
}

#[test]
fn what_the_agent_cannot_bring_is_an_error_and_not_missing() {
    lazy("refused", &["d/file"]);
    assert!(stat("/lazy/refused/d").is_ok());
    let ino = tree().join("refused/d").metadata().unwrap().ino();
    agent().refused.lock().unwrap().insert(ino, 116);
    assert_eq!(stat("/lazy/refused/d/file").err(), Some(116));
    assert_eq!(open("/lazy/refused/d/new", k::O_CREAT), -116);
    assert!(!is_there("refused/d/new"));
    // SAFETY: a C string.
    unsafe {
        assert!(dir::my_opendir(c("/lazy/refused/d").as_ptr()).is_null());
        assert_eq!(get_errno().0, 116);
        assert_eq!(said(name::my_rmdir(c("/lazy/refused/d").as_ptr())), -116);
    }
    agent().refused.lock().unwrap().remove(&ino);
    assert!(stat("/lazy/refused/d/file").is_ok(), "the next look asks again");
}

#[test]
fn what_is_listed_is_all_there() {
    lazy("list", &["a/1", "a/2", "b/1", "c/1"]);
    let count = |fd: i32| {
        let mut room = [0u8; 4096];
        // SAFETY: room for the answer.
        unsafe { dir::my_getdents64(fd, room.as_mut_ptr().cast(), room.len()) }
    };
    let fd = open("/lazy/list/a", k::O_RDONLY | k::O_DIRECTORY);
    let two = count(fd);
    sys::close(fd);
    let fd = open("/lazy/list/b", k::O_RDONLY | k::O_DIRECTORY);
    assert!(two > count(fd) && is_there("list/b/1"));
    sys::close(fd);
    // SAFETY: a C string, then an open stream.
    unsafe {
        let stream = dir::my_opendir(c("/lazy/list/c").as_ptr());
        assert!(!stream.is_null() && is_there("list/c/1"));
        dir::my_closedir(stream);
    }
}

#[test]
fn blocks_are_those_of_the_volume() {
    lazy("blocks", &["small", "large"]);
    std::fs::write(volume().join("blocks/large"), vec![1; 100_000]).unwrap();
    assert_eq!(stat("/lazy/blocks/small").unwrap().st_blocks, 8);
    assert_eq!(stat("/lazy/blocks/large").unwrap().st_blocks, 77);
    let fd = open("/lazy/blocks/large", k::O_RDONLY);
    let mut out = std::mem::MaybeUninit::<k::stat>::uninit();
    // SAFETY: room for the answer.
    unsafe {
        assert_eq!(stat::my_fstat(fd, out.as_mut_ptr()), 0);
        assert_eq!(out.assume_init().st_blocks, 77);
        let mut out = std::mem::MaybeUninit::<k::statx>::zeroed();
        let path = c("/lazy/blocks/large");
        assert_eq!(stat::my_statx(CWD, path.as_ptr(), 0, k::STATX_BASIC_STATS, out.as_mut_ptr()), 0);
        assert_eq!(out.assume_init().stx_blocks, 77);
    }
    sys::close(fd);
    agent().table.set_whole(tree().join("blocks/large").metadata().unwrap().ino());
    assert_eq!(stat("/lazy/blocks/large").unwrap().st_blocks, 0, "what is here has the blocks that it has");
}

/// The look was made before the bytes came, the question whether they are here after it.
#[test]
fn a_look_from_before_the_bytes_came_is_made_again() {
    lazy("came", &["file"]);
    assert_eq!(stat("/lazy/came/file").unwrap().st_blocks, 8);
    std::fs::write(tree().join("came/file"), vec![1; 100_000]).unwrap();
    agent().table.set_whole(tree().join("came/file").metadata().unwrap().ino());
    let fd = open("/lazy/came/file", k::O_RDONLY);
    let mut out = stat("/lazy/came/file").unwrap();
    let (here, mut looks) = (out.st_blocks, 0);
    assert!(here > 0);
    // What stat(2) said when nothing was here.
    out.st_blocks = 0;
    let at = &raw mut out;
    // SAFETY: filled, and filled again by the look.
    let done = unsafe {
        let mut look = |()| {
            looks += 1;
            (*at).st_blocks = here;
            0
        };
        let subject = crate::seen::Subject::Descriptor(fd);
        crate::seen::correct(subject, crate::seen::Out::Stat(at), crate::act::Act::new(&mut look))
    };
    assert_eq!((done, out.st_blocks), (0, here));
    assert!((1..=2).contains(&looks), "{looks}");
    sys::close(fd);
}

#[test]
fn times_are_not_looked_at_while_the_agent_writes() {
    lazy("moving", &["file"]);
    let path = tree().join("moving/file");
    assert!(stat("/lazy/moving/file").is_ok());
    let ino = path.metadata().unwrap().ino();
    agent().table.set_moving(ino, true);
    let writer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1234);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        agent().table.set_moving(ino, false);
    });
    assert_eq!(stat("/lazy/moving/file").unwrap().st_mtime, 1234);
    writer.join().unwrap();
}

#[test]
fn near_the_quota_each_inode_is_asked_for() {
    lazy("quota", &["there", "dir/"]);
    assert!(stat("/lazy/quota/there").is_ok());
    let flags = &run().control.mounts[1].flags;
    flags.fetch_or(FLAG_QUOTA_NEAR, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(open("/lazy/quota/new", k::O_CREAT), -122);
    assert!(open("/lazy/quota/there", k::O_CREAT) >= 0);
    assert_eq!(open("/lazy/quota/there", k::O_CREAT | k::O_EXCL), -17);
    // SAFETY: C strings.
    unsafe {
        assert_eq!(said(name::my_mkdir(c("/lazy/quota/new").as_ptr(), 0o700)), -122);
        assert_eq!(said(name::my_mkdir(c("/lazy/quota/dir").as_ptr(), 0o700)), -17);
        assert_eq!(said(name::my_symlink(c("x").as_ptr(), c("/lazy/quota/new").as_ptr())), -122);
        assert_eq!(said(name::my_rename(c("/lazy/quota/there").as_ptr(), c("/lazy/quota/b").as_ptr())), 0);
    }
    flags.fetch_and(!FLAG_QUOTA_NEAR, std::sync::atomic::Ordering::SeqCst);
}

#[test]
fn nothing_is_asked_where_all_names_are_there() {
    lazy("named", &["d/file"]);
    let flags = &run().control.mounts[1].flags;
    flags.fetch_or(FLAG_NAMES, std::sync::atomic::Ordering::SeqCst);
    let missing = stat("/lazy/named/d");
    flags.fetch_and(!FLAG_NAMES, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(missing.err(), Some(2));
    assert!(agent().asked("named").is_empty());
}

#[test]
fn a_directory_that_was_not_populated_says_nothing_of_its_links() {
    lazy("nlink", &["a/1/", "a/2/"]);
    assert_eq!(stat("/lazy/nlink/a").unwrap().st_nlink, 1);
    assert!(stat("/lazy/nlink/a/1").is_ok());
    assert_eq!(stat("/lazy/nlink/a").unwrap().st_nlink, 4);
}

#[test]
fn what_is_brought_was_not_changed() {
    lazy("changed", &["file", "dir/sub/"]);
    let before = stat("/lazy/changed/file").unwrap();
    let dir = stat("/lazy/changed/dir").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(stat("/lazy/changed/dir/sub").is_ok());
    // As the agent does: bytes, then the file's own time.
    let path = tree().join("changed/file");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 0).unwrap();
    file.set_modified(time).unwrap();
    let on_disk = path.metadata().unwrap();
    let real = (on_disk.ctime(), on_disk.ctime_nsec());
    let told = |stat: &k::stat| (stat.st_ctime as i64, stat.st_ctime_nsec as i64);
    assert!(told(&before) != real, "the file system's clock is too coarse for this test");
    agent().table.set_whole(before.st_ino);
    assert_eq!(told(&stat("/lazy/changed/file").unwrap()), told(&before));
    let times = tree().join("changed/dir").metadata().unwrap();
    if times.modified().unwrap()
        == std::time::UNIX_EPOCH + std::time::Duration::new(dir.st_mtime as _, dir.st_mtime_nsec as _)
    {
        assert_eq!(told(&stat("/lazy/changed/dir").unwrap()), told(&dir));
    }
    // What the app changes is seen.
    // SAFETY: a C string.
    unsafe { assert_eq!(said(attr::my_chmod(c("/lazy/changed/file").as_ptr(), 0o640)), 0) };
    assert!(told(&stat("/lazy/changed/file").unwrap()) >= real);
}

#[test]
fn a_guard_is_waited_for_also_by_who_does_not_wait() {
    lazy("guarded", &["file"]);
    assert!(stat("/lazy/guarded/file").is_ok());
    let guard = std::fs::File::options().read(true).write(true).open(tree().join("guarded/file")).unwrap();
    unsafe extern "C" {
        fn fcntl(fd: i32, command: i32, argument: i32) -> i32;
        fn signal(number: i32, action: usize) -> usize;
    }
    const F_SETLEASE: i32 = 1024;
    const SIGIO: i32 = 29;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&guard);
    // SAFETY: a lease of our own file; its break is told by a signal that is ignored.
    unsafe {
        signal(SIGIO, 1);
        if fcntl(fd, F_SETLEASE, 1) != 0 {
            // Not every file system has leases.
            return;
        }
    }
    let holder = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        drop(guard);
    });
    let opened = open("/lazy/guarded/file", k::O_RDONLY | k::O_NONBLOCK);
    assert!(opened >= 0, "{opened}");
    sys::close(opened);
    holder.join().unwrap();
}
