//! The address of a backend as users write it: `file:///path`, `s3://bucket/prefix?endpoint=…&region=…`,
//! `memory:name`. It must not touch the backend, and no error may repeat a secret.

use std::path::PathBuf;

use super::StoreError;

/// A parsed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A directory.
    File(PathBuf),
    /// An S3 bucket.
    S3 { bucket: String, prefix: String, endpoint: Option<String>, region: Option<String> },
    /// Memory of this process, by name.
    Memory(String),
}

const EXAMPLES: &str = "write file:///absolute/path or s3://bucket/prefix";

fn invalid(text: String) -> StoreError {
    StoreError::Invalid(text)
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let shown = redact(url);
        if let Some(name) = url.strip_prefix("memory:") {
            return Ok(Self::Memory(name.trim_matches('/').to_owned()));
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(invalid(format!("the backend URL '{shown}' has no scheme; {EXAMPLES}")));
        };
        match scheme {
            "file" => parse_file(rest, &shown),
            "s3" => parse_s3(rest, &shown),
            _ => Err(invalid(format!(
                "the backend URL '{shown}' has the unknown scheme '{scheme}'; {EXAMPLES}"
            ))),
        }
    }
}

fn parse_file(rest: &str, shown: &str) -> Result<Address, StoreError> {
    let path = decode(rest).ok_or_else(|| {
        invalid(format!("the backend URL '{shown}' has a malformed %-escape; write %25 for %"))
    })?;
    if !path.starts_with('/') {
        return Err(invalid(format!(
            "the backend URL '{shown}' has no absolute path; write file:///absolute/path with three slashes"
        )));
    }
    if path.contains('\0') {
        return Err(invalid(format!("the backend URL '{shown}' contains a zero byte; remove it")));
    }
    Ok(Address::File(PathBuf::from(path)))
}

fn parse_s3(rest: &str, shown: &str) -> Result<Address, StoreError> {
    let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = location.split_once('/').unwrap_or((location, ""));
    if bucket.contains('@') {
        return Err(invalid(format!(
            "the backend URL '{shown}' contains credentials; put them into AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY or ~/.aws/credentials instead"
        )));
    }
    if bucket.is_empty() {
        return Err(invalid(format!("the backend URL '{shown}' names no bucket; write s3://bucket/prefix")));
    }
    if !bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')) {
        return Err(invalid(format!(
            "the backend URL '{shown}' has the malformed bucket name '{bucket}'; use letters, digits, dots and hyphens"
        )));
    }
    let prefix = decode(prefix).ok_or_else(|| {
        invalid(format!("the backend URL '{shown}' has a malformed %-escape; write %25 for %"))
    })?;
    let (mut endpoint, mut region) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).filter(|value| !value.is_empty()).ok_or_else(|| {
            invalid(format!("the backend URL '{shown}' has no usable value for '{key}'; write {key}=VALUE"))
        })?;
        match key {
            "endpoint" => endpoint = Some(checked_endpoint(value, shown)?),
            "region" => region = Some(value),
            _ => {
                return Err(invalid(format!(
                    "the backend URL '{shown}' has the unknown parameter '{key}'; known are endpoint and region"
                )));
            }
        }
    }
    Ok(Address::S3 {
        bucket: bucket.to_owned(),
        prefix: prefix.trim_matches('/').to_owned(),
        endpoint,
        region,
    })
}

fn checked_endpoint(endpoint: String, shown: &str) -> Result<String, StoreError> {
    let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains('@') => {
            Ok(endpoint.trim_end_matches('/').to_owned())
        }
        _ => Err(invalid(format!(
            "the backend URL '{shown}' has a malformed endpoint; write endpoint=https://host:port, without credentials"
        ))),
    }
}

/// `url` as it may be shown: without user information and without values of unknown parameters.
pub fn redact(url: &str) -> String {
    let (location, query) = match url.split_once('?') {
        Some((location, query)) => (location, Some(query)),
        None => (url, None),
    };
    let mut shown = match location.split_once("://") {
        Some((scheme, rest)) if scheme != "file" => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        _ => location.to_owned(),
    };
    for (index, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
        shown.push(if index == 0 { '?' } else { '&' });
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let harmless =
            matches!(key, "endpoint" | "region" | "bind") && !value.contains('@') && !value.contains("%40");
        shown.push_str(key);
        shown.push('=');
        shown.push_str(if harmless { value } else { "…" });
    }
    shown
}

/// Undoes %-escapes; `None` when one is malformed or the result is not UTF-8.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(url: &str) -> String {
        Address::parse(url).unwrap_err().to_string()
    }

    #[test]
    fn good_addresses() {
        assert_eq!(Address::parse("file:///a%20b/c").unwrap(), Address::File("/a b/c".into()));
        assert_eq!(Address::parse("memory:x").unwrap(), Address::Memory("x".into()));
        assert_eq!(
            Address::parse("s3://b/p/q/?endpoint=http://127.0.0.1:9000/&region=eu-1").unwrap(),
            Address::S3 {
                bucket: "b".into(),
                prefix: "p/q".into(),
                endpoint: Some("http://127.0.0.1:9000".into()),
                region: Some("eu-1".into()),
            }
        );
    }

    #[test]
    fn bad_addresses_say_what_to_write() {
        assert!(error("/tmp/x").contains("has no scheme"));
        assert!(error("gopher://x").contains("unknown scheme 'gopher'"));
        assert!(error("s3:///x").contains("names no bucket"));
        assert!(error("s3://bu cket/x").contains("malformed bucket name"));
        assert!(error("file://relative/x").contains("three slashes"));
        assert!(error("file:///x%zz").contains("%-escape"));
        assert!(error("s3://b/x?endpiont=http://h").contains("unknown parameter 'endpiont'"));
        assert!(error("s3://b/x?endpoint=h:9").contains("malformed endpoint"));
    }

    #[test]
    fn secrets_are_never_repeated() {
        for url in [
            "s3://KEYID:hunter2@bucket/x",
            "s3://bucket/x?secret_access_key=hunter2",
            "s3://b/x?endpoint=http://u:hunter2@h",
            "nosuch://u:hunter2@h/x",
        ] {
            let text = error(url);
            assert!(!text.contains("hunter2"), "{text}");
            assert!(!redact(url).contains("hunter2"));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(url in ".{0,60}", tail in "[a-z3:/?&=%@.]{0,40}") {
            let _ = Address::parse(&url);
            let _ = Address::parse(&format!("s3://{tail}"));
            let _ = redact(&format!("{url}{tail}"));
        }
    }
}
