//! Validation with upstream's texts: what a create or an update refuses, as one error for each field.

mod error;

pub use error::{FieldError, Reason};
