//! Path arithmetic on bytes: what lies below a prefix, and what `..` does to it. Knows no mount table and makes no
//! system call.

use crate::sys::{Errno, PathBuf};

/// How a path stands to a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match<'p> {
    /// It is the prefix itself (empty rest) or lies below it (the rest begins with `/`).
    Below(&'p [u8]),
    /// It lies elsewhere.
    Outside,
}

/// Skips slashes and `.` components at the front of a path; what is left begins with a component or is empty.
fn skip_nothing(mut path: &[u8]) -> &[u8] {
    loop {
        path = match path {
            [b'/', rest @ ..] => rest,
            [b'.', b'/', rest @ ..] => rest,
            [b'.'] => &[],
            _ => return path,
        }
    }
}

/// Splits the first component off a path that begins with one; the rest keeps its slash.
fn first_component(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
    path.split_at_checked(end).unwrap_or((path, &[]))
}

/// Bytes of `word` that are `byte` have their highest bit set; one that follows such a byte may have it, too.
#[inline(always)]
fn are(word: u64, byte: u8) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    let zero = word ^ (ONES * u64::from(byte));
    zero.wrapping_sub(ONES) & !zero & (ONES << 7)
}

/// Whether some byte and the one after it are as `wide` says of eight such pairs at a time, and `narrow` of one. By hand:
/// every path is looked at so, and the library is compiled for size.
#[inline(always)]
fn any_pair(path: &[u8], wide: impl Fn(u64, u64) -> u64, narrow: impl Fn(u8, u8) -> bool) -> bool {
    let mut rest = path;
    while let (Some(eight), Some(next)) = (rest.first_chunk(), rest.get(1..).and_then(<[u8]>::first_chunk)) {
        if wide(u64::from_le_bytes(*eight), u64::from_le_bytes(*next)) != 0 {
            return true;
        }
        rest = rest.get(8..).unwrap_or(&[]);
    }
    rest.windows(2).any(|pair| matches!(pair, [a, b] if narrow(*a, *b)))
}

/// Whether an absolute path may hold an empty, `.` or `..` component (or just a name that begins with a dot). Almost
/// none does, and then comparing bytes says all.
#[inline(always)]
pub fn is_odd(path: &[u8]) -> bool {
    any_pair(
        path,
        |a, b| are(a, b'/') & (are(b, b'/') | are(b, b'.')),
        |a, b| a == b'/' && matches!(b, b'/' | b'.'),
    )
}

/// Whether a path may hold `..`; as [`is_odd`].
#[inline(always)]
pub fn has_two_dots(path: &[u8]) -> bool {
    any_pair(path, |a, b| are(a, b'.') & are(b, b'.'), |a, b| a == b'.' && b == b'.')
}

/// [`below`] for a path that is not odd.
#[inline(always)]
pub fn plainly_below<'p>(prefix: &[u8], path: &'p [u8]) -> Match<'p> {
    match path.strip_prefix(prefix) {
        Some(rest @ ([] | [b'/', ..])) => Match::Below(rest),
        _ => Match::Outside,
    }
}

/// How the absolute `path` stands to the absolute `prefix` (no trailing slash, no empty component). Repeated
/// slashes and `.` count as nothing; `..` is a component like any other here.
#[inline(never)]
pub fn below<'p>(prefix: &[u8], path: &'p [u8]) -> Match<'p> {
    let (mut want, mut have) = (prefix, path);
    loop {
        want = skip_nothing(want);
        if want.is_empty() {
            return Match::Below(have);
        }
        have = skip_nothing(have);
        let (wanted, want_rest) = first_component(want);
        match have.strip_prefix(wanted) {
            Some(rest @ ([] | [b'/', ..])) => have = rest,
            _ => return Match::Outside,
        }
        want = want_rest;
    }
}

/// Whether `path` has a `..` component.
pub fn has_dotdot(path: &[u8]) -> bool {
    let mut rest = path;
    loop {
        rest = match rest {
            [b'.', b'.'] | [b'.', b'.', b'/', ..] => return true,
            _ => match rest.iter().position(|b| *b == b'/').and_then(|at| rest.get(at + 1..)) {
                Some(next) => next,
                None => return false,
            },
        }
    }
}

/// The next `..` component of `path` that begins at `from` or later: where it begins and ends.
pub fn next_dotdot(path: &[u8], from: usize) -> Option<(usize, usize)> {
    let mut at = from;
    loop {
        let rest = path.get(at..)?;
        let begins = at == 0 || path.get(at - 1) == Some(&b'/');
        if begins && matches!(rest, [b'.', b'.'] | [b'.', b'.', b'/', ..]) {
            return Some((at, at + 2));
        }
        at += rest.iter().position(|b| *b == b'/')? + 1;
    }
}

/// What follows a `..` that `rest` begins with, if it does.
pub fn strip_dotdot(rest: &[u8]) -> Option<&[u8]> {
    let (component, after) = first_component(skip_nothing(rest));
    (component == b"..").then_some(after)
}

/// Whether `rest`, taken from some directory above `prefix`, may lead to it: its first component is one of the
/// prefix's, or it has none that says.
pub fn may_finish(prefix: &[u8], rest: &[u8]) -> bool {
    let (component, _) = first_component(skip_nothing(rest));
    !component.is_empty() && component != b".." && prefix.split(|b| *b == b'/').any(|part| part == component)
}

/// The directory part of a canonical path: without its last component and the slash before it.
pub fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    path.get(..end).unwrap_or(&[])
}

/// A path's last component: where it begins, and where it ends before trailing slashes.
pub fn last_component(path: &[u8]) -> (usize, usize) {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
    let head = path.get(..end).unwrap_or(&[]);
    let start = head.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    (start, end)
}

/// Writes `base` then `rest` into `out`.
pub fn join(out: &mut PathBuf, base: &[u8], rest: &[u8]) -> Result<(), Errno> {
    out.clear();
    out.push(base)?;
    out.push(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_a_component() {
        assert_eq!(below(b"/storage", b"/storage"), Match::Below(b""));
        assert_eq!(below(b"/storage", b"/storage/"), Match::Below(b"/"));
        assert_eq!(below(b"/storage", b"/storage/a/b"), Match::Below(b"/a/b"));
        assert_eq!(below(b"/storage", b"/storagex"), Match::Outside);
        assert_eq!(below(b"/storage", b"/storag"), Match::Outside);
        assert_eq!(below(b"/storage", b"/"), Match::Outside);
        assert_eq!(below(b"/a/b", b"/a"), Match::Outside);
    }

    #[test]
    fn slashes_and_dots_count_as_nothing() {
        assert_eq!(below(b"/storage", b"//storage//x"), Match::Below(b"//x"));
        assert_eq!(below(b"/storage", b"/./storage/./x"), Match::Below(b"/./x"));
        assert_eq!(below(b"/a/b", b"/a/.//./b/c"), Match::Below(b"/c"));
        assert_eq!(below(b"/a/b", b"/a/.b/c"), Match::Outside);
    }

    #[test]
    fn a_plain_path_needs_no_second_look() {
        for path in [&b"/storage/a.b/..c"[..], b"/", b"", b"/a"] {
            assert_eq!(is_odd(path), path.ends_with(b"..c"));
        }
        assert!(is_odd(b"/a//b") && is_odd(b"/a/./b") && is_odd(b"/a/..") && is_odd(b"//"));
        assert!(has_two_dots(b"..") && has_two_dots(b"a/../b") && !has_two_dots(b"a/.b/c."));
        for path in [&b"/storage"[..], b"/storage/x", b"/storagex", b"/stor", b"/x/storage"] {
            assert_eq!(plainly_below(b"/storage", path), below(b"/storage", path));
        }
    }

    /// Wherever it stands in a path of whatever length.
    #[test]
    fn what_is_odd_is_found_everywhere() {
        for len in 0..40 {
            let plain = b"/abcdefg-hijklmn/opqrstu/vwxyz.01/23456789".get(..len).unwrap();
            assert!(!is_odd(plain) && !has_two_dots(plain), "{len}");
            for at in 0..len.saturating_sub(1) {
                for (pair, odd, dots) in [(b"//", true, false), (b"/.", true, false), (b"..", false, true)] {
                    let mut path = plain.to_vec();
                    path.splice(at..at + 2, *pair);
                    assert!(!odd || is_odd(&path), "{}", String::from_utf8_lossy(&path));
                    assert!(!dots || has_two_dots(&path), "{}", String::from_utf8_lossy(&path));
                }
            }
        }
    }

    #[test]
    fn dotdot_is_seen_as_a_component_only() {
        assert!(has_dotdot(b"/a/../b"));
        assert!(has_dotdot(b".."));
        assert!(has_dotdot(b"/a/.."));
        assert!(has_dotdot(b"../x"));
        assert!(!has_dotdot(b"/a/..b/b../c"));
        assert!(!has_dotdot(b""));
    }

    #[test]
    fn each_dotdot_is_found_once() {
        let all = |path: &[u8]| {
            let (mut from, mut found) = (0, Vec::new());
            while let Some((start, end)) = next_dotdot(path, from) {
                found.push(start);
                from = end;
            }
            found
        };
        assert_eq!(all(b"/a/../b"), [3]);
        assert_eq!(all(b"../..//../x/..y/y../.."), [0, 3, 7, 20]);
        assert_eq!(all(b"/..a/b..//"), [0usize; 0]);
        assert_eq!(all(b""), [0usize; 0]);
        assert_eq!(strip_dotdot(b"/./../x"), Some(&b"/x"[..]));
        assert_eq!(strip_dotdot(b"//.."), Some(&b""[..]));
        assert_eq!(strip_dotdot(b"/..x"), None);
    }

    #[test]
    fn a_rest_that_cannot_reach_the_prefix_is_told() {
        assert!(may_finish(b"/mnt/storage", b"/storage/x"));
        assert!(may_finish(b"/mnt/storage", b"//./mnt"));
        assert!(!may_finish(b"/mnt/storage", b"/storages"));
        assert!(!may_finish(b"/mnt/storage", b"/../storage"));
        assert!(!may_finish(b"/mnt/storage", b""));
    }

    #[test]
    fn the_last_component_is_found() {
        let name = |p: &'static [u8]| {
            let (a, b) = last_component(p);
            p.get(a..b).unwrap_or(b"?")
        };
        assert_eq!(name(b"/a/b"), b"b");
        assert_eq!(name(b"/a/b//"), b"b");
        assert_eq!(name(b"b"), b"b");
        assert_eq!(name(b"/"), b"");
        assert_eq!(name(b""), b"");
        assert_eq!(parent(b"/a/b"), b"/a");
        assert_eq!(parent(b"/a"), b"");
    }

    /// Every spelling of a path below the prefix, made by inserting what counts as nothing, is below it.
    #[test]
    fn spellings_do_not_matter() {
        let fillers: [&[u8]; 4] = [b"/", b"//", b"/./", b"/.//./"];
        for a in fillers {
            for b in fillers {
                for c in fillers {
                    let mut path = a.to_vec();
                    path.extend_from_slice(b"mnt");
                    path.extend_from_slice(b);
                    path.extend_from_slice(b"storage");
                    path.extend_from_slice(c);
                    path.extend_from_slice(b"f");
                    let Match::Below(rest) = below(b"/mnt/storage", &path) else {
                        panic!("{}", String::from_utf8_lossy(&path));
                    };
                    assert_eq!(skip_nothing(rest), b"f");
                }
            }
        }
    }
}
