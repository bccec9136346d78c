//! Neighbours: which hardware address an IP address has on a device, and behind which address of the underlay a hardware
//! address of a VXLAN device is (its forwarding database).

use std::io;
use std::net::IpAddr;

use crate::message::{CREATE, DUMP, Message, REPLACE, Received, u16_at, u32_at};
use crate::socket::Socket;

const NEW: u16 = 28;
const DELETE: u16 = 29;
const GET: u16 = 30;
const AF_BRIDGE: u8 = 7;
const PERMANENT: u16 = 0x80;
const STALE: u16 = 0x04;
const SELF: u8 = 2;
const DESTINATION: u16 = 1;
const MAC: u16 = 2;

/// An entry that stays until it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Neighbour {
    /// The hardware address of an IP address.
    Arp {
        /// Device.
        device: u32,
        /// Address.
        ip: IpAddr,
        /// Hardware address.
        mac: [u8; 6],
    },
    /// The underlay's address behind which a hardware address is.
    Fdb {
        /// VXLAN device.
        device: u32,
        /// Hardware address.
        mac: [u8; 6],
        /// Address of the other end.
        to: IpAddr,
    },
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

impl Neighbour {
    fn message(&self, kind: u16, flags: u16, state: u16) -> Message {
        let (family, device, ip, mac, entry_flags) = match *self {
            Self::Arp { device, ip, mac } => (if ip.is_ipv4() { 2 } else { 10 }, device, ip, mac, 0),
            Self::Fdb { device, mac, to } => (AF_BRIDGE, device, to, mac, SELF),
        };
        let mut fixed = vec![family, 0, 0, 0];
        fixed.extend(device.to_ne_bytes());
        fixed.extend(state.to_ne_bytes());
        fixed.extend([entry_flags, 0]);
        let mut message = Message::new(kind, flags, &fixed);
        message.put(DESTINATION, &octets(ip)).put(MAC, &mac);
        message
    }

    /// The request that sets it, in the place of another one for the same address.
    pub fn replace(&self) -> Message {
        self.message(NEW, CREATE | REPLACE, PERMANENT)
    }

    /// The request that sets it as something once heard, in the place of another one for the same address: it is used at once,
    /// then verified, and forgotten when nobody uses it.
    pub fn heard_of(&self) -> Message {
        self.message(NEW, CREATE | REPLACE, STALE)
    }

    /// The request that removes it.
    pub fn delete(&self) -> Message {
        self.message(DELETE, 0, PERMANENT)
    }

    /// Reads a permanent entry from a message of the kernel.
    pub fn heard(message: &Received<'_>) -> Option<Self> {
        if !matches!(message.kind, NEW | DELETE) {
            return None;
        }
        let (fixed, attributes) = message.split(12)?;
        let device = u32_at(fixed, 4)?;
        if u16_at(fixed, 8)? & PERMANENT == 0 {
            return None;
        }
        let mac = attributes.find(MAC)?.try_into().ok()?;
        let destination = attributes.find(DESTINATION)?;
        let ip = <[u8; 4]>::try_from(destination)
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(destination).map(IpAddr::from))
            .ok()?;
        Some(match fixed[0] {
            AF_BRIDGE => Self::Fdb { device, mac, to: ip },
            _ => Self::Arp { device, ip, mac },
        })
    }
}

impl Socket {
    /// The permanent neighbours of a device: addresses and forwarding database.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn neighbours(&mut self, device: u32) -> io::Result<Vec<Neighbour>> {
        let mut found = Vec::new();
        for family in [2, 10, AF_BRIDGE] {
            let mut fixed = vec![family, 0, 0, 0];
            fixed.extend(device.to_ne_bytes());
            fixed.extend([0; 4]);
            self.query(Message::new(GET, DUMP, &fixed), |m| {
                let of = |n: &Neighbour| match n {
                    Neighbour::Arp { device: d, .. } | Neighbour::Fdb { device: d, .. } => *d == device,
                };
                found.extend(Neighbour::heard(m).filter(of));
            })?;
        }
        Ok(found)
    }
}
