//! Making devices: what each kind is told.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{ADDRESS, INFO, INFO_DATA, INFO_KIND, Link, MTU, NAME, NETNS_FD, NEW, PARENT, header};
use crate::message::{Attributes, CREATE, EXCL, Message, u32_at};

/// What a new device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A pair; the peer is made in another network namespace under its own name, MTU and hardware address.
    Veth {
        /// The peer's name.
        peer: &'a str,
        /// The peer's network namespace.
        netns: BorrowedFdKey<'a>,
        /// The peer's hardware address; the kernel picks one without.
        mac: Option<[u8; 6]>,
    },
    /// A bridge.
    Bridge {
        /// Ports have VLANs.
        vlan_filtering: bool,
        /// Listens who joins multicast groups. Without somebody who asks for that (a querier), of which a bridge has none by
        /// itself, the kernel sends multicast to all ports all the same; but each port that joins or leaves starts two timers
        /// of every other port.
        mcast_snooping: bool,
    },
    /// A VXLAN tunnel end (VTEP).
    Vxlan(Vxlan),
    /// A device with an address of its own on another one.
    Macvlan {
        /// The device below.
        parent: u32,
        /// 1 private, 2 vepa, 4 bridge, 8 passthru.
        mode: u32,
        /// Broadcasts that wait for delivery; the kernel's choice without.
        queue: Option<u32>,
        /// The network namespace in which it is made.
        netns: BorrowedFdKey<'a>,
    },
    /// Traffic redirected to it can be shaped.
    Ifb,
}

/// A borrowed descriptor that compares by number.
#[derive(Debug, Clone, Copy)]
pub struct BorrowedFdKey<'a>(pub BorrowedFd<'a>);

impl PartialEq for BorrowedFdKey<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_raw_fd() == other.0.as_raw_fd()
    }
}

impl Eq for BorrowedFdKey<'_> {}

/// A tunnel end's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier (24 bits).
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Device of the underlay.
    pub parent: u32,
    /// Own address on the underlay.
    pub local: IpAddr,
    /// Learn addresses from traffic; off where all are programmed.
    pub learning: bool,
    /// Packets over IPv4 carry a checksum of the whole; it is the inner ones that matter.
    pub checksum: bool,
}

const BRIDGE_VLAN_FILTERING: u16 = 7;
const BRIDGE_SNOOPING: u16 = 23;
const TRANSMIT_QUEUES: u16 = 31;
const RECEIVE_QUEUES: u16 = 32;
const VXLAN_ID: u16 = 1;
const VXLAN_LINK: u16 = 3;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
const VXLAN_CHECKSUM: u16 = 18;

impl Vxlan {
    /// The settings of an existing device.
    pub fn of(link: &Link) -> Option<Self> {
        let data = Attributes(&link.data);
        let four = |b: &[u8]| <[u8; 4]>::try_from(b).ok().map(IpAddr::from);
        let six = |b: &[u8]| <[u8; 16]>::try_from(b).ok().map(IpAddr::from);
        Some(Self {
            vni: u32_at(data.find(VXLAN_ID)?, 0)?,
            port: u16::from_be_bytes(data.find(VXLAN_PORT)?.try_into().ok()?),
            parent: data.find(VXLAN_LINK).and_then(|b| u32_at(b, 0)).unwrap_or(0),
            local: data.find(VXLAN_LOCAL).and_then(four).or_else(|| data.find(VXLAN_LOCAL6).and_then(six))?,
            learning: data.find(VXLAN_LEARNING).is_some_and(|b| b.first() == Some(&1)),
            checksum: data.find(VXLAN_CHECKSUM).is_some_and(|b| b.first() == Some(&1)),
        })
    }
}

/// The request that makes a device.
pub fn create(name: &str, kind: &Kind<'_>, mtu: Option<u32>, mac: Option<[u8; 6]>) -> Message {
    let mut message = Message::new(NEW, CREATE | EXCL, &header(0, 0, 0));
    message.put_text(NAME, name);
    if let Some(mtu) = mtu {
        message.put_u32(MTU, mtu);
    }
    if let Some(mac) = mac {
        message.put(ADDRESS, &mac);
    }
    if let Kind::Macvlan { parent, netns, .. } = kind {
        message.put_u32(PARENT, *parent).put_u32(NETNS_FD, netns.0.as_raw_fd().cast_unsigned());
    }
    // Of more queues the kernel uses one until it is told otherwise, but it makes and removes one for each processor.
    let one_queue = |m: &mut Message| {
        m.put_u32(TRANSMIT_QUEUES, 1).put_u32(RECEIVE_QUEUES, 1);
    };
    if matches!(kind, Kind::Veth { .. }) {
        one_queue(&mut message);
    }
    message.nest(INFO, |info| match kind {
        Kind::Veth { peer, netns, mac } => info.put_text(INFO_KIND, "veth").nest(INFO_DATA, |data| {
            data.nest(1, |other| {
                other.raw(&header(0, 0, 0)).put_text(NAME, peer);
                other.put_u32(NETNS_FD, netns.0.as_raw_fd().cast_unsigned());
                one_queue(other);
                if let Some(mtu) = mtu {
                    other.put_u32(MTU, mtu);
                }
                if let Some(mac) = mac {
                    other.put(ADDRESS, mac);
                }
                other
            })
        }),
        Kind::Bridge { vlan_filtering, mcast_snooping } => info.put_text(INFO_KIND, "bridge").nest(INFO_DATA, |data| {
            if *vlan_filtering {
                data.put_u8(BRIDGE_VLAN_FILTERING, 1);
            }
            if !*mcast_snooping {
                data.put_u8(BRIDGE_SNOOPING, 0);
            }
            data
        }),
        Kind::Vxlan(vxlan) => info.put_text(INFO_KIND, "vxlan").nest(INFO_DATA, |data| {
            data.put_u32(VXLAN_ID, vxlan.vni).put(VXLAN_PORT, &vxlan.port.to_be_bytes());
            data.put_u32(VXLAN_LINK, vxlan.parent).put_u8(VXLAN_LEARNING, u8::from(vxlan.learning));
            data.put_u8(VXLAN_CHECKSUM, u8::from(vxlan.checksum));
            match vxlan.local {
                IpAddr::V4(ip) => data.put(VXLAN_LOCAL, &ip.octets()),
                IpAddr::V6(ip) => data.put(VXLAN_LOCAL6, &ip.octets()),
            }
        }),
        Kind::Macvlan { mode, queue, .. } => info.put_text(INFO_KIND, "macvlan").nest(INFO_DATA, |data| {
            data.put_u32(1, *mode);
            if let Some(queue) = queue {
                data.put_u32(7, *queue);
            }
            data
        }),
        Kind::Ifb => info.put_text(INFO_KIND, "ifb"),
    });
    message
}
