//! Reads what strace has written and finds the paths in it that the kernel was given. It must not know why a program
//! was traced.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Options that make strace's output plain to read: one file per process, every string in hexadecimal, only calls that
/// are looked at here.
const OPTIONS: [&str; 9] = [
    "-ff",
    "-qq",
    "-xx",
    "--seccomp-bpf",
    "-e",
    "trace=%file,bind,connect,sendto,sendmsg,io_uring_setup",
    "-e",
    "signal=none",
    "-o",
];

/// Which arguments of a call name files (or what a symbolic link is to hold), from 0 on.
const PATHS: [(&str, &[usize]); 20] = [
    ("execveat", &[1]),
    ("rename", &[0, 1]),
    ("renameat", &[1, 3]),
    ("renameat2", &[1, 3]),
    ("link", &[0, 1]),
    ("linkat", &[1, 3]),
    ("symlink", &[0, 1]),
    ("symlinkat", &[0, 2]),
    ("move_mount", &[1, 3]),
    ("mount", &[0, 1]),
    ("pivot_root", &[0, 1]),
    ("quotactl", &[1]),
    ("inotify_add_watch", &[1]),
    ("fanotify_mark", &[4]),
    ("bind", &[1]),
    ("connect", &[1]),
    ("sendto", &[4]),
    ("sendmsg", &[1]),
    ("getcwd", &[]),
    ("io_uring_setup", &[]),
];

/// One system call of a traced program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name, as strace has it.
    pub name: String,
    /// Its arguments, as strace shows them.
    pub arguments: Vec<String>,
    /// What it returned; empty where the process ended in it.
    pub result: String,
}

impl Call {
    /// The call in a line of strace's output, `None` where it shows none.
    pub fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.split_once('(')?;
        if name.is_empty() || !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_') {
            return None;
        }
        let mut arguments = vec![String::new()];
        let (mut depth, mut quoted) = (0u32, false);
        let mut result = "";
        for (at, c) in rest.char_indices() {
            match c {
                // In hexadecimal a string holds no quote of its own.
                '"' => quoted = !quoted,
                '[' | '{' | '(' | '<' if !quoted => depth += 1,
                ')' if !quoted && depth == 0 => {
                    result = rest.get(at + 1..).unwrap_or("").trim_start().trim_start_matches("= ");
                    break;
                }
                // `->` and `=>` are no brackets.
                '>' if !quoted && (rest[..at].ends_with('-') || rest[..at].ends_with('=')) => {}
                ']' | '}' | ')' | '>' if !quoted => depth = depth.saturating_sub(1),
                ',' if !quoted && depth == 0 => {
                    arguments.push(String::new());
                    continue;
                }
                _ => {}
            }
            arguments.last_mut().expect("never empty").push(c);
        }
        let arguments = arguments.iter().map(|argument| argument.trim().to_owned()).collect();
        Some(Self { name: name.to_owned(), arguments, result: result.to_owned() })
    }

    /// The paths that it gave to the kernel. Of a call that is not known here, every string.
    pub fn paths(&self) -> Vec<String> {
        let known = PATHS.iter().find(|(name, _)| *name == self.name).map(|(_, places)| *places);
        // Nearly all other calls that take a path take it first, or after the descriptor of a directory.
        let first = self.arguments.first().map_or("", String::as_str);
        let has_dirfd = first.starts_with("AT_FDCWD") || first.starts_with(|c: char| c.is_ascii_digit());
        let usual = [usize::from(has_dirfd)];
        let places = known.unwrap_or(&usual);
        places.iter().filter_map(|at| self.arguments.get(*at)).flat_map(|text| strings(text)).collect()
    }
}

/// The strings in an argument: whole, or as members of a structure.
fn strings(argument: &str) -> Vec<String> {
    argument.split('"').skip(1).step_by(2).map(unhex).collect()
}

/// The text of `\x2f\x61…`; what is not in this form stays as it is.
fn unhex(text: &str) -> String {
    let bytes: Option<Vec<u8>> =
        text.split("\\x").skip(1).map(|digits| u8::from_str_radix(digits, 16).ok()).collect();
    bytes.map_or_else(|| text.to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// `program` under strace, which writes to files whose names begin with `output`. `variables` are for the program
/// alone.
pub fn traced(mut strace: Command, output: &Path, variables: &[(&str, &Path)], program: &[&str]) -> Command {
    strace.args(OPTIONS).arg(output);
    for (name, value) in variables {
        strace.arg("-E").arg(format!("{name}={}", value.display()));
    }
    strace.args(program);
    strace
}

/// Every call in the files whose names begin with `output`, and how many processes there were.
pub fn calls(output: &Path) -> (Vec<Call>, usize) {
    let folder = output.parent().expect("a file has a folder");
    let start = format!("{}.", output.file_name().expect("a file has a name").to_string_lossy());
    let (mut calls, mut processes) = (Vec::new(), 0);
    for entry in fs::read_dir(folder).expect("it was written to").flatten() {
        if !entry.file_name().to_string_lossy().starts_with(&start) {
            continue;
        }
        processes += 1;
        let text = fs::read_to_string(entry.path()).expect("strace writes ASCII");
        for line in text.lines().filter(|line| !line.starts_with("+++") && !line.starts_with("---")) {
            let call = Call::parse(line);
            calls.push(call.unwrap_or_else(|| panic!("strace said something unknown: {line}")));
        }
    }
    (calls, processes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn paths(line: &str) -> Vec<String> {
        Call::parse(line).expect("a call").paths()
    }

    fn hex(text: &str) -> String {
        text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()
    }

    #[test]
    fn paths_are_found_where_calls_have_them() {
        let (a, b) = (hex("/a, \"(b"), hex("b"));
        for (line, expected) in [
            (format!("openat(AT_FDCWD, \"{a}\", O_RDONLY|O_CLOEXEC) = 3"), vec!["/a, \"(b"]),
            (format!("openat(7, \"{b}\", O_RDONLY) = -1 ENOENT (No such file or directory)"), vec!["b"]),
            (format!("access(\"{b}\", F_OK) = 0"), vec!["b"]),
            (
                format!("renameat2(AT_FDCWD, \"{b}\", 5, \"{a}\", RENAME_NOREPLACE) = 0"),
                vec!["b", "/a, \"(b"],
            ),
            (format!("readlink(\"{b}\", \"{a}\", 4096) = 8"), vec!["b"]),
            (format!("execve(\"{b}\", [\"{a}\", \"{a}\"], 0x7ff /* 3 vars */) = 0"), vec!["b"]),
            (format!("connect(3, {{sa_family=AF_UNIX, sun_path=\"{b}\"}}, 110) = 0"), vec!["b"]),
            (
                "connect(3, {sa_family=AF_INET, sin_port=htons(1), sin_addr=inet_addr(\"\\x31\")}, 16) = 0"
                    .into(),
                vec!["1"],
            ),
            (format!("getcwd(\"{a}\", 4096) = 5"), vec![]),
            ("openat(AT_FDCWD, 0x1, O_RDONLY) = -1 EFAULT (Bad address)".into(), vec![]),
            (format!("setxattr(\"{b}\", \"{a}\", \"{a}\", 4, 0) = 0"), vec!["b"]),
            (
                format!("newfstatat(AT_FDCWD, \"{b}\", {{st_mode=S_IFREG|0644, st_size=5, ...}}, 0) = 0"),
                vec!["b"],
            ),
            (format!("chdir(\"{b}\" <unfinished ...>"), vec!["b"]),
            (format!("something_new(1, \"{b}\")  = ?"), vec!["b"]),
        ] {
            assert_eq!(paths(&line), expected, "{line}");
        }
    }

    #[test]
    fn a_result_follows_the_last_bracket() {
        let call =
            Call::parse("openat(AT_FDCWD, \"\\x62\", O_RDONLY) = -1 ENOENT (No such file)").expect("a call");
        assert_eq!(call.result, "-1 ENOENT (No such file)");
        assert_eq!(Call::parse("strace: something"), None);
    }
}
