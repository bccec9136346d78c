//! The runtime's error: what was being done, to what, and why it failed, as one line for engines to show.

use std::fmt;

/// The result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// A chain of what was being done, outermost first, ending with why it failed.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    /// An error with its whole text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Adds what was being done to an error.
pub trait Context<T> {
    /// Puts `what` before the error's text.
    ///
    /// # Errors
    /// Those of the value itself.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error(format!("{}: {}", what(), plain(&e.to_string()))))
    }
}

/// System errors read as runc's do: without the number that Rust adds, lower case.
fn plain(text: &str) -> String {
    let text = text.split(" (os error ").next().unwrap_or(text);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) if text.chars().nth(1).is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

/// Returns early with a formatted error.
#[macro_export]
macro_rules! fail {
    ($($words:tt)*) => { return Err($crate::Error::new(format!($($words)*))) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_read_from_the_outside_in() {
        let error = std::io::Error::from_raw_os_error(2);
        let text = Err::<(), _>(error).context(|| "open /x".to_owned()).unwrap_err().to_string();
        assert_eq!(text, "open /x: no such file or directory");
    }
}
