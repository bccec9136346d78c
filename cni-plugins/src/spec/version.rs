//! Versions of the specification.

use std::fmt;

use super::error::{Code, Error};

/// Every version that the plugins speak, oldest first.
pub const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The newest version.
pub const LATEST: Version = Version { major: 1, minor: 1, patch: 0 };

/// One version; compares by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u8,
    minor: u8,
    patch: u8,
}

impl Version {
    /// A version by its numbers.
    pub const fn new(major: u8, minor: u8, patch: u8) -> Self {
        Self { major, minor, patch }
    }

    /// Reads the `cniVersion` of a configuration; an absent one means 0.1.0.
    ///
    /// # Errors
    /// It is none of [`SUPPORTED`] (code 1).
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self::new(0, 1, 0));
        }
        if !SUPPORTED.contains(&text) {
            let known = SUPPORTED.join(", ");
            let why = format!("config is \"{text}\", plugin supports [{known}]");
            return Err(Error::new(Code::IncompatibleVersion, "incompatible CNI versions").details(why));
        }
        let mut numbers = text.split('.').map(|n| n.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Ok(Self::new(next(), next(), next()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_versions_are_read_in_order_of_age() {
        let all: Vec<_> = SUPPORTED.iter().map(|v| Version::parse(v).unwrap()).collect();
        assert!(all.is_sorted());
        assert_eq!(all[4].to_string(), "0.4.0");
        assert_eq!(Version::parse("").unwrap().to_string(), "0.1.0");
        for wrong in ["2.0.0", "1.0", "x", "1.1.1"] {
            assert_eq!(Version::parse(wrong).unwrap_err().code, Code::IncompatibleVersion, "{wrong}");
        }
    }
}
