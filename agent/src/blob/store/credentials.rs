//! The AWS shared files, which object_store does not read: `~/.aws/credentials` and `~/.aws/config` of one profile.
//! It must not log what it reads.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What the shared files say of the chosen profile.
#[derive(Default)]
pub(super) struct Profile {
    pub(super) access_key_id: Option<String>,
    pub(super) secret_access_key: Option<String>,
    pub(super) session_token: Option<String>,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
}

impl Profile {
    /// Reads the profile that the environment names (`AWS_PROFILE`, else `default`). What is missing or unreadable is
    /// simply absent: the standard tools treat it so, and the backend will refuse with a clear error.
    pub(super) fn from_environment() -> Self {
        let name = std::env::var("AWS_PROFILE")
            .ok()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".into());
        let file = |variable: &str, default: &str| -> Option<PathBuf> {
            std::env::var_os(variable)
                .map(PathBuf::from)
                .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".aws").join(default)))
        };
        let read = |path: Option<PathBuf>| {
            path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
        };
        Self::parse(
            &read(file("AWS_SHARED_CREDENTIALS_FILE", "credentials")),
            &read(file("AWS_CONFIG_FILE", "config")),
            &name,
        )
    }

    fn parse(credentials: &str, config: &str, name: &str) -> Self {
        let mut values = section(config, &[name, &format!("profile {name}")]);
        values.extend(section(credentials, &[name]));
        let mut take = |key: &str| values.remove(key);
        Self {
            access_key_id: take("aws_access_key_id"),
            secret_access_key: take("aws_secret_access_key"),
            session_token: take("aws_session_token"),
            region: take("region"),
            endpoint: take("endpoint_url"),
        }
    }
}

/// The `key = value` lines of the sections with one of `names`.
fn section(text: &str, names: &[&str]) -> HashMap<String, String> {
    let mut values = HashMap::new();
    let mut inside = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            inside = names.contains(&name.as_str());
            // An indented line belongs to a nested setting (`s3 =`), which is none of ours.
        } else if inside
            && !line.starts_with([' ', '\t'])
            && let Some((key, value)) = trimmed.split_once('=')
        {
            values.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_profile_is_read() {
        let credentials = "[default]\naws_access_key_id = A\n# c\n[other]\naws_access_key_id=B\naws_secret_access_key = s=1\n";
        let config = "[default]\nregion = r1\n[profile other]\nregion = r2\ns3 =\n  endpoint_url = nested\n";
        let profile = Profile::parse(credentials, config, "other");
        assert_eq!(profile.access_key_id.as_deref(), Some("B"));
        assert_eq!(profile.secret_access_key.as_deref(), Some("s=1"));
        assert_eq!(profile.region.as_deref(), Some("r2"));
        assert_eq!(profile.endpoint, None);
        assert_eq!(Profile::parse(credentials, config, "default").region.as_deref(), Some("r1"));
        assert!(Profile::parse("", "[", "x").access_key_id.is_none());
    }
}
