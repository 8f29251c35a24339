//! Temporary names. libc would choose the name and create it in one go, untold; so a template in a mount gets its
//! name here, and the letters are copied into the caller's own template.

use core::ffi::{CStr, c_char, c_int, c_void};

use crate::absent;
use crate::control;
use crate::hook::{Reply, answer, fail, hook, real};
use crate::hooks::name::my_mkdir;
use crate::hooks::open::my_open;
use crate::loader::{self, get_errno};
use crate::place::{self, CWD};
use crate::sys::{self, Answer, Errno, PathBuf, errno, k};

unsafe extern "C" {
    fn free(block: *mut c_void);
}

/// Letters at the end of a template that are replaced.
const LETTERS: usize = 6;
/// Names that are tried.
const TRIES: u32 = 10_000;

/// Whether a template lies in a mount.
fn in_mount(template: *const c_char) -> bool {
    let mut room = PathBuf::new();
    control::table().is_some()
        && place::entry(CWD, template, &mut room).is_ok_and(|place| place.mount.is_some())
}

/// Fills the template's letters in until `make` makes it.
///
/// # Safety
/// `template` must be a C string that may be written to.
unsafe fn make<R: Reply + PartialEq>(
    template: *mut c_char,
    suffix: c_int,
    make: impl Fn() -> R,
) -> Result<R, Errno> {
    const ALPHABET: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let invalid = Errno::of(errno::EINVAL);
    // SAFETY: as above.
    let len = unsafe { CStr::from_ptr(template) }.to_bytes().len();
    let start =
        usize::try_from(suffix).ok().and_then(|s| len.checked_sub(s)?.checked_sub(LETTERS)).ok_or(invalid)?;
    // SAFETY: within the string; nobody else has it during the call.
    let letters = unsafe { core::slice::from_raw_parts_mut(template.add(start).cast::<u8>(), LETTERS) };
    if letters != b"XXXXXX" {
        return Err(invalid);
    }
    for _ in 0..TRIES {
        let mut value = sys::random();
        for letter in letters.iter_mut() {
            *letter = ALPHABET.get((value % 62) as usize).copied().unwrap_or(b'x');
            value /= 62;
        }
        let made = make();
        if made != R::FAILED || get_errno() != Errno::of(errno::EEXIST) {
            return Ok(made);
        }
    }
    Err(Errno::of(errno::EEXIST))
}

unsafe fn make_file(template: *mut c_char, suffix: c_int, flags: c_int) -> c_int {
    let flags = flags & !(k::O_ACCMODE as c_int) | (k::O_RDWR | k::O_CREAT | k::O_EXCL) as c_int;
    // SAFETY: the caller keeps the contract of mkstemp(3).
    unsafe { make(template, suffix, || my_open(template, flags, 0o600)) }.unwrap_or_else(fail)
}

hook! {
    unsafe fn mkstemp | mkstemp64(template: *mut c_char) -> c_int => my_mkstemp {
        if in_mount(template) { make_file(template, 0, 0) } else { real!(mkstemp)(template) }
    }
}

hook! {
    unsafe fn mkostemp | mkostemp64(template: *mut c_char, flags: c_int) -> c_int => my_mkostemp {
        if in_mount(template) { make_file(template, 0, flags) } else { real!(mkostemp)(template, flags) }
    }
}

hook! {
    unsafe fn mkstemps | mkstemps64(template: *mut c_char, suffix: c_int) -> c_int => my_mkstemps {
        if in_mount(template) { make_file(template, suffix, 0) } else { real!(mkstemps)(template, suffix) }
    }
}

hook! {
    unsafe fn mkostemps | mkostemps64(template: *mut c_char, suffix: c_int, flags: c_int) -> c_int => my_mkostemps {
        if in_mount(template) {
            make_file(template, suffix, flags)
        } else {
            real!(mkostemps)(template, suffix, flags)
        }
    }
}

hook! {
    unsafe fn mkdtemp(template: *mut c_char) -> *mut c_char => my_mkdtemp {
        if !in_mount(template) {
            return real!(mkdtemp)(template);
        }
        match make(template, 0, || my_mkdir(template, 0o700)) {
            Ok(0) => template,
            Ok(_) => core::ptr::null_mut(),
            Err(errno) => fail(errno),
        }
    }
}

/// The directory that tempnam(3) would take, where it lies in a mount that is translated: `TMPDIR` where that is a
/// directory (glibc only), else the one asked for.
///
/// # Safety
/// `asked` must be null or a C string.
unsafe fn temporary_directory(asked: *const c_char, room: &mut PathBuf) -> Option<*const c_char> {
    let translated = |path: *const c_char| {
        let mut other = PathBuf::new();
        let place = place::at(CWD, path, &mut other).ok()?;
        let stat = absent::stat_at(place.dirfd, place.path, 0).ok()?;
        sys::is_directory(&stat).then_some(!core::ptr::eq(place.path, path))
    };
    if loader::is_glibc()
        && let Some(value) = control::variable(b"TMPDIR").filter(|value| !value.is_empty())
        && room.push(value).is_ok()
        && let Some(inside) = translated(room.c_str())
    {
        return inside.then(|| room.c_str());
    }
    let inside = !asked.is_null() && translated(asked) == Some(true);
    inside.then_some(asked)
}

hook! {
    unsafe fn tempnam(directory: *const c_char, prefix: *const c_char) -> *mut c_char => my_tempnam {
        let mut room = PathBuf::new();
        let translates = control::table().is_some_and(|table| table.translates);
        let taken = if translates { temporary_directory(directory, &mut room) } else { None };
        let Some(taken) = taken else { return real!(tempnam)(directory, prefix) };
        let prefix = if prefix.is_null() { b"file" } else { CStr::from_ptr(prefix).to_bytes() };
        let mut name = PathBuf::new();
        let parts = [CStr::from_ptr(taken).to_bytes(), b"/", prefix.get(..5).unwrap_or(prefix), b"XXXXXX"];
        if let Err(errno) = parts.iter().try_for_each(|part| name.push(part)) {
            return fail(errno);
        }
        let name = super::cwd::give(name.bytes(), core::ptr::null_mut(), 0);
        if name.is_null() {
            return name;
        }
        match make(name, 0, || is_free(name)) {
            Ok(0) => name,
            tried => {
                free(name.cast());
                tried.map_or_else(fail, |_| core::ptr::null_mut())
            }
        }
    }
}

/// Whether a name is free: fails with EEXIST where it is not.
fn is_free(template: *const c_char) -> c_int {
    let mut room = PathBuf::new();
    let free = place::at(CWD, template, &mut room).and_then(|place| -> Answer {
        match absent::stat_at(place.dirfd, place.path, k::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::of(errno::EEXIST)),
            Err(e) if e == Errno::of(errno::ENOENT) => Ok(0),
            Err(e) => Err(e),
        }
    });
    answer(free)
}

hook! {
    unsafe fn mktemp | __mktemp(template: *mut c_char) -> *mut c_char => my_mktemp {
        if !in_mount(template) {
            return real!(mktemp)(template);
        }
        if !matches!(make(template, 0, || is_free(template)), Ok(0)) && !sys::leads_nowhere(template) {
            // The historical way to say no.
            template.write(0);
        }
        template
    }
}
