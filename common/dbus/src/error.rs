//! What can go wrong in a conversation.

/// The result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The other end cannot be reached, went away or makes no sense.
    #[error("{0}")]
    Connection(String),
    /// Nothing came in time.
    #[error("{0}")]
    Late(String),
    /// The other end answered a call with an error.
    #[error("{member} is refused: {text} ({name})")]
    Refused {
        /// The method that was called.
        member: String,
        /// The error's D-Bus name.
        name: String,
        /// Its text.
        text: String,
    },
}
