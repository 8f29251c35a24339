//! What the shim will see of one program: its kind, its libc, what it and its libraries do past libc. It must not start
//! the program.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::elf::{Elf, Machine};
use super::known::Exclusions;
use super::libc::Libc;
use super::load::{self, Loading};
use super::raw::{self, Raw};
use super::report::{Section, Severity};
use super::script::{self, Resolved};
use super::search::{self, Closure};

const AUDIT: &str = "its changes are found by the audit only (at most audit_interval later, and at every flush); an \
                     fsync of it is a local one";
const IDENTITY: &str =
    "place the tree at the prefix itself (placement = \"identity\"), so that it finds its files";

/// What is known of this machine that programs depend on.
#[derive(Clone, Copy, Debug)]
pub struct Nets {
    /// `storeshim run --net=sud` works here.
    pub sud: bool,
}

/// Examines the program that `command` starts. `shim` is the library that would be preloaded, if there is one.
pub fn examine(command: &OsStr, shim: Option<&Path>, nets: Nets) -> Section {
    let mut section = Section::new(command.to_string_lossy());
    match script::resolve(command) {
        Ok(resolved) => examine_resolved(&mut section, &resolved, shim, nets),
        Err(trouble) => section.add(Severity::Unknown, trouble),
    }
    section
}

fn examine_resolved(section: &mut Section, resolved: &Resolved, shim: Option<&Path>, nets: Nets) {
    let program = resolved.program();
    let names: Vec<String> = resolved.chain.iter().map(|path| path.display().to_string()).collect();
    match names.as_slice() {
        [one] if *one == section.title => {}
        [one] => section.add(Severity::Note, format!("it is {one}")),
        chain => section.add(Severity::Note, format!("a script: {}", chain.join(" → "))),
    }
    let elf = match Elf::read(program) {
        Ok(elf) => elf,
        Err(error) => return section.add(Severity::Unknown, error.to_string()),
    };
    if elf.machine != Machine::HERE {
        return section.advise(
            Severity::Loss,
            format!("for another machine ({}); the shim is for {}", elf.machine, Machine::HERE),
            format!("{AUDIT}; {IDENTITY}"),
        );
    }
    let Some(interpreter) = elf.interpreter.clone() else {
        let kind = match (elf.is_go(), elf.is_static_pie()) {
            (true, _) => "static, built by Go",
            (false, true) => "static (static-pie)",
            (false, false) => "static",
        };
        section.advise(
            Severity::Loss,
            format!("{kind}: no dynamic loader, so the shim is never loaded and sees nothing of it"),
            format!("{IDENTITY}; {AUDIT}"),
        );
        return describe_raw(section, "the program", &raw::raw_calls(&elf), false, nets);
    };
    let closure = search::closure(&elf);
    let libc = libc_of(&interpreter, &closure);
    let go = if elf.is_go() { ", built by Go with cgo" } else { "" };
    section.add(Severity::Good, format!("dynamic, {libc}, {} libraries{go}", closure.found.len()));
    for absent in &closure.absent {
        section.advise(
            Severity::Unknown,
            format!("it needs {absent}, which was not found"),
            "install it, or set LD_LIBRARY_PATH as the program is started with it",
        );
    }
    privileges(section, program);
    loading(section, &interpreter, program, shim);
    let mut seen: Vec<(String, Raw)> = vec![("the program itself".to_owned(), raw::raw_calls(&elf))];
    for library in closure.found.iter().filter(|library| !raw::is_part_of_libc(library)) {
        seen.push((library.path.display().to_string(), raw::raw_calls(library)));
    }
    let silent = seen.iter().all(|(_, raw)| raw.is_empty());
    for (name, raw) in &seen {
        describe_raw(section, name, raw, true, nets);
    }
    if silent {
        section.add(Severity::Good, "no system calls past libc, in it or in its libraries");
    }
    imports(section, &elf);
}

fn libc_of(interpreter: &Path, closure: &Closure) -> Libc {
    let own = closure.found.iter().map(Libc::of).find(|libc| !matches!(libc, Libc::Other));
    own.unwrap_or_else(|| Libc::of_loader(interpreter))
}

/// Programs that the kernel starts with AT_SECURE: their loader takes no LD_PRELOAD from the environment (ld.so(8),
/// "Secure-execution mode").
fn privileges(section: &mut Section, program: &Path) {
    let Ok(meta) = program.metadata() else { return };
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let by_user = meta.mode() & 0o4000 != 0 && meta.uid() != uid.as_raw();
    let by_group = meta.mode() & 0o2000 != 0 && meta.gid() != gid.as_raw();
    let by_capabilities = has_capabilities(program) && !uid.is_root();
    let what = match (by_user, by_group, by_capabilities) {
        (true, ..) => format!("setuid (of user {})", meta.uid()),
        (_, true, _) => format!("setgid (of group {})", meta.gid()),
        (_, _, true) => "it has file capabilities".to_owned(),
        _ if meta.mode() & 0o6000 != 0 || has_capabilities(program) => {
            return section.add(
                Severity::Warning,
                "setuid, setgid or with file capabilities: started by another user it runs without the shim",
            );
        }
        _ => return,
    };
    section.advise(
        Severity::Loss,
        format!("{what}: the loader ignores LD_PRELOAD, so the shim sees nothing of it"),
        format!("start it from a process that has these rights already; {AUDIT}"),
    );
}

fn has_capabilities(program: &Path) -> bool {
    let Ok(path) = CString::new(program.as_os_str().as_bytes()) else { return false };
    // SAFETY: two C strings, and no buffer: only the size is asked for.
    let size =
        unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    size > 0
}

fn loading(section: &mut Section, interpreter: &Path, program: &Path, shim: Option<&Path>) {
    let Some(shim) = shim else {
        return section.add(Severity::Unknown, "whether the shim loads: there is no shim to try");
    };
    match load::try_loading(interpreter, program, shim) {
        Loading::Loaded => section.add(Severity::Good, "the shim loads (tried with its own loader)"),
        Loading::Refused(words) => section.advise(
            Severity::Loss,
            format!("the shim does not load: {words}"),
            "the program runs without it, after a warning of the loader at most; look at the shim's path and its mode",
        ),
        Loading::Unclear(why) => section.add(Severity::Unknown, format!("whether the shim loads: {why}")),
    }
}

fn describe_raw(section: &mut Section, name: &str, raw: &Raw, dynamic: bool, nets: Nets) {
    if !raw.calls.is_empty() {
        let calls: Vec<&str> = raw.calls.iter().copied().collect();
        let text = format!("{name} makes system calls past libc: {}", calls.join(", "));
        match (dynamic, nets.sud) {
            (true, true) => section.advise(
                Severity::Loss,
                text,
                format!("`storeshim run --net=sud` sees them; without it {IDENTITY}, and {AUDIT}"),
            ),
            (true, false) => section.advise(Severity::Loss, text, format!("{IDENTITY}; {AUDIT}")),
            (false, _) => section.add(Severity::Note, text),
        }
    }
    if raw.io_uring {
        let text = format!("{name} sets up io_uring past libc: what it does there nobody sees");
        let how = if nets.sud && dynamic {
            "`storeshim run --net=sud` answers ENOSYS, so that it does without; or set kernel.io_uring_disabled=2"
        } else {
            "set kernel.io_uring_disabled=2, so that it does without"
        };
        section.advise(Severity::Loss, text, how);
    }
    if raw.unknown > 0 && dynamic {
        let how = if nets.sud { "`storeshim run --net=sud` sees them; without it, " } else { "" };
        section.advise(
            Severity::Unknown,
            format!("{name} makes {} system calls past libc whose number cannot be told", raw.unknown),
            format!(
                "{how}if they change files in a mount, the agent names the program in `storeshim status`"
            ),
        );
    }
}

/// Functions that the program itself uses, that reach files, and that the shim leaves to libc.
fn imports(section: &mut Section, elf: &Elf) {
    let exclusions = Exclusions::embedded();
    let mut lost: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in &elf.imports {
        if let Some(exclusion) = exclusions.of(name).filter(|exclusion| exclusion.loses) {
            lost.entry(exclusion.reason).or_default().push(name);
        }
    }
    if elf.imports.contains("syscall") {
        section.add(
            Severity::Good,
            "it uses libc's syscall(): the shim looks at the numbers, and refuses io_uring",
        );
    }
    for (reason, names) in lost {
        section.add(Severity::Note, format!("{} left to libc: {reason}", names.join(", ")));
    }
}
