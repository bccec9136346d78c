//! Which address comes next: sets of ranges as host-local's configuration writes them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gantry_net::Prefix;
use serde::Deserialize;
use serde_json::Value;

use crate::spec::{Error, Result};

/// A range of addresses to hand out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The network.
    pub subnet: Prefix,
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
    /// Router; never handed out.
    pub gateway: IpAddr,
}

/// Ranges of one family, of which a container gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(pub Vec<Range>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    subnet: Option<String>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn like(number: u128, family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(number).into(),
    }
}

fn after(ip: IpAddr, steps: u128) -> IpAddr {
    like(number(ip).saturating_add(steps), ip)
}

impl Range {
    fn read(value: &Value) -> Result<Self> {
        let written: Written =
            serde_json::from_value(value.clone()).map_err(|e| Error::config(format!("ipam.ranges: {e} in {value}")))?;
        let text = written.subnet.ok_or_else(|| Error::config("ipam.ranges: subnet is missing"))?;
        let given: Prefix = text.parse().map_err(|e| Error::config(format!("ipam.ranges: subnet: {e}")))?;
        let subnet = given.network();
        if subnet.ip != given.ip {
            return Err(Error::config(format!(
                "network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.length, subnet.ip
            )));
        }
        let bits = if subnet.ip.is_ipv4() { 32 } else { 128 };
        if bits - subnet.length < 2 {
            return Err(Error::config(format!("network {subnet} too small to allocate from")));
        }
        let first = after(subnet.ip, 1);
        // The last address of an IPv4 network is its broadcast address.
        let last = if subnet.ip.is_ipv4() { like(number(subnet.last()) - 1, subnet.ip) } else { subnet.last() };
        let inside = |name: &str, ip: Option<IpAddr>, otherwise: IpAddr| match ip {
            Some(ip) if !subnet.contains(ip) => Err(Error::config(format!("{name} {ip} not in network {subnet}"))),
            Some(ip) => Ok(ip),
            None => Ok(otherwise),
        };
        let range = Self {
            subnet,
            start: inside("RangeStart", written.range_start, first)?,
            end: inside("RangeEnd", written.range_end, last)?,
            gateway: written.gateway.unwrap_or(first),
        };
        if number(range.start) > number(range.end) {
            return Err(Error::config(format!("RangeStart {} is greater than RangeEnd {}", range.start, range.end)));
        }
        Ok(range)
    }

    /// Whether an address may be handed out.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4() && (number(self.start)..=number(self.end)).contains(&number(ip))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }

    fn len(&self) -> u128 {
        number(self.end) - number(self.start) + 1
    }
}

impl std::fmt::Display for RangeSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let texts: Vec<_> = self.0.iter().map(|r| format!("{}-{}", r.start, r.end)).collect();
        f.write_str(&texts.join(","))
    }
}

impl RangeSet {
    /// The range that an address is in.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|r| r.contains(ip))
    }

    /// Every address once, beginning after the last one that was handed out and going round; never a gateway.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let total: u128 = self.0.iter().map(Range::len).fold(0, u128::saturating_add);
        let start = last.and_then(|ip| self.place(ip)).map_or(0, |p| p + 1);
        // More than any host could hold; an IPv6 range has more addresses than time.
        let tries = total.min(1 << 24);
        (0..tries).filter_map(move |i| {
            let mut place = (start + i) % total;
            for range in &self.0 {
                if place < range.len() {
                    let ip = after(range.start, place);
                    return (ip != range.gateway).then_some((ip, range));
                }
                place -= range.len();
            }
            None
        })
    }

    fn place(&self, ip: IpAddr) -> Option<u128> {
        let mut before = 0;
        for range in &self.0 {
            if range.contains(ip) {
                return Some(before + number(ip) - number(range.start));
            }
            before += range.len();
        }
        None
    }
}

/// The range sets of an `ipam` object: the old single `subnet`, `ranges`, and those that the runtime asks for (`ipRanges`).
///
/// # Errors
/// A field is wrong, sets mix families, or ranges overlap.
pub fn read(ipam: &Value, asked: Option<&Value>) -> Result<Vec<RangeSet>> {
    let mut sets: Vec<RangeSet> = Vec::new();
    let mut add = |list: &Value| {
        let list = list.as_array().ok_or_else(|| Error::config("ipam.ranges is not a list of lists"))?;
        let ranges = list.iter().map(Range::read).collect::<Result<Vec<_>>>()?;
        let [first, rest @ ..] = ranges.as_slice() else { return Err(Error::config("empty range set")) };
        if rest.iter().any(|r| r.start.is_ipv4() != first.start.is_ipv4()) {
            return Err(Error::config("mixed address families in one range set"));
        }
        sets.push(RangeSet(ranges));
        Ok(())
    };
    for list in asked.and_then(Value::as_array).into_iter().flatten() {
        add(list)?;
    }
    if ipam.get("subnet").is_some_and(Value::is_string) {
        add(&Value::Array(vec![ipam.clone()]))?;
    }
    match ipam.get("ranges") {
        None | Some(Value::Null) => {}
        Some(Value::Array(lists)) => lists.iter().try_for_each(&mut add)?,
        Some(_) => return Err(Error::config("ipam.ranges is not a list of lists")),
    }
    if sets.is_empty() {
        return Err(Error::config("no IP ranges specified"));
    }
    let all: Vec<_> = sets.iter().flat_map(|s| &s.0).collect();
    for (i, one) in all.iter().enumerate() {
        if let Some(other) = all[i + 1..].iter().find(|o| o.overlaps(one)) {
            let text = format!("range {}-{} overlaps with {}-{}", one.start, one.end, other.start, other.end);
            return Err(Error::config(text));
        }
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(value: Value) -> RangeSet {
        read(&json!({"ranges": [value]}), None).unwrap().remove(0)
    }

    #[test]
    fn a_subnet_leaves_out_network_broadcast_and_gateway() {
        let set = set(json!([{"subnet": "10.1.2.0/29"}]));
        let all: Vec<_> = set.candidates(None).map(|(ip, _)| ip.to_string()).collect();
        assert_eq!(all, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
    }

    #[test]
    fn the_search_goes_on_after_the_last_and_round() {
        let set = set(json!([
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10", "rangeEnd": "10.1.2.11"},
            {"subnet": "10.1.3.0/24", "rangeStart": "10.1.3.1", "rangeEnd": "10.1.3.2"}
        ]));
        let from =
            |last: &str| -> Vec<String> { set.candidates(last.parse().ok()).map(|(ip, _)| ip.to_string()).collect() };
        assert_eq!(from("10.1.2.10"), ["10.1.2.11", "10.1.3.2", "10.1.2.10"]);
        assert_eq!(from("10.1.3.2"), ["10.1.2.10", "10.1.2.11", "10.1.3.2"]);
        assert_eq!(from("192.0.2.1").len(), 3);
    }

    #[test]
    fn an_ipv6_range_begins_at_once() {
        let set = set(json!([{"subnet": "fd00::/64"}]));
        assert_eq!(set.candidates(None).next().unwrap().0.to_string(), "fd00::2");
    }

    #[test]
    fn wrong_ranges_are_named() {
        for (ipam, part) in [
            (json!({}), "no IP ranges"),
            (json!({"subnet": "10.0.0.1/24"}), "host bits"),
            (json!({"subnet": "10.0.0.0/31"}), "too small"),
            (json!({"subnet": "x"}), "subnet"),
            (json!({"ranges": 5}), "list of lists"),
            (json!({"ranges": [[]]}), "empty range set"),
            (json!({"ranges": [[{}]]}), "subnet is missing"),
            (json!({"ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.1.0.0"}]]}), "RangeStart"),
            (json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}), "mixed"),
            (json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]}), "overlaps"),
        ] {
            let error = read(&ipam, None).unwrap_err().to_string();
            assert!(error.contains(part), "{ipam}: {error}");
        }
    }

    #[test]
    fn ranges_of_the_runtime_come_first() {
        let asked = json!([[{"subnet": "10.9.0.0/24"}]]);
        let sets = read(&json!({"subnet": "10.1.0.0/24"}), Some(&asked)).unwrap();
        assert_eq!(sets[0].0[0].subnet.to_string(), "10.9.0.0/24");
        assert_eq!(sets.len(), 2);
    }
}
