//! The form of every error, whichever part of the server returns it.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::Answer;

/// All codes of the contract.
pub const CODES: [(&str, u16); 19] = [
    ("malformed_request", 400),
    ("unauthenticated", 401),
    ("forbidden", 403),
    ("quota_exceeded", 403),
    ("not_found", 404),
    ("method_not_allowed", 405),
    ("name_taken", 409),
    ("invalid_state", 409),
    ("network_in_use", 409),
    ("address_exhausted", 409),
    ("port_taken", 409),
    ("idempotency_in_progress", 409),
    ("payload_too_large", 413),
    ("unsupported_media_type", 415),
    ("validation_failed", 422),
    ("idempotency_key_reused", 422),
    ("rate_limited", 429),
    ("internal", 500),
    ("unavailable", 503),
];

/// Asserts a problem with this code and all its required fields, and returns the pointers of `errors`.
#[track_caller]
pub fn problem(answer: &Answer, code: &str) -> Vec<String> {
    let what = format!("{} {:?} {}", answer.status, answer.headers, answer.text);
    assert_eq!(answer.code(), code, "{what}");
    let status = CODES.iter().find(|(known, _)| *known == code).expect("a code of the closed set").1;
    assert_eq!(answer.status, status, "{what}");
    assert_eq!(answer.header("content-type"), "application/problem+json", "{what}");
    let fields: BTreeSet<&str> = answer.body.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = BTreeSet::from(["type", "title", "status", "detail", "code", "request_id"]);
    if code == "validation_failed" {
        expected.insert("errors");
    }
    assert_eq!(fields, expected, "{what}");
    assert_eq!(answer.body["status"], json!(status), "{what}");
    for field in ["type", "title", "detail", "request_id"] {
        assert!(answer.body[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {what}");
    }
    assert_eq!(answer.body["request_id"], answer.header("x-request-id"), "{what}");
    let belongs = match status {
        401 => answer.header("www-authenticate") == "Bearer",
        405 => !answer.header("allow").is_empty(),
        429 | 503 => answer.header("retry-after").parse::<u32>().is_ok(),
        _ => true,
    };
    assert!(belongs, "{what}");
    let errors = answer.body["errors"].as_array().cloned().unwrap_or_default();
    assert!(code != "validation_failed" || !errors.is_empty(), "{what}");
    for error in &errors {
        let fields: BTreeSet<&str> = error.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, BTreeSet::from(["pointer", "code", "detail"]), "{what}");
        assert!(error.as_object().unwrap().values().all(serde_json::Value::is_string), "{what}");
    }
    errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect()
}
