//! Errors as a runtime reads them: one JSON object on standard output, and exit code 1.

use std::fmt;

use serde_json::{Value, json};

/// Error codes of the specification; those from 100 on are our own, 999 is what the reference plugins use for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 1: the version is not supported.
    IncompatibleVersion,
    /// 3: the container or its network namespace is unknown or gone.
    UnknownContainer,
    /// 4: a `CNI_*` variable is missing or wrong.
    InvalidEnvironment,
    /// 5: reading or writing failed.
    Io,
    /// 6: standard input cannot be decoded.
    Decoding,
    /// 7: a field of the configuration is wrong.
    InvalidConfig,
    /// 11: try again later.
    TryAgain,
    /// 50: STATUS: ADD would fail.
    NotAvailable,
    /// 999: anything else.
    Internal,
}

impl Code {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::InvalidConfig => 7,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::Internal => 999,
        }
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// What kind of failure.
    pub code: Code,
    /// In words.
    pub message: String,
    /// More words.
    pub details: String,
    /// An error of a plugin that we called, passed on as it is.
    pub foreign: Option<Box<Value>>,
}

impl Error {
    /// An error of a kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new(), foreign: None }
    }

    /// A wrong field of the configuration.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidConfig, message)
    }

    /// Anything else.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Adds details.
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The object for standard output.
    pub fn to_value(&self, version: &str) -> Value {
        if let Some(foreign) = &self.foreign {
            return foreign.as_ref().clone();
        }
        let mut value = json!({"cniVersion": version, "code": self.code.number(), "msg": self.message});
        if !self.details.is_empty() {
            value["details"] = json!(self.details);
        }
        value
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

/// Turns a system error into one that says what was being done.
pub trait Context<T> {
    /// Says what was being done, to what.
    ///
    /// # Errors
    /// The one that there was.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for gantry_dbus::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|e| Error::internal(format!("{}: {e}", what())))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|e| Error::internal(format!("{}: {e}", what())))
    }
}
