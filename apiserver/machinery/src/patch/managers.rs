//! Entries of `metadata.managedFields`: which manager owns which fields through which operation.

use serde_json::{Value, json};

use super::fieldset::FieldSet;

/// Who writes, and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// `fieldManager`, or what stands for it.
    pub manager: &'a str,
    /// Subresource that is written, empty for the main resource.
    pub subresource: &'a str,
    /// Now, as RFC 3339 with seconds.
    pub now: &'a str,
}

/// What one manager owns.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) manager: String,
    pub(super) operation: String,
    pub(super) subresource: String,
    pub(super) api_version: String,
    pub(super) time: String,
    pub(super) fields: FieldSet,
}

impl Entry {
    fn parse(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let operation = text("operation");
        matches!(operation.as_str(), "Apply" | "Update").then(|| Self {
            manager: text("manager"),
            operation,
            subresource: text("subresource"),
            api_version: text("apiVersion"),
            time: text("time"),
            fields: FieldSet::parse(&value["fieldsV1"]),
        })
    }

    fn to_value(&self) -> Value {
        let mut out = json!({
            "manager": self.manager, "operation": self.operation, "apiVersion": self.api_version, "time": self.time,
            "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_value(),
        });
        if !self.subresource.is_empty() {
            out["subresource"] = json!(self.subresource);
        }
        out
    }

    pub(super) fn is(&self, operation: &str, api_version: &str, writer: Writer<'_>) -> bool {
        self.operation == operation
            && self.manager == writer.manager
            && self.subresource == writer.subresource
            && self.api_version == api_version
    }

    /// The manager as conflict messages name it.
    pub(super) fn described(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out += &format!(" with subresource {:?}", self.subresource);
        }
        out += &format!(" using {}", self.api_version);
        if self.operation == "Update" && !self.time.is_empty() {
            out += &format!(" at {}", self.time);
        }
        out
    }
}

pub(super) fn entries(object: &Value) -> Vec<Entry> {
    let list = object["metadata"]["managedFields"].as_array();
    list.map(|list| list.iter().filter_map(Entry::parse).collect()).unwrap_or_default()
}

pub(super) fn store_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| (&a.operation, &a.time, &a.manager).cmp(&(&b.operation, &b.time, &b.manager)));
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    if entries.is_empty() {
        metadata.shift_remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), entries.iter().map(Entry::to_value).collect());
    }
}

pub(super) fn entry(writer: Writer<'_>, operation: &str, api_version: String, fields: FieldSet) -> Entry {
    Entry {
        manager: writer.manager.to_owned(),
        operation: operation.to_owned(),
        subresource: writer.subresource.to_owned(),
        api_version,
        time: writer.now.to_owned(),
        fields,
    }
}
