//! The status of a pod from what was observed (pure).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::conditions::{Progress, conditions};
use super::container::{container, ephemeral};
use crate::pod::{self, is_sidecar};
use crate::resources::qos;
use crate::sync::observe::{Observed, Seen, State};

/// What besides the observation goes into a status.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circumstances {
    /// Why containers wait: reason and message.
    pub(crate) waiting: BTreeMap<String, (String, String)>,
    /// Container ids that are ready by their probe (or have none).
    pub(crate) ready: BTreeMap<String, bool>,
    /// Container ids that have started up.
    pub(crate) started: BTreeMap<String, bool>,
    /// Termination messages by container id.
    pub(crate) messages: BTreeMap<String, String>,
    /// The node's addresses.
    pub(crate) host_ips: Vec<String>,
    /// The scheme of container ids, for example `gantry-cri`.
    pub(crate) runtime: String,
    /// The pod was ended by the kubelet: reason and message.
    pub(crate) failed: Option<(String, String)>,
    /// The pod ended and will not run again.
    pub(crate) finished: bool,
    /// The pod is being stopped.
    pub(crate) terminating: bool,
    /// All containers were just removed to begin anew.
    pub(crate) anew: bool,
    /// Whether all containers are being stopped to begin anew; `None` for a pod that cannot come to that.
    pub(crate) restarting: Option<bool>,
    /// When the kubelet first saw the pod.
    pub(crate) first_seen: Timestamp,
}

/// The status of `pod`; `before` is the one that was reported last.
pub(crate) fn derive(
    pod: &Pod,
    seen: &Observed,
    with: &Circumstances,
    before: &PodStatus,
    now: Timestamp,
) -> PodStatus {
    let init_done = init_done(pod, seen, with);
    let statuses = |list: &[Container], before: Option<&Vec<ContainerStatus>>, default: &str| -> Vec<ContainerStatus> {
        let one = |c: &Container| {
            let last = before.and_then(|l| l.iter().find(|s| s.name == c.name));
            container(c, seen, with, last, default)
        };
        list.iter().map(one).collect()
    };
    let has_init = !pod::init_containers(pod).is_empty();
    let waits = if has_init && !init_done { "PodInitializing" } else { "ContainerCreating" };
    let mains = statuses(pod::containers(pod), before.container_statuses.as_ref(), waits);
    let mut inits = statuses(pod::init_containers(pod), before.init_container_statuses.as_ref(), "PodInitializing");
    for status in inits.iter_mut().zip(pod::init_containers(pod)).filter(|(_, c)| !is_sidecar(c)).map(|(s, _)| s) {
        status.ready = status.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0);
    }
    let phase = phase(pod, seen, with, init_done, &mains, before);
    let over = phase == "Failed" || phase == "Succeeded";
    let never_began = over
        && seen.containers.is_empty()
        && before.container_statuses.iter().flatten().all(|s| s.container_id.is_none());
    let (reason, message) = why(with, before, over);
    let mut ips = seen.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default();
    if pod::host_network(pod) && !seen.sandboxes.is_empty() {
        ips.clone_from(&with.host_ips);
    }
    if ips.is_empty() && (over || with.terminating) {
        ips = before.pod_ips.iter().flatten().map(|p| p.ip.clone()).collect();
    }
    let progress = Progress { phase: &phase, init_done, mains: &mains, inits: &inits };
    let conditions = conditions(pod, seen, with, before, &progress, now);
    let mut status = PodStatus {
        phase: Some(phase),
        conditions: Some(conditions),
        host_ip: with.host_ips.first().cloned(),
        host_ips: (!with.host_ips.is_empty())
            .then(|| with.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        qos_class: Some(qos::class(pod).name().to_owned()),
        start_time: before.start_time.clone().or_else(|| Some(time(with.first_seen))),
        // Nothing ever began, and nothing will: a container that waits would hide the reason.
        container_statuses: (!never_began).then_some(mains),
        ephemeral_container_statuses: ephemeral(pod, seen, with, before),
        init_container_statuses: has_init.then_some(inits),
        reason,
        message,
        observed_generation: pod.metadata.generation,
        ..Default::default()
    };
    cut_messages(&mut status);
    status
}

/// The reason and the message. A pod that was ordered to end and still runs keeps what it said before, as it keeps its
/// phase: whoever reads of an eviction takes the pod for gone.
fn why(with: &Circumstances, before: &PodStatus, over: bool) -> (Option<String>, Option<String>) {
    match &with.failed {
        Some((reason, message)) if over => (Some(reason.clone()), Some(message.clone())),
        None if !over => (None, None),
        _ => (before.reason.clone(), before.message.clone()),
    }
}

/// As the API writes times: to the second.
pub(super) fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// All termination messages of a pod together shall not be longer than this; each container may have its part.
const ALL_MESSAGES: usize = 12 << 10;

fn cut_messages(status: &mut PodStatus) {
    let lists =
        [&mut status.container_statuses, &mut status.init_container_statuses, &mut status.ephemeral_container_statuses];
    let mut all: Vec<&mut ContainerStatus> = lists.into_iter().flatten().flatten().collect();
    let part = ALL_MESSAGES / all.len().max(1);
    for status in &mut all {
        for state in [&mut status.state, &mut status.last_state].into_iter().flatten() {
            if let Some(message) = state.terminated.as_mut().and_then(|t| t.message.as_mut()) {
                message.truncate(message.floor_char_boundary(part));
            }
        }
    }
}

fn init_done(pod: &Pod, seen: &Observed, with: &Circumstances) -> bool {
    let began = pod::containers(pod)
        .iter()
        .any(|c| seen.latest(&c.name).is_some_and(|s| seen.sandboxes.first().is_none_or(|b| b.id == s.sandbox)));
    began
        || pod::init_containers(pod).iter().all(|c| match seen.latest(&c.name) {
            Some(s) if is_sidecar(c) => s.state == State::Running && with.started.get(&s.id) == Some(&true),
            Some(s) => s.state == State::Exited && s.exit_code == 0,
            None => false,
        })
}

fn phase(
    pod: &Pod,
    seen: &Observed,
    with: &Circumstances,
    init_done: bool,
    mains: &[ContainerStatus],
    before: &PodStatus,
) -> String {
    if let Some(over) = before.phase.as_deref().filter(|p| *p == "Failed" || *p == "Succeeded") {
        return over.to_owned();
    }
    // Not before nothing runs any more: whoever sees an ended pod may give its place to another.
    if with.failed.is_some() && seen.alive().next().is_none() {
        return "Failed".to_owned();
    }
    let latest: Vec<Option<&Seen>> = pod::containers(pod).iter().map(|c| seen.latest(&c.name)).collect();
    let ended = |ok: fn(i32) -> bool| {
        !latest.is_empty() && latest.iter().all(|s| s.is_some_and(|s| s.state == State::Exited && ok(s.exit_code)))
    };
    if with.finished || (with.terminating && seen.alive().next().is_none()) {
        if ended(|code| code == 0) {
            return "Succeeded".to_owned();
        }
        if with.finished || ended(|_| true) {
            return "Failed".to_owned();
        }
    }
    if !init_done {
        return "Pending".to_owned();
    }
    let never_ran = mains.iter().any(|s| {
        s.state.as_ref().is_some_and(|st| st.waiting.is_some())
            && s.last_state.as_ref().is_none_or(|l| l.terminated.is_none())
    });
    if never_ran { "Pending" } else { "Running" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::container::{ANEW, LOST};
    use crate::sync::observe::Sandbox;
    use k8s_openapi::api::core::v1::{ContainerState, PodCondition};
    use serde_json::json;

    fn pod(policy: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u", "generation": 1}, "spec": {
            "restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "a", "image": "x"}]}}))
        .unwrap()
    }

    fn seen(name: &str, state: State, exit_code: i32) -> Seen {
        Seen { id: format!("{name}1"), name: name.into(), sandbox: "s".into(), state, exit_code, ..Default::default() }
    }

    fn status(policy: &str, containers: Vec<Seen>, with: Circumstances) -> PodStatus {
        let sandbox = Sandbox { id: "s".into(), ready: true, ips: vec!["10.0.0.2".into()], ..Default::default() };
        let observed = Observed { sandboxes: vec![sandbox], containers };
        derive(&pod(policy), &observed, &with, &PodStatus::default(), Timestamp::now())
    }

    fn is(status: &PodStatus, kind: &str) -> String {
        status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap().status.clone()
    }

    #[test]
    fn a_pod_waits_for_its_init_container_then_runs_and_becomes_ready() {
        let first = status("Always", vec![seen("i", State::Running, 0)], Circumstances::default());
        assert_eq!(first.phase.as_deref(), Some("Pending"));
        let waiting = first.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
        let with = Circumstances {
            ready: [("a1".to_owned(), true)].into(),
            started: [("a1".to_owned(), true)].into(),
            ..Default::default()
        };
        let run = status("Always", vec![seen("a", State::Running, 0), seen("i", State::Exited, 0)], with);
        assert_eq!((run.phase.as_deref(), is(&run, "Ready").as_str()), (Some("Running"), "True"));
        assert_eq!(run.pod_ip.as_deref(), Some("10.0.0.2"));
    }

    #[test]
    fn a_crash_loop_waits_with_its_last_state() {
        let waiting = [("a".to_owned(), ("CrashLoopBackOff".to_owned(), "back-off".to_owned()))].into();
        let got = status("Always", vec![seen("a", State::Exited, 3)], Circumstances { waiting, ..Default::default() });
        assert_eq!(got.phase.as_deref(), Some("Running"));
        let a = &got.container_statuses.unwrap()[0];
        assert_eq!(a.state.clone().unwrap().waiting.unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(a.last_state.clone().unwrap().terminated.unwrap().exit_code, 3);
    }

    #[test]
    fn a_container_that_the_runtime_lost_is_told_of() {
        let before = |state: serde_json::Value| PodStatus {
            container_statuses: serde_json::from_value(
                json!([{"name": "a", "image": "x", "imageID": "", "ready": true,
                "restartCount": 2, "containerID": "cri://a1", "state": state}]),
            )
            .unwrap(),
            ..Default::default()
        };
        let sandbox = Sandbox { id: "s".into(), ready: true, ..Default::default() };
        let world = Observed { sandboxes: vec![sandbox], containers: vec![seen("i", State::Exited, 0)] };
        let first = |before: &PodStatus, with: &Circumstances| {
            derive(&pod("Always"), &world, with, before, Timestamp::now()).container_statuses.unwrap().remove(0)
        };
        let reason = |s: &Option<ContainerState>| {
            let ended = s.as_ref().and_then(|s| s.terminated.as_ref());
            ended.map(|t| (t.reason.clone().unwrap_or_default(), t.exit_code))
        };
        let (usual, running) = (Circumstances::default(), before(json!({"running": {}})));
        let unknown = Some((LOST.to_owned(), 137));
        // It will be started again: the end that nobody saw is its last state, counted once.
        let got = first(&running, &usual);
        assert_eq!((reason(&got.last_state), got.restart_count), (unknown.clone(), 3));
        let waits = PodStatus { container_statuses: Some(vec![got]), ..Default::default() };
        let again = first(&waits, &usual);
        assert_eq!((reason(&again.last_state), again.restart_count), (unknown.clone(), 3));
        // The pod is at its end.
        let got = first(&running, &Circumstances { terminating: true, ..Default::default() });
        assert_eq!((reason(&got.state), got.restart_count, got.ready), (unknown, 2, false));
        // Its end was seen before: that stays, unless all begin anew.
        let ended = before(json!({"terminated": {"exitCode": 42, "reason": "Error"}}));
        let seen_end = Some(("Error".to_owned(), 42));
        assert_eq!(reason(&first(&ended, &usual).state), seen_end);
        let anew = Circumstances { anew: true, restarting: Some(true), ..Default::default() };
        let got = first(&ended, &anew);
        let waiting = got.state.clone().and_then(|s| s.waiting).and_then(|w| w.reason);
        assert_eq!((waiting.as_deref(), reason(&got.last_state), got.restart_count), (Some(ANEW), seen_end, 3));
        let status = derive(&pod("Always"), &world, &anew, &ended, Timestamp::now());
        assert_eq!(is(&status, "AllContainersRestarting"), "True");
    }

    #[test]
    fn a_sidecar_initializes_the_pod_when_it_has_started_up() {
        let mut with_sidecar = pod("Always");
        let sidecar = json!([{"name": "i", "restartPolicy": "Always", "startupProbe": {}}]);
        with_sidecar.spec.as_mut().unwrap().init_containers = serde_json::from_value(sidecar).unwrap();
        let sandbox = Sandbox { id: "s".into(), ready: true, ..Default::default() };
        let world = Observed { sandboxes: vec![sandbox], containers: vec![seen("i", State::Running, 0)] };
        for (started, want) in [(false, "False"), (true, "True")] {
            let with = Circumstances { started: [("i1".to_owned(), started)].into(), ..Default::default() };
            let got = derive(&with_sidecar, &world, &with, &PodStatus::default(), Timestamp::now());
            assert_eq!(is(&got, "Initialized"), want);
        }
    }

    #[test]
    fn a_pod_that_was_rejected_shows_nothing_but_the_reason() {
        let failed = Some(("OutOfcpu".to_owned(), "Pod was rejected: ...".to_owned()));
        let with = Circumstances { failed, finished: true, ..Default::default() };
        let status = derive(&pod("Always"), &Observed::default(), &with, &PodStatus::default(), Timestamp::now());
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
        assert_eq!(status.container_statuses, None);
        // The next kubelet knows the reason from the status only.
        let again = derive(&pod("Always"), &Observed::default(), &Circumstances::default(), &status, Timestamp::now());
        assert_eq!((again.phase.as_deref(), again.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
    }

    #[test]
    fn a_pod_that_is_ordered_to_end_says_so_when_nothing_runs_any_more() {
        let (running, exited) = (seen("a", State::Running, 0), seen("a", State::Exited, 137));
        let evicted = Some(("Evicted".to_owned(), "The node was low on resource: memory.".to_owned()));
        let told = |reason: Option<&str>| reason.map(str::to_owned);
        for (now, reason_before, terminating, phase, reason) in [
            (&running, None, false, "Running", None),
            (&running, None, true, "Running", None),
            (&running, Some("NodeLost"), false, "Running", Some("NodeLost")),
            (&exited, None, false, "Failed", Some("Evicted")),
            (&exited, Some("NodeLost"), true, "Failed", Some("Evicted")),
        ] {
            let with = Circumstances { failed: evicted.clone(), terminating, ..Default::default() };
            let sandbox = Sandbox { id: "s".into(), ready: true, ..Default::default() };
            let world =
                Observed { sandboxes: vec![sandbox], containers: vec![now.clone(), seen("i", State::Exited, 0)] };
            let before = PodStatus {
                phase: Some("Running".to_owned()),
                reason: told(reason_before),
                message: told(reason_before),
                ..Default::default()
            };
            let got = derive(&pod("Always"), &world, &with, &before, Timestamp::UNIX_EPOCH);
            assert_eq!((got.phase.as_deref(), got.reason.as_deref()), (Some(phase), reason), "{:?}", now.state);
            assert_eq!(got.message.is_some(), reason.is_some());
        }
    }

    #[test]
    fn readiness_gates_hold_readiness_back_and_say_why() {
        let mut gated = pod("Always");
        gated.spec.as_mut().unwrap().readiness_gates =
            serde_json::from_value(json!([{"conditionType": "x/y"}])).unwrap();
        let with = Circumstances {
            ready: [("a1".to_owned(), true)].into(),
            started: [("a1".to_owned(), true)].into(),
            ..Default::default()
        };
        let sandbox = Sandbox { id: "s".into(), ready: true, ..Default::default() };
        let observed = Observed {
            sandboxes: vec![sandbox],
            containers: vec![seen("a", State::Running, 0), seen("i", State::Exited, 0)],
        };
        for (gate, ready, text) in
            [(None, "False", "does not exist"), (Some("False"), "False", "but False"), (Some("True"), "True", "")]
        {
            let conditions =
                gate.map(|g| vec![PodCondition { type_: "x/y".into(), status: g.into(), ..Default::default() }]);
            let before = PodStatus { conditions, ..Default::default() };
            let got = derive(&gated, &observed, &with, &before, Timestamp::now());
            assert_eq!((is(&got, "Ready").as_str(), is(&got, "ContainersReady").as_str()), (ready, "True"), "{gate:?}");
            let message = got.conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap().message;
            assert!(message.unwrap_or_default().contains(text), "{gate:?}");
        }
    }

    #[test]
    fn termination_messages_share_their_space() {
        let messages = [("a1".to_owned(), "x".repeat(9000)), ("i1".to_owned(), "é".repeat(5000))].into();
        let with = Circumstances { finished: true, messages, ..Default::default() };
        let got = status("Never", vec![seen("a", State::Exited, 0), seen("i", State::Exited, 0)], with);
        let length = |list: Option<Vec<ContainerStatus>>| {
            list.unwrap()[0].state.clone().unwrap().terminated.unwrap().message.unwrap().len()
        };
        assert_eq!((length(got.container_statuses), length(got.init_container_statuses)), (6144, 6144));
    }

    #[test]
    fn the_end_is_success_or_failure_by_the_exit_codes() {
        for (code, phase, reason) in [(0, "Succeeded", "Completed"), (7, "Failed", "Error")] {
            let with = Circumstances { finished: true, ..Default::default() };
            let got = status("Never", vec![seen("a", State::Exited, code)], with);
            assert_eq!(got.phase.as_deref(), Some(phase));
            let state = got.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
            assert_eq!((state.reason.as_deref(), state.exit_code), (Some(reason), code));
        }
    }
}
