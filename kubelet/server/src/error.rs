//! What the kubelet answers when it cannot do what a request asks; each kind has one HTTP status.

use http::StatusCode;

/// Why a request on a pod or container failed. The text is the body of the answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// 404: no such pod or container.
    #[error("{0}")]
    NotFound(String),
    /// 400: the request does not fit the container's state or is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// 500: the runtime or the system failed.
    #[error("{0}")]
    Internal(String),
}

impl NodeError {
    /// The HTTP status of the kind.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}
