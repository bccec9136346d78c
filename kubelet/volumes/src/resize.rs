//! How a claim's status tells that its file system grows on the node, in the states of upstream's node expander.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

/// What became of an expansion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The driver is asked now.
    Begun,
    /// The file system has this size, in the words of the volume's spec.
    Done(String),
    /// The driver said no, for the reason given; it is asked again.
    Failed(String),
    /// The driver can never do it, for the reason given.
    Infeasible(String),
}

/// Conditions that end with the expansion.
const OVER: [&str; 3] = ["FileSystemResizePending", "Resizing", "NodeResizeError"];

/// The merge patch of the claim's status. Keys of other resources and other conditions stay.
pub fn status_patch(claim: &PersistentVolumeClaim, what: &Resize, now: jiff::Timestamp) -> Value {
    let conditions = claim.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let error = |why: &str| {
        let mut kept: Vec<_> = conditions.iter().filter(|c| c.type_ != "NodeResizeError").cloned().collect();
        let known = conditions.iter().find(|c| c.type_ == "NodeResizeError" && c.status == "True");
        kept.push(PersistentVolumeClaimCondition {
            type_: "NodeResizeError".into(),
            status: "True".into(),
            message: Some(format!("failed to expand pvc with {why}")),
            last_transition_time: known.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
            ..PersistentVolumeClaimCondition::default()
        });
        kept
    };
    let state = |name: &str| json!({"storage": name});
    let status = match what {
        Resize::Begun => json!({"allocatedResourceStatuses": state("NodeResizeInProgress")}),
        Resize::Done(size) => {
            let kept: Vec<_> = conditions.iter().filter(|c| !OVER.contains(&c.type_.as_str())).collect();
            json!({"capacity": {"storage": size}, "conditions": kept,
                "allocatedResourceStatuses": {"storage": null}})
        }
        Resize::Failed(why) => {
            json!({"allocatedResourceStatuses": state("NodeResizePending"), "conditions": error(why)})
        }
        Resize::Infeasible(why) => {
            json!({"allocatedResourceStatuses": state("NodeResizeInfeasible"), "conditions": error(why)})
        }
    };
    json!({"status": status})
}

/// Whether nothing but a change of the volume can help: asking again is no use.
pub(crate) fn is_given_up(claim: &PersistentVolumeClaim) -> bool {
    let states = claim.status.as_ref().and_then(|s| s.allocated_resource_statuses.as_ref());
    states.and_then(|s| s.get("storage")).is_some_and(|s| s == "NodeResizeInfeasible")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_of_an_expansion_is_in_the_status() {
        let time = "2026-01-01T00:00:00Z";
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"status": {
            "conditions": [{"type": "FileSystemResizePending", "status": "True"}, {"type": "Other", "status": "True"},
                {"type": "NodeResizeError", "status": "True", "message": "old", "lastTransitionTime": time}],
            "allocatedResourceStatuses": {"storage": "NodeResizePending", "example.com/x": "y"}}}))
        .unwrap();
        let now = jiff::Timestamp::UNIX_EPOCH;
        let status = |what| status_patch(&claim, &what, now)["status"].clone();
        assert_eq!(
            status(Resize::Begun),
            json!({"allocatedResourceStatuses": {"storage": "NodeResizeInProgress"}}),
            "what is not named stays"
        );
        assert_eq!(
            status(Resize::Done("2Gi".into())),
            json!({"capacity": {"storage": "2Gi"}, "conditions": [{"type": "Other", "status": "True"}],
                "allocatedResourceStatuses": {"storage": null}})
        );
        for (what, state) in [
            (Resize::Failed("no".into()), "NodeResizePending"),
            (Resize::Infeasible("no".into()), "NodeResizeInfeasible"),
        ] {
            let got = status(what);
            assert_eq!(got["allocatedResourceStatuses"]["storage"], state);
            let last = got["conditions"].as_array().unwrap().last().unwrap().clone();
            assert_eq!(
                last,
                json!({"type": "NodeResizeError", "status": "True", "message": "failed to expand pvc with no",
                    "lastTransitionTime": time}),
                "the same trouble goes on"
            );
            assert_eq!(got["conditions"].as_array().unwrap().len(), 3);
        }
        let fresh = status_patch(&PersistentVolumeClaim::default(), &Resize::Failed("no".into()), now);
        assert_eq!(fresh["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn what_can_never_be_done_is_not_asked_for_again() {
        for (state, want) in [("NodeResizeInfeasible", true), ("NodeResizePending", false)] {
            let claim = json!({"status": {"allocatedResourceStatuses": {"storage": state}}});
            assert_eq!(is_given_up(&serde_json::from_value(claim).unwrap()), want);
        }
    }
}
