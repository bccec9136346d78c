//! get and list.

use api_machinery::fieldselector::FieldSelector;
use api_machinery::resource::Resource;
use api_machinery::status::{self, Status};
use api_machinery::table::{self, IncludeObject};
use api_machinery::{convert, parts};
use base64::Engine as _;
use gantry_kube::selector::Selector;
use serde_json::{Value, json};

use crate::http_util::{Answer, Form, json_reply, negotiate, reply, shape_one};
use crate::router::{Api, Call, store_status};
use crate::store::Entry;

const URL64: base64::engine::GeneralPurpose = base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The label and field selectors of a call.
#[derive(Debug)]
pub struct Filter {
    labels: Selector,
    fields: FieldSelector,
}

impl Filter {
    /// Reads `labelSelector` and `fieldSelector`.
    pub fn of(call: &Call) -> Result<Self, Status> {
        let labels = Selector::parse(call.query.get("labelSelector"))
            .map_err(|error| status::bad_request(format!("unable to parse requirement: {error}")))?;
        let fields = FieldSelector::parse(call.resource, call.query.get("fieldSelector"))
            .map_err(|error| status::bad_request(error.to_string()))?;
        Ok(Self { labels, fields })
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.labels.matches_object(object) && self.fields.matches(object)
    }
}

/// The form in which a resource serves a stored entry.
pub fn served(resource: &Resource, entry: &Entry) -> Value {
    let mut value = entry.value.clone();
    convert::from_storage(resource, &mut value);
    value
}

/// get, also of subresources that show the object or its scale.
pub fn get(api: &Api, call: &Call) -> Answer {
    let form = negotiate(&call.headers)?;
    let entry = api.store.get(&call.key(&call.name)).ok_or_else(|| status::not_found(call.resource, &call.name))?;
    if call.part == "scale" {
        return Ok(json_reply(200, &parts::scale_of(call.resource, &entry.value)));
    }
    if form == Form::Json && !convert::needed(call.resource) {
        return Ok(reply(200, "application/json", entry.bytes.clone()));
    }
    Ok(json_reply(200, &shape_one(call.resource, form, &call.query, &served(call.resource, &entry))))
}

/// list, with selectors, `limit` and `continue`.
pub fn list(api: &Api, call: &Call) -> Answer {
    let form = negotiate(&call.headers)?;
    let filter = Filter::of(call)?;
    let number = |name: &str| -> Result<u64, Status> {
        let text = call.query.get(name);
        if text.is_empty() {
            Ok(0)
        } else {
            text.parse().map_err(|_| status::bad_request(format!("{name}: Invalid value: {text:?}")))
        }
    };
    let (limit, mut revision) = (usize::try_from(number("limit")?).unwrap_or(usize::MAX), number("resourceVersion")?);
    if call.query.get("resourceVersionMatch") != "Exact" {
        revision = 0;
    }
    let mut after = String::new();
    let token = call.query.get("continue");
    if !token.is_empty() {
        let bad = || status::bad_request("continue key is not valid");
        let text = String::from_utf8(URL64.decode(token).map_err(|_| bad())?).map_err(|_| bad())?;
        let (at, key) = text.split_once(' ').ok_or_else(bad)?;
        (revision, after) = (at.parse().map_err(|_| bad())?, key.to_owned());
    }
    let prefix = call.prefix();
    let mut items = Vec::new();
    let mut more = None;
    let page = api.store.range(&prefix, &after, 0, revision).map_err(|error| match error {
        crate::store::StoreError::Compacted { .. } if !token.is_empty() => {
            status::expired("The provided continue parameter is too old to display a consistent list result.")
        }
        error => store_status(call.resource, "", &error),
    })?;
    let mut last = String::new();
    for (key, entry) in &page.items {
        if !filter.matches(&entry.value) {
            continue;
        }
        if limit > 0 && items.len() == limit {
            more = Some(URL64.encode(format!("{} {last}", page.revision)));
            break;
        }
        items.push(entry);
        last.clone_from(key);
    }
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(token) = &more {
        metadata["continue"] = json!(token);
    }
    if form == Form::Json && !convert::needed(call.resource) {
        let head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            call.resource.list_kind,
            call.resource.api_version()
        );
        let mut out =
            Vec::with_capacity(head.len() + items.iter().map(|entry| entry.bytes.len() + 1).sum::<usize>() + 2);
        out.extend_from_slice(head.as_bytes());
        for (index, entry) in items.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&entry.bytes);
        }
        out.extend_from_slice(b"]}");
        return Ok(reply(200, "application/json", out));
    }
    let values: Vec<Value> = items.iter().map(|entry| served(call.resource, entry)).collect();
    let out = match form {
        Form::Table => {
            let rows: Vec<&Value> = values.iter().collect();
            let include = IncludeObject::parse(call.query.get("includeObject"));
            let mut table = table::render(call.resource, &rows, jiff::Timestamp::now(), include);
            table["metadata"] = metadata;
            table
        }
        Form::Partial => {
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "items": values.iter().map(parts::partial).collect::<Vec<_>>()})
        }
        Form::Json => {
            json!({"kind": call.resource.list_kind, "apiVersion": call.resource.api_version(), "metadata": metadata, "items": values})
        }
    };
    Ok(json_reply(200, &out))
}
