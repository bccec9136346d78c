//! Does this kernel send packets in a tunnel with right checksums? Some computed that of the outer header where it was to be
//! none, as soon as the packet's address was translated while its inner checksum was left to the device (fixed in Linux 5.7):
//! every receiver drops such packets, and connections through services hang. What a kernel does is not told by its version,
//! so a packet is sent through a tunnel of the same kind between two network namespaces of the probe's own, translated on its
//! way, and looked at.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gantry_net::ip::add_address;
use gantry_net::link::{self, BorrowedFdKey, Change, Kind, Vxlan};
use gantry_net::nft::{Batch, Expr, Hook, R0};
use gantry_net::{Neighbour, Prefix, Socket};
use gantry_sys::{ethtool, namespaces};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The packet came as it was sent.
    Right,
    /// It did not, for this reason.
    Wrong(String),
}

const OUTER: [Ipv4Addr; 3] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(192, 0, 2, 9)];
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)];
const PORT: u16 = 8472;
const VNI: u32 = 1;
/// What is sent while the kernel computes checksums, and when they are left to the device.
const TEXTS: [&[u8]; 2] = [b"does this arrive as it was sent?", b"and this, with a checksum to do?"];
/// The first packets may find devices that are not ready yet.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);

/// Sends packets: first with checksums that the kernel computes, which must arrive, then with such as are left to the device.
/// `checksum`: over IPv4 the tunnel's packets have one of the whole. The calling thread ends up in other namespaces.
///
/// # Errors
/// The probe cannot be made: no namespaces, no veth pairs, no translation, or nothing arrives at all.
pub fn probe(checksum: bool) -> io::Result<Verdict> {
    match namespaces::leave(libc::CLONE_NEWNET) {
        // A service may lack the right to that; inside a user namespace everybody has it.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            namespaces::leave(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)?;
        }
        other => other?,
    }
    within(checksum)
}

fn within(checksum: bool) -> io::Result<Verdict> {
    let receiver = File::open("/proc/thread-self/ns/net")?;
    namespaces::leave(libc::CLONE_NEWNET)?;
    let mut own = Socket::route()?;
    let pair = Kind::Veth { peer: "out", netns: BorrowedFdKey(receiver.as_fd()), mac: Some([2, 0, 0, 0, 0, 2]) };
    own.request(link::create("out", &pair, None, Some([2, 0, 0, 0, 0, 1])))?;
    let out = own.link("out")?.ok_or(io::ErrorKind::NotFound)?.index;
    let settings = Vxlan { vni: VNI, port: PORT, parent: out, local: OUTER[0].into(), learning: false, checksum };
    own.request(link::create("tunnel", &Kind::Vxlan(settings), Some(1450), None))?;
    let tunnel = own.link("tunnel")?.ok_or(io::ErrorKind::NotFound)?.index;
    let up = Change { up: Some(true), ..Change::default() };
    let mac = [2, 0, 0, 0, 0, 7];
    let wide = |ip: Ipv4Addr| Prefix { ip: ip.into(), length: 24 };
    let steps = vec![
        link::change(out, &up),
        link::change(tunnel, &up),
        // The packet leaves under the second address: it is translated.
        add_address(out, wide(OUTER[2])),
        add_address(out, wide(OUTER[0])),
        add_address(tunnel, wide(INNER[0])),
        Neighbour::Arp { device: tunnel, ip: INNER[1].into(), mac }.replace(),
        Neighbour::Fdb { device: tunnel, mac, to: OUTER[1].into() }.replace(),
        Neighbour::Arp { device: out, ip: OUTER[1].into(), mac: [2, 0, 0, 0, 0, 2] }.replace(),
    ];
    own.batch(steps).map_err(|(_, e)| e)?;
    translate()?;
    // The wire itself computes nothing, as hardware without this ability.
    ethtool::set_tx_checksum(&own, "out", false)?;
    ethtool::set_tx_checksum(&own, "tunnel", false)?;
    let heard = listen(receiver)?;
    let sender = UdpSocket::bind((INNER[0], 0))?;
    let Some(first) = send(&sender, &heard, TEXTS[0], PATIENCE)? else {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no packet arrives, also with checksums by the kernel"));
    };
    if let Verdict::Wrong(why) = first {
        return Err(io::Error::other(format!("{why}, also when the kernel computes them")));
    }
    ethtool::set_tx_checksum(&own, "tunnel", true)?;
    // The receiver's kernel drops what has a wrong outer checksum.
    let lost = || Verdict::Wrong("a packet whose address is translated does not arrive".to_owned());
    Ok(send(&sender, &heard, TEXTS[1], PATIENCE / 5)?.unwrap_or_else(lost))
}

/// Sends until something arrives; none when nothing does.
fn send(
    sender: &UdpSocket,
    heard: &mpsc::Receiver<Heard>,
    text: &[u8],
    patience: Duration,
) -> io::Result<Option<Verdict>> {
    let start = Instant::now();
    while start.elapsed() < patience {
        sender.send_to(text, (INNER[1], 9))?;
        match heard.recv_timeout(AGAIN) {
            // One of those sent before.
            Ok(Ok((packet, _))) if text != TEXTS[0] && packet.ends_with(TEXTS[0]) => {}
            Ok(Ok((packet, from))) => return Ok(Some(judge(&packet, from.ip(), text))),
            Ok(Err(e)) => return Err(e),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(io::Error::other("the probe's receiver ended")),
        }
    }
    Ok(None)
}

/// Packets of the tunnel get the other address.
fn translate() -> io::Result<()> {
    let mut batch = Batch::new();
    batch.table("probe", false);
    batch.chain("probe", "postrouting", Some(Hook { kind: "nat", number: 4, priority: 100 }));
    let tunnels = [Expr::Meta(16, R0), Expr::Compare(R0, true, vec![17]), Expr::Payload(2, 2, 2, R0)];
    let mut rule = tunnels.to_vec();
    rule.extend([Expr::Compare(R0, true, PORT.to_be_bytes().to_vec()), Expr::Masquerade]);
    batch.rule("probe", "postrouting", &rule);
    batch.commit(&mut Socket::netfilter()?)
}

type Heard = io::Result<(Vec<u8>, SocketAddr)>;

/// Tells the packets of the tunnel on the other side, until nobody listens any more or none has come for long. Returns when that side listens.
fn listen(namespace: File) -> io::Result<mpsc::Receiver<Heard>> {
    let (tell, heard) = mpsc::channel();
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        let prepare = || {
            namespaces::enter(&namespace, namespaces::Kind::Network)?;
            let mut own = Socket::route()?;
            let out = own.link("out")?.ok_or(io::ErrorKind::NotFound)?.index;
            let up = link::change(out, &Change { up: Some(true), ..Change::default() });
            own.batch(vec![up, add_address(out, Prefix { ip: OUTER[1].into(), length: 24 })]).map_err(|(_, e)| e)?;
            let socket = UdpSocket::bind((OUTER[1], PORT))?;
            socket.set_read_timeout(Some(2 * PATIENCE))?;
            Ok(socket)
        };
        let socket: io::Result<UdpSocket> = prepare();
        let socket = match socket {
            Ok(socket) => socket,
            Err(e) => return drop(ready.send(Err(e))),
        };
        let _ = ready.send(Ok(()));
        let mut buffer = vec![0; 2048];
        loop {
            let got = socket.recv_from(&mut buffer).map(|(n, from)| (buffer[..n].to_vec(), from));
            let last = got.is_err();
            if tell.send(got).is_err() || last {
                return;
            }
        }
    });
    is_ready.recv_timeout(PATIENCE).map_err(|_| io::Error::other("the probe's receiver does not begin"))??;
    Ok(heard)
}

/// The sum of 16-bit words in ones' complement, as RFC 1071 has it.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u32;
    for part in parts {
        for word in part.chunks(2) {
            total += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Looks at what came through the tunnel: its header, a frame, an IPv4 packet with a datagram in it.
fn judge(packet: &[u8], from: IpAddr, text: &[u8]) -> Verdict {
    const FRAME: usize = 8 + 14;
    let wrong = |text: &str| Verdict::Wrong(text.to_owned());
    let (Some(ip), Some(udp)) = (packet.get(FRAME..FRAME + 20), packet.get(FRAME + 20..)) else {
        return wrong("a packet arrives short");
    };
    if packet[4..7] != VNI.to_be_bytes()[1..] || ip[0] != 0x45 || udp.get(8..) != Some(text) {
        return wrong("a packet arrives as another");
    }
    if from != IpAddr::from(OUTER[2]) && from != IpAddr::from(OUTER[0]) {
        return wrong("a packet arrives from somewhere else");
    }
    if sum(&[ip]) != 0xffff {
        return wrong("the inner address header has a wrong checksum");
    }
    let length = (udp.len() as u16).to_be_bytes();
    if udp[6..8] != [0, 0] && sum(&[&ip[12..20], &[0, 17], &length, udp]) != 0xffff {
        return wrong("the inner datagram has a wrong checksum");
    }
    Verdict::Right
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet as a kernel without faults sends it.
    fn packet() -> Vec<u8> {
        let length = (8 + TEXTS[0].len()) as u16;
        let mut ip = vec![0x45, 0, 0, (20 + length) as u8, 0, 1, 0x40, 0, 64, 17, 0, 0];
        INNER.iter().for_each(|address| ip.extend(address.octets()));
        let check = !sum(&[&ip]);
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        let mut udp = [40000u16, 9, length, 0].iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
        udp.extend(TEXTS[0]);
        let check = !sum(&[&ip[12..20], &[0, 17], &length.to_be_bytes(), &udp]);
        udp[6..8].copy_from_slice(&check.to_be_bytes());
        [&[8, 0, 0, 0, 0, 0, 1, 0][..], &[0; 14], &ip, &udp].concat()
    }

    #[test]
    fn a_right_packet_is_right_and_any_changed_byte_is_noticed() {
        let from = OUTER[2].into();
        assert_eq!(judge(&packet(), from, TEXTS[0]), Verdict::Right);
        for at in 8 + 14..packet().len() {
            let mut changed = packet();
            changed[at] ^= 0x10;
            assert_ne!(judge(&changed, from, TEXTS[0]), Verdict::Right, "byte {at}");
        }
        for length in 0..packet().len() {
            assert_ne!(judge(&packet()[..length], from, TEXTS[0]), Verdict::Right, "{length} bytes");
        }
        // What is left to the device is the sum over addresses and length only.
        let mut partial = packet();
        let at = 8 + 14 + 20 + 6;
        let seed = sum(&[&partial[8 + 14 + 12..8 + 14 + 20], &[0, 17], &((8 + TEXTS[0].len()) as u16).to_be_bytes()]);
        partial[at..at + 2].copy_from_slice(&seed.to_be_bytes());
        assert!(matches!(judge(&partial, from, TEXTS[0]), Verdict::Wrong(why) if why.contains("inner datagram")));
    }

    #[test]
    fn this_kernel_is_probed() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        // Which faults this kernel has is its own affair (with a checksum of the whole, also 6.18 has one): it is told.
        for checksum in [false, true] {
            match thread::spawn(move || probe(checksum)).join().unwrap() {
                Ok(verdict) => println!("left to the device, checksum of the whole {checksum}: {verdict:?}"),
                Err(e) => println!("skipped: no probe on this machine: {e}"),
            }
        }
    }
}
