//! Builds the client of an S3 endpoint from URL, environment and the AWS shared files. It must not send a request.

use std::sync::Arc;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::credentials::Profile;
use super::error::explain;
use super::{StoreError, StoreOptions};

pub(super) struct Target<'a> {
    pub(super) bucket: &'a str,
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    /// The URL as it may be shown.
    pub(super) shown: &'a str,
}

/// What the environment may use instead of access keys; object_store handles these itself.
const OTHER_CREDENTIALS: [&str; 3] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

pub(super) fn build(target: &Target<'_>, options: &StoreOptions) -> Result<Arc<AmazonS3>, StoreError> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(target.bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: std::time::Duration::from_millis(50),
                max_backoff: std::time::Duration::from_secs(2),
                base: 2.0,
            },
            max_retries: 1000,
            retry_timeout: options.retry_timeout,
        });
    let profile = Profile::from_environment();
    let is_set = |builder: &AmazonS3Builder, key| {
        builder.get_config_value(&key).is_some_and(|value: String| !value.is_empty())
    };
    let elsewhere = OTHER_CREDENTIALS.iter().any(|name| std::env::var_os(name).is_some());
    if !is_set(&builder, AmazonS3ConfigKey::AccessKeyId)
        && !elsewhere
        && let (Some(id), Some(secret)) = (profile.access_key_id, profile.secret_access_key)
    {
        builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        if let Some(token) = profile.session_token {
            builder = builder.with_token(token);
        }
    }
    if let Some(region) = target.region.clone() {
        builder = builder.with_region(region);
    } else if !is_set(&builder, AmazonS3ConfigKey::Region) {
        builder = builder.with_region(profile.region.unwrap_or_else(|| "us-east-1".into()));
    }
    let configured = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
        .into_iter()
        .find_map(|key| builder.get_config_value(&key).filter(|value| !value.is_empty()));
    if let Some(endpoint) = target.endpoint.clone().or(configured).or(profile.endpoint) {
        // Servers other than AWS mostly have one host name only, so the bucket goes into the path; whoever wants it
        // otherwise says so in the environment.
        if std::env::var_os("AWS_VIRTUAL_HOSTED_STYLE_REQUEST").is_none() {
            builder = builder.with_virtual_hosted_style_request(false);
        }
        // An address with http:// in it was typed by someone who knows that it is not encrypted.
        let plain = endpoint.starts_with("http://");
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
        builder = builder.with_client_options(client(options, plain));
    } else {
        builder = builder.with_client_options(client(options, false));
    }
    let store = builder.build().map_err(|error| {
        StoreError::Invalid(format!(
            "cannot use the backend '{}': {}; check the AWS_* variables",
            target.shown,
            explain(&error)
        ))
    })?;
    Ok(Arc::new(store))
}

fn client(options: &StoreOptions, plain: bool) -> ClientOptions {
    let allow_http =
        plain || std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value == "true" || value == "1");
    ClientOptions::new()
        .with_allow_http(allow_http)
        .with_connect_timeout(options.connect_timeout)
        .with_read_timeout(options.read_timeout)
        // No bound on a whole request: a pack over a slow line takes its time; a line that stands still is
        // noticed by the read timeout.
        .with_timeout_disabled()
}
