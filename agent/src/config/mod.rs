//! Settings: a TOML file, under the environment, under the command line. It turns them into one checked
//! [`Config`] and must not know what any setting does.

mod layer;
mod units;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use storeshim_protocol::MAX_MOUNTS;

pub use layer::{AbsolutePath, Layer, LogLayer, LogLevel, MountLayer};
pub use units::{Age, Bytes, Size, Span};

use crate::blob::redact;
use crate::volume::{Durability, Guarding, Hydrate, Quota};

/// What is wrong with the settings: one sentence that names the place (file and line, variable or flag).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// All settings of an agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory shared with the apps: control page, rings, socket. On tmpfs where possible.
    pub run_dir: PathBuf,
    /// Directory of the agent's own state and of translated trees: on a fast local disk.
    pub state_dir: PathBuf,
    /// How long a shutdown waits for a backend that makes no progress.
    pub drain_timeout: Duration,
    /// What is logged and how.
    pub log: Log,
    /// The mounts, in the order in which they were named first.
    pub mounts: Vec<Mount>,
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level or a tracing filter.
    pub level: String,
    /// The shape of a line.
    pub format: LogFormat,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is not a log format; write human or json")),
        }
    }
}

/// Where a mount's tree lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Identity where the prefix is a directory that can serve as the tree, else translated.
    #[default]
    Auto,
    /// The tree is the prefix itself, or what it points to.
    Identity,
    /// The tree is elsewhere, and the shim translates paths.
    Translated,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The logical prefix: absolute, without a slash at the end.
    pub prefix: String,
    /// The volume's URL. It may hold credentials: show only [`Mount::public_url`].
    pub url: String,
    /// The tree's place, where it is not to be chosen by `placement`.
    pub tree: Option<PathBuf>,
    /// Where the tree lies.
    pub placement: Placement,
    /// When fsync returns.
    pub durability: Durability,
    /// Unsynced changes reach the backend within this while it answers.
    pub max_lag: Duration,
    /// Bytes of changes not in the backend from which writers are blocked.
    pub dirty_limit: u64,
    /// How long a request of an app waits for the agent or the backend; zero is for ever.
    pub request_timeout: Duration,
    /// A background audit begins at least this often.
    pub audit_interval: Duration,
    /// Uploads in flight.
    pub upload_parallelism: usize,
    /// When what is not on this disk is brought here.
    pub hydrate: Hydrate,
    /// Bytes of file data that may lie on this disk; `None`: 80 % of what its filesystem has free at the start.
    pub cache_size: Option<u64>,
    /// How long a read waits for data that cannot be fetched.
    pub patience: Duration,
    /// What the volume may grow to.
    pub quota: Quota,
    /// How programs that do not ask are kept from absent files.
    pub guard: Guarding,
}

impl Mount {
    /// The URL without credentials: for status, logs and names.
    pub fn public_url(&self) -> String {
        redact(&self.url)
    }
}

/// Everything outside of the settings that defaults depend on; a value, so that tests can make one up.
pub struct Surroundings<'a> {
    /// Effective user id.
    pub uid: u32,
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl Surroundings<'static> {
    /// This process.
    pub fn of_process() -> Self {
        Self { uid: nix::unistd::geteuid().as_raw(), env: &|name| std::env::var(name).ok() }
    }
}

impl Config {
    /// Puts file (`--config` or `STORESHIM_CONFIG`), environment and flags together, in that order of growing
    /// strength. The error is a sentence that names file and line, variable or flag.
    pub fn load(config: Option<&Path>, flags: Layer, around: &Surroundings<'_>) -> Result<Self, ConfigError> {
        let from_env = (around.env)("STORESHIM_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let mut layer = match config.map(Path::to_owned).or(from_env) {
            Some(path) => Layer::from_file(&path)?,
            None => Layer::default(),
        };
        layer.overlay(Layer::from_env(around.env)?);
        layer.overlay(flags);
        Self::resolve(layer, around)
    }

    fn resolve(layer: Layer, around: &Surroundings<'_>) -> Result<Self, ConfigError> {
        let config = Self {
            run_dir: layer.run_dir.map_or_else(|| default_run_dir(around), |path| path.0),
            state_dir: match layer.state_dir {
                Some(path) => path.0,
                None => default_state_dir(around)?,
            },
            drain_timeout: layer.drain_timeout.map_or(Duration::from_secs(60), |span| span.0),
            log: Log {
                level: layer.log.level.map_or_else(|| "info".to_owned(), |level| level.0),
                format: layer.log.format.unwrap_or_default(),
            },
            mounts: layer.mount.into_iter().map(resolve_mount).collect(),
        };
        config.check_mounts()?;
        Ok(config)
    }

    fn check_mounts(&self) -> Result<(), ConfigError> {
        if self.mounts.len() > MAX_MOUNTS {
            return Err(ConfigError(format!(
                "{} mounts are configured and one agent serves at most {MAX_MOUNTS}; give the others to a second \
                 agent with its own run_dir",
                self.mounts.len()
            )));
        }
        for (index, one) in self.mounts.iter().enumerate() {
            for other in self.mounts.iter().skip(index + 1) {
                let (a, b) = (Path::new(&one.prefix), Path::new(&other.prefix));
                if a.starts_with(b) || b.starts_with(a) {
                    return Err(ConfigError(format!(
                        "the mounts {} and {} overlap; choose prefixes that do not contain one another",
                        one.prefix, other.prefix
                    )));
                }
                if redact(&one.url) == redact(&other.url) && !one.url.starts_with("memory:") {
                    return Err(ConfigError(format!(
                        "the mounts {} and {} show the same volume {}; a volume has one writer, so give each its \
                         own URL",
                        one.prefix,
                        other.prefix,
                        one.public_url()
                    )));
                }
                if one.tree.is_some() && one.tree == other.tree {
                    return Err(ConfigError(format!(
                        "the mounts {} and {} have the same tree; give each its own",
                        one.prefix, other.prefix
                    )));
                }
            }
        }
        Ok(())
    }
}

fn resolve_mount(layer: MountLayer) -> Mount {
    Mount {
        prefix: layer.prefix.0,
        url: layer.url.0,
        tree: layer.tree.map(|path| path.0),
        placement: layer.placement.unwrap_or_default(),
        durability: layer.durability.unwrap_or(Durability::Remote),
        max_lag: layer.max_lag.map_or(Duration::from_secs(1), |span| span.0.0),
        dirty_limit: layer.dirty_limit.map_or(1 << 30, |size| size.0.0),
        request_timeout: layer.request_timeout.map_or(Duration::ZERO, |span| span.0),
        audit_interval: layer.audit_interval.map_or(Duration::from_secs(30), |span| span.0.0),
        upload_parallelism: layer.upload_parallelism.map_or(8, |number| number.0),
        hydrate: layer.hydrate.unwrap_or_default(),
        cache_size: layer.cache_size.map(|size| size.0.0),
        patience: layer.patience.map_or(Duration::from_secs(60), |span| span.0.0),
        quota: Quota {
            bytes: layer.quota_bytes.map(|size| size.0),
            inodes: layer.quota_inodes.map(|number| number.0),
        },
        guard: layer.guard.unwrap_or_default(),
    }
}

/// A path from an environment variable, where that is set and absolute.
fn env_path(around: &Surroundings<'_>, name: &str) -> Option<PathBuf> {
    (around.env)(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn default_run_dir(around: &Surroundings<'_>) -> PathBuf {
    if around.uid == 0 {
        return PathBuf::from("/run/storeshim");
    }
    match env_path(around, "XDG_RUNTIME_DIR") {
        Some(runtime) => runtime.join("storeshim"),
        None => PathBuf::from(format!("/dev/shm/storeshim-{}", around.uid)),
    }
}

fn default_state_dir(around: &Surroundings<'_>) -> Result<PathBuf, ConfigError> {
    if around.uid == 0 {
        return Ok(PathBuf::from("/var/lib/storeshim"));
    }
    env_path(around, "XDG_STATE_HOME")
        .or_else(|| env_path(around, "HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("storeshim"))
        .ok_or_else(|| {
            ConfigError("there is no HOME to keep state in; set state_dir (--state-dir DIR)".into())
        })
}

#[cfg(test)]
mod tests;
