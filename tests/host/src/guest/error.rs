// SPDX-License-Identifier: GPL-2.0

//! What goes wrong with a guest, as text for whoever reads a scenario's result.

use std::fmt;

use crate::ring::RingError;

/// What went wrong, in one line (and perhaps what the console said).
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

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;
