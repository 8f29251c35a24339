//! A node: one machine's worth of directories, an agent on it and the apps under its shim. It can be lost and come
//! back from the store. It must not know what is in a store.

mod agent;
mod apps;
mod setup;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

pub use agent::{built, find};
pub use apps::App;
pub use setup::{FileStore, Placement, Setup, User};

use crate::tree::{self, Snapshot};

/// A machine that can be lost. Dropping it ends everything that runs on it and removes its directories; where the
/// test has failed, the end of the agent's log is printed.
pub struct Node {
    setup: Setup,
    base: tempfile::TempDir,
    prefix: PathBuf,
    tree: PathBuf,
    agent: Option<Child>,
}

/// What a program said and how it ended.
#[derive(Clone, Debug)]
pub struct Said {
    /// Exit status; a signal is 128 + its number, as shells have it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let signal = output.status.signal().map(|signal| 128 + signal);
        Self {
            code: output.status.code().or(signal).unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    /// Fails the test, showing what was said, unless the program succeeded; returns its standard output.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert!(self.code == 0, "exit status {}\n{}\n{}", self.code, self.out, self.err);
        self.out
    }

    /// Fails the test unless the program failed with an error that has all of `words` (in any case; `a|b` is one of
    /// several).
    #[track_caller]
    pub fn refused(&self, words: &[&str]) {
        let text = format!("{}{}", self.out, self.err).to_lowercase();
        assert!(self.code != 0, "it succeeded, but should have refused with {words:?}\n{text}");
        assert!(self.code < 128, "it died of a signal ({}) instead of saying {words:?}\n{text}", self.code);
        for word in words {
            let said = word.split('|').any(|choice| text.contains(&choice.to_lowercase()));
            assert!(said, "the error does not say `{word}`:\n{text}");
        }
        assert!(!text.contains("panicked at"), "{text}");
    }
}

impl Node {
    /// Makes the directories of a new machine; nothing runs yet.
    pub fn new(setup: Setup) -> Self {
        let base =
            tempfile::Builder::new().prefix("storeshim-e2e-").tempdir().expect("a temporary directory");
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let (prefix, tree) = match setup.placement {
            Placement::Identity => (base.path().join("storage"), base.path().join("storage")),
            Placement::Translated if setup.reference => {
                (base.path().join("storage"), base.path().join("storage"))
            }
            Placement::Translated => {
                (setup.prefix.clone().unwrap_or_else(setup::absent_prefix), base.path().join("tree"))
            }
        };
        let node = Self { setup, base, prefix, tree, agent: None };
        node.make_directories();
        node.install();
        node
    }

    /// A new machine with its agent running.
    pub fn started(setup: Setup) -> Self {
        let mut node = Self::new(setup);
        node.start();
        node
    }

    /// What it was made from; changes count from the next start of the agent.
    pub fn setup(&mut self) -> &mut Setup {
        &mut self.setup
    }

    /// Where apps see the volume.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// The real directory behind it.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The directory shared by agent and shim.
    pub fn run_dir(&self) -> PathBuf {
        self.base.path().join("run")
    }

    /// The agent's own directory.
    pub fn state_dir(&self) -> PathBuf {
        self.base.path().join("state")
    }

    /// A directory beside the volume that survives the loss of the node: what a test remembers out of band.
    pub fn outside(&self) -> PathBuf {
        self.base.path().join("outside")
    }

    /// What the agent has logged, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.base.path().join("agent.log")
    }

    fn make_directories(&self) {
        let mut folders = vec![self.base.path().to_owned()];
        for name in ["home", "tmp", "outside", "bin"] {
            folders.push(self.base.path().join(name));
        }
        if self.setup.placement == Placement::Identity || self.setup.reference {
            folders.push(self.tree.clone());
        }
        for folder in folders {
            if !folder.exists() {
                fs::create_dir(&folder).expect("the temporary directory is ours");
            }
            if let Some(id) = self.setup.user.id() {
                chown(folder, Some(id), Some(id)).expect("root may");
            }
        }
    }

    /// Loses the machine: SIGKILL for everything on it, then its tree, index and run directory are gone. What is in
    /// the store, and [`Node::outside`], is all that remains.
    pub fn lose(&mut self) {
        // Both orders happen when a machine dies.
        if rand::random() {
            self.kill_agent();
            self.kill_apps();
        } else {
            self.kill_apps();
            self.kill_agent();
        }
        self.kill_guards();
        if self.setup.reference {
            self.recycle();
        } else {
            wipe(&self.tree);
            wipe(&self.state_dir());
            wipe(&self.run_dir());
        }
        self.make_directories();
    }

    /// The reference run has the plain disk for a perfect store: what was there is there again, as a copy.
    fn recycle(&self) {
        let aside = self.base.path().join("aside");
        fs::rename(&self.tree, &aside).expect("the same filesystem");
        let copied = Command::new("cp").arg("-a").args([&aside, &self.tree]).status().expect("cp runs");
        assert!(copied.success(), "cp -a of the reference tree");
        wipe(&aside);
    }

    /// Flush; loss of the machine; restore; and the tree must be what it was. Ends with the agent running.
    #[track_caller]
    pub fn survives(&mut self, occasion: &str) {
        self.flush();
        // What is compared is the tree itself.
        self.warm();
        self.kill_agent();
        let before = Snapshot::of(&self.tree);
        assert!(!before.is_empty(), "{occasion}: there is nothing in the tree");
        self.lose();
        // Everything lazily, then asked for: that must come to the same as what `eager` does at the next start.
        let hydrate = self.setup.set("hydrate", "on-read");
        self.start();
        self.warm();
        self.kill_agent();
        tree::assert_same(&before, &Snapshot::of(&self.tree), occasion);
        self.setup.set("hydrate", &hydrate.unwrap_or_default());
        self.start();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill_apps();
        self.kill_agent();
        self.kill_guards();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines.len().saturating_sub(60);
            eprintln!(
                "--- agent's log, last {} lines ---\n{}\n---",
                lines.len() - end,
                lines[end..].join("\n")
            );
        }
        if std::env::var_os("STORESHIM_E2E_KEEP").is_some() {
            self.base.disable_cleanup(true);
            eprintln!("kept: {}", self.base.path().display());
            return;
        }
        // What an ordinary user may not delete (directories of mode 000) is made deletable first.
        for entry in fs::read_dir(self.base.path()).into_iter().flatten().flatten() {
            wipe(&entry.path());
        }
    }
}

/// Removes whatever is at `path`, if anything.
pub fn wipe(path: &Path) {
    if fs::symlink_metadata(path).is_err() {
        return;
    }
    if fs::remove_dir_all(path).is_ok() || fs::remove_file(path).is_ok() {
        return;
    }
    let quiet = || Stdio::null();
    let _ = Command::new("chmod").args(["-R", "u+rwx"]).arg(path).stderr(quiet()).status();
    if let Err(error) = fs::remove_dir_all(path) {
        panic!("cannot remove {path:?}: {error}");
    }
}
