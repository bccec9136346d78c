//! What the fuzz targets of this crate run: one function a target, from texts that stand in objects of the API.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use serde_json::Value;

use crate::quantity::Quantity;
use crate::selector::Selector;
use crate::{csr, pki};

/// An amount, and behind a line's end another one.
pub fn quantity(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let mut next = || lines.next().and_then(|line| Quantity::parse(line).ok());
    let Some(amount) = next() else { return };
    let written = amount.to_string();
    let again = Quantity::parse(&written).unwrap_or_else(|e| panic!("{text:?} is written so that it is not read: {e}"));
    assert_eq!(again, amount, "{text:?} is written as {written:?}");
    assert_eq!(again.to_string(), written, "the form that is written is not the last one");
    let _ = (amount.value(), amount.milli_value(), amount.is_zero(), amount.is_negative(), amount.format());
    if let Some(other) = next() {
        let sum = amount.plus(other);
        if amount.value().unsigned_abs() < 1 << 60 && other.value().unsigned_abs() < 1 << 60 {
            assert_eq!(sum.minus(other), amount, "{amount} + {other} - {other}");
        }
    }
}

/// A label selector as a query has it, and behind a NUL byte one as an object has it.
pub fn label_selector(data: &[u8]) {
    let mut parts = data.split(|b| *b == 0);
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let object = serde_json::json!({"metadata": {"labels": {"app": "web", "tier": "5", "": ""}}});
    match Selector::parse(&text) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(selector) => {
            if selector.is_empty() {
                assert!(selector.matches_object(&object), "nothing asked selects everything");
            }
            selector.matches_object(&object);
        }
    }
    let Some(Ok(value)) = parts.next().map(serde_json::from_slice::<Value>) else { return };
    match Selector::from_object(&value) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(selector) => drop(selector.map(|s| s.matches_object(&object))),
    }
}

/// A request for a certificate, or a certificate.
pub fn pem(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Err(error) = csr::read(&text) {
        assert!(!error.to_string().is_empty());
    }
    if let Err(error) = pki::inspect(&text) {
        assert!(!error.to_string().is_empty());
    }
    let _ = pki::facts_of_der(data);
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[("api_quantity", quantity), ("api_label_selector", label_selector), ("api_pem", pem)]);
}
