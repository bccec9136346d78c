//! The bridge plugin's configuration, with the reference plugin's keys and defaults.

use gantry_net::link::parse_mac;
use serde::Deserialize;
use serde_json::Value;

use crate::ipam::delegate;
use crate::spec::{Error, Request, Result};

/// A range of VLANs, or one.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Trunk {
    #[serde(rename = "minID", alias = "minId")]
    min_id: Option<u16>,
    #[serde(rename = "maxID", alias = "maxId")]
    max_id: Option<u16>,
    id: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: u16,
    vlan_trunk: Vec<Trunk>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    mac: String,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            bridge: "cni0".into(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            ip_masq_backend: None,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            vlan: 0,
            vlan_trunk: Vec::new(),
            preserve_default_vlan: true,
            macspoofchk: false,
            enabledad: false,
            disable_container_interface: false,
            port_isolation: false,
            mac: String::new(),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) bridge: String,
    pub(super) gateway: bool,
    pub(super) default_gateway: bool,
    pub(super) force_address: bool,
    pub(super) masquerade: bool,
    pub(super) mtu: Option<u32>,
    pub(super) hairpin: bool,
    pub(super) promisc: bool,
    pub(super) isolated: bool,
    pub(super) check_sender: bool,
    pub(super) check_addresses: bool,
    pub(super) vlan: u16,
    pub(super) trunk: Vec<(u16, u16)>,
    pub(super) preserve_default_vlan: bool,
    pub(super) enabled: bool,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) layer3: bool,
}

impl Config {
    pub(super) fn read(request: &Request) -> Result<Self> {
        let written: Written = serde_json::from_value(request.config.value.clone())
            .map_err(|e| Error::config(format!("bridge configuration: {e}")))?;
        let layer3 = delegate::kind(request).is_some();
        let trunk = written.vlan_trunk.iter().map(range).collect::<Result<Vec<_>>>()?;
        let refuse = |text: &str| Err(Error::config(text));
        if written.vlan > 4094 {
            return refuse(&format!("invalid VLAN ID {} (must be between 0 and 4094 inclusive)", written.vlan));
        }
        if written.vlan > 0 && !trunk.is_empty() {
            return refuse("cannot set vlan and vlanTrunk at the same time");
        }
        if written.hairpin_mode && written.promisc_mode {
            return refuse("cannot set hairpin mode and promiscuous mode at the same time");
        }
        if written.disable_container_interface && layer3 {
            return refuse("cannot use IPAM when DisableContainerInterface flag is set");
        }
        if let Some(backend) = written.ip_masq_backend.filter(|b| !b.is_empty() && b != "nftables" && b != "iptables") {
            return refuse(&format!("unknown ipMasqBackend {backend:?}"));
        }
        if written.bridge.is_empty() || written.bridge.len() > 15 {
            return refuse(&format!("bridge: {:?} is not the name of a device", written.bridge));
        }
        Ok(Self {
            bridge: written.bridge,
            gateway: written.is_gateway || written.is_default_gateway,
            default_gateway: written.is_default_gateway,
            force_address: written.force_address,
            masquerade: written.ip_masq,
            mtu: (written.mtu > 0).then_some(written.mtu),
            hairpin: written.hairpin_mode,
            promisc: written.promisc_mode,
            isolated: written.port_isolation,
            check_sender: written.macspoofchk,
            check_addresses: written.enabledad,
            vlan: written.vlan,
            trunk,
            preserve_default_vlan: written.preserve_default_vlan,
            enabled: !written.disable_container_interface,
            mac: mac(request, &written.mac)?,
            layer3,
        })
    }

    /// The bridge must know VLANs.
    pub(super) fn vlans(&self) -> bool {
        self.vlan > 0 || !self.trunk.is_empty()
    }
}

/// The hardware address: the configuration's, `MAC` of `CNI_ARGS`, `args.cni.mac`, and first of all the capability.
fn mac(request: &Request, written: &str) -> Result<Option<[u8; 6]>> {
    let text = |section: &[&str]| {
        request.config.section(section).get("mac").and_then(Value::as_str).filter(|m| !m.is_empty()).map(str::to_owned)
    };
    let given = text(&["runtimeConfig"])
        .or_else(|| text(&["args", "cni"]))
        .or_else(|| request.args.get("MAC").cloned())
        .or_else(|| (!written.is_empty()).then(|| written.to_owned()));
    given
        .map(|m| parse_mac(&m).ok_or_else(|| Error::config(format!("mac: {m:?} is not a hardware address"))))
        .transpose()
}

fn range(trunk: &Trunk) -> Result<(u16, u16)> {
    let valid = |id: u16| (1..=4094).contains(&id);
    match (trunk.min_id, trunk.max_id, trunk.id) {
        (Some(min), Some(max), None) if valid(min) && valid(max) && min <= max => Ok((min, max)),
        (None, None, Some(id)) if valid(id) => Ok((id, id)),
        _ => Err(Error::config(format!("incorrect trunk: {trunk:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trunks_are_ranges_or_single_vlans() {
        let read = |text: &str| range(&serde_json::from_str(text).unwrap());
        assert_eq!(read(r#"{"minID": 100, "maxID": 102}"#).unwrap(), (100, 102));
        assert_eq!(read(r#"{"id": 300}"#).unwrap(), (300, 300));
        for wrong in
            [r#"{"minID": 5}"#, r#"{"minID": 5, "maxID": 4}"#, r#"{"id": 0}"#, r#"{"id": 1, "minID": 1, "maxID": 2}"#]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
