//! The steps of the self-test by a shell and its tools: for an agent that is linked statically, which no library can be preloaded
//! into. They do less than a program of our own, but they go through the libc of the image in question.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::steps::Step;
use crate::doctor::elf::Elf;

/// The shell that is used.
pub const SHELL: &str = "/bin/sh";
/// Files that are there in the end, with [`super::steps::CONTENT`].
pub const FILES: [&str; 2] = ["renamed", "by-child"];

/// Prints a line for each step: its name, and behind a tabulator what went wrong. `dd` because every `dd` can fsync, and not every
/// `sync` takes a name.
const SCRIPT: &str = r#"
dir=$1 shim=$2
step() {
    name=$1
    shift
    if said=$("$@" 2>&1); then
        printf '%s\n' "$name"
    else
        printf '%s\t%s\n' "$name" "$(printf '%s' "${said:-it failed}" | tr '\n\t' '  ')"
    fi
}
loaded() {
    case $(cat /proc/self/maps) in
        *"$shim"*) ;;
        *) echo 'the loader has left it out'; return 1 ;;
    esac
}
same() { [ "$(cat "$1")" = 'storeshim self-test' ]; }
write() { echo 'storeshim self-test' > "$dir/created"; }
link() { ln -s "$dir/renamed" "$dir/link" && same "$dir/link"; }
child() { cat "$dir/renamed" > "$dir/by-child" && same "$dir/by-child"; }
step 'the shim is loaded' loaded
step 'create a directory' mkdir "$dir"
step 'create and write' write
step 'fsync is answered' dd if=/dev/null of="$dir/created" conv=notrunc,fsync
step 'rename' mv "$dir/created" "$dir/renamed"
step 'symbolic link' link
step 'size of the filesystem' df "$dir"
step 'file of a child process' child
"#;

/// Whether `program` has to leave the steps to a shell.
pub fn is_needed(program: &Path) -> bool {
    Elf::read(program).is_ok_and(|elf| elf.interpreter.is_none())
}

/// Why the shell cannot do it either, where it cannot.
pub fn trouble() -> Option<String> {
    match Elf::read(Path::new(SHELL)) {
        Ok(shell) if shell.interpreter.is_none() => Some(format!("{SHELL} is static")),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// The command that does the steps in `dir`.
pub fn command(dir: &Path, shim: &Path) -> Command {
    let mut command = Command::new(SHELL);
    command.args([
        OsStr::new("-c"),
        OsStr::new(SCRIPT),
        OsStr::new(SHELL),
        dir.as_os_str(),
        shim.as_os_str(),
    ]);
    command
}

/// What its output says.
pub fn steps(output: &str) -> Vec<Step> {
    let step = |line: &str| match line.split_once('\t') {
        Some((name, trouble)) => Step { name: name.to_owned(), trouble: Some(trouble.trim().to_owned()) },
        None => Step { name: line.to_owned(), trouble: None },
    };
    output.lines().map(step).collect()
}
