//! One ELF file: what the loader and the kernel make of it (class, interpreter, libraries, symbols), and where its code
//! and its pointers to code are. It must not look for other files, and not judge.
//!
//! Sources: elf(5), the System V ABI with its RELR extension; for Go, the sections that its linker makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader, Rela, SectionHeader, Sym};

type Header = FileHeader64<Endianness>;

/// A file larger than this is not looked into.
const SIZE_MAX: u64 = 2 << 30;

/// Why a file cannot be read as an ELF file.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It cannot be read at all.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// It is something else, or damaged.
    #[error("{} is not an ELF file that can be understood: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Processor that a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// AMD64.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
    /// Anything else, by its ELF number; all 32-bit files count as this.
    Other(u16),
}

impl Machine {
    /// The machine that this program runs on.
    pub const HERE: Self = if cfg!(target_arch = "x86_64") {
        Self::X86_64
    } else if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::Other(0)
    };
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::X86_64 => write!(f, "x86-64"),
            Self::Aarch64 => write!(f, "aarch64"),
            Self::Other(3) => write!(f, "32-bit x86"),
            Self::Other(40) => write!(f, "32-bit Arm"),
            Self::Other(number) => write!(f, "ELF machine {number}"),
        }
    }
}

/// A part of the address space that comes from the file.
#[derive(Clone, Copy, Debug)]
struct Segment {
    address: u64,
    offset: usize,
    size: usize,
}

/// A stretch of code.
#[derive(Clone, Copy, Debug)]
pub struct Code<'a> {
    /// Address of its first byte.
    pub address: u64,
    /// The instructions.
    pub bytes: &'a [u8],
}

/// A function that others may call by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Name without a version.
    pub name: String,
    /// Address of the function, or of its resolver.
    pub address: u64,
}

/// What the dynamic section says.
#[derive(Clone, Debug, Default)]
struct Dynamic {
    present: bool,
    soname: Option<String>,
    needed: Vec<String>,
    rpath: Vec<String>,
    runpath: Vec<String>,
    pie: bool,
}

/// An ELF file, read whole.
#[derive(Debug)]
pub struct Elf {
    /// Where it was read.
    pub path: PathBuf,
    /// Processor.
    pub machine: Machine,
    /// The dynamic loader that it asks for.
    pub interpreter: Option<PathBuf>,
    /// Functions that it offers, in the order of the symbol table; one name may come more than once.
    pub exports: Vec<Export>,
    /// Functions that it wants from other libraries.
    pub imports: BTreeSet<String>,
    bytes: Vec<u8>,
    segments: Vec<Segment>,
    code: Vec<(u64, usize, usize)>,
    eh_frame_hdr: Option<u64>,
    dynamic: Dynamic,
    is_go: bool,
    slots: BTreeMap<u64, u64>,
}

impl Elf {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, is no ELF file, or is damaged.
    pub fn read(path: &Path) -> Result<Self, ElfError> {
        let io = |error| ElfError::Io { path: path.to_owned(), error };
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        if size > SIZE_MAX {
            return Err(io(std::io::ErrorKind::FileTooLarge.into()));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        file.take(SIZE_MAX).read_to_end(&mut bytes).map_err(io)?;
        Self::parse(path, bytes)
            .map_err(|reason| ElfError::Format { path: path.to_owned(), reason: reason.to_string() })
    }

    /// Whether a file that begins with `head` is an ELF file.
    pub fn is_elf(head: &[u8]) -> bool {
        head.starts_with(b"\x7fELF")
    }

    fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self, object::Error> {
        let mut this = Self {
            path: path.to_owned(),
            machine: Machine::Other(0),
            interpreter: None,
            exports: Vec::new(),
            imports: BTreeSet::new(),
            bytes: Vec::new(),
            segments: Vec::new(),
            code: Vec::new(),
            eh_frame_hdr: None,
            dynamic: Dynamic::default(),
            is_go: false,
            slots: BTreeMap::new(),
        };
        if Self::is_elf(&bytes) && bytes.get(4) == Some(&elf::ELFCLASS32.0) {
            let machine = bytes.get(18..20).and_then(|field| field.try_into().ok()).map(u16::from_le_bytes);
            this.machine = Machine::Other(machine.unwrap_or(0));
            return Ok(this);
        }
        this.read_headers(&bytes)?;
        this.bytes = bytes;
        Ok(this)
    }

    fn read_headers(&mut self, bytes: &[u8]) -> Result<(), object::Error> {
        let header = Header::parse(bytes)?;
        let endian = header.endian()?;
        self.machine = match header.e_machine(endian) {
            elf::EM_X86_64 => Machine::X86_64,
            elf::EM_AARCH64 => Machine::Aarch64,
            other => Machine::Other(other.0),
        };
        for segment in header.program_headers(endian, bytes)? {
            match segment.p_type(endian) {
                elf::PT_LOAD => self.segments.push(Segment {
                    address: segment.p_vaddr(endian),
                    offset: usize::try_from(segment.p_offset(endian)).unwrap_or(usize::MAX),
                    size: usize::try_from(segment.p_filesz(endian)).unwrap_or(0),
                }),
                elf::PT_INTERP => {
                    let name = segment.interpreter(endian, bytes)?;
                    self.interpreter = name.map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name)));
                }
                elf::PT_GNU_EH_FRAME => self.eh_frame_hdr = Some(segment.p_vaddr(endian)),
                _ => {}
            }
            if segment.p_type(endian) == elf::PT_LOAD && segment.p_flags(endian).0 & elf::PF_X.0 != 0 {
                let (offset, size) = segment.file_range(endian);
                self.code.push((
                    segment.p_vaddr(endian),
                    usize::try_from(offset).unwrap_or(usize::MAX),
                    usize::try_from(size).unwrap_or(0),
                ));
            }
        }
        self.read_sections(bytes, header, endian)
    }

    fn read_sections(
        &mut self,
        bytes: &[u8],
        header: &Header,
        endian: Endianness,
    ) -> Result<(), object::Error> {
        let sections = header.sections(endian, bytes)?;
        let mut code = Vec::new();
        for section in sections.iter() {
            let name = sections.section_name(endian, section).unwrap_or_default();
            self.is_go |= matches!(name, b".go.buildinfo" | b".note.go.buildid" | b".gopclntab");
            let executable = section.sh_flags(endian).0 & elf::SHF_EXECINSTR.0 != 0;
            if executable && section.sh_type(endian) == elf::SHT_PROGBITS {
                code.push((
                    section.sh_addr(endian),
                    usize::try_from(section.sh_offset(endian)).unwrap_or(usize::MAX),
                    usize::try_from(section.sh_size(endian)).unwrap_or(0),
                ));
            }
        }
        // Sections are finer than segments: no headers and tables between the instructions.
        if !code.is_empty() {
            self.code = code;
        }
        let dynamic = sections.dynamic_table(endian, bytes)?;
        for entry in dynamic.iter() {
            self.dynamic.present = true;
            let text = || dynamic.string(entry).ok().map(|text| String::from_utf8_lossy(text).into_owned());
            let list = || text().map(|text| text.split(':').map(str::to_owned).collect::<Vec<_>>());
            match entry.tag {
                elf::DT_NEEDED => self.dynamic.needed.extend(text()),
                elf::DT_SONAME => self.dynamic.soname = text(),
                elf::DT_RPATH => self.dynamic.rpath = list().unwrap_or_default(),
                elf::DT_RUNPATH => self.dynamic.runpath = list().unwrap_or_default(),
                elf::DT_FLAGS_1 => self.dynamic.pie = entry.val & elf::DF_1_PIE.0 != 0,
                _ => {}
            }
        }
        let symbols = sections.symbols(endian, bytes, elf::SHT_DYNSYM)?;
        let mut addresses = Vec::new();
        for symbol in symbols.iter() {
            addresses.push(symbol.st_value(endian));
            let Ok(name) = symbols.symbol_name(endian, symbol) else { continue };
            let name = String::from_utf8_lossy(name).into_owned();
            let kind = symbol.st_type();
            if symbol.is_undefined(endian) {
                self.imports.insert(name);
            } else if (kind == elf::STT_FUNC || kind == elf::STT_GNU_IFUNC)
                && symbol.st_bind() != elf::STB_LOCAL
            {
                self.exports.push(Export { name, address: symbol.st_value(endian) });
            }
        }
        for section in sections.iter() {
            if let Some((relocations, _)) = section.rela(endian, bytes)? {
                for relocation in relocations {
                    let symbol = relocation.symbol(endian, false).and_then(|at| addresses.get(at.0));
                    let addend = relocation.r_addend(endian) as u64;
                    let target = addend.wrapping_add(symbol.copied().unwrap_or(0));
                    self.slots.insert(relocation.r_offset(endian), target);
                }
            }
            if section.sh_type(endian) == elf::SHT_RELR {
                let (words, _) = section.data(endian, bytes)?.as_chunks();
                for place in relr_places(words.iter().map(|word| u64::from_le_bytes(*word))) {
                    if let Some(target) = self.word_in(bytes, place) {
                        self.slots.insert(place, target);
                    }
                }
            }
        }
        Ok(())
    }

    fn word_in(&self, bytes: &[u8], address: u64) -> Option<u64> {
        let bytes = self.bytes_in(bytes, address, 8)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    }

    fn bytes_in<'a>(&self, bytes: &'a [u8], address: u64, len: usize) -> Option<&'a [u8]> {
        self.segments.iter().find_map(|segment| {
            let into = usize::try_from(address.checked_sub(segment.address)?).ok()?;
            let end = into.checked_add(len).filter(|end| *end <= segment.size)?;
            bytes.get(segment.offset.checked_add(into)?..segment.offset.checked_add(end)?)
        })
    }

    /// The bytes at an address of the file's own address space.
    pub fn bytes_at(&self, address: u64, len: usize) -> Option<&[u8]> {
        self.bytes_in(&self.bytes, address, len)
    }

    /// Executable stretches.
    pub fn code(&self) -> impl Iterator<Item = Code<'_>> {
        self.code.iter().filter_map(|&(address, offset, size)| {
            let bytes = self.bytes.get(offset..offset.checked_add(size)?)?;
            Some(Code { address, bytes })
        })
    }

    /// Whether an address is one of an instruction.
    pub fn is_code(&self, address: u64) -> bool {
        self.code.iter().any(|&(start, _, size)| address >= start && address - start < size as u64)
    }

    /// What the loader will put into the word at `address`: an address in this file.
    pub fn pointer_at(&self, address: u64) -> Option<u64> {
        self.slots.get(&address).copied()
    }

    /// All words that the loader fills, with the address in this file that it puts there.
    pub fn pointers(&self) -> impl Iterator<Item = (u64, u64)> {
        self.slots.iter().map(|(&place, &target)| (place, target))
    }

    /// Address of the table that says where functions begin (`.eh_frame_hdr`).
    pub fn eh_frame_hdr(&self) -> Option<u64> {
        self.eh_frame_hdr
    }

    /// Everything in the file, for what is searched by its bytes.
    pub fn contents(&self) -> &[u8] {
        &self.bytes
    }

    /// The name that others know this library by.
    pub fn soname(&self) -> Option<&str> {
        self.dynamic.soname.as_deref()
    }

    /// Libraries that the loader has to find.
    pub fn needed(&self) -> &[String] {
        &self.dynamic.needed
    }

    /// Directories for this file's libraries and for theirs; not looked at where there is a RUNPATH.
    pub fn rpath(&self) -> &[String] {
        if self.dynamic.runpath.is_empty() { &self.dynamic.rpath } else { &[] }
    }

    /// Directories for this file's libraries only.
    pub fn runpath(&self) -> &[String] {
        &self.dynamic.runpath
    }

    /// Whether no dynamic loader is involved in a start of this program.
    pub fn is_static(&self) -> bool {
        self.interpreter.is_none()
    }

    /// A static program that can be loaded anywhere.
    pub fn is_static_pie(&self) -> bool {
        self.is_static() && self.dynamic.pie
    }

    /// Built by the Go tool chain.
    pub fn is_go(&self) -> bool {
        self.is_go
    }
}

/// The places that a table of compressed relative relocations names: an even word is a place, an odd one a map of the
/// 63 words behind.
fn relr_places(words: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut places = Vec::new();
    let mut next = 0u64;
    for word in words {
        if word & 1 == 0 {
            places.push(word);
            next = word.wrapping_add(8);
            continue;
        }
        places.extend(
            (0..63u64)
                .filter(|bit| word >> (bit + 1) & 1 == 1)
                .map(|bit| next.wrapping_add(bit.wrapping_mul(8))),
        );
        next = next.wrapping_add(63 * 8);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_relocations_are_spread_out() {
        let places = relr_places([0x1000, 0b1011, 0x5000].into_iter());
        assert_eq!(places, [0x1000, 0x1008, 0x1018, 0x5000]);
        let after_a_full_map = relr_places([0x1000, 1, 0b11].into_iter());
        assert_eq!(after_a_full_map, [0x1000, 0x1008 + 63 * 8]);
    }

    #[test]
    fn rubbish_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", &[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 9, 9, 9]] {
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(Elf::read(&path), Err(ElfError::Format { .. })), "{bytes:?}");
        }
        let mut damaged = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        damaged.truncate(5000);
        std::fs::write(&path, damaged).unwrap();
        assert!(Elf::read(&path).is_err());
        assert!(matches!(Elf::read(&dir.path().join("absent")), Err(ElfError::Io { .. })));
    }
}
