//! The file in which the CNI plugin finds this node's network, as flannel writes it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use gantry_files::{Access, Outlives};
use gantry_net::Prefix;

use crate::config::Network;

/// The first address of a network, which is the bridge's.
fn first(subnet: Prefix) -> Prefix {
    let ip = match subnet.ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() + 1).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() + 1).into(),
    };
    Prefix { ip, length: subnet.length }
}

/// The file's text.
pub fn text(network: &Network, subnets: &[Prefix], mtu: u32, masquerade: bool) -> String {
    let mut text = String::new();
    let of = |four: bool| subnets.iter().find(|s| s.ip.is_ipv4() == four);
    for (all, own, name) in [(network.ipv4, of(true), "FLANNEL_"), (network.ipv6, of(false), "FLANNEL_IPV6_")] {
        if let (Some(all), Some(own)) = (all, own) {
            text += &format!("{name}NETWORK={all}\n{name}SUBNET={}\n", first(*own));
        }
    }
    text + &format!("FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={masquerade}\n")
}

/// Writes the file, whole, when it says something else.
///
/// # Errors
/// The folder cannot be written.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    gantry_files::replace(path, text.as_bytes(), Access::Umask, Outlives::Program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Backend;

    #[test]
    fn the_file_is_flannels() {
        let network = Network { ipv4: "10.244.0.0/16".parse().ok(), ipv6: None, backend: Backend::HostGw };
        let wanted =
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(text(&network, &["10.244.3.0/24".parse().unwrap()], 1450, true), wanted);
    }
}
