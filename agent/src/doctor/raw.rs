//! System calls that a program or a library makes itself, past libc and so past the shim.

use std::collections::BTreeSet;

use serde::Serialize;

use super::code::{self, Number};
use super::elf::{Code, Elf};
use super::functions::Functions;
use super::numbers::{self, Kind};

/// A function longer than this is not followed as a whole.
const FUNCTION_MAX: usize = 64 << 10;

/// What a file does past libc.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Raw {
    /// Calls that name a path or change a file.
    pub calls: BTreeSet<&'static str>,
    /// It sets io_uring up or uses it.
    pub io_uring: bool,
    /// System call instructions whose number comes from elsewhere.
    pub unknown: usize,
}

/// Looks through all code of `elf`.
pub fn raw_calls(elf: &Elf) -> Raw {
    let functions = Functions::of(elf);
    let mut raw = Raw::default();
    for code in elf.code() {
        let mut done = 0;
        for candidate in code::trap_candidates(elf.machine, code) {
            // Those of one function are found together.
            if candidate < done {
                continue;
            }
            let own = functions.containing(candidate).and_then(|function| functions.code(elf, function));
            let own = own.filter(|own| own.bytes.len() <= FUNCTION_MAX);
            let known = own.is_some();
            let Some(stretch) = own.or_else(|| around(elf, code, candidate)) else { continue };
            done = stretch.address + stretch.bytes.len() as u64;
            for trap in code::facts(elf.machine, stretch).traps {
                match trap.number {
                    Number::Known(numbers) => numbers.iter().for_each(|number| raw.add(elf, *number)),
                    // Outside of known functions the same bytes are as likely data, or parts of other instructions.
                    Number::Argument(_) | Number::Unknown => raw.unknown += usize::from(known),
                }
            }
        }
    }
    raw
}

/// The few instructions before a system call whose function is not known.
fn around<'a>(elf: &Elf, code: Code<'a>, trap: u64) -> Option<Code<'a>> {
    let start = code::lead_in(elf.machine, code, trap);
    let from = usize::try_from(start.checked_sub(code.address)?).ok()?;
    let to =
        usize::try_from(trap.checked_sub(code.address)?).ok()?.checked_add(code::trap_size(elf.machine))?;
    Some(Code { address: start, bytes: code.bytes.get(from..to.min(code.bytes.len()))? })
}

impl Raw {
    fn add(&mut self, elf: &Elf, number: u32) {
        let Some(call) = numbers::call(elf.machine, number) else { return };
        match call.kind {
            Kind::Path | Kind::Change => drop(self.calls.insert(call.name)),
            Kind::Ring => self.io_uring = true,
            Kind::Descriptor | Kind::Process => {}
        }
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty() && !self.io_uring && self.unknown == 0
    }
}

/// Whether a library is a part of libc, whose system calls are behind functions that are hooked.
pub fn is_part_of_libc(elf: &Elf) -> bool {
    let file = elf.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    elf.soname().is_some_and(is_name_of_libc) || is_name_of_libc(&file)
}

/// Whether parts of libc, or the shim, are called so.
pub fn is_name_of_libc(name: &str) -> bool {
    const PARTS: [&str; 18] = [
        "libc.so",
        "libc.musl",
        "ld-linux",
        "ld-musl",
        "ld64",
        "libm.so",
        "libmvec.so",
        "libpthread.so",
        "libdl.so",
        "librt.so",
        "libutil.so",
        "libresolv.so",
        "libanl.so",
        "libnss_",
        "libthread_db",
        "libBrokenLocale",
        "ld.so",
        "libstoreshim.so",
    ];
    PARTS.iter().any(|part| name.starts_with(part))
}
