//! Finds the functions that ours stand in front of, as dlsym(RTLD_NEXT) would, but without its lock: a hook may run
//! in a signal handler, in a vfork child, or in a child that was forked while another thread was in the loader. It
//! also spares us the symbol `dlsym`, which is in another library before glibc 2.34.

use core::ffi::{CStr, c_char, c_int};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::sys::{Errno, errno};

/// What both libcs show a debugger of each loaded object.
#[repr(C)]
struct LinkMap {
    base: usize,
    name: *const c_char,
    dynamic: *const Dynamic,
    next: *const LinkMap,
}

#[repr(C)]
struct Dynamic {
    tag: usize,
    value: usize,
}

#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: usize,
    size: usize,
}

#[repr(C)]
struct Debug {
    version: c_int,
    map: *const LinkMap,
}

/// The address of a symbol of the process that need not exist, 0 then.
macro_rules! weak_address {
    ($name:literal) => {{
        let at: usize;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: loads an entry of our own GOT.
        unsafe {
            core::arch::asm!(concat!(".weak ", $name), concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                out(reg) at, options(nostack, preserves_flags, readonly));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: loads an entry of our own GOT.
        unsafe {
            core::arch::asm!(concat!(".weak ", $name), concat!("adrp {0}, :got:", $name),
                concat!("ldr {0}, [{0}, :got_lo12:", $name, "]"),
                out(reg) at, options(nostack, preserves_flags, readonly));
        }
        at
    }};
}

/// Whether libc says that this process has never had a second thread; `None` where it does not say.
pub fn single_threaded() -> Option<bool> {
    let at = weak_address!("__libc_single_threaded") as *const u8;
    // SAFETY: glibc exports one char under this name.
    (!at.is_null()).then(|| unsafe { at.read_volatile() } != 0)
}

/// The environment as it is now; null where there is none.
pub fn environment() -> *const *const c_char {
    let at = weak_address!("environ") as *const *const *const c_char;
    // SAFETY: both libcs export a `char **` under this name.
    if at.is_null() { core::ptr::null() } else { unsafe { at.read_volatile() } }
}

/// Whether this is glibc; else it is musl.
pub fn is_glibc() -> bool {
    weak_address!("gnu_get_libc_version") != 0
}

fn first_object() -> *const LinkMap {
    let glibc = weak_address!("_r_debug") as *const Debug;
    let debug = if glibc.is_null() {
        let musl = weak_address!("_dl_debug_addr") as *const *const Debug;
        // SAFETY: musl exports a pointer under this name.
        if musl.is_null() { core::ptr::null() } else { unsafe { *musl } }
    } else {
        glibc
    };
    // SAFETY: the loader has filled the structure before any code of a preloaded library runs.
    if debug.is_null() { core::ptr::null() } else { unsafe { (*debug).map } }
}

/// Objects in the loader's order. Those of the program's start, which are all that matter, are never unlinked.
struct Objects(*const LinkMap);

impl Iterator for Objects {
    type Item = &'static LinkMap;

    fn next(&mut self) -> Option<&'static LinkMap> {
        // SAFETY: the list holds valid nodes and ends with null.
        let object = unsafe { self.0.as_ref()? };
        self.0 = object.next;
        Some(object)
    }
}

/// An object's tables.
struct Tables {
    base: usize,
    strings: usize,
    symbols: usize,
    versions: usize,
    gnu_hash: usize,
    sysv_hash: usize,
}

const STRTAB: usize = 5;
const SYMTAB: usize = 6;
const HASH: usize = 4;
const GNU_HASH: usize = 0x6fff_fef5;
const VERSYM: usize = 0x6fff_fff0;

impl Tables {
    fn of(object: &LinkMap) -> Option<Self> {
        let mut tables =
            Self { base: object.base, strings: 0, symbols: 0, versions: 0, gnu_hash: 0, sysv_hash: 0 };
        let mut at = object.dynamic;
        // SAFETY: a dynamic section ends with a null tag.
        while let Some(entry) = unsafe { at.as_ref() }
            && entry.tag != 0
        {
            // glibc relocates these values in place, musl does not.
            let value =
                if entry.value < object.base { entry.value.wrapping_add(object.base) } else { entry.value };
            match entry.tag {
                STRTAB => tables.strings = value,
                SYMTAB => tables.symbols = value,
                HASH => tables.sysv_hash = value,
                GNU_HASH => tables.gnu_hash = value,
                VERSYM => tables.versions = value,
                _ => {}
            }
            // SAFETY: the null tag has not come yet.
            at = unsafe { at.add(1) };
        }
        (tables.strings != 0 && tables.symbols != 0).then_some(tables)
    }

    /// # Safety
    /// `at` must be the address of a table of `T` in a loaded object that has an entry `index`.
    unsafe fn entry<T: Copy>(at: usize, index: usize) -> T {
        // SAFETY: as above.
        unsafe { (at as *const T).add(index).read_unaligned() }
    }

    fn find(&self, name: &CStr) -> Option<usize> {
        // SAFETY: the indices come from the object's own hash tables, which the linker made consistent.
        unsafe { if self.gnu_hash != 0 { self.find_gnu(name) } else { self.find_sysv(name) } }
    }

    /// # Safety
    /// The tables must be those of a loaded object.
    unsafe fn find_gnu(&self, name: &CStr) -> Option<usize> {
        let hash =
            name.to_bytes().iter().fold(5381u32, |h, b| h.wrapping_mul(33).wrapping_add(u32::from(*b)));
        // SAFETY: the layout of DT_GNU_HASH.
        unsafe {
            let buckets = Self::entry::<u32>(self.gnu_hash, 0);
            let offset = Self::entry::<u32>(self.gnu_hash, 1);
            let filters = Self::entry::<u32>(self.gnu_hash, 2);
            let shift = Self::entry::<u32>(self.gnu_hash, 3);
            let filter_at = self.gnu_hash + 16;
            let word = Self::entry::<u64>(filter_at, (hash / 64).checked_rem(filters)? as usize);
            let bits = 1u64 << (hash % 64) | 1u64 << (hash.wrapping_shr(shift) % 64);
            if word & bits != bits {
                return None;
            }
            let bucket_at = filter_at + filters as usize * 8;
            let mut index = Self::entry::<u32>(bucket_at, hash.checked_rem(buckets)? as usize);
            let chain_at = bucket_at + buckets as usize * 4;
            while index >= offset {
                let link = Self::entry::<u32>(chain_at, (index - offset) as usize);
                if link | 1 == hash | 1
                    && let Some(at) = self.take(index as usize, name)
                {
                    return Some(at);
                }
                if link & 1 != 0 {
                    return None;
                }
                index += 1;
            }
        }
        None
    }

    /// # Safety
    /// The tables must be those of a loaded object.
    unsafe fn find_sysv(&self, name: &CStr) -> Option<usize> {
        if self.sysv_hash == 0 {
            return None;
        }
        // SAFETY: the layout of DT_HASH: bucket count, symbol count, buckets, chains. Symbols are as many as chains.
        unsafe {
            let symbols = Self::entry::<u32>(self.sysv_hash, 1) as usize;
            (1..symbols).find_map(|index| self.take(index, name))
        }
    }

    /// The address of symbol `index` if it is a default definition of `name`.
    ///
    /// # Safety
    /// The tables must be those of a loaded object with that many symbols.
    unsafe fn take(&self, index: usize, name: &CStr) -> Option<usize> {
        const HIDDEN: u16 = 0x8000;
        const IFUNC: u8 = 10;
        // SAFETY: as above; names are NUL-terminated strings of the string table.
        unsafe {
            let symbol = &*(self.symbols as *const Symbol).add(index);
            let found = CStr::from_ptr((self.strings as *const c_char).add(symbol.name as usize));
            if symbol.section == 0 || symbol.value == 0 || found != name {
                return None;
            }
            if self.versions != 0 && Self::entry::<u16>(self.versions, index) & HIDDEN != 0 {
                return None;
            }
            let at = self.base.wrapping_add(symbol.value);
            if symbol.info & 0xf == IFUNC {
                let resolve: extern "C" fn() -> usize = core::mem::transmute(at);
                return Some(resolve());
            }
            Some(at)
        }
    }
}

fn is_ours(object: &LinkMap) -> bool {
    let ours: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: computes the address of our own dynamic section.
    unsafe {
        core::arch::asm!(".hidden _DYNAMIC", "lea {}, [rip + _DYNAMIC]", out(reg) ours,
            options(nostack, preserves_flags, nomem));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: computes the address of our own dynamic section.
    unsafe {
        core::arch::asm!(".hidden _DYNAMIC", "adrp {0}, _DYNAMIC", "add {0}, {0}, :lo12:_DYNAMIC", out(reg) ours,
            options(nostack, preserves_flags, nomem));
    }
    object.dynamic as usize == ours
}

/// The path that this library was loaded from, as the loader was given it.
pub fn own_path() -> Option<&'static CStr> {
    let ours = Objects(first_object()).find(|object| is_ours(object))?;
    // SAFETY: the loader keeps the name as long as the object.
    (!ours.name.is_null()).then(|| unsafe { CStr::from_ptr(ours.name) })
}

/// The next definition of `name` after this library, or any other where this library comes last (dlopen).
fn next(name: &CStr) -> Option<usize> {
    let mut after = Objects(first_object());
    let found = after.by_ref().any(is_ours);
    let in_order = found.then(|| after.find_map(|object| Tables::of(object)?.find(name))).flatten();
    in_order.or_else(|| {
        Objects(first_object()).filter(|object| !is_ours(object)).find_map(|o| Tables::of(o)?.find(name))
    })
}

/// The text of libc.
#[cfg(target_arch = "x86_64")]
pub fn libc_text() -> Option<&'static [u8]> {
    const LOAD: u32 = 1;
    const EXECUTABLE: u32 = 1;
    let own = |object: &&LinkMap| !is_ours(object);
    Objects(first_object()).filter(own).find_map(|object| {
        let inside = Tables::of(object)?.find(c"__errno_location")?;
        // SAFETY: a library's first mapping begins with its ELF header, which says where its program headers are; they
        // are mapped with it. Mapped text can be read.
        unsafe {
            let header = object.base as *const u8;
            let headers = header.add(header.add(32).cast::<u64>().read_unaligned() as usize);
            let size = usize::from(header.add(54).cast::<u16>().read_unaligned());
            let count = usize::from(header.add(56).cast::<u16>().read_unaligned());
            (0..count).find_map(|at| {
                let segment = headers.add(at * size);
                let word = |offset: usize| segment.add(offset).cast::<u32>().read_unaligned();
                let long = |offset: usize| segment.add(offset).cast::<u64>().read_unaligned() as usize;
                let (start, length) = (object.base.wrapping_add(long(16)), long(40));
                let holds =
                    word(0) == LOAD && word(4) & EXECUTABLE != 0 && inside.wrapping_sub(start) < length;
                holds.then(|| core::slice::from_raw_parts(start as *const u8, length))
            })
        }
    })
}

/// Where the address of a function of libc is kept once it was looked up. Without the function's name: a pointer in
/// a static is a relocation at each start of a process, and this is in memory that is not even read until then.
pub struct Real(AtomicUsize);

impl Real {
    /// Not looked up yet.
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// The address of `name`, or that of a function that fails with ENOSYS where this libc has none.
    #[inline(always)]
    pub fn address(&self, name: &CStr) -> usize {
        let at = self.0.load(Ordering::Relaxed);
        if at != 0 { at } else { self.first_address(name) }
    }

    #[cold]
    #[inline(never)]
    fn first_address(&self, name: &CStr) -> usize {
        self.look_up(name).unwrap_or(missing as *const () as usize)
    }

    /// The address of `name`, where this libc has it.
    #[cold]
    #[inline(never)]
    pub fn look_up(&self, name: &CStr) -> Option<usize> {
        let at = next(name)?;
        self.0.store(at, Ordering::Relaxed);
        Some(at)
    }
}

/// Stands for a function that this libc lacks: callers fall back as they do on an old kernel.
extern "C" fn missing() -> isize {
    set_errno(Errno::of(errno::ENOSYS));
    -1
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// Sets the calling thread's errno.
pub fn set_errno(errno: Errno) {
    // SAFETY: both libcs give each thread its own int here.
    unsafe { *__errno_location() = errno.0 };
}

/// The calling thread's errno.
pub fn get_errno() -> Errno {
    // SAFETY: as in `set_errno`.
    Errno(unsafe { *__errno_location() })
}
