//! Which kernel this is: some questions cannot be tried out without a line in its log.

/// Whether the running kernel is of this version or a newer one.
pub fn at_least(major: u32, minor: u32) -> bool {
    version(&rustix::system::uname().release().to_string_lossy()) >= (major, minor)
}

/// The first two numbers of a release such as `6.1.0-28-cloud-amd64`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        for (release, want) in [
            ("6.1.0-28-cloud-amd64", (6, 1)),
            ("6.18.2", (6, 18)),
            ("7.0-rc1+", (7, 0)),
            ("5.15.0-1045-aws", (5, 15)),
            ("", (0, 0)),
        ] {
            assert_eq!(version(release), want, "{release}");
        }
        assert!(version("6.10.1") > version("6.9.12"));
    }
}
