//! One field's error, written as upstream writes it.

use std::fmt;

use serde_json::Value;

/// Why a field is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The field is missing or empty.
    Required,
    /// The value is malformed or out of range.
    Invalid,
    /// The value is not one of an enumeration.
    NotSupported,
    /// A key or name appears twice.
    Duplicate,
    /// The value may not be given here.
    Forbidden,
    /// What the value refers to does not exist.
    NotFound,
    /// The value is too long.
    TooLong,
    /// The list has too many items.
    TooMany,
    /// The value has the wrong JSON type.
    TypeInvalid,
}

impl Reason {
    /// The `reason` of a cause.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

/// One refused field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Path, such as `spec.containers[0].image`.
    pub field: String,
    /// Why.
    pub reason: Reason,
    /// The value that was refused, where upstream shows it.
    pub value: Option<Value>,
    /// More for people; may be empty.
    pub detail: String,
}

impl FieldError {
    fn new(field: impl Into<String>, reason: Reason, value: Option<Value>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), reason, value, detail: detail.into() }
    }

    /// The field must be given.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(field, Reason::Required, None, detail)
    }

    /// The value is malformed.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(field, Reason::Invalid, Some(value.into()), detail)
    }

    /// The value is not among those `supported`.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|text| format!("{text:?}")).collect();
        Self::new(field, Reason::NotSupported, Some(value.into()), format!("supported values: {}", list.join(", ")))
    }

    /// The value appears twice.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, Reason::Duplicate, Some(value.into()), "")
    }

    /// The field may not be given or changed.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(field, Reason::Forbidden, None, detail)
    }

    /// What the value names does not exist.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, Reason::NotFound, Some(value.into()), "")
    }

    /// The value is longer than `max` bytes.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self::new(field, Reason::TooLong, None, format!("may not be more than {max} bytes"))
    }

    /// The text without the field's path.
    pub fn body(&self) -> String {
        let head = match self.reason {
            Reason::Required => "Required value",
            Reason::Invalid | Reason::TypeInvalid => "Invalid value",
            Reason::NotSupported => "Unsupported value",
            Reason::Duplicate => "Duplicate value",
            Reason::Forbidden => "Forbidden",
            Reason::NotFound => "Not found",
            Reason::TooLong => "Too long",
            Reason::TooMany => "Too many",
        };
        let mut out = head.to_owned();
        if let Some(value) = &self.value {
            out += &format!(": {value}");
        }
        if !self.detail.is_empty() {
            out += &format!(": {}", self.detail);
        }
        out
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.field, self.body())
    }
}

impl std::error::Error for FieldError {}
