//! Which libc a file is, and which a program uses.

use std::path::Path;

use serde::Serialize;

use super::elf::Elf;

/// A C library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "name", content = "version")]
pub enum Libc {
    /// The GNU C library, with its version where the file tells it.
    Glibc(Option<String>),
    /// musl, the same.
    Musl(Option<String>),
    /// Something else.
    Other,
}

impl Libc {
    /// Which one the library `elf` is.
    pub fn of(elf: &Elf) -> Self {
        let banner = b"GNU C Library ";
        let contents = elf.contents();
        if elf.soname().is_some_and(|name| name.starts_with("libc.musl"))
            || elf.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-musl"))
            || find(contents, b"musl libc (").is_some()
        {
            return Self::Musl(musl_version(contents));
        }
        match find(contents, banner) {
            Some(at) => {
                let text = contents.get(at..at + 120).unwrap_or_default();
                let text = String::from_utf8_lossy(text);
                let version = text.split_once("version ").map(|(_, rest)| rest);
                Self::Glibc(version.map(|rest| take_version(rest).to_owned()))
            }
            None => Self::Other,
        }
    }

    /// Which one a program uses that asks for this loader.
    pub fn of_loader(interpreter: &Path) -> Self {
        let name =
            interpreter.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("ld-musl") {
            Self::Musl(None)
        } else if name.starts_with("ld-linux") || name.starts_with("ld64.so") || name.starts_with("ld.so") {
            Self::Glibc(None)
        } else {
            Self::Other
        }
    }
}

impl std::fmt::Display for Libc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Glibc(Some(version)) => write!(f, "glibc {version}"),
            Self::Glibc(None) => write!(f, "glibc"),
            Self::Musl(Some(version)) => write!(f, "musl {version}"),
            Self::Musl(None) => write!(f, "musl"),
            Self::Other => write!(f, "an unknown libc"),
        }
    }
}

/// A version that stands alone between zero bytes, as in musl's `__libc_version`.
fn musl_version(contents: &[u8]) -> Option<String> {
    contents.split(|byte| *byte == 0).find_map(|text| {
        let text = std::str::from_utf8(text).ok()?;
        let parts: Vec<&str> = text.split('.').collect();
        let number =
            |part: &&str| !part.is_empty() && part.len() < 4 && part.bytes().all(|b| b.is_ascii_digit());
        let is_version = parts.len() == 3 && parts.first() == Some(&"1") && parts.iter().all(number);
        is_version.then(|| text.to_owned())
    })
}

fn take_version(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.get(..end).unwrap_or(text).trim_end_matches('.')
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaders_tell_their_libc() {
        let of = |path: &str| Libc::of_loader(Path::new(path));
        assert_eq!(of("/lib64/ld-linux-x86-64.so.2"), Libc::Glibc(None));
        assert_eq!(of("/lib/ld-musl-x86_64.so.1"), Libc::Musl(None));
        assert_eq!(of("/libexec/ld-elf.so.1"), Libc::Other);
    }

    #[test]
    fn versions_are_cut_out() {
        assert_eq!(take_version("2.36.\nCopyright"), "2.36");
        assert_eq!(musl_version(b"a\x001.2.3\x00b").as_deref(), Some("1.2.3"));
        assert_eq!(musl_version(b"10.2.3\x001.2\x00x1.2.3"), None);
    }
}
