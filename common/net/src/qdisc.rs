//! Traffic control: token buckets, for all traffic or for that of some networks, and sending what arrives at one device on to
//! another.

use std::net::IpAddr;

use crate::ip::Prefix;
use crate::message::{CREATE, EXCL, Message, REPLACE};

const NEW_QDISC: u16 = 36;
const NEW_CLASS: u16 = 40;
const NEW_FILTER: u16 = 44;
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
/// The handle of a device's ingress queue.
const INGRESS_HANDLE: u32 = 0xffff_0000;
const KIND: u16 = 1;
const OPTIONS: u16 = 2;

fn header(device: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut fixed = vec![0; 4];
    for word in [device, handle, parent, info] {
        fixed.extend(word.to_ne_bytes());
    }
    fixed
}

/// The request that limits what a device sends: `rate` bytes a second, `burst` bytes at once, packets waiting for at most
/// `latency_ms`. Takes the place of what is there.
pub fn token_bucket(device: u32, rate: u64, burst: u32, latency_ms: u64) -> Message {
    bucket(device, 0x0001_0000, ROOT, rate, burst, latency_ms)
}

/// The requests that divide what a device sends by the packets' other end and limit one part. A token bucket then stands
/// where [`LIMITED`] packets go. `limited` tells whether packets of these networks are limited, or all others.
pub fn by_network(
    device: u32,
    networks: &[Prefix],
    limited: bool,
    sources: bool,
    (rate, burst, latency_ms): (u64, u32, u64),
) -> Vec<Message> {
    let (matched, others) = if limited { (LIMITED, FREE) } else { (FREE, LIMITED) };
    let mut root = Message::new(NEW_QDISC, CREATE | REPLACE, &header(device, ROOT_HANDLE, ROOT, 0));
    // tc_htb_glob: version, quantum divisor, class of what no filter matches.
    let words = [3, 10, others & 0xffff, 0, 0];
    let global: Vec<u8> = words.iter().flat_map(|w: &u32| w.to_ne_bytes()).collect();
    root.put_text(KIND, "htb").nest(OPTIONS, |options| options.put(2, &global));
    let mut all = vec![root, class(device, LIMITED), class(device, FREE)];
    all.push(bucket(device, 0x0002_0000, LIMITED, rate, burst, latency_ms));
    all.extend(networks.iter().map(|network| select(device, *network, sources, matched)));
    all
}

const ROOT_HANDLE: u32 = 0x0001_0000;
/// The class of packets that are limited.
pub const LIMITED: u32 = 0x0001_0010;
const FREE: u32 = 0x0001_0020;

/// A class without a limit of its own.
fn class(device: u32, id: u32) -> Message {
    let mut message = Message::new(NEW_CLASS, CREATE, &header(device, id, ROOT_HANDLE, 0));
    // tc_htb_opt: rate and ceiling (link layer 1 is Ethernet), their buffers in ticks of 64 ns, then quantum.
    let mut rate = vec![0, 1, 0, 0, 0, 0, 0, 0];
    rate.extend(u32::MAX.to_ne_bytes());
    let mut options = [rate.clone(), rate].concat();
    for word in [15_625u32, 15_625, 200_000, 0, 0] {
        options.extend(word.to_ne_bytes());
    }
    message.put_text(KIND, "htb").nest(OPTIONS, |o| o.put(1, &options));
    message
}

/// Packets from (or to) a network go to a class.
fn select(device: u32, network: Prefix, sources: bool, class: u32) -> Message {
    let (protocol, priority, offset, mask): (u16, u32, u32, Vec<u8>) = match network.ip {
        IpAddr::V4(_) => (0x0800, 1, if sources { 12 } else { 16 }, octets(mask_of(network, [255; 4].into()))),
        IpAddr::V6(_) => (0x86dd, 2, if sources { 8 } else { 24 }, octets(mask_of(network, [255; 16].into()))),
    };
    let info = priority << 16 | u32::from(protocol.to_be());
    let mut message = Message::new(NEW_FILTER, CREATE | EXCL, &header(device, 0, ROOT_HANDLE, info));
    let value = octets(network.network().ip);
    let words = || mask.chunks_exact(4).zip(value.chunks_exact(4));
    let mut selector = vec![1, 0, u8::try_from(words().count()).unwrap_or(4)];
    selector.extend([0; 13]);
    for ((mask, value), at) in words().zip((offset..).step_by(4)) {
        selector.extend_from_slice(mask);
        selector.extend_from_slice(value);
        selector.extend(at.to_ne_bytes());
        selector.extend([0; 4]);
    }
    message.put_text(KIND, "u32").nest(OPTIONS, |options| options.put_u32(1, class).put(5, &selector));
    message
}

fn mask_of(network: Prefix, ones: IpAddr) -> IpAddr {
    Prefix { ip: ones, length: network.length }.network().ip
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn bucket(device: u32, handle: u32, parent: u32, rate: u64, burst: u32, latency_ms: u64) -> Message {
    let mut message = Message::new(NEW_QDISC, CREATE | REPLACE, &header(device, handle, parent, 0));
    let queue = u32::try_from(rate.saturating_mul(latency_ms) / 1000).unwrap_or(u32::MAX).saturating_add(burst);
    // tc_ratespec: link layer 1 is Ethernet, for which the kernel computes times itself.
    let mut parameters = vec![0, 1, 0, 0, 0, 0, 0, 0];
    parameters.extend(u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(queue.to_ne_bytes());
    parameters.extend([0; 8]);
    message
        .put_text(KIND, "tbf")
        .nest(OPTIONS, |options| options.put(1, &parameters).put(4, &rate.to_ne_bytes()).put_u32(6, burst));
    message
}

/// The request that gives a device a place for rules on what arrives.
pub fn ingress(device: u32) -> Message {
    let mut message = Message::new(NEW_QDISC, CREATE | EXCL, &header(device, INGRESS_HANDLE, INGRESS, 0));
    message.put_text(KIND, "ingress");
    message
}

/// The request that sends everything that arrives at a device on, as if `to` sent it. Needs [`ingress`] first.
pub fn redirect(device: u32, to: u32) -> Message {
    const EVERY_PROTOCOL: u32 = 3;
    let info = 1 << 16 | EVERY_PROTOCOL.to_be() >> 16;
    let mut message = Message::new(NEW_FILTER, CREATE | EXCL, &header(device, 0, INGRESS_HANDLE, info));
    // tc_u32_sel: terminal, with one key that every packet matches.
    let mut selector = vec![1, 0, 1];
    selector.extend([0; 13]);
    selector.extend([0; 16]);
    // tc_mirred: stolen (4) from here, redirected (1) to the other's egress.
    let words = [0, 0, 4, 0, 0, 1, to];
    let mirror: Vec<u8> = words.iter().flat_map(|w: &u32| w.to_ne_bytes()).collect();
    message.put_text(KIND, "u32").nest(OPTIONS, |options| {
        options
            .put(5, &selector)
            .nest(7, |actions| actions.nest(1, |action| action.put_text(1, "mirred").nest(2, |o| o.put(2, &mirror))))
    });
    message
}
