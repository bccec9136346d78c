//! The columns of the kinds that make pods.

use serde_json::{Value, json};

use super::{AGE, Column, NAME, col, duration, labels, list, or_none, since, text, wide};

fn number(value: &Value, key: &str) -> Value {
    json!(value[key].as_i64().unwrap_or(0))
}

fn containers(template: &Value, key: &str) -> Value {
    let names: Vec<&str> = list(&template["spec"], "containers").iter().map(|c| text(c, key)).collect();
    or_none(names.join(","))
}

fn selector(value: &Value) -> Value {
    let mut parts: Vec<String> = Vec::new();
    if let Some(matching) = value["matchLabels"].as_object().filter(|map| !map.is_empty()) {
        parts.push(labels(&Value::Object(matching.clone())).as_str().unwrap_or_default().to_owned());
    }
    for expression in list(value, "matchExpressions") {
        let values: Vec<&str> = list(expression, "values").iter().filter_map(Value::as_str).collect();
        let key = text(expression, "key");
        parts.push(match text(expression, "operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    or_none(parts.join(","))
}

const CONTAINERS: Column = wide("Containers", "string", |o, _| containers(&o["spec"]["template"], "name"));
const IMAGES: Column = wide("Images", "string", |o, _| containers(&o["spec"]["template"], "image"));
const SELECTOR: Column = wide("Selector", "string", |o, _| selector(&o["spec"]["selector"]));

pub(super) const DEPLOYMENTS: &[Column] = &[
    NAME,
    col("Ready", "string", |o, _| ready_of(o)),
    col("Up-to-date", "string", |o, _| number(&o["status"], "updatedReplicas")),
    col("Available", "string", |o, _| number(&o["status"], "availableReplicas")),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn ready_of(object: &Value) -> Value {
    let ready = object["status"]["readyReplicas"].as_i64().unwrap_or(0);
    json!(format!("{ready}/{}", object["spec"]["replicas"].as_i64().unwrap_or(0)))
}

pub(super) const REPLICA_SETS: &[Column] = &[
    NAME,
    col("Desired", "integer", |o, _| number(&o["spec"], "replicas")),
    col("Current", "integer", |o, _| number(&o["status"], "replicas")),
    col("Ready", "integer", |o, _| number(&o["status"], "readyReplicas")),
    AGE,
    CONTAINERS,
    IMAGES,
    wide("Selector", "string", |o, _| {
        let own = &o["spec"]["selector"];
        // Replication controllers select by plain labels.
        if own["matchLabels"].is_object() || own["matchExpressions"].is_array() { selector(own) } else { labels(own) }
    }),
];

pub(super) const DAEMON_SETS: &[Column] = &[
    NAME,
    col("Desired", "integer", |o, _| number(&o["status"], "desiredNumberScheduled")),
    col("Current", "integer", |o, _| number(&o["status"], "currentNumberScheduled")),
    col("Ready", "integer", |o, _| number(&o["status"], "numberReady")),
    col("Up-to-date", "integer", |o, _| number(&o["status"], "updatedNumberScheduled")),
    col("Available", "integer", |o, _| number(&o["status"], "numberAvailable")),
    col("Node Selector", "string", |o, _| labels(&o["spec"]["template"]["spec"]["nodeSelector"])),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) const STATEFUL_SETS: &[Column] =
    &[NAME, col("Ready", "string", |o, _| ready_of(o)), AGE, CONTAINERS, IMAGES];

pub(super) const JOBS: &[Column] = &[
    NAME,
    col("Status", "string", |o, _| json!(job_status(o))),
    col("Completions", "string", |o, _| {
        let done = o["status"]["succeeded"].as_i64().unwrap_or(0);
        match (o["spec"]["completions"].as_i64(), o["spec"]["parallelism"].as_i64().unwrap_or(0)) {
            (Some(wanted), _) => json!(format!("{done}/{wanted}")),
            (None, parallel) if parallel > 1 => json!(format!("{done}/1 of {parallel}")),
            (None, _) => json!(format!("{done}/1")),
        }
    }),
    col("Duration", "string", |o, now| {
        let Ok(start) = text(&o["status"], "startTime").parse::<jiff::Timestamp>() else {
            return json!("");
        };
        let end = text(&o["status"], "completionTime").parse().unwrap_or(now);
        json!(duration(end.as_second() - start.as_second()))
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn job_status(job: &Value) -> &'static str {
    let is = |kind: &str| {
        list(&job["status"], "conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
    };
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if job["metadata"]["deletionTimestamp"].is_string() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

pub(super) const CRON_JOBS: &[Column] = &[
    NAME,
    col("Schedule", "string", |o, _| o["spec"]["schedule"].clone()),
    col("Timezone", "string", |o, _| or_none(text(&o["spec"], "timeZone"))),
    col("Suspend", "boolean", |o, _| json!(if o["spec"]["suspend"] == true { "True" } else { "False" })),
    col("Active", "integer", |o, _| json!(list(&o["status"], "active").len())),
    col("Last Schedule", "string", |o, now| match o["status"]["lastScheduleTime"].is_string() {
        true => json!(since(&o["status"]["lastScheduleTime"], now)),
        false => json!("<none>"),
    }),
    AGE,
    wide("Containers", "string", |o, _| containers(&o["spec"]["jobTemplate"]["spec"]["template"], "name")),
    wide("Images", "string", |o, _| containers(&o["spec"]["jobTemplate"]["spec"]["template"], "image")),
    wide("Selector", "string", |o, _| selector(&o["spec"]["jobTemplate"]["spec"]["selector"])),
];
