//! What the tests need of the machine: says what is missing, and installs it where it may.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::workspace;

/// A file that must be there, relative to a directory of PATH or absolute, and the Debian package that has it.
const NEEDS: [(&str, &str); 24] = [
    ("sqlite3", "sqlite3"),
    ("git", "git"),
    ("/usr/bin/python3", "python3"),
    ("tar", "tar"),
    ("rsync", "rsync"),
    ("gcc", "gcc"),
    ("make", "make"),
    ("g++", "g++"),
    ("dash", "dash"),
    ("java", "default-jdk-headless"),
    ("javac", "default-jdk-headless"),
    ("/usr/share/postgresql", "postgresql"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("strace", "strace"),
    ("openssl", "openssl"),
    ("musl-gcc", "musl-tools"),
    ("busybox", "busybox-static"),
    ("perl", "perl"),
    ("flock", "util-linux"),
    ("setsid", "util-linux"),
    ("find", "findutils"),
    ("/usr/include/linux/fs.h", "linux-libc-dev"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
];
/// Package of Python's module `venv`, which is no file at a place of its own.
const VENV: &str = "python3-venv";
/// The Node that the Worker's tools need at least, and the one that is installed where there is none: Debian's may be older.
const NODE_LEAST: (u32, u32) = (20, 3);
const NODE: &str = "22";
/// Where it is, in the folder of our tools.
const NODE_PLACE: &str = "node";
/// Version of the test runner that is installed where there is none.
const NEXTEST: &str = "0.9.143";

/// Makes sure that everything is there. As another user than root it only says what to type.
pub fn provide(sh: &Shell) -> Result<()> {
    let mut packages: Vec<&str> =
        NEEDS.iter().filter(|(file, _)| !is_there(file)).map(|(_, package)| *package).collect();
    if cmd!(sh, "/usr/bin/python3 -c 'import ensurepip, venv'")
        .quiet()
        .ignore_stdout()
        .ignore_stderr()
        .run()
        .is_err()
    {
        packages.push(VENV);
    }
    packages.dedup();
    install(sh, &packages)?;
    if cmd!(sh, "cargo nextest --version")
        .env("PATH", path_with_tools()?)
        .quiet()
        .ignore_stdout()
        .ignore_stderr()
        .run()
        .is_err()
    {
        let tools = tools()?;
        // Not optimised: it waits for tests all day, and this builds in a fraction of the time.
        cmd!(sh, "cargo install --quiet --locked --debug --root {tools} cargo-nextest@{NEXTEST}")
            .run()
            .context("cannot install the test runner")?;
    }
    Ok(())
}

/// Installs what the Worker and its runtime need: npm, a Node that is new enough, and the packages.
///
/// # Errors
/// Where npm cannot be had, or cannot install.
pub fn provide_worker(sh: &Shell) -> Result<()> {
    provide_one(sh, "npm", "npm")?;
    if !node_will_do(sh)? {
        let node = tools()?.join(NODE_PLACE);
        let package =
            format!("node-linux-{}@{NODE}", if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" });
        println!("installing Node {NODE}, which is missing here or too old");
        sh.create_dir(&node)?;
        cmd!(sh, "npm install --prefix {node} --no-save --silent --no-audit --no-fund {package}")
            .quiet()
            .run()
            .with_context(|| {
                format!("cannot install Node {NODE}; install Node 20.3 or later, then try again")
            })?;
        // By the same name on every architecture, for PATH.
        sh.copy_file(
            node.join("node_modules").join(package_name(&package)).join("bin/node"),
            node.join("node"),
        )?;
    }
    let worker = workspace::root().join("worker");
    if worker.join("node_modules/@cloudflare/workerd-linux-64").exists() {
        return Ok(());
    }
    println!("installing the Worker's packages and its runtime");
    let _in = sh.push_dir(worker);
    // Not `npm ci`: that insists on packages for machines that this one is not, which a mirror may not have.
    cmd!(sh, "npm install --no-save --silent --no-audit --no-fund")
        .env("PATH", path_with_tools()?)
        .quiet()
        .run()
        .context("cannot install the Worker's packages; see what npm says")
}

fn package_name(package: &str) -> &str {
    package.split_once('@').map_or(package, |(name, _)| name)
}

/// Whether the Node in our PATH runs the Worker's tools: its version is at least 20.3.
fn node_will_do(sh: &Shell) -> Result<bool> {
    let asked = cmd!(sh, "node --version").env("PATH", path_with_tools()?).quiet().ignore_stderr().read();
    let Ok(version) = asked else { return Ok(false) };
    let mut numbers = version.trim_start_matches('v').split('.').map(|number| number.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Ok(version >= NODE_LEAST)
}

/// Makes sure that `file` is there, which is in `package`. As another user than root it only says what to type.
pub fn provide_one(sh: &Shell, file: &str, package: &str) -> Result<()> {
    if is_there(file) { Ok(()) } else { install(sh, &[package]) }
}

fn install(sh: &Shell, packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get update && apt-get install -y {}", packages.join(" "));
    if !is_root(sh)? {
        bail!("this needs more than there is; type: sudo sh -c '{install}'");
    }
    cmd!(sh, "sh -c {install}")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()
        .with_context(|| format!("cannot install {}", packages.join(" ")))
}

/// PATH with our own tools in it: behind the machine's, but for a Node, which is there only where the machine's is too old.
pub fn path_with_tools() -> Result<OsString> {
    let before = std::env::var_os("PATH").unwrap_or_default();
    let tools = tools()?;
    let paths =
        [tools.join(NODE_PLACE)].into_iter().chain(std::env::split_paths(&before)).chain([tools.join("bin")]);
    Ok(std::env::join_paths(paths)?)
}

/// Where tools are installed that the machine does not have.
fn tools() -> Result<PathBuf> {
    Ok(workspace::target()?.join("tools"))
}

fn is_there(file: &str) -> bool {
    if Path::new(file).is_absolute() {
        return Path::new(file).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(file).exists())
}

fn is_root(sh: &Shell) -> Result<bool> {
    Ok(cmd!(sh, "id -u").quiet().read()? == "0")
}
