//! The one error of this crate and its meaning on the wire.

use tonic::{Code, Status};

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such sandbox, container or image.
    #[error("{0} not found")]
    NotFound(String),
    /// The request contradicts itself or asks for what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Not in this state.
    #[error("{0}")]
    State(String),
    /// It took longer than it may.
    #[error("{0}")]
    Timeout(String),
    /// This build or host cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// Something on the machine failed.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// A failure while doing `what`.
    pub fn failed(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        move |e| Self::Failed(format!("{what}: {e}"))
    }
}

impl From<gantry_monitor::client::Error> for Error {
    fn from(e: gantry_monitor::client::Error) -> Self {
        Self::Failed(e.to_string())
    }
}

impl From<cri_images::Error> for Error {
    fn from(e: cri_images::Error) -> Self {
        Self::Failed(e.to_string())
    }
}

impl From<tokio::task::JoinError> for Error {
    fn from(e: tokio::task::JoinError) -> Self {
        Self::Failed(format!("an operation was cut off: {e}"))
    }
}

impl From<Error> for Status {
    fn from(e: Error) -> Self {
        let code = match &e {
            Error::NotFound(_) => Code::NotFound,
            Error::Invalid(_) => Code::InvalidArgument,
            Error::State(_) => Code::FailedPrecondition,
            Error::Timeout(_) => Code::DeadlineExceeded,
            Error::Unsupported(_) => Code::Unimplemented,
            Error::Failed(_) => Code::Unknown,
        };
        Self::new(code, e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_grpc_code() {
        let code = |e: Error| Status::from(e).code();
        assert_eq!(code(Error::NotFound("x".into())), Code::NotFound);
        assert_eq!(code(Error::Invalid("x".into())), Code::InvalidArgument);
        assert_eq!(code(Error::Timeout("x".into())), Code::DeadlineExceeded);
    }
}
