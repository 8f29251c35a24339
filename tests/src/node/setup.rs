//! What kind of machine, whose, and with which store. It must not know processes.

use std::path::{Path, PathBuf};

use crate::s3::{self, S3Server};

/// User id of the ordinary user that tests run as when they are started by root.
const ORDINARY: u32 = 54_321;
/// The user `nobody`, as every distribution has it.
const NOBODY: u32 = 65_534;

/// Where the tree lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The prefix does not exist on this machine; the shim translates.
    Translated,
    /// The tree is the prefix.
    Identity,
}

/// Who agent and apps run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    Current,
    /// An ordinary user, also when the tests run as root.
    Ordinary,
    /// As [`User::Ordinary`], but one that the system knows by name.
    Nobody,
}

impl User {
    /// The user and group id to change to; `None` to stay.
    pub fn id(self) -> Option<u32> {
        let id = match self {
            Self::Current => None,
            Self::Ordinary => Some(ORDINARY),
            Self::Nobody => Some(NOBODY),
        };
        id.filter(|_| nix::unistd::geteuid().is_root())
    }
}

/// How to make a [`super::Node`]: placement, user, volume and settings.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where the tree lies.
    pub placement: Placement,
    /// Who agent and apps run as.
    pub user: User,
    /// The volume.
    pub url: String,
    /// Settings of the mount, `key=value`.
    pub settings: Vec<(String, String)>,
    /// More environment of the agent (credentials, endpoint).
    pub agent_env: Vec<(String, String)>,
    /// Where apps see the volume in the translated placement; `None` for a free name.
    pub prefix: Option<PathBuf>,
    /// More mounts of the same agent, as `--mount` takes them.
    pub more_mounts: Vec<String>,
    /// The reference run: no agent, no shim, the plain disk. What fails here is wrong in the test.
    pub reference: bool,
}

impl Setup {
    fn new(placement: Placement, user: User, url: String) -> Self {
        let reference = std::env::var_os("STORESHIM_E2E_REFERENCE").is_some();
        Self {
            placement,
            user,
            url,
            settings: vec![("hydrate".into(), "eager".into())],
            agent_env: Vec::new(),
            prefix: None,
            more_mounts: Vec::new(),
            reference,
        }
    }

    /// A prefix that does not exist, as an ordinary user: the hardest case.
    pub fn translated(url: impl Into<String>) -> Self {
        Self::new(Placement::Translated, User::Ordinary, url.into())
    }

    /// The recommended case, as whoever runs the tests (root in most containers).
    pub fn identity(url: impl Into<String>) -> Self {
        Self::new(Placement::Identity, User::Current, url.into())
    }

    /// A prefix of the test's choice for the translated placement; it must not exist.
    pub fn at(mut self, prefix: impl Into<PathBuf>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// In the translated placement, a prefix that is as long as the directory of a reference run: how many cases a suite has may
    /// depend on it.
    pub fn at_a_long_prefix(self) -> Self {
        let length = std::env::temp_dir().join("storeshim-e2e-123456/storage").as_os_str().len();
        self.at(format!("/{:-<width$}", "storage", width = length - 1))
    }

    /// Lazily: what is not touched is not on this disk. Tests that look at the tree itself after a
    /// restore want it whole, which is what they get otherwise.
    pub fn lazy(self) -> Self {
        self.with("hydrate", "on-read")
    }

    /// Another user.
    pub fn as_user(mut self, user: User) -> Self {
        self.user = user;
        self
    }

    /// Another setting of the mount.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.set(key, value);
        self
    }

    /// Sets a setting of the mount, or with an empty value leaves it to its default; what it was before.
    pub fn set(&mut self, key: &str, value: &str) -> Option<String> {
        let before = self.settings.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone());
        self.settings.retain(|(known, _)| known != key);
        if !value.is_empty() {
            self.settings.push((key.to_owned(), value.to_owned()));
        }
        before
    }

    /// Another mount of the same agent, as `--mount` takes it.
    pub fn with_mount(mut self, mount: String) -> Self {
        self.more_mounts.push(mount);
        self
    }

    /// Another variable in the agent's environment.
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.agent_env.retain(|(known, _)| known != name);
        self.agent_env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Credentials and endpoint for the harness's S3 server, or for a proxy in front of it.
    pub fn with_s3(self, endpoint: &str) -> Self {
        self.with_env("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY)
            .with_env("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY)
            .with_env("AWS_ENDPOINT_URL", endpoint)
            .with_env("AWS_ALLOW_HTTP", "true")
            .with_env("AWS_REGION", "us-east-1")
    }

    /// An identity node on a volume in `server`.
    pub fn on_s3(server: &S3Server) -> Self {
        Self::identity(format!("s3://{}/volume", s3::BUCKET)).with_s3(&server.endpoint())
    }

    pub(super) fn mount(&self, prefix: &Path, tree: &Path) -> String {
        let mut mount = format!("{}={}", prefix.display(), self.url);
        match self.placement {
            Placement::Identity => mount.push_str(",placement=identity"),
            Placement::Translated => {
                mount.push_str(&format!(",placement=translated,tree={}", tree.display()))
            }
        }
        for (key, value) in &self.settings {
            mount.push_str(&format!(",{key}={value}"));
        }
        mount
    }
}

/// A directory store of its own for one test, writable by every user; removed at the end.
pub struct FileStore(tempfile::TempDir);

impl FileStore {
    /// An empty store.
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir =
            tempfile::Builder::new().prefix("storeshim-store-").tempdir().expect("a temporary directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("it is ours");
        Self(dir)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The URL of a volume in it.
    pub fn url(&self) -> String {
        format!("file://{}", self.path().display())
    }

    /// Every regular file in it with its size, in order.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let mut files = Vec::new();
        collect(self.path(), &mut files);
        files.sort();
        files
    }

    /// A copy as it stands. Nobody may be writing: stop the agent first, or halt it (see `Node::halted`).
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        let from = format!("{}/.", self.path().display());
        let done =
            std::process::Command::new("cp").args(["-a", &from]).arg(copy.path()).status().expect("cp runs");
        assert!(done.success(), "cp -a of the store");
        copy
    }
}

impl Default for FileStore {
    fn default() -> Self {
        Self::new()
    }
}

fn collect(folder: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => collect(&path, files),
            Ok(metadata) if metadata.is_file() => files.push((path, metadata.len())),
            _ => {}
        }
    }
}

/// `/storage`, or something like it where that exists.
pub(super) fn absent_prefix() -> PathBuf {
    let names = std::iter::once("/storage".to_owned()).chain((0..100).map(|n| format!("/storage-{n}")));
    names.map(PathBuf::from).find(|path| !path.exists()).expect("one of a hundred names is free")
}
