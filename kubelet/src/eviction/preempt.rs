//! Which pods make room for a critical one that the node has no room for (pure).
//!
//! As few as possible, and those least missed: none of a better class goes while those of the classes below would do.

use k8s_openapi::api::core::v1::Pod;

use super::is_critical;
use crate::pod::{self, Amounts, requests};
use crate::resources::qos::{self, Qos};

/// What is missing, by the names of resources.
pub(crate) type Missing = Amounts;

/// Whether `pod` may have `other` ended.
fn may_end(pod: &Pod, other: &Pod) -> bool {
    let priority = |p: &Pod| p.spec.as_ref().and_then(|s| s.priority);
    (is_critical(pod) && !is_critical(other)) || priority(pod).zip(priority(other)).is_some_and(|(own, its)| own > its)
}

/// What a pod holds, itself counted.
fn held(pod: &Pod) -> Amounts {
    let mut out = requests(pod);
    out.insert("pods".to_owned(), 1);
    out
}

/// What is still missing when these pods are gone.
fn without(missing: &Missing, gone: &[&Pod]) -> Missing {
    let all: Vec<Amounts> = gone.iter().map(|p| held(p)).collect();
    let left = |(name, amount): (&String, &i64)| {
        let freed: i64 = all.iter().filter_map(|h| h.get(name)).sum();
        (*amount > freed).then(|| (name.clone(), amount - freed))
    };
    missing.iter().filter_map(left).collect()
}

/// How far a pod's end is from freeing all that is missing: each resource counts alike.
fn distance(missing: &Missing, pod: &Pod) -> f64 {
    let held = held(pod);
    let share = |(name, amount): (&String, &i64)| {
        let left = (amount - held.get(name).copied().unwrap_or(0)).max(0) as f64;
        (left / *amount as f64).powi(2)
    };
    missing.iter().map(share).sum()
}

/// Takes pods of one class until nothing is missing: that which frees most of it first, of equal ones the smaller.
fn enough(mut from: Vec<&Pod>, mut missing: Missing) -> Option<Vec<&Pod>> {
    let mut out = Vec::new();
    while !missing.is_empty() {
        let size = |pod: &Pod| ["memory", "cpu"].map(|name| held(pod).get(name).copied().unwrap_or(0));
        let best = from.iter().enumerate().min_by(|(_, a), (_, b)| {
            distance(&missing, a).total_cmp(&distance(&missing, b)).then_with(|| size(a).cmp(&size(b)))
        });
        let (at, _) = best?;
        let taken = from.swap_remove(at);
        missing = without(&missing, &[taken]);
        out.push(taken);
    }
    Some(out)
}

/// The pods that end so that `pod` finds what is `missing`; nothing where no set of them would do.
pub(crate) fn victims<'a>(pod: &Pod, others: &[&'a Pod], missing: &Missing) -> Option<Vec<&'a Pod>> {
    if !is_critical(pod) || missing.is_empty() {
        return None;
    }
    let of = |class: Qos| -> Vec<&'a Pod> {
        others.iter().copied().filter(|o| qos::class(o) == class && may_end(pod, o)).collect()
    };
    let (least, middle, best) = (of(Qos::BestEffort), of(Qos::Burstable), of(Qos::Guaranteed));
    let below = [least.as_slice(), middle.as_slice()].concat();
    let guaranteed = enough(best, without(missing, &below))?;
    let beside = [least.as_slice(), guaranteed.as_slice()].concat();
    let burstable = enough(middle, without(missing, &beside))?;
    let others = [burstable, guaranteed].concat();
    let besteffort = enough(least, without(missing, &others))?;
    Some([besteffort, others].concat())
}

/// What `status.message` and the event say of a pod that had to go.
pub(crate) const MESSAGE: &str = "Preempted in order to admit critical pod";

/// The resource under which preemptions for this are counted.
pub(crate) fn signal(missing: &Missing) -> &str {
    // The order in which they are looked at.
    let first = ["pods", "cpu", "memory", "ephemeral-storage"];
    let known = first.into_iter().find(|name| missing.contains_key(*name));
    known.or_else(|| missing.keys().next().map(String::as_str)).unwrap_or_default()
}

/// How long a pod may take to end, its own time to go down included.
pub(crate) fn patience(pods: &[&Pod]) -> std::time::Duration {
    let longest = pods.iter().map(|p| pod::grace(p)).max().unwrap_or(0);
    std::time::Duration::from_secs(u64::try_from(longest).unwrap_or(0).saturating_add(30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32, cpu: &str, guaranteed: bool) -> Pod {
        let mut resources = json!({"requests": {"cpu": cpu, "memory": "1Mi"}});
        if guaranteed {
            resources = json!({"limits": {"cpu": cpu, "memory": "1Mi"}});
        }
        if cpu.is_empty() {
            resources = json!({});
        }
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": resources}]}}))
        .unwrap()
    }

    const SYSTEM: i32 = 2_000_000_000;

    fn chosen(pod: &Pod, others: &[Pod], missing: &[(&str, i64)]) -> Option<String> {
        let missing = missing.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        let others: Vec<&Pod> = others.iter().collect();
        let found = victims(pod, &others, &missing)?;
        Some(found.iter().map(|p| pod::name(p)).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn as_few_as_will_do_go_and_the_least_missed_first() {
        let critical = pod("new", SYSTEM, "1", false);
        let others = [
            pod("idle", 0, "", false),
            pod("small", 0, "200m", false),
            pod("large", 0, "800m", false),
            pod("huge", 0, "1600m", false),
            pod("sure", 0, "500m", true),
            pod("system", SYSTEM, "4", false),
        ];
        for (cpu, want) in [
            // The smallest that frees all of it.
            (100, Some("small")),
            (300, Some("large")),
            (900, Some("huge")),
            (1700, Some("huge small")),
            // The guaranteed one only when all below it do not do.
            (2600, Some("huge large small")),
            (2700, Some("huge large sure")),
            (3100, Some("huge large small sure")),
            // Another critical one never goes.
            (3200, None),
        ] {
            assert_eq!(chosen(&critical, &others, &[("cpu", cpu)]).as_deref(), want, "{cpu}");
        }
        // A place is freed by one that asks for nothing.
        assert_eq!(chosen(&critical, &others, &[("pods", 1)]).as_deref(), Some("idle"));
    }

    #[test]
    fn only_critical_pods_have_others_ended_and_the_more_critical_even_these() {
        let others = [pod("a", 0, "1", false), pod("system", SYSTEM, "4", false)];
        assert_eq!(chosen(&pod("new", 1000, "1", false), &others, &[("cpu", 100)]), None);
        let most = pod("new", SYSTEM + 1000, "1", false);
        assert_eq!(chosen(&most, &others, &[("cpu", 3000)]).as_deref(), Some("system"));
        let mut fixed = pod("new", 0, "1", false);
        fixed.metadata.annotations = Some([("kubernetes.io/config.source".to_owned(), "file".to_owned())].into());
        assert_eq!(chosen(&fixed, &others, &[("cpu", 100)]).as_deref(), Some("a"), "a static pod is critical");
    }

    #[test]
    fn preemptions_are_counted_by_the_first_resource_that_is_missing() {
        let of = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), 1)).collect::<Missing>();
        assert_eq!(signal(&of(&["memory", "cpu"])), "cpu");
        assert_eq!(signal(&of(&["hugepages-2Mi"])), "hugepages-2Mi");
    }
}
