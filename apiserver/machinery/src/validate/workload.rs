//! Validation of the kinds that make pods.

use gantry_kube::selector::Selector;
use serde_json::Value;

use super::{Errors, FieldError, meta, not_negative, one_of, pod, text};

fn template(template: &Value, path: &str, restart: &[&str], out: &mut Errors) {
    meta::labels(&template["metadata"], &format!("{path}.metadata"), out);
    pod::spec(&template["spec"], &format!("{path}.spec"), out);
    let policy = text(&template["spec"], "restartPolicy");
    if !policy.is_empty() && !restart.contains(&policy) {
        out.push(FieldError::not_supported(format!("{path}.spec.restartPolicy"), policy, restart));
    }
}

/// Deployments, replica sets, daemon sets and stateful sets.
pub(super) fn replicated(object: &Value, out: &mut Errors) {
    let spec = &object["spec"];
    not_negative(spec, "replicas", "spec", out);
    not_negative(spec, "minReadySeconds", "spec", out);
    not_negative(spec, "revisionHistoryLimit", "spec", out);
    let selector = &spec["selector"];
    if !selector.is_object() {
        out.push(FieldError::required("spec.selector", ""));
    } else if selector.as_object().is_some_and(serde_json::Map::is_empty) {
        out.push(FieldError::invalid("spec.selector", selector.clone(), "empty selector is invalid for deployment"));
    } else {
        match Selector::from_object(selector) {
            Ok(Some(parsed)) => {
                if !parsed.matches(|key| spec["template"]["metadata"]["labels"][key].as_str()) {
                    let labels = spec["template"]["metadata"]["labels"].clone();
                    out.push(FieldError::invalid(
                        "spec.template.metadata.labels",
                        labels,
                        "`selector` does not match template `labels`",
                    ));
                }
            }
            Ok(None) => {}
            Err(error) => out.push(FieldError::invalid("spec.selector", selector.clone(), error.to_string())),
        }
    }
    template(&spec["template"], "spec.template", &["Always"], out);
}

pub(super) fn update(old: &Value, new: &Value, out: &mut Errors) {
    if old["spec"]["selector"] != new["spec"]["selector"] {
        out.push(FieldError::invalid("spec.selector", new["spec"]["selector"].clone(), "field is immutable"));
    }
}

/// A job's spec at `path`.
pub(super) fn job(spec: &Value, path: &str, out: &mut Errors) {
    for key in ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"] {
        not_negative(spec, key, path, out);
    }
    one_of(spec, "completionMode", path, &["Indexed", "NonIndexed"], false, out);
    template(&spec["template"], &format!("{path}.template"), &["OnFailure", "Never"], out);
}

pub(super) fn job_update(old: &Value, new: &Value, out: &mut Errors) {
    for key in ["selector", "template", "completionMode"] {
        if old["spec"][key] != new["spec"][key] && old["spec"]["suspend"] != true {
            out.push(FieldError::invalid(format!("spec.{key}"), new["spec"][key].clone(), "field is immutable"));
        }
    }
}

pub(super) fn cron_job(object: &Value, out: &mut Errors) {
    let spec = &object["spec"];
    let schedule = text(spec, "schedule");
    if schedule.is_empty() {
        out.push(FieldError::required("spec.schedule", ""));
    } else if !schedule.starts_with('@') && schedule.split_whitespace().count() != 5 {
        let count = schedule.split_whitespace().count();
        let text = format!("expected exactly 5 fields, found {count}: [{schedule}]");
        out.push(FieldError::invalid("spec.schedule", schedule, text));
    }
    one_of(spec, "concurrencyPolicy", "spec", &["Allow", "Forbid", "Replace"], true, out);
    not_negative(spec, "successfulJobsHistoryLimit", "spec", out);
    not_negative(spec, "failedJobsHistoryLimit", "spec", out);
    job(&spec["jobTemplate"]["spec"], "spec.jobTemplate.spec", out);
}
