//! Bodies in Kubernetes' protobuf form, for the kinds that kubectl's typed commands send: an envelope around a message,
//! turned into the same JSON that other clients send.
//!
//! Source of the numbers: the generated.proto files of k8s.io/api and k8s.io/apimachinery. A field or kind that is not in
//! the tables is an error that says to send JSON: nothing is dropped silently.

use std::borrow::Cow;

use api_machinery::status::{self, Status};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bytes,
    Bool,
    Int,
    Texts,
    /// Values are texts.
    TextMap,
    /// Values are bytes, base64 in JSON.
    BytesMap,
    One(&'static Message),
    Many(&'static Message),
    /// Seconds and nanoseconds since 1970; RFC 3339 in JSON.
    Time,
    /// A message whose first field is JSON text.
    Json,
    /// Values are messages whose first field is a list of texts.
    TextsMap,
    /// Known to be empty on requests.
    Skip,
}

type Message = [(u64, &'static str, Kind)];

const META: &Message = &[
    (1, "name", Kind::Text),
    (2, "generateName", Kind::Text),
    (3, "namespace", Kind::Text),
    (4, "selfLink", Kind::Text),
    (5, "uid", Kind::Text),
    (6, "resourceVersion", Kind::Text),
    (7, "generation", Kind::Int),
    (8, "creationTimestamp", Kind::Skip),
    (10, "deletionGracePeriodSeconds", Kind::Int),
    (11, "labels", Kind::TextMap),
    (12, "annotations", Kind::TextMap),
    (13, "ownerReferences", Kind::Many(OWNER)),
    (14, "finalizers", Kind::Texts),
    (17, "managedFields", Kind::Many(MANAGED)),
];
const OWNER: &Message = &[
    (1, "kind", Kind::Text),
    (3, "name", Kind::Text),
    (4, "uid", Kind::Text),
    (5, "apiVersion", Kind::Text),
    (6, "controller", Kind::Bool),
    (7, "blockOwnerDeletion", Kind::Bool),
];
const MANAGED: &Message = &[
    (1, "manager", Kind::Text),
    (2, "operation", Kind::Text),
    (3, "apiVersion", Kind::Text),
    (4, "time", Kind::Time),
    (6, "fieldsType", Kind::Text),
    (7, "fieldsV1", Kind::Json),
    (8, "subresource", Kind::Text),
];
const CONFIG_MAP: &Message = &[
    (1, "metadata", Kind::One(META)),
    (2, "data", Kind::TextMap),
    (3, "binaryData", Kind::BytesMap),
    (4, "immutable", Kind::Bool),
];
const SECRET: &Message = &[
    (1, "metadata", Kind::One(META)),
    (2, "data", Kind::BytesMap),
    (3, "type", Kind::Text),
    (4, "stringData", Kind::TextMap),
    (5, "immutable", Kind::Bool),
];
const NAMESPACE: &Message = &[
    (1, "metadata", Kind::One(META)),
    (2, "spec", Kind::One(&[(1, "finalizers", Kind::Texts)])),
    (3, "status", Kind::Skip),
];
const SERVICE_ACCOUNT: &Message = &[(1, "metadata", Kind::One(META)), (4, "automountServiceAccountToken", Kind::Bool)];
const ACCESS: &Message = &[
    (1, "namespace", Kind::Text),
    (2, "verb", Kind::Text),
    (3, "group", Kind::Text),
    (4, "version", Kind::Text),
    (5, "resource", Kind::Text),
    (6, "subresource", Kind::Text),
    (7, "name", Kind::Text),
];
const PATH_ACCESS: &Message = &[(1, "path", Kind::Text), (2, "verb", Kind::Text)];
const SELF_ACCESS: &Message = &[
    (1, "metadata", Kind::One(META)),
    (
        2,
        "spec",
        Kind::One(&[
            (1, "resourceAttributes", Kind::One(ACCESS)),
            (2, "nonResourceAttributes", Kind::One(PATH_ACCESS)),
        ]),
    ),
    (3, "status", Kind::Skip),
];
const SELF_RULES: &Message = &[
    (1, "metadata", Kind::One(META)),
    (2, "spec", Kind::One(&[(1, "namespace", Kind::Text)])),
    (3, "status", Kind::Skip),
];
const SELF_SUBJECT: &Message = &[(1, "metadata", Kind::One(META)), (2, "status", Kind::Skip)];
const TOKEN_REQUEST: &Message = &[
    (1, "metadata", Kind::One(META)),
    (2, "spec", Kind::One(&[(1, "audiences", Kind::Texts), (4, "expirationSeconds", Kind::Int)])),
    (3, "status", Kind::Skip),
];
const SIGNING_REQUEST: &Message = &[
    (1, "metadata", Kind::One(META)),
    (
        2,
        "spec",
        Kind::One(&[
            (1, "request", Kind::Bytes),
            (2, "username", Kind::Text),
            (3, "uid", Kind::Text),
            (4, "groups", Kind::Texts),
            (5, "usages", Kind::Texts),
            (6, "extra", Kind::TextsMap),
            (7, "signerName", Kind::Text),
            (8, "expirationSeconds", Kind::Int),
        ]),
    ),
    (
        3,
        "status",
        Kind::One(&[
            (
                1,
                "conditions",
                Kind::Many(&[
                    (1, "type", Kind::Text),
                    (2, "reason", Kind::Text),
                    (3, "message", Kind::Text),
                    (4, "lastUpdateTime", Kind::Time),
                    (5, "lastTransitionTime", Kind::Time),
                    (6, "status", Kind::Text),
                ]),
            ),
            (2, "certificate", Kind::Bytes),
        ]),
    ),
];
const TYPE_META: &Message = &[(1, "apiVersion", Kind::Text), (2, "kind", Kind::Text)];

fn message_of(kind: &str) -> Option<&'static Message> {
    Some(match kind {
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "Namespace" => NAMESPACE,
        "ServiceAccount" => SERVICE_ACCOUNT,
        "SelfSubjectAccessReview" => SELF_ACCESS,
        "SelfSubjectRulesReview" => SELF_RULES,
        "SelfSubjectReview" => SELF_SUBJECT,
        "TokenRequest" => TOKEN_REQUEST,
        "CertificateSigningRequest" => SIGNING_REQUEST,
        _ => return None,
    })
}

/// The body as JSON: what is no protobuf comes back as it is.
///
/// # Errors
/// The envelope or the message is broken, or of a kind that is only taken as JSON (415).
pub fn to_json<'a>(content_type: &str, body: &'a [u8]) -> Result<Cow<'a, [u8]>, Status> {
    if content_type != MEDIA_TYPE {
        return Ok(Cow::Borrowed(body));
    }
    let broken = || status::bad_request("the protobuf body is cut short or not of its kind".to_owned());
    let envelope = body.strip_prefix(MAGIC).ok_or_else(broken)?;
    let (mut kind, mut raw) = (json!({}), &[][..]);
    for field in Fields(envelope) {
        match field.ok_or_else(broken)? {
            (1, Part::Bytes(bytes)) => kind = message(TYPE_META, bytes).ok_or_else(broken)?,
            (2, Part::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let Some(table) = kind["kind"].as_str().and_then(message_of) else {
        return Err(status::unsupported_media_type(&["application/json", "application/yaml"]));
    };
    let mut object = message(table, raw).ok_or_else(broken)?;
    object["apiVersion"] = kind["apiVersion"].take();
    object["kind"] = kind["kind"].take();
    Ok(Cow::Owned(object.to_string().into_bytes()))
}

enum Part<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a message; `None` where it is broken, and then no more.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Part<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = field(&mut self.0);
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Part<'a>)> {
    let tag = varint(rest)?;
    let mut skip = |n: usize| {
        let (part, after) = rest.split_at_checked(n)?;
        *rest = after;
        Some(part)
    };
    let part = match tag & 7 {
        0 => Part::Number(varint(rest)?),
        1 => skip(8).map(|_| Part::Fixed)?,
        5 => skip(4).map(|_| Part::Fixed)?,
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            let (part, after) = rest.split_at_checked(length)?;
            *rest = after;
            Part::Bytes(part)
        }
        _ => return None,
    };
    Some((tag >> 3, part))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn message(table: &Message, bytes: &[u8]) -> Option<Value> {
    let mut object = Map::new();
    for field in Fields(bytes) {
        let (number, part) = field?;
        let (_, name, kind) = table.iter().find(|(n, _, _)| *n == number)?;
        let text = |b: &[u8]| std::str::from_utf8(b).ok().map(|t| json!(t));
        match (kind, part) {
            (Kind::Skip, _) => {}
            // Kubernetes writes empty texts for fields that are not set.
            (Kind::Text, Part::Bytes([])) => {}
            (Kind::Text, Part::Bytes(b)) => drop(object.insert((*name).to_owned(), text(b)?)),
            // An optional certificate that is not there, as Go writes it.
            (Kind::Bytes, Part::Bytes([])) if *name == "certificate" => {}
            (Kind::Bytes, Part::Bytes(b)) => drop(object.insert((*name).to_owned(), json!(STANDARD.encode(b)))),
            (Kind::Bool, Part::Number(n)) => drop(object.insert((*name).to_owned(), json!(n != 0))),
            (Kind::Int, Part::Number(0)) => {}
            (Kind::Int, Part::Number(n)) => drop(object.insert((*name).to_owned(), json!(n.cast_signed()))),
            (Kind::Texts, Part::Bytes(b)) => {
                let list = object.entry(*name).or_insert_with(|| json!([]));
                list.as_array_mut()?.push(text(b)?);
            }
            (Kind::TextMap | Kind::BytesMap, Part::Bytes(b)) => {
                let value = if matches!(kind, Kind::TextMap) { Kind::Text } else { Kind::Bytes };
                let pair = message(&[(1, "key", Kind::Text), (2, "value", value)], b)?;
                let map = object.entry(*name).or_insert_with(|| json!({})).as_object_mut()?;
                let value = pair.get("value").cloned().unwrap_or_else(|| json!(""));
                map.insert(pair["key"].as_str().unwrap_or_default().to_owned(), value);
            }
            (Kind::TextsMap, Part::Bytes(b)) => {
                let pair =
                    message(&[(1, "key", Kind::Text), (2, "value", Kind::One(&[(1, "items", Kind::Texts)]))], b)?;
                let map = object.entry(*name).or_insert_with(|| json!({})).as_object_mut()?;
                map.insert(pair["key"].as_str().unwrap_or_default().to_owned(), pair["value"]["items"].clone());
            }
            (Kind::Many(inner), Part::Bytes(b)) => {
                let list = object.entry(*name).or_insert_with(|| json!([]));
                list.as_array_mut()?.push(message(inner, b)?);
            }
            (Kind::Time, Part::Bytes(b)) => {
                let time = message(&[(1, "s", Kind::Int), (2, "n", Kind::Int)], b)?;
                // A time that is not set is an empty message.
                if let Some(seconds) = time["s"].as_i64() {
                    let time = jiff::Timestamp::from_second(seconds).ok()?;
                    object.insert((*name).to_owned(), json!(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()));
                }
            }
            (Kind::Json, Part::Bytes(b)) => {
                for field in Fields(b) {
                    if let (1, Part::Bytes(text)) = field? {
                        object.insert((*name).to_owned(), serde_json::from_slice(text).ok()?);
                    }
                }
            }
            (Kind::One(inner), Part::Bytes(b)) => drop(object.insert((*name).to_owned(), message(inner, b)?)),
            _ => return None,
        }
    }
    Some(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn envelope(kind: &str, raw: &[u8]) -> Vec<u8> {
        let kind = [put(1, b"v1"), put(2, kind.as_bytes())].concat();
        [MAGIC, &put(1, &kind), &put(2, raw), &put(3, b""), &put(4, b"")].concat()
    }

    #[test]
    fn a_config_map_is_read_as_its_json() {
        let metadata = [put(1, b"made"), put(2, b""), put(8, b""), vec![7 << 3, 0]].concat();
        let raw = [put(1, &metadata), put(2, &[put(1, b"a"), put(2, b"1")].concat())].concat();
        let bytes = envelope("ConfigMap", &raw);
        let got: Value = serde_json::from_slice(&to_json(MEDIA_TYPE, &bytes).unwrap()).unwrap();
        let want = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "made"}, "data": {"a": "1"}});
        assert_eq!(got, want);
    }

    #[test]
    fn an_approval_keeps_times_and_owners_of_fields() {
        let managed = [put(1, b"m"), put(4, &[8, 60]), put(7, &put(1, br#"{"f:spec":{}}"#))].concat();
        // Numbers of fields above 15 take two bytes.
        let tag = [0x8a, 0x01, u8::try_from(managed.len()).unwrap()];
        let metadata = [&put(1, b"a")[..], &tag, &managed].concat();
        let condition = [put(1, b"Approved"), put(4, &[8, 60]), put(5, b""), put(6, b"True")].concat();
        let extra = [put(1, b"k"), put(2, &[put(1, b"x"), put(1, b"y")].concat())].concat();
        let raw = [put(1, &metadata), put(2, &put(6, &extra)), put(3, &put(1, &condition))].concat();
        let got: Value =
            serde_json::from_slice(&to_json(MEDIA_TYPE, &envelope("CertificateSigningRequest", &raw)).unwrap())
                .unwrap();
        let time = "1970-01-01T00:01:00Z";
        assert_eq!(
            got["metadata"]["managedFields"],
            json!([{"manager": "m", "time": time, "fieldsV1": {"f:spec": {}}}])
        );
        assert_eq!(got["spec"]["extra"], json!({"k": ["x", "y"]}));
        assert_eq!(
            got["status"]["conditions"],
            json!([{"type": "Approved", "lastUpdateTime": time, "status": "True"}])
        );
    }

    #[test]
    fn other_kinds_and_broken_bodies_are_refused() {
        assert!(to_json(MEDIA_TYPE, &envelope("Pod", b"")).is_err());
        assert!(to_json(MEDIA_TYPE, b"k8s\0\xff").is_err());
        assert!(to_json(MEDIA_TYPE, b"{}").is_err());
        assert_eq!(&*to_json("application/json", b"{}").unwrap(), b"{}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = to_json(MEDIA_TYPE, &[MAGIC, &bytes].concat());
            let _ = to_json(MEDIA_TYPE, &envelope("Secret", &bytes));
        }
    }
}
