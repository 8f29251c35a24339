//! Errors as they go over the wire, and what they mean to the engines' callers.

use crate::blob::BlobError;
use crate::meta::MetaError;

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// Another opening has taken the epoch; final.
    Fenced = 1,
    /// Not now; the same request may succeed later.
    Unavailable = 2,
    /// What is stored is damaged or foreign; final.
    Damaged = 3,
    /// Can never be done; final.
    Refused = 4,
    /// The pack is not there, or shorter than asked.
    Missing = 5,
    /// A file operation failed; the errno says how.
    File = 6,
    /// Bytes that are no frame, or a message where it may not be; ends the connection.
    Protocol = 16,
    /// No version in common; ends the connection.
    Version = 17,
    /// Beyond a limit; ends the connection.
    TooLarge = 18,
    /// Nothing was heard for too long; ends the connection.
    Silent = 19,
}

impl Code {
    /// A code that came over the wire; an unknown one counts as a protocol error.
    #[must_use]
    pub fn of(number: u16) -> Self {
        match number {
            1 => Self::Fenced,
            2 => Self::Unavailable,
            3 => Self::Damaged,
            4 => Self::Refused,
            5 => Self::Missing,
            6 => Self::File,
            17 => Self::Version,
            18 => Self::TooLarge,
            19 => Self::Silent,
            _ => Self::Protocol,
        }
    }
}

/// An error that is sent or was received: one sentence that says what, where and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// What kind.
    pub code: Code,
    /// Linux's number for [`Code::File`], else 0.
    pub errno: u16,
    /// The sentence.
    pub message: String,
}

/// Result of anything that goes over the wire.
pub type Result<T> = std::result::Result<T, WireError>;

impl WireError {
    /// An error that is none of a file operation.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, errno: 0, message: message.into() }
    }

    /// Bytes that cannot be.
    #[must_use]
    pub fn garbage(how: &str) -> Self {
        Self::new(Code::Protocol, format!("the other side sent {how}; it must speak storeshim's protocol"))
    }

    /// Not now.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// Whether trying again may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self.code,
            Code::Unavailable | Code::Protocol | Code::Version | Code::TooLarge | Code::Silent
        )
    }
}

impl From<WireError> for MetaError {
    fn from(error: WireError) -> Self {
        match error.code {
            Code::Fenced => Self::Fenced,
            Code::Damaged | Code::Missing => Self::Damaged(error.message),
            Code::Refused | Code::File => Self::Refused(error.message),
            Code::Unavailable | Code::Protocol | Code::Version | Code::TooLarge | Code::Silent => {
                Self::Unavailable(error.message)
            }
        }
    }
}

impl From<WireError> for BlobError {
    fn from(error: WireError) -> Self {
        match error.code {
            Code::Fenced => Self::Fenced,
            Code::Missing | Code::Damaged => Self::Missing(error.message),
            Code::Refused | Code::File => Self::Refused(error.message),
            Code::Unavailable | Code::Protocol | Code::Version | Code::TooLarge | Code::Silent => {
                Self::Unavailable(error.message)
            }
        }
    }
}
