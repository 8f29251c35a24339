use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::coverage::Coverage;
use super::elf::Elf;
use super::libc::Libc;
use super::load::{Loading, try_loading};
use super::program::{Nets, examine};
use super::report::{Section, Severity};
use super::{numbers, reach, search};

/// Programs and libraries that are compiled here.
struct Workshop(tempfile::TempDir);

impl Workshop {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn make(&self, name: &str, compiler: &str, flags: &[&str], source: &str) -> PathBuf {
        let file = self.path(&format!("{name}.c"));
        std::fs::write(&file, source).unwrap();
        let path = self.path(name);
        // Libraries stand behind the source, or nothing is taken from them.
        let made = Command::new(compiler).arg("-o").arg(&path).arg(&file).args(flags).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        path
    }

    fn library(&self, name: &str, source: &str) -> PathBuf {
        self.make(name, "cc", &["-shared", "-fPIC", "-nostdlib", "-O1"], source)
    }
}

const EMPTY: &str = "int main(void) { return 0; }";

/// A system call without libc.
const RAW: &str = r#"
static long call(long n, long a, long b, long c) {
    long answer;
#if defined(__x86_64__)
    __asm__ volatile("syscall" : "=a"(answer) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
#else
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    answer = x0;
#endif
    return answer;
}
"#;

fn with_raw(rest: &str) -> String {
    format!("#include <sys/syscall.h>\n{RAW}{rest}")
}

#[track_caller]
fn told(section: &Section, severity: Severity, words: &str) {
    let is_told =
        section.findings.iter().any(|finding| finding.severity == severity && finding.text.contains(words));
    assert!(is_told, "no {severity:?} about `{words}`: {section:#?}");
}

fn examined(program: &Path, shim: Option<&Path>) -> Section {
    examine(program.as_os_str(), shim, Nets { sud: true })
}

#[test]
fn a_dynamic_program_is_fine() {
    let shop = Workshop::new();
    let shim = shop.library("libshim.so", "int open(void) { return -1; }");
    let section = examined(&shop.make("plain", "cc", &[], EMPTY), Some(&shim));
    told(&section, Severity::Good, "dynamic, glibc 2.");
    told(&section, Severity::Good, "the shim loads");
    told(&section, Severity::Good, "no system calls past libc");
    assert_eq!(section.worst(), Severity::Good);
}

#[test]
fn static_programs_are_lost() {
    let shop = Workshop::new();
    let section = examined(&shop.make("static", "cc", &["-static"], EMPTY), None);
    told(&section, Severity::Loss, "static: no dynamic loader");
    let section = examined(&shop.make("static-pie", "cc", &["-static-pie"], EMPTY), None);
    told(&section, Severity::Loss, "static-pie");
}

#[test]
fn musl_is_known() {
    let shop = Workshop::new();
    let program = shop.make("musl", "musl-gcc", &[], EMPTY);
    let shim = shop.library("libshim.so", "int open(void) { return -1; }");
    let section = examined(&program, Some(&shim));
    told(&section, Severity::Good, "dynamic, musl 1.");
    told(&section, Severity::Good, "the shim loads");
    let elf = Elf::read(&program).unwrap();
    assert_eq!(Libc::of_loader(elf.interpreter.as_deref().unwrap()), Libc::Musl(None));
}

#[test]
fn system_calls_past_libc_are_named() {
    let shop = Workshop::new();
    let main =
        "int main(void) { call(SYS_renameat2, 0, 0, 0); return (int)call(SYS_io_uring_setup, 0, 0, 0); }";
    let program = shop.make("raw", "cc", &["-O1"], &with_raw(main));
    let section = examined(&program, None);
    told(&section, Severity::Loss, "the program itself makes system calls past libc: renameat2");
    told(&section, Severity::Loss, "io_uring");
    let advice = section.findings.iter().filter_map(|finding| finding.advice.as_deref());
    assert!(advice.clone().any(|advice| advice.contains("--net=sud")));
    // What is harmless is not told.
    let main = "int main(void) { return (int)call(SYS_getpid, 0, 0, 0); }";
    let section = examined(&shop.make("harmless", "cc", &["-O1"], &with_raw(main)), None);
    told(&section, Severity::Good, "no system calls past libc");
    // A function that makes any call cannot be told.
    let main = "int main(int n, char **v) { return (int)call(n + 1, (long)v, 0, 0); }";
    let section = examined(&shop.make("any", "cc", &["-O1"], &with_raw(main)), None);
    told(&section, Severity::Unknown, "makes 1 system calls past libc whose number cannot be told");
}

#[test]
fn libraries_are_found_and_named() {
    let shop = Workshop::new();
    let raw = with_raw("long change(void) { return call(SYS_unlinkat, 0, 0, 0); }");
    let library = shop.library("libraw-own.so", &raw);
    let source = "long change(void); int main(void) { return (int)change(); }";
    let library = library.to_string_lossy().into_owned();
    let flags = ["-Wl,-rpath,$ORIGIN", "-Wl,-soname,x", library.as_str()];
    // Without a soname the library is needed by its path; given one it has to be searched.
    let by_path = shop.make("by-path", "cc", &flags[2..], source);
    told(&examined(&by_path, None), Severity::Loss, "libraw-own.so makes system calls past libc: unlinkat");
    let named = shop.make(
        "libnamed.so",
        "cc",
        &["-shared", "-fPIC", "-nostdlib", "-O1", "-Wl,-soname,libnamed.so"],
        &raw,
    );
    let named = named.to_string_lossy().into_owned();
    let program = shop.make("by-origin", "cc", &[flags[0], named.as_str()], source);
    told(&examined(&program, None), Severity::Loss, "libnamed.so makes system calls past libc: unlinkat");
    let lost = shop.make("no-origin", "cc", &[named.as_str()], source);
    told(&examined(&lost, None), Severity::Unknown, "it needs libnamed.so, which was not found");
    assert_eq!(search::closure(&Elf::read(&lost).unwrap()).absent, ["libnamed.so"]);
}

#[test]
fn privileged_programs_are_lost() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not tried: only root can make this situation");
        return;
    }
    let shop = Workshop::new();
    let program = shop.make("setuid", "cc", &[], EMPTY);
    std::os::unix::fs::chown(&program, Some(12345), None).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    told(&examined(&program, None), Severity::Loss, "setuid (of user 12345)");
    std::os::unix::fs::chown(&program, Some(0), None).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    told(&examined(&program, None), Severity::Warning, "started by another user");
}

#[test]
fn a_shim_that_does_not_load_is_noticed() {
    let shop = Workshop::new();
    let program = shop.make("plain", "cc", &[], EMPTY);
    let interpreter = Elf::read(&program).unwrap().interpreter.unwrap();
    let text = shop.path("libtext.so");
    std::fs::write(&text, "no library").unwrap();
    for shim in [&text, &shop.path("absent.so")] {
        assert!(matches!(try_loading(&interpreter, &program, shim), Loading::Refused(_)), "{shim:?}");
        told(&examined(&program, Some(shim)), Severity::Loss, "the shim does not load");
    }
    let nowhere = try_loading(Path::new("/no/loader"), &program, &text);
    assert!(matches!(nowhere, Loading::Unclear(_)), "{nowhere:?}");
}

#[test]
fn what_is_no_program_cannot_be_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, [0xff, 0xfe, 0]).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    told(&examined(&file, None), Severity::Unknown, "neither an ELF file nor a script");
    std::fs::write(&file, b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0").unwrap();
    told(&examined(&file, None), Severity::Loss, "32-bit x86");
}

/// Ways to a system call that a call graph of direct calls alone would lose.
const WAYS: &str = r"
static long deep(long a) { return call(SYS_unlinkat, a, 0, 0); }
static long other(long a) { return call(SYS_getpid, a, 0, 0); }
static long (*const table[2])(long) = { other, deep };
__attribute__((noinline)) static long apply(long (*volatile f)(long), long a) { return f(a); }
__attribute__((noinline)) static long make(long n, long a) { return call(n, a, 0, 0) + 1; }
long direct(long a) { return deep(a) + 1; }
long by_address(long a) { return apply(deep, a) + 1; }
long by_table(long a, int n) { return table[n & 1](a) + 1; }
long by_number(long a) { return make(SYS_mkdirat, a) + 2; }
long through(long a) { return direct(a) + 3; }
long dead(long a) { return direct(a) + 5; }
long behind_dead(long a) { return dead(a) + 7; }
long nothing(long a) { return make(SYS_getpid, a) + other(a); }
";

#[test]
fn every_way_to_a_system_call_is_found() {
    let shop = Workshop::new();
    for unwind in ["-fasynchronous-unwind-tables", "-fno-asynchronous-unwind-tables"] {
        let flags = ["-shared", "-fPIC", "-nostdlib", "-O1", "-fno-inline", "-Wl,-Bsymbolic", unwind];
        let elf = Elf::read(&shop.make("libways.so", "cc", &flags, &with_raw(WAYS))).unwrap();
        let reach = reach::reach(&elf, &BTreeSet::from(["dead".to_owned()]));
        let reached = |name: &str| -> Vec<&str> {
            let numbers = reach.exports.get(name).unwrap().iter();
            numbers.filter_map(|number| numbers::call(elf.machine, number)).map(|call| call.name).collect()
        };
        for name in ["direct", "by_address", "by_table", "through"] {
            assert_eq!(reached(name), ["unlinkat"], "{name} {unwind}");
        }
        assert_eq!(reached("by_number"), ["mkdirat"], "{unwind}");
        for name in ["dead", "behind_dead", "nothing"] {
            assert!(reached(name).is_empty(), "{name} {unwind}: {:?}", reached(name));
        }
        let unlinkat =
            reach.exports.get("direct").unwrap().iter().find(|number| {
                numbers::call(elf.machine, *number).is_some_and(|call| call.name == "unlinkat")
            });
        let way = reach.way("through", unlinkat.unwrap());
        assert_eq!(way[..2], ["through", "direct"]);
    }
}

/// The canary of coverage: a shim that leaves something out is found out, and so is an exclusion of what it hooks.
#[test]
fn a_hole_in_the_shim_is_found() {
    let shop = Workshop::new();
    let libc = shop
        .library("libc-new.so", &with_raw("long shiny_new_open(void) { return call(SYS_openat, 0, 0, 0); }"));
    let shim = shop.library("libshim.so", "int open(void) { return -1; } int tee(void) { return -1; }");
    let coverage = Coverage::of(&shim, &[libc]).unwrap();
    let missing = &coverage.rows.first().unwrap().missing;
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].name, "shiny_new_open");
    assert!(missing[0].why.contains("openat"), "{}", missing[0].why);
    // What no libc at hand has counts, too.
    let elsewhere = coverage.rows.last().unwrap();
    assert!(elsewhere.missing.iter().any(|missing| missing.name == "openat2"));
    assert!(elsewhere.hooked.contains("open"));
    assert_eq!(coverage.contradictions, ["tee"]);
    assert!(coverage.stale.iter().any(|pattern| pattern == "aio_cancel"));
    assert!(coverage.totals().2 > 100);
}
