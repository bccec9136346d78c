//! How a session ended, as the client reads it from the error channel.

use serde_json::{Value, json};

use crate::StreamError;

/// The `metav1.Status` of a session's outcome; an exit code other than 0 is a failure with that code as its cause.
pub(crate) fn of(outcome: &Result<i32, StreamError>) -> Value {
    match outcome {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => json!({
            "metadata": {},
            "status": "Failure",
            "message": error.0,
            "reason": "InternalError",
            "code": 500,
        }),
    }
}

/// A terminal size as clients send it: `{"Width":80,"Height":24}`.
pub(crate) fn size_of(text: &[u8]) -> Option<crate::TermSize> {
    let value: Value = serde_json::from_slice(text).ok()?;
    let number = |key: &str| value[key].as_u64().and_then(|n| u16::try_from(n).ok());
    Some(crate::TermSize { rows: number("Height")?, columns: number("Width")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_causes() {
        assert_eq!(of(&Ok(0))["status"], "Success");
        let failed = of(&Ok(5));
        assert_eq!(
            (&failed["reason"], &failed["details"]["causes"][0]["message"]),
            (&json!("NonZeroExitCode"), &json!("5"))
        );
        assert_eq!(of(&Err(StreamError("no".to_owned())))["message"], "no");
    }

    #[test]
    fn sizes_are_read_and_nonsense_is_not() {
        assert_eq!(size_of(br#"{"Width":80,"Height":24}"#), Some(crate::TermSize { rows: 24, columns: 80 }));
        assert_eq!(size_of(br#"{"Width":800000,"Height":24}"#), None);
        assert_eq!(size_of(b"x"), None);
    }
}
