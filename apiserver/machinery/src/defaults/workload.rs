//! Defaults of the kinds that make pods.

use serde_json::{Value, json};

use super::{make, pod_spec, set, set_text};

fn with_template(object: &mut Value) -> Option<&mut Value> {
    let spec = make(object, "spec")?;
    if let Some(pod) = make(spec, "template").and_then(|template| make(template, "spec")) {
        pod_spec(pod);
    }
    Some(spec)
}

fn rolling(strategy: &mut Value, defaults: &[(&str, Value)]) {
    set_text(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate"
        && let Some(rolling) = make(strategy, "rollingUpdate")
    {
        defaults.iter().for_each(|(key, value)| set(rolling, key, value.clone()));
    }
}

pub(super) fn deployment(object: &mut Value) {
    let Some(spec) = with_template(object) else {
        return;
    };
    set(spec, "replicas", json!(1));
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "progressDeadlineSeconds", json!(600));
    if let Some(strategy) = make(spec, "strategy") {
        rolling(strategy, &[("maxUnavailable", json!("25%")), ("maxSurge", json!("25%"))]);
    }
}

pub(super) fn replica_set(object: &mut Value) {
    if let Some(spec) = with_template(object) {
        set(spec, "replicas", json!(1));
    }
}

pub(super) fn replication_controller(object: &mut Value) {
    let Some(spec) = with_template(object) else {
        return;
    };
    set(spec, "replicas", json!(1));
    let labels = spec["template"]["metadata"]["labels"].clone();
    if labels.is_object() {
        set(spec, "selector", labels);
    }
}

pub(super) fn daemon_set(object: &mut Value) {
    let Some(spec) = with_template(object) else {
        return;
    };
    set(spec, "revisionHistoryLimit", json!(10));
    if let Some(strategy) = make(spec, "updateStrategy") {
        rolling(strategy, &[("maxUnavailable", json!(1)), ("maxSurge", json!(0))]);
    }
}

pub(super) fn stateful_set(object: &mut Value) {
    let Some(spec) = with_template(object) else {
        return;
    };
    set(spec, "replicas", json!(1));
    set(spec, "revisionHistoryLimit", json!(10));
    set_text(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = make(spec, "updateStrategy") {
        rolling(strategy, &[("partition", json!(0))]);
    }
    if let Some(policy) = make(spec, "persistentVolumeClaimRetentionPolicy") {
        set_text(policy, "whenDeleted", "Retain");
        set_text(policy, "whenScaled", "Retain");
    }
    for claim in super::items(spec, "volumeClaimTemplates") {
        set_text(claim, "apiVersion", "v1");
        set_text(claim, "kind", "PersistentVolumeClaim");
        super::claim(claim);
    }
}

fn job_spec(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        set(spec, "completions", json!(1));
    }
    set(spec, "parallelism", json!(1));
    set(spec, "backoffLimit", json!(6));
    set(spec, "completionMode", json!("NonIndexed"));
    set(spec, "suspend", json!(false));
    set(spec, "podReplacementPolicy", json!("TerminatingOrFailed"));
    if let Some(pod) = make(spec, "template").and_then(|template| make(template, "spec")) {
        pod_spec(pod);
    }
}

/// The selector and labels that tie a job to its pods come from its uid, which the server adds when it creates it.
pub(super) fn job(object: &mut Value) {
    if let Some(spec) = make(object, "spec") {
        set(spec, "manualSelector", json!(false));
        job_spec(spec);
    }
}

pub(super) fn cron_job(object: &mut Value) {
    let Some(spec) = make(object, "spec") else {
        return;
    };
    set_text(spec, "concurrencyPolicy", "Allow");
    set(spec, "suspend", json!(false));
    set(spec, "successfulJobsHistoryLimit", json!(3));
    set(spec, "failedJobsHistoryLimit", json!(1));
    let Some(pod) = make(spec, "jobTemplate")
        .and_then(|job| make(job, "spec"))
        .and_then(|job| make(job, "template"))
        .and_then(|template| make(template, "spec"))
    else {
        return;
    };
    pod_spec(pod);
}
