//! From a request to what it means: documents, or a verb on a resource; who may, and what is answered.

use std::sync::Arc;
use std::time::Duration;

use api_machinery::resource::{self, Resource};
use api_machinery::status::{self, Status};
use api_machinery::{discovery, openapi};
use http::{HeaderMap, Method, Request, header};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::auth::{self, Attributes, Tokens, User};
use crate::http_util::{Answer, Query, json_reply, reply};
use crate::store::{Store, StoreError};
use crate::{delete, pods, read, reviews, watch, write};

/// What every request needs.
#[derive(Debug)]
pub struct Api {
    /// The objects.
    pub store: Store,
    /// Bearer tokens.
    pub tokens: Tokens,
    /// The authority's certificate, for `kube-root-ca.crt`.
    pub ca: String,
    /// The authority itself, which signs what is approved.
    pub authority: gantry_kube::pki::Pair,
    /// `host:port` that clients reach the server at.
    pub host: String,
    /// Places for requests.
    pub limits: crate::limits::Limits,
    /// TLS towards kubelets.
    pub kubelet_tls: Arc<rustls::ClientConfig>,
    /// Ends watches when the server stops.
    pub stop: tokio_util::sync::CancellationToken,
}

impl Api {
    /// Waits until objects of a prefix are other than at `revision`, a minute at most; no when the server stops. For
    /// controllers, between their passes.
    pub(crate) async fn changed(&self, prefix: &str, revision: u64) -> bool {
        let Ok((past, mut events)) = self.store.watch(prefix, revision) else { return true };
        if !past.is_empty() {
            // What the pass itself wrote makes one more pass, which then finds nothing to do.
            tokio::time::sleep(Duration::from_millis(2)).await;
            return true;
        }
        tokio::select! {
            () = self.stop.cancelled() => false,
            _ = events.recv() => true,
            () = tokio::time::sleep(Duration::from_secs(60)) => true,
        }
    }
}

/// Who a connection's certificate says is asking.
#[derive(Clone, Debug)]
pub enum Peer {
    /// No certificate.
    Unknown,
    /// A certificate of our authority.
    Known(User),
    /// A certificate that is not ours.
    Untrusted,
}

/// One request for a resource.
#[derive(Debug)]
pub struct Call {
    /// What it is for.
    pub resource: &'static Resource,
    /// Namespace or empty.
    pub namespace: String,
    /// Name or empty.
    pub name: String,
    /// Subresource or empty.
    pub part: String,
    /// Verb as authorization names it.
    pub verb: &'static str,
    /// Query parameters.
    pub query: Query,
    /// Headers.
    pub headers: HeaderMap,
    /// Who asks.
    pub user: User,
}

impl Call {
    /// Key of an object of this resource.
    pub fn key(&self, name: &str) -> String {
        key_of(self.resource, &self.namespace, name)
    }

    /// Start of the keys that the call is for.
    pub fn prefix(&self) -> String {
        prefix_of(self.resource, &self.namespace)
    }

    /// `fieldManager`, or what stands for it.
    pub fn manager(&self) -> String {
        let asked = self.query.get("fieldManager");
        if !asked.is_empty() {
            return asked.to_owned();
        }
        let agent = self.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
        agent.split('/').next().unwrap_or("unknown").to_owned()
    }
}

/// Start of the keys of a resource, in a namespace or (empty) in all.
pub fn prefix_of(resource: &Resource, namespace: &str) -> String {
    let group = if resource.storage_group.is_empty() { "core" } else { resource.storage_group };
    let mut out = format!("/{group}/{}/", resource.plural);
    if resource.namespaced && !namespace.is_empty() {
        out = format!("{out}{namespace}/");
    }
    out
}

/// Key of an object.
pub fn key_of(resource: &Resource, namespace: &str, name: &str) -> String {
    format!("{}{name}", prefix_of(resource, namespace))
}

/// What a failure of the store is to clients.
pub fn store_status(resource: &Resource, name: &str, error: &StoreError) -> Status {
    match error {
        StoreError::Exists => status::already_exists(resource, name),
        StoreError::Changed => status::stale(resource, name),
        StoreError::Compacted { asked, oldest } => status::too_old(*asked, *oldest),
        StoreError::Disk(why) => status::internal(why),
    }
}

/// Who asks: the certificate first, then the token.
fn authenticate(api: &Api, peer: &Peer, headers: &HeaderMap) -> Result<User, Status> {
    match peer {
        Peer::Known(user) => return Ok(user.clone()),
        Peer::Untrusted => return Err(status::unauthorized()),
        Peer::Unknown => {}
    }
    let Some(sent) = headers.get(header::AUTHORIZATION) else { return Ok(User::anonymous()) };
    let token = sent
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
    token.and_then(|(_, token)| api.tokens.user(&api.store, token.trim(), &[])).ok_or_else(status::unauthorized)
}

/// Answers one request.
pub async fn handle(api: &Arc<Api>, peer: &Peer, request: Request<Incoming>) -> Answer {
    let user = authenticate(api, peer, request.headers())?;
    let path = percent_encoding::percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let Some((resource, namespace, name, part)) = target(&path) else {
        return document(api, &user, &path, &request);
    };
    let watching = query.flag("watch");
    let verb = match *request.method() {
        Method::GET | Method::HEAD if !name.is_empty() => "get",
        Method::GET | Method::HEAD if watching => "watch",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ => return Err(status::method_not_allowed()),
    };
    let lasting = verb == "watch" || matches!(part.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy");
    let writes = !matches!(verb, "get" | "list" | "watch");
    let _place = if lasting { None } else { api.limits.enter(writes, user.is_in("system:masters"))? };
    let call = Call { resource, namespace, name, part, verb, query, headers: request.headers().clone(), user };
    let (group, allowed) = match resource.subresource(&call.part) {
        _ if call.part.is_empty() => (resource.group, resource.verbs),
        Some(part) => (resource.group, part.verbs),
        None => return Err(status::no_such_path()),
    };
    let ask = Attributes {
        verb: verb.into(),
        group: group.into(),
        resource: resource.plural.into(),
        subresource: call.part.clone(),
        // Namespaces are asked for as if in themselves, as upstream does.
        namespace: if resource.plural == "namespaces" { call.name.clone() } else { call.namespace.clone() },
        name: call.name.clone(),
        path: String::new(),
    };
    if !auth::allowed(&api.store, &call.user, &ask) {
        let name = if call.name.is_empty() { "" } else { &call.name };
        return Err(if call.user.name == "system:anonymous" && resource.group.is_empty() && name.is_empty() {
            status::forbidden(resource, "", &ask.refusal(&call.user))
        } else {
            status::forbidden(resource, name, &ask.refusal(&call.user))
        });
    }
    if !allowed.contains(&verb) && !(matches!(call.part.as_str(), "exec" | "attach" | "portforward" | "log")) {
        return Err(status::method_not_allowed());
    }
    if resource.namespaced
        && call.namespace.is_empty()
        && !matches!(verb, "list" | "watch" | "deletecollection")
        && (verb != "create" || resource.stored())
    {
        return Err(status::method_not_allowed());
    }
    if !resource.stored() {
        return reviews::create(api, &call, &body(request).await?);
    }
    match (call.part.as_str(), verb) {
        ("log" | "exec" | "attach" | "portforward", _) if resource.plural == "pods" => {
            pods::proxy(api, &call, request).await
        }
        ("token", _) => reviews::token(api, &call, &body(request).await?),
        ("binding" | "eviction", _) => write::pod_action(api, &call, &body(request).await?).await,
        (_, "get") => read::get(api, &call),
        (_, "list") => read::list(api, &call),
        (_, "watch") => watch::start(api, &call),
        (_, "create") => write::create(api, &call, &body(request).await?).await,
        (_, "update") => write::update(api, &call, &body(request).await?).await,
        (_, "patch") => write::patch(api, &call, &body(request).await?).await,
        (_, "delete") => delete::delete(api, &call, &body(request).await?).await,
        (_, "deletecollection") => delete::delete_collection(api, &call, &body(request).await?).await,
        _ => Err(status::method_not_allowed()),
    }
}

const BODY_LIMIT: usize = 3 * 1024 * 1024;

async fn body(request: Request<Incoming>) -> Result<bytes::Bytes, Status> {
    use http_body_util::BodyExt as _;
    let content_type = crate::write::media_type(request.headers());
    let limited = http_body_util::Limited::new(request.into_body(), BODY_LIMIT);
    match limited.collect().await {
        Ok(all) => {
            let bytes = all.to_bytes();
            match crate::protobuf::to_json(&content_type, &bytes)? {
                std::borrow::Cow::Borrowed(_) => Ok(bytes),
                std::borrow::Cow::Owned(json) => Ok(json.into()),
            }
        }
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(status::too_large(BODY_LIMIT)),
        Err(error) => Err(status::bad_request(format!("read the body: {error}"))),
    }
}

type Target = (&'static Resource, String, String, String);

/// Resource, namespace, name and subresource of a path.
fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let own = |text: Option<&&str>| text.map_or_else(String::new, |text| (*text).to_owned());
    if let ["namespaces", namespace, plural, tail @ ..] = rest
        && let Some(found) = resource::find(group, version, plural).filter(|found| found.namespaced)
    {
        return (tail.len() <= 2).then(|| (found, (*namespace).to_owned(), own(tail.first()), own(tail.get(1))));
    }
    let (plural, tail) = rest.split_first()?;
    let found = resource::find(group, version, plural)?;
    if found.namespaced && !tail.is_empty() {
        return None;
    }
    (tail.len() <= 2).then(|| (found, String::new(), own(tail.first()), own(tail.get(1))))
}

fn document(api: &Api, user: &User, path: &str, request: &Request<Incoming>) -> Answer {
    let ask = Attributes {
        verb: request.method().as_str().to_ascii_lowercase(),
        path: path.to_owned(),
        ..Attributes::default()
    };
    if !auth::allowed(&api.store, user, &ask) {
        return Err(status::forbidden_path(&user.name, &ask.verb, path));
    }
    let accept = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let aggregated =
        accept.contains("as=APIGroupDiscoveryList") && accept.contains("v=v2;") || accept.contains("v=v2,");
    let aggregate = |value: &Value| Ok(reply(200, discovery::AGGREGATED_V2, value.to_string()));
    let ok = |value: Value| Ok(json_reply(200, &value));
    let send = |document: &openapi::Document, kind: &str| -> Answer {
        let mut out = reply(200, kind, document.bytes());
        if let Ok(tag) = document.etag.parse() {
            out.headers_mut().insert(header::ETAG, tag);
        }
        Ok(out)
    };
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        [kind @ ("healthz" | "livez" | "readyz"), one @ ..] => {
            let query = Query::parse(request.uri().query().unwrap_or(""));
            let (code, text) = crate::health::answer(api, kind, one, &query);
            Ok(reply(code, "text/plain; charset=utf-8", text))
        }
        ["version"] => ok(version()),
        ["metrics"] => Ok(reply(200, "text/plain; version=0.0.4; charset=utf-8", metrics(api))),
        ["api"] if aggregated => aggregate(&discovery::aggregated_core()),
        ["api"] => ok(discovery::api_versions(&api.host)),
        ["apis"] if aggregated => aggregate(&discovery::aggregated_groups()),
        ["apis"] => ok(discovery::group_list()),
        ["apis", group] => discovery::group(group).map_or_else(|| Err(status::no_such_path()), ok),
        ["api", version] => discovery::resource_list("", version).map_or_else(|| Err(status::no_such_path()), ok),
        ["apis", group, version] => {
            discovery::resource_list(group, version).map_or_else(|| Err(status::no_such_path()), ok)
        }
        ["openapi", "v2"] => {
            let (document, kind) = openapi::v2(accept);
            send(document, kind)
        }
        ["openapi", "v3"] => send(openapi::v3_index(), "application/json"),
        ["openapi", "v3", rest @ ..] => match openapi::v3_document(&rest.join("/")) {
            Some(document) => send(document, "application/json"),
            None => Err(status::no_such_path()),
        },
        _ => Err(status::no_such_path()),
    }
}

fn version() -> Value {
    json!({"major": "1", "minor": "36", "gitVersion": gantry_telemetry::build::git_version(), "gitCommit": "", "gitTreeState": "",
           "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
           "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" })})
}

fn metrics(api: &Api) -> String {
    let mut out = String::from(
        "# HELP apiserver_storage_objects Number of stored objects by resource.\n# TYPE apiserver_storage_objects gauge\n",
    );
    for resource in Resource::all().iter().filter(|r| r.stored() && r.group == r.storage_group) {
        let count = api.store.count(&prefix_of(resource, ""));
        out += &format!("apiserver_storage_objects{{resource=\"{}\"}} {count}\n", resource.qualified());
    }
    out + &format!(
        "# HELP gantry_store_revision Newest revision.\n# TYPE gantry_store_revision counter\ngantry_store_revision {}\n",
        api.store.revision()
    )
}
