//! What this machine offers: the shim's file, an agent, kernel features. It must not change anything.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::CloneFlags;

use super::known;
use super::report::{Section, Severity};
use crate::config::Age;
use crate::http::{Client, ClientError};
use crate::mounts::AgentStatus;
use crate::session;

/// The agent of `run_dir`, if one answers, and what can be said of it.
pub fn agent(run_dir: &Path) -> (Section, Option<AgentStatus>) {
    let mut section = Section::new(format!("Agent on {}", run_dir.display()));
    let status = match Client::new(run_dir).status() {
        Ok(status) => status,
        Err(ClientError::NoAgent(_)) => {
            section
                .add(Severity::Note, "none is running here (`storeshim run` starts one where it is needed)");
            return (section, None);
        }
        Err(error) => {
            section.add(Severity::Unknown, error.to_string());
            return (section, None);
        }
    };
    let up = Age(std::time::Duration::from_millis(status.uptime_ms));
    let text = format!("version {}, pid {}, up {up}", status.version, status.pid);
    if status.version == env!("CARGO_PKG_VERSION") {
        section.add(Severity::Good, text);
    } else {
        let advice = format!("restart it: this is version {}", env!("CARGO_PKG_VERSION"));
        section.advise(Severity::Warning, text, advice);
    }
    match session::heartbeat_age(run_dir) {
        Some(age) if age.as_nanos() < u128::from(storeshim_protocol::control::HEARTBEAT_STALE_NS) => {
            section.add(Severity::Good, format!("its heartbeat is {} ms old", age.as_millis()));
        }
        Some(age) => section.advise(
            Severity::Loss,
            format!("its heartbeat is {} old: programs take it for gone", Age(age)),
            "it is stopped or starved of CPU; see its log",
        ),
        None => section.add(Severity::Unknown, "its control page cannot be read"),
    }
    for mount in &status.mounts {
        let kind = if mount.identity { "identity" } else { "translated" };
        let text = format!("{} shows {} ({kind}, {})", mount.prefix, mount.url, mount.volume.state);
        match mount.volume.state.as_str() {
            "ready" | "restoring" => section.add(Severity::Good, text),
            _ => section.advise(
                Severity::Loss,
                text,
                mount.volume.reason.clone().unwrap_or_else(|| "see `storeshim status`".to_owned()),
            ),
        }
    }
    (section, Some(status))
}

/// The shim's file.
pub fn shim(found: Result<&Path, &str>) -> Section {
    let mut section = Section::new("Shim");
    let path = match found {
        Ok(path) => path,
        Err(trouble) => {
            section.add(Severity::Loss, trouble);
            return section;
        }
    };
    match known::hooked(path) {
        Ok(names) if names.is_empty() => section.advise(
            Severity::Loss,
            format!("{} hooks nothing", path.display()),
            "it is another library; name the right one in STORESHIM_SHIM",
        ),
        Ok(names) => {
            let size = path.metadata().map_or(0, |meta| meta.len() / 1024);
            section.add(
                Severity::Good,
                format!("{} ({size} KiB) stands in front of {} functions", path.display(), names.len()),
            );
        }
        Err(error) => section.add(Severity::Loss, error.to_string()),
    }
    section
}

/// What the kernel offers to this user, and whether `--net=sud` works.
pub fn kernel() -> (Section, bool) {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let mut section = Section::new(format!("Kernel {}", release.unwrap_or_default()));
    let mut offer = |is: bool, name: &str, with: &str, without: &str| match is {
        true => section.add(Severity::Good, format!("{name}: {with}")),
        false => section.add(Severity::Note, format!("no {name}: {without}")),
    };
    let sud = has_dispatch();
    offer(
        has_user_namespaces(),
        "user namespaces",
        "/storage can be bound to a tree without root",
        "identity placement needs the directory in the image",
    );
    offer(
        sud,
        "Syscall User Dispatch",
        "`storeshim run --net=sud` sees system calls past libc",
        "system calls past libc are found by the audit",
    );
    offer(has_leases(), "leases", "open writers are told apart", "open files are looked at more often");
    offer(
        has_pre_access(),
        "FAN_PRE_ACCESS",
        "programs without the shim can be made to wait for their data",
        "it needs root and Linux 6.14; only programs without the shim would need it",
    );
    (section, sud)
}

fn has_user_namespaces() -> bool {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: unshare(2) is a plain system call.
    unsafe {
        command.pre_exec(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(Into::into)
        });
    }
    command.status().is_ok()
}

/// Whether this machine has Syscall User Dispatch, and the shim can use it.
pub fn has_dispatch() -> bool {
    const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;
    // SAFETY: turns off for this thread what is not on; other kernels and machines answer EINVAL.
    let answer = unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0) };
    cfg!(target_arch = "x86_64") && answer == 0
}

fn has_leases() -> bool {
    let Ok(file) = std::env::current_exe().and_then(std::fs::File::open) else { return false };
    // SAFETY: F_SETLEASE takes an int. The lease goes with the descriptor.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
    // Who does not own the file is refused a lease, not the feature.
    answer == 0 || matches!(nix::errno::Errno::last(), nix::errno::Errno::EACCES | nix::errno::Errno::EAGAIN)
}

fn has_pre_access() -> bool {
    const FAN_CLASS_PRE_CONTENT: libc::c_uint = 0x08;
    const FAN_PRE_ACCESS: u64 = 0x0010_0000;
    let Ok(exe) = std::fs::File::open("/proc/self/exe") else { return false };
    // SAFETY: a plain system call.
    let group = unsafe { libc::fanotify_init(FAN_CLASS_PRE_CONTENT | libc::FAN_CLOEXEC, 0) };
    if group < 0 {
        return false;
    }
    // SAFETY: the descriptor is ours.
    let group = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(group) };
    let mark = libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORE_SURV;
    // SAFETY: no path: the mark is on the descriptor's own file. An ignore mark stops nobody.
    unsafe {
        libc::fanotify_mark(group.as_raw_fd(), mark, FAN_PRE_ACCESS, exe.as_raw_fd(), std::ptr::null()) == 0
    }
}
