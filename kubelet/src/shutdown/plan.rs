//! Which pods end when, and how much time each has (pure).

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::config::KubeletConfiguration;
use crate::pod;

/// From this priority on a pod is critical.
const CRITICAL: i32 = 2_000_000_000;

/// Pods of a priority and above, up to the next group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// The least priority.
    pub(crate) priority: i32,
    /// How long the group has.
    pub(crate) period: Duration,
}

/// The groups of a configuration, those first that end first; none where graceful shutdown is off.
pub(crate) fn groups(config: &KubeletConfiguration) -> Vec<Group> {
    let by_priority = &config.shutdown_grace_period_by_pod_priority;
    let mut out: Vec<Group> = if by_priority.is_empty() {
        let (all, critical) = (config.shutdown_grace_period.0, config.shutdown_grace_period_critical_pods.0);
        if all.is_zero() {
            return Vec::new();
        }
        vec![
            Group { priority: 0, period: all.saturating_sub(critical) },
            Group { priority: CRITICAL, period: critical },
        ]
    } else {
        let seconds = |n: i64| Duration::from_secs(u64::try_from(n).unwrap_or(0));
        by_priority
            .iter()
            .map(|g| Group { priority: g.priority, period: seconds(g.shutdown_grace_period_seconds) })
            .collect()
    };
    out.sort_by_key(|g| g.priority);
    if out.iter().all(|g| g.period.is_zero()) {
        return Vec::new();
    }
    out
}

/// How long the machine must be held up for all groups.
pub(crate) fn total(groups: &[Group]) -> Duration {
    groups.iter().map(|g| g.period).sum()
}

/// The pods of each group. One below the lowest priority is in the lowest group.
pub(crate) fn assign<P: AsRef<Pod>>(groups: &[Group], pods: Vec<P>) -> Vec<(Group, Vec<P>)> {
    let mut out: Vec<(Group, Vec<P>)> = groups.iter().map(|g| (*g, Vec::new())).collect();
    for one in pods {
        let priority = one.as_ref().spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        let at = groups.iter().rposition(|g| g.priority <= priority).unwrap_or(0);
        if let Some((_, list)) = out.get_mut(at) {
            list.push(one);
        }
    }
    out
}

/// The grace period of a pod in a group: its own, unless the group has less.
pub(crate) fn grace(pod: &Pod, group: &Group) -> i64 {
    pod::grace(pod).min(i64::try_from(group.period.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn config(fields: serde_json::Value) -> KubeletConfiguration {
        serde_json::from_value(fields).unwrap()
    }

    fn pod(name: &str, priority: Option<i32>, grace: i64) -> Arc<Pod> {
        let spec = json!({"priority": priority, "terminationGracePeriodSeconds": grace, "containers": []});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    #[test]
    fn groups_come_from_either_kind_of_setting() {
        let texts = |fields| {
            let text = |g: &Group| format!("{}:{}", g.priority, g.period.as_secs());
            groups(&config(fields)).iter().map(text).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(texts(json!({})), "");
        assert_eq!(
            texts(json!({"shutdownGracePeriod": "30s", "shutdownGracePeriodCriticalPods": "10s"})),
            "0:20 2000000000:10"
        );
        let list = json!([{"priority": 100, "shutdownGracePeriodSeconds": 5}, {"priority": 0, "shutdownGracePeriodSeconds": 7}]);
        assert_eq!(texts(json!({"shutdownGracePeriodByPodPriority": list})), "0:7 100:5");
        assert_eq!(
            texts(json!({"shutdownGracePeriodByPodPriority": [{"priority": 1, "shutdownGracePeriodSeconds": 0}]})),
            ""
        );
    }

    #[test]
    fn pods_end_in_the_order_of_their_priority_with_their_time() {
        let groups = groups(&config(json!({"shutdownGracePeriodByPodPriority": [
            {"priority": 10, "shutdownGracePeriodSeconds": 20}, {"priority": 1000, "shutdownGracePeriodSeconds": 5}]})));
        assert_eq!(total(&groups), Duration::from_secs(25));
        let pods = vec![
            pod("high", Some(5000), 30),
            pod("edge", Some(1000), 3),
            pod("low", Some(11), 30),
            pod("least", None, 10),
        ];
        let got: Vec<String> = assign(&groups, pods)
            .iter()
            .map(|(group, pods)| {
                let text = |p: &Arc<Pod>| format!("{}={}", pod::name(p), grace(p, group));
                pods.iter().map(text).collect::<Vec<_>>().join(",")
            })
            .collect();
        assert_eq!(got, ["low=20,least=10", "high=5,edge=3"]);
    }
}
