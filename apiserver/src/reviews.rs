//! Kinds that are answered and never stored: reviews and token requests.

use api_machinery::status::{self, Status};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::auth::{self, Attributes, ISSUER, User};
use crate::http_util::{Answer, json_reply};
use crate::router::{Api, Call};
use crate::write::parse;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// Answers a review.
pub fn create(api: &Api, call: &Call, bytes: &Bytes) -> Answer {
    let mut body = parse(bytes, true)?;
    body["apiVersion"] = json!(call.resource.api_version());
    body["kind"] = json!(call.resource.kind);
    if !body["metadata"].is_object() {
        body["metadata"] = json!({"creationTimestamp": null});
    }
    let spec = &body["spec"];
    let answer = match call.resource.plural {
        "tokenreviews" => match api.tokens.user(&api.store, &text(&spec["token"]), &list(&spec["audiences"])) {
            Some(user) => {
                let audiences = if spec["audiences"].is_array() { spec["audiences"].clone() } else { json!([ISSUER]) };
                json!({"authenticated": true, "user": user.to_value(), "audiences": audiences})
            }
            None => json!({"user": {}, "error": "[invalid bearer token, token lookup failed]"}),
        },
        "selfsubjectreviews" => json!({"userInfo": call.user.to_value()}),
        "selfsubjectrulesreviews" => {
            let all = call.user.is_in("system:masters");
            let rules = if all { json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]) } else { json!([]) };
            let paths = if all { json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]) } else { json!([]) };
            json!({"resourceRules": rules, "nonResourceRules": paths, "incomplete": !all})
        }
        _ => {
            let user = if call.resource.plural == "selfsubjectaccessreviews" {
                call.user.clone()
            } else {
                User {
                    name: text(&spec["user"]),
                    uid: text(&spec["uid"]),
                    groups: list(&spec["groups"]),
                    extra: Value::Null,
                }
            };
            let (ask, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
            let ask = Attributes {
                verb: if path.is_object() { text(&path["verb"]) } else { text(&ask["verb"]) },
                group: text(&ask["group"]),
                resource: text(&ask["resource"]),
                subresource: text(&ask["subresource"]),
                namespace: text(&ask["namespace"]),
                name: text(&ask["name"]),
                path: text(&path["path"]),
            };
            json!({"allowed": auth::allowed(&api.store, &user, &ask)})
        }
    };
    body["status"] = answer;
    Ok(json_reply(201, &body))
}

/// Answers a TokenRequest for a service account.
pub fn token(api: &Api, call: &Call, bytes: &Bytes) -> Answer {
    let mut body = parse(bytes, false)?;
    let account = api.store.get(&call.key(&call.name)).ok_or_else(|| status::not_found(call.resource, &call.name))?;
    let spec = body["spec"].clone();
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(3600);
    if seconds < 600 {
        return Err(Status::new(
            422,
            "Invalid",
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: may not specify a duration less than 10 minutes",
        ));
    }
    if seconds > 1 << 32 {
        return Err(Status::new(
            422,
            "Invalid",
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: may not specify a duration larger than 2^32 seconds",
        ));
    }
    let mut audiences = list(&spec["audiences"]);
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let now = jiff::Timestamp::now().as_second();
    let mut bound = json!({"namespace": call.namespace,
        "serviceaccount": {"name": call.name, "uid": account.value["metadata"]["uid"]}});
    let reference = &spec["boundObjectRef"];
    if reference["kind"] == "Pod" {
        let name = text(&reference["name"]);
        let refuse = |why: String| status::bad_request(why);
        let pod = api.store.get(&format!("/core/pods/{}/{name}", call.namespace)).ok_or_else(|| {
            api_machinery::resource::find("", "v1", "pods")
                .map_or_else(status::no_such_path, |r| status::not_found(r, &name))
        })?;
        let uid = text(&reference["uid"]);
        if !uid.is_empty() && pod.value["metadata"]["uid"] != uid.as_str() {
            return Err(status::conflict(
                call.resource,
                &call.name,
                &format!("the UID in the bound object reference ({uid}) does not match the UID in record"),
            ));
        }
        if pod.value["spec"]["serviceAccountName"] != call.name.as_str() {
            return Err(refuse(format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                call.name
            )));
        }
        if let Some(node) = call.user.node().filter(|node| pod.value["spec"]["nodeName"] != *node) {
            return Err(status::forbidden(
                call.resource,
                &call.name,
                &format!("node {node:?} requested token bound to a pod scheduled on a different node"),
            ));
        }
        bound["pod"] = json!({"name": name, "uid": pod.value["metadata"]["uid"]});
    } else if call.user.node().is_some() {
        return Err(status::forbidden(call.resource, &call.name, "node requested token not bound to a pod"));
    }
    let claims = json!({"iss": ISSUER, "aud": audiences, "iat": now, "nbf": now, "exp": now + seconds,
        "sub": format!("system:serviceaccount:{}:{}", call.namespace, call.name), "jti": uuid::Uuid::new_v4().to_string(), "kubernetes.io": bound});
    let token = api.tokens.sign(&claims).map_err(status::internal)?;
    let expires = jiff::Timestamp::from_second(now + seconds).map_err(status::internal)?;
    body["kind"] = json!("TokenRequest");
    body["apiVersion"] = json!("authentication.k8s.io/v1");
    body["spec"]["audiences"] = json!(audiences);
    body["spec"]["expirationSeconds"] = json!(seconds);
    body["status"] = json!({"token": token, "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
    Ok(json_reply(201, &body))
}
