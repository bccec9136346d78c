//! Which devices there are, and which container holds which (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proto::deviceplugin::{ContainerAllocateResponse, Device as Reported, DevicePluginOptions};

use crate::hint::{Hint, Hints, Nodes};

/// How long a resource whose plugin is gone keeps its place in the node's capacity.
const FORGET: Duration = Duration::from_secs(300);

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) healthy: bool,
    /// NUMA nodes that it is at; none if it does not matter.
    pub(crate) nodes: Nodes,
}

/// All devices of one name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resource {
    pub(crate) devices: BTreeMap<String, Device>,
    pub(crate) options: DevicePluginOptions,
    /// Its plugin has told its devices since the kubelet started.
    pub(crate) told: bool,
    /// When its plugin went away.
    pub(crate) stopped: Option<Instant>,
}

/// Whose something is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    pub(crate) uid: String,
    pub(crate) container: String,
    pub(crate) resource: String,
}

/// What a container holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Held {
    pub(crate) ids: BTreeSet<String>,
    /// What the plugin wants for the container; none until it has answered.
    pub(crate) response: Option<ContainerAllocateResponse>,
    /// An init container's: those that come later in the pod take it over.
    pub(crate) passes_on: bool,
}

/// Why devices cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Shortage {
    /// The plugin has not come back yet; it will.
    #[error("the device plugin of {0} has not registered since the kubelet started")]
    NotYet(String),
    /// Upstream's words.
    #[error(
        "Allocate failed due to requested number of devices unavailable for {resource}. Requested: {asked}, Available: {available}, which is unexpected"
    )]
    Few { resource: String, asked: usize, available: usize },
}

/// Resources and holders.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    pub(crate) resources: BTreeMap<String, Resource>,
    pub(crate) held: BTreeMap<Holder, Held>,
}

impl Book {
    /// A plugin has registered.
    pub(crate) fn registered(&mut self, resource: &str, options: DevicePluginOptions) {
        let known = self.resources.entry(resource.to_owned()).or_default();
        known.options = options;
        known.stopped = None;
    }

    /// A plugin told its devices; tells whether anything changed.
    pub(crate) fn told(&mut self, resource: &str, devices: Vec<Reported>) -> bool {
        let known = self.resources.entry(resource.to_owned()).or_default();
        let new: BTreeMap<String, Device> = devices
            .into_iter()
            .map(|d| {
                let nodes = d.topology.iter().flat_map(|t| &t.nodes).filter_map(|n| u32::try_from(n.id).ok());
                (d.id, Device { healthy: d.health == "Healthy", nodes: Nodes::of(nodes) })
            })
            .collect();
        let changed = known.devices != new || !known.told;
        known.devices = new;
        known.told = true;
        known.stopped = None;
        changed
    }

    /// A plugin went away: its devices stay known, nobody new gets one.
    pub(crate) fn stopped(&mut self, resource: &str, now: Instant) {
        if let Some(known) = self.resources.get_mut(resource) {
            known.stopped = Some(now);
            known.devices.values_mut().for_each(|d| d.healthy = false);
        }
    }

    /// Capacity and allocatable of each resource. One whose plugin is gone for long shows as 0 and is then forgotten.
    pub(crate) fn totals(&mut self, now: Instant) -> BTreeMap<String, (usize, usize)> {
        let mut out = BTreeMap::new();
        for (name, known) in &self.resources {
            let gone = known.stopped.is_some_and(|at| now.duration_since(at) >= FORGET);
            let healthy = known.devices.values().filter(|d| d.healthy).count();
            let all = if gone || !known.told { 0 } else { known.devices.len() };
            out.insert(name.clone(), (all, healthy.min(all)));
        }
        out
    }

    /// Whether it is a plugin's.
    pub(crate) fn knows(&self, resource: &str) -> bool {
        self.resources.contains_key(resource)
    }

    /// What a container may have: healthy, and held by no one but those of its pod that pass on. First what is passed on.
    fn available(&self, uid: &str, resource: &str) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut taken, mut passed) = (BTreeSet::new(), BTreeSet::new());
        for (holder, held) in self.held.iter().filter(|(h, _)| h.resource == resource) {
            if holder.uid == uid && held.passes_on {
                passed.extend(held.ids.iter().cloned());
            } else {
                taken.extend(held.ids.iter().cloned());
            }
        }
        passed.retain(|id| !taken.contains(id));
        let all = self.resources.get(resource).map(|r| &r.devices).into_iter().flatten();
        let free =
            all.filter(|(id, d)| d.healthy && !taken.contains(*id) && !passed.contains(*id)).map(|(id, _)| id.clone());
        let free = free.collect();
        (passed, free)
    }

    /// Where `count` devices could come from.
    pub(crate) fn hints(&self, uid: &str, container: &str, resource: &str, count: usize, all: Nodes) -> Hints {
        let known = self.resources.get(resource)?;
        if known.devices.values().all(|d| d.nodes.is_empty()) {
            return None;
        }
        let holder = Holder { uid: uid.into(), container: container.into(), resource: resource.into() };
        let (passed, free) = match self.held.get(&holder) {
            Some(held) => (held.ids.clone(), BTreeSet::new()),
            None => self.available(uid, resource),
        };
        let at = |id: &String, mask: Nodes| {
            known.devices.get(id).is_some_and(|d| d.nodes.is_empty() || !d.nodes.and(mask).is_empty())
        };
        let mut least = u32::MAX;
        let mut out = Vec::new();
        for mask in all.subsets() {
            if known.devices.keys().filter(|id| at(id, mask)).count() >= count {
                least = least.min(mask.count());
            }
            let usable = passed.iter().chain(&free).filter(|id| at(id, mask)).count();
            if usable >= count && passed.iter().take(count).all(|id| at(id, mask)) {
                out.push(Hint { nodes: Some(mask), preferred: false });
            }
        }
        for hint in &mut out {
            hint.preferred = hint.nodes.is_some_and(|n| n.count() == least);
        }
        Some(out)
    }

    /// Reserves devices for a container, near `place` if there are enough. Gives false if it holds them already.
    pub(crate) fn reserve(
        &mut self,
        holder: &Holder,
        count: usize,
        place: Option<Nodes>,
        passes_on: bool,
    ) -> Result<bool, Shortage> {
        if let Some(held) = self.held.get(holder) {
            if held.ids.len() == count {
                return Ok(false);
            }
            self.held.remove(holder);
        }
        let resource = holder.resource.clone();
        let Some(known) = self.resources.get(&resource).filter(|r| r.told) else {
            return Err(Shortage::NotYet(resource));
        };
        let (passed, free) = self.available(&holder.uid, &resource);
        let available = passed.len() + free.len();
        if available < count {
            return Err(Shortage::Few { resource, asked: count, available });
        }
        let rank = |id: &String| match (place, known.devices.get(id).map(|d| d.nodes)) {
            (Some(place), Some(nodes)) if !nodes.is_empty() => u8::from(nodes.and(place).is_empty()) * 2,
            _ => 1,
        };
        let mut order: Vec<&String> = free.iter().collect();
        order.sort_by_key(|id| (rank(id), (*id).clone()));
        let ids = passed.iter().chain(order).take(count).cloned().collect();
        self.held.insert(holder.clone(), Held { ids, response: None, passes_on });
        Ok(true)
    }

    /// What to ask the plugin for its preference: available, those that must be among them.
    pub(crate) fn question(&self, holder: &Holder, place: Option<Nodes>) -> Option<(Vec<String>, Vec<String>, usize)> {
        let held = self.held.get(holder)?;
        let known = self.resources.get(&holder.resource)?;
        let (passed, free) = self.available(&holder.uid, &holder.resource);
        let must: Vec<String> = passed.into_iter().filter(|id| held.ids.contains(id)).collect();
        let near = |id: &String| match (place, known.devices.get(id).map(|d| d.nodes)) {
            (Some(place), Some(nodes)) => nodes.is_empty() || !nodes.and(place).is_empty(),
            _ => true,
        };
        let mut all: BTreeSet<String> = free.iter().filter(|id| near(id)).cloned().collect();
        all.extend(held.ids.iter().cloned());
        Some((all.into_iter().collect(), must, held.ids.len()))
    }

    /// Exchanges reserved devices for those that the plugin prefers, if they can still be had.
    pub(crate) fn prefer(&mut self, holder: &Holder, ids: &[String]) -> bool {
        let Some(held) = self.held.get(holder) else { return false };
        let wanted: BTreeSet<String> = ids.iter().cloned().collect();
        let (passed, free) = self.available(&holder.uid, &holder.resource);
        let can = |id: &String| held.ids.contains(id) || free.contains(id) || passed.contains(id);
        if wanted.len() != held.ids.len() || !wanted.iter().all(can) {
            return false;
        }
        if let Some(held) = self.held.get_mut(holder) {
            held.ids = wanted;
        }
        true
    }

    /// Notes the plugin's answer.
    pub(crate) fn answered(&mut self, holder: &Holder, response: ContainerAllocateResponse) {
        if let Some(held) = self.held.get_mut(holder) {
            held.response = Some(response);
        }
    }

    /// Frees what a pod holds; tells whether that was anything.
    pub(crate) fn release(&mut self, uid: &str) -> bool {
        let before = self.held.len();
        self.held.retain(|holder, _| holder.uid != uid);
        before != self.held.len()
    }

    /// What a container holds, by resource.
    pub(crate) fn of<'a>(&'a self, uid: &'a str, container: &'a str) -> impl Iterator<Item = (&'a str, &'a Held)> {
        let own = self.held.iter().filter(move |(h, _)| h.uid == uid && h.container == container);
        own.map(|(h, held)| (h.resource.as_str(), held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::deviceplugin::{NumaNode, TopologyInfo};

    fn reported(id: &str, healthy: bool, node: Option<i64>) -> Reported {
        Reported {
            id: id.into(),
            health: if healthy { "Healthy" } else { "Unhealthy" }.into(),
            topology: node.map(|id| TopologyInfo { nodes: vec![NumaNode { id }] }),
        }
    }

    fn book() -> Book {
        let mut book = Book::default();
        book.registered("x/dev", DevicePluginOptions::default());
        let list = ["a", "b", "c", "d"].iter().enumerate();
        book.told("x/dev", list.map(|(i, id)| reported(id, *id != "d", Some(i as i64 % 2))).collect());
        book
    }

    fn holder(uid: &str, container: &str) -> Holder {
        Holder { uid: uid.into(), container: container.into(), resource: "x/dev".into() }
    }

    fn ids(book: &Book, uid: &str, container: &str) -> String {
        book.of(uid, container).flat_map(|(_, h)| h.ids.iter().cloned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_healthy_free_devices_are_given() {
        let mut book = book();
        assert_eq!(book.totals(Instant::now())["x/dev"], (4, 3));
        assert_eq!(book.reserve(&holder("1", "c"), 2, None, false), Ok(true));
        assert_eq!(book.reserve(&holder("1", "c"), 2, None, false), Ok(false), "a restart keeps what it has");
        let error = book.reserve(&holder("2", "c"), 2, None, false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Allocate failed due to requested number of devices unavailable for x/dev. Requested: 2, Available: 1, which is unexpected"
        );
        assert!(book.release("1"));
        assert_eq!(book.reserve(&holder("2", "c"), 2, None, false), Ok(true));
    }

    #[test]
    fn init_containers_pass_their_devices_on() {
        let mut book = book();
        book.reserve(&holder("1", "init"), 3, None, true).unwrap();
        book.reserve(&holder("1", "main"), 2, None, false).unwrap();
        assert_eq!((ids(&book, "1", "init").as_str(), ids(&book, "1", "main").as_str()), ("a b c", "a b"));
        book.reserve(&holder("1", "other"), 1, None, false).unwrap();
        assert_eq!(ids(&book, "1", "other"), "c");
        assert!(book.reserve(&holder("2", "c"), 1, None, false).is_err());
    }

    #[test]
    fn devices_near_the_place_come_first() {
        let mut book = book();
        book.reserve(&holder("1", "c"), 1, Some(Nodes::of([1])), false).unwrap();
        assert_eq!(ids(&book, "1", "c"), "b");
        let hints = book.hints("2", "c", "x/dev", 2, Nodes::of([0, 1])).unwrap();
        let texts: Vec<String> = hints.iter().map(|h| format!("{} {}", h.nodes.unwrap(), h.preferred)).collect();
        assert_eq!(texts, ["0 true", "0-1 false"]);
        let hints = book.hints("2", "c", "x/dev", 3, Nodes::of([0, 1])).unwrap();
        assert!(hints.is_empty(), "one is held, one is ill");
    }

    #[test]
    fn a_plugin_that_is_gone_gives_nothing_and_one_that_has_not_come_back_is_awaited() {
        let (mut book, start) = (book(), Instant::now());
        book.stopped("x/dev", start);
        assert_eq!(book.totals(start)["x/dev"], (4, 0));
        assert_eq!(book.totals(start + FORGET)["x/dev"], (0, 0));
        assert!(matches!(book.reserve(&holder("1", "c"), 1, None, false), Err(Shortage::Few { .. })));
        book.resources.insert("x/late".into(), Resource::default());
        let late = Holder { resource: "x/late".into(), ..holder("1", "c") };
        assert_eq!(book.reserve(&late, 1, None, false), Err(Shortage::NotYet("x/late".into())));
    }

    #[test]
    fn a_preference_holds_if_it_can() {
        let mut book = book();
        book.reserve(&holder("1", "c"), 1, None, false).unwrap();
        book.reserve(&holder("2", "c"), 1, None, false).unwrap();
        assert_eq!(book.question(&holder("2", "c"), None).unwrap(), (vec!["b".into(), "c".into()], vec![], 1));
        assert!(!book.prefer(&holder("2", "c"), &["a".to_owned()]), "another pod's");
        assert!(!book.prefer(&holder("2", "c"), &["b".to_owned(), "c".to_owned()]), "too many");
        assert!(book.prefer(&holder("2", "c"), &["c".to_owned()]));
        assert_eq!(ids(&book, "2", "c"), "c");
    }
}
