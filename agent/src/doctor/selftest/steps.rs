//! What the self-test does in a mount, through the libc of this process and so through the shim. It runs in a child with the
//! shim preloaded; it must not know how that was done.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// What one step came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was tried.
    pub name: String,
    /// What went wrong.
    pub trouble: Option<String>,
}

/// What all files of the self-test hold in the end.
pub const CONTENT: &[u8] = b"storeshim self-test\n";
/// Files that are there in the end, with [`CONTENT`].
pub const FILES: [&str; 4] = ["renamed", "mapped", "by-child", "by-stdio"];

/// Tries everything in the directory `dir`, which is made. Prints each step as a line of JSON.
///
/// # Errors
/// The lines cannot be printed.
pub fn run(dir: &Path) -> io::Result<()> {
    type Try = fn(&Path) -> io::Result<()>;
    let steps: [(&str, Try); 12] = [
        ("the shim is loaded", is_loaded),
        ("create a directory", |dir| fs::create_dir(dir)),
        ("create and write", |dir| fs::write(dir.join("created"), CONTENT)),
        ("fsync is answered", |dir| OpenOptions::new().write(true).open(dir.join("created"))?.sync_all()),
        ("rename", |dir| fs::rename(dir.join("created"), dir.join("renamed"))),
        ("write through a mapping", map),
        ("symbolic link", link),
        ("size of the filesystem", size),
        ("file of a child process", child),
        ("stdio", stdio),
        ("lock", lock),
        ("unix socket", socket),
    ];
    let mut out = io::stdout().lock();
    for (name, step) in steps {
        let trouble = step(dir).err().map(|error| error.to_string());
        let line = serde_json::to_string(&Step { name: name.to_owned(), trouble })?;
        writeln!(out, "{line}")?;
    }
    out.flush()
}

fn must(is: bool, what: &str) -> io::Result<()> {
    if is { Ok(()) } else { Err(io::Error::other(what)) }
}

fn is_loaded(_: &Path) -> io::Result<()> {
    let maps = fs::read("/proc/self/maps")?;
    let shim = std::env::var_os("LD_PRELOAD").unwrap_or_default();
    let name = shim.as_bytes().split(|byte| *byte == b':').next().unwrap_or_default();
    let is = !name.is_empty() && maps.windows(name.len()).any(|window| window == name);
    must(is, "the loader has left it out")
}

fn map(dir: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(dir.join("mapped"))?;
    file.set_len(CONTENT.len() as u64)?;
    // SAFETY: the file is new, and nobody else knows it.
    let mut memory = unsafe { memmap2::MmapMut::map_mut(&file)? };
    memory.copy_from_slice(CONTENT);
    memory.flush()
}

fn link(dir: &Path) -> io::Result<()> {
    let target = dir.join("renamed");
    std::os::unix::fs::symlink(&target, dir.join("link"))?;
    must(fs::read_link(dir.join("link"))? == target, "a link reads back as something else")?;
    must(fs::read(dir.join("link"))? == CONTENT, "a link leads elsewhere")
}

fn size(dir: &Path) -> io::Result<()> {
    let stat = nix::sys::statfs::statfs(dir)?;
    must(stat.blocks() > 0, "the filesystem has no size")
}

fn child(dir: &Path) -> io::Result<()> {
    let status = Command::new("/bin/sh")
        .args(["-c", "cat renamed > by-child && ln -s nothing child-link && rm child-link"])
        .current_dir(dir)
        .status()?;
    must(status.success(), "a shell could not write a file here")
}

fn stdio(dir: &Path) -> io::Result<()> {
    let path = CString::new(dir.join("by-stdio").as_os_str().as_bytes())?;
    // SAFETY: two C strings; the stream is used and closed by this function alone.
    let is_written = unsafe {
        let stream = libc::fopen(path.as_ptr(), c"w".as_ptr());
        if stream.is_null() {
            return Err(io::Error::last_os_error());
        }
        let written = libc::fwrite(CONTENT.as_ptr().cast(), 1, CONTENT.len(), stream);
        libc::fclose(stream) == 0 && written == CONTENT.len()
    };
    must(is_written, "the stream took less")
}

fn lock(dir: &Path) -> io::Result<()> {
    let first = File::open(dir.join("renamed"))?;
    let second = File::open(dir.join("renamed"))?;
    first.try_lock()?;
    must(second.try_lock().is_err(), "two hold the same lock")?;
    first.unlock()
}

fn socket(dir: &Path) -> io::Result<()> {
    let path = dir.join("socket");
    let listener = UnixListener::bind(&path)?;
    let mut near = UnixStream::connect(&path)?;
    let (mut far, _) = listener.accept()?;
    near.write_all(CONTENT)?;
    near.shutdown(std::net::Shutdown::Write)?;
    let mut told = Vec::new();
    far.read_to_end(&mut told)?;
    fs::remove_file(path)?;
    let mut file = File::open(dir.join("renamed"))?;
    file.seek(SeekFrom::Start(0))?;
    must(told == CONTENT, "other bytes came out than went in")
}
