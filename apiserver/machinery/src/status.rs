//! metav1 Status: how every failure (and a few successes) looks on the wire, with upstream's codes, reasons and texts.

use serde_json::{Value, json};

use crate::resource::Resource;
use crate::validate::FieldError;

/// A metav1 Status that says what went wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, such as `NotFound`.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
    /// `details`, if there are any.
    pub details: Option<Value>,
}

impl Status {
    /// A failure without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    fn with(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// Ask the client to come back after some seconds (429, 500, 503, 504).
    pub fn retry_after(mut self, seconds: u32) -> Self {
        let details = self.details.get_or_insert_with(|| json!({}));
        details["retryAfterSeconds"] = json!(seconds);
        self
    }

    /// The JSON object.
    pub fn to_value(&self) -> Value {
        let mut out = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
            "reason": self.reason,
        });
        if let Some(details) = &self.details {
            out["details"] = details.clone();
        }
        if self.reason.is_empty() {
            out.as_object_mut().map(|object| object.shift_remove("reason"));
        }
        out["code"] = json!(self.code);
        out
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

fn details(resource: &Resource, name: &str) -> Value {
    let mut out = json!({});
    if !name.is_empty() {
        out["name"] = json!(name);
    }
    if !resource.group.is_empty() {
        out["group"] = json!(resource.group);
    }
    out["kind"] = json!(resource.plural);
    out
}

/// The answer to a delete that happened at once: `status: Success` with the object's name and uid.
pub fn deleted(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = details(resource, name);
    details["uid"] = json!(uid);
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// A success without an object.
pub fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// 404 for an object.
pub fn not_found(resource: &Resource, name: &str) -> Status {
    Status::new(404, "NotFound", format!("{} \"{name}\" not found", resource.qualified())).with(details(resource, name))
}

/// 404 for a path that is no resource.
pub fn no_such_path() -> Status {
    Status::new(404, "NotFound", "the server could not find the requested resource").with(json!({}))
}

/// 409 for a create of what exists.
pub fn already_exists(resource: &Resource, name: &str) -> Status {
    Status::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", resource.qualified()))
        .with(details(resource, name))
}

/// 409 with upstream's frame around a reason.
pub fn conflict(resource: &Resource, name: &str, why: &str) -> Status {
    let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
    Status::new(409, "Conflict", message).with(details(resource, name))
}

/// 409 for an update that was based on an older resourceVersion.
pub fn stale(resource: &Resource, name: &str) -> Status {
    conflict(
        resource,
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    )
}

/// 409 of server-side apply: `conflicts` are (manager, field path) pairs.
pub fn apply_conflict(conflicts: &[(String, String)]) -> Status {
    let count = conflicts.len();
    let mut message = format!("Apply failed with {count} conflict{}: ", if count == 1 { "" } else { "s" });
    if let [(manager, field)] = conflicts {
        message += &format!("conflict with {manager}: {field}");
    } else {
        message += "conflicts ";
        let mut last: Option<&str> = None;
        for (manager, field) in conflicts {
            if last != Some(manager) {
                message += &format!("{}with {manager}:", if last.is_some() { "\nconflicts " } else { "" });
                last = Some(manager);
            }
            message += &format!("\n- {field}");
        }
    }
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|(manager, field)| {
            json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": field})
        })
        .collect();
    Status::new(409, "Conflict", message).with(json!({"causes": causes}))
}

/// 422 with a cause for each field.
pub fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Status {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let text = match texts.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    let kind = if resource.group.is_empty() {
        resource.kind.to_owned()
    } else {
        format!("{}.{}", resource.kind, resource.group)
    };
    let mut details = details(resource, name);
    details["kind"] = json!(resource.kind);
    details["causes"] = errors
        .iter()
        .map(|error| json!({"reason": error.reason.as_str(), "message": error.body(), "field": error.field}))
        .collect();
    Status::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {text}")).with(details)
}

/// 400.
pub fn bad_request(message: impl Into<String>) -> Status {
    Status::new(400, "BadRequest", message)
}

/// 401.
pub fn unauthorized() -> Status {
    Status::new(401, "Unauthorized", "Unauthorized")
}

/// 403 with upstream's frame around a reason.
pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Status {
    let message = if name.is_empty() {
        format!("{} is forbidden: {why}", resource.qualified())
    } else {
        format!("{} \"{name}\" is forbidden: {why}", resource.qualified())
    };
    Status::new(403, "Forbidden", message).with(details(resource, name))
}

/// 403 for a path that is no resource.
pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Status {
    Status::new(403, "Forbidden", format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\"")).with(json!({}))
}

/// 410 for a resourceVersion or continue token that is too old.
pub fn expired(message: impl Into<String>) -> Status {
    Status::new(410, "Expired", message)
}

/// 410 for a watch from a version that is compacted.
pub fn too_old(asked: u64, oldest: u64) -> Status {
    expired(format!("too old resource version: {asked} ({oldest})"))
}

/// 405.
pub fn method_not_allowed() -> Status {
    Status::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        .with(json!({}))
}

/// 406: `accepted` are the media types that could be had.
pub fn not_acceptable(accepted: &[&str]) -> Status {
    let list = accepted.join(", ");
    Status::new(406, "NotAcceptable", format!("only the following media types are accepted: {list}"))
}

/// 415: `accepted` are the media types that could be sent.
pub fn unsupported_media_type(accepted: &[&str]) -> Status {
    let list = accepted.join(", ");
    let message = format!("the body of the request was in an unknown format - accepted media types include: {list}");
    Status::new(415, "UnsupportedMediaType", message)
}

/// 413.
pub fn too_large(limit: usize) -> Status {
    Status::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
}

/// 429.
pub fn too_many_requests(message: impl Into<String>) -> Status {
    Status::new(429, "TooManyRequests", message).retry_after(1)
}

/// 500.
pub fn internal(message: impl std::fmt::Display) -> Status {
    let cause = json!({"causes": [{"message": message.to_string()}]});
    Status::new(500, "InternalError", format!("Internal error occurred: {message}")).with(cause)
}

/// 503.
pub fn unavailable(message: impl Into<String>) -> Status {
    Status::new(503, "ServiceUnavailable", message)
}

/// 504.
pub fn timeout(message: impl Into<String>) -> Status {
    Status::new(504, "Timeout", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find;

    #[test]
    fn texts_are_upstreams() {
        let pods = find("", "v1", "pods").unwrap();
        let deployments = find("apps", "v1", "deployments").unwrap();
        assert_eq!(
            not_found(pods, "a").to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                   "message": "pods \"a\" not found", "reason": "NotFound", "details": {"name": "a", "kind": "pods"},
                   "code": 404})
        );
        assert_eq!(already_exists(deployments, "a").message, "deployments.apps \"a\" already exists");
        let error = FieldError::required("spec.containers[0].image", "");
        let status = invalid(pods, "a", &[error]);
        assert_eq!(status.message, "Pod \"a\" is invalid: spec.containers[0].image: Required value");
        assert_eq!(status.details.unwrap()["causes"][0]["reason"], "FieldValueRequired");
    }

    #[test]
    fn apply_conflicts_name_manager_and_field() {
        let one = [("\"kubectl\" using apps/v1".to_owned(), ".spec.replicas".to_owned())];
        assert_eq!(
            apply_conflict(&one).message,
            "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas"
        );
    }
}
