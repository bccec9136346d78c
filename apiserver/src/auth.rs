//! Who asks (certificates, tokens) and whether they may (groups, node rules, RBAC).

use std::collections::HashMap;

use base64::Engine as _;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::store::Store;

const URL64: base64::engine::GeneralPurpose = base64::engine::general_purpose::URL_SAFE_NO_PAD;
/// `iss` and the default audience of service account tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct User {
    /// User name.
    pub name: String,
    /// User id, where there is one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Anything else known, as `userInfo.extra` has it.
    pub extra: Value,
}

impl User {
    /// A user of some groups, and of `system:authenticated`.
    pub fn new(name: &str, groups: &[String]) -> Self {
        let mut groups = groups.to_vec();
        groups.push("system:authenticated".into());
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Self::default() }
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node that this user is the kubelet of.
    pub fn node(&self) -> Option<&str> {
        if self.is_in("system:nodes") { self.name.strip_prefix("system:node:") } else { None }
    }

    /// As `userInfo` has it.
    pub fn to_value(&self) -> Value {
        let mut out = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            out["uid"] = json!(self.uid);
        }
        if self.extra.is_object() {
            out["extra"] = self.extra.clone();
        }
        out
    }
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    /// `get`, `list`, ...
    pub verb: String,
    /// API group.
    pub group: String,
    /// Plural.
    pub resource: String,
    /// Subresource or empty.
    pub subresource: String,
    /// Namespace or empty.
    pub namespace: String,
    /// Name or empty.
    pub name: String,
    /// Path of requests that are for no resource; empty otherwise.
    pub path: String,
}

impl Attributes {
    /// Upstream's text for a refusal.
    pub fn refusal(&self, user: &User) -> String {
        let resource = if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        };
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        format!("User {:?} cannot {} resource {resource:?} in API group {:?} {scope}", user.name, self.verb, self.group)
    }
}

/// Bearer tokens: those of a file and those of service accounts.
pub struct Tokens {
    key: EcdsaKeyPair,
    fixed: HashMap<String, User>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tokens").field("fixed", &self.fixed.len()).finish()
    }
}

impl Tokens {
    /// Tokens signed by a PKCS#8 key, and those of a csv text: `token,user,uid,"group1,group2"`.
    pub fn new(pkcs8: &[u8], csv: &str) -> anyhow::Result<Self> {
        let random = ring::rand::SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|why| anyhow::anyhow!("read the key that signs tokens: {why}"))?;
        let mut fixed = HashMap::new();
        for line in csv.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut parts = line.splitn(4, ',').map(|part| part.trim().trim_matches('"'));
            let (Some(token), Some(name), Some(uid)) = (parts.next(), parts.next(), parts.next()) else {
                anyhow::bail!("read the token file: a line needs token,user,uid");
            };
            let groups: Vec<String> =
                parts.next().unwrap_or("").split(',').filter(|g| !g.is_empty()).map(|g| g.trim().to_owned()).collect();
            fixed.insert(token.to_owned(), User { uid: uid.into(), ..User::new(name, &groups) });
        }
        Ok(Self { key, fixed })
    }

    /// Signs claims.
    pub fn sign(&self, claims: &Value) -> Result<String, String> {
        let header = URL64.encode(json!({"alg": "ES256", "typ": "JWT"}).to_string());
        let body = format!("{header}.{}", URL64.encode(claims.to_string()));
        let random = ring::rand::SystemRandom::new();
        let signature = self.key.sign(&random, body.as_bytes()).map_err(|_| "sign a token".to_owned())?;
        Ok(format!("{body}.{}", URL64.encode(signature)))
    }

    /// Who a token stands for; `None` when it is not valid. `audiences` empty: the server's own.
    pub fn user(&self, store: &Store, token: &str, audiences: &[String]) -> Option<User> {
        if let Some(user) = self.fixed.get(token) {
            return Some(user.clone());
        }
        if let Some(user) = crate::bootstrap_tokens::user(store, token) {
            return Some(user);
        }
        let (body, sent) = token.rsplit_once('.')?;
        let key =
            signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        key.verify(body.as_bytes(), &URL64.decode(sent).ok()?).ok()?;
        let claims: Value = serde_json::from_slice(&URL64.decode(body.split_once('.')?.1).ok()?).ok()?;
        let now = jiff::Timestamp::now().as_second();
        if claims["iss"] != ISSUER || claims["exp"].as_i64()? < now || claims["nbf"].as_i64().unwrap_or(0) > now + 60 {
            return None;
        }
        let meant = claims["aud"].as_array()?;
        let fits = |wanted: &str| meant.iter().any(|audience| audience == wanted);
        if !(if audiences.is_empty() { fits(ISSUER) } else { audiences.iter().any(|a| fits(a)) }) {
            return None;
        }
        let bound = &claims["kubernetes.io"];
        let (namespace, name) = (bound["namespace"].as_str()?, bound["serviceaccount"]["name"].as_str()?);
        let alive = |plural: &str, object: &Value| {
            let key = format!("/core/{plural}/{namespace}/{}", object["name"].as_str().unwrap_or_default());
            object.is_null() || store.get(&key).is_some_and(|entry| entry.value["metadata"]["uid"] == object["uid"])
        };
        if !alive("serviceaccounts", &bound["serviceaccount"])
            || !alive("pods", &bound["pod"])
            || !alive("secrets", &bound["secret"])
        {
            return None;
        }
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let mut user = User::new(&format!("system:serviceaccount:{namespace}:{name}"), &groups);
        user.uid = bound["serviceaccount"]["uid"].as_str().unwrap_or_default().to_owned();
        if let Some(pod) = bound["pod"]["name"].as_str() {
            user.extra = json!({"authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [bound["pod"]["uid"]]});
        }
        Some(user)
    }
}

/// Whether a user may do something.
pub fn allowed(store: &Store, user: &User, ask: &Attributes) -> bool {
    if user.is_in("system:masters") {
        return true;
    }
    if !ask.path.is_empty() {
        let public = ["/healthz", "/livez", "/readyz", "/version"]
            .iter()
            .any(|p| ask.path == *p || ask.path.starts_with(&format!("{p}/")));
        let documents =
            ["/api", "/apis", "/openapi"].iter().any(|p| ask.path == *p || ask.path.starts_with(&format!("{p}/")));
        return (ask.verb == "get" && (public || (documents && user.is_in("system:authenticated"))))
            || rbac(store, user, ask);
    }
    if ask.verb == "create"
        && user.is_in("system:authenticated")
        && matches!(
            ask.resource.as_str(),
            "selfsubjectaccessreviews" | "selfsubjectrulesreviews" | "selfsubjectreviews"
        )
    {
        return true;
    }
    if user.node().is_some() && node_may(user, ask) {
        return true;
    }
    rbac(store, user, ask)
}

fn node_may(user: &User, ask: &Attributes) -> bool {
    let own = user.node().unwrap_or_default();
    let read = matches!(ask.verb.as_str(), "get" | "list" | "watch");
    let write = matches!(ask.verb.as_str(), "create" | "update" | "patch" | "delete");
    let group = ask.group.as_str();
    match (group, ask.resource.as_str(), ask.subresource.as_str()) {
        (_, _, "") if read => group != "rbac.authorization.k8s.io",
        ("", "nodes", "" | "status") => {
            matches!(ask.verb.as_str(), "create" | "update" | "patch" | "get")
                && (ask.name.is_empty() || ask.name == own)
        }
        ("", "nodes", _) => ask.name == own,
        ("", "pods", "") => matches!(ask.verb.as_str(), "create" | "delete"),
        ("", "pods", "status") => read || matches!(ask.verb.as_str(), "update" | "patch"),
        ("", "pods", "eviction") | ("", "serviceaccounts", "token") => ask.verb == "create",
        ("" | "events.k8s.io", "events", "") => matches!(ask.verb.as_str(), "create" | "update" | "patch"),
        ("coordination.k8s.io", "leases", "") => write && (ask.namespace == "kube-node-lease"),
        ("", "persistentvolumeclaims", "status") => read || matches!(ask.verb.as_str(), "update" | "patch"),
        ("storage.k8s.io", "csinodes", "") => write && (ask.name.is_empty() || ask.name == own),
        ("authentication.k8s.io", "tokenreviews", _)
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", _) => ask.verb == "create",
        ("certificates.k8s.io", "certificatesigningrequests" | "podcertificaterequests", "") => ask.verb == "create",
        _ => false,
    }
}

fn rbac(store: &Store, user: &User, ask: &Attributes) -> bool {
    let mut prefixes = vec!["/rbac.authorization.k8s.io/clusterrolebindings/".to_owned()];
    if !ask.namespace.is_empty() {
        prefixes.push(format!("/rbac.authorization.k8s.io/rolebindings/{}/", ask.namespace));
    }
    for prefix in prefixes {
        for (_, binding) in store.range(&prefix, "", 0, 0).map(|page| page.items).unwrap_or_default() {
            let binding = &binding.value;
            if !binding["subjects"].as_array().into_iter().flatten().any(|subject| is_subject(user, subject)) {
                continue;
            }
            let role = binding["roleRef"]["name"].as_str().unwrap_or_default();
            let key = if binding["roleRef"]["kind"] == "Role" {
                format!("/rbac.authorization.k8s.io/roles/{}/{role}", ask.namespace)
            } else {
                format!("/rbac.authorization.k8s.io/clusterroles/{role}")
            };
            let Some(role) = store.get(&key) else { continue };
            if role.value["rules"].as_array().into_iter().flatten().any(|rule| rule_allows(rule, ask)) {
                return true;
            }
        }
    }
    false
}

fn is_subject(user: &User, subject: &Value) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => user.name == name,
        Some("Group") => user.is_in(name),
        Some("ServiceAccount") => {
            user.name == format!("system:serviceaccount:{}:{name}", subject["namespace"].as_str().unwrap_or_default())
        }
        _ => false,
    }
}

fn rule_allows(rule: &Value, ask: &Attributes) -> bool {
    let has = |field: &str, wanted: &str| {
        rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).any(|own| own == "*" || own == wanted)
    };
    if !has("verbs", &ask.verb) {
        return false;
    }
    if !ask.path.is_empty() {
        return rule["nonResourceURLs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .any(|url| url == ask.path || url.strip_suffix('*').is_some_and(|start| ask.path.starts_with(start)));
    }
    let resource =
        if ask.subresource.is_empty() { ask.resource.clone() } else { format!("{}/{}", ask.resource, ask.subresource) };
    let named = rule["resourceNames"]
        .as_array()
        .is_none_or(|names| names.is_empty() || names.iter().any(|name| *name == ask.name.as_str()));
    let part = !ask.subresource.is_empty() && has("resources", &format!("*/{}", ask.subresource));
    has("apiGroups", &ask.group) && (has("resources", &resource) || part) && named
}
