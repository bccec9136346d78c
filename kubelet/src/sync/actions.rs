//! What to do next with a pod: the one place where the pod life cycle is decided. Pure; the table below is its
//! documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus};

use super::backoff;
use super::observe::{Observed, Seen, State};
use crate::pod::{self, is_sidecar, spec_hash};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make a sandbox.
    CreateSandbox {
        /// The how manieth of the pod.
        attempt: u32,
    },
    /// Create and start a container in the ready sandbox.
    Start {
        /// Its name.
        container: String,
        /// How often it was started before.
        attempt: u32,
        /// What its successor shall wait, in milliseconds.
        restart_delay_ms: u64,
    },
    /// Stop a container with its grace period.
    Kill {
        /// Its id.
        id: String,
        /// Its name.
        container: String,
        /// The text of the event.
        message: String,
    },
    /// Remove a container that has ended or never started.
    Remove {
        /// Its id.
        id: String,
    },
    /// Stop everything of the pod, in order, and its sandboxes; it will not run again.
    StopPod,
    /// Stop every container of the pod at once and without hooks, since all of them begin anew.
    Halt,
    /// Remove a sandbox that was replaced.
    RemoveSandbox {
        /// Its id.
        id: String,
    },
}

/// What probes say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts {
    /// Ids of containers to be killed, with the probe's kind (`liveness`, `startup`).
    pub(crate) failed: BTreeMap<String, &'static str>,
    /// Ids of containers whose startup probe has succeeded.
    pub(crate) started: BTreeSet<String>,
}

/// What is known of containers beside what the runtime has: it may have lost them, or been told to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// How often each container was started before, by the status.
    pub(crate) starts: BTreeMap<String, u32>,
    /// What the next one of a container waits, should it end, in milliseconds.
    pub(crate) delays: BTreeMap<String, u64>,
}

impl Memory {
    /// The starts that a status tells of: a container that waits is counted already.
    pub(crate) fn of(status: Option<&PodStatus>) -> Self {
        let all = status.into_iter().flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses));
        let count = |s: &ContainerStatus| {
            let began = s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some());
            u32::try_from(s.restart_count).unwrap_or(0) + u32::from(began)
        };
        Self { starts: all.flatten().map(|s| (s.name.clone(), count(s))).collect(), delays: BTreeMap::new() }
    }
}

/// The decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What to do now, in order.
    pub(crate) actions: Vec<Action>,
    /// When to look again at the latest.
    pub(crate) wake: Option<Timestamp>,
    /// Containers in CrashLoopBackOff and how long they wait.
    pub(crate) crash_loop: BTreeMap<String, Duration>,
    /// The pod has come to its end by itself.
    pub(crate) finished: bool,
    /// All containers begin anew, since one of them ended with a code for that.
    pub(crate) restarting: bool,
    /// With these actions nothing of the containers before is left; what the next one of the culprit waits.
    pub(crate) cleared: Option<(String, u64)>,
}

/// What the first of the container's rules that knows the exit code wants done.
fn ruled(container: &Container, code: i32) -> Option<&str> {
    let mut rules = container.restart_policy_rules.iter().flatten().filter(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|v| *v == code);
            if codes.operator == "NotIn" { !listed } else { listed }
        })
    });
    rules.next().map(|rule| rule.action.as_str())
}

/// The action of a rule that begins the whole pod anew, within its sandbox.
const RESTART_ALL: &str = "RestartAllContainers";

/// Whether a container of the pod may begin all of them anew.
pub(crate) fn may_restart_all(pod: &Pod) -> bool {
    pod::all_containers(pod).flat_map(|c| c.restart_policy_rules.iter().flatten()).any(|r| r.action == RESTART_ALL)
}

/// The container that ended with a code by which all of them begin anew. It is removed last, so that a kubelet that begins
/// anew in between goes on.
fn culprit<'a>(pod: &Pod, observed: &'a Observed) -> Option<&'a Seen> {
    pod::all_containers(pod).find_map(|container| {
        let seen = observed.latest(&container.name).filter(|s| s.state == State::Exited)?;
        (ruled(container, seen.exit_code) == Some(RESTART_ALL)).then_some(seen)
    })
}

/// Whether a container that ended is started again.
fn again(pod: &Pod, container: &Container, ended: &Seen) -> bool {
    if matches!(ruled(container, ended.exit_code), Some("Restart" | RESTART_ALL)) {
        return true;
    }
    match container.restart_policy.as_deref().unwrap_or_else(|| pod::restart_policy(pod)) {
        "Never" => false,
        "OnFailure" => ended.exit_code != 0,
        _ => true,
    }
}

/// What to do with a pod that shall run. (One that shall not is stopped by its worker without asking.)
pub(crate) fn actions(
    pod: &Pod,
    observed: &Observed,
    verdicts: &Verdicts,
    memory: &Memory,
    cap: Duration,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    if finished(pod, observed) {
        plan.finished = true;
        if observed.alive().next().is_some() || observed.sandboxes.iter().any(|s| s.ready) {
            plan.actions.push(Action::StopPod);
        }
        return plan;
    }
    if let Some(culprit) = culprit(pod, observed) {
        plan.anew(culprit, observed, cap, now);
        return plan;
    }
    let Some(sandbox) = observed.ready_sandbox() else {
        // A dead sandbox took its network along: what still runs in it has to go first.
        for seen in observed.alive() {
            plan.kill(seen, "Pod sandbox changed, it will be killed and re-created.".to_owned());
        }
        if !plan.actions.is_empty() {
            return plan;
        }
        for old in observed.sandboxes.iter().skip(1) {
            plan.actions.push(Action::RemoveSandbox { id: old.id.clone() });
        }
        let attempt = observed.sandboxes.iter().map(|s| s.attempt + 1).max().unwrap_or(0);
        plan.actions.push(Action::CreateSandbox { attempt });
        return plan;
    };
    for old in observed.sandboxes.iter().skip(1) {
        plan.actions.push(Action::RemoveSandbox { id: old.id.clone() });
    }
    let mut step = Step { pod, observed, verdicts, memory, cap, now, sandbox: &sandbox.id, plan: &mut plan };
    // Ephemeral containers wait for nothing and are never started again.
    for container in pod::ephemeral_containers(pod) {
        step.ephemeral(&container.name);
    }
    let mains_began = pod::containers(pod).iter().any(|c| observed.latest_in(&sandbox.id, &c.name).is_some());
    let mut go_on = true;
    for container in pod::init_containers(pod) {
        let done = if is_sidecar(container) { step.sidecar(container) } else { mains_began || step.init(container) };
        if !done && !mains_began {
            go_on = false;
            break;
        }
    }
    if go_on {
        for container in pod::containers(pod) {
            step.main(container);
        }
    }
    plan
}

struct Step<'a> {
    pod: &'a Pod,
    observed: &'a Observed,
    verdicts: &'a Verdicts,
    memory: &'a Memory,
    cap: Duration,
    now: Timestamp,
    sandbox: &'a str,
    plan: &'a mut Plan,
}

impl Step<'_> {
    /// An init container; tells whether the next one may start.
    fn init(&mut self, container: &Container) -> bool {
        match self.observed.latest_in(self.sandbox, &container.name) {
            Some(seen) if seen.state == State::Exited && seen.exit_code == 0 => return true,
            Some(seen) => self.tend(container, seen),
            None => self.start_fresh(container),
        }
        false
    }

    /// A sidecar; the next container may start once it has started up.
    fn sidecar(&mut self, container: &Container) -> bool {
        let Some(seen) = self.observed.latest_in(self.sandbox, &container.name) else {
            self.start_fresh(container);
            return false;
        };
        self.tend(container, seen);
        seen.state == State::Running && (!pod::has_startup_probe(container) || self.verdicts.started.contains(&seen.id))
    }

    fn main(&mut self, container: &Container) {
        match self.observed.latest_in(self.sandbox, &container.name) {
            Some(seen) => self.tend(container, seen),
            None => {
                // One that came to its end in an earlier sandbox is not run again against its policy.
                let before = self.observed.latest(&container.name).filter(|s| s.state == State::Exited);
                if before.is_none_or(|s| again(self.pod, container, s)) {
                    self.start_fresh(container);
                }
            }
        }
    }

    fn ephemeral(&mut self, name: &str) {
        let start = Action::Start { container: name.to_owned(), attempt: 0, restart_delay_ms: 0 };
        // Its container may have gone with an earlier sandbox; the status remembers.
        let known = self.pod.status.iter().flat_map(|s| s.ephemeral_container_statuses.iter().flatten());
        let ran = known
            .filter(|s| s.name == name)
            .filter_map(|s| s.state.as_ref())
            .any(|s| s.running.is_some() || s.terminated.is_some());
        match self.observed.latest(name) {
            None if ran => {}
            None => self.plan.actions.push(start),
            Some(seen) if seen.state == State::Created => {
                self.plan.actions.extend([Action::Remove { id: seen.id.clone() }, start]);
            }
            Some(_) => {}
        }
    }

    fn start_fresh(&mut self, container: &Container) {
        let name = &container.name;
        let known = || self.memory.starts.get(name).copied().unwrap_or(0);
        let attempt = self.observed.latest(name).map_or_else(known, |s| s.attempt + 1);
        let restart_delay_ms = self.memory.delays.get(name).copied().unwrap_or(0);
        self.plan.actions.push(Action::Start { container: name.clone(), attempt, restart_delay_ms });
    }

    fn tend(&mut self, container: &Container, seen: &Seen) {
        let name = &container.name;
        match seen.state {
            State::Running => {
                if let Some(probe) = self.verdicts.failed.get(&seen.id) {
                    let text = if again(self.pod, container, &Seen { exit_code: 137, ..seen.clone() }) {
                        "will be restarted"
                    } else {
                        "will be killed"
                    };
                    self.plan.kill(seen, format!("Container {name} failed {probe} probe, {text}"));
                } else if seen.hash != spec_hash(container) && !seen.hash.is_empty() {
                    self.plan.kill(seen, format!("Container {name} definition changed, will be restarted"));
                }
            }
            State::Unknown => {
                self.plan.kill(seen, format!("Container {name} is in unknown state, try killing it before restart"))
            }
            // Whoever made it died before starting it.
            State::Created => {
                self.plan.actions.push(Action::Remove { id: seen.id.clone() });
                let restart_delay_ms = seen.restart_delay_ms;
                self.plan.actions.push(Action::Start {
                    container: name.clone(),
                    attempt: seen.attempt,
                    restart_delay_ms,
                });
            }
            State::Exited if again(self.pod, container, seen) => {
                let (at, restart_delay_ms) =
                    backoff::restart(seen.restart_delay_ms, seen.started_at, seen.finished_at, self.cap, self.now);
                if at > self.now {
                    self.plan.wake = Some(self.plan.wake.map_or(at, |w| w.min(at)));
                    self.plan.crash_loop.insert(name.clone(), Duration::from_millis(seen.restart_delay_ms));
                } else {
                    let attempt = seen.attempt + 1;
                    self.plan.actions.push(Action::Start { container: name.clone(), attempt, restart_delay_ms });
                }
            }
            State::Exited => {}
        }
    }
}

impl Plan {
    /// Everything that runs is stopped; then, after the wait of the culprit, everything is removed, the culprit last.
    fn anew(&mut self, culprit: &Seen, observed: &Observed, cap: Duration, now: Timestamp) {
        self.restarting = true;
        if observed.alive().next().is_some() {
            self.actions.push(Action::Halt);
            return;
        }
        let (at, delay) = backoff::restart(culprit.restart_delay_ms, culprit.started_at, culprit.finished_at, cap, now);
        if at > now {
            self.wake = Some(at);
            self.crash_loop.insert(culprit.name.clone(), Duration::from_millis(culprit.restart_delay_ms));
            return;
        }
        let others = observed.containers.iter().filter(|c| c.id != culprit.id).chain([culprit]);
        self.actions.extend(others.map(|c| Action::Remove { id: c.id.clone() }));
        self.cleared = Some((culprit.name.clone(), delay));
    }

    fn kill(&mut self, seen: &Seen, message: String) {
        self.actions.push(Action::Kill { id: seen.id.clone(), container: seen.name.clone(), message });
    }
}

/// Whether the pod has come to its end by itself: every main container ended for good, or an init container failed for
/// good.
pub(crate) fn finished(pod: &Pod, observed: &Observed) -> bool {
    let for_good = |container: &Container| {
        observed.latest(&container.name).is_some_and(|s| s.state == State::Exited && !again(pod, container, s))
    };
    let init_failed = pod::init_containers(pod)
        .iter()
        .any(|c| !is_sidecar(c) && for_good(c) && observed.latest(&c.name).is_some_and(|s| s.exit_code != 0));
    let mains = pod::containers(pod);
    init_failed || (!mains.is_empty() && mains.iter().all(for_good))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::observe::Sandbox;
    use serde_json::json;

    fn pod(policy: &str, init: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": {
            "restartPolicy": policy, "initContainers": init, "containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]}}))
        .unwrap()
    }

    fn sandbox(ready: bool) -> Sandbox {
        Sandbox { id: "s".into(), ready, ..Default::default() }
    }

    /// `a:run`, `a:0` (exit code), `a:new`, `a:lost`; all in sandbox `s`.
    fn world(ready: Option<bool>, containers: &[&str]) -> Observed {
        let seen = containers.iter().map(|text| {
            let (name, state) = text.split_once(':').unwrap();
            let (state, exit_code) = match state {
                "run" => (State::Running, 0),
                "new" => (State::Created, 0),
                "lost" => (State::Unknown, 0),
                code => (State::Exited, code.parse().unwrap()),
            };
            Seen {
                id: format!("{name}-0"),
                name: name.into(),
                sandbox: "s".into(),
                state,
                exit_code,
                finished_at: Timestamp::from_second(100).unwrap(),
                started_at: Timestamp::from_second(99).unwrap(),
                ..Default::default()
            }
        });
        Observed { sandboxes: ready.map(sandbox).into_iter().collect(), containers: seen.collect() }
    }

    fn words(plan: &Plan) -> String {
        let text = plan.actions.iter().map(|a| match a {
            Action::CreateSandbox { attempt } => format!("sandbox{attempt}"),
            Action::Start { container, attempt, .. } => format!("start-{container}{attempt}"),
            Action::Kill { container, .. } => format!("kill-{container}"),
            Action::Remove { id } => format!("remove-{id}"),
            Action::StopPod => "stop".to_owned(),
            Action::Halt => "halt".to_owned(),
            Action::RemoveSandbox { id } => format!("remove-sandbox-{id}"),
        });
        let mut words: Vec<String> = text.collect();
        words.extend(plan.wake.map(|w| format!("wake{}", w.as_second())));
        words.extend(plan.finished.then(|| "finished".to_owned()));
        words.join(" ")
    }

    #[test]
    fn the_life_cycle_of_a_pod() {
        let none = json!([]);
        let init = json!([{"name": "i", "image": "x"}, {"name": "j", "image": "x"}]);
        let side = json!([{"name": "s1", "image": "x", "restartPolicy": "Always"}, {"name": "i", "image": "x"}]);
        let up = Some(true);
        type Row<'a> = (&'a str, &'a serde_json::Value, Option<bool>, &'a [&'a str], &'a str);
        let table: &[Row<'_>] = &[
            // Start: sandbox, init containers in order, then all main containers.
            ("Always", &none, None, &[], "sandbox0"),
            ("Always", &none, up, &[], "start-a0 start-b0"),
            ("Always", &init, up, &[], "start-i0"),
            ("Always", &init, up, &["i:run"], ""),
            ("Always", &init, up, &["i:0"], "start-j0"),
            ("Always", &init, up, &["i:0", "j:0"], "start-a0 start-b0"),
            ("Always", &none, up, &["a:run", "b:run"], ""),
            // A failed init container: again, or the end of the pod.
            ("Always", &init, up, &["i:1"], "start-i1"),
            ("OnFailure", &init, up, &["i:1"], "start-i1"),
            ("Never", &init, up, &["i:1"], "stop finished"),
            ("Never", &init, Some(false), &["i:1"], "finished"),
            // Sidecars start in order, gate what comes next, and come back.
            ("Never", &side, up, &[], "start-s10"),
            ("Never", &side, up, &["s1:run"], "start-i0"),
            ("Never", &side, up, &["s1:run", "i:0"], "start-a0 start-b0"),
            ("Never", &side, up, &["s1:0", "i:0", "a:run", "b:run"], "start-s11"),
            ("Never", &side, up, &["s1:run", "i:0", "a:0", "b:0"], "stop finished"),
            // Restart policies.
            ("Always", &none, up, &["a:0", "b:run"], "start-a1"),
            ("OnFailure", &none, up, &["a:0", "b:run"], ""),
            ("OnFailure", &none, up, &["a:1", "b:run"], "start-a1"),
            ("OnFailure", &none, up, &["a:0", "b:0"], "stop finished"),
            ("Never", &none, up, &["a:1", "b:run"], ""),
            ("Never", &none, up, &["a:1", "b:0"], "stop finished"),
            // Init containers that were removed meanwhile are not run again.
            ("Always", &init, up, &["a:run", "b:run"], ""),
            // A dead sandbox: what runs in it is killed, then there is a new one.
            ("Always", &none, Some(false), &["a:run", "b:0"], "kill-a"),
            ("Always", &none, Some(false), &["a:0", "b:0"], "sandbox1"),
            // A crash of the kubelet between create and start; a container that the runtime lost.
            ("Always", &none, up, &["a:new", "b:run"], "remove-a-0 start-a0"),
            ("Always", &none, up, &["a:lost", "b:run"], "kill-a"),
        ];
        for (policy, init, ready, containers, want) in table {
            let now = Timestamp::from_second(101).unwrap();
            let plan = actions(
                &pod(policy, (*init).clone()),
                &world(*ready, containers),
                &Verdicts::default(),
                &Memory::default(),
                backoff::LONGEST,
                now,
            );
            assert_eq!(words(&plan), *want, "{policy} {init} {ready:?} {containers:?}");
        }
    }

    #[test]
    fn an_ephemeral_container_starts_once_and_waits_for_no_init_container() {
        let mut debugged = pod("Always", json!([{"name": "i", "image": "x"}]));
        debugged.spec.as_mut().unwrap().ephemeral_containers =
            serde_json::from_value(json!([{"name": "d", "image": "x"}])).unwrap();
        for (containers, want) in [
            (&["i:run"][..], "start-d0"),
            (&["i:run", "d:run"], ""),
            (&["i:run", "d:new"], "remove-d-0 start-d0"),
            (&["i:0", "a:run", "b:run", "d:1"], ""),
            (&["i:0", "a:1", "b:run", "d:run"], "start-a1"),
        ] {
            let world = world(Some(true), containers);
            let now = Timestamp::from_second(101).unwrap();
            let plan = actions(&debugged, &world, &Verdicts::default(), &Memory::default(), backoff::LONGEST, now);
            assert_eq!(words(&plan), want, "{containers:?}");
        }
        let ended = pod("Never", json!([]));
        let plan = actions(
            &ended,
            &world(Some(true), &["a:0", "b:0", "d:run"]),
            &Verdicts::default(),
            &Memory::default(),
            backoff::LONGEST,
            Timestamp::now(),
        );
        assert_eq!(words(&plan), "stop finished");
    }

    #[test]
    fn a_crash_loop_waits_and_says_so() {
        let mut world = world(Some(true), &["a:1", "b:run"]);
        world.containers[0].restart_delay_ms = 20_000;
        let pod = pod("Always", json!([]));
        let at = |second| {
            actions(
                &pod,
                &world,
                &Verdicts::default(),
                &Memory::default(),
                backoff::LONGEST,
                Timestamp::from_second(second).unwrap(),
            )
        };
        assert_eq!(words(&at(101)), "wake120");
        assert_eq!(at(101).crash_loop["a"], Duration::from_secs(20));
        let Action::Start { restart_delay_ms, .. } = at(120).actions[0] else { panic!() };
        assert_eq!(restart_delay_ms, 40_000);
    }

    #[test]
    fn one_container_begins_all_of_them_anew() {
        let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
        let mut pod = pod("Never", json!([{"name": "i", "image": "x"}]));
        assert!(!may_restart_all(&pod));
        pod.spec.as_mut().unwrap().containers[0].restart_policy_rules = serde_json::from_value(rules).unwrap();
        assert!(may_restart_all(&pod));
        let at = |containers: &[&str], delay: u64, second: i64| {
            let mut world = world(Some(true), containers);
            world.containers.iter_mut().for_each(|c| c.restart_delay_ms = delay);
            let now = Timestamp::from_second(second).unwrap();
            actions(&pod, &world, &Verdicts::default(), &Memory::default(), backoff::LONGEST, now)
        };
        // What runs is stopped, then all is removed, the one that asked for it last; then the pod begins as a new one.
        let stop = at(&["a:42", "b:run", "i:0"], 0, 101);
        assert_eq!((words(&stop).as_str(), stop.restarting, stop.cleared), ("halt", true, None));
        let clear = at(&["a:42", "b:137", "i:0"], 0, 101);
        assert_eq!(words(&clear), "remove-b-0 remove-i-0 remove-a-0");
        assert_eq!(clear.cleared, Some(("a".to_owned(), 10_000)));
        // Whoever does that again and again waits.
        let wait = at(&["a:42", "b:137", "i:0"], 20_000, 101);
        assert_eq!((words(&wait).as_str(), wait.crash_loop["a"].as_secs()), ("wake120", 20));
        // Another code is the business of the pod's policy.
        assert_eq!(words(&at(&["a:1", "b:run", "i:0"], 0, 101)), "");
    }

    #[test]
    fn containers_that_the_runtime_lost_keep_their_count() {
        let status = |state: serde_json::Value| -> PodStatus {
            let one =
                json!({"name": "a", "restartCount": 3, "image": "", "imageID": "", "ready": false, "state": state});
            serde_json::from_value(json!({ "containerStatuses": [one] })).unwrap()
        };
        for (state, want) in [
            (json!({"running": {}}), "start-a4 start-b0"),
            (json!({"terminated": {"exitCode": 1}}), "start-a4 start-b0"),
            (json!({"waiting": {}}), "start-a3 start-b0"),
        ] {
            let memory = Memory::of(Some(&status(state.clone())));
            let pod = pod("Always", json!([]));
            let world = world(Some(true), &[]);
            let now = Timestamp::from_second(101).unwrap();
            let plan = actions(&pod, &world, &Verdicts::default(), &memory, backoff::LONGEST, now);
            assert_eq!(words(&plan), want, "{state}");
        }
    }

    #[test]
    fn a_failed_liveness_probe_and_a_changed_image_kill() {
        let mut world = world(Some(true), &["a:run", "b:run"]);
        world.containers[1].hash = "old".into();
        let verdicts = Verdicts { failed: [("a-0".to_owned(), "liveness")].into(), ..Default::default() };
        let plan = actions(
            &pod("Always", json!([])),
            &world,
            &verdicts,
            &Memory::default(),
            backoff::LONGEST,
            Timestamp::now(),
        );
        assert_eq!(words(&plan), "kill-a kill-b");
        let Action::Kill { message, .. } = &plan.actions[0] else { panic!() };
        assert_eq!(message, "Container a failed liveness probe, will be restarted");
    }
}
