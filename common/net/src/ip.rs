//! Addresses and routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::message::{CREATE, DUMP, EXCL, Message, REPLACE, Received, u32_at};
pub use crate::prefix::Prefix;
use crate::socket::Socket;

const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_CONFIGURATION: u16 = 80;
const GET_CONFIGURATION: u16 = 82;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;

const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;

const MAIN_TABLE: u32 = 254;
const LOCAL_TABLE: u32 = 255;
const PROTOCOL_STATIC: u8 = 4;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const UNICAST: u8 = 1;
const ONLINK: u32 = 4;

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn address_message(kind: u16, flags: u16, index: u32, prefix: Prefix) -> Message {
    checked_address_message(kind, flags, index, prefix, prefix.ip.is_ipv4())
}

fn checked_address_message(kind: u16, flags: u16, index: u32, prefix: Prefix, check: bool) -> Message {
    const NO_CHECK: u8 = 2;
    let address_flags = if check { 0 } else { NO_CHECK };
    let mut fixed = vec![family(prefix.ip), prefix.length, address_flags, SCOPE_UNIVERSE];
    fixed.extend(index.to_ne_bytes());
    let mut message = Message::new(kind, flags, &fixed);
    let octets = octets(prefix.ip);
    message.put(2, &octets).put(1, &octets);
    if let (IpAddr::V4(broadcast), true) = (prefix.last(), prefix.length < 31) {
        message.put(4, &broadcast.octets());
    }
    message
}

/// The request that gives a device an address. IPv6 addresses skip duplicate detection: who hands them out knows that they
/// are free.
pub fn add_address(index: u32, prefix: Prefix) -> Message {
    address_message(NEW_ADDRESS, CREATE | EXCL, index, prefix)
}

/// The request that gives a device an address that is looked for on the link first (duplicate address detection, IPv6 only):
/// until [`Socket::checked`] it is not used.
pub fn add_checked_address(index: u32, prefix: Prefix) -> Message {
    checked_address_message(NEW_ADDRESS, CREATE | EXCL, index, prefix, true)
}

/// What duplicate address detection has found out about a device's addresses of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// It is not over.
    Pending,
    /// Nobody else has any of them.
    Unique,
    /// Somebody else has this one.
    Duplicate(IpAddr),
}

/// `RTMGRP_IPV6_IFADDR`, for [`Socket::subscribe`]: what becomes of IPv6 addresses.
pub const CHANGES_OF_IPV6_ADDRESSES: u32 = 0x100;

/// The request that takes an address from a device.
pub fn delete_address(index: u32, prefix: Prefix) -> Message {
    address_message(DELETE_ADDRESS, 0, index, prefix)
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination network.
    pub to: Prefix,
    /// Next router.
    pub gateway: Option<IpAddr>,
    /// Device.
    pub device: u32,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Only neighbours of the device (scope link).
    pub link_scope: bool,
    /// The gateway counts as a neighbour although no address of the device says so.
    pub onlink: bool,
    /// Routing table.
    pub table: u32,
    /// Metric; lower wins.
    pub priority: u32,
    /// MTU of the route.
    pub mtu: Option<u32>,
    /// Advertised MSS.
    pub advmss: Option<u32>,
    /// `rtm_protocol`; 4 is static, 2 the kernel's own.
    pub protocol: u8,
}

impl Route {
    /// A route to a network over a device.
    pub fn new(to: Prefix, gateway: Option<IpAddr>, device: u32) -> Self {
        Self {
            to,
            gateway,
            device,
            source: None,
            link_scope: false,
            onlink: false,
            table: MAIN_TABLE,
            priority: 0,
            mtu: None,
            advmss: None,
            protocol: PROTOCOL_STATIC,
        }
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let scope = if self.link_scope { SCOPE_LINK } else { SCOPE_UNIVERSE };
        let table = u8::try_from(self.table).unwrap_or(0);
        let mut fixed = vec![family(self.to.ip), self.to.length, 0, 0, table, self.protocol, scope, UNICAST];
        fixed.extend(if self.onlink { ONLINK } else { 0 }.to_ne_bytes());
        let mut message = Message::new(kind, flags, &fixed);
        if self.to.length > 0 {
            message.put(1, &octets(self.to.network().ip));
        }
        if let Some(gateway) = self.gateway {
            message.put(5, &octets(gateway));
        }
        if self.device != 0 {
            message.put_u32(4, self.device);
        }
        if let Some(source) = self.source {
            message.put(7, &octets(source));
        }
        if self.priority != 0 {
            message.put_u32(6, self.priority);
        }
        message.put_u32(15, self.table);
        if self.mtu.is_some() || self.advmss.is_some() {
            message.nest(8, |metrics| {
                for (kind, value) in [(2, self.mtu), (8, self.advmss)] {
                    if let Some(value) = value {
                        metrics.put_u32(kind, value);
                    }
                }
                metrics
            });
        }
        message
    }

    /// The request that adds it; an equal one that is there already is an error (EEXIST).
    pub fn add(&self) -> Message {
        self.message(NEW_ROUTE, CREATE | EXCL)
    }

    /// The request that adds it or takes the place of one to the same network.
    pub fn replace(&self) -> Message {
        self.message(NEW_ROUTE, CREATE | REPLACE)
    }

    /// The request that removes it.
    pub fn delete(&self) -> Message {
        self.message(DELETE_ROUTE, 0)
    }

    /// Reads a route from a message of the kernel: the route, and whether it is gone.
    pub fn heard(message: &Received<'_>) -> Option<(Self, bool)> {
        if !matches!(message.kind, NEW_ROUTE | DELETE_ROUTE) {
            return None;
        }
        let (fixed, attributes) = message.split(12)?;
        let any = if fixed[0] == 2 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        if fixed[7] != UNICAST {
            return None;
        }
        let to = attributes.find(1).and_then(address).unwrap_or(any);
        let mut route = Self::new(Prefix::new(to, fixed[1])?, None, 0);
        route.protocol = fixed[5];
        route.link_scope = fixed[6] == SCOPE_LINK;
        route.onlink = u32_at(fixed, 8)? & ONLINK != 0;
        route.table = attributes.find(15).and_then(|b| u32_at(b, 0)).unwrap_or(u32::from(fixed[4]));
        route.gateway = attributes.find(5).and_then(address);
        route.source = attributes.find(7).and_then(address);
        route.device = attributes.find(4).and_then(|b| u32_at(b, 0)).unwrap_or(0);
        route.priority = attributes.find(6).and_then(|b| u32_at(b, 0)).unwrap_or(0);
        Some((route, message.kind == DELETE_ROUTE))
    }
}

/// A rule: packets from an address are led by another routing table (rtnetlink(7), `fib_rule_hdr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Source of the packets.
    pub from: Prefix,
    /// Routing table.
    pub table: u32,
}

impl Rule {
    fn message(&self, kind: u16, flags: u16) -> Message {
        const TO_TABLE: u8 = 1;
        let table = u8::try_from(self.table).unwrap_or(0);
        let fixed = [family(self.from.ip), 0, self.from.length, 0, table, 0, 0, TO_TABLE, 0, 0, 0, 0];
        let mut message = Message::new(kind, flags, &fixed);
        message.put(2, &octets(self.from.ip)).put_u32(15, self.table);
        message
    }

    /// The request that adds it; an equal one that is there already is an error (EEXIST).
    pub fn add(&self) -> Message {
        self.message(NEW_RULE, CREATE | EXCL)
    }

    /// The request that removes it.
    pub fn delete(&self) -> Message {
        self.message(DELETE_RULE, 0)
    }

    /// Reads a rule that has a source; others are none of ours.
    fn read(message: &Received<'_>) -> Option<Self> {
        let (fixed, attributes) = message.split(12)?;
        let from = Prefix::new(attributes.find(2).and_then(address)?, fixed[2])?;
        let table = attributes.find(15).and_then(|b| u32_at(b, 0)).unwrap_or(u32::from(fixed[4]));
        (message.kind == NEW_RULE).then_some(Self { from, table })
    }
}

impl Socket {
    /// Whether the host forwards packets of IPv4 or IPv6. Not from `/proc/sys/net`: there the kernel goes through the names of
    /// all network namespaces, which on a node with many pods takes longer than all else.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn forwards(&mut self, four: bool) -> io::Result<bool> {
        let mut message = Message::new(GET_CONFIGURATION, 0, &[if four { 2 } else { 10 }, 0, 0, 0]);
        // NETCONFA_IFINDEX with NETCONFA_IFINDEX_ALL.
        message.put(1, &(-1i32).to_ne_bytes());
        let mut forwards = false;
        self.query(message, |m| {
            let forwarding = m.split(4).and_then(|(_, attributes)| u32_at(attributes.find(2)?, 0));
            forwards |= m.kind == NEW_CONFIGURATION && forwarding.is_some_and(|f| f != 0);
        })?;
        Ok(forwards)
    }

    /// The addresses of a device, or of all (`None`): device and address.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn addresses(&mut self, device: Option<u32>) -> io::Result<Vec<(u32, Prefix)>> {
        self.addresses_of(0, device)
    }

    /// The same for one family (`four`): a host with many devices has many addresses of IPv6.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn addresses_in(&mut self, four: bool, device: Option<u32>) -> io::Result<Vec<(u32, Prefix)>> {
        self.addresses_of(if four { 2 } else { 10 }, device)
    }

    fn addresses_of(&mut self, family: u8, device: Option<u32>) -> io::Result<Vec<(u32, Prefix)>> {
        let mut found = Vec::new();
        let mut fixed = vec![family, 0, 0, 0];
        fixed.extend(device.unwrap_or(0).to_ne_bytes());
        if device.is_some() {
            self.strict(true);
        }
        let asked = self.query(Message::new(GET_ADDRESS, DUMP, &fixed), |m| {
            let read = || {
                let (fixed, attributes) = m.split(8)?;
                let index = u32_at(fixed, 4)?;
                // IFA_LOCAL is the own address on point-to-point devices, where IFA_ADDRESS is the peer's.
                let ip = attributes.find(2).or_else(|| attributes.find(1)).and_then(address)?;
                Some((index, Prefix::new(ip, fixed[1])?))
            };
            found.extend(read().filter(|(index, _)| device.is_none_or(|d| d == *index)));
        });
        if device.is_some() {
            self.strict(false);
        }
        asked.map(|()| found)
    }

    /// How far duplicate address detection of a device's addresses is.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn checked(&mut self, device: u32) -> io::Result<Checked> {
        const FAILED: u32 = 0x08;
        const TENTATIVE: u32 = 0x40;
        let mut state = Checked::Unique;
        self.query(Message::new(GET_ADDRESS, DUMP, &[10, 0, 0, 0, 0, 0, 0, 0]), |m| {
            let read = || {
                let (fixed, attributes) = m.split(8)?;
                let flags = attributes.find(8).and_then(|b| u32_at(b, 0)).unwrap_or(u32::from(fixed[2]));
                let ip = attributes.find(1).and_then(address)?;
                (u32_at(fixed, 4)? == device).then_some((ip, flags))
            };
            match (read(), state) {
                (Some((ip, flags)), _) if flags & FAILED != 0 => state = Checked::Duplicate(ip),
                (Some((_, flags)), Checked::Unique) if flags & TENTATIVE != 0 => state = Checked::Pending,
                _ => {}
            }
        })?;
        Ok(state)
    }

    /// All unicast routes of all tables but the kernel's own of local addresses.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn all_routes(&mut self) -> io::Result<Vec<Route>> {
        let mut found = Vec::new();
        self.query(Message::new(GET_ROUTE, DUMP, &[0; 12]), |m| {
            found.extend(Route::heard(m).map(|(route, _)| route).filter(|r| r.table != LOCAL_TABLE));
        })?;
        Ok(found)
    }

    /// The rules that lead packets from an address to a routing table.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn rules(&mut self) -> io::Result<Vec<Rule>> {
        let mut found = Vec::new();
        self.query(Message::new(GET_RULE, DUMP, &[0; 12]), |m| found.extend(Rule::read(m)))?;
        Ok(found)
    }

    /// The device by which packets to an address leave; none when there is no route to it.
    ///
    /// # Errors
    /// The kernel's errno other than that of unreachable addresses.
    pub fn way_to(&mut self, ip: IpAddr) -> io::Result<Option<u32>> {
        let mut fixed = [0; 12];
        (fixed[0], fixed[1]) = (family(ip), if ip.is_ipv4() { 32 } else { 128 });
        let mut message = Message::new(GET_ROUTE, 0, &fixed);
        message.put(1, &octets(ip));
        let mut found = None;
        match self.query(message, |m| found = Route::heard(m).map(|(route, _)| route.device)) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => Err(e),
            _ => Ok(found),
        }
    }

    /// All unicast routes of the main table.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut found = Vec::new();
        self.query(Message::new(GET_ROUTE, DUMP, &[0; 12]), |m| {
            found.extend(Route::heard(m).map(|(route, _)| route).filter(|r| r.table == MAIN_TABLE));
        })?;
        Ok(found)
    }
}
