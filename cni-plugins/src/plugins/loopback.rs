//! loopback: the container's `lo` is up.

use gantry_net::link::{self, Change};

use super::Plugin;
use crate::netns::Netns;
use crate::spec::{CniResult, Context, Error, Interface, IpConfig, Request, Result};

/// The plugin.
#[derive(Debug)]
pub(super) struct Loopback;

impl Plugin for Loopback {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let netns = Netns::open(request)?;
        let mut socket = netns.socket()?;
        let lo = socket.link("lo").doing(|| "find lo".into())?.ok_or_else(|| Error::internal("there is no lo"))?;
        let up = Change { up: Some(true), ..Change::default() };
        socket.request(link::change(lo.index, &up)).doing(|| "set lo up".into())?;
        if let Some(previous) = request.config.previous.clone() {
            return Ok(previous);
        }
        let addresses = socket.addresses(Some(lo.index)).doing(|| "read the addresses of lo".into())?;
        let interface = Interface {
            name: "lo".into(),
            mac: "00:00:00:00:00:00".into(),
            sandbox: netns.text(),
            ..Interface::default()
        };
        let ips = addresses.into_iter().map(|(_, address)| IpConfig { interface: Some(0), address, gateway: None });
        Ok(CniResult { interfaces: vec![interface], ips: ips.collect(), ..CniResult::default() })
    }

    fn del(&self, request: &Request) -> Result<()> {
        let Some(netns) = Netns::open_if_there(request)? else { return Ok(()) };
        let mut socket = netns.socket()?;
        if let Some(lo) = socket.link("lo").doing(|| "find lo".into())? {
            let down = Change { up: Some(false), ..Change::default() };
            socket.request(link::change(lo.index, &down)).doing(|| "set lo down".into())?;
        }
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<()> {
        let netns = Netns::open(request)?;
        let lo = netns.socket()?.link("lo").doing(|| "find lo".into())?;
        if lo.is_some_and(|l| l.is_up()) { Ok(()) } else { Err(Error::internal("loopback interface is down")) }
    }

    fn needs_previous(&self) -> bool {
        false
    }
}
