//! Traffic control: token buckets, and sending what arrives at one device on to another.

use crate::message::{CREATE, EXCL, Message, REPLACE};

const NEW_QDISC: u16 = 36;
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
    let mut message = Message::new(NEW_QDISC, CREATE | REPLACE, &header(device, 0x0001_0000, ROOT, 0));
    let queue = u32::try_from(rate * latency_ms / 1000).unwrap_or(u32::MAX).saturating_add(burst);
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
