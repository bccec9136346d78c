//! Network devices of the host that move into the container, with their addresses: as much of rtnetlink(7) as that takes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use gantry_sys::namespaces::{Kind, enter};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::error::{Context, Result};
use crate::spec::NetDevice;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE_ONLY: u16 = 0x600;

const LINK_NAME: u16 = 3;
const LINK_NAMESPACE: u16 = 28;

/// An address as the kernel tells and takes it: family, length, attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

/// Moves devices from this process's network namespace into `target`, sets them up there, and gives them their permanent
/// addresses of global scope back, which the kernel takes away on the way.
///
/// # Errors
/// There is no such device, its new name is taken, or the kernel does not let it move.
pub(crate) fn move_in(devices: &BTreeMap<String, NetDevice>, target: &File) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let own = File::open("/proc/self/ns/net").context(|| "open the host's network namespace".to_owned())?;
    let host = Netlink::open().context(|| "talk to the kernel about network devices".to_owned())?;
    for (name, device) in devices {
        let inside = if device.name.is_empty() { name } else { &device.name };
        let what = || format!("linux.netDevices.{name}");
        let index = nix::net::if_::if_nametoindex(name.as_str()).context(what)?;
        let addresses = host.addresses(index).context(what)?;
        host.send_away(index, target, inside).context(|| format!("linux.netDevices.{name}: move it as {inside}"))?;
        enter(target, Kind::Network).context(what)?;
        let set = set_up(inside, &addresses);
        enter(&own, Kind::Network).context(|| "go back to the host's network namespace".to_owned())?;
        set.context(|| format!("linux.netDevices.{name}: set up {inside}"))?;
    }
    Ok(())
}

fn set_up(name: &str, addresses: &[Address]) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex(name)?;
    let inside = Netlink::open()?;
    for address in addresses {
        inside.add(index, address)?;
    }
    inside.up(index)
}

struct Netlink(OwnedFd);

impl Netlink {
    /// A socket for this process's network namespace, which it stays in.
    fn open() -> io::Result<Self> {
        // The first protocol of the family is the one about links and addresses.
        Ok(Self(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?))
    }

    fn send_away(&self, index: u32, target: &File, name: &str) -> io::Result<()> {
        let namespace = (target.as_fd().as_raw_fd() as u32).to_ne_bytes().to_vec();
        let name = [name.as_bytes(), b"\0"].concat();
        self.ask(SET_LINK, 0, &link(index, 0), &[(LINK_NAMESPACE, namespace), (LINK_NAME, name)])
    }

    fn up(&self, index: u32) -> io::Result<()> {
        self.ask(SET_LINK, 0, &link(index, libc::IFF_UP as u32), &[])
    }

    fn add(&self, index: u32, address: &Address) -> io::Result<()> {
        let mut head = vec![address.family, address.prefix, 0, 0];
        head.extend(index.to_ne_bytes());
        self.ask(NEW_ADDRESS, CREATE_ONLY, &head, &address.attributes)
    }

    /// Sends a request that is answered by yes or no.
    fn ask(&self, kind: u16, flags: u16, head: &[u8], attributes: &[(u16, Vec<u8>)]) -> io::Result<()> {
        send(&self.0, &message(kind, REQUEST | ACK | flags, head, attributes), SendFlags::empty())?;
        let mut done = Ok(());
        self.hear(|kind, body| {
            if kind == ERROR {
                done = outcome(body);
            }
            kind != ERROR
        })?;
        done
    }

    /// The addresses of a device that are to go with it.
    fn addresses(&self, index: u32) -> io::Result<Vec<Address>> {
        send(&self.0, &message(GET_ADDRESS, REQUEST | DUMP, &[0; 8], &[]), SendFlags::empty())?;
        let (mut all, mut done) = (Vec::new(), Ok(()));
        self.hear(|kind, body| {
            match kind {
                NEW_ADDRESS => all.extend(address(body, index)),
                ERROR => done = outcome(body),
                _ => {}
            }
            !matches!(kind, ERROR | DONE)
        })?;
        done.map(|()| all)
    }

    /// Takes messages in as long as `take` wants more.
    fn hear(&self, mut take: impl FnMut(u16, &[u8]) -> bool) -> io::Result<()> {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let (length, _) = recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((kind, body, after)) = split(rest) {
                if !take(kind, body) {
                    return Ok(());
                }
                rest = after;
            }
        }
    }
}

/// The first message of some, and the others.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn outcome(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(-libc::EIO, i32::from_ne_bytes);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

/// An address of the device, if it is one that was set for good and for use beyond this host.
fn address(body: &[u8], wanted: u32) -> Option<Address> {
    const PERMANENT: u32 = 0x80;
    const FLAGS: u16 = 8;
    // What the kernel takes again: the address and its peer, label and broadcast stay as it makes them.
    const KEPT: [u16; 3] = [1, 2, 4];
    let (head, mut rest) = body.split_at_checked(8)?;
    let index = u32::from_ne_bytes(head[4..8].try_into().ok()?);
    let mut flags = u32::from(head[2]);
    let mut attributes = Vec::new();
    while let Some(length) = rest.get(..2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes) {
        let length = usize::from(length);
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        match kind {
            FLAGS => flags = u32::from_ne_bytes(value.try_into().ok()?),
            kind if KEPT.contains(&kind) => attributes.push((kind, value.to_vec())),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let good = index == wanted && flags & PERMANENT != 0 && head[3] == 0;
    good.then_some(Address { family: head[0], prefix: head[1], attributes })
}

/// What stands before the attributes of a link: its number, and flags to set.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut head = vec![0; 4];
    head.extend(index.to_ne_bytes());
    head.extend(flags.to_ne_bytes());
    head.extend(flags.to_ne_bytes());
    head
}

fn message(kind: u16, flags: u16, head: &[u8], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(head);
    for (kind, value) in attributes {
        bytes.extend((value.len() as u16 + 4).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_read_as_they_are_written() {
        let head = [2, 24, 0x80, 0, 7, 0, 0, 0];
        let bytes =
            message(NEW_ADDRESS, 0, &head, &[(1, vec![10, 1, 2, 3]), (3, b"eth0\0".to_vec()), (2, vec![10, 1, 2, 3])]);
        let twice = [bytes.clone(), bytes].concat();
        let (kind, body, rest) = split(&twice).unwrap();
        assert_eq!((kind, rest.len()), (NEW_ADDRESS, twice.len() / 2));
        let found = address(body, 7).unwrap();
        assert_eq!((found.family, found.prefix), (2, 24));
        assert_eq!(found.attributes, [(1, vec![10, 1, 2, 3]), (2, vec![10, 1, 2, 3])]);
        assert_eq!(address(body, 8), None, "of another device");
        assert!(split(&rest[..20]).is_none(), "cut off");
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = split(&bytes).map(|(_, body, _)| address(body, 1));
            let _ = address(&bytes, 1);
            let _ = outcome(&bytes);
        }
    }
}
