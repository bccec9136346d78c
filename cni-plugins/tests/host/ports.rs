//! Host ports of the protocols without connections: datagrams find the container that has the port now, and its answers find
//! their way back.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use serde_json::{Value, json};

use crate::net::{Net, sh};

const PATIENCE: Duration = Duration::from_secs(5);

fn portmap(previous: &Value, mappings: Value) -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "prevResult": previous,
        "runtimeConfig": {"portMappings": mappings}})
}

/// A socket in a namespace that gives up after a while.
fn udp(net: &Net, short: &str, address: &str) -> UdpSocket {
    let address: SocketAddr = address.parse().unwrap();
    let socket = net.inside(short, move || UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends until the container hears it, which answers; tells who the container saw, and from whom the answer came.
fn exchange(client: &UdpSocket, to: &str, server: &UdpSocket) -> (String, String) {
    let to: SocketAddr = to.parse().unwrap();
    client.send_to(b"question", to).unwrap();
    let mut bytes = [0; 64];
    let (n, seen) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"question");
    server.send_to(b"answer", seen).unwrap();
    let (n, from) = client.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"answer");
    (seen.ip().to_string(), from.to_string())
}

/// Flows of UDP to a port that connection tracking remembers.
fn flows(net: &Net, port: u16) -> Option<usize> {
    let text = net.inside("host", || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")).ok()?;
    let port = format!("dport={port} ");
    Some(text.lines().filter(|l| l.contains("udp") && l.contains(&port)).count())
}

#[test]
fn datagrams_to_a_host_port_find_its_container_and_answers_come_back() {
    let Some(net) = Net::new(&["a"]) else { return };
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    let mappings = json!([
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 5354, "containerPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"},
        {"hostPort": 5355, "containerPort": 53, "protocol": "udp", "hostIP": "2001:db8::1"}
    ]);
    net.call("portmap", "ADD", "a", &portmap(&a, mappings.clone())).unwrap();
    let (four, six) = (udp(&net, "a", "0.0.0.0:53"), udp(&net, "a", "[fd77::2]:53"));
    for (to, seen) in [("192.0.2.1:5353", "192.0.2.2"), ("192.0.2.1:5354", "192.0.2.2")] {
        let client = udp(&net, "out", "0.0.0.0:0");
        assert_eq!(exchange(&client, to, &four), (seen.to_owned(), to.to_owned()), "the source is kept");
    }
    for to in ["[2001:db8::1]:5353", "[2001:db8::1]:5355"] {
        let client = udp(&net, "out", "[::]:0");
        assert_eq!(exchange(&client, to, &six), ("2001:db8::2".to_owned(), to.to_owned()), "the source is kept");
    }
    // Of the host itself, also by its loopback.
    let client = udp(&net, "host", "0.0.0.0:0");
    assert_eq!(exchange(&client, "127.0.0.1:5353", &four).0, "10.77.0.1");
    // The container by its own host port.
    let own = udp(&net, "a", "0.0.0.0:0");
    assert_eq!(exchange(&own, "192.0.2.1:5353", &four).0, "10.77.0.1");

    assert!(net.nft().contains("udp . 5353") && net.nft().contains("udp . 5355"), "{}", net.nft());
    net.call("portmap", "DEL", "a", &portmap(&a, mappings)).unwrap();
    for gone in ["5353", "5354", "5355", "hairpin-"] {
        assert!(!net.nft().contains(gone), "{gone}: {}", net.nft());
    }
    net.call("bridge", "DEL", "a", &net.bridge()).unwrap();
    assert_eq!(net.nft().trim(), "");
}

#[test]
fn a_client_that_goes_on_sending_reaches_whoever_has_the_port_now() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let client = udp(&net, "out", "0.0.0.0:4000");
    let other = udp(&net, "out", "0.0.0.0:4001");
    let mapping = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]);
    let results: Vec<_> = ["a", "b"].map(|id| net.call("bridge", "ADD", id, &net.bridge()).unwrap()).into();
    // Rules stand, so that flows are tracked; nobody has the port yet, and the flow goes to the host.
    client.send_to(b"early", "192.0.2.1:5353").unwrap();
    // A flow that has nothing to do with host ports, to a socket of the host.
    let unconcerned = udp(&net, "host", "192.0.2.1:6000");
    exchange(&other, "192.0.2.1:6000", &unconcerned);
    for (id, result) in ["a", "b"].into_iter().zip(&results) {
        let server = udp(&net, id, "0.0.0.0:53");
        net.call("portmap", "ADD", id, &portmap(result, mapping.clone())).unwrap();
        assert_eq!(exchange(&client, "192.0.2.1:5353", &server).0, "192.0.2.2", "{id}");
        if let Some(count) = flows(&net, 5353) {
            assert_eq!(count, 1);
        }
        net.call("portmap", "DEL", id, &portmap(result, mapping.clone())).unwrap();
        if let Some(count) = flows(&net, 5353) {
            assert_eq!(count, 0, "forgotten with the port");
        }
        client.send_to(b"late", "192.0.2.1:5353").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(server.recv(&mut [0; 8]).is_err(), "{id} has the port no more");
    }
    if let Some(count) = flows(&net, 6000) {
        assert_eq!(count, 1, "flows of others stay");
    }
}

fn raw_sctp(net: &Net, short: &str) -> io::Result<OwnedFd> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
    net.inside(short, || {
        let fd = socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::SCTP))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(PATIENCE))?;
        Ok(fd)
    })
}

/// The checksum of SCTP.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ if c & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// A packet that begins an association (chunk 1), or answers that (chunk 2).
fn sctp(from: u16, to: u16, tag: u32, chunk: u8) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 0, 0, 20]);
    // Own tag, window, streams out and in, first sequence number.
    for word in [0x1000_0000 + u32::from(chunk), 65536, 0x0001_0001, 7] {
        packet.extend(u32::to_be_bytes(word));
    }
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

/// Sender, ports and chunk of what arrives with a right checksum.
fn receive(fd: &OwnedFd) -> io::Result<(Ipv4Addr, u16, u16, u8)> {
    let mut buffer = vec![0; 2048];
    let (n, _) = rustix::net::recv(fd.as_fd(), buffer.as_mut_slice(), rustix::net::RecvFlags::empty())?;
    let source = Ipv4Addr::from(<[u8; 4]>::try_from(&buffer[12..16]).unwrap());
    let header = usize::from(buffer[0] & 15) * 4;
    let packet = &mut buffer[header..n];
    let sum = u32::from_le_bytes(packet[8..12].try_into().unwrap());
    packet[8..12].fill(0);
    assert_eq!(crc32c(packet), sum, "checksum");
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    Ok((source, port(0), port(2), packet[12]))
}

fn send(fd: &OwnedFd, to: Ipv4Addr, packet: &[u8]) {
    let to = SocketAddrV4::new(to, 0);
    rustix::net::sendto(fd, packet, rustix::net::SendFlags::empty(), &to).unwrap();
}

#[test]
fn sctp_finds_its_container_too() {
    let Some(net) = Net::new(&["a"]) else { return };
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    let mapping = json!([{"hostPort": 8132, "containerPort": 132, "protocol": "sctp"}]);
    net.call("portmap", "ADD", "a", &portmap(&a, mapping.clone())).unwrap();
    net.call("portmap", "CHECK", "a", &portmap(&a, mapping.clone())).unwrap();
    // Whether the kernel has SCTP itself or not: packets are what a host port is about.
    let (client, server) = (raw_sctp(&net, "out").unwrap(), raw_sctp(&net, "a").unwrap());
    let (node, outside) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    send(&client, node, &sctp(4000, 8132, 0, 1));
    assert_eq!(receive(&server).unwrap(), (outside, 4000, 132, 1), "the source is kept");
    send(&server, outside, &sctp(132, 4000, 0x1000_0001, 2));
    assert_eq!(receive(&client).unwrap(), (node, 8132, 4000, 2), "the answer comes from the host's port");
    assert!(net.nft().contains("sctp . 8132"), "{}", net.nft());
    net.call("portmap", "DEL", "a", &portmap(&a, mapping)).unwrap();
    assert!(!net.nft().contains("8132"), "{}", net.nft());
    sh(&format!("ip -n {} link show eth0", net.name("a")));
}

#[test]
fn del_with_the_result_of_add_takes_the_same_as_without() {
    let Some(net) = Net::new(&["a", "b", "c"]) else { return };
    let mut chains = Vec::new();
    for (id, port) in [("a", 8080), ("b", 8081), ("c", 8082)] {
        let result = net.call("bridge", "ADD", id, &net.bridge()).unwrap();
        let mapping = json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]);
        let portmap = portmap(&result, mapping);
        net.call("portmap", "ADD", id, &portmap).unwrap();
        net.serve(id, 80);
        chains.push((id, portmap, crate::net::with(net.bridge(), "prevResult", result)));
    }
    net.serve("out", 81);
    for (place, (id, portmap, bridge)) in chains.iter().enumerate() {
        // The second time nothing is there, which is fine.
        for _ in 0..2 {
            net.call("portmap", "DEL", id, portmap).unwrap();
            net.call("bridge", "DEL", id, bridge).unwrap();
        }
        let rules = net.nft();
        assert!(!rules.contains(&format!("\"{id} eth0 net\"")), "{rules}");
        for (other, port) in [("b", 8081), ("c", 8082)].iter().skip(place) {
            assert_eq!(net.get("out", &format!("192.0.2.1:{port}")).unwrap(), "192.0.2.2", "{other} without {id}");
            assert_eq!(net.get(other, "192.0.2.2:81").unwrap(), "192.0.2.1", "{other} without {id}");
        }
    }
    assert_eq!(net.nft().trim(), "");
}
