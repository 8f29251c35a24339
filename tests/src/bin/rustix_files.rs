//! What a program does to files by system calls of its own: rustix makes them inline, without libc. Its argument is the
//! directory to work in; it fails where an answer is not that of an ordinary file system.

use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, linkat, mkdir, open, openat, readlink, rename, statat, symlink, unlink,
};
use rustix::io::{Errno, pwrite, write};

fn work(base: &Path) -> rustix::io::Result<bool> {
    let (rw, dirs) = (OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, Mode::from(0o755));
    mkdir(base.join("dir"), dirs)?;
    let file = open(base.join("dir/file"), rw, Mode::from(0o644))?;
    write(&file, b"hello, world")?;
    pwrite(&file, b"HELLO", 0)?;
    drop(file);
    let dir = open(base.join("dir"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    write(openat(&dir, "other", rw, Mode::from(0o600))?, b"other")?;
    linkat(&dir, "file", &dir, "hard", AtFlags::empty())?;
    rename(base.join("dir/other"), base.join("dir/moved"))?;
    symlink(base.join("dir/moved"), base.join("link"))?;
    unlink(base.join("dir/hard"))?;
    let target = readlink(base.join("link"), Vec::new())?;
    let stat = statat(CWD, base.join("dir/file"), AtFlags::empty())?;
    let names =
        Dir::read_from(&dir)?.filter_map(Result::ok).filter(|e| e.file_name().to_bytes()[0] != b'.').count();
    let gone = open(base.join("dir/other"), OFlags::RDONLY, Mode::empty()).err() == Some(Errno::NOENT);
    let expected = base.join("dir/moved");
    let turned = target.as_bytes() == expected.as_os_str().as_encoded_bytes();
    Ok(stat.st_size == 12 && names == 2 && gone && turned)
}

fn main() -> ExitCode {
    let Some(base) = std::env::args_os().nth(1) else {
        eprintln!("usage: rustix_files DIR");
        return ExitCode::from(2);
    };
    match work(Path::new(&base)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("an answer is wrong");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
