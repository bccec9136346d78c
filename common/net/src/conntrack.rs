//! Connection tracking: forgetting flows whose destination is gone, which would otherwise go on for as long as packets come.

use std::io;

use crate::message::{ACK, Attributes, DUMP, Message, Received};
use crate::socket::Socket;

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;

/// Forgets flows of UDP that were sent to one of these ports of this host. Returns how many.
///
/// # Errors
/// The kernel's errno. A host without connection tracking has nothing to forget.
pub fn forget_udp(socket: &mut Socket, ports: &[u16]) -> io::Result<usize> {
    let mut forgotten = 0;
    for family in [2u8, 10] {
        let mut tuples = Vec::new();
        let each = |m: &Received<'_>| {
            let Some((_, attributes)) = m.split(4) else { return };
            let Some(original) = attributes.find(1) else { return };
            if let Some(port) = udp_port(Attributes(original))
                && ports.contains(&port)
            {
                tuples.push(original.to_vec());
            }
        };
        match socket.query(Message::new(GET, DUMP, &[family, 0, 0, 0]), each) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)) => continue,
            other => other?,
        }
        for tuple in tuples {
            let mut message = Message::new(DELETE, ACK, &[family, 0, 0, 0]);
            message.nest(1, |m| m.raw(&tuple));
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
    let protocol = tuple.nested(2);
    (protocol.find(1)?.first() == Some(&17)).then_some(())?;
    Some(u16::from_be_bytes(protocol.find(3)?.get(..2)?.try_into().ok()?))
}
