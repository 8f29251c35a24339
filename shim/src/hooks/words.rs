//! wordexp. musl's asks a shell, which is hooked; glibc's looks into directories itself, so it is given the tree's spelling
//! where a word begins with the app's, literally or by a variable, and its words are turned round.

use core::ffi::{CStr, c_char, c_int, c_void};

use super::glob::{Glob, globfree, my_glob};
use crate::absent;
use crate::control;
use crate::hook::{hook, real};
use crate::loader;
use crate::place;
use crate::sys::PathBuf;

unsafe extern "C" {
    fn free(block: *mut c_void);
    fn wordfree(words: *mut Words);
}

/// wordexp_t, as far as it is used.
#[repr(C)]
pub struct Words {
    count: usize,
    words: *mut *mut c_char,
    offset: usize,
}

/// Whether a path means the same to a shell, quoted or not.
fn is_plain(path: &[u8]) -> bool {
    path.iter().all(|c| c.is_ascii_alphanumeric() || b"/._-+@%,:=".contains(c))
}

/// The value that `text` begins with (`$NAME`, `${NAME}` or `~`), and how long that is.
fn value(text: &[u8], quoted: bool) -> Option<(&'static [u8], usize)> {
    let name_of = |text: &[u8]| text.iter().take_while(|c| c.is_ascii_alphanumeric() || **c == b'_').count();
    let (name, length): (&[u8], usize) = match text {
        [b'~', rest @ ..] if !quoted && matches!(rest, [] | [b'/' | b' ', ..]) => (b"HOME", 1),
        [b'$', b'{', rest @ ..] => {
            let n = name_of(rest);
            (rest.get(..n).filter(|_| rest.get(n) == Some(&b'}'))?, n + 3)
        }
        [b'$', rest @ ..] => (rest.get(..name_of(rest))?, name_of(rest) + 1),
        _ => return None,
    };
    Some((control::variable(name)?, length))
}

/// Rewrites the words in `text`; `None` where nothing is to be translated, or where there is no room.
fn rewritten<'o>(text: &[u8], out: &'o mut PathBuf) -> Option<&'o PathBuf> {
    let (mut single, mut double, mut begins, mut changed) = (false, false, true, false);
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let rest = text.get(at..)?;
        let mut room = PathBuf::new();
        if begins && *byte == b'/' {
            // As far as it is plain; what follows stays as it is.
            let end = rest.iter().position(|c| !is_plain(&[*c])).unwrap_or(rest.len());
            let path = rest.get(..end)?;
            if let Some(real) = place::real_target(path, &mut room) {
                let real = real.ok()?.bytes();
                changed |= is_plain(real);
                out.push(if is_plain(real) { real } else { path }).ok()?;
                (at, begins) = (at + end, false);
                continue;
            }
        } else if begins
            && !single
            && let Some((value, length)) = value(rest, double)
            && is_plain(value)
            && let Some(real) = place::real_target(value, &mut room)
        {
            let real = real.ok()?.bytes();
            if is_plain(real) {
                changed = true;
                out.push(real).ok()?;
                (at, begins) = (at + length, false);
                continue;
            }
        }
        let escaped = *byte == b'\\' && !single;
        begins = match byte {
            b'\'' if !double => {
                single = !single;
                begins
            }
            b'"' if !single => {
                double = !double;
                begins
            }
            _ => !single && !double && byte.is_ascii_whitespace(),
        };
        let length = if escaped { 2 } else { 1 };
        out.push(rest.get(..length).unwrap_or(rest)).ok()?;
        at += length;
    }
    changed.then_some(out)
}

/// Has all directories brought that `expand` is about to look into: the words are made with their patterns left as they
/// are, and each is globbed by a function that is hooked.
///
/// # Safety
/// The contract of wordexp(3).
#[cold]
unsafe fn prepare(text: &[u8], flags: c_int, expand: impl Fn(*const c_char, *mut Words, c_int) -> c_int) {
    const WRDE_NOCMD: c_int = 4;
    const WRDE_UNDEF: c_int = 32;
    let mut quoted = PathBuf::new();
    for byte in text {
        let mark: &[u8] = if b"*?[".contains(byte) { b"\\" } else { b"" };
        if quoted.push(mark).and_then(|()| quoted.push(&[*byte])).is_err() {
            return;
        }
    }
    let mut made = core::mem::MaybeUninit::<Words>::zeroed();
    // What a command would print is not asked for twice.
    if expand(quoted.c_str(), made.as_mut_ptr(), flags & WRDE_UNDEF | WRDE_NOCMD) != 0 {
        return;
    }
    // SAFETY: wordexp has succeeded, and glob too fills its structure.
    unsafe {
        let made = made.assume_init_mut();
        for word in (0..made.count).map(|at| *made.words.add(at)) {
            let mut found = core::mem::MaybeUninit::<Glob>::zeroed();
            if my_glob(word, 0, core::ptr::null(), found.as_mut_ptr()) == 0 {
                globfree(found.as_mut_ptr());
            }
        }
        wordfree(made);
    }
}

hook! {
    unsafe fn wordexp(text: *const c_char, out: *mut Words, flags: c_int) -> c_int => my_wordexp {
        const WRDE_DOOFFS: c_int = 1;
        const WRDE_APPEND: c_int = 2;
        let mut room = PathBuf::new();
        if !loader::is_glibc() || text.is_null() || out.is_null() || control::table().is_none() {
            return real!(wordexp)(text, out, flags);
        }
        let bytes = CStr::from_ptr(text).to_bytes();
        if absent::some_lacks_names() {
            prepare(bytes, flags, |text, out, flags| real!(wordexp)(text, out, flags));
        }
        let Some(real) = rewritten(bytes, &mut room) else {
            return real!(wordexp)(text, out, flags);
        };
        let old = if flags & WRDE_APPEND != 0 { (*out).count } else { 0 };
        let result = real!(wordexp)(real.c_str(), out, flags);
        if result != 0 {
            return result;
        }
        let skipped = if flags & WRDE_DOOFFS != 0 { (*out).offset } else { 0 };
        for at in old..(*out).count {
            let word = (*out).words.add(skipped + at);
            let Some((head, tail)) = place::turned_parts(CStr::from_ptr(*word).to_bytes()) else { continue };
            let mut turned = PathBuf::new();
            if turned.push(head).and_then(|()| turned.push(tail)).is_ok() {
                let fresh = super::cwd::give(turned.bytes(), core::ptr::null_mut(), 0);
                if !fresh.is_null() {
                    free((*word).cast());
                    word.write(fresh);
                }
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_word_begins_with_is_found() {
        assert!(is_plain(b"/var/lib/a-b_c.d") && !is_plain(b"/a b") && !is_plain(b"/a*") && !is_plain(b"$x"));
        assert_eq!(value(b"$", false), None);
        assert_eq!(value(b"~user/x", false), None);
        assert_eq!(value(b"${NO_SUCH_NAME_HERE", false), None);
        let home = std::env::var("PATH").unwrap();
        assert_eq!(value(b"${PATH}/x", true).map(|(v, n)| (v.len(), n)), Some((home.len(), 7)));
        assert_eq!(value(b"$PATH/x", false).map(|(v, n)| (v.len(), n)), Some((home.len(), 5)));
    }
}
