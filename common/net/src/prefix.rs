//! Networks: an address and how many of its bits are the network's. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address of a device with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network.
    pub length: u8,
}

impl Prefix {
    /// An address with a length that fits its family.
    pub fn new(ip: IpAddr, length: u8) -> Option<Self> {
        (length <= if ip.is_ipv4() { 32 } else { 128 }).then_some(Self { ip, length })
    }

    /// The address alone.
    pub fn host(ip: IpAddr) -> Self {
        Self { ip, length: if ip.is_ipv4() { 32 } else { 128 } }
    }

    /// The network that the address is in.
    pub fn network(self) -> Self {
        let ip = match self.ip {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & mask32(self.length)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & mask128(self.length)).into(),
        };
        Self { ip, length: self.length }
    }

    /// The highest address of the network.
    pub fn last(self) -> IpAddr {
        match self.ip {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() | !mask32(self.length)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() | !mask128(self.length)).into(),
        }
    }

    /// Whether an address is in the network.
    pub fn contains(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.ip.is_ipv4() && Self { ip, length: self.length }.network() == self.network()
    }
}

fn mask32(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

fn mask128(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an address with a prefix length, such as 10.88.0.1/16");
        let (ip, length) = text.split_once('/').ok_or_else(wrong)?;
        Self::new(ip.parse().map_err(|_| wrong())?, length.parse().map_err(|_| wrong())?).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_know_their_networks() {
        let prefix: Prefix = "10.88.3.4/16".parse().unwrap();
        assert_eq!(prefix.network().to_string(), "10.88.0.0/16");
        assert_eq!(prefix.last().to_string(), "10.88.255.255");
        assert!(prefix.contains("10.88.9.9".parse().unwrap()) && !prefix.contains("10.89.0.1".parse().unwrap()));
        let six: Prefix = "fd00:1::5/64".parse().unwrap();
        assert_eq!(six.network().to_string(), "fd00:1::/64");
        assert!(!six.contains("10.88.9.9".parse().unwrap()));
        let all: Prefix = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("192.0.2.1".parse().unwrap()));
        for wrong in ["10.0.0.1", "10.0.0.1/33", "x/8", "fd00::/129", ""] {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
        }
    }
}
