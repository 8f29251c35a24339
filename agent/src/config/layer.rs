//! One layer of settings: what a file, the environment or the command line says, with everything it leaves open
//! left open. A value is checked here, where the line it stands on is still known.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de};
use storeshim_protocol::control::PREFIX_MAX;

use super::units::{Size, Span};
use super::{ConfigError, LogFormat, Placement};
use crate::volume::{Durability, Guarding, Hydrate};

/// Settings of one source. Field names are the keys of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// See [`super::Config::run_dir`].
    pub run_dir: Option<AbsolutePath>,
    /// See [`super::Config::state_dir`].
    pub state_dir: Option<AbsolutePath>,
    /// See [`super::Config::drain_timeout`].
    pub drain_timeout: Option<Span>,
    /// See [`super::Log`].
    #[serde(default)]
    pub log: LogLayer,
    /// See [`super::Mount`].
    #[serde(default)]
    pub mount: Vec<MountLayer>,
}

/// The `log` table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLayer {
    /// See [`super::Log::level`].
    pub level: Option<LogLevel>,
    /// See [`super::Log::format`].
    pub format: Option<LogFormat>,
}

/// A `[[mount]]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountLayer {
    /// See [`super::Mount::prefix`].
    pub prefix: Prefix,
    /// See [`super::Mount::url`].
    pub url: Url,
    /// See [`super::Mount::tree`].
    pub tree: Option<AbsolutePath>,
    /// See [`super::Mount::placement`].
    pub placement: Option<Placement>,
    /// See [`super::Mount::durability`].
    pub durability: Option<Durability>,
    /// See [`super::Mount::max_lag`].
    pub max_lag: Option<PositiveSpan>,
    /// See [`super::Mount::dirty_limit`].
    pub dirty_limit: Option<DirtyLimit>,
    /// See [`super::Mount::request_timeout`].
    pub request_timeout: Option<Span>,
    /// See [`super::Mount::audit_interval`].
    pub audit_interval: Option<PositiveSpan>,
    /// See [`super::Mount::upload_parallelism`].
    pub upload_parallelism: Option<Parallelism>,
    /// See [`super::Mount::hydrate`].
    pub hydrate: Option<Hydrate>,
    /// See [`super::Mount::cache_size`].
    pub cache_size: Option<CacheSize>,
    /// See [`super::Mount::patience`].
    pub patience: Option<PositiveSpan>,
    /// See [`crate::volume::Quota::bytes`].
    pub quota_bytes: Option<Size>,
    /// See [`crate::volume::Quota::inodes`].
    pub quota_inodes: Option<Inodes>,
    /// See [`super::Mount::guard`].
    pub guard: Option<Guarding>,
}

/// Makes a checked value type out of a plain one.
macro_rules! checked {
    ($(#[$doc:meta])* $name:ident($raw:ty => $inner:ty), $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(pub $inner);

        impl TryFrom<$raw> for $name {
            type Error = String;

            fn try_from(raw: $raw) -> Result<Self, String> {
                let check: fn($raw) -> Result<$inner, String> = $check;
                check(raw).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::try_from(<$raw>::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }
    };
}

checked! {
    /// A path that does not depend on a working directory.
    AbsolutePath(PathBuf => PathBuf), |path| if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("`{}` is a relative path; write it from / on", path.display()))
    }
}

checked! {
    /// A logical prefix in its plain form: absolute, no empty, `.` or `..` component, no slash at the end.
    Prefix(String => String), |text| {
        let plain = text.trim_end_matches('/');
        let wrong = |why: &str| Err(format!("prefix `{text}` {why}; write it like /storage"));
        let Some(relative) = plain.strip_prefix('/') else {
            return wrong("is not an absolute path below /");
        };
        if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return wrong("has an empty, `.` or `..` component");
        }
        if plain.len() > PREFIX_MAX {
            return wrong(&format!("is longer than {PREFIX_MAX} bytes"));
        }
        if plain.contains(['\0', '\n']) {
            return wrong("has a control character");
        }
        Ok(plain.to_owned())
    }
}

checked! {
    /// A volume's URL, as far as its shape goes; what is behind it is found out when the volume is opened.
    Url(String => String), |text| match text.split_once("://").or_else(|| text.split_once(':')) {
        Some(("memory", _)) => Ok(text),
        Some((scheme, rest)) if text.contains("://") && !scheme.is_empty() && !rest.is_empty() => Ok(text),
        _ => Err(format!("`{text}` is not a volume URL; write it like s3://bucket/path or file:///var/store")),
    }
}

checked! {
    /// A duration above zero.
    PositiveSpan(Span => Span), |span| if span.0.is_zero() {
        Err("must be longer than zero".to_owned())
    } else {
        Ok(span)
    }
}

checked! {
    /// A dirty limit: room for at least one pack.
    DirtyLimit(Size => Size), |size| if size.0 < 16 << 20 {
        Err("must be at least 16MiB, the size of one pack".to_owned())
    } else {
        Ok(size)
    }
}

checked! {
    /// A cache size: room for a few pieces. From 64 MiB on it also holds what is read ahead until that is read.
    CacheSize(Size => Size), |size| if size.0 < 1 << 20 {
        Err("must be at least 1MiB; below 64MiB much is fetched more than once".to_owned())
    } else {
        Ok(size)
    }
}

checked! {
    /// A number of inodes.
    Inodes(i64 => u64), |number| match u64::try_from(number) {
        Ok(number @ 1..) => Ok(number),
        _ => Err(format!("`{number}` is not a number of inodes; write one above zero, without a unit")),
    }
}

checked! {
    /// A number of uploads in flight.
    Parallelism(i64 => usize), |number| match usize::try_from(number) {
        Ok(number @ 1..=256) => Ok(number),
        _ => Err(format!("`{number}` is not a number of uploads; write one from 1 to 256, without a unit")),
    }
}

checked! {
    /// What is logged, in tracing's filter language: `info`, or `info,storeshim_agent::volume=debug`.
    LogLevel(String => String), |text| match tracing_subscriber::EnvFilter::try_new(&text) {
        Ok(_) if !text.is_empty() => Ok(text),
        _ => Err(format!("`{text}` is not a log level; write one of error, warn, info, debug, trace")),
    }
}

impl Layer {
    /// Reads a configuration file's text; `path` is for messages.
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let line = match error.span() {
                Some(span) => text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1,
                None => 1,
            };
            ConfigError(format!("{} line {line}: {}", path.display(), sentence(error.message())))
        })
    }

    /// Reads a configuration file.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError(format!(
                "cannot read the configuration file {}: {error}; name another one with --config",
                path.display()
            ))
        })?;
        Self::from_toml(&text, path)
    }

    /// Reads the environment through `get`.
    pub fn from_env(get: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        let path = |name: &'static str| value(get, name, |text| AbsolutePath::try_from(PathBuf::from(text)));
        layer.run_dir = path("STORESHIM_RUN_DIR")?;
        layer.state_dir = path("STORESHIM_STATE_DIR")?;
        layer.drain_timeout = value(get, "STORESHIM_DRAIN_TIMEOUT", |text| text.parse())?;
        layer.log.level = value(get, "STORESHIM_LOG_LEVEL", |text| LogLevel::try_from(text.to_owned()))?;
        layer.log.format = value(get, "STORESHIM_LOG_FORMAT", |text| text.parse())?;
        for spec in get("STORESHIM_MOUNT").unwrap_or_default().split_whitespace() {
            let mount = MountLayer::from_spec(spec)
                .map_err(|why| ConfigError(format!("environment variable STORESHIM_MOUNT: {why}")))?;
            layer.mount.push(mount);
        }
        Ok(layer)
    }
}

/// The parsed value of an environment variable; an empty one counts as not set.
fn value<T>(
    get: &dyn Fn(&str) -> Option<String>,
    name: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, ConfigError> {
    match get(name).filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => {
            parse(&text).map(Some).map_err(|why| ConfigError(format!("environment variable {name}: {why}")))
        }
    }
}

/// Settings of a mount that are numbers without a unit.
const NUMBERS: [&str; 2] = ["upload_parallelism", "quota_inodes"];

impl MountLayer {
    /// Parses `PREFIX=URL[,KEY=VALUE]…`, the form of the command line and the environment. A comma that belongs
    /// to the URL is written `%2C`.
    pub fn from_spec(spec: &str) -> Result<Self, String> {
        let form = "write it like /storage=s3://bucket/path,durability=local";
        let (prefix, rest) =
            spec.split_once('=').ok_or_else(|| format!("mount `{spec}` has no URL; {form}"))?;
        let mut parts = rest.split(',');
        let mut table = toml::Table::new();
        table.insert("prefix".into(), prefix.into());
        table.insert("url".into(), parts.next().unwrap_or_default().into());
        for part in parts {
            let (key, text) = part
                .split_once('=')
                .ok_or_else(|| format!("mount `{spec}`: `{part}` is not KEY=VALUE; {form}"))?;
            // The numbers without a unit; whatever else it is, the check of its type says so.
            let value = match text.parse::<i64>() {
                Ok(number) if NUMBERS.contains(&key) => toml::Value::Integer(number),
                Err(_) if NUMBERS.contains(&key) => {
                    return Err(format!(
                        "mount `{spec}`: `{key}` is `{text}`, which is no whole number; write it like {key}=1000"
                    ));
                }
                _ => text.into(),
            };
            if table.insert(key.to_owned(), value).is_some() {
                return Err(format!("mount `{spec}`: `{key}` is given twice"));
            }
        }
        Self::deserialize(table).map_err(|error| format!("mount `{spec}`: {}", sentence(error.message())))
    }

    /// Puts `stronger` over this layer of the same prefix.
    pub fn overlay(&mut self, stronger: Self) {
        let Self {
            prefix: _,
            url,
            tree,
            placement,
            durability,
            max_lag,
            dirty_limit,
            request_timeout,
            audit_interval,
            upload_parallelism,
            hydrate,
            cache_size,
            patience,
            quota_bytes,
            quota_inodes,
            guard,
        } = stronger;
        self.url = url;
        over(&mut self.tree, tree);
        over(&mut self.placement, placement);
        over(&mut self.durability, durability);
        over(&mut self.max_lag, max_lag);
        over(&mut self.dirty_limit, dirty_limit);
        over(&mut self.request_timeout, request_timeout);
        over(&mut self.audit_interval, audit_interval);
        over(&mut self.upload_parallelism, upload_parallelism);
        over(&mut self.hydrate, hydrate);
        over(&mut self.cache_size, cache_size);
        over(&mut self.patience, patience);
        over(&mut self.quota_bytes, quota_bytes);
        over(&mut self.quota_inodes, quota_inodes);
        over(&mut self.guard, guard);
    }
}

impl Layer {
    /// Puts `stronger` over this layer: its single settings win, its mounts join by prefix.
    pub fn overlay(&mut self, stronger: Self) {
        let Self { run_dir, state_dir, drain_timeout, log, mount } = stronger;
        over(&mut self.run_dir, run_dir);
        over(&mut self.state_dir, state_dir);
        over(&mut self.drain_timeout, drain_timeout);
        over(&mut self.log.level, log.level);
        over(&mut self.log.format, log.format);
        for mount in mount {
            match self.mount.iter_mut().find(|known| known.prefix == mount.prefix) {
                Some(known) => known.overlay(mount),
                None => self.mount.push(mount),
            }
        }
    }
}

fn over<T>(weaker: &mut Option<T>, stronger: Option<T>) {
    if stronger.is_some() {
        *weaker = stronger;
    }
}

/// A parser's message as one line in this project's words.
fn sentence(message: &str) -> String {
    message
        .replace("unknown field", "unknown key")
        .replace("missing field", "missing key")
        .replace('\n', "; ")
}
