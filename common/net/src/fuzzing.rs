//! What the fuzz targets of this crate run: readers of what the kernel, or whoever stands in for it, answers over netlink.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use crate::message::{Messages, Received};
use crate::nft::{Batch, Rule};
use crate::{Link, Neighbour, Route, Socket, conntrack, link, nft};

/// Something that asks, and reads the answer.
pub(crate) type Reader = fn(&mut Socket);

/// All of them.
pub(crate) const READERS: [Reader; 18] = [
    |s| drop(s.links()),
    |s| drop(s.link("eth0")),
    |s| drop(s.addresses(None)),
    |s| drop(s.routes()),
    |s| drop(s.all_routes()),
    |s| drop(s.rules()),
    |s| drop(s.neighbours(1)),
    |s| drop(s.nft_elements("t", "s")),
    |s| drop(s.nft_element("t", "s", &[1, 2])),
    |s| drop(s.nft_chain_uses("t", "c")),
    |s| drop(s.nft_rules("t").map(|rules| rules.iter().map(Rule::jump).count())),
    |s| drop(s.nft_chains("t")),
    |s| drop(s.nft_generation()),
    |s| drop(s.links().map(|l| l.iter().map(link::Vxlan::of).count())),
    |s| drop(conntrack::forget_udp(s, &[53])),
    |s| drop(s.batch(vec![link::delete(1), link::delete(2)])),
    |s| {
        let mut batch = Batch::new();
        batch.delete_table("t");
        drop(batch.commit(s));
    },
    |s| drop(s.heard(heard)),
];

fn heard(message: &Received<'_>) {
    let _ = (Link::heard(message), Route::heard(message), Neighbour::heard(message), nft::changed(message));
}

/// Datagrams of the kernel, each with two bytes of length before it; the first byte of all says who asked.
pub fn netlink(data: &[u8]) {
    let Some((reader, mut data)) = data.split_first() else { return };
    let mut datagrams = Vec::new();
    while let [low, high, rest @ ..] = data {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (datagram, after) = rest.split_at(length);
        data = after;
        if !datagram.is_empty() && datagrams.len() < 8 {
            datagrams.push(datagram);
        }
    }
    let (mut socket, _kernel) = Socket::answered(datagrams.iter().copied());
    READERS[usize::from(*reader) % READERS.len()](&mut socket);
    // Nothing of a datagram is read twice, or beyond its end.
    for datagram in datagrams {
        let (mut read, mut attributes) = (0, 0);
        for message in Messages(datagram) {
            read += 16 + message.body.len();
            heard(&message);
            attributes += message.split(4).map_or(0, |(_, rest)| rest.map(|(_, value)| 4 + value.len()).sum());
        }
        assert!(read <= datagram.len() && attributes <= read);
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[("cni_netlink", netlink)]);
}
