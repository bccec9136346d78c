//! Links: network devices, made, changed, read and removed by name or index (rtnetlink(7)).

mod kind;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

pub use self::kind::{BorrowedFdKey, Kind, Vxlan, create};
use crate::message::{Attributes, DUMP, ECHO, Message, Received, text, u32_at};
use crate::socket::Socket;

const NEW: u16 = 16;
const DELETE: u16 = 17;
const GET: u16 = 18;
const SET: u16 = 19;

const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const PARENT: u16 = 5;
const MASTER: u16 = 10;
const PORT: u16 = 12;
const ALIAS: u16 = 20;
const QUEUE: u16 = 13;
const STATE: u16 = 16;
const INFO: u16 = 18;
const AF_SPEC: u16 = 26;
const NETNS_FD: u16 = 28;
const PROMISCUITY: u16 = 30;
const LINK_NETNS: u16 = 37;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;

const MASK: u16 = 29;
const SKIP_STATISTICS: u32 = 1 << 3;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const INET_CONF: u16 = 1;
const INET6_ADDRESS_MODE: u16 = 8;

const AF_BRIDGE: u8 = 7;
/// `RTMGRP_LINK`, for [`Socket::subscribe`]: what becomes of links.
pub const CHANGES: u32 = 1;
/// `IFF_UP`.
pub const UP: u32 = 1;
/// `IFF_PROMISC`.
pub const PROMISC: u32 = 0x100;
/// `IFF_ALLMULTI`.
pub const ALLMULTI: u32 = 0x200;

/// A device as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Index, unique in its network namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address; empty where there is none.
    pub mac: Vec<u8>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// `IFF_*`.
    pub flags: u32,
    /// The bridge it is a port of.
    pub master: Option<u32>,
    /// Index of the other end of a veth pair, or the device below.
    pub peer: Option<u32>,
    /// `veth`, `bridge`, `vxlan`, ...; empty for hardware.
    pub kind: String,
    /// `IF_OPER_*`: 6 is up.
    pub state: u8,
    /// Length of the transmit queue.
    pub queue: u32,
    /// How many asked for promiscuous mode.
    pub promiscuity: u32,
    /// The peer's network namespace, as an id of this one.
    pub peer_netns: Option<u32>,
    /// A note that anyone may write.
    pub alias: String,
    /// What only this kind has, as the kernel wrote it.
    pub data: Vec<u8>,
    /// The settings below `/proc/sys/net/ipv4/conf/NAME`, by [`Ipv4Setting`].
    pub ipv4: Vec<u8>,
}

/// A setting below `/proc/sys/net/ipv4/conf/NAME` (`IPV4_DEVCONF_*`). Over netlink the kernel does not go through the names of
/// all network namespaces for it, as it does for a path below `/proc/sys/net`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv4Setting {
    /// `arp_notify`: neighbours are told a new address.
    ArpNotify = 22,
    /// `route_localnet`: packets to 127.0.0.0/8 may come from and go to other hosts.
    RouteLocalnet = 26,
}

impl Link {
    /// The hardware address as `aa:bb:cc:dd:ee:ff`.
    pub fn mac_text(&self) -> String {
        mac_text(&self.mac)
    }

    /// Whether it was set up.
    pub fn is_up(&self) -> bool {
        self.flags & UP != 0
    }

    /// A setting of IPv4; none where the kernel does not tell it.
    pub fn ipv4_setting(&self, setting: Ipv4Setting) -> Option<u32> {
        u32_at(&self.ipv4, 4 * (setting as usize - 1))
    }

    /// Whether packets pass: of some devices the kernel does not know it.
    pub fn is_running(&self) -> bool {
        const UNKNOWN: u8 = 0;
        const RUNNING: u8 = 6;
        matches!(self.state, UNKNOWN | RUNNING)
    }

    fn read(message: &Received<'_>) -> Option<Self> {
        let (fixed, attributes) = message.split(16)?;
        let mut link = Self { index: u32_at(fixed, 4)?, flags: u32_at(fixed, 8)?, ..Self::default() };
        for (kind, value) in attributes {
            match kind {
                ADDRESS => link.mac = value.to_vec(),
                NAME => link.name = text(value),
                MTU => link.mtu = u32_at(value, 0)?,
                PARENT => link.peer = u32_at(value, 0),
                MASTER => link.master = u32_at(value, 0),
                QUEUE => link.queue = u32_at(value, 0)?,
                STATE => link.state = value.first().copied()?,
                PROMISCUITY => link.promiscuity = u32_at(value, 0)?,
                ALIAS => link.alias = text(value),
                LINK_NETNS => link.peer_netns = u32_at(value, 0),
                INFO => {
                    let info = Attributes(value);
                    link.kind = info.find(INFO_KIND).map(text).unwrap_or_default();
                    link.data = info.find(INFO_DATA).unwrap_or_default().to_vec();
                }
                AF_SPEC => {
                    let four = Attributes(value).nested(AF_INET).find(INET_CONF);
                    link.ipv4 = four.unwrap_or_default().to_vec();
                }
                _ => {}
            }
        }
        Some(link)
    }

    /// Reads a link from a message heard on a subscription: the link, and whether it is gone.
    pub fn heard(message: &Received<'_>) -> Option<(Self, bool)> {
        match message.kind {
            NEW => Some((Self::read(message)?, false)),
            DELETE => Some((Self::read(message)?, true)),
            _ => None,
        }
    }
}

/// A hardware address as `aa:bb:cc:dd:ee:ff`.
pub fn mac_text(mac: &[u8]) -> String {
    mac.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

/// Reads `aa:bb:cc:dd:ee:ff` (or with dashes).
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

/// A change of an existing device; only what is set changes.
#[derive(Debug, Clone, Default)]
pub struct Change<'a> {
    /// Up or down.
    pub up: Option<bool>,
    /// Becomes a port of this bridge (0: of none).
    pub master: Option<u32>,
    /// New name; the device must be down.
    pub name: Option<&'a str>,
    /// A note; empty removes it.
    pub alias: Option<&'a str>,
    /// MTU.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<[u8; 6]>,
    /// Promiscuous mode.
    pub promisc: Option<bool>,
    /// Receives all multicast.
    pub allmulti: Option<bool>,
    /// Transmit queue length.
    pub queue: Option<u32>,
    /// Moves to this network namespace.
    pub netns: Option<BorrowedFd<'a>>,
    /// The kernel makes no link-local IPv6 address by itself (`addr_gen_mode` none).
    pub no_link_local: bool,
    /// Settings of IPv4 that are switched on.
    pub ipv4: &'a [Ipv4Setting],
}

/// The request that changes a device.
pub fn change(index: u32, change: &Change<'_>) -> Message {
    let (mut flags, mut mask) = (0, 0);
    for (wanted, bit) in [(change.up, UP), (change.promisc, PROMISC), (change.allmulti, ALLMULTI)] {
        if let Some(on) = wanted {
            mask |= bit;
            flags |= if on { bit } else { 0 };
        }
    }
    let mut message = Message::new(NEW, 0, &header(index, flags, mask));
    if let Some(name) = change.name {
        message.put_text(NAME, name);
    }
    if let Some(alias) = change.alias {
        message.put(ALIAS, alias.as_bytes());
    }
    if let Some(mac) = change.mac {
        message.put(ADDRESS, &mac);
    }
    for (kind, value) in [(MTU, change.mtu), (MASTER, change.master), (QUEUE, change.queue)] {
        if let Some(value) = value {
            message.put_u32(kind, value);
        }
    }
    if let Some(netns) = change.netns {
        message.put_u32(NETNS_FD, netns.as_raw_fd().cast_unsigned());
    }
    if change.no_link_local || !change.ipv4.is_empty() {
        message.nest(AF_SPEC, |spec| {
            if !change.ipv4.is_empty() {
                spec.nest(AF_INET, |four| {
                    four.nest(INET_CONF, |settings| {
                        for setting in change.ipv4 {
                            settings.put_u32(*setting as u16, 1);
                        }
                        settings
                    })
                });
            }
            if change.no_link_local {
                spec.nest(AF_INET6, |six| six.put_u8(INET6_ADDRESS_MODE, 1));
            }
            spec
        });
    }
    message
}

/// The request that removes a device.
pub fn delete(index: u32) -> Message {
    Message::new(DELETE, 0, &header(index, 0, 0))
}

/// How a bridge treats one of its ports; only what is set changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct BridgePort {
    /// Frames may leave by the port they came from.
    pub hairpin: Option<bool>,
    /// No traffic to other isolated ports.
    pub isolated: Option<bool>,
}

/// The request that sets a bridge port's options.
pub fn bridge_port(index: u32, port: BridgePort) -> Message {
    let mut fixed = header(index, 0, 0);
    fixed[0] = AF_BRIDGE;
    let mut message = Message::new(SET, 0, &fixed);
    message.nest(PORT, |options| {
        for (kind, value) in [(4, port.hairpin), (33, port.isolated)] {
            if let Some(on) = value {
                options.put_u8(kind, u8::from(on));
            }
        }
        options
    });
    message
}

/// The request that adds or removes a VLAN (or a range) of a bridge port, or of the bridge itself.
pub fn vlan(index: u32, range: (u16, u16), untagged: bool, on_bridge: bool, remove: bool) -> Message {
    let mut fixed = header(index, 0, 0);
    fixed[0] = AF_BRIDGE;
    let mut message = Message::new(if remove { DELETE } else { SET }, 0, &fixed);
    message.nest(AF_SPEC, |spec| {
        // Flag SELF speaks to the bridge, MASTER to the bridge of a port.
        spec.put_u16(0, if on_bridge { 2 } else { 1 });
        // PVID and untagged; or begin and end of a range.
        let base = if untagged { 0x2 | 0x4 } else { 0 };
        let entry = |flags: u16, vid: u16| [flags.to_ne_bytes(), vid.to_ne_bytes()].concat();
        if range.0 == range.1 {
            spec.put(2, &entry(base, range.0))
        } else {
            spec.put(2, &entry(base | 0x8, range.0)).put(2, &entry(base | 0x10, range.1))
        }
    });
    message
}

impl Socket {
    /// The device of a name, if there is one.
    ///
    /// # Errors
    /// The kernel's errno other than "no such device".
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = Message::new(GET, 0, &header(0, 0, 0));
        message.put_text(NAME, name).put_u32(MASK, SKIP_STATISTICS);
        self.one_link(message)
    }

    /// Makes a device by a request of [`create`], and answers how it is. Linux before 6.2 does not tell: then it is looked for.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn make(&mut self, mut request: Message, name: &str) -> io::Result<Link> {
        request.add_flags(ECHO);
        let mut made = None;
        self.query(request, |m| {
            made = made.take().or_else(|| Link::read(m).filter(|l| m.kind == NEW && l.name == name))
        })?;
        match made {
            Some(link) => Ok(link),
            None => self.link(name)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    /// The device of an index, if there is one.
    ///
    /// # Errors
    /// The kernel's errno other than "no such device".
    pub fn link_by_index(&mut self, index: u32) -> io::Result<Option<Link>> {
        let mut message = Message::new(GET, 0, &header(index, 0, 0));
        message.put_u32(MASK, SKIP_STATISTICS);
        self.one_link(message)
    }

    fn one_link(&mut self, message: Message) -> io::Result<Option<Link>> {
        let mut found = None;
        match self.query(message, |m| found = Link::read(m)) {
            Ok(()) => Ok(found),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All devices of the namespace.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.query(Message::new(GET, DUMP, &header(0, 0, 0)), |m| links.extend(Link::read(m)))?;
        Ok(links)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read_and_written() {
        assert_eq!(parse_mac("02:00:5e:10:00:ff"), Some([2, 0, 0x5e, 0x10, 0, 0xff]));
        assert_eq!(mac_text(&[2, 0, 0x5e, 0x10, 0, 0xff]), "02:00:5e:10:00:ff");
        for wrong in ["", "02:00", "02:00:5e:10:00:ff:00", "2:0:5e:10:0:ff", "zz:00:5e:10:00:ff"] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
