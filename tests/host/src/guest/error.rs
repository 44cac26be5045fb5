// SPDX-License-Identifier: GPL-2.0

//! Errors of scenarios, as text for their reader.

use std::fmt;

use crate::ring::RingError;

/// An error in one line, perhaps with the console's last lines.
#[derive(Debug, Clone)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<String> for Error {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Error {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<RingError> for Error {
    fn from(error: RingError) -> Self {
        Self(error.to_string())
    }
}

/// The result of most functions here.
pub type Result<T> = std::result::Result<T, Error>;
