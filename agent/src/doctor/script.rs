//! From a command to the file whose code runs: PATH, and the interpreters of scripts (execve(2), "Interpreter scripts").

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::elf::Elf;

/// Interpreters of interpreters that the kernel follows.
const DEPTH_MAX: usize = 5;
/// The kernel reads so much of a script's first line.
const LINE_MAX: u64 = 256;

/// What a command leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The script, its interpreter, and so on; the last one is the program.
    pub chain: Vec<PathBuf>,
}

impl Resolved {
    /// The program whose code runs.
    pub fn program(&self) -> &Path {
        self.chain.last().map_or(Path::new(""), PathBuf::as_path)
    }
}

/// Why a command leads nowhere: a sentence.
pub type Trouble = String;

/// Finds what runs for `command`.
///
/// # Errors
/// There is no such program, or it cannot be run.
pub fn resolve(command: &OsStr) -> Result<Resolved, Trouble> {
    let mut chain = vec![in_path(command)?];
    while let Some(file) = chain.last().cloned() {
        let mut head = Vec::new();
        File::open(&file)
            .and_then(|file| file.take(LINE_MAX).read_to_end(&mut head))
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        if Elf::is_elf(&head) {
            return Ok(Resolved { chain });
        }
        if chain.len() > DEPTH_MAX {
            break;
        }
        match interpreter(&head) {
            Some((program, argument)) => {
                chain.push(PathBuf::from(&program));
                // What env starts is what matters.
                if Path::new(&program).file_name() == Some(OsStr::new("env"))
                    && let Some(name) = argument.as_deref().and_then(started_by_env)
                {
                    chain.push(in_path(&name)?);
                }
            }
            // Shells and execvp run such a file with sh.
            None if std::str::from_utf8(&head).is_ok() => chain.push(PathBuf::from("/bin/sh")),
            None => return Err(format!("{} is neither an ELF file nor a script", file.display())),
        }
    }
    Err(format!("{} has too many interpreters of interpreters", Path::new(command).display()))
}

fn in_path(command: &OsStr) -> Result<PathBuf, Trouble> {
    let runnable = |path: &Path| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if command.as_bytes().contains(&b'/') {
        let path = PathBuf::from(command);
        return match path.metadata() {
            Err(error) => Err(format!("there is no {}: {error}", path.display())),
            Ok(_) if runnable(&path) => Ok(path),
            Ok(_) => Err(format!("{} is not an executable file", path.display())),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/bin:/usr/bin"));
    std::env::split_paths(&path)
        .map(|folder| folder.join(command))
        .find(|file| runnable(file))
        .ok_or_else(|| format!("there is no {} in PATH", Path::new(command).display()))
}

/// Program and argument of a `#!` line.
fn interpreter(head: &[u8]) -> Option<(OsString, Option<OsString>)> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?.trim_ascii();
    let end = line.iter().position(|byte| matches!(byte, b' ' | b'\t'));
    let (program, argument) = line.split_at(end.unwrap_or(line.len()));
    let text = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    let argument = argument.trim_ascii();
    (!program.is_empty()).then(|| (text(program), (!argument.is_empty()).then(|| text(argument))))
}

/// The program in env's argument, behind its own flags and assignments.
fn started_by_env(argument: &OsStr) -> Option<OsString> {
    let words = argument.as_bytes().split(|byte| byte.is_ascii_whitespace());
    let program = words
        .into_iter()
        .find(|word| !word.is_empty() && !word.starts_with(b"-") && !word.contains(&b'='))?;
    Some(OsStr::from_bytes(program).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let of = |line: &str| {
            let (program, argument) = interpreter(line.as_bytes())?;
            Some(format!("{}|{}", program.display(), argument.unwrap_or_default().display()))
        };
        assert_eq!(of("#!/bin/sh\n").as_deref(), Some("/bin/sh|"));
        assert_eq!(
            of("#! /usr/bin/env -S FOO=1 node --x\n").as_deref(),
            Some("/usr/bin/env|-S FOO=1 node --x")
        );
        assert_eq!(of("#!\n"), None);
        assert_eq!(of("echo"), None);
        assert_eq!(started_by_env(OsStr::new("-S FOO=1 node --x")).unwrap(), "node");
    }

    #[test]
    fn scripts_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let inner = file("inner", "#!/bin/sh -e\n");
        let outer = file("outer", &format!("#!{}\n", inner.display()));
        let resolved = resolve(outer.as_os_str()).unwrap();
        assert_eq!(resolved.chain, [outer, inner, "/bin/sh".into()]);
        let env = file("env-script", "#!/usr/bin/env sh\n");
        assert!(resolve(env.as_os_str()).unwrap().program().ends_with("sh"));
        let plain = file("plain", "echo\n");
        assert!(resolve(plain.as_os_str()).unwrap().program().ends_with("sh"));
        let looped = file("looped", &format!("#!{}\n", dir.path().join("looped").display()));
        assert!(resolve(looped.as_os_str()).unwrap_err().contains("too many"));
        assert!(resolve(OsStr::new("no-such-program-at-all")).unwrap_err().contains("PATH"));
        assert!(resolve(dir.path().as_os_str()).unwrap_err().contains("not an executable"));
    }
}
