//! What Rust programs do with files below the first argument, by absolute paths, through std.
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

fn walk(folder: &Path, names: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        names.push(entry.path());
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), names)?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::args_os().nth(1).ok_or("no folder")?);
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("rs/a/b"))?;
    fs::write(at("rs/text"), "one\n")?;
    OpenOptions::new().append(true).open(at("rs/text"))?.write_all(b"two\n")?;
    let mut file = OpenOptions::new().read(true).write(true).open(at("rs/text"))?;
    file.seek(SeekFrom::Start(4))?;
    file.write_all(b"TWO")?;
    file.rewind()?;
    for line in BufReader::new(&file).lines() {
        println!("{}", line?);
    }
    let raw = File::create_new(at("rs/raw"))?;
    raw.write_all_at(&[b'x'; 5000], 100)?;
    raw.set_len(4000)?;
    raw.set_permissions(Permissions::from_mode(0o600))?;
    let then = SystemTime::UNIX_EPOCH + Duration::new(1000, 5);
    raw.set_times(FileTimes::new().set_modified(then).set_accessed(then))?;
    raw.sync_all()?;
    let mut twin = raw.try_clone()?;
    twin.write_all(b"through a clone")?;
    fs::rename(at("rs/raw"), at("rs/a/renamed"))?;
    fs::hard_link(at("rs/text"), at("rs/hard"))?;
    symlink("text", at("rs/soft"))?;
    symlink(at("rs/a"), at("rs/absolute"))?;
    println!("{:?} {:?}", fs::read_link(at("rs/soft"))?, fs::read_link(at("rs/absolute"))?);
    println!("{:?} {}", fs::canonicalize(at("rs/absolute/b"))?, at("none").exists());
    fs::set_permissions(at("rs/text"), Permissions::from_mode(0o604))?;
    let info = fs::metadata(at("rs/soft"))?;
    println!("{} {:o} {} {}", info.len(), info.mode(), info.nlink(), fs::symlink_metadata(at("rs/soft"))?.is_symlink());
    println!("{}", fs::copy(at("rs/a/renamed"), at("rs/copied"))?);
    let mut names = Vec::new();
    walk(&root, &mut names)?;
    names.sort();
    println!("{names:?}");
    std::env::set_current_dir(at("rs/a"))?;
    println!("{:?} {:?}", std::env::current_dir()?, fs::read_to_string("../text")?);
    let listener = UnixListener::bind(at("rs/socket"))?;
    UnixStream::connect(at("rs/socket"))?.write_all(b"hello")?;
    let mut said = String::new();
    listener.accept()?.0.read_to_string(&mut said)?;
    println!("{said} {:?}", listener.local_addr()?.as_pathname());
    let out = File::create(at("rs/child"))?;
    let mut child = Command::new("sh");
    child.args(["-c", "pwd; cat ../text"]).current_dir(at("rs/a")).env_clear().stdout(out);
    println!("{}", child.status()?);
    print!("{}", fs::read_to_string(at("rs/child"))?);
    let run = Command::new("cat").arg(at("rs/text")).stdin(Stdio::null()).output()?;
    println!("{:?}", String::from_utf8_lossy(&run.stdout));
    for failed in [
        File::open(at("none")).err(),
        fs::create_dir(at("rs")).err(),
        fs::remove_dir(at("rs")).err(),
        fs::create_dir(&root).err(),
        File::open(at("rs/text/below")).err(),
        fs::remove_file(at("rs")).err(),
    ] {
        println!("{failed:?}");
    }
    fs::remove_file(at("rs/copied"))?;
    fs::create_dir_all(at("rs/deep/er/still"))?;
    fs::remove_dir_all(at("rs/deep"))?;
    Ok(())
}
