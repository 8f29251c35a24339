//! Errors of a backend in words that people can act on, without credentials. It must not decide what is retried.

use object_store::Error;

use crate::blob::BlobError;
use crate::meta::MetaError;

/// Why a backend could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL or the environment is malformed; the sentence says what to write instead.
    #[error("{0}")]
    Invalid(String),
    /// The backend did not answer or refused for now, after retries; the same call may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The backend can never serve (credentials, missing bucket, read-only, unsafe conditional writes); final.
    #[error("{0}")]
    Refused(String),
}

impl From<StoreError> for MetaError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(text) => Self::Unavailable(text),
            StoreError::Invalid(text) | StoreError::Refused(text) => Self::Refused(text),
        }
    }
}

impl From<StoreError> for BlobError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(text) => Self::Unavailable(text),
            StoreError::Invalid(text) | StoreError::Refused(text) => Self::Refused(text),
        }
    }
}

/// Longest explanation, in characters: the rest of a server's page does not help anybody.
const LONGEST: usize = 300;

/// One line of what the backend said. Of an XML answer only its code and message are kept: S3 servers put access
/// keys and signatures into the other elements.
#[must_use]
pub fn explain(error: &Error) -> String {
    use std::error::Error as _;
    let mut text = error.to_string();
    // The innermost source is the one that helps: "connection refused", "No space left on device".
    let mut innermost = error.source();
    while let Some(next) = innermost.and_then(|source| source.source()) {
        innermost = Some(next);
    }
    if let Some(source) = innermost.map(ToString::to_string).filter(|source| !text.contains(source)) {
        text = format!("{text}: {source}");
    }
    condense(&text)
}

/// See [`explain`]; of any text.
pub(crate) fn condense(text: &str) -> String {
    let body = text.find("<?xml").or_else(|| text.find("<Error")).or_else(|| text.find("<html"));
    let (head, xml) = text.split_at_checked(body.unwrap_or(text.len())).unwrap_or((text, ""));
    let mut line = head.split_whitespace().collect::<Vec<_>>().join(" ");
    for name in ["Code", "Message"] {
        if let Some(value) = element(xml, name) {
            line.push(' ');
            line.push_str(&value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    if line.chars().count() > LONGEST {
        line = line.chars().take(LONGEST).chain("…".chars()).collect();
    }
    line
}

/// The text of the first `<name>` of an S3 error document.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (value, _) = rest.split_once(&format!("</{name}>"))?;
    Some(value)
}

/// The code of an S3 error document within `error`, such as `NoSuchBucket`.
pub(super) fn s3_code(error: &Error) -> Option<String> {
    use std::error::Error as _;
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    element(&text, "Code").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_signatures_of_a_server_page_are_not_shown() {
        let text = "Error performing PUT http://h/b/k: Server returned 403 Forbidden: <?xml version=\"1.0\"?><Error>\
            <Code>SignatureDoesNotMatch</Code><Message>does not\nmatch</Message>\
            <AWSAccessKeyId>AKIASECRET</AWSAccessKeyId><StringToSign>sts</StringToSign></Error>";
        let line = condense(text);
        assert!(line.contains("SignatureDoesNotMatch does not match"), "{line}");
        assert!(!line.contains("AKIASECRET") && !line.contains("sts"), "{line}");
    }

    #[test]
    fn an_endless_answer_is_cut() {
        assert!(condense(&"x".repeat(10_000)).chars().count() <= LONGEST + 1);
    }
}
