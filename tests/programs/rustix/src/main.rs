//! What programs do through rustix with files below the first argument, by absolute paths. With `stay` after it, it does not end.
use rustix::fs::{self, AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::args_os().nth(1).ok_or("no folder")?);
    let at = |name: &str| root.join(name);
    let (folder, private) = (Mode::from_raw_mode(0o755), Mode::RUSR | Mode::WUSR);
    fs::mkdir(at("rx"), folder)?;
    let create = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = fs::open(at("rx/text"), create | OFlags::EXCL, private)?;
    println!("{}", io::write(&file, b"through rustix")?);
    println!("{}", io::pwrite(&file, b"THR", 0)?);
    fs::ftruncate(&file, 10)?;
    fs::fsync(&file)?;
    let dir = fs::open(at("rx"), OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    drop(fs::openat(&dir, "below", create, private)?);
    fs::renameat(&dir, "below", CWD, at("rx/renamed"))?;
    fs::linkat(CWD, at("rx/text"), &dir, "hard", AtFlags::empty())?;
    fs::symlink("text", at("rx/soft"))?;
    fs::symlinkat(at("rx"), &dir, "absolute")?;
    println!("{:?} {:?}", fs::readlink(at("rx/soft"), Vec::new())?, fs::statat(CWD, at("rx/soft"), AtFlags::empty())?.st_size);
    println!("{:?}", fs::readlinkat(&dir, "absolute", Vec::new())?);
    fs::chmodat(CWD, at("rx/text"), folder, AtFlags::empty())?;
    println!("{:?} {:?}", fs::access(at("rx/text"), fs::Access::READ_OK), fs::access(at("none"), fs::Access::EXISTS));
    println!("{:?}", fs::statvfs(&root)?.f_namemax);
    let mut names = Vec::new();
    for entry in Dir::read_from(&dir)? {
        names.push(entry?.file_name().to_owned());
    }
    names.sort();
    println!("{names:?}");
    rustix::process::chdir(at("rx"))?;
    println!("{:?}", rustix::process::getcwd(Vec::new())?);
    println!("{:?} {:?}", fs::open(at("none"), OFlags::RDONLY, Mode::empty()).err(), fs::mkdir(at("rx"), folder));
    fs::unlink(at("rx/hard"))?;
    fs::mkdirat(&dir, "gone", folder)?;
    fs::rmdir(at("rx/gone"))?;
    if std::env::args_os().nth(2).is_some_and(|word| word == "stay") {
        std::thread::sleep(std::time::Duration::from_secs(600));
    }
    Ok(())
}
