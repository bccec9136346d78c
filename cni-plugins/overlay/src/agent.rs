//! The loop: whenever nodes, links, routes or rules change, the kernel's tables are compared with what they should be.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use gantry_net::link::Vxlan;
use gantry_net::{Prefix, Socket, nft};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{Notify, watch};

use crate::api::Cluster;
use crate::config::{Backend, Flags, Network, TxChecksum};
use crate::kernel;
use crate::masquerade;
use crate::node::Peer;
use crate::plan::{Own, changes, plan};
use crate::subnet;

/// Links, neighbours, addresses and routes of both families (`RTMGRP_*`).
const CHANGES: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400;
/// Many changes come at once: they are answered together.
const TOGETHER: Duration = Duration::from_millis(20);
/// The safety net for changes that are not heard.
const SLOW: Duration = Duration::from_secs(30);

/// What this node is and has done about it.
pub struct Agent {
    /// Flags.
    pub flags: Flags,
    /// The network.
    pub network: Network,
    /// This node's name.
    pub name: String,
    /// The kernel computes checksums of packets in the tunnel, in the place of the device below; set when the probe says so.
    pub own_checksums: Arc<AtomicBool>,
    told: Vec<String>,
}

/// What came of looking at everything once.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// This node as others should see it.
    pub own: Peer,
    /// How many changes were made.
    pub changed: usize,
    /// What could not be done.
    pub faults: Vec<String>,
}

impl Agent {
    /// An agent that has done nothing yet.
    pub fn new(flags: Flags, network: Network, name: String) -> Self {
        let own_checksums = Arc::new(AtomicBool::new(flags.tx_checksum == TxChecksum::Off));
        Self { flags, network, name, own_checksums, told: Vec::new() }
    }

    /// Compares everything once and repairs it.
    ///
    /// # Errors
    /// This node has no network yet, no underlay, or its device cannot be made.
    pub fn reconcile(&mut self, cluster: &Cluster) -> Result<Outcome> {
        let mut socket = Socket::route().context("open a netlink socket")?;
        let underlay = kernel::underlay(&mut socket, &self.flags)?;
        let me = cluster.nodes.iter().find(|n| n.name == self.name);
        let me = me.with_context(|| format!("node {} is not known yet", self.name))?;
        anyhow::ensure!(
            !me.subnets.is_empty(),
            "node {} has no podCIDR yet: does a controller hand them out?",
            self.name
        );
        let mut own = self.describe(me, &underlay, cluster.overwritten);
        let (mut changed, mut faults, mut problems) = (0, Vec::new(), Vec::new());
        let mut mtu = u32::MAX;
        for subnet in me.subnets.clone() {
            let four = subnet.ip.is_ipv4();
            if (if four { self.network.ipv4 } else { self.network.ipv6 }).is_none() {
                continue;
            }
            mtu = mtu.min(kernel::mtu(self.network.backend, &underlay, four));
            let (made, tunnel) = self.family(&mut socket, &underlay, subnet, &mut own)?;
            let family = Own {
                name: self.name.clone(),
                subnet,
                underlay: underlay.index,
                neighbours: underlay.addresses.clone(),
                tunnel,
            };
            let wanted = plan(&family, &cluster.nodes, &self.network);
            let routes = kernel::routes(&mut socket, tunnel, four).context("read routes")?;
            let neighbours = kernel::neighbours(&mut socket, tunnel).context("read neighbours")?;
            let actions = changes(&wanted, &routes, &neighbours);
            changed += actions.len() + usize::from(made);
            faults.extend(kernel::apply(&mut socket, &actions));
            problems.extend(wanted.problems);
            kernel::forward(four).context("let the host forward packets")?;
        }
        if self.flags.ip_masq {
            changed += usize::from(masquerade::ensure(&self.network, &me.subnets).context("write masquerade rules")?);
        }
        let text = subnet::text(&self.network, &me.subnets, mtu, self.flags.ip_masq);
        let path = &self.flags.subnet_file;
        subnet::write(path, &text).with_context(|| format!("write {}", path.display()))?;
        self.tell(problems);
        Ok(Outcome { own, changed, faults })
    }

    /// This node's addresses and, as far as they are known, those of its tunnel.
    fn describe(&self, me: &Peer, underlay: &kernel::Underlay, overwritten: Option<IpAddr>) -> Peer {
        let chosen = overwritten.or(self.flags.public_ip);
        let of = |four: bool| chosen.filter(|ip| ip.is_ipv4() == four).or_else(|| underlay.address(four));
        Peer {
            name: self.name.clone(),
            public_ip: of(true).filter(|_| self.network.ipv4.is_some()),
            public_ipv6: of(false).filter(|_| self.network.ipv6.is_some()),
            backend: self.network.backend.name().to_owned(),
            mac: None,
            mac_v6: None,
            vni: None,
            subnets: me.subnets.clone(),
        }
    }

    /// The tunnel's device of one family: whether it was made anew, and its index.
    fn family(
        &self,
        socket: &mut Socket,
        underlay: &kernel::Underlay,
        subnet: Prefix,
        own: &mut Peer,
    ) -> Result<(bool, Option<u32>)> {
        let Backend::Vxlan { vni, port, .. } = self.network.backend else { return Ok((false, None)) };
        let four = subnet.ip.is_ipv4();
        // Packets leave by the device's own address, also where others must send to another one.
        let family = if four { "IPv4" } else { "IPv6" };
        let local = underlay.address(four).with_context(|| format!("{} has no {family} address", underlay.name))?;
        // As flannel has it: without a checksum of the whole, the inner ones can be left to the device also where the packet's
        // own address is translated.
        let settings = Vxlan { vni, port, parent: underlay.index, local, learning: false, checksum: false };
        let before = socket.link(&kernel::tunnel_name(vni, four))?.map(|l| l.index);
        let mtu = kernel::mtu(self.network.backend, underlay, four);
        let device = kernel::tunnel(socket, &self.name, &settings, mtu, subnet)?;
        let mac = device.mac.as_slice().try_into().ok();
        if four {
            own.mac = mac;
        } else {
            own.mac_v6 = mac;
        }
        own.vni = Some(vni);
        if self.own_checksums.load(Ordering::Relaxed) {
            kernel::compute_checksums(socket, &device.name)?;
        }
        Ok((before != Some(device.index), Some(device.index)))
    }

    /// Logs problems once, and once more when they are gone.
    fn tell(&mut self, problems: Vec<String>) {
        for new in problems.iter().filter(|p| !self.told.contains(p)) {
            tracing::warn!("{new}");
        }
        for over in self.told.iter().filter(|p| !problems.contains(p)) {
            tracing::info!("no longer: {over}");
        }
        self.told = problems;
    }
}

/// Waits until something of the kernel has changed. A thread listens: it sleeps in poll(2) for as long as nothing happens.
pub struct Changes {
    heard: Arc<Notify>,
}

impl Changes {
    /// Begins to listen.
    ///
    /// # Errors
    /// The kernel gives no socket, or no thread.
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::subscribe(CHANGES)?;
        let heard = Arc::new(Notify::new());
        let tell = heard.clone();
        std::thread::Builder::new().name("netlink".to_owned()).spawn(move || {
            while let Ok(()) = listen(&mut socket) {
                tell.notify_one();
            }
        })?;
        let (mut rules, tell) = (Socket::subscribe_nft()?, heard.clone());
        std::thread::Builder::new().name("nf_tables".to_owned()).spawn(move || {
            while let Ok(ours) = listen_for_rules(&mut rules) {
                if ours {
                    tell.notify_one();
                }
            }
        })?;
        Ok(Self { heard })
    }

    /// Wakes who waits.
    pub fn waker(&self) -> Arc<Notify> {
        self.heard.clone()
    }

    /// Ends when something has changed, or after a while in any case.
    pub async fn next(&mut self) {
        if tokio::time::timeout(SLOW, self.heard.notified()).await.is_ok() {
            tokio::time::sleep(TOGETHER).await;
        }
    }
}

/// Sleeps until rules change. Answers whether they are of our table, or some news was lost: other tables change with every
/// pod.
fn listen_for_rules(socket: &mut Socket) -> io::Result<bool> {
    sleep_until_heard(socket)?;
    let mut ours = false;
    let whole = socket.heard(|m| ours |= nft::changed(m).is_some_and(|table| table == masquerade::TABLE))?;
    Ok(ours || !whole)
}

/// Sleeps until the kernel tells something.
fn listen(socket: &mut Socket) -> io::Result<()> {
    sleep_until_heard(socket)?;
    socket.heard(|_| {}).map(drop)
}

fn sleep_until_heard(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

/// Waits for the first of: nodes changed, the kernel changed.
///
/// # Errors
/// Nobody tells about nodes any more.
pub async fn wait(changes: &mut Changes, nodes: &mut watch::Receiver<Cluster>) -> Result<()> {
    tokio::select! {
        () = changes.next() => Ok(()),
        told = nodes.changed() => told.context("nobody tells about nodes any more"),
    }
}
