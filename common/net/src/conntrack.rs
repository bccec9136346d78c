//! Connection tracking: forgetting flows whose destination is gone, which would otherwise go on for as long as packets come.

use std::io;

use crate::message::{ACK, Attributes, DUMP, Message, Received};
use crate::socket::Socket;

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_PROTO`, `CTA_FILTER`.
const ORIGINAL: u16 = 1;
const PROTOCOL: u16 = 2;
const FILTER: u16 = 25;
const UDP: u8 = 17;
/// More ports than this are not asked for one by one.
const FEW: usize = 8;

/// Asks for flows; the kernel leaves out those of other protocols and ports (before Linux 5.8 it tells all).
fn dump(family: u8, port: Option<u16>) -> Message {
    let mut message = Message::new(GET, DUMP, &[family, 0, 0, 0]);
    if let Some(port) = port {
        message.nest(ORIGINAL, |tuple| {
            tuple.nest(PROTOCOL, |protocol| protocol.put_u8(1, UDP).put(3, &port.to_be_bytes()))
        });
        // Of the original direction, protocol (bit 3) and destination port (bit 5) count.
        message.nest(FILTER, |filter| filter.put_u32(1, 1 << 3 | 1 << 5));
    }
    message
}

/// Forgets flows of UDP that were sent to one of these ports of this host. Returns how many.
///
/// # Errors
/// The kernel's errno. A host without connection tracking has nothing to forget.
pub fn forget_udp(socket: &mut Socket, ports: &[u16]) -> io::Result<usize> {
    let mut forgotten = 0;
    for family in [2u8, 10] {
        let mut tuples = Vec::new();
        let mut each = |m: &Received<'_>| {
            let Some((_, attributes)) = m.split(4) else { return };
            let Some(original) = attributes.find(ORIGINAL) else { return };
            if let Some(port) = udp_port(Attributes(original))
                && ports.contains(&port)
            {
                tuples.push(original.to_vec());
            }
        };
        let asked: Vec<_> = if ports.len() > FEW { vec![None] } else { ports.iter().map(|p| Some(*p)).collect() };
        for port in asked {
            match socket.query(dump(family, port), &mut each) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)) => {}
                other => other?,
            }
        }
        for tuple in tuples {
            let mut message = Message::new(DELETE, ACK, &[family, 0, 0, 0]);
            message.nest(ORIGINAL, |m| m.raw(&tuple));
            match socket.request(message) {
                Ok(()) => forgotten += 1,
                // It ended by itself meanwhile.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(forgotten)
}

/// The destination port of a UDP tuple.
fn udp_port(tuple: Attributes<'_>) -> Option<u16> {
    let protocol = tuple.nested(PROTOCOL);
    (protocol.find(1)?.first() == Some(&UDP)).then_some(())?;
    Some(u16::from_be_bytes(protocol.find(3)?.get(..2)?.try_into().ok()?))
}
